"""Files that hold records together with their images: parquet and Arrow tables, WebDataset tars, one or in shards.

    rows = open_rows("shards-{000..127}.tar")
    source, row = rows[12]

A name is a file, a folder of shards, a pattern (`{000..127}`, `*`), or a set on the hub, `hub:owner/name:split`. Here
are its two readings. `open_rows` gives rows by their numbers: a table is mapped into memory by `datasets`, which keeps
a copy of a parquet file in the cache folder, and of a tar it is known where each record begins. `read_shard` goes
through one shard from a row on, here or on the hub, and keeps nothing.

A tar's record is its files of one key, the name up to the first dot: a `.json` with a record of any form that is read,
or a question, and its images; or an image and its caption, `.txt`. Nothing in a shard is unpickled or run.

What a shard lacks is one sentence. A shard that breaks off gives the rows before the break and then that sentence.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import operator
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from monkey.data.foreign import find_form
from monkey.data.rows import (
    LONGEST_ROW,
    NOT_IN_PATHS,
    IndexedRows,
    MalformedRows,
    StoredRow,
    fail,
    parse_row,
)
from monkey.files import cache_folder
from monkey.images import IMAGE_ENDINGS, StoredImage
from monkey.journal import digest

HUB = "hub:"
JSON_ENDINGS = (".json", ".jsonl")
TABLE_ENDINGS = (".parquet", ".arrow")
SHARD_ENDINGS = (*TABLE_ENDINGS, ".tar")
"""Of files that hold images, too; the compressed tar is none, since no record in it can be found without the rest."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 1_000_000
_HUB_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:/([\w.-]+))?:([\w.-]+)")
_BLOCK = tarfile.BLOCKSIZE
_ROWS_READ = 64
"""Rows of a table that are in memory at a time."""


# What a name stands for


def holds_shards(name: str | os.PathLike) -> bool:
    """Return whether a name stands for files that hold images, or for several files, and not for one of JSON."""
    text = os.fspath(name)
    return is_on_hub(text) or text.endswith(SHARD_ENDINGS) or _is_pattern(text) or os.path.isdir(text)


def is_on_hub(name: str | os.PathLike) -> bool:
    return os.fspath(name).startswith(HUB)


def find_shards(name: str | os.PathLike, fetch: bool = True) -> list[str]:
    """Return the files of a set in their order.

    Args:
        fetch: put those of the hub into its cache; False gives addresses (`hf://…`) of those that are not there.

    Raises:
        FileNotFoundError: no such file, a pattern or folder without any, a number of a range that is missing, a set
            that neither the hub nor its offline cache has.
        ValueError: a name of the hub that is not of its form, or files of several kinds, or of one that is not read.
    """
    text = os.fspath(name)
    if is_on_hub(text):
        shards = _find_on_hub(text, fetch)
    elif os.path.isdir(text):
        shards = _find_in_folder(text)
    elif _is_pattern(text):
        shards = _find_by_pattern(text)
    elif os.path.exists(text):
        shards = [text]
    else:
        raise FileNotFoundError(f"{text}: no such file")
    kinds = sorted({os.path.splitext(shard)[1] for shard in shards})
    known = (*SHARD_ENDINGS, *JSON_ENDINGS)
    if unknown := next((kind for kind in kinds if kind not in known), None):
        raise ValueError(f"{text}: {unknown or 'a file without an ending'} is not read; known are {', '.join(known)}")
    if len(kinds) > 1:
        raise ValueError(f"{text}: holds {' and '.join(kinds)} files; name those of one kind by a pattern")
    return shards


def check_shards_exist(name: str | os.PathLike) -> None:
    """Raise what `find_shards` does of a name that can be told wrong without asking the hub."""
    if is_on_hub(name):
        _parse_hub_name(os.fspath(name))
    else:
        find_shards(name)


def _is_pattern(text: str) -> bool:
    return any(mark in text for mark in "*?[{") and not os.path.exists(text)


def _find_in_folder(folder: str) -> list[str]:
    for kinds in ((*SHARD_ENDINGS,), JSON_ENDINGS[1:]):
        found = sorted(
            str(path)
            for path in Path(folder).rglob("*")
            # `datasets` keeps what it once computed beside a saved set, under such names.
            if path.suffix in kinds and path.is_file() and not path.name.startswith(("cache-", "tmp"))
        )
        if found:
            return found
    raise FileNotFoundError(f"{folder}: no shards in this folder; they end in {', '.join(SHARD_ENDINGS)} or .jsonl")


