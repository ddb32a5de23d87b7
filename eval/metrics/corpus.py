"""Metrics of a whole set: what each unit adds to a few sums, and how sums become a score.

A per-question metric is a mean; these are not. F1 divides sums of counts over documents, BLEU multiplies ratios of
such sums, and CIDEr weighs words by how many images' references hold them. Each is split in two here:

    unit_sums(items, population) -> {unit: (number, …)}    the expensive half, once
    combine(sum over units of each number)                 arithmetic only, also on arrays

so that a bootstrap over units (documents, images) is `combine(*(counts @ sums))` for a matrix of draws, and leaving a
unit out is a subtraction. `score(variant, items, population)` does both for the set as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Item:
    """An answered row as a corpus metric sees it.

    `unit` is what the row belongs to and is resampled with: its document where the row names one, else its image.
    `question` is the text as asked. `more` has the keys of the row that not every row has ('key', 'values', 'options',
    'dataset_name'…); a metric that finds none there reads what it can from the question.
    """

    prediction: str
    references: tuple[str, ...]
    unit: str
    question: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


Sums = Mapping[str, tuple[float, ...]]
Population = Sequence[Sequence[str]]
"""The references of every row of the data file, also of rows that were not asked."""


@dataclass(frozen=True)
class CorpusVariant:
    """A way to score all answers of a set together, and its rule in a sentence.

    `unit_sums` gives every unit of the items a tuple of `sum_names` numbers. `combine` takes their totals, floats or
    arrays of one shape, and returns the score, a float or such an array: 0 where there is nothing to divide by.
    `item_scores`, where there is one, gives every item's own score, whose mean the variant is. `highest` is the
    greatest value that `combine` can return. `whole_set`: the population matters, not only the rows that were asked.
    """

    meaning: str
    sum_names: tuple[str, ...]
    unit_sums: Callable[[Sequence[Item], Population], Sums]
    combine: Callable[..., Any]
    item_scores: Callable[[Sequence[Item], Population], list[float]] | None = None
    highest: float = 1.0
    whole_set: bool = False


@cache
def combine_columns(variant: CorpusVariant) -> Callable[[Any], Any]:
    """`variant.combine` for an array [..., K] of totals instead of K arrays; the same function for the same variant."""
    numbers = range(len(variant.sum_names))
    return lambda sums: variant.combine(*(sums[..., number] for number in numbers))


def mean_variant(
    meaning: str,
    item_scores: Callable[[Sequence[Item], Population], list[float]],
    highest: float = 1.0,
    whole_set: bool = False,
) -> CorpusVariant:
    """The mean over rows of scores that need more than a row's prediction and references."""

    def unit_sums(items: Sequence[Item], population: Population) -> Sums:
        scores = item_scores(items, population)
        return {
            unit: (math.fsum(scores[place] for place in places), float(len(places)))
            for unit, places in by_unit(items).items()
        }

    return CorpusVariant(meaning, ("score", "rows"), unit_sums, ratio, item_scores, highest, whole_set)


def group_variant(
    meaning: str,
    item_scores: Callable[[Sequence[Item], Population], list[float]],
    group_of: Callable[[Item], Any],
) -> CorpusVariant:
    """The share of groups whose rows are all right. Rows of one group that were asked have one unit."""

    def unit_sums(items: Sequence[Item], population: Population) -> Sums:
        whole: dict[str, dict[Any, bool]] = {}
        for item, score in zip(items, item_scores(items, population), strict=True):
            groups, key = whole.setdefault(item.unit, {}), group_of(item)
            groups[key] = groups.get(key, True) and score == 1.0
        return {unit: (float(sum(groups.values())), float(len(groups))) for unit, groups in whole.items()}

    return CorpusVariant(meaning, ("whole_groups", "groups"), unit_sums, ratio)


def score(variant: CorpusVariant, items: Sequence[Item], population: Population | None = None) -> float:
    """The score of a set of answers; 0 of none."""
    return float(variant.combine(*total(variant, unit_sums(variant, items, population).values())))


def unit_sums(variant: CorpusVariant, items: Sequence[Item], population: Population | None = None) -> Sums:
    """What each unit adds. Without a population the items' own references are it.

    Raises:
        ValueError: fewer rows in the population than items, which would make rare words of common ones.
    """
    if population is None:
        population = [item.references for item in items]
    if len(population) < len(items):
        raise ValueError(f"{len(items)} answers cannot come from a set of {len(population)} rows")
    return variant.unit_sums(items, population)


def total(variant: CorpusVariant, sums: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """The sums of a selection of units, each unit as often as it occurs."""
    columns = list(zip(*sums, strict=True))
    return tuple(map(sum, columns)) if columns else (0.0,) * len(variant.sum_names)


def by_unit(items: Sequence[Item]) -> dict[str, list[int]]:
    """Positions of the items of each unit, units in the order met."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.unit, []).append(place)
    return places


def ratio(numerator: Any, denominator: Any) -> Any:
    """Quotient of floats or arrays; 0 where the denominator is."""
    return numerator / (denominator + (denominator == 0))
