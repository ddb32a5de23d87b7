"""A run as one HTML file that needs nothing else.

    python -m monkey.describe view RUN                          # RUN/view.html
    python -m monkey.describe view RUN --only flagged           # images whose description breaks a rule
    python -m monkey.describe view RUN --start 500 --limit 500  # the next five hundred
    python -m monkey.describe view RUN --ids signs/000003.png   # by file, or by the first digits of the hash

Each image is shown with its boxes, segments, scores, what was filtered and why, the prompt and the description. The
page makes no request to anywhere. Images are looked for where the run found them (relative paths: from the current
folder), or in --images, and only shown when their bytes are those of the run.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from monkey.describe.filters import DUPLICATE, EMPTY, SCORE
from monkey.describe.findings import REGION, SEGMENT, TEXT, ImageFile, pack_mask, unpack_mask
from monkey.describe.output import FinishedRun, ImageRun
from monkey.describe.prompt import prompt_parts, write_prompt
from monkey.images import open_image, read_image_file
from monkey.journal import write_atomic
from monkey.page import render_page

GOOD, FLAGGED, FAILED = "good", "flagged", "failed"
STATES = (GOOD, FLAGGED, FAILED)

MIN_HASH = 6
"""First digits of a hash that name an image."""

MAX_TEXT, MAX_CANDIDATES, MAX_PROBLEMS = 4000, 400, 200
"""What is shown of a text that was written or read, of an image, and of a run."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where the page goes (view.html in the run's folder)"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="of the images, where they lie elsewhere now")
    parser.add_argument("--only", choices=STATES, help="only images in this state")
    parser.add_argument(
        "--ids", nargs="+", default=(), metavar="NAME", help="only these: files, or beginnings of hashes"
    )
    parser.add_argument("--start", type=int, default=0, metavar="N", help="leave out the first N of them")
    parser.add_argument("--limit", type=int, default=500, metavar="N", help="most images (%(default)s)")
    parser.add_argument("--megabytes", type=float, default=20.0, help="most room for them (%(default)g)")
    parser.add_argument("--side", type=int, default=448, help="longest side of a small image in pixels (%(default)s)")


def main(flags: argparse.Namespace) -> int:
    """Write the page. Raises ValueError and OSError, each one sentence."""
    for name, least in (("start", 0), ("limit", 1), ("side", 16)):
        if getattr(flags, name) < least:
            raise ValueError(f"--{name} {getattr(flags, name)} is too small: {least} or more is needed")
    if flags.megabytes <= 0:
        raise ValueError(f"--megabytes {flags.megabytes:g} must be above 0")
    if flags.images is not None and not flags.images.is_dir():
        raise FileNotFoundError(f"--images {flags.images}: no such folder")
    run = FinishedRun(flags.run)
    path = flags.output or run.folder / "view.html"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: the folder {path.parent} does not exist")
    images = flags.images or Path(run.manifest["images"])
    entries, num_found = choose_entries(run, images, flags)
    last = flags.start + len(entries)
    extent = f"{flags.start + 1:,} to {last:,} of {num_found:,}" + (f"; --start {last} goes on" * (last < num_found))
    num_hidden = sum(entry["picture"] is None for entry in entries)
    write_atomic(path, _render(run, entries, flags.only, extent, num_hidden))
    print(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB): {extent}")
    if num_hidden:
        print(f"  {num_hidden:,} images are not in {images}, or are others now; --images names another")
    return 0


