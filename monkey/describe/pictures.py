"""The pictures of a folder: found, told apart by their bytes, and dealt to processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from monkey.data.rows import NOT_IN_PATHS
from monkey.images import FORMATS, counted, read_picture_file, told_apart

_READERS = 8


@dataclass(frozen=True)
class PictureFile:
    """One picture: SHA-256 of its bytes, its first name in the folder, and the other names it has there."""

    image: str
    file: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """`refused` are names that no record can hold or that cannot be read, each with the reason; `others` counts the
    files that are no pictures, by their endings."""

    folder: Path
    pictures: tuple[PictureFile, ...]
    refused: tuple[tuple[str, str], ...]
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def files(self) -> int:
        return sum(1 + len(picture.also) for picture in self.pictures) + len(self.refused)

    def path(self, picture: PictureFile) -> Path:
        return self.folder / picture.file

    def digest(self) -> str:
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(f"{picture.image} {picture.file} {picture.also}\n".encode())
        return digest.hexdigest()


def list_pictures(folder: Path, show_progress: bool = True) -> Listing:
    """Every picture below a folder, in the order of names, equal ones as one.

    Raises FileNotFoundError for a folder that is missing, ValueError for one without a picture.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--images {folder}: no such folder")
    names, others = told_apart(_names(folder))
    if not names:
        found = counted(others, ", but ")
        raise ValueError(f"--images {folder} holds no picture{found}; formats: {', '.join(FORMATS)}")
    root = folder.resolve()
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda name: _digest(root, name), names)
        bar = tqdm(
            found, total=len(names), desc="finding pictures", unit="file", disable=None if show_progress else True
        )
        digests = list(bar)
    first: dict[str, str] = {}
    also: dict[str, list[str]] = {}
    refused = []
    for name, (digest, problem) in zip(names, digests, strict=True):
        if digest is None:
            # A name that is not UTF-8 can be told, in outputs as on a screen, only with its bytes spelled out.
            refused.append((name.encode("utf-8", "backslashreplace").decode("utf-8"), problem))
        elif digest in first:
            also.setdefault(digest, []).append(name)
        else:
            first[digest] = name
    pictures = tuple(PictureFile(digest, name, tuple(also.get(digest, ()))) for digest, name in first.items())
    return Listing(folder, pictures, tuple(refused), others)


def of_shard(pictures: Sequence[PictureFile], index: int, count: int) -> list[PictureFile]:
    """Those that one of `count` processes works on. By their bytes: a folder may grow, and names may change."""
    return [picture for picture in pictures if int(picture.image[:12], 16) % count == index]


def _names(folder: Path) -> Iterable[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield Path(parent, name).relative_to(folder).as_posix()


def _digest(root: Path, name: str) -> tuple[str | None, str]:
    """SHA-256 of a file's bytes, or None and what is wrong with it."""
    path = root / name
    if NOT_IN_PATHS.search(name) or "<img>" in name or "</img>" in name:
        return None, "its name holds characters that a training record cannot hold; rename it"
    if not path.resolve().is_relative_to(root):
        return None, "it is a link that leads out of the folder, where training would not follow it; copy it there"
    try:
        return hashlib.sha256(read_picture_file(path, name=name)).hexdigest(), ""
    except (FileNotFoundError, ValueError) as error:
        return None, str(error)
