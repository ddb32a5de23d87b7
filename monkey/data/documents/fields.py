"""Documents of fields: receipts, product labels, forms; and tickets, a layout kept for fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from monkey.data.documents.page import COLOURS, Line, Page, Question, contrasting
from monkey.data.documents.words import Words, article

SMALLEST = 10
"""Smallest type size in pixels."""


@dataclass(frozen=True)
class Field:
    """A labelled value: what the label may say, what a question calls it, and how its value is made."""

    labels: tuple[str, ...]
    asked: str
    make: Callable[[Words], str]


FIELDS: Mapping[str, Field] = {
    "name": Field(("Name", "Customer"), "name", Words.person),
    "date": Field(("Date",), "date", Words.date),
    "phone": Field(("Phone", "Tel"), "phone number", Words.phone),
    "city": Field(("City", "Town"), "city", Words.name),
    "street": Field(("Street", "Address"), "address", Words.street),
    "order": Field(("Order", "No"), "order number", Words.code),
    "amount": Field(("Amount", "Sum"), "amount", Words.price),
    "time": Field(("Time", "At"), "time", Words.time),
    "age": Field(("Age",), "age", lambda words: words.digits(18, 99)),
    "weight": Field(("Weight", "Net"), "weight", lambda words: words.value(20, 950) + " g"),
    "batch": Field(("Batch", "Lot"), "batch", Words.code),
    "maker": Field(("Made by", "Maker"), "maker", Words.name),
    "price": Field(("Price",), "price", Words.price),
    "room": Field(("Room",), "room", lambda words: words.digits(10, 499)),
    "seat": Field(
        ("Seat",), "seat", lambda words: words.drawn(lambda: f"{words.rng.randint(1, 40)}{words.rng.choice('ABCDEF')}")
    ),
    "gate": Field(
        ("Gate",), "gate", lambda words: words.drawn(lambda: f"{words.rng.choice('ABCDE')}{words.rng.randint(1, 60)}")
    ),
    "from": Field(("From",), "place of departure", Words.name),
    "to": Field(("To",), "destination", Words.name),
}

FORM = ("name", "date", "phone", "city", "street", "order", "amount", "time", "age", "room")
LABEL = ("weight", "batch", "maker", "price", "date", "order")
TICKET = ("from", "to", "seat", "gate", "time", "date", "name")


def _ask(name: str, value: Line) -> Question:
    return Question("field", f"What is the {FIELDS[name].asked}?", value.text, value.height)


def _absent(page: Page, present: Sequence[str], possible: Sequence[str]) -> list[Question]:
    """A question about a field that the document does not have."""
    absent = [name for name in possible if name not in present]
    if not absent:
        return []
    return [Question("unanswerable", f"What is the {FIELDS[page.rng.choice(absent)].asked}?", "unanswerable")]


def _column(
    page: Page, words: Words, names: Sequence[str], area: tuple[float, float, float, float], size: int
) -> tuple[list[str], list[Question]]:
    """Labelled values one below the other in an area, as many as fit; returns the names drawn and their questions."""
    left, top, right, bottom = area
    pitch = size * page.vary(1.15, 1.7)
    separator = page.rng.choice((":", ":", "", " -"))
    bold_labels = page.rng.random() < 0.3
    spread = page.rng.choice(("beside", "right", "aligned"))
    drawn: list[str] = []
    questions = []
    labels = {name: page.rng.choice(FIELDS[name].labels) for name in names}
    indent = max(page.width(f"{label}{separator}", size, bold_labels) for label in labels.values()) + size * 0.6
    y = top
    for name in names:
        value = FIELDS[name].make(words)
        label = labels[name] + separator
        start = indent if spread == "aligned" else page.width(label, size, bold_labels) + size * 0.5
        below = left + start + page.width(value, size) > right
        if y + size * (2.2 if below else 1) > bottom:
            break
        if below and left + page.width(value, size) > right:
            continue
        page.write(left, y, label, size, bold=bold_labels)
        if below:
            y += size * 1.15
            line = page.write(left, y, value, size)
        elif spread == "right":
            line = page.write(right, y, value, size, align="right")
        else:
            line = page.write(left + start, y, value, size)
        drawn.append(name)
        questions.append(_ask(name, line))
        y += pitch
    return drawn, questions


def draw_receipt(page: Page, words: Words) -> list[Question]:
    """Shop, date, priced lines and their total, on a strip of paper."""
    rng = page.rng
    size = page.size(SMALLEST, 18)
    margin = page.vary(2, 0.12 * page.side)
    left, right = margin, page.side - margin
    y = page.vary(3, 10)
    shop = words.name().upper()
    title_size = page.fitting(shop, round(size * page.vary(1.1, 1.8)), right - left)
    align = rng.choice(("left", "middle"))
    title = page.write(left if align == "left" else page.side / 2, y, shop, title_size, align, bold=rng.random() < 0.5)
    y += title_size * 1.25
    questions = [Question("field", "What is the name of the shop?", shop, title.height)]
    drawn = []
    for name in rng.sample(("date", "time", "phone"), rng.choice((0, 1, 1, 2))):
        text = FIELDS[name].make(words)
        if page.width(text, size) > right - left or y > 0.4 * page.side:
            continue
        line = page.write(left if align == "left" else page.side / 2, y, text, size, align)
        drawn.append(name)
        questions.append(_ask(name, line))
        y += size * 1.25
    page.rule(left, y, right, y)
    y += size * 0.4
    pitch = size * page.vary(1.1, 1.6)
    count = 0
    most = max(1, min(8, int((page.side - y - 1.8 * size) / pitch)))
    prices = []
    for item in words.some(words.name, rng.randint(1, most)):
        price = words.price(29)
        room = right - left - page.width(price, size) - size
        if page.width(item, size) > room:
            continue
        page.write(left, y, item, size)
        line = page.write(right, y, price, size, align="right")
        questions.append(Question("cell", f"What does {item} cost?", price, line.height))
        prices.append((float(price), item))
        y += pitch
        count += 1
    page.rule(left, y, right, y)
    y += size * 0.4
    total = words.price(199)
    room = right - left - page.width(total, size, bold=True) - 3
    labels = [text for text in ("Total", "TOTAL", "Sum", "To pay") if page.width(text, size, bold=True) <= room]
    if not count or not labels:
        return []
    label = rng.choice(labels)
    page.write(left, y, label, size, bold=True)
    line = page.write(right, y, total, size, align="right", bold=True)
    questions.append(Question("field", "What is the total?", total, line.height))
    questions.append(Question("count", "How many items are there?", str(count), line.height))
    if count >= 2:
        (low, cheapest), (high, dearest) = min(prices), max(prices)
        if low < high:
            questions.append(Question("compare", "Which item costs the most?", dearest, line.height))
            questions.append(Question("compare", "Which item costs the least?", cheapest, line.height))
    if prices:
        item = rng.choice(prices)[1]
        other = rng.choice((item, words.name()))
        answer = "yes" if other in {name for _, name in prices} else "no"
        questions.append(Question("yesno", f"Is {other} on the receipt?", answer, line.height))
    questions.append(Question("caption", "Describe the picture.", f"A receipt of {shop}.", title.height))
    return questions + _absent(page, drawn, ("date", "time", "phone", "seat", "batch"))


def draw_label(page: Page, words: Words) -> list[Question]:
    """A product's label: its name on a coloured band, and a few facts."""
    rng = page.rng
    size = page.size(SMALLEST, 18)
    colour = rng.choice(list(COLOURS))
    band = page.vary(0.16, 0.32) * page.side
    low = rng.random() < 0.25
    top = page.side - band if low else 0
    page.draw.rectangle((0, top, page.side, top + band), fill=COLOURS[colour])
    product = words.name()
    big = page.fitting(product, round(band * 0.8), page.side * 0.9, bold=True)
    title = page.write(
        page.side / 2, top + (band - big * 0.7) / 2, product, big, "middle", contrasting(COLOURS[colour]), bold=True
    )
    margin = page.vary(3, 0.1 * page.side)
    names = rng.sample(LABEL, len(LABEL))
    area = (margin, (0 if low else band) + size * 0.6, page.side - margin, page.side - (band if low else 0) - 2)
    drawn, questions = _column(page, words, names[: rng.randint(2, len(LABEL))], area, size)
    questions.append(Question("sign", "What is the product?", product, title.height))
    questions.append(Question("colour", "What colour is the band?", colour))
    questions.append(
        Question(
            "caption", "Describe the picture.", f"{article(colour).capitalize()} label for {product}.", title.height
        )
    )
    return questions + _absent(page, drawn, LABEL)


