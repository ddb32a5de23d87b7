"""Fields of a row of data: that they are there, and of the kind they must be; what is not is one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

NOT_OF_THE_SCHEMA = "not of the schema"
OUT_OF_ORDER = "turns out of order"
EMPTY_ANSWER = "empty answer"


class RowFault(ValueError):
    """A row that is not of the schema. `kind` is one of the constants above."""

    def __init__(self, sentence: str, kind: str = NOT_OF_THE_SCHEMA) -> None:
        super().__init__(sentence)
        self.kind = kind


def field_of(row: Any, key: str, types: tuple[type, ...], where: str) -> Any:
    """The value of a key, which must be there and of one of the types."""
    if not isinstance(row, Mapping):
        fail(where, f"expected an object with a key {key!r}, found {kind_of(row)}")
    if key not in row:
        fail(where, f"the key {key!r} is missing; there are {', '.join(map(repr, row)) or 'none'}")
    value = row[key]
    if not isinstance(value, types) or isinstance(value, bool):
        fail(where, f"{key!r} must be {' or '.join(_NAMES[kind] for kind in types)}, found {kind_of(value)}")
    return value


def text_of(row: Any, key: str, where: str) -> str:
    value = field_of(row, key, (str,), where)
    require_encodable(value, key, where)
    return value


def require_encodable(text: str, key: str, where: str) -> None:
    """JSON can spell half of a surrogate pair, which no tokenizer can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        fail(where, f"{key!r} holds half of a surrogate pair at character {error.start}, which is no text")


_NAMES = {
    str: "a text",
    int: "a whole number",
    list: "a list",
    dict: "an object",
    float: "a number",
    bool: "true or false",
}


def kind_of(value: Any) -> str:
    return "null" if value is None else _NAMES[type(value)]


def fail(where: str, sentence: str, kind: str = NOT_OF_THE_SCHEMA) -> NoReturn:
    raise RowFault(f"{where}: {sentence}", kind)
