"""Text in scenes and on covers: ST-VQA, EST-VQA, OCR-VQA, OCRBench and its second version.

The tests of ST-VQA and EST-VQA were never what is evaluated: stvqa_test and estvqa_test are 5,000 rows each of the
*training* sets, drawn by the authors of OCRBench, who published the rows only inside of prediction files. The official
test of EST-VQA, whose answers have been released since, is estvqa_official.

Prediction file (answer_save/<model>/STVQA.json and ESTVQA_EN.json in old commits of Yuliang-Liu/MultimodalOCR):
[{"question", "answer", "gt_answers", "image_path", "model_name"}, …], of which the answer is a model's and is not read.
Official: ST-VQA's train_task_3.json {"data": [{"question_id", "question", "file_path", "file_name", "dataset",
"answers"}, …]}; EST-VQA's train.json [{"image", "annotation": [{"question", "answer", …}, …]}, …], and its answers to
the test [{"question_id", "question", "answer", "evidence"}, …], whose images may stand in a file of their own.
OCR-VQA: dataset.json = {id: {"imageURL", "questions", "answers", "title", …, "split" (1 train, 2 val, 3 test)}}, and
images/<id> with the ending of its address, which the publisher's script downloads.
OCRBench v2: OCRBench_v2.json, of the same keys and 'eval', or the hub's data/test-*.parquet with these as columns.
OCRBench: OCRBench.json = [{"dataset_name", "id", "image_path", "question", "answers" (a text or a list), "type"}, …],
which the repository keeps in OCRBench/OCRBench/ now and kept in OCRBench/json_files/ before; or the hub's
data/test-*.parquet with columns dataset, question, question_type, answer and image.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from eval.metrics import short_answers
from eval.metrics.short_answers import COUNTING, HANDWRITTEN, WRITTEN_OUT
from eval.prepare.release import Entry, PreparedRow, Release, SourceImage, below
from monkey.data.converting import name_stored
from monkey.data.rows import StoredRow
from monkey.data.shards import ShardedRows
from monkey.images import StoredImage

ROWS = 5000
"""Rows that both subsets of OCRBench's authors have."""

_CHINESE = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_TEST_ANSWERS = ("test.json", "test_gt.json", "gt.json", "gt_test.json", "en_test.json")
"""Names that the released answers may go by: the publisher's repository names its sample only."""
_IMAGE_LIST = "test_images.json"
_OCRVQA_TEST = 3


def stvqa(release: Release) -> Iterator[PreparedRow]:
    """Read the rows of a prediction file, or else draw 5,000 of train."""
    published = find_predictions(release, "STVQA.json")
    if published is not None:
        yield from read_predictions(release, published, _stvqa_image, "STVQA/")
        return
    rows = []
    path = release.file(*below(("", "ST-VQA"), "train_task_3.json"))
    for row in release.rows(path, "data"):
        image = _stvqa_image(release, f"{row.text('dataset')}/{row.text('file_name')}", row.where)
        more = {f"train_{key}": value for key, value in row.keep("question_id").items()}
        question, answers = row.text("question"), row.text_or_texts("answers")
        rows.append(PreparedRow(row.where, image, question, answers, more=more))
    yield from _draw(release, rows, f"of the {len(rows):,} questions of {path.name}")


def estvqa(release: Release) -> Iterator[PreparedRow]:
    """Read the rows of a prediction file, or else draw 5,000 English ones of train."""
    published = find_predictions(release, "ESTVQA_EN.json")
    if published is not None:
        yield from read_predictions(release, published, _estvqa_image, "images/train/")
        return
    rows = []
    path = release.file("annotations/train.json", "train.json", "annotations/en_train.json", "en_train.json")
    for row in _single_questions(release.rows(path)):
        image = _estvqa_image(release, row.text("image"), row.where)
        question, answer = row.text("question"), row.text_or_texts("answer")
        if not _CHINESE.search(question):
            rows.append(PreparedRow(row.where, image, question, answer))
    yield from _draw(release, rows, f"of the {len(rows):,} questions of {path.name} that have no Chinese character")


