"""The folder that the user unpacked an official release into, and what is read from it.

Every path is looked up inside that folder: one that leads out of it, by `..` or through a symbolic link, is refused.
Releases unpack differently, so files and images are asked for by several names, and the first that is there is taken.
Faults are one sentence that names the file and the line, index or key.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from monkey.data.rows import ImagePaths, IndexedRows, field_of, parse_row
from monkey.data.shards import ShardedRows

_LONGEST_FIELD = 1 << 28
"""Some tables hold images as base64; the library's own limit is 128 KiB."""


@dataclass(frozen=True)
class SourceImage:
    """An image of a row: where it goes, relative to the data root, and its file, None where the release has none.

    `looked_for` is the first name it was looked up by. `change` makes the bytes that are written in place of the
    file's, and `changed` says how. `content` returns the bytes of an image that lies inside the file, which is a table.
    """

    target: str
    source: Path | None
    looked_for: str
    change: Callable[[Path], bytes] | None = None
    changed: str = ""
    content: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class PreparedRow:
    """One question.

    `where` is its place in the release; `more` are keys beside those that every row has; without a `question_id` of the
    release it is known by its number, from 0.
    """

    where: str
    image: SourceImage
    question: str
    answer: str | list[str]
    question_id: int | str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A value of a release and its place there, as messages call it. What is asked of it must be there."""

    where: str
    value: Any

    def take(self, key: str, *types: type) -> Any:
        """Return the value of a key, which is of one of the types."""
        return field_of(self.value, key, types, self.where)

    def text(self, key: str) -> str:
        """Return a text, or a number as text: some releases leave out the quotes of a numeric answer."""
        return str(self.take(key, str, int, float))

    def texts(self, key: str) -> list[str]:
        """Return a list of texts, with at least one in it."""
        values = self.take(key, list)
        if not values:
            raise ValueError(f"{self.where}: {key!r} is an empty list")
        numbered = Entry(self.where, {f"{key}[{number}]": value for number, value in enumerate(values)})
        return [numbered.text(name) for name in numbered.value]

    def text_or_texts(self, key: str) -> str | list[str]:
        return self.texts(key) if isinstance(self.take(key, str, int, float, list), list) else self.text(key)

    def identifier(self, key: str) -> int | str:
        return self.take(key, int, str)

    def entries(self, key: str) -> list[Entry]:
        """Return the members of the list under a key."""
        name = key.removesuffix("s")
        return [Entry(f"{self.where}, {name} {number}", one) for number, one in enumerate(self.take(key, list))]

    def keep(self, *keys: str) -> dict[str, Any]:
        """Return the values of those of the keys that are there."""
        return {key: self.value[key] for key in keys if key in self.value}


class Release:
    """The files of one release, and what is to be told of them beside their rows.

    `sources` has those that were read, in their order, images aside. `statements` are sentences on what was chosen,
    made or left as it is, for the user and the manifest. `annotations` is the VQA annotation file of the task: a file
    of the release that is taken as it is, or its content.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"--src {folder}: no such folder; it is the one that holds the unpacked release")
        self.sources: dict[Path, None] = {}
        self.statements: list[str] = []
        self.annotations: Path | Mapping[str, Any] | None = None
        self._paths = ImagePaths(self.folder / "release", self.folder, "--src")

    def find(self, *names: str, where: str = "the release") -> Path | None:
        """Return the first of the names that is a file inside the folder."""
        for name in names:
            try:
                return self._paths.find(name, where)
            except FileNotFoundError:
                continue
        return None

    def file(self, *names: str) -> Path:
        """Return the first of the names that is a file; FileNotFoundError naming them all where none is."""
        path = self.find(*names)
        if path is None:
            raise FileNotFoundError(f"{self.folder} holds no {' and no '.join(names)}; --src is the unpacked release")
        return path

    def content(self, path: Path) -> Entry:
        """Return the JSON value of a file."""
        self.sources[path] = None
        try:
            return Entry(str(path), json.loads(path.read_text(encoding="utf-8-sig")))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from error

    def rows(self, path: Path, key: str | None = None) -> list[Entry]:
        """Return the rows of a JSON list, of the list under a key, or of a JSONL file."""
        self.sources[path] = None
        if path.suffix == ".jsonl":
            return [Entry(source, row) for source, row in IndexedRows(path)]
        content = self.content(path)
        name = str(path) if key is None else f"{path}[{key!r}]"
        value = content.value if key is None else content.take(key, list, dict)
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list of rows")
        return [Entry(f"{name}[{index}]", row) for index, row in enumerate(value)]

    def lines(self, path: Path) -> list[Entry]:
        """Return the rows of a file with one on each line, however it is called."""
        self.sources[path] = None
        numbered = enumerate(path.read_bytes().splitlines(), start=1)
        places = [(f"{path}:{number}", line) for number, line in numbered if line.strip()]
        return [Entry(where, parse_row(line, where)) for where, line in places]

    def stored_rows(self, pattern: str) -> ShardedRows | None:
        """Return the rows of the tables that fit a pattern, anywhere below; None where none does."""
        found = [path.relative_to(self.folder).as_posix() for path in sorted(self.folder.rglob(pattern))]
        if not found:
            return None
        shards = [self.file(name) for name in found]
        self.sources.update(dict.fromkeys(shards))
        return ShardedRows(self.folder, list(map(str, shards)))

    def entries(self, path: Path) -> Iterator[tuple[str, Entry]]:
        """Yield the keys of a JSON object, each with its value."""
        content = self.content(path).value
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no JSON object of entries by their key")
        for key, value in content.items():
            yield key, Entry(f"{path}[{key!r}]", value)

    def table(self, path: Path, columns: Sequence[str], delimiter: str, quoting: int) -> Iterator[Entry]:
        """Yield the rows of a table with a line of headings: the columns asked for, by heading."""
        self.sources[path] = None
        csv.field_size_limit(_LONGEST_FIELD)
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
                    yield Entry(where, {column: row[column] for column in columns})
            except (UnicodeDecodeError, csv.Error) as error:
                raise ValueError(f"{path}:{reader.line_num} cannot be read as a table: {error}") from error

    def words(self, path: Path) -> list[str]:
        """Return the words of a text."""
        self.sources[path] = None
        return path.read_text(encoding="utf-8-sig").split()

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder of the release, sorted; none where there is no such folder.

        Raises ValueError where it leads out of the release.
        """
        path = self.folder / folder
        if not path.is_dir():
            return []
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{path} leads out of {self.folder}; give a folder that holds it as --src")
        return sorted(one.name for one in path.iterdir())

    def image(
        self,
        target: str,
        names: Iterable[str],
        where: str,
        change: Callable[[Path], bytes] | None = None,
        changed: str = "",
    ) -> SourceImage:
        """Return the image under the first of the names that is a file. `target` is relative to the data root."""
        names = list(names)
        if ".." in PurePosixPath(target).parts or PurePosixPath(target).is_absolute():
            raise ValueError(f"{where}: {names[0]} leads out of the folder of the images")
        return SourceImage(target, self.find(*names, where=where), names[0], change, changed)


def below(folders: Iterable[str], *names: str) -> list[str]:
    """Return the paths of the names in each of the folders, "" for the release itself."""
    return [f"{folder}/{name}" if folder else name for folder in folders for name in names]
