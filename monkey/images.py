"""Opening a picture that the caller hands over, whatever it is, as an RGB PIL image.

Accepted: PIL images, numpy arrays, torch tensors, bytes, data-URIs and paths. Nothing is fetched from an address, and
only the formats of `FORMATS` are decoded: none that runs another program (EPS, PDF). Bytes and pixels are limited
before anything is decoded.

Letters: H height, W width.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""By which the pictures of a folder are told from its other files."""

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 100_000_000

# What PIL's plugins raise on damaged files (flipping bytes in files of each format raises about half of these).
_DECODER_ERRORS = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

# Undoing each EXIF orientation; 1, the upright one, and unknown numbers need nothing.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# How files begin that people hand over in a picture's place.
_NOT_PICTURES = (
    (rb"%PDF-", "a PDF; render its pages to PNG first"),
    (rb"%!PS", "PostScript; render it to PNG first"),
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the picture itself with `git lfs pull`"),
    (rb"<svg|<\?xml", "an SVG drawing or another XML file; render it to PNG first"),
    (rb"<!doctype html|<html", "a web page"),
    (rb"....ftyp", "HEIC, AVIF or a film; save it as JPEG or PNG first"),
)

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


def open_image(
    source: Any,
    *,
    apply_exif: bool = True,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> Image.Image:
    """The picture as a new RGB image, its first frame if it moves.

    Transparency is dropped as PIL's `convert("RGB")` drops it, which is what the published code does. Grey values of
    16 bits are scaled to 8 rather than clipped.

    Args:
        source: PIL image; array or tensor [H, W], [H, W, 1 | 3 | 4] or [1 | 3 | 4, H, W] of uint8, uint16, or floats
            in [0, 1]; bytes of a file; `data:image/…;base64,…`; path.
        apply_exif: turn the picture upright by its EXIF orientation. The published code ignores it; False does too.
            TIFF is turned by PIL itself as it decodes, in both.
        max_bytes: largest file.
        max_pixels: largest H·W. PIL's own limit, about 179 million, stays in force above it.
        name: what errors call the picture, when it is not a path.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else that is wrong with it, in one sentence that names it.
        TypeError: an object of a kind that is not accepted.
    """
    if isinstance(source, (str, os.PathLike)):
        name, source = _read_named(os.fspath(source), max_bytes, name)
    name = name or "the picture"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), apply_exif, max_bytes, max_pixels, name)
    if not isinstance(source, Image.Image):
        source = _from_array(_as_array(source, name), name)
        apply_exif = False
    return _as_rgb(source, apply_exif, max_pixels, name)


def stored_size(path: str | os.PathLike) -> tuple[tuple[int, int], int]:
    """Return width and height as a file stores its picture, and the EXIF orientation (1 is upright), from the header.

    Raises:
        FileNotFoundError, ValueError: as `open_image`, which is asked what is wrong with a header that cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size, _orientation(image) or 1
    except (*_DECODER_ERRORS, Image.DecompressionBombError):
        return open_image(path, apply_exif=False).size, 1


def _read_named(text: str | bytes, max_bytes: int, name: str | None) -> tuple[str, bytes]:
    """Name and bytes of a data-URI or a file."""
    text = os.fsdecode(text)
    if text[:5].lower() == "data:":
        return name or "the data-URI", _read_data_uri(text, max_bytes, name or "the data-URI")
    if _ADDRESS.match(text):
        raise ValueError(f"{_shortened(text)} is an address, and pictures are not fetched; download it first")
    return text, _read_file(text, max_bytes)


def _read_data_uri(text: str, max_bytes: int, name: str) -> bytes:
    head = _DATA_URI.match(text)
    if head is None:
        raise ValueError(f"{name} begins {_shortened(text, 40)!r}, and only data:image/…;base64,… is accepted")
    encoded = text[head.end() :]
    _check_bytes(len(encoded) // 4 * 3, max_bytes, name)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is not strict base64 ({error})") from error


def _read_file(path: str, max_bytes: int) -> bytes:
    if "\0" in path:
        raise ValueError(f"{_shortened(path)!r} is not a path: it holds a NUL character")
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{path} is a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        _check_bytes(status.st_size, max_bytes, path)
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)  # one more, so that a file that grew meanwhile is found out
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_shortened(path)}: no such picture") from error
    except OSError as error:
        raise ValueError(f"{_shortened(path)} cannot be read: {error.strerror}") from error


def _check_bytes(count: int, max_bytes: int, name: str) -> None:
    if count > max_bytes:
        raise ValueError(f"{name} has {count:,} bytes, more than the {max_bytes:,} allowed (max_bytes)")


def _check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width * height:,} pixels ({width} × {height}), more than the {max_pixels:,} allowed "
            "(max_pixels); make it smaller first"
        )
    if not width * height:
        raise ValueError(f"{name} has no pixels ({width} × {height})")


def _decode(data: bytes, apply_exif: bool, max_bytes: int, max_pixels: int, name: str) -> Image.Image:
    """RGB image of a file's bytes."""
    if not data:
        raise ValueError(f"{name} is empty")
    _check_bytes(len(data), max_bytes, name)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        # PIL refuses by itself at twice its own limit, and tells the pixels only in its message.
        found = re.search(r"\d+", str(error))
        pixels = f"{int(found.group()):,} pixels" if found else "too many pixels"
        raise ValueError(
            f"{name} has {pixels}, more than the {max_pixels:,} allowed (max_pixels); make it smaller first"
        ) from error
    except _DECODER_ERRORS as error:
        raise ValueError(f"{name} {_what_it_is(data)}") from error
    return _as_rgb(image, apply_exif, max_pixels, name)


