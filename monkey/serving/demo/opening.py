"""Models that are opened while the page is up already, and what is known of them until they are there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from transformers.utils import logging

from monkey.checkpoint_card import CheckpointCard
from monkey.images import open_image

if TYPE_CHECKING:
    from monkey.image_processing import MonkeyImageProcessor
    from monkey.serving.session import Answerer


ENDING_SECONDS = 5.0
"""Wait for a model that is being opened when the demo ends; the program's end takes care of the rest."""


@dataclass(frozen=True)
class Choice:
    """A model to be opened.

    Attributes:
        name: what the page calls it.
        pictures: its image processor, whose limits hold before the model is there.
        open: opens it; takes long.
        card: what it is asked with, and what people should know of it.
    """

    name: str
    pictures: MonkeyImageProcessor
    open: Callable[[], Answerer]
    card: CheckpointCard = field(default_factory=CheckpointCard)


@dataclass(frozen=True)
class Progress:
    """How far opening has come: which model, the how manieth, and which share of its weights is there."""

    name: str
    number: int
    of: int
    share: float


class Models:
    """One model, or two that answer side by side; they are opened one after the other in a thread.

    Args:
        choices: what to open.
        max_bytes, max_pixels: of a picture; by default the smallest that the choices say.

    Attributes:
        answerers: the open models; empty until all of them are there.
        error: why they could not be opened.
    """

    def __init__(self, choices: Sequence[Choice]):
        self.choices = tuple(choices)
        self.answerers: tuple[Answerer, ...] = ()
        self.error: Exception | None = None
        self.progress = Progress(self.choices[0].name, 1, len(self.choices), 0.0)
        self.max_bytes = min(choice.pictures.max_bytes for choice in choices)
        self.max_pixels = min(choice.pictures.max_pixels for choice in choices)
        limits = {"max_bytes": self.max_bytes, "max_pixels": self.max_pixels}
        self._opening = {**self.choices[0].pictures.opening, **limits}
        self._is_closing = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._open, name="opening", daemon=True)

    def __enter__(self) -> Models:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_closing = True
        self._thread.join(ENDING_SECONDS)
        for answerer in self.answerers:
            answerer.close()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(choice.name for choice in self.choices)

    @property
    def card(self) -> CheckpointCard:
        """Of the first model: what questions and descriptions are asked with unless somebody changes it."""
        return self.choices[0].card

    @property
    def is_open(self) -> bool:
        return bool(self.answerers)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until opening has come to an end, good or bad; whether it has."""
        return self._over.wait(seconds)

    def open_picture(self, content: bytes, name: str) -> Image.Image:
        """An uploaded picture, upright and RGB, under the limits of every model; errors as of `open_image`."""
        return open_image(content, **self._opening, name=name)

    def _open(self) -> None:
        opened: list[Answerer] = []
        try:
            for number, choice in enumerate(self.choices, start=1):
                if self._is_closing:
                    break

                def report(share: float, choice: Choice = choice, number: int = number) -> None:
                    self.progress = Progress(choice.name, number, len(self.choices), share)

                report(0.0)
                with _watched_weights(report):
                    opened.append(choice.open())
        except Exception as error:  # of whatever kind, whoever waits has to be told
            for answerer in opened:
                answerer.close()
            self.error = error
        else:
            if len(opened) == len(self.choices):
                self.answerers = tuple(opened)
        finally:
            self._over.set()


def choice_of(checkpoint: str | Path, device: str, grid: tuple[int, int] | None, max_rows: int) -> Choice:
    """A checkpoint to be opened, on its own grid or another.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or one whose settings and vocabulary cannot be read.
    """
    from monkey.checkpoint_card import card_of
    from monkey.processing import MonkeyProcessor
    from monkey.serving.session import load

    pictures = MonkeyProcessor.from_pretrained(checkpoint, grid=grid).image_processor
    name = Path(checkpoint).resolve().name
    if grid is not None:
        name = f"{name} {grid[0]}×{grid[1]}"
    card = card_of(checkpoint)
    return Choice(name, pictures, lambda: load(checkpoint, device, max_rows=max_rows, name=name, grid=grid), card)


@contextmanager
def _watched_weights(report: Callable[[float], None]) -> Iterator[None]:
    """Tells how far the library is with loading weights, of which it shows a bar of its own."""

    def hook(factory: Callable[..., Any], arguments: tuple, settings: dict[str, Any]) -> Any:
        bar = factory(*arguments, **settings)
        if "weights" not in str(settings.get("desc", "")):
            return bar
        total = len(arguments[0]) if arguments and hasattr(arguments[0], "__len__") else 0
        return _WatchedBar(bar, total, report)

    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


class _WatchedBar:
    """A progress bar that is told on as it is iterated."""

    def __init__(self, bar: Any, total: int, report: Callable[[float], None]):
        self._bar, self._total, self._report = bar, total, report

    def __iter__(self) -> Iterator[Any]:
        for count, item in enumerate(self._bar, start=1):
            yield item
            if self._total:
                self._report(count / self._total)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
