"""Configuration of Monkey: a grid of windows over a shared vision transformer, a resampler and a decoder.

Every count that follows from the grid (windows, views, image tokens, canvas) is a property here and nowhere else.
The published checkpoints (`echo840/Monkey`, `echo840/Monkey-Chat`, `Qwen/Qwen-VL`) carry a flat `config.json`:
`MonkeyConfig.from_dict` reads it as it is, and `published_config` writes it, both by one table.

Method: Monkey, arXiv 2311.06607.
"""

from __future__ import annotations

import copy
import difflib
import logging
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import CONFIG_MAPPING, PreTrainedConfig, Qwen2Config
from transformers.generation import GenerationConfig

from monkey.files import check_field, location_of, read_json, refused_in_a_sentence, required_file
from monkey.timm_encoders import measure, plain_name

logger = logging.getLogger(__name__)

SPECIALS_BEFORE_IMAGE_START = 214
"""Special tokens from `<|endoftext|>` up to `<img>`: 3 for text and chat, 205 spare, 6 for references and boxes."""

PUBLISHED_WINDOW_SIZE = 448
"""Pixels of a window side in every published checkpoint, whose flat config does not name it."""

MAX_WINDOWS = 1024
"""Of a grid: more is a slip of the pen, and the canvas would fill any memory."""

Grid = tuple[int, int]
"""Rows and columns of windows."""

FITS = ("stretch", "pad")
"""How an image comes onto its canvas: stretched over it, or with its ratio kept and the rest filled."""

_UP_TO = re.compile(r"up-to-([1-9][0-9]*)")

# What transformers itself writes into, or takes out of, a config beside a class's own fields.
_LIBRARY_KEYS = {
    *("_commit_hash", "_name_or_path", "attn_implementation", "auto_map", "distributed_config", "model_type"),
    *("experts_implementation", "fusion_config", "name_or_path", "num_labels", "output_attentions", "rope_theta"),
    *("per_layer_config", "quantization_config", "rope_scaling", "tie_last_hidden_states", "torch_dtype"),
    "transformers_weights",
}

# Annotation of a field -> what its value must be; other annotations have checks of their own.
_KIND_OF = {"int": "count", "float": "number", "bool": "flag", "str": "text"}


def _check_fields(config: PreTrainedConfig, others: Any) -> None:
    """Raise ValueError for a declared field of another type or range, and for other keys that nobody knows."""
    declared = {name: kind for base in type(config).__mro__ for name, kind in _own_fields(base).items()}
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


def _own_fields(kind: type) -> dict[str, str]:
    """Return field -> annotation of what a class of this module declares."""
    return kind.__annotations__ if kind.__module__ == __name__ else {}


def check_grid(grid: Any, name: str = "grid") -> Grid:
    """Return rows and columns as a tuple of two positive integers, or raise ValueError that calls them `name`."""
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid):
        raise ValueError(f"{name}={grid!r} is not (rows, columns), two positive whole numbers such as (2, 2) or (2, 3)")
    if grid[0] * grid[1] > MAX_WINDOWS:
        raise ValueError(f"{name}={grid!r} has more than {MAX_WINDOWS:,} windows; published checkpoints have 4 or 6")
    return int(grid[0]), int(grid[1])


def expand_grids(grids: str | Sequence[Sequence[int]]) -> tuple[Grid, ...]:
    """Return the grids of a set, those of fewest windows first, of as many those of fewest rows.

    Args:
        grids: "up-to-N", every grid of at most N windows, or a list of [rows, columns].

    Raises:
        ValueError: neither of these, an empty list, or a grid of more than `MAX_WINDOWS` windows.
    """
    if isinstance(grids, str) and (match := _UP_TO.fullmatch(grids)):
        most = int(match[1])
        if most > MAX_WINDOWS:
            raise ValueError(f"grids={grids!r} has grids of more than {MAX_WINDOWS:,} windows; 'up-to-6' has 14 grids")
        expanded = {(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)}
    elif isinstance(grids, (tuple, list)) and grids:
        expanded = {check_grid(grid, f"grids[{index}]") for index, grid in enumerate(grids)}
    else:
        what = "is empty" if grids in ([], ()) else "is no set of grids"
        raise ValueError(
            f"grids={grids!r} {what}; give 'up-to-6' for all of at most six windows, a list such as [[1, 2], [2, 1]], "
            "or None to put every image on `grid`"
        )
    return tuple(sorted(expanded, key=lambda grid: (grid[0] * grid[1], grid[0])))


