"""Draws a page: chooses what it says, how it looks and what a camera does to it, and tells where everything stands."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from monkey.data.pages import business, camera, charts, everyday, scenes
from monkey.data.pages.contents import Content, Room, Write, put_in_order
from monkey.data.pages.facts import Cell, Field, Page, Table, Word, around
from monkey.data.pages.spelling import Writer
from monkey.data.pages.typefaces import FAMILIES, HELD_OUT_FAMILIES, Family
from monkey.data.pages.typesetting import Printed, Setting


@dataclass(frozen=True)
class Split:
    """Whether words and templates, typefaces, and wordings of questions are held out, and what that comes to."""

    texts: bool
    typefaces: bool
    wordings: bool
    holds: str


SPLITS: Mapping[str, Split] = {
    "train": Split(False, False, False, "to train on"),
    "heldout": Split(True, True, True, "texts, values, templates, typefaces and wordings that train has not"),
    "known": Split(True, False, False, "texts, values and templates that train has not, in its typefaces and wordings"),
}


@dataclass(frozen=True)
class Limits:
    """What the model that will see the pages can see.

    Attributes:
        window: pixels of a window's side.
        windows: how many windows an image is cut into at most; each image lies, with its ratio, on the largest grid.
        smallest: pixels of capital letters as the windows show them, the smallest of a page's text; a page may fall
            short of it by a fourteenth.
        longest: pixels of a page's longer side, before a camera turns it; images without text may have more.
    """

    window: int = 112
    windows: int = 6
    smallest: float = 7.0
    longest: int = 1200

    def canvases(self) -> list[tuple[int, int]]:
        """Return the sizes, in pixels, that an image can be shown at."""
        sides = range(1, self.windows + 1)
        return [(self.window * x, self.window * y) for x in sides for y in sides if x * y <= self.windows]

    def shown(self, width: float, height: float) -> float:
        """Return the pixels in which one unit of a page of this size is shown."""
        return max(min(across / width, down / height) for across, down in self.canvases())

    def room(self, width: float, scale: float) -> float:
        """Return how high a page of this width may be, in its units, to be shown at a scale; 0 where it is too wide."""
        return max((down / scale for across, down in self.canvases() if across >= width * scale), default=0.0)

    def widest(self, ratio: float, scale: float) -> float:
        """Return how wide a page of this height over width may be, to be shown at a scale."""
        return max(min(across / scale, down / scale / ratio) for across, down in self.canvases())


@dataclass(frozen=True)
class Kind:
    """A kind of page that typst sets.

    Attributes:
        write: makes what a page says.
        widths: the least and the greatest width of its pages, in em of their text.
        ratios: heights over widths of which one is taken; with 0 a page is as high as what stands on it.
        is_dense: whether its pages are full and their letters small, as those of business papers are.
        templates: those of training, by their names without the kind's.
        held_out: those of the held-out splits.
    """

    write: Write
    widths: tuple[float, float]
    ratios: tuple[float, ...]
    templates: str
    held_out: str
    is_dense: bool = False


A4, LETTER = 297 / 210, 11 / 8.5
TYPESET: Mapping[str, Kind] = {
    "receipt": Kind(business.write_receipt, (10.8, 26), (0,), "middle left band", "framed"),
    "invoice": Kind(business.write_invoice, (20, 46), (A4, LETTER, 0, 0), "classic banded plain", "side", True),
    "form": Kind(business.write_form, (16, 44), (A4, LETTER, 0, 0), "lined boxed aligned tinted", "under rows", True),
    "letter": Kind(business.write_letter, (20, 46), (A4, LETTER, 0), "block middle", "right", True),
    "columns": Kind(everyday.write_columns, (24, 50), (A4, LETTER, 1, 0.7), "plain justified band", "ruled", True),
    "table": Kind(business.write_table, (14, 46), (0,), "ruled lines striped open", "book side", True),
    "ticket": Kind(everyday.write_ticket, (15, 36), (0,), "band stub strip", "boxes"),
    "label": Kind(everyday.write_label, (12, 26), (0,), "band framed plain", "side"),
    "card": Kind(everyday.write_card, (14, 26), (0.5, 0.55, 0.6, 0.64, 0), "left middle filled line", "halves tinted"),
    "menu": Kind(everyday.write_menu, (14, 34), (0,), "dots left board", "framed", True),
    "timetable": Kind(everyday.write_timetable, (15, 44), (0,), "ruled board striped", "lines", True),
    "slide": Kind(everyday.write_slide, (18, 42), (9 / 16, 9 / 16, 3 / 4), "plain band dark", "side"),
    "sign": Kind(everyday.write_sign, (7, 18), (0.3, 0.45, 0.6, 0.8, 0), "filled framed plain", "band dark"),
    "screen": Kind(everyday.write_screen, (14, 30), (0,), "list cards dark", "window"),
}  # fmt: skip
"""What typst sets."""
KINDS = (*TYPESET, *charts.TEMPLATES, *scenes.TEMPLATES)
"""All kinds of pages: what typst sets, what matplotlib draws, and images without text."""

CAPITAL = 0.7
"""Height of capital letters in em, about."""
SIZE = 10.0
"""Points of a page's text; how many pixels that are is decided by the zoom."""
ATTEMPTS = 200
"""Drafts of a page until one can be read; of sets of thousands, some page needs more than two dozen."""
COLOURED = 0.35
"""How many pages print one of their fields in a colour."""
CLEAN = 0.5
"""How many pages no camera and no scanner has seen."""

