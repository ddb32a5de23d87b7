"""The generation benchmarks run, compare equal tokens only, and the engine's moments are counted as they say."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import full_size_generation, generate

SMALL = [
    *("--device", "cpu", "--quick", "--repeats", "1", "--new-tokens", "3", "--question", "3"),
    *("--width", "16", "--layers", "1", "--heads", "1", "--vocabulary", "256"),
]
TINY = ["--device", "cpu", "--tiny", "--images", "2", "--requests", "1", "2", "--question", "5", "--repeats", "1"]


@pytest.fixture
def one_batch(monkeypatch):
    monkeypatch.setattr(generate, "BATCHES", (2,))


def test_the_last_line_has_ratios_and_rates_of_every_side(capfd, one_batch):
    assert generate.main(SMALL) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    names = {"first_token_speedup", "decode_speedup", "engine_first_token_speedup", "engine_decode_speedup"}
    names |= {name.replace("speedup", "fraction") for name in names}
    assert {f"{name}_2" for name in (*names, "memory_ratio")} <= set(result["ratios"])
    assert set(result["figures"]["batch_2"]["tokens_per_second"]) == {"published", "ours", "engine"}
    assert min(result["ratios"].values()) > 0


def test_other_tokens_end_the_benchmark(monkeypatch, one_batch):
    original = generate.Sides.engine

    def other(self):
        written = original(self)
        return written._replace(tokens=written.tokens + 1)

    monkeypatch.setattr(generate.Sides, "engine", other)
    with pytest.raises(SystemExit, match="engine and the published order generated different tokens"):
        generate.main(SMALL)


def test_full_size_runs_at_no_size(capsys, tmp_path):
    output = tmp_path / "figures" / "generation.json"
    assert full_size_generation.main([*TINY, "--new-tokens", "4", "--output", str(output)]) == 0
    figures = json.loads(output.read_text())["figures"]
    assert figures == json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert set(figures["vision_images_per_second"]) == {"2"}
    assert set(figures["tokens_per_second"]) == set(figures["first_token_seconds"]) == {"1", "2"}
    assert all(value > 0 for by_count in figures.values() for value in by_count.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize(
    ("words", "message"),
    [([], "torch sees no CUDA device here"), (["--device", "cpu", "--tiny", "--compile"], "--compile is for CUDA")],
)
def test_what_cannot_be_measured_is_said(words, message, capsys):
    assert full_size_generation.main(words) == 2
    assert message in capsys.readouterr().err
