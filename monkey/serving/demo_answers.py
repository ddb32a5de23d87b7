"""What is behind the demo's page: models being opened, people's images, conversations, and answers as they grow."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

import monkey
from monkey.boxes import located, without_markup
from monkey.checkpoint_card import CheckpointCard, card_of
from monkey.decoding import Decoding
from monkey.images import open_image
from monkey.prompts import is_prompt
from monkey.serving.demo_texts import say

if TYPE_CHECKING:
    from monkey.image_processing import MonkeyImageProcessor
    from monkey.serving.session import Answerer

LONGEST_SHOWN_SIDE = 1200
"""Pixels of the longer side of what the page shows of an image; the model reads the image itself."""

REDUCED_NEW_TOKENS = 128
"""Longest answer where memory did not suffice for all that was asked."""

LOSSLESS_PIXELS = 512 * 512
"""Up to here an image is shown as PNG; larger ones as JPEG."""


@dataclass(frozen=True)
class Choice:
    """A model to be opened.

    Attributes:
        name: what the page calls it.
        images: its image processor, whose limits hold before the model is there.
        open: opens it; takes long.
        card: what it is asked with, and what people should know of it.
    """

    name: str
    images: MonkeyImageProcessor
    open: Callable[[], Answerer]
    card: CheckpointCard = field(default_factory=CheckpointCard)

    @classmethod
    def of(
        cls,
        checkpoint: str | Path,
        device: str,
        grid: tuple[int, int] | None,
        max_rows: int,
        max_windows: int | None = None,
    ) -> Choice:
        """Return the choice of a checkpoint, on its own grid or another; settings as of `monkey.load`.

        Raises:
            FileNotFoundError, ValueError: no such checkpoint, one whose settings and vocabulary cannot be read, or one
                without grids that `max_windows` allows.
        """
        from monkey.processing import MonkeyProcessor
        from monkey.serving.session import load

        images = MonkeyProcessor.from_pretrained(checkpoint, grid=grid).image_processor.limit_windows(max_windows)
        name = Path(checkpoint).resolve().name + (f" {grid[0]}×{grid[1]}" if grid else "")
        card = card_of(checkpoint)
        settings = {"max_rows": max_rows, "name": name, "grid": grid, "max_windows": max_windows}
        return cls(name, images, lambda: load(checkpoint, device, **settings), card)


class Models:
    """One model, or two that answer side by side.

    Attributes:
        answerers: the open models; empty until all of them are there.
        number: of the model that is being opened, from 1.
        error: why they could not be opened.
        max_bytes: of an image file, the smallest limit of the choices.
    """

    def __init__(self, choices: Sequence[Choice]):
        self.choices = tuple(choices)
        self.answerers: tuple[Answerer, ...] = ()
        self.number = 1
        self.error: Exception | None = None
        self.max_bytes = min(choice.images.max_bytes for choice in choices)
        max_pixels = min(choice.images.max_pixels for choice in choices)
        self._opening = {**self.choices[0].images.opening, "max_bytes": self.max_bytes, "max_pixels": max_pixels}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(choice.name for choice in self.choices)

    @property
    def card(self) -> CheckpointCard:
        """Of the first model: what is asked and how, unless somebody changes it."""
        return self.choices[0].card

    @property
    def is_opening(self) -> bool:
        return not self.answerers and self.error is None

    def open(self) -> None:
        """Open one model after the other; raises what the first that fails raises, and keeps it in `error`."""
        opened: list[Answerer] = []
        try:
            for choice in self.choices:
                self.number = len(opened) + 1
                opened.append(choice.open())
        except Exception as error:  # of whatever kind, whoever waits has to be told
            for answerer in opened:
                answerer.close()
            self.error = error
            raise
        self.answerers = tuple(opened)

    def close(self) -> None:
        for answerer in self.answerers:
            answerer.close()

    def facts(self) -> list[dict[str, Any]]:
        """Return for programs what the open models are."""
        told = []
        for name, answerer in zip(self.names, self.answerers, strict=False):
            config, device = answerer.model.config, str(answerer.model.device)
            sizes = {"canvas": list(config.canvas_size), "image_tokens": config.image_tokens}
            shapes = {"grids": [list(grid) for grid in config.allowed_grids]} if config.is_ragged else {}
            told.append({"name": name, "grid": list(config.grid), **shapes, **sizes, "device": device})
        return told

    def open_image(self, content: bytes, name: str) -> Image.Image:
        """Return an uploaded image, upright and RGB, under the limits of every model; errors as of `open_image`."""
        return open_image(content, **self._opening, name=name)


@dataclass(frozen=True)
class KeptImage:
    """An uploaded image: its bytes as they came, and what the page shows of it.

    Attributes:
        name: what its owner calls it.
        size: width and height of the upright image.
    """

    name: str
    file: Path
    shown: Path
    size: tuple[int, int]


@dataclass
class _Owner:
    """Whose images they are; every file's name begins with the token, which nobody can guess."""

    token: str = field(default_factory=lambda: secrets.token_hex(12))
    numbers: Iterator[int] = field(default_factory=itertools.count)
    images: dict[str, KeptImage] = field(default_factory=dict)
    """By the file name of what is shown."""
    uploads: dict[Path, int] = field(default_factory=dict)
    """Where they were uploaded, and when: gradio puts equal files of all people into one place."""


