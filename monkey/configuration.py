"""Configuration of Monkey: a grid of windows over a shared vision transformer, a resampler and a decoder.

Every count that follows from the grid (windows, views, image tokens, canvas) is a property here and nowhere else.
The grids themselves are in `monkey.grids`, the configurations of the parts in `monkey.part_configs`; all their public
names can be imported from here too. The published checkpoints carry a flat `config.json`: `MonkeyConfig.from_dict`
reads it as it is, by `monkey.flat_config`, which also writes it.

Method: Monkey, arXiv 2311.06607.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from monkey.files import location_of, read_json, refused_in_a_sentence, required_file
from monkey.flat_config import published_config, read_published
from monkey.grids import (
    FITS,
    MAX_WINDOWS,
    Grid,
    check_fit,
    check_grid,
    choose_grid,
    expand_grids,
    placed_windows,
    plain_grids,
)
from monkey.part_configs import (
    PUBLISHED_WINDOW_SIZE,
    VISION_CONFIGS,
    MonkeyTextConfig,
    MonkeyVisionConfig,
    TimmVisionConfig,
    VisionConfig,
    cached_width,
    check_fields,
    decoder_config,
    inner_width,
    per_layer,
    read_vision_config,
    with_layers,
)

__all__ = [
    "FITS",
    "LAYOUT_KEYS",
    "MAX_WINDOWS",
    "PUBLISHED_WINDOW_SIZE",
    "SPECIALS_BEFORE_IMAGE_START",
    "VISION_CONFIGS",
    "Grid",
    "MonkeyConfig",
    "MonkeyTextConfig",
    "MonkeyVisionConfig",
    "QwenVLConfig",
    "TimmVisionConfig",
    "VisionConfig",
    "cached_width",
    "check_fit",
    "check_grid",
    "choose_grid",
    "decoder_config",
    "expand_grids",
    "inner_width",
    "per_layer",
    "placed_windows",
    "published_config",
    "with_layers",
]

SPECIALS_BEFORE_IMAGE_START = 214
"""Special tokens from `<|endoftext|>` up to `<img>`: 3 for text and chat, 205 spare, 6 for references and boxes."""

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
        check_fields(self, kwargs)
        self.vision_config = read_vision_config(self.vision_config)
        self.text_config = decoder_config(self.text_config)
        super().__post_init__(**kwargs)
        self.grid = check_grid(self.grid)
        if self.grids is not None:
            self.grids = plain_grids(self.grids)
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
            nested = read_published(nested)
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
