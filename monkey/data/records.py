"""Readers of the two kinds of row that name images: training conversations and evaluation questions.

Both are for trusted files only: `<img>path</img>` in a conversation, and `image` in a question, name files of this
machine. What leaves here is a `Conversation` or a `Question` with the images' paths; nothing else in the project looks
for a path in a text. No image is opened, only its existence is checked, and the header read of one whose boxes are in
pixels.

Every fault is one sentence that names the file and the line (JSONL) or the record's index (JSON list): ValueError, or
FileNotFoundError where a file is missing. Schemas with examples are in data/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monkey.boxes import find_box_fault
from monkey.conversation import Conversation, Image, Message, Text
from monkey.data.foreign import (
    AUDIO,
    CONTROL,
    IMAGE,
    PLACE,
    ROLES,
    VIDEO,
    find_foreign_markers,
    role_of,
    to_our_record,
)
from monkey.data.rows import (
    EMPTY_ANSWER,
    OUT_OF_ORDER,
    ImagePaths,
    IndexedRows,
    MissingImage,
    RowFault,
    StoredRow,
    fail,
    field_of,
    kind_of,
    require_encodable,
    text_of,
)
from monkey.images import StoredImage, read_data_uri, stored_size
from monkey.prompts import IMAGE_PLACE

BAD = (ValueError, FileNotFoundError)
"""What is raised for a row that cannot be read as what it should be."""


# One training record


@dataclass(frozen=True)
class Record:
    """One training conversation: turns alternate from user to assistant, and images name files that are there."""

    conversation: Conversation
    source: str
    """Where it stands: `train.jsonl:13` (line) or `train.json[12]` (index)."""
    form: str = ""
    """What the form was that it was converted from; nothing where it was ours."""
    notes: tuple[str, ...] = ()
    """Sentences about what may not be meant so."""
    reads_sizes: bool = False
    """Whether boxes in it were given in pixels, so that its text depends on an image."""

    @property
    def images(self) -> list[Path | StoredImage]:
        """The images in their order: files, or what lies in the row itself."""
        return self.conversation.images


def read_record(row: Any, source: str, images: ImagePaths) -> Record:
    """Return a row as a record; the first of its faults is raised."""
    record, faults = examine_record(row, source, images)
    if faults:
        raise faults[0]
    return record


def examine_record(row: Any, source: str, images: ImagePaths) -> tuple[Record, list[Exception]]:
    """Return what is sound of a training row, and its faults: the first of each turn, and every image that fails.

    Faults are of the types in `BAD`; a RowFault says of which kind it is.
    """
    sized: list[str] = []
    if isinstance(row, StoredRow):
        images = images.beside(row.images)

    def size_of(path: str, where: str) -> tuple[int, int]:
        sized.append(path)
        return _read_size(images, path, where)

    try:
        row, form, notes = to_our_record(row, source, size_of)
        turns = field_of(row, "conversations", (list,), source)
        if not turns:
            fail(source, "'conversations' is empty; give a user turn and an assistant turn")
    except BAD as fault:
        return Record(Conversation(()), source), [fault]
    numbered = [(f"{source}, turn {number}", turn) for number, turn in enumerate(turns)]
    if "system" in row:
        numbered.insert(0, (f"{source}, 'system'", {"from": "system", "value": row["system"]}))
    messages, faults = _examine_turns(numbered, source, images, notes)
    # Of all turns together: Qwen-VL lets a question end in <box>, whose rest is the answer.
    box_fault = find_box_fault("".join(message.text for message in messages))
    if box_fault:
        faults.append(RowFault(f"{source}: {box_fault}"))
    return Record(Conversation(tuple(messages)), source, form, tuple(notes), bool(sized)), faults


def _examine_turns(
    turns: Sequence[tuple[str, Any]], source: str, images: ImagePaths, notes: list[str]
) -> tuple[list[Message], list[Exception]]:
    """Return the turns as messages, the system's text in front of the first user's, and what is wrong with them."""
    messages: list[Message] = []
    faults: list[Exception] = []
    in_order = True
    role, system = "user", ""
    for number, (where, turn) in enumerate(turns, start=-1 if _is_system(turns[0][1]) else 0):
        expected = "system" if number < 0 else "assistant" if number % 2 else "user"
        try:
            role = _read_role(turn, where)
            # One turn too many or too few puts all that follow out of order; the first is enough.
            if in_order and role != expected:
                in_order = False
                found = f"expected one of the {expected}, found one of the {role}"
                faults.append(RowFault(f"{where}: turns are out of order: {found}", OUT_OF_ORDER))
            text, *pieces = _split_turn(turn, role, where)
            notes += _examine_markers(IMAGE_PLACE.join([text, *pieces[1::2]]), role, where)
        except RowFault as fault:
            faults.append(fault)
            role = expected
            continue
        if role == "system":
            system = f"{text}\n"
            continue
        if role == "user":
            text, system = system + text, ""
        parts = [Text(text, trusted=True)] if text else []
        for image, (path, following) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
            try:
                parts.append(Image(_find_image(path, where, images, image)))
            except BAD as fault:
                faults.append(fault)
            parts += [Text(following, trusted=True)] if following else []
        messages.append(Message(role, tuple(parts)))
    if in_order and role != "assistant":
        sentence = "the last turn is the user's; a conversation must end with the assistant's answer"
        faults.append(RowFault(f"{source}: {sentence}", OUT_OF_ORDER))
    return messages, faults


def _find_image(path: str, where: str, images: ImagePaths, number: int) -> Path | StoredImage:
    """Return the image of a path, or the one within a data-URI, as OpenAI's form has it."""
    if path[:5].lower() != "data:":
        return images.find(path, where)
    return StoredImage(read_data_uri(path, name=f"{where}: the data-URI"), f"image {number} in {where}")


