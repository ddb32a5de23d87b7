"""Questions and captions about photographs: VQAv2, OK-VQA, GQA, VizWiz, TextVQA, TextCaps, Flickr30K.

VQAv2 and OK-VQA: {"questions": [{"question_id", "image_id", "question"}, …]}, {"annotations": [{"question_id",
"answers": [{"answer", "answer_confidence", "answer_id"}, …], …}, …]}, and the images of COCO val2014. OK-VQA's answers
have `raw_answer` beside the stemmed `answer`.
GQA: testdev_balanced_questions.json = {question id: {"question", "imageId", "answer", "isBalanced", "types", …}}, and
images/<imageId>.jpg.
VizWiz: val.json = [{"image", "question", "answers": [ten of {"answer", "answer_confidence"}], "answer_type",
"answerable"}, …], and val/<image>. The answers have no answer_id, which scorers that leave one person out ask for.
TextVQA_0.5.1_val.json: {"data": [{"question_id", "image_id", "question", "answers": [ten texts], …}, …]};
TextCaps_0.1_val.json: {"data": [{"image_id", "caption_str", "reference_strs": [five texts], …}, …]}, a caption an
entry; train_images/<image_id>.jpg for both, some of which Open Images stores turned.
Flickr30K: dataset_flickr30k.json of Karpathy = {"images": [{"filename", "split", "imgid", "sentences": [{"raw",
"tokens"}, …]}, …]}, and flickr30k-images/.
"""

from __future__ import annotations

import csv
import functools
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from eval.prepare.release import PreparedRow, Release, SourceImage, below
from monkey.images import open_image

CAPTION_QUESTION = "Generate the caption in English:"
"""What a row of a caption task asks; its prompt form says it without a place for a question."""

_ROTATIONS = "train-images-boxable-with-rotation.csv"
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def coco(release: Release, questions: str, annotations: str) -> Iterator[PreparedRow]:
    """Read the val2014 split of VQAv2 or OK-VQA, answers before stemming beside the stems where there are any."""
    release.annotations = answered = release.file(*below(("", "annotations"), annotations))
    people = {
        str(entry.identifier("question_id")): entry.entries("answers")
        for entry in release.rows(answered, "annotations")
    }
    for row in release.rows(release.file(*below(("", "questions"), questions)), "questions"):
        question_id = row.identifier("question_id")
        if str(question_id) not in people:
            raise ValueError(f"{row.where}: question_id {question_id!r} has no answers in {answered}")
        given = people[str(question_id)]
        name = f"COCO_val2014_{row.take('image_id', int):012d}.jpg"
        folders = ("val2014", "images/val2014", "images", "")
        image = release.image(f"data/coco/val2014/{name}", below(folders, name), row.where)
        answers = [person.text("answer") for person in given]
        are_stems = any("raw_answer" in person.value for person in given)
        more = {"raw_answers": [person.text("raw_answer") for person in given]} if are_stems else {}
        yield PreparedRow(row.where, image, row.text("question"), answers, question_id, more)


def gqa(release: Release) -> Iterator[PreparedRow]:
    """Read the balanced testdev questions, in the file's order."""
    name = "testdev_balanced_questions.json"
    for question_id, entry in release.entries(release.file(name, f"questions1.2/{name}", f"questions/{name}")):
        if not entry.take("isBalanced", bool):
            continue
        image_name = f"{entry.text('imageId')}.jpg"
        image = release.image(f"data/gqa/images/{image_name}", below(("images", ""), image_name), entry.where)
        answer, question = entry.text("answer"), entry.text("question")
        yield PreparedRow(entry.where, image, question, answer, question_id, entry.keep("types"))


def vizwiz(release: Release) -> Iterator[PreparedRow]:
    """Read VizWiz val; the question's id is the number in the name of its image."""
    annotations = []
    for row in release.rows(release.file("val.json", "annotations/val.json", "Annotations/val.json")):
        name = row.text("image")
        number = re.search(r"(\d+)\.\w+$", name)
        if number is None:
            raise ValueError(
                f"{row.where}: 'image' {name!r} has no number before its ending, by which questions are known"
            )
        question_id = int(number.group(1))
        people = row.entries("answers")
        answers = [person.text("answer") for person in people]
        image = release.image(f"data/vizwiz/val/{name}", below(("val", "images/val", ""), name), row.where)
        more = row.keep("answer_type", "answerable")
        yield PreparedRow(row.where, image, row.text("question"), answers, question_id, more)
        numbered = [{**person.value, "answer_id": place} for place, person in enumerate(people, 1)]
        annotations.append({"question_id": question_id, "image_id": name, "answers": numbered, **more})
    release.annotations = {"annotations": annotations}


