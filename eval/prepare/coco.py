"""VQAv2 and OK-VQA: a file of questions, one of annotations, and the pictures of COCO val2014.

{"questions": [{"question_id", "image_id", "question"}, …]} and {"annotations": [{"question_id", "answers": [{"answer",
"answer_confidence", "answer_id"}, …], …}, …]}. OK-VQA's answers have `raw_answer` beside the stemmed `answer`.
"""

from __future__ import annotations

from typing import Any

from eval.prepare.release import Prepared, PreparedRow, Release, take, take_id, take_text

PICTURES = "data/coco/val2014"


def vqav2(release: Release) -> Prepared:
    """VQAv2 val2014."""
    return _prepared(
        release,
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
        with_raw_answers=False,
    )


def okvqa(release: Release) -> Prepared:
    """OK-VQA val2014, with the answers before stemming beside."""
    return _prepared(
        release, "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json", with_raw_answers=True
    )


def _prepared(release: Release, question_name: str, annotation_name: str, with_raw_answers: bool) -> Prepared:
    annotations = release.file(annotation_name, f"annotations/{annotation_name}")
    people: dict[str, list[Any]] = {}
    for where, entry in release.rows(annotations, "annotations"):
        people[str(take_id(entry, "question_id", where))] = take(entry, "answers", (list,), where)
    rows = []
    for where, row in release.rows(release.file(question_name, f"questions/{question_name}"), "questions"):
        question_id = take_id(row, "question_id", where)
        if str(question_id) not in people:
            raise ValueError(f"{where}: question_id {question_id!r} has no answers in {annotations}")
        given = people[str(question_id)]
        name = f"COCO_val2014_{take(row, 'image_id', (int,), where):012d}.jpg"
        picture = release.picture(
            f"{PICTURES}/{name}", f"val2014/{name}", f"images/val2014/{name}", f"images/{name}", name, where=where
        )
        place = f"{annotations}, question_id {question_id}"
        answers = [take_text(one, "answer", place) for one in given]
        more = {"raw_answers": [take_text(one, "raw_answer", place) for one in given]} if with_raw_answers else {}
        rows.append(PreparedRow(picture, take_text(row, "question", where), answers, question_id, where, more))
    statements = ["the annotation file is the official one, byte for byte"]
    if with_raw_answers:
        statements.append(
            "the answers are the release's stems ('answer'), by which it is scored; the words as people wrote them "
            "are in 'raw_answers' of each line and in the annotation file"
        )
    return Prepared(rows, statements, annotations)
