"""Rows of a JSON list or a JSONL file, each with the place where it stands, faults named by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (source, row): `file:line` for `.jsonl`, `file[index]` for `.json`. Blank lines at the end are allowed."""
    readers = {".jsonl": _lines, ".json": _members}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a file that ends in .json (a list) or .jsonl (a row a line)")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a .json or .jsonl file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    # Windows editors put a byte order mark in front, which is no part of the JSON.
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise ValueError(f"{path}: is empty")
    yield from readers[path.suffix](path, content)


def _lines(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    # Split at newlines only: str.splitlines would also split at separators that are legal inside a JSON text.
    for number, line in enumerate(content.rstrip().split(b"\n"), start=1):
        source = f"{path}:{number}"
        if not line.strip():
            raise ValueError(f"{source}: the line is blank; remove it")
        yield source, _parse(line, path, number)


def _members(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    rows = _parse(content, path, 1)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must hold a list of records; for one record a line use the ending .jsonl")
    if not rows:
        raise ValueError(f"{path}: holds no records")
    for index, row in enumerate(rows):
        yield f"{path}[{index}]", row


def _parse(content: bytes, path: Path, first_line: int) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}:{line}: not UTF-8 text (byte {content[error.start]:#04x}); save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}:{line}: malformed JSON at column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested thousands deep
        raise ValueError(f"{path}:{first_line}: malformed JSON: {error}") from None
