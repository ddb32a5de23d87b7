"""Several sets as one: a YAML file that lists files of training records with weights.

    sets:
      - {name: textvqa, path: textvqa.json, weight: 2, image_root: pictures, count: 34602, counted: measured}

`path` and `image_root` start from the folder of the YAML file. `weight` is how often an epoch visits the set; 1 when
left out. `count` is the number of rows that the file should have: `counted: measured` (the default) makes another
number an error, `counted: recalled`, for a figure from memory, a notice.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monkey.settings_files import read_settings_file

MIXTURE_ENDINGS = (".yaml", ".yml")
RECORD_ENDINGS = (".json", ".jsonl")
COUNTED = ("measured", "recalled")


@dataclass(frozen=True)
class RecordSet:
    """One file of training records in a mixture, or by itself."""

    name: str
    path: Path
    weight: float = 1.0
    image_root: Path | None = None
    count: int | None = None
    counted: str = "measured"

    def check_count(self, found: int) -> str | None:
        """A notice where the file has another number of rows than a recalled count, None where all is well.

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
    """The sets of data files and mixtures, in their order.

    Args:
        paths: `.json`, `.jsonl` or `.yaml` files, one or several.
        image_root: for sets that name none.
        weights: one a path; that of a mixture multiplies those of its sets.

    Raises:
        FileNotFoundError: no such file, or sets of a mixture whose files are missing, with their number.
        ValueError: a mixture that is not of the form, a file twice, or other than one weight a path.
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
        for member in _of_path(path):
            root = member.image_root or (None if image_root is None else Path(image_root))
            sets.append(RecordSet(member.name, member.path, member.weight * weight, root, member.count, member.counted))
    seen: set[str] = set()
    for member in sets:
        real = os.path.realpath(member.path)
        if real in seen:
            raise ValueError(f"{member.path} is given twice; give it once, with a weight")
        seen.add(real)
    return sets


def _of_path(path: Path) -> list[RecordSet]:
    """The sets of a mixture, all of them there, or the one that a data file is."""
    if path.suffix not in MIXTURE_ENDINGS:
        return [RecordSet(str(path), path)]
    sets = read_mixture(path)
    missing = [member for member in sets if not member.path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: no file {missing[0].path} for the set {missing[0].name}; {len(missing)} of the mixture's "
            f"{len(sets)} files are missing"
        )
    return sets


def read_mixture(path: str | Path) -> list[RecordSet]:
    """The sets that a YAML file lists. Whether their files are there is not looked at.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, an unknown key, or a value that cannot be, with the set's number and name.
    """
    path = Path(path)
    content = read_settings_file(path)
    if not isinstance(content.get("sets"), list) or not content["sets"]:
        raise ValueError(f"{path}: a mixture is an object with a list under 'sets' that has an entry for each set")
    _refuse_unknown(content, ("sets",), str(path))
    sets = [_record_set(entry, number, path) for number, entry in enumerate(content["sets"], start=1)]
    names = [member.name for member in sets]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"{path}: sets {names.index(name) + 1} and {number + 1} are both named {name!r}")
    return sets


def _record_set(entry: Any, number: int, mixture: Path) -> RecordSet:
    where = f"{mixture}, set {number}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object with 'name' and 'path', found {entry!r}")
    _refuse_unknown(entry, tuple(_FIELDS), where)
    for key in ("name", "path"):
        if key not in entry:
            raise ValueError(f"{where}: the key {key!r} is missing")
    for key, value in entry.items():
        accepts, needed = _FIELDS[key]
        if not accepts(value):
            raise ValueError(f"{where}: {key!r} must be {needed}, found {value!r}")
    where = f"{where} ({entry['name']})"
    _check_weight(entry.get("weight", 1), where)
    if Path(entry["path"]).suffix not in RECORD_ENDINGS:
        raise ValueError(f"{where}: 'path' must end in {' or '.join(RECORD_ENDINGS)}, found {entry['path']}")
    if "counted" in entry and "count" not in entry:
        raise ValueError(f"{where}: 'counted' says how 'count' is known, and there is no 'count'")
    root = entry.get("image_root")
    return RecordSet(
        name=entry["name"],
        path=_from_folder(mixture.parent, entry["path"]),
        weight=float(entry.get("weight", 1)),
        image_root=None if root is None else _from_folder(mixture.parent, root),
        count=entry.get("count"),
        counted=entry.get("counted", "measured"),
    )


def _from_folder(folder: Path, path: str) -> Path:
    """The path as seen from `folder`, without `..` where no symbolic link makes that another place."""
    joined = folder / path
    short = os.path.normpath(joined)
    return Path(short) if os.path.realpath(short) == os.path.realpath(joined) else joined


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# Key of a set -> (test of its value, what the value must be).
_FIELDS = {
    "name": (_is_text, "a text"),
    "path": (_is_text, "a path"),
    "weight": (lambda value: isinstance(value, (int, float)) and not isinstance(value, bool), "a number"),
    "image_root": (_is_text, "a folder"),
    "count": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
        "a whole number above 0",
    ),
    "counted": (lambda value: value in COUNTED, " or ".join(COUNTED)),
}


def _check_weight(weight: float, where: str) -> None:
    if not 0 < weight < math.inf:
        raise ValueError(f"{where}: a weight must be a number above 0, found {weight}; to leave a set out, remove it")


def _refuse_unknown(entry: dict, known: Sequence[str], where: str) -> None:
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")
