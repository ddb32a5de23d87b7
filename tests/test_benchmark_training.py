"""The training benchmarks run, check that both sides make the same step, and refuse to compare different ones."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import full_size, training

SMALL = [
    "--questions", "1", "2", "--repeats", "1", "--vocabulary", "512", "--width", "64", "--layers", "1",
    "--vision-width", "32", "--vision-layers", "1", "--vision-heads", "2", "--grid", "1", "1",
]  # fmt: skip


def _last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("more", [[], ["--checkpointing"]], ids=["plain", "checkpointing"])
def test_the_last_line_has_the_ratios_of_equal_steps(capsys, more):
    assert training.main([*SMALL, *more]) == 0
    result = _last_line(capsys)
    ratios = result["ratios"]
    assert {"step_speedup_1", "step_speedup_2", "memory_ratio"} <= set(ratios)
    assert ratios["memory_ratio"] < 1
    assert ratios["tokens_2"] < ratios["padding_2"] == 2 * ratios["padding_1"]


def test_another_loss_ends_the_comparison(monkeypatch):
    original = training.our_passes
    monkeypatch.setattr(training, "our_passes", lambda *args: 1.01 * original(*args))
    with pytest.raises(SystemExit, match="the loss of the two sides differs"):
        training.main(SMALL)


@pytest.mark.parametrize("recipe", ["lora-llm", "full-llm"])
def test_the_full_size_program_runs_at_a_tiny_size(capsys, tmp_path, recipe):
    words = [
        "--device",
        "cpu",
        "--tiny",
        "--recipe",
        recipe,
        "--pack-tokens",
        "300",
        "--steps",
        "1",
        "--questions",
        "2",
    ]
    assert full_size.main([*words, "--output", str(tmp_path / "out" / "figures.json")]) == 0
    figures = _last_line(capsys)["figures"]
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["figures"] == figures
    assert figures["samples_per_second"] > 0
    assert 0 < figures["mfu"] <= figures["hfu"]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(capsys):
    assert full_size.main([]) == 2
    assert "torch sees no CUDA device here" in capsys.readouterr().err
