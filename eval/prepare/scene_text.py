"""ST-VQA and EST-VQA. The tests of both were never what is evaluated: stvqa_test and estvqa_test are 5,000 rows each of
the *training* sets, drawn by the authors of OCRBench, who published the rows only inside of prediction files.

Prediction file (answer_save/<model>/STVQA.json and ESTVQA_EN.json in old commits of Yuliang-Liu/MultimodalOCR):
[{"question", "answer", "gt_answers", "image_path", "model_name"}, …], of which the answer is a model's and is not read.
Official: ST-VQA's train_task_3.json {"data": [{"question_id", "question", "file_path", "file_name", "dataset",
"answers"}, …]}; EST-VQA's train.json [{"image", "annotation": [{"question", "answer", …}, …]}, …].
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from eval.prepare.release import Located, Picture, Prepared, PreparedRow, Release, take, take_text, take_text_or_texts

ROWS = 5000
"""Rows that both subsets have."""

_CHINESE = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_NOT_THE_PUBLISHED = (
    "these are NOT the published rows, which were drawn at random from the same training set: do not compare single "
    "scores with published ones; give a prediction file of the OCRBench authors (STVQA.json, ESTVQA_EN.json) for those"
)


def stvqa(release: Release) -> Prepared:
    """The rows of a prediction file, or else 5,000 of train."""
    published = _prediction_file(release, "STVQA.json")
    if published is not None:
        return _of_predictions(release, published, _stvqa_picture, "STVQA/")
    rows = []
    path = release.file("train_task_3.json", "ST-VQA/train_task_3.json")
    for where, row in release.rows(path, "data"):
        name = f"{take_text(row, 'dataset', where)}/{take_text(row, 'file_name', where)}"
        picture = _stvqa_picture(release, name, where)
        question, answers = take_text(row, "question", where), take_text_or_texts(row, "answers", where)
        more = {"train_question_id": row["question_id"]} if "question_id" in row else {}
        rows.append(PreparedRow(picture, question, answers, len(rows), where, more))
    return _drawn(rows, f"of the {len(rows):,} questions of {path.name}")


def estvqa(release: Release) -> Prepared:
    """The rows of a prediction file, or else 5,000 English ones of train."""
    published = _prediction_file(release, "ESTVQA_EN.json")
    if published is not None:
        return _of_predictions(release, published, _estvqa_picture, "images/train/")
    rows = []
    path = release.file("annotations/train.json", "train.json", "annotations/en_train.json", "en_train.json")
    for where, entry in release.rows(path):
        picture = _estvqa_picture(release, take_text(entry, "image", where), where)
        for number, row in enumerate(take(entry, "annotation", (list,), where)):
            place = f"{where}, annotation {number}"
            question, answer = take_text(row, "question", place), take_text_or_texts(row, "answer", place)
            if not _CHINESE.search(question):
                rows.append(PreparedRow(picture, question, answer, len(rows), place))
    return _drawn(rows, f"of the {len(rows):,} questions of {path.name} that have no Chinese character")


def _prediction_file(release: Release, name: str) -> list[Located] | None:
    """The rows of the authors' prediction file, if the release has one; of several models the first by name."""
    models = [f"answer_save/{model}/{name}" for model in release.names("answer_save")]
    path = release.find(name, *models)
    return release.rows(path) if path is not None else None


def _of_predictions(
    release: Release, entries: list[Located], picture: Callable[[Release, str, str], Picture], folder: str
) -> Prepared:
    """One row an entry; its picture is known by what follows `folder` in its path."""
    rows = []
    for number, (where, entry) in enumerate(entries):
        path = take_text(entry, "image_path", where)
        found = picture(release, path.rpartition(folder)[2], where)
        answers = take_text_or_texts(entry, "gt_answers", where)
        rows.append(PreparedRow(found, take_text(entry, "question", where), answers, number, where))
    return Prepared(rows, ["rows, order and references of the OCRBench authors' prediction file; ids count from 0"])


def _drawn(rows: Sequence[PreparedRow], whence: str) -> Prepared:
    """`ROWS` of the rows, those with the smallest SHA-256 of picture, question and place, in the file's order."""

    def draw(row: PreparedRow) -> str:
        return hashlib.sha256("\n".join((row.picture.target, row.question, str(row.question_id))).encode()).hexdigest()

    chosen = sorted(sorted(rows, key=draw)[:ROWS], key=lambda row: row.question_id)
    statement = (
        f"{len(chosen):,} {whence}: those with the smallest SHA-256 of picture, question and number, in the file's "
        "order; ids count from 0"
    )
    return Prepared(
        [replace(row, question_id=number) for number, row in enumerate(chosen)], [statement, _NOT_THE_PUBLISHED]
    )


def _stvqa_picture(release: Release, name: str, where: str) -> Picture:
    """`name` is <set>/<file>. Pictures of COCO-Text may also lie in COCO's own folder."""
    folders = ("", "train_images/", "train_imgs/", "images/", "ST-VQA/", "STVQA/")
    names = [f"{folder}{name}" for folder in folders]
    if name.startswith("coco-text/"):
        names.append(f"train2014/{PurePosixPath(name).name}")
    return release.picture(f"data/STVQA/{name}", *names, where=where)


def _estvqa_picture(release: Release, name: str, where: str) -> Picture:
    folders = ("images/train/", "train/", "images/", "train_images/", "test_image/", "")
    return release.picture(f"data/estvqa/test_image/{name}", *(f"{folder}{name}" for folder in folders), where=where)
