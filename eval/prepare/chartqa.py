"""ChartQA: test_human.json and test_augmented.json = [{"imgname", "query", "label"}, …], and png/<imgname>."""

from __future__ import annotations

from eval.prepare.release import Prepared, PreparedRow, Release, take_text, take_text_or_texts

PICTURES = "data/chartqa/test"
_FOLDERS = ("test", "ChartQA Dataset/test", ".")


def chartqa(release: Release) -> Prepared:
    """The test split: questions of people, then augmented ones, numbered from 0."""
    rows: list[PreparedRow] = []
    for part in ("human", "augmented"):
        path = release.file(*(f"{folder}/test_{part}.json" for folder in _FOLDERS))
        for where, row in release.rows(path):
            name = take_text(row, "imgname", where)
            names = [f"{folder}/png/{name}" for folder in _FOLDERS]
            picture = release.picture(f"{PICTURES}/{name}", *names, where=where)
            question, label = take_text(row, "query", where), take_text_or_texts(row, "label", where)
            rows.append(PreparedRow(picture, question, label, len(rows), where, {"part": part}))
    return Prepared(rows, ["test_human.json, then test_augmented.json, in their order; 'part' says which a row is of"])