def check_fit(fit: Any) -> None:
    """Raise ValueError for what is not one of `FITS`."""
    if fit not in FITS:
        raise ValueError(f"fit={fit!r} is not one of {', '.join(map(repr, FITS))}")


def placed_windows(old_grid: Grid, new_grid: Grid) -> list[int]:
    """Return which window of the old grid each window of the new one lies in, row by row.

    That is where a window's adapters come from: when a model moves to another grid, and when an image lies on another
    grid than the model's. The rule: the old window that holds the centre of the new one when both grids cover the same
    image; a centre on a border belongs to the window after it. (2, 2) → (2, 3) gives [0, 1, 1, 2, 3, 3].
    """

    def along(old: int, new: int) -> list[int]:
        return [(2 * index + 1) * old // (2 * new) for index in range(new)]

    (old_rows, old_columns), (new_rows, new_columns) = old_grid, new_grid
    return [
        row * old_columns + column for row in along(old_rows, new_rows) for column in along(old_columns, new_columns)
    ]


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
        _check_fields(self, kwargs)
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
        _check_fields(self, kwargs)
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


def _vision_config(given: Any) -> Any:
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
        _check_fields(self, kwargs)
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

    Raises:
        ValueError: a family that transformers does not have, with the nearest that it has.
    """
    if not isinstance(content, dict) or content.get("model_type", "monkey_text") == MonkeyTextConfig.model_type:
        return content
    model_type = content["model_type"]
    if model_type not in CONFIG_MAPPING or issubclass(CONFIG_MAPPING[model_type], MonkeyConfig):
        others = [kind for kind in CONFIG_MAPPING if kind != model_type]
        near = difflib.get_close_matches(str(model_type), others, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "is it newer than the installed transformers?"
        raise ValueError(f"text_config has model_type={model_type!r}, which no decoder of transformers has; {hint}")
    return CONFIG_MAPPING[model_type].from_dict(content)


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
    heads = text_config.num_attention_heads
    key_heads = getattr(text_config, "num_key_value_heads", None) or heads
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    return 2 * text_config.num_hidden_layers * key_heads * head_dim


def inner_width(text_config: PreTrainedConfig) -> int:
    """Return the inner width of a decoder's MLP; families that do not say it have four times the hidden size."""
    return getattr(text_config, "intermediate_size", None) or 4 * text_config.hidden_size


LAYOUT_KEYS = ("grid", "grids", "fit", "global_view", "window_adapters")
"""Fields of `MonkeyConfig` that `from_pretrained` may change: how images are cut, and what adapters windows have."""


class MonkeyConfig(PreTrainedConfig):
    """The whole model. `MonkeyConfig()` is the published full size at 896×896, 9,708.1 M parameters."""

    model_type = "monkey"
    sub_configs_defaults = {"vision_config": MonkeyVisionConfig, "text_config": MonkeyTextConfig}  # noqa: RUF012

    grid: tuple[int, int] | list[int] = (2, 2)
    """Rows and columns of windows. (2, 2) is 896×896, (2, 3) is 896×1344 (height × width).

    Where `grids` is a set, this is the base grid: to its cells the window adapters belong.
    """
    grids: str | list[list[int]] | tuple[tuple[int, int], ...] | None = None
    """The grids that an image may lie on, "up-to-6" (all of at most six windows) or a list; None puts all on `grid`."""
    fit: str = "stretch"
    """How an image comes onto its canvas: "stretch" (published) or "pad", which keeps its ratio."""
    global_view: bool = True
    """Whether the whole image, shrunk to one window, is added as the last view."""
    window_adapters: str = "per_window"
    """`per_window` (published), `shared` (one set for all windows) or `none` (plain Qwen-VL)."""
    image_start_id: int = 151857
    """Id of `<img>`."""
    image_end_id: int | None = None
    """Id of `</img>`; None means the one behind `<img>`, as in the published vocabulary."""
    image_pad_id: int | None = None
    """Id of `<imgpad>`; None means the second behind `<img>`."""
    eod_id: int | None = None
    """Id of what ends a text, and pads; None means `<|endoftext|>`, 214 before `<img>`."""
    vision_config: VisionConfig | dict | None = None
    """The published encoder's, or `TimmVisionConfig`: a dict says which by its model_type."""
    text_config: PreTrainedConfig | dict | None = None
    """`MonkeyTextConfig`, Qwen-7B's, or that of any decoder of transformers, told by its `model_type`."""
    lora_targets: list[str] | None = None
    """Names of the decoder's linears that --use_lora adapts; None means the family's own, see `monkey.parts`."""
    tie_word_embeddings: bool = False
    """Whether the head's weights are the embeddings'; what `text_config` says, and never in the published layout."""

    def __post_init__(self, **kwargs):
        _check_fields(self, kwargs)
        self.vision_config = _vision_config(self.vision_config)
        self.text_config = decoder_config(self.text_config)
        super().__post_init__(**kwargs)
        self.grid = check_grid(self.grid)
        if self.grids is not None:
            expand_grids(self.grids)
            # As JSON gives them back, so that a set is the same before and after it was written.
            self.grids = self.grids if isinstance(self.grids, str) else [list(grid) for grid in self.grids]
        check_fit(self.fit)
        tied = bool(getattr(self.text_config, "tie_word_embeddings", False))
        if self.is_published_decoder and (tied or self.tie_word_embeddings):
            raise ValueError("tie_word_embeddings=True: the published layout has a head of its own; leave it False")
        self.tie_word_embeddings = tied
        names = self.lora_targets
        if names is not None and not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
            raise ValueError(f'lora_targets={names!r} is no list of names of linears, such as ["q_proj", "v_proj"]')
        if self.window_adapters not in ("per_window", "shared", "none"):
            raise ValueError(f"window_adapters={self.window_adapters!r} is not one of 'per_window', 'shared', 'none'")
        for name, published in self._published_ids.items():
            if getattr(self, name) is None:
                setattr(self, name, published)

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
    def is_ragged(self) -> bool:
        """Whether images lie on grids of their own, so that they differ in views and tokens."""
        return self.grids is not None

    @property
    def allowed_grids(self) -> tuple[Grid, ...]:
        """The grids that an image may lie on, those of fewest windows first."""
        return expand_grids(self.grids) if self.is_ragged else (self.grid,)

    def tokens_of(self, grid: Sequence[int]) -> int:
        """Decoder tokens of an image on a grid, those of its global view included."""
        rows, columns = grid
        return (rows * columns + int(self.global_view)) * self.vision_config.num_queries

    @property
    def image_tokens(self) -> int:
        """Decoder tokens of one image on `grid`."""
        return self.tokens_of(self.grid)

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width, in pixels, of the canvas of `grid`."""
        rows, columns = self.grid
        return rows * self.window_size, columns * self.window_size

    def adapter_sets(self, grid: Grid) -> list[int]:
        """Which adapter set each window of a grid passes through, row by row; all through set 0 where there is one."""
        return placed_windows(self.grid if self.window_adapters == "per_window" else (1, 1), grid)

    @property
    def resampler_heads(self) -> int:
        """Heads of the resampler; by default the most that are 128 wide or wider, and divide the decoder's width."""
        width = self.text_config.hidden_size
        most = max(1, width // 128)
        return self.vision_config.resampler_heads or next(n for n in range(most, 0, -1) if width % n == 0)

    @property
    def is_published_decoder(self) -> bool:
        """Whether the decoder is Qwen-7B as published, with its own names on disk, rather than one of transformers."""
        return isinstance(self.text_config, MonkeyTextConfig)

    @property
    def built_in_rank(self) -> int:
        """Rank of adapters that the decoder was built with, as the published 24 GB variant; 0 for none."""
        return self.text_config.adapter_rank if self.is_published_decoder else 0

    @property
    def _published_ids(self) -> dict[str, int]:
        """Ids of the other special tokens in the published vocabulary."""
        start = self.image_start_id
        return {
            "image_end_id": start + 1,
            "image_pad_id": start + 2,
            "eod_id": start - SPECIALS_BEFORE_IMAGE_START,
        }

    def to_dict(self) -> dict[str, Any]:
        """As the library's, without what says no more than the published model does."""
        as_published = {"grids": None, "fit": "stretch", "lora_targets": None, **self._published_ids}
        content = super().to_dict().items()
        return {key: value for key, value in content if key not in as_published or value != as_published[key]}

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
        """Build from our nested dict or from the published flat one; `LAYOUT_KEYS` move the model to another layout."""
        overrides = {key: kwargs.pop(key) for key in LAYOUT_KEYS if key in kwargs}
        overrides = {key: value for key, value in overrides.items() if value is not None}
        nested = dict(config_dict)
        if "visual" in nested:
            nested = _read_published(nested)
            if nested["window_adapters"] == "none" and {"grid", "grids"} & set(overrides):
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


def _read_published(content: dict[str, Any]) -> dict[str, Any]:
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
