"""Grids of windows: rows and columns, checked, and from a picture size."""

from __future__ import annotations

from typing import Any

MAX_WINDOWS = 1024
"""Of a grid: more is a slip of the pen, and the canvas would fill any memory."""


def check_grid(grid: Any) -> tuple[int, int]:
    """Rows and columns as a tuple of two positive integers, or ValueError."""
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid):
        raise ValueError(f"grid={grid!r} is not (rows, columns), two positive whole numbers such as (2, 2) or (2, 3)")
    if grid[0] * grid[1] > MAX_WINDOWS:
        raise ValueError(f"grid={grid!r} has more than {MAX_WINDOWS:,} windows; published checkpoints have 4 or 6")
    return int(grid[0]), int(grid[1])


def grid_of_image_size(image_size: Any, window_size: int) -> tuple[int, int]:
    """Grid of a published `image_size`, a number or [height, width], or ValueError when windows do not fill it."""
    sides = [image_size] * 2 if isinstance(image_size, int) else image_size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"visual.image_size={image_size!r} is neither a number of pixels nor [height, width]")
    height, width = sides
    if height % window_size or width % window_size:
        raise ValueError(
            f"image size {height}×{width} is not a whole number of {window_size}-pixel windows; "
            f"the nearest that fits is {max(1, round(height / window_size)) * window_size}×"
            f"{max(1, round(width / window_size)) * window_size}"
        )
    return check_grid((height // window_size, width // window_size))
