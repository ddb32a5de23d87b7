"""The folder that the user unpacked an official release into, and rows read from it.

Every path is looked up inside that folder: one that leads out of it, by `..` or through a symbolic link, is refused.
Releases unpack differently, so files and pictures are asked for by several names, and the first that is there is taken.
Faults are one sentence that names the file and the line, index or key.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from monkey.data.rows import ImagePaths, IndexedRows

Change = Callable[[Path], bytes]
"""From a picture's file to the bytes that are written in its place."""


@dataclass(frozen=True)
class Picture:
    """A picture of a row: where it goes, relative to the data root, and its file, None where the release has none.

    `looked_for` is the first name it was looked up by. `change` makes other bytes of it, and `changed` says how.
    """

    target: str
    source: Path | None
    looked_for: str
    change: Change | None = None
    changed: str = ""


@dataclass(frozen=True)
class PreparedRow:
    """One question. `where` is its place in the release; `more` are keys beside those that every row has."""

    picture: Picture
    question: str
    answer: str | list[str]
    question_id: int | str
    where: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """What a preparer made of a release.

    `annotations` is the VQA annotation file of the task: a file of the release that is taken as it is, or its content.
    `statements` are sentences on what was chosen, made or left as it is, for the user and the manifest.
    """

    rows: Sequence[PreparedRow]
    statements: Sequence[str] = ()
    annotations: Path | Mapping[str, Any] | None = None


class Located(NamedTuple):
    """A value of a release and its place there, as messages call it."""

    where: str
    value: Any


class Release:
    """The files of one release. `sources` has those that were read, in their order, pictures aside."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"--src {folder}: no such folder; it is the one that holds the unpacked release")
        self.sources: dict[Path, None] = {}
        self._paths = ImagePaths(self.folder / "release", self.folder, "--src")

    def find(self, *names: str, where: str = "the release") -> Path | None:
        """The first of the names that is a file inside the folder."""
        for name in names:
            try:
                return self._paths.find(name, where)
            except FileNotFoundError:
                continue
        return None

    def file(self, *names: str) -> Path:
        """The first of the names that is a file; FileNotFoundError naming them all where none is."""
        path = self.find(*names)
        if path is None:
            raise FileNotFoundError(f"{self.folder} holds no {' and no '.join(names)}; --src is the unpacked release")
        return path

    def content(self, path: Path, *key: str) -> Any:
        """The JSON value of a file, or that under a key of its object."""
        self._note(path)
        try:
            value = json.loads(path.read_text(encoding="utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        for name in key:
            value = take(value, name, (list, dict), str(path))
        return value

    def rows(self, path: Path, *key: str) -> list[Located]:
        """The rows of a JSON list, of the list under a key, or of a JSONL file, each with its place."""
        self._note(path)
        if path.suffix == ".jsonl":
            return [Located(source, row) for source, row in IndexedRows(path)]
        value = self.content(path, *key)
        name = "".join(f"[{part!r}]" for part in key)
        if not isinstance(value, list):
            raise ValueError(f"{path}{name} is no list of rows")
        return [Located(f"{path}{name}[{index}]", row) for index, row in enumerate(value)]

    def entries(self, path: Path) -> Iterator[tuple[str, Located]]:
        """The keys of a JSON object, each with its place and value."""
        content = self.content(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no JSON object of entries by their key")
        for key, value in content.items():
            yield key, Located(f"{path}[{key!r}]", value)

    def table(self, path: Path, columns: Sequence[str], delimiter: str, quoting: int) -> Iterator[Located]:
        """The rows of a table with a line of headings: the columns asked for, by heading."""
        self._note(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, quoting=quoting)
            try:
                missing = [column for column in columns if column not in (reader.fieldnames or ())]
                if missing:
                    found = ", ".join(map(repr, reader.fieldnames or ()))
                    raise ValueError(f"{path}:1 has no column {missing[0]!r}; there are {found or 'none'}")
                for row in reader:
                    where = f"{path}:{reader.line_num}"
                    if any(row[column] is None for column in columns):
                        raise ValueError(f"{where}: fewer fields than line 1 names, {len(reader.fieldnames)}")
                    yield Located(where, {column: row[column] for column in columns})
            except (UnicodeDecodeError, csv.Error) as error:
                raise ValueError(f"{path}:{reader.line_num} cannot be read as a table: {error}") from error

    def lines(self, path: Path) -> list[str]:
        """The lines of a text without outer blanks; empty ones are left out."""
        self._note(path)
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]

    def names(self, folder: str) -> list[str]:
        """Names in a folder of the release, sorted; none where there is no such folder.

        ValueError where it leads out of the release.
        """
        path = self.folder / folder
        if not path.is_dir():
            return []
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{path} leads out of {self.folder}; give a folder that holds it as --src")
        return sorted(one.name for one in path.iterdir())

    def picture(self, target: str, *names: str, where: str, change: Change | None = None, changed: str = "") -> Picture:
        """The picture under the first of the names that is a file. `target` is relative to the data root."""
        if ".." in PurePosixPath(target).parts or PurePosixPath(target).is_absolute():
            raise ValueError(f"{where}: {names[0]} leads out of the folder of the pictures")
        return Picture(target, self.find(*names, where=where), names[0], change, changed)

    def _note(self, path: Path) -> None:
        self.sources[path] = None


_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
_NAMES |= {dict: "an object", type(None): "null"}


def take(row: Any, key: str, types: tuple[type, ...], where: str) -> Any:
    """The value of a key, which must be there and of one of the types; ValueError otherwise."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with a key {key!r}, found {_NAMES[type(row)]}")
    if key not in row:
        raise ValueError(f"{where}: the key {key!r} is missing; there are {', '.join(map(repr, row)) or 'none'}")
    value = row[key]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        wanted = " or ".join(_NAMES[kind] for kind in types)
        raise ValueError(f"{where}: {key!r} must be {wanted}, found {_NAMES[type(value)]}")
    return value


def take_text(row: Any, key: str, where: str) -> str:
    """A text, or a number as text: some releases leave out the quotes of a numeric answer."""
    value = take(row, key, (str, int, float), where)
    return value if isinstance(value, str) else str(value)


def take_texts(row: Any, key: str, where: str) -> list[str]:
    """A list of texts, with at least one in it."""
    values = take(row, key, (list,), where)
    if not values:
        raise ValueError(f"{where}: {key!r} is an empty list")
    places = {f"{key}[{number}]": value for number, value in enumerate(values)}
    return [take_text(places, place, where) for place in places]


def take_text_or_texts(row: Any, key: str, where: str) -> str | list[str]:
    """A text, or a list of texts."""
    value = take(row, key, (str, int, float, list), where)
    return take_texts(row, key, where) if isinstance(value, list) else take_text(row, key, where)


def take_id(row: Any, key: str, where: str) -> int | str:
    """An identifier."""
    return take(row, key, (int, str), where)
