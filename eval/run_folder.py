"""The files of a run: their names and forms, read and checked as a later program finds them.

A run leaves predictions.jsonl and results.json per task, a summary, and the two files of the published script. Every
file is written whole or not at all. Scores in predictions are between 0 and 1; in results and tables they are
percentages. Nothing in these files depends on when, on how many processes or in how many starts the answers were made;
that is what timing.jsonl is for. Fields that are not named below are kept as they are, so that a file can be written
back without loss. Nothing here needs a model.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from monkey.journal import json_line, write_json
from monkey.journal import write_atomic as write_whole

PREDICTIONS, RESULTS, JOURNAL, SUMMARY = "predictions.jsonl", "results.json", "journal.jsonl", "summary.json"
TIMING, LOCK = "timing.jsonl", "run.lock"
JOURNALS = "journal*.jsonl"
"""The journals of a task, of whichever processes."""

POPULATION = "references.jsonl"
"""The references of every row of the data file, where a metric weighs by the whole set; one list per line."""

STOPPED_AT_END, STOPPED_AT_LENGTH = "end", "length"
"""Why an answer ended."""

MAX_NAMED = 10
"""Rows that a message names before it only counts the rest."""

LINE_FIELDS = {"row": int, "question_id": int | str, "image": str, "question": str, "references": list, "prompt": str}
LINE_FIELDS |= {"answer": str, "scores": dict}
"""What a line of predictions.jsonl must hold."""

RESULT_FIELDS = {"task": str, "metric": str, "headline": str, "n": int, "n_expected": int, "complete": bool}
RESULT_FIELDS |= {"scores": dict}
"""What results.json must hold."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class TaskRun:
    """One task of a run. `lines` are in order of row and each row is there once."""

    folder: Path
    results: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.results["task"]

    @cached_property
    def lines(self) -> list[Line]:
        return read_predictions(self.folder / PREDICTIONS, self.results["n"])

    @cached_property
    def population(self) -> list[list[str]] | None:
        """The references of all rows of the data file; None where the run kept none.

        Raises ValueError for a line that is no list of texts.
        """
        path = self.folder / POPULATION
        if not path.is_file():
            return None
        population = []
        with path.open("rb") as stream:
            for number, text in enumerate(stream, start=1):
                references = _parsed(text, f"{path}:{number}")
                if not isinstance(references, list) or not all(isinstance(one, str) for one in references):
                    raise ValueError(f"{path}:{number} must be a list of strings")
                population.append(references)
        return population

    @property
    def headline(self) -> Mapping[str, Any]:
        """The scores of the headline variant."""
        return self.results["scores"][self.results["headline"]]


@dataclass(frozen=True)
class Run:
    """The finished tasks of a run, in the run's own order; `unfinished` are those with a journal and no result."""

    folder: Path
    tasks: Mapping[str, TaskRun]
    unfinished: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def chosen(self, names: Sequence[str] | None) -> list[TaskRun]:
        """The tasks of these names, all without one.

        Raises ValueError for a task that the run has not.
        """
        for name in names or ():
            if name not in self.tasks:
                raise ValueError(f"{self.folder} has no task {name}; it has {', '.join(self.tasks)}")
        return [self.tasks[name] for name in (self.tasks if names is None else dict.fromkeys(names))]


