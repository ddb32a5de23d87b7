"""Few-shot: examples from a training file, shown before each question.

As in the published evaluator an example is the prompt with its answer after a blank, and examples and question follow
each other without anything between. Which ones a question gets depends on the seed and the question's id alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.backends import Shot
from eval.prompting import PromptForm
from eval.questions import QuestionSet, file_digest, read_asked
from monkey.data.records import Question


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

    def shots(self, chosen: Sequence[int], form: PromptForm) -> tuple[Shot, ...]:
        return tuple(Shot(self.rows[index].image, shown(self.rows[index], form)) for index in chosen)

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


def shown(row: Question, form: PromptForm) -> str:
    """An example as it stands in the prompt: asked, and answered with the answer most people gave."""
    asked = form.ask(row.question)
    answers = Counter(answer.strip() for answer in row.answers if answer.strip())
    blank = "" if asked[-1:].isspace() else " "
    return f"{asked}{blank}{answers.most_common(1)[0][0]}"


def _draws(seed: int, question_id: int | str, count: int) -> Iterator[int]:
    """Every index below `count` at least once: first at random, with repetitions, at last in order."""
    for number in range(8 * count):
        digest = hashlib.sha256(f"{seed} {question_id} {number}".encode()).digest()
        yield int.from_bytes(digest[:8], "big") % count
    yield from range(count)
