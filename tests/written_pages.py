"""Pages whose facts were written by hand, for what asks about them; their images are blank."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from monkey.data.pages.facts import Cell, Field, NumberFormat, Page, Shape, Table, Word

SIZE = (400, 600)
PITCH, COLUMN, HEIGHT, WIDTH = 20, 130, 9.0, 6.0
"""Pixels from line to line, from column to column, of capitals, and of a character."""


def set_lines(lines: Sequence[Sequence[str]]) -> tuple[Word, ...]:
    """Set lines of texts, each in a column of its own, as words with boxes."""
    words = []
    for line, texts in enumerate(lines):
        for column, text in enumerate(texts):
            x = 10 + COLUMN * column
            for part in text.split():
                right = x + WIDTH * len(part)
                top = 10 + PITCH * line
                words.append(Word(part, (x, top, right, top + HEIGHT), line, HEIGHT))
                x = right + WIDTH
    return tuple(words)


def box_of(words: Sequence[Word], text: str) -> tuple[float, float, float, float]:
    """Return the box around the first place where a text stands."""
    parts = text.split()
    for start in range(len(words)):
        found = words[start : start + len(parts)]
        if [word.text for word in found] == parts:
            lefts, tops, rights, bottoms = zip(*(word.box for word in found), strict=True)
            return min(lefts), min(tops), max(rights), max(bottoms)
    raise AssertionError(f"{text!r} is not on the page")


RECEIPT_LINES = [
    ["Brodwen & Sons"],
    ["12 Hill Street"],
    ["Date: 03.11.2026"],
    ["Item", "Price"],
    ["Barley bread", "3,40 €"],
    ["Goat cheese", "12,75 €"],
    ["Pears", "1.204,10 €"],
    ["Subtotal", "1.220,25 €"],
    ["VAT 19 %", "231,85 €"],
    ["Total", "1.452,10 €"],
    ["Tel", "0171 5550123"],
]


def receipt() -> Page:
    """Return a receipt in euros with decimal commas, three items, and no due date."""
    words = set_lines(RECEIPT_LINES)

    def cell(text: str, number: float | None = None) -> Cell:
        return Cell(text, box_of(words, text), HEIGHT, number)

    def field(key: str, value: str, label: str = "", **more) -> Field:
        return Field(key, value, box_of(words, value), HEIGHT, label, **more)

    return Page(
        "receipt",
        "hand",
        Image.new("RGB", SIZE, "white"),
        words,
        (
            field("seller", "Brodwen & Sons", colour="blue"),
            field("address", "12 Hill Street"),
            field("date", "03.11.2026", "Date:", date="2026-11-03"),
            field("subtotal", "1.220,25 €", "Subtotal", number=1220.25),
            field("tax", "231,85 €", "VAT 19 %", number=231.85),
            field("total", "1.452,10 €", "Total", number=1452.10),
            field("phone", "0171 5550123", "Tel"),
        ),
        (
            Table(
                "item",
                ("Item", "Price"),
                ("", "price"),
                (
                    (cell("Barley bread"), cell("3,40 €", 3.4)),
                    (cell("Goat cheese"), cell("12,75 €", 12.75)),
                    (cell("Pears"), cell("1.204,10 €", 1204.10)),
                ),
            ),
        ),
        NumberFormat("€", is_before=False, is_spaced=True, decimal=",", thousands="."),
        absent=("due_date", "customer", "email", "cash", "subtotal"),
        description="A receipt of Brodwen & Sons over 1.452,10 €.",
    )


TIMETABLE_LINES = [
    ["Departures"],
    ["Train", "Time", "Track"],
    ["R 12", "08:15", "4 b"],
    ["Night star", "23:40", "11"],
    ["R 7", "09:05", "4 a"],
]


def timetable() -> Page:
    """Return departures with times of day."""
    words = set_lines(TIMETABLE_LINES)
    rows = tuple(tuple(Cell(text, box_of(words, text), HEIGHT) for text in line) for line in TIMETABLE_LINES[2:])
    return Page(
        "timetable",
        "hand",
        Image.new("RGB", SIZE, "white"),
        words,
        (Field("title", "Departures", box_of(words, "Departures"), 14.0),),
        (Table("departure", ("Train", "Time", "Track"), ("", "departure", "platform"), rows),),
        absent=("phone", "gate"),
    )


CHART_LINES = [["Visitors by month"], ["Alpha Bravo Carol Delta"]]


def chart() -> Page:
    """Return a chart of bars without numbers on them; two of them are as good as equal."""
    words = set_lines(CHART_LINES)
    values = {"Alpha": 10.0, "Bravo": 45.0, "Carol": 44.9, "Delta": 20.0}
    rows = tuple(
        (Cell(name, box_of(words, name), HEIGHT, colour=colour), Cell("", None, 0.0, value))
        for (name, value), colour in zip(values.items(), ("red", "blue", "blue", "green"), strict=True)
    )
    return Page(
        "bars",
        "hand",
        Image.new("RGB", SIZE, "white"),
        words,
        (Field("title", "Visitors by month", box_of(words, "Visitors by month"), 14.0),),
        (Table("category", ("", ""), ("", "value"), rows, shown=False),),
        absent=("total", "phone", "date"),
    )


PARAGRAPH_LINES = [
    ["The harbour was quiet when Ellen came"],
    ["back from the northern islands, and"],
    ["nobody asked about the total of her"],
    ["journeys. She kept a blue notebook"],
    ["in which every date was crossed out."],
    ["Later she sold the boat to a baker"],
    ["who never sailed. It still lies there"],
    ["beside the wall, painted green now,"],
    ["and children climb on it in summer."],
    ["Ellen"],
]


def letter() -> Page:
    """Return ten lines of running text in which the words "total" and "date" occur."""
    words = set_lines(PARAGRAPH_LINES)
    return Page(
        "letter",
        "hand",
        Image.new("RGB", SIZE, "white"),
        words,
        (Field("signature", "Ellen", words[-1].box, HEIGHT),),
        absent=("total", "date", "phone", "sender", "email"),
    )


def scene() -> Page:
    """Return a scene of shapes without any text."""
    shapes = (
        Shape("circle", "red", (10, 10, 90, 90)),
        Shape("box", "orange", (120, 10, 180, 90)),
        Shape("box", "blue", (120, 210, 180, 290)),
    )
    return Page(
        "scene", "hand", Image.new("RGB", SIZE, "white"), shapes=shapes, description="A red circle and two boxes."
    )


def noise() -> Page:
    """Return an image of nothing."""
    return Page("noise", "hand", Image.new("RGB", SIZE, "grey"), description="Coloured noise.")


PAGES = (receipt, timetable, chart, letter, scene, noise)
