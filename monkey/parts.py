"""The parts of the model: sets of modules, named by their exact paths. Every parameter belongs to exactly one part."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

LORA_LINEARS = (
    "model.language_model.layers.*.self_attn.q_proj",
    "model.language_model.layers.*.self_attn.k_proj",
    "model.language_model.layers.*.self_attn.v_proj",
    "model.language_model.layers.*.self_attn.o_proj",
    "model.language_model.layers.*.mlp.gate_proj",
    "model.language_model.layers.*.mlp.up_proj",
)
"""Decoder linears that get low-rank adapters: the published c_attn, attn.c_proj, w2 and w1. The MLP's down_proj
(published mlp.c_proj) has none."""

PARTS: dict[str, tuple[str, ...]] = {
    "vision transformer": ("model.visual",),
    "window adapters": (
        "model.visual.layers.*.attention.in_adapter",
        "model.visual.layers.*.attention.out_adapter",
        "model.visual.layers.*.mlp_adapter",
        *(f"model.visual.encoder.blocks.*.{part}.*.window_adapter" for part in ("attn", "mlp")),  # of timm's encoders
    ),
    "resampler": ("model.visual.resampler",),
    "position table": ("model.visual.resampler.pos_embed",),
    "vision projection": ("model.visual.post_layernorm", "model.visual.projection"),
    "decoder": ("model.language_model", "lm_head"),
    "decoder adapters": (
        # PEFT's, put on by --use_lora ...
        *(f"{linear}.{matrix}" for linear in LORA_LINEARS for matrix in ("lora_A", "lora_B")),
        # ... and those that the published 24 GB variant was built with.
        "model.language_model.layers.*.self_attn.qkv_adapter",
        "model.language_model.layers.*.self_attn.o_adapter",
        "model.language_model.layers.*.mlp.gate_adapter",
        "model.language_model.layers.*.mlp.up_adapter",
    ),
}
"""Part -> paths of its modules; `*` stands for any one step, such as a layer's number. A parameter goes to the part
with the longest path to it, so that "model.visual" is what the parts below it leave over."""


def part_of(name: str) -> str:
    """Return the part of the parameter `name` (as in `named_parameters`); ValueError for one that has none."""
    steps = name.split(".")

    def length(path: str) -> int:
        wanted = path.split(".")
        same = all(want in ("*", step) for want, step in zip(wanted, steps, strict=False))
        return len(wanted) if same and len(wanted) <= len(steps) else 0

    longest, part = max((length(path), part) for part, paths in PARTS.items() for path in paths)
    if longest == 0:
        raise ValueError(f"parameter {name} lies in no part of monkey.parts.PARTS: add its module there")
    return part


def base_model(model: nn.Module) -> nn.Module:
    """Return the Monkey model itself, below PEFT's wrapper where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
