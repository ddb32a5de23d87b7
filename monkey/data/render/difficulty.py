"""How hard the pictures are: one row a level, so that a run can be tuned without touching the drawing code."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

COLOURS = {
    "red": (206, 38, 38),
    "green": (40, 150, 60),
    "blue": (40, 84, 204),
    "yellow": (240, 200, 30),
    "purple": (134, 52, 164),
    "orange": (240, 126, 24),
    "black": (36, 36, 36),
    "brown": (120, 76, 40),
}
"""Colour names as answers use them, and the red, green and blue that draw them. Levels use the first few."""


@dataclass(frozen=True)
class Difficulty:
    """What a picture may hold. Lengths are in hundredths of the picture's side."""

    colours: int = 6
    """How many of COLOURS are used."""
    shapes: int = 4
    """How many kinds of shape are used."""
    most_shapes: int = 4
    """Shapes in a picture: from one up to this, each of another kind."""
    most_bars: int = 5
    """Bars in a chart: from two up to this."""
    bar_gap: float = 10.0
    """Two bars' heights differ by at least this."""
    most_items: int = 3
    """Lines on a receipt: from one up to this."""
    most_rows: int = 2
    most_columns: int = 3
    """Table sizes: from one row and two columns up to this."""
    digits: int = 2
    """Digits of every number drawn."""
    jitter: float = 4.0
    """Things move this far from their place, and sizes vary with it."""
    questions_per_kind: int = 1
    """Questions asked of one kind and one picture, where there are that many to ask."""


LEVELS = {
    # A small model that starts from nothing reads numbers within minutes only if they are easy to find. Tried with a
    # prototype of 1.2 million parameters on sign numbers alone, 112 pixels a side: 0.98 of the held-out after 4,000
    # samples, at a jitter of 0.5 and in batches of 16; none after 7,700 at a jitter of 2, in batches of 32, with the
    # number printed on the coloured board itself. Which of the three did it was not taken apart.
    "easy": Difficulty(
        colours=5, shapes=3, most_shapes=3, most_bars=4, bar_gap=14.0, most_rows=2, most_columns=2, jitter=0.5
    ),
    "standard": Difficulty(),
    "hard": Difficulty(
        colours=8, shapes=6, most_bars=6, bar_gap=5.0, most_rows=3, most_columns=3, jitter=7.0, digits=3
    ),
}

LIMITS = {
    "colours": (2, len(COLOURS)),
    "shapes": (2, 6),
    "most_shapes": (1, 4),
    "most_bars": (2, 6),
    "bar_gap": (1.0, 14.0),
    "most_items": (1, 3),
    "most_rows": (1, 3),
    "most_columns": (2, 3),
    "digits": (2, 3),
    "jitter": (0.0, 8.0),
    "questions_per_kind": (1, 6),
}
"""The least and the most that the drawing code can lay out."""


def changed(level: str, settings: dict[str, str]) -> Difficulty:
    """The level with some fields set to the values given as text, checked against LIMITS.

    Raises ValueError naming the field.
    """
    values: dict[str, int | float] = {}
    known = {field.name: field.type for field in fields(Difficulty)}
    for name, text in settings.items():
        if name not in known:
            raise ValueError(f"--difficulty has no field {name!r}; it has {', '.join(known)}")
        try:
            value = int(text) if known[name] == "int" else float(text)
        except ValueError:
            raise ValueError(f"--difficulty {name} wants a number ({known[name]}), not {text!r}") from None
        least, most = LIMITS[name]
        if not least <= value <= most:
            raise ValueError(f"--difficulty {name} must lie between {least} and {most}, not at {value}")
        values[name] = value
    return replace(LEVELS[level], **values)
