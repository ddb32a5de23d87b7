"""Reads all that an evaluation will read, before hours of inference: every row, reference, id and image of the tasks.

    python -m eval.check_questions                              # the published tasks, below the current folder
    python -m eval.check_questions textvqa_val,docvqa_test --data-root /data/root --train train.json
    python -m eval.check_questions my.jsonl --metric anls --json report.json

With --train (files of conversations or of questions), images that are trained on too are found by their pixels or
their bytes; one that was resized or compressed again is not. Exit status: 0 all is well (notes are allowed), 1 there
are problems, 2 the check could not be made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.metrics import METRICS, metric_named, score
from eval.questions import (
    ROOT_NAME,
    find_metric_fault,
    find_too_few_references,
    image_root_of,
    question_file,
    read_annotations,
)
from eval.score import parser_of
from eval.tasks import DEFAULT_SELECTION, Task, asks_for_boxes_in_vain, find_inert_sign, select_tasks
from monkey.cli import EXIT_PARTIAL, run_program, whole_number
from monkey.data import check
from monkey.data.check import DataFile, Finding, Findings, KnownImages, align, kind_of_fault, read_rows
from monkey.data.mixture import record_sets
from monkey.data.records import BAD, Question, find_repeated_id, read_question
from monkey.data.rows import NOT_OF_THE_SCHEMA, ImagePaths, IndexedRows
from monkey.journal import write_atomic

MISSING_FILE = "missing file"
BAD_ANNOTATIONS = "annotation file"
TOO_FEW = "too few references"
UNSCORABLE = "lacks what its metric reads"
LEAKED = "image also trained on"
_OF_ROWS = (check.UNREADABLE, check.ROW_COUNT, NOT_OF_THE_SCHEMA)
_OF_IMAGES = (check.REFUSED_PATH, check.MISSING, check.BROKEN)
KINDS = (MISSING_FILE, *_OF_ROWS, *_OF_IMAGES, check.ID_TWICE, BAD_ANNOTATIONS, TOO_FEW, UNSCORABLE, LEAKED)
"""Problems, in the order of the table."""

NO_REFERENCE = "no reference with text"
NO_ANNOTATIONS = "no annotation file"
ASKED_TWICE = "question asked twice"
UNASKED = "annotated and not asked"
INERT = "sign without effect"
NOTES = (NO_REFERENCE, NO_ANNOTATIONS, ASKED_TWICE, UNASKED, INERT)
"""What is worth knowing and may be meant so; published files have some of each."""


@dataclass
class TaskCheck:
    """What was read of a task. `questions` are the sound rows and those without a reference, `rows` all of the file."""

    task: Task
    file: Path
    rows: int = 0
    questions: list[Question] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: str, source: str, sentence: str) -> None:
        self.findings.append(Finding(kind, source, sentence))

    @property
    def problems(self) -> int:
        return sum(finding.kind in KINDS for finding in self.findings)

    @property
    def notes(self) -> int:
        return len(self.findings) - self.problems


@dataclass
class QuestionsReport(Findings):
    """What a check found. `images` counts files of the tasks, `train_images` those that were compared with them."""

    problems = KINDS
    notes = NOTES
    checks: list[TaskCheck]
    images: int = 0
    train_images: int = 0
    not_checked: dict[str, str] = field(default_factory=dict)
    """What was left out -> why."""

    @property
    def findings(self) -> list[Finding]:
        return [finding for one in self.checks for finding in one.findings]

    def task_table(self) -> str:
        """Return the tasks with rows, expected rows, problems and notes."""
        rows = [("task", "rows", "expected", "problems", "notes", "file")]
        for one in self.checks:
            expected = "any" if one.task.n_expected is None else f"{one.task.n_expected:,}"
            counts = (f"{one.rows:,}", expected, f"{one.problems:,}", f"{one.notes:,}")
            rows.append((one.task.name, *counts, str(one.file)))
        return "\n".join(align(rows))

    def as_json(self) -> dict[str, Any]:
        tasks = [
            {
                "task": one.task.name,
                "file": str(one.file),
                "rows": one.rows,
                "expected": one.task.n_expected,
                "findings": [{**finding._asdict(), "problem": finding.kind in KINDS} for finding in one.findings],
            }
            for one in self.checks
        ]
        counts = {"images": self.images, "train_images": self.train_images}
        return {"clean": self.is_clean, **counts, "not_checked": self.not_checked, "tasks": tasks}


def check_questions(
    tasks: Sequence[Task],
    data_root: Path | None = None,
    *,
    train: Sequence[str | Path] = (),
    train_image_root: str | Path | None = None,
    workers: int | None = None,
) -> QuestionsReport:
    """Read all that evaluating the tasks would read, and report what is wrong with it.

    Args:
        tasks: rows of the table, or the user's own files.
        data_root: folder that the tasks' paths and their images start from; see `load_question_set`.
        train: training files and mixtures whose images must not be in the tasks.
        train_image_root: where their images are looked up; see `open_records`.
        workers: processes that open images; 0 for none but this one; None for as many as pay.

    Raises:
        FileNotFoundError, ValueError: a training file or a folder that cannot be opened. What is wrong with the tasks'
            own files is in the report.
    """
    checks = [_check_rows(task, data_root) for task in tasks]
    for one in checks:
        _check_annotations(one, data_root)
        _check_counts(one)
    report = QuestionsReport(checks)
    paths = list(dict.fromkeys(str(question.image) for one in checks for question in one.questions))
    report.images = len(paths)
    images = check.read_images(paths, {}, workers)
    for one in checks:
        for question in one.questions:
            if fault := images[str(question.image)].fault:
                one.add(check.BROKEN, question.source, f"{question.source}: {fault.sentence}")
    if train:
        trained = _read_trained_images(report, train, train_image_root, workers)
        for one in checks:
            for question in one.questions:
                if likeness := trained.describe_likeness(images[str(question.image)]):
                    one.add(LEAKED, question.source, f"{question.source}: {question.image} {likeness}")
    else:
        report.not_checked["leakage"] = "no training file was given"
    return report


def _check_rows(task: Task, data_root: Path | None) -> TaskCheck:
    """Read the rows of a task's file, each fault a finding."""
    image_root = image_root_of(task, data_root)
    one = TaskCheck(task, Path(task.file) if image_root is None or task.own_file else image_root / task.file)
    try:
        one.file = question_file(task, data_root)
        rows = IndexedRows(one.file)
    except BAD as fault:
        kind = MISSING_FILE if isinstance(fault, FileNotFoundError) else check.UNREADABLE
        one.add(kind, str(one.file), str(fault))
        return one
    images = ImagePaths(one.file, image_root, ROOT_NAME)
    one.rows = len(rows)
    seen: dict[str, str] = {}
    for index in tqdm(range(len(rows)), desc=task.name, unit="row", leave=False, disable=None):
        source = rows.source(index)
        try:
            question = _read_question(index, rows[index][1], source, images)
        except BAD as fault:
            one.add(kind_of_fault(fault), source, str(fault))
            continue
        if sentence := find_repeated_id(question.question_id, source, seen):
            one.add(check.ID_TWICE, source, sentence)
        one.questions.append(question)
    return one


