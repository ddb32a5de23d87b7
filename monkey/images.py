"""Opening an image that the caller hands over, whatever it is, as an RGB PIL image.

Accepted: PIL images, numpy arrays, torch tensors, bytes, open files, data-URIs and paths. Nothing is fetched from an
address, and only the formats of `FORMATS` are decoded. Bytes and pixels are limited before anything is decoded.

Letters: H height, W width.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import math
import os
import re
import stat
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

_ENDINGS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "PCX": (".pcx",),
    "PSD": (".psd",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "XBM": (".xbm",),
    "TGA": (".tga", ".vda", ".icb", ".vst"),  # last, since it has no beginning that tells it from other files
}
"""What is read, with the endings of its files: the rasters that Pillow decodes by itself and in C.

Not read are those that start another program or a system's renderer (EPS, WMF), that hold others whose size is not
known before they are decoded (ICO, ICNS, FITS, IPTC), that Pillow decodes in Python, minutes for a large one in which
nothing else of the program moves (QOI, XPM, DDS, BLP), and those that it only recognises or that no page comes in.
"""

FORMATS = tuple(_ENDINGS)

_UNREAD_ENDINGS = (".heic", ".heif", ".hif", ".jxl", ".svg", ".eps", ".wmf", ".emf", ".ico", ".qoi", ".dds")

IMAGE_ENDINGS = (*(ending for endings in _ENDINGS.values() for ending in endings), *_UNREAD_ENDINGS)
"""By which the images of a folder are told from its other files; some cannot be read, and are refused by name."""

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 100_000_000

# What PIL's plugins raise on damaged files (flipping bytes in files of each format raises about half of these).
DECODER_ERRORS = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

# How files begin that people hand over in an image's place.
_OTHER_KINDS = (
    (rb"%PDF-", "a PDF; render its pages to PNG first"),
    (rb"%!PS", "PostScript; render it to PNG first"),
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the image itself with `git lfs pull`"),
    (rb"<svg|<\?xml", "an SVG drawing or another XML file; render it to PNG first"),
    (rb"<!doctype html|<html", "a web page"),
    (rb"....ftyp(hei|hev|mif1|msf1)", "HEIC, which is not read here; save it as JPEG or PNG first"),
    (rb"....ftypavi[fs]", "an AVIF that is damaged, or that this Pillow was built without; save it as PNG first"),
    (rb"\xff\x0a|....JXL ", "JPEG XL, which is not read here; save it as JPEG or PNG first"),
    (rb"....ftyp", "a film; save one of its frames as PNG first"),
)


class StoredImage(bytes):
    """The bytes of an image that lies within a file of records, and what messages call it.

    Two are equal where their bytes are, so that records about one image are known as such.
    """

    name: str

    def __new__(cls, content: bytes, name: str) -> StoredImage:
        stored = super().__new__(cls, content)
        stored.name = name
        return stored

    def __getnewargs__(self) -> tuple[bytes, str]:
        return bytes(self), self.name

    def __repr__(self) -> str:
        return f"<image {hashlib.blake2b(self, digest_size=16).hexdigest()}>"

    def __str__(self) -> str:
        return self.name


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


def split_names(names: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Names of images in their order, those that cannot be read included, and how many others there are by ending."""
    images, others = [], Counter()
    for name in sorted(names):
        if name.lower().endswith(IMAGE_ENDINGS):
            images.append(name)
        else:
            others[PurePath(name).suffix.lower() or "no ending"] += 1
    return images, dict(others.most_common())


def describe_others(others: Mapping[str, int], before: str) -> str:
    """How many files of a folder are no images, behind `before`; nothing where there are none."""
    kinds = ", ".join(f"{count:,} {ending}" for ending, count in others.items())
    total = sum(others.values())
    return f"{before}{total:,} other file{'s' * (total > 1)} ({kinds})" if others else ""


