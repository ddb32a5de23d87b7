"""Reads all that an evaluation will read, before hours of inference: every row, reference, id and picture of the tasks.

    python -m eval.check_questions                              # the published tasks, below the current folder
    python -m eval.check_questions textvqa_val,docvqa_test --data-root /data/root --train train.json
    python -m eval.check_questions my.jsonl --metric anls --json report.json

With --train (files of conversations or of questions), pictures that are trained on too are found by their pixels or
their bytes; one that was resized or compressed again is not. Exit status: 0 all is well (notes are allowed), 1 there
are problems, 2 the check could not be made.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.metrics import METRICS, metric_named, score
from eval.prompting import asks_for_boxes_in_vain, find_inert_sign
from eval.tasks import DEFAULT_SELECTION, Task, select_tasks
from eval.trained_images import trained_images
from monkey.cli import ArgumentParser
from monkey.data import check_report as kinds
from monkey.data.check import in_order
from monkey.data.check_reading import ImageRead, ImageTask
from monkey.data.check_report import Finding
from monkey.data.records import Question, read_question
from monkey.data.rows import EMPTY_ANSWER, NOT_OF_THE_SCHEMA, ImagePaths, IndexedRows, MalformedRows, RowFault

CLEAN, PROBLEMS, EXIT_USAGE, STOPPED = 0, 1, 2, 130

MISSING_FILE = "missing file"
BAD_ANNOTATIONS = "annotation file"
TOO_FEW = "too few references"
LEAKED = "image also trained on"
_OF_ROWS = (kinds.UNREADABLE, kinds.ROW_COUNT, NOT_OF_THE_SCHEMA)
_OF_IMAGES = (kinds.REFUSED_PATH, kinds.MISSING, kinds.BROKEN)
KINDS = (MISSING_FILE, *_OF_ROWS, *_OF_IMAGES, kinds.ID_TWICE, BAD_ANNOTATIONS, TOO_FEW, LEAKED)
"""Problems, in the order of the table."""

NO_REFERENCE = "no reference with text"
NO_ANNOTATIONS = "no annotation file"
ASKED_TWICE = "question asked twice"
UNASKED = "annotated and not asked"
INERT = "sign without effect"
NOTES = (NO_REFERENCE, NO_ANNOTATIONS, ASKED_TWICE, UNASKED, INERT)
"""What is worth knowing and may be meant so; published files have some of each."""

_IMAGES_A_STRETCH = 16
_IMAGES_WORTH_A_PROCESS = 400  # that many are read here while a process starts


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
class QuestionsReport:
    """What a check found. `images` counts files of the tasks, `train_images` those that were compared with them."""

    checks: list[TaskCheck]
    images: int = 0
    train_images: int = 0
    not_checked: dict[str, str] = field(default_factory=dict)
    """What was left out -> why."""

    @property
    def findings(self) -> list[Finding]:
        return [finding for check in self.checks for finding in check.findings]

    @property
    def is_clean(self) -> bool:
        return not any(check.problems for check in self.checks)

    def table(self) -> str:
        """Tasks with rows, expected rows, problems and notes; then each kind with its number and first place."""
        rows = [("task", "rows", "expected", "problems", "notes", "file")]
        for check in self.checks:
            expected = "any" if check.task.n_expected is None else f"{check.task.n_expected:,}"
            counts = (f"{check.rows:,}", expected, f"{check.problems:,}", f"{check.notes:,}")
            rows.append((check.task.name, *counts, str(check.file)))
        lines = _aligned(rows)
        counts = Counter(finding.kind for finding in self.findings)
        kinds = [("problem", "places", "first")]
        for kind in (*KINDS, *NOTES):
            if counts[kind]:
                first = next(finding.source for finding in self.findings if finding.kind == kind)
                kinds.append((kind if kind in KINDS else f"note: {kind}", f"{counts[kind]:,}", first))
        return "\n".join(lines if len(kinds) == 1 else [*lines, "", *_aligned(kinds)])

    def sentences(self, most: int) -> list[str]:
        """Up to `most` sentences of each kind, and how many more there are."""
        lines = []
        for kind in (*KINDS, *NOTES):
            found = [finding for finding in self.findings if finding.kind == kind]
            prefix = kind if kind in KINDS else f"note: {kind}"
            lines += [f"{prefix}: {finding.sentence}" for finding in found[:most]]
            if len(found) > most:
                lines.append(f"{prefix}: and {len(found) - most:,} more")
        return lines

    def as_json(self) -> dict[str, Any]:
        tasks = [
            {
                "task": check.task.name,
                "file": str(check.file),
                "rows": check.rows,
                "expected": check.task.n_expected,
                "findings": [{**one._asdict(), "problem": one.kind in KINDS} for one in check.findings],
            }
            for check in self.checks
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
        train_image_root: where their images are looked up; see `read_records`.
        workers: processes that open images; 0 for none but this one; None for as many as pay.

    Raises:
        FileNotFoundError, ValueError: a training file or a folder that cannot be opened. What is wrong with the tasks'
            own files is in the report.
    """
    checks = [_check_rows(task, data_root) for task in tasks]
    for check in checks:
        _check_annotations(check, data_root)
        _check_counts(check)
    report = QuestionsReport(checks)
    paths = list(dict.fromkeys(str(question.image) for check in checks for question in check.questions))
    report.images = len(paths)
    if not train:
        report.not_checked["leakage"] = "no training file was given"
    images = dict(zip(paths, _open_images(paths, "opening images", workers), strict=True))
    for check in checks:
        _report_broken(check, images)
    if train:
        _report_leakage(report, images, train, train_image_root, workers)
    return report


