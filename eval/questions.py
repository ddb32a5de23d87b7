"""The questions of a task: its jsonl file, and the ten answers of a VQA annotation file where there is one.

What a user can have wrong in the data shows here, before a model is opened and before a file is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.corpus_scores import needs_whole_set
from eval.metrics import metric_named
from eval.metrics.corpus import Item
from eval.parts import check_parts
from eval.tasks import Task
from monkey.data.fields import EMPTY_ANSWER, RowFault
from monkey.data.indexed_rows import read_rows
from monkey.data.picture_paths import PicturePaths
from monkey.data.records import Question, read_question

_HASH_BLOCK = 1 << 20
_HASHING_THREADS = 4

ROOT_NAME = "--data-root"


@dataclass(frozen=True)
class Selection:
    """Which questions of a file are asked: the first `limit`, `sample` drawn by whole images, or those of an id file.

    At most one of them is given; none takes all.
    """

    limit: int | None = None
    sample: int | None = None
    ids: Path | None = None
    seed: int = 3407

    def __post_init__(self) -> None:
        given = [flag for flag in ("limit", "sample", "ids") if getattr(self, flag) is not None]
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} both choose questions; give one of them")

    def of(self, questions: Sequence[Question], file: Path) -> list[Question]:
        """The chosen questions in the order of the file.

        Raises ValueError for a sample larger than the file, and for an id that no question has.
        """
        if self.sample is not None:
            return _drawn_by_image(questions, self.sample, self.seed, file)
        if self.ids is not None:
            return _listed(questions, self.ids, file)
        return list(questions[: self.limit])


@dataclass(frozen=True)
class QuestionSet:
    """What is asked of a model for one task.

    `rows_in_file` counts the whole file and `ids_in_file` has its ids as texts; `questions` may be fewer under a
    selection. `image_digests` has the SHA-256 of every image file by its path; it is empty where it was not asked for.
    `missing_images` are the paths that no file has, with a sentence each, where missing ones are allowed.
    `population` are the references of every row of the file, for metrics that weigh by the whole set; else empty.
    """

    task: Task
    file: Path
    file_sha256: str
    annotations: Path | None
    rows_in_file: int
    questions: tuple[Question, ...]
    image_digests: dict[Path, str]
    ids_in_file: frozenset[str] = frozenset()
    missing_images: dict[Path, str] = field(default_factory=dict)
    population: tuple[tuple[str, ...], ...] = ()


def question_file(task: Task, data_root: Path | None = None) -> Path:
    """The file of a task's questions, or FileNotFoundError."""
    file = Path(task.file) if task.own_file else (data_root or Path()) / task.file
    if not file.is_file():
        hint = "" if task.own_file else f"; {ROOT_NAME} is the folder its path starts from"
        raise FileNotFoundError(f"task {task.name}: {file} is missing{hint}")
    return file


def load_question_set(
    task: Task,
    data_root: Path | None = None,
    limit: int | None = None,
    selection: Selection | None = None,
    allow_missing: bool = False,
    digests: bool = True,
) -> QuestionSet:
    """Read and check the questions of a task; `limit` is short for a selection of the first ones.

    A row's files lie under `data_root` (default: the current folder). Images of a user's own file are looked up in
    `data_root` when it is given, else beside the file and then in the current folder. A question whose only reference
    is empty is kept, as the published sets have some; another model's answers to it were scored too.

    Args:
        allow_missing: keep questions whose image file is missing.
        digests: hash the images.

    Raises:
        FileNotFoundError: the question file or an image is missing.
        ValueError: a question that `read_question` refuses, an id given twice, a question without answers in the
            annotation file, or with too few references for the metric; file and line are named.
    """
    file = question_file(task, data_root)
    image_root = data_root if task.own_file else data_root or Path()
    questions, missing = read_asked(file, image_root, allow_missing)
    rows_in_file, ids = len(questions), frozenset(str(question.question_id) for question in questions)
    population = tuple(question.answers for question in questions) if needs_whole_set(task.metric) else ()
    questions = (selection or Selection(limit)).of(questions, file)
    annotations = _annotation_file(task, image_root)
    if annotations is not None:
        questions = _with_annotated_answers(questions, annotations, task.parts)
    _refuse_too_few_references(task, questions, image_root)
    check_parts(task.metric, task.parts, [_item(question) for question in questions], str(file))
    images = {question.image for question in questions}
    return QuestionSet(
        task,
        file,
        file_digest(file),
        annotations,
        rows_in_file,
        tuple(questions),
        image_digests(images - missing.keys()) if digests else {},
        ids,
        {path: missing[path] for path in sorted(images & missing.keys())},
        population,
    )


