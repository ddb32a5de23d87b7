"""Configuration of Monkey: a grid of windows over a shared vision transformer, a resampler and a Qwen decoder.

Every count that follows from the grid (windows, views, image tokens, canvas) is a property here and nowhere else.
The published checkpoints (`echo840/Monkey`, `echo840/Monkey-Chat`, `Qwen/Qwen-VL`) carry a flat `config.json`;
`MonkeyConfig.from_dict` reads it as it is, and `monkey.published_config` writes it.

Method: Monkey, arXiv 2311.06607.
"""

from __future__ import annotations

import difflib
import math
import os
from typing import Any

from transformers import PreTrainedConfig, Qwen2Config
from transformers.generation import GenerationConfig

from monkey.location import location_of, read_json, refused_in_a_sentence, required_file
from monkey.published_config import PUBLISHED_WINDOW_SIZE, check_field, check_grid, read_published_config

SPECIALS_BEFORE_IMAGE_START = 214
"""Special tokens from `<|endoftext|>` up to `<img>`: 3 for text and chat, 205 spare, 6 for references and boxes."""

# What transformers itself writes into, or takes out of, a config beside a class's own fields.
_LIBRARY_KEYS = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "distributed_config",
        "experts_implementation",
        "fusion_config",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "quantization_config",
        "rope_scaling",
        "rope_theta",
        "tie_last_hidden_states",
        "torch_dtype",
        "transformers_weights",
    }
)


def _refuse_unknown_keys(config: PreTrainedConfig, keys: Any) -> None:
    """Raise ValueError for a key that neither the class nor the library knows, offering the nearest name."""
    known = set(type(config).__dataclass_fields__)
    library = _LIBRARY_KEYS | set(GenerationConfig._get_default_generation_params())
    for key in keys:
        if key in library or key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1)
        hint = (
            f"; did you mean {near[0]!r}?"
            if near
            else f"; its fields are {', '.join(sorted(type(config).__annotations__))}"
        )
        raise ValueError(f"{type(config).__name__} has no field {key!r}{hint}")


# Annotation of a field -> what its value must be; other annotations have checks of their own.
_KIND_OF = {"int": "count", "float": "number", "bool": "flag", "str": "text"}


def _check_fields(config: PreTrainedConfig) -> None:
    """Raise ValueError for a value of another type, or out of any range, in the fields that a class declares."""
    for name, annotation in type(config).__annotations__.items():
        value = getattr(config, name)
        kind = "rank" if name.endswith("adapter_rank") else _KIND_OF.get(annotation.removesuffix(" | None"))
        if kind is not None and not (value is None and annotation.endswith("None")):
            check_field(f"{config.base_config_key or 'the model'}'s {name}", value, kind)


def _square_side(count: int, field: str) -> int:
    """Side of a square of `count` cells, or ValueError naming the field."""
    side = math.isqrt(count)
    if side * side != count or count < 1:
        raise ValueError(f"{field}={count} is not a square number, so its cells cannot be laid out as rows and columns")
    return side


class MonkeyVisionConfig(PreTrainedConfig):
    """The vision transformer that all views share, its window adapters, and the resampler.

    Defaults are the published size (OpenCLIP ViT-bigG, 1,842.8 M parameters).
    """

    model_type = "monkey_vision"
    base_config_key = "vision_config"

    window_size: int = PUBLISHED_WINDOW_SIZE
    """Pixels of a view's side; the resolution the transformer was pretrained at."""
    patch_size: int = 14
    num_channels: int = 3
    hidden_size: int = 1664
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    mlp_ratio: float = 4.9231
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    num_positions: int = 256
    """Learned position embeddings, a square grid, grown bicubically to the patches of a window."""
    num_queries: int = 256
    """Queries of the resampler, a square grid: tokens a view becomes."""
    resampler_heads: int | None = None
    """Heads of the resampler's cross-attention; None means its width // 128, as published."""
    adapter_rank: int = 16
    """Rank of a window's adapters on the attention's two projections."""
    mlp_adapter_rank: int = 32
    """Rank of a window's adapter beside the MLP."""
    adapter_dropout: float = 0.05
    resampler_dropout: float = 0.0
    """Dropout of the resampler's attention weights in training; the published one has none."""

    def __post_init__(self, **kwargs):
        _refuse_unknown_keys(self, kwargs)
        _check_fields(self)
        super().__post_init__(**kwargs)
        if self.window_size % self.patch_size:
            raise ValueError(
                f"window_size={self.window_size} is not a multiple of patch_size={self.patch_size}; "
                f"take {self.window_size // self.patch_size * self.patch_size or self.patch_size}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision hidden_size={self.hidden_size} cannot be split over num_attention_heads="
                f"{self.num_attention_heads}"
            )
        _square_side(self.num_positions, "num_positions")
        _square_side(self.num_queries, "num_queries")

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP: 8192 at the published size."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def patches_per_side(self) -> int:
        """Patches along a window's side: 32 at the published size."""
        return self.window_size // self.patch_size


