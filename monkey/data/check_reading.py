"""What a checking process reads: rows with their faults, turns and tokens, and images with their hashes."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import monkey
from monkey.data import check_report as kinds
from monkey.data.check_report import Finding
from monkey.data.records import Record, examine_record, read_question
from monkey.data.rows import ImagePaths, IndexedRows, MalformedRows, RowFault
from monkey.images import open_image
from monkey.processing import kept_positions

_DIGEST = 16
"""Bytes of a hash: among 10⁹ contents, two different ones agree with a probability of 10⁻²¹."""


@dataclass
class OpenedFile:
    """A file of rows, which are numbered through all files: `first` is the number of its row 0."""

    rows: IndexedRows
    image_root: Path | None
    weight: float
    is_evaluation: bool
    holds_questions: bool
    first: int
    forms: Counter[str] = field(default_factory=Counter)
    """Rows that were converted from each form of another project."""

    def described(self) -> dict[str, Any]:
        role = "evaluation" if self.is_evaluation else "train"
        described = {"path": str(self.rows.path), "role": role, "rows": len(self.rows), "weight": self.weight}
        return {**described, "forms": dict(self.forms)} if self.forms else described

    def pictures(self) -> ImagePaths:
        return ImagePaths(
            self.rows.path, self.image_root, "--eval-image-root" if self.is_evaluation else "--image-root"
        )


class SampleEncoder:
    """Counts the tokens of records with the processor of training, which opens no image here."""

    def __init__(self, processor: monkey.MonkeyProcessor, max_length: int) -> None:
        self.limit, self.limit_name = max_length, "--max-length"
        if processor.max_positions is not None and processor.max_positions < max_length:
            self.limit, self.limit_name = processor.max_positions, "the model's max_positions"
        self.processor = copy.copy(processor)
        self.processor.image_processor = _no_pixels
        self.processor.max_positions = None  # a sample that is too long is measured here, not refused

    def examine(self, record: Record) -> tuple[int, Finding | None]:
        """Number of tokens, and what is wrong with them."""
        try:
            sample = self.processor.encode_conversation([asdict(turn) for turn in record.turns], list(record.images))
        except ValueError as error:
            return 0, Finding(kinds.NOT_ENCODABLE, record.source, f"{record.source}: {error}")
        ids = sample["input_ids"]
        if len(ids) <= self.limit:
            return len(ids), None
        sentence = (
            f"{record.source}: {len(ids):,} tokens, {len(ids) - self.limit:,} over the {self.limit:,} allowed "
            f"({self.limit_name}); {self._loss(record, ids)}"
        )
        return len(ids), Finding(kinds.TOO_LONG, record.source, sentence)

    def _loss(self, record: Record, ids: Sequence[int]) -> str:
        """What a cut to the limit would take, turn by turn. Image tokens are never cut."""
        tokenizer = self.processor.tokenizer
        try:
            kept = kept_positions(
                ids, self.limit, tokenizer.image_start_id, tokenizer.image_end_id, tokenizer.truncation_side
            )
        except ValueError as error:
            return str(error)
        lost = sorted(set(range(len(ids))) - set(kept))
        losses, start = [], 0
        for number, turn in enumerate(record.turns):
            is_answer = turn.role == "assistant"
            stop = start + len(self.processor.encode_segments([(turn.text, True)])) + is_answer
            own = [ids[position] for position in lost if start <= position < stop]
            if own:
                text = tokenizer.decode(own)
                shown = text if len(text) <= 60 else f"{text[:59]}…"
                whose = "the answer in turn" if is_answer else "the user's turn"
                losses.append(f"{len(own):,} of {stop - start:,} tokens of {whose} {number}, {shown!r}")
            start = stop
        more = f", and of {len(losses) - 3} more turns" if len(losses) > 3 else ""
        return f"a cut would lose {'; '.join(losses[:3])}{more}"


def _no_pixels(pictures: Sequence[Path], return_tensors: str) -> dict[str, Any]:
    """Stands in for the image processor: tokens do not depend on pixels."""
    return {}


class RowsRead(NamedTuple):
    """What a task found in some rows: (number, digest of its turns or nothing where it has a fault, images)."""

    findings: list[Finding]
    rows: list[tuple[int, bytes, list[str]]]
    question_ids: list[tuple[str, str]]
    longest: tuple[int, str]
    forms: Counter[str]


class RowTask:
    """Reads the rows `start` to `stop` of a file."""

    def __init__(self, files: Sequence[OpenedFile], encoder: SampleEncoder | None) -> None:
        self.files, self.encoder = files, encoder

    def __call__(self, stretch: tuple[int, int, int]) -> RowsRead:
        number, start, stop = stretch
        file = self.files[number]
        read = self._question if file.holds_questions else self._conversation
        pictures = file.pictures()
        result = RowsRead([], [], [], (0, ""), Counter())
        for index in range(start, stop):
            try:
                source, row = file.rows[index]
            except MalformedRows as error:
                source = file.rows.source(index)
                result.findings.append(Finding(kinds.UNREADABLE, source, str(error)))
                continue
            result = read(file, index, source, row, pictures, result)
        return result

    def _conversation(
        self, file: OpenedFile, index: int, source: str, row: Any, pictures: ImagePaths, result: RowsRead
    ) -> RowsRead:
        record, faults = examine_record(row, source, pictures)
        result.findings.extend(Finding(_kind_of(fault), source, str(fault)) for fault in faults)
        result.findings.extend(Finding(kinds.NOT_READ, source, note) for note in record.notes)
        if record.form:
            result.forms[record.form] += 1
        finding = None
        if self.encoder is not None and not faults:
            tokens, finding = self.encoder.examine(record)
            result.findings.extend([finding] if finding else [])
            result = result._replace(longest=max(result.longest, (tokens, source), key=lambda pair: pair[0]))
        is_sound = not faults and (finding is None or finding.kind == kinds.TOO_LONG)
        turns = digest(repr([(turn.role, turn.text) for turn in record.turns]).encode()) if is_sound else b""
        result.rows.append((file.first + index, turns, [str(path) for path in record.images]))
        return result

    def _question(
        self, file: OpenedFile, index: int, source: str, row: Any, pictures: ImagePaths, result: RowsRead
    ) -> RowsRead:
        try:
            question = read_question(index, row, source, pictures)
        except (ValueError, FileNotFoundError) as fault:
            result.findings.append(Finding(_kind_of(fault), source, str(fault)))
            return result
        result.question_ids.append((source, str(question.question_id)))
        result.rows.append((file.first + index, b"", [str(question.image)]))
        return result


def _kind_of(fault: Exception) -> str:
    if isinstance(fault, FileNotFoundError):
        return kinds.MISSING
    return fault.kind if isinstance(fault, RowFault) else kinds.REFUSED_PATH


class ImageRead(NamedTuple):
    """Digests of an image's decoded pixels and of its file; nothing where there are none, and what is wrong then."""

    pixels: bytes
    file: bytes
    fault: Finding | None


@dataclass
class ImageTask:
    """Opens images as training would."""

    settings: dict[str, Any]

    def __call__(self, paths: Sequence[str]) -> list[ImageRead]:
        return [self._read(path) for path in paths]

    def _read(self, path: str) -> ImageRead:
        pixels, fault = b"", None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PIL, about what it can read nevertheless
                image = open_image(path, **self.settings)
            pixels = digest(repr(image.size).encode() + image.tobytes())
        except FileNotFoundError as error:
            return ImageRead(b"", b"", Finding(kinds.MISSING, path, str(error)))
        except ValueError as error:
            fault = Finding(kinds.BROKEN, path, str(error))
        try:
            with open(path, "rb") as file:
                return ImageRead(pixels, hashlib.file_digest(file, _new_hash).digest(), fault)
        except OSError:  # which `fault` says already
            return ImageRead(pixels, b"", fault)


def _new_hash() -> Any:
    return hashlib.blake2b(digest_size=_DIGEST)


def digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
