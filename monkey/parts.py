"""The parts of the model: sets of modules, named by their exact paths. Every parameter belongs to exactly one part."""

from __future__ import annotations

import re
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
"""Linears of Qwen-7B that get low-rank adapters: the published c_attn, attn.c_proj, w2 and w1. The MLP's down_proj
(published mlp.c_proj) has none."""

_DECODER = "model.language_model."

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
        # Those that the published 24 GB variant was built with; `part_of` tells PEFT's by their names.
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
    if name.startswith(_DECODER) and not {"lora_A", "lora_B"}.isdisjoint(steps):
        return "decoder adapters"

    def length(path: str) -> int:
        wanted = path.split(".")
        same = all(want in ("*", step) for want, step in zip(wanted, steps, strict=False))
        return len(wanted) if same and len(wanted) <= len(steps) else 0

    longest, part = max((length(path), part) for part, paths in PARTS.items() for path in paths)
    if longest == 0:
        raise ValueError(f"parameter {name} lies in no part of monkey.parts.PARTS: add its module there")
    return part


def lora_linears(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the decoder linears that --use_lora adapts; `*` stands for a number.

    They are those that the configuration names (`lora_targets`), which --lora_targets sets; else of Qwen-7B the
    published ones, of another decoder those that PEFT takes for its family, or all of its layers where PEFT knows none.

    Raises:
        ValueError: `lora_targets` names what is no linear of this decoder.
    """
    from torch import nn

    config, wanted = model.config, model.config.lora_targets
    if wanted is None and config.is_published_decoder:
        return LORA_LINEARS
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    paths = dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in linears if name.startswith(_DECODER))
    known = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    if wanted is None:
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(config.text_config.model_type)
        wanted = [name for name in default if name in known] if isinstance(default, list) else list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"lora_targets names {unknown[0]!r}, which is no linear of the {config.text_config.model_type} decoder: "
            f"those are {', '.join(known)}"
        )
    return tuple(path for path in paths if path.rpartition(".")[2] in wanted)


def pattern_of(paths: tuple[str, ...]) -> str:
    """Return a regular expression of whole module paths in which `*` stands for a number."""
    escaped = (re.escape(path).replace(r"\*", r"\d+") for path in paths)
    return f"(?:{'|'.join(escaped)})"


def base_model(model: nn.Module) -> nn.Module:
    """Return the Monkey model itself, below PEFT's wrapper where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
