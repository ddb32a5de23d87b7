"""OCR-VQA and OCRBench.

OCR-VQA: dataset.json = {id: {"imageURL", "questions", "answers", "title", …, "split" (1 train, 2 val, 3 test)}}, and
images/<id> with the ending of its address, which the publisher's script downloads. OCRBench: OCRBench.json =
[{"dataset_name", "id", "image_path", "question", "answers" (a text or a list), "type"}, …], which the repository keeps
in OCRBench/OCRBench/ now and kept in OCRBench/json_files/ before.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from eval.prepare.release import Prepared, PreparedRow, Release, take, take_text, take_text_or_texts, take_texts

TEST_SPLIT = 3
_BOOK_PICTURES = "data/ocrvqa/images"
_BENCH_PICTURES = "data/ocrbench/images"


def ocrvqa(release: Release) -> Prepared:
    """The questions on the covers of the test split."""
    path = release.file("dataset.json")
    rows: list[PreparedRow] = []
    for book, (where, entry) in release.entries(path):
        if take(entry, "split", (int,), where) != TEST_SPLIT:
            continue
        ending = PurePosixPath(take_text(entry, "imageURL", where)).suffix or ".jpg"
        endings = dict.fromkeys((ending, ".jpg", ".png", ".gif"))
        found = release.find(*(f"images/{book}{one}" for one in endings), where=where)
        picture = release.picture(
            f"{_BOOK_PICTURES}/{book}{found.suffix if found is not None else ending}",
            *(f"images/{book}{one}" for one in endings),
            where=where,
        )
        questions, answers = take_texts(entry, "questions", where), take_texts(entry, "answers", where)
        if len(questions) != len(answers):
            raise ValueError(f"{where}: {len(questions)} questions and {len(answers)} answers; each needs one")
        for question, answer in zip(questions, answers, strict=True):
            rows.append(PreparedRow(picture, question, answer, len(rows), where))
    return Prepared(rows, ["the whole test split; the OCRBench authors evaluate on 5,000 rows of the set"])


def ocrbench(release: Release) -> Prepared:
    """The thousand questions, with the set and the type that each is counted under."""
    names = [f"{folder}OCRBench.json" for folder in ("", "OCRBench/", "OCRBench/OCRBench/")]
    names += ["json_files/OCRBench.json", "OCRBench/json_files/OCRBench.json"]
    path = release.file(*names)
    rows: list[PreparedRow] = []
    for where, row in release.rows(path):
        name = take_text(row, "image_path", where).removeprefix("./")
        folders = ("OCRBench_Images/", "OCRBench/OCRBench_Images/", "OCRBench/OCRBench/OCRBench_Images/", "images/", "")
        picture = release.picture(f"{_BENCH_PICTURES}/{name}", *(f"{one}{name}" for one in folders), where=where)
        question, answers = take_text(row, "question", where), take_text_or_texts(row, "answers", where)
        more = {key: take_text(row, key, where) for key in ("dataset_name", "type")}
        rows.append(PreparedRow(picture, question, answers, len(rows), where, more))
    return Prepared(rows, ["'type' and 'dataset_name' stand in each line; ids count from 0 in the file's order"])
