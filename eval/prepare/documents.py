"""DocVQA and InfographicVQA, of the Robust Reading Competition's files or of the DUE benchmark's.

The competition: {"data": [{"questionId", "question", "image" or "image_local_name", "answers", …}, …]}, whose test
answers are hidden. DUE publishes test answers: see `eval.prepare.due`. Without either the validation split is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval.prepare.due import DOCUMENTS, question_rows
from eval.prepare.release import Located, Prepared, PreparedRow, Release, take_id, take_text, take_texts


@dataclass(frozen=True)
class _Set:
    pictures: str
    picture_key: str
    test: tuple[str, ...]
    val: tuple[str, ...]
    folders: tuple[str, ...]
    val_size: int


_DOCVQA = _Set(
    "data/docvqa/documents",
    "image",
    ("test_v1.0.json", "test/test_v1.0.json"),
    ("val_v1.0_withQT.json", "val_v1.0.json", "val/val_v1.0_withQT.json", "val/val_v1.0.json"),
    ("{split}", "spdocvqa_images", ""),
    5349,
)
_INFOVQA = _Set(
    "data/infographicVQA/images",
    "image_local_name",
    ("infographicsVQA_test_v1.0.json",),
    ("infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_val_v1.0.json"),
    ("images", "infographicsvqa_images", "{split}", ""),
    2801,
)


def docvqa(release: Release) -> Prepared:
    """DocVQA test, by the best source of answers in the release."""
    return _prepared(release, _DOCVQA)


def infovqa(release: Release) -> Prepared:
    """InfographicVQA test, by the best source of answers in the release."""
    return _prepared(release, _INFOVQA)


def _prepared(release: Release, one: _Set) -> Prepared:
    test = release.find(*one.test)
    entries = release.rows(test, "data") if test is not None else []
    if entries and all(isinstance(entry.value, dict) and entry.value.get("answers") for entry in entries):
        return _of_competition(release, one, entries, "test", f"the test split with the answers that {test.name} has")
    if release.find(*DOCUMENTS) is not None:
        statement = "the test split with the answers of the DUE package, which the competition's own files hide"
        return question_rows(release, one.pictures, statement)
    val = release.find(*one.val)
    if val is None:
        hidden = f"{test} has no answers, and " if test is not None else ""
        raise FileNotFoundError(
            f"{hidden}{release.folder} holds neither {DOCUMENTS[0]} of the DUE package, which has test answers, nor "
            f"{one.val[0]} to fall back on"
        )
    statement = (
        f"this is the VALIDATION split ({one.val_size:,} questions in the published one): the release has no answers "
        "to the test questions; do not compare with scores on test"
    )
    return _of_competition(release, one, release.rows(val, "data"), "val", statement)


def _of_competition(release: Release, one: _Set, entries: list[Located], split: str, statement: str) -> Prepared:
    rows = []
    for where, row in entries:
        name = take_text(row, one.picture_key, where)
        base = Path(name).name
        names = [f"{folder.format(split=split)}/{part}" for folder in one.folders for part in (name, base)]
        picture = release.picture(f"{one.pictures}/{base}", *(part.lstrip("/") for part in names), where=where)
        question, answers = take_text(row, "question", where), take_texts(row, "answers", where)
        rows.append(PreparedRow(picture, question, answers, take_id(row, "questionId", where), where))
    return Prepared(rows, [statement])