def estvqa_official(release: Release) -> Iterator[PreparedRow]:
    """Read the test questions with the released answers; 'language' and 'evidence' stand in each line."""
    listed = release.find(*below(("", "annotations"), _IMAGE_LIST))
    entries = _single_questions(release.rows(listed)) if listed is not None else ()
    images = {str(entry.identifier("question_id")): entry.text("image") for entry in entries}
    path = release.file(*(f"{folder}{name}" for name in _TEST_ANSWERS for folder in ("annotations/", "")))
    for row in _single_questions(release.rows(path)):
        # Grouped by image, as the training set is, rows need no number of their own.
        named = "image" in row.value
        question_id = None if named and "question_id" not in row.value else row.identifier("question_id")
        name = row.text("image") if named else images.get(str(question_id))
        if name is None:
            raise ValueError(
                f"{row.where}: nothing says which image question {question_id} is about; write {_IMAGE_LIST} into "
                f'{release.folder}: a list of {{"question_id": …, "image": "name.jpg"}}'
            )
        question, answer = row.text("question"), row.text_or_texts("answer")
        more = {"language": "Chinese" if _CHINESE.search(question) else "English", **row.keep("evidence")}
        names = below(("images/test", "test", "test_images", "images", ""), name)
        image = release.image(f"data/estvqa_official/images/{name}", names, row.where)
        yield PreparedRow(row.where, image, question, answer, question_id, more)


