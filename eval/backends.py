"""Who answers: the protocol of a backend, and the two that need no model.

`oracle` answers with the best reference, `echo` with the question: they run everything but the model, so that a run's
accounting, journal and ceilings can be tried and tested in seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eval.metrics import best_answer
from eval.prompting import PromptForm
from eval.tasks import Task
from monkey.conversation import Conversation, Image, Message, Part, Text
from monkey.data.records import Question
from monkey.prompts import IMAGE_PLACE

STOPPED_AT_END = "end"
STOPPED_AT_LENGTH = "length"


@dataclass(frozen=True)
class Shot:
    """An example that is shown before a question: its image, and its prompt with the answer written after it.

    `text` begins with the image's place.
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
        """The exact prompt, with each image's place as `<img></img>`."""
        return self.conversation.messages[0].text

    @property
    def images(self) -> tuple[Path, ...]:
        """The images in the order of their places; the question's own is the last."""
        return tuple(self.conversation.images)

    @property
    def parts(self) -> list[Path | str]:
        """The prompt as images and texts in their order, for models that know no marks of ours."""
        parts: list[Path | str] = []
        for part in self.conversation.messages[0].parts:
            if isinstance(part, Image):
                parts += [part.source, ""]
            else:
                parts[-1] += part.text
        return parts

    @functools.cached_property
    def conversation(self) -> Conversation:
        """One message: each example behind its image, then the question behind its own.

        Control tokens are the images' places and the marks that the prompt's form holds; what users wrote is inert.
        """
        parts: list[Part] = []
        for shot in self.shots:
            parts += [Image(shot.image), Text(shot.text.removeprefix(IMAGE_PLACE))]
        parts += [Image(self.question.image), *self.form.parts(self.question.question)]
        return Conversation((Message("user", tuple(parts)),))


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
