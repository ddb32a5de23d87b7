"""Bar and line charts: values, the highest and lowest, comparisons, counts."""

from __future__ import annotations

from itertools import pairwise

from monkey.data.documents.fields import SMALLEST
from monkey.data.documents.page import COLOURS, Page, Question
from monkey.data.documents.words import Words


def _entries(page: Page, words: Words, count: int, room: float, size: int) -> tuple[list[str], list[str]]:
    """Different short names and clearly different values."""
    names: list[str] = []
    tries = 0
    while len(names) < count and tries < 300:
        tries += 1
        name = words.name()
        if len(name) <= 6 and page.width(name, size) <= room - 2 and name not in names:
            names.append(name)
    while True:
        values = [words.value(10, 99) for _ in names]
        ordered = sorted(map(float, values))
        if all(high - low >= 5 for low, high in pairwise(ordered)):
            return names, values


def _questions(
    page: Page, what: str, title: str, names: list[str], values: list[str], shown: bool, height: int
) -> list[Question]:
    ranked = sorted(names, key=lambda name: float(values[names.index(name)]))
    first, second = page.rng.sample(names, 2)
    larger = max(first, second, key=ranked.index)
    questions = [
        Question("compare", f"Which {what} is the highest?", ranked[-1], height),
        Question("compare", f"Which {what} is the lowest?", ranked[0], height),
        Question("compare", f"Which is higher, {first} or {second}?", larger, height),
        Question("yesno", f"Is {first} higher than {second}?", "yes" if larger == first else "no", height),
        Question("count", f"How many {what}s are there?", str(len(names)), height),
        Question("caption", "Describe the picture.", f"A {what} chart of {title}.", height),
    ]
    if shown:
        pairs = zip(names, values, strict=True)
        questions += [Question("cell", f"What is the value of {name}?", value, height) for name, value in pairs]
    else:
        questions.append(Question("unanswerable", f"What is the value of {first}?", "unanswerable", height))
    return questions


def _titled(page: Page, words: Words, size: int) -> str:
    """Write a chart's title over it, larger than its other letters."""
    title = words.name()
    font_size = page.fitting(title, round(size * 1.3), page.side - 8)
    page.write(page.side / 2, page.vary(2, 8), title, font_size, "middle", bold=True)
    return title


def draw_bars(page: Page, words: Words) -> list[Question]:
    """Upright or lying bars with their names, and most often their values."""
    rng = page.rng
    size = page.size(SMALLEST, 14)
    title = _titled(page, words, size)
    top = size * 2.3 + 4
    shown = rng.random() < 0.75
    lying = rng.random() < 0.5
    colours = list(COLOURS.values())
    single = rng.choice(colours) if rng.random() < 0.5 else None
    if lying:
        pitch = size * page.vary(1.3, 2.2)
        count = rng.randint(2, max(2, min(7, int((page.side - top - 2) / pitch))))
        names, values = _entries(page, words, count, page.side * 0.34, size)
    else:
        count = rng.randint(2, max(2, min(6, int(page.side / (size * 3.2)))))
        names, values = _entries(page, words, count, (page.side - 6) / count, size)
    if len(names) < 2:
        return []
    if lying:
        start = max(page.width(name, size) for name in names) + 6
        length = page.side - start - (size * 1.7 if shown else 4)
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            y = top + place * pitch
            end = start + length * float(value) / 100
            page.write(start - 3, y + (pitch - size) / 2, name, size, "right")
            page.draw.rectangle((start, y + 1, end, y + pitch * 0.8), fill=single or colours[place % len(colours)])
            if shown:
                page.write(end + 3, y + (pitch - size) / 2, value, size)
    else:
        slot = (page.side - 6) / len(names)
        base = page.side - size * 1.5
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            middle = 3 + slot * (place + 0.5)
            y = base - (base - top - size) * float(value) / 100
            half = slot * 0.34
            page.draw.rectangle((middle - half, y, middle + half, base), fill=single or colours[place % len(colours)])
            page.write(middle, base + size * 0.35, name, size, "middle")
            if shown:
                page.write(middle, y - size * 0.9, value, size, "middle")
        page.rule(3, base, page.side - 3, base)
    questions = _questions(page, "bar", title, names, values, shown, page.lines[-1].height)
    return [*questions, Question("sign", "What is the title?", title, page.lines[0].height)]


def draw_lines(page: Page, words: Words) -> list[Question]:
    """A line over named points, with their values."""
    rng = page.rng
    size = page.size(SMALLEST, 14)
    title = _titled(page, words, size)
    count = rng.randint(2, max(2, min(6, int(page.side / (size * 3.2)))))
    names, values = _entries(page, words, count, (page.side - 6) / count, size)
    if len(names) < 2:
        return []
    slot = (page.side - 6) / len(names)
    top, base = size * 2.5 + 6, page.side - size * 1.7
    shown = rng.random() < 0.75
    points = [
        (3 + slot * (place + 0.5), base - (base - top - size) * float(value) / 100 - 2)
        for place, value in enumerate(values)
    ]
    for step in range(3):
        y = top + (base - top) * step / 3
        page.rule(3, y, page.side - 3, y, (205, 205, 210))
    page.rule(3, base, page.side - 3, base)
    page.draw.line(points, fill=rng.choice(list(COLOURS.values())), width=2)
    for (x, y), name, value in zip(points, names, values, strict=True):
        page.draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=page.ink)
        page.write(x, base + size * 0.35, name, size, "middle")
        if shown:
            page.write(x, y - size * 1.1, value, size, "middle")
    questions = _questions(page, "point", title, names, values, shown, page.lines[-1].height)
    questions = [
        q if q.kind != "caption" else Question("caption", q.text, f"A line chart of {title}.", q.height)
        for q in questions
    ]
    return [*questions, Question("sign", "What is the title?", title, page.lines[0].height)]