def _single_questions(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield rows of one question each: those of an image's 'annotation' with its 'image', or the rows as they are."""
    for entry in entries:
        if not isinstance(entry.value, dict) or "annotation" not in entry.value:
            yield entry
            continue
        for row in entry.entries("annotation"):
            yield Entry(row.where, {"image": entry.value.get("image"), **row.value})


def find_predictions(release: Release, name: str) -> list[Entry] | None:
    """Return the rows of the authors' prediction file, if the release has one; of several models the first by name."""
    path = release.find(name, *(f"answer_save/{model}/{name}" for model in release.names("answer_save")))
    return release.rows(path) if path is not None else None


def read_predictions(
    release: Release, entries: list[Entry], find_image: Callable[[Release, str, str], SourceImage], folder: str
) -> Iterator[PreparedRow]:
    """Make one row per entry; its image is known by what follows `folder` in its path."""
    release.statements.append("rows, order and references of the OCRBench authors' prediction file; ids count from 0")
    for entry in entries:
        image = find_image(release, entry.text("image_path").rpartition(folder)[2], entry.where)
        answers = entry.text_or_texts("gt_answers")
        yield PreparedRow(entry.where, image, entry.text("question"), answers)


def _draw(release: Release, rows: Sequence[PreparedRow], whence: str) -> list[PreparedRow]:
    """Return `ROWS` of the rows, those with the smallest SHA-256 of image, question and place, in the file's order."""

    def lot(number: int) -> str:
        row = rows[number]
        return hashlib.sha256(f"{row.image.target}\n{row.question}\n{number}".encode()).hexdigest()

    chosen = sorted(sorted(range(len(rows)), key=lot)[:ROWS])
    release.statements += (
        f"{len(chosen):,} {whence}: those with the smallest SHA-256 of image, question and number, in the file's "
        "order; ids count from 0",
        "these are NOT the published rows, which were drawn at random from the same training set: do not compare "
        "single scores with published ones; give a prediction file of the OCRBench authors (STVQA.json, "
        "ESTVQA_EN.json) for those",
    )
    return [rows[number] for number in chosen]


def _stvqa_image(release: Release, name: str, where: str) -> SourceImage:
    """Find the image <set>/<file>. Those of COCO-Text may also lie in COCO's own folder."""
    names = below(("", "train_images", "train_imgs", "images", "ST-VQA", "STVQA"), name)
    if name.startswith("coco-text/"):
        names.append(f"train2014/{PurePosixPath(name).name}")
    return release.image(f"data/STVQA/{name}", names, where)


def _estvqa_image(release: Release, name: str, where: str) -> SourceImage:
    folders = ("images/train", "train", "images", "train_images", "test_image", "")
    return release.image(f"data/estvqa/test_image/{name}", below(folders, name), where)


def ocrvqa(release: Release) -> Iterator[PreparedRow]:
    """Read the questions on the covers of the test split."""
    for book, entry in release.entries(release.file("dataset.json")):
        if entry.take("split", int) != _OCRVQA_TEST:
            continue
        ending = PurePosixPath(entry.text("imageURL")).suffix or ".jpg"
        names = [f"images/{book}{one}" for one in dict.fromkeys((ending, ".jpg", ".png", ".gif"))]
        found = release.find(*names, where=entry.where)
        if found is not None:
            ending = found.suffix
        image = release.image(f"data/ocrvqa/images/{book}{ending}", names, entry.where)
        questions, answers = entry.texts("questions"), entry.texts("answers")
        if len(questions) != len(answers):
            raise ValueError(f"{entry.where}: {len(questions)} questions and {len(answers)} answers; each needs one")
        for question, answer in zip(questions, answers, strict=True):
            yield PreparedRow(entry.where, image, question, answer)


def ocrbench(release: Release) -> Iterator[PreparedRow]:
    """Read the thousand questions, with the set and the type that each is counted under."""
    if (tables := release.stored_rows("test-*.parquet")) is not None:
        for entry, image in _table_entries(tables, "data/ocrbench/images"):
            more = {"dataset_name": entry.text("dataset"), "type": entry.text("question_type")}
            yield PreparedRow(entry.where, image, entry.text("question"), entry.text_or_texts("answer"), more=more)
        return
    folders = ("", "OCRBench", "OCRBench/OCRBench", "json_files", "OCRBench/json_files")
    for row in release.rows(release.file(*below(folders, "OCRBench.json"))):
        name = row.text("image_path").removeprefix("./")
        inside = "OCRBench_Images"
        names = below((inside, f"OCRBench/{inside}", f"OCRBench/OCRBench/{inside}", "images", ""), name)
        image = release.image(f"data/ocrbench/images/{name}", names, row.where)
        question, answers = row.text("question"), row.text_or_texts("answers")
        more = {key: row.text(key) for key in ("dataset_name", "type")}
        yield PreparedRow(row.where, image, question, answers, more=more)


def ocrbench_v2(release: Release) -> Iterator[PreparedRow]:
    """Read the questions of the types that have short answers."""
    left_out: Counter[str] = Counter()
    for row, image in _ocrbench_v2_rows(release):
        kind, question = row.text("type"), row.text("question")
        if kind not in short_answers.TYPES or (kind == HANDWRITTEN and WRITTEN_OUT in question):
            left_out[kind] += 1
            continue
        answers = row.text_or_texts("answers")
        is_number = kind == COUNTING and row.value.get("eval") != "exact match"
        if is_number and not all(one.isdecimal() for one in ([answers] if isinstance(answers, str) else answers)):
            raise ValueError(f"{row.where}: 'answers' of {COUNTING!r} must be whole numbers, found {answers}")
        more = {"type": kind, "dataset_name": row.text("dataset_name")}
        if row.value.get("eval") not in (None, "", "None"):
            more["eval"] = row.text("eval")
        yield PreparedRow(row.where, image, question, answers, more=more)
    if left_out:
        named = ", ".join(f"{kind} ({count:,})" for kind, count in sorted(left_out.items()))
        release.statements.append(f"questions without a short answer are left out: {named}")


def _ocrbench_v2_rows(release: Release) -> Iterator[tuple[Entry, SourceImage]]:
    target = "data/ocrbench_v2/images"
    if (tables := release.stored_rows("test-*.parquet")) is not None:
        yield from _table_entries(tables, target)
        return
    for row in release.rows(release.file(*below(("", "OCRBench_v2"), "OCRBench_v2.json"))):
        name = row.text("image_path").removeprefix("./")
        yield row, release.image(f"{target}/{name}", below(("", "OCRBench_v2"), name), row.where)


def _table_entries(rows: ShardedRows, target_folder: str) -> Iterator[tuple[Entry, SourceImage]]:
    """Yield the rows of a set as the hub has it, with their images, which are read again when they are written."""

    def image_of(number: int) -> tuple[Entry, StoredImage]:
        source, row = rows[number]
        if not isinstance(row, StoredRow) or not row.images:
            raise ValueError(f"{source}: the row has no image")
        return Entry(source, row), next(iter(row.images.values()))

    for number in range(len(rows)):
        entry, image = image_of(number)
        target = f"{target_folder}/{name_stored(image, entry.where)}"
        shard = Path(entry.where.rpartition("[")[0])
        yield entry, SourceImage(target, shard, target, content=lambda at=number: bytes(image_of(at)[1]))
