"""Readers of the two kinds of file that name pictures: training conversations and evaluation questions.

Both are for trusted files only: `<img>path</img>` in a conversation, and `image` in a question, name files of this
machine. What leaves here is text with `<img></img>` places and the pictures' paths in the order of the places; nothing
else in the project looks for a path in a text. No picture is opened, only its existence is checked.

Every fault is one sentence that names the file and the line (JSONL) or the record's index (JSON list): ValueError, or
FileNotFoundError where a file is missing. Schemas with examples are in data/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from monkey.data.json_rows import read_rows
from monkey.data.picture_paths import PicturePaths

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""Names a conversation may use for its two sides (Qwen-VL's and LLaVA's), and ours."""

_TAG = re.compile(r"<img>|</img>")


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


@dataclass(frozen=True)
class Question:
    """One evaluation question; `row` counts from 0 in its file, `answers` are the references as given."""

    row: int
    question_id: int | str
    image: Path
    question: str
    answers: tuple[str, ...]
    source: str


def read_records(path: str | Path, image_root: str | Path | None = None, root_name: str = "image_root") -> list[Record]:
    """The conversations of a JSON list or JSONL file.

    Pictures are looked up in `image_root`, or without one in the file's own folder and then in the current one.
    `root_name` is what messages call `image_root`: the flag that a program has for it.
    """
    path = Path(path)
    pictures = PicturePaths(path, image_root, root_name)
    return [_record(row, source, pictures) for source, row in read_rows(path)]


def read_questions(
    path: str | Path, image_root: str | Path | None = None, root_name: str = "image_root"
) -> list[Question]:
    """The questions of an evaluation file, with ids that occur once. Pictures are looked up as in `read_records`."""
    path = Path(path)
    pictures = PicturePaths(path, image_root, root_name)
    questions = []
    seen: dict[str, str] = {}
    for row, (source, fields) in enumerate(read_rows(path)):
        question = _question(row, fields, source, pictures)
        # Result files key answers by the id's text, where 7 and "7" are one.
        key = str(question.question_id)
        if key in seen:
            raise ValueError(
                f"{source}: question_id {question.question_id!r} was given before, at {seen[key]}; ids must differ"
            )
        seen[key] = source
        questions.append(question)
    return questions


def _record(row: Any, source: str, pictures: PicturePaths) -> Record:
    conversation = _field(row, "conversations", (list,), source)
    if not conversation:
        _fail(source, "'conversations' is empty; give a user turn and an assistant turn")
    turns: list[Turn] = []
    images: list[Path] = []
    for number, entry in enumerate(conversation):
        where = f"{source}, turn {number}"
        turn, found = _turn(entry, where, pictures)
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            _fail(where, f"turns are out of order: expected one of the {expected}, found one of the {turn.role}")
        turns.append(turn)
        images += found
    if turns[-1].role != "assistant":
        _fail(source, "the last turn is the user's; a conversation must end with the assistant's answer")
    return Record(tuple(turns), tuple(images), source)


def _turn(entry: Any, where: str, pictures: PicturePaths) -> tuple[Turn, list[Path]]:
    name = _text(entry, "from", where)
    if name not in ROLES:
        _fail(where, f"unknown role {name!r} in 'from'; known are {', '.join(ROLES)}")
    role = ROLES[name]
    value = _text(entry, "value", where)
    if not value.strip():
        _fail(where, "the answer is empty" if role == "assistant" else "the user's text is empty")
    text, paths = _take_pictures(value, where)
    if paths and role == "assistant":
        _fail(where, "an answer holds <img>; pictures belong into the user's turns")
    return Turn(role, text), [pictures.find(path, where) for path in paths]


def _take_pictures(value: str, where: str) -> tuple[str, list[str]]:
    """The text with every `<img>path</img>` as `<img></img>`, and the paths."""
    pieces: list[str] = []
    paths: list[str] = []
    end = 0
    opened: int | None = None
    for tag in _TAG.finditer(value):
        if tag.group() == "<img>":
            if opened is not None:
                _fail(where, f"<img> at character {opened} is not closed before the next <img>")
            opened = tag.start()
            pieces.append(value[end : tag.end()])
        else:
            if opened is None:
                _fail(where, f"</img> at character {tag.start()} closes no <img>")
            opened = None
            paths.append(value[end : tag.start()])
            pieces.append(tag.group())
        end = tag.end()
    if opened is not None:
        _fail(where, f"<img> at character {opened} is not closed")
    return "".join(pieces) + value[end:], paths


def _question(row: int, fields: Any, source: str, pictures: PicturePaths) -> Question:
    image = _text(fields, "image", source)
    text = _text(fields, "question", source)
    if not text.strip():
        _fail(source, "the question is empty")
    if _TAG.search(text):
        _fail(source, "the question holds <img> or </img>; the picture belongs into 'image'")
    question_id = _field(fields, "question_id", (int, str), source)
    answer = _field(fields, "answer", (str, list), source)
    answers = [answer] if isinstance(answer, str) else answer
    for reference in answers:
        if not isinstance(reference, str):
            _fail(source, f"'answer' must be a text or a list of texts, found {_kind(reference)} in the list")
        _encodable(reference, "answer", source)
    # A blank among several references is kept: scores that leave one reference out depend on how many there are.
    if not any(reference.strip() for reference in answers):
        _fail(source, "the answer is empty")
    return Question(row, question_id, pictures.find(image, source), text, tuple(answers), source)


def _field(row: Any, key: str, types: tuple[type, ...], where: str) -> Any:
    """The value of a key, which must be there and of one of the types."""
    if not isinstance(row, Mapping):
        _fail(where, f"expected an object with a key {key!r}, found {_kind(row)}")
    if key not in row:
        _fail(where, f"the key {key!r} is missing; there are {', '.join(map(repr, row)) or 'none'}")
    value = row[key]
    if not isinstance(value, types) or isinstance(value, bool):
        _fail(where, f"{key!r} must be {' or '.join(_NAMES[kind] for kind in types)}, found {_kind(value)}")
    return value


def _text(row: Any, key: str, where: str) -> str:
    value = _field(row, key, (str,), where)
    _encodable(value, key, where)
    return value


def _encodable(text: str, key: str, where: str) -> None:
    """JSON can spell half of a surrogate pair, which no tokenizer can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        _fail(where, f"{key!r} holds half of a surrogate pair at character {error.start}, which is no text")


_NAMES = {
    str: "a text",
    int: "a whole number",
    list: "a list",
    dict: "an object",
    float: "a number",
    bool: "true or false",
}


def _kind(value: Any) -> str:
    return "null" if value is None else _NAMES[type(value)]


def _fail(where: str, sentence: str) -> NoReturn:
    raise ValueError(f"{where}: {sentence}")
