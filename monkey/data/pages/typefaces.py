"""Typefaces that come with Python packages, so that every machine draws the same pages; some are held out.

typst brings Libertinus and New Computer Modern, matplotlib brings DejaVu and STIX, and the `font-*` packages of
requirements.txt, each of one family under the SIL Open Font License or Apache 2.0, bring the others. All of them have
the letters of western Europe, € and £.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typst


@dataclass(frozen=True)
class Family:
    """One typeface.

    Attributes:
        name: as the font files call it.
        package: what brings it; none where typst itself or matplotlib does.
        is_mono: whether all letters are as wide, as a cash register prints.
        is_display: whether it is for titles and signs, and not for text.
        is_typst: whether typst alone has it, so that no chart can be drawn with it.
        weights: of which one is the weight of a page's text.
    """

    name: str
    package: str = ""
    is_mono: bool = False
    is_display: bool = False
    is_typst: bool = False
    has_bold: bool = True
    weights: tuple[int, ...] = (400,)


FAMILIES = (
    Family("DejaVu Sans"),
    Family("DejaVu Serif"),
    Family("DejaVu Sans Mono", is_mono=True),
    Family("STIXGeneral"),
    Family("New Computer Modern", is_typst=True),
    Family("Roboto", "font_roboto", weights=(400, 400, 300, 500)),
    Family("Source Sans Pro", "font_source_sans_pro", weights=(400, 400, 300, 600)),
    Family("Source Serif Pro", "font_source_serif_pro", weights=(400, 400, 300, 600)),
    Family("Hanken Grotesk", "font_hanken_grotesk", weights=(400, 400, 300, 500)),
    Family("Red Hat Display", "font_rhd", weights=(400, 500)),
    Family("Fjalla One", "font_fjallaone", has_bold=False),
    Family("Fredoka One", "font_fredoka_one", is_display=True, has_bold=False),
)
"""Families of training."""

HELD_OUT_FAMILIES = (
    Family("Lato", "font_lato"),
    Family("Caladea", "font_caladea"),
    Family("Manrope", "font_manrope"),
    Family("Libertinus Serif", is_typst=True),
)
"""Families that no page of training uses: a sans, two serifs and a geometric sans."""


@cache
def font_folders() -> tuple[str, ...]:
    """Return the folders with font files. Raises ValueError saying what to install."""
    import matplotlib

    folders = [Path(matplotlib.get_data_path(), "fonts", "ttf")]
    for family in FAMILIES + HELD_OUT_FAMILIES:
        if not family.package:
            continue
        spec = importlib.util.find_spec(family.package)
        if spec is None or not spec.submodule_search_locations:
            name = family.package.replace("_", "-")
            raise ValueError(f"a typeface of the drawn pages is missing: pip install {name} (see requirements.txt)")
        folders.append(Path(next(iter(spec.submodule_search_locations)), "files"))
    return tuple(map(str, folders))


def import_typst() -> ModuleType:
    """Return the package typst. Raises ValueError saying what to install."""
    try:
        import typst
    except ImportError as error:
        raise ValueError(
            "pages are set by the package typst, which is not installed: pip install 'monkey[documents]'"
        ) from error
    return typst


@cache
def fonts() -> typst.Fonts:
    """Return the fonts for typst: none of the machine's own."""
    return import_typst().Fonts(include_system_fonts=False, font_paths=list(font_folders()))


@cache
def add_fonts_to_matplotlib() -> None:
    """Make matplotlib take the families from the packages' files, before those that the machine may have."""
    from matplotlib import font_manager

    paths = sorted(font_manager.findSystemFonts(list(font_folders())))
    for path in paths:
        font_manager.fontManager.addfont(path)
    ours = set(paths)
    font_manager.fontManager.ttflist.sort(key=lambda entry: entry.fname not in ours)
