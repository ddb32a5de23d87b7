"""The benchmark of descriptions runs every expert both ways, and refuses to compare different outputs."""

from __future__ import annotations

import json

import pytest

from benchmarks import describe
from monkey.describe.experts import NO_TEXT, Blip2Captions, Failure
from monkey.describe.findings import RESULTS, Caption


@pytest.fixture
def without_reading(monkeypatch):
    """RapidOCR takes seconds a picture on two cores and has its own tests."""
    original = describe.chain_of_models
    monkeypatch.setattr(describe, "chain_of_models", lambda *args: {**original(*args), "text": {"expert": "none"}})


@pytest.mark.slow
def test_the_last_line_has_rates_and_shares_of_every_stage(capsys, monkeypatch, without_reading):
    sizes = []
    original = Blip2Captions.__call__

    def counted(self, items):
        sizes.append(len(items))
        return original(self, items)

    monkeypatch.setattr(Blip2Captions, "__call__", counted)
    assert describe.main(["--quick"]) == 0
    # One at a time and in batches, once to compare the outputs and once for the time.
    assert sizes == 2 * [1, 1, 1, 1, 1, 4, 1]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["benchmark"] == "describe"
    ratios = {"describe_speedup", "transformers_speedup", *(f"{stage}_speedup" for stage in describe.MODELS)}
    assert set(result["ratios"]) == ratios
    figures = result["figures"]["models"]
    assert set(figures) == {*RESULTS, "all"}
    assert {figures[stage]["equal"] for stage in RESULTS} == {1.0}
    for side in ("baseline", "ours"):
        assert sum(figures[stage][side]["share"] for stage in RESULTS) == pytest.approx(1, abs=1e-3)
        whole = sum(1 / figures[stage][side]["pictures_per_second"] for stage in RESULTS)
        assert figures["all"][side]["pictures_per_second"] == pytest.approx(1 / whole, rel=0.01)
    assert result["settings"]["batch_size"] == 4


def test_outputs_that_differ_are_not_compared(monkeypatch, capsys, without_reading):
    original = Blip2Captions.__call__

    def changed(self, items):
        found = original(self, items)
        return found if len(items) == 1 else [Caption(f"{one.text}.") for one in found]

    monkeypatch.setattr(Blip2Captions, "__call__", changed)
    with pytest.raises(SystemExit, match="caption: 80% of the images come out otherwise alone than in a batch"):
        describe.main(["--quick"])
    assert "ratios" not in capsys.readouterr().out


def test_a_failure_is_no_speed(monkeypatch, without_reading):
    monkeypatch.setattr(NO_TEXT, "__call__", lambda self, items: [Failure("no reader") for _ in items])
    with pytest.raises(SystemExit, match="text failed on image 0 alone: no reader"):
        describe.main(["--quick"])


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"a": [0.5, "x"]}, {"a": (0.5004, "x")}, True),
        ({"a": [0.5, "x"]}, {"a": [0.503, "x"]}, False),
        ({"a": [0.5]}, {"a": [0.5, 0.5]}, False),
        ({"a": "x"}, {"b": "x"}, False),
        ({"a": None}, {"a": 0.0}, False),
        ({"a": float("nan")}, {"a": float("nan")}, False),
    ],
)
def test_numbers_may_differ_by_the_tolerance_and_texts_not_at_all(one, other, equal):
    assert describe.same(one, other) is equal


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch-size", "0"], "must be 1 or more"),
        (["--models", "nowhere"], "--models nowhere lacks blip2, florence2, sam, matcher, causal"),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys, words, sentence):
    with pytest.raises(SystemExit):
        describe.parse(words)
    assert sentence in capsys.readouterr().err
