"""Boxes as shares of a picture: [left, top, right, bottom] in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from monkey.describe.records import Box

DECIMALS = 5
"""Of boxes in records; a hundredth of a pixel in a picture of a thousand."""


def as_shares(pixels: Sequence[float], width: int, height: int) -> Box:
    """A box in pixels as shares, cut to the picture."""
    left, top, right, bottom = pixels
    shares = (left / width, top / height, right / width, bottom / height)
    clipped = [round(min(1.0, max(0.0, float(share))), DECIMALS) for share in shares]
    return clipped[0], clipped[1], clipped[2], clipped[3]


def rounded(box: Box, decimals: int = 3) -> Box:
    left, top, right, bottom = (round(value, decimals) for value in box)
    return left, top, right, bottom


def area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0 where both are empty."""
    common = area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    union = area(one) + area(other) - common
    return common / union if union > 0 else 0.0


def crop(picture: Image.Image, box: Box) -> Image.Image:
    """The part of a picture in a box, at least one pixel wide and high."""
    width, height = picture.size
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = round(box[2] * width), round(box[3] * height)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
