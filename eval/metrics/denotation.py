"""WikiTableQuestions: does an answer denote the same set of values as the reference?

Definition: the official evaluator of Pasupat and Liang, "Compositional Semantic Parsing on Semi-Structured Tables"
(ACL 2015). Strings lose accents, citation marks, a trailing parenthesis, outer quotes and the final full stop;
numbers compare within 1e-6; dates field by field. Every reference value has to be matched and the answer may hold
no further value. What a reference denotes is read from its canonical form where the row has it: `targetCanon` of the
set's tagged files, one form an item, by which "100,000" is the number 100000 and "May 3" a date.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from eval.metrics.corpus import Item, Population

NUMBER_TOLERANCE = 1e-6
_CACHED_VALUES = 1 << 16

_SINGLE_QUOTES = re.compile("[\u2018\u2019\u00b4`]")
_DOUBLE_QUOTES = re.compile("[\u201c\u201d]")
_DASHES = re.compile("[\u2010\u2011\u2012\u2013\u2014\u2212]")
_CITATIONS = re.compile("((?<!^)\\[[^\\]]*\\]|\\[\\d+\\]|[\u2022\u2666\u2020\u2021*#+])*$")
_PARENTHESES = re.compile(r"(?<!^)( \([^)]*\))*$")
_OUTER_QUOTES = re.compile(r'^"([^"]*)"$')
_SEPARATORS = re.compile(r"\s*[\t\n|]\s*")
_SEPARATORS_AND_COMMAS = re.compile(r"\s*[\t\n|]\s*|,\s+")

CANONICAL = "targetCanon"
"""Key of a row for the list of its references' canonical forms, in their order."""


@dataclass(frozen=True)
class Value:
    """One item of an answer: its normalised text, and the number or date it denotes, if any."""

    text: str
    number: float | None = None
    date: tuple[int, int, int] | None = None

    def matches(self, other: Value) -> bool:
        if self.text == other.text:
            return True
        if self.number is not None:
            return other.number is not None and abs(self.number - other.number) < NUMBER_TOLERANCE
        return self.date is not None and self.date == other.date

    @property
    def identity(self) -> object:
        """What makes two items of one list the same item: a list is a set of these."""
        if self.number is not None:
            return self.number
        return self.text if self.date is None else self.date


def untagged(prediction: str, references: Sequence[str], canonical: Sequence[str] = ()) -> float:
    """1 when the prediction denotes the same values as all references together, in any order.

    `references` is the one answer as its list of items, not a choice among answers, and `canonical` their canonical
    forms, if any. The official evaluator is given the predicted items apart; a model writes them in one string, so
    three readings are tried and any may be right: the whole string as one item, its parts between tabs, line breaks
    and '|', and its parts between these or a comma followed by a blank. '1,000' stays one item, and so can
    'Paris, France', also in a list. Odd: without canonical forms '1,000' and '1000' differ, since only Python's number
    syntax is read as a number.
    """
    wanted = _value_set(references, canonical)
    parts = ([part for part in cut.split(prediction) if part] for cut in (_SEPARATORS, _SEPARATORS_AND_COMMAS))
    return float(any(_same_denotation(wanted, _value_set(reading)) for reading in ([prediction], *parts)))


def scores(items: Sequence[Item], population: Population) -> list[float]:
    """Score of each item, by the canonical forms of its row where it has a list of as many as there are references."""
    forms = (item.more.get(CANONICAL) for item in items)
    known = (one if isinstance(one, list) and all(isinstance(form, str) for form in one) else () for one in forms)
    return [untagged(item.prediction, item.references, one) for item, one in zip(items, known, strict=True)]


def joined(references: Sequence[str]) -> str:
    """All items of a reference in one string, as a model that knew the answer could write them."""
    return "|".join(references)


@lru_cache(maxsize=_CACHED_VALUES)
def read_value(text: str, canonical: str = "") -> Value:
    """The value of a text; what it denotes is read from its canonical form, if it has one."""
    normalised = normalise(text)
    number = _read_number(canonical or text)
    if number is not None:
        return Value(normalised, number=number)
    date = _read_date(canonical or text)
    if date is None:
        return Value(normalised)
    year, month, day = date
    return Value(normalised, number=float(year)) if month == day == -1 else Value(normalised, date=date)


def normalise(text: str) -> str:
    """The official evaluator's string form: 'Café (Paris)[1]' and 'cafe' are the same."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
    text = _SINGLE_QUOTES.sub("'", text)
    text = _DOUBLE_QUOTES.sub('"', text)
    text = _DASHES.sub("-", text)
    before = None
    while text != before:
        before = text
        text = _CITATIONS.sub("", text.strip())
        text = _PARENTHESES.sub("", text.strip())
        text = _OUTER_QUOTES.sub(r"\1", text.strip())
    text = text.removesuffix(".")
    return " ".join(text.split()).lower()


def _same_denotation(wanted: Sequence[Value], given: Sequence[Value]) -> bool:
    if len(wanted) != len(given):
        return False
    return all(any(value.matches(candidate) for candidate in given) for value in wanted)


def _value_set(texts: Sequence[str], canonical: Sequence[str] = ()) -> list[Value]:
    forms = canonical if len(canonical) == len(texts) else [""] * len(texts)
    return list({value.identity: value for value in map(read_value, texts, forms)}.values())


def _read_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    whole = round(number)
    return float(whole) if abs(number - whole) < NUMBER_TOLERANCE else number


def _read_date(text: str) -> tuple[int, int, int] | None:
    """'YYYY-MM-DD' where each field may be unknown ('xxxx-10-03'); -1 stands for unknown."""
    fields = text.lower().split("-")
    if len(fields) != 3:
        return None
    try:
        year = -1 if fields[0] in ("xx", "xxxx") else int(fields[0])
        month = -1 if fields[1] == "xx" else int(fields[1])
        day = -1 if fields[2] == "xx" else int(fields[2])
    except ValueError:
        return None
    known = year != -1 or month != -1 or day != -1
    valid = (month == -1 or 1 <= month <= 12) and (day == -1 or 1 <= day <= 31)
    return (year, month, day) if known and valid else None
