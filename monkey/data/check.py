"""Reads all of a data set before a run does: every row, every image, every length, and what is there twice.

    report = check_data(["train.json"], evaluation=["heldout.jsonl"], checkpoint="echo840/Monkey")
    print(report.table())

Rows and images are read in processes of their own, as training and the evaluator read them. Two images are the same
where their decoded RGB pixels are (so another format without loss is found), or their files' bytes; one that was
resized or compressed again is another.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tqdm import tqdm

import monkey
from monkey.data.foreign import find_form
from monkey.data.mixture import RecordSet, record_sets
from monkey.data.preview import Piece, escape, pieces_of
from monkey.data.records import BAD, Record, examine_record, find_repeated_id, read_question
from monkey.data.rows import (
    EMPTY_ANSWER,
    NOT_OF_THE_SCHEMA,
    OUT_OF_ORDER,
    ChangedFile,
    ImagePaths,
    IndexedRows,
    MalformedRows,
    RowFault,
    StoredRow,
)
from monkey.data.shards import ShardedRows, open_rows
from monkey.images import StoredImage, open_image
from monkey.journal import write_json

CHECKS = ("images", "lengths", "duplicates", "leakage")
"""Checks that may be left out; rows are always read."""

UNREADABLE = "unreadable row"
ROW_COUNT = "wrong row count"
REFUSED_PATH = "refused image path"
MISSING = "missing image"
BROKEN = "broken image"
NOT_ENCODABLE = "cannot be encoded"
TOO_LONG = "too long"
DUPLICATE = "duplicate"
ID_TWICE = "question id twice"
LEAKED = "image also in evaluation"
KINDS = (
    UNREADABLE, ROW_COUNT, NOT_OF_THE_SCHEMA, OUT_OF_ORDER, EMPTY_ANSWER, REFUSED_PATH, MISSING, BROKEN, NOT_ENCODABLE,
    TOO_LONG, DUPLICATE, ID_TWICE, LEAKED,
)  # fmt: skip
"""Problems, in the order of the table."""

SEVERAL_NAMES = "image under several names"
OTHER_COUNT = "other count than recalled"
NOT_READ = "may not be meant so"
NO_IMAGES = "no record has an image"
NOTES = (SEVERAL_NAMES, OTHER_COUNT, NOT_READ, NO_IMAGES)
"""What is worth knowing and may be meant so."""

_MOST_PROCESSES = 16


class Finding(NamedTuple):
    """One problem or note: where it stands, and the whole sentence."""

    kind: str
    source: str
    sentence: str


# What was found


class Findings:
    """What a check found, for people; `problems` and `notes` are its kinds in the order of the table."""

    problems: ClassVar[tuple[str, ...]] = KINDS
    notes: ClassVar[tuple[str, ...]] = NOTES
    findings: list[Finding]

    @property
    def is_clean(self) -> bool:
        return not any(finding.kind in self.problems for finding in self.findings)

    def of_kind(self, kind: str) -> list[Finding]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    def summary(self) -> list[dict[str, Any]]:
        """Return kind, whether it is a problem, number of places and the first of them, for each kind found."""
        kinds = (*self.problems, *self.notes)
        places = {kind: list(dict.fromkeys(finding.source for finding in self.of_kind(kind))) for kind in kinds}
        return [
            {"kind": kind, "problem": kind in self.problems, "rows": len(own), "first": own[0]}
            for kind, own in places.items()
            if own
        ]

    def table(self) -> str:
        """Return the summary as lines: problem, rows, first place."""
        lines = [(self._name(line["kind"]), f"{line['rows']:,}", line["first"]) for line in self.summary()]
        return "\n".join(align([("problem", "rows", "first place"), *(lines or [("none", "0", "")])]))

    def sentences(self, most: int) -> list[str]:
        """Return up to `most` sentences of each kind, and how many more there are."""
        lines = []
        for kind in (*self.problems, *self.notes):
            found, name = self.of_kind(kind), self._name(kind)
            lines += [f"{name}: {escape(finding.sentence)}" for finding in found[:most]]
            lines += [f"{name}: and {len(found) - most:,} more"] if len(found) > most else []
        return lines

    def _name(self, kind: str) -> str:
        return kind if kind in self.problems else f"note: {kind}"


@dataclass
class Report(Findings):
    """Everything that a check of training data found."""

    files: list[dict[str, Any]]
    """Path, role ("train" or "evaluation"), rows and weight of each file; `forms` has rows by foreign form."""
    findings: list[Finding] = field(default_factory=list)
    images: int = 0
    longest: tuple[int, str] = (0, "")
    """Most tokens of a sample, and where it stands; 0 where lengths were not checked."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Check -> why it was left out."""
    previews: list[tuple[str, list[Piece]]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(file["rows"] for file in self.files)

    def write_json(self, path: Path, settings: dict[str, Any]) -> None:
        """Write everything but the previews, whole or not at all."""
        content = {
            "clean": self.is_clean,
            "settings": settings,
            "files": self.files,
            "rows": self.rows,
            "images": self.images,
            "longest_sample": {"tokens": self.longest[0], "source": self.longest[1]} if self.longest[0] else None,
            "skipped": self.skipped,
            "summary": self.summary(),
            "problems": [finding._asdict() for finding in self.findings if finding.kind in KINDS],
            "notes": [finding._asdict() for finding in self.findings if finding.kind in NOTES],
        }
        write_json(path, content)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of columns, the first and the last to the left, with a rule under the first line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(middle, widths[1:], strict=False)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells, last]).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