class FileSet(set[str]):
    """A set that may grow while somebody walks it, as gradio does in a thread of its own to delete what is old."""

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().__iter__()))


class ImageStore:
    """Keeps each person's images apart from the others', until the person is forgotten.

    gradio copies files before it shows them and keeps their names, so that the copies are found by the token, too.

    Attributes:
        files: all that was written, for gradio to delete by age.
    """

    def __init__(self, folder: Path):
        self._folder, self._own = folder, folder / "images"
        self._owners: dict[str, _Owner] = {}
        self.files = FileSet()

    def take(self, person: str, upload: Path, name: str, opened: Callable[[bytes, str], Image.Image]) -> KeptImage:
        """Keep an uploaded file for a person. The upload stays as long, since the page may still be fetching it.

        Args:
            opened: opens the file's bytes, of which errors say `name`.

        Raises:
            FileNotFoundError: the file is not there any more.
            ValueError: whatever `opened` finds wrong.
        """
        self._owners.setdefault(person, _Owner()).uploads[upload] = upload.stat().st_mtime_ns
        return self.add(person, upload.read_bytes(), name, opened)

    def add(self, person: str, content: bytes, name: str, opened: Callable[[bytes, str], Image.Image]) -> KeptImage:
        """Keep an image for a person, given its file's bytes; the rest as of `take`."""
        owner = self._owners.setdefault(person, _Owner())
        image = opened(content, name)
        file = self._write(person, "original", lambda path: path.write_bytes(content))
        kept = KeptImage(name, file, self.draw(person, image), image.size)
        owner.images[kept.shown.name] = kept
        return kept

    def draw(self, person: str, image: Image.Image) -> Path:
        """Write a file that the page can show, of an image made for a person.

        Raises:
            FileNotFoundError: the person has been forgotten since they gave their images.
        """
        is_small = image.width * image.height <= LOSSLESS_PIXELS
        if max(image.size) > LONGEST_SHOWN_SIDE:
            image = image.copy()
            image.thumbnail((LONGEST_SHOWN_SIDE, LONGEST_SHOWN_SIDE))
        ending, settings = ("png", {}) if is_small else ("jpg", {"quality": 88})
        return self._write(person, ending, lambda path: image.save(path, **settings))

    def find(self, person: str, path: str) -> KeptImage | None:
        """Return a person's own image by what the page calls it; nobody else's, and no other file."""
        owner = self._owners.get(person)
        return owner.images.get(Path(path).name) if owner else None

    def forget(self, person: str) -> None:
        """Delete everything of a person, but an upload that somebody else has put into the place of an equal one."""
        owner = self._owners.pop(person, None)
        if owner is not None:
            for upload, time in owner.uploads.items():
                with suppress(FileNotFoundError):
                    if upload.stat().st_mtime_ns == time:
                        upload.unlink()
            for path in self._folder.rglob(f"{owner.token}*"):
                path.unlink(missing_ok=True)
            self.files.difference_update({name for name in self.files if owner.token in name})

    def _write(self, person: str, ending: str, write: Callable[[Path], Any]) -> Path:
        owner = self._owners.get(person)
        if owner is not None:
            self._own.mkdir(parents=True, exist_ok=True)
            path = self._own / f"{owner.token}-{next(owner.numbers)}.{ending}"
            write(path)
            self.files.add(str(path))
            if self._owners.get(person) is owner:
                return path
            path.unlink(missing_ok=True)  # forgotten meanwhile
            self.files.discard(str(path))
        raise FileNotFoundError("the images were deleted")


@dataclass
class Answer:
    """What one model has said, so far or in the end.

    Attributes:
        text: as the model wrote it, with the markup of boxes.
        is_finished: nothing will be added.
        is_stopped: somebody stopped it before its end.
        fault: why it came to no end.
        is_reduced: the memory sufficed for the question by itself alone, and a short answer.
        drawn: a file of the last image with the answer's boxes on it.
        prompt_tokens, new_tokens: of the whole prompt with its images, and of the answer.
        confidence: see `monkey.reply`.
    """

    text: str = ""
    is_finished: bool = False
    is_stopped: bool = False
    fault: BaseException | None = None
    is_reduced: bool = False
    drawn: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    confidence: float | None = None


