"""Pictures to try the demo with, each with a question: the project's own that no training has seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PICTURES = Path(__file__).resolve().parents[3] / "data" / "documents" / "images" / "heldout"
"""Of a checkout; an installed package has none, and the demo then goes without examples."""

# Of each kind of document one that the model that ships reads.
_SHOWN = (
    ("receipt", "000020.jpg", "What is the total?"),
    ("form", "000010.jpg", "What is the phone number?"),
    ("label", "000005.jpg", "What is the date?"),
    ("sign", "000018.jpg", "What number is on the sign?"),
    ("table", "000009.jpg", "What is Otter of Station?"),
    ("bars", "000019.jpg", "What is the value of Coat?"),
    ("lines", "000008.jpg", "What is the value of Hai?"),
    ("paragraph", "000001.jpg", "How many lines of text are there?"),
    ("scene", "000023.jpg", "What colour is the square?"),
)


@dataclass(frozen=True)
class Example:
    """A picture with a question; `name` is what the page calls it, such as "receipt"."""

    picture: Path
    question: str
    name: str


def examples(folder: Path = PICTURES) -> tuple[Example, ...]:
    """One held-out picture of each kind of document; those whose picture is not there are left out."""
    found = (Example(folder / file, question, name) for name, file, question in _SHOWN)
    return tuple(example for example in found if example.picture.is_file())
