"""What a drawn page is: its image, and everything that stands on it and can be asked.

Boxes are (left, top, right, bottom) in pixels of the finished image, after whatever a camera or a scanner did to it, so
that nothing has to be moved later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from PIL import Image

Box = tuple[float, float, float, float]


def around(boxes: Iterable[Box]) -> Box:
    """Return the smallest box around boxes, of which there is at least one."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


@dataclass(frozen=True)
class Word:
    """A word as it was printed, in reading order among its page's words.

    Attributes:
        line: number of the printed line that it stands in; words of one line are neighbours in the order.
        height: pixels of its capital letters.
    """

    text: str
    box: Box
    line: int
    height: float


@dataclass(frozen=True)
class Field:
    """A thing that the page states once: the total, who wrote it, when it is due.

    Attributes:
        key: what it is, such as "total", "invoice_number", "seller": a key of the wordings.
        value: as printed, line breaks as spaces.
        label: as printed beside it; empty where nothing is, as a shop's name has none.
        box: of the value.
        height: pixels of the value's capital letters.
        number: the value as a number, where it is one: an amount, a quantity.
        date: the value as an ISO date, where it is one.
        colour: the name of the colour of its letters or of what it marks, where that can be asked.
    """

    key: str
    value: str
    box: Box
    height: float
    label: str = ""
    number: float | None = None
    date: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table as printed.

    Text and box are empty where nothing is printed; of a bar without a number on it, the number alone is there.

    Attributes:
        colour: the name of the colour of the bar, slice or points that a row of a chart is drawn as, in its first cell.
    """

    text: str
    box: Box | None
    height: float
    number: float | None = None
    colour: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of things with columns of their properties: items of a receipt, a timetable, a chart's series.

    Attributes:
        key: what its rows are: "item", "departure", "dish", "category", a key of the wordings.
        columns: names of the columns, the first of which names the rows.
        column_keys: of each column a key of the wordings ("price", "quantity"), or "" where only its name says it.
        rows: cells, as many a row as there are columns.
        shown: whether the columns' names are printed on the page.
        column_colours: of a line chart, the names of the colours of the lines that columns are; "" of other columns.
    """

    key: str
    columns: tuple[str, ...]
    column_keys: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shown: bool = True
    column_colours: tuple[str, ...] = ()


@dataclass(frozen=True)
class NumberFormat:
    """How a page prints amounts: `currency` before or behind, with or without a space, and its marks."""

    currency: str = ""
    is_before: bool = True
    is_spaced: bool = False
    decimal: str = "."
    thousands: str = ","
    decimals: int = 2


@dataclass(frozen=True)
class Shape:
    """A thing in a scene: what it is, its colour, its box."""

    name: str
    colour: str
    box: Box


@dataclass(frozen=True)
class Page:
    """An image and what stands on it.

    Attributes:
        kind: of document, such as "receipt"; "scene", "gradient", "noise" or "texture" where there is no text.
        template: which of the kind's layouts; those of the held-out splits are no others' layouts.
        words: all printed words in reading order, those of fields and tables among them.
        absent: keys of fields that a page of this kind may have and this one has not, to be asked as unanswerable.
    """

    kind: str
    template: str
    image: Image.Image
    words: tuple[Word, ...] = ()
    fields: tuple[Field, ...] = ()
    tables: tuple[Table, ...] = ()
    numbers: NumberFormat = field(default_factory=NumberFormat)
    shapes: tuple[Shape, ...] = ()
    absent: tuple[str, ...] = ()
    description: str = ""