@dataclass
class Exchange:
    """A question, or a wish for a description, and what came of it: one answer from each model."""

    asked: str
    images: tuple[KeptImage, ...]
    decoding: Decoding
    is_description: bool
    answers: list[Answer]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was answered."""
        return not any(answer.text for answer in self.answers)


def last_images(conversation: Sequence[Exchange]) -> tuple[KeptImage, ...]:
    """Return the images that were shown last; none where there are none at all."""
    return next((exchange.images for exchange in reversed(conversation) if exchange.images), ())


def messages_for(conversation: Sequence[Exchange], place: int, form: str) -> list[dict[str, Any]]:
    """Return what `Answerer.chat` takes to answer the last question, with the answers that this model gave before.

    Args:
        place: of the model among those that answer.
        form: how its chats are written, see `monkey.conversation`.
    """
    messages: list[dict[str, Any]] = []
    for exchange in conversation:
        parts: list[dict[str, Any]] = [{"type": "image", "image": image.file} for image in exchange.images]
        # As training wrote it: prompts that stand for themselves have a space before and behind.
        stands_alone = form in ("questions", "plain") and is_prompt(exchange.asked)
        parts.append({"type": "text", "text": f" {exchange.asked} " if stands_alone else exchange.asked})
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": exchange.answers[place].text})
    return messages[:-1]


FAULTS = {
    FileNotFoundError: "gone_image",
    TimeoutError: "timed_out",
    MemoryError: "out_of_memory",
    CancelledError: "closed",
    ValueError: "refused",
}
"""What a model may raise, and the text that says so. All else is a fault of ours and is shown as gradio shows those."""


def grow_answers(answerers: Sequence[Answerer], conversation: Sequence[Exchange]) -> Iterator[None]:
    """Let the models answer the last question side by side; each step adds what each of them has written."""
    voices = [_speak(answerer, place, conversation) for place, answerer in enumerate(answerers)]
    try:
        while voices:
            voices = [voice for voice in voices if next(voice, voice) is None]
            yield
    finally:
        for voice in voices:
            voice.close()


def _speak(answerer: Answerer, place: int, conversation: Sequence[Exchange]) -> Iterator[None]:
    """Answer the last question; where the memory does not suffice, once more by itself and shorter."""
    last, answer = conversation[-1], conversation[-1].answers[place]
    try:
        try:
            yield from _write(answerer, place, conversation)
        except MemoryError:
            answer.text, answer.is_reduced = "", True
            shorter = replace(last.decoding, max_new_tokens=min(last.decoding.max_new_tokens, REDUCED_NEW_TOKENS))
            yield from _write(answerer, place, [replace(last, images=last_images(conversation), decoding=shorter)])
    except tuple(FAULTS) as error:
        answer.fault = error
    answer.is_finished = True


def _write(answerer: Answerer, place: int, conversation: Sequence[Exchange]) -> Iterator[None]:
    answer, messages = conversation[-1].answers[place], messages_for(conversation, place, answerer.form)
    with closing(answerer.chat(messages, conversation[-1].decoding)) as reply:
        for piece in reply:
            answer.text += piece
            yield
        answer.prompt_tokens, answer.new_tokens = reply.prompt_tokens, reply.new_tokens
        answer.confidence = reply.confidence


def as_json(conversation: Sequence[Exchange], models: Sequence[dict[str, Any]]) -> str:
    """Return everything that was asked and answered, with boxes in pixels of the upright image.

    Args:
        models: what is told of each model, see `Models.facts`.
    """
    time = datetime.now(UTC).isoformat(timespec="seconds")
    names = [model["name"] for model in models]
    exchanges = [_record(conversation[: end + 1], names) for end in range(len(conversation))]
    content = {"monkey": monkey.__version__, "time": time, "models": list(models), "exchanges": exchanges}
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def _record(conversation: Sequence[Exchange], names: Sequence[str]) -> dict[str, Any]:
    """Return the last exchange for programs."""
    exchange, images = conversation[-1], last_images(conversation)
    answers = []
    for name, answer in zip(names, exchange.answers, strict=True):
        fields = ("text", "is_stopped", "prompt_tokens", "new_tokens", "confidence")
        boxes = [(box.label, box.in_pixels(images[-1].size)) for box in located(answer.text)] if images else []
        told = [{"label": label, "pixels": [round(side) for side in pixels]} for label, pixels in boxes]
        answers.append({"model": name, **{field: getattr(answer, field) for field in fields}, "boxes": told})
    return {
        "question": exchange.asked,
        "is_description": exchange.is_description,
        "pictures": [{"name": one.name, "width": one.size[0], "height": one.size[1]} for one in exchange.images],
        "decoding": {
            name: getattr(exchange.decoding, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")
        },
        "answers": answers,
    }


def as_markdown(conversation: Sequence[Exchange], names: Sequence[str], language: str) -> str:
    """Return the conversation for reading; what people and models wrote is quoted, where it cannot be a heading."""
    lines = [f"# Monkey: {', '.join(names)}"]
    for exchange in conversation:
        for image in exchange.images:
            lines.append(f"*{say(language, 'image')}: {' '.join(image.name.split())}, {image.size[0]}×{image.size[1]}*")
        lines.append(f"**{say(language, 'question')}**\n\n{_quote(exchange.asked)}")
        for name, answer in zip(names, exchange.answers, strict=True):
            title = say(language, "answer") + (f" ({' '.join(name.split())})" if len(names) > 1 else "")
            stopped = f" {say(language, 'stopped')}" if answer.is_stopped else ""
            lines.append(f"**{title}**\n\n{_quote(without_markup(answer.text) + stopped)}")
    return "\n\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in (text or "…").splitlines())
