"""The data sets: the table of tasks, tasks of the user's own, how a selection is named, what `--list` and `--show` say.

The evaluator's tasks stand in tasks.toml. The fourteen of the published evaluator keep their names and the places of
their files, relative to the data root. A new data set is one more table there and no other change. A task of the user's
own is a small TOML or YAML file of the same form:

    name = "receipts"                # default: the file's name
    file = "receipts.jsonl"          # beside this file, or an absolute path
    metric = "anls"
    headline = "strict"              # the metric's variant that tables show first; default "official"
    max_new_tokens = 20              # default 100
    prompt = "<img></img> {question} Answer: "
    parts = ["shop"]                 # keys of the rows by whose values scores are given separately, too

More fields: `n_expected` (another number of questions is remarked upon), `annotations` (a VQA annotation file with ten
answers per question), `split` and `note` (text for the reader). `prompt` is a whole prompt, or the name of a row of
`monkey.prompts.FORMS`. Images are looked up as for a bare .jsonl file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.metrics import METRICS, Variant, metric_named, nearest
from eval.metrics.corpus import CorpusVariant
from eval.stored_questions import holds_stored_questions, task_name
from monkey.conversation import Text, split_box_markers
from monkey.data.foreign import IMAGE, PLACE, find_foreign_markers
from monkey.data.shards import is_on_hub
from monkey.files import read_settings_file
from monkey.prompts import AS_TRAINED, FORMS, IMAGE_PLACE, PUBLISHED

DEFAULT_MAX_NEW_TOKENS = 100
DEFAULT_SELECTION = "published"


@dataclass(frozen=True)
class PublishedScores:
    """What was reported, in percent, None where nothing was: of Monkey, of Qwen-VL, and where it stands."""

    monkey: float | None
    qwen_vl: float | None
    source: str


@dataclass(frozen=True)
class Task:
    """A data set to evaluate on.

    `file` and `annotations` are relative to the data root; `file` may be a set on the hub, too. `annotations` is a VQA
    annotation file whose ten answers per question replace the answer in `file`. `headline` is the metric's variant that
    is the data set's own rule. `n_expected` is the size of the published set, None where there is none. `own_file`: a
    file of the user's, whose path is taken as it stands. `holds_marks`: the marks of places in its questions
    (`<box>…</box>`) are control tokens, as in training, where elsewhere they are characters. `prompt` names a row of
    `monkey.prompts.FORMS`. `parts` names
    what rows are told apart by (see `eval.score`) where they have it: keys of the rows or of the entries of
    `annotations`.
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
    holds_marks: bool = False

    def __post_init__(self) -> None:
        variants = metric_named(self.metric).all_variants
        if self.headline not in variants:
            known = ", ".join(variants)
            raise ValueError(f"task {self.name}: metric {self.metric} has no variant {self.headline!r}; it has {known}")

    @property
    def forms(self) -> Mapping[str, str]:
        """The texts of the task's prompt by the choice of `--prompt`."""
        if self.prompt_text is not None:
            return {AS_TRAINED: self.prompt_text, PUBLISHED: self.prompt_text}
        return FORMS[self.prompt]


def _read_table(path: Path) -> tuple[dict[str, Task], dict[str, tuple[str, ...]]]:
    """Read the evaluator's own tasks, and the groups of them."""
    with path.open("rb") as stream:
        content = tomllib.load(stream)
    tasks = {}
    for fields in content["task"]:
        scores = fields.pop("published", None)
        if scores is not None:
            source = content["sources"].get(scores["source"], scores["source"])
            fields["published"] = PublishedScores(scores.get("monkey"), scores.get("qwen_vl"), source)
        tasks[fields["name"]] = Task(**{**fields, "parts": tuple(fields.get("parts", ()))})
    return tasks, {name: tuple(members) for name, members in content["groups"].items()}


TASKS, GROUPS = _read_table(Path(__file__).with_name("tasks.toml"))
"""Tasks by name, and the names in each group. "published" are those of the published evaluator, in its order."""

