"""What a check of training data found, as sentences, a table and JSON; and a look at what of a record is supervised."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import monkey
from monkey.data.records import Record
from monkey.data.rows import EMPTY_ANSWER, NOT_OF_THE_SCHEMA, OUT_OF_ORDER
from monkey.prompts import IMAGE_PLACE

UNREADABLE = "unreadable row"
ROW_COUNT = "wrong row count"
REFUSED_PATH = "refused image path"
MISSING = "missing image"
BROKEN = "broken image"
NOT_ENCODABLE = "cannot be encoded"
TOO_LONG = "too long"
DUPLICATE = "duplicate"
ID_TWICE = "question id twice"
LEAKED = "image also in evaluation"
KINDS = (
    UNREADABLE,
    ROW_COUNT,
    NOT_OF_THE_SCHEMA,
    OUT_OF_ORDER,
    EMPTY_ANSWER,
    REFUSED_PATH,
    MISSING,
    BROKEN,
    NOT_ENCODABLE,
    TOO_LONG,
    DUPLICATE,
    ID_TWICE,
    LEAKED,
)
"""Problems, in the order of the table."""

SEVERAL_NAMES = "image under several names"
OTHER_COUNT = "other count than recalled"
NOT_READ = "may not be meant so"
NO_IMAGES = "no record has an image"
NOTES = (SEVERAL_NAMES, OTHER_COUNT, NOT_READ, NO_IMAGES)
"""What is worth knowing and may be meant so."""


class Finding(NamedTuple):
    """One problem or note: where it stands, and the whole sentence."""

    kind: str
    source: str
    sentence: str


@dataclass
class Report:
    """Everything that a check found."""

    files: list[dict[str, Any]]
    """Path, role ("train" or "evaluation"), rows and weight of each file; `forms` has rows by foreign form."""
    findings: list[Finding] = field(default_factory=list)
    images: int = 0
    longest: tuple[int, str] = (0, "")
    """Most tokens of a sample, and where it stands; 0 where lengths were not checked."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Check -> why it was left out."""
    previews: list[tuple[str, list[Piece]]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(file["rows"] for file in self.files)

    @property
    def is_clean(self) -> bool:
        return not any(finding.kind in KINDS for finding in self.findings)

    def of_kind(self, kind: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]

    def summary(self) -> list[dict[str, Any]]:
        """Kind, whether it is a problem, number of places, and the first of them, for each kind that was found."""
        lines = []
        for kind in (*KINDS, *NOTES):
            places = list(dict.fromkeys(finding.source for finding in self.of_kind(kind)))
            if places:
                lines.append({"kind": kind, "problem": kind in KINDS, "rows": len(places), "first": places[0]})
        return lines

    def table(self) -> str:
        """The summary for people: problem, rows, first place."""
        rows = [("problem", "rows", "first place")]
        for line in self.summary():
            rows.append(
                (line["kind"] if line["problem"] else f"note: {line['kind']}", f"{line['rows']:,}", line["first"])
            )
        if len(rows) == 1:
            rows.append(("none", "0", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]}".rstrip() for row in rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def sentences(self, most: int) -> list[str]:
        """Up to `most` sentences of each kind, and how many more there are."""
        lines = []
        for kind in (*KINDS, *NOTES):
            found = self.of_kind(kind)
            lines += [f"{kind}: {_one_line(finding.sentence)}" for finding in found[:most]]
            if len(found) > most:
                lines.append(f"{kind}: and {len(found) - most:,} more")
        return lines

    def write_json(self, path: Path, settings: dict[str, Any]) -> None:
        """Write everything but the previews, whole or not at all."""
        content = {
            "clean": self.is_clean,
            "settings": settings,
            "files": self.files,
            "rows": self.rows,
            "images": self.images,
            "longest_sample": {"tokens": self.longest[0], "source": self.longest[1]} if self.longest[0] else None,
            "skipped": self.skipped,
            "summary": self.summary(),
            "problems": [finding._asdict() for finding in self.findings if finding.kind in KINDS],
            "notes": [finding._asdict() for finding in self.findings if finding.kind in NOTES],
        }
        aside = path.with_name(f".{path.name}.partial")
        try:
            # A message may quote half of a surrogate pair, which has no UTF-8.
            aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


class Piece(NamedTuple):
    """A stretch of a sample: `kind` is "prompt", "answer" (supervised) or "image"."""

    text: str
    kind: str


def pieces_of(record: Record, processor: monkey.MonkeyProcessor | None) -> list[Piece]:
    """A record as what the model reads and learns; with a processor from the very ids and labels of training."""
    if processor is None:
        return list(itertools.chain.from_iterable(_pieces_of_turn(turn.role, turn.text) for turn in record.turns))
    from monkey.processing import UNSUPERVISED
    from monkey.tokenization import IMAGE_START

    turns = [asdict(turn) for turn in record.turns]
    sample = processor.encode_conversation(turns, list(record.images))
    ids, supervised = sample["input_ids"], [label != UNSUPERVISED for label in sample["labels"]]
    tokenizer = processor.tokenizer
    pieces = []
    start = 0
    while start < len(ids):
        stop = start + 1
        if ids[start] == tokenizer.image_start_id:
            stop = ids.index(tokenizer.image_end_id, start) + 1
            pieces.append(Piece(f"{IMAGE_START}×{stop - start - 2}", "image"))
        else:
            same = supervised[start]
            while stop < len(ids) and supervised[stop] == same and ids[stop] != tokenizer.image_start_id:
                stop += 1
            pieces.append(Piece(tokenizer.decode(ids[start:stop]), "answer" if same else "prompt"))
        start = stop
    return pieces


def _pieces_of_turn(role: str, text: str) -> Iterable[Piece]:
    from monkey.tokenization import END_OF_TEXT, IMAGE_START

    if role == "assistant":
        return [Piece(text + END_OF_TEXT, "answer")]
    between = Piece(IMAGE_START, "image")
    texts = [Piece(part, "prompt") for part in text.split(IMAGE_PLACE)]
    joined = [piece for part in texts for piece in (between, part)][1:]
    return [piece for piece in joined if piece.text]


_STYLES = {"prompt": "\x1b[2m{}\x1b[0m", "answer": "\x1b[1;32m{}\x1b[0m", "image": "\x1b[36m{}\x1b[0m"}
_MARKS = {"prompt": "{}", "answer": "«{}»", "image": "{}"}


def drawn(pieces: Sequence[Piece], in_colour: bool) -> str:
    """Pieces for a terminal: what is supervised in green, or between « and »."""
    forms = _STYLES if in_colour else _MARKS
    return "".join(forms[piece.kind].format(_shown(piece.text)) for piece in pieces)


def _shown(text: str) -> str:
    """Text that cannot steer the terminal; a line break is a sign and a line break."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return shown.replace("\n", "↵\n  ")


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
