"""The questions of a task and the examples shown before them.

A task has a file of questions, and where there is a VQA annotation file its ten answers per question. What a user can
have wrong in the data shows here, before a model is opened and before a file is written.

Examples (few-shot) come from a training file. Which ones a question gets depends on the seed and the question's id
alone; how they are shown, `eval.backends.Request` says.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.backends import Shot
from eval.metrics import metric_named
from eval.metrics.corpus import Item
from eval.score import check_parts, needs_whole_set
from eval.stored_questions import holds_stored_questions, stored_question_file
from eval.tasks import Task
from monkey.data.records import Question, read_questions
from monkey.data.rows import MissingImage
from monkey.data.shards import is_on_hub
from monkey.provenance import file_digest

_HASHING_THREADS = 4

ROOT_NAME = "--data-root"


def image_root_of(task: Task, data_root: Path | None) -> Path | None:
    """Return where a task's images are looked up; None for beside its file and then in the current folder."""
    if holds_stored_questions(task.file):
        return None
    return data_root if task.own_file else data_root or Path()


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
            return _draw_by_image(questions, self.sample, self.seed, file)
        if self.ids is not None:
            return _take_listed(questions, self.ids, file)
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
    """The file of a task's questions, made of what `--dataset` names on the hub or in tables; or FileNotFoundError."""
    if holds_stored_questions(task.file):
        is_whole = task.own_file or is_on_hub(task.file)
        return stored_question_file(task.file if is_whole else str((data_root or Path()) / task.file))
    file = Path(task.file) if task.own_file else (data_root or Path()) / task.file
    if not file.is_file():
        hint = "" if task.own_file else f"; {ROOT_NAME} is the folder its path starts from"
        raise FileNotFoundError(f"task {task.name}: {file} is missing{hint}")
    return file


def load_question_set(
    task: Task,
    data_root: Path | None = None,
    selection: Selection | None = None,
    allow_missing: bool = False,
    digests: bool = True,
) -> QuestionSet:
    """Read and check the questions of a task.

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
    image_root = image_root_of(task, data_root)
    questions, missing = read_asked(file, image_root, allow_missing)
    rows_in_file, ids = len(questions), frozenset(str(question.question_id) for question in questions)
    population = tuple(question.answers for question in questions) if needs_whole_set(task.metric) else ()
    questions = (selection or Selection()).of(questions, file)
    annotations = None if task.annotations is None else (image_root or Path()) / task.annotations
    if annotations is not None and not annotations.is_file():
        annotations = None
    if annotations is not None:
        questions = _with_annotated_answers(questions, annotations, task.parts)
    _refuse_unscorable(task, questions, image_root)
    items = list(map(unanswered_item, questions))
    check_parts(task.metric, task.parts, items, str(file))
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
    """The questions of a file, with ids that occur once, and a sentence on each image path that no file has.

    What it lets pass: references without a text, as the published sets have some, and, if allowed, missing images.
    """
    missing: dict[Path, str] = {}
    try:
        kept = missing if allow_missing else None
        return read_questions(file, image_root, ROOT_NAME, accept_blank=True, missing=kept), missing
    except MissingImage as error:
        raise FileNotFoundError(f"{error}; --allow-missing goes on without it") from error


def image_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file, by its path."""
    ordered = sorted(paths)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return dict(zip(ordered, pool.map(file_digest, ordered), strict=True))


def _draw_by_image(questions: Sequence[Question], number: int, seed: int, file: Path) -> list[Question]:
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


def _take_listed(questions: Sequence[Question], ids: Path, file: Path) -> list[Question]:
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