def _is_system(turn: Any) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("from"), str) and role_of(turn["from"]) == "system"


def _read_role(turn: Any, where: str) -> str:
    name = text_of(turn, "from", where)
    role = role_of(name)
    if role is None:
        known = ", ".join(name for names in ROLES.values() for name in names)
        fail(where, f"unknown role {name!r} in 'from'; known are {known}")
    return role


def _split_turn(turn: Any, role: str, where: str) -> list[str]:
    """Return the text of a turn as texts and paths by turns, from a text to a text."""
    value = text_of(turn, "value", where)
    if not value.strip():
        if role == "assistant":
            fail(where, "the answer is empty", EMPTY_ANSWER)
        fail(where, "the user's text is empty" if role == "user" else "the system's text is empty; leave the turn out")
    pieces = _split_at_images(value, where)
    if len(pieces) > 1 and role != "user":
        whose = "an answer" if role == "assistant" else "the system's text"
        fail(where, f"{whose} holds <img>; images belong into the user's turns")
    return pieces


_TAG = re.compile(r"<img>|</img>")


def _split_at_images(value: str, where: str) -> list[str]:
    """Return texts and paths by turns, from a text to a text, of a text with `<img>path</img>` in it."""
    pieces: list[str] = []
    end = 0
    opened: int | None = None
    for tag in _TAG.finditer(value):
        if tag.group() == "<img>":
            if opened is not None:
                fail(where, f"<img> at character {opened} is not closed before the next <img>")
            opened = tag.start()
        else:
            if opened is None:
                fail(where, f"</img> at character {tag.start()} closes no <img>")
            opened = None
        pieces.append(value[end : tag.start()])
        end = tag.end()
    if opened is not None:
        fail(where, f"<img> at character {opened} is not closed")
    return [*pieces, value[end:]]


_ADVICE = {
    IMAGE: "write <image> for one of 'images', or <img>path</img>",
    VIDEO: "only images are trained on",
    AUDIO: "only images are trained on",
    PLACE: "write <ref>name</ref> and <box>(x1,y1),(x2,y2)</box> in thousandths of width and height",
    CONTROL: "give each side's text alone, in turns",
}


def _examine_markers(text: str, role: str, where: str) -> list[str]:
    """Return notes on signs of other models that may be text; fail for one that cannot be, and for one of an image."""
    notes = []
    for marker in find_foreign_markers(text):
        sign = marker.text[:80]
        if marker.is_certain or (role != "assistant" and marker.meaning in (IMAGE, VIDEO, AUDIO)):
            what = f"{sign} is a model's sign for {marker.meaning}"
            fail(where, f"{what}; {_ADVICE[marker.meaning]}, or leave the record out")
        notes.append(f"{where}: {sign} may be a model's sign for {marker.meaning}, and is learnt as its characters")
    return notes


