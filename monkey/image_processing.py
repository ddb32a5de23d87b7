"""Images to the pixels that the vision side reads: one canvas an image, `[images, 3, H, W]`.

Each image is made RGB and resized to the full canvas by PIL's bicubic filter, **aspect ratio not kept**, scaled to
[0, 1] and normalised with CLIP's mean and deviation, as the published model was trained, or with those of an encoder of
timm. Windows and the global view are cut from this canvas by the model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from monkey.configuration import MonkeyConfig, TimmVisionConfig
from monkey.files import check_field, checkpoint_file, location_of, read_json, refused_in_a_sentence, required_file
from monkey.images import MAX_BYTES, MAX_PIXELS, open_image

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


class MonkeyImageProcessor(BaseImageProcessor):
    """`processor(images)` gives `pixel_values`, float32 `[images, 3, H, W]`; images are what `open_image` takes.

    Args:
        size: `{"height": H, "width": W}` of the canvas in pixels; the published 896×896 when None.
        image_mean, image_std: of the three channels, on the scale [0, 1].
        apply_exif: turn images upright by their EXIF orientation; False reproduces the published code.
        published_pixels: make images RGB as the published code does, whatever is transparent or of more than 8 bits;
            see `monkey.images.open_image`.
        max_bytes, max_pixels: larger images are refused before they are decoded.

    Raises:
        ValueError: an unknown setting, by name.
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
        check_field("apply_exif", apply_exif, "flag")
        for name, value in (("max_bytes", max_bytes), ("max_pixels", max_pixels)):
            check_field(name, value, "count")
        self.apply_exif = apply_exif
        self.published_pixels = published_pixels
        self.max_bytes = max_bytes
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, config: MonkeyConfig, **settings: Any) -> MonkeyImageProcessor:
        """The processor for a model's canvas, with the mean and deviation that its encoder was trained with."""
        return cls(**{**_settings_of(config), **settings})

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
        return BatchFeature({"pixel_values": np.stack(pixels)}, tensor_type=return_tensors)

    def pixels(self, image: Any, name: str | None = None) -> np.ndarray:
        """Normalised pixels of one image, float32 [3, H, W]."""
        values = self.canvas(image, name).astype(np.float32) / np.float32(255)
        return (values - _of_channels(self.image_mean)) / _of_channels(self.image_std)

    def normalised(self, canvases: torch.Tensor) -> torch.Tensor:
        """`canvas` bytes [I, 3, H, W], wherever they are, as the `pixel_values` that `preprocess` gives."""
        mean, std = (
            torch.from_numpy(_of_channels(values)).to(canvases.device) for values in (self.image_mean, self.image_std)
        )
        return (canvases.float() / 255 - mean) / std

    @property
    def opening(self) -> dict[str, Any]:
        """The settings that `open_image` takes."""
        return {name: getattr(self, name) for name in ("apply_exif", "published_pixels", "max_bytes", "max_pixels")}

    def opened(self, image: Any, name: str | None = None) -> Image.Image:
        """One image as the model will see it, upright and RGB, before it is stretched to the canvas."""
        return open_image(image, **self.opening, name=name)

    def canvas(self, image: Any, name: str | None = None) -> np.ndarray:
        """One image on the canvas, before it is normalised, uint8 [3, H, W]: a quarter of the bytes."""
        canvas = self.opened(image, name).resize((self.size["width"], self.size["height"]), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(canvas).transpose(2, 0, 1))

    def to_dict(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in MonkeyImageSettings.__annotations__}
        return {**settings, "image_processor_type": type(self).__name__}


def _of_channels(values: Sequence[float]) -> np.ndarray:
    """Three numbers as float32 [3, 1, 1]."""
    return np.float32(values)[:, None, None]


def _settings_of(config: MonkeyConfig) -> dict[str, Any]:
    """Return what a model's config says of pixels."""
    vision, settings = config.vision_config, {"size": _size_of(config)}
    if isinstance(vision, TimmVisionConfig):
        settings |= {"image_mean": vision.image_mean, "image_std": vision.image_std}
    return settings


def _size_of(config: MonkeyConfig) -> dict[str, int]:
    height, width = config.canvas_size
    return {"height": height, "width": width}


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
