"""The questions of a task: its jsonl file, and the ten answers of a VQA annotation file where there is one.

What a user can have wrong in the data shows here, before a model is opened and before a file is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.metrics import metric_named
from eval.tasks import Task
from monkey.data.records import Question, read_questions

_HASH_BLOCK = 1 << 20


@dataclass(frozen=True)
class QuestionSet:
    """What is asked of a model for one task.

    `rows_in_file` counts the whole file, `questions` may be fewer under a limit. `image_digests` has the SHA-256 of
    every image file by its path.
    """

    task: Task
    file: Path
    file_sha256: str
    annotations: Path | None
    rows_in_file: int
    questions: tuple[Question, ...]
    image_digests: dict[Path, str]


def load_question_set(task: Task, data_root: Path | None = None, limit: int | None = None) -> QuestionSet:
    """Read and check the questions of a task; `limit` keeps the first ones.

    A row's files lie under `data_root` (default: the current folder). Images of a user's own file are looked up in
    `data_root` when it is given, else beside the file and then in the current folder.

    Raises:
        FileNotFoundError: the question file or an image is missing.
        ValueError: a question that `read_questions` refuses, one without answers in the annotation file, or with too
            few references for the metric; file and line are named.
    """
    if task.own_file:
        file, image_root = Path(task.file), data_root
    else:
        image_root = Path() if data_root is None else data_root
        file = image_root / task.file
    if not file.is_file():
        raise FileNotFoundError(f"task {task.name}: {file} is missing; --data-root is the folder its path starts from")
    questions = read_questions(file, image_root=image_root, root_name="--data-root")
    rows_in_file = len(questions)
    questions = questions[:limit]
    annotations = _annotation_file(task, image_root)
    if annotations is not None:
        questions = _with_annotated_answers(questions, annotations)
    _refuse_too_few_references(task, questions, image_root)
    return QuestionSet(
        task,
        file,
        file_digest(file),
        annotations,
        rows_in_file,
        tuple(questions),
        {path: file_digest(path) for path in {question.image for question in questions}},
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _annotation_file(task: Task, data_root: Path | None) -> Path | None:
    if task.annotations is None:
        return None
    path = (data_root or Path()) / task.annotations
    return path if path.is_file() else None


def _with_annotated_answers(questions: Sequence[Question], path: Path) -> list[Question]:
    """The questions with the answers that the annotation file lists under their ids."""
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        answers = {
            str(entry["question_id"]): [person["answer"] for person in entry["answers"]] for entry in annotations
        }
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a VQA annotation file ({type(error).__name__}: {error}); it must hold "
            '{"annotations": [{"question_id": …, "answers": [{"answer": …}, …]}, …]}'
        ) from error
    annotated = []
    for question in questions:
        people = answers.get(str(question.question_id))
        if people is None:
            raise ValueError(f"{question.source}: question_id {question.question_id!r} has no answers in {path}")
        if not all(isinstance(person, str) for person in people):
            raise ValueError(f"{path}: the answers of question_id {question.question_id!r} are not all strings")
        annotated.append(replace(question, answers=tuple(people)))
    return annotated


def _refuse_too_few_references(task: Task, questions: Sequence[Question], data_root: Path | None) -> None:
    needed = metric_named(task.metric).minimum_references
    for question in questions:
        if len(question.answers) >= needed:
            continue
        message = (
            f"{question.source}: {task.metric} needs at least {needed} answers, and there are {len(question.answers)}"
        )
        if task.annotations is not None:
            message += f"; the annotation file with all answers belongs at {(data_root or Path()) / task.annotations}"
        raise ValueError(message)
