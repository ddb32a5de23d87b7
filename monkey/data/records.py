"""Readers of the two kinds of file that name pictures: training conversations and evaluation questions.

Both are for trusted files only: `<img>path</img>` in a conversation, and `image` in a question, name files of this
machine. What leaves here is text with `<img></img>` places and the pictures' paths in the order of the places; nothing
else in the project looks for a path in a text. No picture is opened, only its existence is checked, and the header read
of one whose boxes are in pixels.

Training reads through `open_records`: several files or mixtures as one sequence whose rows are parsed when they are
asked for, so that no process holds the text of a large file.

Every fault is one sentence that names the file and the line (JSONL) or the record's index (JSON list): ValueError, or
FileNotFoundError where a file is missing. Schemas with examples are in data/README.md.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from monkey.boxes import find_box_fault
from monkey.data.foreign import AUDIO, CONTROL, IMAGE, PLACE, ROLES, VIDEO, find_foreign_markers, role_of, to_our_record
from monkey.data.mixture import RecordSet, record_sets
from monkey.data.rows import (
    EMPTY_ANSWER,
    OUT_OF_ORDER,
    ImagePaths,
    IndexedRows,
    RowFault,
    fail,
    field_of,
    kind_of,
    require_encodable,
    text_of,
)
from monkey.images import stored_size

_TAG = re.compile(r"<img>|</img>")

_ADVICE = {
    IMAGE: "write <image> for one of 'images', or <img>path</img>",
    VIDEO: "only images are trained on",
    AUDIO: "only images are trained on",
    PLACE: "write <ref>name</ref> and <box>(x1,y1),(x2,y2)</box> in thousandths of width and height",
    CONTROL: "give each side's text alone, in turns",
}

_PATHS_KEPT = 20_000
"""Records between which a sequence forgets the paths it has looked up: a large set names many pictures."""


@dataclass(frozen=True)
class Turn:
    """What one side says: `role` is "user" or "assistant", `text` holds `<img></img>` where a picture stands."""

    role: str
    text: str


@dataclass(frozen=True)
class Record:
    """One training conversation: turns alternate from user to assistant, pictures are in the order of their places."""

    turns: tuple[Turn, ...]
    images: tuple[Path, ...]
    source: str
    """Where it stands: `train.jsonl:13` (line) or `train.json[12]` (index)."""
    form: str = ""
    """What the form was that it was converted from; nothing where it was ours."""
    notes: tuple[str, ...] = ()
    """Sentences about what may not be meant so."""


QUESTION_KEYS = ("image", "question", "answer", "question_id")
"""What every row of an evaluation file has."""


@dataclass(frozen=True)
class Question:
    """One evaluation question; `row` counts from 0 in its file, `answers` are the references as given.

    `more` has the keys of the row beside those that every row has.
    """

    row: int
    question_id: int | str
    image: Path
    question: str
    answers: tuple[str, ...]
    source: str
    more: Mapping[str, Any] = field(default_factory=dict)


def read_records(path: str | Path, image_root: str | Path | None = None, root_name: str = "image_root") -> list[Record]:
    """The conversations of a JSON list or JSONL file.

    Pictures are looked up in `image_root`, or without one in the file's own folder and then in the current one.
    `root_name` is what messages call `image_root`: the flag that a program has for it.
    """
    path = Path(path)
    pictures = ImagePaths(path, image_root, root_name)
    return [_record(row, source, pictures) for source, row in IndexedRows(path)]


class RecordFile(NamedTuple):
    """One file of a sequence: its records are `records[start:stop]`, visited `weight` times an epoch."""

    path: Path
    start: int
    stop: int
    weight: float


def open_records(
    paths: str | Path | Sequence[str | Path],
    image_root: str | Path | None = None,
    root_name: str = "image_root",
    weights: Sequence[float] | None = None,
    skip_bad_rows: bool = False,
) -> Records:
    """The conversations of JSON lists, JSONL files and mixtures (`.yaml`) as one sequence, parsed when asked for.

    Args:
        paths: one file or several.
        image_root: where pictures are looked up, for sets whose mixture names no root; see `read_records`.
        root_name: what messages call `image_root`.
        weights: one a path: how often an epoch visits the file; see `Records.epoch`.
        skip_bad_rows: read everything now and leave bad rows out; `Records.skipped` lists them.

    Raises:
        FileNotFoundError: a missing file or folder.
        ValueError: a file that cannot be read as rows, a mixture that is not of its form, a count that disagrees, or,
            with `skip_bad_rows`, no good row.
    """
    records = Records(record_sets(paths, image_root, weights), root_name)
    if skip_bad_rows:
        records.check_all(skip=True)
    return records


class Records(Sequence[Record]):
    """Records of several files, each parsed and validated when it is asked for; may be pickled and forked.

    `notices` are sentences for the user: row counts that differ from recalled ones, files whose first row is of another
    project's form. `skipped` lists (source, sentence) of the bad rows that `check_all(skip=True)` left out.
    """

    def __init__(self, sets: Sequence[RecordSet], root_name: str = "image_root") -> None:
        self._files = [_FileOfRecords(one, root_name) for one in sets]
        found = [one.check_count(len(file)) for one, file in zip(sets, self._files, strict=True)]
        found += [notice for file in self._files for notice in file.describe_form()]
        self.notices = tuple(notice for notice in found if notice)
        self.skipped: list[tuple[str, str]] = []
        self._count()

    def _count(self) -> None:
        self._starts = np.cumsum([0, *map(len, self._files)])

    @property
    def files(self) -> list[RecordFile]:
        bounds = zip(self._files, self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)
        return [RecordFile(file.rows.path, start, stop, file.weight) for file, start, stop in bounds]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        file, row = self._find(index)
        return file.record(row)

    def source(self, index: int) -> str:
        """Where a record stands, without reading it."""
        file, row = self._find(index)
        return file.rows.source(row)

    def _find(self, index: int) -> tuple[_FileOfRecords, int]:
        """The file of a record, and its row there."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"no record {index}; there are {len(self):,}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        file = self._files[number]
        return file, int(file.kept[index - self._starts[number]])

    @property
    def epoch_length(self) -> int:
        """Records of one epoch, the same for every epoch."""
        return sum(int(file.weight) * len(file) + file.part_length for file in self._files)

    def epoch(self, epoch: int, seed: int) -> np.ndarray:
        """Indices of the records of one epoch in the order of training, int64 [epoch_length].

        A file of weight w is visited floor(w) times whole. For the rest, an epoch takes its fraction of the file's
        rows, the next epoch the ones after these, round a circle whose order is drawn from the seed: so every row is
        seen equally often over the epochs. All is then shuffled by seed and epoch.

        The order is the same on every machine and NumPy: it sorts the raw 64-bit numbers of Philox, which NumPy keeps
        stable, where its own `shuffle` may change between versions.
        """
        visits = []
        for number, (file, start) in enumerate(zip(self._files, self._starts[:-1], strict=True)):
            every = np.arange(start, start + len(file))
            visits += [every] * int(file.weight)
            if file.part_length:
                places = (epoch * file.part_length + np.arange(file.part_length)) % len(file)
                visits.append(every[_permutation(len(file), seed, number)][places])
        indices = np.concatenate(visits) if visits else np.empty(0, np.int64)
        return indices[_permutation(len(indices), seed, epoch, len(self._files))]

    def check_all(self, skip: bool = False) -> list[tuple[str, str]]:
        """Read every row once; pictures are looked for, not opened.

        Args:
            skip: leave bad rows out of the sequence from now on, instead of raising for the first.

        Returns:
            (source, sentence) of each bad row.

        Raises:
            ValueError, FileNotFoundError: the first bad row; with `skip`, that no good one is left.
        """
        bad: dict[int, str] = {}
        for index in tqdm(range(len(self)), desc="reading records", unit="record", leave=False, disable=None):
            try:
                self[index]
            except (ValueError, FileNotFoundError) as error:
                if not skip:
                    raise
                bad[index] = str(error)
        found = [(self.source(index), sentence) for index, sentence in bad.items()]
        if bad and len(bad) == len(self):
            raise ValueError(f"all {len(bad):,} rows are bad; the first: {found[0][1]}")
        self.leave_out(list(bad))
        self.skipped += found
        return found

    def leave_out(self, indices: Sequence[int]) -> None:
        """Take records out of the sequence, by the indices that they have now; those behind them move up."""
        stays = np.ones(len(self), bool)
        stays[np.asarray(indices, np.int64)] = False
        for file, start, stop in zip(self._files, self._starts[:-1], self._starts[1:], strict=True):
            file.kept = file.kept[stays[start:stop]]
        self._count()


