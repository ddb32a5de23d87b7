"""Sets of drawn images on disk: whole or not at all, taken up where they stopped, the same whatever the processes.

What draws gives a `Plan`: a picklable function from (split, number) to an image and its row of a journal, and what is
made of those rows in the end. A set is drawn in a hidden folder beside its place, which it takes when it is complete; a
run that was cut short goes on with the images that its journal does not have.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from monkey.journal import Journal, json_line, write_atomic, write_json
from monkey.provenance import package_versions

Row = dict[str, Any]

MANIFEST, JOURNAL, SETTINGS = "manifest.json", "drawn.jsonl", "settings"
SHARD = 200
"""Images that a process draws at a time."""
QUALITY = 93
"""JPEG quality of the files."""


@dataclass(frozen=True)
class Plan:
    """A set to be drawn.

    Attributes:
        format: what the manifest calls sets of this sort.
        settings: all that decides a pixel or a word, as JSON has it.
        counts: images of each split.
        draw: makes an image of a split and its row, which has at least "questions", each with its "kind".
        records: makes the training records of a split's rows.
        questions: makes the evaluator's rows of a split, by the name of their file, from the rows and the first id.
        trained: splits that are trained on.
        packages: on whose versions pixels depend, beside Python and Pillow.
    """

    format: str
    settings: Row
    counts: Mapping[str, int]
    draw: Callable[[str, int], tuple[Image.Image, Row]]
    records: Callable[[Sequence[Row]], Iterable[Row]]
    questions: Callable[[str, Sequence[Row], int], Mapping[str, Sequence[Row]]]
    trained: Sequence[str]
    packages: Sequence[str] = ()


def image_file(split: str, number: int) -> str:
    """Return where an image lies in the set's folder."""
    return f"images/{split}/{number:06d}.jpg"


def write_drawn_set(output: Path, plan: Plan, workers: int) -> tuple[Row, bool]:
    """Make the set in `output`, or find it there. Return its manifest and whether it was found.

    Raises ValueError where `output` holds something else, or another run is drawing it.
    """
    if output.exists() and any(output.iterdir()):
        manifest = _read_manifest(output / MANIFEST, plan.format)
        if manifest.get("settings") != plan.settings:
            raise ValueError(f"{output} holds something else than this set; give another --output or remove it")
        return manifest, True
    folder = output.with_name(f".{output.name}.partial")
    with Journal(folder / JOURNAL) as journal:
        if SETTINGS not in journal:
            journal.append([{"key": SETTINGS, "settings": plan.settings}])
        if journal[SETTINGS]["settings"] != plan.settings:
            raise ValueError(f"{folder} holds a begun set of other settings; remove it or give another --output")
        _draw_missing(folder, journal, plan, workers)
        manifest = _write_files(folder, journal, plan)
    (folder / JOURNAL).unlink()
    if output.exists():
        output.rmdir()
    folder.rename(output)
    return manifest, False


def _read_manifest(file: Path, form: str) -> Row:
    """Read the manifest of a folder; it is empty where it is not one of ours."""
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) and manifest.get("format") == form else {}


def _draw_missing(folder: Path, journal: Journal, plan: Plan, workers: int) -> None:
    """Draw the images that the journal does not have, and journal them shard by shard."""
    from tqdm import tqdm

    shards = []
    for split, count in plan.counts.items():
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        missing = [number for number in range(count) if image_file(split, number) not in journal]
        shards += [(split, missing[first : first + SHARD]) for first in range(0, len(missing), SHARD)]
    draw_shard = partial(_draw_shard, plan.draw, folder)
    progress = partial(tqdm, total=len(shards), desc="drawing", unit="shard", disable=None)
    if workers == 1 or len(shards) < 2:
        for rows in progress(map(draw_shard, shards)):
            journal.append(rows)
        return
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(workers, mp_context=get_context(method)) as pool:
        for rows in progress(pool.map(draw_shard, shards)):
            journal.append(rows)


def _draw_shard(
    draw: Callable[[str, int], tuple[Image.Image, Row]], folder: Path, shard: tuple[str, Sequence[int]]
) -> list[Row]:
    """Draw and save images of a split; return their rows for the journal."""
    split, numbers = shard
    rows = []
    for number in numbers:
        image, row = draw(split, number)
        file = image_file(split, number)
        image.save(folder / file, "JPEG", quality=QUALITY, subsampling=0)
        rows.append({"key": file, "number": number, **row})
    return rows


def _write_files(folder: Path, journal: Journal, plan: Plan) -> Row:
    """Write the files that training and the evaluator read, and the manifest; return it."""
    counts: Row = {}
    asked = 0
    for split in (split for split, count in plan.counts.items() if count):
        drawn = [journal[image_file(split, number)] for number in range(plan.counts[split])]
        kinds = Counter(question["kind"] for image in drawn for question in image["questions"])
        counts[split] = {"pictures": len(drawn), "questions": dict(sorted(kinds.items()))}
        if split in plan.trained:
            rows = ",\n".join(json.dumps(record, ensure_ascii=False) for record in plan.records(drawn))
            write_atomic(folder / f"{split}.json", f"[\n{rows}\n]\n")
        else:
            for name, rows in plan.questions(split, drawn, asked).items():
                write_atomic(folder / f"{name}.jsonl", b"".join(map(json_line, rows)))
            asked += kinds.total()
    versions = package_versions(("pillow", *plan.packages))
    manifest = {"format": plan.format, "settings": plan.settings, "versions": versions, "counts": counts}
    write_json(folder / MANIFEST, manifest)
    return manifest
