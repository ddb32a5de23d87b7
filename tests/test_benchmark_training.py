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


@pytest.mark.parametrize(
    "more", [[], ["--decoder-checkpointing", "--vision-checkpointing"]], ids=["plain", "checkpointing"]
)
def test_the_last_line_has_the_ratios_of_equal_steps(capsys, more):
    assert training.main([*SMALL, *more]) == 0
    result = _last_line(capsys)
    ratios, figures = result["ratios"], result["figures"]
    assert {"step_speedup_1", "step_speedup_2"} <= set(ratios)
    assert ratios["memory_ratio"] == max(ratios["memory_ratio_1"], ratios["memory_ratio_2"]) < 1
    published, ours = figures["questions_2"]["published"], figures["questions_2"]["ours"]
    assert published["tokens_read"] == 2 * training.PADDED
    # Two questions behind one picture are fewer tokens than two samples, even without their padding.
    assert ours["tokens_read"] < published["not_padding"] * published["tokens_read"]
    assert len(figures["seconds_after"]) == 4
    assert ratios["ragged_rate"] > 0
    assert result["settings"]["width"] == 64


def test_several_pictures_and_their_questions_share_a_row():
    options = training.parse([*SMALL, "--images", "3", "--pack-tokens", "2048"])
    units = training.draw(options, training.configuration(options), 2)
    (row,), filled = training.packed_rows(units, options)
    # A picture and its two questions are three runs.
    assert (row["segments"].shape[0], row["pixel_values"].shape[0]) == (9, 3)
    assert filled == row["input_ids"].numel() / 2048


def _another_loss(monkeypatch):
    original = training.our_passes
    monkeypatch.setattr(training, "our_passes", lambda *args: 1.01 * original(*args))


def _less_trained(monkeypatch):
    """A baseline with the same loss that trains less."""
    original = training.published_copy

    def changed(model):
        baseline = original(model)
        baseline.tensors["lm_head.weight"].requires_grad_(False)
        return baseline

    monkeypatch.setattr(training, "published_copy", changed)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_another_loss, "the loss of the two sides differs"),
        (_less_trained, "the gradient norm of the two sides differs"),
    ],
)
def test_different_steps_are_not_compared(monkeypatch, capsys, change, sentence):
    change(monkeypatch)
    with pytest.raises(SystemExit, match=sentence):
        training.main([*SMALL, "--questions", "1"])
    assert "ratios" not in capsys.readouterr().out


def test_samples_longer_than_a_row_are_refused(capsys):
    with pytest.raises(SystemExit):
        training.parse(["--grid", "3", "3"])
    assert "samples of up to 2682 tokens, and a row holds 2048" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["lora-llm", "full-llm", "qlora-llm"])
def test_the_full_size_program_runs_at_a_tiny_size(capsys, tmp_path, recipe):
    if recipe == "qlora-llm":
        pytest.importorskip("bitsandbytes", reason="decoders in 4 bits need bitsandbytes")
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
