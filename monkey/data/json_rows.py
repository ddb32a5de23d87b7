"""Where the rows of a JSON list or a JSONL file begin and end, and what each says; faults are named by line and column.

One pass finds all byte ranges with a block and a row in memory, however large the file is. A list is walked by the
standard library's JSON scanner over latin-1 text, in which a character is a byte: brackets, quotes and commas are ASCII
and mean the same there, so the positions found are byte offsets. What a row says is decoded as UTF-8 when it is read.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

BLOCK = 4 * 2**20
"""Bytes that are read at a time."""

LONGEST_ROW = 256 * 2**20
"""Bytes; more than this without an end means that a bracket, a quote or a line break is missing."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # which Windows editors put in front, and which is no part of the JSON
_SPACE = re.compile(r"[ \t\n\r]*")
_LOOK_AHEAD = 16
"""Longer than anything that looks complete, or wrong, only because a block ends in it: `12.`, `-Infin`."""


class MalformedRows(ValueError):
    """A file or a row that is no JSON of the expected kind; the message names file and line."""


class RowRanges(NamedTuple):
    """Byte offsets of each row's first byte and of the byte after its last, int64 [rows]."""

    starts: np.ndarray
    stops: np.ndarray


def scan_lines(file: BinaryIO, path: Path) -> RowRanges:
    """The lines of a JSONL file. White space at the end of the file is no row; blank lines elsewhere are, and bad ones.

    Raises:
        MalformedRows: the file is empty, or has a line that is too long.
    """
    first = base = _skip_mark(file)
    content_end = first
    breaks = []
    while block := file.read(BLOCK):
        # Split at newlines only: other separators of lines are legal inside a JSON text.
        breaks.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + base)
        stripped = block.rstrip()
        if stripped:
            content_end = base + len(stripped)
        base += len(block)
    if content_end == first:
        raise MalformedRows(f"{path}: is empty")
    inner = np.concatenate(breaks)
    inner = inner[inner < content_end]
    ranges = RowRanges(np.concatenate([[first], inner + 1]), np.concatenate([inner, [content_end]]))
    lengths = ranges.stops - ranges.starts
    if lengths.max() > LONGEST_ROW:
        raise _too_long(f"{path}:{int(lengths.argmax()) + 1}")
    return ranges


def scan_list(file: BinaryIO, path: Path) -> RowRanges:
    """The members of a JSON list.

    Raises:
        MalformedRows: the file is empty, is no list, has no member, or is no JSON, with line and column.
    """
    text = _Window(file, path)
    offset = text.next_mark(text.base)
    if not text.at(offset):
        raise MalformedRows(f"{path}: is empty")
    if ord(text.at(offset)) >= 0x80:
        line, _ = _place(path, offset)
        raise _not_utf8(f"{path}:{line}", ord(text.at(offset)))
    if text.at(offset) != "[":
        raise MalformedRows(f"{path}: must hold a list of records; for one record a line use the ending .jsonl")
    offset = text.next_mark(offset + 1)
    if text.at(offset) == "]":
        raise MalformedRows(f"{path}: holds no records")
    starts, stops = array("q"), array("q")
    while True:
        starts.append(offset)
        offset = text.end_of_value(offset)
        stops.append(offset)
        offset = text.next_mark(offset)
        if text.at(offset) != ",":
            break
        offset = text.next_mark(offset + 1)
    if text.at(offset) != "]":
        raise _malformed(path, offset, "Expecting ',' delimiter")
    offset = text.next_mark(offset + 1)
    if text.at(offset):
        raise _malformed(path, offset, "Extra data")
    return RowRanges(np.array(starts, np.int64), np.array(stops, np.int64))