class MonkeyTextConfig(Qwen2Config):
    """Qwen-7B: transformers' Qwen2 with dynamic NTK and log-n scaling past `seq_length`. Defaults: published size."""

    model_type = "monkey_text"
    base_config_key = "text_config"

    hidden_size: int = 4096
    intermediate_size: int = 11008
    """Width of each of the MLP's two halves (the published field counts both: 22016)."""
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int = 151936
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    seq_length: int = 2048
    """Length that the decoder was pretrained at; NTK and log-n scaling begin past it, in evaluation only."""
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    adapter_rank: int = 0
    """Rank of the decoder's built-in adapters (the published 24 GB variant has 32); 0 for none."""
    adapter_dropout: float = 0.05

    def __post_init__(self, **kwargs):
        _refuse_unknown_keys(self, kwargs)
        _check_fields(self)
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": kwargs.pop("rope_theta", 10000.0)}
        check_field("text_config's rope_theta", self.rope_parameters.get("rope_theta"), "number")
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"text hidden_size={self.hidden_size} cannot be split over num_attention_heads="
                    f"{self.num_attention_heads}; set head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} and num_attention_heads={self.num_attention_heads} "
                "differ, but the published layout stacks queries, keys and values of one size"
            )


class MonkeyConfig(PreTrainedConfig):
    """The whole model. `MonkeyConfig()` is the published full size at 896×896, 9,708.1 M parameters."""

    model_type = "monkey"
    sub_configs_defaults = {"vision_config": MonkeyVisionConfig, "text_config": MonkeyTextConfig}  # noqa: RUF012

    grid: tuple[int, int] | list[int] = (2, 2)
    """Rows and columns of windows. (2, 2) is 896×896, (2, 3) is 896×1344 (height × width)."""
    global_view: bool = True
    """Whether the whole picture, shrunk to one window, is added as the last view."""
    window_adapters: str = "per_window"
    """`per_window` (published), `shared` (one set for all windows) or `none` (plain Qwen-VL)."""
    image_start_id: int = 151857
    """Id of `<img>`; `</img>` and `<imgpad>` follow it."""
    vision_config: MonkeyVisionConfig | dict | None = None
    text_config: MonkeyTextConfig | dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        _refuse_unknown_keys(self, kwargs)
        _check_fields(self)
        super().__post_init__(**kwargs)
        self.grid = check_grid(self.grid)
        if self.tie_word_embeddings or self.text_config.tie_word_embeddings:
            raise ValueError("tie_word_embeddings=True: the published layout has a head of its own; leave it False")
        if self.window_adapters not in ("per_window", "shared", "none"):
            raise ValueError(f"window_adapters={self.window_adapters!r} is not one of 'per_window', 'shared', 'none'")

    @property
    def window_size(self) -> int:
        """Pixels of a window's side."""
        return self.vision_config.window_size

    @property
    def num_windows(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def num_views(self) -> int:
        """Windows, row by row, then the global view."""
        return self.num_windows + int(self.global_view)

    @property
    def num_adapters(self) -> int:
        """Adapter sets in each vision layer."""
        return {"per_window": self.num_windows, "shared": 1, "none": 0}[self.window_adapters]

    @property
    def image_tokens(self) -> int:
        """Decoder tokens of one image."""
        return self.num_views * self.vision_config.num_queries

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width, in pixels, that a picture is resized to."""
        rows, columns = self.grid
        return rows * self.window_size, columns * self.window_size

    @property
    def resampler_heads(self) -> int:
        return self.vision_config.resampler_heads or max(1, self.text_config.hidden_size // 128)

    @property
    def image_end_id(self) -> int:
        return self.image_start_id + 1

    @property
    def image_pad_id(self) -> int:
        return self.image_start_id + 2

    @property
    def eod_id(self) -> int:
        """Id of `<|endoftext|>`, which also pads and ends a sequence."""
        return self.image_start_id - SPECIALS_BEFORE_IMAGE_START

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """The library's, with one sentence for a folder or name that holds no readable config.json."""
        path = pretrained_model_name_or_path
        if not os.path.isfile(path):
            path = required_file(path, "config.json", "the model's sizes", **location_of(kwargs))
        read_json(path)  # refuses what is no object, is endless or too deep, in a sentence
        with refused_in_a_sentence(path):
            config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return {"_name_or_path": str(pretrained_model_name_or_path), **config_dict}, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Build from our nested dict or from the published flat one; `grid=` moves the model to another grid."""
        overrides = {key: kwargs.pop(key) for key in ("grid", "global_view", "window_adapters") if key in kwargs}
        overrides = {key: value for key, value in overrides.items() if value is not None}
        nested = dict(config_dict)
        if "visual" in nested:
            nested = read_published_config(nested)
            if nested["window_adapters"] == "none" and "grid" in overrides:
                # A plain Qwen-VL opened on a grid becomes a Monkey with adapters that still do nothing.
                nested.update(window_adapters="per_window", global_view=True)
        elif nested.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"{nested.get('_name_or_path') or 'this checkpoint'} is a {nested['model_type']!r} model, not Monkey "
                "or Qwen-VL; open it with transformers' AutoModelForImageTextToText"
            )
        nested.update(overrides)
        with refused_in_a_sentence(f"{nested.get('_name_or_path') or 'this checkpoint'}: config.json"):
            return super().from_dict(nested, **kwargs)


class QwenVLConfig(MonkeyConfig):
    """The name under which AutoConfig finds `Qwen/Qwen-VL`, whose `model_type` is "qwen"; it reads a MonkeyConfig."""

    model_type = "qwen"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        return MonkeyConfig.from_dict(config_dict, **kwargs)
