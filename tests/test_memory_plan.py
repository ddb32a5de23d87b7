"""The memory plan: its sums and its measured step against real tensors, its verdicts and its advice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from monkey.adapters import add_decoder_lora
from monkey.configuration import MonkeyConfig
from monkey.training.arguments import read_config
from monkey.training.finetune import set_checkpointing
from monkey.training.memory import (
    FOUR_BIT,
    GIB,
    PlanSettings,
    StepSize,
    _LiveBytes,
    advice,
    describe_misfit,
    dry_step,
    plan,
    settings_of_flags,
    shipped_zero,
)
from monkey.training.memory import part_sizes as counted_parts
from monkey.training.recipes import RECIPES, apply_recipe
from scripts.plan_memory import main
from tests.conftest import random_model, tiny_config

ROOT = Path(__file__).resolve().parents[1]
RANK = 6
LORA = SimpleNamespace(lora_r=RANK, lora_alpha=RANK, lora_dropout=0.05)
FULL_LLM, LORA_LLM = RECIPES["full-llm"], RECIPES["lora-llm"]
PUBLISHED = {"batch_size": 0, "pack_tokens": 2048, "vision_checkpointing": True, "decoder_checkpointing": True}
"""One sample of the published size in a packed row."""


@pytest.fixture(scope="module")
def deep() -> MonkeyConfig:
    """More layers than are traced, of odd widths."""
    return tiny_config(
        vision_num_hidden_layers=6, text_num_hidden_layers=5, vision_hidden_size=64, text_hidden_size=96,
        text_intermediate_size=208,
    )  # fmt: skip


class TestSums:
    def test_weights_gradients_and_optimiser_are_what_pytorch_holds(self):
        config = tiny_config()
        model = random_model(config)
        apply_recipe(model, FULL_LLM)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        lines = plan(config, precision="fp32").lines
        weights = sum(count for name, count in lines.items() if name.startswith("weights"))
        assert weights == sum(parameter.nbytes for parameter in model.parameters())
        assert lines["gradients"] == sum(parameter.grad.nbytes for parameter in trained)
        moments = [state[key].nbytes for state in optimiser.state.values() for key in ("exp_avg", "exp_avg_sq")]
        assert lines["optimiser moments"] == sum(moments)

    def test_parts_are_counted_as_the_recipe_counts_them(self):
        config = tiny_config()
        counted = apply_recipe(add_decoder_lora(random_model(config), LORA), LORA_LLM)
        assert counted_parts(config, RANK).parts == {each.part: each.parameters for each in counted}

    def test_four_bits_are_what_bitsandbytes_packs(self):
        functional = pytest.importorskip("bitsandbytes.functional")
        weight = torch.randn(2048, 1024)
        packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        scales = state.absmax.nbytes + state.state2.absmax.nbytes
        assert (packed.nbytes + scales) / weight.numel() == pytest.approx(FOUR_BIT, rel=1e-3)

    @pytest.mark.parametrize("recipe", [RECIPES["full-llm"], RECIPES["qlora-llm"]], ids=["full-llm", "qlora-llm"])
    def test_each_higher_stage_needs_no_more_weights_and_states(self, recipe):
        def held(stage: int) -> int:
            lines = plan(tiny_config(), recipe=recipe, gpus=4, zero_stage=stage).lines
            return sum(n for name, n in lines.items() if name.startswith(("weights", "grad", "optim", "fp32 master")))

        stages = [held(stage) for stage in ((1, 2) if recipe.four_bit else (1, 2, 3))]
        assert stages == sorted(stages, reverse=True)

    def test_offload_moves_to_the_host_what_it_takes_off_the_card(self):
        settings = PlanSettings(gpus=2, zero_stage=3)
        on_card, half, none = (plan(tiny_config(), settings, offload=what) for what in ("none", "optimizer", "all"))
        assert on_card.host == 0 < half.host < none.host
        assert on_card.total > half.total > none.total

    def test_generating_while_training_counts_the_cache(self):
        less, more = (plan(tiny_config(), evaluation_batch=batch).phases["evaluation"] for batch in (1, 1001))
        text, tokens = tiny_config().text_config, tiny_config().image_tokens + 2 + 50
        assert more - less > 1000 * tokens * 2 * text.num_hidden_layers * text.hidden_size * 2


class TestMeasuredStep:
    @pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
    @pytest.mark.parametrize("recipe", ["full-llm", "lora-llm", "adapters-only"])
    def test_it_holds_what_a_real_step_of_all_layers_holds(self, deep, recipe, checkpointing):
        model = random_model(deep)
        wrapped = add_decoder_lora(model, LORA) if RECIPES[recipe].decoder_lora else model
        apply_recipe(wrapped, RECIPES[recipe])
        parts = SimpleNamespace(vision_checkpointing=checkpointing, decoder_checkpointing=checkpointing)
        set_checkpointing(
            model, parts, SimpleNamespace(activation_checkpointing=False, activation_checkpointing_kwargs=None)
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        with _LiveBytes() as live:
            dry_step(model.train(), StepSize(2, 2, deep.image_tokens + 2 + 50, 80), live.begin)
        settings = PlanSettings(
            recipe=RECIPES[recipe], precision="fp32", batch_size=2, answer_tokens=40, lora_rank=RANK,
            vision_checkpointing=checkpointing, decoder_checkpointing=checkpointing,
        )  # fmt: skip
        whole = plan(deep, settings)
        measured = {name: count - whole.sums for name, count in whole.phases.items()}
        for part, peak in live.peaks.items():
            assert measured[part] == pytest.approx(peak, rel=0.05), part

    def test_it_grows_with_the_batch_shrinks_by_checkpointing_and_adds_up(self):
        one, two = (plan(tiny_config(), batch_size=count) for count in (1, 2))
        assert two.total - two.sums > 1.5 * (one.total - one.sums)
        assert plan(tiny_config(), vision_checkpointing=True, decoder_checkpointing=True).total < one.total
        assert one.total == one.phases[one.phase] == max(one.phases.values())


def test_what_the_windows_of_the_published_size_keep_for_the_backward_pass():
    """9.4 GB by the reference's estimate for four windows; masks of dropout come to it."""
    config = MonkeyConfig()
    assert sum(counted_parts(config).parts.values()) == pytest.approx(9708.1e6, rel=1e-4)
    full = plan(config, gpus=8, zero_stage=2, **PUBLISHED)
    kept = plan(config, full.settings, vision_checkpointing=False).phases["loss"] - full.phases["loss"]
    assert 8.5e9 < kept < 11e9