COLOURS: Mapping[str, str] = {
    "red": "#c62828", "green": "#2e7d32", "blue": "#1a4fa3", "yellow": "#f2c200", "purple": "#7b1fa2",
    "orange": "#e8710a", "black": "#111111", "brown": "#6d4326", "grey": "#6b6f76", "pink": "#d81b78",
    "turquoise": "#00838f",
}  # fmt: skip
"""Names of colours that can be asked about, and the colours."""
UNNAMED = ("black", "grey")
"""Those that ink may look like."""
LIGHT = ("yellow", "orange")
"""Those on which black is read better than white, and which are not read on white."""
PAPERS = ("#ffffff",) * 6 + ("#fdfbf5", "#f7f3e8", "#f4f6f8", "#fffef0", "#eef5ee", "#f3eef7", "#fdeeee", "#e9eef5")
INKS = ("#000000", "#000000", "#111111", "#1c1c28", "#222222", "#333333", "#14213d", "#3b2f2f")


@cache
def templates_of(kind: str, held_out: bool) -> tuple[str, ...]:
    """Return the names of a kind's templates, as `templates/` has them."""
    if kind in TYPESET:
        names = TYPESET[kind].held_out if held_out else TYPESET[kind].templates
    else:
        names = (charts.TEMPLATES | scenes.TEMPLATES)[kind][held_out]
    return tuple(f"{kind}-{name}" for name in names.split())


def draw_page(
    kind: str,
    rng: random.Random,
    split: str,
    limits: Limits | None = None,
    template: str = "",
    clean: bool | None = None,
) -> Page:
    """Draw a page of a kind; the same state of `rng` gives the same page.

    Args:
        kind: of `KINDS`.
        split: of `SPLITS`.
        template: one of the kind's own; any of the split's where none is given.
        clean: whether no camera and no scanner sees it; about half of the pages where None.

    Raises:
        ValueError: no page of the kind is small enough for the limits.
    """
    limits, of = limits or Limits(), SPLITS[split]
    template = template or rng.choice(templates_of(kind, of.texts))
    if kind in scenes.TEMPLATES:
        page, letters = _draw_scene(kind, template, rng, limits), 12.0
    else:
        draw = _typeset if kind in TYPESET else _draw_chart
        drawn = (draw(kind, template, rng, of, limits, attempt) for attempt in range(ATTEMPTS))
        sound = next(filter(None, drawn), None)
        if sound is None:
            raise ValueError(
                f"none of {ATTEMPTS} pages of {template} can be read in {limits.windows} windows of {limits.window} "
                f"pixels with letters of {limits.smallest:g}: give larger windows, more of them, or leave out {kind}"
            )
        page, letters = sound
    is_clean = rng.random() < CLEAN if clean is None else clean
    return page if is_clean else _look_through(page, rng, letters)


