"""Tables, bar and line charts, signs, coloured scenes, paragraphs; and pages that are full of text."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from monkey.data.documents import faces
from monkey.data.documents.layout import COLOURS, INKS, PAPERS, SMALLEST, Colour, Page, contrasting
from monkey.data.documents.words import Words, article

Entry = tuple[str, str]
"""Name and value of a bar or a point."""
SHAPES = ("circle", "square", "triangle", "bar")
RULE = (110, 110, 116)
GUIDE = (205, 205, 210)


def _different_names(
    page: Page, words: Words, count: int, size: int, room: float, longest: int | None = None, tries: int = 200
) -> list[str]:
    """Make up to `count` different names that are no wider than `room` pixels and no longer than `longest` letters."""
    names: list[str] = []
    for _ in range(tries):
        if len(names) == count:
            break
        name = words.name()
        if (longest is None or len(name) <= longest) and page.width(name, size) <= room and name not in names:
            names.append(name)
    return names


def draw_table(page: Page, words: Words) -> None:
    """Named rows and columns of numbers under a heading row, ruled in one of three ways."""
    rng = page.rng
    size = page.size(SMALLEST, 16)
    margin = page.vary(2, 0.07 * page.across)
    y = page.vary(3, 12)
    if rng.random() < 0.5:
        title = words.name()
        page.ask("sign", "What is the title?", title, page.write(margin, y, title, size, bold=True))
        y += size * 1.5
    pitch = size * page.vary(1.35, 1.9)
    room = page.across - 2 * margin
    make = rng.choice((lambda: words.value(10, 999), lambda: words.price(99), lambda: words.value(100, 9999)))
    columns = max(1, min(5, rng.randint(1, max(1, int(room / (size * 3.6)) - 1))))
    most = max(2, int((page.down - y - 2) / pitch) - 1)
    rows = rng.randint(2, min(9, most)) if most > 2 else 2
    width = room / (columns + 1.3)
    names = _different_names(page, words, rows, size, 1.3 * width - 4)
    headings = _different_names(page, words, columns, size, width - 4)
    if len(names) < 2 or not headings:
        return
    style = rng.choice(("grid", "lines", "plain"))
    edges = [margin, *(margin + width * (column + 1.3) for column in range(len(headings) + 1))]
    ink = None
    if rng.random() < 0.4:
        colour = rng.choice(list(COLOURS))
        page.draw.rectangle((margin, y, edges[-1], y + pitch), fill=COLOURS[colour])
        ink = contrasting(COLOURS[colour])
        page.ask("colour", "What colour is the heading?", colour)
    offset = (pitch - size * 0.7) / 2
    for heading, right in zip(headings, edges[2:], strict=True):
        page.write(right - 3, y + offset, heading, size, "right", ink)
    table: dict[str, list[str]] = {}
    for row, name in enumerate(names):
        top = y + pitch * (row + 1) + offset
        page.write(margin + 2, top, name, size)
        table[name] = []
        for heading, right in zip(headings, edges[2:], strict=True):
            value = make()
            table[name].append(value)
            text = f"What is {heading} of {name}?" if len(headings) > 1 else f"What is the value of {name}?"
            page.ask("cell", text, value, page.write(right - 3, top, value, size, "right"))
    if style != "plain":
        for row in range(len(names) + 2):
            page.rule(margin, y + pitch * row, edges[-1], y + pitch * row, RULE)
    if style == "grid":
        for x in edges:
            page.rule(x, y, x, y + pitch * (len(names) + 1), RULE)
    _ask_of_table(page, words, headings, table)


def _ask_of_table(page: Page, words: Words, headings: list[str], table: dict[str, list[str]]) -> None:
    names, line = list(table), page.lines[-1]
    column = page.rng.randrange(len(headings))
    heading = headings[column]
    numbers = {name: float(cells[column]) for name, cells in table.items()}
    if len(set(numbers.values())) == len(names):
        page.ask("compare", f"Which row has the largest {heading}?", max(names, key=numbers.get), line)
        page.ask("compare", f"Which row has the smallest {heading}?", min(names, key=numbers.get), line)
        first, second = page.rng.sample(names, 2)
        answer = "yes" if numbers[first] > numbers[second] else "no"
        page.ask("yesno", f"Is {heading} of {first} more than of {second}?", answer, line)
    page.ask("count", "How many rows are there?", str(len(names)), line)
    page.ask("count", "How many columns are there?", str(len(headings)), line)
    page.ask("unanswerable", f"What is {headings[0]} of {words.name()}?", "unanswerable", line)
    page.ask("caption", "Describe the picture.", f"A table of {', '.join(headings)}.", line)


def _chart_title(page: Page, words: Words, size: int) -> str:
    """Write a chart's title over it, larger than its other letters."""
    title = words.name()
    font_size = page.fitting(title, round(size * 1.3), page.across - 8)
    page.write(page.across / 2, page.vary(2, 8), title, font_size, "middle", bold=True)
    return title


