"""Files of descriptions: the published dataset's form, read and written, and this project's training records.

The published Detailed_Caption files are JSON lists of `{"img_id": file name, "detailed_caption": text}`, as the
published chatgpt.py writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monkey.data.rows import IndexedRows, fail, text_of
from monkey.prompts import DETAILED_CAPTION_AS_TRAINED, IMAGE_PLACE


@dataclass(frozen=True)
class DetailedCaption:
    """A description and the picture it is of: `image` is a file name, below the folder of the pictures."""

    image: str
    text: str


def read_detailed_captions(path: Path) -> Iterator[DetailedCaption]:
    """The descriptions of a published file, or of a run's detailed_captions.json, one by one.

    Raises ValueError or FileNotFoundError naming the file and the row.
    """
    for source, row in IndexedRows(path):
        image, text = text_of(row, "img_id", source), text_of(row, "detailed_caption", source)
        if not image.strip():
            fail(source, "'img_id' is empty")
        if not text.strip():
            fail(source, "'detailed_caption' is empty")
        yield DetailedCaption(image, text)


def published_rows(captions: Iterable[DetailedCaption]) -> Iterator[Mapping[str, Any]]:
    for caption in captions:
        yield {"img_id": caption.image, "detailed_caption": caption.text}


def training_rows(captions: Iterable[DetailedCaption]) -> Iterator[Mapping[str, Any]]:
    """Training records that ask for a detailed caption, with the prompt as trained."""
    for caption in captions:
        question = DETAILED_CAPTION_AS_TRAINED.replace(IMAGE_PLACE, f"<img>{caption.image}</img>")
        turns = [{"from": "user", "value": question}, {"from": "assistant", "value": caption.text}]
        yield {"id": caption.image, "conversations": turns}


def json_list(rows: Iterable[Any]) -> Iterator[bytes]:
    """A JSON list with a row on each line, piece by piece."""
    yield b"["
    between = b"\n"
    for row in rows:
        yield between + json.dumps(row, ensure_ascii=False).encode("utf-8")
        between = b",\n"
    yield b"\n]\n"