def open_image(
    source: Any,
    *,
    apply_exif: bool = True,
    published_pixels: bool = False,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> Image.Image:
    """The image as people see it: a new RGB image, its first frame if it moves, on white where it is transparent.

    Args:
        source: PIL image; array or tensor [H, W], [H, W, 1 | 3 | 4] or [1 | 3 | 4, H, W] of uint8, uint16, or floats
            in [0, 1]; bytes of a file; a file open for reading bytes, from its start; `data:image/…;base64,…`; path.
        apply_exif: turn the image upright by its EXIF orientation. The published code ignores it; False does too.
            TIFF is turned by PIL itself as it decodes, in both.
        published_pixels: make it RGB by PIL's `convert("RGB")` alone, as the published code does: what lies under
            transparency shows, black as a rule, and grey of more than 8 bits is clipped to white.
        max_bytes: largest file.
        max_pixels: largest H·W. PIL's own limit, about 179 million, stays in force above it.
        name: what errors call the image, when it is not a path.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else that is wrong with it, in one sentence that names it.
        TypeError: an object of a kind that is not accepted.
    """
    if isinstance(source, (str, os.PathLike)):
        name, source = _read_named(os.fspath(source), max_bytes, name)
    elif hasattr(source, "read"):
        given = getattr(source, "name", None)  # a number where the file has no name
        name = name or (f"the open file {given}" if isinstance(given, str) else "the open file")
        source = _read_open_file(source, max_bytes, name)
    name = name or (source.name if isinstance(source, StoredImage) else "the image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = _open_bytes(bytes(source), max_bytes, max_pixels, name)
    if not isinstance(source, Image.Image):
        source = _image_of_array(_to_array(source, name), name)
        apply_exif = False
    return _decode(source, apply_exif, published_pixels, max_pixels, name)


def stored_size(image: str | os.PathLike | StoredImage) -> tuple[tuple[int, int], int]:
    """Return width and height as a file stores its image, and the EXIF orientation (1 is upright), from the header.

    Raises:
        FileNotFoundError, ValueError: as `open_image`, which is asked what is wrong with a header that cannot be read.
    """
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=FORMATS) as opened:
            return opened.size, _read_orientation(opened) or 1
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return open_image(image, apply_exif=False).size, 1


def has_sound_header(image: str | os.PathLike | StoredImage, max_bytes: int, max_pixels: int) -> bool:
    """Return whether an image's header can be read and is within the limits; what is wrong `open_image` says."""
    try:
        size = len(image) if isinstance(image, bytes) else os.stat(image).st_size
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=FORMATS) as opened:
            return math.prod(opened.size) <= max_pixels and size <= max_bytes
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return False


def image_size(source: Any, *, name: str | None = None, **opening: Any) -> tuple[int, int]:
    """Return height and width of what `open_image` makes of a source, from its header where that says it.

    Args:
        source, name, opening: as of `open_image`, whose errors these are. An open file must be one that can go back to
            its start, since the image is still to be read from it.
    """
    apply_exif = opening.get("apply_exif", True)
    if isinstance(source, Image.Image):
        return _upright_size(source, apply_exif)
    header: Any = None
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        if text[:5].lower() == "data:":
            name, source = _read_named(text, opening.get("max_bytes", MAX_BYTES), name)
        elif os.path.isfile(text) and os.path.getsize(text):  # see `read_image_file`
            header = text
    if isinstance(source, (bytes, bytearray, memoryview)):
        header = io.BytesIO(source)
    elif hasattr(source, "read"):
        if not source.seekable():
            raise ValueError(f"{name or 'the open file'} can be read only once, and its size is needed before: read it")
        source.seek(0)
        header = source
    if header is not None:
        try:
            with Image.open(header, formats=FORMATS) as image:
                return _upright_size(image, apply_exif)
        except (*DECODER_ERRORS, Image.DecompressionBombError):
            pass  # which `open_image` says in its own words
    opened = open_image(source, name=name, **opening)
    return opened.height, opened.width


def _upright_size(image: Image.Image, apply_exif: bool) -> tuple[int, int]:
    """Height and width of an image that may not be decoded yet."""
    width, height = image.size
    # TIFF's size is that of the turned image from the start, since PIL turns it as it decodes.
    if not apply_exif or image.format == "TIFF" or width == height or _has_no_exif(image):
        return height, width
    return (width, height) if _read_orientation(image) in (5, 6, 7, 8) else (height, width)


