"""A look at what of a training record is supervised, for people.

print(draw_pieces(pieces_of(record, processor), in_colour=True))
"""

from __future__ import annotations

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
    pieces, start = [], 0
    while start < len(ids):
        stop = start + 1
        if ids[start] == tokenizer.image_start_id:
            stop = ids.index(tokenizer.image_end_id, start) + 1
            pieces.append(Piece(f"{IMAGE_START}×{stop - start - 2}", "image"))
        else:
            is_answer = labels[start] != UNSUPERVISED
            while (
                stop < len(ids)
                and (labels[stop] != UNSUPERVISED) == is_answer
                and ids[stop] != tokenizer.image_start_id
            ):
                stop += 1
            pieces.append(Piece(tokenizer.decode(ids[start:stop]), "answer" if is_answer else "prompt"))
        start = stop
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
