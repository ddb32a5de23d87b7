"""A task on its way through a run: its questions, how they are asked, the account of them, and its two files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.accounting import Accounting
from eval.asking import Report
from eval.backends import Backend, Request
from eval.few_shot import Examples, FewShot, load_examples
from eval.journal import Journal, answer_key, journals_of, read_entries
from eval.prompting import AS_TRAINED, PromptForm, asks_for_boxes_in_vain, find_inert_sign, prompt_form
from eval.questions import QuestionSet, Selection, load_question_set
from eval.tasks import Task
from monkey.data.records import Question


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


@dataclass
class TaskWork:
    """A task on its way: its questions, how they are asked, and what became of them."""

    question_set: QuestionSet
    form: PromptForm
    examples: Examples | None = None
    chosen: dict[int, list[int]] = field(default_factory=dict)
    """Examples of each row, as places in the training file; filled in where they are needed."""
    keys: dict[int, str] = field(default_factory=dict)
    """Key of each row whose image is there; made by `key_rows`."""
    open_chunks: int = 0
    resumed: int = 0
    reports: list[Report] = field(default_factory=list)

    @property
    def task(self) -> Task:
        return self.question_set.task

    @cached_property
    def questions(self) -> dict[int, Question]:
        return {question.row: question for question in self.question_set.questions}

    def request(self, row: int) -> Request:
        shots = self.examples.shots(self.chosen[row], self.form) if self.examples else ()
        return Request(self.task, self.questions[row], self.form, shots)

    def key_rows(self, backend: Backend) -> None:
        """Choose examples and make the key of every row whose image is there; for the first process."""
        digests = self.question_set.image_digests
        for row, question in self.questions.items():
            own = digests.get(question.image)
            if self.examples:
                self.chosen[row] = self.examples.choose(question, own)
            if own is None:
                continue
            request = self.request(row)
            self.keys[row] = answer_key(
                task=self.task.name,
                row=row,
                question_id=question.question_id,
                image=[*(self.examples.digest(shot.image) for shot in request.shots), own] if request.shots else own,
                prompt=request.prompt,
                generation=generation_of(backend, self.task),
                model=backend.fingerprint,
            )

    def answered(self, settings: RunSettings, patience: float) -> set[int]:
        """Rows that the journals answer, none after they were cleared for a fresh start.

        Raises ValueError when another process holds one of them for longer than `patience` seconds.
        """
        answers = Accounting(tuple(self.questions))
        with ExitStack() as held:
            paths = journals_of(settings.folder / self.task.name)
            journals = [held.enter_context(Journal(path, patience)) for path in paths]
            for journal in journals:
                if settings.fresh:
                    journal.clear()
                elif settings.repair:
                    journal.blank(lambda entry: entry is None)
                answers.take_all(journal.read(self.keys.values()))
            if not settings.repair or not answers.duplicate:
                return set(answers.answers)
            contradicted, keys = set(answers.duplicate), set(self.keys.values())
            for journal in journals:
                journal.blank(lambda entry: entry["row"] in contradicted and entry["key"] in keys)
            return set(answers.answers) - contradicted

    def chunk(self, number: int, requests: Sequence[Request]) -> dict[str, Any]:
        """Requests as another process can make them again from `take`; `number` is the task's."""
        rows = [request.row for request in requests]
        chosen = [self.chosen[row] for row in rows] if self.examples else None
        return {"task": number, "rows": rows, "keys": [self.keys[row] for row in rows], "examples": chosen}

    def take(self, chunk: Mapping[str, Any]) -> tuple[list[Request], dict[int, str]]:
        """The requests of a chunk, and their keys by row."""
        if self.examples:
            self.chosen |= dict(zip(chunk["rows"], chunk["examples"], strict=True))
        return [self.request(row) for row in chunk["rows"]], dict(zip(chunk["rows"], chunk["keys"], strict=True))

    def accounting(self, folder: Path, backend: Backend) -> Accounting:
        """The account of all rows, from the journals of all processes and their reports."""
        counted = Accounting(tuple(self.questions))
        for path in journals_of(folder / self.task.name):
            counted.take_all(read_entries(path, self.keys.values()))
        for row, question in self.questions.items():
            if question.image in self.question_set.missing_images:
                counted.failures[row] = self.question_set.missing_images[question.image]
        for report in self.reports:
            counted.failures |= report.failures
            counted.foreign += report.foreign
        if hasattr(backend, "foreign_answers"):
            counted.foreign += backend.foreign_answers(self.question_set)
        return counted


def generation_of(backend: Backend, task: Task) -> dict[str, Any]:
    return {**backend.settings, "max_new_tokens": task.max_new_tokens}


def load_works(tasks: Sequence[Task], settings: RunSettings, first: bool = True) -> list[TaskWork]:
    """Read and check the questions of all tasks; `first` is for the process that makes the keys, which need digests.

    Raises FileNotFoundError and ValueError, as `load_question_set` and `load_examples` do.
    """
    works = []
    for task in tasks:
        form = prompt_form(task, settings.prompt)
        question_set = load_question_set(
            task,
            settings.data_root,
            selection=settings.selection,
            allow_missing=settings.allow_missing,
            digests=first,
        )
        examples = load_examples(settings.few_shot, question_set, settings.data_root) if settings.few_shot else None
        works.append(TaskWork(question_set, form, examples))
    return works


def find_inert_signs(works: Sequence[TaskWork]) -> list[str]:
    """Sentences on tasks whose questions hold signs that models know and that are read as characters here."""
    sentences = []
    for work in works:
        found = {question.source: find_inert_sign(question.question) for question in work.questions.values()}
        inert = [f"{source}: {sentence}" for source, sentence in found.items() if sentence]
        if inert:
            sentences.append(f"task {work.task.name}: {len(inert):,} of {len(found):,} questions; {inert[0]}")
        if (sentence := asks_for_boxes_in_vain(work.task)) is not None:
            sentences.append(sentence)
    return sentences