def _chart_entries(page: Page, words: Words, count: int, room: float, size: int) -> list[Entry]:
    """Make different short names with clearly different values."""
    names = _different_names(page, words, count, size, room - 2, longest=6, tries=300)
    while True:
        values = [words.value(10, 99) for _ in names]
        if all(high - low >= 5 for low, high in pairwise(sorted(map(float, values)))):
            return list(zip(names, values, strict=True))


def _ask_of_chart(page: Page, what: str, chart: str, title: str, entries: Sequence[Entry], shown: bool) -> None:
    line, values = page.lines[-1], {name: float(value) for name, value in entries}
    first, second = page.rng.sample(list(values), 2)
    larger = max(first, second, key=values.get)
    page.ask("compare", f"Which {what} is the highest?", max(values, key=values.get), line)
    page.ask("compare", f"Which {what} is the lowest?", min(values, key=values.get), line)
    page.ask("compare", f"Which is higher, {first} or {second}?", larger, line)
    page.ask("yesno", f"Is {first} higher than {second}?", "yes" if larger == first else "no", line)
    page.ask("count", f"How many {what}s are there?", str(len(entries)), line)
    page.ask("caption", "Describe the picture.", f"A {chart} chart of {title}.", line)
    if shown:
        for name, value in entries:
            page.ask("cell", f"What is the value of {name}?", value, line)
    else:
        page.ask("unanswerable", f"What is the value of {first}?", "unanswerable", line)
    page.ask("sign", "What is the title?", title, page.lines[0])


def draw_bars(page: Page, words: Words) -> None:
    """Upright or lying bars with their names, and most often their values."""
    rng = page.rng
    size = page.size(SMALLEST, 14)
    title = _chart_title(page, words, size)
    top = size * 2.3 + 4
    shown = rng.random() < 0.75
    is_lying = rng.random() < 0.5
    fills = list(COLOURS.values())
    if rng.random() < 0.5:
        fills = [rng.choice(fills)]
    if is_lying:
        pitch = size * page.vary(1.3, 2.2)
        count = rng.randint(2, max(2, min(7, int((page.down - top - 2) / pitch))))
        entries = _chart_entries(page, words, count, page.across * 0.34, size)
    else:
        count = rng.randint(2, max(2, min(6, int(page.across / (size * 3.2)))))
        entries = _chart_entries(page, words, count, (page.across - 6) / count, size)
    if len(entries) < 2:
        return
    if is_lying:
        _draw_lying_bars(page, entries, fills, top, pitch, size, shown)
    else:
        _draw_upright_bars(page, entries, fills, top, size, shown)
    _ask_of_chart(page, "bar", "bar", title, entries, shown)


def _draw_lying_bars(
    page: Page, entries: Sequence[Entry], fills: Sequence[Colour], top: float, pitch: float, size: int, shown: bool
) -> None:
    start = max(page.width(name, size) for name, _ in entries) + 6
    length = page.across - start - (size * 1.7 if shown else 4)
    for place, (name, value) in enumerate(entries):
        y = top + place * pitch
        end = start + length * float(value) / 100
        page.write(start - 3, y + (pitch - size) / 2, name, size, "right")
        page.draw.rectangle((start, y + 1, end, y + pitch * 0.8), fill=fills[place % len(fills)])
        if shown:
            page.write(end + 3, y + (pitch - size) / 2, value, size)


def _draw_upright_bars(
    page: Page, entries: Sequence[Entry], fills: Sequence[Colour], top: float, size: int, shown: bool
) -> None:
    slot = (page.across - 6) / len(entries)
    base = page.down - size * 1.5
    for place, (name, value) in enumerate(entries):
        x = 3 + slot * (place + 0.5)
        y = base - (base - top - size) * float(value) / 100
        half = slot * 0.34
        page.draw.rectangle((x - half, y, x + half, base), fill=fills[place % len(fills)])
        page.write(x, base + size * 0.35, name, size, "middle")
        if shown:
            page.write(x, y - size * 0.9, value, size, "middle")
    page.rule(3, base, page.across - 3, base)


