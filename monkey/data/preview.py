"""A look at what of a training record is supervised, for people.

print(draw_pieces(pieces_of(record, processor), in_colour=True))
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from monkey.conversation import Message
from monkey.data.records import Record
from monkey.prompts import END_OF_TEXT, IMAGE_PLACE, IMAGE_START


class Piece(NamedTuple):
    """A stretch of a sample: `kind` is "prompt", "answer" (supervised) or "image"."""

    text: str
    kind: str


def pieces_of(record: Record, processor: Any) -> list[Piece]:
    """Return a record as what the model reads and learns; with a processor from the very ids and labels of training."""
    if processor is None:
        return [piece for message in record.conversation.messages for piece in _pieces_of_message(message)]
    from monkey.processing import UNSUPERVISED

    ids, labels, _ = processor.encode(record.conversation, labels=True)
    tokenizer = processor.tokenizer
    marks, number, is_inside = [], 0, False
    for token, label in zip(ids, labels, strict=True):
        if token == tokenizer.image_start_id:
            is_inside, number = True, number + 1
        marks.append(("image", number) if is_inside else ("prompt" if label == UNSUPERVISED else "answer", 0))
        is_inside &= token != tokenizer.image_end_id
    pieces = []
    for (kind, _), positions in itertools.groupby(range(len(ids)), key=marks.__getitem__):
        own = [ids[position] for position in positions]
        pieces.append(Piece(f"{IMAGE_START}×{len(own) - 2}" if kind == "image" else tokenizer.decode(own), kind))
    return pieces


def _pieces_of_message(message: Message) -> list[Piece]:
    if message.role == "assistant":
        return [Piece(message.text + END_OF_TEXT, "answer")]
    texts = [Piece(part, "prompt") for part in message.text.split(IMAGE_PLACE)]
    pieces = [piece for text in texts for piece in (Piece(IMAGE_START, "image"), text)][1:]
    return [piece for piece in pieces if piece.text]


_STYLES = {"prompt": "\x1b[2m{}\x1b[0m", "answer": "\x1b[1;32m{}\x1b[0m", "image": "\x1b[36m{}\x1b[0m"}
_MARKS = {"prompt": "{}", "answer": "«{}»", "image": "{}"}


def escape(text: str, kept: str = "") -> str:
    """Return a text that cannot steer the terminal."""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def draw_pieces(pieces: Sequence[Piece], in_colour: bool) -> str:
    """Return pieces for a terminal: what is supervised in green, or between « and »."""
    forms = _STYLES if in_colour else _MARKS
    return "".join(forms[piece.kind].format(escape(piece.text, kept="\n").replace("\n", "↵\n  ")) for piece in pieces)
