"""What pages say: every word and every free number belongs to training or is held out, by a hash of its spelling.

A model that knows a list of words does not read them, so half of the words are made up, in training often from letters
that follow no rule. Names, towns, companies and streets are Faker's, in several languages of western Europe. What both
splits share: what is printed as a label ("Total"), the small words of `SHARED`, single letters and digits, telephone
numbers, the times of a timetable, what there are few of (quantities, percentages, kinds of payment), and sums, which
follow from other numbers.
"""

from __future__ import annotations

import datetime
import hashlib
import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from monkey.data.pages.facts import NumberFormat

if TYPE_CHECKING:
    from faker import Faker

HELD_OUT_PART = 5
"""One spelling in so many is held out."""
MADE_UP = 0.5
"""How many words are made up."""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SHARED = frozenset(
    _listed(
        """the a an is are was in on at of to and or for by from with no not only all our your it we you de la le el los
    las des du van von der den am and & + st rd av inc ltd llc plc gmbh ag kg sons group ltda sa spa srl bv ab as oy co
    www com org net info example"""
    )
)

GOODS = _listed(
    """apple bread butter cheese coffee cream honey juice lemon milk onion orange pasta pepper potato rice salad salt
    sauce soup sugar tea tomato water carrot garlic peach grape olive mint basket blanket bottle box brush bucket button
    cable candle carpet chair clock coat cotton cup curtain desk drum filter flour fork frame glove guitar hammer helmet
    jacket kettle knife ladder lamp leather mirror mug napkin needle notebook oven paint paper pencil pillow pipe plate
    pump ribbon ring rope ruler scarf screen shelf shirt shoe soap socks spoon stove tape toothpaste towel toy tray
    trousers umbrella vase wallet watch wheel wool yoghurt biscuit cake croissant muffin sandwich burger noodles steak
    salmon shrimp mushroom spinach pumpkin melon cherry berry walnut almond cocoa syrup jam mustard vinegar"""
)
MONTHS = _listed("January February March April May June July August September October November December")
DAYS = _listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

_HEADS = _listed("b br c ch cl d dr f fl g gr h j k l m n p pr qu r s sh st t th tr v w y z")
_MIDDLES = _listed("a e i o u ai ea ee ou")
_TAILS = ("", "l", "n", "r", "s", "t", "m", "ck", "nd", "rt", "x", "ll", "ng", "p")


@dataclass(frozen=True)
class Region:
    """How a language's country writes names, amounts and dates. `locale` is Faker's."""

    locale: str
    numbers: NumberFormat
    dates: tuple[str, ...]


_EURO = NumberFormat("€", is_before=False, is_spaced=True, decimal=",", thousands=".")
_WRITTEN = ("{d} {Mon} {y}", "{d} {Month} {y}", "{y}-{m:02d}-{d:02d}")
_DOTS = ("{d:02d}.{m:02d}.{y}", "{d:02d}.{m:02d}.{yy:02d}", *_WRITTEN)
_SLASHES = ("{d:02d}/{m:02d}/{y}", "{d:02d}-{m:02d}-{y}", *_WRITTEN)

REGIONS = (
    Region("en_US", NumberFormat("$"), ("{m:02d}/{d:02d}/{y}", "{Mon} {d}, {y}", "{Month} {d}, {y}", *_WRITTEN)),
    Region("en_US", NumberFormat("USD", is_spaced=True), ("{m}/{d}/{y}", "{Mon} {d}, {y}", "{y}-{m:02d}-{d:02d}")),
    Region("en_GB", NumberFormat("£"), _SLASHES),
    Region("en_GB", NumberFormat(), _SLASHES),
    Region("en_IE", NumberFormat("€"), _SLASHES),
    Region("de_DE", _EURO, _DOTS),
    Region("de_CH", NumberFormat("CHF", is_spaced=True, thousands="'"), _DOTS),
    Region("de_AT", NumberFormat("€", is_spaced=True, decimal=",", thousands="."), _DOTS),
    Region("fr_FR", NumberFormat("€", is_before=False, is_spaced=True, decimal=",", thousands=""), _SLASHES),
    Region("es_ES", _EURO, _SLASHES),
    Region("it_IT", NumberFormat("EUR", is_before=False, is_spaced=True, decimal=",", thousands="."), _SLASHES),
    Region("nl_NL", NumberFormat("€", is_spaced=True, decimal=",", thousands="."), _SLASHES),
    Region("pt_BR", NumberFormat("R$", is_spaced=True, decimal=",", thousands="."), _SLASHES),
    Region("sv_SE", NumberFormat("kr", is_before=False, is_spaced=True, decimal=",", thousands=""), _DOTS),
    Region("da_DK", NumberFormat("DKK", is_before=False, is_spaced=True, decimal=",", thousands="."), _DOTS),
)


