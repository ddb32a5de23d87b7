"""F1 over (document, key, value), as the DUE benchmark scores DeepForm and Kleister Charity.

Definition: the scorer "F1" of DUE's evaluator (Borchmann et al., "DUE: End-to-End Document Understanding Benchmark",
NeurIPS 2021, data sets track) with case ignored. All pairs of a document's answers are compared with all pairs of its
reference: a predicted pair is right when an unused reference pair has its key and its value, in one of the value's
accepted spellings. Precision and recall are over all documents together. SROIE's third task scores receipts in the same
way, with case.

How the pairs come from a row of questions and answers:

- the document is the item's unit: what the row names as 'document', or its image, which may be one page of several;
- the key is what the row names as 'key', else the one of the task's keys that the question names ('gross amount' and
  'gross_amount' are the same). A question that names none, or two, is its own key, which is as good while every key is
  asked with one wording;
- the values are what the row lists as 'values', each a list of accepted spellings; else its references are the
  accepted spellings of one value. A key with several values asks more than one answer can give: the ceiling shows it;
- the value 'None', in any case, means that the document has no such key: as a prediction it drops the pair, so that
  abstaining costs recall only, and as the reference there is nothing to find, so that any other answer costs
  precision.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from eval.metrics.corpus import CorpusVariant, Item, Population, Sums, by_unit, ratio

ABSENT = "NONE"
"""What an answer in capitals says of a key that its document does not have."""

DEEPFORM_KEYS = ("advertiser", "flight_from", "flight_to", "gross_amount", "contract_num")
KLEISTER_CHARITY_KEYS = (
    "address__post_town",
    "address__postcode",
    "address__street_line",
    "charity_name",
    "charity_number",
    "income_annually_in_british_pounds",
    "spending_annually_in_british_pounds",
    "report_date",
)
KEYS = (*DEEPFORM_KEYS, *KLEISTER_CHARITY_KEYS)
SUM_NAMES = ("right_predictions", "predictions", "found_references", "references")


@dataclass(frozen=True)
class Pair:
    """A key with a value in its accepted spellings."""

    key: str
    spellings: tuple[str, ...]

    def matches(self, other: Pair) -> bool:
        return self.key == other.key and not set(self.spellings).isdisjoint(other.spellings)


def key_of(question: str) -> str:
    """The key that a question asks for; the question itself, in lower case, when it names none of them or several."""
    text = f" {_words(question)} "
    named = [key for key in KEYS if f" {_words(key)} " in text]
    named = [key for key in named if not any(_words(key) in _words(other) for other in named if other != key)]
    return named[0] if len(named) == 1 else _words(question)


Fold = Callable[[str], str]
"""What makes two spellings one: `str.upper` where case does not matter."""


def predicted_pairs(items: Sequence[Item], fold: Fold = str.upper) -> list[Pair]:
    answers = [(key_of_item(item), item.prediction.strip()) for item in items]
    return [Pair(key, (fold(answer),)) for key, answer in answers if answer.upper() != ABSENT]


def reference_pairs(items: Sequence[Item], fold: Fold = str.upper) -> list[Pair]:
    pairs = []
    for item in items:
        for spellings in item.more.get("values", [item.references]):
            if {spelling.strip().upper() for spelling in spellings} != {ABSENT}:
                pairs.append(Pair(key_of_item(item), tuple(map(fold, spellings))))
    return pairs


def key_of_item(item: Item) -> str:
    """What the row names as 'key', else `key_of` its question."""
    return item.more.get("key") or key_of(item.question)


def found(wanted: Sequence[Pair], offered: Sequence[Pair]) -> int:
    """How many of the wanted pairs meet an offered one, each offered pair used once, in order."""
    left = list(offered)
    count = 0
    for pair in wanted:
        place = next((number for number, other in enumerate(left) if pair.matches(other)), None)
        if place is not None:
            del left[place]
            count += 1
    return count


def unit_sums(items: Sequence[Item], population: Population, fold: Fold = str.upper) -> Sums:
    """(right predictions, predictions, found references, references) of each document.

    Right predictions and found references are counted apart, as the evaluator does: with several spellings a value,
    the two can differ.
    """
    sums = {}
    for document, places in by_unit(items).items():
        asked = [items[place] for place in places]
        predictions, references = predicted_pairs(asked, fold), reference_pairs(asked, fold)
        sums[document] = (
            float(found(predictions, references)),
            float(len(predictions)),
            float(found(references, predictions)),
            float(len(references)),
        )
    return sums


def precision(right: Any, predictions: Any, found_references: Any, references: Any) -> Any:
    return ratio(right, predictions)


def recall(right: Any, predictions: Any, found_references: Any, references: Any) -> Any:
    return ratio(found_references, references)


def f1(*sums: Any) -> Any:
    """Harmonic mean of precision and recall, from totals over documents."""
    share, part = precision(*sums), recall(*sums)
    return ratio(2 * share * part, share + part)


VARIANTS = {
    "official": CorpusVariant(
        "F1 over (document, key, value), case aside; 'None' is no pair (DUE)", SUM_NAMES, unit_sums, f1
    ),
    "precision": CorpusVariant("share of the predicted pairs that are right (DUE)", SUM_NAMES, unit_sums, precision),
    "recall": CorpusVariant("share of the reference's pairs that were found (DUE)", SUM_NAMES, unit_sums, recall),
}
ENTITY_F1 = CorpusVariant(
    "F1 over (page, key, value) as written; 'None' is no pair (SROIE's task page, its script could not be opened)",
    SUM_NAMES,
    partial(unit_sums, fold=str.strip),
    f1,
)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
