"""VisualMRC: test.jsonl (or test.json), a page a row: {"id", "image_filename", "screenshot_filename", "qa_data":
[{"question": {"text"}, "answer": {"text", "relevant"}}, …], "bounding_boxes", …}, and the pictures, which the publisher
hands out on request. Others have put both on the hub, as parquet files.
"""

from __future__ import annotations

from eval.prepare.release import Prepared, PreparedRow, Release, take, take_text

PICTURES = "data/visualmrc/images"


def visualmrc(release: Release) -> Prepared:
    """The test questions, in the file's order."""
    path = release.file("test.jsonl", "test.json", "data/test.jsonl", "data/test.json")
    rows: list[PreparedRow] = []
    for where, page in release.rows(path):
        name = take_text(page, "image_filename", where)
        base = name.rpartition("/")[2]
        picture = release.picture(
            f"{PICTURES}/{base}", f"images/{base}", name, f"images/{name}", f"test/{base}", base, where=where
        )
        for number, pair in enumerate(take(page, "qa_data", (list,), where)):
            place = f"{where}, qa_data {number}"
            question = take_text(take(pair, "question", (dict,), place), "text", place)
            answer = take_text(take(pair, "answer", (dict,), place), "text", place)
            rows.append(PreparedRow(picture, question, answer, len(rows), place))
    return Prepared(rows, ["answers are whole sentences, one a question"])
