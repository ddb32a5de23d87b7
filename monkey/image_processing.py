"""Images to the pixels that the vision side reads: one canvas an image.

Each image is made RGB and resized to its canvas by PIL's bicubic filter, scaled to [0, 1] and normalised with CLIP's
mean and deviation, or with those of an encoder of timm. As published, all images have one canvas, of the model's grid,
over which they are stretched, **aspect ratio not kept**: `pixel_values` [images, 3, H, W], from which the model cuts
windows and global view.

Where a model has a set of grids, each image has the canvas of the grid that suits it best (`choose_grid`), and the
canvases of a batch, which differ in size, are cut here: `pixel_values` are the windows of all images, one image after
the other, row by row, and `image_grids` say which are whose. With `fit="pad"` an image keeps its ratio and stands at
the top left of its canvas; what is left at the right or below has the mean colour.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from monkey.boxes import Share
from monkey.configuration import MonkeyConfig
from monkey.files import check_field, checkpoint_file, location_of, read_json, refused_in_a_sentence, required_file
from monkey.grids import Grid, check_fit, choose_grid, expand_grids
from monkey.images import MAX_BYTES, MAX_PIXELS, image_size, open_image
from monkey.part_configs import TimmVisionConfig

# Written into every saved file by the library; they say nothing about pixels.
_LIBRARY_KEYS = frozenset({"_commit_hash", "auto_map", "image_processor_type", "processor_class"})


class MonkeyImageSettings(TypedDict, total=False):
    """Settings that `from_pretrained` may override by name."""

    size: dict[str, int] | None
    image_mean: Sequence[float]
    image_std: Sequence[float]
    apply_exif: bool
    published_pixels: bool
    max_bytes: int
    max_pixels: int
    fit: str
    grids: str | Sequence[Sequence[int]] | None
    window_size: int | None
    max_windows: int | None


_UNWRITTEN = {"fit": "stretch", "grids": None, "window_size": None, "max_windows": None}
"""Settings that are saved only where they are others: the published model's files do not have them."""


class Placement(NamedTuple):
    """Where an image lies."""

    grid: Grid | None
    """Rows and columns of its windows; None where all images lie on the model's one grid."""
    canvas: tuple[int, int]
    """Height and width of the canvas in pixels."""
    inner: tuple[int, int]
    """Height and width of the image on it, from the top left; the whole canvas where images are stretched."""

    @property
    def share(self) -> Share:
        """Parts of the canvas's width and height that the image covers, by which its boxes are moved."""
        return self.inner[1] / self.canvas[1], self.inner[0] / self.canvas[0]


