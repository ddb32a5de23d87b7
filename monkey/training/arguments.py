"""The flags of `finetune_multitask.py`.

They keep the names and the meaning of the published script, and add transformers' own `TrainingArguments`. Flags may
also come from a YAML file (`--config FILE.yaml`, one `flag: value` per line); the command line overrides the file, and
a name that is no flag is refused.

Importing this module imports neither torch nor transformers, which take seconds: `--help`, a name that is no flag and a
file that is missing need not wait for them. The library's flags are read from its source until then.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import importlib.util
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from monkey.cli import grid_set, one_grid
from monkey.data.mixture import MIXTURE_ENDINGS, RecordSet, record_sets
from monkey.data.packing import SHARING, RowSettings
from monkey.data.shards import check_shards_exist, holds_shards
from monkey.files import parse_settings, read_settings_file, refuse_missing
from monkey.grids import FITS
from monkey.training.recipes import RECIPES, Recipe, choose_recipe

# What the flags call a group -> its parts of the model.
GROUPS: dict[str, tuple[str, ...]] = {
    "vision": ("vision transformer", "vision projection"),
    "vision_adapter": ("window adapters",),
    "resampler": ("resampler", "position table"),
    "decoder": ("decoder", "decoder adapters"),
}


def flag(default: Any, description: str) -> Any:
    """Declare a dataclass field whose description `--help` prints."""
    return field(default=default, metadata={"help": description})


def _read(flag: str, text: str | None, read: Callable[[str], Any]) -> Any:
    try:
        return None if text is None else read(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--{flag} {error}") from None


@dataclass
class ModelArguments:
    """Which weights to start from, and how the image is cut."""

    model_name_or_path: str | None = flag(
        None, "Folder of a checkpoint, or the hub name of one in the offline cache. Required."
    )
    grid: str | None = flag(
        None, "Rows and columns of windows as 'R,C', for instance 2,3. By default the checkpoint's own."
    )
    grids: str | None = flag(
        None,
        "Grids of which each image takes the one that suits its shape: up-to-6 for all of at most six windows, or a "
        "list such as 1x2,2x1,2x2. By default the checkpoint's own; where it has none, every image is on --grid.",
    )
    fit: str | None = flag(
        None,
        f"How an image is put on its grid, {' or '.join(FITS)}: drawn out to its edges, or in its own ratio with "
        "padding behind it. By default the checkpoint's own.",
    )

    def __post_init__(self) -> None:
        if self.fit is not None and self.fit not in FITS:
            raise ValueError(f"--fit {self.fit} is unknown: give one of {', '.join(FITS)}")
        # As numbers; None keeps the checkpoint's.
        self.grid_shape = _read("grid", self.grid, one_grid)
        self.grid_set = _read("grids", self.grids, grid_set)

    @property
    def layout(self) -> dict[str, Any]:
        """What `from_pretrained` takes to open the checkpoint so."""
        return {"grid": self.grid_shape, "grids": self.grid_set, "fit": self.fit}


@dataclass
class DataArguments:
    """Which records to learn from, and how they are read."""

    data_path: list[str] | None = flag(
        None,
        "Training records: a JSON list or JSONL of conversations, several of them, or a mixture in YAML; or tables and "
        "tars with their images: *.parquet, shards-{000..127}.tar, a folder of such, hub:owner/name:split. Required.",
    )
    data_weights: list[float] | None = flag(
        None, "How often an epoch goes through each file of --data_path: 2 is twice, 0.5 a half drawn anew each time."
    )
    streaming: bool = flag(
        False,
        "Read the tables and tars of --data_path as they come, here or on the hub, instead of looking all of them "
        "through first: for --max_steps, with weights as shares of the samples.",
    )
    stream_buffer: int = flag(
        512, "Records that are shuffled among each other, and packed, in each loading process of a stream."
    )
    skip_bad_rows: bool = flag(
        False,
        "List the records that scripts/check_data.py would call bad (unreadable, a missing or damaged image, too "
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
        "Keep every image's pixels in memory, so that it is decoded once: 3 bytes per pixel of the canvas, in each "
        "loading process. For small data sets.",
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
        "What becomes of records about one image in packed rows: 'apart', 'branches' (the image once, behind it "
        "questions that do not see each other: exact) or 'turns' (one conversation). By default branches.",
    )
    most_shared: int = flag(16, "Most records that share an image in one row.")

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

    def sets(self) -> list[RecordSet]:
        """The sets of `--data_path`, of which `--streaming` makes streams of those that can be."""
        sets = record_sets(self.data_path, self.image_root, self.data_weights)
        return [replace(one, stream=one.stream or (self.streaming and holds_shards(one.path))) for one in sets]

    def streams(self) -> list[RecordSet]:
        """Those of `sets` that are streams, which a flag or a mixture says."""
        may_be = self.streaming or any(path.endswith(MIXTURE_ENDINGS) for path in self.data_path)
        return [one for one in self.sets() if one.stream] if may_be else []

    @property
    def sharing(self) -> str:
        """What becomes of records about one image."""
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
        "c_attn, attn.c_proj, w2, w1; the MLP's last projection has none), or on --lora_targets.",
    )
    q_lora: bool | None = flag(None, "The same on a decoder held in 4 bits (bitsandbytes); the vision side is not.")
    lora_r: int = flag(32, "Rank of the decoder's adapters; 32 is the published 24 GB variant's.")
    lora_alpha: int = flag(32, "Scale of the decoder's adapters is lora_alpha / lora_r; the published one starts at 1.")
    lora_dropout: float = flag(0.05, "Dropout before the decoder's adapters.")
    lora_targets: list[str] | None = flag(
        None,
        "Names of the decoder's linears that get adapters, such as q_proj v_proj. By default what the checkpoint's "
        "config.json says, else the published ones, of another decoder those that PEFT takes for its family.",
    )


_RATE = "Learning rate of {}; by default --learning_rate."
_DECAY = "Weight decay of {}; by default --weight_decay."


@dataclass
class PartArguments:
    """What trains, and learning rate, weight decay, dropout and checkpointing by part."""

    recipe: str | None = flag(
        None, f"What trains: {', '.join(RECIPES)}. By default what --fix_vit, --use_lora and --q_lora say."
    )
    published: bool = flag(
        False,
        "Train as the published script does where this one differs: each micro-batch weighs the same, however many "
        "supervised tokens it has (packed: each sample, as in micro-batches of 1); the decoder's norms decay; the "
        "resampler's sin-cos position table trains too.",
    )
    vision_learning_rate: float | None = flag(None, _RATE.format("the vision transformer and its projection"))
    vision_adapter_learning_rate: float | None = flag(None, _RATE.format("the window adapters"))
    resampler_learning_rate: float | None = flag(None, _RATE.format("the resampler"))
    decoder_learning_rate: float | None = flag(None, _RATE.format("the decoder, or of its adapters"))
    vision_weight_decay: float | None = flag(None, _DECAY.format("the vision transformer and its projection"))
    vision_adapter_weight_decay: float | None = flag(None, _DECAY.format("the window adapters"))
    resampler_weight_decay: float | None = flag(None, _DECAY.format("the resampler"))
    decoder_weight_decay: float | None = flag(None, _DECAY.format("the decoder, or of its adapters"))
    vision_adapter_dropout: float | None = flag(
        None, "Dropout before the window adapters; by default the checkpoint's, 0.05 as published."
    )
    resampler_dropout: float | None = flag(
        None, "Dropout of the resampler's attention; by default the checkpoint's, none as published."
    )
    decoder_dropout: float | None = flag(
        None,
        "Dropout of the decoder's attention; by default the checkpoint's, none as published. For that of its "
        "adapters see --lora_dropout.",
    )
    vision_checkpointing: bool | None = flag(
        None,
        "Compute the vision transformer's activations again in the backward pass instead of keeping them. By "
        "default as --gradient_checkpointing.",
    )
    decoder_checkpointing: bool | None = flag(None, "The same for the decoder.")

    def of_part(self, part: str, quantity: str, default: float) -> float:
        """Return `learning_rate` or `weight_decay` of a part."""
        group = next(name for name, parts in GROUPS.items() if part in parts)
        value = getattr(self, f"{group}_{quantity}")
        return default if value is None else value


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


@dataclass
class TrainingFlags:
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
        4, "Processes that read, decode and resize images; 0 does it in the trainer's own."
    )
    # None stands first because the library's parser of flags asks for it.
    report_to: None | str | list[str] = flag(  # noqa: RUF036
        "tensorboard", "Loggers: tensorboard, wandb, mlflow, … or none. TensorBoard's files lie in OUTPUT/tensorboard."
    )
    dataloader_persistent_workers: bool | None = flag(
        None, "Keep the loading processes from epoch to epoch. By default yes, when there are any."
    )

    def __post_init__(self) -> None:
        """Settle what the library would settle otherwise, and refuse what it would ignore or not explain."""
        check_ranges(self)
        if self.warmup_ratio is not None:
            if self.warmup_steps:
                raise ValueError(
                    f"--warmup_ratio {self.warmup_ratio} and --warmup_steps {self.warmup_steps:g} both say how long "
                    "the learning rate climbs: give one"
                )
            # Below 1, transformers 5 reads warmup_steps as the ratio.
            self.warmup_steps = self.warmup_ratio
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        import torch

        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.fp16 and self.use_cpu:
            raise ValueError("--fp16 is not for CPUs, where half precision is slow and unstable: use --bf16 True")
        _check_bfloat16(self)
        _check_taken(self)
        _check_deepspeed(self)
        _check_loggers(self)
        _never_reentrant(self)
        # Every process takes part in every parameter, a blank image in hand where its batch has none.
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        # A non-finite loss stops the run with the names of its records; the library's filter would hide it.
        self.logging_nan_inf_filter = False
        with warnings.catch_warnings():
            # The published name of activation checkpointing; renamed in transformers 5.19, gone in 6.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
            super().__post_init__()


@functools.cache
def training_arguments() -> type[TrainingFlags]:
    """Return the class of the library's flags with ours; importing it takes seconds."""
    import transformers

    @dataclass
    class TrainingArguments(TrainingFlags, transformers.TrainingArguments):
        __doc__ = TrainingFlags.__doc__

    return TrainingArguments