def _find_by_pattern(pattern: str) -> list[str]:
    parts = _RANGE.split(pattern)
    ranges = []
    for first, last in zip(parts[1::3], parts[2::3], strict=True):
        if int(last) < int(first) or int(last) - int(first) >= _MOST_SHARDS:
            raise ValueError(f"{pattern}: the range {{{first}..{last}}} does not count up, or to more than a million")
        ranges.append([f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)])
    shards = []
    for numbers in itertools.product(*ranges):
        name = "".join(piece for pair in zip(parts[::3], [*numbers, ""], strict=True) for piece in pair)
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name] * os.path.isfile(name)
        if not found:
            raise FileNotFoundError(f"{pattern}: no file {name}")
        shards += found
    return shards


def _parse_hub_name(name: str) -> tuple[str, str | None, str]:
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name}: a set on the hub is named hub:owner/name:split, or hub:owner/name/config:split, for example "
            "hub:lmms-lab/DocVQA:validation"
        )
    return match[1], match[2], match[3]


def _find_on_hub(name: str, fetch: bool) -> list[str]:
    """Return the files of a split, in the hub's cache or, where they are not to be fetched, their addresses."""
    import datasets
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, config, split = _parse_hub_name(name)
    source, advice = repository, f"fetch it with `hf download --repo-type dataset {repository}`"
    if constants.HF_HUB_OFFLINE:
        try:
            source = snapshot_download(repository, repo_type="dataset", local_files_only=True)
        except LocalEntryNotFoundError:
            raise FileNotFoundError(f"{name}: {repository} is not in the hub's offline cache; {advice}") from None
    try:
        config = config or _choose_config(name, source, repository)
        files = datasets.load_dataset_builder(source, config).config.data_files or {}
    except (datasets.exceptions.DataFilesNotFoundError, datasets.data_files.EmptyDatasetError):
        raise FileNotFoundError(f"{name}: the hub's offline cache has no data of {repository}; {advice}") from None
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name}: {_in_one_line(error)}") from error
    if split not in files:
        raise ValueError(f"{name}: there is no split {split!r}; there are {', '.join(files) or 'none'}")
    found = list(map(str, files[split]))
    if not fetch or constants.HF_HUB_OFFLINE:
        return found
    addresses = [path.removeprefix(f"hf://datasets/{repository}@").partition("/") for path in found]
    return [
        hf_hub_download(repository, inside, repo_type="dataset", revision=revision) for revision, _, inside in addresses
    ]


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _choose_config(name: str, source: str, repository: str) -> str | None:
    """Return the configuration that nobody named: the only one, the default, or the one that is called as the set."""
    import datasets

    configs = datasets.get_dataset_config_names(source)
    own = repository.partition("/")[2]
    chosen = configs if len(configs) == 1 else [config for config in configs if config in ("default", own)]
    if len(chosen) != 1:
        split = name.rpartition(":")[2]
        raise ValueError(
            f"{name}: {repository} has the configurations {', '.join(configs)}; name one, as "
            f"hub:{repository}/{configs[0]}:{split}"
        )
    return chosen[0]


# Rows by their numbers


def open_rows(name: str | os.PathLike, fetch: bool = True) -> IndexedRows | ShardedRows:
    """Return the rows of a file of JSON, or of the shards that a name stands for.

    Raises:
        FileNotFoundError, ValueError: as of `find_shards` and `IndexedRows`, or tables whose columns differ.
    """
    return ShardedRows(Path(name), find_shards(name)) if holds_shards(name) else IndexedRows(name)


class ShardedRows(Sequence[tuple[str, Any]]):
    """The rows of shards behind each other; `rows[index]` is (source, row) as of `IndexedRows`.

    A source is `shard[number]`. What cannot be read of a shard is one row, whose reading raises MalformedRows.
    """

    def __init__(self, path: Path, shards: Sequence[str]) -> None:
        self.path = path
        self.shards = list(shards)
        ending = os.path.splitext(shards[0])[1]
        parts: Sequence[Any]
        if ending in TABLE_ENDINGS:
            parts = open_tables(self.shards)
        else:
            parts = [TarRows(shard) if ending == ".tar" else IndexedRows(shard) for shard in self.shards]
        self.parts = parts
        self._stops = np.cumsum([len(part) for part in parts])
        if not len(self):
            raise MalformedRows(f"{path}: holds no records")

    def __len__(self) -> int:
        return int(self._stops[-1])

    def __getitem__(self, index: int) -> tuple[str, Any]:
        part, row = self._find(index)
        return part[row]

    def source(self, index: int) -> str:
        part, row = self._find(index)
        return part.source(row)

    def _find(self, index: int) -> tuple[Any, int]:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: no row {index}; there are {len(self):,}")
        index %= len(self)
        number = int(np.searchsorted(self._stops, index, "right"))
        return self.parts[number], index - (int(self._stops[number - 1]) if number else 0)

    def fingerprint(self) -> str:
        """Return a digest of the shards' names, sizes and times; their bytes may be of any number."""
        return digest(shards=[(shard, (stat := os.stat(shard)).st_size, stat.st_mtime_ns) for shard in self.shards])