def _has_no_exif(image: Image.Image) -> bool:
    """Whether this is a PNG without EXIF, for which PIL would decode it, since EXIF may stand behind the pixels."""
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None or {"exif", "Raw profile type exif"} & set(image.info):
        return False
    before = file.tell()
    try:
        file.seek(8)
        kind = b""
        while kind != b"IEND" and len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return False
            file.seek(length + 4, os.SEEK_CUR)
        return True
    finally:
        file.seek(before)


def _read_named(text: str | bytes, max_bytes: int, name: str | None) -> tuple[str, bytes]:
    """Name and bytes of a data-URI or a file."""
    text = os.fsdecode(text)
    if text[:5].lower() == "data:":
        return name or "the data-URI", read_data_uri(text, max_bytes, name or "the data-URI")
    if _ADDRESS.match(text):
        raise ValueError(f"{_shorten(text)} is an address, and images are not fetched; download it first")
    return text, read_image_file(text, max_bytes)


def read_data_uri(text: str, max_bytes: int = MAX_BYTES, name: str = "the data-URI") -> bytes:
    """Return the bytes in `data:image/…;base64,…`; ValueError, which begins with `name`, for what is none."""
    head = _DATA_URI.match(text)
    if head is None:
        raise ValueError(f"{name} begins {_shorten(text, 40)!r}, and only data:image/…;base64,… is accepted")
    encoded = text[head.end() :]
    _check_bytes(len(encoded) // 4 * 3, max_bytes, name)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is not strict base64 ({error})") from error


def read_image_file(path: str | os.PathLike, max_bytes: int = MAX_BYTES, name: str | None = None) -> bytes:
    """The bytes of a file that can be read at once: no folder, no pipe, and nothing that makes a reader wait.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else that is wrong with it, in one sentence that names it.
    """
    path = os.fspath(path)
    if "\0" in path:
        raise ValueError(f"{_shorten(path)!r} is not a path: it holds a NUL character")
    shown = name or _shorten(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{shown} is a folder, not an image")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{shown} is not a regular file")
        if not status.st_size:
            # Never read: the kernel's files in /proc call themselves empty, and some make a reader wait for ever.
            raise ValueError(f"{shown} is empty")
        _check_bytes(status.st_size, max_bytes, shown)
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)  # one more, so that a file that grew meanwhile is found out
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{shown}: no such image") from error
    except OSError as error:
        raise ValueError(f"{shown} cannot be read: {error.strerror}") from error


