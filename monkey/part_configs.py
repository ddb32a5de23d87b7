"""Configurations of the model's parts: the encoder with its adapters and resampler, and the decoder.

The encoder is the published one (`MonkeyVisionConfig`) or one of timm (`TimmVisionConfig`), the decoder Qwen-7B
(`MonkeyTextConfig`) or any of transformers, with its library's own configuration.

Method: Monkey, arXiv 2311.06607.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Sequence
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, Qwen2Config
from transformers.generation import GenerationConfig

from monkey.files import check_field
from monkey.timm_encoders import measure, plain_name

PUBLISHED_WINDOW_SIZE = 448
"""Pixels of a window side in every published checkpoint, whose flat config does not name it."""

# What transformers itself writes into, or takes out of, a config beside a class's own fields.
_LIBRARY_KEYS = {
    *("_commit_hash", "_name_or_path", "attn_implementation", "auto_map", "distributed_config", "model_type"),
    *("experts_implementation", "fusion_config", "name_or_path", "num_labels", "output_attentions", "rope_theta"),
    *("per_layer_config", "quantization_config", "rope_scaling", "tie_last_hidden_states", "torch_dtype"),
    "transformers_weights",
}

LIKE_A_SLIP = 0.85
"""Likeness, as of `difflib`, from which on an unknown field of a decoder's counts as one that is spelled wrongly."""

# Annotation of a field -> what its value must be; other annotations have checks of their own.
_KIND_OF = {"int": "count", "float": "number", "bool": "flag", "str": "text"}


def check_fields(config: PreTrainedConfig, others: Any) -> None:
    """Raise ValueError for a declared field of another type or range, and for other keys that nobody knows."""
    declared = {
        name: kind for base in type(config).__mro__ if _is_ours(base) for name, kind in base.__annotations__.items()
    }
    for name, annotation in declared.items():
        value = getattr(config, name)
        kind = "rank" if name.endswith("adapter_rank") else _KIND_OF.get(annotation.removesuffix(" | None"))
        if kind is not None and not (value is None and annotation.endswith("None")):
            check_field(f"{config.base_config_key or 'the model'}'s {name}", value, kind)
    known = set(type(config).__dataclass_fields__)
    for key in sorted(set(others) - known - _LIBRARY_KEYS - set(GenerationConfig._get_default_generation_params())):
        near = difflib.get_close_matches(key, known, n=1)
        fields = ", ".join(sorted(declared))
        hint = f"did you mean {near[0]!r}?" if near else f"its fields are {fields}"
        raise ValueError(f"{type(config).__name__} has no field {key!r}; {hint}")


def _is_ours(kind: type) -> bool:
    """Whether a configuration is of this project, rather than of transformers."""
    return kind.__module__.startswith(f"{__package__}.")


def _square_side(count: int, field: str) -> int:
    """Side of a square of `count` cells, or ValueError naming the field."""
    side = math.isqrt(count)
    if side * side != count or count < 1:
        raise ValueError(f"{field}={count} is not a square number, so its cells cannot be laid out as rows and columns")
    return side


class VisionConfig(PreTrainedConfig):
    """What every encoder has beside its own sizes: window adapters and the resampler."""

    base_config_key = "vision_config"

    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    resampler_heads: int | None = None
    """Heads of the resampler's cross-attention; None means its width // 128, as published, or the next that fits."""
    adapter_rank: int = 16
    """Rank of a window's adapters on the attention's projections."""
    mlp_adapter_rank: int = 32
    """Rank of a window's adapters on the MLP."""
    adapter_dropout: float = 0.05
    resampler_dropout: float = 0.0
    """Dropout of the resampler's attention weights in training; the published one has none."""

    def _check_views(self) -> None:
        if self.window_size % self.patch_size:
            raise ValueError(
                f"window_size={self.window_size} is not a multiple of patch_size={self.patch_size}; "
                f"take {self.window_size // self.patch_size * self.patch_size or self.patch_size}"
            )
        _square_side(self.num_queries, "num_queries")

    @property
    def patches_per_side(self) -> int:
        """Patches along a window's side: 32 at the published size."""
        return self.window_size // self.patch_size