class TableRows:
    """The rows of one table among all that `datasets` has mapped; `fault` is what of it cannot be read."""

    def __init__(self, path: str, table: Any, start: int, count: int, fault: str | None = None) -> None:
        self.path = path
        self._table = table
        self._start = start
        self._count = count
        self._fault = fault

    def __len__(self) -> int:
        return self._count + (self._fault is not None)

    def source(self, row: int) -> str:
        return f"{self.path}[{row}]"

    def __getitem__(self, row: int) -> tuple[str, Any]:
        if row == self._count:
            raise MalformedRows(self._fault)
        fields = self._table.fast_slice(self._start + row, 1).to_pylist()[0]
        return self.source(row), stored_row(fields, self.source(row))


def open_tables(paths: Sequence[str]) -> list[TableRows]:
    """Map tables of the same columns into memory.

    Raises:
        ValueError: two tables that differ in a column, with both.
    """
    import datasets

    counts: dict[str, int] = {}
    faults: dict[str, str] = {}
    schema: Any = None
    for path in paths:
        try:
            own, counts[path] = _look_at_table(path)
        except BrokenShard as fault:
            faults[path] = str(fault)
            continue
        if schema is not None:
            _refuse_other_columns(path, own, *schema)
        schema = schema or (paths[0] if paths[0] in counts else path, own)
    try:
        mapped = _map_tables(list(filter(counts.get, counts)))  # `datasets` fails on a table without rows
    except datasets.exceptions.DatasetsError:
        # Some table is damaged behind its head: which, is found by reading them.
        for path in list(counts):
            try:
                for _ in read_shard(path):
                    pass
            except BrokenShard as fault:
                faults[path] = str(fault)
                del counts[path]
        mapped = _map_tables(list(filter(counts.get, counts)))
    rows, start = [], 0
    for path in paths:
        rows.append(TableRows(path, mapped, start, counts.get(path, 0), faults.get(path)))
        start += counts.get(path, 0)
    return rows


def _look_at_table(path: str) -> tuple[dict[str, str], int]:
    """Return name and type of each column, and the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.endswith(".parquet"):
            with pq.ParquetFile(path) as table:
                return {field.name: str(field.type) for field in table.schema_arrow}, table.metadata.num_rows
        with pa.memory_map(path) as file:
            table = pa.ipc.open_stream(file).read_all()
            return {field.name: str(field.type) for field in table.schema}, table.num_rows
    except (pa.ArrowException, OSError) as error:
        raise BrokenShard(f"{path}: cannot be read as a table ({_in_one_line(error)}); fetch it again") from None


def _refuse_other_columns(path: str, own: Mapping[str, str], first: str, columns: Mapping[str, str]) -> None:
    for name in (*columns, *own):
        if columns.get(name) != own.get(name):
            kinds = [f"of the type {kind}" if kind else "missing" for kind in (own.get(name), columns.get(name))]
            raise ValueError(
                f"{path}: the column {name!r} is {kinds[0]} there and {kinds[1]} in {first}; give files of different "
                "columns apart"
            )


def _map_tables(paths: list[str]) -> Any:
    """Return one table of those that have rows, memory-mapped; of parquet a copy is kept in the cache folder."""
    import datasets

    if not paths:
        return None
    if paths[0].endswith(".arrow"):
        return datasets.concatenate_datasets(list(map(datasets.Dataset.from_file, paths))).data
    return datasets.Dataset.from_parquet(paths, cache_dir=str(cache_folder() / "tables")).data


class TarRows:
    """The records of a tar: where each begins and ends is found once, 16 bytes of memory for each."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fault: str | None = None
        starts, stops, last = [], [], None
        try:
            with open(path, "rb") as file:
                for start, stop, name in _members(file, path):
                    if (key := _split_name(name)[0]) != last:
                        starts.append(start)
                        stops.append(stop)
                        last = key
                    stops[-1] = stop
        except BrokenShard as fault:
            self._fault = str(fault)
            starts, stops = starts[:-1], stops[:-1]  # whether the last one is whole is not known
        self._starts, self._stops = np.array(starts, np.int64), np.array(stops, np.int64)

    def __len__(self) -> int:
        return len(self._starts) + (self._fault is not None)

    def source(self, row: int) -> str:
        return f"{self.path}[{row}]"

    def __getitem__(self, row: int) -> tuple[str, Any]:
        if row == len(self._starts):
            raise MalformedRows(self._fault)
        source, start = self.source(row), int(self._starts[row])
        count = int(self._stops[row]) - start
        _refuse_long(count, source)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(start)
            content = file.read(count)
        return source, row_of_members(dict(_files_in(content)), source)


