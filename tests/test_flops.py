"""Operations of a step, counted once without storage: equal to the formulas of the published size."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from monkey.configuration import MonkeyConfig
from monkey.training.meter import StepFlops, count_flops, peak_flops
from monkey.training.recipes import RECIPES
from tests.conftest import tiny_config


def contents(images: int, runs: list[tuple[int, int]], supervised: int, windows: int = 0) -> SimpleNamespace:
    return SimpleNamespace(images=images, windows=windows, runs=runs, supervised=supervised)


def test_a_step_is_what_the_formulas_say():
    """Forward 2 per multiply-accumulate; backward as much for each gradient that is made, of an input and a weight."""
    config = tiny_config(grid=(1, 1), global_view=False, text_num_hidden_layers=5, vision_num_hidden_layers=4)
    vision, text = config.vision_config, config.text_config
    n, c, f, q, d = vision.patches_per_side**2, vision.hidden_size, vision.intermediate_size, vision.num_queries, 48
    flops = count_flops(config, RECIPES["everything"])
    layer = 2 * n * (4 * c**2 + 2 * c * f)
    adapters = 2 * n * c * (6 * vision.adapter_rank + 2 * vision.mlp_adapter_rank) if config.num_adapters else 0
    patches = 2 * n * 3 * vision.patch_size**2 * c
    resampler = 2 * n * (c * d + 2 * d**2) + 4 * q * n * d + 2 * q * 2 * d**2 + 2 * q * d**2
    layers = vision.num_hidden_layers * (layer + adapters + 4 * n**2 * c)
    # Pixels need no gradient; all else makes those of its input and of its weight.
    assert flops.image == pytest.approx(3 * (layers + resampler) + 2 * patches, rel=1e-6)
    linears = 4 * d * d + 3 * d * text.intermediate_size
    assert flops.token == pytest.approx(3 * text.num_hidden_layers * 2 * linears, rel=1e-6)
    assert flops.pair == pytest.approx(3 * text.num_hidden_layers * 4 * d, rel=1e-6)
    assert flops.supervised == pytest.approx(3 * 2 * d * text.vocab_size, rel=1e-6)


def test_a_batch_is_counted_by_what_it_holds_and_causal_attention_counts_half():
    flops = StepFlops(image=1000, token=100, pair=2, supervised=10)
    assert flops.of(contents(2, [(20, 0), (4, 20)], 3)) == 2000 + 2400 + 2 * (200 + 8 + 80) + 30
    assert flops.of(contents(0, [(20, 0)], 0)) == 2000 + 400


def test_images_on_grids_of_their_own_are_counted_by_their_windows():
    """With the vision transformer frozen, where a global view costs less than a window."""
    recipe, run = RECIPES["full-llm"], [(12, 0)]
    ragged, fixed = (count_flops(config, recipe) for config in (tiny_config(grids="up-to-6"), tiny_config(grid=(2, 3))))
    assert ragged.of(contents(2, run, 3, windows=12)) == pytest.approx(fixed.of(contents(2, run, 3)), rel=1e-6)
    assert "per window" in str(ragged)


@pytest.mark.parametrize(("recipe", "teraflops"), [("full-llm", 93.5), ("lora-llm", 76.3)])
def test_the_published_training_step(recipe, teraflops):
    step = count_flops(MonkeyConfig(), RECIPES[recipe]).of(contents(1, [(1330, 0)], 20))
    assert step / 1e12 == pytest.approx(teraflops, rel=0.01)


def test_checkpointing_counts_in_hardware_only():
    """All of the layers are computed again but the last product of each of the decoder's."""
    config = tiny_config(text_num_hidden_layers=4, vision_num_hidden_layers=4)
    once, again = (count_flops(config, RECIPES["full-llm"], checkpointing=(on, on)) for on in (False, True))
    linears = 2 * config.text_config.num_hidden_layers * (4 * 48 * 48 + 2 * 48 * config.text_config.intermediate_size)
    assert again.token - once.token == pytest.approx(linears, rel=0.01)
    assert again.pair == pytest.approx(once.pair * 4 / 3)
    assert again.image > once.image
    assert again.supervised == once.supervised


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H200", torch.bfloat16, 989e12),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.float16, 756e12),
        ("NVIDIA GeForce RTX 3090", torch.bfloat16, 71e12),
        ("NVIDIA L4", torch.bfloat16, 121e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 19.5e12),
        ("Tesla V100-SXM2-16GB", torch.float16, 125e12),
        ("Tesla V100-SXM2-16GB", torch.bfloat16, None),
        ("AMD EPYC 9555", torch.bfloat16, None),
        ("NVIDIA H200", torch.int8, None),
    ],
)
def test_peak_of_a_device(name, dtype, peak):
    assert peak_flops(name, dtype) == peak
