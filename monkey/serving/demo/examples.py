"""Pictures to try the demo with, each with a question: the project's own that no training has seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[3] / "data" / "samples"
"""Of a checkout; an installed package has none, and the demo then goes without examples."""


@dataclass(frozen=True)
class Example:
    picture: Path
    question: str

    @property
    def name(self) -> str:
        """What the page calls it: "signs" rather than "000000.png"."""
        return self.picture.parent.name


def examples(folder: Path = SAMPLES) -> tuple[Example, ...]:
    """Each held-out picture with its first question; none where the folder is not there."""
    questions = folder / "heldout_all.jsonl"
    if not questions.is_file():
        return ()
    found: dict[Path, Example] = {}
    for line in questions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        picture = folder / row["image"]
        found.setdefault(picture, Example(picture, row["question"]))
    return tuple(found.values())