def _refuse_long(count: int, source: str) -> None:
    if count > LONGEST_ROW:
        raise MalformedRows(f"{source}: the record has {count:,} bytes, more than the {LONGEST_ROW:,} of one")


# One shard after the other


class BrokenShard(ValueError):
    """A shard that cannot be read to its end; the rows before the break were given."""


def read_shard(path: str, start: int = 0) -> Iterator[tuple[int, str, Any]]:
    """Go through a shard, here or at an address, from row `start` on: number, source, and the row or its fault.

    Raises:
        BrokenShard: it is no such file, or breaks off.
        OSError: it cannot be read now; another try may go on from the row behind the last one.
    """
    import fsspec

    reader = {".tar": _read_tar, ".parquet": _read_parquet, ".arrow": _read_arrow}
    read = reader.get(os.path.splitext(path)[1], _read_lines)
    with fsspec.open(path, "rb") as file:
        for number, row in read(file, path, start):
            source = f"{path}[{number}]"
            try:
                yield number, source, row(source)
            except ValueError as fault:
                yield number, source, fault


def _read_parquet(file: Any, path: str, start: int) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        first = 0
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            if first + count > start:
                batches = table.iter_batches(_ROWS_READ, row_groups=[group])
                yield from _rows_of_batches(batches, first, start)
            first += count
    except pa.ArrowInvalid as error:
        raise _broken_table(path, error) from None
    except OSError as error:  # of a damaged page too; of a connection it is another kind of it
        if type(error) is OSError and "://" not in path:
            raise _broken_table(path, error) from None
        raise


def _broken_table(path: str, error: Exception) -> BrokenShard:
    return BrokenShard(f"{path}: cannot be read as a table ({_in_one_line(error)}); fetch it again")


def _read_arrow(file: Any, path: str, start: int) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    try:
        yield from _rows_of_batches(pa.ipc.open_stream(file), 0, start)
    except pa.ArrowInvalid as error:
        raise _broken_table(path, error) from None


def _rows_of_batches(batches: Any, first: int, start: int) -> Iterator[tuple[int, Any]]:
    for batch in batches:
        for place in range(max(0, start - first), len(batch)):
            fields = batch.slice(place, 1).to_pylist()[0]
            yield first + place, lambda source, fields=fields: stored_row(fields, source)
        first += len(batch)


def _read_lines(file: Any, path: str, start: int) -> Iterator[tuple[int, Any]]:
    """Rows of JSONL; a JSON list has none before its end is read, and is for files that are here."""
    if path.endswith(".json"):
        raise BrokenShard(f"{path}: a list cannot be read as a stream; write a record a line, as .jsonl")
    for number, line in enumerate(file):
        if number >= start:
            yield number, lambda source, line=line: parse_row(line, source)


def _read_tar(file: Any, path: str, start: int) -> Iterator[tuple[int, Any]]:
    number, key, members, size = -1, None, {}, 0
    for begin, stop, name in _members(file, path):
        own, _ = _split_name(name)
        if own != key:
            if number >= start:
                yield number, _row_of_tar(members, size)
            number, key, members, size = number + 1, own, {}, 0
        size += stop - begin
        if number >= start and size <= LONGEST_ROW:
            place = file.tell()
            file.seek(begin)
            members |= _files_in(file.read(stop - begin))
            file.seek(place)
    if number >= start:
        yield number, _row_of_tar(members, size)


def _row_of_tar(members: Mapping[str, bytes], size: int) -> Any:
    def row(source: str) -> Any:
        _refuse_long(size, source)
        return row_of_members(members, source)

    return row


