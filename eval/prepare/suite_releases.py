"""POPE, MME, MMBench, HallusionBench, SEED-Bench's images and MathVista's multiple choice.

Each is read from the tables of its hub form where the release folder holds them, else from its original files, and
either way asked as `eval.suites` says.
POPE: output/coco/coco_pope_{random,popular,adversarial}.json, a row a line = {"question_id", "image", "text", "label"},
and COCO's val2014/. MME: a folder a subtask, with <image>.txt, "question<tab>Yes" on two lines, beside each image, or
in questions_answers_YN/ where the images are in images/. MMBench: MMBench_DEV_EN.tsv with columns index, question,
hint, A to D, answer, category, l2-category and image, the image as base64 or the index of the row that has it.
HallusionBench: HallusionBench.json = [{"category", "subcategory", "visual_input", "set_id", "figure_id", "question_id",
"question", "gt_answer", "filename", …}, …], and the figures. SEED-Bench: SEED-Bench.json = {"questions":
[{"question_id", "question", "choice_a" … "choice_d", "answer", "data_type", "data_id", "question_type_id"}, …]}, and
SEED-Bench-image/.
MathVista: data/testmini.json = {pid: {"question", "choices", "answer", "question_type", "image", "metadata", …}}, and
images/.
"""

from __future__ import annotations

import base64
import binascii
import csv
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from eval.metrics.yes_no import SUBTASKS
from eval.prepare.release import Entry, PreparedRow, Release, SourceImage, below
from eval.stored_questions import find_image
from eval.suites import SUITES, Asked
from monkey.data.converting import name_stored
from monkey.data.shards import ShardedRows
from monkey.images import IMAGE_ENDINGS, StoredImage

Reader = Callable[[Release], Iterable[PreparedRow]]

_POPE_CATEGORIES = ("random", "popular", "adversarial")
_MME_ROOTS = (
    *("", "MME_Benchmark_release_version", "MME_Benchmark"),
    "MME_Benchmark_release_version/MME_Benchmark",
)
_MMBENCH_COLUMNS = ("index", "question", "hint", *"ABCD", "answer", "category", "l2-category", "image")
_LONGEST_INDEX = 64
"""Of a cell that names the row with its image, in MMBench's table."""


def _row(where: str, image: SourceImage, asked: Asked) -> PreparedRow:
    return PreparedRow(where, image, asked.question, asked.answer, asked.question_id, asked.more)


def _read_tables(name: str, rows: ShardedRows) -> Iterator[PreparedRow]:
    """Read the rows of a suite's hub form, whose images are read again when they are written."""
    for number in range(len(rows)):
        source, row = rows[number]
        asked = SUITES[name].ask(row, source)
        if asked is None:
            continue
        image = find_image(row, source)
        if image is None:
            raise ValueError(f"{source}: the row has no image")
        shard = Path(source.rpartition("[")[0])
        target = f"data/{name}/images/{name_stored(image, source)}"
        content = functools.partial(_read_image, rows, number)
        yield _row(source, SourceImage(target, shard, target, content=content), asked)


def _or_tables(suite: str, *patterns: str) -> Callable[[Reader], Reader]:
    """Make a reader of original files one that takes the tables of the hub form where the release holds them."""

    def with_tables(read: Reader) -> Reader:
        @functools.wraps(read)
        def read_either(release: Release) -> Iterable[PreparedRow]:
            tables = release.stored_rows(*patterns)
            return read(release) if tables is None else _read_tables(suite, tables)

        return read_either

    return with_tables


def _read_image(rows: ShardedRows, number: int) -> bytes:
    source, row = rows[number]
    return bytes(find_image(row, source))


@_or_tables("pope", "test-*.parquet")
def pope(release: Release) -> Iterator[PreparedRow]:
    """Read the questions of the three ways to choose absent objects, in that order."""
    for category in _POPE_CATEGORIES:
        for entry in release.lines(release.file(*below(("output/coco", "coco", ""), f"coco_pope_{category}.json"))):
            name = entry.text("image")
            image = release.image(f"data/pope/val2014/{name}", below(("val2014", "images", ""), name), entry.where)
            yield _row(entry.where, image, SUITES["pope"].ask({**entry.value, "category": category}, entry.where))


@_or_tables("mme", "test-*.parquet")
def mme(release: Release) -> Iterator[PreparedRow]:
    """Read the two questions of each image, by subtask."""
    for subtask in SUBTASKS:
        folders = [
            pair
            for base in below(_MME_ROOTS, subtask)
            for pair in ((f"{base}/questions_answers_YN", f"{base}/images"), (base, base))
        ]
        named = (
            (texts, images, [name for name in release.names(texts) if name.endswith(".txt")])
            for texts, images in folders
        )
        texts, images, names = next((found for found in named if found[2]), ("", "", []))
        if not names:
            raise FileNotFoundError(
                f"{release.folder} holds no {subtask} and no {_MME_ROOTS[1]}/{subtask} with questions; --src is the "
                "unpacked release"
            )
        for name in names:
            yield from _read_mme_image(release, subtask, f"{texts}/{name}", images)


