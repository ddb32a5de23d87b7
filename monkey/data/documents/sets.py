"""Draws a set of documents in shards, in parallel; a run that was cut short goes on with the shards that are missing.

A picture's random numbers start from (seed, split, number) alone, so the number of processes changes nothing. The set
stands in a hidden folder beside its place until it is complete.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import PIL

from monkey.data.documents import faces
from monkey.data.documents.kinds import DOCUMENTS, UNSEEN_LAYOUT, asked, reading
from monkey.data.documents.page import INKS, PAPERS, Page, Question
from monkey.data.documents.words import Words
from monkey.prompts import IMAGE_PLACE, REGION_QUESTION, VQA_AS_TRAINED

FORMAT = "monkey rendered documents, 3"
MANIFEST = "manifest.json"
SHARD = 200
"""Pictures of a shard."""
QUALITY = 93
"""JPEG quality of the files."""

FILES_OF_THEIR_OWN = ("read", "box")
"""Kinds of question that are scored apart from the others: long answers, and places."""

SPLITS = {
    "train": "to train on",
    "heldout": "texts, values, layouts and typefaces that train has not",
    "known": "the same, but train's typefaces",
    "layout": "a kind of document that train has not, to fine-tune on",
    "layout_heldout": "that kind, with texts, values, layouts and typefaces that layout has not",
}
"""Splits and what they hold. `layout` draws as `train` does, the others as held out."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a pixel or a word of a set. Counts are pictures of each split."""

    seed: int
    side: int
    counts: dict[str, int]
    weights: dict[str, int]
    """How often each kind of document is drawn."""
    questions: int = 6
    """Most questions of a picture, reading all of its text aside."""
    damage: float = 0.25
    """How often a picture is turned, noisy, compressed."""

    def check(self) -> None:
        """Raises ValueError naming the flag that cannot be followed."""
        if not 96 <= self.side <= 1024:
            raise ValueError(f"--side must lie between 96 and 1024 pixels, not at {self.side}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, not {self.seed}")
        for split, count in self.counts.items():
            if count < 0:
                raise ValueError(f"--{split.replace('_', '-')} must not be negative, not {count}")
        if not sum(self.counts.values()):
            raise ValueError("nothing to draw: give --train, --heldout, --known or --layout")
        if not 0 <= self.damage <= 1:
            raise ValueError(f"--damage must lie between 0 and 1, not at {self.damage}")
        if self.questions < 1:
            raise ValueError(f"--questions must be 1 or more, not {self.questions}")


def draw(settings: Settings, split: str, number: int) -> tuple[Page, Any, str, list[Question]]:
    """One picture: page, image, kind of document, questions (reading first where the picture has text)."""
    held_out = split in ("heldout", "known", "layout_heldout")
    layout = split.startswith("layout")
    attempt = 0
    while True:
        # A text as seed is hashed by SHA-512, the same on every machine and Python.
        rng = random.Random(f"{settings.seed}/{split}/{number}/{attempt}")
        kinds = UNSEEN_LAYOUT if layout else {name: DOCUMENTS[name] for name in settings.weights}
        kind = rng.choice(list(kinds)) if layout else rng.choices(list(kinds), list(settings.weights.values()))[0]
        page = Page(
            rng,
            settings.side,
            faces.pick(rng, held_out and split != "known", held_out),
            held_out,
            rng.choice(PAPERS),
            rng.choice(INKS),
        )
        questions = kinds[kind](page, Words(rng, held_out))
        if len(questions) >= 2 and all(page.fits(line) for line in page.lines):
            break
        attempt += 1
    image = page.finish(settings.damage)
    whole = reading(rng, page.lines)
    return page, image, kind, [*([whole] if whole else []), *asked(rng, page, questions, settings.questions)]


def image_file(split: str, number: int) -> str:
    """Where a picture lies in the set's folder."""
    return f"images/{split}/{number:06d}.jpg"


def draw_shard(settings: Settings, folder: str, place: tuple[str, int]) -> None:
    """Draws the pictures of one shard, then writes its list; a shard with a list is complete."""
    split, first = place
    target = Path(folder, "shards", f"{split}-{first:06d}.json")
    if target.exists():
        return
    drawn = []
    for number in range(first, min(first + SHARD, settings.counts[split])):
        _, image, kind, questions = draw(settings, split, number)
        image.save(Path(folder, image_file(split, number)), "JPEG", quality=QUALITY, subsampling=0)
        drawn.append({"number": number, "kind": kind, "questions": [asdict(question) for question in questions]})
    partial_file = target.with_suffix(f".partial-{os.getpid()}")
    partial_file.write_text(json.dumps(drawn, ensure_ascii=False), encoding="utf-8")
    partial_file.replace(target)


