"""What may be written in a picture: the words and numbers of each split, which the two splits never share.

A model that has only learnt strings by heart scores nothing on the held-out pictures, because no string drawn there was
ever drawn in training. Labels such as the one before a receipt's total are split as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

SPLITS = ("train", "heldout")

# Words by what they are used for: those of the train split, then those of the held-out split.
WORDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "shop": (
        (
            "BAKERY",
            "CAFE",
            "HOTEL",
            "BOOKS",
            "SHOES",
            "FLOWERS",
            "BIKES",
            "PIZZA",
            "MUSIC",
            "BANK",
            "DENTIST",
            "GARAGE",
        ),
        ("PHARMACY", "GROCER", "OPTICIAN", "TAILOR", "LIBRARY"),
    ),
    "item": (
        ("tea", "milk", "bread", "eggs", "apple", "soap", "pen", "juice", "salt", "soup", "cake", "nuts"),
        ("rice", "jam", "honey", "lemon", "candle"),
    ),
    "label": (("TOTAL", "SUM"), ("COST", "DUE")),
    "title": (
        ("Sales", "Visitors", "Rain", "Trains", "Votes", "Prices", "Goals", "Steps"),
        ("Exports", "Harvest", "Energy", "Parcels"),
    ),
}


@dataclass(frozen=True)
class Vocabulary:
    """The text that one split may draw."""

    split: str
    numbers: tuple[int, ...]
    words: Mapping[str, tuple[str, ...]]

    def allows(self, text: str) -> bool:
        """Whether this split may draw `text`, a single word or number."""
        if text.isdigit():
            return int(text) in self.numbers
        return any(text in group for group in self.words.values())


def split_numbers(digits: int) -> dict[str, tuple[int, ...]]:
    """All numbers of so many digits, one in five of them held out.

    Held out are those whose digit sum is a multiple of five: every digit stays in training at every place, and sums
    without a carry of held-out numbers are held-out numbers, so that a held-out receipt can add up.
    """
    numbers: dict[str, list[int]] = {split: [] for split in SPLITS}
    for number in range(10 ** (digits - 1), 10**digits):
        digit_sum = sum(int(digit) for digit in str(number))
        numbers["heldout" if digit_sum % 5 == 0 else "train"].append(number)
    return {split: tuple(members) for split, members in numbers.items()}


@cache
def split_vocabulary(split: str, digits: int) -> Vocabulary:
    """The vocabulary of `split`, with numbers of so many digits."""
    place = SPLITS.index(split)
    words = {use: groups[place] for use, groups in WORDS.items()}
    return Vocabulary(split=split, numbers=split_numbers(digits)[split], words=words)
