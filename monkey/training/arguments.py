"""The flags of `finetune_multitask.py`.

They keep the names and the meaning of the published script, and add transformers' own `TrainingArguments`. Flags may
also come from a YAML file (`--config FILE.yaml`, one `flag: value` a line); the command line overrides the file, and
a name that is no flag is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
import transformers
from transformers import HfArgumentParser
from transformers.utils import is_torch_xla_available

from monkey.data.packing import SHARING, RowSettings
from monkey.training.checks import (
    check_json,
    check_launcher,
    check_loggers,
    check_ranges,
    check_taken,
    without_reentrant_checkpointing,
)
from monkey.training.flag import flag
from monkey.training.flag_names import CONFIG_HELP, MISSING, config_of, read_config, refuse_unknown
from monkey.training.idle_flags import refuse_idle
from monkey.training.part_arguments import PartArguments
from monkey.training.recipes import Recipe, choose_recipe


@dataclass
class ModelArguments:
    """Which weights to start from, and how the picture is cut."""

    model_name_or_path: str | None = flag(
        None, "Folder of a checkpoint, or the hub name of one in the offline cache. Required."
    )
    grid: str | None = flag(
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

    data_path: list[str] | None = flag(
        None,
        "Training records: a JSON list or JSONL of conversations, several of them, or a mixture in YAML. Required.",
    )
    data_weights: list[float] | None = flag(
        None, "How often an epoch goes through each file of --data_path: 2 is twice, 0.5 a half drawn anew each time."
    )
    skip_bad_rows: bool = flag(
        False,
        "List the records that scripts/check_data.py would call bad (unreadable, a missing or damaged picture, too "
        "long) and leave them out, instead of stopping: before the first step, or where they are met later.",
    )
    eval_data_path: str | None = flag(
        None,
        "Held-out records of the same form. Their loss is reported after training, and during it as --eval_strategy "
        "says.",
    )
    image_root: str | None = flag(
        None,
        "Folder that relative image paths start from and that no path may leave. By default each file's own folder.",
    )
    model_max_length: int = flag(
        2048, "Most tokens of a sample, image tokens included. A longer sample is an error: nothing is ever cut."
    )
    lazy_preprocess: bool = flag(
        False,
        "False reads and checks every record and image header before the first step; True meets them as they come.",
    )
    cache_images: bool = flag(
        False,
        "Keep every picture's pixels in memory, so that it is decoded once: 3 bytes a pixel of the canvas, in each "
        "loading process. For small data sets.",
    )
    cache_tokens: bool = flag(
        False,
        "Keep every record's tokens in memory, which --packing reads all of before it plans its rows: 5 bytes a token, "
        "once for all loading processes. For a model that is faster than its records can be read.",
    )
    packing: bool = flag(
        False,
        "Put several samples into one row of at most --pack_tokens tokens, each blind to the others: exact, and "
        "without padding. A step of one process is one row then, not --per_device_train_batch_size samples.",
    )
    pack_tokens: int | None = flag(None, "Most tokens of a packed row; by default --model_max_length.")
    look_ahead: int = flag(256, "Samples that wait while rows are filled: more fill rows better, fewer keep the order.")
    share_images: str | None = flag(
        None,
        "What becomes of records about one picture in packed rows: 'apart', 'branches' (the picture once, behind it "
        "questions that do not see each other: exact) or 'turns' (one conversation). By default branches.",
    )
    most_shared: int = flag(16, "Most records that share a picture in one row.")

    def __post_init__(self) -> None:
        if self.data_weights is not None and len(self.data_weights) != len(self.data_path or ()):
            raise ValueError(
                f"--data_weights has {len(self.data_weights)} numbers for {len(self.data_path or ())} files of "
                "--data_path: give one for each"
            )
        if self.share_images is not None and self.share_images not in SHARING:
            raise ValueError(f"--share_images {self.share_images} is unknown: give one of {', '.join(SHARING)}")
        if self.packing and self.pack_tokens is not None and self.pack_tokens < self.model_max_length:
            raise ValueError(
                f"--pack_tokens {self.pack_tokens} is less than --model_max_length {self.model_max_length}, so a "
                "sample could be longer than a row: raise the one or lower the other"
            )
        if self.cache_tokens and (not self.packing or self.sharing == "turns"):
            raise ValueError(
                "--cache_tokens True needs --packing True and --share_images apart or branches: tokens are kept as "
                "the rows are planned, record by record"
            )
        for name in ("model_max_length", "pack_tokens", "look_ahead", "most_shared"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} does not work: give 1 or more")

    @property
    def sharing(self) -> str:
        """What becomes of records about one picture."""
        return (self.share_images or "branches") if self.packing else "apart"

    @property
    def row_settings(self) -> RowSettings:
        """How samples share packed rows."""
        budget = self.pack_tokens or self.model_max_length
        return RowSettings(budget, self.look_ahead, self.sharing != "apart", self.most_shared)


@dataclass
class LoraArguments:
    """Low-rank adapters (PEFT) on the decoder's linears, instead of training the decoder itself."""

    use_lora: bool | None = flag(
        None,
        "Freeze the decoder and train low-rank adapters on its q, k, v, o, gate and up projections (the published "
        "c_attn, attn.c_proj, w2, w1; the MLP's last projection has none).",
    )
    q_lora: bool | None = flag(None, "The same on a decoder held in 4 bits (bitsandbytes); the vision side is not.")
    lora_r: int = flag(32, "Rank of the decoder's adapters; 32 is the published 24 GB variant's.")
    lora_alpha: int = flag(32, "Scale of the decoder's adapters is lora_alpha / lora_r; the published one starts at 1.")
    lora_dropout: float = flag(0.05, "Dropout before the decoder's adapters.")

    def __post_init__(self) -> None:
        if self.lora_r < 1:
            raise ValueError(f"--lora_r {self.lora_r} is not a rank: give 1 or more")
        if self.lora_alpha < 1:
            raise ValueError(f"--lora_alpha {self.lora_alpha} would leave the adapters without effect: give 1 or more")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora_dropout {self.lora_dropout:g} is not a part: give 0 up to below 1")