class TestAdvice:
    def test_it_ends_with_a_plan_that_fits(self):
        config = tiny_config()
        whole = plan(config, gpus=8, batch_size=0, pack_tokens=8192)
        least = plan(config, whole.settings, pack_tokens=128, zero_stage=2, zero=shipped_zero(2)).total / GIB
        steps = advice(whole, least)
        flags = [step.change for step in steps]
        assert flags[0] == "--vision_checkpointing True"
        assert [step.plan.fits(least) for step in steps] == [False] * (len(steps) - 1) + [True]
        totals = [whole.total, *(step.plan.total for step in steps)]
        assert totals == sorted(totals, reverse=True)
        assert advice(steps[-1].plan, least) == []

    @pytest.mark.slow
    def test_one_small_card_is_led_to_host_memory_or_to_four_bits(self):
        whole = plan(MonkeyConfig(), **PUBLISHED)
        steps = {step.change: step for step in advice(whole, 20)}
        detour = steps["--deepspeed configs/deepspeed/zero3_offload.json"]
        assert detour.plan.host > 100 * GIB
        assert steps["--recipe qlora-llm without --deepspeed"].plan.fits(20)
        assert "; or " in describe_misfit(whole, 20.0)

    def test_a_misfit_is_one_sentence_with_both_numbers(self):
        whole = plan(tiny_config())
        sentence = describe_misfit(whole, 0.5)
        assert f"--recipe full-llm as set needs about {whole.total / GIB:.1f} GiB per GPU, of 0.5 GiB: " in sentence
        assert "more or larger GPUs" in sentence
        assert "\n" not in sentence
        assert describe_misfit(whole, 1000.0) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 0}, "--gpus 0 does not work"),
        ({"batch_size": 2, "pack_tokens": 4096}, "give one of the two"),
        ({"offload": "all", "zero_stage": 2}, "--offload all needs ZeRO-3 or higher, but the plan has --zero 2"),
        ({"recipe": RECIPES["qlora-llm"], "zero_stage": 3}, "--zero 3 shards weights before"),
        (
            {"batch_size": 0, "pack_tokens": 100, "text_tokens": 90},
            r"--pack-tokens 100 holds no sample: grid=\(2, 2\) makes 22 tokens",
        ),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan(tiny_config(), PlanSettings(**changes))
    assert "\n" not in str(caught.value)


