"""One row of a data file: the bytes where it lies, the fields that it must have, and the files that it may name.

    rows = IndexedRows("train_monkey.json")
    source, row = rows[123_456]

Opening a JSON list or a JSONL file scans it once for the byte ranges of its rows, 16 bytes of memory per row; a row is
read and parsed when it is asked for, so that a file of any size costs no process its memory. Against the text loader of
`datasets`, with 200 MB: opened in 0.15 s instead of 2.4, 31 MB of memory instead of 167, and no copy on the disk.

Every fault is one sentence that names the file and the line (JSONL) or the row's index (JSON list).
"""

from __future__ import annotations

import json
import operator
import os
import re
import unicodedata
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn

import numpy as np

from monkey.images import StoredImage
from monkey.provenance import file_digest

LONGEST_ROW = 256 * 2**20
"""Bytes; more than this without an end means that a bracket, a quote or a line break is missing."""

LINES_BLOCK = 4 * 2**20
"""Bytes of a JSONL file that are searched for line breaks at a time."""

VALUE_WINDOW = 4 * 2**10
"""Bytes of a JSON list in which the end of a row is looked for first; a longer row is read again in larger windows."""

_LOOK_AHEAD = 16
"""Longer than anything that looks complete, or wrong, only because a window ends in it: `12.`, `-Infin`."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # which Windows editors put in front, and which is no part of the JSON
_SPACE = b" \t\n\r"

_Read = Callable[[int, int], bytes]
"""Gives up to `size` bytes of a file from `start` on."""


class MalformedRows(ValueError):
    """A file or a row that is no JSON of the expected kind; the message names file and line."""


class ChangedFile(ValueError):
    """The file is another one than it was when it was opened, so none of its rows can be read any more."""


class IndexedRows(Sequence[tuple[str, Any]]):
    """`rows[index]` is (source, row); a source is `file:line` for `.jsonl` and `file[index]` for `.json`.

    May be forked and pickled: a process opens the file when it first reads.

    Raises:
        FileNotFoundError: no such file.
        MalformedRows: from here, a list that is no JSON or a file without rows; from `rows[index]`, a row that cannot
            be read. Both are ValueErrors of one sentence that names the file and the line.
        ValueError: a folder or another ending.
        ChangedFile: from `rows[index]`, a file that went or changed its size since it was opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".json", ".jsonl"):
            raise ValueError(f"{path}: expected a file that ends in .json (a list) or .jsonl (a row a line)")
        if self.path.is_dir():
            raise ValueError(f"{path}: is a folder; give a .json or .jsonl file")
        if not self.path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        self._is_list = self.path.suffix == ".json"
        self._file = None
        with open(self.path, "rb", buffering=0) as file:
            self._size = os.fstat(file.fileno()).st_size
            scan = _scan_list if self._is_list else _scan_lines
            self._starts, self._stops = scan(lambda start, size: _read_at(file.fileno(), size, start), self.path)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[str, Any]:
        index = self._checked(index)
        source, start, stop = self.source(index), int(self._starts[index]), int(self._stops[index])
        content = self._read(start, stop - start)
        if not content.strip():
            raise MalformedRows(f"{source}: the line is blank; remove it")
        return source, _parse(content, self.path, start)

    def fingerprint(self) -> str:
        """Return a digest of the file's bytes."""
        return file_digest(self.path)

    def source(self, index: int) -> str:
        """What messages call the row, without reading it."""
        index = self._checked(index)
        return f"{self.path}[{index}]" if self._is_list else f"{self.path}:{index + 1}"

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

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self._file.close()


def _seek_and_read(descriptor: int, count: int, start: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, count)


# Windows has no pread, and no fork either that would share the position.
_read_at = getattr(os, "pread", _seek_and_read)


# Where rows begin and end


