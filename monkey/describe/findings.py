"""What experts find in an image: a record for each stage, with boxes and masks, and its form in JSON.

A line of a stage's file is `{"image": SHA-256 of the image's file, "key": …, …}` and then the fields of the stage's
class below, tuples as lists. `key` stands for all that the result depends on: the image, the settings of the stage and
what it was given by the stages before it.

    {"image": "9f…", "key": "03…", "file": "signs/000000.png", "also": [], "width": 224, "height": 224}     images
    {"image": "9f…", "key": "5c…", "text": "a shop sign that hangs from a rail"}                            caption
    {"image": "9f…", "key": "e1…", "regions": [{"box": [0.08, 0.16, 0.92, 0.95], "text": "a red sign"}]}    regions

An image that a stage failed on has no line in its file and in none after it.
"""

from __future__ import annotations

import base64
import binascii
import functools
import typing
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the image's width and height, in [0, 1]."""

REGION, TEXT, SEGMENT = "region", "text", "segment"
SOURCES = (REGION, TEXT, SEGMENT)


@dataclass(frozen=True)
class ImageFile:
    """`file` is the image's name in its folder, `also` are names of files with the same bytes."""

    file: str
    also: tuple[str, ...]
    width: int
    height: int


@dataclass(frozen=True)
class Caption:
    """A caption of the whole image."""

    text: str


@dataclass(frozen=True)
class Region:
    box: Box
    text: str


@dataclass(frozen=True)
class Regions:
    """Dense captions."""

    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Line:
    """One line of text that was read, with the reader's confidence."""

    box: Box
    text: str
    score: float


@dataclass(frozen=True)
class Lines:
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Segment:
    """A part of the image: `area` is the mask's share of it, `score` the segmenter's own.

    `mask` is what `pack_mask` makes of it; null where only the box is known.
    """

    box: Box
    area: float
    score: float
    mask: str | None = None


@dataclass(frozen=True)
class Segments:
    """The largest first."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class SegmentCaptions:
    """One caption per segment, in their order."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """How well each crop and its caption match, in [0, 1]: of the regions and of the segments, in their order."""

    regions: tuple[float, ...]
    segments: tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """What one expert saw at one place, and whether it is kept.

    `source` is one of SOURCES, `index` its place in that stage's list. `score` is the match of crop and caption, or the
    reader's confidence in a text. `dropped` is null for what is kept, else "score", "duplicate" or "empty", and
    `because` says it in words.
    """

    source: str
    index: int
    box: Box
    text: str
    score: float
    dropped: str | None = None
    because: str | None = None


@dataclass(frozen=True)
class Filtered:
    """Every region, text and segment of the image, in this order, kept or not. Boxes have three decimals."""

    candidates: tuple[Candidate, ...]

    @property
    def kept(self) -> tuple[Candidate, ...]:
        return tuple(candidate for candidate in self.candidates if candidate.dropped is None)


@dataclass(frozen=True)
class Summary:
    """The description. `problems` are the rules it breaks after `attempts` attempts; none is a good description."""

    text: str
    problems: tuple[str, ...]
    attempts: int


Result = ImageFile | Caption | Regions | Lines | Segments | SegmentCaptions | Scores | Filtered | Summary

RESULTS: Mapping[str, type] = {
    "images": ImageFile,
    "caption": Caption,
    "regions": Regions,
    "text": Lines,
    "segments": Segments,
    "segment_captions": SegmentCaptions,
    "matching": Scores,
    "filters": Filtered,
    "summary": Summary,
}
"""What a record of each stage holds, in the order of the stages."""

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}


def decode(kind: Any, value: Any) -> Any:
    """Return a value of JSON or YAML as `kind`: a dataclass, a tuple, or a plain value. Other fields are left alone.

    Raises LookupError for a field that is missing, TypeError or ValueError for a value of another kind.
    """
    if is_dataclass(kind):
        return kind(**{name: decode(hint, value[name]) for name, hint in field_kinds(kind)})
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{value!r}, and a list is needed")
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(decode(one, entry) for one, entry in zip(kinds, value, strict=True))
    kinds = inner or (kind,)
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds:
        return float(value)
    raise TypeError(f"{value!r}, and {' or '.join(_WORDS[one] for one in kinds)} is needed")


@functools.cache
def field_kinds(kind: type) -> tuple[tuple[str, Any], ...]:
    """Name and type of each field of a dataclass."""
    hints = typing.get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in fields(kind))


def as_shares(pixels: Sequence[float], width: int, height: int) -> Box:
    """Return a box in pixels as shares, cut to the image; five decimals are a hundredth of a pixel in a thousand."""
    shares = (float(place / side) for place, side in zip(pixels, (width, height) * 2, strict=True))
    left, top, right, bottom = (round(min(1.0, max(0.0, share)), 5) for share in shares)
    return left, top, right, bottom


def area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes, 0 where both are empty."""
    common = area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    union = area(one) + area(other) - common
    return common / union if union > 0 else 0.0


def crop(image: Image.Image, box: Box) -> Image.Image:
    """Return the part of an image in a box, at least one pixel wide and high."""
    width, height = image.size
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = round(box[2] * width), round(box[3] * height)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


MASK_SIDE = 256
"""Most cells of a mask's long side: that of the masks which SAM predicts before it enlarges them."""


def pack_mask(mask: np.ndarray) -> str:
    """Return a mask [H, W] of bool as a short text: on a small grid, packed to bits, deflated, in base64."""
    height, width = mask.shape
    scale = min(1.0, MASK_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grid = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) >= 128
    packed = base64.b64encode(zlib.compress(np.packbits(grid).tobytes(), 9)).decode("ascii")
    return f"{size[0]}x{size[1]}:{packed}"


def unpack_mask(text: str) -> np.ndarray:
    """Return the mask [h, w] of bool on its grid. Raises ValueError for a text that is none."""
    try:
        size, packed = text.split(":")
        width, height = map(int, size.split("x"))
        if not (0 < width <= MASK_SIDE and 0 < height <= MASK_SIDE):
            raise ValueError(f"a grid of {width} × {height} cells")
        num_bytes = (width * height + 7) // 8
        # No more is inflated than the grid can hold.
        raw = zlib.decompressobj().decompress(base64.b64decode(packed, validate=True), num_bytes)
        if len(raw) != num_bytes:
            raise ValueError(f"{len(raw)} bytes for {width * height} cells")
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=width * height)
        return bits.reshape(height, width).astype(bool)
    except (ValueError, binascii.Error, zlib.error) as error:
        raise ValueError(f"{text[:40]!r} is no mask ({error})") from error


def whiten_outside(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Return the image with white where the mask is not."""
    full = Image.fromarray(mask.astype(np.uint8) * 255).resize(image.size, Image.Resampling.BILINEAR)
    inside = full.point(lambda value: 255 if value >= 128 else 0)
    return Image.composite(image, Image.new("RGB", image.size, (255, 255, 255)), inside)
