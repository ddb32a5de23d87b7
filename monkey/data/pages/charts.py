"""Bars, lines, pies and scattered points, drawn by matplotlib, whose renderer tells where texts stand.

A chart is drawn as `Printed` words under the keys of `typesetting.py` and a `Content`, as typst's pages are.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFont

from monkey.data.pages.contents import Content, Grid, begin, state, state_title
from monkey.data.pages.spelling import MONTHS, Writer, write_number
from monkey.data.pages.stated import Value
from monkey.data.pages.typefaces import Family, add_fonts_to_matplotlib
from monkey.data.pages.typesetting import Printed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

DOTS_PER_INCH, POINTS_PER_INCH = 100.0, 72.0
LARGE = 1000
"""Pixels to the em at which texts are measured."""
COLOURS = {
    "red": "#d62728", "green": "#2ca02c", "blue": "#1f5fb4", "orange": "#ff7f0e", "purple": "#7d3cb5",
    "brown": "#8c564b", "pink": "#e377c2", "grey": "#7f7f7f", "turquoise": "#17becf", "yellow": "#e8c800",
}  # fmt: skip
"""Colours of bars, lines, slices and points, by their names."""

TEMPLATES = {
    "bars": ("upright lying pairs", "bare"),
    "lines": ("grid plain", "dark"),
    "pie": ("legend labels", "ring"),
    "scatter": ("grid named", "open"),
}
"""Templates of training and held-out ones of each kind that matplotlib draws."""


@dataclass
class Chart:
    """Axes, what they say, and the texts in them under their keys, in reading order."""

    content: Content
    axes: Axes
    texts: list[tuple[str, Text]] = field(default_factory=list)

    def add(self, key: str, text: Text) -> None:
        """Note a text that is printed; empty ones are not."""
        if text.get_text():
            self.texts.append((key, text))


def draw_chart(
    kind: str, template: str, writer: Writer, rng: random.Random, family: Family, size: tuple[float, float], zoom: float
) -> tuple[Image.Image, list[Printed], Content]:
    """Draw a chart.

    Args:
        template: of `TEMPLATES`, with the kind's name before it.
        size: width and height in em of its text.
        zoom: pixels to the em.

    Raises:
        UserWarning: the chart's texts leave no room for the chart.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    add_fonts_to_matplotlib()
    style = template.removeprefix(f"{kind}-")
    is_open = style in ("plain", "bare", "open")
    face = {
        "font.family": family.name,
        "font.size": zoom * POINTS_PER_INCH / DOTS_PER_INCH,
        "font.weight": 400,
        "axes.labelweight": 400,
        "axes.titleweight": rng.choice((400, 700)) if family.has_bold else 400,
        "axes.titlesize": "large",
        "text.hinting": "none",
        "text.parse_math": False,
        "axes.unicode_minus": False,
        "axes.spines.top": not is_open,
        "axes.spines.right": not is_open,
        "axes.grid": style == "grid" or (style in ("upright", "pairs") and rng.random() < 0.4),
        "axes.axisbelow": True,
        "legend.frameon": rng.random() < 0.5,
    }
    if style == "dark":
        light = "#e8e8ee"
        face |= {
            "figure.facecolor": "#1b2030", "axes.facecolor": "#1b2030", "text.color": light, "axes.labelcolor": light,
            "xtick.color": light, "ytick.color": light, "axes.edgecolor": light,
        }  # fmt: skip
    with matplotlib.rc_context(face):
        figure = Figure(
            (size[0] * zoom / DOTS_PER_INCH, size[1] * zoom / DOTS_PER_INCH), DOTS_PER_INCH, layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        canvas = FigureCanvasAgg(figure)
        content = begin(writer, "title subtitle axis_x axis_y unit source date author")
        chart = Chart(content, figure.add_subplot())
        if rng.random() < 0.8:
            state_title(content, writer, writer.phrase(1, 4))
            place = rng.choice(("center", "center", "left"))
            chart.add("f:title", chart.axes.set_title(content.fields["title"][1].text, loc=place))
        {"bars": _bars, "lines": _lines, "pie": _pie, "scatter": _scatter}[kind](chart, writer, rng, style, size)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="constrained_layout not applied")
            canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        renderer = canvas.get_renderer()
        printed = [word for key, text in chart.texts for word in _words(key, text, renderer, image.height)]
    return image, printed, content