def read_annotations(path: Path) -> list[tuple[str, list[Any], Mapping[str, Any]]]:
    """Question id, answers, and all that stands beside them, of each question of a VQA annotation file.

    Raises ValueError where it is none.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        return [(str(entry["question_id"]), [one["answer"] for one in entry["answers"]], entry) for entry in entries]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(
            f"{path} is not a VQA annotation file ({type(error).__name__}: {error}); it must hold "
            '{"annotations": [{"question_id": …, "answers": [{"answer": …}, …]}, …]}'
        ) from error


def _with_annotated_answers(questions: Sequence[Question], path: Path, keys: Sequence[str]) -> list[Question]:
    """The questions with the answers, and what else stands under these keys, of the annotation file by their ids."""
    annotations = {question_id: (people, entry) for question_id, people, entry in read_annotations(path)}
    annotated = []
    for question in questions:
        people, entry = annotations.get(str(question.question_id), (None, {}))
        if people is None:
            raise ValueError(f"{question.source}: question_id {question.question_id!r} has no answers in {path}")
        if not all(isinstance(person, str) for person in people):
            raise ValueError(f"{path}: the answers of question_id {question.question_id!r} are not all strings")
        more = question.more | {key: entry[key] for key in keys if key in entry}
        annotated.append(replace(question, answers=tuple(people), more=more))
    return annotated


def unanswered_item(question: Question) -> Item:
    """A question as a metric sees it before there is an answer."""
    unit = str(question.more.get("document", question.image))
    return Item("", question.answers, unit, question.question, question.more)


def _refuse_unscorable(task: Task, questions: Sequence[Question], data_root: Path | None) -> None:
    for question in questions:
        if sentence := find_too_few_references(task.metric, question):
            if task.annotations is not None:
                place = (data_root or Path()) / task.annotations
                sentence += f"; the annotation file with all answers belongs at {place}"
            raise ValueError(sentence)
        if sentence := find_metric_fault(task.metric, question):
            raise ValueError(sentence)


def find_too_few_references(metric: str, question: Question) -> str | None:
    """A sentence where no answer could reach a score of 1; None where one can."""
    needed, there = metric_named(metric).minimum_references, len(question.answers)
    if there >= needed:
        return None
    return f"{question.source}: {metric} needs at least {needed} answers, and there are {there}"


def find_metric_fault(metric: str, question: Question) -> str | None:
    """A sentence where a question lacks what the metric reads of it; None where it has it."""
    fault = metric_named(metric).find_fault(unanswered_item(question)) if question.answers else None
    return None if fault is None else f"{question.source}: {metric} cannot score this row: {fault}"


# Examples


@dataclass(frozen=True)
class FewShot:
    """What `--few-shot NUMBER --train FILE --seed SEED` asks for."""

    number: int
    train: Path
    seed: int


@dataclass(frozen=True)
class Examples:
    """The rows of a training file that may be shown, `number` before each question."""

    file: Path
    file_sha256: str
    number: int
    seed: int
    rows: tuple[Question, ...]
    digests: dict[Path, str] = field(default_factory=dict)
    """SHA-256 of the images that were looked at so far."""

    def choose(self, question: Question, image_digest: str | None) -> list[int]:
        """Places in `rows` of a question's examples: drawn by hashes, none twice, none with the question's own image.

        Raises ValueError when the file has too few.
        """
        chosen: list[int] = []
        for index in _draws(self.seed, question.question_id, len(self.rows)):
            if index in chosen or self.digest(self.rows[index].image) == image_digest:
                continue
            chosen.append(index)
            if len(chosen) == self.number:
                return chosen
        raise ValueError(
            f"--few-shot {self.number}: {self.file} has only {len(chosen)} rows with an answer and another image than "
            f"{question.source}"
        )

    def shots(self, chosen: Sequence[int]) -> tuple[Shot, ...]:
        """Return the examples at these places, each with the answer that most people gave."""
        rows = [self.rows[index] for index in chosen]
        answers = [Counter(answer.strip() for answer in row.answers if answer.strip()) for row in rows]
        return tuple(
            Shot(row.image, row.question, own.most_common(1)[0][0]) for row, own in zip(rows, answers, strict=True)
        )

    def digest(self, image: Path) -> str:
        if image not in self.digests:
            self.digests[image] = file_digest(image)
        return self.digests[image]

    def record(self) -> dict[str, Any]:
        """What results say of them."""
        return {"examples": self.number, "file": str(self.file), "sha256": self.file_sha256, "seed": self.seed}


def load_examples(wanted: FewShot, question_set: QuestionSet, data_root: Path | None) -> Examples:
    """The examples of a training file for a task's questions; rows without an answer are left out.

    Images are looked up in `data_root` when it is given, else beside the file and then in the current folder.

    Raises:
        FileNotFoundError: the file or an image is missing.
        ValueError: the file is the test file, holds one of its questions with its image, or has fewer rows with an
            answer than are to be shown.
    """
    train = wanted.train
    if not train.is_file():
        raise FileNotFoundError(f"--train {train}: no such file")
    digest = file_digest(train)
    if digest == question_set.file_sha256:
        raise ValueError(
            f"--train {train} has the same content as {question_set.file}, whose questions are asked; give a training "
            "file"
        )
    rows, _ = read_asked(train, data_root)
    answered = tuple(row for row in rows if any(answer.strip() for answer in row.answers))
    if len(answered) < wanted.number:
        raise ValueError(f"--few-shot {wanted.number}: {train} has only {len(answered)} rows with an answer")
    examples = Examples(train, digest, wanted.number, wanted.seed, answered)
    _refuse_leaks(examples, question_set)
    return examples


def _refuse_leaks(examples: Examples, question_set: QuestionSet) -> None:
    asked: dict[str, list[Question]] = {}
    for question in question_set.questions:
        asked.setdefault(question.question, []).append(question)
    for row in examples.rows:
        for question in asked.get(row.question, ()):
            if question_set.image_digests.get(question.image) == examples.digest(row.image):
                raise ValueError(
                    f"--train: {row.source} is the question of {question.source} on the same image; take it out"
                )


def _draws(seed: int, question_id: int | str, count: int) -> Iterator[int]:
    """Every index below `count` at least once: first at random, with repetitions, at last in order."""
    for number in range(8 * count):
        digest = hashlib.sha256(f"{seed} {question_id} {number}".encode()).digest()
        yield int.from_bytes(digest[:8], "big") % count
    yield from range(count)
