"""Coloured shapes on a card: colour of a shape, shape of a colour, and how many there are."""

from __future__ import annotations

import math
import random

from monkey.data.render.difficulty import COLOURS
from monkey.data.render.sheet import INK, Colour, Picture, Question, Scene, Sheet, article, pale, shift


def _regular(x: float, y: float, radius: float, corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Corners of a regular polygon with one on top; a star where every second radius is `inner` of the first."""
    points = []
    for corner in range(corners):
        length = radius * (inner if corner % 2 else 1.0)
        angle = 2 * math.pi * corner / corners
        points.append((x + length * math.sin(angle), y - length * math.cos(angle)))
    return points


def _circle(sheet: Sheet, x: float, y: float, radius: float, fill: Colour) -> None:
    sheet.ellipse((x - radius, y - radius, x + radius, y + radius), fill)


def _square(sheet: Sheet, x: float, y: float, radius: float, fill: Colour) -> None:
    half = 0.86 * radius
    sheet.rectangle((x - half, y - half, x + half, y + half), fill)


def _triangle(sheet: Sheet, x: float, y: float, radius: float, fill: Colour) -> None:
    sheet.polygon([(x, y - radius), (x + radius, y + 0.8 * radius), (x - radius, y + 0.8 * radius)], fill)


def _star(sheet: Sheet, x: float, y: float, radius: float, fill: Colour) -> None:
    sheet.polygon(_regular(x, y, 1.15 * radius, 10, inner=0.42), fill)


def _cross(sheet: Sheet, x: float, y: float, radius: float, fill: Colour) -> None:
    arm = 0.34 * radius
    sheet.rectangle((x - radius, y - arm, x + radius, y + arm), fill)
    sheet.rectangle((x - arm, y - radius, x + arm, y + radius), fill)


def _ring(sheet: Sheet, x: float, y: float, radius: float, fill: Colour) -> None:
    sheet.polygon(
        [(x + radius * math.cos(a * math.pi / 36), y + radius * math.sin(a * math.pi / 36)) for a in range(73)]
        + [
            (x + 0.5 * radius * math.cos(a * math.pi / 36), y + 0.5 * radius * math.sin(a * math.pi / 36))
            for a in range(72, -1, -1)
        ],
        fill,
    )


SHAPES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "ring": _ring}
"""Shapes by the name that answers use. Levels use the first few."""


def draw_shapes(rng: random.Random, scene: Scene) -> Picture:
    """One to four shapes of different kinds and colours, one in each quarter of the card at most.

    Kinds of question: `colour`, `shape`, `count`.
    """
    level = scene.difficulty
    sheet = Sheet(scene, rng, pale(rng))
    sheet.rectangle((2, 2, 98, 98), outline=INK, width=0.8, radius=4)
    count = rng.randint(1, min(level.most_shapes, level.shapes))
    shapes = rng.sample(list(SHAPES)[: level.shapes], count)
    colours = rng.sample(list(COLOURS)[: level.colours], count)
    quarters = rng.sample([(27, 27), (73, 27), (27, 73), (73, 73)], count)
    for shape, colour, (x, y) in zip(shapes, colours, quarters, strict=True):
        radius = rng.uniform(17 - 0.5 * level.jitter, 17)
        x, y = x + shift(rng, level.jitter), y + shift(rng, level.jitter)
        with sheet.thing(f"{article(colour)} {colour} {shape}"):
            SHAPES[shape](sheet, x, y, radius, COLOURS[colour])
    questions = [Question("count", "How many shapes are there?", str(count))]
    for shape, colour in zip(shapes, colours, strict=True):
        questions.append(Question("colour", f"What colour is the {shape}?", colour))
        questions.append(Question("shape", f"Which shape is {colour}?", shape))
    return sheet.finish(questions)