def _check_rows(task: Task, data_root: Path | None) -> TaskCheck:
    """The rows of a task's file, each fault a finding."""
    image_root = data_root if task.own_file else (data_root or Path())
    check = TaskCheck(task, Path(task.file) if task.own_file else image_root / task.file)
    if not check.file.is_file():
        hint = "" if task.own_file else "; --data-root is the folder its path starts from"
        sentence = f"task {task.name}: {check.file} is missing{hint}"
        check.add(MISSING_FILE, str(check.file), sentence)
        return check
    pictures = ImagePaths(check.file, image_root, "--data-root")
    try:
        rows = IndexedRows(check.file)
    except ValueError as error:
        check.add(kinds.UNREADABLE, str(check.file), str(error))
        return check
    check.rows = len(rows)
    seen: dict[str, str] = {}
    for index in tqdm(range(len(rows)), desc=task.name, unit="row", leave=False, disable=None):
        source = rows.source(index)
        try:
            _, fields = rows[index]
        except MalformedRows as error:
            check.add(kinds.UNREADABLE, source, str(error))
            continue
        question = _read(check, index, fields, source, pictures)
        if question is None:
            continue
        first = seen.setdefault(str(question.question_id), source)
        if first != source:
            sentence = f"{source}: question_id {question.question_id!r} was given before, at {first}; ids must differ"
            check.add(kinds.ID_TWICE, source, sentence)
        check.questions.append(question)
    return check


def _read(check: TaskCheck, index: int, fields: Any, source: str, pictures: ImagePaths) -> Question | None:
    """The question of a row; one without a reference that has text is a note and is kept."""
    try:
        return read_question(index, fields, source, pictures)
    except RowFault as fault:
        if fault.kind != EMPTY_ANSWER:
            check.add(fault.kind, source, str(fault))
            return None
    except FileNotFoundError as fault:
        check.add(kinds.MISSING, source, str(fault))
        return None
    except ValueError as fault:
        check.add(kinds.REFUSED_PATH, source, str(fault))
        return None
    given = fields["answer"]
    # The row is read once more with an answer, for its other fields and its picture may have faults of their own.
    question = _read(check, index, {**fields, "answer": "nothing"}, source, pictures)
    return question and replace(question, answers=tuple([given] if isinstance(given, str) else given))