def choose_entries(run: FinishedRun, images: Path, flags: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """Return the entries of the page, and how many images fit.

    Raises ValueError where no image fits, or a name of `--ids` means none.
    """
    problems = {problem["file"]: problem for problem in run.problems()}
    unknown, entries, num_found, room = set(flags.ids), [], 0, flags.megabytes * 1e6
    for image in tqdm(run.images(), total=len(run), desc="images", unit="image", disable=None):
        meant = {name for name in flags.ids if _means(name, image)}
        unknown -= meant
        if (flags.ids and not meant) or flags.only not in (None, state_of(image)):
            continue
        num_found += 1
        if num_found <= flags.start or len(entries) == flags.limit or room < 0:
            continue
        entry = describe_entry(run, image, images, flags.side, problems.get(image["images"].file))
        room -= len(json.dumps(entry))
        if room >= 0 or not entries:
            entries.append(entry)
    if unknown:
        raise ValueError(
            f"{run.folder} has no image {sorted(unknown)[0]!r}: --ids takes files as in stages/images.jsonl, or "
            f"{MIN_HASH} or more first digits of a hash"
        )
    if num_found and not entries:
        raise ValueError(f"--start {flags.start} leaves none of the {num_found:,} images; give a smaller one")
    if not entries:
        what = f"{flags.only} image" if flags.only else "image"
        raise ValueError(f"{run.folder} has no {what} to show; nothing was written")
    return entries, num_found


def _means(name: str, image: ImageRun) -> bool:
    is_hash = len(name) >= MIN_HASH and image.digest.startswith(name.lower())
    return is_hash or name in (image["images"].file, *image["images"].also)


def state_of(image: ImageRun) -> str:
    """Return what became of an image: a good description, one that breaks a rule, or none."""
    if "summary" not in image:
        return FAILED
    return FLAGGED if image["summary"].problems else GOOD


def describe_entry(
    run: FinishedRun, image: ImageRun, images: Path, side: int, problem: Mapping[str, str] | None
) -> dict[str, Any]:
    """Return what the page's script reads of an image. Raises ValueError for a damaged mask."""
    shown, prompt, description = image["images"], None, None
    picture, reason = draw_thumbnail(image.digest, shown, images, side)
    candidates = list(_candidates(image))
    if {"caption", "filters"} <= image.results.keys():
        most = run.manifest["stages"]["summary"]["settings"].get("most_sentences", 5)
        prompt = clip(write_prompt(image["caption"], image["filters"], most), 5 * MAX_TEXT)
    if "summary" in image:
        description = {**asdict(image["summary"]), "text": clip(image["summary"].text)}
    return {
        "image": image.digest,
        "file": shown.file,
        "also": list(shown.also),
        "size": [shown.width, shown.height],
        "state": state_of(image),
        "failure": None if problem is None else f"{problem['stage']}: {clip(problem['problem'])}",
        "caption": clip(image["caption"].text) if "caption" in image else None,
        "candidates": candidates[:MAX_CANDIDATES],
        "left_out": max(0, len(candidates) - MAX_CANDIDATES),
        "prompt": prompt,
        "picture": picture,
        "no_picture": reason,
        "description": description,
    }


def draw_thumbnail(digest: str, shown: ImageFile, images: Path, side: int) -> tuple[str | None, str]:
    """Return a JPEG as a data URI, or None and why there is none: boxes must not be drawn on another image."""
    reason = "it is not there"
    for name in (shown.file, *shown.also):
        path = (images / name).resolve()
        if not path.is_relative_to(images.resolve()) or not path.is_file():
            continue
        try:
            content = read_image_file(path)
            if hashlib.sha256(content).hexdigest() != digest:
                reason = "its file has changed since the run"
                continue
            small = open_image(content, name=name)
        except (OSError, ValueError) as error:
            reason = str(error)
            continue
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=75, optimize=True)
        return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}", ""
    return None, reason


def _candidates(image: ImageRun) -> Iterator[dict[str, Any]]:
    """Yield what the experts saw, each judged where the run came so far."""
    segments = image["segments"].segments if "segments" in image else ()
    if "filters" in image:
        for one in image["filters"].candidates:
            mask = segments[one.index].mask if one.source == SEGMENT else None
            yield _row(one.source, one.box, one.text, one.score, one.dropped, one.because, mask)
        return
    for region in image["regions"].regions if "regions" in image else ():
        yield _row(REGION, region.box, region.text)
    for line in image["text"].lines if "text" in image else ():
        yield _row(TEXT, line.box, line.text, line.score)
    texts = image["segment_captions"].texts if "segment_captions" in image else ("",) * len(segments)
    for segment, text in zip(segments, texts, strict=True):
        yield _row(SEGMENT, segment.box, text, mask=segment.mask)


def _row(source, box, text, score=None, dropped=None, because=None, mask=None) -> dict[str, Any]:
    return {
        "source": source,
        "box": [round(value, 4) for value in box],
        "text": clip(text),
        "score": None if score is None else round(score, 4),
        "dropped": dropped,
        "because": because,
        # Read and written again, so that the page inflates no more than a grid holds.
        "mask": None if mask is None else pack_mask(unpack_mask(mask)),
    }


def clip(text: str, length: int = MAX_TEXT) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length} more characters)"


def _render(run: FinishedRun, entries: list[dict[str, Any]], only: str | None, extent: str, num_hidden: int) -> str:
    problems, stages = run.problems(), run.manifest["stages"]
    return render_page(
        Path(__file__).with_name("view.html"),
        name=run.folder.resolve().name,
        manifest=run.manifest,
        is_asked=any(stage["requests"] for stage in stages.values()),
        total_seconds=sum(stage["seconds"] for stage in stages.values()) or 1.0,
        only=only,
        states=STATES,
        reasons={SCORE: "filtered by score", DUPLICATE: "with duplicates", EMPTY: "with empty texts"},
        sources={REGION: "regions", TEXT: "texts", SEGMENT: "segments"},
        num_problems=len(problems),
        problems=[(one["file"], one["stage"], clip(one["problem"])) for one in problems[:MAX_PROBLEMS]],
        extent=extent,
        num_hidden=num_hidden,
        is_reworded=run.manifest.get("prompts") != prompt_parts(),
        data={
            "entries": entries,
            "prompt": f"prompt{' (no model was asked)' * (stages['summary']['expert'] == 'rules')}",
        },
    )
