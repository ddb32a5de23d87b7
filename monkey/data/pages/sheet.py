"""A sheet with a few pages of each kind, to be looked at."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from PIL import Image

from monkey.data.pages.drawing import Limits, draw_page
from monkey.data.pages.facts import Page

GROUND = "#8a9099"
GAP = 8


def draw_pages(kinds: Sequence[str], each: int, seed: int, limits: Limits) -> Iterable[Page]:
    """Draw so many pages of each kind, one in three of them held out."""
    for kind in kinds:
        for number in range(each):
            split = "heldout" if number % 3 == 2 else "train"
            yield draw_page(kind, random.Random(f"{seed} {kind} {number}"), split, limits)


def lay_out(pages: Iterable[Page], width: int, height: int) -> Image.Image:
    """Return one image of all pages, row by row, each reduced to a height, or to one and a half times that across."""
    rows: list[list[Image.Image]] = [[]]
    for page in pages:
        image = page.image
        scale = min(height / image.height, 1.5 * height / image.width)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        small = image.resize(size, Image.Resampling.LANCZOS)
        if rows[-1] and sum(one.width + GAP for one in rows[-1]) + small.width + GAP > width:
            rows.append([])
        rows[-1].append(small)
    heights = [max((image.height for image in row), default=0) for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + GAP * (len(rows) + 1)), GROUND)
    y = GAP
    for row, high in zip(rows, heights, strict=True):
        x = GAP
        for image in row:
            sheet.paste(image, (x, y + (high - image.height) // 2))
            x += image.width + GAP
        y += high + GAP
    return sheet
