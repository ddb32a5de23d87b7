"""Texts and values to draw: every word and number belongs to one split, by a hash of its spelling.

So a model that has learnt strings by heart reads nothing in a held-out picture. What both splits share: labels that
questions name ("Total", "Date"), names of colours, single digits, and the small words of `SHARED`. Half of the held-out
names are made from syllables.

A model that knows a list of words does not read them, and learns of numbers which ones never occur. So in training most
names are made up, many of them from letters that follow no rule, words of sentences are replaced by such ones, and half
of the values have a decimal, which gives every pair of digits a place.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable
from functools import cache

HELD_OUT_PART = 5
"""One spelling in so many is held out."""
UNLISTED = 0.4
"""How many words of lists are made up instead, in training."""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SHARED = frozenset(
    _listed("the a an is are was in on at of to and or for by from with no not only all our your it we you")
)

NOUNS = _listed(
    """
    apple bread butter cheese coffee cream honey juice lemon milk onion orange pasta pepper potato rice salad salt
    sauce soup sugar tea tomato water carrot garlic peach grape olive mint basket blanket bottle box brush bucket
    button cable candle carpet chair clock coat cotton cup curtain desk door drum engine fabric fence filter flower
    fork frame garden glass glove guitar hammer helmet jacket kettle knife ladder lamp leather letter mirror needle
    oven paint paper pencil piano pillow pipe plate pump ribbon ring rope ruler scarf screen shelf shirt shoe silver
    soap spoon stone stove table tent ticket tower towel toy tray trunk wagon wallet watch wheel window wire wool
    bridge river forest valley island harbour station market museum library school hospital airport street corner
    village castle church hotel theatre stadium factory office bakery kitchen bedroom balcony stairs cellar winter
    summer morning evening doctor driver farmer painter singer teacher writer sailor pilot nurse baker miner judge
    horse rabbit tiger spider eagle parrot salmon turtle donkey camel monkey zebra lizard beetle falcon badger otter
    music dance story poem picture camera phone radio battery magnet rocket planet desert thunder shadow mountain
    number figure matter reason answer question problem chance moment minute season weather journey holiday weekend
    """
)
ADJECTIVES = _listed(
    """
    bright broken busy calm cheap clean clever cold dark deep dry early empty famous fast fine flat fresh gentle
    grand great happy heavy high hollow honest hot huge kind large late light little local long loud lucky modern
    narrow new noble old open plain polite poor proud pure quick quiet rare rich rough round sharp short silent
    simple slow small smooth soft solid sour steep strange strong sweet tall thick thin tiny tired vast warm weak
    wide wild wise young
    """
)
VERBS = _listed(
    """
    arrived began broke brought built called carried changed closed crossed drew dropped entered fell filled
    finished followed found gave grew guarded helped hid kept learned left lifted lost made met missed moved needed
    opened ordered passed picked played pulled pushed reached sent showed sold started stopped took touched turned
    visited waited walked wanted washed watched
    """
)
FIRST_NAMES = _listed(
    """
    Ada Alan Alice Amir Anna Ben Carla Chen Clara Daniel David Diego Elena Emma Eric Fatima Felix Grace Hana Hugo
    Ida Ivan Jack Jane Jonas Julia Karim Kate Lara Leo Lin Lucas Maria Mark Maya Mia Nadia Nina Noah Olga Omar Oscar
    Paul Petra Rosa Ruth Sam Sara Sofia Tara Theo Tom Uma Vera Victor Wei Yara Zoe
    """
)
MONTHS = _listed("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec")
_HEADS = _listed("b br c ch cl d dr f fl g gr h j k l m n p pr qu r s sh st t th tr v w y z")
_MIDDLES = _listed("a e i o u ai ea ee ou")
_TAILS = ("", "l", "n", "r", "s", "t", "m", "ck", "nd", "rt", "x", "ll", "ng", "p")


def article(word: str) -> str:
    """Return the word with "a" or "an" before it."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


@cache
def is_held_out(spelling: str) -> bool:
    """Whether a word or number, whatever its case, is of the held-out split."""
    return hashlib.sha256(spelling.casefold().encode("utf-8")).digest()[0] % HELD_OUT_PART == 0


@cache
def _of_split(words: tuple[str, ...], held_out: bool) -> tuple[str, ...]:
    return tuple(word for word in words if is_held_out(word) == held_out)


