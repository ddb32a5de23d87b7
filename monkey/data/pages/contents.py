"""What a page says: its fields, its tables, its running text, arranged in groups for the templates.

A kind of page is a function `(writer, room) -> Content` of `business.py` or `everyday.py`, where `room` says how much
its page can hold. How it looks is for `templates/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from monkey.data.pages.facts import NumberFormat
from monkey.data.pages.spelling import Writer
from monkey.data.pages.stated import FACTS, Value


@dataclass(frozen=True)
class Room:
    """What a page can hold, in em of its text: `width` across and at most `lines` lines."""

    width: float
    lines: int


@dataclass(frozen=True)
class Grid:
    """A table to be printed; as `facts.Table`, with values for cells.

    Attributes:
        is_drawn: whether its numbers stand there as bars, lines or points where they are not printed.
        row_colours: of a chart, names of the colours of what the rows are drawn as.
    """

    key: str
    columns: tuple[str, ...]
    column_keys: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    shown: bool = True
    is_drawn: bool = False
    row_colours: tuple[str, ...] = ()
    column_colours: tuple[str, ...] = ()


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


def state_title(content: Content, writer: Writer, text: str) -> None:
    """Add a title."""
    state(content, writer, "title", label="", value=Value(text))


def share_out(writer: Writer, most: int, least: int = 1) -> int:
    """Return how many rows to print where there is room for so many: mostly no less than a third."""
    return max(least, writer.rng.randint(-(-most // 3), max(1, most)))


_IN_ORDER = (
    ("date", "due_date"), ("production_date", "expiry_date"), ("valid_from", "valid_until"),
    ("start_date", "end_date"), ("arrival_date", "end_date"),
    ("boarding_time", "departure_time"), ("departure_time", "arrival_time"), ("start_time", "end_time"),
)  # fmt: skip
"""Fields of which the first comes before the second in time."""


def put_in_order(content: Content) -> None:
    """Exchange the values of two fields where what comes first, as production before expiry, came out later."""
    for first, second in _IN_ORDER:
        if first in content.fields and second in content.fields:
            (label, one), (other_label, other) = content.fields[first], content.fields[second]
            if (one.date or one.text) > (other.date or other.text):
                content.fields[first], content.fields[second] = (label, other), (other_label, one)
