"""Files of training records as one sequence, whose rows are parsed when they are asked for.

    records = open_records(["train.json", "mixture.yaml"], weights=[1, 0.5])

So no process holds the text of a large file. A mixture is a YAML file that lists files with weights:

    sets:
      - {name: textvqa, path: textvqa.json, weight: 2, image_root: images, count: 34602, counted: measured}

`path` and `image_root` start from the folder of the YAML file. `weight` is how often an epoch visits the set; 1 when
left out. `count` is the number of rows that the file should have: `counted: measured` (the default) makes another
number an error, `counted: recalled`, for a figure from memory, a notice. `path` may name shards as of
`monkey.data.shards`, and with `stream: true` they are read as a stream (`monkey.data.streaming`).
"""

from __future__ import annotations

import hashlib
import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from monkey.data.records import BAD, Record, read_record
from monkey.data.rows import ImagePaths
from monkey.data.shards import SHARD_ENDINGS, check_shards_exist, holds_shards, is_on_hub, open_rows
from monkey.files import read_settings_file
from monkey.journal import digest

MIXTURE_ENDINGS = (".yaml", ".yml")
RECORD_ENDINGS = (".json", ".jsonl")
COUNTED = ("measured", "recalled")

# The sequence


def open_records(
    paths: str | Path | Sequence[str | Path],
    image_root: str | Path | None = None,
    root_name: str = "image_root",
    weights: Sequence[float] | None = None,
) -> Records:
    """Return the conversations of JSON lists, JSONL files, shards and mixtures (`.yaml`) as one sequence.

    Args:
        paths: one file or several, or what `monkey.data.shards` knows by one name.
        image_root: where images are looked up, for sets whose mixture names no root; without one, in each file's own
            folder and then in the current one.
        root_name: what messages call `image_root`.
        weights: one per path: how often an epoch visits the file; see `Records.epoch`.

    Raises:
        FileNotFoundError: a missing file or folder.
        ValueError: a file that cannot be read as rows, a mixture that is not of its form, or a count that disagrees.
    """
    return Records(record_sets(paths, image_root, weights), root_name)


class RecordFile:
    """One file of a sequence: its kept rows are `records[start:stop]`, visited `weight` times an epoch."""

    def __init__(self, one: RecordSet, root_name: str) -> None:
        self.path = one.path
        self.weight = one.weight
        self.rows = open_rows(one.path)
        self.kept = np.arange(len(self.rows))
        self.start = 0
        self._images = ImagePaths(one.path, one.image_root, root_name)

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def stop(self) -> int:
        return self.start + len(self)

    @property
    def part_length(self) -> int:
        """Rows that an epoch takes beyond the whole visits; at least one where the weight is no whole number."""
        part = math.modf(self.weight)[0]
        return min(len(self), max(1, round(part * len(self)))) if part else 0

    def read(self, row: int) -> Record:
        source, fields = self.rows[row]
        return read_record(fields, source, self._images)

    def fingerprint(self) -> list[str]:
        return [self.rows.fingerprint(), hashlib.sha256(self.kept.tobytes()).hexdigest(), *self._images.roots]

    def describe_form(self) -> list[str]:
        """Say that the first row is of another project's form, where it is, and what of it may not be meant so."""
        try:
            first = self.read(0)
        except BAD:  # which is told when the row is read for its own sake
            return []
        count = "1 record" if len(self) == 1 else f"{len(self):,} records, the first"
        return [f"{self.path}: {count} in {first.form}, read as ours"] * bool(first.form) + list(first.notes)