class _FileOfRecords:
    """One file, the rows of it that are kept, and where its pictures are looked up."""

    def __init__(self, one: RecordSet, root_name: str) -> None:
        self.rows = IndexedRows(one.path)
        self.kept = np.arange(len(self.rows))
        self.weight = one.weight
        self._place = (one.path, one.image_root, root_name)
        self._pictures = ImagePaths(*self._place)
        self._reads = 0

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def part_length(self) -> int:
        """Rows that an epoch takes beyond the whole visits; at least one where the weight is no whole number."""
        part = math.modf(self.weight)[0]
        return min(len(self), max(1, round(part * len(self)))) if part else 0

    def record(self, row: int) -> Record:
        self._reads += 1
        if self._reads % _PATHS_KEPT == 0:
            self._pictures = ImagePaths(*self._place)
        source, fields = self.rows[row]
        return _record(fields, source, self._pictures)

    def describe_form(self) -> list[str]:
        """Say that the first row is of another project's form, where it is, and what of it may not be meant so."""
        try:
            first = self.record(0)
        except (ValueError, FileNotFoundError):  # which is told when the row is read for its own sake
            return []
        count = "1 record" if len(self) == 1 else f"{len(self):,} records, the first"
        return [f"{self.rows.path}: {count} in {first.form}, read as ours"] * bool(first.form) + list(first.notes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pictures": ImagePaths(*self._place)}


def holds_images(records: Sequence[Record]) -> bool:
    """Whether any record has an image; reads up to the first that has one."""
    for index in range(len(records)):
        try:
            if records[index].images:
                return True
        except (ValueError, FileNotFoundError):
            continue  # a bad row is told when it is read for its own sake
    return False


def _permutation(count: int, *key: int) -> np.ndarray:
    """The numbers below `count` in an order that depends on the key alone."""
    return np.argsort(np.random.Philox(np.random.SeedSequence(key)).random_raw(count), kind="stable")


def read_questions(
    path: str | Path, image_root: str | Path | None = None, root_name: str = "image_root"
) -> list[Question]:
    """The questions of an evaluation file, with ids that occur once. Pictures are looked up as in `read_records`."""
    path = Path(path)
    pictures = ImagePaths(path, image_root, root_name)
    questions = []
    seen: dict[str, str] = {}
    for row, (source, fields) in enumerate(IndexedRows(path)):
        question = read_question(row, fields, source, pictures)
        # Result files key answers by the id's text, where 7 and "7" are one.
        key = str(question.question_id)
        if key in seen:
            raise ValueError(
                f"{source}: question_id {question.question_id!r} was given before, at {seen[key]}; ids must differ"
            )
        seen[key] = source
        questions.append(question)
    return questions


def _record(row: Any, source: str, pictures: ImagePaths) -> Record:
    record, faults = examine_record(row, source, pictures)
    if faults:
        raise faults[0]
    return record


def examine_record(
    row: Any, source: str, pictures: ImagePaths
) -> tuple[Record, list[RowFault | ValueError | FileNotFoundError]]:
    """What is sound of a training row, and what is wrong with it: of each turn the first fault and every picture's."""
    turns: list[Turn] = []
    images: list[Path] = []
    faults: list[RowFault | ValueError | FileNotFoundError] = []
    try:
        row, form, notes = to_our_record(row, source, functools.partial(_size_for_boxes, pictures))
        conversation = field_of(row, "conversations", (list,), source)
        if not conversation:
            fail(source, "'conversations' is empty; give a user turn and an assistant turn")
    except (ValueError, FileNotFoundError) as fault:
        return Record((), (), source), [fault]
    entries = [(f"{source}, turn {number}", entry) for number, entry in enumerate(conversation)]
    if "system" in row:
        entries.insert(0, (f"{source}, 'system'", {"from": "system", "value": row["system"]}))
    in_order = True
    role, system = "user", ""
    for number, (where, entry) in enumerate(entries, start=-1 if _is_system(entries[0][1]) else 0):
        expected = "system" if number < 0 else "assistant" if number % 2 else "user"
        try:
            role = _role(entry, where)
            # One turn too many or too few puts all that follow out of order; the first is enough.
            if in_order and role != expected:
                in_order = False
                found = f"expected one of the {expected}, found one of the {role}"
                faults.append(RowFault(f"{where}: turns are out of order: {found}", OUT_OF_ORDER))
            turn, paths = _turn(entry, role, where)
            notes += _examine_markers(turn, where)
        except RowFault as fault:
            faults.append(fault)
            role = expected
            continue
        if role == "system":
            system = turn.text
            continue
        if role == "user" and system:
            turn, system = Turn(role, f"{system}\n{turn.text}"), ""
        turns.append(turn)
        for path in paths:
            try:
                images.append(pictures.find(path, where))
            except (ValueError, FileNotFoundError) as fault:
                faults.append(fault)
    if in_order and role != "assistant":
        sentence = "the last turn is the user's; a conversation must end with the assistant's answer"
        faults.append(RowFault(f"{source}: {sentence}", OUT_OF_ORDER))
    # Of all turns together: Qwen-VL lets a question end in <box>, whose rest is the answer.
    box_fault = find_box_fault("".join(turn.text for turn in turns))
    if box_fault:
        faults.append(RowFault(f"{source}: {box_fault}"))
    return Record(tuple(turns), tuple(images), source, form, tuple(notes)), faults


def _size_for_boxes(pictures: ImagePaths, path: str, where: str) -> tuple[int, int]:
    """Width and height of a picture whose boxes are given in pixels."""
    found = pictures.find(path, where)
    try:
        size, orientation = stored_size(found)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if orientation != 1:
        fail(
            where,
            f"EXIF turns {path} (orientation {orientation}), and whether boxes in pixels are of the turned picture is "
            "not known; save it upright",
        )
    return size


def _is_system(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("from"), str) and role_of(entry["from"]) == "system"


def _role(entry: Any, where: str) -> str:
    name = text_of(entry, "from", where)
    role = role_of(name)
    if role is None:
        known = ", ".join(name for names in ROLES.values() for name in names)
        fail(where, f"unknown role {name!r} in 'from'; known are {known}")
    return role


def _turn(entry: Any, role: str, where: str) -> tuple[Turn, list[str]]:
    """A turn, and the paths of its pictures."""
    value = text_of(entry, "value", where)
    if not value.strip():
        if role == "assistant":
            fail(where, "the answer is empty", EMPTY_ANSWER)
        fail(where, "the user's text is empty" if role == "user" else "the system's text is empty; leave the turn out")
    text, paths = _take_pictures(value, where)
    if paths and role != "user":
        whose = "an answer" if role == "assistant" else "the system's text"
        fail(where, f"{whose} holds <img>; pictures belong into the user's turns")
    return Turn(role, text), paths


def _examine_markers(turn: Turn, where: str) -> list[str]:
    """Notes on signs of other models that may be text; a RowFault for one that cannot be, and for one of an image."""
    notes = []
    for marker in find_foreign_markers(turn.text):
        sign = marker.text[:80]
        if marker.is_certain or (turn.role != "assistant" and marker.meaning in (IMAGE, VIDEO, AUDIO)):
            what = f"{sign} is a model's sign for {marker.meaning}"
            fail(where, f"{what}; {_ADVICE[marker.meaning]}, or leave the record out")
        notes.append(f"{where}: {sign} may be a model's sign for {marker.meaning}, and is learnt as its characters")
    return notes


def _take_pictures(value: str, where: str) -> tuple[str, list[str]]:
    """The text with every `<img>path</img>` as `<img></img>`, and the paths."""
    pieces: list[str] = []
    paths: list[str] = []
    end = 0
    opened: int | None = None
    for tag in _TAG.finditer(value):
        if tag.group() == "<img>":
            if opened is not None:
                fail(where, f"<img> at character {opened} is not closed before the next <img>")
            opened = tag.start()
            pieces.append(value[end : tag.end()])
        else:
            if opened is None:
                fail(where, f"</img> at character {tag.start()} closes no <img>")
            opened = None
            paths.append(value[end : tag.start()])
            pieces.append(tag.group())
        end = tag.end()
    if opened is not None:
        fail(where, f"<img> at character {opened} is not closed")
    return "".join(pieces) + value[end:], paths


def _reference(value: Any, source: str) -> str:
    """A text, or a whole number as its digits."""
    if isinstance(value, float):
        fail(
            source, f"'answer' holds the number {value}; write it in quotes, for a number does not keep its form (2.30)"
        )
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        fail(source, f"'answer' must be a text or a list of texts, found {kind_of(value)} in the list")
    require_encodable(str(value), "answer", source)
    return str(value)


def read_question(row: int, fields: Any, source: str, pictures: ImagePaths) -> Question:
    """One row of an evaluation file.

    Raises:
        RowFault, ValueError, FileNotFoundError: the first thing that is wrong with it.
    """
    image = text_of(fields, "image", source)
    text = text_of(fields, "question", source)
    if not text.strip():
        fail(source, "the question is empty")
    if _TAG.search(text):
        fail(source, "the question holds <img> or </img>; the picture belongs into 'image'")
    question_id = field_of(fields, "question_id", (int, str), source)
    answer = field_of(fields, "answer", (str, int, float, list), source)
    answers = [_reference(one, source) for one in (answer if isinstance(answer, list) else [answer])]
    # A blank among several references is kept: scores that leave one reference out depend on how many there are.
    if not any(reference.strip() for reference in answers):
        fail(source, "the answer is empty", EMPTY_ANSWER)
    more = {key: value for key, value in fields.items() if key not in QUESTION_KEYS}
    return Question(row, question_id, pictures.find(image, source), text, tuple(answers), source, more)
