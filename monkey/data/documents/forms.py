"""Documents of labelled values: receipts, product labels, forms; and tickets, a layout kept for fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from monkey.data.documents.layout import COLOURS, SMALLEST, Line, Page, contrasting
from monkey.data.documents.words import Words, article


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


def _ask_field(page: Page, name: str, value: Line) -> None:
    page.ask("field", f"What is the {FIELDS[name].asked}?", value.text, value)


def _ask_absent(page: Page, present: Sequence[str], possible: Sequence[str]) -> None:
    """Ask about a field that the document does not have."""
    absent = [name for name in possible if name not in present]
    if absent:
        page.ask("unanswerable", f"What is the {FIELDS[page.rng.choice(absent)].asked}?", "unanswerable")


def _write_fields(
    page: Page, words: Words, names: Sequence[str], area: tuple[float, float, float, float], size: int
) -> list[str]:
    """Write labelled values one below the other in an area, as many as fit, and ask for them; return their names."""
    left, top, right, bottom = area
    pitch = size * page.vary(1.15, 1.7)
    separator = page.rng.choice((":", ":", "", " -"))
    bold_labels = page.rng.random() < 0.3
    spread = page.rng.choice(("beside", "right", "aligned"))
    written: list[str] = []
    labels = {name: page.rng.choice(FIELDS[name].labels) for name in names}
    indent = max(page.width(f"{label}{separator}", size, bold_labels) for label in labels.values()) + size * 0.6
    y = top
    for name in names:
        value = FIELDS[name].make(words)
        label = labels[name] + separator
        start = indent if spread == "aligned" else page.width(label, size, bold_labels) + size * 0.5
        is_below = left + start + page.width(value, size) > right
        if y + size * (2.2 if is_below else 1) > bottom:
            break
        if is_below and left + page.width(value, size) > right:
            continue
        page.write(left, y, label, size, bold=bold_labels)
        if is_below:
            y += size * 1.15
            line = page.write(left, y, value, size)
        elif spread == "right":
            line = page.write(right, y, value, size, align="right")
        else:
            line = page.write(left + start, y, value, size)
        written.append(name)
        _ask_field(page, name, line)
        y += pitch
    return written


def draw_receipt(page: Page, words: Words) -> None:
    """Shop, date, priced lines and their total, on a strip of paper."""
    rng = page.rng
    size = page.size(SMALLEST, 18)
    margin = page.vary(2, 0.12 * page.across)
    left, right = margin, page.across - margin
    y = page.vary(3, 10)
    shop = words.name().upper()
    title_size = page.fitting(shop, round(size * page.vary(1.1, 1.8)), right - left)
    align = rng.choice(("left", "middle"))
    x = left if align == "left" else page.across / 2
    title = page.write(x, y, shop, title_size, align, bold=rng.random() < 0.5)
    page.ask("field", "What is the name of the shop?", shop, title)
    y += title_size * 1.25
    present = []
    for name in rng.sample(("date", "time", "phone"), rng.choice((0, 1, 1, 2))):
        text = FIELDS[name].make(words)
        if page.width(text, size) > right - left or y > 0.4 * page.down:
            continue
        _ask_field(page, name, page.write(x, y, text, size, align))
        present.append(name)
        y += size * 1.25
    page.rule(left, y, right, y)
    y += size * 0.4
    prices, y = _write_prices(page, words, (left, y, right), size)
    page.rule(left, y, right, y)
    y += size * 0.4
    total = words.price(199)
    room = right - left - page.width(total, size, bold=True) - 3
    labels = [text for text in ("Total", "TOTAL", "Sum", "To pay") if page.width(text, size, bold=True) <= room]
    if not prices or not labels:
        page.questions.clear()
        return
    page.write(left, y, rng.choice(labels), size, bold=True)
    line = page.write(right, y, total, size, align="right", bold=True)
    page.ask("field", "What is the total?", total, line)
    page.ask("count", "How many items are there?", str(len(prices)), line)
    (low, cheapest), (high, dearest) = min(prices), max(prices)
    if low < high:
        page.ask("compare", "Which item costs the most?", dearest, line)
        page.ask("compare", "Which item costs the least?", cheapest, line)
    item = rng.choice((rng.choice(prices)[1], words.name()))
    page.ask("yesno", f"Is {item} on the receipt?", "yes" if item in {name for _, name in prices} else "no", line)
    page.ask("caption", "Describe the picture.", f"A receipt of {shop}.", title)
    _ask_absent(page, present, ("date", "time", "phone", "seat", "batch"))


def _write_prices(
    page: Page, words: Words, area: tuple[float, float, float], size: int
) -> tuple[list[tuple[float, str]], float]:
    """Write items with their prices between left, top and right; return (price, item) pairs and where they end."""
    left, y, right = area
    pitch = size * page.vary(1.1, 1.6)
    most = max(1, min(8, int((page.down - y - 1.8 * size) / pitch)))
    prices = []
    for item in words.some(words.name, page.rng.randint(1, most)):
        price = words.price(29)
        if page.width(item, size) > right - left - page.width(price, size) - size:
            continue
        page.write(left, y, item, size)
        page.ask("cell", f"What does {item} cost?", price, page.write(right, y, price, size, align="right"))
        prices.append((float(price), item))
        y += pitch
    return prices, y


def draw_label(page: Page, words: Words) -> None:
    """A product's label: its name on a coloured band, and a few facts."""
    rng = page.rng
    size = page.size(SMALLEST, 18)
    colour = rng.choice(list(COLOURS))
    band = page.vary(0.16, 0.32) * page.down
    is_low = rng.random() < 0.25
    top = page.down - band if is_low else 0
    page.draw.rectangle((0, top, page.across, top + band), fill=COLOURS[colour])
    product = words.name()
    big = page.fitting(product, round(band * 0.8), page.across * 0.9, bold=True)
    y = top + (band - big * 0.7) / 2
    title = page.write(page.across / 2, y, product, big, "middle", contrasting(COLOURS[colour]), bold=True)
    margin = page.vary(3, 0.1 * page.across)
    names = rng.sample(LABEL, len(LABEL))
    area = (margin, (0 if is_low else band) + size * 0.6, page.across - margin, page.down - (band if is_low else 0) - 2)
    present = _write_fields(page, words, names[: rng.randint(2, len(LABEL))], area, size)
    page.ask("sign", "What is the product?", product, title)
    page.ask("colour", "What colour is the band?", colour)
    page.ask("caption", "Describe the picture.", f"{article(colour).capitalize()} label for {product}.", title)
    _ask_absent(page, present, LABEL)