def _words(key: str, text: Text, renderer: Any, height: int) -> list[Printed]:
    """Return the words of a text that lies or, as the title of a y-axis may, stands."""
    from matplotlib import font_manager

    string, properties = text.get_text(), text.get_fontproperties()
    font = _large_font(font_manager.findfont(properties))
    scale = text.get_fontsize() * DOTS_PER_INCH / POINTS_PER_INCH / LARGE
    extent = text.get_window_extent(renderer)
    descent = max(renderer.get_text_width_height_descent(one, properties, False)[2] for one in (string, "lp"))
    capital = -font.getbbox("H", anchor="ls")[1] * scale
    found, start = [], 0
    for word in string.split(" "):
        before = font.getlength(string[:start]) * scale
        start += len(word) + 1
        left, top, right, bottom = (edge * scale for edge in font.getbbox(word, anchor="ls"))
        if text.get_rotation() == 90:
            across, up = extent.x1 - descent, extent.y0 + before
            box = across + top, height - up - right, across + bottom, height - up - left
            found.append(Printed(key, word, box, height - up, capital))
        else:
            baseline = height - extent.y0 - descent
            box = extent.x0 + before + left, baseline + top, extent.x0 + before + right, baseline + bottom
            found.append(Printed(key, word, box, baseline, capital))
    return found


@cache
def _large_font(file: str) -> ImageFont.FreeTypeFont:
    """Open a font so large that its metrics are not rounded to pixels, as matplotlib does not round them."""
    return ImageFont.truetype(file, LARGE)


def _choose_rows(writer: Writer, rng: random.Random, count: int) -> tuple[str, str, list[str]]:
    """Return a key of the wordings, the head of a column, and so many names of rows."""
    start = rng.randint(0, 11)
    months = [MONTHS[(start + index) % 12][:3] for index in range(count)]
    years = [str(2004 + start + index) for index in range(count)]
    key, head, make = rng.choice(
        (
            ("month", "Month", lambda: months),
            ("year", "Year", lambda: years),
            ("category", "Category", lambda: writer.some(writer.name, count)),
            ("category", "Category", lambda: writer.some(writer.name, count)),
            ("product", "Product", lambda: writer.some(writer.name, count)),
            ("country", "Country", lambda: writer.some(lambda: writer.country().split()[-1], count)),
        )
    )
    return key, head, make()


def _choose_values(writer: Writer, rng: random.Random, count: int) -> tuple[list[float], int]:
    """Return so many numbers, and how many decimals they have."""
    least, most, decimals = rng.choice(((2, 40, 0), (5, 100, 0), (50, 900, 0), (1, 20, 1), (200, 9000, 0)))
    return [writer.number(least, most, decimals) for _ in range(count)], decimals


def _label_axes(chart: Chart, writer: Writer, rng: random.Random, x: str = "", y: str = "") -> tuple[str, str]:
    """Give the axes titles, at times, and return them; what is not given is made."""
    content = chart.content
    along, up = x or writer.name(), y or writer.name()
    if rng.random() < 0.5:
        state(content, writer, "axis_x", label="", value=Value(along))
        chart.axes.set_xlabel(along)
    if rng.random() < 0.6:
        state(content, writer, "axis_y", label="", value=Value(up))
        chart.axes.set_ylabel(up)
    return along, up


def _add_ticks(chart: Chart, names: Sequence[str], axis: str) -> None:
    """Note the texts of the axes; `axis` is the one that has the rows' names, "" where none has."""
    for which, ticks in (("y", chart.axes.get_yticklabels()), ("x", chart.axes.get_xticklabels())):
        if which == "y" and chart.axes.get_ylabel():
            chart.add("f:axis_y", chart.axes.yaxis.label)
        for index, tick in enumerate(ticks):
            if tick.get_visible():
                chart.add(f"c:0:{index}:0" if which == axis and index < len(names) else "", tick)
    if chart.axes.get_xlabel():
        chart.add("f:axis_x", chart.axes.xaxis.label)


