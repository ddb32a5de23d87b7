"""The flags of the fine-tuning program."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune_multitask import main
from monkey.training.arguments import _GROUPS as GROUPS
from monkey.training.arguments import Flags, Given, _refuse_idle, parse_flags, training_arguments
from monkey.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = ["--model_name_or_path", "base", "--data_path", "train.json", "--output_dir", "out", "--use_cpu", "True"]

PUBLISHED = [
    "--bf16", "True", "--fix_vit", "True", "--num_train_epochs", "1", "--per_device_train_batch_size", "1",
    "--per_device_eval_batch_size", "1", "--gradient_accumulation_steps", "16", "--evaluation_strategy", "no",
    "--save_strategy", "steps", "--save_steps", "1000", "--save_total_limit", "10", "--learning_rate", "1e-5",
    "--weight_decay", "0.1", "--adam_beta2", "0.95", "--warmup_ratio", "0.02", "--lr_scheduler_type", "cosine",
    "--logging_steps", "1", "--report_to", "none", "--model_max_length", "2048", "--gradient_checkpointing", "True",
    "--lazy_preprocess", "True", "--use_lora", "False", "--lora_r", "32", "--lora_alpha", "32", "--lora_dropout",
    "0.05", "--q_lora", "False",
]  # fmt: skip


def _flags(*words: str) -> Flags:
    return parse_flags([*REQUIRED, *words])


def test_the_published_scripts_flags_keep_their_meaning():
    flags = _flags(*PUBLISHED)
    training = flags.training
    assert (training.bf16, training.fix_vit, flags.lora.use_lora) == (True, True, False)
    assert (training.learning_rate, training.weight_decay, training.adam_beta2) == (1e-5, 0.1, 0.95)
    assert training.gradient_accumulation_steps == 16
    assert training.lr_scheduler_type == "cosine"
    assert training.get_warmup_steps(1000) == 20
    assert training.eval_strategy == "no"
    assert training.report_to == []
    assert (flags.data.model_max_length, flags.data.lazy_preprocess) == (2048, True)
    assert flags.is_set("gradient_checkpointing")
    assert _flags().training.report_to == ["tensorboard"]


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ([], "full-llm"),
        (["--use_lora", "True"], "lora-llm"),
        (["--use_lora", "True", "--q_lora", "True"], "qlora-llm"),
        (["--q_lora", "True"], "qlora-llm"),
        (["--fix_vit", "False"], "everything"),
        (["--fix_vit", "False", "--use_lora", "True"], "lora-llm-vision"),
        (["--recipe", "adapters-only"], "adapters-only"),
        (["--recipe", "lora-llm", "--use_lora", "True", "--fix_vit", "True"], "lora-llm"),
    ],
)
def test_a_recipe_is_named_or_meant_by_the_published_flags(words, recipe):
    assert _flags(*words).recipe == RECIPES[recipe]


def test_published_adds_the_position_table_and_nothing_else():
    plain, published = _flags(), _flags("--published", "True")
    assert published.recipe.trains - plain.recipe.trains == {"position table"}
    assert not any("position table" in recipe.trains for recipe in RECIPES.values())


@pytest.mark.parametrize(("text", "grid"), [("2,3", (2, 3)), ("1x2", (1, 2)), (" 3 , 2 ", (3, 2))])
def test_grid_is_rows_and_columns(text, grid):
    assert _flags("--grid", text).model.grid_shape == grid


def test_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-4\nmax_steps: 7\nfix_vit: false\ngrid: [2, 3]\nsave_total_limit: null\n")
    flags = _flags("--config", str(file), "--max_steps", "9")
    assert (flags.training.learning_rate, flags.training.max_steps, flags.training.fix_vit) == (1e-4, 9, False)
    assert flags.model.grid_shape == (2, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], r"command line: there is no flag --learning_rat; did you mean --learning_rate"),
        (["--learning_rate", "fast"], r"--learning_rate: invalid float value: 'fast'"),
        (["--grid", "2"], r"--grid 2 is not rows,columns"),
        (["--warmup_ratio", "3"], r"--warmup_ratio 3 does not work: give 0 up to below 1"),
        (["--warmup_ratio", "0.1", "--warmup_steps", "5"], r"--warmup_ratio 0.1 and --warmup_steps 5 both"),
        (["--fp16", "True"], r"--fp16 is not for CPUs"),
        (
            ["--q_lora", "True", "--use_lora", "False"],
            r"--q_lora True needs adapters to train, but --use_lora is False",
        ),
        (["--q_lora", "True", "--fix_vit", "False"], r"--q_lora True with --fix_vit False is no recipe"),
        (["--recipe", "full"], r"--recipe full is unknown: give one of full-llm, lora-llm"),
        (["--recipe", "lora-llm", "--use_lora", "False"], r"--use_lora False contradicts --recipe lora-llm"),
        (["--recipe", "adapters-only", "--published", "True"], r"--published .* position table, but adapters-only"),
        (["--pack_tokens", "4096"], r"--pack_tokens would have no effect: it is about packed rows: add --packing True"),
        (["--lora_r", "8"], r"--lora_r would have no effect: the recipe gives the decoder no adapters"),
        (
            ["--lora_targets", "q_proj"],
            r"--lora_targets would have no effect: the recipe gives the decoder no adapters",
        ),
        (["--vision_learning_rate", "1e-4"], r"--vision_learning_rate would have no effect: the recipe freezes"),
        (
            ["--recipe", "adapters-only", "--decoder_weight_decay", "0.5"],
            r"--decoder_weight_decay would have no effect",
        ),
        (["--eval_steps", "5"], r"--eval_steps would have no effect: .* add --eval_strategy steps"),
        (["--save_strategy", "no", "--save_steps", "5"], r"--save_steps would have no effect: .*--save_strategy steps"),
        (["--packing", "True"], r"--packing fills one row a step, but --per_device_train_batch_size is 8"),
        (
            ["--packing", "True", "--per_device_train_batch_size", "1", "--pack_tokens", "100"],
            r"--pack_tokens 100 is less than --model_max_length 2048",
        ),
        (["--share_images", "never", "--packing", "True"], r"--share_images never is unknown: give one of apart"),
        (["--data_weights", "1", "2"], r"--data_weights has 2 numbers for 1 files of --data_path"),
        (["--vision_adapter_dropout", "1"], r"--vision_adapter_dropout 1 does not work: give 0 up to"),
        (["--auto_find_batch_size", "True"], r"--auto_find_batch_size True is not taken: scripts/plan_memory\.py"),
        (["--fsdp", "full_shard"], r"--fsdp full_shard is not taken: shard with DeepSpeed"),
        (
            ["--packing", "True", "--per_device_train_batch_size", "1", "--dataloader_drop_last", "True"],
            r"--dataloader_drop_last is not for packed rows",
        ),
        (["--eval_strategy", "steps"], r"--eval_strategy steps needs something held out"),
        (["--gradient_accumulation_steps", "0"], r"--gradient_accumulation_steps 0 does not work: give 1 or more"),
        (["--num_train_epochs", "0"], r"--num_train_epochs 0 does not work: give a number above 0"),
        (["--max_steps", "0"], r"--max_steps 0 does not work: .* leave it out to count epochs"),
        (["--seed", "-1"], r"--seed -1 does not work"),
        (["--report_to", "nobody"], r"--report_to nobody is no logger"),
        (["--report_to", "comet_ml"], r"--report_to comet_ml needs the comet_ml package, .*: pip install comet_ml"),
        (["--seed", "3", "stray"], r"command line: stray belongs to no flag"),
        (["--data_path", ""], r"--data_path is missing: give it"),
        (["--deepspeed", '{"zero": '], r"--deepspeed:1: malformed JSON at column 10"),
        (["--lr_scheduler_kwargs", "{x"], r"--lr_scheduler_kwargs:1: malformed JSON at column 2"),
        (
            ["--accelerator_config", '{"splits": 1}'],
            r"--accelerator_config: there is no setting splits; the known ones are split_batches, ",
        ),
        (["--load_best_model_at_end", "True"], r"--load_best_model_at_end .* the best checkpoint is always kept"),
    ],
)
def test_a_wrong_flag_is_one_sentence(words, message):
    with pytest.raises(ValueError, match=message) as caught:
        _flags(*words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_flag_takes_a_number_that_is_none(value):
    for group in (*GROUPS[:-1], training_arguments()):
        for field in dataclasses.fields(group):
            if field.init and "float" in str(field.type) and "list" not in str(field.type):
                with pytest.raises(ValueError, match=rf"--{field.name} {value} "):
                    _flags(f"--{field.name}={value}")


def test_a_line_of_the_file_may_become_idle_by_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("packing: true\nper_device_train_batch_size: 1\npack_tokens: 4096\nrecipe: lora-llm\nlora_r: 8\n")
    flags = _flags("--config", str(file), "--packing", "False", "--recipe", "full-llm")
    assert (flags.data.packing, flags.data.pack_tokens, flags.recipe.name) == (False, None, "full-llm")
    file.write_text("recipe: full-llm\nlora_r: 8\n")
    for more in (("--seed", "3"), ("--packing", "False")):  # which decides over other lines
        with pytest.raises(ValueError, match="--lora_r would have no effect"):
            _flags("--config", str(file), *more)


def test_the_resolved_flags_are_printed_those_of_a_file_at_their_defaults_too(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("adam_beta1: 0.9\nlearning_rate: 1e-4\n")
    lines = (
        _flags("--config", str(file), "--learning_rate", "1e-3", "--data_path", "a.json", "b.json").table().split("\n")
    )
    assert {"--adam_beta1 0.9", "--learning_rate 0.001", "--data_path a.json b.json", "--lora_r 32"} <= set(lines)
    assert not [line for line in lines if line.startswith("--hub_token")]
    names = [line.split(" ", 1)[0] for line in lines]
    assert len(names) == len(set(names))


def test_without_an_accelerator_the_cpu_is_used_unasked(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    words = REQUIRED[: REQUIRED.index("--use_cpu")]
    training = parse_flags([*words, *PUBLISHED]).training
    assert (training.bf16, training.use_cpu, training.device.type) == (True, True, "cpu")
    with pytest.raises(ValueError, match="--fp16 is not for CPUs"):
        parse_flags([*words, "--fp16", "True"])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_logger_that_is_not_installed_is_one_sentence(name, monkeypatch):
    monkeypatch.setattr(f"transformers.integrations.integration_utils.is_{name}_available", lambda: False)
    with pytest.raises(ValueError, match=rf"--report_to {name} needs the {name} package, .*: pip install {name}"):
        _flags("--report_to", name)


@pytest.mark.parametrize("name", ["gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"])
def test_checkpointing_is_never_reentrant(name):
    for value in ("true", '"True"', "1"):
        with pytest.raises(ValueError, match=rf"--{name} use_reentrant .* without a gradient"):
            _flags(f"--{name}", f'{{"use_reentrant": {value}}}')
    kept = _flags(f"--{name}", '{"determinism_check": "none"}').training
    assert getattr(kept, name) == {"determinism_check": "none", "use_reentrant": False}
    assert getattr(_flags().training, name) == {"use_reentrant": False}


@pytest.mark.parametrize("flag", ["--model_name_or_path", "--data_path", "--output_dir"])
def test_a_missing_required_flag_is_named(flag):
    words = list(REQUIRED)
    del words[words.index(flag) : words.index(flag) + 2]
    with pytest.raises(ValueError, match=f"{flag} is missing"):
        parse_flags(words)


def test_an_unknown_key_of_the_file_is_refused_by_name(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-4\nfixvit: true\n")
    with pytest.raises(ValueError, match=r"run\.yaml: there is no flag --fixvit; did you mean .*--fix_vit"):
        _flags("--config", str(file))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(
        ValueError, match=r"--config .*run\.yaml(:1: malformed YAML| holds a (list|str), and an object)"
    ):
        _flags("--config", str(file))


def test_an_error_of_the_file_system_is_one_line(monkeypatch, capsys):
    def full_disk(*_):
        raise OSError(28, "No space left on device", "out/model.safetensors")

    monkeypatch.setattr("monkey.training.finetune.finetune", full_disk)
    monkeypatch.setattr("finetune_multitask.look_over", lambda words: None)
    assert main(REQUIRED) == 2
    assert "error: [Errno 28] No space left on device: 'out/model.safetensors'\n" in capsys.readouterr().err


def test_deepspeed_without_the_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="needs the deepspeed package: pip install deepspeed"):
        _flags("--deepspeed", str(ROOT / "configs/deepspeed/zero2.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [('{\n"stage": 2,\n}', r"bad\.json:3: malformed JSON at column 1"), ("[1]", r"bad\.json holds a list")],
)
def test_a_malformed_deepspeed_file_is_named_with_its_line(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match="--deepspeed .*" + message):
        _flags("--deepspeed", str(tmp_path / "bad.json"))


def test_deepspeed_without_a_launcher_is_one_sentence(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mpi4py" else name)
    with pytest.raises(ValueError, match=r"--deepspeed needs a launcher.*torchrun"):
        _flags("--deepspeed", str(ROOT / "configs/deepspeed/zero2.json"))


def test_rates_by_part_do_not_pass_under_a_deepspeed_optimizer():
    flags = _flags("--decoder_weight_decay", "0.5")
    config = SimpleNamespace(config={"optimizer": {"type": "AdamW"}})
    training = copy.copy(flags.training)
    training.deepspeed, training.hf_deepspeed_config = "own.json", config
    own = flags._replace(training=training)
    given = Given({"decoder_weight_decay": ["0.5"]}, {})
    with pytest.raises(ValueError, match="--decoder_weight_decay would have no effect: the DeepSpeed config names"):
        _refuse_idle(own, given)
    config.config.clear()
    flags.training.deepspeed, flags.training.hf_deepspeed_config = "own.json", config
    _refuse_idle(flags, given)
