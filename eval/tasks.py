"""The data sets: one row a task, and how a selection of them is named.

The fourteen rows of the published evaluator keep their names and the places of their files, relative to the data root.
A new data set is one more row and no other change.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.metrics import metric_named, nearest

SHORT_ANSWER, LONG_ANSWER, CAPTION, WHOLE_TEXT = 10, 100, 30, 250
"""Tokens that the published evaluator allows an answer, and Qwen-VL's a caption. Ten can cut off the longest option
texts of AI2D. All text of a small document needs more."""

PAPER = "arXiv 2311.06607v3, tables"
FIGURE = "arXiv 2311.06607v3, read off its radar figure"
FIGURE_REPRINTED = "arXiv 2311.06607v3, read off its radar figure; reprinted in arXiv 2404.12803"


@dataclass(frozen=True)
class PublishedScores:
    """What was reported, in percent, None where nothing was: of Monkey, of Qwen-VL, and where it stands."""

    monkey: float | None
    qwen_vl: float | None
    source: str


@dataclass(frozen=True)
class Task:
    """A data set to evaluate on.

    `file` and `annotations` are relative to the data root. `annotations` is a VQA annotation file whose ten answers
    a question replace the answer in `file`. `headline` is the metric's variant that is the data set's own rule.
    `n_expected` is the size of the published set, None where there is none. `own_file`: a file of the user's, whose
    path is taken as it stands. `prompt` names a row of `eval.prompting.FORMS`. `parts` names what rows are told apart
    by (see `eval.parts`) where they have it: keys of the rows or of the entries of `annotations`.
    """

    name: str
    file: str
    metric: str
    max_new_tokens: int
    headline: str = "official"
    n_expected: int | None = None
    split: str = ""
    annotations: str | None = None
    prompt: str = "vqa"
    prompt_text: str | None = None
    published: PublishedScores | None = None
    note: str = ""
    parts: tuple[str, ...] = ()
    own_file: bool = False

    def __post_init__(self) -> None:
        variants = metric_named(self.metric).all_variants
        if self.headline not in variants:
            known = ", ".join(variants)
            raise ValueError(f"task {self.name}: metric {self.metric} has no variant {self.headline!r}; it has {known}")


_PAIRS_OR_CONTAINMENT = (
    "The headline is the set's own F1 over (document, key, value); the published script computes containment "
    "(original). Which of the two gave the published figure is not known."
)

_CAPTION_NOTE = (
    "No caption script of Monkey was released: as-trained is the paper's training prompt, published is Qwen-VL's, "
    "which also asks for at least eight tokens, and no such limit is set here."
)

_ROWS = (
    Task(
        "estvqa_test",
        "data/estvqa/estvqa.jsonl",
        "anls",
        LONG_ANSWER,
        headline="strict",
        n_expected=5000,
        split="a random English part of the training set, not the test set",
        published=PublishedScores(82.6, 77.8, PAPER),
    ),
    Task(
        "docvqa_test",
        "data/docvqa/test_ans.jsonl",
        "anls",
        LONG_ANSWER,
        n_expected=5188,
        split="test, with answers",
        published=PublishedScores(66.5, 65.1, FIGURE_REPRINTED),
    ),
    Task(
        "chartqa",
        "data/chartqa/chartqa.jsonl",
        "relaxed_accuracy",
        LONG_ANSWER,
        n_expected=2500,
        split="test, 1,250 human and 1,250 augmented questions pooled",
        published=PublishedScores(65.1, 65.7, FIGURE_REPRINTED),
        parts=("part",),
    ),
    Task(
        "infovqa_test",
        "data/infographicVQA/infovqa_test.jsonl",
        "anls",
        LONG_ANSWER,
        n_expected=3288,
        split="test, with answers",
        published=PublishedScores(36.1, 35.4, FIGURE_REPRINTED),
    ),
    Task(
        "vizwiz_val",
        "data/vizwiz/vizwiz_val.jsonl",
        "vqa_score",
        SHORT_ANSWER,
        headline="evalai",
        n_expected=4319,
        split="val",
        annotations="data/vizwiz/vizwiz_val_annotations.json",
        prompt="vizwiz",
        published=PublishedScores(61.2, 35.2, PAPER),
        note="The published script's comments give 61.2 for its prompt and 68.37 for the one as trained.",
        parts=("answerable", "answer_type"),
    ),
    Task(
        "deepform",
        "data/test_DeepForm.jsonl",
        "due_f1",
        LONG_ANSWER,
        n_expected=1500,
        split="DUE test, 300 documents with 5 keys each",
        published=PublishedScores(40.6, 4.0, FIGURE),
        note=_PAIRS_OR_CONTAINMENT,
        parts=("key",),
    ),
    Task(
        "KLC",
        "data/test_KleisterCharity.jsonl",
        "due_f1",
        LONG_ANSWER,
        n_expected=4872,
        split="DUE test, 609 documents with 8 keys each (the count is not verified)",
        published=PublishedScores(32.8, 15.9, FIGURE),
        note=_PAIRS_OR_CONTAINMENT,
        parts=("key",),
    ),
    Task(
        "WTQ",
        "data/test_WikiTableQuestions.jsonl",
        "denotation_accuracy",
        LONG_ANSWER,
        n_expected=4344,
        split="DUE test",
        published=PublishedScores(25.3, 21.6, FIGURE_REPRINTED),
    ),
    Task(
        "gqa_testdev",
        "data/gqa/gqa_testdev_new.jsonl",
        "gqa_accuracy",
        SHORT_ANSWER,
        n_expected=12578,
        split="testdev_balanced",
        published=PublishedScores(60.7, 59.3, PAPER),
        parts=("binary_or_open", "types.structural", "types.semantic"),
    ),
    Task(
        "okvqa_val",
        "data/okvqa/okvqa_val.jsonl",
        "vqa_score",
        SHORT_ANSWER,
        n_expected=5046,
        split="val2014",
        annotations="data/okvqa/mscoco_val2014_annotations.json",
        published=PublishedScores(61.3, 58.6, PAPER),
        note="The references are stemmed words; only the variant 'stemmed' stems predictions too.",
        parts=("question_type",),
    ),
    Task(
        "textvqa_val",
        "data/textvqa/textvqa_val.jsonl",
        "vqa_score",
        SHORT_ANSWER,
        headline="evalai",
        n_expected=5000,
        split="val v0.5.1",
        annotations="data/textvqa/textvqa_val_annotations.json",
        published=PublishedScores(67.6, 63.8, PAPER),
    ),
    Task(
        "stvqa_test",
        "data/STVQA/stvqa.jsonl",
        "anls",
        LONG_ANSWER,
        headline="strict",
        n_expected=5000,
        split="a random part of the training set, not the test set, whose answers are hidden",
        published=PublishedScores(67.7, 59.1, PAPER),
    ),
    Task(
        "ai2diagram_test",
        "data/ai2d/test.jsonl",
        "choice_accuracy",
        SHORT_ANSWER,
        n_expected=3088,
        split="test",
        published=PublishedScores(57.9, 55.9, PAPER),
        note="Qwen-VL's own README reports 62.3.",
    ),
    Task(
        "vqav2_val",
        "data/vqav2/vqav2_val.jsonl",
        "vqa_score",
        SHORT_ANSWER,
        n_expected=214354,
        split="val2014",
        annotations="data/vqav2/v2_mscoco_val2014_annotations.json",
        published=PublishedScores(80.3, 79.5, PAPER),
        parts=("answer_type", "question_type"),
    ),
    Task(
        "flickr30k",
        "data/flickr30k/flickr30k_test.jsonl",
        "cider",
        CAPTION,
        n_expected=1000,
        split="Karpathy's test split, five captions a picture",
        prompt="caption",
        published=PublishedScores(86.1, 85.8, PAPER),
        note=_CAPTION_NOTE,
    ),
    Task(
        "textcaps_val",
        "data/textcaps/textcaps_val.jsonl",
        "cider",
        CAPTION,
        n_expected=3166,
        split="val, five captions a picture",
        prompt="caption",
        published=PublishedScores(93.2, 65.1, PAPER),
        note=_CAPTION_NOTE,
    ),
    Task(
        "estvqa_official",
        "data/estvqa_official/test.jsonl",
        "anls_simplified",
        LONG_ANSWER,
        n_expected=4525,
        split="the official test, English and Chinese, whose answers were released in 2023",
        parts=("language",),
        note="Scored is the text (TC); CLC, the set's leading figure, also asks for the place of the evidence. Chinese "
        "needs the package zhconv.",
    ),
    Task(
        "scienceqa_img",
        "data/scienceqa/scienceqa_test_img.jsonl",
        "choice_accuracy",
        SHORT_ANSWER,
        n_expected=2017,
        split="the test questions that have a picture (their number is recalled, not counted)",
        prompt="scienceqa",
        published=PublishedScores(69.4, 67.1, PAPER),
        note="Qwen-VL ranks the letters by likelihood; here the answer is generated, so the figures compare loosely.",
        parts=("subject", "grade"),
    ),
    Task(
        "tabfact",
        "data/tabfact/tabfact_test.jsonl",
        "verdict_accuracy",
        SHORT_ANSWER,
        n_expected=12779,
        split="test, 4,171 simple and 8,608 complex statements on 1,695 tables",
        parts=("part",),
    ),
    Task(
        "visualmrc",
        "data/visualmrc/visualmrc_test.jsonl",
        "cider",
        LONG_ANSWER,
        n_expected=6711,
        split="test",
        note="Each question counts as one image does in CIDEr.",
    ),
    Task(
        "ocrvqa",
        "data/ocrvqa/ocrvqa_test.jsonl",
        "accuracy",
        LONG_ANSWER,
        split="test, about 100,000 questions on 20,796 covers",
        published=PublishedScores(
            64.4, 75.7, "TextMonkey's README, by containment and perhaps on other rows; Qwen-VL's README, by equality"
        ),
        note="The figures of the two models come from two metrics and do not compare with each other.",
    ),
    Task(
        "ocrbench",
        "data/ocrbench/ocrbench.jsonl",
        "ocrbench",
        LONG_ANSWER,
        n_expected=1000,
        split="ten kinds of question",
        prompt="ocrbench",
        published=PublishedScores(
            51.4, None, "514 of 1,000 in TextMonkey's README; Monkey-Chat 534 in Monkey's README"
        ),
        parts=("type",),
        note="Reports give the number of right answers of 1,000, which is ten times the percentage.",
    ),
    *(
        Task(
            f"documents_{split}{suffix}",
            f"{split}{suffix}.jsonl",
            metric,
            tokens,
            split=f"documents drawn by this project, {holds}; --data-root is the folder they were written to",
            prompt="region" if suffix == "_box" else "vqa",
            parts=("kind", "document"),
        )
        for split, holds in (
            ("heldout", "whose texts, values, layouts and typefaces training has not"),
            ("known", "whose texts, values and layouts training has not"),
            ("layout_heldout", "of a kind that training has not"),
        )
        for suffix, metric, tokens in (
            ("", "anls", LONG_ANSWER),
            ("_read", "anls", WHOLE_TEXT),
            ("_box", "box_overlap", LONG_ANSWER),
        )
    ),
)

TASKS: Mapping[str, Task] = {row.name: row for row in _ROWS}

_PUBLISHED = (
    *("estvqa_test", "docvqa_test", "chartqa", "infovqa_test", "vizwiz_val", "deepform", "KLC", "WTQ", "gqa_testdev"),
    *("okvqa_val", "textvqa_val", "stvqa_test", "ai2diagram_test", "vqav2_val"),
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "general": ("vqav2_val", "okvqa_val", "gqa_testdev", "vizwiz_val", "scienceqa_img"),
    "text": (
        *("textvqa_val", "ai2diagram_test", "stvqa_test", "estvqa_test"),
        *("estvqa_official", "ocrvqa", "ocrbench"),
    ),
    "document": (
        *("docvqa_test", "chartqa", "infovqa_test", "deepform", "KLC", "WTQ"),
        *("tabfact", "visualmrc"),
    ),
    "caption": ("flickr30k", "textcaps_val"),
    "published": _PUBLISHED,
    "documents": tuple(name for name in TASKS if name.startswith(("documents_heldout", "documents_known"))),
    "unseen_layout": tuple(name for name in TASKS if name.startswith("documents_layout_")),
}
"""Tasks by a common name. "published" are the fourteen of the published evaluator, in its order."""

DEFAULT_SELECTION = "published"


def task_named(name: str) -> Task:
    """The row of that name, or ValueError offering the nearest names."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; {nearest(name, (*TASKS, *GROUPS))}")
    return TASKS[name]