def _fix_scale(chart: Chart, writer: Writer, axis: str, high: float, low: float = 0.0) -> None:
    """Give an axis of numbers its range and whole steps, written as the writer writes numbers."""
    from matplotlib.ticker import MaxNLocator

    own = chart.axes.yaxis if axis == "y" else chart.axes.xaxis
    (chart.axes.set_ylim if axis == "y" else chart.axes.set_xlim)(low, high)
    steps = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    steps = [step for step in steps if low <= step <= high]
    decimals = max(0, min(2, -int(np.floor(np.log10(max(steps[1] - steps[0], 1e-9)) + 1e-9))))
    if any(abs(step - round(step, decimals)) > 1e-9 for step in steps):
        decimals += 1
    own.set_ticks(steps, [write_number(step, writer.numbers, decimals) for step in steps])


def _bars(chart: Chart, writer: Writer, rng: random.Random, style: str, size: tuple[float, float]) -> None:
    """Bars, upright or lying, in one series or two; with the numbers on them or without."""
    axes, lying = chart.axes, style == "lying"
    most = max(2, int(((size[1] - 4) / 1.9) if lying else (size[0] - 5) / 4.2))
    key, head, names = _choose_rows(writer, rng, rng.randint(2, min(8, most)))
    series = writer.some(writer.name, 2) if style == "pairs" else [""]
    values, decimals = _choose_values(writer, rng, len(names) * len(series))
    columns = [values[index * len(names) : (index + 1) * len(names)] for index in range(len(series))]
    is_numbered = style == "bare" or rng.random() < 0.6
    palette = rng.sample(list(COLOURS), max(len(names), len(series)))
    by_row = style != "pairs" and rng.random() < 0.4
    thick = 0.8 / len(series) * rng.uniform(0.7, 1.0)
    along, up = _label_axes(chart, writer, rng, x="" if lying else head, y=head if lying else "")
    texts: list[list[Text | None]] = []
    for number, column in enumerate(columns):
        places = np.arange(len(names)) + (number - (len(series) - 1) / 2) * 0.8 / len(series)
        colours = [COLOURS[name] for name in palette] if by_row else COLOURS[palette[number]]
        colours = colours[: len(names)] if by_row else colours
        drawn = (axes.barh if lying else axes.bar)(places, column, thick, color=colours, label=series[number] or None)
        if is_numbered:
            written = [write_number(value, writer.numbers, decimals) for value in column]
            texts.append(axes.bar_label(drawn, written, padding=2))
        else:
            texts.append([None] * len(names))
    where = np.arange(len(names))
    (axes.set_yticks if lying else axes.set_xticks)(where, names)
    if lying:
        axes.invert_yaxis()
    _fix_scale(chart, writer, "x" if lying else "y", max(values) * (1.22 if is_numbered else 1.08))
    if style == "bare":
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        chart.content.fields.pop("axis_y", None)
        axes.set_ylabel("")
    _add_ticks(chart, names, "y" if lying else "x")
    for number, column in enumerate(texts):
        for row, text in enumerate(column):
            if text is not None:
                chart.add(f"c:0:{row}:{number + 1}", text)
    if style == "pairs":
        legend = axes.figure.legend(loc="outside lower center", ncols=2)
        for number, text in enumerate(legend.get_texts()):
            chart.add(f"h:0:{number + 1}", text)
    heads = (
        tuple(series) if style == "pairs" else ((along if lying else up) if _is_labelled(chart, lying) else "Value",)
    )
    rows = tuple(
        (Value(name), *(Value(write_number(column[row], writer.numbers, decimals), column[row]) for column in columns))
        for row, name in enumerate(names)
    )
    keys = ("", *(("",) * len(heads) if style == "pairs" else ("value",)))
    colours = {"row_colours": tuple(palette[: len(names)])} if by_row else {}
    if style == "pairs":
        colours = {"column_colours": ("", *palette[:2])}
    chart.content.tables.append(Grid(key, (head, *heads), keys, rows, is_drawn=True, **colours))
    chart.content.description = f"A bar chart{_titled(chart)} with {len(names) * len(series)} bars."


