"""Relaxed accuracy (ChartQA): a number may be 5 % off, anything else must be equal, case aside.

Definition: Methani et al., "PlotQA" (WACV 2020), taken over by ChartQA; there is no official script. What differs
between those in use is whose 5 %, and which strings are numbers.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

RELATIVE_TOLERANCE = 0.05
FIRST_YEAR, LAST_YEAR = 1900, 2100


def _read_float(text: str) -> float | None:
    """Python's number syntax, or that followed by '%', which divides by 100. '1,200' and '$5' are no numbers here."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _within_tolerance(value: str, base: str) -> bool:
    """Numbers: at most 5 % of `base` apart. Anything else, and a base of zero: equal strings, case aside."""
    number, base_number = _read_float(value), _read_float(base)
    if number is not None and base_number:
        return abs(number - base_number) / abs(base_number) <= RELATIVE_TOLERANCE
    return value.lower() == base.lower()


def original(prediction: str, references: Sequence[str]) -> float:
    """The published script's rule.

    Odd: its arguments are swapped, so the tolerance is 5 % of the *prediction*: for 100 it accepts 105.2 and
    rejects 95.
    """
    answer = prediction.strip()
    return float(any(_within_tolerance(reference, answer) for reference in references))


def official(prediction: str, references: Sequence[str]) -> float:
    """ChartQA's relaxed accuracy as pix2struct's function, the de-facto reference, computes it: within 5 % of the
    reference.

    Odd: years are numbers, so 2008 is right for 2010; '0.0' is wrong for '0', '45' for '45%' and '1,200' for
    '1200'; blanks at the ends of a reference count.
    """
    return float(any(_within_tolerance(prediction, reference) for reference in references))


def lenient(prediction: str, references: Sequence[str]) -> float:
    """`official` that overlooks how a number is written.

    Thousands commas, '$' and punctuation at the end go on both sides; when either side has a '%', 45 and 0.45 are
    both 45 %; zero in any form is zero. Blanks at the ends of a reference count, as everywhere.
    """

    def readings(text: str) -> tuple[str, list[float]]:
        kept = text.replace(",", "").replace("$", "").rstrip(string.punctuation.replace("%", "")).lower()
        number = _read_float(kept)
        if number is None:
            return kept, []
        return kept, [number, number * 100.0] if kept.endswith("%") else [number]

    def close(value: float, base: float) -> bool:
        return abs(value - base) <= RELATIVE_TOLERANCE * abs(base)

    def right(reference: str) -> bool:
        text, values = readings(prediction)
        wanted_text, wanted = readings(reference)
        if values and wanted:
            return any(close(value, base) for value in values for base in wanted)
        return text == wanted_text

    return float(any(map(right, references)))


def exact_years(prediction: str, references: Sequence[str]) -> float:
    """`official`, but a reference that is a whole number from 1900 to 2100 is a year and must be met."""

    def right(reference: str) -> bool:
        number = _read_float(reference)
        if number is not None and number.is_integer() and FIRST_YEAR <= number <= LAST_YEAR:
            return _read_float(prediction) == number
        return _within_tolerance(prediction, reference)

    return float(any(map(right, references)))
