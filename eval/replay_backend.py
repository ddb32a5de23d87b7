"""The `replay` backend: scores answers that stand in a file, whoever gave them.

Read are our predictions.jsonl, the published script's `<task>.json`, and any JSON list or JSONL of objects with an id
and an answer. For several tasks a folder is given: a run's, or one that holds `<task>.json` or `<task>.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.backends import STOPPED_AT_END, STOPPED_AT_LENGTH, Answer, Failure, Request, in_batches
from eval.questions import QuestionSet, file_digest
from eval.run_folder import PREDICTIONS
from monkey.data.rows import IndexedRows

ID_KEYS = ("question_id", "questionId", "qid", "id", "image")
"""What an id is called, by precedence; the published script writes the ids of some tasks under `image`."""

ANSWER_KEYS = ("raw", "answer", "prediction", "response")


@dataclass(frozen=True)
class Prediction:
    """An answer of the file. `question_id` is the id's text, None where answers come in the order of the questions."""

    question_id: str | None
    raw: str
    tokens: int
    stop: str
    references: tuple[str, ...] | None
    source: str


class ReplayBackend:
    """Answers with what a file says.

    Args:
        place: a file for one task, or a folder.
        task_names: the tasks that will be asked.

    Raises:
        FileNotFoundError: no such file, or a task's is not in the folder.
        ValueError: a row without an answer, rows of which only some have an id, or a file for several tasks.
    """

    name = "replay"
    device = None

    def __init__(self, place: Path, task_names: Sequence[str]):
        self.settings: dict[str, Any] = {}
        self.files = {name: file_of(place, name, len(task_names)) for name in task_names}
        self._predictions = {name: read_predictions_of_anyone(path) for name, path in self.files.items()}
        digests = {name: file_digest(path) for name, path in self.files.items()}
        self.fingerprint = next(iter(digests.values())) if len(digests) == 1 else json.dumps(digests, sort_keys=True)

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterable[Sequence[Request]]:
        return in_batches(requests, batch_size)

    def generate_answers(self, batch: Sequence[Request]) -> list[Answer | Failure]:
        """An answer for each that the file gives; none where it has none, two where it has two."""
        return [
            Answer(request.row, found.raw, found.tokens, found.stop)
            for request in batch
            for found in self._answers_to(request)
        ]

    def foreign_answers(self, question_set: QuestionSet) -> list[str]:
        """Ids, and places beyond the last question, that no question of the set's file has, selected or not."""
        found = self._predictions[question_set.task.name]
        ids = sorted(key for key in found if isinstance(key, str) and key not in question_set.ids_in_file)
        return [
            *ids,
            *(found[key][0].source for key in found if isinstance(key, int) and key >= question_set.rows_in_file),
        ]

    def _answers_to(self, request: Request) -> list[Prediction]:
        found = self._predictions[request.task.name]
        by_place = found.get(request.row, [])
        for one in by_place:
            # Without an id only the references tell that a file is of these questions and in their order.
            if one.references is not None and one.references != request.question.answers:
                raise ValueError(
                    f"{one.source}: its references are {list(one.references)} and those of {request.question.source} "
                    f"{list(request.question.answers)}; answers without an id must be in the order of the questions"
                )
        return [*by_place, *found.get(str(request.question.question_id), [])]


def file_of(place: Path, task_name: str, number_of_tasks: int) -> Path:
    """The file with the answers to a task."""
    if place.is_dir():
        candidates = [place / task_name / PREDICTIONS, place / f"{task_name}.jsonl", place / f"{task_name}.json"]
        for path in candidates:
            if path.is_file():
                return path
        raise FileNotFoundError(f"--predictions {place} has none of {', '.join(str(path) for path in candidates)}")
    if not place.is_file():
        raise FileNotFoundError(f"--predictions {place}: no such file or folder")
    if number_of_tasks > 1:
        raise ValueError(f"--predictions {place} is one file for {number_of_tasks} tasks; give a folder of <task>.json")
    return place


def read_predictions_of_anyone(path: Path) -> Mapping[str | int, list[Prediction]]:
    """The answers of a file by the id's text or, where there are no ids, by their place.

    Raises ValueError naming file and line.
    """
    found: dict[str | int, list[Prediction]] = {}
    named = None
    for place, (source, fields) in enumerate(IndexedRows(path)):
        one = _prediction(fields, source)
        if named is None:
            named = one.question_id is not None
        if named != (one.question_id is not None):
            raise ValueError(f"{source}: some rows have an id and some none; it is called one of {', '.join(ID_KEYS)}")
        found.setdefault(place if one.question_id is None else one.question_id, []).append(one)
    return found


def _prediction(fields: Any, source: str) -> Prediction:
    if not isinstance(fields, dict):
        raise ValueError(f"{source}: expected an object with an id and an answer, found {type(fields).__name__}")
    key = next((key for key in ANSWER_KEYS if key in fields), None)
    if key is None:
        raise ValueError(f"{source}: there is no answer; it is called one of {', '.join(ANSWER_KEYS)}")
    raw = fields[key]
    if isinstance(raw, bool) or not isinstance(raw, (str, int)):
        hint = f" ({raw}); write it in quotes" if isinstance(raw, float) else ""
        raise ValueError(f"{source}: {key!r} must be a text, found {type(raw).__name__}{hint}")
    raw = str(raw)
    id_key = next((key for key in ID_KEYS if key in fields), None)
    identifier = None if id_key is None else fields[id_key]
    if isinstance(identifier, bool) or not isinstance(identifier, (int, str, type(None))):
        raise ValueError(f"{source}: {id_key!r} must be a text or a whole number, found {type(identifier).__name__}")
    references = fields.get("annotation")
    references = [references] if isinstance(references, str) else references
    tokens, stop = fields.get("tokens"), fields.get("stop")
    return Prediction(
        None if identifier is None else str(identifier),
        raw,
        tokens if isinstance(tokens, int) else len(raw.split()),
        stop if stop in (STOPPED_AT_END, STOPPED_AT_LENGTH) else STOPPED_AT_END,
        tuple(references) if isinstance(references, list) else None,
        source,
    )
