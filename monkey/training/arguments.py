"""The flags of `finetune_multitask.py`.

They keep the names and the meaning of the published script, and add transformers' own `TrainingArguments`. Flags may
also come from a YAML file (`--config FILE.yaml`, one `flag: value` a line); the command line overrides the file, and
a name that is no flag is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.util
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.utils import is_torch_xla_available

from monkey.training.checks import (
    check_json,
    check_launcher,
    check_loggers,
    check_ranges,
    without_reentrant_checkpointing,
)

# Flags of the published script that this one does not have -> what to do instead.
_FORMER_FLAGS = {
    "cache_dir": "set the environment variable HF_HUB_CACHE to that folder, or give the checkpoint's own folder as "
    "--model_name_or_path",
    "lora_target_modules": "leave it out, --use_lora always adapts the published linears (q, k, v, o, gate and up "
    "projections); others go to LORA_LINEARS in monkey/training/recipes.py",
    "lora_weight_path": "continue an adapter's run with --resume_from_checkpoint CHECKPOINT, or start from the merged "
    "checkpoint of its run as --model_name_or_path",
    "lora_bias": "leave it out, the decoder's biases stay frozen beside adapters (the published default, none)",
}


def _flag(default: Any, description: str) -> Any:
    """A dataclass field whose description `--help` prints."""
    return field(default=default, metadata={"help": description})


@dataclass
class ModelArguments:
    """Which weights to start from, and how the picture is cut."""

    model_name_or_path: str | None = _flag(
        None, "Folder of a checkpoint, or the hub name of one in the offline cache. Required."
    )
    grid: str | None = _flag(
        None, "Rows and columns of windows as 'R,C', for instance 2,3. By default the checkpoint's own."
    )
    grid_shape: tuple[int, int] | None = field(default=None, init=False)
    """`--grid` as numbers; None keeps the checkpoint's."""

    def __post_init__(self) -> None:
        if self.grid is None:
            return
        match = re.fullmatch(r"\s*([1-9]\d*)\s*[,x]\s*([1-9]\d*)\s*", self.grid)
        if match is None:
            raise ValueError(f"--grid {self.grid} is not rows,columns: two positive whole numbers such as 2,2 or 2,3")
        self.grid_shape = int(match[1]), int(match[2])


@dataclass
class DataArguments:
    """Which records to learn from, and how they are read."""

    data_path: str | None = _flag(None, "Training records: a JSON list or JSONL of conversations. Required.")
    eval_data_path: str | None = _flag(
        None,
        "Held-out records of the same form. Their loss is reported after training, and during it as --eval_strategy "
        "says.",
    )
    image_root: str | None = _flag(
        None,
        "Folder that relative image paths start from and that no path may leave. By default each file's own folder.",
    )
    model_max_length: int = _flag(
        2048, "Most tokens of a sample, image tokens included. A longer sample is an error: nothing is ever cut."
    )
    lazy_preprocess: bool = _flag(
        False,
        "False reads and checks every record and image header before the first step; True meets them as they come.",
    )
    cache_images: bool = _flag(
        False,
        "Keep every picture's pixels in memory, so that it is decoded once: 12 bytes a pixel of the canvas, in each "
        "loading process. For small data sets.",
    )


@dataclass
class LoraArguments:
    """Low-rank adapters (PEFT) on the decoder's linears, instead of training the decoder itself."""

    use_lora: bool = _flag(
        False,
        "Freeze the decoder and train low-rank adapters on its q, k, v, o, gate and up projections (the published "
        "c_attn, attn.c_proj, w2, w1; the MLP's last projection has none).",
    )
    q_lora: bool = _flag(False, "The same on a decoder held in 4 bits. Not available yet.")
    lora_r: int = _flag(32, "Rank of the decoder's adapters; 32 is the published 24 GB variant's.")
    lora_alpha: int = _flag(
        32, "Scale of the decoder's adapters is lora_alpha / lora_r; the published one starts at 1."
    )
    lora_dropout: float = _flag(0.05, "Dropout before the decoder's adapters.")

    def __post_init__(self) -> None:
        if self.q_lora:
            raise ValueError(
                "--q_lora is not available yet: the 4-bit recipe (qlora-llm, through bitsandbytes) is still to come; "
                "--use_lora True trains the same adapters on a decoder in bf16"
            )
        if self.lora_r < 1:
            raise ValueError(f"--lora_r {self.lora_r} is not a rank: give 1 or more")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora_dropout {self.lora_dropout:g} is not a part: give 0 up to below 1")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own flags, those of the published script that it dropped since, and `--fix_vit`."""

    fix_vit: bool = _flag(
        True,
        "True freezes the vision transformer and its output projection, except the window adapters; the resampler "
        "and the decoder train. False trains everything. The resampler's sin-cos position table never trains.",
    )
    overwrite_output_dir: bool = _flag(
        False, "Replace what an earlier run left in --output_dir, instead of refusing to start."
    )
    warmup_ratio: float | None = _flag(None, "Part of all steps that the learning rate climbs for, in [0, 1).")
    evaluation_strategy: str | None = _flag(None, "Former name of --eval_strategy: no, steps or epoch.")
    remove_unused_columns: bool = _flag(False, "Kept False: a sample's record name travels with it for error messages.")
    dataloader_num_workers: int = _flag(
        4, "Processes that read, decode and resize pictures; 0 does it in the trainer's own."
    )
    dataloader_persistent_workers: bool | None = _flag(
        None, "Keep the loading processes from epoch to epoch. By default yes, when there are any."
    )

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("--output_dir is missing: name the folder that the trained checkpoint goes to")
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio < 1:
                raise ValueError(f"--warmup_ratio {self.warmup_ratio} is not a part of the steps: give 0 up to below 1")
            if self.warmup_steps:
                raise ValueError(
                    f"--warmup_ratio {self.warmup_ratio} and --warmup_steps {self.warmup_steps:g} both say how long "
                    "the learning rate climbs: give one"
                )
            # Below 1, transformers 5 reads warmup_steps as the ratio.
            self.warmup_steps = self.warmup_ratio
        check_ranges(self)
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        if not torch.accelerator.is_available() and not is_torch_xla_available():
            self.use_cpu = True
        if self.fp16 and self.use_cpu:
            raise ValueError("--fp16 is not for CPUs, where half precision is slow and unstable: use --bf16 True")
        if self.deepspeed and importlib.util.find_spec("deepspeed") is None:
            raise ValueError(f"--deepspeed {self.deepspeed} needs the deepspeed package: pip install deepspeed")
        check_json(self)
        check_launcher(self)
        check_loggers(self)
        without_reentrant_checkpointing(self)
        if self.load_best_model_at_end or self.save_strategy == "best":
            raise ValueError(
                "--load_best_model_at_end and --save_strategy best are not available yet: keep checkpoints with "
                "--save_steps and compare them with evaluate_vqa.py"
            )
        # A non-finite loss stops the run with the names of its records; the library's filter would hide it.
        self.logging_nan_inf_filter = False
        with warnings.catch_warnings():
            # The published name of activation checkpointing; renamed in transformers 5.19, gone in 6.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
            super().__post_init__()


