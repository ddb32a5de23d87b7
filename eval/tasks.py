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

SHORT_ANSWER, LONG_ANSWER = 10, 100
"""Tokens the published evaluator allows an answer. Ten can cut off the longest option texts of AI2D."""

PAPER = "arXiv 2311.06607v3, tables"
FIGURE = "arXiv 2311.06607v3, read off its radar figure"
FIGURE_REPRINTED = "arXiv 2311.06607v3, read off its radar figure; reprinted in arXiv 2404.12803"


@dataclass(frozen=True)
class PublishedScores:
    """What was reported, in percent: of Monkey, of Qwen-VL, and where it stands."""

    monkey: float
    qwen_vl: float
    source: str


@dataclass(frozen=True)
class Task:
    """A data set to evaluate on.

    `file` and `annotations` are relative to the data root. `annotations` is a VQA annotation file whose ten answers
    a question replace the answer in `file`. `headline` is the metric's variant that is the data set's own rule.
    `n_expected` is the size of the published set, None where there is none. `own_file`: a file of the user's, whose
    path is taken as it stands. `prompt` names a row of `eval.prompting.FORMS`: the strings belong to `monkey.prompts`,
    and scoring without a model must not import that package, which imports torch.
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
    published: PublishedScores | None = None
    note: str = ""
    own_file: bool = False

    def __post_init__(self) -> None:
        if self.headline not in metric_named(self.metric).variants:
            raise ValueError(f"task {self.name}: metric {self.metric} has no variant {self.headline!r}")


_NO_PAIRS_YET = (
    "The set's own metric, F1 over (document, key, value), scores all answers of a document together; the headline "
    "here is exact match of single answers, which is another quantity."
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
    ),
    Task(
        "deepform",
        "data/test_DeepForm.jsonl",
        "accuracy",
        LONG_ANSWER,
        n_expected=1500,
        split="DUE test, 300 documents with 5 keys each",
        published=PublishedScores(40.6, 4.0, FIGURE),
        note=_NO_PAIRS_YET,
    ),
    Task(
        "KLC",
        "data/test_KleisterCharity.jsonl",
        "accuracy",
        LONG_ANSWER,
        n_expected=4872,
        split="DUE test, 609 documents with 8 keys each (the count is not verified)",
        published=PublishedScores(32.8, 15.9, FIGURE),
        note=_NO_PAIRS_YET,
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
        note="The references are stemmed words; predictions are not stemmed, so a right plural can be counted wrong.",
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
    ),
    *(
        Task(
            f"sample_{kind}",
            f"heldout/{kind}.jsonl",
            "accuracy",
            SHORT_ANSWER,
            split="held-out pictures drawn by this project; --data-root is the folder they were written to",
        )
        for kind in ("signs", "receipts", "tables", "bars", "shapes")
    ),
)

TASKS: Mapping[str, Task] = {row.name: row for row in _ROWS}

_GENERAL = ("vqav2_val", "okvqa_val", "gqa_testdev", "vizwiz_val")
_TEXT = ("textvqa_val", "ai2diagram_test", "stvqa_test", "estvqa_test")
_DOCUMENT = ("docvqa_test", "chartqa", "infovqa_test", "deepform", "KLC", "WTQ")

GROUPS: Mapping[str, tuple[str, ...]] = {
    "general": _GENERAL,
    "text": _TEXT,
    "document": _DOCUMENT,
    "published": tuple(row.name for row in _ROWS if row.published is not None),
    "sample": tuple(name for name in TASKS if name.startswith("sample_")),
}
DEFAULT_SELECTION = "published"


def task_named(name: str) -> Task:
    """The row of that name, or ValueError offering the nearest names."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; {nearest(name, (*TASKS, *GROUPS))}")
    return TASKS[name]


def select_tasks(selection: str, metric: str | None = None, max_new_tokens: int | None = None) -> tuple[Task, ...]:
    """The tasks that `--dataset` names, each once, in the order named.

    A comma separates task names, groups, patterns ('*vqa*') and paths of files ending in .jsonl. `metric` and
    `max_new_tokens` go with such files and with nothing else, since a row has its own.

    Raises:
        ValueError: an unknown name, a pattern that fits no task, a file without a metric, or a metric without a file.
    """
    chosen: dict[str, Task] = {}
    named_rows = False
    for part in filter(None, (part.strip() for part in selection.split(","))):
        if part.endswith(".jsonl"):
            found = (_task_of_file(part, metric, max_new_tokens),)
        else:
            named_rows = True
            found = _rows_for(part)
        for task in found:
            if task.name in chosen and chosen[task.name] != task:
                raise ValueError(f"{chosen[task.name].file} and {task.file} would both be written as {task.name}")
            chosen[task.name] = task
    if not chosen:
        raise ValueError(f"--dataset {selection!r} names no task; --list shows them")
    if named_rows:
        for flag, value in (("--metric", metric), ("--max-new-tokens", max_new_tokens)):
            if value is not None:
                raise ValueError(f"{flag} goes with a .jsonl file of your own; the named tasks have theirs")
    return tuple(chosen.values())


def _rows_for(name: str) -> tuple[Task, ...]:
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
