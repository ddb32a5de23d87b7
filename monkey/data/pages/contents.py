"""What a page of each kind says: its fields, its tables, its running text, arranged in groups for the templates.

A kind is a function `(writer, room) -> Content`, where `room` says how much its page can hold. How it looks is for
`templates/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from monkey.data.pages.facts import NumberFormat
from monkey.data.pages.spelling import Writer, write_number
from monkey.data.pages.stated import FACTS, Value, amount


@dataclass(frozen=True)
class Room:
    """What a page can hold, in em of its text: `width` across and at most `lines` lines."""

    width: float
    lines: int


@dataclass(frozen=True)
class Grid:
    """A table to be printed; as `facts.Table`, with values for cells."""

    key: str
    columns: tuple[str, ...]
    column_keys: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    shown: bool = True


@dataclass
class Content:
    """What a page says.

    Attributes:
        fields: by key, the label in print and the value.
        groups: keys of fields that a template prints together, by the name of the group.
        possible: keys that a page of this kind may have.
    """

    numbers: NumberFormat
    possible: tuple[str, ...]
    fields: dict[str, tuple[str, Value]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    tables: list[Grid] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    description: str = ""


Write = Callable[[Writer, Room], Content]


def begin(writer: Writer, possible: str) -> Content:
    """Return a content without anything, of a kind that may have these fields."""
    return Content(writer.numbers, tuple(possible.split()))


def state(
    content: Content, writer: Writer, key: str, group: str = "", label: str | None = None, value: Value | None = None
) -> Value:
    """Add a field, with a label of `FACTS` unless one is given, and a value made for it unless one is given."""
    if label is None:
        taken = {label for label, _ in content.fields.values()}
        label = next((one for one in writer.shuffled(FACTS[key][0]) if one not in taken), FACTS[key][0][-1])
    content.fields[key] = label, value or FACTS[key][1](writer)
    if group:
        content.groups.setdefault(group, []).append(key)
    return content.fields[key][1]


def state_some(
    content: Content, writer: Writer, keys: Sequence[str], least: int, most: int, group: str, bare: bool = False
) -> None:
    """Add some of these fields in random order, without labels where `bare`; never two that share a label."""
    keys = [key for key in keys if key not in content.fields]
    for key in writer.rng.sample(keys, min(len(keys), writer.rng.randint(least, most))):
        taken = {label for label, _ in content.fields.values()} - {""}
        if bare:
            state(content, writer, key, group, label="")
        elif not taken.issuperset(FACTS[key][0]):
            state(content, writer, key, group)


def write_receipt(writer: Writer, room: Room) -> Content:
    """A shop, what was bought, and what it came to: the sums are right."""
    rng = writer.rng
    content = begin(
        writer,
        """seller seller_address phone website vat_number date time receipt_number cashier server table_number guests
        order_number transaction subtotal tax discount tip total cash change payment_method card_number points thanks
        barcode""",
    )
    state(content, writer, "seller", label="")
    state_some(content, writer, ("seller_address", "website"), 0, 2, "head", bare=True)
    state_some(content, writer, ("phone", "vat_number"), 0, 2, "head")
    state_some(
        content,
        writer,
        (
            "date",
            "time",
            "receipt_number",
            rng.choice(("cashier", "server")),
            "table_number",
            "guests",
            "order_number",
            "transaction",
        ),
        1,
        5,
        "facts",
    )
    used = sum(map(len, content.groups.values())) + 8
    most = max(1, min(16, room.lines - used))
    count = rng.randint(-(-most // 3), most)
    names = writer.some(writer.goods, count)
    has_quantity = rng.random() < 0.4
    prices = [writer.number(0.4, 60) for _ in names]
    quantities = [rng.choice((1, 1, 1, 2, 2, 3, 4, 6)) if has_quantity else 1 for _ in names]
    sums = [round(price * quantity, 2) for price, quantity in zip(prices, quantities, strict=True)]
    shows_currency = rng.random() < 0.5

    def money(number: float) -> Value:
        return Value(writer.amount(number) if shows_currency else write_number(number, writer.numbers), number)

    if has_quantity:
        rows = [
            (Value(name), Value(f"{quantity}{writer.choice(('', ' x'))}", float(quantity)), money(total))
            for name, quantity, total in zip(names, quantities, sums, strict=True)
        ]
        columns, keys = (
            ("Item", writer.choice(("Qty", "Quantity")), writer.choice(("Price", "Amount", "Total"))),
            ("", "quantity", "price"),
        )
    else:
        rows = [(Value(name), money(total)) for name, total in zip(names, sums, strict=True)]
        columns, keys = (writer.choice(("Item", "Article", "Description")), "Price"), ("", "price")
    content.tables.append(Grid("item", columns, keys, tuple(rows), shown=rng.random() < 0.5))
    subtotal = total = round(sum(sums), 2)
    if rng.random() < 0.6:
        state(
            content,
            writer,
            "subtotal",
            "sums",
            writer.choice(("Subtotal", "Sub-total", "Net")),
            amount(writer, subtotal),
        )
    if rng.random() < 0.25:
        reduction = round(subtotal * rng.choice((0.05, 0.1, 0.15, 0.2)), 2)
        total -= reduction
        state(content, writer, "discount", "sums", value=amount(writer, -reduction))
    if rng.random() < 0.6:
        rate = rng.choice((5, 7, 8, 10, 19, 20, 21))
        tax = round(total * rate / 100, 2)
        total += tax
        label = writer.choice((f"VAT {rate}%", "Tax", "VAT", f"Tax {rate}%", "Sales tax"))
        state(content, writer, "tax", "sums", label, amount(writer, tax))
    if rng.random() < 0.15:
        tip = float(rng.randint(1, 9))
        total += tip
        state(content, writer, "tip", "sums", value=amount(writer, tip))
    total = round(total, 2)
    state(
        content,
        writer,
        "total",
        "",
        writer.choice(("Total", "TOTAL", "Total due", "Grand total", "Sum", "To pay", "Amount due")),
        amount(writer, total),
    )
    if rng.random() < 0.35:
        cash = float(-(-total // rng.choice((5, 10, 20, 50))) * 5)
        cash = max(cash, float(-(-total // 5) * 5))
        state(content, writer, "cash", "paid", writer.choice(("Cash", "Cash given", "Paid")), amount(writer, cash))
        state(content, writer, "change", "paid", writer.choice(("Change", "Change due")), amount(writer, cash - total))
    else:
        state_some(content, writer, ("payment_method", "card_number", "points"), 0, 2, "paid")
    state_some(content, writer, ("thanks",), 0, 1, "foot", bare=True)
    content.description = f"A receipt of {content.fields['seller'][1].text} over {content.fields['total'][1].text}."
    return content


CONTENTS: Mapping[str, Write] = {"receipt": write_receipt}