@dataclass
class RunArguments:
    """How a run watches itself."""

    eval_tasks: str | None = flag(
        None,
        "Held-out tasks whose questions are answered at every evaluation and scored by the evaluator, as the names of "
        "evaluate_vqa.py --dataset.",
    )
    eval_data_root: str | None = flag(None, "Folder of the tasks' data, as evaluate_vqa.py --data-root.")
    eval_limit: int = flag(200, "Questions of each task; a fixed draw. 0 for all.")
    overfit: int = flag(
        0,
        "Self-test: train on the first N records alone, without dropout, then check that each answer is reproduced.",
    )
    ignore_memory_plan: bool = flag(False, "Start although the memory plan says that the run cannot fit the GPU.")
    peak_tflops: float | None = flag(
        None,
        "Dense TFLOP/s of a device at the run's precision, for the MFU; by default from a table, or measured on a CPU.",
    )

    def __post_init__(self) -> None:
        for name in ("eval_limit", "overfit"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)} does not work: give 0 or more")
        if self.peak_tflops is not None and not 0 < self.peak_tflops < float("inf"):
            raise ValueError(f"--peak_tflops {self.peak_tflops:g} does not work: give a number above 0")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own flags, those of the published script that it dropped since, and `--fix_vit`."""

    fix_vit: bool | None = flag(
        None,
        "True, as by default, freezes the vision transformer and its output projection, except the window adapters; "
        "the resampler and the decoder train. False trains everything. See --recipe.",
    )
    overwrite_output_dir: bool = flag(
        False, "Replace what an earlier run left in --output_dir, instead of refusing to start."
    )
    warmup_ratio: float | None = flag(None, "Part of all steps that the learning rate climbs for, in [0, 1).")
    evaluation_strategy: str | None = flag(None, "Former name of --eval_strategy: no, steps or epoch.")
    remove_unused_columns: bool = flag(False, "Kept False: a sample's record name travels with it for error messages.")
    dataloader_num_workers: int = flag(
        4, "Processes that read, decode and resize pictures; 0 does it in the trainer's own."
    )
    # None stands first because the library's parser of flags asks for it.
    report_to: None | str | list[str] = flag(  # noqa: RUF036
        "tensorboard", "Loggers: tensorboard, wandb, mlflow, … or none. TensorBoard's files lie in OUTPUT/tensorboard."
    )
    dataloader_persistent_workers: bool | None = flag(
        None, "Keep the loading processes from epoch to epoch. By default yes, when there are any."
    )

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError(MISSING["output_dir"])
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
                "--load_best_model_at_end and --save_strategy best are not taken: with --eval_tasks the best "
                "checkpoint is always kept, in OUTPUT/best"
            )
        check_taken(self)
        # Every process takes part in every parameter, a blank picture in hand where its batch has none.
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
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
    parts: PartArguments
    run: RunArguments
    training: TrainingArguments
    recipe: Recipe
    given: dict[str, Any]
    """What the command line and `--config` set to other than the default: what says which run this is."""
    named: frozenset[str] = frozenset()
    """Every flag that the command line and `--config` name."""

    def resolved(self) -> dict[str, Any]:
        """Every flag's value; tokens are masked."""
        own: dict[str, Any] = {}
        for group in (self.model, self.data, self.lora, self.parts, self.run):
            own |= dataclasses.asdict(group)
        return {**own, **self.training.to_dict()}

    def table(self) -> str:
        """The resolved values of this program's flags and of all that were named, one a line, as they could be given.

        The library's other flags have their defaults; `run.json` has them too.
        """
        own = {field.name for group in _GROUPS for field in dataclasses.fields(group) if field.init}
        theirs = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
        values = self.resolved()
        lines = []
        for name, value in values.items():
            if (name in own and name not in theirs) or name in self.named:
                text = " ".join(map(str, value)) if isinstance(value, list) else value
                lines.append(f"--{name} {text}")
        return "\n".join(lines)


