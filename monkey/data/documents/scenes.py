"""Signs, coloured scenes, and short paragraphs."""

from __future__ import annotations

from collections import Counter

from monkey.data.documents.fields import SMALLEST
from monkey.data.documents.page import COLOURS, Page, Question, contrasting
from monkey.data.documents.words import Words, article

SHAPES = ("circle", "square", "triangle", "bar")


def draw_sign(page: Page, words: Words) -> list[Question]:
    """A coloured board with one to three lines, in a plain surrounding."""
    rng = page.rng
    colour = rng.choice(list(COLOURS))
    inset = page.vary(2, 0.15 * page.side)
    top, bottom = inset + page.vary(0, 0.1 * page.side), page.side - inset - page.vary(0, 0.25 * page.side)
    page.draw.rounded_rectangle((inset, top, page.side - inset, bottom), page.vary(0, 12), fill=COLOURS[colour])
    ink = contrasting(COLOURS[colour])
    room = page.side - 2 * inset - 8
    makers = (
        words.name,
        words.name,
        lambda: words.name().upper(),
        lambda: words.digits(10, 999),
        words.time,
        words.price,
    )
    texts = [words.name() if rng.random() < 0.6 else words.name().upper()]
    texts += [rng.choice(makers)() for _ in range(rng.randint(0, 2))]
    slot = (bottom - top - 6) / len(texts)
    questions = []
    for place, text in enumerate(texts):
        size = page.fitting(text, max(SMALLEST, min(round(slot * page.vary(0.6, 1.0)), 40)), room, bold=True)
        y = top + 3 + slot * place + (slot - size * 0.7) / 2
        line = page.write(page.side / 2, y, text, size, "middle", ink, bold=True)
        if place == 0:
            height = line.height
            questions.append(Question("sign", "What is the first line of the sign?", text, height))
        if text.replace(".", "").replace(":", "").isdigit() and not any(
            q.text == "What number is on the sign?" for q in questions
        ):
            questions.append(Question("sign", "What number is on the sign?", text, line.height))
    whole = " ".join(texts)
    questions.append(Question("sign", "What does the sign say?", whole, height))
    questions.append(Question("colour", "What colour is the sign?", colour))
    questions.append(
        Question("caption", "Describe the picture.", f"{article(colour).capitalize()} sign that says {whole}.", height)
    )
    if not any(q.text == "What number is on the sign?" for q in questions):
        questions.append(Question("unanswerable", "What number is on the sign?", "unanswerable", height))
    return questions


def draw_scene(page: Page, words: Words) -> list[Question]:
    """Coloured shapes on a quiet background, some with a word on them."""
    rng = page.rng
    columns = rng.choice((2, 3))
    cell = page.side / columns
    places = rng.sample(
        [(row, column) for row in range(columns) for column in range(columns)], rng.randint(1, columns + 1)
    )
    colours = list(COLOURS)
    found: list[tuple[str, str, str]] = []
    questions = []
    for row, column in sorted(places):
        colour, shape = rng.choice(colours), rng.choice(SHAPES)
        reach = cell * page.vary(0.3, 0.46)
        x, y = cell * (column + 0.5), cell * (row + 0.5)
        fill = COLOURS[colour]
        if shape == "circle":
            page.draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)
        elif shape == "square":
            page.draw.rectangle((x - reach, y - reach, x + reach, y + reach), fill=fill)
        elif shape == "triangle":
            page.draw.polygon([(x, y - reach), (x + reach, y + reach), (x - reach, y + reach)], fill=fill)
        else:
            page.draw.rectangle((x - reach, y - reach * 0.45, x + reach, y + reach * 0.45), fill=fill)
        text = words.name()
        size = page.size(SMALLEST, 16)
        if shape in ("square", "bar", "circle") and page.width(text, size) < reach * 1.7 and rng.random() < 0.7:
            line = page.write(x, y - size * 0.35, text, size, "middle", contrasting(fill))
            found.append((colour, shape, text))
            questions.append(Question("sign", f"What is on the {colour} {shape}?", text, line.height))
        else:
            found.append((colour, shape, ""))
    counts = Counter((colour, shape) for colour, shape, _ in found)
    questions = [q for q in questions if not any(n > 1 and f"the {c} {s}?" in q.text for (c, s), n in counts.items())]
    shapes = Counter(shape for _, shape, _ in found)
    shape = rng.choice(SHAPES)
    questions.append(Question("count", f"How many {shape}s are there?", str(shapes[shape])))
    questions.append(Question("count", "How many shapes are there?", str(len(found))))
    colour = rng.choice(colours)
    present = {colour for colour, _, _ in found}
    questions.append(Question("yesno", f"Is there a {colour} shape?", "yes" if colour in present else "no"))
    for name, times in shapes.items():
        if times == 1:
            its = next(colour for colour, shape, _ in found if shape == name)
            questions.append(Question("colour", f"What colour is the {name}?", its))
    listed = ", ".join(f"{article(colour)} {shape}" for colour, shape, _ in found)
    questions.append(Question("caption", "Describe the picture.", f"There is {listed}."))
    missing = [name for name in SHAPES if name not in shapes]
    if missing:
        questions.append(Question("unanswerable", f"What colour is the {rng.choice(missing)}?", "unanswerable"))
    return questions


def draw_paragraph(page: Page, words: Words) -> list[Question]:
    """Short sentences, set in lines; sometimes under a headline."""
    rng = page.rng
    size = page.size(SMALLEST, 18)
    margin = page.vary(2, 0.1 * page.side)
    y = page.vary(2, 0.15 * page.side)
    pitch = size * page.vary(1.15, 1.6)
    questions = []
    if rng.random() < 0.4:
        title = f"{words.name()} {words.name()}"
        big = page.fitting(title, round(size * 1.5), page.side - 2 * margin, bold=True)
        line = page.write(margin, y, title, big, bold=True)
        questions.append(Question("sign", "What is the title?", title, line.height))
        y += big * 1.5
    room = page.side - 2 * margin
    most = max(1, int((page.side - y) / pitch))
    lines: list[str] = []
    wanted = rng.randint(1, min(most, 12))
    while len(lines) < wanted:
        current = ""
        for word in words.sentence().split():
            longer = f"{current} {word}".strip()
            if page.width(longer, size) <= room or not current:
                current = longer
            else:
                lines.append(current)
                current = word
        lines.append(current)
    lines = [text for text in lines[:wanted] if page.width(text, size) <= page.side - margin]
    for text in lines:
        page.write(margin, y, text, size)
        y += pitch
    if not lines:
        return questions
    height = page.lines[-1].height
    questions.append(Question("count", "How many lines of text are there?", str(len(page.lines)), height))
    if len(lines) > 1:
        questions.append(Question("line", "What is the last line?", lines[-1], height))
    words_of = [line.split() for line in lines]
    flat = [word for line in words_of for word in line]
    for index in rng.sample(range(len(flat) - 1), min(2, len(flat) - 1)):
        if flat.count(flat[index]) == 1:
            questions.append(
                Question("line", f"Which word comes after {flat[index]}?", flat[index + 1].strip("."), height)
            )
    name = words.name()
    known = rng.random() < 0.5
    word = rng.choice(flat).strip(".") if known else name
    answer = "yes" if word in {piece.strip(".") for piece in flat} else "no"
    questions.append(Question("yesno", f"Does the word {word} occur?", answer, height))
    questions.append(Question("caption", "Describe the picture.", f"A text of {len(page.lines)} lines.", height))
    return questions