def _read_question(index: int, fields: Any, source: str, images: ImagePaths) -> Question:
    """Return the question of a row; one without any reference is kept, for it is a note."""
    if isinstance(fields, dict) and fields.get("answer") == []:
        return replace(read_question(index, {**fields, "answer": ""}, source, images, accept_blank=True), answers=())
    return read_question(index, fields, source, images, accept_blank=True)


def _check_annotations(one: TaskCheck, data_root: Path | None) -> None:
    """Give the questions the answers of the annotation file, and report what does not fit."""
    if one.task.annotations is None or not one.questions:
        return
    path = (data_root or Path()) / one.task.annotations
    if not path.is_file():
        sentence = f"task {one.task.name}: {path} is missing, and the answers beside the questions are taken"
        one.add(NO_ANNOTATIONS, str(path), sentence)
        return
    try:
        listed = [(question_id, people) for question_id, people, _ in read_annotations(path)]
    except ValueError as error:
        one.add(BAD_ANNOTATIONS, str(path), str(error))
        return
    answers = dict(listed)
    for number, (question_id, people) in enumerate(listed):
        source = f"{path}, annotation {number}"
        if not all(isinstance(person, str) for person in people):
            one.add(BAD_ANNOTATIONS, source, f"{source}: the answers of question_id {question_id} are not all texts")
            answers[question_id] = [person for person in people if isinstance(person, str)]
    for question_id, count in Counter(question_id for question_id, _ in listed).items():
        if count > 1:
            one.add(BAD_ANNOTATIONS, str(path), f"{path}: question_id {question_id} is annotated {count} times")
    questions = []
    for question in one.questions:
        people = answers.pop(str(question.question_id), None)
        if people is None:
            sentence = f"{question.source}: question_id {question.question_id!r} has no answers in {path}"
            one.add(BAD_ANNOTATIONS, question.source, sentence)
        questions.append(question if people is None else replace(question, answers=tuple(people)))
    one.questions = questions
    if answers:
        first = next(iter(answers))
        sentence = f"{path}: {len(answers):,} annotated questions are not in {one.file}, the first {first}"
        one.add(UNASKED, str(path), sentence)