def open_run(folder: str | Path) -> Run:
    """The run in a folder.

    Raises:
        FileNotFoundError: no such folder, or no finished task in it.
        ValueError: a results.json that is not one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder of a run, for example result/NAME")
    places = sorted(path for path in folder.iterdir() if path.is_dir())
    found = {path.name: TaskRun(path, read_results(path / RESULTS)) for path in places if (path / RESULTS).is_file()}
    unfinished = tuple(path.name for path in places if path.name not in found and any(path.glob(JOURNALS)))
    if not found:
        state = f"only unfinished tasks ({', '.join(unfinished)})" if unfinished else f"no */{RESULTS}"
        raise FileNotFoundError(f"{folder} holds {state}; give the folder of a finished run, for example result/NAME")
    order = {name: place for place, name in enumerate(_summary_order(folder / SUMMARY))}
    names = sorted(found, key=lambda name: (order.get(name, len(order)), name))
    return Run(folder, {name: found[name] for name in names}, unfinished)


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results.json; ValueError naming the file where it is not one."""
    content = _parsed(path.read_bytes(), str(path))
    _check_fields(content, RESULT_FIELDS, str(path))
    if content["headline"] not in content["scores"]:
        raise ValueError(f"{path}: its headline {content['headline']!r} is not among its scores")
    if content["task"] != path.parent.name:
        raise ValueError(f"{path} is of task {content['task']}, and its folder is called {path.parent.name}")
    return content


def read_predictions(path: Path, expected: int | None = None) -> list[Line]:
    """The lines of a predictions.jsonl, in order of row.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not of the form, a row given twice, another number of lines than `expected`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; without it there is nothing to score, compare or show")
    lines: list[Line] = []
    seen: dict[int, int] = {}
    with path.open("rb") as stream:
        for number, text in enumerate(stream, start=1):
            place = f"{path}:{number}"
            line = _parsed(text, place)
            _check_line(line, place)
            if line["row"] in seen:
                raise ValueError(f"{place}: row {line['row']} was given before, in line {seen[line['row']]}")
            seen[line["row"]] = number
            lines.append(line)
    if expected is not None and len(lines) != expected:
        raise ValueError(f"{path} has {len(lines)} lines and {path.with_name(RESULTS)} counts {expected}")
    return sorted(lines, key=lambda line: line["row"])


def _check_line(line: Any, place: str) -> None:
    _check_fields(line, LINE_FIELDS, place)
    references = line["references"]
    if not references or not all(isinstance(reference, str) for reference in references):
        raise ValueError(f"{place}: 'references' must be a list of strings, at least one")
    for variant, score in line["scores"].items():
        # A caption's CIDEr may be more than 1.
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0.0 <= score < math.inf:
            raise ValueError(f"{place}: the score of variant {variant!r} is {score!r}, and must be a number from 0 up")


def _check_fields(content: Any, fields: Mapping[str, Any], place: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{place} must be a JSON object, not {type(content).__name__}")
    for name, kind in fields.items():
        if name not in content:
            raise ValueError(f"{place} has no {name!r}; it was not written by this evaluator, or cut short")
        value = content[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace(" | ", " or ")
            raise ValueError(f"{place}: {name!r} must be {wanted}, not {type(value).__name__}")


def _parsed(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{place} is not JSON ({error})") from error


def _summary_order(path: Path) -> list[str]:
    """Task names in the order of summary.json; none where it is missing."""
    if not path.is_file():
        return []
    content = _parsed(path.read_bytes(), str(path))
    rows = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "task" in row for row in rows):
        raise ValueError(
            f"{path} is not the summary of a run; python -m eval.score {path.parent} needs none: remove it"
        )
    return [row["task"] for row in rows]


# Writing


def journal_name(rank: int) -> str:
    """Return the name of the journal that the process of this rank writes."""
    return f"journal-{rank}.jsonl" if rank else JOURNAL


def journals_of(folder: Path) -> list[Path]:
    """Return the journals in a task's folder, in the order of their processes."""
    return sorted(folder.glob(JOURNALS), key=lambda path: (len(path.name), path.name))


