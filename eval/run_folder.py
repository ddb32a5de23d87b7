"""A run folder as a later program finds it: each task's results.json and predictions.jsonl, read and checked.

Nothing here needs a model. Fields that are not named below are kept as they are, so that a file can be written back
without loss.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.journal import JOURNALS

PREDICTIONS, RESULTS, JOURNAL, SUMMARY = "predictions.jsonl", "results.json", "journal.jsonl", "summary.json"
POPULATION = "references.jsonl"
"""The references of every row of the data file, where a metric weighs by the whole set; one list a line."""

STOPPED_AT_LENGTH = "length"

LINE_FIELDS: Mapping[str, tuple[type, ...]] = {
    "row": (int,),
    "question_id": (int, str),
    "image": (str,),
    "question": (str,),
    "references": (list,),
    "prompt": (str,),
    "answer": (str,),
    "scores": (dict,),
}
"""What a line of predictions.jsonl must hold."""

RESULT_FIELDS: Mapping[str, tuple[type, ...]] = {
    "task": (str,),
    "metric": (str,),
    "headline": (str,),
    "n": (int,),
    "n_expected": (int,),
    "complete": (bool,),
    "scores": (dict,),
}
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


def _check_fields(content: Any, fields: Mapping[str, tuple[type, ...]], place: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{place} must be a JSON object, not {type(content).__name__}")
    for name, kinds in fields.items():
        if name not in content:
            raise ValueError(f"{place} has no {name!r}; it was not written by this evaluator, or cut short")
        value = content[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
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


def write_whole(path: Path, text: str) -> None:
    """Replace a file by `text`, so that a reader sees the old one or the new one and never a part."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def json_text(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def lines_text(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
