"""Numbers as a page prints them: the frame around one (currency, marks, decimals), read off and used for another.

A sum is printed as its parts are: "12,50 €" and "3,00 €" make "15,50 €". Where parts are printed differently, or
otherwise than their page says, nothing is made of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from monkey.data.pages.facts import Cell, NumberFormat
from monkey.data.pages.spelling import write_number

_TIME = re.compile(r"(\d{1,2})[:.h](\d{2})(?:\s*([ap])\.?m\.?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Frame:
    """What stands before and behind the digits of a number, and how many digits follow its decimal mark."""

    before: str
    behind: str
    decimals: int


def frame_of(cell: Cell, numbers: NumberFormat) -> Frame | None:
    """Return the frame of a cell's number; None where its text is not its number in the page's marks."""
    if cell.number is None:
        return None
    marks = re.escape(numbers.thousands + numbers.decimal)
    found = re.fullmatch(rf"(\D*?)(\d(?:[\d{marks}]*\d)?)(\D*)", cell.text)
    if found is None:
        return None
    before, digits, behind = found.groups()
    plain = digits.replace(numbers.thousands, "") if numbers.thousands else digits
    whole, _, fraction = plain.partition(numbers.decimal)
    if not (whole + fraction).isdecimal() or float(f"{whole}.{fraction or 0}") != cell.number:
        return None
    return Frame(before, behind, len(fraction))


def unit_of(cell: Cell, numbers: NumberFormat) -> tuple[str, str] | None:
    """Return what stands before and behind a cell's number; None where its text is not its number."""
    frame = frame_of(cell, numbers)
    return frame and (frame.before, frame.behind)


def common_frame(cells: Iterable[Cell], numbers: NumberFormat) -> Frame | None:
    """Return the frame that all cells share; None where they differ or one has none."""
    frames = {frame_of(cell, numbers) for cell in cells}
    return frames.pop() if len(frames) == 1 else None


def print_amount(value: float, frame: Frame, numbers: NumberFormat, is_grouped: bool = True) -> str:
    """Print a number of at least 0 in a frame, with the page's marks.

    Args:
        is_grouped: whether thousands are marked, as the numbers that it was made of show.
    """
    marks = numbers if is_grouped else replace(numbers, thousands="")
    return frame.before + write_number(value, marks, frame.decimals) + frame.behind


def marks_thousands(cells: Iterable[Cell], numbers: NumberFormat) -> bool:
    """Whether the thousands of the cells' numbers are marked; where none has any, as the page's format says."""
    large = [cell.text for cell in cells if cell.number is not None and cell.number >= 1000]
    return bool(numbers.thousands) and all(numbers.thousands in text for text in large)


def minutes_of(text: str) -> float | None:
    """Return a time of day as minutes; None for another text."""
    found = _TIME.fullmatch(text.strip())
    if found is None or int(found[2]) > 59:
        return None
    hour, half = int(found[1]), (found[3] or "").lower()
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    return hour * 60.0 + int(found[2])
