"""Typefaces that come with Python packages, so that every machine draws the same pictures; some are held out.

matplotlib brings DejaVu, STIX and Computer Modern, Pillow brings one of its own, and the `font-*` packages of
requirements.txt, each of one family under the SIL Open Font License or Apache 2.0, bring the others.
"""

from __future__ import annotations

import importlib.util
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

MATPLOTLIB = "matplotlib", "mpl-data/fonts/ttf"
SOURCE_SANS = "font_source_sans_pro", "files"
SOURCE_SERIF = "font_source_serif_pro", "files"


@dataclass(frozen=True)
class Family:
    """One typeface: the package and folder that bring it, and its regular and bold files.

    Without a package it is Pillow's own.
    """

    name: str
    package: str = ""
    folder: str = ""
    regular: str = ""
    bold: str = ""


FAMILIES = (
    Family("Aileron"),
    Family("DejaVu Sans", *MATPLOTLIB, "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    Family("DejaVu Serif", *MATPLOTLIB, "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    Family("DejaVu Sans Mono", *MATPLOTLIB, "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    Family("STIX", *MATPLOTLIB, "STIXGeneral.ttf", "STIXGeneralBol.ttf"),
    Family("Computer Modern", *MATPLOTLIB, "cmr10.ttf", "cmb10.ttf"),
    Family("Computer Modern Sans", *MATPLOTLIB, "cmss10.ttf", "cmss10.ttf"),
    Family("Roboto", "font_roboto", "files", "Roboto-Regular.ttf", "Roboto-Bold.ttf"),
    Family("Source Sans Pro", *SOURCE_SANS, "SourceSansPro-Regular.ttf", "SourceSansPro-Bold.ttf"),
    Family("Source Serif", *SOURCE_SERIF, "SourceSerifPro-Regular.ttf", "SourceSerifPro-Bold.ttf"),
)
"""Families of the held-out split with known typefaces, and of the train split, which has `MORE_FAMILIES` too."""

MORE_FAMILIES = (
    Family("Hanken Grotesk", "font_hanken_grotesk", "files", "HankenGrotesk-Regular.otf", "HankenGrotesk-Bold.otf"),
    Family("Computer Modern Typewriter", *MATPLOTLIB, "cmtt10.ttf", "cmtt10.ttf"),
    Family("Roboto Light", "font_roboto", "files", "Roboto-Light.ttf", "Roboto-Medium.ttf"),
    Family("Roboto Medium", "font_roboto", "files", "Roboto-Medium.ttf", "Roboto-Black.ttf"),
    Family("Source Sans Light", *SOURCE_SANS, "SourceSansPro-Light.ttf", "SourceSansPro-Semibold.ttf"),
    Family("Source Serif Light", *SOURCE_SERIF, "SourceSerifPro-Light.ttf", "SourceSerifPro-Semibold.ttf"),
    Family("Source Serif Semibold", *SOURCE_SERIF, "SourceSerifPro-Semibold.ttf", "SourceSerifPro-Black.ttf"),
)
"""What else is trained on: two typefaces and other weights, so that a letter is known by more than ten shapes."""

HELD_OUT_FAMILIES = (
    Family("Lato", "font_lato", "files", "Lato-Regular.ttf", "Lato-Bold.ttf"),
    Family("Caladea", "font_caladea", "files", "Caladea-Regular.ttf", "Caladea-Bold.ttf"),
    Family("Manrope", "font_manrope", "files", "Manrope-Regular.ttf", "Manrope-Bold.ttf"),
)
"""Families that no train picture uses: a sans, a serif and a geometric sans."""


def font_file(family: Family, bold: bool) -> Path:
    """Return the font file of a family. Raises ValueError saying what to install."""
    spec = importlib.util.find_spec(family.package)
    if spec is None or not spec.submodule_search_locations:
        name = family.package.replace("_", "-")
        raise ValueError(f"a typeface of the drawn documents is missing: pip install {name} (see requirements.txt)")
    folder = Path(next(iter(spec.submodule_search_locations)), family.folder)
    return folder / (family.bold if bold else family.regular)


@lru_cache(maxsize=512)
def font(family: Family, size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Open a font at `size` pixels. Raises ValueError where its package is not installed, or Pillow lacks FreeType."""
    if family.package:
        return ImageFont.truetype(str(font_file(family, bold)), size)
    loaded = ImageFont.load_default(size)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise ValueError("this Pillow was built without FreeType; install its wheel from PyPI")
    return loaded


@cache
def capital_height(family: Family, size: int, bold: bool = False) -> int:
    """Return the height of a capital letter in pixels."""
    _, top, _, bottom = font(family, size, bold).getbbox("H")
    return int(bottom - top)


@lru_cache(maxsize=65536)
def advance(family: Family, size: int, bold: bool, character: str) -> float:
    """Return the pixels from one character to the next, kerning aside."""
    return font(family, size, bold).getlength(character)


def pick(rng: random.Random, held_out_face: bool, held_out: bool) -> Family:
    """Choose a family to draw a page with.

    Args:
        held_out_face: one that no train picture uses.
        held_out: for a held-out split, where known typefaces are those of `FAMILIES`.
    """
    if held_out_face:
        return rng.choice(HELD_OUT_FAMILIES)
    return rng.choice(FAMILIES if held_out else FAMILIES + MORE_FAMILIES)
