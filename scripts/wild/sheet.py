"""A sheet to be drawn: its markup, the texts in it that questions are about, and the questions.

Questions come in two wordings. "trained" is how drawn pages ask ("What is the total?"), "natural" how a person
or a benchmark may ("How much do I have to pay?"); the same fact asked in both has one `fact`, so that the answers can
be compared in pairs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

Answers = str | Sequence[str]
UNANSWERABLE = "unanswerable"

COPIED = ("field", "cell", "date", "line", "title", "comparison")
"""Kinds of question whose first answer stands in the image as it is."""


@dataclass(frozen=True)
class Question:
    """A question about a sheet.

    Attributes:
        fact: what it asks, by which its other wording is found.
        wording: "trained" or "natural".
        answers: accepted spellings, as printed first.
        at: the mark whose letters hold the answer; None where no letters do.
    """

    kind: str
    fact: str
    wording: str
    text: str
    answers: tuple[str, ...]
    at: str | None


@dataclass
class Sheet:
    """A sheet as a template leaves it.

    Attributes:
        engine: what draws it.
        size: width and height in pixels; a height of 0 is that of the content, for Chromium.
        source: HTML or TeX.
        boxes: marks that are asked for as boxes.
        box_texts: marks whose box is given, and whose text is asked for.
        readings: questions for the whole text, by wording.
        is_simple: whether reading from top to bottom, each row from left to right, is reading it.
        scan: what a scanner or a camera does to it, for `scan.scan`.
    """

    rng: random.Random
    document: str
    engine: Literal["chromium", "tex"]
    size: tuple[int, int]
    source: str = ""
    font: str = ""
    questions: list[Question] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    box_texts: list[str] = field(default_factory=list)
    readings: dict[str, str] = field(default_factory=dict)
    scan: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str, text: str) -> str:
        """Return the markup of a text that a question is about."""
        if self.engine == "tex":
            return rf"\M{{{name}}}{{{escape_tex(text)}}}"
        return f'<span data-m="{name}">{text}</span>'

    def ask(
        self,
        kind: str,
        trained: str | None,
        natural: str | Sequence[str] | None,
        answers: Answers,
        at: str | None = None,
        fact: str | None = None,
    ) -> None:
        """Ask for a fact in one wording or both; of several natural ones one is drawn."""
        answers = (answers,) if isinstance(answers, str) else tuple(dict.fromkeys(answers))
        fact = fact or f"{kind}-{len({question.fact for question in self.questions})}"
        if natural is not None and not isinstance(natural, str):
            natural = self.rng.choice(natural)
        for wording, text in (("trained", trained), ("natural", natural)):
            if text is not None:
                self.questions.append(Question(kind, fact, wording, text, answers, at))

    def ask_absent(self, trained: str | None, natural: str | Sequence[str] | None, fact: str) -> None:
        """Ask for what the image does not say."""
        self.ask("unanswerable", trained, natural, UNANSWERABLE, None, fact)

    def ask_to_read(self, trained: bool = True, natural: str | None = None) -> None:
        """Ask for all text of the image."""
        self.readings = ({"trained": "Read all the text."} if trained else {}) | (
            {"natural": natural} if natural else {}
        )


_TEX_SIGNS = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "#": r"\#",
        "$": r"\$",
        "_": r"\_",
        "€": r"\texteuro{}",
        "£": r"\pounds{}",
        "'": r"\textquotesingle{}",
    }
)


def escape_tex(text: str) -> str:
    """Return a text as TeX reads it."""
    return text.translate(_TEX_SIGNS)


@dataclass(frozen=True)
class Money:
    """How amounts are printed, `{}` being the number."""

    form: str
    decimal: str = "."
    thousands: str = ","
    decimals: int = 2

    def number(self, value: float) -> str:
        text = f"{value:,.{self.decimals}f}"
        return text.translate(str.maketrans({",": self.thousands, ".": self.decimal}))

    def __call__(self, value: float) -> str:
        return self.form.format(self.number(value))

    def accepted(self, value: float) -> tuple[str, ...]:
        """Return the spellings of an amount that are right: as printed, without currency, without separators."""
        plain = f"{value:.{self.decimals}f}"
        return tuple(dict.fromkeys((self(value), self.number(value), plain)))


EURO = Money("€{}")
EURO_BEHIND = Money("{} €", ",", ".")
DOLLAR = Money("${}")
POUND = Money("£{}")
YEN = Money("¥{}", decimals=0)
FRANC = Money("CHF {}", ".", "'")
KRONA = Money("{} kr", ",", " ")

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
DATE_FORMS: Mapping[str, str] = {
    "iso": "{y}-{m:02}-{d:02}",
    "dots": "{d:02}.{m:02}.{y}",
    "slashes": "{d:02}/{m:02}/{y}",
    "american": "{m:02}/{d:02}/{y}",
    "long": "{d} {month} {y}",
    "us_long": "{month} {d}, {y}",
    "short": "{d} {mon} {y}",
    "short_year": "{d:02}.{m:02}.{yy:02}",
}


def write_date(day: date, form: str) -> str:
    month = MONTHS[day.month - 1]
    return DATE_FORMS[form].format(
        y=day.year, yy=day.year % 100, m=day.month, d=day.day, month=month, mon=month[:3]
    )  # fmt: skip


def draw_date(rng: random.Random, first: int = 2027, last: int = 2029) -> date:
    return date(rng.randint(first, last), rng.randint(1, 12), rng.randint(1, 28))


def draw_amounts(rng: random.Random, count: int, low: float, high: float, decimals: int = 2) -> list[float]:
    """Return amounts of which no two are equal."""
    chosen: dict[float, None] = {}
    while len(chosen) < count:
        chosen[round(rng.uniform(low, high), decimals)] = None
    return list(chosen)
