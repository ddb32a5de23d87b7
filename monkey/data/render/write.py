"""Writes a sample set to its folder, all or nothing, with a manifest; recognises one that is already there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL

from monkey.data.render.generate import Sample, draw_all, majority
from monkey.data.render.settings import Settings
from monkey.prompts import IMAGE_PLACE, VQA_AS_TRAINED

FORMAT = "monkey rendered set, 1"
MANIFEST = "manifest.json"


def write_set(
    output: Path, settings: Settings, workers: int = 2, overwrite: bool = False
) -> tuple[dict[str, Any], bool]:
    """Makes the set in `output`, or finds it there. Returns its manifest and whether it was found.

    Raises ValueError where `output` holds something else, or a set of other settings and not `overwrite`.
    """
    settings.check()
    found = _manifest_of(output)
    if found is not None and not overwrite:
        _require_same(output, found, settings)
        return found, True
    # Drawn beside the folder and renamed at the end, so that a run that dies leaves no half a set under its name.
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        manifest = _write(partial, settings, workers)
        if output.exists():
            old = output.with_name(f".{output.name}.replaced-{os.getpid()}")
            output.rename(old)
            partial.rename(output)
            shutil.rmtree(old)
        else:
            partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest, False


def _manifest_of(output: Path) -> dict[str, Any] | None:
    """The manifest of the set in `output`; None where there is nothing yet."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    file = output / MANIFEST
    if not file.is_file():
        raise ValueError(f"{output} holds something else (it has no {MANIFEST}); give another --output")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not readable ({error}); give another --output") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{file} is not the manifest of a rendered set; give another --output")
    return manifest


def _require_same(output: Path, manifest: dict[str, Any], settings: Settings) -> None:
    wanted = settings.described()
    there = manifest["settings"]
    differing = [
        f"{name} {there.get(name)} (wanted {wanted[name]})" for name in wanted if there.get(name) != wanted[name]
    ]
    if differing:
        raise ValueError(f"{output} holds a set with {'; '.join(differing)}; give --overwrite or another --output")
    if _digests(output) != manifest["sha256"]:
        raise ValueError(f"{output} was changed since it was made; give --overwrite or another --output")


def _write(folder: Path, settings: Settings, workers: int) -> dict[str, Any]:
    samples = draw_all(settings, folder, workers)
    if samples["train"]:
        _write_conversations(folder / "train.json", samples["train"])
    _write_conversations(folder / "heldout.json", samples["heldout"])
    questions = _questions(samples["heldout"])
    _write_lines(folder / "heldout_all.jsonl", [row for rows in questions.values() for row in rows])
    (folder / "heldout").mkdir()
    for task, rows in questions.items():
        _write_lines(folder / "heldout" / f"{task}.jsonl", rows)
    guessed = majority(samples["heldout"])
    manifest = {
        "format": FORMAT,
        "settings": settings.described(),
        "versions": {"python": platform.python_version(), "pillow": PIL.__version__},
        "counts": {split: _counts(found) for split, found in samples.items()},
        "majority_answer": {**guessed, "mean": round(sum(guessed.values()) / len(guessed), 4)},
        "sha256": _digests(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _write_conversations(file: Path, samples: Sequence[Sample]) -> None:
    """One record a picture, its questions as turns with the prompt as trained; a JSON list, a record on each line.

    The picture stands in the first turn, so that it is encoded once for all of its questions.
    """
    records = []
    for sample in samples:
        turns = []
        for question in sample.questions:
            picture = "" if turns else f"<img>{sample.file}</img>"
            prompt = VQA_AS_TRAINED.replace(IMAGE_PLACE, picture).format(question=question.text)
            turns += [{"from": "user", "value": prompt}, {"from": "assistant", "value": question.answer}]
        records.append({"id": f"{sample.task}-{sample.number:06d}", "conversations": turns})
    rows = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    file.write_text(f"[\n{rows}\n]\n", encoding="utf-8", newline="\n")


def _questions(samples: Sequence[Sample]) -> dict[str, list[dict[str, Any]]]:
    """Evaluation rows by task, with ids that differ over all tasks."""
    rows: dict[str, list[dict[str, Any]]] = {}
    question_id = 0
    for sample in samples:
        for question in sample.questions:
            row = {
                "image": sample.file,
                "question": question.text,
                "answer": question.answer,
                "question_id": question_id,
            }
            rows.setdefault(sample.task, []).append(row)
            question_id += 1
    return rows


def _write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(lines, encoding="utf-8", newline="\n")


def _counts(samples: Sequence[Sample]) -> dict[str, Any]:
    counts: dict[str, Any] = {"pictures": len(samples), "questions": sum(len(sample.questions) for sample in samples)}
    for sample in samples:
        task = counts.setdefault(sample.task, {"pictures": 0, "questions": 0})
        task["pictures"] += 1
        task["questions"] += len(sample.questions)
    counts["texts"] = len({text for sample in samples for text in sample.texts})
    return counts


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the set but the manifest; of the pictures, one over all their names and digests."""
    digests = {}
    pictures = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name == MANIFEST:
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix == ".png":
            pictures.update(f"{name} {digest}\n".encode())
        else:
            digests[name] = digest
    return {**digests, "images": pictures.hexdigest()}
