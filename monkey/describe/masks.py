"""A mask as a short text: on a grid whose long side has at most 256 cells, packed to bits, deflated, in base64.

256 is the side of the masks that SAM predicts before it enlarges them, so little is lost. A typical mask takes a few
hundred characters.
"""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np
from PIL import Image

LONG_SIDE = 256


def pack_mask(mask: np.ndarray) -> str:
    """Text of a mask [H, W] over a whole picture, of bool."""
    height, width = mask.shape
    scale = min(1.0, LONG_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grid = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) >= 128
    packed = base64.b64encode(zlib.compress(np.packbits(grid).tobytes(), 9)).decode("ascii")
    return f"{size[0]}x{size[1]}:{packed}"


def unpack_mask(text: str) -> np.ndarray:
    """Mask [h, w] of bool on its grid. Raises ValueError for a text that is none."""
    try:
        size, packed = text.split(":")
        width, height = map(int, size.split("x"))
        count = width * height
        if not (0 < width <= LONG_SIDE and 0 < height <= LONG_SIDE):
            raise ValueError(f"a grid of {width} × {height} cells")
        # No more is inflated than the grid can hold.
        raw = zlib.decompressobj().decompress(base64.b64decode(packed, validate=True), (count + 7) // 8)
        if len(raw) != (count + 7) // 8:
            raise ValueError(f"{len(raw)} bytes for {count} cells")
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=count).reshape(height, width).astype(bool)
    except (ValueError, binascii.Error, zlib.error) as error:
        raise ValueError(f"{text[:40]!r} is no mask ({error})") from error


def on_white(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture with white where the mask is not."""
    full = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
    inside = full.point(lambda value: 255 if value >= 128 else 0)
    return Image.composite(picture, Image.new("RGB", picture.size, (255, 255, 255)), inside)