def _files_in(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Give name and bytes of each file in a stretch of a tar that begins with a header."""
    place = 0
    while place < len(content):
        head = content[place : place + _BLOCK]
        kind, is_plain_size = head[156:157], head[124] < 0x80
        if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE) or head[345:346] != b"\0" or not is_plain_size:
            # A long name, or attributes, of the file behind it; `tarfile` knows, and takes ten times as long.
            with tarfile.open(fileobj=io.BytesIO(content[place:])) as archive:
                yield from ((member.name, archive.extractfile(member).read()) for member in archive if member.isfile())
            return
        name = head[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        size = int(head[124:136].strip(b"\0 "), 8)
        first = place + _BLOCK
        yield name, content[first : first + size]
        place = first + -(-size // _BLOCK) * _BLOCK


def _members(file: Any, path: str) -> Iterator[tuple[int, int, str]]:
    """Return where each file of a tar begins and ends, with its name.

    Raises:
        BrokenShard: no tar, or one that breaks off; what is before the break was given.
    """
    end = 0
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (it closes nothing that is not its own)
        while (member := archive.next()) is not None:
            archive.members.clear()  # it would remember them all
            stop = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            file.seek(stop - 1)
            if not file.read(1):
                break
            end = stop
            if member.isfile():
                yield member.offset, stop, member.name
    except tarfile.TarError as error:
        if not end:
            raise BrokenShard(f"{path}: is no tar ({_in_one_line(error)}); fetch it again") from None
    # Else a tar that is cut off would end in silence.
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise BrokenShard(f"{path}: breaks off or is damaged behind byte {end:,}; fetch it again")


# A row with its images


def stored_row(fields: Mapping[str, Any], source: str) -> StoredRow:
    """Return a row of a table: what is null there is not there, and names stand for the images in it.

    Raises:
        RowFault: an image that is neither bytes nor a path.
    """
    images: dict[str, StoredImage] = {}

    def name_of(content: bytes, path: Any, column: str) -> str:
        name = path if isinstance(path, str) and not (NOT_IN_PATHS.search(path) or "<" in path) else ""
        if not name.strip() or images.get(name, content) != content:
            name = f"{column}-{len(images)}"
        images[name] = StoredImage(content, f"{name} in {source}")
        return name

    def written(value: Any, column: str) -> Any:
        if isinstance(value, bytes):
            return name_of(value, None, column)
        if isinstance(value, list):
            return [written(one, column) for one in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {"bytes", "path"}:
            if value["bytes"] is None and not value["path"]:
                fail(source, f"{column!r} holds an image that has neither bytes nor a path")
            return value["path"] if value["bytes"] is None else name_of(value["bytes"], value["path"], column)
        return {key: written(one, column) for key, one in value.items() if one is not None}

    row = {column: written(value, column) for column, value in fields.items() if value is not None}
    return StoredRow(row, images)


def row_of_members(members: Mapping[str, bytes], source: str) -> StoredRow:
    """Return the record of a tar's files of one key.

    Raises:
        MalformedRows, RowFault: no record in them, or one that is no JSON.
    """
    images, record, caption = {}, None, None
    for name, content in members.items():
        base, (_, ending) = PurePosixPath(name).name, _split_name(name)
        kind = ending.lower().rpartition(".")[2]
        if kind == "json":
            record = parse_row(content, source)
        elif kind in ("txt", "caption"):
            caption = content.decode("utf-8", "replace")
        elif f".{kind}" in IMAGE_ENDINGS:
            images[base] = StoredImage(content, f"{base} in {source}")
    names = list(images)
    if isinstance(record, dict) and (find_form(record) is not None or caption is None):
        own = record.get("images") or record.get("image")
        named = own if isinstance(own, list) else [own]
        if names and (own or "<img>" not in json.dumps(record)) and not (own and set(map(str, named)) <= set(names)):
            # It names them as they were called before they were put here.
            key = "image" if record.get("image") else "images"  # which its form is told by
            record = {**{name: value for name, value in record.items() if name not in ("image", "images")}, key: names}
        return StoredRow(record, images)
    if caption is not None and len(names) == 1:
        return StoredRow({"img_id": names[0], "caption": caption}, images)
    held = ", ".join(_split_name(name)[1] for name in members)
    fail(source, f"no record in {held}; a key has a .json with one, or an image and its .txt")


def _split_name(name: str) -> tuple[str, str]:
    """Return the key of a file in a tar, its name up to the first dot, and what is behind that."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}{slash}{key}", ending
