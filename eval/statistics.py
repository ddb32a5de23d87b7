"""How sure a score is, and whether two scores differ, where questions share images.

A value is computed from *units* (questions, or documents), each with a row of sums that add up: (score, weight) for a
mean, (true positives, false positives, false negatives) for an F1. `combine` turns the added sums into the value, so
one bootstrap and one permutation test serve every metric. What is drawn, or swapped, are whole *clusters*: all units of
one image, since its questions are right and wrong together.

Shapes: U units, C clusters, K sums a unit, D draws. Values are on the scale of the scores, 0 to 1.

Sources: Wilson 1927 (interval); Efron and Tibshirani 1993 (bootstrap); Holm 1979; McNemar 1947, exact form; Miller,
arXiv 2411.00640 (clustered standard errors of evaluations). SciPy has Wilson's interval and McNemar's test too; its
figures differ in the last bits from those of stored results, and its import takes longer than `--list`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
POWER = 0.80
DRAWS = 10_000
PERMUTATIONS = 20_000
SEED = 3407

EXACT_CLUSTERS = 14
"""Up to this many clusters that differ, all 2^n swaps are tried (16,384, fewer than PERMUTATIONS)."""

WILSON, BOOTSTRAP = "Wilson", "clustered bootstrap"
EXACT, MONTE_CARLO = "exact", "Monte Carlo"

_CHUNK = 1 << 22
"""Random bits held at a time."""

Combine = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Units:
    """What a value is computed from: `value = combine(sums.sum(axis=0))`.

    Args:
        sums: [U, K], float.
        clusters: one label a unit; units of one label are drawn together.
        combine: [..., K] to [...]; must accept any number of leading axes.
    """

    sums: np.ndarray
    clusters: Sequence[Hashable]
    combine: Combine

    def __post_init__(self) -> None:
        if len(self.sums) != len(self.clusters):
            raise ValueError(f"{len(self.sums)} units with {len(self.clusters)} cluster labels")

    @property
    def value(self) -> float | None:
        return float(self.combine(self.sums.sum(axis=0))) if len(self.sums) else None

    @property
    def is_zero_or_one(self) -> bool:
        """Whether this is the mean of scores that are all 0 or 1."""
        return self.combine is mean and bool(np.isin(self.sums[:, 0], (0.0, 1.0)).all())


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and 95 % interval; None where the data do not allow one."""

    value: float | None
    standard_error: float | None
    interval: tuple[float, float] | None
    method: str | None
    units: int
    clusters: int


@dataclass(frozen=True)
class Difference:
    """B minus A over the same units.

    `p_value` is of the swap test (for means: sign-flip). `mcnemar` is None unless both are means of 0/1 scores; it
    takes units as independent, so trust `p_value` where images repeat. `detectable` is the smallest true difference
    that a two-sided test at 5 % finds in four of five such comparisons.
    """

    value: float
    standard_error: float | None
    interval: tuple[float, float] | None
    p_value: float
    p_method: str
    mcnemar: float | None
    wins: int
    losses: int
    ties: int
    detectable: float | None
    units: int
    clusters: int


def mean(sums: np.ndarray) -> np.ndarray:
    """[..., (sum of scores, number of scores)] to their mean."""
    return sums[..., 0] / sums[..., 1]


def f1(sums: np.ndarray) -> np.ndarray:
    """[..., (true positives, false positives, false negatives)] to F1; 0 where there are none of the three."""
    doubled = 2.0 * sums[..., 0]
    total = doubled + sums[..., 1] + sums[..., 2]
    return np.divide(doubled, total, out=np.zeros_like(doubled), where=total > 0)


def mean_units(scores: Sequence[float], clusters: Sequence[Hashable]) -> Units:
    """One unit a score."""
    values = np.asarray(scores, dtype=np.float64)
    return Units(np.column_stack([values, np.ones_like(values)]), clusters, mean)


def estimate(units: Units, draws: int = DRAWS, seed: int = SEED) -> Estimate:
    return estimates({"": units}, draws, seed)[""]


