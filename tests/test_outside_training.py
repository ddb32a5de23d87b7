"""Losses of short runs: thirty of the quickstart's, packed and padded, and a few of each recipe; `losses.json` outside.

The first loss is that of the same forward pass; what rounding in another order makes of the thirtieth is allowed for.
"""

from __future__ import annotations

import importlib.util

import pytest

from tests.golden.outside.observed import RECIPES, recorded, tickets, trained, words_of_recipe

RECORDED = recorded("losses.json")
FIRST, LAST = 1e-6, 1e-3
LAST_IN_BF16 = 2e-2
"""Of 4-bit weights, whose run is in bf16: one thread more makes 5e-3 of the third loss."""


def assert_same_losses(found: list[float], expected: list[float], last: float = LAST) -> None:
    assert len(found) == len(expected)
    assert found[0] == pytest.approx(expected[0], abs=FIRST)
    assert found == pytest.approx(expected, abs=last)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["packed", "padded"])
def test_the_first_thirty_losses_of_the_quickstart(tmp_path, how):
    assert len(RECORDED[how]) == 30
    assert_same_losses(tickets(tmp_path, how), RECORDED[how])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_short_run_of_each_recipe(tmp_path, recipe):
    if recipe == "qlora-llm" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("4-bit needs bitsandbytes: pip install .[quantization]")
    last = LAST_IN_BF16 if recipe == "qlora-llm" else LAST
    assert_same_losses(trained(words_of_recipe(recipe), tmp_path / "out"), RECORDED[recipe], last)
