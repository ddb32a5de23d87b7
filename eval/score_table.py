"""Every variant of a metric over the lines of a run: value, standard error, interval and ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.corpus_scores import corpus_units, item_of
from eval.metrics import best_answer, ceiling, metric_named
from eval.metrics.corpus import Population
from eval.run_folder import Line
from eval.statistics import Units, estimate, estimates, mean_units


def score_table(metric: str, lines: Sequence[Line], population: Population | None = None) -> dict[str, dict[str, Any]]:
    """Every variant of a metric in percent over scored lines, with its standard error, 95 % interval and ceiling.

    `ceiling` is what the best reference of each row scores when it is given as the answer: a variant whose ceiling is
    under 100 cannot be reached on these data, or is broken for them. Figures are None where there is no line.
    """
    row = metric_named(metric)
    variants = row.all_variants
    of_rows = [name for name in variants if name in row.variants or row.corpus[name].item_scores is not None]
    found = estimates({name: units_of(metric, name, lines) for name in of_rows})
    # Their units are documents, whose number is another than that of the images.
    found |= {name: estimate(units_of(metric, name, lines)) for name in variants if name not in found}
    ceilings = _ceilings(metric, lines, population)
    return {
        name: {
            "value": _percent(found[name].value),
            "n": found[name].units,
            "ceiling": _percent(ceilings[name]),
            "meaning": variant.meaning,
            "standard_error": _rounded(found[name].standard_error),
            "interval": None if found[name].interval is None else [*map(_rounded, found[name].interval)],
            "interval_method": found[name].method,
            "clusters": found[name].clusters,
        }
        for name, variant in variants.items()
    }


def units_of(metric: str, variant: str, lines: Sequence[Line]) -> Units:
    """What the value of one variant is computed from, clustered by image, or by document where it is of the corpus.

    Raises ValueError where a line lacks the variant.
    """
    corpus = metric_named(metric).corpus.get(variant)
    if corpus is not None and corpus.item_scores is None:
        return corpus_units(corpus, lines)
    for line in lines:
        if variant not in line["scores"]:
            raise ValueError(
                f"row {line['row']} has no score of {metric} ({variant}); score the run again with python -m eval.score"
            )
    return mean_units([line["scores"][variant] for line in lines], [line["image"] for line in lines])


def _ceilings(metric: str, lines: Sequence[Line], population: Population | None) -> dict[str, float | None]:
    """Score of the best answers by every variant; rows with the same references are looked at once."""
    variants = metric_named(metric).variants
    corpus = {
        name: ceiling(metric, name, list(map(item_of, lines)), population) for name in metric_named(metric).corpus
    }
    found: dict[tuple[str, ...], dict[str, float]] = {}
    sums = dict.fromkeys(variants, 0.0)
    for line in lines:
        references = tuple(line["references"])
        if references not in found:
            found[references] = {name: best_answer(metric, name, references)[1] for name in variants}
        for name, best in found[references].items():
            sums[name] += best
    return {**corpus, **{name: total / len(lines) if lines else None for name, total in sums.items()}}


def _rounded(value: float | None) -> float | None:
    """Percent without the digits in which matrix products differ between machines: files stay equal to the byte."""
    return None if value is None else round(100.0 * value, 6)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value
