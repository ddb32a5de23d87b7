"""Flags that were given and would change nothing, because another flag leaves out what they are about."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple

from monkey.training.part_arguments import GROUPS

if TYPE_CHECKING:
    from monkey.training.arguments import Flags


class _Idle(NamedTuple):
    names: tuple[str, ...]
    matters: Callable[[Flags], bool]
    instead: str
    deciding: tuple[str, ...]
    """Flags that say whether these matter."""


_RECIPE = ("recipe", "fix_vit", "use_lora", "q_lora", "published")


def _of_group(group: str, *parts: str) -> _Idle:
    return _Idle(
        (f"{group}_learning_rate", f"{group}_weight_decay"),
        lambda flags: bool(flags.recipe.trains & set(parts)),
        "the recipe freezes that part: leave it out, or choose another --recipe",
        _RECIPE,
    )


def _trainer_makes_the_optimizer(flags: Flags) -> bool:
    """Whether rates and decays by part reach the optimiser: a DeepSpeed config may name one of its own."""
    return not flags.training.deepspeed or "optimizer" not in flags.training.hf_deepspeed_config.config


_TABLE = (
    _Idle(
        tuple(f"{group}_{quantity}" for group in GROUPS for quantity in ("learning_rate", "weight_decay")),
        _trainer_makes_the_optimizer,
        "the DeepSpeed config names an optimizer of its own, which has one rate and one decay for everything: take "
        "'optimizer' out of the config",
        ("deepspeed",),
    ),
    _Idle(
        ("lora_r", "lora_alpha"),
        lambda flags: flags.recipe.decoder_lora,
        "the recipe gives the decoder no adapters: add --recipe lora-llm, or leave it out",
        _RECIPE,
    ),
    _of_group("vision", "vision transformer"),
    _of_group("resampler", "resampler"),
    _of_group("decoder", "decoder", "decoder adapters"),
    _Idle(
        ("pack_tokens", "share_images", "look_ahead", "most_shared"),
        lambda flags: flags.data.packing,
        "it is about packed rows: add --packing True",
        ("packing",),
    ),
    _Idle(
        ("eval_limit", "eval_data_root"),
        lambda flags: bool(flags.run.eval_tasks),
        "it is about --eval_tasks, and there are none",
        ("eval_tasks",),
    ),
    _Idle(
        ("eval_steps", "metric_for_best_model", "greater_is_better"),
        lambda flags: flags.training.eval_strategy != "no",
        "nothing is evaluated on the way: add --eval_strategy steps",
        ("eval_strategy", "evaluation_strategy"),
    ),
    _Idle(
        ("save_steps",),
        lambda flags: flags.training.save_strategy == "steps",
        "checkpoints are not saved by steps: add --save_strategy steps",
        ("save_strategy",),
    ),
)


def refuse_idle(flags: Flags, on_command_line: Collection[str], in_file: Collection[str]) -> None:
    """ValueError for a flag with another value than its default that would have no effect.

    A line of a `--config` file may become idle when the command line overrides what decides over it.
    """
    for row in _TABLE:
        if row.matters(flags):
            continue
        counted = set(on_command_line)
        if not counted & set(row.deciding):
            counted |= set(in_file)
        for name in row.names:
            if name in counted and name in flags.given:
                raise ValueError(f"--{name} would have no effect: {row.instead}")
