"""The memory plan: its counts against real tensors, its verdicts and its advice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from monkey.configuration import MonkeyConfig
from monkey.training.lora import add_decoder_lora
from monkey.training.memory_plan import FOUR_BIT, GIB, advice, plan, plan_of_gpu, refusal
from monkey.training.memory_settings import PlanSettings, ZeroSettings, part_sizes, settings_of_flags, shipped_zero
from monkey.training.recipes import RECIPES, apply_recipe
from scripts.plan_memory import main
from tests.conftest import random_model, tiny_config

ROOT = Path(__file__).resolve().parents[1]
RANK = 6


class Lora:
    lora_r = lora_alpha = RANK
    lora_dropout = 0.05


def settings_for(recipe: str, **changes) -> PlanSettings:
    known = RECIPES[recipe]
    fields = {"recipe": recipe, "trains": known.trains, "decoder_lora": known.decoder_lora, "four_bit": known.four_bit}
    return PlanSettings(**{**fields, **changes})


def test_weights_gradients_and_optimiser_are_what_pytorch_holds():
    config = tiny_config()
    model = random_model(config)
    apply_recipe(model, RECIPES["full-llm"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    lines = dict(plan(config, settings_for("full-llm", precision="fp32", cuda=False)).lines)
    weights = sum(count for name, count in lines.items() if name.startswith("weights"))
    assert weights == sum(parameter.nbytes for parameter in model.parameters())
    assert lines["gradients"] == sum(parameter.grad.nbytes for parameter in trained)
    moments = [state[key].nbytes for state in optimiser.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert lines["optimiser moments"] == sum(moments)


def test_parts_are_counted_as_the_recipe_counts_them():
    config = tiny_config()
    wrapped = add_decoder_lora(random_model(config), Lora)
    counted = {each.part: each.parameters for each in apply_recipe(wrapped, RECIPES["lora-llm"])}
    assert part_sizes(config, RANK).parts == counted


def test_published_size():
    sizes = part_sizes(MonkeyConfig())
    assert sizes.total == pytest.approx(9708.1e6, rel=1e-4)
    assert sizes.packable == pytest.approx(6.476e9, rel=1e-3)


def test_four_bits_are_what_bitsandbytes_packs():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(2048, 1024)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    scales = state.absmax.nbytes + state.state2.absmax.nbytes
    assert (packed.nbytes + scales) / weight.numel() == pytest.approx(FOUR_BIT, rel=1e-3)


# The published size at 896×896, one sample in a packed row.
FULL_SIZE = {"batch_size": 0, "pack_tokens": 2048, "vision_checkpointing": True, "decoder_checkpointing": True}


def test_predicted_lora_on_eight_cards_of_24():
    config, sizes = MonkeyConfig(), part_sizes(MonkeyConfig(), 32)
    zero3 = plan(config, settings_for("lora-llm", gpus=8, zero_stage=3, **FULL_SIZE), sizes=sizes)
    assert zero3.fits(22)
    assert zero3.total / GIB < 12
    zero2 = settings_for("lora-llm", gpus=8, zero_stage=2, **FULL_SIZE)
    # ZeRO-2 keeps all weights on each card: it fits with buckets of the size that transformers calls auto.
    assert plan(config, zero2, sizes=sizes, zero=ZeroSettings(reduce_bucket=4096**2)).fits(22)
    assert not plan(config, zero2, sizes=sizes).fits(22)


def test_predicted_qlora_on_one_card_of_24():
    assert plan(MonkeyConfig(), settings_for("qlora-llm", **FULL_SIZE)).fits(20)


def test_predicted_full_training_on_eight_cards_of_80():
    whole = plan(MonkeyConfig(), settings_for("full-llm", gpus=8, zero_stage=2, **FULL_SIZE))
    assert whole.fits(80)
    assert not whole.fits(24)


def test_vision_checkpointing_saves_what_the_published_code_kept():
    """9.4 GB with fused attention for four windows is the reference's estimate; masks of dropout come to it."""
    kept = plan(MonkeyConfig(), settings_for("full-llm", gpus=8, zero_stage=2)).saved["vision"]
    again = plan(MonkeyConfig(), settings_for("full-llm", gpus=8, zero_stage=2, vision_checkpointing=True))
    assert 9e9 < kept < 11e9
    assert again.saved["vision"] == pytest.approx(0.65e9, rel=0.02)


