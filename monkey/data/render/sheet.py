"""The paper that every picture is drawn on: a square in units of a hundredth of its side, with checked text.

`Sheet` draws at twice the size and halves it at the end, which smooths what Pillow draws without antialiasing. Text
goes through `Sheet.text` alone, which refuses what the split may not draw and remembers what was drawn. What is drawn
inside `Sheet.thing` has a name and a place afterwards, for descriptions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from monkey.data.render.difficulty import Difficulty
from monkey.data.render.fonts import load_font
from monkey.data.render.vocabulary import Vocabulary

OVERSAMPLING = 2

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
WHITE: Colour = (255, 255, 255)
INK: Colour = (28, 28, 34)


@dataclass(frozen=True)
class Scene:
    """What a drawing function may use: size in pixels, the split's text, the level, and font files (None: built in)."""

    size: int
    vocabulary: Vocabulary
    difficulty: Difficulty
    fonts: tuple[str | None, ...] = (None,)


@dataclass(frozen=True)
class Question:
    """One question about a picture; `kind` is the name that the command line selects it by."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Thing:
    """Something drawn, or a text written, and the box around it in shares of the picture's side."""

    name: str
    box: Box


@dataclass(frozen=True)
class Picture:
    """A drawn picture, every question that may be asked about it, and every string that was drawn in it.

    `things` are what was drawn under a name, `written` the strings with their places.
    """

    image: Image.Image
    questions: tuple[Question, ...]
    texts: tuple[str, ...] = field(default=())
    things: tuple[Thing, ...] = ()
    written: tuple[Thing, ...] = ()


class Sheet:
    """A picture being drawn. Coordinates run from 0 to 100, right and down."""

    def __init__(self, scene: Scene, rng: random.Random, background: Colour = WHITE) -> None:
        """One typeface is chosen for the whole sheet."""
        pixels = scene.size * OVERSAMPLING
        self._scene = scene
        self._unit = pixels / 100
        self._font = rng.choice(scene.fonts)
        self._image = Image.new("RGB", (pixels, pixels), background)
        self._draw = ImageDraw.Draw(self._image)
        self._texts: list[str] = []
        self._things: list[Thing] = []
        self._written: list[Thing] = []
        self._points: list[tuple[float, float]] = []

    @contextmanager
    def thing(self, name: str) -> Iterator[None]:
        """Gives what is drawn inside, other than text and lines, a name."""
        self._points = []
        yield
        self._things.append(Thing(name, self._share(*_around(self._points))))

    def _share(self, left: float, top: float, right: float, bottom: float) -> Box:
        side = self._image.width
        left, top, right, bottom = (round(min(1.0, max(0.0, edge / side)), 4) for edge in (left, top, right, bottom))
        return left, top, right, bottom

    def _pixels(self, box: Sequence[float]) -> list[float]:
        return [round(value * self._unit) for value in box]

    def rectangle(
        self,
        box: Box,
        fill: Colour | None = None,
        outline: Colour | None = None,
        width: float = 0.0,
        radius: float = 0.0,
    ) -> None:
        """A rectangle, its corners rounded by `radius`, its outline `width` wide on the inside."""
        left, top, right, bottom = self._pixels(box)
        self._points += [(left, top), (right + 1, bottom + 1)]
        self._draw.rounded_rectangle(
            self._pixels(box), radius * self._unit, fill=fill, outline=outline, width=max(1, round(width * self._unit))
        )

    def ellipse(self, box: Box, fill: Colour) -> None:
        """An ellipse that fills the box."""
        left, top, right, bottom = self._pixels(box)
        self._points += [(left, top), (right + 1, bottom + 1)]
        self._draw.ellipse(self._pixels(box), fill=fill)

    def polygon(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        """A filled polygon."""
        corners = [(x * self._unit, y * self._unit) for x, y in points]
        self._points += corners
        self._draw.polygon(corners, fill=fill)

    def line(self, points: Box, fill: Colour, width: float) -> None:
        """A straight line between two points."""
        self._draw.line(self._pixels(points), fill=fill, width=max(1, round(width * self._unit)))

    def text(self, box: Box, text: str, fill: Colour = INK, align: str = "middle", bold: bool = False) -> None:
        """Draws one word or number as large as the box allows, in its middle or at its `left` or `right` side."""
        assert self._scene.vocabulary.allows(text), f"the {self._scene.vocabulary.split} split may not draw {text!r}"
        left, top, right, bottom = self._pixels(box)
        # A typeface's capitals and digits are about 0.72 of its size high, so this makes them as high as the box.
        size = round((bottom - top) / 0.72)
        width = load_font(self._font, size).getlength(text)
        if width > right - left:
            size = int(size * (right - left) / width)
        stroke = round(size / 28) if bold else 0
        horizontal, anchor = {
            "left": (left, "l"),
            "middle": ((left + right) / 2, "m"),
            "right": (right, "r"),
        }[align]
        font = load_font(self._font, max(size, 1))
        # The middle of capitals and digits, not of the line with its descenders, sits in the middle of the box.
        baseline = (top + bottom) / 2 + 0.36 * size
        self._draw.text((horizontal, baseline), text, fill=fill, font=font, anchor=anchor + "s", stroke_width=stroke)
        self._texts.append(text)
        box = self._draw.textbbox((horizontal, baseline), text, font=font, anchor=anchor + "s", stroke_width=stroke)
        self._written.append(Thing(text, self._share(*box)))

    def finish(self, questions: Sequence[Question]) -> Picture:
        """The picture at its real size."""
        return Picture(
            self._image.reduce(OVERSAMPLING),
            tuple(questions),
            tuple(self._texts),
            tuple(self._things),
            tuple(self._written),
        )


def _around(points: Sequence[tuple[float, float]]) -> Box:
    """The box around points."""
    across, down = zip(*points, strict=True)
    return min(across), min(down), max(across), max(down)


def contrasting(colour: Colour) -> Colour:
    """Black or white ink, whichever is read better on `colour` (Rec. 601 luma)."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else WHITE


def article(word: str) -> str:
    """The indefinite article before a word, by its first letter."""
    return "an" if word[0] in "aeiou" else "a"


def pale(rng: random.Random) -> Colour:
    """A background close to white."""
    return rng.randint(228, 255), rng.randint(228, 255), rng.randint(228, 255)


def shift(rng: random.Random, jitter: float) -> float:
    """A random displacement of at most `jitter` either way."""
    return rng.uniform(-jitter, jitter)