def draw_form(page: Page, words: Words) -> list[Question]:
    """A heading over labelled values, in one or, where there is room, two columns."""
    rng = page.rng
    size = page.size(SMALLEST, 17)
    margin = page.vary(3, 0.1 * page.side)
    y = page.vary(3, 12)
    questions = []
    title = ""
    if rng.random() < 0.7:
        title = f"{words.name()} {rng.choice(('form', 'report', 'order', 'list'))}"
        big = page.fitting(title, round(size * page.vary(1.1, 1.6)), page.side - 2 * margin, bold=True)
        line = page.write(margin, y, title, big, bold=True)
        questions.append(Question("sign", "What is the title?", title, line.height))
        y += big * 1.4
    names = rng.sample(FORM, len(FORM))
    two = page.side >= 180 and size <= 12 and rng.random() < 0.5
    if two:
        middle = page.side * page.vary(0.45, 0.55)
        drawn, asked = _column(page, words, names[:5], (margin, y, middle - 4, page.side - 2), size)
        more, also = _column(page, words, names[5:], (middle + 4, y, page.side - margin, page.side - 2), size)
        drawn, asked = drawn + more, asked + also
    else:
        chosen = names[: rng.randint(2, len(FORM))]
        drawn, asked = _column(page, words, chosen, (margin, y, page.side - margin, page.side - 2), size)
    questions += asked
    if drawn:
        name = rng.choice(FORM)
        answer = "yes" if name in drawn else "no"
        questions.append(Question("yesno", f"Does it give the {FIELDS[name].asked}?", answer, asked[0].height))
        questions.append(Question("count", "How many fields are there?", str(len(drawn)), asked[0].height))
        about = f" titled {title}" if title else ""
        questions.append(Question("caption", "Describe the picture.", f"A form{about}.", asked[0].height))
    return questions + _absent(page, drawn, FORM)