def _check_annotations(check: TaskCheck, data_root: Path | None) -> None:
    """Gives the questions the answers of the annotation file, and reports what does not fit."""
    if check.task.annotations is None or not check.questions:
        return
    path = (data_root or Path()) / check.task.annotations
    if not path.is_file():
        sentence = f"task {check.task.name}: {path} is missing, and the answers beside the questions are taken"
        check.add(NO_ANNOTATIONS, str(path), sentence)
        return
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        listed = [(str(entry["question_id"]), [person["answer"] for person in entry["answers"]]) for entry in entries]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, RecursionError, TypeError) as error:
        form = '{"annotations": [{"question_id": …, "answers": [{"answer": …}, …]}, …]}'
        sentence = f"{path} is no VQA annotation file ({type(error).__name__}: {error}); it must hold {form}"
        check.add(BAD_ANNOTATIONS, str(path), sentence)
        return
    answers = dict(listed)
    for number, (question_id, people) in enumerate(listed):
        source = f"{path}, annotation {number}"
        if not all(isinstance(person, str) for person in people):
            check.add(BAD_ANNOTATIONS, source, f"{source}: the answers of question_id {question_id} are not all texts")
            answers[question_id] = [person for person in people if isinstance(person, str)]
    for question_id, count in Counter(question_id for question_id, _ in listed).items():
        if count > 1:
            check.add(BAD_ANNOTATIONS, str(path), f"{path}: question_id {question_id} is annotated {count} times")
    questions = []
    for question in check.questions:
        people = answers.pop(str(question.question_id), None)
        if people is None:
            sentence = f"{question.source}: question_id {question.question_id!r} has no answers in {path}"
            check.add(BAD_ANNOTATIONS, question.source, sentence)
        questions.append(question if people is None else replace(question, answers=tuple(people)))
    check.questions = questions
    if answers:
        first = next(iter(answers))
        sentence = f"{path}: {len(answers):,} annotated questions are not in {check.file}, the first {first}"
        check.add(UNASKED, str(path), sentence)


def _check_counts(check: TaskCheck) -> None:
    """Rows against the published size, references against what the metric needs, and questions that are there twice."""
    expected = check.task.n_expected
    if check.rows and expected not in (None, check.rows):
        sentence = f"{check.file}: {check.rows:,} rows, and the published set has {expected:,}"
        check.add(kinds.ROW_COUNT, str(check.file), sentence)
    needed = metric_named(check.task.metric).minimum_references
    if (sentence := asks_for_boxes_in_vain(check.task)) is not None:
        check.add(INERT, str(check.file), sentence)
    asked: dict[tuple[str, str], str] = {}
    for question in check.questions:
        if len(question.answers) < needed:
            sentence = (
                f"{question.source}: {check.task.metric} needs at least {needed} answers, and there are "
                f"{len(question.answers)}"
            )
            check.add(TOO_FEW, question.source, sentence)
        if not any(reference.strip() for reference in question.answers):
            sentence = f"{question.source}: the references are all empty{_say_worth_of_nothing(check.task, question)}"
            check.add(NO_REFERENCE, question.source, sentence)
        if (sentence := find_inert_sign(question.question)) is not None:
            check.add(INERT, question.source, f"{question.source}: {sentence}")
        first = asked.setdefault((str(question.image), question.question), question.source)
        if first != question.source:
            sentence = f"{question.source}: asks the same of the same picture as {first}"
            check.add(ASKED_TWICE, question.source, sentence)


def _say_worth_of_nothing(task: Task, question: Question) -> str:
    """What an empty answer to a question without a reference scores, where the headline scores rows by themselves."""
    if task.headline not in metric_named(task.metric).variants or not question.answers:
        return ""
    value = score(task.metric, task.headline, "", question.answers)
    return f"; by {task.metric} ({task.headline}) an empty answer scores {100 * value:g}"