def draw_lines(page: Page, words: Words) -> None:
    """A line over named points, with their values."""
    rng = page.rng
    size = page.size(SMALLEST, 14)
    title = _chart_title(page, words, size)
    count = rng.randint(2, max(2, min(6, int(page.across / (size * 3.2)))))
    entries = _chart_entries(page, words, count, (page.across - 6) / count, size)
    if len(entries) < 2:
        return
    slot = (page.across - 6) / len(entries)
    top, base = size * 2.5 + 6, page.down - size * 1.7
    shown = rng.random() < 0.75
    points = [
        (3 + slot * (place + 0.5), base - (base - top - size) * float(value) / 100 - 2)
        for place, (_, value) in enumerate(entries)
    ]
    for step in range(3):
        y = top + (base - top) * step / 3
        page.rule(3, y, page.across - 3, y, GUIDE)
    page.rule(3, base, page.across - 3, base)
    page.draw.line(points, fill=rng.choice(list(COLOURS.values())), width=2)
    for (x, y), (name, value) in zip(points, entries, strict=True):
        page.draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=page.ink)
        page.write(x, base + size * 0.35, name, size, "middle")
        if shown:
            page.write(x, y - size * 1.1, value, size, "middle")
    _ask_of_chart(page, "point", "line", title, entries, shown)


def draw_sign(page: Page, words: Words) -> None:
    """A coloured board with one to three lines, in a plain surrounding."""
    rng = page.rng
    colour = rng.choice(list(COLOURS))
    inset = page.vary(2, 0.15 * min(page.across, page.down))
    top, bottom = inset + page.vary(0, 0.1 * page.down), page.down - inset - page.vary(0, 0.25 * page.down)
    page.draw.rounded_rectangle((inset, top, page.across - inset, bottom), page.vary(0, 12), fill=COLOURS[colour])
    ink = contrasting(COLOURS[colour])
    room = page.across - 2 * inset - 8
    makers = (
        *(words.name, words.name, lambda: words.name().upper()),
        *(lambda: words.digits(10, 999), words.time, words.price),
    )
    texts = [words.name() if rng.random() < 0.6 else words.name().upper()]
    texts += [rng.choice(makers)() for _ in range(rng.randint(0, 2))]
    slot = (bottom - top - 6) / len(texts)
    for place, text in enumerate(texts):
        size = page.fitting(text, max(SMALLEST, min(round(slot * page.vary(0.6, 1.0)), 40)), room, bold=True)
        y = top + 3 + slot * place + (slot - size * 0.7) / 2
        page.write(page.across / 2, y, text, size, "middle", ink, bold=True)
    first, whole = page.lines[0], " ".join(texts)
    page.ask("sign", "What is the first line of the sign?", first.text, first)
    number = next((line for line in page.lines if line.text.replace(".", "").replace(":", "").isdigit()), None)
    if number:
        page.ask("sign", "What number is on the sign?", number.text, number)
    page.ask("sign", "What does the sign say?", whole, first)
    page.ask("colour", "What colour is the sign?", colour)
    page.ask("caption", "Describe the picture.", f"{article(colour).capitalize()} sign that says {whole}.", first)
    if not number:
        page.ask("unanswerable", "What number is on the sign?", "unanswerable", first)


def draw_scene(page: Page, words: Words) -> None:
    """Coloured shapes on a quiet background, some with a word on them."""
    rng = page.rng
    columns = rng.choice((2, 3))
    wide, high = page.across / columns, page.down / columns
    cells = [(row, column) for row in range(columns) for column in range(columns)]
    found = []
    for row, column in sorted(rng.sample(cells, rng.randint(1, columns + 1))):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        reach = min(wide, high) * page.vary(0.3, 0.46)
        x, y = wide * (column + 0.5), high * (row + 0.5)
        _draw_shape(page, shape, x, y, reach, colour)
        text = words.name()
        size = page.size(SMALLEST, 16)
        line = None
        if shape != "triangle" and page.width(text, size) < reach * 1.7 and rng.random() < 0.7:
            line = page.write(x, y - size * 0.35, text, size, "middle", contrasting(COLOURS[colour]))
        found.append((colour, shape, line))
    pairs = Counter((colour, shape) for colour, shape, _ in found)
    for colour, shape, line in found:
        if line and pairs[colour, shape] == 1:
            page.ask("sign", f"What is on the {colour} {shape}?", line.text, line)
    shapes = Counter(shape for _, shape, _ in found)
    shape = rng.choice(SHAPES)
    page.ask("count", f"How many {shape}s are there?", str(shapes[shape]))
    page.ask("count", "How many shapes are there?", str(len(found)))
    colour = rng.choice(list(COLOURS))
    page.ask("yesno", f"Is there a {colour} shape?", "yes" if colour in {one for one, *_ in found} else "no")
    for colour, shape, _ in found:
        if shapes[shape] == 1:
            page.ask("colour", f"What colour is the {shape}?", colour)
    listed = ", ".join(f"{article(colour)} {shape}" for colour, shape, _ in found)
    page.ask("caption", "Describe the picture.", f"There is {listed}.")
    missing = [shape for shape in SHAPES if shape not in shapes]
    if missing:
        page.ask("unanswerable", f"What colour is the {rng.choice(missing)}?", "unanswerable")


