"""The flat `config.json` of the published checkpoints, read into our fields and written from them."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monkey.configuration import MonkeyConfig

logger = logging.getLogger(__name__)

PUBLISHED_WINDOW_SIZE = 448
"""Pixels of a window side in every published checkpoint, whose flat config does not name it."""

# Fields of the published flat config.json: those that must be there, and those that are known.
_FLAT_NEEDED = frozenset(
    (
        "hidden_size",
        "intermediate_size",
        "layer_norm_epsilon",
        "num_attention_heads",
        "num_hidden_layers",
        "seq_length",
        "vocab_size",
    )
)
_FLAT_READ = _FLAT_NEEDED | frozenset(
    (
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "auto_map",
        "model_type",
        "quantization_config",
        "torch_dtype",
        "attn_dropout_prob",
        "bf16",
        "dtype",
        "emb_dropout_prob",
        "fp16",
        "fp32",
        "initializer_range",
        "kv_channels",
        "max_position_embeddings",
        "no_bias",
        "onnx_safe",
        "rotary_emb_base",
        "rotary_pct",
        "scale_attn_weights",
        "softmax_in_fp32",
        "tie_word_embeddings",
        "tokenizer_class",
        "tokenizer_type",
        "transformers_version",
        "use_cache",
        "use_cache_kernel",
        "use_cache_quantization",
        "use_dynamic_ntk",
        "use_flash_attn",
        "use_logn_attn",
        "visual",
    )
)
_VISUAL_NEEDED = frozenset(
    (
        "heads",
        "image_size",
        "image_start_id",
        "layers",
        "mlp_ratio",
        "output_dim",
        "patch_size",
        "width",
    )
)
_VISUAL_READ = _VISUAL_NEEDED | frozenset(
    (
        "adapter_rank",
        "global_view",
        "lora_repeat_num",
        "mlp_adapter_rank",
        "n_queries",
        "num_positions",
        "resampler_heads",
        "window_adapters",
        "window_size",
    )
)


_WHOLE_NUMBERS = frozenset(
    (
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "seq_length", "vocab_size"),
        *("kv_channels", "max_position_embeddings", "heads", "image_start_id", "layers", "output_dim", "patch_size"),
        *("width", "n_queries", "num_positions", "window_size"),
    )
)
_NUMBERS = frozenset(("attn_dropout_prob", "initializer_range", "layer_norm_epsilon", "mlp_ratio", "rotary_emb_base"))

MAX_COUNT = 2**31 - 1
"""Of anything that a config counts; sizes beyond overflow where tensors are made of them."""

_KINDS = {
    "count": (lambda value: _is_whole(value) and value > 0, "a whole number from 1 to 2,147,483,647 is"),
    "rank": (lambda value: _is_whole(value), "a whole number from 0 to 2,147,483,647 is"),
    "number": (
        lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf,
        "a number from 0 on is",
    ),
    "flag": (lambda value: isinstance(value, bool), "true or false is"),
    "text": (lambda value: isinstance(value, str), "a text is"),
}


def check_field(name: str, value: Any, kind: str) -> None:
    """Raise ValueError unless a config's field is a count, rank, number, flag or text, as `kind` says."""
    fits, needed = _KINDS[kind]
    if not fits(value):
        shown = repr(value)
        raise ValueError(f"{name} is {shown[:60]}{'…' * (len(shown) > 60)}, and {needed} needed")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def read_published_config(flat: dict[str, Any]) -> dict[str, Any]:
    """Our nested dict for the published flat one."""
    visual = flat["visual"]
    if not isinstance(visual, dict):
        raise ValueError(f"config.json has visual={str(visual)[:60]!r}, but it must hold the vision side's sizes")
    for name, fields, needed in (("", flat, _FLAT_NEEDED), ("visual.", visual, _VISUAL_NEEDED)):
        missing = sorted(needed - fields.keys())
        if missing:
            raise ValueError(f"config.json lacks {', '.join(name + key for key in missing)}")
        for keys, kind in ((_WHOLE_NUMBERS, "count"), (_NUMBERS, "number")):
            for key in sorted(keys & fields.keys()):
                check_field(f"config.json's {name}{key}", fields[key], kind)
    unread = sorted(flat.keys() - _FLAT_READ) + sorted(f"visual.{key}" for key in visual.keys() - _VISUAL_READ)
    if unread:
        logger.warning("config.json holds fields that nothing reads: %s; check their spelling", ", ".join(unread))
    if not flat.get("no_bias", True):
        raise ValueError(
            "no_bias=false in config.json: decoder linears with biases were never published and do not open"
        )
    window_size = visual.get("window_size", PUBLISHED_WINDOW_SIZE)
    grid = grid_of_image_size(visual["image_size"], window_size)
    adapters = visual.get("lora_repeat_num")
    if adapters is not None and adapters not in (1, grid[0] * grid[1]):
        raise ValueError(
            f"config.json has lora_repeat_num={adapters}, but image_size={visual['image_size']} holds "
            f"{grid[0] * grid[1]} windows of {window_size} pixels; set one to match the other"
        )
    if visual["output_dim"] != flat["hidden_size"]:
        raise ValueError(
            f"config.json has visual.output_dim={visual['output_dim']} and hidden_size={flat['hidden_size']}; "
            "the resampler must end at the decoder's width"
        )
    num_heads = flat["num_attention_heads"]
    nested = {
        "grid": grid,
        # Qwen-VL has one view and no adapters: the whole picture, stretched to a window.
        "global_view": visual.get("global_view", adapters is not None),
        "window_adapters": visual.get("window_adapters", "none" if adapters is None else "per_window"),
        "image_start_id": visual["image_start_id"],
        "vision_config": {
            "window_size": window_size,
            "patch_size": visual["patch_size"],
            "hidden_size": visual["width"],
            "num_hidden_layers": visual["layers"],
            "num_attention_heads": visual["heads"],
            "mlp_ratio": visual["mlp_ratio"],
            "num_queries": visual.get("n_queries", 256),
            "num_positions": visual.get("num_positions", 256),
            "resampler_heads": visual.get("resampler_heads"),
            "adapter_rank": visual.get("adapter_rank", 16),
            "mlp_adapter_rank": visual.get("mlp_adapter_rank", 32),
        },
        "text_config": {
            "vocab_size": flat["vocab_size"],
            "hidden_size": flat["hidden_size"],
            "intermediate_size": flat["intermediate_size"] // 2,
            "num_hidden_layers": flat["num_hidden_layers"],
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_heads,
            "head_dim": flat.get("kv_channels", flat["hidden_size"] // num_heads),
            "max_position_embeddings": flat.get("max_position_embeddings", 8192),
            "rms_norm_eps": flat["layer_norm_epsilon"],
            "rope_parameters": {"rope_type": "default", "rope_theta": float(flat.get("rotary_emb_base", 10000))},
            "attention_dropout": flat.get("attn_dropout_prob", 0.0),
            "initializer_range": flat.get("initializer_range", 0.02),
            "seq_length": flat["seq_length"],
            "use_dynamic_ntk": flat.get("use_dynamic_ntk", True),
            "use_logn_attn": flat.get("use_logn_attn", True),
        },
    }
    for key in ("architectures", "quantization_config", "_name_or_path"):
        if key in flat:
            nested[key] = flat[key]
    return nested


def published_config(config: MonkeyConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """The flat `config.json` that the published code reads, for weights of `dtype`.

    Fields that the published code does not know (`visual.window_size` and the like) are written only when they
    differ from what it assumes, so that the file reads back to an equal configuration.
    """
    vision, text = config.vision_config, config.text_config
    height, width = config.canvas_size
    visual: dict[str, Any] = {
        "heads": vision.num_attention_heads,
        "image_size": height if height == width else [height, width],
        "image_start_id": config.image_start_id,
        "layers": vision.num_hidden_layers,
        "mlp_ratio": vision.mlp_ratio,
        "output_dim": text.hidden_size,
        "patch_size": vision.patch_size,
        "width": vision.hidden_size,
    }
    if config.num_adapters:
        visual["lora_repeat_num"] = config.num_adapters
    unpublished = {
        "window_size": (vision.window_size, PUBLISHED_WINDOW_SIZE),
        "n_queries": (vision.num_queries, 256),
        "num_positions": (vision.num_positions, 256),
        "resampler_heads": (vision.resampler_heads, None),
        "adapter_rank": (vision.adapter_rank, 16),
        "mlp_adapter_rank": (vision.mlp_adapter_rank, 32),
        "global_view": (config.global_view, bool(config.num_adapters)),
        "window_adapters": (config.window_adapters, "per_window" if config.num_adapters else "none"),
    }
    visual.update({key: value for key, (value, assumed) in unpublished.items() if value != assumed})
    return {
        "architectures": ["MonkeyLMHeadModel" if config.num_adapters else "QWenLMHeadModel"],
        "attn_dropout_prob": text.attention_dropout,
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_monkey.MonkeyLMHeadModel",
        },
        "bf16": dtype == "bfloat16",
        "emb_dropout_prob": 0.0,
        "fp16": dtype == "float16",
        "fp32": dtype == "float32",
        "hidden_size": text.hidden_size,
        "initializer_range": text.initializer_range,
        "intermediate_size": 2 * text.intermediate_size,
        "kv_channels": text.head_dim,
        "layer_norm_epsilon": text.rms_norm_eps,
        "max_position_embeddings": text.max_position_embeddings,
        "model_type": "monkey" if config.num_adapters else "qwen",
        "no_bias": True,
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "rotary_emb_base": int(text.rope_parameters["rope_theta"]),
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": text.seq_length,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": "4.32.0",
        "use_cache": True,
        "use_dynamic_ntk": text.use_dynamic_ntk,
        "use_flash_attn": False,
        "use_logn_attn": text.use_logn_attn,
        "visual": visual,
        "vocab_size": text.vocab_size,
    }


MAX_WINDOWS = 1024
"""Of a grid: more is a slip of the pen, and the canvas would fill any memory."""


def check_grid(grid: Any) -> tuple[int, int]:
    """Rows and columns as a tuple of two positive integers, or ValueError."""
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid):
        raise ValueError(f"grid={grid!r} is not (rows, columns), two positive whole numbers such as (2, 2) or (2, 3)")
    if grid[0] * grid[1] > MAX_WINDOWS:
        raise ValueError(f"grid={grid!r} has more than {MAX_WINDOWS:,} windows; published checkpoints have 4 or 6")
    return int(grid[0]), int(grid[1])


def grid_of_image_size(image_size: Any, window_size: int) -> tuple[int, int]:
    """Grid of a published `image_size`, a number or [height, width], or ValueError when windows do not fill it."""
    sides = [image_size] * 2 if isinstance(image_size, int) else image_size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"visual.image_size={image_size!r} is neither a number of pixels nor [height, width]")
    height, width = sides
    if height % window_size or width % window_size:
        raise ValueError(
            f"image size {height}×{width} is not a whole number of {window_size}-pixel windows; "
            f"the nearest that fits is {max(1, round(height / window_size)) * window_size}×"
            f"{max(1, round(width / window_size)) * window_size}"
        )
    return check_grid((height // window_size, width // window_size))