def flickr30k(release: Release) -> Iterator[PreparedRow]:
    """Read the 1,000 test images of Karpathy's split, with five references each."""
    name = "dataset_flickr30k.json"
    for row in release.rows(release.file(name, f"flickr30k/{name}", f"caption_datasets/{name}"), "images"):
        if row.text("split") != "test":
            continue
        file_name = row.text("filename")
        names = below(("flickr30k-images", "flickr30k_images", "images"), file_name)
        image = release.image(f"data/flickr30k/flickr30k-images/{file_name}", names, row.where)
        references = [sentence.text("raw") for sentence in row.entries("sentences")]
        yield PreparedRow(row.where, image, CAPTION_QUESTION, references, row.take("imgid", int))


def textvqa(release: Release) -> Iterator[PreparedRow]:
    """Read TextVQA v0.5.1 val."""
    upright = _upright_images(release)
    annotations = []
    for row in release.rows(release.file(*below(("", "data"), "TextVQA_0.5.1_val.json")), "data"):
        question_id, image_id, answers = row.identifier("question_id"), row.text("image_id"), row.texts("answers")
        image = upright(image_id, row.where)
        yield PreparedRow(row.where, image, row.text("question"), answers, question_id)
        people = [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers, 1)]
        annotations.append({"question_id": question_id, "image_id": image_id, "answers": people})
    release.annotations = {"annotations": annotations}


def textcaps(release: Release) -> Iterator[PreparedRow]:
    """Read TextCaps v0.1 val: one row per image, with its five references."""
    upright = _upright_images(release)
    seen = set()
    for row in release.rows(release.file(*below(("", "data"), "TextCaps_0.1_val.json")), "data"):
        image_id = row.text("image_id")
        if image_id not in seen:
            seen.add(image_id)
            image, references = upright(image_id, row.where), row.texts("reference_strs")
            yield PreparedRow(row.where, image, CAPTION_QUESTION, references, image_id)


def _upright_images(release: Release) -> Callable[[str, str], SourceImage]:
    """Return a function of (image id, place) to its image, turned where the release has a list that says so."""
    path = release.find("rotation.csv", _ROTATIONS, "train_images/rotation.csv")
    turns = _read_turns(release, path) if path is not None else {}
    if path is None:
        release.statements.append(
            f"images are as released: there is no {_ROTATIONS} of Open Images, whose column Rotation says which "
            "are stored turned; the evaluator turns by EXIF orientation alone"
        )
    else:
        release.statements.append(
            f"images that {path.name} lists as turned were turned upright and written as JPEG of quality 100"
        )

    def find(image_id: str, where: str) -> SourceImage:
        name = f"{image_id}.jpg"
        target = f"data/textvqa/train_images/{name}"
        names = below(("train_images", "train_val_images/train_images", ""), name)
        if image_id not in turns:
            return release.image(target, names, where)
        turn = turns[image_id]
        changed = f"turned counter-clockwise by {turn}°, by {path}"
        return release.image(target, names, where, functools.partial(_turn, degrees=turn), changed)

    return find


def _read_turns(release: Release, path: Path) -> dict[str, int]:
    """Return degrees counter-clockwise by image id, of the images that are not upright."""
    turns = {}
    for row in release.table(path, ("ImageID", "Rotation"), ",", csv.QUOTE_MINIMAL):
        text = row.value["Rotation"].strip()
        if text in ("", "nan", "NaN"):
            continue
        try:
            degrees = float(text) % 360
        except ValueError as error:
            raise ValueError(f"{row.where}: Rotation {text!r} is no number of degrees") from error
        if degrees and degrees not in _TURNS:
            raise ValueError(f"{row.where}: Rotation {text} is no multiple of 90")
        if degrees:
            turns[row.value["ImageID"]] = int(degrees)
    return turns


def _turn(path: Path, degrees: int) -> bytes:
    """Return the image turned, without EXIF orientation: the list is about the pixels as stored."""
    content = io.BytesIO()
    turned = open_image(path, apply_exif=False).transpose(_TURNS[degrees])
    turned.save(content, format="JPEG", quality=100, subsampling=0)
    return content.getvalue()