def _draw_shape(page: Page, shape: str, x: float, y: float, reach: float, colour: str) -> None:
    fill = COLOURS[colour]
    if shape == "circle":
        page.draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)
    elif shape == "square":
        page.draw.rectangle((x - reach, y - reach, x + reach, y + reach), fill=fill)
    elif shape == "triangle":
        page.draw.polygon([(x, y - reach), (x + reach, y + reach), (x - reach, y + reach)], fill=fill)
    else:
        page.draw.rectangle((x - reach, y - reach * 0.45, x + reach, y + reach * 0.45), fill=fill)


def draw_paragraph(page: Page, words: Words) -> None:
    """Short sentences, set in lines; sometimes under a headline."""
    rng = page.rng
    size = page.size(SMALLEST, 18)
    margin = page.vary(2, 0.1 * page.across)
    y = page.vary(2, 0.15 * page.down)
    pitch = size * page.vary(1.15, 1.6)
    room = page.across - 2 * margin
    if rng.random() < 0.4:
        title = f"{words.name()} {words.name()}"
        big = page.fitting(title, round(size * 1.5), room, bold=True)
        page.ask("sign", "What is the title?", title, page.write(margin, y, title, big, bold=True))
        y += big * 1.5
    count = rng.randint(1, min(max(1, int((page.down - y) / pitch)), 12))
    lines = [
        text for text in _set_lines(page, words, count, size, room) if page.width(text, size) <= page.across - margin
    ]
    for text in lines:
        page.write(margin, y, text, size)
        y += pitch
    if not lines:
        return
    last = page.lines[-1]
    page.ask("count", "How many lines of text are there?", str(len(page.lines)), last)
    if len(lines) > 1:
        page.ask("line", "What is the last line?", last.text, last)
    written = " ".join(lines).split()
    for index in rng.sample(range(len(written) - 1), min(2, len(written) - 1)):
        if written.count(written[index]) == 1:
            page.ask("line", f"Which word comes after {written[index]}?", written[index + 1].strip("."), last)
    other = words.name()
    word = rng.choice(written).strip(".") if rng.random() < 0.5 else other
    does_occur = word in {piece.strip(".") for piece in written}
    page.ask("yesno", f"Does the word {word} occur?", "yes" if does_occur else "no", last)
    page.ask("caption", "Describe the picture.", f"A text of {len(page.lines)} lines.", last)


def _set_lines(page: Page, words: Words, count: int, size: int, room: float) -> list[str]:
    """Break sentences into `count` lines that are as wide as `room`, where a single word is not wider."""
    lines: list[str] = []
    while len(lines) < count:
        current = ""
        for word in words.sentence().split():
            longer = f"{current} {word}".strip()
            if page.width(longer, size) <= room or not current:
                current = longer
            else:
                lines.append(current)
                current = word
        lines.append(current)
    return lines[:count]


def filled_page(rng: random.Random, side: int, held_out: bool, held_out_face: bool) -> Page:
    """Draw a page that texts fill from edge to edge, for a vision transformer that learns what letters look like.

    Texts run over every edge, sizes and typefaces change within a page, some lines are on a band of colour: a page
    holds several times the letters of a document, and each is one thing to learn. It is not yet finished.
    """
    page = Page(rng, side, faces.pick(rng, held_out_face, held_out), held_out, rng.choice(PAPERS), rng.choice(INKS))
    makers = _text_makers(Words(rng, held_out))
    is_uniform = rng.random() < 0.5
    size = page.size(SMALLEST, 20)
    y = rng.uniform(-4, 6)
    while y < side:
        if not is_uniform:
            size = page.size(SMALLEST, 20)
            if rng.random() < 0.3:
                page.family = faces.pick(rng, held_out_face, held_out)
        bold = rng.random() < 0.25
        height = faces.capital_height(page.family, size, bold)
        fill = None
        if rng.random() < 0.15:
            colour = rng.choice(list(COLOURS.values()))
            border = rng.uniform(2, 4)
            page.draw.rectangle((0, y - border, side, y + height + border), fill=colour)
            fill = contrasting(colour)
        x = rng.uniform(-6, 20)
        while x < side:
            text = rng.choice(makers)()
            if rng.random() < 0.15:
                text += rng.choice(":,.-")
            x = page.write(x, y, text, size, fill=fill, bold=bold).box[2] + size * rng.uniform(0.25, 1.2)
        y += max(height + 2.5, size * rng.uniform(1.05, 1.7)) + (4 if fill else 0)
    return page


def _text_makers(words: Words) -> list[Callable[[], str]]:
    return [
        *(words.name, words.name, words.person, words.price, words.price, words.date, words.time, words.code),
        *(words.phone, words.street, words.sentence),
        lambda: words.digits(1, 999),
        lambda: words.name().upper(),
        lambda: words.name().lower(),
    ]
