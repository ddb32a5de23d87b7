"""Corpus metrics on the lines of a run: scores of rows where there are any, and units for the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics import metric_named
from eval.metrics.corpus import CorpusVariant, Item, Population, combine_columns, unit_sums
from eval.run_folder import Line
from eval.statistics import Units


def needs_whole_set(metric: str) -> bool:
    """Whether a variant of the metric weighs by rows that may not have been asked."""
    return any(variant.whole_set for variant in metric_named(metric).corpus.values())


def item_of(line: Line) -> Item:
    """A line of predictions.jsonl as a corpus metric sees it."""
    more = line.get("more", {})
    unit = str(more.get("document", line["image"]))
    return Item(line["answer"], tuple(line["references"]), unit, line["question"], more)


def with_row_scores(
    metric: str, lines: Sequence[Mapping[str, Any]], population: Population | None = None
) -> list[dict[str, Any]]:
    """The lines with the scores of the corpus variants that score rows (CIDEr, the nearest option…)."""
    items = list(map(item_of, lines))
    known = [item.references for item in items] if population is None else population
    added: list[dict[str, float]] = [{} for _ in lines]
    for name, variant in metric_named(metric).corpus.items():
        if variant.item_scores is not None:
            for scores, score in zip(added, variant.item_scores(items, known), strict=True):
                scores[name] = score
    return [{**line, "scores": {**scores, **line["scores"]}} for line, scores in zip(lines, added, strict=True)]


def corpus_units(variant: CorpusVariant, lines: Sequence[Line], population: Population | None = None) -> Units:
    """A unit for each document or image, which is drawn by itself."""
    sums = unit_sums(variant, list(map(item_of, lines)), population)
    table = np.array(list(sums.values()), dtype=np.float64).reshape(len(sums), len(variant.sum_names))
    return Units(table, list(sums), combine_columns(variant))
