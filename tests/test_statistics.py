"""Intervals and tests agree with closed forms, with SciPy, and with what clustering must do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from eval.statistics import (
    BOOTSTRAP,
    EXACT,
    MONTE_CARLO,
    WILSON,
    Units,
    clustered_standard_error,
    detectable_difference,
    difference,
    estimate,
    estimates,
    f1,
    holm,
    mcnemar_exact,
    mean,
    mean_units,
    swap_test,
    wilson_interval,
)

SCORES = np.random.default_rng(5).beta(2, 1, 120).round(3)
"""Scores that are not all 0 or 1."""


def single(scores) -> Units:
    """One unit a cluster."""
    return mean_units(scores, list(range(len(scores))))


class TestOneValue:
    def test_standard_error_agrees_with_scipy(self):
        assert estimate(single(SCORES)).standard_error == pytest.approx(stats.sem(SCORES), rel=1e-12)

    def test_doubled_rows_of_an_image_add_nothing(self):
        once = estimate(single(SCORES))
        twice = estimate(mean_units(np.repeat(SCORES, 2), np.repeat(np.arange(120), 2).tolist()))
        assert twice.standard_error == pytest.approx(once.standard_error, rel=1e-12)
        assert twice.interval == pytest.approx(once.interval, rel=1e-12)
        as_if_independent = estimate(single(np.repeat(SCORES, 2)))
        assert twice.standard_error > 1.4 * as_if_independent.standard_error

    def test_standard_error_of_unequal_clusters_by_hand(self):
        # Sums 1 of 1 and 1 of 3; mean 1/2; deviations 1/2 and -1/2; sqrt(2/1 * 1/2) / 4.
        totals = np.array([[1.0, 1.0], [1.0, 3.0]])
        assert clustered_standard_error(totals) == pytest.approx(0.25)

    def test_interval_agrees_with_scipys_bootstrap(self):
        theirs = stats.bootstrap(
            (SCORES,), np.mean, n_resamples=10_000, method="percentile", random_state=np.random.default_rng(0)
        ).confidence_interval
        # Two Monte-Carlo percentiles, each known to some 2 % of the interval's width.
        assert estimate(single(SCORES)).interval == pytest.approx(tuple(theirs), abs=0.05 * (theirs.high - theirs.low))

    def test_interval_covers_the_truth_as_often_as_it_says(self):
        generator = np.random.default_rng(11)
        covered = 0
        for seed in range(200):
            images = generator.normal(0.5, 0.15, 40)
            scores = np.repeat(images, 3) + generator.normal(0, 0.1, 120)
            low, high = estimate(mean_units(scores, np.repeat(np.arange(40), 3).tolist()), 400, seed).interval
            covered += low <= 0.5 <= high
        # 95 % less a little for 40 clusters; three binomial standard deviations are 4.6 %.
        assert 0.885 <= covered / 200 <= 0.985

    @pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (1, 2), (3, 40), (480, 500)])
    def test_wilson_agrees_with_scipy(self, right, n):
        theirs = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        found = estimate(single([1.0] * right + [0.0] * (n - right)))
        assert found.method == WILSON
        assert found.interval == pytest.approx((theirs.low, theirs.high), abs=1e-12)

    def test_all_right_is_not_certain(self):
        found = estimate(mean_units([1.0] * 30, [row // 3 for row in range(30)]))
        assert (found.method, found.clusters) == (WILSON, 10)
        assert found.interval == pytest.approx(wilson_interval(1.0, 10))
        assert found.interval[0] < 0.73

    def test_one_image_gives_no_interval_and_none_gives_no_value(self):
        alone = estimate(mean_units([0.3, 0.9], ["a", "a"]))
        assert (alone.value, alone.standard_error, alone.interval) == (pytest.approx(0.6), None, None)
        nothing = estimate(mean_units([], []))
        assert (nothing.value, nothing.standard_error, nothing.interval, nothing.units) == (None, None, None, 0)

    def test_f1_is_of_the_added_counts_and_not_a_mean(self):
        counts = np.array([[1.0, 0.0, 0.0], [1.0, 3.0, 1.0], [0.0, 0.0, 4.0]])
        units = Units(counts, [0, 1, 2], f1)
        assert units.value == pytest.approx(2 * 2 / (2 * 2 + 3 + 5))
        assert f1(np.zeros(3)) == 0.0
        found = estimate(units)
        assert found.method == BOOTSTRAP
        assert found.standard_error > 0
        assert 0 <= found.interval[0] <= found.value <= found.interval[1] <= 1

    def test_f1_spreads_as_its_linear_approximation_says(self):
        generator = np.random.default_rng(2)
        counts = np.column_stack([generator.binomial(5, share, 400) for share in (0.6, 0.3, 0.2)]).astype(float)
        value, denominator = f1(counts.sum(axis=0)), 2 * counts[:, 0].sum() + counts[:, 1:].sum()
        residuals = 2 * counts[:, 0] - value * (2 * counts[:, 0] + counts[:, 1] + counts[:, 2])
        expected = math.sqrt((residuals**2).sum()) / denominator
        assert estimate(Units(counts, list(range(400)), f1)).standard_error == pytest.approx(expected, rel=0.04)

    def test_the_same_seed_gives_the_same_figures_and_variants_share_their_draws(self):
        clusters = [row // 4 for row in range(120)]
        one, other = mean_units(SCORES, clusters), mean_units(SCORES**2, clusters)
        together = estimates({"one": one, "other": other})
        assert estimate(one) == estimate(one)
        for name, units in (("one", one), ("other", other)):
            # Matrix products of other widths may differ in their last bits.
            assert together[name].interval == pytest.approx(estimate(units).interval, rel=1e-12)
        assert estimate(one, seed=1).interval != estimate(one, seed=2).interval

    def test_units_of_different_images_are_not_estimated_together(self):
        with pytest.raises(ValueError, match="same clusters"):
            estimates({"one": mean_units([0.5, 1], [0, 1]), "other": mean_units([0.5, 1], [1, 0])})
        with pytest.raises(ValueError, match="2 units with 1 cluster labels"):
            mean_units([0.5, 1.0], ["a"])


class TestTwoValues:
    FIRST, SECOND = SCORES[:60], SCORES[60:]

    def test_exact_sign_flip_by_hand(self):
        # Differences 1, 1, 1 of three images: of eight sign patterns two are as far from zero.
        p_value, method = swap_test(np.array([[0.0, 1]] * 3), np.array([[1.0, 1]] * 3), mean)
        assert (p_value, method) == (0.25, EXACT)

    def test_exact_sign_flip_agrees_with_scipy(self):
        first, second = self.FIRST[:12], self.SECOND[:12]
        theirs = stats.permutation_test(
            (first, second), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", vectorized=True
        )
        found = difference(single(first), single(second), draws=10)
        assert found.p_method == EXACT
        assert found.p_value == pytest.approx(theirs.pvalue, abs=1e-12)

    def test_monte_carlo_agrees_with_the_normal_approximation(self):
        found = difference(single(self.FIRST), single(self.SECOND), draws=10)
        change = self.SECOND - self.FIRST
        z = abs(change.sum()) / math.sqrt((change**2).sum())
        assert found.p_method == MONTE_CARLO
        # Its own Monte-Carlo error is at most 0.0035; the approximation at 60 pairs is worth some more.
        assert found.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)

    def test_a_p_value_is_never_zero(self):
        found = difference(single([0.0] * 200), single([1.0] * 200), draws=10, permutations=999)
        assert found.p_value == pytest.approx(1 / 1000)

    def test_false_alarms_are_as_rare_as_promised_where_images_repeat(self):
        generator = np.random.default_rng(3)
        clusters = np.repeat(np.arange(30), 5).tolist()
        alarms = {"clustered": 0, "single": 0}
        for seed in range(200):
            effect = np.repeat(generator.normal(0, 0.2, 30), 5)
            first = generator.normal(0.5, 0.1, 150)
            second = first + effect + generator.normal(0, 0.05, 150)
            for name, labels in (("clustered", clusters), ("single", list(range(150)))):
                one, other = mean_units(first, labels), mean_units(second, labels)
                alarms[name] += difference(one, other, draws=2, permutations=199, seed=seed).p_value <= 0.05
        # Three binomial standard deviations over 5 % are 9.6 %.
        assert alarms["clustered"] <= 19
        assert alarms["single"] >= 60

    def test_error_of_the_difference_is_of_the_pairs(self):
        found = difference(single(self.FIRST), single(self.SECOND))
        change = self.SECOND - self.FIRST
        assert found.value == pytest.approx(change.mean())
        assert found.standard_error == pytest.approx(change.std(ddof=1) / math.sqrt(60), rel=1e-9)
        assert found.interval[0] < found.value < found.interval[1]
        shifted = difference(single(self.FIRST), single(self.FIRST + 0.25))
        assert shifted.standard_error == pytest.approx(0.0, abs=1e-9)

    def test_the_same_answers_do_not_differ(self):
        found = difference(single(SCORES), single(SCORES), draws=100)
        assert (found.value, found.p_value, found.wins, found.losses, found.ties) == (0.0, 1.0, 0, 0, 120)
        assert found.interval == (0.0, 0.0)

    def test_mcnemar_only_for_zero_or_one(self):
        assert difference(single(self.FIRST), single(self.SECOND), draws=10).mcnemar is None
        found = difference(single([1.0, 0, 0, 0, 0, 1]), single([0.0, 1, 1, 1, 1, 1]), draws=10)
        assert (found.wins, found.losses, found.ties) == (4, 1, 1)
        assert found.mcnemar == pytest.approx(2 * (1 + 5) / 32)

    @pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 5), (1, 9), (30, 12), (700, 600), (4000, 3800)])
    def test_mcnemar_agrees_with_scipy(self, wins, losses):
        theirs = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert mcnemar_exact(wins, losses) == pytest.approx(theirs, rel=1e-9)

    def test_two_f1_scores_are_paired_by_document(self):
        counts = np.tile([[2.0, 1.0, 1.0]], (10, 1))
        better = counts + np.array([1.0, -1.0, -1.0])
        labels = list(range(10))
        found = difference(Units(counts, labels, f1), Units(better, labels, f1))
        assert found.value == pytest.approx(1.0 - 2 / 3)
        assert (found.p_value, found.p_method) == (pytest.approx(2 / 1024), EXACT)
        assert (found.wins, found.mcnemar) == (10, None)

    def test_only_like_is_paired_with_like(self):
        with pytest.raises(ValueError, match="one metric over the same units"):
            difference(single([1.0]), single([1.0, 0.0]))
        with pytest.raises(ValueError, match="no unit"):
            difference(single([]), single([]))

    def test_holm_by_hand(self):
        # 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.5; never under the one before, never over 1.
        assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
        assert holm([0.9, 0.8]) == [1.0, 1.0]
        assert holm([]) == []

    def test_detectable_difference_is_found_four_times_of_five(self):
        # z(0.975) + z(0.80) = 1.959964 + 0.841621.
        assert detectable_difference(1.0) == pytest.approx(2.801585, abs=1e-6)
        draws = np.random.default_rng(0).normal(detectable_difference(1.0), 1.0, 200_000)
        # Three standard deviations of the share are 0.003.
        assert (np.abs(draws) > 1.959964).mean() == pytest.approx(0.80, abs=0.004)
