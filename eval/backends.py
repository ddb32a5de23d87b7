"""Who answers: the protocol of a backend, and the two that need no model.

`oracle` answers with the best reference, `echo` with the question: they run everything but the model, so that a run's
accounting, journal and ceilings can be tried and tested in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eval.metrics import best_answer
from eval.prompting import PromptForm
from eval.tasks import Task
from monkey.data.records import Question
from monkey.prompts import IMAGE_PLACE

STOPPED_AT_END = "end"
STOPPED_AT_LENGTH = "length"


@dataclass(frozen=True)
class Shot:
    """An example that is shown before a question: its picture, and its prompt with the answer written after it.

    `text` begins with the picture's place.
    """

    image: Path
    text: str


@dataclass(frozen=True)
class Request:
    """One question to be answered: a row of a task with the form of its prompt, and examples to show before it."""

    task: Task
    question: Question
    form: PromptForm
    shots: tuple[Shot, ...] = ()

    @property
    def row(self) -> int:
        return self.question.row

    @property
    def prompt(self) -> str:
        """The exact prompt, with each picture's place as `<img></img>`."""
        return "".join(shot.text for shot in self.shots) + self.form.ask(self.question.question)

    @property
    def images(self) -> tuple[Path, ...]:
        """The pictures in the order of their places; the question's own is the last."""
        return (*(shot.image for shot in self.shots), self.question.image)

    @property
    def parts(self) -> list[Path | str]:
        """The prompt as pictures and texts in their order. The texts are inert: no character in them is a control."""
        texts = (*(shot.text for shot in self.shots), self.form.ask(self.question.question))
        parts: list[Path | str] = []
        for image, text in zip(self.images, texts, strict=True):
            parts += [image, text.removeprefix(IMAGE_PLACE)]
        return parts

    @property
    def segments(self) -> list[tuple[str, bool]]:
        """The prompt in texts and whether each is a control: a picture's place, or a mark of the prompt's own form."""
        segments = []
        for shot in self.shots:
            segments += [(IMAGE_PLACE, True), (shot.text.removeprefix(IMAGE_PLACE), False)]
        return [*segments, (IMAGE_PLACE, True), *self.form.segments(self.question.question)]


@dataclass(frozen=True)
class Answer:
    """What a backend answered to a row.

    `raw` is the text as generated, `tokens` its length without the end-of-text token, `stop` why it ended: 'end' or
    'length'.
    """

    row: int
    raw: str
    tokens: int
    stop: str


@dataclass(frozen=True)
class Failure:
    """A row that could not be asked, and why, in a sentence."""

    row: int
    reason: str


class Backend(Protocol):
    """What a run needs of whoever answers.

    `settings` is everything but prompt and model that an answer depends on; it is recorded and is part of an answer's
    key. `fingerprint` stands for the model's bytes. `device` is recorded only; None without a model.

    A backend may have `work`, figures that only grow (`vision_seconds`, `prefill_tokens`, …): a run records by how
    much they grew, and those named `peak_…` as they are. One that reads answers from a file may have
    `foreign_answers(questions)`: the ids there that no question of a set has.

    `torch.OutOfMemoryError` from `generate_answers` makes a run go on with smaller batches.
    """

    name: str
    settings: dict[str, Any]
    fingerprint: str
    device: str | None

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterable[Any]:
        """The requests in batches, each prepared as far as it can be ahead of its turn."""
        ...

    def generate_answers(self, batch: Any) -> list[Answer | Failure]:
        """An answer or a failure for every request of a batch."""
        ...


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """By how much each figure of a backend's `work` grew; a peak stays as it is."""
    return {name: value if name.startswith("peak_") else value - before.get(name, 0) for name, value in after.items()}


def in_batches(requests: Sequence[Request], batch_size: int) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), batch_size):
        yield requests[start : start + batch_size]


class OracleBackend:
    """Answers with the reference that scores best under the task's headline variant."""

    name = "oracle"
    fingerprint = "oracle"
    device = None

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterable[Sequence[Request]]:
        return in_batches(requests, batch_size)

    def generate_answers(self, batch: Sequence[Request]) -> list[Answer | Failure]:
        return [self._answer(request) for request in batch]

    def _answer(self, request: Request) -> Answer:
        text, _ = best_answer(request.task.metric, request.task.headline, request.question.answers)
        return Answer(request.row, text, len(text.split()), STOPPED_AT_END)


class EchoBackend(OracleBackend):
    """Answers with the question."""

    name = "echo"
    fingerprint = "echo"

    def _answer(self, request: Request) -> Answer:
        text = request.question.question
        return Answer(request.row, text, len(text.split()), STOPPED_AT_END)
