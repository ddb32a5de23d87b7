"""A run: the questions of some tasks are answered by a backend, exactly once each, journalled, scored and written.

    load questions (everything wrong with the data shows here) -> open the backend -> share what the journals lack among
    the processes -> ask, batch by batch -> account for every row -> score every variant -> write

Rows are independent of each other. A line of a journal says by itself which row of which task it answers, and is worth
something only under its key: task, row, question id, image bytes, exact prompt, generation settings and model. When any
of these changes the key does, and the answer is asked for again. Each process has a journal of its own per task; who
wrote a line says nothing about it, so that a run goes on with any number of processes. The first process reads the
journals, shares, accounts and scores; all of them ask.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.asking import JOURNAL_FIELDS, Asker, Report, shard, throughput
from eval.backends import Backend, Request
from eval.metrics import score_all
from eval.processes import Processes
from eval.questions import Examples, FewShot, QuestionSet, Selection, load_examples, load_question_set
from eval.run_folder import (
    LOCK,
    STOPPED_AT_LENGTH,
    SUMMARY,
    TIMING,
    is_complete,
    journal_name,
    journals_of,
    write_published_files,
    write_task,
    writing_to,
)
from eval.score import part_scores, score_table, with_row_scores
from eval.tables import table_row, write_summary
from eval.tasks import AS_TRAINED, PromptForm, Task, asks_for_boxes_in_vain, find_inert_sign, prompt_form
from monkey.data.records import Question
from monkey.journal import ORPHAN_GRACE, Journal, digest, hold, read_records, write_json
from monkey.provenance import git_revision, package_versions

PACKAGES = ("torch", "transformers", "pillow", "numpy", "tiktoken")
"""What an answer can depend on; their versions stand in results.json."""

MEND = "--repair keeps all other answers and asks this one again, --fresh starts again without any"


@dataclass(frozen=True)
class RunSettings:
    """How a run goes; of all this only prompt and examples change an answer.

    `folder` takes the run's files. `limit`, `sample` and `ids` choose questions. `fresh` forgets answers of an earlier
    run in the same folder, `repair` only damaged ones and those that contradict each other. `allow_missing` goes on
    without images that are missing.
    """

    folder: Path
    data_root: Path | None = None
    prompt: str = AS_TRAINED
    batch_size: int = 4
    limit: int | None = None
    sample: int | None = None
    ids: Path | None = None
    few_shot: FewShot | None = None
    allow_missing: bool = False
    fresh: bool = False
    repair: bool = False
    seed: int = 3407
    checkpoint: str | None = None
    show_progress: bool = True

    @property
    def selection(self) -> Selection:
        return Selection(self.limit, self.sample, self.ids, self.seed)


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
        if processes.is_first:
            works = [load_work(task, settings) for task in tasks]
            for sentence in find_inert_signs(works):
                tqdm.write(f"note: {sentence}", file=sys.stderr)
            processes.tell("questions", True)
            return _lead(works, settings, open_backend(), processes)
        # So that what is wrong with the data is said once.
        processes.hear("questions")
        _follow([load_work(task, settings, digests=False) for task in tasks], settings, open_backend(), processes)
        return []


def run_loaded(
    question_sets: Sequence[QuestionSet], forms: Sequence[PromptForm], settings: RunSettings, backend: Backend
) -> list[dict[str, Any]]:
    """Ask, score and write in this process, for questions that were read before.

    Each task is put to the backend at once and in the order of its file, for one that shares them out itself. Of the
    whole run only summary.json is written.
    """
    works = [TaskWork(one, form) for one, form in zip(question_sets, forms, strict=True)]
    for work in works:
        work.make_keys(backend)
    with _held(settings) as lock_was_left, _progress(works, settings) as progress:
        asker = Asker(backend, settings.batch_size, told=progress.update)
        results = []
        for work in works:
            pending = work.find_pending(settings, lock_was_left)
            work.ask(asker, work.share(pending), settings)
            results.append(_score_task(work, settings, backend)[0])
    write_json(settings.folder / SUMMARY, {"complete": is_complete(results), "tasks": list(map(table_row, results))})
    return results


def _held(settings: RunSettings) -> Any:
    return hold(settings.folder / LOCK, "wait for it, or give another --save_name")


def _progress(works: Sequence[TaskWork], settings: RunSettings) -> tqdm:
    return tqdm(total=sum(len(work.keys) for work in works), unit="question", disable=not settings.show_progress)


# The first process and the others


def _lead(
    works: Sequence[TaskWork], settings: RunSettings, backend: Backend, processes: Processes
) -> list[dict[str, Any]]:
    """The first process: share, ask with the others, account, score and write."""
    started, clock = datetime.now(UTC), time.monotonic()
    for work in works:
        work.make_keys(backend)
    with _held(settings) as lock_was_left:
        parts = [shard(work.find_pending(settings, lock_was_left), processes.size) for work in works]
        shares = [[work.share(own[rank]) for work, own in zip(works, parts, strict=True)] for rank in processes.ranks]
        for rank in processes.others:
            processes.tell(f"share/{rank}", {"model": _identify(backend), "tasks": shares[rank]})
        with _progress(works, settings) as progress:
            results = list(_ask_and_score(works, shares[0], settings, backend, processes, progress))
        with writing_to(settings.folder):
            write_summary(settings.folder, results)
            line = {
                "started": started.isoformat(timespec="seconds"),
                "processes": processes.size,
                "seconds": round(time.monotonic() - clock, 3),
                "asked": throughput([report for work in works for report in work.reports]),
                "tasks": {work.task.name: {"resumed": work.resumed, **throughput(work.reports)} for work in works},
            }
            with (settings.folder / TIMING).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    return results


def _ask_and_score(
    works: Sequence[TaskWork],
    shares: Sequence[Mapping[str, Any]],
    settings: RunSettings,
    backend: Backend,
    processes: Processes,
    progress: tqdm,
) -> Iterator[dict[str, Any]]:
    """Ask the first process's share of all tasks; score each task, in order, as soon as all processes have asked it."""
    resumed = sum(work.resumed for work in works)

    def settle(count: int = 0) -> None:
        progress.update(resumed + processes.count_settled(count) - progress.n)
        processes.check_others()

    def finish(number: int) -> dict[str, Any]:
        for rank in processes.others:
            told = processes.hear(f"report/{number}/{rank}", rank, settle)
            works[number].reports += [Report.from_json(told)] if told else []
        results, lines = _score_task(works[number], settings, backend)
        with writing_to(settings.folder):
            write_published_files(settings.folder, results, lines)
        return results

    asker = Asker(backend, settings.batch_size, told=settle)
    settle()
    scored = 0
    for number, (work, share) in enumerate(zip(works, shares, strict=True)):
        progress.set_description(work.task.name)
        work.ask(asker, share, settings)
        while scored <= number and all(processes.was_told(f"report/{scored}/{rank}") for rank in processes.others):
            yield finish(scored)
            scored += 1
    yield from map(finish, range(scored, len(works)))


