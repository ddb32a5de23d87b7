"""Receipts: the total, which the lines add up to, and how many lines there are."""

from __future__ import annotations

import random
from functools import cache

from monkey.data.render.sheet import INK, WHITE, Picture, Question, Scene, Sheet, shift

GREY = (120, 120, 126)


@cache
def totals(numbers: tuple[int, ...], count: int) -> frozenset[int]:
    """Every sum of `count` of the numbers that is no larger than the largest of them."""
    if count == 1:
        return frozenset(numbers)
    shorter = totals(numbers, count - 1)
    return frozenset(total + number for total in shorter for number in numbers if total + number <= numbers[-1])


def addends(rng: random.Random, numbers: tuple[int, ...], total: int, count: int) -> list[int]:
    """`count` of the numbers that add up to `total`, one of `totals(numbers, count)`."""
    if count == 1:
        return [total]
    shorter = totals(numbers, count - 1)
    number = rng.choice([number for number in numbers if total - number in shorter])
    return [number, *addends(rng, numbers, total - number, count - 1)]


def draw_receipt(rng: random.Random, scene: Scene) -> Picture:
    """A strip of paper: shop, one to three priced lines, a rule, and the total in large digits.

    Kinds of question: `total`, `items`.
    """
    level = scene.difficulty
    words = scene.vocabulary.words
    table = rng.randint(150, 205)
    sheet = Sheet(scene, rng, (table, table - 12, table - 30))
    x, y = shift(rng, 0.5 * level.jitter), shift(rng, 0.5 * level.jitter)
    left, right, top, bottom = 10 + x, 90 + x, 4 + y, 95 + y
    with sheet.thing("a strip of white paper with a torn edge"):
        sheet.rectangle((left, top, right, bottom - 3), WHITE)
        teeth = 10
        width = (right - left) / teeth
        for tooth in range(teeth):
            start = left + tooth * width
            sheet.polygon([(start, bottom - 3.2), (start + width, bottom - 3.2), (start + width / 2, bottom)], WHITE)
    sheet.text((left + 6, top + 3, right - 6, top + 10), rng.choice(words["shop"]))
    count = rng.randint(1, level.most_items)
    numbers = scene.vocabulary.numbers
    total = rng.choice(sorted(totals(numbers, count).intersection(numbers)))
    prices = addends(rng, numbers, total, count)
    for line, (item, price) in enumerate(zip(rng.sample(words["item"], count), prices, strict=True)):
        height = top + 13 + 10 * line
        sheet.text((left + 6, height, left + 46, height + 7), item, GREY, align="left")
        sheet.text((right - 30, height, right - 6, height + 7), str(price), GREY, align="right")
    sheet.line((left + 5, top + 43, right - 5, top + 43), INK, 1.0)
    sheet.text((left + 6, top + 45, left + 36, top + 50), rng.choice(words["label"]), align="left")
    # As on a sign: each of the two digits in one quarter of the picture.
    sheet.text((left + 6, top + 54, right - 6, bottom - 7), str(total), bold=True)
    return sheet.finish(
        [
            Question("total", "What is the total?", str(total)),
            Question("items", "How many items are there?", str(count)),
        ]
    )