# The check of training data


def check_data(
    files: str | Path | Sequence[str | Path],
    *,
    evaluation: Sequence[str | Path] = (),
    checkpoint: str | None = None,
    image_root: str | Path | None = None,
    evaluation_image_root: str | Path | None = None,
    max_length: int = 2048,
    workers: int | None = None,
    skip: Collection[str] = (),
    preview: int = 0,
) -> Report:
    """Read training files and mixtures whole, and report all that is wrong with them.

    Args:
        files: JSON lists, JSONL files and mixtures of conversations.
        evaluation: files of questions or of conversations whose images must not be trained on.
        checkpoint: folder or hub name whose tokenizer counts lengths and whose settings open images; without one
            lengths are not checked.
        image_root: where images are looked up; see `open_records`.
        evaluation_image_root: the same for the evaluation files.
        max_length: tokens that a sample may have.
        workers: processes; 0 for none but this one; None for as many as are worth starting.
        skip: members of `CHECKS` to leave out.
        preview: records to show, evenly spaced over those without a fault.

    Raises:
        FileNotFoundError, ValueError: what cannot be started: a missing file, folder or checkpoint, an unknown ending,
            a mixture that is not of its form. What is wrong inside of the files is in the report.
    """
    unknown = sorted(set(skip) - set(CHECKS))
    if unknown:
        raise ValueError(f"there is no check {unknown[0]!r} to skip; there are {', '.join(CHECKS)}")
    processor = monkey.MonkeyProcessor.from_pretrained(checkpoint) if checkpoint is not None else None
    skipped = {name: "as asked" for name in CHECKS if name in skip}
    if processor is None:
        skipped.setdefault("lengths", "no checkpoint was given, whose tokenizer would count")
    if not evaluation:
        skipped.setdefault("leakage", "no evaluation file was given")
    if "images" in skipped:
        skipped.setdefault("leakage", "images are not opened")
    found: list[Finding] = []
    opened = [_open(one, False, found) for one in record_sets(files, image_root)]
    opened += [_open(one, True, found) for one in record_sets(evaluation, evaluation_image_root)] if evaluation else []
    opened = [file for file in opened if file is not None]
    count_tokens = None if "lengths" in skipped else partial(_examine_length, processor, max_length)
    opening = processor.image_processor.opening if processor is not None else {}
    look_at = None if "images" in skipped else partial(_look_at, opening)
    read = [list(read_rows(file, count_tokens, workers, look_at)) for file in opened]
    rows = list(itertools.chain(*read))
    trained = rows[: sum(len(file.rows) for file in opened if not file.is_evaluation)]
    held_out = rows[len(trained) :]
    found += [finding for row in rows for finding in row.findings]
    found += [*itertools.chain(*map(_find_repeated_ids, read)), *_find_no_images(trained, opened)]
    longest = max(rows, key=lambda row: row.tokens, default=None)
    paths = list(dict.fromkeys(path for row in rows for path in row.images))
    images: dict[str, ImageRead] = {}
    if "images" not in skipped:
        stored = {name: image for row in rows for name, image in row.stored}
        in_files = read_images([path for path in paths if path not in stored], opening, workers)
        images = stored | in_files
        found += [*_find_broken(rows, images), *_find_several_names(in_files)]
    if "duplicates" not in skipped:
        found += _find_duplicates(trained, images)
    if "leakage" not in skipped:
        found += _find_leaked(trained, held_out, images)
    return Report(
        files=[file.describe(own) for file, own in zip(opened, read, strict=True)],
        findings=found,
        images=len(paths),
        longest=(longest.tokens, longest.source) if longest is not None else (0, ""),
        skipped=skipped,
        previews=_make_previews(opened, trained, processor, preview),
    )


