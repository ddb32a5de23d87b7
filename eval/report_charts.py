"""Charts of the report as inline SVG. Positions along a scale are percentages of the drawing's width, so that a chart
follows the page and its letters keep their size; colours are classes of report_page.css.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

ROW_HEIGHT = 26
RUN_OFFSET = 6
"""Pixels between the two runs of a row."""

_SHAPES = {
    "ceiling": '<path d="M0 -9V9"/>',
    "monkey": '<path d="M0 -5 5 0 0 5 -5 0Z"/>',
    "qwen_vl": '<path d="M0 -5 5 4 -5 4Z"/>',
}
LEGEND = {"ceiling": "ceiling", "monkey": "Monkey, published", "qwen_vl": "Qwen-VL, published"}

HISTOGRAM_HEIGHT = 110
PARTIAL_BINS = 10


@dataclass(frozen=True)
class Point:
    """A value with its interval, in the colour of a run ("a" or "b")."""

    value: float
    interval: Sequence[float] | None
    run: str


@dataclass(frozen=True)
class ScaleRow:
    """A line of a chart: what it is, its points, and marks by their name in LEGEND."""

    label: str
    points: Sequence[Point]
    marks: dict[str, float] = field(default_factory=dict)
    caption: str = ""


@dataclass(frozen=True)
class Scale:
    """From `low` at the left to `high` at the right, with the figures that are written under it."""

    low: float
    high: float
    ticks: Sequence[float]

    def place(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(1.0, max(0.0, share)):.2f}%"


PERCENT = Scale(0.0, 100.0, (0, 20, 40, 60, 80, 100))


def symmetric_scale(values: Sequence[float]) -> Scale:
    """A scale round zero that holds all values, with five round figures under it."""
    largest = max((abs(value) for value in values), default=0.0) or 1.0
    step = next(step for step in (0.5, 1, 2, 5, 10, 25, 50, 100) if 2 * step >= largest or step == 100)
    return Scale(-2.2 * step, 2.2 * step, [position * step for position in (-2, -1, 0, 1, 2)])


def scale_chart(rows: Sequence[ScaleRow], scale: Scale, signed: bool = False) -> str:
    """Rows of points with whiskers over one scale; `signed` writes figures with their sign and draws a line at zero."""
    lines = []
    for row in rows:
        drawing = [_grid(scale)]
        offset = RUN_OFFSET / 2 if len(row.points) > 1 else 0
        middle = ROW_HEIGHT / 2
        for name, value in row.marks.items():
            drawing.append(
                f'<svg x="{scale.place(value)}" y="{middle:g}" class="mark {name}">{_SHAPES[name]}'
                f"<title>{LEGEND[name]} {value:.2f}</title></svg>"
            )
        for number, point in enumerate(row.points):
            drawing.append(_point(point, scale, middle + (offset if number else -offset), signed))
        lines.append(
            f'<div class="scale-row"><span class="scale-label">{escape(row.label)}</span>'
            f'<svg class="scale" height="{ROW_HEIGHT}" role="img" aria-label="{escape(row.caption)}">'
            f"{''.join(drawing)}</svg></div>"
        )
    figures = "".join(
        f'<text x="{scale.place(tick)}" y="12">{f"{tick:+g}" if signed and tick else f"{tick:g}"}</text>'
        for tick in scale.ticks
    )
    axis = f'<svg class="scale" height="16" aria-hidden="true">{figures}</svg>'
    return f'<div class="scale-chart">{"".join(lines)}<div class="scale-row axis"><span></span>{axis}</div></div>'


def legend(runs: Sequence[tuple[str, str]], marks: Sequence[str]) -> str:
    """What the dots (letter and name of each run) and the marks mean."""
    dots = [
        f'<span><svg class="run-{letter}"><circle cx="7" cy="9" r="4.5"/></svg>{name}</span>'
        for letter, name in ((letter, escape(name)) for letter, name in runs)
    ]
    shapes = [
        f'<span><svg class="mark {name}"><g transform="translate(7 9)">{_SHAPES[name]}</g></svg>{label}</span>'
        for name, label in LEGEND.items()
        if name in marks
    ]
    return f'<div class="legend">{"".join([*dots, *shapes])}</div>'


def _grid(scale: Scale) -> str:
    return "".join(
        f'<line class="{"zero" if tick == 0 and scale.low < 0 else "grid"}" x1="{scale.place(tick)}" '
        f'x2="{scale.place(tick)}" y1="0" y2="{ROW_HEIGHT}"/>'
        for tick in scale.ticks
    )


def _point(point: Point, scale: Scale, y: float, signed: bool) -> str:
    figure = "{:+.2f}" if signed else "{:.2f}"
    title = figure.format(point.value)
    whisker = ""
    if point.interval is not None:
        low, high = point.interval
        title += f" ({figure.format(low)} to {figure.format(high)})"
        whisker = f'<line x1="{scale.place(low)}" x2="{scale.place(high)}" y1="{y:g}" y2="{y:g}"/>'
    dot = f'<circle cx="{scale.place(point.value)}" cy="{y:g}" r="4.5"/>'
    return f'<g class="run-{point.run}">{whisker}{dot}<title>{title}</title></g>'


def histogram(distributions: Sequence[tuple[str, Sequence[float]]], name: str) -> str:
    """How many rows score 0, between, and 1, for one run or two side by side: (run, scores from 0 to 1) each.

    Bars: exactly 0, ten equal steps between, exactly 1.
    """
    counts = [(run, score_counts(scores)) for run, scores in distributions]
    highest = max((count for _, bars in counts for count in bars), default=0) or 1
    slots = PARTIAL_BINS + 2
    width = 100.0 / slots
    bars = []
    for number, (run, column) in enumerate(counts):
        each = 0.8 * width / len(counts)
        for slot, count in enumerate(column):
            height = max(1.0, (HISTOGRAM_HEIGHT - 18) * count / highest) if count else 0.0
            x = slot * width + 0.1 * width + number * each
            bars.append(
                f'<rect class="bar-{run}" x="{x:.2f}%" width="{each:.2f}%" y="{HISTOGRAM_HEIGHT - height:.1f}" '
                f'height="{height:.1f}"><title>{_slot_name(slot)}: {count}</title></rect>'
            )
            if count and (len(counts) == 1 or slot in (0, slots - 1)):
                # Side by side, two figures would cover each other; they point away from each other.
                side, shift = ("", 0.5) if len(counts) == 1 else (f" count-{run}", 0.9 if number == 0 else 0.1)
                place = f'x="{x + shift * each:.2f}%" y="{HISTOGRAM_HEIGHT - height - 4:.1f}"'
                bars.append(f'<text class="count{side}" {place}>{count}</text>')
    figures = "".join(
        f'<text x="{(slot + 0.5) * width:.2f}%" y="{HISTOGRAM_HEIGHT + 14}">{label}</text>'
        for slot, label in ((0, "0"), (slots // 2, "between"), (slots - 1, "1"))
    )
    floor = f'<line class="zero" x1="0" x2="100%" y1="{HISTOGRAM_HEIGHT}" y2="{HISTOGRAM_HEIGHT}"/>'
    return (
        f'<svg class="histogram" height="{HISTOGRAM_HEIGHT + 18}" role="img" aria-label="{escape(name)}">'
        f"{''.join(bars)}{floor}{figures}</svg>"
    )


def score_counts(scores: Sequence[float]) -> list[int]:
    """Rows with exactly 0, in each of ten steps between, with exactly 1."""
    counts = [0] * (PARTIAL_BINS + 2)
    for score in scores:
        slot = (
            0
            if score <= 0
            else PARTIAL_BINS + 1
            if score >= 1
            else 1 + min(PARTIAL_BINS - 1, int(score * PARTIAL_BINS))
        )
        counts[slot] += 1
    return counts


def _slot_name(slot: int) -> str:
    if slot in (0, PARTIAL_BINS + 1):
        return "score 0" if slot == 0 else "score 1"
    return f"score {(slot - 1) / PARTIAL_BINS:.1f} to {slot / PARTIAL_BINS:.1f}"
