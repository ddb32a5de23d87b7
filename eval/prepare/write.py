"""Makes the files of one task: what was read of its release, checked, and a manifest of counts, hashes and sources.

All files come into place together or not at all: they are written into a folder of their own inside the output folder
and renamed to their places when all are complete; a failure on the way puts back what was there before.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from eval.prepare.release import PreparedRow, Release, SourceImage
from eval.prepare.table import preparer_named
from eval.tasks import TASKS, Task
from monkey.data.records import find_repeated_id, read_question
from monkey.data.rows import EMPTY_ANSWER, ImagePaths, RowFault
from monkey.images import DECODER_ERRORS, FORMATS
from monkey.provenance import file_digest

_LISTED = 100
"""Places that a manifest lists of rows without images or answers; all are counted."""


def prepare(
    name: str,
    source: str | Path,
    out: str | Path = ".",
    *,
    link: bool = False,
    allow_count: bool = False,
    allow_missing: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make the files of one task from an official release.

    Args:
        name: of the task.
        source: folder of the unpacked release; no path leads out of it.
        out: the data root that the task's paths start from.
        link: make hard links to images instead of copies. Symbolic links would lead out of the data root, which the
            evaluator refuses.
        allow_count: go on with another number of questions than the published set has.
        allow_missing: leave out rows whose image is missing or cannot be opened.
        overwrite: replace files that are there with other content.

    Returns:
        The manifest, which lies beside the question file as <task>.manifest.json.

    Raises:
        FileNotFoundError: a file of the release, or an image without `allow_missing`.
        FileExistsError: a file of other content, without `overwrite`.
        ValueError: an unknown task, a release that is not of its form, or another number of questions.
    """
    preparer = preparer_named(name)
    task = TASKS[name]
    release, out = Release(source), Path(out)
    read = [
        row if row.question_id is not None else replace(row, question_id=number)
        for number, row in enumerate(preparer.read(release))
    ]
    _refuse_repeated_ids(read)
    faults = _find_image_faults(read)
    if faults and not allow_missing:
        raise FileNotFoundError(
            f"{next(iter(faults.values()))}; {len(faults):,} images are missing or cannot be opened, and "
            "--allow-missing leaves their questions out"
        )
    rows = [row for row in read if row.image.target not in faults]
    _refuse_other_count(task, len(rows), len(read) - len(rows), allow_count)
    empty = _find_empty_references(rows, release)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".preparing-{name}-", dir=out) as folder:
        files = StagedFiles(out, Path(folder))
        image_count = _add_images(files, rows, link)
        if task.annotations is not None:
            given = release.annotations
            files.add(task.annotations, given if isinstance(given, Path) else _json_lines([given]))
        files.add(task.file, _json_lines(map(_fields, rows)))
        manifest = {
            "task": name,
            "preparer_version": preparer.version,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": preparer.source,
            "terms_as_remembered": preparer.terms,
            "statements": [*preparer.statements, *release.statements],
            "questions": len(rows),
            "questions_expected": task.n_expected,
            "questions_without_picture": len(read) - len(rows),
            "pictures": image_count,
            "pictures_missing": len(faults),
            "pictures_missing_first": list(faults.values())[:_LISTED],
            "questions_without_reference": len(empty),
            "questions_without_reference_first": empty[:_LISTED],
            "release": {path.relative_to(release.folder).as_posix(): _mark_of(path) for path in release.sources},
            "files": dict(files.marks),
        }
        files.add(manifest_path(task), (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
        files.move_into_place(overwrite, replaceable={manifest_path(task)})  # it holds a date, so it always differs
    return manifest


def manifest_path(task: Task) -> str:
    """Return where the manifest of a task lies, relative to the data root."""
    return Path(task.file).with_name(f"{task.name}.manifest.json").as_posix()


# What is checked before anything is written.


def _refuse_repeated_ids(rows: Sequence[PreparedRow]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        if sentence := find_repeated_id(row.question_id, row.where, seen):
            raise ValueError(sentence)


def _find_image_faults(rows: Sequence[PreparedRow]) -> dict[str, str]:
    """Return a sentence on each image, by its target, that is missing or whose header cannot be read.

    ValueError where two images would be written under one name.
    """
    first: dict[str, PreparedRow] = {}
    faults: dict[str, str] = {}
    for row in tqdm(rows, desc="reading headers", unit="row", leave=False, disable=None):
        image = row.image
        other = first.setdefault(image.target, row)
        # Images that lie in tables are named by their bytes.
        if other.image.source != image.source and image.content is None:
            raise ValueError(f"{row.where}: {image.source} and {other.image.source} would both be {image.target}")
        if other is row and (fault := _find_fault(image)):
            faults[image.target] = f"{row.where}: {fault}"
    return faults


def _find_fault(image: SourceImage) -> str | None:
    if image.source is None:
        return f"no image {image.looked_for} in the release"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, about what it can read nevertheless
            # The header alone: asking a PNG for its orientation decodes it, which takes minutes for 12,000 pages.
            Image.open(image.source if image.content is None else io.BytesIO(image.content()), formats=FORMATS).close()
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        return f"{image.source} cannot be opened as an image ({error})"
    return None


def _refuse_other_count(task: Task, found: int, left_out: int, allow_count: bool) -> None:
    if found == 0:
        raise ValueError(f"{task.name}: the release gives no question")
    if not allow_count and task.n_expected not in (None, found):
        without = f" ({left_out:,} more have no image)" if left_out else ""
        raise ValueError(
            f"{task.name}: the release gives {found:,} questions{without}, and {task.n_expected:,} are expected; "
            "--allow-count goes on with these"
        )


def _find_empty_references(rows: Sequence[PreparedRow], release: Release) -> list[str]:
    """Return the places of rows whose references are all empty, after reading every row as the evaluator will."""
    paths = ImagePaths(release.folder / "rows", release.folder, "--src")
    empty = []
    for number, row in enumerate(rows):
        fields = _fields(row) | {"image": row.image.source.relative_to(release.folder).as_posix()}
        try:
            read_question(number, fields, row.where, paths)
        except RowFault as fault:
            if fault.kind != EMPTY_ANSWER:
                raise
            empty.append(
                f"{row.where}: question_id {row.question_id!r} has no reference with text; nothing scores there"
            )
    return empty


# What is written.


def _fields(row: PreparedRow) -> dict[str, Any]:
    return {
        "image": row.image.target,
        "question": row.question,
        "answer": row.answer,
        "question_id": row.question_id,
        **row.more,
    }


def _json_lines(contents: Iterable[Any]) -> bytes:
    return "".join(json.dumps(content, ensure_ascii=False) + "\n" for content in contents).encode()


def _mark_of(content: bytes | Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file or its content."""
    if isinstance(content, Path):
        return {"bytes": content.stat().st_size, "sha256": file_digest(content)}
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


class StagedFiles:
    """Files on their way from `folder` to their places below `out`. `marks` has all that were added."""

    def __init__(self, out: Path, folder: Path) -> None:
        self.out, self._folder = out, folder
        self.marks: dict[str, dict[str, Any]] = {}
        self._staged: list[str] = []

    def add(self, target: str, content: bytes | Path, link: bool = False) -> None:
        """Stage a file of that content, or a copy of a file or a hard link to it, unless it is in its place already."""
        mark = self.marks[target] = _mark_of(content)
        place, staged = self.out / target, self._folder / target
        if place.is_file() and place.stat().st_size == mark["bytes"] and _mark_of(place) == mark:
            return
        staged.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            staged.write_bytes(content)
        elif link:
            _link(content, staged)
        else:
            shutil.copyfile(content, staged)
        self._staged.append(target)

    def move_into_place(self, overwrite: bool, replaceable: set[str]) -> None:
        """Rename all to their places; when one cannot be, put back what was there before.

        Raises:
            FileExistsError: other content is there, without `overwrite`, and the target is not `replaceable`.
            ValueError: a place that leads out of `out`.
        """
        for target in self._staged:
            place = self.out / target
            if not place.parent.resolve().is_relative_to(self.out.resolve()):
                raise ValueError(f"{place} leads out of {self.out}, where the evaluator would refuse it")
            if os.path.lexists(place) and not overwrite and target not in replaceable:
                raise FileExistsError(f"{place} is there with other content; --overwrite replaces it")
        undo: list[tuple[Path, Path | None]] = []
        try:
            for number, target in enumerate(self._staged):
                place = self.out / target
                place.parent.mkdir(parents=True, exist_ok=True)
                kept = self._folder / f"{number}.former" if os.path.lexists(place) else None
                undo.append((place, kept))
                if kept is not None:
                    os.replace(place, kept)
                os.replace(self._folder / target, place)
        except BaseException:
            for place, kept in reversed(undo):
                if kept is None:
                    place.unlink(missing_ok=True)
                elif os.path.lexists(kept):
                    os.replace(kept, place)
            raise


def _add_images(files: StagedFiles, rows: Sequence[PreparedRow], link: bool) -> int:
    """Add every image once; return how many there are."""
    images = {row.image.target: row.image for row in rows}
    for image in tqdm(images.values(), desc="images", unit="image", leave=False, disable=None):
        if image.content is not None:
            files.add(image.target, image.content())
            continue
        if image.change is None:
            files.add(image.target, Path(os.path.realpath(image.source)), link)
            continue
        place = files.out / image.target
        if place.exists() and place.samefile(image.source):
            # The release would then hold a changed image, to be changed once more the next time.
            raise ValueError(f"{place} is the release's own and is to be written {image.changed}; give another --out")
        files.add(image.target, image.change(image.source))
        files.marks[image.target] |= {"changed": image.changed, "sha256_before": file_digest(image.source)}
    return len(images)


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError as error:
        raise ValueError(
            f"{source} cannot be linked to from {place.parent} ({error.strerror}); links stay on one file system: use "
            "--copy"
        ) from error
