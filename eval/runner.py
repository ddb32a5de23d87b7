"""A run: the questions of some tasks are answered by a backend, exactly once each, journalled, scored and written.

    load questions (everything wrong with the data shows here) -> open the backend -> ask what the journal lacks,
    batch by batch -> account for every row -> score every variant -> predictions.jsonl, results.json, summary.json

Rows are independent of each other, and a journal line says by itself which row of which task it answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.backends import STOPPED_AT_LENGTH, Answer, Backend, Failure, Request
from eval.journal import Journal, answer_key
from eval.prompting import AS_TRAINED, PromptForm, prompt_form
from eval.provenance import source_revision, versions
from eval.questions import QuestionSet, load_question_set
from eval.results import (
    JOURNAL,
    PREDICTIONS,
    RESULTS,
    SUMMARY,
    prediction_line,
    published_scores,
    score_table,
    summary_row,
    write_json,
    write_lines,
)
from eval.tasks import Task


@dataclass(frozen=True)
class RunSettings:
    """How a run goes; none of it but the prompt changes an answer.

    `folder` takes the run's files. `fresh` forgets answers of an earlier run in the same folder.
    """

    folder: Path
    data_root: Path | None = None
    prompt: str = AS_TRAINED
    batch_size: int = 4
    limit: int | None = None
    fresh: bool = False
    seed: int = 3407
    checkpoint: str | None = None
    show_progress: bool = True


@dataclass
class Accounting:
    """What became of the rows of a task: `answers` holds the first answer to each row that was asked."""

    expected: tuple[int, ...]
    answers: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    duplicate: list[int] = field(default_factory=list)
    foreign: list[int] = field(default_factory=list)

    def take(self, row: int, entry: Mapping[str, Any]) -> None:
        if row not in self._expected_rows:
            self.foreign.append(row)
        elif row in self.answers:
            self.duplicate.append(row)
        else:
            self.answers[row] = entry

    def __post_init__(self) -> None:
        self._expected_rows = frozenset(self.expected)

    @property
    def missing(self) -> list[int]:
        return [row for row in self.expected if row not in self.answers]

    @property
    def complete(self) -> bool:
        return not (self.missing or self.duplicate or self.foreign)


def run(tasks: Sequence[Task], settings: RunSettings, open_backend: Callable[[], Backend]) -> list[dict[str, Any]]:
    """Evaluate tasks, write their files under `settings.folder`, and return the content of each results.json.

    All questions are read and checked before the backend is opened, and the backend is opened before anything is
    written.

    Raises:
        FileNotFoundError, ValueError: what a user can have wrong; one sentence each.
    """
    question_sets = [load_question_set(task, settings.data_root, settings.limit) for task in tasks]
    forms = [prompt_form(task, settings.prompt) for task in tasks]
    return run_loaded(question_sets, forms, settings, open_backend())


def run_loaded(
    question_sets: Sequence[QuestionSet], forms: Sequence[PromptForm], settings: RunSettings, backend: Backend
) -> list[dict[str, Any]]:
    """The second half of `run`: ask, score and write, for questions that were read before."""
    results = [
        run_task(question_set, form, settings, backend) for question_set, form in zip(question_sets, forms, strict=True)
    ]
    write_json(settings.folder / SUMMARY, {"complete": is_complete(results), "tasks": list(map(summary_row, results))})
    return results


def is_complete(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every question of every task was answered exactly once."""
    return all(result["complete"] for result in results)