def read_asked(
    file: Path, image_root: Path | None, allow_missing: bool = False
) -> tuple[list[Question], dict[Path, str]]:
    """The questions of a file, with ids that occur once, and the image paths that no file has.

    Differs from `monkey.data.records.read_questions` in what it lets pass: a lone empty reference and, if allowed,
    missing images.
    """
    pictures = _Pictures(file, image_root, allow_missing)
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for row, (source, fields) in enumerate(read_rows(file)):
        question = _question(row, fields, source, pictures)
        # Result files key answers by the id's text, where 7 and "7" are one.
        key = str(question.question_id)
        if key in seen:
            raise ValueError(
                f"{source}: question_id {question.question_id!r} was given before, at {seen[key]}; ids must differ"
            )
        seen[key] = source
        questions.append(question)
    return questions, pictures.missing


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def image_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file, by its path."""
    ordered = sorted(paths)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return dict(zip(ordered, pool.map(file_digest, ordered), strict=True))


class _Pictures(PicturePaths):
    """Paths that may name no file, if allowed; `missing` has a sentence on each."""

    def __init__(self, records: Path, image_root: Path | None, allow_missing: bool):
        super().__init__(records, image_root, ROOT_NAME)
        self._allow_missing = allow_missing
        self._expected = records.parent if image_root is None else image_root
        self.missing: dict[Path, str] = {}

    def find(self, path: str, where: str) -> Path:
        try:
            return super().find(path, where)
        except FileNotFoundError as error:
            if not self._allow_missing:
                raise FileNotFoundError(f"{error}; --allow-missing goes on without it") from error
            place = self._expected / path
            self.missing.setdefault(place, str(error))
            return place


def _question(row: int, fields: Any, source: str, pictures: PicturePaths) -> Question:
    try:
        return read_question(row, fields, source, pictures)
    except RowFault as fault:
        # An empty list is no reference at all.
        if fault.kind != EMPTY_ANSWER or not (fields["answer"] == "" or fields["answer"]):
            raise
        answer = fields["answer"]
        question = read_question(row, {**fields, "answer": "-"}, source, pictures)
        return replace(question, answers=(answer,) if isinstance(answer, str) else tuple(answer))


def _drawn_by_image(questions: Sequence[Question], number: int, seed: int, file: Path) -> list[Question]:
    """Questions of images in a drawn order, until there are enough; of the last image the first ones.

    The draw is by hashes of the ids, so that neither the machine nor Python's generator changes it.
    """
    if number > len(questions):
        raise ValueError(f"--sample {number}: {file} has {len(questions)} questions")
    by_image: dict[Path, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    drawn = sorted(by_image.values(), key=lambda own: hashlib.sha256(f"{seed} {own[0].question_id}".encode()).digest())
    chosen = [question for own in drawn for question in own][:number]
    return sorted(chosen, key=lambda question: question.row)


def _listed(questions: Sequence[Question], ids: Path, file: Path) -> list[Question]:
    """The questions whose ids stand in a text file, one a line."""
    if not ids.is_file():
        raise FileNotFoundError(f"--ids {ids}: no such file; it holds question ids, one a line")
    by_id = {str(question.question_id): question for question in questions}
    chosen: dict[int, Question] = {}
    for number, line in enumerate(ids.read_text(encoding="utf-8").splitlines(), start=1):
        if not (name := line.strip()):
            continue
        if name not in by_id:
            raise ValueError(f"{ids}:{number}: no question of {file} has the id {name!r}")
        chosen[by_id[name].row] = by_id[name]
    if not chosen:
        raise ValueError(f"--ids {ids} holds no id; write one a line")
    return [chosen[row] for row in sorted(chosen)]


def _annotation_file(task: Task, data_root: Path | None) -> Path | None:
    if task.annotations is None:
        return None
    path = (data_root or Path()) / task.annotations
    return path if path.is_file() else None


def _with_annotated_answers(questions: Sequence[Question], path: Path, keys: Sequence[str]) -> list[Question]:
    """The questions with the answers, and what else stands under these keys, of the annotation file by their ids."""
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        answers = {
            str(entry["question_id"]): [person["answer"] for person in entry["answers"]] for entry in annotations
        }
        more = {str(entry["question_id"]): {key: entry[key] for key in keys if key in entry} for entry in annotations}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, RecursionError, TypeError) as error:
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
        beside = {**question.more, **more[str(question.question_id)]}
        annotated.append(replace(question, answers=tuple(people), more=beside))
    return annotated


def _item(question: Question) -> Item:
    return Item("", question.answers, str(question.image), question.question, question.more)


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