def _follow(works: Sequence[TaskWork], settings: RunSettings, backend: Backend, processes: Processes) -> None:
    """Every other process: ask its share of all tasks, and tell what came of each."""
    told = processes.hear(f"share/{processes.rank}")
    if told["model"] != _identify(backend):
        raise ValueError(
            f"process {processes.rank} has opened {_identify(backend)} and the first {told['model']}; give all the "
            "same checkpoint and flags"
        )
    if not (settings.folder / LOCK).is_file():
        raise ValueError(
            f"process {processes.rank} does not see {settings.folder} of the first; all need one folder for results"
        )

    def settle(count: int) -> None:
        processes.count_settled(count)
        processes.check_others()

    asker = Asker(backend, settings.batch_size, processes.rank, settle)
    for number, (work, share) in enumerate(zip(works, told["tasks"], strict=True)):
        report = work.ask(asker, share, settings)
        processes.tell(f"report/{number}/{processes.rank}", report and asdict(report))


def _identify(backend: Backend) -> list[Any]:
    return [backend.name, backend.fingerprint, backend.settings]


# A task on its way


@dataclass
class TaskWork:
    """A task on its way: its questions, how they are asked, and what became of them."""

    question_set: QuestionSet
    form: PromptForm
    examples: Examples | None = None
    chosen: dict[int, list[int]] = field(default_factory=dict)
    """Examples of each row, as places in the training file; filled in where they are needed."""
    keys: dict[int, str] = field(default_factory=dict)
    """Key of each row whose image is there; made by `make_keys`."""
    resumed: int = 0
    reports: list[Report] = field(default_factory=list)

    @property
    def task(self) -> Task:
        return self.question_set.task

    @cached_property
    def questions(self) -> dict[int, Question]:
        return {question.row: question for question in self.question_set.questions}

    def request(self, row: int) -> Request:
        shots = self.examples.shots(self.chosen[row]) if self.examples else ()
        return Request(self.task, self.questions[row], self.form, shots)

    def make_keys(self, backend: Backend) -> None:
        """Choose examples and make the key of every row whose image is there."""
        digests, generation = self.question_set.image_digests, self.generation(backend)
        for row, question in self.questions.items():
            own = digests.get(question.image)
            if self.examples:
                self.chosen[row] = self.examples.choose(question, own)
            if own is None:
                continue
            request = self.request(row)
            asked: Any = request.prompt
            if request.shots and getattr(backend, "asks_in_turns", False):
                asked = [message.text for message in request.turns.messages]
            self.keys[row] = digest(
                task=self.task.name,
                row=row,
                question_id=question.question_id,
                image=[*(self.examples.digest(shot.image) for shot in request.shots), own] if request.shots else own,
                prompt=asked,
                generation=generation,
                model=backend.fingerprint,
            )

    def generation(self, backend: Backend) -> dict[str, Any]:
        return {**backend.settings, "max_new_tokens": self.task.max_new_tokens}

    def find_pending(self, settings: RunSettings, lock_was_left: bool) -> list[Request]:
        """Requests that no journal answers, after what `fresh` and `repair` forget.

        Raises ValueError when another process holds a journal, or a line is damaged.

        Args:
            lock_was_left: whether the last run was killed, so that processes that it started may live on for a moment.
        """
        folder = settings.folder / self.task.name
        timeout, mend = ORPHAN_GRACE if lock_was_left else 0.0, settings.fresh or settings.repair
        with ExitStack() as held:
            journals = [held.enter_context(open_journal(path, timeout, mend)) for path in journals_of(folder)]
            for journal in journals if settings.fresh else ():
                journal.clear()
            answers, duplicates = self._read_answers(folder)
            again = {self.keys[row] for row in duplicates} if settings.repair else set()
            for journal in journals if again else ():
                journal.blank(lambda record: record["key"] in again)
        answered = {row for row in answers if self.keys[row] not in again}
        self.resumed = len(answered)
        return [self.request(row) for row in self.keys if row not in answered]

    def share(self, requests: Iterable[Request]) -> dict[str, Any]:
        """Requests as `ask` takes them, in this process or another."""
        rows = [request.row for request in requests]
        chosen = [self.chosen[row] for row in rows] if self.examples else None
        return {"rows": rows, "keys": [self.keys[row] for row in rows], "examples": chosen}

    def ask(self, asker: Asker, share: Mapping[str, Any], settings: RunSettings) -> Report | None:
        """Ask a share of the questions; None where it is empty."""
        rows = share["rows"]
        if not rows:
            return None
        if self.examples:
            self.chosen |= dict(zip(rows, share["examples"], strict=True))
        keys = dict(zip(rows, share["keys"], strict=True))
        with open_journal(settings.folder / self.task.name / journal_name(asker.rank)) as journal:
            self.reports.append(asker.ask([self.request(row) for row in rows], keys, journal))
        return self.reports[-1]

    def _read_answers(self, folder: Path) -> tuple[dict[int, Mapping[str, Any]], list[int]]:
        """The first answer to each row that was asked, from all journals, and the rows that got two different ones.

        The same answer twice, as a copied line of a journal, is one.
        """
        answers: dict[int, Mapping[str, Any]] = {}
        duplicates = []
        keys = frozenset(self.keys.values())
        for path in journals_of(folder):
            for record in read_records(path, {"key": str, **JOURNAL_FIELDS}, MEND):
                if record["key"] in keys and answers.setdefault(record["row"], record) != record:
                    duplicates.append(record["row"])
        return answers, duplicates

    def account(self, folder: Path, backend: Backend) -> tuple[dict[int, Mapping[str, Any]], dict[str, Any]]:
        """The answers by row, and the part of results.json on rows; `failed` ones are also among the `missing`."""
        answers, duplicates = self._read_answers(folder)
        absent = self.question_set.missing_images
        failures = {row: absent[one.image] for row, one in self.questions.items() if one.image in absent}
        foreign: list[int | str] = []
        for report in self.reports:
            failures |= report.failures
            foreign += report.foreign
        if hasattr(backend, "foreign_answers"):
            one = self.question_set
            foreign += backend.foreign_answers(self.task.name, one.ids_in_file, one.rows_in_file)
        ids = {row: question.question_id for row, question in self.questions.items()}
        missing = [ids[row] for row in ids if row not in answers]
        return answers, {
            "complete": not (missing or duplicates or foreign),
            "n": len(answers),
            "n_expected": len(ids),
            "n_answered": len(answers),
            "missing": missing,
            "duplicate": [ids[row] for row in sorted(duplicates)],
            "foreign": sorted(foreign, key=str),
            "failed": [{"question_id": ids[row], "reason": failures[row]} for row in sorted(failures)],
            "cut_off_at_max_new_tokens": sum(one["stop"] == STOPPED_AT_LENGTH for one in answers.values()),
            "empty": sum(not one["raw"].strip() for one in answers.values()),
            "without_reference": sum(not any(map(str.strip, one.answers)) for one in self.questions.values()),
        }


