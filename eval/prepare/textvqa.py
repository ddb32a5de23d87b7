"""TextVQA and TextCaps, which share their pictures, some of which Open Images stores turned.

TextVQA_0.5.1_val.json: {"data": [{"question_id", "image_id", "question", "answers": [ten texts], …}, …]};
TextCaps_0.1_val.json: {"data": [{"image_id", "caption_str", "reference_strs": [five texts], …}, …]}, a caption an
entry; train_images/<image_id>.jpg for both.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from eval.prepare.flickr30k import CAPTION_QUESTION
from eval.prepare.release import Picture, Prepared, PreparedRow, Release, take_id, take_text, take_texts
from monkey.images import open_image

PICTURES = "data/textvqa/train_images"
ROTATIONS = ("rotation.csv", "train-images-boxable-with-rotation.csv", "train_images/rotation.csv")
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
_JPEG = {"format": "JPEG", "quality": 100, "subsampling": 0}


def textvqa(release: Release) -> Prepared:
    """TextVQA v0.5.1 val."""
    find_picture, statement = _upright_pictures(release)
    rows, annotations = [], []
    for where, row in release.rows(release.file("TextVQA_0.5.1_val.json", "data/TextVQA_0.5.1_val.json"), "data"):
        question_id = take_id(row, "question_id", where)
        answers = take_texts(row, "answers", where)
        image_id = take_text(row, "image_id", where)
        picture = find_picture(image_id, where)
        rows.append(PreparedRow(picture, take_text(row, "question", where), answers, question_id, where))
        people = [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers, 1)]
        annotations.append({"question_id": question_id, "image_id": image_id, "answers": people})
    statements = ["the release has no annotation file; it was made of the answers, with answer_id from 1", statement]
    return Prepared(rows, statements, {"annotations": annotations})


def textcaps(release: Release) -> Prepared:
    """TextCaps v0.1 val: one row a picture, with its five references."""
    find_picture, statement = _upright_pictures(release)
    rows: dict[str, PreparedRow] = {}
    for where, row in release.rows(release.file("TextCaps_0.1_val.json", "data/TextCaps_0.1_val.json"), "data"):
        image_id = take_text(row, "image_id", where)
        if image_id in rows:
            continue
        references = take_texts(row, "reference_strs", where)
        rows[image_id] = PreparedRow(find_picture(image_id, where), CAPTION_QUESTION, references, image_id, where)
    return Prepared(list(rows.values()), ["one row a picture, with all its references", statement])


def _upright_pictures(release: Release) -> tuple[Callable[[str, str], Picture], str]:
    """A function of (image id, place) to its picture, turned where the release's list says so, and what it does."""
    path = release.find(*ROTATIONS)
    turns = _turns(release, path) if path is not None else {}

    def find(image_id: str, where: str) -> Picture:
        name = f"{image_id}.jpg"
        turn = turns.get(image_id, 0)
        return release.picture(
            f"{PICTURES}/{name}",
            f"train_images/{name}",
            f"train_val_images/train_images/{name}",
            name,
            where=where,
            change=functools.partial(_turned, turn=turn) if turn else None,
            changed=f"turned counter-clockwise by {turn}°, by {path}" if turn else "",
        )

    if path is None:
        return find, (
            f"pictures are as released: there is no {ROTATIONS[1]} of Open Images, whose column Rotation says which "
            "are stored turned; the evaluator turns by EXIF orientation alone"
        )
    return find, f"pictures that {path.name} lists as turned were turned upright and written as JPEG of quality 100"


def _turns(release: Release, path: Path) -> dict[str, int]:
    """Image id -> degrees counter-clockwise, of the pictures that are not upright."""
    turns = {}
    for where, row in release.table(path, ("ImageID", "Rotation"), ",", csv.QUOTE_MINIMAL):
        text = row["Rotation"].strip()
        if text in ("", "nan", "NaN"):
            continue
        try:
            degrees = float(text) % 360
        except ValueError as error:
            raise ValueError(f"{where}: Rotation {text!r} is no number of degrees") from error
        if degrees and degrees not in _TURNS:
            raise ValueError(f"{where}: Rotation {text} is no multiple of 90")
        if degrees:
            turns[row["ImageID"]] = int(degrees)
    return turns


def _turned(path: Path, turn: int) -> bytes:
    """The picture turned, without EXIF orientation: the list is about the pixels as stored."""
    content = io.BytesIO()
    open_image(path, apply_exif=False).transpose(_TURNS[turn]).save(content, **_JPEG)
    return content.getvalue()
