"""The kinds of picture, by name: what draws each, and which of its questions are asked unless told otherwise."""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from monkey.data.render.bars import draw_bars
from monkey.data.render.receipts import draw_receipt
from monkey.data.render.shapes import draw_shapes
from monkey.data.render.sheet import Picture, Question, Scene
from monkey.data.render.signs import draw_sign
from monkey.data.render.tables import draw_table


@dataclass(frozen=True)
class PictureTask:
    """One kind of picture: a pure function that draws it, and the kinds of question it knows."""

    draw: Callable[[random.Random, Scene], Picture]
    kinds: tuple[str, ...]
    """Asked by default."""
    harder: tuple[str, ...] = ()
    """Asked on request only: small print, whole words, or one word of the question that turns its meaning."""


TASKS: Mapping[str, PictureTask] = {
    "shapes": PictureTask(draw_shapes, ("colour", "shape", "count")),
    "bars": PictureTask(draw_bars, ("tallest", "count"), ("shortest", "value")),
    "signs": PictureTask(draw_sign, ("number", "colour"), ("name",)),
    "receipts": PictureTask(draw_receipt, ("total", "items")),
    "tables": PictureTask(draw_table, ("cell", "heading", "numbers")),
}

Selection = Mapping[str, tuple[str, ...]]
"""Task name to the kinds of question to ask."""


def select(wanted: Sequence[str]) -> Selection:
    """`["shapes", "signs:number,name"]` as a selection; nothing wanted is every task with its default kinds.

    Raises ValueError for an unknown name, offering the nearest.
    """
    selection: dict[str, tuple[str, ...]] = {}
    for text in wanted or TASKS:
        name, _, listed = text.partition(":")
        _require(name, tuple(TASKS), "task")
        if name in selection:
            raise ValueError(f"--tasks names {name} twice; list its kinds as {name}:KIND,KIND")
        task = TASKS[name]
        kinds = tuple(listed.split(",")) if listed else task.kinds
        for kind in kinds:
            _require(kind, task.kinds + task.harder, f"kind of question for {name}")
        selection[name] = kinds
    return selection


def _require(name: str, known: tuple[str, ...], what: str) -> None:
    if name not in known:
        nearest = difflib.get_close_matches(name, known) or known
        raise ValueError(f"--tasks: unknown {what} {name!r}; there is {', '.join(nearest)}")


def ask(rng: random.Random, picture: Picture, kinds: Sequence[str], per_kind: int) -> list[Question]:
    """The questions put about a picture: up to `per_kind` of each kind, drawn at random."""
    asked = []
    for kind in kinds:
        possible = [question for question in picture.questions if question.kind == kind]
        asked += rng.sample(possible, min(per_kind, len(possible)))
    # As turns of one conversation, any kind may have to be answered first, as it is when asked alone.
    rng.shuffle(asked)
    return asked
