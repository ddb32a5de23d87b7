"""GQA: testdev_balanced_questions.json = {question id: {"question", "imageId", "answer", "isBalanced", "types", …}},
and images/<imageId>.jpg.
"""

from __future__ import annotations

from eval.prepare.release import Prepared, PreparedRow, Release, take, take_text

PICTURES = "data/gqa/images"


def gqa(release: Release) -> Prepared:
    """The balanced testdev questions, in the file's order."""
    name = "testdev_balanced_questions.json"
    path = release.file(name, f"questions1.2/{name}", f"questions/{name}")
    rows = []
    for question_id, (where, entry) in release.entries(path):
        if not take(entry, "isBalanced", (bool,), where):
            continue
        picture_name = f"{take_text(entry, 'imageId', where)}.jpg"
        picture = release.picture(f"{PICTURES}/{picture_name}", f"images/{picture_name}", picture_name, where=where)
        answer, question = take_text(entry, "answer", where), take_text(entry, "question", where)
        more = {"types": entry["types"]} if "types" in entry else {}
        rows.append(PreparedRow(picture, question, answer, question_id, where, more))
    return Prepared(rows)
