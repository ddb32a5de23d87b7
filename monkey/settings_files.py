"""Settings in JSON, YAML or TOML, of people and of checkpoints: read within limits, refused in one sentence.

A file of a few hundred bytes can nest so deeply, or name itself so often, that whoever reads it runs out of stack,
memory or time. What is read here is an object of bounded size and depth, whatever the file holds.
"""

from __future__ import annotations

import itertools
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_BYTES = {"JSON": 64 * 2**20, "TOML": 2**20, "YAML": 2**20}
"""Of a file. The index of a large checkpoint is a JSON of some megabytes; the others are written by people."""

MAX_DEPTH = 64
"""Objects and lists inside each other."""

MAX_VALUES = 1_000_000
"""Values of one depth, with those that YAML's aliases repeat."""


def read_settings_file(path: str | os.PathLike, where: str | None = None) -> dict[str, Any]:
    """The object in a file; TOML and JSON are told by their endings, anything else is YAML.

    Args:
        where: what messages call the file; its path when None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, too deep, malformed or not an object of keys with values, with the line where there is
            one.
    """
    where = where or os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{where}: no such file")
    form = {".json": "JSON", ".toml": "TOML"}.get(Path(path).suffix, "YAML")
    if (size := os.path.getsize(path)) > MAX_BYTES[form]:
        raise ValueError(f"{where} has {size:,} bytes, more than the {MAX_BYTES[form]:,} of a {form} file of settings")
    return parse_settings(Path(path).read_bytes(), form, where)


def parse_settings(raw: bytes, form: str, where: str) -> dict[str, Any]:
    """The object in the bytes of a JSON, YAML or TOML; errors as of `read_settings_file`."""
    content = _parsed(raw, form, where)
    if not isinstance(content, dict):
        held = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{where} holds {held}, and an object of keys with values is needed")
    _refuse_endless(content, where)
    return content


def _parsed(raw: bytes, form: str, where: str) -> Any:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{where}:{line}: not UTF-8 text (byte {raw[error.start]:#04x})") from None
    if form == "YAML":
        return _yaml(text, where)
    try:
        return tomllib.loads(text) if form == "TOML" else json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}:{error.lineno}: malformed JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:  # TOML's names its line; a number of thousands of digits
        raise ValueError(f"{where}: malformed {form}: {error}") from None


def _yaml(text: str, where: str) -> Any:
    import yaml  # here, for most programs read JSON only

    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{where}{line}: malformed YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: malformed YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise _too_deep(where) from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # `!!bool x`, 2020-13-45, too many digits
        raise ValueError(f"{where}: malformed YAML: a value is not what it looks like ({error})") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number that JSON has")


def _refuse_endless(content: Any, where: str) -> None:
    level = [content]
    for _ in range(MAX_DEPTH):
        level = list(itertools.islice(_members(level), MAX_VALUES + 1))
        if len(level) > MAX_VALUES:
            raise ValueError(f"{where} holds more than {MAX_VALUES:,} values, repeated ones counted as often")
        if not level:
            return
    raise _too_deep(where)


def _members(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, (list, set, tuple)):
            yield from value


def _too_deep(where: str) -> ValueError:
    return ValueError(f"{where} nests objects and lists in each other more than {MAX_DEPTH} deep")
