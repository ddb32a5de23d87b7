"""Draws every sheet, checks each answer against what was drawn, and writes images, questions and manifest."""

from __future__ import annotations

import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import PIL
from PIL import Image

from monkey.boxes import GRID
from monkey.files import refuse_existing
from monkey.journal import atomic_folder, json_line, write_atomic, write_json
from monkey.provenance import file_digest
from scripts.wild.catalog import sheets
from scripts.wild.engines import Box, Drawn, Mark, chromium, draw_by_chromium, draw_by_tex
from scripts.wild.scan import scan
from scripts.wild.sheet import COPIED, Sheet

SEED = 1907
FORMAT = "monkey wild documents, 1"
FOLDER = "data/wild"
"""Where the set lies in the repository; the images of its rows start there, as those of the published sets do."""
MARGIN = 1
"""Pixels around the ink of a box."""
SMALL_QUALITY = 85
GRIDS = tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7) if rows * columns <= 6)
WINDOW = 224
"""Of the canvas for which the manifest counts letters: as many such windows as suit the image, up to six."""


@dataclass
class Rows:
    """Rows of the files, by name."""

    files: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {
        "wild": [], "wild_read": [], "wild_box": [], "wild_box_text": [], "pages": [],
    })  # fmt: skip
    count: int = 0

    def add(self, file: str, row: dict[str, Any]) -> None:
        row["question_id"] = self.count
        self.count += 1
        self.files[file].append(row)


def write_set(output: Path, seed: int = SEED, only: str = "") -> str:
    """Draw the set into a new folder; return a sentence on it.

    Raises:
        ValueError: the folder holds something, or an answer does not agree with what was drawn.
        FileNotFoundError: an engine is not installed.
    """
    refuse_existing(output)
    rows, thumbnails = Rows(), []
    with atomic_folder(output) as folder, TemporaryDirectory() as work, chromium() as browser:
        (folder / "images").mkdir()
        faults = []
        for name, sheet in sheets(seed):
            if only not in name:
                continue
            try:
                clean = (
                    draw_by_tex(sheet, Path(work) / name) if sheet.engine == "tex" else draw_by_chromium(browser, sheet)
                )
                drawn = scan(clean, sheet.scan, sheet.rng)
                file = _save(drawn.image, folder / "images" / name, sheet)
                _add_rows(rows, sheet, drawn, f"{FOLDER}/images/{file.name}")
            except ValueError as error:
                faults.append(f"{name}: {error}")
                continue
            thumbnails.append(drawn.image)
        if faults:
            raise ValueError("; ".join(faults))
        for name, own in rows.files.items():
            write_atomic(folder / f"{name}.jsonl", b"".join(map(json_line, own)))
        draw_contact_sheet(thumbnails).save(folder / "sheet.jpg", quality=72)
        write_json(folder / "manifest.json", _manifest(folder, rows, seed, browser.version))
    size = sum(path.stat().st_size for path in output.rglob("*.*"))
    return f"{len(thumbnails)} images, {rows.count} questions, {size:,} bytes in {output}"


def _save(image: Image.Image, stem: Path, sheet: Sheet) -> Path:
    """Save an image: scans and images without text as JPEG, TeX's as PNG, the rest as WebP without loss."""
    if sheet.scan or sheet.document == "without_text":
        path = stem.with_suffix(".jpg")
        image.save(path, "JPEG", quality=int(sheet.scan.get("jpeg", SMALL_QUALITY)), optimize=True)
    elif sheet.engine == "tex":
        path = stem.with_suffix(".png")
        image.save(path, "PNG", optimize=True)
    else:
        path = stem.with_suffix(".webp")
        image.save(path, "WEBP", lossless=True, method=4)
    return path