def _read_mme_image(release: Release, subtask: str, text: str, folder: str) -> Iterator[PreparedRow]:
    path = release.file(text)
    release.sources[path] = None
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if len(lines) != 2 or any(line.count("\t") != 1 for line in lines):
        raise ValueError(f"{path}: expected two lines of a question, a tab and an answer, found {len(lines)} lines")
    stem = PurePosixPath(text).stem
    found = release.find(*(f"{folder}/{stem}{ending}" for ending in IMAGE_ENDINGS), where=str(path))
    name = f"{stem}.jpg" if found is None else found.name
    image = release.image(f"data/mme/{subtask}/{name}", [f"{folder}/{name}"], str(path))
    for number, line in enumerate(lines, start=1):
        question, answer = line.split("\t")
        fields = {"question_id": f"{subtask}/{stem}", "category": subtask, "question": question}
        where = f"{path}:{number}"
        yield _row(where, image, SUITES["mme"].ask({**fields, "answer": answer.strip()}, where))


@_or_tables("mmbench", "en/dev-*.parquet", "dev-*.parquet")
def mmbench(release: Release) -> Iterator[PreparedRow]:
    """Read the English dev split, every question once for each order of its options."""
    path = release.file("MMBench_DEV_EN.tsv", "mmbench_dev_en.tsv", "mmbench_dev_20230712.tsv")
    entries = list(release.table(path, _MMBENCH_COLUMNS, "\t", csv.QUOTE_MINIMAL))
    by_index = {entry.value["index"]: entry for entry in entries}
    stored: dict[str, SourceImage] = {}
    for entry in entries:
        content = entry.value["image"]
        holder = entry
        if len(content) < _LONGEST_INDEX:
            if content not in by_index:
                raise ValueError(f"{entry.where}: 'image' is {content!r}, and no row has that index")
            holder = by_index[content]
        if holder.where not in stored:
            read = functools.partial(_decode_image, holder)
            target = f"data/mmbench/images/{name_stored(read(), holder.where)}"
            stored[holder.where] = SourceImage(target, path, target, content=read)
        yield _row(entry.where, stored[holder.where], SUITES["mmbench"].ask(entry.value, entry.where))


def _decode_image(entry: Entry) -> StoredImage:
    try:
        return StoredImage(base64.b64decode(entry.value["image"], validate=True), f"'image' in {entry.where}")
    except binascii.Error as error:
        raise ValueError(f"{entry.where}: 'image' is no base64 ({error})") from error


@_or_tables("hallusionbench", "image-*.parquet")
def hallusionbench(release: Release) -> Iterator[PreparedRow]:
    """Read the questions that have a figure."""
    without = 0
    for entry in release.rows(release.file("HallusionBench.json")):
        asked = SUITES["hallusionbench"].ask(entry.value, entry.where)
        if asked is None:
            without += 1
            continue
        name = entry.text("filename").removeprefix("./")
        image = release.image(f"data/hallusionbench/{name}", below(("", "hallusion_bench"), name), entry.where)
        yield _row(entry.where, image, asked)
    release.statements.append(f"{without} questions without a figure are not asked")


@_or_tables("seedbench", "test-*.parquet")
def seedbench(release: Release) -> Iterator[PreparedRow]:
    """Read the questions about images; those about videos are left out."""
    folders = ("SEED-Bench-image", "seed_bench_image", "")
    for entry in release.rows(release.file("SEED-Bench.json"), "questions"):
        asked = SUITES["seedbench"].ask(entry.value, entry.where)
        if asked is not None:
            name = entry.text("data_id")
            names = below(folders, name, f"{name}.jpg", f"{name}.png")
            yield _row(entry.where, release.image(f"data/seedbench/images/{name}", names, entry.where), asked)


@_or_tables("mathvista", "testmini-*.parquet")
def mathvista(release: Release) -> Iterator[PreparedRow]:
    """Read testmini's questions that offer a choice."""
    for _, entry in release.entries(release.file(*below(("data", ""), "testmini.json"))):
        asked = SUITES["mathvista"].ask(entry.value, entry.where)
        if asked is not None:
            name = entry.text("image")
            image = release.image(f"data/mathvista/{name}", below(("", "data"), name), entry.where)
            yield _row(entry.where, image, asked)
