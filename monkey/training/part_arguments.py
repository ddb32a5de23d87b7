"""Flags of `finetune_multitask.py` that say what trains and how each part of the model is treated."""

from __future__ import annotations

from dataclasses import dataclass

from monkey.training.flag import flag
from monkey.training.recipes import RECIPES

# What the flags call a group -> its parts.
GROUPS: dict[str, tuple[str, ...]] = {
    "vision": ("vision transformer", "vision projection"),
    "vision_adapter": ("window adapters",),
    "resampler": ("resampler", "position table"),
    "decoder": ("decoder", "decoder adapters"),
}

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

    def __post_init__(self) -> None:
        for group in GROUPS:
            for quantity in ("learning_rate", "weight_decay"):
                value = getattr(self, f"{group}_{quantity}")
                if value is not None and not 0 <= value < float("inf"):
                    raise ValueError(f"--{group}_{quantity} {value:g} does not work: give 0 or more")
        for name in ("vision_adapter_dropout", "resampler_dropout", "decoder_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"--{name} {value:g} is not a part: give 0 up to below 1")

    def of_part(self, part: str, quantity: str, default: float) -> float:
        """`learning_rate` or `weight_decay` of a part."""
        group = next(name for name, parts in GROUPS.items() if part in parts)
        value = getattr(self, f"{group}_{quantity}")
        return default if value is None else value
