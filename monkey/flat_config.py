"""The published flat `config.json`, of `echo840/Monkey`, `echo840/Monkey-Chat` and `Qwen/Qwen-VL`: read and written.

Both directions go by one table of fields.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from monkey.files import check_field
from monkey.grids import check_grid
from monkey.part_configs import PUBLISHED_WINDOW_SIZE, MonkeyVisionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from monkey.configuration import MonkeyConfig

logger = logging.getLogger(__name__)

_NEEDED = object()


class _Field(NamedTuple):
    """A field of the published flat config.json, those below `visual` with that in their names, and ours."""

    published: str
    ours: str
    kind: str
    assumed: Any = _NEEDED
    """What the published code takes where the field is not there."""


_FIELDS = (
    _Field("hidden_size", "text_config.hidden_size", "count"),
    _Field("num_hidden_layers", "text_config.num_hidden_layers", "count"),
    _Field("num_attention_heads", "text_config.num_attention_heads", "count"),
    _Field("intermediate_size", "text_config.intermediate_size", "count"),  # theirs counts both halves
    _Field("kv_channels", "text_config.head_dim", "count", None),
    _Field("layer_norm_epsilon", "text_config.rms_norm_eps", "number"),
    _Field("vocab_size", "text_config.vocab_size", "count"),
    _Field("seq_length", "text_config.seq_length", "count"),
    _Field("max_position_embeddings", "text_config.max_position_embeddings", "count", 8192),
    _Field("rotary_emb_base", "text_config.rope_theta", "number", 10000),
    _Field("attn_dropout_prob", "text_config.attention_dropout", "number", 0.0),
    _Field("initializer_range", "text_config.initializer_range", "number", 0.02),
    _Field("use_dynamic_ntk", "text_config.use_dynamic_ntk", "flag", True),
    _Field("use_logn_attn", "text_config.use_logn_attn", "flag", True),
    _Field("visual.width", "vision_config.hidden_size", "count"),
    _Field("visual.layers", "vision_config.num_hidden_layers", "count"),
    _Field("visual.heads", "vision_config.num_attention_heads", "count"),
    _Field("visual.mlp_ratio", "vision_config.mlp_ratio", "number"),
    _Field("visual.patch_size", "vision_config.patch_size", "count"),
    _Field("visual.image_start_id", "image_start_id", "count"),
    # The published code knows none of these: they are written where they differ from what it assumes.
    _Field("visual.window_size", "vision_config.window_size", "count", PUBLISHED_WINDOW_SIZE),
    _Field("visual.n_queries", "vision_config.num_queries", "count", 256),
    _Field("visual.num_positions", "vision_config.num_positions", "count", 256),
    _Field("visual.resampler_heads", "vision_config.resampler_heads", "count", None),
    _Field("visual.adapter_rank", "vision_config.adapter_rank", "rank", 16),
    _Field("visual.mlp_adapter_rank", "vision_config.mlp_adapter_rank", "rank", 32),
)

# Needed too, and turned into the grid, or held against another field.
_OF_THE_GRID = ("visual.image_size", "visual.output_dim")

# What the published code's own files say beside them, and nothing here reads.
_CONSTANT = {
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_monkey.MonkeyLMHeadModel",
    },
    "emb_dropout_prob": 0.0,
    "no_bias": True,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "transformers_version": "4.32.0",
    "use_cache": True,
    "use_flash_attn": False,
}
_KNOWN = {
    *(field.published for field in _FIELDS),
    *_OF_THE_GRID,
    *_CONSTANT,
    *("visual", "visual.lora_repeat_num", "visual.global_view", "visual.window_adapters"),
    *("visual.grids", "visual.fit"),
    *("_commit_hash", "_name_or_path", "architectures", "model_type", "quantization_config", "torch_dtype", "dtype"),
    *("bf16", "fp16", "fp32", "onnx_safe", "softmax_in_fp32", "tokenizer_class", "tokenizer_type"),
    *("use_cache_kernel", "use_cache_quantization"),
}


def read_published(content: dict[str, Any]) -> dict[str, Any]:
    """Return our nested dict for the published flat one."""
    visual = content["visual"]
    if not isinstance(visual, dict):
        raise ValueError(f"config.json has visual={str(visual)[:60]!r}, but it must hold the vision side's sizes")
    flat = content | {f"visual.{key}": value for key, value in visual.items()}
    _check_published(flat)
    nested: dict[str, Any] = {"vision_config": {}, "text_config": {}}
    for field in _FIELDS:
        owner, _, name = field.ours.rpartition(".")
        (nested[owner] if owner else nested)[name] = flat.get(field.published, field.assumed)
    text = nested["text_config"]
    text["intermediate_size"] //= 2
    text["num_key_value_heads"] = text["num_attention_heads"]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": float(text.pop("rope_theta"))}
    grid, adapters = _read_grid(flat, nested["vision_config"]["window_size"])
    nested["grid"] = grid
    # Qwen-VL has one view and no adapters: the whole image, stretched to a window.
    nested["global_view"] = flat.get("visual.global_view", adapters is not None)
    nested["window_adapters"] = flat.get("visual.window_adapters", "none" if adapters is None else "per_window")
    nested |= {key: flat[f"visual.{key}"] for key in ("grids", "fit") if f"visual.{key}" in flat}
    kept = ("architectures", "quantization_config", "_name_or_path")
    return nested | {key: content[key] for key in kept if key in content}


def _check_published(flat: dict[str, Any]) -> None:
    """Raise ValueError for a field that is missing, of another type, or that the published code never had."""
    needed = [field.published for field in _FIELDS if field.assumed is _NEEDED]
    missing = sorted({*needed, *_OF_THE_GRID} - flat.keys())
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    for field in _FIELDS:
        if field.published in flat and (flat[field.published] is not None or field.assumed is not None):
            check_field(f"config.json's {field.published}", flat[field.published], field.kind)
    unread = sorted(flat.keys() - _KNOWN)
    if unread:
        logger.warning("config.json holds fields that nothing reads: %s; check their spelling", ", ".join(unread))
    if not flat.get("no_bias", True):
        raise ValueError(
            "no_bias=false in config.json: decoder linears with biases were never published and do not open"
        )
    if flat["visual.output_dim"] != flat["hidden_size"]:
        raise ValueError(
            f"config.json has visual.output_dim={flat['visual.output_dim']} and hidden_size={flat['hidden_size']}; "
            "the resampler must end at the decoder's width"
        )


def _read_grid(flat: dict[str, Any], window_size: int) -> tuple[tuple[int, int], int | None]:
    """Return the grid of a published `image_size`, a number or [height, width], and how many adapter sets there are."""
    image_size, adapters = flat["visual.image_size"], flat.get("visual.lora_repeat_num")
    sides = [image_size] * 2 if isinstance(image_size, int) else image_size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"visual.image_size={image_size!r} is neither a number of pixels nor [height, width]")
    if any(side % window_size for side in sides):
        nearest = [max(1, round(side / window_size)) * window_size for side in sides]
        raise ValueError(
            f"image size {sides[0]}×{sides[1]} is not a whole number of {window_size}-pixel windows; "
            f"the nearest that fits is {nearest[0]}×{nearest[1]}"
        )
    rows, columns = check_grid([side // window_size for side in sides])
    if adapters is not None and adapters not in (1, rows * columns):
        raise ValueError(
            f"config.json has lora_repeat_num={adapters}, but image_size={image_size} holds {rows * columns} windows "
            f"of {window_size} pixels; set one to match the other"
        )
    return (rows, columns), adapters


def published_config(config: MonkeyConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """Return the flat `config.json` that the published code reads, for weights of `dtype`; it reads back as it was.

    Raises:
        ValueError: an encoder or a decoder that the published code does not have.
    """
    foreign = "" if isinstance(config.vision_config, MonkeyVisionConfig) else config.vision_config.architecture
    if not config.is_published_decoder:
        foreign = f"a decoder of the family {config.text_config.model_type}"
    if foreign:
        raise ValueError(
            f"the published config.json has no place for {foreign}: keep the checkpoint in this project's own layout"
        )
    has_adapters = bool(config.num_adapters)
    height, width = config.canvas_size
    visual = {
        "image_size": height if height == width else [height, width],
        "output_dim": config.text_config.hidden_size,
    }
    flat = _CONSTANT | {
        "architectures": ["MonkeyLMHeadModel" if has_adapters else "QWenLMHeadModel"],
        "model_type": "monkey" if has_adapters else "qwen",
        "torch_dtype": dtype,
        "visual": visual,
        **{short: dtype == name for short, name in (("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32"))},
    }
    for field in _FIELDS:
        owner, _, name = field.ours.rpartition(".")
        value = _value_of(getattr(config, owner) if owner else config, name)
        section, _, key = field.published.rpartition(".")
        if not section:
            flat[key] = value
        elif value != field.assumed:
            visual[key] = value
    flat["intermediate_size"] *= 2
    if has_adapters:
        visual["lora_repeat_num"] = config.num_adapters
    if config.global_view != has_adapters:
        visual["global_view"] = config.global_view
    if config.window_adapters != ("per_window" if has_adapters else "none"):
        visual["window_adapters"] = config.window_adapters
    if config.is_ragged:
        visual["grids"] = config.grids
    if config.fit != "stretch":
        visual["fit"] = config.fit
    return flat


def _value_of(config: PreTrainedConfig, name: str) -> Any:
    return int(config.rope_parameters["rope_theta"]) if name == "rope_theta" else getattr(config, name)