_GROUPS = (ModelArguments, DataArguments, LoraArguments, PartArguments, RunArguments, TrainingFlags)


# Values that cannot work

# Every other number is to be 0 or more.
_AT_LEAST_ONE = {
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "save_total_limit",
    "eval_accumulation_steps", "dataloader_prefetch_factor", "torch_empty_cache_steps", "ddp_bucket_cap_mb",
    "ddp_timeout", "model_max_length", "pack_tokens", "look_ahead", "most_shared", "stream_buffer", "lora_r",
    "lora_alpha",
}  # fmt: skip
_ABOVE_ZERO = {"num_train_epochs", "adam_epsilon", "logging_steps", "save_steps", "eval_steps", "peak_tflops"}
_PARTS = {
    "warmup_ratio", "adam_beta1", "adam_beta2", "lora_dropout", "vision_adapter_dropout", "resampler_dropout",
    "decoder_dropout",
}  # fmt: skip


def check_ranges(group: Any) -> None:
    """Raise ValueError for a number with which a run could not train."""
    for one in dataclasses.fields(group):
        value = getattr(group, one.name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or one.name == "local_rank":
            continue
        works, advice = 0 <= value < math.inf, "give 0 or more"
        if one.name in _AT_LEAST_ONE:
            works, advice = value >= 1, "give 1 or more"
        elif one.name in _ABOVE_ZERO:
            works, advice = 0 < value < math.inf, "give a number above 0"
        elif one.name in _PARTS:
            works, advice = 0 <= value < 1, "give 0 up to below 1"
        elif one.name == "max_steps":
            works, advice = value == -1 or value >= 1, "give 1 or more, or leave it out to count epochs"
        elif one.name in ("seed", "data_seed"):
            works, advice = 0 <= value < 2**32, "give a whole number from 0 to 4294967295"
        if not works:
            raise ValueError(f"--{one.name} {value:g} does not work: {advice}")


# Flag of the library -> (the values that change nothing, what to do instead). Others would be ignored in silence, since
# batches, loss and checkpoints are made here.
_NOT_TAKEN: dict[str, tuple[tuple[Any, ...], str]] = {
    "auto_find_batch_size": ((False,), "scripts/plan_memory.py says what fits"),
    "average_tokens_across_devices": ((True,), "the loss is always a mean over the tokens of all processes"),
    "batch_eval_metrics": ((False,), "scores come from --eval_tasks"),
    "fsdp": (("", None, False, []), "shard with DeepSpeed, for instance --deepspeed configs/deepspeed/zero3.json"),
    "label_smoothing_factor": ((0,), "the loss is the plain cross-entropy of the supervised tokens"),
    "length_column_name": ((None, "length"), "--packing True makes rows of samples of any length"),
    "load_best_model_at_end": ((False,), "the best checkpoint is always kept, in OUTPUT/best, with --eval_tasks"),
    "push_to_hub": ((False,), "upload the finished folder with scripts/push_to_hub.py"),
    "train_sampling_strategy": ((None, "random"), "--packing True makes rows of samples of any length"),
}


def _check_taken(training: Any) -> None:
    for name, (harmless, instead) in _NOT_TAKEN.items():
        value = getattr(training, name, harmless[0])
        if value not in harmless:
            raise ValueError(f"--{name} {value} is not taken: {instead}")
    if training.save_strategy == "best":
        raise ValueError(f"--save_strategy best is not taken: {_NOT_TAKEN['load_best_model_at_end'][1]}")
    for name in ("deepspeed", "fsdp_config", "accelerator_config", "lr_scheduler_kwargs"):
        value = getattr(training, name, None)
        if isinstance(value, str) and (value.startswith("{") or name == "lr_scheduler_kwargs"):
            # The library does not say which flag is malformed.
            content = parse_settings(value.encode(), "JSON", f"--{name}")
            if name == "accelerator_config":
                _check_accelerator(content)


def _check_accelerator(content: Mapping[str, Any]) -> None:
    from transformers.trainer_pt_utils import AcceleratorConfig

    known = [one.name for one in dataclasses.fields(AcceleratorConfig)]
    for name in content:
        if name not in known:
            raise ValueError(f"--accelerator_config: there is no setting {name}; the known ones are {', '.join(known)}")


def _check_bfloat16(training: Any) -> None:
    """ValueError for `--bf16` on a card that does not compute in it: the library asks whether PyTorch emulates it."""
    if training.use_cpu or not training.bf16:
        return
    import torch

    from monkey.devices import check_dtype

    place = torch.accelerator.current_accelerator().type
    if place == "cuda":
        place = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    check_dtype(torch.bfloat16, place, "--bf16 True", "give --bf16 False --fp16 True")


def _check_deepspeed(training: Any) -> None:
    if not training.deepspeed:
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(f"--deepspeed {training.deepspeed} needs the deepspeed package: pip install deepspeed")
    if isinstance(training.deepspeed, str) and not training.deepspeed.startswith("{"):
        content = read_settings_file(training.deepspeed, f"--deepspeed {training.deepspeed}")
        if training.fp16 and not content.get("fp16", {}).get("enabled"):
            raise ValueError(
                f'--fp16 True would have no effect: {training.deepspeed} does not enable it; add "fp16": '
                '{"enabled": "auto"} to it'
            )
    # Without these variables DeepSpeed asks MPI.
    has_launcher = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if not has_launcher and importlib.util.find_spec("mpi4py") is None:
        raise ValueError(
            "--deepspeed needs a launcher, for one process too: start with scripts/finetune_ds.sh, or with torchrun "
            "--nproc_per_node N finetune_multitask.py"
        )


def _check_loggers(training: Any) -> None:
    from transformers.integrations import integration_utils as library

    # The library does not look for flyte, and the last two are no loggers.
    usable = {*library.get_available_reporting_integrations(), "flyte", "none", "all"}
    for name in [training.report_to] if isinstance(training.report_to, str) else training.report_to or ():
        if name not in {*library.INTEGRATION_TO_CALLBACK, *usable}:
            raise ValueError(f"--report_to {name} is no logger: give none or {', '.join(sorted(usable - {'none'}))}")
        if name not in usable:
            raise ValueError(f"--report_to {name} needs the {name} package, which is not installed: pip install {name}")


def _never_reentrant(training: Any) -> None:
    """Set checkpointing's `use_reentrant` to False; ValueError where the flags ask for True.

    The reentrant form gives a layer no gradient when its input needs none, as the window adapters' below a frozen
    vision transformer, and says nothing.
    """
    names = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
    settings: dict[str, Any] = {}
    for name in names:
        given = getattr(training, name, None) or {}
        settings |= parse_settings(given.encode(), "JSON", f"--{name}") if isinstance(given, str) else given
        if str(settings.get("use_reentrant", False)).lower() not in ("false", "0"):
            raise ValueError(
                f"--{name} use_reentrant {settings['use_reentrant']} would leave the window adapters without a "
                "gradient below a frozen vision transformer: leave it out, it is always false"
            )
    for name in names:
        setattr(training, name, {**settings, "use_reentrant": False})


# From words to flags


class Flags(NamedTuple):
    """One run's flags, by group."""

    model: ModelArguments
    data: DataArguments
    lora: LoraArguments
    parts: PartArguments
    run: RunArguments
    training: Any
    """An instance of `training_arguments()`."""
    recipe: Recipe
    named: frozenset[str]
    """Every flag that the command line and `--config` name."""

    def resolved(self) -> dict[str, Any]:
        """Return every flag's value; tokens are masked."""
        own: dict[str, Any] = {}
        for group in (self.model, self.data, self.lora, self.parts, self.run):
            own |= dataclasses.asdict(group)
        return {**own, **self.training.to_dict()}

    def is_set(self, name: str) -> bool:
        """Whether a flag was given another value than its default."""
        return name in self.named and self.resolved()[name] != _default_of(name)

    def table(self) -> str:
        """Return the values of this program's flags and of all that were named, one per line, as they could be given.

        The library's other flags have their defaults; `run.json` has them too.
        """
        own = {one.name for group in _GROUPS for one in dataclasses.fields(group)} - _library_flags().keys()
        lines = []
        for name, value in self.resolved().items():
            if name in own or name in self.named:
                lines.append(f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}")
        return "\n".join(lines)


def _default_of(name: str) -> Any:
    groups = (*_GROUPS[:-1], training_arguments())
    return next(one.default for group in groups for one in dataclasses.fields(group) if one.name == name)


@functools.cache
def _library_flags() -> Mapping[str, tuple[str, Any]]:
    """Return transformers' own flags by name, each with its help and its default, from its source."""
    source = Path(importlib.util.find_spec("transformers").origin).with_name("training_args.py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (declared,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"]
    flags = {}
    for node in declared.body:
        if not isinstance(node, ast.AnnAssign):
            continue
        named = {one.arg: one.value for one in node.value.keywords} if isinstance(node.value, ast.Call) else {}
        if "init" in named:
            continue
        texts = zip(named["metadata"].keys, named["metadata"].values, strict=True) if "metadata" in named else ()
        text = next((ast.literal_eval(value) for key, value in texts if ast.literal_eval(key) == "help"), "")
        default = named.get("default", node.value)
        flags[node.target.id] = text, default.value if isinstance(default, ast.Constant) else None
    return flags


class _OneLineParser(argparse.ArgumentParser):
    """Raises ValueError, where argparse prints every flag and leaves the program."""

    def error(self, message: str) -> NoReturn:
        # argparse names every spelling of a flag; the first one is enough.
        raise ValueError(re.sub(r"^argument (--\w+)[^\s:]*", r"\1", message))


def print_help(description: str) -> None:
    """Print every flag with what it is for."""
    parser = argparse.ArgumentParser(
        usage="finetune_multitask.py [--FLAG VALUE ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="Flags in a file; the command line overrides them.")
    for title, flags in _declared_flags().items():
        section = parser.add_argument_group(title.rstrip("."))
        for name, (text, default) in flags.items():
            shown = "" if default is None else f" (default: {default})"
            section.add_argument(f"--{name}", metavar=name.upper(), help=f"{text}{shown}".replace("%", "%%"))
    parser.print_help()


def _declared_flags() -> dict[str, dict[str, tuple[str, Any]]]:
    """Return what each group of flags says of itself -> its flags by name, each with its help and its default."""
    groups = {}
    for group in _GROUPS:
        flags = dict(_library_flags()) if group is TrainingFlags else {}
        groups[group.__doc__] = flags | {
            one.name: (one.metadata["help"], one.default) for one in dataclasses.fields(group)
        }
    return groups


@functools.cache
def known_names() -> frozenset[str]:
    """Return the name of every flag, `no_…` of those that are on by default too."""
    names = {"config", "help"}
    for flags in _declared_flags().values():
        for name, (_, default) in flags.items():
            names |= {name, f"no_{name}"} if default is True else {name}
    return frozenset(names)


def _refuse_unknown(name: str, place: str) -> None:
    known = known_names()
    if name.replace("-", "_") not in known:
        near = difflib.get_close_matches(name.replace("-", "_"), sorted(known), n=3)
        hint = f"did you mean --{' or --'.join(near)}?" if near else "see --help"
        raise ValueError(f"{place}: there is no flag --{name}; {hint}")


def read_config(path: str) -> dict[str, Any]:
    """Return the entries of a `--config` file, all of them flags."""
    entries = read_settings_file(path, f"--config {path}")
    for name in entries:
        _refuse_unknown(str(name), f"--config {path}")
    return {name: value for name, value in entries.items() if value is not None}


class Given(NamedTuple):
    """What was given for each flag that was named, on the command line and in the file of `--config`."""

    words: dict[str, list[str]]
    file: dict[str, Any]

    def __getitem__(self, name: Any) -> list[Any]:
        value = self.words.get(name) or self.file.get(name) or []
        return value if isinstance(value, list) else [value]


_MISSING = {
    "model_name_or_path": "give it on the command line or in --config FILE.yaml",
    "data_path": "give it on the command line or in --config FILE.yaml",
    "output_dir": "name the folder that the trained checkpoint goes to",
}


def read_words(words: Sequence[str]) -> Given:
    """Return what was given for each flag; ValueError for a name that is none."""
    named: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--") and " " not in word:
            name, _, value = word[2:].partition("=")
            _refuse_unknown(name, "command line")
            named[name.replace("-", "_")] = values = [value] if value else []
        else:
            values.append(word)
    config = named.pop("config", None)
    return Given(named, read_config(config[-1]) if config else {})


def given_flags(words: Sequence[str]) -> Given:
    """Return what was given for each flag; ValueError for a name that is none, and for one that a run needs."""
    given = read_words(words)
    for name, advice in _MISSING.items():
        if not any(given[name]):
            raise ValueError(f"--{name} is missing: {advice}")
    return given


def look_over(words: Sequence[str]) -> None:
    """Raise what a run would say of the names and paths among its flags, before anything large is imported.

    ValueError or FileNotFoundError, in one sentence, for a name that is no flag, on the command line or in a config, a
    flag that is missing, and a config, a file of records or a checkpoint's folder that is not there.
    """
    given = given_flags(words)
    refuse_missing(str(given["model_name_or_path"][0]))
    for path in (*given["data_path"], *given["eval_data_path"]):
        for member in record_sets(str(path)):
            if holds_shards(member.path):
                check_shards_exist(member.path)
            elif not member.path.exists():
                raise FileNotFoundError(f"{member.path}: no such file")


def parse_flags(words: Sequence[str]) -> Flags:
    """Return the flags of command-line words, over those of the `--config` file among them.

    ValueError or FileNotFoundError, in one sentence, for an unknown, malformed or missing flag, and for one that would
    have no effect.
    """
    given = given_flags(words)
    from transformers import HfArgumentParser

    class Parser(_OneLineParser, HfArgumentParser):
        pass

    parser = Parser((*_GROUPS[:-1], training_arguments()), allow_abbrev=False)
    parser.add_argument("--config")
    all_words = [*_words_of(given.file, parser), *words]
    try:
        *groups, training, _config, stray = parser.parse_args_into_dataclasses(
            all_words, return_remaining_strings=True, look_for_args_file=False
        )
    except TypeError as error:  # the library's, of a setting that an object of JSON should not have
        raise ValueError(f"a flag of JSON has what it cannot have: {error}") from error
    if stray:
        raise ValueError(f"command line: {stray[0]} belongs to no flag; the name of a flag begins with --")
    for group in groups:
        check_ranges(group)
    model, data, lora, parts, run = groups
    recipe = choose_recipe(parts.recipe, training.fix_vit, lora.use_lora, lora.q_lora)
    recipe = recipe.as_published() if parts.published else recipe
    flags = Flags(model, data, lora, parts, run, training, recipe, frozenset({*given.words, *given.file}))
    _refuse_idle(flags, given)
    if not data.packing:
        data.pack_tokens = data.share_images = None  # those of a file whose packing the command line turned off
    _check_together(flags)
    return flags


def _words_of(entries: Mapping[str, Any], parser: argparse.ArgumentParser) -> list[str]:
    """Return the entries of a file as command-line words."""
    several = {action.dest for action in parser._actions if action.nargs == "+"}
    words: list[str] = []
    for name, value in entries.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)] if name in several else [f"--{name}", ",".join(map(str, value))]
        else:
            words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def _check_together(flags: Flags) -> None:
    data, training = flags.data, flags.training
    if flags.parts.published and data.sharing == "turns":
        raise ValueError(
            "--published True weighs each record the same, but --share_images turns makes one conversation of several: "
            "give --share_images branches or apart"
        )
    if training.eval_strategy != "no" and not (data.eval_data_path or flags.run.eval_tasks):
        raise ValueError(
            f"--eval_strategy {training.eval_strategy.value} needs something held out: --eval_data_path FILE or "
            "--eval_tasks NAMES"
        )
    if streams := data.streams():
        _check_streams(flags, streams[0].path)
    elif data.streaming:
        raise ValueError(
            "--streaming True would have no effect: --data_path names no tables or tars, and the rows of files of JSON "
            "are known by their places; leave it out"
        )
    if data.packing and training.dataloader_drop_last:
        raise ValueError("--dataloader_drop_last is not for packed rows: the last ones are dealt evenly; leave it out")
    if data.packing and training.per_device_train_batch_size != 1:
        raise ValueError(
            f"--packing fills one row a step, but --per_device_train_batch_size is "
            f"{training.per_device_train_batch_size}: set it to 1 and give the row more room with --pack_tokens"
        )


