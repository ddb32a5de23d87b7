"""The page that a document is drawn on, in pixels of the image itself, so that the height of its text is exact.

Every text goes through `Page.write`, which keeps its box: questions about a word's place, and how high the letters of
an answer are, come from there. Layouts of the held-out splits differ in their numbers too: `Page.vary` cuts every range
into ten slots, of which three belong to the held-out splits alone.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from monkey.data.documents import faces
from monkey.data.documents.faces import Family

Colour = tuple[int, int, int]

SLOTS = 10
HELD_OUT_SLOTS = (2, 5, 8)
SMALLEST = 10
"""Smallest type size in pixels."""

COLOURS: Mapping[str, Colour] = {
    "red": (206, 38, 38),
    "green": (40, 150, 60),
    "blue": (40, 84, 204),
    "yellow": (240, 200, 30),
    "purple": (134, 52, 164),
    "orange": (240, 126, 24),
    "black": (36, 36, 36),
    "brown": (120, 76, 40),
}
"""Colours by the names that answers use."""
INKS: tuple[Colour, ...] = ((20, 20, 24), (30, 30, 90), (90, 20, 20), (20, 70, 40), (60, 60, 66))
PAPERS: tuple[Colour, ...] = (
    *((255, 255, 255), (250, 248, 240), (240, 244, 250), (246, 238, 226), (232, 240, 232)),
    *((252, 240, 244), (228, 228, 232), (255, 250, 214)),
)


@dataclass(frozen=True)
class Question:
    """One question about an image.

    Attributes:
        kind: the task it belongs to, a key of `sets.QUESTION_KINDS`.
        text, answer: as they are asked and answered.
        height: pixels of a capital letter of the text that holds the answer; 0 where no text of the image does.
    """

    kind: str
    text: str
    answer: str
    height: int = 0


@dataclass(frozen=True)
class Line:
    """A text as it was written, with its box in pixels (left, top, right, bottom)."""

    text: str
    box: tuple[float, float, float, float]
    height: int


@dataclass(frozen=True)
class Letter:
    """One character as it was written, no space: the middle of its box, and the height of capitals beside it."""

    character: str
    x: float
    y: float
    height: int


@dataclass
class Page:
    """An image being drawn, square unless another ratio is given.

    Attributes:
        side: pixels of the square, and the root of the image's area whatever its ratio.
        family: its typeface.
        held_out: whether layouts and values of the held-out splits are wanted.
        lines: what was written, in reading order as long as the drawing code goes from top to bottom.
        letters: every character of it.
        questions: what can be asked about it.
        ratio: width over height.
        across, down: width and height in pixels.
    """

    rng: random.Random
    side: int
    family: Family
    held_out: bool
    paper: Colour = (255, 255, 255)
    ink: Colour = INKS[0]
    lines: list[Line] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    ratio: float = 1.0

    def __post_init__(self) -> None:
        self.across, self.down = (round(self.side * stretch) for stretch in (self.ratio**0.5, self.ratio**-0.5))
        self.image = Image.new("RGB", (self.across, self.down), self.paper)
        self.draw = ImageDraw.Draw(self.image)

    def vary(self, low: float, high: float) -> float:
        """Return a number of a range, out of the slots of the split."""
        slots = [slot for slot in range(SLOTS) if (slot in HELD_OUT_SLOTS) == self.held_out]
        return low + (high - low) * (self.rng.choice(slots) + self.rng.random()) / SLOTS

    def size(self, low: int, high: int) -> int:
        """Return a type size; small ones are more frequent, since they are harder and fill pages better."""
        return round(low + (high - low) * self.vary(0, 1) ** 1.6)

    def width(self, text: str, size: int, bold: bool = False) -> float:
        """Return how many pixels wide a text is."""
        return faces.font(self.family, size, bold).getlength(text)

    def fitting(self, text: str, size: int, room: float, bold: bool = False, least: int = SMALLEST) -> int:
        """Return the largest size up to `size` at which the text is no wider than `room`, but at least `least`."""
        width = self.width(text, size, bold)
        return size if width <= room else max(least, int(size * room / width))

    def write(
        self,
        x: float,
        y: float,
        text: str,
        size: int,
        align: str = "left",
        fill: Colour | None = None,
        bold: bool = False,
    ) -> Line:
        """Write a text with the top of its capitals at `y`, and its left side, middle or right side at `x`."""
        font = faces.font(self.family, size, bold)
        height = faces.capital_height(self.family, size, bold)
        width = font.getlength(text)
        left = x - {"left": 0.0, "middle": width / 2, "right": width}[align]
        self.draw.text((left, y + height), text, fill=fill or self.ink, font=font, anchor="ls")
        line = Line(text, (left, y, left + width, y + height), height)
        self.lines.append(line)
        for character in text:
            advance = faces.advance(self.family, size, bold, character)
            if not character.isspace():
                self.letters.append(Letter(character, left + advance / 2, y + height / 2, height))
            left += advance
        return line

    def ask(self, kind: str, text: str, answer: str, line: Line | None = None) -> None:
        """Add a question; `line` is the text that has to be read for its answer."""
        self.questions.append(Question(kind, text, answer, line.height if line else 0))

    def rule(self, x: float, y: float, right: float, bottom: float, fill: Colour | None = None, width: int = 1) -> None:
        """Draw a straight line."""
        self.draw.line((x, y, right, bottom), fill=fill or self.ink, width=width)

    def fits(self, line: Line) -> bool:
        """Tell whether a text lies on the page."""
        left, top, right, bottom = line.box
        return left >= 0 and top >= 0 and right <= self.across and bottom <= self.down

    def finish(self, damage: float) -> Image.Image:
        """Return the image, now and then turned a little, blurred, noisy or compressed; lines and letters turn with it.

        Args:
            damage: how often each of these happens, 0 to 1.
        """
        image, rng = self.image, self.rng
        if rng.random() < damage:
            angle = rng.uniform(-2.5, 2.5)
            image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=self.paper)
            size = self.across, self.down
            self.lines = [Line(line.text, _turned(line.box, angle, size), line.height) for line in self.lines]
            self.letters = [
                Letter(letter.character, *_turned_point(letter.x, letter.y, angle, size), letter.height)
                for letter in self.letters
            ]
        if rng.random() < damage / 2:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.5)))
        if rng.random() < damage:
            image = _noisy(image, rng)
        if rng.random() < damage:
            image = _compressed(image, rng.randint(55, 90))
        return image


def _turned(box: Sequence[float], angle: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the upright box around one that is turned about the middle of the image."""
    left, top, right, bottom = box
    corners = [_turned_point(x, y, angle, size) for x in (left, right) for y in (top, bottom)]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _turned_point(x: float, y: float, angle: float, size: tuple[int, int]) -> tuple[float, float]:
    cosine, sine = math.cos(math.radians(-angle)), math.sin(math.radians(-angle))
    middle_x, middle_y = (side / 2 for side in size)
    x, y = x - middle_x, y - middle_y
    return cosine * x - sine * y + middle_x, sine * x + cosine * y + middle_y


def _noisy(image: Image.Image, rng: random.Random) -> Image.Image:
    """Add grain and a gradient of light, as a phone's camera leaves them."""
    generator = np.random.default_rng(rng.getrandbits(32))
    pixels = np.asarray(image, dtype=np.float32)
    down, across, _ = pixels.shape
    darkest, lightest = rng.uniform(-18, 0), rng.uniform(0, 18)
    is_upright = rng.random() < 0.5
    light = np.linspace(darkest, lightest, down if is_upright else across, dtype=np.float32)
    light = light[:, None, None] if is_upright else light[None, :, None]
    grain = generator.standard_normal((down, across, 1), dtype=np.float32) * rng.uniform(1, 7)
    return Image.fromarray(np.clip(pixels + light + grain, 0, 255).astype(np.uint8))


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def contrasting(colour: Colour) -> Colour:
    """Return black or white ink, whichever is read better on `colour` (Rec. 601 luma)."""
    red, green, blue = colour
    return INKS[0] if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
