"""Operations of a step: equal to what PyTorch counts on small models, and to the published model's table."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from monkey.configuration import MonkeyConfig
from monkey.training.flops import (
    FORMULA,
    decoder_flops,
    head_flops,
    peak_flops,
    resampler_queries,
    training_flops,
    vision_flops,
)
from monkey.training.lora import add_decoder_lora
from monkey.training.recipes import RECIPES, apply_recipe
from tests.conftest import random_model, tiny_config

RANK = 6
IMAGES, ROWS, LENGTH = 2, 2, 40


class Lora:
    lora_r = lora_alpha = RANK
    lora_dropout = 0.05


def small_config(grid=(2, 2), **changes) -> MonkeyConfig:
    return tiny_config(
        grid=grid,
        vision_hidden_size=64,
        vision_num_attention_heads=4,
        vision_num_hidden_layers=2,
        vision_mlp_ratio=3.0,
        vision_adapter_rank=8,
        vision_mlp_adapter_rank=12,
        text_hidden_size=96,
        text_intermediate_size=208,
        **changes,
    )


def in_place_product(_, first, second, **kwargs) -> int:
    """Operations of `baddbmm_`, which the counter does not know, from its factors' shapes [b, m, k] and [b, k, n]."""
    return 2 * first[0] * first[1] * first[2] * second[2]


def counted(call) -> float:
    """What PyTorch counts; the math kernel, so that its counter sees attention's products (causal ones in full)."""
    adapters = {torch.ops.aten.baddbmm_: in_place_product}
    with FlopCounterMode(display=False, custom_mapping=adapters) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def trained_model(config: MonkeyConfig, recipe: str, checkpointing: bool):
    model = random_model(config).train()
    wrapped = add_decoder_lora(model, Lora) if RECIPES[recipe].decoder_lora else model
    apply_recipe(wrapped, RECIPES[recipe])
    if checkpointing:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