def draw_ticket(page: Page, words: Words) -> list[Question]:
    """A ticket: places in large type, a stub with values above their labels. Never in the train split of documents."""
    rng = page.rng
    size = page.size(SMALLEST, 14)
    margin = page.vary(3, 0.06 * page.side)
    places = [words.name(), words.name()]
    y = page.vary(4, 0.1 * page.side)
    questions = []
    for name, place in zip(("from", "to"), places, strict=True):
        big = page.fitting(place, round(size * page.vary(1.3, 1.9)), page.side - 2 * margin - size * 3)
        page.write(margin, y + 1, FIELDS[name].labels[0].upper(), SMALLEST)
        line = page.write(page.side - margin, y, place, big, "right", bold=True)
        questions.append(_ask(name, line))
        y += big * 1.35
    for x in range(0, page.side, 6):
        page.rule(x, y, x + 3, y)
    y += size * 0.6
    names = rng.sample(TICKET[2:], len(TICKET) - 2)
    columns = 2 if page.side < 180 else 3
    width = (page.side - 2 * margin) / columns
    drawn = ["from", "to"]
    for place, name in enumerate(names):
        row, column = divmod(place, columns)
        value = FIELDS[name].make(words)
        x, top = margin + column * width, y + row * size * 3
        if top + size * 2.3 > page.side or page.width(value, size, bold=True) > width - 3:
            continue
        line = page.write(x, top, value, size, bold=True)
        page.write(x, top + size * 1.15, FIELDS[name].labels[0].lower(), SMALLEST)
        drawn.append(name)
        questions.append(_ask(name, line))
    questions.append(
        Question("caption", "Describe the picture.", f"A ticket from {places[0]} to {places[1]}.", questions[0].height)
    )
    return questions + _absent(page, drawn, TICKET)