_GROUPS = (ModelArguments, DataArguments, LoraArguments, PartArguments, RunArguments, TrainingArguments)


class _Parser(HfArgumentParser):
    """HfArgumentParser that raises ValueError, where argparse prints every flag and leaves the program."""

    def error(self, message: str) -> NoReturn:
        # argparse names every spelling of a flag; the first one is enough.
        raise ValueError(re.sub(r"^argument (--\w+)[^\s:]*", r"\1", message))


def _parser() -> _Parser:
    parser = _Parser(
        _GROUPS,
        prog="finetune_multitask.py",
        description="Fine-tune Monkey on conversations about pictures.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help=CONFIG_HELP)
    return parser


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


def _words_of_file(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """The YAML file's entries as command-line words."""
    words: list[str] = []
    for name, value in read_config(path, _options(parser)).items():
        if value is None:
            continue
        words.append(f"--{name}")
        takes_several = any(action.nargs == "+" for action in parser._actions if f"--{name}" in action.option_strings)
        if isinstance(value, list):
            words += map(str, value) if takes_several else [",".join(map(str, value))]
        else:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return words


def _named(words: Sequence[str]) -> set[str]:
    """Names of the flags among command-line words."""
    return {word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")}


def parse_flags(words: list[str]) -> Flags:
    """Flags from command-line words, over those of the `--config` file among them.

    ValueError or FileNotFoundError, in one sentence, for an unknown, malformed or missing flag.
    """
    parser = _parser()
    config = config_of(words)
    of_file = [] if config is None else _words_of_file(config, parser)
    on_command_line, in_file = _named(words), _named(of_file)
    words = [*of_file, *words]
    parsed, unknown = parser.parse_known_args(words)
    for word in unknown:
        refuse_unknown(word.removeprefix("--").split("=")[0], _options(parser), "command line")
    *groups, _config = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    defaults = vars(parser.parse_known_args([])[0])
    given = {name: value for name, value in vars(parsed).items() if value != defaults[name]}
    model, data, lora, parts, run, training = groups
    recipe = choose_recipe(parts.recipe, training.fix_vit, lora.use_lora, lora.q_lora)
    recipe = recipe.as_published() if parts.published else recipe
    flags = Flags(model, data, lora, parts, run, training, recipe, given, frozenset(on_command_line | in_file))
    for name, value in (
        ("model_name_or_path", flags.model.model_name_or_path),
        ("data_path", flags.data.data_path),
    ):
        if not value:
            raise ValueError(MISSING[name])
    if parts.published and data.packing and data.sharing == "turns":
        raise ValueError(
            "--published True weighs each record the same, but --share_images turns makes one conversation of several: "
            "give --share_images branches or apart"
        )
    refuse_idle(flags, on_command_line, in_file)
    if not data.packing:
        data.pack_tokens = data.share_images = None  # those of a file whose packing the command line turned off
    if training.eval_strategy != "no" and not (data.eval_data_path or run.eval_tasks):
        raise ValueError(
            f"--eval_strategy {training.eval_strategy.value} needs something held out: --eval_data_path FILE or "
            "--eval_tasks NAMES"
        )
    if data.packing and training.dataloader_drop_last:
        raise ValueError("--dataloader_drop_last is not for packed rows: the last ones are dealt evenly; leave it out")
    if data.packing and training.per_device_train_batch_size != 1:
        raise ValueError(
            f"--packing fills one row a step, but --per_device_train_batch_size is "
            f"{training.per_device_train_batch_size}: set it to 1 and give the row more room with --pack_tokens"
        )
    return flags