def _check_counts(one: TaskCheck) -> None:
    """Compare rows with the published size and references with what the metric needs; find what is asked twice."""
    expected = one.task.n_expected
    if one.rows and expected not in (None, one.rows):
        sentence = f"{one.file}: {one.rows:,} rows, and the published set has {expected:,}"
        one.add(check.ROW_COUNT, str(one.file), sentence)
    if (sentence := asks_for_boxes_in_vain(one.task)) is not None:
        one.add(INERT, str(one.file), sentence)
    asked: dict[tuple[str, str], str] = {}
    for question in one.questions:
        if sentence := find_too_few_references(one.task.metric, question):
            one.add(TOO_FEW, question.source, sentence)
        if sentence := find_metric_fault(one.task.metric, question):
            one.add(UNSCORABLE, question.source, sentence)
        if not any(reference.strip() for reference in question.answers):
            sentence = f"{question.source}: the references are all empty{_say_worth_of_nothing(one.task, question)}"
            one.add(NO_REFERENCE, question.source, sentence)
        if (sentence := find_inert_sign(question.question, one.task.holds_marks)) is not None:
            one.add(INERT, question.source, f"{question.source}: {sentence}")
        first = asked.setdefault((str(question.image), question.question), question.source)
        if first != question.source:
            sentence = f"{question.source}: asks the same of the same image as {first}"
            one.add(ASKED_TWICE, question.source, sentence)


def _say_worth_of_nothing(task: Task, question: Question) -> str:
    """Say what an empty answer to a question without a reference scores, where rows are scored by themselves."""
    if task.headline not in metric_named(task.metric).variants or not question.answers:
        return ""
    value = score(task.metric, task.headline, "", question.answers)
    return f"; by {task.metric} ({task.headline}) an empty answer scores {100 * value:g}"


def _read_trained_images(
    report: QuestionsReport, train: Sequence[str | Path], image_root: str | Path | None, workers: int | None
) -> KnownImages:
    """Return the images of training files and mixtures: of conversations, or of questions such as few-shot examples.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: one that cannot be opened, or files that name no image, where comparing would find nothing.
    """
    first_row: dict[str, str] = {}
    faults: list[Finding] = []
    for one in record_sets(train, image_root):
        for row in read_rows(DataFile.open(one), workers=0):
            faults += [finding for finding in row.findings if finding.kind in check.KINDS]
            for path in row.images:
                first_row.setdefault(path, row.source)
    if not first_row:
        names = ", ".join(map(str, train))
        first = f" ({faults[0].sentence})" if faults else ""
        raise ValueError(f"--train {names}: no row names an image that is there, so there is none to compare{first}")
    trained = KnownImages()
    for path, image in check.read_images(list(first_row), {}, workers, "opening training images").items():
        trained.add(image, f"{path}, trained on in {first_row[path]}")
    report.train_images = len(first_row)
    if faults:
        rows_left = len({fault.source for fault in faults})
        report.not_checked[f"leakage from {rows_left:,} training rows"] = f"their first fault: {faults[0].sentence}"
    return trained


def report_text(report: QuestionsReport, most: int = 10) -> str:
    """Return the report for people: sentences, the tables, and what was not checked."""
    lines = [*report.sentences(most), *([""] if report.findings else []), report.task_table(), ""]
    lines += [report.table(), ""] if report.findings else []
    compared = f", {report.train_images:,} training images" if report.train_images else ""
    lines.append(f"{report.images:,} images{compared}")
    lines += [f"not checked: {what} ({why})" for what, why in report.not_checked.items()]
    return "\n".join(lines)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__, "eval.check_questions")
    parser.add_argument(
        "tasks", nargs="?", default=DEFAULT_SELECTION, help="tasks, groups, patterns, .jsonl files; commas between"
    )
    parser.add_argument("--metric", choices=METRICS, help="metric of a .jsonl or .json file of your own")
    parser.add_argument("--data-root", type=Path, help="folder that the tasks' paths and their images start from (.)")
    parser.add_argument(
        "--train", nargs="+", default=[], metavar="FILE", help="training files whose images may not occur"
    )
    parser.add_argument("--train-image-root", help="folder of their images; else each file's own, then the current one")
    parser.add_argument("--workers", type=whole_number(0), help="processes; 0: none but this one; else as many as pay")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the whole report there")
    parser.add_argument("--show", type=whole_number(0), default=10, metavar="N", help="sentences printed of each kind")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    flags = _parse(words)
    return run_program(lambda: _run(flags), stopped="stopped; nothing was written")


def _run(flags: argparse.Namespace) -> int:
    if flags.json and (flags.json.is_dir() or not flags.json.parent.is_dir()):
        raise ValueError(f"--json {flags.json}: give a file in a folder that exists")
    report = check_questions(
        select_tasks(flags.tasks, flags.metric),
        flags.data_root,
        train=flags.train,
        train_image_root=flags.train_image_root,
        workers=flags.workers,
    )
    if flags.json:
        write_atomic(flags.json, json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n")
    print(report_text(report, flags.show))
    return 0 if report.is_clean else EXIT_PARTIAL


if __name__ == "__main__":
    sys.exit(main())