def _is_labelled(chart: Chart, lying: bool) -> bool:
    return ("axis_x" if lying else "axis_y") in chart.content.fields


def _titled(chart: Chart) -> str:
    return f" titled {chart.content.fields['title'][1].text}" if "title" in chart.content.fields else ""


def _lines(chart: Chart, writer: Writer, rng: random.Random, style: str, size: tuple[float, float]) -> None:
    """One to three lines over months or years; with the numbers at the points where there is but one."""
    axes, count = chart.axes, rng.randint(3, max(3, min(8, int((size[0] - 5) / 3))))
    start = rng.randint(0, 11)
    key, head, names = rng.choice(
        (
            ("month", "Month", [MONTHS[(start + index) % 12][:3] for index in range(count)]),
            ("year", "Year", [str(2004 + start + index) for index in range(count)]),
        )
    )
    series = writer.some(writer.name, rng.choice((1, 2, 2, 3)))
    palette = rng.sample(list(COLOURS), len(series))
    values, decimals = _choose_values(writer, rng, count * len(series))
    columns = [values[index * count : (index + 1) * count] for index in range(len(series))]
    is_numbered = len(series) == 1 and rng.random() < 0.6
    _, up = _label_axes(chart, writer, rng, x=head)
    marker = rng.choice(("o", "s", "D", "")) if not is_numbered else "o"
    texts = []
    for name, colour, column in zip(series, palette, columns, strict=True):
        axes.plot(range(count), column, marker=marker, color=COLOURS[colour], label=name, linewidth=rng.uniform(1, 2.5))
        for row, value in enumerate(column):
            if is_numbered:
                written = write_number(value, writer.numbers, decimals)
                texts.append(axes.annotate(written, (row, value), (0, 5), textcoords="offset points", ha="center"))
    axes.set_xticks(range(count), names)
    axes.margins(x=0.12)
    _fix_scale(chart, writer, "y", max(values) * 1.25)
    _add_ticks(chart, names, "x")
    for row, text in enumerate(texts):
        chart.add(f"c:0:{row}:1", text)
    if len(series) > 1:
        beside = rng.random() < 0.4 and size[0] > 24
        below = {"loc": "upper center", "ncols": len(series)}
        place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)} if beside else below
        for number, text in enumerate(axes.legend(**place).get_texts()):
            chart.add(f"h:0:{number + 1}", text)
        heads, keys = tuple(series), ("",) * len(series)
    else:
        heads, keys = (up if "axis_y" in chart.content.fields else "Value",), ("value",)
    rows = tuple(
        (Value(name), *(Value(write_number(column[row], writer.numbers, decimals), column[row]) for column in columns))
        for row, name in enumerate(names)
    )
    colours = ("", *palette) if len(series) > 1 else ()
    grid = Grid(key, (head, *heads), ("", *keys), rows, is_drawn=True, column_colours=colours)
    chart.content.tables.append(grid)
    chart.content.description = f"A line chart{_titled(chart)} with {len(series)} line{'s' * (len(series) > 1)}."