def _check_streams(flags: Flags, path: Path) -> None:
    for name, is_asked, advice in (
        ("max_steps", flags.training.max_steps <= 0, "how long a stream is, is not known: give --max_steps"),
        ("overfit", flags.run.overfit, "it trains on the first records of files: leave --streaming out"),
        ("cache_images", flags.data.cache_images, "a stream's images do not come back in time: leave it out"),
        ("dataloader_drop_last", flags.training.dataloader_drop_last, "a stream has no last batch: leave it out"),
    ):
        if is_asked:
            raise ValueError(f"--{name}: {path} is read as a stream, and {advice}")


_RECIPE = ("recipe", "fix_vit", "use_lora", "q_lora", "published")


class _Idle(NamedTuple):
    """Flags that have no effect as the others are."""

    names: tuple[str, ...]
    deciding: tuple[str, ...]
    """Flags that decide over these."""
    advice: str


def _idle_flags(flags: Flags) -> list[_Idle]:
    training, idle = flags.training, []
    rates = {group: (f"{group}_learning_rate", f"{group}_weight_decay") for group in GROUPS}
    if training.deepspeed and "optimizer" in training.hf_deepspeed_config.config:
        own = "the DeepSpeed config names an optimizer of its own, which has one rate and one decay for everything: "
        idle.append(_Idle(sum(rates.values(), ()), ("deepspeed",), f"{own}take 'optimizer' out of the config"))
    for group, parts in GROUPS.items():
        if not flags.recipe.trains & set(parts):
            advice = "the recipe freezes that part: leave it out, or choose another --recipe"
            idle.append(_Idle(rates[group], _RECIPE, advice))
    if not flags.recipe.decoder_lora:
        advice = "the recipe gives the decoder no adapters: add --recipe lora-llm, or leave it out"
        idle.append(_Idle(("lora_r", "lora_alpha", "lora_targets"), _RECIPE, advice))
    if not flags.data.packing:
        names = ("pack_tokens", "share_images", "look_ahead", "most_shared")
        idle.append(_Idle(names, ("packing",), "it is about packed rows: add --packing True"))
    if not flags.data.streams():
        idle.append(_Idle(("stream_buffer",), ("streaming",), "it is about streams: add --streaming True"))
    if not flags.run.eval_tasks:
        names, advice = ("eval_limit", "eval_data_root"), "it is about --eval_tasks, and there are none"
        idle.append(_Idle(names, ("eval_tasks",), advice))
    if training.eval_strategy == "no":
        names = ("eval_steps", "metric_for_best_model", "greater_is_better")
        advice = "nothing is evaluated on the way: add --eval_strategy steps"
        idle.append(_Idle(names, ("eval_strategy", "evaluation_strategy"), advice))
    if training.save_strategy != "steps":
        advice = "checkpoints are not saved by steps: add --save_strategy steps"
        idle.append(_Idle(("save_steps",), ("save_strategy",), advice))
    return idle


def _refuse_idle(flags: Flags, given: Given) -> None:
    """Raise ValueError for a flag with another value than its default that would have no effect.

    A line of a `--config` file may become idle when the command line overrides what decides over it.
    """
    for names, deciding, advice in _idle_flags(flags):
        counted = given.words.keys() if given.words.keys() & set(deciding) else flags.named
        for name in names:
            if name in counted and flags.is_set(name):
                raise ValueError(f"--{name} would have no effect: {advice}")