def _scan_lines(read: _Read, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return where the lines begin and end. White space at the end is no row; blank lines elsewhere are bad ones."""
    first = base = _after_mark(read)
    content_end, breaks = first, []
    while block := read(base, LINES_BLOCK):
        # Split at newlines only: other separators of lines are legal inside a JSON text.
        breaks.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + base)
        if stripped := block.rstrip():
            content_end = base + len(stripped)
        base += len(block)
    if content_end == first:
        raise MalformedRows(f"{path}: is empty")
    inner = np.concatenate(breaks)
    inner = inner[inner < content_end]
    starts, stops = np.concatenate([[first], inner + 1]), np.concatenate([inner, [content_end]])
    if (stops - starts).max() > LONGEST_ROW:
        raise _too_long(f"{path}:{int((stops - starts).argmax()) + 1}")
    return starts, stops


def _scan_list(read: _Read, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return where the members of a JSON list begin and end; MalformedRows with line and column where it is no JSON."""
    offset, mark = _skip_space(read, _after_mark(read))
    if not mark:
        raise MalformedRows(f"{path}: is empty")
    if mark >= b"\x80":
        raise _not_utf8(f"{path}:{_place(path, offset)[0]}", mark[0])
    if mark != b"[":
        raise MalformedRows(f"{path}: must hold a list of records; for one record a line use the ending .jsonl")
    offset, mark = _skip_space(read, offset + 1)
    if mark == b"]":
        raise MalformedRows(f"{path}: holds no records")
    starts, stops = array("q"), array("q")
    while True:
        starts.append(offset)
        stops.append(_end_of_value(read, offset, path))
        offset, mark = _skip_space(read, stops[-1])
        if mark != b",":
            break
        offset, _ = _skip_space(read, offset + 1)
    if mark != b"]":
        raise _malformed(path, offset, "Expecting ',' delimiter")
    offset, mark = _skip_space(read, offset + 1)
    if mark:
        raise _malformed(path, offset, "Extra data")
    return np.array(starts, np.int64), np.array(stops, np.int64)


def _skip_space(read: _Read, offset: int) -> tuple[int, bytes]:
    """Return the offset of the first byte from `offset` on that is no white space, and the byte; none at the end."""
    size = _LOOK_AHEAD
    while block := read(offset, size):
        if stripped := block.lstrip(_SPACE):
            return offset + len(block) - len(stripped), stripped[:1]
        offset, size = offset + len(block), LINES_BLOCK
    return offset, b""


_decode = json.JSONDecoder().raw_decode


def _end_of_value(read: _Read, start: int, path: Path) -> int:
    """Return the offset after the JSON value that begins at `start`.

    JSON's scanner reads latin-1 text, in which a character is a byte: brackets, quotes and commas are ASCII and mean
    the same there, so the positions found are byte offsets. What a row says is decoded as UTF-8 when it is read.
    """
    size = VALUE_WINDOW
    while True:
        text = read(start, size).decode("latin-1")
        is_rest = len(text) < size
        try:
            _, end = _decode(text)
            if is_rest or end + _LOOK_AHEAD <= len(text):
                return start + end
        except json.JSONDecodeError as error:
            # Unless it is certain that the fault is not only the end of the window, more is read.
            if is_rest or (error.pos + _LOOK_AHEAD <= len(text) and not error.msg.startswith("Unterminated string")):
                raise _malformed(path, start + error.pos, error.msg) from None
        except (ValueError, RecursionError) as error:  # thousands of digits, brackets nested thousands deep
            raise _malformed(path, start, str(error)) from None
        if size > LONGEST_ROW:
            raise _too_long(f"{path}:{_place(path, start)[0]}")
        size *= 8


def parse_row(content: bytes, source: str) -> Any:
    """Return the JSON value in the bytes of a member of an archive; MalformedRows where it is none."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _not_utf8(source, content[error.start]) from None
    except (ValueError, RecursionError) as error:
        raise MalformedRows(f"{source}: malformed JSON: {error}") from None


def _parse(content: bytes, path: Path, start: int) -> Any:
    """Return what a row says that begins at the byte `start` of its file."""
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{path}:{_place(path, start + error.start)[0]}", content[error.start]) from None
    except json.JSONDecodeError as error:
        line = _place(path, start)[0] + error.lineno - 1
        raise MalformedRows(f"{path}:{line}: malformed JSON at column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise MalformedRows(f"{path}:{_place(path, start)[0]}: malformed JSON: {error}") from None


def _after_mark(read: _Read) -> int:
    return len(_BYTE_ORDER_MARK) if read(0, len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK else 0


def _place(path: Path, offset: int) -> tuple[int, int]:
    """Line and column, in characters of UTF-8, both from 1, of a byte. Reads the file up to there, block by block."""
    line = column = 1
    with open(path, "rb") as file:
        left = offset - file.seek(_after_mark(lambda _, size: file.read(size)))
        while left > 0 and (block := file.read(min(LINES_BLOCK, left))):
            left -= len(block)
            line += block.count(b"\n")
            column = 1 if b"\n" in block else column
            rest = np.frombuffer(block, np.uint8)[block.rfind(b"\n") + 1 :]
            column += int(np.count_nonzero((rest & 0xC0) != 0x80))  # bytes that begin a character
    return line, column


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


# Fields of a row

NOT_OF_THE_SCHEMA = "not of the schema"
OUT_OF_ORDER = "turns out of order"
EMPTY_ANSWER = "empty answer"

_KINDS = {
    str: "a text",
    int: "a whole number",
    list: "a list",
    dict: "an object",
    float: "a number",
    bool: "true or false",
}


class RowFault(ValueError):
    """A row that is not of the schema. `kind` is one of the constants above."""

    def __init__(self, sentence: str, kind: str = NOT_OF_THE_SCHEMA) -> None:
        super().__init__(sentence)
        self.kind = kind


def fail(where: str, sentence: str, kind: str = NOT_OF_THE_SCHEMA) -> NoReturn:
    raise RowFault(f"{where}: {sentence}", kind)


def kind_of(value: Any) -> str:
    """Return what messages call a JSON value."""
    return "null" if value is None else _KINDS.get(type(value), f"a value of the type {type(value).__name__}")


def field_of(row: Any, key: str, types: tuple[type, ...], where: str) -> Any:
    """Return the value of a key, which must be there and of one of the types."""
    if not isinstance(row, Mapping):
        fail(where, f"expected an object with a key {key!r}, found {kind_of(row)}")
    if key not in row:
        fail(where, f"the key {key!r} is missing; there are {', '.join(map(repr, row)) or 'none'}")
    value = row[key]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        fail(where, f"{key!r} must be {' or '.join(_KINDS[kind] for kind in types)}, found {kind_of(value)}")
    return value


def text_of(row: Any, key: str, where: str) -> str:
    """Return the text under a key."""
    value = field_of(row, key, (str,), where)
    require_encodable(value, key, where)
    return value


def require_encodable(text: str, key: str, where: str) -> None:
    """Fail for half of a surrogate pair, which JSON can spell and no tokenizer can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        fail(where, f"{key!r} holds half of a surrogate pair at character {error.start}, which is no text")


# Files that a row names

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""`http:`, `file:`, `data:`; a single letter before the colon is a Windows drive."""

_LONGEST_PATH = 4096
"""Characters; Linux takes no longer path, and the base64 of hardly any image is shorter."""

_PATHS_KEPT = 20_000
"""Images that are remembered as found; a large set names many."""

NOT_IN_PATHS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What a record cannot name a file by: control characters, ends of lines, and bytes that are not UTF-8."""


class MissingImage(FileNotFoundError):
    """A row names an image that is not there."""


class ImagePaths:
    """Finds the images of one file of records.

    With `image_root` that folder is the only root, and absolute paths inside it are allowed. Without it a relative
    path is looked up in the folder of the records and then in the current one. No path may lead out of its root,
    neither by `..` nor through a symbolic link. Backslashes are taken for slashes where no file is named with them.
    `root_name` is what messages call `image_root`.
    """

    def __init__(self, records: Path, image_root: str | Path | None, root_name: str = "image_root") -> None:
        if image_root is not None and not Path(image_root).is_dir():
            raise FileNotFoundError(f"{image_root}: the folder of the images does not exist")
        self._root_name = root_name
        self._only_root = image_root is not None
        folders = [Path(image_root)] if image_root is not None else [records.parent, Path()]
        self._roots = [(folder, os.path.realpath(folder)) for folder in folders]
        self._found: dict[str, Path] = {}  # many records ask about one image
        self._listed: dict[str, dict[str, str]] = {}

    def beside(self, stored: Mapping[str, StoredImage]) -> ImagePaths | _Stored:
        """Return what finds a row's own images by their names, and all others here."""
        return _Stored(stored, self) if stored else self

    @property
    def roots(self) -> list[str]:
        """The folders that paths start from, without links."""
        return [real for _, real in self._roots]

    def find(self, path: str, where: str) -> Path:
        """Return the file that `path` names. `where` begins the message of a ValueError or FileNotFoundError."""
        if path not in self._found:
            if len(self._found) == _PATHS_KEPT:
                self._found.clear()
                self._listed.clear()
            self._refuse_impossible(path, where)
            self._found[path] = self._look_up(path, where)
        return self._found[path]

    def _refuse_impossible(self, path: str, where: str) -> None:
        if not path.strip():
            raise ValueError(f"{where}: the path of an image is empty")
        if path.startswith("data:") or len(path) > _LONGEST_PATH:
            raise ValueError(
                f"{where}: {path[:40]}… holds the image itself, as base64; write it to a file and name the file"
            )
        if NOT_IN_PATHS.search(path):
            raise ValueError(f"{where}: {path!r} holds characters that no path in a record can have; rename the file")
        if _SCHEME.match(path):
            raise ValueError(f"{where}: {path[:80]} is a URL; download the image and name the file")
        is_of_windows = os.name != "nt" and PureWindowsPath(path).is_absolute()
        if is_of_windows or (os.path.isabs(path) and not self._only_root):
            raise ValueError(
                f"{where}: {path} is absolute; make it relative, or give the images' folder as {self._root_name}"
            )

    def _look_up(self, path: str, where: str) -> Path:
        for folder, real_folder in self._roots:
            for spelling in dict.fromkeys((path, path.replace("\\", "/"))):
                real = os.path.realpath(os.path.join(real_folder, spelling))
                if not Path(real).is_relative_to(real_folder):
                    raise ValueError(f"{where}: {path} {self._describe_escape(real_folder, spelling, real)}")
                if os.path.isfile(real):
                    return folder / spelling
        tried = " and ".join(real_folder for _, real_folder in self._roots)
        raise MissingImage(f"{where}: no image {path} in {tried}{self._describe_likeness(path)}")

    def _describe_escape(self, root: str, path: str, real: str) -> str:
        if Path(os.path.normpath(os.path.join(root, path))).is_relative_to(root):
            return (
                f"leads out of {root} through a symbolic link, to {real}; copy the images into the folder, or give "
                f"the one that really holds them as {self._root_name} and write paths from there"
            )
        return f"leads out of {root}; give a folder that holds it as {self._root_name}"

    def _describe_likeness(self, path: str) -> str:
        """End a sentence about an image that is not there: what is, where only the spelling differs."""
        for _, root in self._roots:
            if os.path.exists(os.path.join(root, path)):
                return "; what has this name is a folder, a pipe or a device"
            found: list[str] = []
            for part in Path(path.replace("\\", "/")).parts:
                names = self._names(os.path.join(root, *found))
                found.append(names.get(part) or names.get(_fold(part), ""))
            if all(found):
                return f"; there is {'/'.join(found)} (letter case and accents count)"
        return ""

    def _names(self, folder: str) -> dict[str, str]:
        """List the names in a folder, each by itself and folded."""
        if folder not in self._listed:
            try:
                names = sorted(os.listdir(folder))
            except OSError:  # no folder, or none that may be looked into: then there is nothing to tell of
                names = []
            self._listed[folder] = {_fold(name): name for name in names} | {name: name for name in names}
        return self._listed[folder]


class StoredRow(dict):
    """A row that has its images with it: names stand where they stood, and `images` has them by name."""

    def __init__(self, fields: Mapping[str, Any], images: Mapping[str, StoredImage]) -> None:
        super().__init__(fields)
        self.images = images


class _Stored:
    """Finds the images of one row that lie in the row itself, and those of files."""

    def __init__(self, stored: Mapping[str, StoredImage], files: ImagePaths) -> None:
        self._stored = stored
        self._files = files

    def find(self, path: str, where: str) -> Path | StoredImage:
        """As of `ImagePaths`."""
        return self._stored[path] if path in self._stored else self._files.find(path, where)


def _fold(name: str) -> str:
    """Take off letter case, and compose accents, which macOS writes apart."""
    return unicodedata.normalize("NFC", name).casefold()