TASK_FILE_ENDINGS = (".toml", ".yaml", ".yml")
QUESTION_FILE_ENDINGS = (".jsonl", ".json")
OTHER_FILE_ENDINGS = (".csv", ".tsv", ".xlsx", ".txt", ".json.gz")


def select_tasks(selection: str, metric: str | None = None, max_new_tokens: int | None = None) -> tuple[Task, ...]:
    """Return the tasks that `--dataset` names, each once, in the order named.

    A comma separates task names, groups, patterns ('*vqa*') and paths: of questions (.jsonl, .json for a list, tables
    with their images, `hub:owner/name:split`) and of tasks of the user's own (.toml, .yaml). `metric` and
    `max_new_tokens` go with questions and with nothing else, since a task has its own.

    Raises:
        FileNotFoundError: a task file that is not there.
        ValueError: an unknown name, a pattern that fits no task, a file without a metric, a metric without a file, or
            a task file that is not of its form.
    """
    chosen: dict[str, Task] = {}
    names = list(filter(None, (name.strip() for name in selection.split(","))))
    for name in names:
        is_file = _is_of_questions(name)
        for task in (_task_of_questions(name, metric, max_new_tokens),) if is_file else _tasks_named(name):
            if chosen.setdefault(task.name, task) != task:
                raise ValueError(f"{chosen[task.name].file} and {task.file} would both be written as {task.name}")
    if not chosen:
        raise ValueError(f"--dataset {selection!r} names no task; --list shows them")
    if not all(map(_is_of_questions, names)):
        for flag, value in (("--metric", metric), ("--max-new-tokens", max_new_tokens)):
            if value is not None:
                raise ValueError(f"{flag} goes with a .jsonl file of your own; the named tasks have theirs")
    return tuple(chosen.values())


def _is_of_questions(name: str) -> bool:
    return name.endswith(QUESTION_FILE_ENDINGS) or holds_stored_questions(name)


