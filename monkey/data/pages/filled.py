"""Images that text fills from edge to edge, each letter's place known: what a vision transformer learns letters from.

Texts run over every edge, sizes and typefaces change within an image, some lines stand on a band of colour: an image
holds several times the letters of a page that can be asked about, and each is one thing to learn. Pillow draws them,
since a typesetter tells where words are, not letters.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from monkey.data.pages import camera
from monkey.data.pages.drawing import CLEAN, COLOURS, INKS, LIGHT, PAPERS, SPLITS
from monkey.data.pages.spelling import Writer
from monkey.data.pages.typefaces import FAMILIES, HELD_OUT_FAMILIES, Family, add_fonts_to_matplotlib

SMALLEST, LARGEST = 10, 22
"""Pixels of the em of the smallest and the largest type; capitals are about seven tenths of it."""
BOLD, CHANGED, BANDED, MARKED = 0.25, 0.3, 0.15, 0.15
"""How many lines are bold, in another typeface than the one before, on a band; how many texts end in a mark."""
BEYOND = 1.3
"""How many times as wide and high as what is kept of it an image is drawn."""


@dataclass(frozen=True)
class Letter:
    """A letter with its middle and the height of its line's capitals, in pixels."""

    character: str
    x: float
    y: float
    height: float


def draw_filled(rng: random.Random, side: int, split: str) -> tuple[Image.Image, list[Letter]]:
    """Draw a square image full of text; half of them are clean, as of pages, others went through a camera or a scanner.

    Args:
        side: pixels of the image's side.
        split: of `drawing.SPLITS`: what is spelt, and in which typefaces.
    """
    image, letters = _fill(rng, round(BEYOND * side), split)
    if rng.random() >= CLEAN:
        height = min(letter.height for letter in letters)
        image, move = camera.look_through(image, rng, height, in_colour=True)
        moved = move.points(np.array([(letter.x, letter.y) for letter in letters]))
        letters = [
            Letter(letter.character, float(x), float(y), letter.height)
            for letter, (x, y) in zip(letters, moved, strict=True)
        ]
    left, top = (rng.randint(0, extent - side) for extent in image.size)
    letters = [Letter(letter.character, letter.x - left, letter.y - top, letter.height) for letter in letters]
    return image.crop((left, top, left + side, top + side)), letters


def _fill(rng: random.Random, side: int, split: str) -> tuple[Image.Image, list[Letter]]:
    of = SPLITS[split]
    families = [family for family in (HELD_OUT_FAMILIES if of.typefaces else FAMILIES) if not family.is_typst]
    makers = _text_makers(Writer(random.Random(rng.getrandbits(64)), of.texts))
    image = Image.new("RGB", (side, side), rng.choice(PAPERS))
    draw, ink = ImageDraw.Draw(image), rng.choice(INKS)
    family, size, is_uniform = rng.choice(families), _choose_size(rng), rng.random() < 0.5
    letters: list[Letter] = []
    y = rng.uniform(-4, 6)
    while y < side:
        if not is_uniform:
            size = _choose_size(rng)
            family = rng.choice(families) if rng.random() < CHANGED else family
        font = _font(family, 700 if rng.random() < BOLD and family.has_bold else rng.choice(family.weights), size)
        height, fill, border = -font.getbbox("H", anchor="ls")[1], ink, 0.0
        if rng.random() < BANDED:
            name, border = rng.choice(list(COLOURS)), rng.uniform(2, 4)
            draw.rectangle((0, y - border, side, y + height + border), fill=COLOURS[name])
            fill = "#000000" if name in LIGHT else "#ffffff"
        x = rng.uniform(-6, 20)
        while x < side:
            text = rng.choice(makers)() + (rng.choice(":,.-") if rng.random() < MARKED else "")
            draw.text((x, y + height), text, fill=fill, font=font, anchor="ls")
            for character, before, after in _advances(font, text):
                letters.append(Letter(character, x + (before + after) / 2, y + height / 2, height))
            x += font.getlength(text) + size * rng.uniform(0.25, 1.2)
        y += max(height + 2.5, size * rng.uniform(1.05, 1.7)) + border
    return image, letters


def _choose_size(rng: random.Random) -> int:
    """Choose the pixels of an em, mostly few."""
    return round(SMALLEST + (LARGEST - SMALLEST) * rng.random() ** 2)


def _advances(font: ImageFont.FreeTypeFont, text: str) -> list[tuple[str, float, float]]:
    """Return the letters of a text, each with where it begins and ends behind the text's start."""
    ends = [font.getlength(text[:end]) for end in range(len(text) + 1)]
    return [
        (character, before, after)
        for character, before, after in zip(text, ends[:-1], ends[1:], strict=True)
        if not character.isspace()
    ]


@lru_cache(maxsize=512)
def _font(family: Family, weight: int, size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    add_fonts_to_matplotlib()
    properties = font_manager.FontProperties(family.name, weight=weight)
    return ImageFont.truetype(font_manager.findfont(properties, fallback_to_default=False), size)


def _text_makers(writer: Writer) -> Sequence[Callable[[], str]]:
    return (
        *(writer.name, writer.name, writer.word, writer.goods, writer.person, writer.company, writer.street),
        *(writer.city, writer.time, writer.code, writer.phone, writer.email, writer.phrase, writer.sentence),
        lambda: writer.amount(writer.number(1, 999)),
        lambda: writer.amount(writer.number(1, 99)),
        lambda: writer.write_day(writer.day()),
        lambda: str(writer.integer(1, 999)),
        lambda: writer.name().upper(),
    )
