"""Pictures to try the demo with, each with a question: the project's own that no training has seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

PICTURES = Path(__file__).resolve().parents[3] / "data" / "documents"
"""Of a checkout; an installed package has none, and the demo then goes without examples."""

QUESTIONS = "heldout.jsonl"
SHOWN = ("field", "cell", "line", "sign", "colour")
"""Kinds of question that show most of what a model reads, the first of them that a picture has."""


@dataclass(frozen=True)
class Example:
    """A picture with a question; `name` is what the page calls it, such as "receipt"."""

    picture: Path
    question: str
    name: str


def examples(folder: Path = PICTURES) -> tuple[Example, ...]:
    """One held-out picture of each kind of document; none where the folder is not there."""
    questions = folder / QUESTIONS
    if not questions.is_file():
        return ()
    of_picture: dict[tuple[str, str], list[dict[str, str]]] = {}
    for line in questions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        of_picture.setdefault((row["document"], row["image"]), []).append(row)
    found: dict[str, Example] = {}
    for (document, image), rows in of_picture.items():
        best = min(rows, key=lambda row: SHOWN.index(row["kind"]) if row["kind"] in SHOWN else len(SHOWN))
        found.setdefault(document, Example(folder / image, best["question"], document))
    return tuple(found.values())