def estimates(named: Mapping[str, Units], draws: int = DRAWS, seed: int = SEED) -> dict[str, Estimate]:
    """Estimate several values over the same clusters; one resampling serves them all.

    Means of 0/1 scores with one unit a cluster get Wilson's interval. So do those that are all equal, where resampling
    shows no spread: then with the number of clusters for n, which assumes that units of one image say the same.
    Everything else gets the percentiles of a clustered bootstrap. With fewer than some twenty clusters these are too
    narrow; with one there are none.
    """
    if not named:
        return {}
    labels = next(iter(named.values())).clusters
    if any(units.clusters is not labels and list(units.clusters) != list(labels) for units in named.values()):
        raise ValueError("values that are estimated together must have the same clusters")
    index, count = _cluster_index(labels)
    totals = {name: _cluster_sums(units.sums, index, count) for name, units in named.items()}
    drawn = [name for name, units in named.items() if count > 1 and not _wilson_applies(units, count)]
    sums = dict(zip(drawn, bootstrap_sums([totals[name] for name in drawn], draws, seed), strict=True))
    return {name: _estimate(units, totals[name], sums.get(name)) for name, units in named.items()}


def _estimate(units: Units, totals: np.ndarray, sums: np.ndarray | None) -> Estimate:
    value, clusters = units.value, len(totals)
    error, interval, method = None, None, None
    if sums is not None:
        resampled = units.combine(sums)
        error, interval, method = float(resampled.std(ddof=1)), _percentiles(resampled), BOOTSTRAP
    elif value is not None and units.is_zero_or_one:
        interval, method = wilson_interval(value, clusters), WILSON
    if value is not None and clusters > 1 and units.combine is mean:
        error = clustered_standard_error(totals)
    return Estimate(value, error, interval, method, len(units.sums), clusters)


def _wilson_applies(units: Units, clusters: int) -> bool:
    return units.is_zero_or_one and (clusters == len(units.sums) or units.value in (0.0, 1.0))


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's score interval of a share of n independent trials."""
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_standard_error(totals: np.ndarray) -> float:
    """Return the standard error of a mean from sums [C, (score, weight)] of clusters, in closed form.

    It is the linearised variance of a ratio with the C / (C - 1) correction; with one score a cluster it is the sample
    standard deviation over the root of n.
    """
    clusters, weight = len(totals), totals[:, 1].sum()
    deviations = totals[:, 0] - totals[:, 0].sum() / weight * totals[:, 1]
    return float(math.sqrt(clusters / (clusters - 1) * float(deviations @ deviations)) / weight)


def bootstrap_sums(totals: Sequence[np.ndarray], draws: int = DRAWS, seed: int = SEED) -> list[np.ndarray]:
    """Draw clusters with replacement, as many as there are; of each sums [C, K] return those of the draws, [D, K]."""
    if not totals:
        return []
    columns = np.concatenate(totals, axis=1)
    generator = np.random.default_rng(seed)
    clusters = len(columns)
    sums = np.empty((draws, columns.shape[1]))
    for draw in range(draws):
        times = np.bincount(generator.integers(clusters, size=clusters), minlength=clusters)
        sums[draw] = times @ columns
    return np.split(sums, np.cumsum([of_one.shape[1] for of_one in totals[:-1]]), axis=1)