def _typeset(
    kind: str, template: str, rng: random.Random, split: Split, limits: Limits, attempt: int
) -> tuple[Page, float] | None:
    """Return a page by typst and the pixels of its capital letters; None where it is not sound.

    A sound page is one page, large enough to be read, with nothing cut and nothing on top of anything else.
    """
    fill = rng.uniform(0.8 if TYPESET[kind].is_dense else 0.4, 1.0) * 0.9**attempt
    writer = Writer(random.Random(rng.getrandbits(64)), split.texts)
    look, room = _choose_look(kind, rng, split, limits, fill)
    content = TYPESET[kind].write(writer, room)
    put_in_order(content)
    setting = Setting({**look, **_as_json(content, rng), "template": template})
    width, height = setting.size
    shown = limits.shown(width / SIZE, height / SIZE)
    is_whole = setting.num_pages == 1 and not setting.is_broken and shown * CAPITAL >= 0.93 * limits.smallest
    if not is_whole or not _is_sound(setting.words(1.0), width, height, SIZE):
        return None
    zoom = _choose_zoom(rng, shown, max(width, height) / SIZE, limits) / SIZE
    return _tell(kind, template, content, setting.draw(zoom), setting.words(zoom)), zoom * SIZE * CAPITAL


def _draw_chart(
    kind: str, template: str, rng: random.Random, split: Split, limits: Limits, attempt: int
) -> tuple[Page, float] | None:
    """Return a page by matplotlib and the pixels of its capital letters, or None where it is not sound."""
    writer = Writer(random.Random(rng.getrandbits(64)), split.texts)
    scale = limits.smallest * 2.0 ** rng.random() ** 1.5 / CAPITAL
    ratio = rng.choice((0.5, 0.56, 0.66, 0.75, 1.0))
    width = min(rng.uniform(17, 44), limits.widest(ratio, scale))
    shown = limits.shown(width, width * ratio)
    zoom = _choose_zoom(rng, shown, width, limits)
    family = rng.choice([family for family in _families(kind, split) if not family.is_typst])
    size = width, width * ratio
    try:
        image, printed, content = charts.draw_chart(kind, template, writer, rng, family, size, zoom)
    except UserWarning:
        return None
    if not _is_sound(printed, *image.size, zoom):
        return None
    return _tell(kind, template, content, image, printed), zoom * CAPITAL


def _draw_scene(kind: str, template: str, rng: random.Random, limits: Limits) -> Page:
    """Return an image without text, of any shape."""
    ratio = rng.choice((0.4, 0.6, 0.75, 1.0, 1.0, 1.33, 1.6, 2.5))
    width = limits.window * limits.windows**0.5 * rng.uniform(0.6, 1.6) / ratio**0.5
    return scenes.draw_scene(kind, template, rng, (round(width), round(width * ratio)))


