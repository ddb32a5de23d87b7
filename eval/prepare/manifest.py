"""Makes the files of one task: what its preparer read, checked, and a manifest of counts, hashes and sources."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from eval.prepare.release import Picture, Prepared, PreparedRow, Release
from eval.prepare.table import preparer_named, target_of
from eval.prepare.writing import StagedFiles, file_mark, files_beside
from eval.tasks import Task
from monkey.data.records import read_question
from monkey.data.rows import EMPTY_ANSWER, ImagePaths, RowFault
from monkey.images import DECODER_ERRORS, FORMATS

_LISTED = 100
"""Places that a manifest lists of rows without pictures or answers; all are counted."""


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
        link: make hard links to pictures instead of copies. Symbolic links would lead out of the data root, which the
            evaluator refuses.
        allow_count: go on with another number of questions than the published set has.
        allow_missing: leave out rows whose picture is missing or cannot be opened.
        overwrite: replace files that are there with other content.

    Returns:
        The manifest, which lies beside the question file as <task>.manifest.json.

    Raises:
        FileNotFoundError: a file of the release, or a picture without `allow_missing`.
        FileExistsError: a file of other content, without `overwrite`.
        ValueError: an unknown task, a release that is not of its form, or another number of questions.
    """
    preparer = preparer_named(name)
    task = target_of(name)
    release, out = Release(source), Path(out)
    prepared = preparer.read(release)
    _refuse_ids_twice(prepared.rows)
    faults = _picture_faults(prepared.rows)
    if faults and not allow_missing:
        first = next(iter(faults.values()))
        raise FileNotFoundError(
            f"{first}; {len(faults):,} pictures are missing or cannot be opened, and --allow-missing leaves their "
            "questions out"
        )
    rows = [row for row in prepared.rows if row.picture.target not in faults]
    _refuse_other_count(task, len(rows), len(prepared.rows) - len(rows), allow_count)
    empty = _check_rows(rows, release)
    out.mkdir(parents=True, exist_ok=True)
    with files_beside(out, name) as files:
        pictures = _add_pictures(files, rows, link)
        if task.annotations is not None:
            files.add(task.annotations, _annotation_content(prepared, name))
        files.add(task.file, "".join(map(_line, rows)).encode())
        content = {
            "task": name,
            "preparer_version": preparer.version,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": preparer.source,
            "terms_as_remembered": preparer.terms,
            "statements": list(prepared.statements),
            "questions": len(rows),
            "questions_expected": task.n_expected,
            "questions_without_picture": len(prepared.rows) - len(rows),
            "pictures": len(pictures),
            "pictures_missing": len(faults),
            "pictures_missing_first": list(faults.values())[:_LISTED],
            "questions_without_reference": len(empty),
            "questions_without_reference_first": empty[:_LISTED],
            "release": _described_sources(release),
            "files": _described_files(files, pictures),
        }
        manifest = manifest_path(task)
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        # It holds a date, so that of the same task is always another.
        files.add(manifest, text.encode(), replaceable=_is_manifest_of(out / manifest, name))
        files.move_into_place(overwrite)
    return content


def manifest_path(task: Task) -> str:
    """Where the manifest of a task lies, relative to the data root."""
    return Path(task.file).with_name(f"{task.name}.manifest.json").as_posix()