def _what_it_is(data: bytes) -> str:
    """The end of a sentence that begins with the name of something that is no picture."""
    for beginning, kind in _NOT_PICTURES:
        if re.match(beginning, data[:64].lstrip(), re.IGNORECASE | re.DOTALL):
            return f"is {kind}"
    return f"is not a picture that can be read; formats are {', '.join(FORMATS)}"


def _as_rgb(image: Image.Image, apply_exif: bool, max_pixels: int, name: str) -> Image.Image:
    """Decode the first frame, turn it upright and make it RGB."""
    _check_pixels(image.size, max_pixels, name)
    try:
        image.load()
    except _DECODER_ERRORS as error:
        raise ValueError(f"{name} is damaged or cut off: {error}") from error
    turn = _UPRIGHT.get(_orientation(image)) if apply_exif else None
    try:
        rgb = _TO_RGB.get(image.mode, _convert)(image)
    except ValueError as error:
        raise ValueError(f"{name} (PIL mode {image.mode}) cannot be made RGB: {error}") from error
    # The new image must not say that it is still to be turned, or keep text that came with the file.
    rgb.info = {}
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int | None:
    """EXIF orientation, or None where there is none that can be read: the picture itself may be sound."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _DECODER_ERRORS:
        return None


def _convert(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _from_palette(image: Image.Image) -> Image.Image:
    """By way of RGBA where colours are transparent: the same colours, without PIL's warning."""
    return image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, whose highest value, 65535, becomes 255."""
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _from_floats(image: Image.Image) -> Image.Image:
    """Grey of floats, in [0, 1] or in [0, 255]."""
    values = np.asarray(image)
    if values.max() <= 1:
        values = values * 255
    if not (values.min() >= 0 and values.max() <= 255):
        raise ValueError(f"its values run from {values.min():g} to {values.max():g}, and [0, 1] or [0, 255] are known")
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


_TO_RGB: dict[str, Callable[[Image.Image], Image.Image]] = {
    "P": _from_palette,
    "PA": _from_palette,
    "I": _from_16_bits,
    "I;16": _from_16_bits,
    "I;16B": _from_16_bits,
    "I;16L": _from_16_bits,
    "I;16N": _from_16_bits,
    "F": _from_floats,
}


def _as_array(source: Any, name: str) -> np.ndarray:
    """Array of an array or tensor, or TypeError."""
    torch = sys.modules.get("torch")  # a tensor cannot exist before torch is imported
    if torch is not None and isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        return (source.float() if source.dtype == torch.bfloat16 else source).numpy()
    if isinstance(source, np.ndarray):
        return source
    raise TypeError(
        f"{name} is a {type(source).__name__}, and a picture is a PIL image, array, tensor, bytes, data-URI or path"
    )


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    """Image of [H, W], [H, W, C] or [C, H, W] with C of 1, 3 or 4; where both read, C is last."""
    channels = (1, 3, 4)
    if array.ndim == 3 and array.shape[2] not in channels and array.shape[0] in channels:
        array = np.moveaxis(array, 0, 2)
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in channels)):
        raise ValueError(
            f"{name} has the shape {list(array.shape)}, and [H, W], [H, W, C] or [C, H, W] with C of 1, 3 or 4 is "
            "needed"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(_as_uint8(array, name)))


def _as_uint8(array: np.ndarray, name: str) -> np.ndarray:
    """Values 0 to 255 of uint8, bool, uint16, other integers in that range, or floats in [0, 1]."""
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.int64) + 128) // 257).astype(np.uint8)
    if kind not in "iuf":
        raise ValueError(f"{name} has values of the type {array.dtype}, and integers or floats are needed")
    highest = 1 if kind == "f" else 255
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= highest):  # written so that NaN is refused too
        raise ValueError(f"{name} has {array.dtype} values from {low:g} to {high:g}; they must lie in [0, {highest}]")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8) if kind == "f" else array.astype(np.uint8)


def _shortened(text: str, length: int = 120) -> str:
    """Text that fits in a message."""
    return text if len(text) <= length else text[: length - 1] + "…"
