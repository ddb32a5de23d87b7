"""Files that come into place together or not at all.

They are written into a folder of their own inside the output folder and renamed to their places when all are complete;
a failure on the way puts back what was there before.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from eval.questions import file_digest


class FileMark(NamedTuple):
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str


def file_mark(path: Path) -> FileMark:
    return FileMark(path.stat().st_size, file_digest(path))


@dataclass
class StagedFiles:
    """Files of one task, beside their places below `out`. `marks` has all that were added, by their target."""

    out: Path
    folder: Path
    marks: dict[str, FileMark] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    """Targets that are not in their place with the same content already, in the order of moving."""
    replaceable: set[str] = field(default_factory=set)
    """Targets that may replace other content without being asked for."""

    def add(self, target: str, content: bytes | Path, link: bool = False, replaceable: bool = False) -> None:
        """A file of that content, or a copy of a file or a hard link to it."""
        place, beside = self.out / target, self.folder / target
        if isinstance(content, Path):
            mark = file_mark(content)
            if _is_there(place, mark):
                self.marks[target] = mark
                return
        beside.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            beside.write_bytes(content)
        elif link:
            _link(content, beside)
        else:
            shutil.copyfile(content, beside)
        mark = file_mark(beside)
        self.marks[target] = mark
        if not _is_there(place, mark):
            self.written.append(target)
        if replaceable:
            self.replaceable.add(target)

    def move_into_place(self, overwrite: bool) -> None:
        """Rename all to their places.

        Raises:
            FileExistsError: other content is there, without `overwrite`.
            ValueError: a place that leads out of `out`.
        """
        for target in self.written:
            place = self.out / target
            if not place.parent.resolve().is_relative_to(self.out.resolve()):
                raise ValueError(f"{place} leads out of {self.out}, where the evaluator would refuse it")
            if os.path.lexists(place) and not overwrite and target not in self.replaceable:
                raise FileExistsError(f"{place} is there with other content; --overwrite replaces it")
        _move_all([(self.folder / target, self.out / target) for target in self.written], self.folder / "replaced")


@contextmanager
def files_beside(out: Path, name: str) -> Iterator[StagedFiles]:
    """A folder in `out`, so that moving is renaming; it is removed in the end, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix=f".preparing-{name}-", dir=out))
    try:
        yield StagedFiles(out, folder)
    finally:
        shutil.rmtree(folder)


def _is_there(place: Path, mark: FileMark) -> bool:
    return place.is_file() and place.stat().st_size == mark.bytes and file_digest(place) == mark.sha256


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError as error:
        raise ValueError(
            f"{source} cannot be linked to from {place.parent} ({error.strerror}); links stay on one file system: use "
            "--copy"
        ) from error


def _move_all(moves: Sequence[tuple[Path, Path]], replaced: Path) -> None:
    """Rename each file to its place; when one cannot be, put back what was there before."""
    replaced.mkdir()
    done: list[tuple[Path, Path | None]] = []
    try:
        for number, (beside, place) in enumerate(moves):
            place.parent.mkdir(parents=True, exist_ok=True)
            before = replaced / str(number) if os.path.lexists(place) else None
            if before is not None:
                os.replace(place, before)
            done.append((place, before))
            os.replace(beside, place)
    except BaseException:
        for place, before in reversed(done):
            place.unlink(missing_ok=True)
            if before is not None:
                os.replace(before, place)
        raise
