"""Tables of words and numbers: the value of a cell, the largest of a column, how many rows."""

from __future__ import annotations

from monkey.data.documents.fields import SMALLEST
from monkey.data.documents.page import COLOURS, Page, Question, contrasting
from monkey.data.documents.words import Words


def draw_table(page: Page, words: Words) -> list[Question]:
    """Named rows and columns of numbers under a heading row, ruled in one of three ways."""
    rng = page.rng
    size = page.size(SMALLEST, 16)
    margin = page.vary(2, 0.07 * page.side)
    y = page.vary(3, 12)
    questions = []
    if rng.random() < 0.5:
        title = words.name()
        line = page.write(margin, y, title, size, bold=True)
        questions.append(Question("sign", "What is the title?", title, line.height))
        y += size * 1.5
    pitch = size * page.vary(1.35, 1.9)
    room = page.side - 2 * margin
    values = rng.choice((lambda: words.value(10, 999), lambda: words.price(99), lambda: words.value(100, 9999)))
    columns = max(1, min(5, rng.randint(1, max(1, int(room / (size * 3.6)) - 1))))
    most = max(2, int((page.side - y - 2) / pitch) - 1)
    rows = rng.randint(2, min(9, most)) if most > 2 else 2
    width = room / (columns + 1.3)
    names, headings = [], []
    for found, wanted, space in ((names, rows, 1.3 * width - 4), (headings, columns, width - 4)):
        tries = 0
        while len(found) < wanted and tries < 200:
            tries += 1
            word = words.name()
            if page.width(word, size) <= space and word not in found:
                found.append(word)
    rows, columns = len(names), len(headings)
    if rows < 2 or not columns:
        return []
    style = rng.choice(("grid", "lines", "plain"))
    right, bottom = margin + width * (columns + 1.3), y + pitch * (rows + 1)
    heading_ink = None
    if rng.random() < 0.4:
        colour = rng.choice(list(COLOURS))
        page.draw.rectangle((margin, y, right, y + pitch), fill=COLOURS[colour])
        heading_ink = contrasting(COLOURS[colour])
        questions.append(Question("colour", "What colour is the heading?", colour))
    offset = (pitch - size * 0.7) / 2
    for column, heading in enumerate(headings):
        x = margin + width * (column + 2.3) - 3
        page.write(x, y + offset, heading, size, "right", heading_ink, bold=False)
    table: dict[str, list[str]] = {}
    for row, name in enumerate(names):
        top = y + pitch * (row + 1) + offset
        page.write(margin + 2, top, name, size)
        table[name] = []
        for column in range(columns):
            value = values()
            line = page.write(margin + width * (column + 2.3) - 3, top, value, size, "right")
            table[name].append(value)
            text = f"What is {headings[column]} of {name}?" if columns > 1 else f"What is the value of {name}?"
            questions.append(Question("cell", text, value, line.height))
    height = page.lines[-1].height
    if style != "plain":
        for row in range(rows + 2):
            page.rule(margin, y + pitch * row, right, y + pitch * row, (110, 110, 116))
    if style == "grid":
        for x in (margin, *(margin + width * (column + 1.3) for column in range(columns + 1))):
            page.rule(x, y, x, bottom, (110, 110, 116))
    column = rng.randrange(columns)
    ranked = sorted(names, key=lambda name: float(table[name][column]))
    numbers = [float(table[name][column]) for name in names]
    if len(set(numbers)) == len(numbers):
        questions.append(Question("compare", f"Which row has the largest {headings[column]}?", ranked[-1], height))
        questions.append(Question("compare", f"Which row has the smallest {headings[column]}?", ranked[0], height))
        first, second = rng.sample(names, 2)
        answer = "yes" if float(table[first][column]) > float(table[second][column]) else "no"
        text = f"Is {headings[column]} of {first} more than of {second}?"
        questions.append(Question("yesno", text, answer, height))
    questions.append(Question("count", "How many rows are there?", str(rows), height))
    questions.append(Question("count", "How many columns are there?", str(columns), height))
    questions.append(Question("unanswerable", f"What is {headings[0]} of {words.name()}?", "unanswerable", height))
    questions.append(Question("caption", "Describe the picture.", f"A table of {', '.join(headings)}.", height))
    return questions