def run_task(question_set: QuestionSet, form: PromptForm, settings: RunSettings, backend: Backend) -> dict[str, Any]:
    """Answer, score and write one task."""
    started = time.monotonic()
    task = question_set.task
    folder = settings.folder / task.name
    generation = {**backend.settings, "max_new_tokens": task.max_new_tokens}
    requests = {question.row: Request(task, question, form) for question in question_set.questions}
    keys = {
        row: answer_key(
            task=task.name,
            row=row,
            question_id=request.question.question_id,
            image=question_set.image_digests[request.question.image],
            prompt=request.prompt,
            generation=generation,
            model=backend.fingerprint,
        )
        for row, request in requests.items()
    }
    with Journal(folder / JOURNAL) as journal:
        if settings.fresh:
            journal.clear()
        accounting = Accounting(tuple(requests))
        for entry in journal.read(keys.values()):
            accounting.take(entry["row"], entry)
        resumed = len(accounting.answers)
        _ask(backend, [requests[row] for row in accounting.missing], keys, journal, accounting, settings)
        lines = [
            prediction_line(task, requests[row].question, requests[row].prompt, accounting.answers[row])
            for row in accounting.expected
            if row in accounting.answers
        ]
        results = {
            "task": task.name,
            "metric": task.metric,
            "headline": task.headline,
            "complete": accounting.complete,
            "n": len(lines),
            "n_expected": len(accounting.expected),
            **_accounts(accounting, requests, lines),
            "scores": score_table(task, question_set.questions, lines),
            "published": published_scores(task),
            "note": task.note,
            "prompt": {"name": form.name, "text": form.text, "sha256": form.sha256},
            "generation": generation,
            "backend": backend.name,
            "checkpoint": {"path": settings.checkpoint, "fingerprint": backend.fingerprint},
            "dataset": _dataset(question_set),
            "settings": {
                "prompt": form.name,
                "limit": settings.limit,
                "batch_size": settings.batch_size,
                "seed": settings.seed,
                "device": backend.device,
                "dtype": None,
                "grid": None,
                **generation,
            },
            "seed": settings.seed,
            "versions": versions(),
            "revision": source_revision(),
            "resumed": resumed,
            "seconds": round(time.monotonic() - started, 3),
        }
        write_lines(folder / PREDICTIONS, lines)
        write_json(folder / RESULTS, results)
    return results


def _ask(
    backend: Backend,
    pending: Sequence[Request],
    keys: Mapping[int, str],
    journal: Journal,
    accounting: Accounting,
    settings: RunSettings,
) -> None:
    """Put the pending rows to the backend; every answer is in the journal before the next batch begins."""
    if not pending:
        return
    task = pending[0].task
    with tqdm(
        total=len(accounting.expected),
        initial=len(accounting.answers),
        desc=task.name,
        unit="question",
        disable=not settings.show_progress,
    ) as progress:
        for batch in backend.batches(pending, settings.batch_size):
            entries = []
            for result in backend.generate_answers(batch):
                if isinstance(result, Failure):
                    accounting.failures[result.row] = result.reason
                    continue
                entry = _journal_entry(result, keys.get(result.row))
                accounting.take(result.row, entry)
                if result.row in keys:
                    entries.append(entry)
            journal.append(entries)
            progress.update(len(entries))


def _journal_entry(answer: Answer, key: str | None) -> dict[str, Any]:
    return {"key": key, "row": answer.row, "raw": answer.raw, "tokens": answer.tokens, "stop": answer.stop}


def _accounts(
    accounting: Accounting, requests: Mapping[int, Request], lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    def identifiers(rows: Sequence[int]) -> list[Any]:
        return [requests[row].question.question_id for row in rows]

    return {
        "n_answered": len(lines),
        "missing": identifiers(accounting.missing),
        "duplicate": identifiers(accounting.duplicate),
        "foreign": accounting.foreign,
        "failed": [
            {"question_id": requests[row].question.question_id, "reason": reason}
            for row, reason in accounting.failures.items()
        ],
        "cut_off_at_max_new_tokens": sum(line["stop"] == STOPPED_AT_LENGTH for line in lines),
        "empty": sum(not line["answer"] for line in lines),
    }


def _dataset(question_set: QuestionSet) -> dict[str, Any]:
    task, annotations = question_set.task, question_set.annotations
    return {
        "file": str(question_set.file),
        "sha256": question_set.file_sha256,
        "rows_in_file": question_set.rows_in_file,
        "rows_in_published_set": task.n_expected,
        "annotations": None if annotations is None else str(annotations),
        "images": len(question_set.image_digests),
    }