class _Window:
    """A stretch of a file as latin-1 text that moves forward. Offsets are those of the file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._decode = json.JSONDecoder().raw_decode
        self._ended = False
        self.base = _skip_mark(file)
        self.text = ""

    def at(self, offset: int) -> str:
        """The character at an offset, or nothing at the end of the file."""
        return self.text[offset - self.base : offset - self.base + 1]

    def next_mark(self, offset: int) -> int:
        """Offset of the first character from `offset` on that is no white space."""
        while True:
            end = _SPACE.match(self.text, offset - self.base).end()
            if end < len(self.text) or self._ended:
                return self.base + end
            self._read_on(self.base + end)
            offset = self.base

    def end_of_value(self, start: int) -> int:
        """Offset after the JSON value that begins at `start`."""
        while True:
            try:
                _, end = self._decode(self.text, start - self.base)
                if end + _LOOK_AHEAD <= len(self.text) or self._ended:
                    return self.base + end
            except json.JSONDecodeError as error:
                # Unless it is certain that the fault is not only the end of the block, more is read.
                cut = error.pos + _LOOK_AHEAD > len(self.text) or error.msg.startswith("Unterminated string")
                if self._ended or not cut:
                    raise _malformed(self._path, self.base + error.pos, error.msg) from None
            except (ValueError, RecursionError) as error:  # thousands of digits, brackets nested thousands deep
                raise _malformed(self._path, start, str(error)) from None
            if self.base + len(self.text) - start > LONGEST_ROW:
                line, _ = _place(self._path, start)
                raise _too_long(f"{self._path}:{line}")
            self._read_on(start)

    def _read_on(self, offset: int) -> None:
        """Forget what lies before `offset`, and read what follows."""
        kept = self.text[offset - self.base :]
        block = self._file.read(max(BLOCK, len(kept)))  # doubling, so that a long row is not parsed once a block
        self._ended = not block
        self.text, self.base = kept + block.decode("latin-1"), offset


def parse_row(content: bytes, path: Path, first_line: Callable[[], int]) -> Any:
    """What a row says. `first_line` gives the line that it begins in, and is called for a bad one only.

    Raises:
        MalformedRows: no UTF-8 or no JSON, with file and line.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = first_line() + content.count(b"\n", 0, error.start)
        raise _not_utf8(f"{path}:{line}", content[error.start]) from None
    except json.JSONDecodeError as error:
        line = first_line() + error.lineno - 1
        raise MalformedRows(f"{path}:{line}: malformed JSON at column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise MalformedRows(f"{path}:{first_line()}: malformed JSON: {error}") from None


def line_of(path: Path, offset: int) -> int:
    """Number of the line, counted from 1, that the byte at `offset` of a file lies in."""
    return _place(path, offset)[0]


def _place(path: Path, offset: int) -> tuple[int, int]:
    """Line and column, in characters of UTF-8, both from 1, of a byte. Reads the file up to there, block by block."""
    line = column = 1
    with open(path, "rb") as file:
        left = offset - _skip_mark(file)
        while left > 0 and (block := file.read(min(BLOCK, left))):
            left -= len(block)
            line += block.count(b"\n")
            column = 1 if b"\n" in block else column
            tail = np.frombuffer(block[block.rfind(b"\n") + 1 :], np.uint8)
            column += int(((tail & 0xC0) != 0x80).sum())  # bytes that begin a character
    return line, column


def _skip_mark(file: BinaryIO) -> int:
    """Go to the first byte after a byte order mark, if there is one; returns its offset."""
    return file.seek(len(_BYTE_ORDER_MARK) if file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK else 0)


def _malformed(path: Path, offset: int, reason: str) -> MalformedRows:
    line, column = _place(path, offset)
    return MalformedRows(f"{path}:{line}: malformed JSON at column {column}: {reason}")


def _not_utf8(where: str, byte: int) -> MalformedRows:
    return MalformedRows(f"{where}: not UTF-8 text (byte {byte:#04x}); save the file as UTF-8")


def _too_long(where: str) -> MalformedRows:
    return MalformedRows(
        f"{where}: the row that begins here is longer than {LONGEST_ROW // 2**20} MiB; a bracket, a quote or a line "
        "break is missing"
    )
