"""A run: the questions of some tasks are answered by a backend, exactly once each, journalled, scored and written.

    load questions (everything wrong with the data shows here) -> open the backend -> deal what the journals lack over
    the processes -> ask, batch by batch -> account for every row -> score every variant -> write

Rows are independent of each other, and a journal line says by itself which row of which task it answers. The first
process reads the journals, deals, accounts and scores; all of them ask.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from tqdm import tqdm

from eval.accounting import accounts, is_complete
from eval.asking import Asker, Report
from eval.backends import Backend
from eval.corpus_scores import with_row_scores
from eval.journal import ORPHANS_LIVE, Journal, journal_name
from eval.parts import part_scores
from eval.prompting import PromptForm
from eval.provenance import source_revision, versions
from eval.published_files import write_published_files
from eval.questions import QuestionSet
from eval.results import (
    PREDICTIONS,
    RESULTS,
    SUMMARY,
    TIMING,
    append_line,
    prediction_line,
    published_scores,
    throughput,
    write_json,
    write_lines,
    written_to,
)
from eval.run_folder import POPULATION
from eval.run_lock import LOCK, RunLock
from eval.score_table import score_table
from eval.sharding import Processes, chunks
from eval.tables import table_row, write_summary
from eval.tasks import Task
from eval.work import RunSettings, TaskWork, find_inert_signs, generation_of, load_works

__all__ = ["RunSettings", "is_complete", "run", "run_loaded"]


def run(
    tasks: Sequence[Task],
    settings: RunSettings,
    open_backend: Callable[[], Backend],
    processes: Processes | None = None,
) -> list[dict[str, Any]]:
    """Evaluate tasks, write their files under `settings.folder`, and return the content of each results.json.

    All questions are read and checked before the backend is opened, and the backend is opened before anything is
    written. Every process of a run calls this; those after the first return nothing.

    Raises:
        FileNotFoundError, ValueError: what a user can have wrong; one sentence each.
        Stopped: another process ended early.
    """
    processes = processes or Processes()
    with processes.together():
        if processes.first:
            works = load_works(tasks, settings)
            for sentence in find_inert_signs(works):
                tqdm.write(f"note: {sentence}", file=sys.stderr)
            processes.tell("questions", True)
            return _lead(works, settings, open_backend(), processes)
        # So that what is wrong with the data is said once.
        processes.hear("questions")
        _follow(load_works(tasks, settings, first=False), settings, open_backend(), processes)
        return []


def run_loaded(
    question_sets: Sequence[QuestionSet], forms: Sequence[PromptForm], settings: RunSettings, backend: Backend
) -> list[dict[str, Any]]:
    """Ask, score and write in this process, for questions that were read before.

    Each task is put to the backend at once and in the order of its file, for one that deals it to others itself. Of
    the whole run only summary.json is written.
    """
    works = [TaskWork(one, form) for one, form in zip(question_sets, forms, strict=True)]
    results = _lead(works, settings, backend, Processes(), whole=False)
    write_json(settings.folder / SUMMARY, {"complete": is_complete(results), "tasks": list(map(table_row, results))})
    return results


def _lead(
    works: Sequence[TaskWork], settings: RunSettings, backend: Backend, processes: Processes, whole: bool = True
) -> list[dict[str, Any]]:
    """The first process: deal, ask with the others, account, score and write."""
    started, clock = datetime.now(UTC), time.monotonic()
    for work in works:
        work.key_rows(backend)
    with RunLock(settings.folder) as lock, ExitStack() as journals:
        dealt = _dealt(works, settings, processes.size if whole else 0, ORPHANS_LIVE if lock.found_stale else 0.0)
        processes.tell("model", _model(backend))
        processes.deal(dealt)
        with _progress(works, settings) as progress:
            asking = _asking(works, settings, backend, processes, journals, progress)
            results = _scored(asking, works, dealt, settings, backend, processes, whole)
        if whole:
            with written_to(settings.folder):
                write_summary(settings.folder, results)
                append_line(
                    settings.folder / TIMING,
                    {
                        "started": started.isoformat(timespec="seconds"),
                        "processes": processes.size,
                        "seconds": round(time.monotonic() - clock, 3),
                        "asked": throughput([report.as_json() for work in works for report in work.reports]),
                        "tasks": {
                            work.task.name: {
                                "resumed": work.resumed, **throughput([report.as_json() for report in work.reports])
                            }
                            for work in works
                        },
                    },
                )  # fmt: skip
        for other in range(1, processes.size):
            # One that is late looks for the lock, and would not see the folder without it.
            processes.hear(f"sees/{other}")
    return results


def _dealt(works: Sequence[TaskWork], settings: RunSettings, size: int, patience: float) -> list[dict[str, Any]]:
    """What the journals lack, as chunks for `size` processes; size 0 leaves a task whole and in order."""
    dealt = []
    for number, work in enumerate(works):
        answered = work.answered(settings, patience)
        work.resumed = len(answered)
        pending = [work.request(row) for row in work.keys if row not in answered]
        parts = chunks(pending, size, settings.batch_size) if size else [pending] if pending else []
        work.open_chunks = len(parts)
        dealt += [work.chunk(number, part) for part in parts]
    return dealt


def _follow(works: Sequence[TaskWork], settings: RunSettings, backend: Backend, processes: Processes) -> None:
    """Every other process: ask what it takes from the queue."""
    told = processes.hear("model")
    if told != _model(backend):
        raise ValueError(
            f"process {processes.rank} has opened {_model(backend)} and the first {told}; give all the same checkpoint "
            "and flags"
        )
    if not (settings.folder / LOCK).is_file():
        raise ValueError(
            f"process {processes.rank} does not see {settings.folder} of the first; all need one folder for results"
        )
    processes.tell(f"sees/{processes.rank}", True)
    with ExitStack() as journals:
        for number, report in _asking(works, settings, backend, processes, journals, None):
            processes.tell(f"report/{number}", report.as_json())


def _model(backend: Backend) -> list[Any]:
    return [backend.name, backend.fingerprint, backend.settings]


def _progress(works: Sequence[TaskWork], settings: RunSettings) -> tqdm:
    return tqdm(
        total=sum(len(work.keys) for work in works),
        initial=sum(work.resumed for work in works),
        unit="question",
        disable=not settings.show_progress,
    )


def _asking(
    works: Sequence[TaskWork],
    settings: RunSettings,
    backend: Backend,
    processes: Processes,
    journals: ExitStack,
    progress: tqdm | None,
) -> Iterable[tuple[int, Report]]:
    """Ask the chunks that this process gets, and yield a report of each."""

    resumed = sum(work.resumed for work in works)

    def told(settled: int) -> None:
        total = processes.count("settled", settled)
        if progress is not None:
            progress.update(resumed + total - progress.n)
        processes.go_on()

    asker = Asker(backend, settings.batch_size, processes.rank, told)
    opened: dict[int, Journal] = {}
    for number, chunk in processes.taken():
        work = works[chunk["task"]]
        if chunk["task"] not in opened:
            path = settings.folder / work.task.name / journal_name(processes.rank)
            opened[chunk["task"]] = journals.enter_context(Journal(path))
        if progress is not None:
            progress.set_description(work.task.name)
        requests, keys = work.take(chunk)
        yield number, asker.ask(requests, keys, opened[chunk["task"]])


def _scored(
    asking: Iterable[tuple[int, Report]],
    works: Sequence[TaskWork],
    dealt: Sequence[Mapping[str, Any]],
    settings: RunSettings,
    backend: Backend,
    processes: Processes,
    whole: bool,
) -> list[dict[str, Any]]:
    """Results of all tasks, each scored as soon as the last of its chunks was reported."""
    results: dict[int, dict[str, Any]] = {}
    unreported = dict.fromkeys(range(len(dealt)))

    def score_finished() -> None:
        for number, work in enumerate(works):
            if work.open_chunks == 0 and number not in results:
                results[number], lines = _score_task(work, settings, backend)
                if whole:
                    with written_to(settings.folder):
                        write_published_files(settings.folder, results[number], lines)

    def reported(chunk: int, report: Report) -> None:
        del unreported[chunk]
        work = works[dealt[chunk]["task"]]
        work.reports.append(report)
        work.open_chunks -= 1

    score_finished()
    for chunk, report in asking:
        reported(chunk, report)
        for other in [other for other in unreported if processes.told(f"report/{other}")]:
            reported(other, Report.from_json(processes.hear(f"report/{other}")))
        score_finished()
    for other in list(unreported):
        reported(other, Report.from_json(processes.hear(f"report/{other}")))
        score_finished()
    return [results[number] for number in range(len(works))]


def _score_task(work: TaskWork, settings: RunSettings, backend: Backend) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Account for, score and write one task; returns its results and the lines of its predictions."""
    task, folder = work.task, settings.folder / work.task.name
    counted = work.accounting(settings.folder, backend)
    digests = work.question_set.image_digests
    lines = [
        prediction_line(
            task,
            work.questions[row],
            digests[work.questions[row].image],
            work.request(row).prompt,
            counted.answers[row],
        )
        for row in counted.expected
        if row in counted.answers
    ]
    population = work.question_set.population or None
    lines = with_row_scores(task.metric, lines, population)
    generation = generation_of(backend, task)
    parts = part_scores(task.metric, task.parts, lines, population)
    results = {
        "task": task.name,
        "metric": task.metric,
        "headline": task.headline,
        "complete": counted.complete,
        "n": len(lines),
        "n_expected": len(counted.expected),
        **accounts(counted, work.questions, lines),
        "scores": score_table(task.metric, lines, population),
        **({"parts": parts} if parts else {}),
        "published": published_scores(task),
        "note": task.note,
        "prompt": {"name": work.form.name, "text": work.form.text, "sha256": work.form.sha256},
        "few_shot": None if work.examples is None else work.examples.record(),
        "generation": generation,
        "backend": backend.name,
        "checkpoint": {"path": settings.checkpoint, "fingerprint": backend.fingerprint},
        "dataset": _dataset(work.question_set, settings),
        "settings": {
            "prompt": work.form.name,
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
    }
    with written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / PREDICTIONS, lines)
        if population is not None:
            write_lines(folder / POPULATION, population)
        write_json(folder / RESULTS, results)
    return results, lines


def _dataset(question_set: QuestionSet, settings: RunSettings) -> dict[str, Any]:
    task, annotations = question_set.task, question_set.annotations
    return {
        "file": str(question_set.file),
        "sha256": question_set.file_sha256,
        "rows_in_file": question_set.rows_in_file,
        "rows_in_published_set": task.n_expected,
        "annotations": None if annotations is None else str(annotations),
        "images": len(question_set.image_digests),
        "sample": settings.sample,
        "ids": None if settings.ids is None else str(settings.ids),
    }
