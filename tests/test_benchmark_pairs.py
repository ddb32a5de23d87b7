"""Two checkouts in turns: the interval of a median, and what is no checkout."""

from __future__ import annotations

import json

import pytest

from benchmarks import pairs


@pytest.mark.parametrize(
    ("count", "interval"),
    [(10, (1, 8)), (12, (2, 9)), (20, (5, 14)), (3, (0, 2)), (1, (0, 0))],
)
def test_the_interval_of_a_median_is_that_of_the_ranks(count, interval):
    """For 10 values the second and the ninth hold the median with 97.9 %, the third and the eighth with 89.1 %."""
    assert pairs.median_interval([float(value) for value in reversed(range(count))]) == interval


def test_what_is_no_checkout_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        pairs.main([str(tmp_path)])
    assert "is no checkout of this project: it has no benchmarks/measure.py" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkout_beside_itself(capsys):
    root = pairs.Path(pairs.__file__).parent.parent
    assert pairs.main([str(root), "--pairs", "1", "--only", "vision"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < result["ratios"]["vision"] < 100
    assert (
        result["figures"]["vision"]["lower"]
        == result["figures"]["vision"]["upper"]
        == pytest.approx(result["ratios"]["vision"], abs=1e-4)
    )