def difference(
    first: Units, second: Units, draws: int = DRAWS, permutations: int = PERMUTATIONS, seed: int = SEED
) -> Difference:
    """Return how `second` differs from `first`, unit by unit in the same order; clusters are those of `first`."""
    if first.sums.shape != second.sums.shape or first.combine is not second.combine:
        raise ValueError("only values of one metric over the same units can be paired")
    if not len(first.sums):
        raise ValueError("there is no unit to compare")
    combine = first.combine
    index, count = _cluster_index(first.clusters)
    totals = [_cluster_sums(units.sums, index, count) for units in (first, second)]
    error, interval = None, None
    if count > 1:
        ones, others = bootstrap_sums(totals, draws, seed)
        resampled = combine(others) - combine(ones)
        error, interval = float(resampled.std(ddof=1)), _percentiles(resampled)
        if combine is mean and np.array_equal(totals[0][:, 1], totals[1][:, 1]):
            error = clustered_standard_error(np.column_stack([totals[1][:, 0] - totals[0][:, 0], totals[0][:, 1]]))
    p_value, method = swap_test(totals[0], totals[1], combine, permutations, seed)
    ones, others = combine(first.sums), combine(second.sums)
    wins, losses = int((others > ones).sum()), int((others < ones).sum())
    binary = first.is_zero_or_one and second.is_zero_or_one
    return Difference(
        value=second.value - first.value,
        standard_error=error,
        interval=interval,
        p_value=p_value,
        p_method=method,
        mcnemar=mcnemar_exact(wins, losses) if binary else None,
        wins=wins,
        losses=losses,
        ties=len(first.sums) - wins - losses,
        detectable=None if error is None else detectable_difference(error),
        units=len(first.sums),
        clusters=count,
    )


def swap_test(
    first: np.ndarray, second: np.ndarray, combine: Combine, permutations: int = PERMUTATIONS, seed: int = SEED
) -> tuple[float, str]:
    """Return the two-sided p of "which of the two an answer came from does not matter", and how it was computed.

    Clusters swap their sums [C, K] between the two sides; for means that flips the signs of their differences. All
    swaps are tried where few clusters differ, else `permutations` random ones, of which the observed one is one.
    """
    differs = (first != second).any(axis=1)
    change = (second - first)[differs]
    number = len(change)
    if number == 0:
        return 1.0, EXACT
    total_first, total_second = first.sum(axis=0), second.sum(axis=0)

    def statistic(swapped: np.ndarray) -> np.ndarray:
        """Return |B - A| of swaps [n, number], 1 where a cluster is swapped."""
        moved = swapped.astype(np.float64) @ change
        return np.abs(combine(total_second - moved) - combine(total_first + moved))

    # Equal sums that were added in another order differ in their last bits and are equal all the same.
    observed = float(statistic(np.zeros((1, number)))[0])
    threshold = observed - 1e-9 * max(observed, 1e-3)
    if number <= EXACT_CLUSTERS:
        swaps = (np.arange(1 << number)[:, None] >> np.arange(number)) & 1
        return float((statistic(swaps) >= threshold).mean()), EXACT
    generator = np.random.default_rng(seed)
    extreme, left = 0, permutations
    while left:
        rows = min(left, max(1, _CHUNK // number))
        packed = generator.integers(256, size=(rows, -(-number // 8)), dtype=np.uint8)
        swaps = np.unpackbits(packed, axis=1, count=number)
        extreme += int((statistic(swaps) >= threshold).sum())
        left -= rows
    return (extreme + 1) / (permutations + 1), MONTE_CARLO


def mcnemar_exact(wins: int, losses: int) -> float:
    """Return McNemar's exact two-sided p: a fair coin for each pair of which one is right and the other wrong."""
    number, fewer = wins + losses, min(wins, losses)
    ways = total = 1
    for chosen in range(1, fewer + 1):
        ways = ways * (number - chosen + 1) // chosen
        total += ways
    return min(1.0, 2 * total / 2**number)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, in the order given: over all of them, false alarms stay under the level."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def detectable_difference(standard_error: float) -> float:
    """Return the true difference that a two-sided test at 1 - LEVEL finds with the probability POWER."""
    normal = NormalDist()
    return (normal.inv_cdf(0.5 + LEVEL / 2) + normal.inv_cdf(POWER)) * standard_error


def _cluster_index(labels: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """Return the number of each unit's cluster, int [U], in order of first appearance, and how many there are."""
    numbers: dict[Hashable, int] = {}
    index = np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), np.int64, len(labels))
    return index, len(numbers)


def _cluster_sums(sums: np.ndarray, index: np.ndarray, clusters: int) -> np.ndarray:
    """Add [U, K] up to [C, K]."""
    return np.stack([np.bincount(index, weights=column, minlength=clusters) for column in sums.T], axis=1)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
