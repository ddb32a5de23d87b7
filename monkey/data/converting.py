"""Records of any form that is read, written as ours: `scripts/check_data.py FILE --convert out.jsonl`.

Each record is a line with its `id`, if it had one, and its turns, which are what training would learn: a system's text
stands before the first question. Images in files keep their places, written from the folder that they are looked up in;
those in rows become files of a folder beside the new file, each once.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image as PILImage
from tqdm import tqdm

from monkey.conversation import Image
from monkey.data.mixture import RecordFile, RecordSet
from monkey.data.records import BAD, Record
from monkey.images import FORMATS, MAX_BYTES, MAX_PIXELS, StoredImage, has_sound_header, open_image
from monkey.journal import atomic_file, atomic_folder, digest, json_line


class Converted(NamedTuple):
    """How many records were written, a sentence on each that was not, and where the images of files start from."""

    written: int
    left_out: list[str]
    root: Path | None
    """None where no record names a file."""


def convert_records(sets: Sequence[RecordSet], out: Path, root_name: str = "image_root") -> Converted:
    """Write the records of sets as ours, all of them or none; bad ones are left out.

    Raises:
        ValueError: an ending other than .jsonl, a file or folder that is there already, no record at all, or images
            that are looked up in several places, which one file cannot say.
    """
    folder = out.with_name(f"{out.stem}-images")
    if out.suffix != ".jsonl":
        raise ValueError(f"--convert {out}: give a file that ends in .jsonl")
    if not out.parent.is_dir():
        raise ValueError(f"--convert {out}: give a file in a folder that exists")
    for place in (out, folder):
        if place.exists():
            raise ValueError(f"--convert {out}: {place} is there already; move it away, or give another name")
    left_out: list[str] = []
    written, roots = 0, set()
    with atomic_file(out) as file, atomic_folder(folder) as images:
        for one in sets:
            records = RecordFile(one, root_name)
            root = one.image_root or one.path.parent
            for row in tqdm(range(len(records)), desc=one.name, unit="record", leave=False, disable=None):
                try:
                    record = records.read(row)
                    conversations = _turns(record, root, images, folder.name)
                except BAD as fault:
                    left_out.append(str(fault))
                    continue
                roots |= {out.parent if isinstance(image, StoredImage) else root for image in record.images}
                identity = records.rows[row][1].get("id")
                fields = {"id": identity} if isinstance(identity, (str, int)) else {}
                file.write(json_line({**fields, "conversations": conversations}))
                written += 1
        if len(roots) > 1:
            places = " and in ".join(sorted(map(str, roots)))
            raise ValueError(f"--convert {out}: images are looked up in {places}; convert those sets apart")
        if not written:
            raise ValueError(f"--convert {out}: all {len(left_out):,} records are bad; the first: {left_out[0]}")
    if not any(folder.iterdir()):
        folder.rmdir()
    root = next(iter(roots), None)
    return Converted(written, left_out, root)


def _turns(record: Record, root: Path, images: Path, folder: str) -> list[dict[str, str]]:
    turns = []
    for message in record.conversation.messages:
        text = ""
        for part in message.parts:
            is_image = isinstance(part, Image)
            text += (
                f"<img>{_path_of(part.source, record.source, root, images, folder)}</img>" if is_image else part.text
            )
        turns.append({"from": message.role, "value": text})
    return turns


def _path_of(image: Any, source: str, root: Path, images: Path, folder: str) -> str:
    """Return how a record names an image; one that lies in its row is written first."""
    if not isinstance(image, StoredImage):
        return Path(os.path.relpath(image, root)).as_posix()
    return f"{folder}/{write_stored(image, images, source)}"


def name_stored(image: StoredImage, source: str) -> str:
    """Return the name of a file for an image, by its bytes.

    Raises ValueError for one whose header cannot be read, or beyond the limits of files.
    """
    if not has_sound_header(image, MAX_BYTES, MAX_PIXELS):
        try:
            open_image(image)  # which says what is wrong with it
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    with PILImage.open(io.BytesIO(image), formats=FORMATS) as opened:
        kind = opened.format
    return f"{digest(image=repr(image))[:24]}.{kind.lower()}"


def write_stored(image: StoredImage, folder: Path, source: str) -> str:
    """Write an image under a name of its bytes, unless it is there; return the name. Raises as `name_stored`."""
    name = name_stored(image, source)
    if not (folder / name).exists():
        (folder / name).write_bytes(image)
    return name
