"""Sets a page by typst: an image of it, and where each of its words came to stand."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from monkey.data.pages.facts import Box
from monkey.data.pages.typefaces import fonts, import_typst

FOLDER = Path(__file__).with_name("templates")
PAGE = FOLDER / "page.typ"
POINTS_PER_INCH = 72


@dataclass(frozen=True)
class Printed:
    """A word as printed, in pixels.

    Attributes:
        key: of what it is a part: `f:total` of a field's value, `l:total` of its label, `c:0:2:1` of the cell in table
            0, row 2, column 1, `h:0:1` of the head of its column 1, `p` of a paragraph, "" of anything else.
        baseline: the y on which it stands.
        height: of its capital letters.
        colour: of its letters, as #rrggbb.
    """

    key: str
    text: str
    box: Box
    baseline: float
    height: float
    colour: str = ""


class Setting:
    """A page as typst lays it out, in points, one of which is a pixel at a zoom of 1.

    Attributes:
        num_pages: more than one where the content did not fit.
        is_broken: whether a word was too long for its line.
        size: width and height.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        """Lay out; raises typst.TypstError where a template asks for what the content has not."""
        self._compiler = import_typst().Compiler(
            str(PAGE), root=str(FOLDER), font_paths=fonts(), sys_inputs={"page": json.dumps(content)}
        )
        found = json.loads(self._compiler.query("<layout>", field="value", one=True))
        self.num_pages = max([found["page"], *(page for _, page, *_ in found["words"])])
        self.is_broken = any(bottom - top > 1.5 * value[5] for value, _, _, top, bottom in found["words"])
        self.size = content["width"], content["height"] or found["end"] + content["margin"]
        self._words = found["words"]

    def words(self, zoom: float) -> list[Printed]:
        """Return the words of the page at a number of pixels to the point, in the order of the layout."""
        printed = []
        for (key, text, width, ascent, descent, capital, colour), _, x, y, _ in self._words:
            baseline = y + capital  # the top of a word's box of layout is its capitals'
            box = x * zoom, (baseline - ascent) * zoom, (x + width) * zoom, (baseline + descent) * zoom
            printed.append(Printed(key, text, box, baseline * zoom, capital * zoom, colour))
        return printed

    def draw(self, zoom: float) -> Image.Image:
        """Return the first page at a number of pixels to the point."""
        drawn = self._compiler.compile(format="png", ppi=POINTS_PER_INCH * zoom)
        first = drawn[0] if isinstance(drawn, list) else drawn
        return Image.open(io.BytesIO(first)).convert("RGB")