def _choose_look(
    kind: str, rng: random.Random, split: Split, limits: Limits, fill: float
) -> tuple[dict[str, Any], Room]:
    """Choose size, typeface, colours and spacing; return them, and what the page can hold."""
    frame = TYPESET[kind]
    largest = 1.5 if frame.is_dense else 2.4
    scale = limits.smallest * largest ** rng.random() ** 1.5 / CAPITAL  # pixels to the em as shown, mostly few
    knobs = {
        "gap": round(rng.uniform(0.4, 0.7 if frame.is_dense else 0.95), 3),
        "leading": round(rng.uniform(0.5, 0.85), 3),
        "title": round(rng.uniform(1.2, 2.2), 2),
        "total": round(rng.uniform(1.0, 1.5), 2),
        "dash": rng.choice((None, "dashed", "dotted", "stars")),
    }
    ratio = rng.choice(frame.ratios)
    if ratio:
        width = min(frame.widths[1], limits.widest(ratio, scale))
        width = max(frame.widths[0], width * rng.uniform(0.8, 1.0))
        height = width * ratio
    else:
        width = rng.uniform(*frame.widths)
        while limits.room(width, scale) < 0.5 * width and scale > limits.smallest / CAPITAL:
            scale *= 0.9
        while limits.room(width, scale) == 0.0:
            width *= 0.95
        height = limits.room(width, scale)
    margin = rng.uniform(0.8, 2.0)
    lines = (height - 2 * margin) * fill / (CAPITAL + knobs["gap"])
    family = _choose_family(kind, rng, split)
    accent = rng.choice([name for name in COLOURS if name != "black"])
    ink = rng.choice(INKS)
    look = {
        "width": round(width * SIZE, 2),
        "height": round(height * SIZE, 2) if ratio else None,
        "margin": round(margin * SIZE, 2),
        "size": SIZE,
        "font": family.name,
        "weight": rng.choice(family.weights),
        "paper": rng.choice(PAPERS),
        "ink": ink,
        "accent": COLOURS[accent],
        "accent_ink": ink if accent in LIGHT else COLOURS[accent],
        "on_accent": "#000000" if accent in LIGHT else "#ffffff",
        "pale": _mix(COLOURS[accent], "#ffffff", rng.uniform(0.82, 0.93)),
        "knobs": knobs,
    }
    return look, Room(width - 2 * margin, max(2, int(lines)))


def _families(kind: str, split: Split) -> Sequence[Family]:
    """Return the typefaces that a kind is printed in."""
    families = HELD_OUT_FAMILIES if split.typefaces else FAMILIES
    return [family for family in families if kind in ("label", "sign", "card") or not family.is_display]


def _choose_family(kind: str, rng: random.Random, split: Split) -> Family:
    families = _families(kind, split)
    mono = [family for family in families if family.is_mono]
    return rng.choice(mono if mono and kind == "receipt" and rng.random() < 0.3 else families)


