"""Random access to the rows of a JSON list or a JSONL file, without its text in memory.

    rows = IndexedRows("train_monkey.json")
    source, row = rows[123_456]

Opening scans the file once for the rows' byte ranges, 16 bytes of memory a row; a row is read and parsed when it is
asked for. Loading processes may get the reader by fork or by pickling: each opens the file when it first reads.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monkey.data.json_rows import MalformedRows, line_of, parse_row, scan_lines, scan_list

_SCANS = {".jsonl": scan_lines, ".json": scan_list}
_LISTS = (".json",)


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (source, row) of a whole file, in its order; see `IndexedRows`."""
    yield from IndexedRows(path)


class ChangedFile(ValueError):
    """The file is another one than it was when it was opened, so none of its rows can be read any more."""


class IndexedRows(Sequence[tuple[str, Any]]):
    """`rows[index]` is (source, row); a source is `file:line` for `.jsonl` and `file[index]` for `.json`.

    Raises:
        FileNotFoundError: no such file.
        MalformedRows: from here, a list that is no JSON or a file without rows; from `rows[index]`, a row that cannot
            be read. Both are ValueErrors of one sentence that names the file and the line.
        ValueError: a folder or another ending.
        ChangedFile: from `rows[index]`, a file that went or changed its size since it was opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix not in _SCANS:
            raise ValueError(f"{path}: expected a file that ends in .json (a list) or .jsonl (a row a line)")
        if self.path.is_dir():
            raise ValueError(f"{path}: is a folder; give a .json or .jsonl file")
        if not self.path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        with open(self.path, "rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            self._starts, self._stops = _SCANS[self.path.suffix](file, self.path)
        self._file = None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[str, Any]:
        index = self._checked(index)
        start, stop = int(self._starts[index]), int(self._stops[index])
        content = self._read(start, stop - start)
        source = self.source(index)
        if self.path.suffix in _LISTS:
            return source, parse_row(content, self.path, lambda: line_of(self.path, start))
        if not content.strip():
            raise MalformedRows(f"{source}: the line is blank; remove it")
        return source, parse_row(content, self.path, lambda: index + 1)

    def source(self, index: int) -> str:
        """What messages call the row, without reading it."""
        index = self._checked(index)
        return f"{self.path}[{index}]" if self.path.suffix in _LISTS else f"{self.path}:{index + 1}"

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: no row {index}; there are {len(self):,}")
        return index % len(self)

    def _read(self, start: int, count: int) -> bytes:
        """Bytes of the file. The position is an argument, so that forked processes do not move each other's."""
        if self._file is None:
            try:
                self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (kept open; closed with the reader)
            except FileNotFoundError:
                raise ChangedFile(f"{self.path}: is not there any more; put it back and start again") from None
        size = os.fstat(self._file.fileno()).st_size
        content = _read_at(self._file.fileno(), count, start)
        if size != self._size or len(content) != count:
            raise ChangedFile(
                f"{self.path}: has {size:,} bytes now and had {self._size:,} when it was opened; start again and leave "
                "the file alone meanwhile"
            )
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def _seek_and_read(descriptor: int, count: int, start: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, count)


# Windows has no pread, and no fork either that would share the position.
_read_at = getattr(os, "pread", _seek_and_read)