@pytest.mark.parametrize(
    ("recipe", "checkpointing", "grid"),
    [
        ("full-llm", False, (1, 2)),
        ("full-llm", True, (2, 2)),
        ("adapters-only", False, (2, 2)),
        ("everything", False, (1, 2)),
        ("everything", True, (1, 2)),
    ],
)
def test_vision_is_what_pytorch_counts(recipe, checkpointing, grid):
    config = small_config(grid)
    model, trains = trained_model(config, recipe, checkpointing), RECIPES[recipe].trains
    pixels = torch.randn(IMAGES, 3, *config.canvas_size)
    expected = vision_flops(config, trains, checkpointing=checkpointing).times(IMAGES)
    expected += resampler_queries(config, trains)
    with torch.no_grad():
        assert counted(lambda: model.model.visual(pixels)) == pytest.approx(expected.forward, rel=0.001)
    step = counted(lambda: model.model.visual(pixels).sum().backward())
    assert step == pytest.approx(expected.forward + expected.backward + expected.recompute, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("recipe", ["full-llm", "lora-llm", "adapters-only"])
def test_decoder_is_what_pytorch_counts(recipe, checkpointing):
    config = small_config()
    model, trains = trained_model(config, recipe, checkpointing), RECIPES[recipe].trains
    embedded = torch.randn(ROWS, LENGTH, config.text_config.hidden_size, requires_grad=True)
    expected = decoder_flops(
        config,
        [LENGTH] * ROWS,
        trains,
        lora_rank=RANK if recipe == "lora-llm" else 0,
        checkpointing=checkpointing,
        causal=1.0,
    )

    def run():
        return model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state

    # The rotary tables and their like are no products; 1 % is room for none but them.
    assert counted(run) == pytest.approx(expected.forward, rel=0.01)
    step = counted(lambda: run().sum().backward())
    assert step == pytest.approx(expected.forward + expected.backward + expected.recompute, rel=0.01)


@pytest.mark.parametrize("supervised", [20, 300])
@pytest.mark.parametrize("recipe", ["full-llm", "adapters-only"])
def test_head_is_what_pytorch_counts(recipe, supervised):
    config = small_config()
    model, trains = trained_model(config, recipe, False), RECIPES[recipe].trains
    hidden = torch.randn(supervised, config.text_config.hidden_size, requires_grad=True)
    targets = torch.randint(0, config.text_config.vocab_size, (supervised,))
    expected = head_flops(config, supervised, trains)
    step = counted(lambda: model.lm_head(hidden, targets).backward())
    assert step == expected.forward + expected.backward + expected.recompute


def test_packed_samples_cost_what_they_cost_alone():
    config = small_config()
    together, alone = decoder_flops(config, [7, 30]), [decoder_flops(config, [n]) for n in (7, 30)]
    assert together.forward == pytest.approx(sum(each.forward for each in alone))


def test_a_shared_prefix_is_attended_in_full_and_computed_once():
    config = small_config()
    shared = decoder_flops(config, [20, 5, 5], prefixes=[0, 20, 20]).forward
    repeated = decoder_flops(config, [25, 25]).forward
    once = decoder_flops(config, [20]).forward
    assert shared == pytest.approx(repeated - once)


@pytest.mark.parametrize(
    ("grid", "global_view", "teraflops"), [((1, 1), False, 4.22), ((2, 2), True, 21.20), ((2, 3), True, 29.69)]
)
def test_published_vision_encode(grid, global_view, teraflops):
    config = MonkeyConfig(grid=grid, global_view=global_view)
    whole = vision_flops(config) + resampler_queries(config, frozenset())
    assert whole.forward / 1e12 == pytest.approx(teraflops, rel=0.01)


@pytest.mark.parametrize(("length", "teraflops"), [(306, 3.99), (1330, 17.69), (1842, 24.75)])
def test_published_prefill(length, teraflops):
    config = MonkeyConfig()
    whole = decoder_flops(config, [length]) + head_flops(config, 1)
    assert whole.forward / 1e12 == pytest.approx(teraflops, rel=0.005)


@pytest.mark.parametrize(
    ("trains", "lora_rank", "teraflops"),
    [
        (RECIPES["full-llm"].trains, 0, 93.5),
        (RECIPES["lora-llm"].trains, 32, 76.3),
        (frozenset({"resampler", "decoder"}), 0, 75.5),
    ],
    ids=["full-llm", "lora-llm", "frozen vision"],
)
def test_published_training_step(trains, lora_rank, teraflops):
    step = training_flops(MonkeyConfig(), trains, 1, [1330], 20, lora_rank=lora_rank)
    assert step.model / 1e12 == pytest.approx(teraflops, rel=0.01)
    assert step.hardware == step.model


def test_checkpointing_counts_in_hardware_only():
    trains = RECIPES["full-llm"].trains
    plain = training_flops(MonkeyConfig(), trains, 1, [1330], 20)
    again = training_flops(MonkeyConfig(), trains, 1, [1330], 20, vision_checkpointing=True, decoder_checkpointing=True)
    assert again.model == plain.model
    # All of the windows' layers, and of the decoder's all but the last product (down_proj).
    assert again.vision.recompute / 1e12 == pytest.approx(16.4, rel=0.01)
    assert again.decoder.recompute / 1e12 == pytest.approx(17.69 - 2 * 1330 * 32 * 4096 * 11008 / 1e12, rel=0.01)


def test_a_batch_without_image_has_no_vision():
    assert training_flops(MonkeyConfig(), RECIPES["full-llm"].trains, 0, [50], 20).vision.forward == 0


def test_the_table_and_formula_can_be_shown():
    step = training_flops(MonkeyConfig(), RECIPES["full-llm"].trains, 1, [1330], 20)
    assert "21.163" in step.table()
    assert "MFU" in FORMULA


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H200", torch.bfloat16, 989e12),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.float16, 756e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
        ("NVIDIA GeForce RTX 3090", torch.bfloat16, 71e12),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165e12),
        ("NVIDIA L40S", torch.bfloat16, 362e12),
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