def _mix(one: str, other: str, share: float) -> str:
    """Return a colour between two, `share` of it the other's."""
    pairs = zip(bytes.fromhex(one[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes(round(a + (b - a) * share) for a, b in pairs).hex()


def _choose_zoom(rng: random.Random, shown: float, longest: float, limits: Limits) -> float:
    """Choose pixels to the em: from letters just large enough up to more than the model sees."""
    least = limits.smallest / CAPITAL
    most = min(shown * 2.5, limits.longest / longest)
    return max(least, min(most, shown * rng.choice((1.0, rng.uniform(0.8, 1.5), rng.uniform(1.2, 2.5)))))


def _as_json(content: Content, rng: random.Random) -> dict[str, Any]:
    """Return what a content says as the templates read it."""
    colon = rng.choice((":", ""))
    dark = [name for name in COLOURS if name not in LIGHT + UNNAMED]
    coloured = (
        {rng.choice(list(content.fields)): COLOURS[rng.choice(dark)]}
        if content.fields and rng.random() < COLOURED
        else {}
    )
    return {
        "seed": rng.randint(0, 9999),
        "fields": {
            key: {
                "label": label + colon if label else "",
                "value": value.text,
                "ink": coloured.get(key, ""),
            }
            for key, (label, value) in content.fields.items()
        },
        "groups": content.groups,
        "tables": [
            {
                "columns": table.columns,
                "rows": [[value.text for value in row] for row in table.rows],
                "shown": table.shown,
                "numeric": [
                    any(row[column].number is not None for row in table.rows) for column in range(len(table.columns))
                ],
            }
            for table in content.tables
        ],
        "paragraphs": content.paragraphs,
    }


def _is_sound(words: Sequence[Printed], width: float, height: float, em: float) -> bool:
    """Whether every word is on the page and none on another."""
    boxes = np.array([word.box for word in words])
    boxes += np.array([-1, 0, 1, 0]) * 0.08 * em  # words that touch are read as one
    if (boxes[:, :2] < 1).any() or (boxes[:, 2] > width - 1).any() or (boxes[:, 3] > height - 1).any():
        return False
    first = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    last = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = (last - first).clip(0).prod(axis=2)
    np.fill_diagonal(overlap, 0)
    return bool((overlap <= 0.02 * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)).all())


def _name_colour(printed: Sequence[Printed]) -> str:
    """Return the name of the colour in which all of something is printed; none for ink and paper."""
    colours = {one.colour for one in printed}
    return next((name for name, colour in COLOURS.items() if name not in UNNAMED and colours == {colour}), "")


def _tell(kind: str, template: str, content: Content, image: Image.Image, printed: Sequence[Printed]) -> Page:
    """Return the page with what stands on it; what a template did not print is not told."""
    parts: dict[str, list[Printed]] = defaultdict(list)
    words: list[Word] = []
    before: Printed | None = None
    for one in printed:
        parts[one.key].append(one)
        line = words[-1].line if words else 0
        if before and (abs(one.baseline - before.baseline) > 0.35 * before.height or one.box[0] < before.box[0]):
            line += 1
        words.append(Word(one.text, one.box, line, one.height))
        before = one
    fields = []
    for key, (label, value) in content.fields.items():
        if own := parts.get(f"f:{key}"):
            fields.append(
                Field(
                    key, " ".join(one.text for one in own), around(one.box for one in own), own[0].height,
                    label if parts.get(f"l:{key}") else "", value.number, value.date, _name_colour(own),
                )
            )  # fmt: skip
    tables = []
    for number, grid in enumerate(content.tables):
        rows = []
        for r, row in enumerate(grid.rows):
            cells = []
            for c, value in enumerate(row):
                own = parts.get(f"c:{number}:{r}:{c}", [])
                text = " ".join(one.text for one in own)
                box = around(one.box for one in own) if own else None
                colour = grid.row_colours[r] if grid.row_colours and not c else ""
                number_of = value.number if own or grid.is_drawn else None
                cells.append(Cell(text, box, own[0].height if own else 0.0, number_of, colour))
            rows.append(tuple(cells))
        shown = any(parts.get(f"h:{number}:{c}") for c in range(len(grid.columns)))
        if any(cell.text for row in rows for cell in row):
            table = Table(grid.key, grid.columns, grid.column_keys, tuple(rows), shown, grid.column_colours)
            tables.append(table)
    present = {field.key for field in fields}
    absent = tuple(key for key in content.possible if key not in present)
    return Page(
        kind,
        template,
        image,
        tuple(words),
        tuple(fields),
        tuple(tables),
        content.numbers,
        (),
        absent,
        content.description,
    )


def _look_through(page: Page, rng: random.Random, letters: float) -> Page:
    """Return the page as a camera or a scanner sees it, its boxes moved."""
    image, move = camera.look_through(page.image, rng, letters, _tells_colours(page))
    return moved(replace(page, image=image), move)


def _tells_colours(page: Page) -> bool:
    """Whether anything on a page is told by its colour."""
    rows = (row for table in page.tables for row in table.rows)
    columns = (colour for table in page.tables for colour in table.column_colours)
    return (
        bool(page.shapes)
        or any(field.colour for field in page.fields)
        or any(columns)
        or any(row[0].colour for row in rows)
    )


def moved(page: Page, move: camera.Move) -> Page:
    """Return the page with all boxes where a move takes them, and with heights to match."""

    def of(one):
        return replace(one, box=move.box(one.box), height=one.height * move.scale(one.box))

    def of_cell(cell: Cell) -> Cell:
        if cell.box is None:
            return cell
        return replace(cell, box=move.box(cell.box), height=cell.height * move.scale(cell.box))

    return replace(
        page,
        words=tuple(map(of, page.words)),
        fields=tuple(map(of, page.fields)),
        tables=tuple(
            replace(table, rows=tuple(tuple(map(of_cell, row)) for row in table.rows)) for table in page.tables
        ),
        shapes=tuple(replace(shape, box=move.box(shape.box)) for shape in page.shapes),
    )