TASK_FILE_ENDINGS = (".toml", ".yaml", ".yml")
QUESTION_FILE_ENDINGS = (".jsonl", ".json")
OTHER_FILE_ENDINGS = (".csv", ".tsv", ".parquet", ".xlsx", ".txt", ".json.gz")


def select_tasks(selection: str, metric: str | None = None, max_new_tokens: int | None = None) -> tuple[Task, ...]:
    """The tasks that `--dataset` names, each once, in the order named.

    A comma separates task names, groups, patterns ('*vqa*') and paths: of questions (.jsonl, or .json for a list) and
    of tasks of the user's own (.toml, .yaml, see `eval.task_files`). `metric` and `max_new_tokens` go with files of
    questions and with nothing else, since a task has its own.

    Raises:
        FileNotFoundError: a task file that is not there.
        ValueError: an unknown name, a pattern that fits no task, a file without a metric, a metric without a file, or
            a task file that is not of its form.
    """
    chosen: dict[str, Task] = {}
    with_metric_of_its_own = False
    for part in filter(None, (part.strip() for part in selection.split(","))):
        if part.endswith(QUESTION_FILE_ENDINGS):
            found = (_task_of_file(part, metric, max_new_tokens),)
        else:
            with_metric_of_its_own = True
            found = _rows_for(part)
        for task in found:
            if task.name in chosen and chosen[task.name] != task:
                raise ValueError(f"{chosen[task.name].file} and {task.file} would both be written as {task.name}")
            chosen[task.name] = task
    if not chosen:
        raise ValueError(f"--dataset {selection!r} names no task; --list shows them")
    if with_metric_of_its_own:
        for flag, value in (("--metric", metric), ("--max-new-tokens", max_new_tokens)):
            if value is not None:
                raise ValueError(f"{flag} goes with a .jsonl file of your own; the named tasks have theirs")
    return tuple(chosen.values())