def load_work(task: Task, settings: RunSettings, digests: bool = True) -> TaskWork:
    """Read and check the questions of a task.

    Args:
        digests: hash the images; for the process that makes the keys.

    Raises FileNotFoundError and ValueError, as `load_question_set` and `load_examples` do.
    """
    form = prompt_form(task, settings.prompt)
    question_set = load_question_set(
        task, settings.data_root, selection=settings.selection, allow_missing=settings.allow_missing, digests=digests
    )
    examples = load_examples(settings.few_shot, question_set, settings.data_root) if settings.few_shot else None
    return TaskWork(question_set, form, examples)


def open_journal(path: Path, timeout: float = 0.0, mend: bool = False) -> Journal:
    """Open a journal of answers to write to; others are read by `read_records`."""
    busy = "give another --save_name"
    return Journal(path, fields=JOURNAL_FIELDS, way_out=MEND, busy=busy, timeout=timeout, mend=mend)


def find_inert_signs(works: Sequence[TaskWork]) -> list[str]:
    """Return sentences on tasks whose questions hold signs that models know and that are read as characters here."""
    sentences = []
    for work in works:
        marks = work.task.holds_marks
        found = {question.source: find_inert_sign(question.question, marks) for question in work.questions.values()}
        inert = [f"{source}: {sentence}" for source, sentence in found.items() if sentence]
        if inert:
            sentences.append(f"task {work.task.name}: {len(inert):,} of {len(found):,} questions; {inert[0]}")
        if (sentence := asks_for_boxes_in_vain(work.task)) is not None:
            sentences.append(sentence)
    return sentences