def _add_rows(rows: Rows, sheet: Sheet, drawn: Drawn, image: str) -> None:
    """Add the rows of an image.

    Raises ValueError for an answer that is not where it should be, and for a box that is not one text alone.
    """
    text = " ".join(word.text for word in drawn.words)
    shared = {"document": sheet.document, "engine": sheet.engine}
    for question in sheet.questions:
        height, answers = 0, list(question.answers)
        if question.at is not None:
            mark = drawn.marks[question.at]
            height = round(mark.height)
            # What is printed comes first.
            answers.sort(key=lambda answer: -len(answer) if answer in mark.text else 0)
            if question.kind in COPIED and answers[0] not in mark.text:
                raise ValueError(f"{question.text!r}: {answers} is not in {mark.text!r}")
        if question.kind in COPIED and answers[0] not in text:
            raise ValueError(f"{question.text!r}: {answers[0]!r} is not in the words {text!r}")
        rows.add("wild", {
            "image": image, "question": question.text, "answer": answers if len(answers) > 1 else answers[0],
            "kind": question.kind, "wording": question.wording, **shared, "fact": question.fact, "text_height": height,
        })  # fmt: skip
    for name in sheet.boxes:
        mark = drawn.marks[name]
        if text.count(mark.text) != 1:
            raise ValueError(f"{mark.text!r} occurs {text.count(mark.text)} times, and cannot be asked for as a box")
        rows.add("wild_box", {
            "image": image, "question": mark.text, "answer": write_box(mark.box, drawn.image.size), "kind": "box",
            "wording": "trained", **shared, "text_height": round(mark.height),
        })  # fmt: skip
    for name in sheet.box_texts:
        mark = drawn.marks[name]
        question = write_box(mark.box, drawn.image.size).removeprefix("<box>").removesuffix("</box>")
        rows.add("wild_box_text", {
            "image": image, "question": question, "answer": mark.text, "kind": "box_text", "wording": "trained",
            **shared, "text_height": round(mark.height),
        })  # fmt: skip
    lines = read_rows(drawn.words)
    heights = [mark.height for mark in drawn.marks.values()]
    for wording, question in sheet.readings.items():
        rows.add("wild_read", {
            "image": image, "question": question, "answer": "\n".join(lines), "kind": "read", "wording": wording,
            **shared, "text_height": round(min(heights)),
        })  # fmt: skip
    rows.files["pages"].append({
        "image": image, **shared, "font": sheet.font, "size": list(drawn.image.size), "scan": sheet.scan,
        "words": [[word.text, *map(round, word.box)] for word in drawn.words],
    })  # fmt: skip


def write_box(box: Box, size: tuple[int, int]) -> str:
    """Return a box in pixels as Qwen-VL writes it, with a margin around the ink."""
    width, height = size
    left, top, right, bottom = box
    sides = (max(0, left - MARGIN) / width, max(0, top - MARGIN) / height,
             min(width, right + MARGIN) / width, min(height, bottom + MARGIN) / height)  # fmt: skip
    x1, y1, x2, y2 = (round(GRID * side) for side in sides)
    return f"<box>({x1},{y1}),({x2},{y2})</box>"


def read_rows(words: Sequence[Mark]) -> list[str]:
    """Return the lines of a page from top to bottom: a word whose middle lies in the height of a row belongs to it."""
    rows: list[list[Mark]] = []
    for word in sorted(words, key=lambda word: word.box[1] + word.box[3]):
        middle = (word.box[1] + word.box[3]) / 2
        own = next((row for row in rows if min(w.box[1] for w in row) <= middle <= max(w.box[3] for w in row)), None)
        if own is None:
            rows.append([word])
        else:
            own.append(word)
    lines = (" ".join(word.text for word in sorted(row, key=lambda word: word.box[0])) for row in rows)
    # A sign behind a mark is a word of its own.
    return [re.sub(" ([,.])(?= |$)", r"\1", line) for line in lines]


def largest_scale(size: tuple[int, int]) -> float:
    """Return how much an image is scaled to fit the best of the grids."""
    width, height = size
    return max(min(columns * WINDOW / width, rows * WINDOW / height) for rows, columns in GRIDS)


def _manifest(folder: Path, rows: Rows, seed: int, chromium_version: str) -> dict[str, Any]:
    pages = rows.files["pages"]
    scales = {page["image"]: largest_scale(tuple(page["size"])) for page in pages}
    asked = [row for name, own in rows.files.items() if name != "pages" for row in own]
    heights = [row["text_height"] * scales[row["image"]] for row in asked if row["text_height"]]
    return {
        "format": FORMAT,
        "seed": seed,
        "versions": {
            "python": platform.python_version(), "pillow": PIL.__version__, "chromium": chromium_version,
            "pdftex": _first_line("pdftex", "--version"), "poppler": _first_line("pdftoppm", "-v"),
        },
        "fonts": sorted({page["font"] for page in pages} - {""}),
        "images": len(pages),
        "questions": {name: len(own) for name, own in rows.files.items() if name != "pages"},
        "kinds": _counts(row["kind"] for row in asked),
        "wordings": _counts(row["wording"] for row in rows.files["wild"]),
        "documents": _counts(page["document"] for page in pages),
        "engines": _counts(page["engine"] for page in pages),
        "capitals_at_six_windows": {
            "below 6 pixels": sum(height < 6 for height in heights),
            "6 to 8": sum(6 <= height < 8 for height in heights),
            "8 and more": sum(height >= 8 for height in heights),
        },
        "sha256": {
            str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*.*")) if path.is_file()
        },
    }  # fmt: skip


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return (done.stdout or done.stderr).splitlines()[0]


def draw_contact_sheet(images: Sequence[Image.Image], columns: int = 14, side: int = 110) -> Image.Image:
    """Return all images, small, side by side."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 6), rows * (side + 6)), (120, 120, 120))
    for number, image in enumerate(images):
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        x, y = number % columns * (side + 6) + 3, number // columns * (side + 6) + 3
        sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
    return sheet
