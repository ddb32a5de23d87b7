"""VizWiz: val.json = [{"image", "question", "answers": [ten of {"answer", "answer_confidence"}], "answer_type",
"answerable"}, …], and val/<image>. The answers have no answer_id, which scorers that leave one person out ask for.
"""

from __future__ import annotations

import re

from eval.prepare.release import Prepared, PreparedRow, Release, take, take_text

PICTURES = "data/vizwiz/val"
_NUMBER = re.compile(r"(\d+)\.\w+$")


def vizwiz(release: Release) -> Prepared:
    """VizWiz val; the question's id is the number in the name of its picture."""
    rows, annotations = [], []
    for where, row in release.rows(release.file("val.json", "annotations/val.json", "Annotations/val.json")):
        name = take_text(row, "image", where)
        number = _NUMBER.search(name)
        if number is None:
            raise ValueError(f"{where}: 'image' {name!r} has no number before its ending, by which questions are known")
        question_id = int(number.group(1))
        people = take(row, "answers", (list,), where)
        answers = [take_text(one, "answer", where) for one in people]
        picture = release.picture(f"{PICTURES}/{name}", f"val/{name}", f"images/val/{name}", name, where=where)
        more = {key: row[key] for key in ("answer_type", "answerable") if key in row}
        rows.append(PreparedRow(picture, take_text(row, "question", where), answers, question_id, where, more))
        numbered = [{**one, "answer_id": place} for place, one in enumerate(people, 1)]
        annotations.append({"question_id": question_id, "image_id": name, "answers": numbered, **more})
    statements = [
        "the release's answers have no answer_id; they were numbered from 1 in their order",
        "the annotation file was made of the release's own entries",
    ]
    return Prepared(rows, statements, {"annotations": annotations})