def test_lines_add_up_to_the_peak_phase():
    whole = plan(MonkeyConfig(), settings_for("full-llm", gpus=8, zero_stage=2, **FULL_SIZE))
    assert whole.total == pytest.approx(max(whole.phases.values()), abs=1000)
    assert whole.phase == max(whole.phases, key=whole.phases.get)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_each_higher_stage_needs_no_more_weights_and_states(recipe):
    def held(stage: int) -> int:
        lines = plan(tiny_config(), settings_for(recipe, gpus=4, zero_stage=stage)).lines
        names = ("weights", "gradients", "optimiser", "fp32 master")
        return sum(count for name, count in lines if name.startswith(names))

    stages = [held(stage) for stage in ((1, 2) if RECIPES[recipe].four_bit else (1, 2, 3))]
    assert stages == sorted(stages, reverse=True)


def test_offload_moves_to_the_host_what_it_takes_off_the_card():
    config, base = tiny_config(), settings_for("full-llm", gpus=2, zero_stage=3)
    on_card, half, none = (plan(config, base, offload=offload) for offload in ("none", "optimizer", "all"))
    assert on_card.host == 0 < half.host < none.host
    assert on_card.total > half.total > none.total


def test_generating_in_the_loop_counts_the_cache():
    whole = plan(MonkeyConfig(), settings_for("lora-llm", evaluation_batch=4, evaluation_tokens=1330))
    # 512 KiB a token.
    assert (
        whole.phases["evaluation"]
        - plan(MonkeyConfig(), settings_for("lora-llm", evaluation_batch=4, evaluation_tokens=330)).phases["evaluation"]
        > 4 * 1000 * 512 * 1024
    )


def test_advice_ends_with_a_plan_that_fits():
    whole = plan(MonkeyConfig(), settings_for("full-llm", gpus=8, batch_size=0, pack_tokens=8192))
    steps = advice(whole, 24)
    flags = [step.change for step in steps]
    assert flags[:2] == ["--vision_checkpointing True", "--decoder_checkpointing True"]
    assert flags.index("--deepspeed configs/deepspeed/zero2.json") < flags.index(
        "--deepspeed configs/deepspeed/zero3.json"
    )
    assert [step.plan.fits(24) for step in steps] == [False] * (len(steps) - 1) + [True]
    totals = [whole.total, *(step.plan.total for step in steps)]
    assert totals == sorted(totals, reverse=True)
    assert advice(steps[-1].plan, 24) == []


def test_one_small_card_is_led_to_host_memory_or_to_four_bits():
    whole = plan(MonkeyConfig(), settings_for("full-llm", **FULL_SIZE))
    steps = {step.change: step for step in advice(whole, 20)}
    detour = steps["--deepspeed configs/deepspeed/zero3_offload.json"]
    assert detour.detour
    assert detour.plan.host > 100 * GIB
    packed = steps["--recipe qlora-llm without --deepspeed"].plan
    assert packed.fits(20)
    assert packed.host == 0
    assert refusal(whole, 20.0).count("; or ") == 2


def test_refusal_is_one_sentence_with_both_numbers():
    whole = plan(MonkeyConfig(), settings_for("lora-llm"))
    sentence = refusal(whole, 24.0)
    assert f"{whole.total / GIB:.1f} GiB a GPU, of 24.0 GiB" in sentence
    assert "--vision_checkpointing True" in sentence
    assert sentence.endswith("--ignore_memory_plan True")
    assert "\n" not in sentence
    assert refusal(whole, 1000.0) is None