def _score_task(work: TaskWork, settings: RunSettings, backend: Backend) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Account for, score and write one task; return its results and the lines of its predictions."""
    task, folder = work.task, settings.folder / work.task.name
    answers, counts = work.account(folder, backend)
    population = work.question_set.population or None
    grids = {}
    if hasattr(backend, "image_grids"):
        found = backend.image_grids(work.question_set.image_digests)
        grids = {image: "x".join(map(str, grid)) for image, grid in found.items()}
    lines = [_prediction_line(work, row, answers[row], grids) for row in work.questions if row in answers]
    lines = with_row_scores(task.metric, lines, population)
    generation = work.generation(backend)
    parts = part_scores(task.metric, task.parts, lines, population)
    results = {
        "task": task.name,
        "metric": task.metric,
        "headline": task.headline,
        **counts,
        "scores": score_table(task.metric, lines, population),
        **({"parts": parts} if parts else {}),
        "published": None if task.published is None else asdict(task.published),
        "note": task.note,
        "prompt": {"name": work.form.name, "text": work.form.text, "sha256": work.form.sha256},
        "few_shot": None if work.examples is None else work.examples.record(),
        "generation": generation,
        **({"grids": dict(sorted(Counter(grids.values()).items()))} if grids else {}),
        "backend": backend.name,
        "checkpoint": {"path": settings.checkpoint, "fingerprint": backend.fingerprint},
        "dataset": _dataset_record(work.question_set, settings),
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
        "versions": package_versions(PACKAGES),
        "revision": git_revision(),
    }
    with writing_to(folder):
        write_task(folder, results, lines, population)
    return results, lines


def _prediction_line(
    work: TaskWork, row: int, answered: Mapping[str, Any], grids: Mapping[Path, str]
) -> dict[str, Any]:
    """One line of predictions.jsonl; `answer` is the stripped text, which is what every variant scores.

    Args:
        grids: of the images that have grids of their own.
    """
    question, answer = work.questions[row], answered["raw"].strip()
    return {
        "row": row,
        "question_id": question.question_id,
        "image": str(question.image),
        "image_sha256": work.question_set.image_digests[question.image],
        **({"grid": grids[question.image]} if question.image in grids else {}),
        "question": question.question,
        "references": list(question.answers),
        "prompt": work.request(row).prompt,
        "raw": answered["raw"],
        "answer": answer,
        "tokens": answered["tokens"],
        "stop": answered["stop"],
        "scores": score_all(work.task.metric, answer, question.answers),
        **({"more": dict(question.more)} if question.more else {}),
    }


def _dataset_record(question_set: QuestionSet, settings: RunSettings) -> dict[str, Any]:
    annotations = question_set.annotations
    return {
        "file": str(question_set.file),
        "sha256": question_set.file_sha256,
        "rows_in_file": question_set.rows_in_file,
        "rows_in_published_set": question_set.task.n_expected,
        "annotations": None if annotations is None else str(annotations),
        "images": len(question_set.image_digests),
        "sample": settings.sample,
        "ids": None if settings.ids is None else str(settings.ids),
    }