def draw_form(page: Page, words: Words) -> None:
    """A heading over labelled values, in one or, where there is room, two columns."""
    rng = page.rng
    size = page.size(SMALLEST, 17)
    margin = page.vary(3, 0.1 * page.across)
    y = page.vary(3, 12)
    about = ""
    if rng.random() < 0.7:
        title = f"{words.name()} {rng.choice(('form', 'report', 'order', 'list'))}"
        about = f" titled {title}"
        big = page.fitting(title, round(size * page.vary(1.1, 1.6)), page.across - 2 * margin, bold=True)
        page.ask("sign", "What is the title?", title, page.write(margin, y, title, big, bold=True))
        y += big * 1.4
    names = rng.sample(FORM, len(FORM))
    right, bottom = page.across - margin, page.down - 2
    if page.across >= 180 and size <= 12 and rng.random() < 0.5:
        middle = page.across * page.vary(0.45, 0.55)
        present = _write_fields(page, words, names[:5], (margin, y, middle - 4, bottom), size)
        present += _write_fields(page, words, names[5:], (middle + 4, y, right, bottom), size)
    else:
        present = _write_fields(page, words, names[: rng.randint(2, len(FORM))], (margin, y, right, bottom), size)
    if present:
        name, value = rng.choice(FORM), page.lines[-1]
        page.ask("yesno", f"Does it give the {FIELDS[name].asked}?", "yes" if name in present else "no", value)
        page.ask("count", "How many fields are there?", str(len(present)), value)
        page.ask("caption", "Describe the picture.", f"A form{about}.", value)
    _ask_absent(page, present, FORM)


def draw_ticket(page: Page, words: Words) -> None:
    """A ticket: places in large type, a stub with values above their labels. Never in the train split of documents."""
    rng = page.rng
    size = page.size(SMALLEST, 14)
    margin = page.vary(3, 0.06 * page.across)
    places = [words.name(), words.name()]
    y = page.vary(4, 0.1 * page.down)
    for name, place in zip(("from", "to"), places, strict=True):
        big = page.fitting(place, round(size * page.vary(1.3, 1.9)), page.across - 2 * margin - size * 3)
        page.write(margin, y + 1, FIELDS[name].labels[0].upper(), SMALLEST)
        _ask_field(page, name, page.write(page.across - margin, y, place, big, "right", bold=True))
        y += big * 1.35
    origin = page.lines[1]
    for x in range(0, page.across, 6):
        page.rule(x, y, x + 3, y)
    y += size * 0.6
    names = rng.sample(TICKET[2:], len(TICKET) - 2)
    columns = 2 if page.across < 180 else 3
    width = (page.across - 2 * margin) / columns
    present = ["from", "to"]
    for place, name in enumerate(names):
        row, column = divmod(place, columns)
        value = FIELDS[name].make(words)
        x, top = margin + column * width, y + row * size * 3
        if top + size * 2.3 > page.down or page.width(value, size, bold=True) > width - 3:
            continue
        line = page.write(x, top, value, size, bold=True)
        page.write(x, top + size * 1.15, FIELDS[name].labels[0].lower(), SMALLEST)
        present.append(name)
        _ask_field(page, name, line)
    page.ask("caption", "Describe the picture.", f"A ticket from {places[0]} to {places[1]}.", origin)
    _ask_absent(page, present, TICKET)