class MonkeyVisionConfig(VisionConfig):
    """The published vision transformer, its window adapters, and the resampler.

    Defaults are the published size (OpenCLIP ViT-bigG, 1,842.8 M parameters).
    """

    model_type = "monkey_vision"

    window_size: int = PUBLISHED_WINDOW_SIZE
    """Pixels of a view's side; the resolution the transformer was pretrained at."""
    patch_size: int = 14
    num_channels: int = 3
    hidden_size: int = 1664
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    mlp_ratio: float = 4.9231
    num_positions: int = 256
    """Learned position embeddings, a square grid, grown bicubically to the patches of a window."""
    num_queries: int = 256
    """Queries of the resampler, a square grid: tokens a view becomes."""

    def __post_init__(self, **kwargs):
        check_fields(self, kwargs)
        super().__post_init__(**kwargs)
        self._check_views()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision hidden_size={self.hidden_size} cannot be split over num_attention_heads="
                f"{self.num_attention_heads}"
            )
        _square_side(self.num_positions, "num_positions")

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP: 8192 at the published size."""
        return int(self.hidden_size * self.mlp_ratio)


class TimmVisionConfig(VisionConfig):
    """A vision transformer of timm by its name, its window adapters, and the resampler.

    Sizes that are None are read from the architecture, and stand in the saved config.json.
    """

    model_type = "monkey_timm_vision"

    architecture: str = ""
    """timm's name, such as "vit_base_patch16_siglip_224"; "timm/..." and a tag may stand around it."""
    architecture_args: dict[str, Any] | None = None
    """Arguments that timm makes it with beside its own values, such as {"embed_dim": 64}."""
    window_size: int | None = None
    """Pixels of a view's side; None means those that the architecture was published for."""
    num_hidden_layers: int | None = None
    """Blocks; fewer than the architecture has are its first ones."""
    num_queries: int | None = None
    """Queries of the resampler, a square grid; None means half as many along a side as patches, as published."""
    patch_size: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    """Width of the MLP before its second linear. Like the two above it is not chosen here but read."""
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    """Of the three channels on the scale [0, 1], as the encoder was trained."""

    def __post_init__(self, **kwargs):
        check_fields(self, kwargs)
        super().__post_init__(**kwargs)
        self.architecture = plain_name(self.architecture)
        if not isinstance(self.architecture_args, dict | None):
            shown = str(self.architecture_args)[:60]
            raise ValueError(f"vision_config's architecture_args is {shown}, and an object of arguments is needed")
        if not self.architecture:
            return  # what the library makes to compare with; MonkeyConfig refuses it
        chosen = self.window_size, self.num_hidden_layers, self.image_mean, self.image_std
        if None in (*chosen, *self.read_sizes().values()):
            read = measure(self.architecture, self.architecture_args, self.window_size, self.num_hidden_layers)
            for name, value in read.items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
            self.check_sizes(read)
        if self.num_queries is None:
            self.num_queries = max(1, self.patches_per_side // 2) ** 2
        self._check_views()

    def read_sizes(self) -> dict[str, int | None]:
        """Return the fields that only the architecture decides."""
        return {name: getattr(self, name) for name in ("patch_size", "hidden_size", "intermediate_size")}

    def check_sizes(self, measured: dict[str, Any]) -> None:
        """Raise ValueError where a field differs from what the architecture has."""
        for name, value in self.read_sizes().items():
            if value != measured[name]:
                raise ValueError(
                    f"vision_config has {name}={value}, but {self.architecture} has {measured[name]}; leave the field "
                    "out, or change the architecture by architecture_args"
                )


VISION_CONFIGS = {kind.model_type: kind for kind in (MonkeyVisionConfig, TimmVisionConfig)}


def read_vision_config(given: Any) -> Any:
    """Return a dict's config by its model_type, the published encoder's where it has none; others as they are."""
    if isinstance(given, dict):
        kind = given.get("model_type", MonkeyVisionConfig.model_type)
        if kind not in VISION_CONFIGS:
            known = " or ".join(map(repr, VISION_CONFIGS))
            raise ValueError(f"vision_config's model_type is {str(kind)[:60]!r}, and {known} is needed")
        given = VISION_CONFIGS[kind](**given)
    if isinstance(given, TimmVisionConfig) and not given.architecture:
        raise ValueError(
            "vision_config names no architecture; set it to timm's name of the encoder, such as "
            "'vit_base_patch16_siglip_224'"
        )
    return given


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
        check_fields(self, kwargs)
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


def decoder_config(content: Any) -> Any:
    """Return the configuration of a decoder of transformers, for a dict that names its `model_type`.

    Whatever is no such dict is returned as it is, for `MonkeyTextConfig` or its checks.

    Its classes take fields that they do not know, as of files of other releases, and so does this, but for one that
    all but spells a field which is not given: that is a slip, and the field would have its default.

    Raises:
        ValueError: a family that transformers does not have, with the nearest that it has, or such a slip.
    """
    if not isinstance(content, dict) or content.get("model_type", "monkey_text") == MonkeyTextConfig.model_type:
        return content
    model_type = content["model_type"]
    if model_type not in CONFIG_MAPPING or _is_ours(CONFIG_MAPPING[model_type]):
        others = [kind for kind in CONFIG_MAPPING if kind != model_type]
        near = difflib.get_close_matches(str(model_type), others, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "is it newer than the installed transformers?"
        raise ValueError(f"text_config has model_type={model_type!r}, which no decoder of transformers has; {hint}")
    kind = CONFIG_MAPPING[model_type]
    other_names = kind.attribute_map
    known = {*kind.__dataclass_fields__, *other_names, *other_names.values(), *_LIBRARY_KEYS}
    open_fields = kind.__dataclass_fields__.keys() - {*content, *(other_names.get(key) for key in content)}
    for key in sorted(content.keys() - known):
        if near := difflib.get_close_matches(key, open_fields, n=1, cutoff=LIKE_A_SLIP):
            raise ValueError(f"text_config of {model_type} has no field {key!r}; did you mean {near[0]!r}?")
    return kind.from_dict(content)


def with_layers(text_config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """Return the configuration of a decoder of these layers of another, counted from 0, as a copy."""
    shallow = copy.deepcopy(text_config)
    for name, value in per_layer(text_config).items():
        setattr(shallow, name, [value[layer] for layer in layers])
    shallow.num_hidden_layers = len(layers)
    return shallow


def per_layer(text_config: PreTrainedConfig) -> dict[str, list[Any]]:
    """Return the fields of a decoder that say something of each of its layers, such as `layer_types`."""
    count = text_config.num_hidden_layers
    return {name: value for name, value in vars(text_config).items() if isinstance(value, list) and len(value) == count}


def cached_width(text_config: PreTrainedConfig) -> int:
    """Return how many numbers the decoder keeps of a token: the keys and values of all layers."""
    return 2 * sum(key_heads * head_dim for _, key_heads, head_dim in heads_by_layer(text_config))


def heads_by_layer(text_config: PreTrainedConfig) -> list[tuple[int, int, int]]:
    """Return the heads of each layer, those of its keys and values, and the width of one."""
    # Gemma 4's layers differ in them, and it answers no question about all of them.
    varies = getattr(text_config, "is_heterogeneous", False)
    layers = text_config.per_layer_config if varies else [text_config] * text_config.num_hidden_layers
    found = []
    for layer in layers:
        heads = layer.num_attention_heads
        head_dim = getattr(layer, "head_dim", None) or layer.hidden_size // heads
        found.append((heads, getattr(layer, "num_key_value_heads", None) or heads, head_dim))
    return found


def inner_width(text_config: PreTrainedConfig) -> int:
    """Return the inner width of a decoder's MLP; families that do not say it have four times the hidden size."""
    return getattr(text_config, "intermediate_size", None) or 4 * text_config.hidden_size
