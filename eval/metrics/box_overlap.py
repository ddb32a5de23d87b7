"""How well a box that an answer names covers the one that it should, by intersection over union.

A prediction counts as right from one half on, the rule of referring expressions (Kazemzadeh et al., ReferItGame, 2014)
that Qwen-VL, arXiv 2308.12966, reports. Boxes are `<box>(x1,y1),(x2,y2)</box>` in thousandths; only the first counts.
Answers are decoded without control tokens, as in the published evaluators, and `<box>` is one: the two corners are
enough, as they are for Qwen-VL's own evaluate_grounding.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ENOUGH = 0.5

Box = tuple[int, int, int, int]

_BOX = re.compile(r"\(\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\)\s*,\s*\(\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\)")


def first_box(text: str) -> Box | None:
    """Left, top, right and bottom of the first box of a text, its corners put in order; None where there is none."""
    found = _BOX.search(text)
    if found is None:
        return None
    x, y, other_x, other_y = map(int, found.groups())
    return min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)


def overlap(prediction: str, references: Sequence[str]) -> float:
    """Largest intersection over union with a reference's box; 0 without a box. Two boxes without area must be equal."""
    predicted = first_box(prediction)
    boxes = [box for reference in references if (box := first_box(reference)) is not None]
    if predicted is None or not boxes:
        return 0.0
    return max(_intersection_over_union(predicted, box) for box in boxes)


def official(prediction: str, references: Sequence[str]) -> float:
    """1 when the intersection over union with a reference's box is at least one half."""
    return float(overlap(prediction, references) >= ENOUGH)


def _intersection_over_union(one: Box, other: Box) -> float:
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    union = _area(one) + _area(other) - width * height
    return width * height / union if union else float(one == other)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