class TestFlags:
    @pytest.mark.parametrize(("name", "offload"), [("zero2", "none"), ("zero3", "none"), ("zero3_offload", "all")])
    def test_shipped_deepspeed_configs_are_what_advice_counts_with(self, name, offload):
        settings = settings_of_flags({"deepspeed": str(ROOT / f"configs/deepspeed/{name}.json"), "bf16": True}, gpus=2)
        assert (settings.zero_stage, settings.offload) == (int(name[4]), offload)
        lines = plan(tiny_config(), settings).lines
        assert lines == plan(tiny_config(), settings, zero=shipped_zero(settings.zero_stage)).lines
        # `auto` is the square of the decoder's width.
        buckets = 2 if name == "zero2" else 1
        assert lines["ZeRO's reduction buckets"] == tiny_config().text_config.hidden_size ** 2 * 2 * buckets

    @pytest.mark.parametrize("path", sorted((ROOT / "configs/training").glob("*.yaml")), ids=lambda path: path.name)
    def test_those_of_every_training_config_make_a_plan(self, path):
        flags = read_config(str(path))
        settings = settings_of_flags(flags)
        assert settings.recipe.name.split(",")[0] == flags["recipe"]
        assert bool(settings.pack_tokens) == flags["packing"]

    def test_they_decide_as_the_trainer_reads_them(self):
        settings = settings_of_flags({"use_lora": True, "gradient_checkpointing": True, "lora_r": 8, "bf16": True})
        assert (settings.recipe, settings.lora_rank) == (LORA_LLM, 8)
        assert (settings.vision_checkpointing, settings.decoder_checkpointing) == (True, True)
        flags = {"gradient_checkpointing": True, "vision_checkpointing": False, "pack_tokens": 4096}
        own = settings_of_flags(flags)
        assert (own.vision_checkpointing, own.decoder_checkpointing) == (False, True)
        assert (own.batch_size, own.pack_tokens, own.precision) == (0, 4096, "fp32")
        assert settings_of_flags({"packing": True, "model_max_length": 1500}).pack_tokens == 1500


class TestProgram:
    SMALL = ("--checkpoint", str(ROOT / "configs/model/small"))

    def test_it_shows_every_stage_and_the_verdict(self, capsys):
        words = ["--recipe", "lora-llm", "--gpus", "8", "--gpu-memory", "24", "--zero", "3", *self.SMALL]
        assert main([*words, "--pack-tokens", "2048"]) == 0
        out = capsys.readouterr().out
        assert "ZeRO-3*" in out
        assert "fits:" in out
        assert "the allocator reserves more" in out

    def test_what_does_not_fit_is_told_with_what_to_change(self, capsys):
        assert main(["--recipe", "full-llm", "--gpus", "8", "--gpu-memory", "0.1", *self.SMALL]) == 1
        out = capsys.readouterr().out
        assert "does not fit" in out
        assert "--deepspeed configs/deepspeed/zero3_offload.json" in out

    def test_it_writes_json(self, capsys):
        assert main(["--recipe", "qlora-llm", "--gpu-memory", "24", "--json", *self.SMALL]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["fits"] is True
        assert record["bytes"] == sum(record["lines"].values())
        assert {"decoder", "window adapters"} <= record["parameters"].keys()

    def test_a_training_command_behind_two_strokes_is_planned_as_its_run(self, tmp_path, capsys, monkeypatch):
        def planned(*words: str) -> dict:
            assert main(["--gpu-memory", "24", "--json", *words]) == 0
            return json.loads(capsys.readouterr().out)

        recipe = tmp_path / "mine.yaml"
        recipe.write_text("recipe: full-llm\nbf16: true\npack_tokens: 2048\npacking: true\ngrids: up-to-4\n")
        start = ["--config", str(recipe), "--model_name_or_path", str(ROOT / "configs/model/small")]
        more = [
            "--grids=up-to-6",
            "--pack_tokens",
            "4096",
            "--use_cpu",
            "--recipe",
            "lora-llm",
            "--data_path",
            "a",
            "b",
        ]
        run = planned("--", *start, *more)
        own = ["--recipe", "lora-llm", "--grids", "up-to-6", "--pack-tokens", "4096", "--vision-checkpointing", "False"]
        assert run == planned(*own, "--decoder-checkpointing", "False", *self.SMALL)
        assert (len(run["grids"]), run["tokens"], run["recipe"]) == (14, 4096, "lora-llm")
        adapters = [
            planned("--", *start, *more, *targets)["parameters"]["decoder adapters"]
            for targets in ([], ["--lora_targets", "q_proj"], ["--lora_targets", "q_proj", "v_proj"])
        ]
        assert adapters[0] > adapters[2] == 2 * adapters[1]
        # What a step holds, which takes seconds to trace, says nothing of the grids.
        monkeypatch.setattr("monkey.training.memory._step_peaks", lambda *_: {"loss": 1.0})
        assert len(planned("--", *start)["grids"]) == 8
        assert len(planned("--grids", "1x2", "--", *start, *more)["grids"]) == 1

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                ["--gpu-memory", "24", "--", "--gird", "2,2"],
                "command line: there is no flag --gird; did you mean --grid",
            ),
            (["--gpu-memory", "0"], "--gpu-memory 0 does not work"),
            (["--gpu-memory", "24", "--grid", "2"], "--grid: 2 is not rows,columns"),
            (["--gpu-memory", "24", "--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
            (["--gpu-memory", "24", "--deepspeed", "no.json"], "--deepspeed no.json: no such file"),
            (["--gpu-memory", "24", "--recipe", "all"], "--recipe: invalid choice: 'all'"),
            (["--gpu-memory", "24", "--checkpoint", "nowhere"], "nowhere"),
            (
                ["--gpu-memory", "24", "--config", str(ROOT / "configs/deepspeed/zero2.json")],
                "zero2.json: there is no flag --zero_optimization",
            ),
        ],
    )
    def test_it_refuses_in_one_line(self, words, message, capsys):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
