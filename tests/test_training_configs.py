"""The configurations that the project ships: each is a recipe with every value stated, and fits what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from monkey.training.arguments import GROUPS, Flags, parse_flags
from monkey.training.recipes import RECIPES
from scripts.plan_memory import main as plan_memory

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {path.stem: path for path in sorted((ROOT / "configs/training").glob("*.yaml"))}
SHARDING = {path.stem: path for path in sorted((ROOT / "configs/deepspeed").glob("*.json"))}

RECIPE = {name: name for name in ("full-llm", "lora-llm", "qlora-llm", "adapters-only", "everything")}
RECIPE |= {"small": "everything", "reader-base": "everything", "reader-monkey": "full-llm", "reader-study": "full-llm"}
RECIPE |= {"tickets": "full-llm", "from-parts": "lora-llm"}
"""Config -> the recipe that it is for."""

EVERYWHERE = {
    "recipe", "published", "packing", "model_max_length", "per_device_train_batch_size", "gradient_accumulation_steps",
    "per_device_eval_batch_size", "optim", "learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "vision_adapter_dropout", "resampler_dropout",
    "decoder_dropout", "bf16", "vision_checkpointing", "decoder_checkpointing", "lazy_preprocess", "skip_bad_rows",
    "cache_images", "dataloader_num_workers", "save_strategy", "eval_strategy", "logging_steps", "report_to", "seed",
}  # fmt: skip
WITH = {
    "packing": {"pack_tokens", "share_images", "most_shared", "look_ahead"},
    "saving": {"save_steps", "save_total_limit"},
    "decoder adapters": {"lora_r", "lora_alpha", "lora_dropout"},
}
"""What a config must also state where it has the thing."""


def stated(name: str) -> dict:
    return yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))


def flags_of(name: str, *more: str) -> Flags:
    required = ["--model_name_or_path", "m", "--data_path", "d.json", "--output_dir", "o", "--use_cpu", "True"]
    return parse_flags(["--config", str(CONFIGS[name]), *required, *more])


def test_there_is_a_config_for_every_recipe_of_the_launchers():
    assert CONFIGS.keys() == RECIPE.keys()
    assert set(RECIPE.values()) == RECIPES.keys() - {"lora-llm-vision"}


@pytest.mark.parametrize("name", CONFIGS)
class TestEachConfig:
    def test_is_of_its_recipe_and_every_key_is_a_flag(self, name):
        flags = flags_of(name)
        assert flags.recipe.name == stated(name)["recipe"] == RECIPE[name]
        values = flags.resolved()
        assert stated(name).keys() <= values.keys()
        given = {key: value for key, value in stated(name).items() if isinstance(value, (int, float)) and key != "bf16"}
        assert {key: values[key] for key in given} == given

    def test_states_everything_that_matters(self, name):
        keys, recipe = stated(name).keys(), RECIPES[RECIPE[name]]
        needed = set(EVERYWHERE)
        needed |= WITH["packing"] if stated(name)["packing"] else set()
        needed |= WITH["saving"] if stated(name)["save_strategy"] != "no" else set()
        needed |= WITH["decoder adapters"] if recipe.decoder_lora else set()
        needed |= {
            f"{group}_{quantity}"
            for group, parts in GROUPS.items()
            if recipe.trains & set(parts)
            for quantity in ("learning_rate", "weight_decay")
        }
        assert needed - keys == set()
        assert ("max_steps" in keys) != ("num_train_epochs" in keys)

    def test_command_line_overrides_it(self, name):
        flags = flags_of(name, "--learning_rate", "0.5", "--seed", "7")
        assert (flags.training.learning_rate, flags.training.seed) == (0.5, 7)
        own = [group for group in GROUPS if stated(name).get(f"{group}_learning_rate") is not None]
        follow = flags.recipe.trains - {part for group in own for part in GROUPS[group]}
        assert follow
        assert all(flags.parts.of_part(part, "learning_rate", 0.5) == 0.5 for part in follow)


@pytest.mark.parametrize("name", sorted(name for name, recipe in RECIPE.items() if name == recipe))
def test_full_size_configs_keep_the_published_optimisation(name):
    training = flags_of(name).training
    assert (training.learning_rate, training.weight_decay, training.warmup_ratio) == (1e-5, 0.1, 0.02)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert (training.lr_scheduler_type, training.num_train_epochs) == ("cosine", 1)


@pytest.mark.parametrize(("name", "gpus"), [("full-llm", 8), ("lora-llm", 8), ("qlora-llm", 1), ("everything", 8)])
def test_a_step_is_about_the_published_128_samples(name, gpus):
    """At the 1,330 tokens of a sample with one picture of 896×896 and one question."""
    flags = flags_of(name)
    samples_a_row = flags.data.row_settings.budget // 1330
    assert gpus * flags.training.gradient_accumulation_steps * samples_a_row == pytest.approx(128, rel=0.07)


@pytest.mark.parametrize(
    ("name", "sharding", "gpus", "gib"),
    [
        ("full-llm", "zero2", 8, 80),
        ("full-llm", "zero3_offload", 8, 24),
        ("lora-llm", "zero3", 8, 22),
        ("qlora-llm", None, 1, 20),
        ("adapters-only", None, 8, 80),
        ("adapters-only", "zero3", 8, 24),
        ("everything", "zero2", 8, 80),
    ],
)
def test_the_plan_of_each_config_fits_the_gpus_that_it_is_for(name, sharding, gpus, gib):
    words = ["--config", str(CONFIGS[name]), "--gpus", str(gpus), "--gpu-memory", str(gib)]
    words += ["--deepspeed", str(SHARDING[sharding])] if sharding else []
    # Rows without checkpointing of the vision side are for 80 GB.
    words += ["--vision-checkpointing", "True"] if sharding == "zero3_offload" else []
    assert plan_memory([*words, "--quiet"]) == 0


@pytest.mark.parametrize("name", SHARDING)
def test_a_sharding_leaves_batches_precision_and_rates_to_the_flags_and_saves_ordinary_checkpoints(name):
    config = json.loads(SHARDING[name].read_text())
    zero = config["zero_optimization"]
    assert zero["stage"] == int(name[4])
    following = (
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    )  # fmt: skip
    assert {config[key] for key in following} == {config[half]["enabled"] for half in ("bf16", "fp16")} == {"auto"}
    # Optimiser and schedule stay ours, for the rates by part.
    assert not {"optimizer", "scheduler"} & config.keys()
    if zero["stage"] == 3:
        assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    if name.endswith("offload"):
        assert all(zero[f"offload_{what}"]["device"] == "cpu" for what in ("param", "optimizer"))
        # True would ask for DeepSpeed's own Adam, which is compiled on first use.
        assert config["zero_force_ds_cpu_optimizer"] is False
