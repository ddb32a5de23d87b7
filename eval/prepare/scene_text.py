"""ST-VQA and EST-VQA. The tests of both were never what is evaluated: stvqa_test and estvqa_test are 5,000 rows each of
the *training* sets, drawn by the authors of OCRBench, who published the rows only inside of prediction files. The
official test of EST-VQA, whose answers have been released since, is estvqa_official.

Prediction file (answer_save/<model>/STVQA.json and ESTVQA_EN.json in old commits of Yuliang-Liu/MultimodalOCR):
[{"question", "answer", "gt_answers", "image_path", "model_name"}, …], of which the answer is a model's and is not read.
Official: ST-VQA's train_task_3.json {"data": [{"question_id", "question", "file_path", "file_name", "dataset",
"answers"}, …]}; EST-VQA's train.json [{"image", "annotation": [{"question", "answer", …}, …]}, …], and its answers to
the test [{"question_id", "question", "answer", "evidence"}, …], whose pictures may stand in a file of their own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from eval.prepare.release import (
    Located,
    Picture,
    Prepared,
    PreparedRow,
    Release,
    take,
    take_id,
    take_text,
    take_text_or_texts,
)

ROWS = 5000
"""Rows that both subsets have."""

_CHINESE = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_TEST_ANSWERS = ("test.json", "test_gt.json", "gt.json", "gt_test.json", "en_test.json")
"""Names that the released answers may go by: the publisher's repository names its sample only."""
_PICTURE_LIST = "test_images.json"
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
    for where, row in _list_questions(release.rows(path)):
        picture = _estvqa_picture(release, take_text(row, "image", where), where)
        question, answer = take_text(row, "question", where), take_text_or_texts(row, "answer", where)
        if not _CHINESE.search(question):
            rows.append(PreparedRow(picture, question, answer, len(rows), where))
    return _drawn(rows, f"of the {len(rows):,} questions of {path.name} that have no Chinese character")


def estvqa_official(release: Release) -> Prepared:
    """The test questions with the released answers; 'language' and 'evidence' stand in each line."""
    rows = []
    named = release.find(*(f"{folder}{_PICTURE_LIST}" for folder in ("", "annotations/")))
    listed = list(_list_questions(release.rows(named))) if named is not None else []
    pictures = {str(take_id(row, "question_id", where)): take_text(row, "image", where) for where, row in listed}
    path = release.file(*(f"{folder}{name}" for name in _TEST_ANSWERS for folder in ("annotations/", "")))
    for where, row in _list_questions(release.rows(path)):
        question_id = take_id(row, "question_id", where)
        name = take_text(row, "image", where) if "image" in row else pictures.get(str(question_id))
        if name is None:
            raise ValueError(
                f"{where}: nothing says which picture question {question_id} is about; write {_PICTURE_LIST} into "
                f'{release.folder}: a list of {{"question_id": …, "image": "name.jpg"}}'
            )
        question, answer = take_text(row, "question", where), take_text_or_texts(row, "answer", where)
        more = {"language": "Chinese" if _CHINESE.search(question) else "English"}
        more |= {"evidence": row["evidence"]} if "evidence" in row else {}
        folders = ("images/test/", "test/", "test_images/", "images/", "")
        picture = release.picture(
            f"data/estvqa_official/images/{name}", *(f"{folder}{name}" for folder in folders), where=where
        )
        rows.append(PreparedRow(picture, question, answer, question_id, where, more))
    return Prepared(rows, ["the official test; 'evidence' (the corners of the place) is kept and not scored"])


def _list_questions(entries: Iterable[Located]) -> Iterator[Located]:
    """Rows of one question each: those of a picture's 'annotation' with its 'image', or the rows as they are."""
    for where, entry in entries:
        if not isinstance(entry, dict) or "annotation" not in entry:
            yield Located(where, entry)
            continue
        for number, row in enumerate(take(entry, "annotation", (list,), where)):
            yield Located(f"{where}, annotation {number}", {"image": entry.get("image"), **row})


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