class Flags(NamedTuple):
    """One run's flags, by group."""

    model: ModelArguments
    data: DataArguments
    lora: LoraArguments
    training: TrainingArguments
    given: dict[str, Any]
    """What the command line and `--config` set to other than the default: what says which run this is."""

    def resolved(self) -> dict[str, Any]:
        """Every flag's value; tokens are masked."""
        own = {**dataclasses.asdict(self.model), **dataclasses.asdict(self.data), **dataclasses.asdict(self.lora)}
        return {**own, **self.training.to_dict()}


class _Parser(HfArgumentParser):
    """HfArgumentParser that raises ValueError, where argparse prints every flag and leaves the program."""

    def error(self, message: str) -> NoReturn:
        # argparse names every spelling of a flag; the first one is enough.
        raise ValueError(re.sub(r"^argument (--\w+)[^\s:]*", r"\1", message))


def _parser() -> _Parser:
    parser = _Parser(
        (ModelArguments, DataArguments, LoraArguments, TrainingArguments),
        prog="finetune_multitask.py",
        description="Fine-tune Monkey on conversations about pictures.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="Flags in a file; the command line overrides them.")
    return parser


def _refuse_unknown(name: str, parser: argparse.ArgumentParser, place: str) -> None:
    """ValueError for a name that is no flag, with the nearest ones."""
    known = sorted(option for action in parser._actions for option in action.option_strings if option.startswith("--"))
    if f"--{name}" in known:
        return
    instead = _FORMER_FLAGS.get(name.replace("-", "_"))
    if instead is not None:
        raise ValueError(f"{place}: the published script's --{name} is not taken: {instead}")
    near = difflib.get_close_matches(f"--{name}", known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "see --help"
    raise ValueError(f"{place}: there is no flag --{name}; {hint}")


def _flags_of_file(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """The YAML file's entries as command-line words."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--config {path}: there is no such file")
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"--config {path} is not a list of 'flag: value' lines")
    words = []
    for name, value in entries.items():
        _refuse_unknown(str(name), parser, f"--config {path}")
        if value is None:
            continue
        words.append(f"--{name}")
        takes_several = any(action.nargs == "+" for action in parser._actions if f"--{name}" in action.option_strings)
        if isinstance(value, list):
            words += map(str, value) if takes_several else [",".join(map(str, value))]
        else:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return words


def parse_flags(words: list[str]) -> Flags:
    """Flags from command-line words, over those of the `--config` file among them.

    ValueError or FileNotFoundError, in one sentence, for an unknown, malformed or missing flag.
    """
    parser = _parser()
    only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_config.add_argument("--config")
    config = only_config.parse_known_args(words)[0].config
    if config is not None:
        words = _flags_of_file(config, parser) + list(words)
    parsed, unknown = parser.parse_known_args(words)
    for word in unknown:
        _refuse_unknown(word.removeprefix("--").split("=")[0], parser, "command line")
    *groups, _config = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    defaults = vars(parser.parse_known_args([])[0])
    given = {name: value for name, value in vars(parsed).items() if value != defaults[name]}
    flags = Flags(*groups, given)
    for name, value in (
        ("model_name_or_path", flags.model.model_name_or_path),
        ("data_path", flags.data.data_path),
    ):
        if not value:
            raise ValueError(f"--{name} is missing: give it on the command line or in --config FILE.yaml")
    if flags.training.eval_strategy != "no" and not flags.data.eval_data_path:
        raise ValueError(
            f"--eval_strategy {flags.training.eval_strategy.value} needs held-out records: --eval_data_path FILE"
        )
    return flags
