"""Bar charts: which bar is the tallest or shortest, how many there are, and what number stands on one."""

from __future__ import annotations

import random
from itertools import pairwise

from monkey.data.render.difficulty import COLOURS
from monkey.data.render.sheet import INK, Picture, Question, Scene, Sheet, article, pale, shift

BASE, TOP = 92.0, 26.0


def _values(rng: random.Random, numbers: tuple[int, ...], count: int, gap: float) -> list[int]:
    """So many numbers that lie at least `gap` hundredths of their range apart, in random order."""
    least = gap * max(numbers) / 100
    while True:
        values = sorted(rng.sample(numbers, count))
        if all(high - low >= least for low, high in pairwise(values)):
            rng.shuffle(values)
            return values


def draw_bars(rng: random.Random, scene: Scene) -> Picture:
    """Two or more bars of different colours and heights over an axis, each with its value on top, under a title.

    Kinds of question: `tallest`, `shortest`, `count`, `value` (small print: hard).
    """
    level = scene.difficulty
    sheet = Sheet(scene, rng, pale(rng))
    words = scene.vocabulary.words["title"]
    sheet.text((20, 4, 92, 11), rng.choice(words))
    count = rng.randint(2, level.most_bars)
    values = _values(rng, scene.vocabulary.numbers, count, level.bar_gap)
    colours = rng.sample(list(COLOURS)[: level.colours], count)
    for step in range(1, 5):
        height = BASE - step * (BASE - TOP) / 4
        sheet.line((8, height, 97, height), (205, 205, 210), 0.5)
    slot = 86 / count
    for place, (value, colour) in enumerate(zip(values, colours, strict=True)):
        centre = 10 + slot * (place + 0.5) + shift(rng, level.jitter) * 0.2
        half = min(0.36 * slot, 13.0)
        top = BASE - (BASE - TOP) * value / 10**level.digits
        with sheet.thing(f"{article(colour)} {colour} bar"):
            sheet.rectangle((centre - half, top, centre + half, BASE), COLOURS[colour])
        sheet.text((centre - 0.45 * slot, top - 9, centre + 0.45 * slot, top - 2), str(value))
    sheet.line((8, 16, 8, BASE), INK, 1.0)
    sheet.line((8, BASE, 97, BASE), INK, 1.0)
    ranked = sorted(zip(values, colours, strict=True))
    questions = [
        Question("count", "How many bars are there?", str(count)),
        Question("tallest", "Which bar is the tallest?", ranked[-1][1]),
        Question("shortest", "Which bar is the shortest?", ranked[0][1]),
    ]
    questions += [Question("value", f"What is the value of the {colour} bar?", str(value)) for value, colour in ranked]
    return sheet.finish(questions)