def test_a_plan_beyond_help_says_so():
    whole = plan(MonkeyConfig(), settings_for("qlora-llm", **FULL_SIZE))
    assert "more or larger GPUs" in refusal(whole, 4.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_stage": 4}, "--zero 4 is unknown: give one of 0, 1, 2, 3"),
        ({"gpus": 0}, "--gpus 0 does not work"),
        ({"batch_size": 2, "pack_tokens": 4096}, "give one of the two"),
        ({"offload": "all", "zero_stage": 2}, "--offload all needs ZeRO-3 or higher, but the plan has --zero 2"),
        ({"four_bit": True, "zero_stage": 3}, "--zero 3 shards weights before"),
        ({"batch_size": 0, "pack_tokens": 100}, r"--pack-tokens 100 holds no sample: grid=\(2, 2\) makes 22 tokens"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    if "pack_tokens" in changes and not changes["batch_size"]:
        changes = {**changes, "text_tokens": 90}
    with pytest.raises(ValueError, match=message) as caught:
        plan(tiny_config(), PlanSettings(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "offload"), [("zero2", "none"), ("zero3", "none"), ("zero3_offload", "all")])
def test_shipped_deepspeed_configs_are_what_advice_counts_with(name, offload):
    settings = settings_of_flags({"deepspeed": str(ROOT / f"configs/deepspeed/{name}.json"), "bf16": True}, 4096)
    assert settings.zero_stage == int(name[4])
    assert settings.offload == offload
    assert settings.zero == shipped_zero(settings.zero_stage, 4096)


def test_auto_sizes_are_those_of_the_decoder():
    zero = {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    settings = ZeroSettings.from_config(zero, 4096)
    assert settings.reduce_bucket == 4096**2
    assert settings.prefetch_bucket == int(0.9 * 4096**2)
    assert settings.max_live == 10**9


def test_flags_decide_as_the_trainer_reads_them():
    settings = settings_of_flags({"use_lora": True, "gradient_checkpointing": True, "lora_r": 8, "bf16": True}, 64)
    assert settings.recipe == "lora-llm"
    assert (settings.vision_checkpointing, settings.decoder_checkpointing) == (True, True)
    assert settings.lora_rank == 8
    own = settings_of_flags({"gradient_checkpointing": True, "vision_checkpointing": False, "pack_tokens": 4096}, 64)
    assert (own.vision_checkpointing, own.decoder_checkpointing) == (False, True)
    assert (own.batch_size, own.pack_tokens, own.precision) == (0, 4096, "fp32")
    assert settings_of_flags({"packing": True, "model_max_length": 1500}, 64).pack_tokens == 1500


def test_no_gpu_is_no_memory():
    if not torch.cuda.is_available():
        assert plan_of_gpu() is None


def test_program_fits(capsys):
    words = ["--recipe", "lora-llm", "--grid", "2,2", "--gpus", "8", "--gpu-memory", "24", "--zero", "3"]
    assert main([*words, "--pack-tokens", "2048"]) == 0
    out = capsys.readouterr().out
    assert "ZeRO-3*" in out
    assert "fits:" in out


def test_program_does_not_fit_and_says_what_to_change(capsys):
    assert main(["--recipe", "full-llm", "--gpus", "8", "--gpu-memory", "24", "--pack-tokens", "2048"]) == 1
    out = capsys.readouterr().out
    assert "does not fit" in out
    assert "--deepspeed configs/deepspeed/zero3.json" in out


def test_program_writes_json(capsys):
    assert main(["--recipe", "qlora-llm", "--gpu-memory", "24", "--pack-tokens", "2048", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["fits"] is True
    assert record["bytes"] == sum(record["lines"].values())
    assert record["parameters"]["decoder"] == part_sizes(MonkeyConfig()).parts["decoder"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "training").glob("*.yaml")), ids=lambda path: path.name)
def test_every_training_config_can_be_planned(path, capsys):
    words = ["--config", str(path), "--checkpoint", str(ROOT / "configs/model/small")]
    assert main([*words, "--gpu-memory", "80"]) == 0
    assert "whole GPU by phase" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu-memory", "0"], "--gpu-memory 0 does not work"),
        (["--gpu-memory", "24", "--grid", "2"], "--grid: 2 is not rows,columns"),
        (["--gpu-memory", "24", "--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--gpu-memory", "24", "--deepspeed", "no.json"], "--deepspeed no.json: no such file"),
        (["--gpu-memory", "24", "--recipe", "all"], "--recipe: invalid choice: 'all'"),
        (["--gpu-memory", "24", "--checkpoint", "nowhere"], "nowhere"),
        (["--gpu-memory", "nan"], "--gpu-memory nan does not work"),
        (["--gpu-memory", "24", "--zero", "9"], "--zero: invalid choice: 9"),
        (
            ["--gpu-memory", "24", "--config", str(ROOT / "configs/deepspeed/zero2.json")],
            "zero2.json: there is no flag --zero_optimization",
        ),
    ],
)
def test_program_refuses_in_one_line(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