class MonkeyImageProcessor(BaseImageProcessor):
    """`processor(images)` gives `pixel_values`, float32 `[images, 3, H, W]`; images are what `open_image` takes.

    With a set of grids it gives `pixel_values` [windows of all images, 3, side, side] and `image_grids` [images, 2],
    int64, the rows and columns of each.

    Args:
        size: `{"height": H, "width": W}` of the canvas of the model's grid, in pixels; the published 896×896 when None.
        image_mean, image_std: of the three channels, on the scale [0, 1].
        apply_exif: turn images upright by their EXIF orientation; False reproduces the published code.
        published_pixels: make images RGB as the published code does, whatever is transparent or of more than 8 bits;
            see `monkey.images.open_image`.
        max_bytes, max_pixels: larger images are refused before they are decoded.
        fit: "stretch" or "pad".
        grids: the grids that an image may lie on, as of `MonkeyConfig.grids`; None for one canvas for all.
        window_size: pixels of a window's side; needed with `grids`.
        max_windows: leaves out the grids of more windows, of those in `grids`.

    Attributes:
        allowed_grids: the grids that an image may lie on, those of fewest windows first; none for one canvas.

    Raises:
        ValueError: an unknown setting, by name, or one that is not of its kind.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (the library's class attribute)
    valid_kwargs = MonkeyImageSettings

    def __init__(
        self,
        size: dict[str, int] | None = None,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
        apply_exif: bool = True,
        published_pixels: bool = False,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
        fit: str = "stretch",
        grids: str | Sequence[Sequence[int]] | None = None,
        window_size: int | None = None,
        max_windows: int | None = None,
        **kwargs: Any,
    ):
        unknown = sorted(set(kwargs) - _LIBRARY_KEYS)
        if unknown:
            raise ValueError(
                f"MonkeyImageProcessor has no setting {unknown[0]!r}; it has "
                f"{', '.join(MonkeyImageSettings.__annotations__)}"
            )
        super().__init__()
        self.size = _checked_size(_size_of(MonkeyConfig()) if size is None else size)
        self.image_mean = _checked_channels("image_mean", image_mean)
        self.image_std = _checked_channels("image_std", image_std)
        for name, value in (("apply_exif", apply_exif), ("published_pixels", published_pixels)):
            check_field(name, value, "flag")
        for name, value in (("max_bytes", max_bytes), ("max_pixels", max_pixels)):
            check_field(name, value, "count")
        self.apply_exif = apply_exif
        self.published_pixels = published_pixels
        self.max_bytes = max_bytes
        self.max_pixels = max_pixels
        check_fit(fit)
        self.fit, self.grids, self.window_size, self.max_windows = fit, grids, window_size, max_windows
        self.allowed_grids = _check_grids(grids, window_size, max_windows)
        if self.is_ragged:
            self.model_input_names = ["pixel_values", "image_grids"]

    @classmethod
    def from_config(cls, config: MonkeyConfig, **settings: Any) -> MonkeyImageProcessor:
        """The processor for a model's canvas or set of grids, with the colours that its encoder was trained with."""
        return cls(**{**_settings_of(config), **settings})

    def limit_windows(self, max_windows: int | None) -> MonkeyImageProcessor:
        """Return this processor with another `max_windows`; ValueError where no grid has so few."""
        return type(self)(**{**self._settings(), "max_windows": max_windows})

    @property
    def is_ragged(self) -> bool:
        """Whether images lie on grids of their own, so that they differ in windows and tokens."""
        return self.grids is not None

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Saved settings; in a published folder, which has none, the canvas that its config.json asks for."""
        location = location_of(kwargs)
        name = pretrained_model_name_or_path
        is_file = os.path.isfile(name)
        of_processor, own = (
            ({}, None)
            if is_file
            else (
                read_json(checkpoint_file(name, "processor_config.json", **location)),
                checkpoint_file(name, "preprocessor_config.json", **location),
            )
        )
        if is_file or own is not None or "image_processor" in of_processor:
            read_json(own)
            with refused_in_a_sentence(f"{name}: processor_config.json"):
                settings, rest = super().get_image_processor_dict(name, **kwargs)
                return dict(settings), rest
        required_file(pretrained_model_name_or_path, "config.json", "the size of images", **location)
        config = MonkeyConfig.from_pretrained(pretrained_model_name_or_path, **location)
        rest = {key: value for key, value in kwargs.items() if key in MonkeyImageSettings.__annotations__}
        return _settings_of(config), rest

    def preprocess(self, images: Any, return_tensors: str | None = "pt", names: Sequence[str] | None = None):
        """Pixels of one image or of a list of them.

        Args:
            names: what errors call each image that is not a path; "image 1", "image 2", … when None.
            return_tensors: "pt" or "np".
        """
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        if not images:
            raise ValueError("the list of images is empty")
        names = names or [f"image {number}" for number in range(1, len(images) + 1)]
        pixels = [self.pixels(image, name) for image, name in zip(images, names, strict=True)]
        return BatchFeature(self.cut(pixels), tensor_type=return_tensors)

    def cut(self, canvases: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's inputs of canvases [3, H, W], normalised or not.

        Those are `pixel_values`, the canvases as one array, or with a set of grids their windows and `image_grids`.
        """
        if not self.is_ragged:
            return {"pixel_values": np.stack(canvases)}
        side = self.window_size
        windows = [rearrange(canvas, "c (r h) (s w) -> (r s) c h w", h=side, w=side) for canvas in canvases]
        grids = [(canvas.shape[1] // side, canvas.shape[2] // side) for canvas in canvases]
        return {"pixel_values": np.concatenate(windows), "image_grids": np.array(grids, np.int64)}

    def pixels(self, image: Any, name: str | None = None) -> np.ndarray:
        """Normalised pixels of one image, float32 [3, H, W]."""
        values = self.canvas(image, name).astype(np.float32) / np.float32(255)
        return (values - _of_channels(self.image_mean)) / _of_channels(self.image_std)

    def normalised(self, canvases: torch.Tensor) -> torch.Tensor:
        """`canvas` bytes [I, 3, H, W], or windows of such, wherever they are, as the `pixel_values` of `preprocess`."""
        mean, std = (
            torch.from_numpy(_of_channels(values)).to(canvases.device) for values in (self.image_mean, self.image_std)
        )
        return (canvases.float() / 255 - mean) / std

    @property
    def opening(self) -> dict[str, Any]:
        """The settings that `open_image` takes."""
        return {name: getattr(self, name) for name in ("apply_exif", "published_pixels", "max_bytes", "max_pixels")}

    def opened(self, image: Any, name: str | None = None) -> Image.Image:
        """One image as the model will see it, upright and RGB, before it is put on its canvas."""
        return open_image(image, **self.opening, name=name)

    def measure(self, image: Any, name: str | None = None) -> tuple[int, int]:
        """Height and width of one image as `opened` gives it, from its header where that says it."""
        return image_size(image, **self.opening, name=name)

    def place(self, size: tuple[int, int]) -> Placement:
        """Return where an image of a height and width lies."""
        grid = None
        canvas_height, canvas_width = self.size["height"], self.size["width"]
        if self.is_ragged:
            grid = choose_grid(tuple(size), self.allowed_grids, self.window_size)
            canvas_height, canvas_width = (side * self.window_size for side in grid)
        canvas = canvas_height, canvas_width
        if self.fit == "stretch":
            return Placement(grid, canvas, canvas)
        height, width = size
        if canvas_height * width <= canvas_width * height:
            return Placement(grid, canvas, (canvas_height, _nearest(width * canvas_height, height)))
        return Placement(grid, canvas, (_nearest(height * canvas_width, width), canvas_width))

    def canvas(self, image: Any, name: str | None = None) -> np.ndarray:
        """One image on its canvas, before it is normalised, uint8 [3, H, W]: a quarter of the bytes."""
        opened = self.opened(image, name)
        _, canvas, inner = self.place((opened.height, opened.width))
        placed = opened.resize(inner[::-1], Image.Resampling.BICUBIC)
        if inner != canvas:
            whole = Image.new("RGB", canvas[::-1], tuple(round(255 * value) for value in self.image_mean))
            whole.paste(placed, (0, 0))
            placed = whole
        return np.ascontiguousarray(np.asarray(placed).transpose(2, 0, 1))

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in MonkeyImageSettings.__annotations__}

    def to_dict(self) -> dict[str, Any]:
        settings = self._settings()
        written = {name: value for name, value in settings.items() if value != _UNWRITTEN.get(name, _UNWRITTEN)}
        return {**written, "image_processor_type": type(self).__name__}


def _of_channels(values: Sequence[float]) -> np.ndarray:
    """Three numbers as float32 [3, 1, 1]."""
    return np.float32(values)[:, None, None]


def _nearest(dividend: int, divisor: int) -> int:
    """The whole number nearest to a quotient, at least 1: the side of an image that is very long."""
    return max(1, (2 * dividend + divisor) // (2 * divisor))


def _size_of(config: MonkeyConfig) -> dict[str, int]:
    height, width = config.canvas_size
    return {"height": height, "width": width}


SHAPE_SETTINGS = ("size", "fit", "grids", "window_size")
"""Settings that follow from a model's configuration."""


def _settings_of(config: MonkeyConfig) -> dict[str, Any]:
    """Return what a configuration says of pixels: `SHAPE_SETTINGS`, and the colours of an encoder of timm."""
    window_size, vision = config.window_size if config.is_ragged else None, config.vision_config
    settings = {"size": _size_of(config), "fit": config.fit, "grids": config.grids, "window_size": window_size}
    if isinstance(vision, TimmVisionConfig):
        settings |= {"image_mean": vision.image_mean, "image_std": vision.image_std}
    return settings


def _check_grids(grids: Any, window_size: Any, max_windows: Any) -> tuple[Grid, ...]:
    """Return the grids that are allowed, or raise ValueError for settings that do not go together."""
    if grids is None:
        if max_windows is not None:
            raise ValueError(f"max_windows={max_windows}: all images lie on one grid; leave it out, or give grids")
        return ()
    expanded = expand_grids(grids)
    check_field("window_size", window_size, "count")
    for rows, columns in expanded:
        _checked_size({"height": rows * window_size, "width": columns * window_size})
    if max_windows is None:
        return expanded
    check_field("max_windows", max_windows, "count")
    allowed = tuple(grid for grid in expanded if grid[0] * grid[1] <= max_windows)
    if not allowed:
        fewest = expanded[0][0] * expanded[0][1]
        raise ValueError(f"max_windows={max_windows}, and the smallest grid of grids={grids!r} has {fewest}; raise it")
    return allowed


def _checked_size(size: Any) -> dict[str, int]:
    if (
        not isinstance(size, dict)
        or set(size) != {"height", "width"}
        or not all(isinstance(pixels, int) and pixels > 0 for pixels in size.values())
    ):
        raise ValueError(f"size={str(size)[:60]} is not {{'height': pixels, 'width': pixels}}")
    if size["height"] * size["width"] > MAX_PIXELS:
        raise ValueError(
            f"size={size} is a canvas of {size['height'] * size['width']:,} pixels, more than the {MAX_PIXELS:,} that "
            "an image may have"
        )
    return {"height": size["height"], "width": size["width"]}


def _checked_channels(name: str, values: Any) -> list[float]:
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise ValueError(
            f"{name}={str(values)[:60]} is not a list of three numbers, one for each of red, green and blue"
        )
    for value in values:
        check_field(name, value, "number")
    if name == "image_std" and 0 in values:
        raise ValueError(f"{name}={values} divides by 0")
    return list(values)


def register() -> None:
    """Make AutoImageProcessor open our folders."""
    AutoImageProcessor.register(MonkeyConfig, image_processor_classes={"pil": MonkeyImageProcessor}, exist_ok=True)