def _refuse_ids_twice(rows: Sequence[PreparedRow]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        key = str(row.question_id)
        if key in seen:
            raise ValueError(
                f"{row.where}: question_id {row.question_id!r} was given before, at {seen[key]}; ids must differ"
            )
        seen[key] = row.where


def _refuse_other_count(task: Task, found: int, left_out: int, allow_count: bool) -> None:
    if found == 0:
        raise ValueError(f"{task.name}: the release gives no question")
    if allow_count or task.n_expected in (None, found):
        return
    without = f" ({left_out:,} more have no picture)" if left_out else ""
    raise ValueError(
        f"{task.name}: the release gives {found:,} questions{without}, and {task.n_expected:,} are expected; "
        "--allow-count goes on with these"
    )


def _picture_faults(rows: Sequence[PreparedRow]) -> dict[str, str]:
    """Target of each picture that is missing or whose header cannot be read, and a sentence on it.

    ValueError where two pictures would be written under one name.
    """
    first: dict[str, PreparedRow] = {}
    faults: dict[str, str] = {}
    for row in tqdm(rows, desc="reading headers", unit="row", leave=False, disable=None):
        picture = row.picture
        other = first.setdefault(picture.target, row)
        if other is not row:
            if other.picture.source != picture.source:
                raise ValueError(
                    f"{row.where}: {picture.source} and {other.picture.source} would both be {picture.target}"
                )
            continue
        if picture.source is None:
            faults[picture.target] = f"{row.where}: no picture {picture.looked_for} in the release"
            continue
        fault = _header_fault(picture.source)
        if fault:
            faults[picture.target] = f"{row.where}: {fault}"
    return faults


def _header_fault(path: Path) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, about what it can read nevertheless
            Image.open(path, formats=FORMATS).close()
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        return f"{path} cannot be opened as a picture ({error})"
    return None


def _check_rows(rows: Sequence[PreparedRow], release: Release) -> list[str]:
    """Places of the rows whose references are all empty, after reading every row as the evaluator will."""
    pictures = ImagePaths(release.folder / "rows", release.folder, "--src")
    root = release.folder
    empty = []
    for number, row in enumerate(rows):
        line = _fields(row) | {"image": row.picture.source.relative_to(root).as_posix()}
        try:
            read_question(number, line, row.where, pictures)
        except RowFault as fault:
            if fault.kind != EMPTY_ANSWER:
                raise
            empty.append(
                f"{row.where}: question_id {row.question_id!r} has no reference with text; nothing scores there"
            )
    return empty


def _fields(row: PreparedRow) -> dict[str, Any]:
    return {
        "image": row.picture.target,
        "question": row.question,
        "answer": row.answer,
        "question_id": row.question_id,
        **row.more,
    }


def _line(row: PreparedRow) -> str:
    return json.dumps(_fields(row), ensure_ascii=False) + "\n"


def _annotation_content(prepared: Prepared, name: str) -> bytes | Path:
    assert prepared.annotations is not None, f"the preparer of {name} makes no annotation file"
    if isinstance(prepared.annotations, Path):
        return prepared.annotations
    return (json.dumps(prepared.annotations, ensure_ascii=False) + "\n").encode()


def _add_pictures(files: StagedFiles, rows: Sequence[PreparedRow], link: bool) -> dict[str, Picture]:
    """Every picture once; by its target."""
    pictures = {row.picture.target: row.picture for row in rows}
    for picture in tqdm(pictures.values(), desc="pictures", unit="picture", leave=False, disable=None):
        if picture.change is not None:
            place = files.out / picture.target
            if place.exists() and place.samefile(picture.source):
                # The release would then hold a changed picture, to be changed once more the next time.
                raise ValueError(
                    f"{place} is the release's own and is to be written {picture.changed}; give another --out"
                )
            files.add(picture.target, picture.change(picture.source))
        else:
            files.add(picture.target, Path(os.path.realpath(picture.source)), link)
    return pictures


def _described_sources(release: Release) -> dict[str, Any]:
    """Size and SHA-256 of the files of the release that were read, pictures aside, by their path in it."""
    return {path.relative_to(release.folder).as_posix(): file_mark(path)._asdict() for path in release.sources}


def _described_files(files: StagedFiles, pictures: dict[str, Picture]) -> dict[str, Any]:
    """Size and SHA-256 of each file, and of a picture that was changed from which file and how."""
    described: dict[str, Any] = {}
    for target, mark in files.marks.items():
        described[target] = mark._asdict()
        picture = pictures.get(target)
        if picture is not None and picture.change is not None:
            described[target] |= {"changed": picture.changed, "sha256_before": file_mark(picture.source).sha256}
    return described


def _is_manifest_of(path: Path, name: str) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["task"] == name
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        return False