def _read_open_file(file: Any, max_bytes: int, name: str) -> bytes:
    """The bytes of a file object, from its start where it can go there, as PIL reads it."""
    try:
        if file.seekable():
            file.seek(0)
        content = file.read(max_bytes + 1)
    except (AttributeError, OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    if not isinstance(content, bytes):
        raise ValueError(f'{name} gives {type(content).__name__} and not bytes; open it with mode "rb"')
    return content


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


def _open_bytes(data: bytes, max_bytes: int, max_pixels: int, name: str) -> Image.Image:
    """A file's image, not decoded yet."""
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
    except DECODER_ERRORS as error:
        raise ValueError(f"{name} {_recognise(data)}") from error
    if image.format == "PNG" and image.tile and "transparency" in image.info:
        image.info["transparency"] = _match_decoded(image.info["transparency"], image.tile[0][3])
    return image


def _match_decoded(clear: Any, bits: str) -> Any:
    """The transparent grey or colour of a PNG in 8 bits, which PIL decodes the others to and leaves this one out."""
    if bits in ("L;2", "L;4"):
        return clear * (85 if bits == "L;2" else 17)
    return tuple(value >> 8 for value in clear) if bits == "RGB;16B" else clear


def _recognise(data: bytes) -> str:
    """The end of a sentence that begins with the name of something that is no image."""
    for beginning, kind in _OTHER_KINDS:
        if re.match(beginning, data[:64].lstrip(), re.IGNORECASE | re.DOTALL):
            return f"is {kind}"
    return f"is not an image that can be read; formats are {', '.join(FORMATS)}"


def _decode(image: Image.Image, apply_exif: bool, published_pixels: bool, max_pixels: int, name: str) -> Image.Image:
    """Decode the first frame, turn it upright and make it RGB."""
    _check_pixels(image.size, max_pixels, name)
    try:
        image.load()
    except DECODER_ERRORS as error:
        raise ValueError(f"{name} is damaged or cut off: {error}") from error
    try:
        rgb = _convert(image) if published_pixels else _flatten(image)
    except ValueError as error:
        raise ValueError(f"{name} (PIL mode {image.mode}) cannot be made RGB: {error}") from error
    # The new image must not say that it is still to be turned, or keep text that came with the file.
    rgb.info = {}
    orientation = _read_orientation(image) if apply_exif else 1
    if orientation != 1:
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _read_orientation(image: Image.Image) -> int:
    """EXIF orientation, or 1, upright, where there is none that can be read: the image itself may be sound."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODER_ERRORS:
        return 1


def _convert(image: Image.Image) -> Image.Image:
    """What PIL's `convert("RGB")` gives; of a palette by way of RGBA, the same colours without PIL's warning."""
    has_clear_colours = image.mode in ("P", "PA") and "transparency" in image.info
    return (image.convert("RGBA") if has_clear_colours else image).convert("RGB")


def _flatten(image: Image.Image) -> Image.Image:
    """RGB on white, where a white of more than 8 bits is white."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        grey = Image.fromarray(_scale_floats(values) if image.mode == "F" else _scale_integers(values))
        if isinstance(clear := image.info.get("transparency"), int):
            grey.paste(255, mask=Image.fromarray(values == clear))
        return grey.convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(layers, mask=layers.getchannel("A"))
    return white


def _scale_integers(values: np.ndarray) -> np.ndarray:
    """Grey of up to 16 bits as uint8. White is the highest value of the fewest bits, 8, 10, 12 or 16, that hold all of
    them: a scanner's 12 bits in a file of 16 would be black otherwise."""
    values = values.astype(np.int64)
    if not 0 <= values.min() <= values.max() <= 65535:
        raise ValueError(f"its values run from {values.min()} to {values.max()}, and 0 to 65535 are known")
    white = next(white for white in (255, 1023, 4095, 65535) if values.max() <= white)
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def _scale_floats(values: np.ndarray) -> np.ndarray:
    """Grey of floats, in [0, 1] or in [0, 255], as uint8."""
    if values.max() <= 1:
        values = values * 255
    if not (values.min() >= 0 and values.max() <= 255):
        raise ValueError(f"its values run from {values.min():g} to {values.max():g}, and [0, 1] or [0, 255] are known")
    return np.rint(values).astype(np.uint8)


def _to_array(source: Any, name: str) -> np.ndarray:
    """Array of an array or tensor, or TypeError."""
    torch = sys.modules.get("torch")  # a tensor cannot exist before torch is imported
    if torch is not None and isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        return (source.float() if source.dtype == torch.bfloat16 else source).numpy()
    if isinstance(source, np.ndarray):
        return source
    raise TypeError(
        f"{name} is a {type(source).__name__}, and an image is a PIL image, array, tensor, bytes, open file, data-URI "
        "or path"
    )


def _image_of_array(array: np.ndarray, name: str) -> Image.Image:
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
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array, name)))


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    """Values 0 to 255 of uint8, bool, uint16, other integers in that range, or floats in [0, 1]."""
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return _scale_integers(array)
    if kind not in "iuf":
        raise ValueError(f"{name} has values of the type {array.dtype}, and integers or floats are needed")
    highest = 1 if kind == "f" else 255
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= highest):  # written so that NaN is refused too
        raise ValueError(f"{name} has {array.dtype} values from {low:g} to {high:g}; they must lie in [0, {highest}]")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8) if kind == "f" else array.astype(np.uint8)


def _shorten(text: str, length: int = 120) -> str:
    """Text that fits in a message."""
    return text if len(text) <= length else text[: length - 1] + "…"