def _pie(chart: Chart, writer: Writer, rng: random.Random, style: str, size: tuple[float, float]) -> None:
    """Slices of a whole with their percentages, named beside them or in a legend."""
    from matplotlib import rcParams

    axes, count = chart.axes, rng.randint(2, 5)
    names, palette = writer.some(writer.name, count), rng.sample(list(COLOURS), count)
    cuts = sorted(rng.sample(range(1, 100 // 6), count - 1))
    shares = [6 * (high - low) for low, high in zip((0, *cuts), cuts, strict=False)] if cuts else []
    shares.append(100 - sum(shares))
    rng.shuffle(shares)
    width = {"width": 0.45} if style == "ring" else {}
    drawn = axes.pie(
        shares,
        labels=names if style == "labels" else None,
        autopct=lambda share: f"{share:.0f}%",
        labeldistance=1.2,
        pctdistance=0.78 if style == "ring" else 0.62,
        colors=[COLOURS[name] for name in palette],
        startangle=rng.randint(0, 359),
        textprops={"color": rcParams["text.color"]},
        wedgeprops=width | {"edgecolor": "white", "linewidth": 1},
    )
    wedges, percents = drawn[0], drawn[-1]
    if style == "labels":
        beside = list(drawn[1])
    else:
        beside = axes.legend(wedges, names, loc="center left", bbox_to_anchor=(1.0, 0.5)).get_texts()
    for text, colour in zip(percents, palette, strict=True):
        text.set_color("white" if colour in ("red", "blue", "purple", "brown", "green", "grey") else "black")
    for row in range(count):
        chart.add(f"c:0:{row}:0", beside[row])
        chart.add(f"c:0:{row}:1", percents[row])
    rows = tuple((Value(name), Value(f"{share}%", float(share))) for name, share in zip(names, shares, strict=True))
    grid = Grid("slice", ("Name", "Share"), ("", "share"), rows, is_drawn=True, row_colours=tuple(palette))
    chart.content.tables.append(grid)
    chart.content.description = f"A pie chart{_titled(chart)} with {count} slices."


def _scatter(chart: Chart, writer: Writer, rng: random.Random, style: str, size: tuple[float, float]) -> None:
    """Points in one or two groups; some of them named, where the template names them."""
    axes = chart.axes
    along, up = _label_axes(chart, writer, rng)
    groups = writer.some(writer.name, 1 if style == "named" else rng.choice((1, 2, 2)))
    palette = rng.sample(list(COLOURS), len(groups))
    count = rng.randint(3, 6) if style == "named" else rng.randint(5, 16)
    least, most = rng.choice(((1, 40), (10, 90), (20, 600)))
    rows: list[tuple[Value, ...]] = []
    texts: list[Text] = []
    points: list[float] = []
    for group, colour in zip(groups, palette, strict=True):
        x = [writer.number(least, most, 0) for _ in range(count)]
        y = [writer.number(least, most, 0) for _ in range(count)]
        points += x + y
        axes.scatter(x, y, rng.uniform(12, 45), COLOURS[colour], rng.choice(("o", "s", "^", "x")), label=group)
        if style == "named":
            names = writer.some(writer.name, count)
            for name, a, b in zip(names, x, y, strict=True):
                texts.append(axes.annotate(name, (a, b), (5, 3), textcoords="offset points"))
                numbers = (Value(write_number(number, writer.numbers, 0), number) for number in (a, b))
                rows.append((Value(name), *numbers))
    _fix_scale(chart, writer, "x", max(points) * (1.35 if style == "named" else 1.1))
    _fix_scale(chart, writer, "y", max(points) * 1.15)
    _add_ticks(chart, (), "")
    for row, text in enumerate(texts):
        chart.add(f"c:0:{row}:0", text)
    if rows:
        heads = tuple(one if f"axis_{key}" in chart.content.fields else key for key, one in (("x", along), ("y", up)))
        chart.content.tables.append(Grid("point", ("Name", *heads), ("", "", ""), tuple(rows), is_drawn=True))
    elif len(groups) > 1:
        legend = axes.figure.legend(loc="outside lower center", ncols=2).get_texts()
        for row, text in enumerate(legend):
            chart.add(f"c:0:{row}:0", text)
        table = tuple((Value(group), Value(str(count), float(count))) for group in groups)
        grid = Grid("series", ("Group", "Points"), ("", ""), table, is_drawn=True, row_colours=tuple(palette))
        chart.content.tables.append(grid)
    chart.content.description = f"A scatter plot{_titled(chart)} with {count * len(groups)} points."
