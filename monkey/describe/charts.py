"""Charts as PNG files that appear whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from monkey.describe.records import REGION, SEGMENT, TEXT
from monkey.journal import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {REGION: "C0", TEXT: "C1", SEGMENT: "C4"}
"""By source, close to those of the page."""


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    """A figure of so many inches, with axes [rows][columns]; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def write_chart(figure: Figure, path: Path) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    write_atomic(path, stream.getvalue())