class Records(Sequence[Record]):
    """Records of several files, each parsed and validated when it is asked for; may be pickled and forked.

    `notices` are sentences for the user: row counts that differ from recalled ones, files whose first row is of another
    project's form.
    """

    def __init__(self, sets: Sequence[RecordSet], root_name: str = "image_root") -> None:
        self.files = [RecordFile(one, root_name) for one in sets]
        found = [one.check_count(len(file)) for one, file in zip(sets, self.files, strict=True)]
        found += [notice for file in self.files for notice in file.describe_form()]
        self.notices = tuple(notice for notice in found if notice)
        self._count()

    def _count(self) -> None:
        for file, start in zip(self.files, np.cumsum([0, *map(len, self.files)]).tolist(), strict=False):
            file.start = start

    def __len__(self) -> int:
        return self.files[-1].stop

    def __getitem__(self, index: int) -> Record:
        file, row = self._find(index)
        return file.read(row)

    def source(self, index: int) -> str:
        """Return where a record stands, without reading it."""
        file, row = self._find(index)
        return file.rows.source(row)

    def _find(self, index: int) -> tuple[RecordFile, int]:
        """Return the file of a record, and its row there."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"no record {index}; there are {len(self):,}")
        index %= len(self)
        file = next(file for file in self.files if index < file.stop)
        return file, int(file.kept[index - file.start])

    def epoch(self, epoch: int, seed: int) -> np.ndarray:
        """Return the indices of the records of one epoch in the order of training, int64, as many in every one.

        A file of weight w is visited floor(w) times whole. For the rest, an epoch takes its fraction of the file's
        rows, the next epoch the ones after these, round a circle whose order is drawn from the seed: so every row is
        seen equally often over the epochs. All is then shuffled by seed and epoch.

        The order is the same on every machine and NumPy: it sorts the raw 64-bit numbers of Philox, which NumPy keeps
        stable, where its own `shuffle` may change between versions.
        """
        visits = []
        for number, file in enumerate(self.files):
            every = np.arange(file.start, file.stop)
            visits += [every] * int(file.weight)
            if file.part_length:
                places = (epoch * file.part_length + np.arange(file.part_length)) % len(file)
                visits.append(every[permutation(len(file), seed, number)][places])
        indices = np.concatenate(visits) if visits else np.empty(0, np.int64)
        return indices[permutation(len(indices), seed, epoch, len(self.files))]

    def fingerprint(self) -> str:
        """Return a digest of the files' bytes, of the rows that are kept, and of where their images are looked up."""
        return digest(files=[file.fingerprint() for file in self.files])

    def leave_out(self, indices: Sequence[int]) -> None:
        """Take records out of the sequence, by the indices that they have now; those behind them move up."""
        stays = np.ones(len(self), bool)
        stays[np.asarray(indices, np.int64)] = False
        for file in self.files:
            file.kept = file.kept[stays[file.start : file.stop]]
        self._count()


def holds_images(records: Sequence[Record]) -> bool:
    """Return whether any record has an image; reads up to the first that has one."""
    for index in range(len(records)):
        try:
            if records[index].images:
                return True
        except BAD:
            continue  # a bad row is told when it is read for its own sake
    return False


def permutation(count: int, *key: int) -> np.ndarray:
    """Return the numbers below `count` in an order that depends on the key alone."""
    return np.argsort(np.random.Philox(np.random.SeedSequence(key)).random_raw(count), kind="stable")


# The sets that it is made of


@dataclass(frozen=True)
class RecordSet:
    """One file of training records in a mixture, or by itself."""

    name: str
    path: Path
    weight: float = 1.0
    image_root: Path | None = None
    count: int | None = None
    counted: str = "measured"
    stream: bool = False
    """Whether it is read as a stream, of which nothing is known beforehand."""

    def check_count(self, found: int) -> str | None:
        """Return a notice where the file has another number of rows than a recalled count, None where all is well.

        Raises:
            ValueError: it has another number than a measured count, with both.
        """
        if self.count in (None, found):
            return None
        if self.counted == "recalled":
            return f"{self.path}: {found:,} rows, where the mixture recalls {self.count:,} for {self.name}"
        raise ValueError(
            f"{self.path}: {found:,} rows, and the mixture says that {self.count:,} were measured for {self.name}; "
            "complete the file, or correct 'count'"
        )


