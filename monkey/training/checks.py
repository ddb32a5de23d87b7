"""Checks of transformers' own training flags, which the library makes late, without the flag's name, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from monkey.settings_files import parse_settings, read_settings_file

if TYPE_CHECKING:
    from transformers import TrainingArguments

# Flag -> (test, what to give). A flag that is not set (None) is not tested; NaN passes no test.
_AT_LEAST_ONE = (lambda value: value >= 1, "give 1 or more")
_ABOVE_ZERO = (lambda value: 0 < value < float("inf"), "give a number above 0")
_AT_LEAST_ZERO = (lambda value: 0 <= value < float("inf"), "give 0 or more")
_PART = (lambda value: 0 <= value < 1, "give 0 up to below 1")
_RANGES = {
    "per_device_train_batch_size": _AT_LEAST_ONE,
    "per_device_eval_batch_size": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "eval_accumulation_steps": _AT_LEAST_ONE,
    "num_train_epochs": _ABOVE_ZERO,
    "max_steps": (lambda value: value == -1 or value >= 1, "give 1 or more, or leave it out to count epochs"),
    "learning_rate": _AT_LEAST_ZERO,
    "weight_decay": _AT_LEAST_ZERO,
    "adam_beta1": _PART,
    "adam_beta2": _PART,
    "adam_epsilon": _ABOVE_ZERO,
    "max_grad_norm": _AT_LEAST_ZERO,
    "warmup_steps": _AT_LEAST_ZERO,
    "logging_steps": _ABOVE_ZERO,
    "save_steps": _ABOVE_ZERO,
    "eval_steps": _ABOVE_ZERO,
    "save_total_limit": _AT_LEAST_ONE,
    "dataloader_num_workers": _AT_LEAST_ZERO,
    "dataloader_prefetch_factor": _AT_LEAST_ONE,
    "seed": (lambda value: 0 <= value < 2**32, "give a whole number from 0 to 4294967295"),
    "neftune_noise_alpha": _AT_LEAST_ZERO,
    "torch_empty_cache_steps": _AT_LEAST_ONE,
    "eval_delay": _AT_LEAST_ZERO,
    "ddp_bucket_cap_mb": _AT_LEAST_ONE,
    "ddp_timeout": _AT_LEAST_ONE,
    "data_seed": (lambda value: 0 <= value < 2**32, "give a whole number from 0 to 4294967295"),
}

# Flags of JSON: whether a file may hold it.
_JSON_FLAGS = {
    "deepspeed": True,
    "fsdp_config": True,
    "accelerator_config": True,
    "activation_checkpointing_kwargs": False,
    "gradient_checkpointing_kwargs": False,
    "lr_scheduler_kwargs": False,
}


# Flag of the library -> (the values that change nothing, what to do instead). Others would be ignored in silence, since
# batches, loss and checkpoints are made here.
_NOT_TAKEN: dict[str, tuple[tuple[Any, ...], str]] = {
    "auto_find_batch_size": ((False,), "scripts/plan_memory.py says what fits"),
    "average_tokens_across_devices": ((True,), "the loss is always a mean over the tokens of all processes"),
    "batch_eval_metrics": ((False,), "scores come from --eval_tasks"),
    "fsdp": (("", None, False, []), "shard with DeepSpeed, for instance --deepspeed configs/deepspeed/zero3.json"),
    "label_smoothing_factor": ((0, 0.0), "the loss is the plain cross-entropy of the supervised tokens"),
    "length_column_name": ((None, "length"), "--packing True makes rows of samples of any length"),
    "push_to_hub": ((False,), "upload the finished folder with `hf upload`"),
    "train_sampling_strategy": ((None, "random"), "--packing True makes rows of samples of any length"),
}


def check_taken(training: TrainingArguments) -> None:
    """ValueError for a flag of the library that would have no effect here."""
    for name, (harmless, instead) in _NOT_TAKEN.items():
        value = getattr(training, name, harmless[0])
        if value not in harmless:
            raise ValueError(f"--{name} {value} is not taken: {instead}")


def check_ranges(training: TrainingArguments) -> None:
    """ValueError for a number with which the run could not train."""
    for name, (works, advice) in _RANGES.items():
        value = getattr(training, name)
        if value is not None and not works(value):
            raise ValueError(f"--{name} {value:g} does not work: {advice}")


def check_json(training: TrainingArguments) -> None:
    """ValueError or FileNotFoundError for a flag of JSON that is none, naming flag, file and line."""
    for name, may_be_file in _JSON_FLAGS.items():
        value = getattr(training, name, None)
        if not isinstance(value, str) or not value:
            continue
        if value.startswith("{"):
            content = parse_settings(value.encode(), "JSON", f"--{name}")
        elif not may_be_file:
            raise ValueError(f"--{name} {value} is not a JSON object: give one such as '{{\"name\": 1}}'")
        else:
            content = read_settings_file(value, f"--{name} {value}")
        if name == "accelerator_config":
            _check_accelerator_names(content)


def _check_accelerator_names(content: dict[str, Any]) -> None:
    from transformers.trainer_pt_utils import AcceleratorConfig

    known = [field.name for field in dataclasses.fields(AcceleratorConfig)]
    for name in content:
        if name not in known:
            raise ValueError(f"--accelerator_config: there is no setting {name}; the known ones are {', '.join(known)}")


def check_launcher(training: TrainingArguments) -> None:
    """ValueError where DeepSpeed has no launcher that tells the processes of each other."""
    told = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    # Without these variables DeepSpeed asks MPI.
    if training.deepspeed and not told and importlib.util.find_spec("mpi4py") is None:
        raise ValueError(
            "--deepspeed needs a launcher, for one process too: start with scripts/finetune_ds.sh, or with torchrun "
            "--nproc_per_node N finetune_multitask.py"
        )


def check_loggers(training: TrainingArguments) -> None:
    """ValueError for a logger of `--report_to` that is unknown or not installed."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    wanted = [training.report_to] if isinstance(training.report_to, str) else training.report_to or []
    # The library does not look for flyte, and the last two are no loggers.
    usable = {*get_available_reporting_integrations(), "flyte", "none", "all"}
    for name in wanted:
        if name not in {*INTEGRATION_TO_CALLBACK, "none", "all"}:
            raise ValueError(f"--report_to {name} is no logger: give none or {', '.join(sorted(usable - {'none'}))}")
        if name not in usable:
            raise ValueError(f"--report_to {name} needs the {name} package, which is not installed: pip install {name}")


def without_reentrant_checkpointing(training: TrainingArguments) -> None:
    """Set `use_reentrant` to False; ValueError where the flags ask for True.

    The reentrant form gives a layer no gradient when its input needs none, as the window adapters' below a frozen
    vision transformer, and says nothing.
    """
    # The first is the name since transformers 5.19, and what counts where both are given.
    names = [
        name for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs") if hasattr(training, name)
    ]
    settings: dict[str, Any] = {}
    for name in reversed(names):
        given = getattr(training, name) or {}
        given = parse_settings(given.encode(), "JSON", f"--{name}") if isinstance(given, str) else given
        if str(given.get("use_reentrant", False)).lower() not in ("false", "0"):
            raise ValueError(
                f"--{name} use_reentrant {given['use_reentrant']} would leave the window adapters without a gradient "
                "below a frozen vision transformer: leave it out, it is always false"
            )
        settings = given or settings
    for name in names:
        setattr(training, name, {**settings, "use_reentrant": False})


@contextlib.contextmanager
def missing_packages_named() -> Iterator[None]:
    """Flags of the library may ask for packages that only it knows of; say which, as of any other flag that cannot be.

    Raises:
        ValueError: the library refused for the want of a package.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(f"a flag needs a package that is not installed here: {error}") from error