@cache
def is_held_out(spelling: str) -> bool:
    """Whether a word or number, whatever its case, is of the held-out split."""
    return hashlib.sha256(spelling.casefold().encode("utf-8")).digest()[0] % HELD_OUT_PART == 0


@cache
def _faker(locale: str) -> Faker:
    try:
        from faker import Faker
    except ImportError as error:
        raise ValueError(
            "names on drawn pages come from the package faker, which is not installed: pip install 'monkey[documents]'"
        ) from error
    return Faker(locale)


def write_number(number: float, numbers: NumberFormat, decimals: int | None = None) -> str:
    """Return a number with the marks of a format, without its currency."""
    text = f"{number:,.{numbers.decimals if decimals is None else decimals}f}"
    return text.translate({ord(","): numbers.thousands, ord("."): numbers.decimal})


def write_amount(number: float, numbers: NumberFormat) -> str:
    """Return an amount as a page of this format prints it."""
    text, gap = write_number(abs(number), numbers), " " if numbers.is_spaced else ""
    if numbers.currency:
        text = f"{numbers.currency}{gap}{text}" if numbers.is_before else f"{text}{gap}{numbers.currency}"
    return "-" + text if number < 0 else text


class Writer:
    """Random texts of one split for one page, all as the page's region writes them."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out
        self.region = rng.choice(REGIONS)
        self.numbers = self.region.numbers
        self.date_form = rng.choice(self.region.dates)
        self.fake = _faker(self.region.locale)
        self.fake.seed_instance(rng.getrandbits(64))
        self.english = _faker("en_US")
        self.english.seed_instance(rng.getrandbits(64))

    def allowed(self, text: str) -> bool:
        """Whether every word of `text` is shared or of this split."""
        return all(
            part.casefold() in SHARED or len(part) == 1 or is_held_out(part) == self.held_out
            for part in re.findall(r"[^\W_]*\d[\d.,]*|[^\W\d_]+", text)
        )

    def drawn(self, make: Callable[[], str]) -> str:
        """Make texts until one comes that the split may spell, and return it."""
        while True:
            text = make()
            if self.allowed(text):
                return text

    def some(self, make: Callable[[], str], count: int) -> list[str]:
        """Make so many different texts."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[make()] = None
        return list(found)

    def made_up(self) -> str:
        """Return a word of no list: from syllables, in training a third of the time from any letters."""
        rng = self.rng
        if not self.held_out and rng.random() < 0.35:
            return self.drawn(lambda: "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))))
        return self.drawn(
            lambda: (
                "".join(rng.choice(_HEADS) + rng.choice(_MIDDLES) for _ in range(rng.choice((1, 2, 2, 3))))
                + rng.choice(_TAILS)
            )
        )

    def word(self) -> str:
        """Return a word in small letters: of English, or made up."""
        return self.made_up() if self.rng.random() < MADE_UP else self.drawn(self.english.word)

    def name(self) -> str:
        """Return a capitalised word."""
        return self.word().capitalize()

    def _mixed(self, make: Callable[[], str]) -> str:
        """Return what Faker makes, each of its longer words at times made up."""

        def replaced(match: re.Match[str]) -> str:
            return self.made_up().capitalize() if self.rng.random() < MADE_UP else match[0]

        def mixed() -> str:
            return re.sub(r"\b[^\W\d_]{3,}\b", lambda m: m[0] if m[0].casefold() in SHARED else replaced(m), make())

        return self.drawn(mixed)

    def goods(self) -> str:
        """Return what can be bought, of one or two words."""
        rng = self.rng
        noun = self.made_up() if rng.random() < MADE_UP else self.drawn(lambda: rng.choice(GOODS))
        return noun.capitalize() if rng.random() < 0.5 else f"{self.name()} {noun}"

    def phrase(self, least: int = 2, most: int = 4) -> str:
        """Return some words, the first with a capital."""
        return " ".join(self.word() for _ in range(self.rng.randint(least, most))).capitalize()

    def sentence(self, least: int = 5, most: int = 11) -> str:
        """Return words and small words, with a capital and a full stop."""
        rng, small = self.rng, sorted(SHARED & {"the", "a", "in", "on", "of", "to", "and", "for", "with", "by", "is"})
        words = [self.word()]
        for _ in range(rng.randint(least, most) - 1):
            words.append(rng.choice(small) if words[-1] not in small and rng.random() < 0.4 else self.word())
        if words[-1] in small:
            words.append(self.word())
        if len(words) > 7 and rng.random() < 0.3:
            words[3] += ","
        return " ".join(words).capitalize() + "."

    def person(self) -> str:
        """Return a first name and a surname."""
        return f"{self._mixed(self.fake.first_name)} {self._mixed(self.fake.last_name)}"

    def company(self) -> str:
        """Return the name of a company or a shop."""
        return self._mixed(self.fake.company)

    def shop(self) -> str:
        """Return what stands over a shop's door."""
        ends = ("Market", "Store", "Café", "Bakery", "& Sons", "Pharmacy", "Books", "Bistro", "Shop", "Deli", "Foods")
        base = self._mixed(self.fake.last_name) if self.rng.random() < 0.4 else self.name()
        return base if self.rng.random() < 0.3 else f"{base} {self.rng.choice(ends)}"

    def city(self) -> str:
        """Return a town."""
        return self._mixed(self.fake.city)

    def country(self) -> str:
        """Return a country in English."""
        return self.drawn(lambda: self.english.country().partition(" (")[0])

    def street(self) -> str:
        """Return a street with its number, as the region orders them."""
        name, number = self._mixed(self.fake.street_name), str(self.rng.randint(1, 199))
        return f"{number} {name}" if self.region.locale[:2] in ("en", "fr") else f"{name} {number}"

    def postcode(self) -> str:
        """Return a postal code."""
        return self.fake.postcode()

    def address(self) -> str:
        """Return street, postal code and town, on one line or two."""
        gap = self.rng.choice((", ", "\n", "\n"))
        if self.region.locale[:2] == "en":
            return f"{self.street()}{gap}{self.city()}, {self.postcode()}"
        return f"{self.street()}{gap}{self.postcode()} {self.city()}"

    def phone(self) -> str:
        """Return a telephone number."""
        return self.rng.choice(
            (self.fake.phone_number, lambda: self.digits("0## #######"), lambda: self.digits("+## ### ######"))
        )()

    def email(self) -> str:
        """Return an address for mail, in letters without accents."""
        host = self.drawn(lambda: self.english.domain_word())
        return f"{self.word()}@{host}.{self.rng.choice(('com', 'org', 'net', 'info'))}"

    def website(self) -> str:
        """Return the address of a web site."""
        start = self.rng.choice(("www.", ""))
        return (
            f"{start}{self.word()}{self.rng.choice(('', '-' + self.word()))}.{self.rng.choice(('com', 'org', 'net'))}"
        )

    def digits(self, pattern: str) -> str:
        """Return a pattern with # as digits, of which a first one is not 0, and ? as capital letters."""
        rng = self.rng
        if pattern.startswith("#"):
            pattern = str(rng.randint(1, 9)) + pattern[1:]
        letters = "ABCDEFGHJKLMNPRSTUVWXYZ"
        return re.sub("[#?]", lambda match: str(rng.randint(0, 9)) if match[0] == "#" else rng.choice(letters), pattern)

    def code(self, *patterns: str) -> str:
        """Return letters and digits as on a parcel."""
        patterns = patterns or ("??-####", "??#####", "######", "####-###", "?##-###", "#########", "????##")
        while True:
            code = self.digits(self.rng.choice(patterns))
            if is_held_out(code) == self.held_out:  # as a whole: of single digits and letters there are too few
                return code

    def integer(self, least: int, most: int) -> int:
        """Return a whole number of this split."""
        return int(self.drawn(lambda: str(self.rng.randint(least, most))))

    def number(self, least: float, most: float, decimals: int = 2) -> float:
        """Return a number of this split, small ones as often as large ones."""
        low, high = least**0.5, most**0.5
        return float(self.drawn(lambda: f"{self.rng.uniform(low, high) ** 2:.{decimals}f}"))

    def day(self, first: int = 2012, last: int = 2031) -> datetime.date:
        """Return a day; never one that could be read with day and month exchanged, where the page writes numbers."""
        rng = self.rng
        while True:
            day = datetime.date(rng.randint(first, last), rng.randint(1, 12), rng.randint(1, 28))
            is_plain = "{y}-" in self.date_form or "Mon" in self.date_form or "." in self.date_form
            if (is_plain or day.day > 12) and is_held_out(day.isoformat()) == self.held_out:
                return day

    def write_day(self, day: datetime.date) -> str:
        """Return a day as the page writes days."""
        month = MONTHS[day.month - 1]
        return self.date_form.format(d=day.day, m=day.month, y=day.year, yy=day.year % 100, Mon=month[:3], Month=month)

    def time(self) -> str:
        """Return hours and minutes."""
        return self.drawn(lambda: f"{self.rng.randint(6, 22):02d}:{self.rng.randint(0, 59):02d}")

    def amount(self, number: float) -> str:
        """Return an amount as the page prints amounts."""
        return write_amount(number, self.numbers)

    def choice(self, options: Sequence[str]) -> str:
        """Return one of some texts that both splits share."""
        return self.rng.choice(options)

    def shuffled(self, options: Sequence[str]) -> list[str]:
        """Return the same texts in random order."""
        return self.rng.sample(options, len(options))