def json_text(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    write_whole(path, b"".join(map(json_line, rows)))


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Say which folder could not be written, and that the answers are kept."""
    try:
        yield
    except OSError as error:
        # What writes files whole has put a sentence of its own around the system's.
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(
            f"{folder}: results cannot be written ({cause.strerror or cause}); make room and give the same command "
            "again, the answers are kept"
        ) from error


def write_task(
    folder: Path, results: Mapping[str, Any], lines: Sequence[Line], population: Sequence[Any] | None = None
) -> None:
    """Write predictions and results into the folder of a task."""
    write_lines(folder / PREDICTIONS, lines)
    if population is not None:
        write_lines(folder / POPULATION, population)
    write_json(folder / RESULTS, results)


def is_complete(results: Sequence[Mapping[str, Any]], allow_missing: bool = False) -> bool:
    """Whether every question of every task was answered exactly once; with `allow_missing`, all that could be asked."""

    def only_failed(result: Mapping[str, Any]) -> bool:
        failed = {failure["question_id"] for failure in result["failed"]}
        return not (result["duplicate"] or result["foreign"]) and set(result["missing"]) <= failed

    return all(result["complete"] or (allow_missing and only_failed(result)) for result in results)


def incompleteness(results: Mapping[str, Any]) -> list[str]:
    """Return sentences on the rows of a task that were not answered exactly once; none when all were."""
    task, failures = results["task"], results["failed"]
    sentences = [f"{task}: {failure['reason']}" for failure in failures[:MAX_NAMED]]
    if len(failures) > MAX_NAMED:
        sentences.append(f"{task}: {len(failures)} questions could not be asked, of which {MAX_NAMED} are named")
    for kind, what in (
        ("missing", "not answered"),
        ("duplicate", "answered twice and differently (--repair asks them again and keeps the others)"),
        ("foreign", "answered without being asked (row numbers or ids)"),
    ):
        if rows := results[kind]:
            counted = Counter(map(str, rows))
            named = ", ".join(list(counted)[:MAX_NAMED])
            more = f" and {len(counted) - MAX_NAMED} more" if len(counted) > MAX_NAMED else ""
            sentences.append(f"{task}: {len(rows)} of {results['n_expected']} questions {what}: {named}{more}")
    return sentences


# The files of the published script, under its names and in its form, for scripts that read them. Kept as they are: the
# score is a percentage with two decimals for the VQA score and a share from 0 to 1 for everything else, and a
# question's id is called `question_id`, `questionId` or `image`, or is left out, depending on the task.


@dataclass(frozen=True)
class PublishedForm:
    """How a task's answers were written: what the id is called, whether the references are there, the indent."""

    id_name: str | None = "questionId"
    annotation: bool = True
    indent: int | None = 2


_FORM_BY_METRIC = {"vqa_score": PublishedForm("question_id", annotation=False), "anls": PublishedForm(indent=None)}
_FORM_BY_TASK = {
    "chartqa": PublishedForm(id_name=None),
    **dict.fromkeys(("ai2diagram_test", "WTQ", "deepform", "KLC"), PublishedForm("image")),
}


def write_published_files(folder: Path, results: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """Write `<task>.json`, one object per answer, and `<task>.txt`, the score, beside the task's own folder."""
    task = results["task"]
    form = _FORM_BY_TASK.get(task) or _FORM_BY_METRIC.get(results["metric"]) or PublishedForm()
    entries = []
    for line in lines:
        identity = {} if form.id_name is None else {form.id_name: line["question_id"]}
        references = {"annotation": line["references"]} if form.annotation else {}
        entries.append({"image_path": line["image"], **identity, "answer": line["answer"], **references})
    write_whole(folder / f"{task}.json", json.dumps(entries, ensure_ascii=False, indent=form.indent))
    write_whole(folder / f"{task}.txt", f"{task}\n{_published_score(results, lines)}\n")


def _published_score(results: Mapping[str, Any], lines: Sequence[Line]) -> float | None:
    """The score of the `original` variant, or of the headline where a task has none."""
    variant = "original" if "original" in results["scores"] else results["headline"]
    if lines and all(variant in line["scores"] for line in lines):
        # From the lines: dividing the percentage by 100 would change the last digits.
        share = sum(line["scores"][variant] for line in lines) / len(lines)
    else:
        percent = results["scores"][variant]["value"]
        share = None if percent is None else percent / 100.0
    return round(100.0 * share, 2) if share is not None and results["metric"] == "vqa_score" else share
