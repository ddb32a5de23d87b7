"""Which questions of a run go into its report, and their images, under stated limits."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from eval.run_folder import STOPPED_AT_LENGTH, Line, TaskRun
from eval.score import item_of, part_of

NOTABLE_SHARE = 0.7
"""Of the rows of a task that is not shown whole, at most this part is chosen because it is notable."""

LONGEST_TEXT = 4000
"""Characters of a question, answer, prompt or reference."""

LONGEST_KIND = 80
MOST_REFERENCES = 30
_EQUAL = 1e-9


@dataclass(frozen=True)
class Limits:
    """`questions` per task, `pictures` in all, `picture_bytes` of them in all; an image's longest side in pixels."""

    questions: int = 500
    pictures: int = 600
    picture_bytes: int = 12_000_000
    picture_side: int = 320


@dataclass(frozen=True)
class Shown:
    """The chosen rows of a task, each with a line per run, in order of row."""

    task: TaskRun
    rows: Sequence[tuple[Line, ...]]
    total: int
    notable: int

    @property
    def sentence(self) -> str:
        if len(self.rows) == self.total:
            return f"{self.task.name}: all {self.total}."
        return (
            f"{self.task.name}: {len(self.rows)} of {self.total}, of which {self.notable} were chosen because an "
            f"answer is cut off, variants disagree or the runs differ, and {len(self.rows) - self.notable} at random."
        )


@dataclass(frozen=True)
class Thumbnails:
    """Small images as data URIs, and the number of each; `missing` could not be read, `left_out` had no room."""

    uris: Sequence[str]
    numbers: dict[str, int]
    missing: int
    left_out: int


def chosen_rows(tasks: Sequence[TaskRun], limit: int) -> Shown:
    """Choose the rows to show of one task of one run, or of two runs that were checked to have the same rows.

    Notable rows go first: cut-off answers, variants that disagree and, with two runs, scores that differ. The rest is
    drawn at random, the same each time. Tables and charts count every row, whatever is shown.
    """
    rows = list(zip(*(task.lines for task in tasks), strict=True))
    if len(rows) <= limit:
        return Shown(tasks[0], rows, len(rows), 0)
    headline = tasks[0].results["headline"]

    def is_notable(row: tuple[Line, ...]) -> bool:
        scores = [[line["scores"].get(headline, 0.0) for line in row], *(line["scores"].values() for line in row)]
        is_cut_off = any(line.get("stop") == STOPPED_AT_LENGTH for line in row)
        return is_cut_off or any(max(one) - min(one) > _EQUAL for one in scores if one)

    def number(row: tuple[Line, ...]) -> int:
        return row[0]["row"]

    shuffled = sorted(rows, key=lambda row: hashlib.sha256(str(number(row)).encode()).digest())
    notable = [row for row in shuffled if is_notable(row)][: int(limit * NOTABLE_SHARE)]
    taken = set(map(number, notable))
    drawn = [row for row in shuffled if number(row) not in taken][: limit - len(notable)]
    return Shown(tasks[0], sorted([*notable, *drawn], key=number), len(rows), len(notable))


def thumbnails(shown: Sequence[Shown], limits: Limits, root: Path | None = None) -> Thumbnails:
    """Make small images of the shown rows, taken from the tasks in turn until a limit is reached.

    Images are looked for where the run found them, which may be relative to the current folder, and then under `root`.
    """
    of_tasks = [list(dict.fromkeys(row[0]["image"] for row in one.rows)) for one in shown]
    wanted = dict.fromkeys(image for turn in zip_longest(*of_tasks) for image in turn if image is not None)
    uris: list[str] = []
    numbers: dict[str, int] = {}
    missing = left_out = used = 0
    for image in wanted:
        if len(uris) >= limits.pictures or used >= limits.picture_bytes:
            left_out += 1
            continue
        content = thumbnail(image, limits.picture_side, root)
        if content is None:
            missing += 1
            continue
        numbers[image] = len(uris)
        uris.append(f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}")
        used += len(content)
    return Thumbnails(uris, numbers, missing, left_out)


def thumbnail(image: str, side: int, root: Path | None = None) -> bytes | None:
    """Return a JPEG of at most side × side pixels, without metadata; None for what cannot be found or opened."""
    from PIL import Image, ImageOps

    from monkey.images import DECODER_ERRORS, FORMATS

    places = [Path(image), *([root / image] if root is not None else [])]
    try:
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            return None
        with Image.open(path, formats=FORMATS) as opened:
            opened.draft("RGB", (2 * side, 2 * side))
            small = ImageOps.exif_transpose(opened)
            small.thumbnail((side, side))
            stream = io.BytesIO()
            on_white = Image.new("RGB", small.size, "white")
            with_alpha = small.convert("RGBA")
            on_white.paste(with_alpha, mask=with_alpha.getchannel("A"))
            on_white.save(stream, "JPEG", quality=68, optimize=True)
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return None  # no image, cut short, or too large to be one
    return stream.getvalue()


def page_data(shown: Sequence[Shown], run_names: Sequence[str], pictures: Thumbnails) -> dict[str, Any]:
    """Return what the page's script reads."""
    tasks = [_task_data(one, pictures) for one in shown]
    return {"runs": list(run_names), "pictures": list(pictures.uris), "tasks": tasks}


def _task_data(shown: Shown, pictures: Thumbnails) -> dict[str, Any]:
    results = shown.task.results
    scored = set.intersection(*({*line["scores"]} for row in shown.rows for line in row)) if shown.rows else set()
    variants = [name for name in results["scores"] if name in scored]
    return {
        "name": shown.task.name,
        "variants": variants,
        "headline": variants.index(results["headline"]) if results["headline"] in variants else 0,
        "rows": [_row_data(row, variants, pictures, results) for row in shown.rows],
    }


def _row_data(
    row: tuple[Line, ...], variants: Sequence[str], pictures: Thumbnails, results: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a row; its `kinds` are by the names that the set's parts are told apart by: 'kind: receipt'."""
    first, item = row[0], item_of(row[0])
    references = first["references"]
    more = [f"… and {len(references) - MOST_REFERENCES} more"] if len(references) > MOST_REFERENCES else []
    parts = {name: part_of(results["metric"], name, item) for name in results.get("parts", ())}
    return {
        "row": first["row"],
        "id": first["question_id"],
        "image": first["image"],
        "picture": pictures.numbers.get(first["image"]),
        "question": clipped(first["question"]),
        "references": [*map(clipped, references[:MOST_REFERENCES]), *more],
        "prompt": clipped(row[-1]["prompt"]),
        "answers": [
            {
                "text": clipped(line["answer"]),
                "scores": [round(line["scores"][name], 4) for name in variants],
                "cut_off": line.get("stop") == STOPPED_AT_LENGTH,
            }
            for line in row
        ],
        "kinds": [clipped(f"{name}: {part}", LONGEST_KIND) for name, part in parts.items() if part is not None],
    }


def clipped(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text) - longest} more characters)"