def _read_size(images: ImagePaths, path: str, where: str) -> tuple[int, int]:
    """Return width and height of an image whose boxes are given in pixels."""
    found = _find_image(path, where, images, 0)
    try:
        size, orientation = stored_size(found)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if orientation != 1:
        fail(
            where,
            f"EXIF turns {path[:80]} (orientation {orientation}), and whether boxes in pixels are of the turned image "
            "is not known; save it upright",
        )
    return size


# Evaluation questions

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


def read_questions(
    path: str | Path,
    image_root: str | Path | None = None,
    root_name: str = "image_root",
    *,
    accept_blank: bool = False,
    missing: dict[Path, str] | None = None,
) -> list[Question]:
    """Return the questions of an evaluation file, with ids that occur once.

    Images are looked up as `ImagePaths` does; `root_name` is what messages call `image_root`.

    Args:
        accept_blank: keep a question whose references are all blank, as the published sets have some.
        missing: keep a question whose image is missing, and write a sentence under the image's path there.

    Raises:
        FileNotFoundError, ValueError: the first row that is not of the form, an image that is missing, an id given
            twice; file and line are named.
    """
    path = Path(path)
    images = (
        ImagePaths(path, image_root, root_name) if missing is None else _Absent(path, image_root, root_name, missing)
    )
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for row, (source, fields) in enumerate(IndexedRows(path)):
        questions.append(read_question(row, fields, source, images, accept_blank))
        if sentence := find_repeated_id(questions[-1].question_id, source, seen):
            raise ValueError(sentence)
    return questions


def find_repeated_id(question_id: int | str, source: str, seen: dict[str, str]) -> str | None:
    """Return what is wrong where an earlier question had the same id; `seen` has each id's first place."""
    # Result files key answers by the id's text, where 7 and "7" are one.
    first = seen.setdefault(str(question_id), source)
    if first == source:
        return None
    return f"{source}: question_id {question_id!r} was given before, at {first}; ids must differ"


def read_question(row: int, fields: Any, source: str, images: ImagePaths, accept_blank: bool = False) -> Question:
    """Return one row of an evaluation file as a question.

    Raises:
        RowFault, ValueError, FileNotFoundError: the first thing that is wrong with it.
    """
    image = text_of(fields, "image", source)
    text = text_of(fields, "question", source)
    if not text.strip():
        fail(source, "the question is empty")
    if _TAG.search(text):
        fail(source, "the question holds <img> or </img>; the image belongs into 'image'")
    question_id = field_of(fields, "question_id", (int, str), source)
    answer = field_of(fields, "answer", (str, int, float, list), source)
    answers = [_read_reference(one, source) for one in (answer if isinstance(answer, list) else [answer])]
    # A blank among several references is kept: scores that leave one reference out depend on how many there are.
    if not any(reference.strip() for reference in answers) and not (accept_blank and answers):
        fail(source, "the answer is empty", EMPTY_ANSWER)
    more = {key: value for key, value in fields.items() if key not in QUESTION_KEYS}
    return Question(row, question_id, images.find(image, source), text, tuple(answers), source, more)


def _read_reference(value: Any, source: str) -> str:
    """Return a text, or a whole number as its digits."""
    if isinstance(value, float):
        fail(
            source, f"'answer' holds the number {value}; write it in quotes, for a number does not keep its form (2.30)"
        )
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        fail(source, f"'answer' must be a text or a list of texts, found {kind_of(value)} in the list")
    require_encodable(str(value), "answer", source)
    return str(value)


class _Absent(ImagePaths):
    """Paths that may name no file; `missing` gets a sentence about each that does not."""

    def __init__(self, records: Path, image_root: str | Path | None, root_name: str, missing: dict[Path, str]):
        super().__init__(records, image_root, root_name)
        self._expected = records.parent if image_root is None else Path(image_root)
        self._missing = missing

    def find(self, path: str, where: str) -> Path:
        try:
            return super().find(path, where)
        except MissingImage as error:
            self._missing.setdefault(self._expected / path, str(error))
            return self._expected / path