def _open(one: RecordSet, is_evaluation: bool, found: list[Finding]) -> DataFile | None:
    """Return the file, or None where nothing in it can be read, which is then a finding."""
    try:
        file = DataFile.open(one, is_evaluation, may_hold_questions=is_evaluation)
    except MalformedRows as error:
        found.append(Finding(UNREADABLE, str(error).split(": ", 1)[0], str(error)))
        return None
    try:
        notice = one.check_count(len(file.rows))
        found += [Finding(OTHER_COUNT, str(one.path), notice)] if notice else []
    except ValueError as error:
        found.append(Finding(ROW_COUNT, str(one.path), str(error)))
    return file


def _make_previews(
    files: Sequence[DataFile], trained: Sequence[RowRead], processor: Any, most: int
) -> list[tuple[str, list[Piece]]]:
    """Return pieces of records that are evenly spaced over the sound ones."""
    places = [(file, index) for file in files if not file.is_evaluation for index in range(len(file.rows))]
    sound = [place for place, row in zip(places, trained, strict=True) if row.turns] if most else []
    count = min(most, len(sound))
    previews = []
    for file, index in (sound[number * len(sound) // count] for number in range(count)):
        source, fields = file.rows[index]
        record, _ = examine_record(fields, source, file.image_paths())
        try:
            previews.append((source, pieces_of(record, processor)))
        except ValueError as error:
            previews.append((source, [Piece(f"{NOT_ENCODABLE}: {error}", "prompt")]))
    return previews


def _find_repeated_ids(rows: Iterable[RowRead]) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for row in rows:
        if row.question_id is not None and (sentence := find_repeated_id(row.question_id, row.source, seen)):
            yield Finding(ID_TWICE, row.source, sentence)


def _find_no_images(trained: Sequence[RowRead], files: Sequence[DataFile]) -> Iterator[Finding]:
    """Say that a model would learn from text alone."""
    if any(row.turns for row in trained) and not any(row.images for row in trained):
        paths = [str(file.rows.path) for file in files if not file.is_evaluation]
        sentence = f"{' '.join(paths)}: no record has an image, so a model learns from text alone"
        yield Finding(NO_IMAGES, paths[0], sentence)


def _find_broken(rows: Iterable[RowRead], images: dict[str, ImageRead]) -> Iterator[Finding]:
    for row in rows:
        for path in row.images:
            if fault := images[path].fault:
                yield Finding(fault.kind, row.source, f"{row.source}: {fault.sentence}")


def _find_several_names(images: dict[str, ImageRead]) -> Iterator[Finding]:
    first_path: dict[bytes, str] = {}
    for path, image in images.items():
        first = first_path.setdefault(image.pixels, path) if image.pixels else path
        if os.path.realpath(first) != os.path.realpath(path):
            yield Finding(SEVERAL_NAMES, path, f"{path}: shows the same pixels as {first}")


def _find_duplicates(trained: Iterable[RowRead], images: dict[str, ImageRead]) -> Iterator[Finding]:
    """Find training rows with the turns and the images of an earlier one; without images opened, by their paths."""
    first_row: dict[bytes, RowRead] = {}
    nothing = ImageRead(b"", b"", None)
    for row in trained:
        if not row.turns:
            continue
        read = [(images.get(path, nothing), path) for path in row.images]
        shown = [one.pixels or one.file or hash_bytes(os.fsencode(os.path.realpath(path))) for one, path in read]
        first = first_row.setdefault(hash_bytes(row.turns + b"".join(shown)), row)
        if first is not row:
            yield Finding(DUPLICATE, row.source, f"{row.source}: has the same turns and images as {first.source}")


def _find_leaked(
    trained: Iterable[RowRead], held_out: Iterable[RowRead], images: dict[str, ImageRead]
) -> Iterator[Finding]:
    """Find training rows that show an image of an evaluation file."""
    known = KnownImages()
    for row in held_out:
        for path in row.images:
            known.add(images[path], f"{path} in {row.source}")
    for row in trained:
        for path in row.images:
            if likeness := known.describe_likeness(images[path]):
                yield Finding(LEAKED, row.source, f"{row.source}: {path} {likeness}")


class KnownImages:
    """Images of one data set, found again by their pixels or by their files' bytes."""

    def __init__(self) -> None:
        self._by_file: dict[bytes, str] = {}
        self._by_pixels: dict[bytes, str] = {}

    def add(self, image: ImageRead, name: str) -> None:
        self._by_file.setdefault(image.file, name)
        self._by_pixels.setdefault(image.pixels, name)

    def describe_likeness(self, image: ImageRead) -> str | None:
        """Say which image of the set this is, None where it is none of it."""
        if image.file and image.file in self._by_file:
            return f"has the bytes of {self._by_file[image.file]}"
        if image.pixels and image.pixels in self._by_pixels:
            return f"shows the pixels of {self._by_pixels[image.pixels]}"
        return None


# Rows


@dataclass
class DataFile:
    """A file of conversations, or of questions."""

    described: RecordSet
    rows: IndexedRows | ShardedRows
    is_evaluation: bool = False
    holds_questions: bool = False

    @classmethod
    def open(cls, one: RecordSet, is_evaluation: bool = False, may_hold_questions: bool = True) -> DataFile:
        """Open the file of a set. Raises MalformedRows where none of its rows can be read."""
        rows = open_rows(one.path)
        file = cls(one, rows, is_evaluation, may_hold_questions and _holds_questions(rows))
        file.image_paths()  # a missing folder is found now
        return file

    def image_paths(self) -> ImagePaths:
        root_name = "--eval-image-root" if self.is_evaluation else "--image-root"
        return ImagePaths(self.rows.path, self.described.image_root, root_name)

    def describe(self, rows: Iterable[RowRead]) -> dict[str, Any]:
        role = "evaluation" if self.is_evaluation else "train"
        described = {"path": str(self.rows.path), "role": role, "rows": len(self.rows), "weight": self.described.weight}
        forms = Counter(row.form for row in rows if row.form)
        return {**described, "forms": dict(forms)} if forms else described


def _holds_questions(rows: IndexedRows | ShardedRows) -> bool:
    """Return whether the first row that can be read is no conversation."""
    for index in range(len(rows)):
        try:
            _, row = rows[index]
        except MalformedRows:
            continue  # it is reported when the rows are checked
        return find_form(row) is None
    return True


class RowRead(NamedTuple):
    """What was found in one row. Its place is a number, for a set has millions of rows and few with a finding."""

    index: int
    findings: Sequence[Finding] = ()
    images: Sequence[str] = ()
    """Paths of those that are there."""
    turns: bytes = b""
    """Digest of what a sound conversation says."""
    tokens: int = 0
    form: str = ""
    question_id: int | str | None = None
    rows: IndexedRows | ShardedRows | None = None
    """The file, once for all of its rows."""
    stored: Sequence[tuple[str, ImageRead]] = ()
    """What was found of the images that lie in the row, by their names."""

    @property
    def source(self) -> str:
        return self.rows.source(self.index)


CountTokens = Callable[[Record], tuple[int, Finding | None]]
LookAt = Callable[[StoredImage], "ImageRead"]


def read_rows(
    file: DataFile,
    count_tokens: CountTokens | None = None,
    workers: int | None = None,
    look_at: LookAt | None = None,
) -> Iterator[RowRead]:
    """Examine every row of a file, in processes if it is worth it; `look_at` is asked of images that lie in rows."""
    examine = partial(_examine_rows, file, count_tokens, look_at)
    for row in _run(examine, range(len(file.rows)), 256, 20_000, workers, "reading rows", "row"):
        # Each path once in memory, however many rows show it.
        yield row._replace(rows=file.rows, images=tuple(sys.intern(path) for path in row.images))


def _examine_rows(
    file: DataFile, count_tokens: CountTokens | None, look_at: LookAt | None, numbers: range
) -> list[RowRead]:
    images = file.image_paths()
    return [_examine_row(file, index, images, count_tokens, look_at) for index in numbers]


def _examine_row(
    file: DataFile, index: int, images: ImagePaths, count_tokens: CountTokens | None, look_at: LookAt | None
) -> RowRead:
    source = file.rows.source(index)
    try:
        _, row = file.rows[index]
        if file.holds_questions:
            beside = images.beside(row.images) if isinstance(row, StoredRow) else images
            question = read_question(index, row, source, beside)
            stored = _look_at_stored([question.image], look_at)
            return RowRead(index, images=(str(question.image),), question_id=question.question_id, stored=stored)
    except BAD as fault:
        return RowRead(index, (Finding(kind_of_fault(fault), source, str(fault)),))
    record, faults = examine_record(row, source, images)
    findings = [Finding(kind_of_fault(fault), source, str(fault)) for fault in faults]
    findings += [Finding(NOT_READ, source, note) for note in record.notes]
    tokens, finding = count_tokens(record) if count_tokens is not None and not faults else (0, None)
    findings += [finding] if finding else []
    turns = b""
    if not faults and (finding is None or finding.kind == TOO_LONG):
        said = [(message.role, message.text) for message in record.conversation.messages]
        turns = hash_bytes(repr(said).encode())
    stored = _look_at_stored(record.images, look_at)
    shown = tuple(map(str, record.images))
    return RowRead(index, tuple(findings), shown, turns, tokens, record.form, stored=stored)


def _look_at_stored(images: Iterable[Path | StoredImage], look_at: LookAt | None) -> tuple[tuple[str, ImageRead], ...]:
    """Return the names of those images that lie in their row, with what is found of each."""
    return tuple((image.name, look_at(image)) for image in images if look_at and isinstance(image, StoredImage))


def kind_of_fault(fault: Exception) -> str:
    """Return the kind of problem that a row's fault is; raise it where no other row can be read either."""
    if isinstance(fault, ChangedFile):
        raise fault
    if isinstance(fault, MalformedRows):
        return UNREADABLE
    if isinstance(fault, FileNotFoundError):
        return MISSING
    return fault.kind if isinstance(fault, RowFault) else REFUSED_PATH


def _examine_length(processor: Any, max_length: int, record: Record) -> tuple[int, Finding | None]:
    """Return the number of tokens that training counts, and what is wrong with them."""
    limit, name = max_length, "--max-length"
    if processor.max_positions is not None and processor.max_positions < limit:
        limit, name = processor.max_positions, "the model's max_positions"
    try:
        ids, labels, _ = processor.encode(record.conversation, labels=True, any_length=True)
    except ValueError as error:
        return 0, Finding(NOT_ENCODABLE, record.source, f"{record.source}: {error}")
    if len(ids) <= limit:
        return len(ids), None
    sentence = (
        f"{record.source}: {len(ids):,} tokens, {len(ids) - limit:,} over the {limit:,} allowed ({name}); "
        f"{_describe_loss(processor.tokenizer, ids, labels, limit)}"
    )
    return len(ids), Finding(TOO_LONG, record.source, sentence)


def _describe_loss(tokenizer: Any, ids: list[int], labels: list[int], limit: int) -> str:
    """Say what a cut to the limit would take, turn by turn. Image tokens are never cut."""
    from monkey.processing import UNSUPERVISED, kept_positions

    try:
        kept = kept_positions(ids, limit, tokenizer.image_start_id, tokenizer.image_end_id, tokenizer.truncation_side)
    except ValueError as error:
        return str(error)
    kept, losses, start = set(kept), [], 0
    # Turns alternate, and answers alone are supervised.
    for number, (is_answer, turn) in enumerate(itertools.groupby(labels, lambda label: label != UNSUPERVISED)):
        stop = start + len(list(turn))
        lost = [ids[position] for position in range(start, stop) if position not in kept]
        if lost:
            text = tokenizer.decode(lost)
            shown = text if len(text) <= 60 else f"{text[:59]}…"
            whose = "the answer in turn" if is_answer else "the user's turn"
            losses.append(f"{len(lost):,} of {stop - start:,} tokens of {whose} {number}, {shown!r}")
        start = stop
    more = f", and of {len(losses) - 3} more turns" if len(losses) > 3 else ""
    return f"a cut would lose {'; '.join(losses[:3])}{more}"


# Images


class ImageRead(NamedTuple):
    """Digests of an image's decoded pixels and of its file; nothing where there are none, and what is wrong then."""

    pixels: bytes
    file: bytes
    fault: Finding | None


def read_images(
    paths: Sequence[str], settings: dict[str, Any], workers: int | None = None, title: str = "opening images"
) -> dict[str, ImageRead]:
    """Open images as training would, in processes if it is worth it, and return what each holds."""
    read = _run(partial(_read_images, settings), paths, 16, 400, workers, title, "image")
    return dict(zip(paths, read, strict=True))


def _read_images(settings: dict[str, Any], paths: Sequence[str]) -> list[ImageRead]:
    return [_read_image(path, settings) for path in paths]


def _look_at(settings: dict[str, Any], image: StoredImage) -> ImageRead:
    """Return digests of an image that lies in its record, and what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, about what it can read nevertheless
            opened = open_image(image, **settings)
    except ValueError as error:
        return ImageRead(b"", hash_bytes(image), Finding(BROKEN, image.name, str(error)))
    return ImageRead(hash_bytes(repr(opened.size).encode() + opened.tobytes()), hash_bytes(image), None)


def _read_image(path: str, settings: dict[str, Any]) -> ImageRead:
    pixels, fault = b"", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, about what it can read nevertheless
            image = open_image(path, **settings)
        pixels = hash_bytes(repr(image.size).encode() + image.tobytes())
    except FileNotFoundError as error:
        return ImageRead(b"", b"", Finding(MISSING, path, str(error)))
    except ValueError as error:
        fault = Finding(BROKEN, path, str(error))
    try:
        with open(path, "rb") as file:  # never whole in memory: one that is refused may be of any size
            return ImageRead(pixels, hashlib.file_digest(file, new_digest).digest(), fault)
    except OSError:  # which `fault` says already
        return ImageRead(pixels, b"", fault)


new_digest = partial(hashlib.blake2b, digest_size=16)
"""16 bytes: among 10⁹ contents, two different ones agree with a probability of 10⁻²¹."""


def hash_bytes(content: bytes) -> bytes:
    return new_digest(content).digest()


def _run(
    task: Callable[[Any], list], items: Sequence, at_a_time: int, worth: int, workers: int | None, title: str, unit: str
) -> Iterator[Any]:
    """Yield what a task makes of the items, in their order.

    Args:
        task: gets `at_a_time` items and gives a list of as many results.
        worth: so many items take as long as a process takes to start.
        workers: processes; 0 for none but this one; None for as many as are worth starting.
    """
    if workers is None:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(available, _MOST_PROCESSES) if len(items) >= worth and available > 1 else 0
    parts = [items[start : start + at_a_time] for start in range(0, len(items), at_a_time)]
    results = map(task, parts)
    if workers:
        from monkey.data.dataset import run_in_order  # which imports PyTorch

        results = run_in_order(task, parts, workers)
    with tqdm(total=len(items), desc=title, unit=unit, leave=False, disable=None) as bar:
        for result in results:
            yield from result
            bar.update(len(result))