def _rows_for(name: str) -> tuple[Task, ...]:
    if name.endswith(TASK_FILE_ENDINGS):
        # It builds on this module.
        from eval.task_files import read_task

        return (read_task(name),)
    if name.endswith(OTHER_FILE_ENDINGS):
        raise ValueError(
            f"--dataset {name}: questions of your own are read from .jsonl, a line a question, and .json, a list of "
            'them, such as {"image": "a.png", "question": "…", "answer": "…", "question_id": 1}; write pictures that '
            "the table holds as base64 to files"
        )
    if name in GROUPS:
        return tuple(TASKS[member] for member in GROUPS[name])
    if not any(mark in name for mark in "*?["):
        return (task_named(name),)
    matching = tuple(row for row in TASKS.values() if fnmatch.fnmatchcase(row.name, name))
    if not matching:
        raise ValueError(f"no task fits the pattern {name!r}; --list shows them")
    return matching


def _task_of_file(path: str, metric: str | None, max_new_tokens: int | None) -> Task:
    if metric is None:
        raise ValueError(f"{path} needs a metric: give --metric with one of its names, for example --metric accuracy")
    metric_named(metric)
    limit = LONG_ANSWER if max_new_tokens is None else max_new_tokens
    return Task(Path(path).stem, path, metric, limit, own_file=True)