def record_sets(
    paths: str | Path | Sequence[str | Path],
    image_root: str | Path | None = None,
    weights: Sequence[float] | None = None,
) -> list[RecordSet]:
    """Return the sets of data files and mixtures, in their order.

    Args:
        paths: `.json`, `.jsonl` or `.yaml` files or names of shards, one or several.
        image_root: for sets that name none.
        weights: one per path; that of a mixture multiplies those of its sets.

    Raises:
        FileNotFoundError: no such file, or sets of a mixture whose files are missing, with their number.
        ValueError: a mixture that is not of the form, a file twice, or other than one weight per path.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    weights = [1.0] * len(paths) if weights is None else list(weights)
    if not paths:
        raise ValueError("no file of records was given")
    if len(weights) != len(paths):
        raise ValueError(f"{len(weights)} weights for {len(paths)} files; give one weight a file")
    sets: list[RecordSet] = []
    for path, weight in zip(paths, weights, strict=True):
        _check_weight(weight, str(path))
        found = read_mixture(path, must_exist=True) if path.suffix in MIXTURE_ENDINGS else [RecordSet(str(path), path)]
        default_root = None if image_root is None else Path(image_root)
        sets += [replace(one, weight=one.weight * weight, image_root=one.image_root or default_root) for one in found]
    seen: set[str] = set()
    for one in sets:
        real = str(one.path) if is_on_hub(one.path) else os.path.realpath(one.path)
        if real in seen:
            raise ValueError(f"{one.path} is given twice; give it once, with a weight")
        seen.add(real)
    return sets


def read_mixture(path: str | Path, must_exist: bool = False) -> list[RecordSet]:
    """Return the sets that a YAML file lists; with `must_exist` all of their files are there.

    Raises:
        FileNotFoundError: no such file, or sets whose files are missing, with their number.
        ValueError: no YAML, an unknown key, or a value that cannot be, with the set's number and name.
    """
    path = Path(path)
    content = read_settings_file(path)
    if not isinstance(content.get("sets"), list) or not content["sets"]:
        raise ValueError(f"{path}: a mixture is an object with a list under 'sets' that has an entry for each set")
    _refuse_unknown(content, ("sets",), str(path))
    sets = [_read_set(entry, number, path) for number, entry in enumerate(content["sets"], start=1)]
    names = [one.name for one in sets]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"{path}: sets {names.index(name) + 1} and {number + 1} are both named {name!r}")
    missing = [one for one in sets if must_exist and not holds_shards(one.path) and not one.path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: no file {missing[0].path} for the set {missing[0].name}; {len(missing)} of the mixture's "
            f"{len(sets)} files are missing"
        )
    for one in sets if must_exist else ():
        if holds_shards(one.path):
            check_shards_exist(one.path)
    return sets


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# Key of a set -> (test of its value, what the value must be).
_SET_KEYS = {
    "name": (_is_text, "a text"),
    "path": (_is_text, "a path"),
    "weight": (lambda value: type(value) in (int, float), "a number"),
    "image_root": (_is_text, "a folder"),
    "count": (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    "counted": (lambda value: value in COUNTED, " or ".join(COUNTED)),
    "stream": (lambda value: type(value) is bool, "true or false"),
}


def _read_set(entry: Any, number: int, mixture: Path) -> RecordSet:
    where = f"{mixture}, set {number}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object with 'name' and 'path', found {entry!r}")
    _refuse_unknown(entry, tuple(_SET_KEYS), where)
    for key in ("name", "path"):
        if key not in entry:
            raise ValueError(f"{where}: the key {key!r} is missing")
    for key, value in entry.items():
        accepts, needed = _SET_KEYS[key]
        if not accepts(value):
            raise ValueError(f"{where}: {key!r} must be {needed}, found {value!r}")
    where = f"{where} ({entry['name']})"
    _check_weight(entry.get("weight", 1), where)
    is_hub = is_on_hub(entry["path"])
    if not (holds_shards(mixture.parent / entry["path"]) or is_hub or Path(entry["path"]).suffix in RECORD_ENDINGS):
        raise ValueError(
            f"{where}: 'path' must end in {' or '.join(RECORD_ENDINGS)}, found {entry['path']}; tables and tars with "
            f"images ({', '.join(SHARD_ENDINGS)}), patterns and folders of them, and hub:owner/name:split are read, too"
        )
    if entry.get("stream") and Path(entry["path"]).suffix in RECORD_ENDINGS:
        raise ValueError(f"{where}: 'stream' is for shards, and the rows of {entry['path']} are known by their places")
    if "counted" in entry and "count" not in entry:
        raise ValueError(f"{where}: 'counted' says how 'count' is known, and there is no 'count'")
    paths = {key: _from_folder(mixture.parent, entry[key]) for key in ("path", "image_root") if key in entry}
    if is_hub:
        paths["path"] = Path(entry["path"])
    return RecordSet(**{**entry, "weight": float(entry.get("weight", 1)), **paths})


def _from_folder(folder: Path, path: str) -> Path:
    """Return the path as seen from `folder`, without `..` where no symbolic link makes that another place."""
    joined = folder / path
    short = os.path.normpath(joined)
    return Path(short) if os.path.realpath(short) == os.path.realpath(joined) else joined


def _check_weight(weight: float, where: str) -> None:
    if not 0 < weight < math.inf:
        raise ValueError(f"{where}: a weight must be a number above 0, found {weight}; to leave a set out, remove it")


def _refuse_unknown(entry: dict, known: Sequence[str], where: str) -> None:
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")
