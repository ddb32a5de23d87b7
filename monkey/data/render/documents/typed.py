"""Typed pages, for the first steps of training: every character in a cell of its own, lines from the upper left.

Where a character stands follows from its number in the line, so a model from nothing learns what characters look like
before it has to find them.
"""

from __future__ import annotations

from monkey.data.render.documents import faces
from monkey.data.render.documents.page import Line, Page, Question
from monkey.data.render.documents.words import Words

CELL = 8, 16
"""Width and height of a character's cell in pixels."""
MOST_LINES = 3


def draw_typed(page: Page, words: Words) -> list[Question]:
    """One to three lines of names, numbers and codes."""
    rng = page.rng
    width, height = CELL
    columns = page.side // width - 1
    size = rng.randint(10, 13)
    makers = (words.name, words.name, words.person, words.price, words.code, words.date, words.time)
    bold = rng.random() < 0.3
    font = faces.font(page.family, size, bold)
    capital = faces.capital_height(page.family, size, bold)
    left, top = page.vary(2, 5), page.vary(2, 5)
    lines = []
    for row in range(rng.randint(1, MOST_LINES)):
        text = rng.choice(makers)()[:columns]
        y = top + row * height
        for column, character in enumerate(text):
            middle = left + (column + 0.5) * width
            page.draw.text((middle, y + capital), character, fill=page.ink, font=font, anchor="ms")
        lines.append(text)
        page.lines.append(Line(text, (left, y, left + len(text) * width, y + capital), capital))
    questions = [Question("line", "What is the last line?", lines[-1], capital)]
    return [*questions, Question("count", "How many lines of text are there?", str(len(lines)), capital)]
