"""Typefaces: Pillow's built-in scalable one, which is always there, and well-known others if installed."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

KNOWN_FONTS = (
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono-Bold.ttf",
    "LiberationSans-Bold.ttf",
    "LiberationSerif-Bold.ttf",
    "NotoSans-Bold.ttf",
    "Arial Bold.ttf",
    "arialbd.ttf",
)
"""File names that Pillow looks up in the system's font folders."""


@lru_cache(maxsize=512)
def load_font(file: str | None, size: int) -> ImageFont.FreeTypeFont:
    """The font of a file, or Pillow's own for None, at `size` pixels."""
    if file is not None:
        return ImageFont.truetype(file, size)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ValueError(
            "this Pillow was built without FreeType and cannot draw text at a size; install its wheel from PyPI"
        )
    return font


def require_font(file: str) -> str:
    """The file, if Pillow can draw with it; ValueError otherwise."""
    try:
        load_font(file, 16)
    except OSError as error:
        raise ValueError(f"--fonts {file} cannot be opened as a font: {error}") from None
    return file


def installed_fonts() -> tuple[str, ...]:
    """The files of KNOWN_FONTS that this machine has, in the order of the table."""
    files = []
    for name in KNOWN_FONTS:
        try:
            files.append(str(ImageFont.truetype(name, 16).path))
        except OSError:  # Pillow's only way to say that the font is not installed
            continue
    return tuple(files)


def describe_font(file: str | None) -> dict[str, str]:
    """The name, style and content hash of a font, for the manifest."""
    family, style = load_font(file, 16).getname()
    entry = {"family": str(family), "style": str(style)}
    if file is None:
        return {**entry, "source": "built into Pillow"}
    return {**entry, "source": Path(file).name, "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}
