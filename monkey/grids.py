"""Grids of windows: which there are, which of them an image lies on, and where a window of one lies in another.

Nothing here knows of a model, and nothing but Python is imported.

Method: Monkey, arXiv 2311.06607.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

MAX_WINDOWS = 1024
"""Of a grid: more is a slip of the pen, and the canvas would fill any memory."""

Grid = tuple[int, int]
"""Rows and columns of windows."""

NO_WINDOWS: Grid = (0, 0)
"""Of an image that is seen as its global view alone."""

FITS = ("stretch", "pad")
"""How an image comes onto its canvas: stretched over it, or with its ratio kept and the rest filled."""

_UP_TO = re.compile(r"up-to-([1-9][0-9]*)")


def check_grid(grid: Any, name: str = "grid") -> Grid:
    """Return rows and columns as a tuple of two positive integers, or raise ValueError that calls them `name`."""
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid):
        raise ValueError(f"{name}={grid!r} is not (rows, columns), two positive whole numbers such as (2, 2) or (2, 3)")
    if grid[0] * grid[1] > MAX_WINDOWS:
        raise ValueError(f"{name}={grid!r} has more than {MAX_WINDOWS:,} windows; published checkpoints have 4 or 6")
    return int(grid[0]), int(grid[1])


def expand_grids(grids: str | Sequence[Sequence[int]]) -> tuple[Grid, ...]:
    """Return the grids of a set, those of fewest windows first, of as many those of fewest rows.

    Args:
        grids: "up-to-N", every grid of at most N windows, or a list of [rows, columns].

    Raises:
        ValueError: neither of these, an empty list, or a grid of more than `MAX_WINDOWS` windows.
    """
    if isinstance(grids, str) and (match := _UP_TO.fullmatch(grids)):
        most = int(match[1])
        if most > MAX_WINDOWS:
            raise ValueError(f"grids={grids!r} has grids of more than {MAX_WINDOWS:,} windows; 'up-to-6' has 14 grids")
        expanded = {(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)}
    elif isinstance(grids, (tuple, list)) and grids:
        expanded = {check_grid(grid, f"grids[{index}]") for index, grid in enumerate(grids)}
    else:
        what = "is empty" if grids in ([], ()) else "is no set of grids"
        raise ValueError(
            f"grids={grids!r} {what}; give 'up-to-6' for all of at most six windows, a list such as [[1, 2], [2, 1]], "
            "or None to put every image on `grid`"
        )
    return tuple(sorted(expanded, key=lambda grid: (grid[0] * grid[1], grid[0])))


def plain_grids(grids: str | Sequence[Sequence[int]]) -> str | list[list[int]]:
    """Return a set of grids as JSON holds it, the same however it was written; ValueError as of `expand_grids`."""
    expanded = [list(grid) for grid in expand_grids(grids)]
    return grids if isinstance(grids, str) else expanded


def check_fit(fit: Any) -> None:
    """Raise ValueError for what is not one of `FITS`."""
    if fit not in FITS:
        raise ValueError(f"fit={fit!r} is not one of {', '.join(map(repr, FITS))}")


def placed_windows(old_grid: Grid, new_grid: Grid) -> list[int]:
    """Return which window of the old grid each window of the new one lies in, row by row.

    That is where a window's adapters come from: when a model moves to another grid, and when an image lies on another
    grid than the model's. The rule: the old window that holds the centre of the new one when both grids cover the same
    image; a centre on a border belongs to the window after it. (2, 2) → (2, 3) gives [0, 1, 1, 2, 3, 3].
    """

    def along(old: int, new: int) -> list[int]:
        return [(2 * index + 1) * old // (2 * new) for index in range(new)]

    (old_rows, old_columns), (new_rows, new_columns) = old_grid, new_grid
    return [
        row * old_columns + column for row in along(old_rows, new_rows) for column in along(old_columns, new_columns)
    ]


@functools.lru_cache(maxsize=4096)
def choose_grid(size: tuple[int, int], grids: tuple[Grid, ...], window_size: int) -> Grid:
    """Return the grid whose canvas distorts and loses least of an image.

    The image is thought of with its ratio kept, as large as the canvas holds it. Two parts tell how they suit each
    other: *shape*, the part of the canvas that the image covers then (1 for a canvas of its ratio), and *detail*, the
    part of the image's pixels that it is shown with, where half of them or more count as all. The grid of the largest
    shape · detail is taken; of equal ones that of fewest windows, of as many that of fewest rows.

    So an image that every canvas shows in detail lies on the grid of the nearest ratio, and of 1×1 and 2×2 on the
    larger one where it has more than half of the pixels of that: both as InternVL chooses (arXiv 2404.16821). InternVL
    takes the nearest ratio for large images too. With as few windows as here that would put a page (1 to √2) on 2×1
    windows rather than on the 2×2 that show it at twice the size.

    Args:
        size: height and width of the image in pixels.
        grids: those allowed.
        window_size: pixels of a window's side.
    """
    height, width = size

    def suit(grid: Grid) -> tuple[float, int, int]:
        rows, columns = grid
        inner, outer = sorted((height * columns, width * rows))
        shown, pixels = 2 * inner * rows * columns * window_size**2, outer * height * width
        # One division of whole numbers, so that grids that suit alike are equal.
        return inner * min(shown, pixels) / (outer * pixels), -rows * columns, -rows

    return max(grids, key=suit)