class Words:
    """Random texts of one split."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out

    def allowed(self, text: str) -> bool:
        """Whether every word of `text` is shared or of this split."""
        return all(
            part.casefold() in SHARED or len(part) == 1 or is_held_out(part) == self.held_out for part in text.split()
        )

    def drawn(self, make: Callable[[], str]) -> str:
        """Make texts until one comes that the split may spell, and return it."""
        while True:
            text = make()
            if self.allowed(text):
                return text

    def of(self, words: tuple[str, ...]) -> str:
        """Return a word of a list; in training often one that no list has."""
        if not self.held_out and self.rng.random() < UNLISTED:
            made = self.made_up()
            return made.capitalize() if words[0][0].isupper() else made
        return self.rng.choice(_of_split(words, self.held_out))

    def some(self, make: Callable[[], str], count: int) -> list[str]:
        """Make so many different texts."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[make()] = None
        return list(found)

    def name(self) -> str:
        """Return a capitalised name: a noun, or one made from syllables."""
        if self.rng.random() < 0.5:
            return self.of(NOUNS).capitalize()
        return self.made_up().capitalize()

    def made_up(self) -> str:
        """Return a word of no list: from syllables, in training as often from any letters."""
        if not self.held_out and self.rng.random() < 0.5:
            return self.drawn(lambda: "".join(self.rng.choices(string.ascii_lowercase, k=self.rng.randint(2, 9))))
        return self.drawn(self._syllables)

    def _syllables(self) -> str:
        rng = self.rng
        syllables = (rng.choice(_HEADS) + rng.choice(_MIDDLES) for _ in range(rng.choice((1, 2, 2, 3))))
        return "".join(syllables) + rng.choice(_TAILS)

    def person(self) -> str:
        """Return a first name and a surname."""
        return f"{self.of(FIRST_NAMES)} {self.name()}"

    def digits(self, least: int, most: int) -> str:
        """Return a whole number."""
        return self.drawn(lambda: str(self.rng.randint(least, most)))

    def value(self, least: int, most: int) -> str:
        """Return a number to compare others with: whole, in training half of the time with one decimal."""
        if self.held_out or self.rng.random() < 0.5:
            return self.digits(least, most)
        return self.drawn(lambda: f"{self.rng.randint(least, most - 1)}.{self.rng.randint(0, 9)}")

    def price(self, most: int = 99) -> str:
        """Return an amount with two decimals."""
        return self.drawn(lambda: f"{self.rng.randint(0, most)}.{self.rng.randint(0, 99):02d}")

    def date(self) -> str:
        """Return a day, in one of three forms."""
        rng = self.rng
        form = rng.choice(("{d:02d}.{m:02d}.{y}", "{d} {name} {y}", "{y}-{m:02d}-{d:02d}"))

        def make() -> str:
            day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1990, 2039)
            return form.format(d=day, m=month, y=year, name=MONTHS[month - 1])

        # Days and months of one split alone would leave too few: the date as a whole is held out, as is its year.
        while True:
            text = make()
            if is_held_out(text) == self.held_out:
                return text

    def time(self) -> str:
        """Return hours and minutes."""
        return self.drawn(lambda: f"{self.rng.randint(0, 23):02d}:{self.rng.randint(0, 59):02d}")

    def code(self) -> str:
        """Return letters and digits as on a parcel: AB-1234."""
        rng = self.rng
        letters = "ABCDEFGHJKLMNPRSTUVWXYZ"

        def make() -> str:
            return "".join(rng.choices(letters, k=2)) + rng.choice(("-", "")) + str(rng.randint(100, 9999))

        return self.drawn(make)

    def phone(self) -> str:
        """Return a telephone number in one piece."""
        return self.drawn(lambda: f"0{self.rng.randint(10, 99)}-{self.rng.randint(10000, 99999)}")

    def street(self) -> str:
        """Return a house number and a street."""
        return f"{self.digits(2, 199)} {self.name()} {self.rng.choice(('St', 'Rd', 'Av'))}"

    def sentence(self) -> str:
        """Return a plain sentence of known grammar, capitalised, with its full stop."""
        adjective, noun, other = self.of(ADJECTIVES), self.of(NOUNS), self.of(NOUNS)
        return self.rng.choice(
            (
                f"The {adjective} {noun} {self.of(VERBS)} the {other}.",
                f"{self.person()} {self.of(VERBS)} a {adjective} {noun}.",
                f"{self.name()} {self.of(VERBS)} the {noun} in {self.name()}.",
                f"Our {noun} is {adjective} and the {other} is {self.of(ADJECTIVES)}.",
                f"At {self.time()} the {noun} {self.of(VERBS)} {self.name()}.",
            )
        )
