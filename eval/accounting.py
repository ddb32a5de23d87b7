"""What became of the rows of a task: each must be answered exactly once, and what is not is counted and named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.backends import STOPPED_AT_LENGTH
from monkey.data.records import Question


@dataclass
class Accounting:
    """`answers` holds the first answer to each row that was asked; `foreign` are rows or ids that were not.

    `duplicate` are rows that got two different answers; the same one twice, as a copied line of a journal, is one.
    """

    expected: tuple[int, ...]
    answers: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    duplicate: list[int] = field(default_factory=list)
    foreign: list[int | str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._expected_rows = frozenset(self.expected)

    def take(self, row: int, entry: Mapping[str, Any]) -> None:
        if row not in self._expected_rows:
            self.foreign.append(row)
        elif self.answers.setdefault(row, entry) != entry:
            self.duplicate.append(row)

    def take_all(self, entries: Iterable[Mapping[str, Any]]) -> None:
        for entry in entries:
            self.take(entry["row"], entry)

    @property
    def missing(self) -> list[int]:
        return [row for row in self.expected if row not in self.answers]

    @property
    def complete(self) -> bool:
        return not (self.missing or self.duplicate or self.foreign)


def accounts(
    accounting: Accounting, questions: Mapping[int, Question], lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The part of results.json on the rows. `failed` rows are also among the `missing`."""

    def identifiers(rows: Iterable[int]) -> list[Any]:
        return [questions[row].question_id for row in rows]

    return {
        "n_answered": len(lines),
        "missing": identifiers(accounting.missing),
        "duplicate": identifiers(sorted(accounting.duplicate)),
        "foreign": sorted(accounting.foreign, key=str),
        "failed": [
            {"question_id": questions[row].question_id, "reason": accounting.failures[row]}
            for row in sorted(accounting.failures)
        ],
        "cut_off_at_max_new_tokens": sum(line["stop"] == STOPPED_AT_LENGTH for line in lines),
        "empty": sum(not line["answer"] for line in lines),
        "without_reference": sum(not any(map(str.strip, questions[row].answers)) for row in accounting.expected),
    }


def is_complete(results: Sequence[Mapping[str, Any]], allow_missing: bool = False) -> bool:
    """Whether every question of every task was answered exactly once; with `allow_missing`, all that could be asked."""
    return all(result["complete"] or (allow_missing and _only_failed(result)) for result in results)


def _only_failed(result: Mapping[str, Any]) -> bool:
    failed = {failure["question_id"] for failure in result["failed"]}
    return not (result["duplicate"] or result["foreign"]) and set(result["missing"]) <= failed