def _tasks_named(name: str) -> tuple[Task, ...]:
    if name.endswith(TASK_FILE_ENDINGS):
        return (read_task(name),)
    if name.endswith(OTHER_FILE_ENDINGS):
        raise ValueError(
            f"--dataset {name}: questions of your own are read from .jsonl, a line a question, and .json, a list of "
            'them, such as {"image": "a.png", "question": "…", "answer": "…", "question_id": 1}; write images that '
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


def task_named(name: str) -> Task:
    """Return the row of that name, or raise ValueError offering the nearest names."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; {nearest(name, (*TASKS, *GROUPS))}")
    return TASKS[name]


def _task_of_questions(path: str, metric: str | None, max_new_tokens: int | None) -> Task:
    if metric is None:
        raise ValueError(f"{path} needs a metric: give --metric with one of its names, for example --metric accuracy")
    metric_named(metric)
    name = task_name(path) if holds_stored_questions(path) else Path(path).stem
    return Task(name, path, metric, max_new_tokens or DEFAULT_MAX_NEW_TOKENS, own_file=True)


# Tasks of the user's own

_FIELDS: Mapping[str, type] = {
    "name": str,
    "file": str,
    "metric": str,
    "headline": str,
    "max_new_tokens": int,
    "n_expected": int,
    "annotations": str,
    "prompt": str,
    "split": str,
    "note": str,
    "parts": list,
}
_REQUIRED = ("file", "metric")
_KINDS = {str: "a text", int: "a whole number of at least 1", list: "a list of texts"}


def read_task(path: str | Path) -> Task:
    """Read the task that a .toml, .yaml or .yml file describes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML or YAML, an unknown or missing field, a value of the wrong kind, an unknown metric or
            variant, or the name of a task of the evaluator; file and field are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--dataset {path}: there is no such task file")
    given = read_settings_file(path)
    for name, value in given.items():
        if name not in _FIELDS:
            raise ValueError(f"{path}: unknown field {name!r}; {nearest(str(name), _FIELDS)}")
        if type(value) is not _FIELDS[name] or not _is_meant(value):
            raise ValueError(f"{path}: {name} must be {_KINDS[_FIELDS[name]]}, not {value!r}")
    for name in _REQUIRED:
        if name not in given:
            raise ValueError(f"{path}: the field {name} is missing; a task needs {' and '.join(_REQUIRED)}")
    name = given.get("name", path.stem)
    if re.fullmatch(r"[\w.-]*\w[\w.-]*", name) is None:
        raise ValueError(f"{path}: name {name!r} must be letters, digits, '_', '-' and '.'; a folder is named after it")
    if name in TASKS:
        raise ValueError(f"{path}: name {name!r} is a task of the evaluator; give yours another")
    fields = {"name": path.stem, "max_new_tokens": DEFAULT_MAX_NEW_TOKENS, "own_file": True, **given}
    fields["file"] = given["file"] if is_on_hub(given["file"]) else str(path.parent / given["file"])
    fields["parts"] = tuple(given.get("parts", ()))
    if "annotations" in given:
        # Absolute, since the annotation files of the rows start from the data root.
        fields["annotations"] = str((path.parent / given["annotations"]).resolve())
    if given.get("prompt", "vqa") not in FORMS:
        fields["prompt_text"] = fields.pop("prompt")
    try:
        return Task(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _is_meant(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, str) and one.strip() for one in value)
    return value >= 1 if isinstance(value, int) else bool(value.strip())


# The prompt that a task is asked with: the one as trained, the published script's, or the user's own

QUESTION_PLACE = "{question}"
_MARKS = re.compile("(</?(?:ref|box|quad)>)")
"""Control tokens that a form may hold, Qwen-VL's marks of what is asked for and of where it is."""

_HOW_TO_ASK_FOR_BOXES = (
    'to ask for a box, make the bare phrase the question and give the set prompt = "region" in a .toml file'
)


@dataclass(frozen=True)
class PromptForm:
    """A prompt with the place of its question open. Every byte matters, spaces at the ends included."""

    name: str
    text: str
    holds_marks: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    def ask(self, question: str) -> str:
        """The prompt with the question in its place; braces in the question mean nothing."""
        return self.text.replace(QUESTION_PLACE, question)

    def parts(self, question: str) -> list[Text]:
        """The prompt behind the image's place.

        Control tokens are the marks that the form itself holds; in the question they are characters like any other,
        unless its task says that it holds marks.
        """
        behind = self.text.removeprefix(IMAGE_PLACE)
        if self.holds_marks:
            return [part for part in split_box_markers(behind.replace(QUESTION_PLACE, question)) if part.text]
        parts = split_box_markers(behind)
        return [part if part.trusted else Text(part.text.replace(QUESTION_PLACE, question)) for part in parts]


def find_inert_sign(question: str, holds_marks: bool = False) -> str | None:
    """A sentence on the first sign in a question that models know and that stays characters here; None without one.

    Args:
        holds_marks: as of its task, whose marks of places do not stay characters.
    """
    own = [] if holds_marks else [(found.start(), found.group(), PLACE) for found in _MARKS.finditer(question)]
    signs = [*own, *((found.start, found.text, found.meaning) for found in find_foreign_markers(question))]
    if not signs:
        return None
    _, sign, meaning = min(signs)
    ways_out = {IMAGE: "the image stands in 'image': leave the sign out", PLACE: _HOW_TO_ASK_FOR_BOXES}
    return f"the question holds {sign!r}, which is read as characters; {ways_out.get(meaning, 'leave it out')}"


def asks_for_boxes_in_vain(task: Task) -> str | None:
    """A sentence on a task whose answers should be boxes and whose prompt does not ask for any; None for another."""
    if task.metric != "box_overlap" or "<ref>" in task.forms[AS_TRAINED] or task.holds_marks:
        return None
    return f"task {task.name}: its metric is box_overlap, and its prompt has no <ref>; {_HOW_TO_ASK_FOR_BOXES}"


def prompt_form(task: Task, choice: str) -> PromptForm:
    """The form that `--prompt` chooses for a task: 'as-trained', 'published', or the path of a text file.

    A file is taken to the byte, but for one line break at its end, which editors add unasked. A user's task that has a
    prompt of its own is asked with it unless a file is given. The place of the question may be missing only where the
    task's own prompt has none either, as for captions.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the prompt does not begin with the image's place, or does not hold the question's place once.
    """
    ours = task.forms
    if choice in ours:
        text, source = ours[choice], f"task {task.name}: its prompt"
    else:
        text, source = _read_prompt(Path(choice)), f"--prompt {choice}"
    if not text.startswith(IMAGE_PLACE) or text.count(IMAGE_PLACE) != 1:
        raise ValueError(f"{source} must begin with the image's place, {IMAGE_PLACE}, and hold it only there")
    places = text.count(QUESTION_PLACE)
    if task.prompt_text is None and QUESTION_PLACE not in ours[AS_TRAINED]:
        if places:
            raise ValueError(f"{source} holds {QUESTION_PLACE}, and {task.name} asks for a caption without a question")
    elif places != 1:
        raise ValueError(f"{source} must hold {QUESTION_PLACE} once; it holds it {places} times")
    return PromptForm(choice, text, task.holds_marks)


def _read_prompt(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"--prompt {path}: neither {AS_TRAINED!r} nor {PUBLISHED!r} nor a text file")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt {path} is not UTF-8 text ({error})") from error
    return text.removesuffix("\n").removesuffix("\r")


# The tasks as text


def task_list() -> str:
    """Return one line per task, then the groups."""
    width = max(map(len, TASKS))
    lines = [
        f"{row.name:<{width}}  {_size(row):>9}  {row.metric} ({row.headline}), {row.file}" for row in TASKS.values()
    ]
    return "\n".join([*lines, "", *(f"{name}: {' '.join(members)}" for name, members in GROUPS.items())])


def task_sheet(task: Task) -> str:
    """Return everything on one task; prompts stand in double quotes, so that a blank at their end shows."""
    metric = METRICS[task.metric]
    lines = [f"{task.name}: {_size(task)}" + (f", {task.split}" if task.split else "")]
    lines.append(f"questions     {task.file}")
    if task.annotations is not None:
        lines.append(f"answers       {task.annotations}, when it is there, instead of those beside the questions")
    lines += [f"{choice:<14}{json.dumps(text, ensure_ascii=False)}" for choice, text in task.forms.items()]
    lines.append(f"answer        at most {task.max_new_tokens} tokens")
    lines.append(f"metric        {task.metric}: {metric.meaning}")
    lines += _variant_lines(metric.all_variants, task.headline)
    if task.parts:
        lines.append(f"parts         by {', '.join(task.parts)}, where the rows have it")
    if (scores := task.published) is None:
        lines.append("reported      nothing of Monkey or Qwen-VL is known here")
    else:
        shown = ["unknown" if value is None else value for value in (scores.monkey, scores.qwen_vl)]
        lines.append(f"reported      Monkey {shown[0]}, Qwen-VL {shown[1]} ({scores.source})")
    if task.note:
        lines.append(f"note          {task.note}")
    return "\n".join(lines)


def _variant_lines(variants: Mapping[str, Variant | CorpusVariant], headline: str) -> list[str]:
    """One line per variant, the headline first; what scores all answers together is marked."""
    width = max(map(len, variants))
    lines = []
    for name in sorted(variants, key=lambda name: name != headline):
        marks = "(headline) " if name == headline else ""
        marks += "(all answers together) " if isinstance(variants[name], CorpusVariant) else ""
        lines.append(f"  {name:<{width}}  {marks}{variants[name].meaning}")
    return lines


def _size(task: Task) -> str:
    if task.n_expected is None:
        return "n unknown" if task.published else "any size"
    return f"n={task.n_expected}"