def write_set(output: Path, settings: Settings, workers: int = 2) -> tuple[dict[str, Any], bool]:
    """Makes the set in `output`, or finds it there. Returns its manifest and whether it was found.

    Raises ValueError where `output` holds something else.
    """
    settings.check()
    described = json.loads(json.dumps(asdict(settings)))
    if output.exists() and any(output.iterdir()):
        manifest = _manifest(output / MANIFEST)
        if manifest.get("settings") != described:
            raise ValueError(f"{output} holds something else than this set; give another --output or remove it")
        return manifest, True
    folder = output.with_name(f".{output.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "settings.json"
    if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) != described:
        raise ValueError(f"{folder} holds a begun set of other settings; remove it or give another --output")
    begun.write_text(json.dumps(described), encoding="utf-8")
    (folder / "shards").mkdir(exist_ok=True)
    places = []
    for split, count in settings.counts.items():
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        places += [(split, first) for first in range(0, count, SHARD)]
    _draw_all(partial(draw_shard, settings, str(folder)), places, workers)
    manifest = _collect(folder, settings, described)
    if output.exists():
        output.rmdir()
    folder.rename(output)
    return manifest, False


def _manifest(file: Path) -> dict[str, Any]:
    """The manifest of a folder; empty where it is none of ours."""
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else {}


def _draw_all(task: partial, places: Sequence[tuple[str, int]], workers: int) -> None:
    from tqdm import tqdm

    progress = partial(tqdm, total=len(places), desc="drawing", unit="shard", disable=None)
    if workers == 1 or len(places) < 2:
        for place in progress(places):
            task(place)
        return
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(workers, mp_context=get_context(method)) as pool:
        list(progress(pool.map(task, places)))


def _collect(folder: Path, settings: Settings, described: dict[str, Any]) -> dict[str, Any]:
    """The records and questions of all shards, as the files that training and the evaluator read."""
    counts: dict[str, Any] = {}
    question_id = 0
    for split, count in settings.counts.items():
        if not count:
            continue
        shards = sorted((folder / "shards").glob(f"{split}-[0-9]*.json"))
        pictures = [picture for shard in shards for picture in json.loads(shard.read_text(encoding="utf-8"))]
        asked_kinds = Counter(question["kind"] for picture in pictures for question in picture["questions"])
        counts[split] = {"pictures": len(pictures), "questions": dict(sorted(asked_kinds.items()))}
        if split in ("train", "layout"):
            _write_records(folder / f"{split}.json", split, pictures)
            continue
        files: dict[str, list[dict[str, Any]]] = {}
        for picture in pictures:
            for question in picture["questions"]:
                name = f"{split}_{question['kind']}" if question["kind"] in FILES_OF_THEIR_OWN else split
                row = {
                    "image": image_file(split, picture["number"]),
                    "question": question["text"] if question["kind"] != "box" else _asked_for(question["text"]),
                    "answer": question["answer"],
                    "question_id": question_id,
                    "kind": question["kind"],
                    "document": picture["kind"],
                    "text_height": question["height"],
                }
                files.setdefault(name, []).append(row)
                question_id += 1
        for name, rows in files.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    versions = {"python": platform.python_version(), "pillow": PIL.__version__}
    manifest = {"format": FORMAT, "settings": described, "versions": versions, "counts": counts}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for shard in (folder / "shards").iterdir():
        shard.unlink()
    (folder / "shards").rmdir()
    (folder / "settings.json").unlink()
    return manifest


def _asked_for(question: str) -> str:
    """The text whose box is asked for: the task's own prompt has the rest, with its control tokens."""
    before, after = REGION_QUESTION.split("{question}")
    return question.removeprefix(before).removesuffix(after)


def _write_records(file: Path, split: str, pictures: Sequence[dict[str, Any]]) -> None:
    """Two records a picture: reading its text alone, and the other questions as turns that never see that answer."""
    records = []
    for picture in pictures:
        image = f"<img>{image_file(split, picture['number'])}</img>"
        name = f"{picture['kind']}-{picture['number']:06d}"
        read = [question for question in picture["questions"] if question["kind"] == "read"]
        others = [question for question in picture["questions"] if question["kind"] != "read"]
        for label, questions in (("read", read), ("asked", others)):
            if questions:
                records.append({"id": f"{name}-{label}", "conversations": _turns(image, questions)})
    rows = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    file.write_text(f"[\n{rows}\n]\n", encoding="utf-8", newline="\n")


def _turns(image: str, questions: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    turns = []
    for question in questions:
        prompt = VQA_AS_TRAINED.replace(IMAGE_PLACE, "" if turns else image).format(question=question["text"])
        turns += [{"from": "user", "value": prompt}, {"from": "assistant", "value": question["answer"]}]
    return turns
