"""Shop signs: the number on the board, the board's colour, and the shop's name."""

from __future__ import annotations

import random

from monkey.data.render.difficulty import COLOURS
from monkey.data.render.sheet import INK, WHITE, Picture, Question, Scene, Sheet, article, contrasting, pale, shift


def draw_sign(rng: random.Random, scene: Scene) -> Picture:
    """A coloured board that hangs from a rail, with the shop's name over a white plate with its house number.

    Kinds of question: `number`, `colour`, `name` (reads a word never seen: hard).
    """
    level = scene.difficulty
    sheet = Sheet(scene, rng, pale(rng))
    colour = rng.choice(list(COLOURS)[: level.colours])
    x, y = shift(rng, level.jitter), shift(rng, level.jitter)
    left, top, right, bottom = 8 + x, 16 + y, 92 + x, 95 + y
    sheet.line((0, 5, 100, 5), INK, 2.0)
    for chain in (left + 12, right - 12):
        sheet.line((chain, 5, chain, top), INK, 1.2)
    with sheet.thing(f"{article(colour)} {colour} sign"):
        sheet.rectangle((left, top, right, bottom), COLOURS[colour], radius=5)
    name = rng.choice(scene.vocabulary.words["shop"])
    number = str(rng.choice(scene.vocabulary.numbers))
    sheet.text((left + 8, top + 9, right - 8, top + 23), name, contrasting(COLOURS[colour]))
    # In the lower half each digit falls into one quarter of the picture, which is one window of a 2x2 grid.
    with sheet.thing("a white plate"):
        sheet.rectangle((left + 4, top + 32, right - 4, bottom - 4), WHITE, radius=3)
    sheet.text((left + 8, top + 37, right - 8, bottom - 9), number, bold=True)
    return sheet.finish(
        [
            Question("number", "What number is on the sign?", number),
            Question("colour", "What colour is the sign?", colour),
            Question("name", "What is the name on the sign?", name),
        ]
    )