def _open_images(paths: Sequence[str], title: str, workers: int | None) -> list[ImageRead]:
    """What each image holds, by the project's own reader."""
    stretches = [paths[start : start + _IMAGES_A_STRETCH] for start in range(0, len(paths), _IMAGES_A_STRETCH)]
    processes = _process_count(workers) if len(paths) >= _IMAGES_WORTH_A_PROCESS or workers else 0
    read: list[ImageRead] = []
    with tqdm(total=len(paths), desc=title, unit="image", leave=False, disable=None) as bar:
        for result in in_order(ImageTask({}), stretches, processes):
            read += result
            bar.update(len(result))
    return read


def _process_count(workers: int | None) -> int:
    if workers is not None:
        return workers
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 16) if available > 1 else 0


def _report_broken(check: TaskCheck, images: dict[str, ImageRead]) -> None:
    for question in check.questions:
        fault = images[str(question.image)].fault
        if fault is not None:
            check.add(kinds.BROKEN, question.source, f"{question.source}: {fault.sentence}")


def _report_leakage(
    report: QuestionsReport,
    images: dict[str, ImageRead],
    train: Sequence[str | Path],
    train_image_root: str | Path | None,
    workers: int | None,
) -> None:
    """Rows whose image is in a training file."""
    trained = trained_images(train, train_image_root)
    paths = list(trained.first_row)
    by_content: dict[bytes, str] = {}
    for path, read in zip(paths, _open_images(paths, "opening training images", workers), strict=True):
        for content in filter(None, (read.file, read.pixels)):
            by_content.setdefault(content, path)
    for check in report.checks:
        for question in check.questions:
            read = images[str(question.image)]
            same_bytes = by_content.get(read.file) if read.file else None
            other = same_bytes or (by_content.get(read.pixels) if read.pixels else None)
            if other:
                what = "has the bytes" if same_bytes else "shows the pixels"
                sentence = (
                    f"{question.source}: {question.image} {what} of {other}, trained on in {trained.first_row[other]}"
                )
                check.add(LEAKED, question.source, sentence)
    report.train_images = len(paths)
    if trained.faults:
        rows = len({fault.source for fault in trained.faults})
        report.not_checked[f"leakage from {rows:,} training rows"] = f"their first fault: {trained.faults[0].sentence}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, numbers to the right, with a rule under the first."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    for row in rows:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=False)),
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def report_text(report: QuestionsReport, most: int = 10) -> str:
    """The report for people: sentences, the table, and what was not checked."""
    lines = [*report.sentences(most), *([""] if report.findings else []), report.table(), ""]
    compared = f", {report.train_images:,} training images" if report.train_images else ""
    lines.append(f"{report.images:,} images{compared}")
    lines += [f"not checked: {what} ({why})" for what, why in report.not_checked.items()]
    return "\n".join(lines)


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


def _parse(words: Collection[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m eval.check_questions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "tasks", nargs="?", default=DEFAULT_SELECTION, help="tasks, groups, patterns, .jsonl files; commas between"
    )
    parser.add_argument("--metric", choices=METRICS, help="metric of a .jsonl or .json file of your own")
    parser.add_argument("--data-root", type=Path, help="folder that the tasks' paths and their images start from (.)")
    parser.add_argument(
        "--train", nargs="+", default=[], metavar="FILE", help="training files whose images may not occur"
    )
    parser.add_argument("--train-image-root", help="folder of their images; else each file's own, then the current one")
    parser.add_argument("--workers", type=_not_negative, help="processes; 0: none but this one; else as many as pay")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the whole report there")
    parser.add_argument("--show", type=_not_negative, default=10, metavar="N", help="sentences printed of each kind")
    return parser.parse_args(words)


def main(words: Collection[str] | None = None) -> int:
    flags = _parse(words)
    try:
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
            beside = flags.json.with_name(f"{flags.json.name}.partial")
            beside.write_text(json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(beside, flags.json)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return STOPPED
    print(report_text(report, flags.show))
    return CLEAN if report.is_clean else PROBLEMS


if __name__ == "__main__":
    sys.exit(main())
