"""Small tables of numbers: the value of a cell, the colour of the heading, and how many numbers there are."""

from __future__ import annotations

import random

from monkey.data.render.difficulty import COLOURS
from monkey.data.render.sheet import INK, WHITE, Picture, Question, Scene, Sheet, article, contrasting, pale, shift


def draw_table(rng: random.Random, scene: Scene) -> Picture:
    """A coloured heading over a ruled grid with one number in each cell.

    Kinds of question: `cell`, `heading`, `numbers`.
    """
    level = scene.difficulty
    sheet = Sheet(scene, rng, pale(rng))
    rows, columns = rng.randint(1, level.most_rows), rng.randint(2, level.most_columns)
    colour = rng.choice(list(COLOURS)[: level.colours])
    left = 5 + shift(rng, 0.6 * level.jitter)
    top = 4 + shift(rng, 0.6 * level.jitter)
    right, bottom = left + 90, top + 91
    body = top + 13
    with sheet.thing("a white table"):
        sheet.rectangle((left, top, right, bottom), WHITE)
    with sheet.thing(f"{article(colour)} {colour} heading"):
        sheet.rectangle((left, top, right, body), COLOURS[colour])
    sheet.text(
        (left + 4, top + 3, right - 4, body - 3),
        rng.choice(scene.vocabulary.words["title"]),
        contrasting(COLOURS[colour]),
    )
    width, height = (right - left) / columns, (bottom - body) / rows
    values = rng.sample(scene.vocabulary.numbers, rows * columns)
    questions = []
    for place, value in enumerate(values):
        row, column = divmod(place, columns)
        x, y = left + column * width, body + row * height
        sheet.text((x + 0.1 * width, y + 0.18 * height, x + 0.9 * width, y + 0.82 * height), str(value), bold=True)
        questions.append(Question("cell", f"What is in row {row + 1}, column {column + 1}?", str(value)))
    for row in range(rows + 1):
        sheet.line((left, body + row * height, right, body + row * height), INK, 0.8)
    for column in range(columns + 1):
        sheet.line(
            (left + column * width, top if column in (0, columns) else body, left + column * width, bottom), INK, 0.8
        )
    sheet.line((left, top, right, top), INK, 0.8)
    questions += [
        Question("heading", "What colour is the heading?", colour),
        Question("numbers", "How many numbers are in the table?", str(rows * columns)),
    ]
    return sheet.finish(questions)
