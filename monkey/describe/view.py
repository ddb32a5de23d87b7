"""A run as one HTML file that needs nothing else.

    python -m monkey.describe view RUN                          # RUN/view.html
    python -m monkey.describe view RUN --only flagged           # pictures whose description breaks a rule
    python -m monkey.describe view RUN --start 500 --limit 500  # the next five hundred
    python -m monkey.describe view RUN --ids signs/000003.png   # by file, or by the first digits of the hash

Each picture is shown with its boxes, segments, scores, what was filtered and why, the prompt and the description. The
page makes no request to anywhere. Pictures are looked for where the run found them (relative paths: from the current
folder), or in --images, and only shown when their bytes are those of the run.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monkey.describe.filters import DUPLICATE, EMPTY, SCORE
from monkey.describe.finished import open_finished
from monkey.describe.prompting import prompt_parts
from monkey.describe.records import REGION, SEGMENT, TEXT, FinishedRun, PictureRun
from monkey.describe.view_entries import STATES, Entries, clipped, state_of
from monkey.journal import write_atomic
from monkey.page import render_page

PAGE = Path(__file__).with_name("view.html")

SHORTEST_HASH = 6
MOST_PROBLEMS = 200
FILTERED_BY = {SCORE: "filtered by score", DUPLICATE: "with duplicates", EMPTY: "with empty texts"}
SOURCES = {REGION: "regions", TEXT: "texts", SEGMENT: "segments"}
STAGE_HEADS = ("stage", "expert", "pictures", "failed", "seconds", "share", "pictures/s")


@dataclass(frozen=True)
class Choice:
    """Which pictures a page holds: of those in state `only` and named in `ids`, `limit` from number `start`.

    `page_bytes` bounds the pictures' part of the page; the first picture is always in.
    """

    start: int = 0
    limit: int = 500
    page_bytes: int = 20_000_000
    only: str | None = None
    ids: Sequence[str] = ()

    def names(self, picture: PictureRun) -> list[str]:
        """Those of `ids` that mean this picture."""
        files = (picture["images"].file, *picture["images"].also)
        return [
            name for name in self.ids if name in files or (_is_hash(name) and picture.image.startswith(name.lower()))
        ]


def _is_hash(name: str) -> bool:
    return re.fullmatch(rf"[0-9a-fA-F]{{{SHORTEST_HASH},64}}", name) is not None


@dataclass
class Chosen:
    """Entries of the page; `found` are all pictures that fit, `opened` those whose small picture is in the page."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    found: int = 0
    size: int = 0

    @property
    def without_picture(self) -> int:
        return sum(1 for entry in self.entries if entry["picture"] is None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = Choice()
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where the page goes (view.html in the run's folder)"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="of the pictures, where they lie elsewhere now")
    parser.add_argument("--only", choices=STATES, help="only pictures in this state")
    parser.add_argument(
        "--ids", nargs="+", default=(), metavar="NAME", help="only these: files, or beginnings of hashes"
    )
    parser.add_argument("--start", type=int, default=0, metavar="N", help="leave out the first N of them")
    parser.add_argument("--limit", type=int, default=defaults.limit, metavar="N", help="most pictures (%(default)s)")
    parser.add_argument(
        "--megabytes", type=float, default=defaults.page_bytes / 1e6, help="most room for them (%(default)g)"
    )
    parser.add_argument("--side", type=int, default=448, help="longest side of a small picture in pixels (%(default)s)")


def main(flags: argparse.Namespace) -> int:
    """Runs the command. Raises ValueError and OSError, each one sentence."""
    for name, least in (("start", 0), ("limit", 1), ("side", 16)):
        if getattr(flags, name) < least:
            raise ValueError(f"--{name} {getattr(flags, name)} is too small: {least} or more is needed")
    if flags.megabytes <= 0:
        raise ValueError(f"--megabytes {flags.megabytes:g} must be above 0")
    run = open_finished(flags.run)
    images = flags.images or Path(run.manifest["images"])
    if flags.images is not None and not flags.images.is_dir():
        raise FileNotFoundError(f"--images {flags.images}: no such folder")
    choice = Choice(flags.start, flags.limit, int(flags.megabytes * 1e6), flags.only, tuple(dict.fromkeys(flags.ids)))
    chosen = chosen_entries(run, images, flags.side, choice)
    place = flags.output or run.folder / "view.html"
    if not place.parent.is_dir():
        raise FileNotFoundError(f"--output {place}: the folder {place.parent} does not exist")
    write_atomic(place, page_of(run, chosen, choice))
    print(f"written to {place} ({place.stat().st_size / 1e6:.1f} MB): {limits_sentence(chosen, choice)}")
    if chosen.without_picture:
        print(f"  {chosen.without_picture:,} pictures are not in {images}, or are others now; --images names another")
    return 0


def chosen_entries(run: FinishedRun, images: Path, side: int, choice: Choice) -> Chosen:
    """The entries of a page. Raises ValueError where no picture fits, or a name of `choice.ids` means none."""
    problems = {problem["file"]: problem for problem in run.problems()}
    maker = Entries(run, images, side, problems)
    chosen, unknown, full = Chosen(), set(choice.ids), False
    for picture in tqdm(run.pictures(), total=len(run), desc="pictures", unit="picture", disable=None):
        meant = choice.names(picture)
        unknown.difference_update(meant)
        if (choice.ids and not meant) or choice.only not in (None, state_of(picture)):
            continue
        chosen.found += 1
        if full or chosen.found <= choice.start:
            continue
        entry = maker.entry(picture)
        size = len(json.dumps(entry))
        full = bool(chosen.entries) and chosen.size + size > choice.page_bytes
        if not full:
            chosen.entries.append(entry)
            chosen.size += size
            full = len(chosen.entries) == choice.limit
    if unknown:
        raise ValueError(
            f"{run.folder} has no picture {sorted(unknown)[0]!r}: --ids takes files as in stages/images.jsonl, or "
            f"{SHORTEST_HASH} or more first digits of a hash"
        )
    if not chosen.entries:
        what = "picture" if choice.only is None else f"{choice.only} picture"
        if chosen.found:
            raise ValueError(f"--start {choice.start} leaves none of the {chosen.found:,} pictures; give a smaller one")
        raise ValueError(f"{run.folder} has no {what} to show; nothing was written")
    return chosen


def limits_sentence(chosen: Chosen, choice: Choice) -> str:
    """What is in the page and how to see the rest."""
    last = choice.start + len(chosen.entries)
    if len(chosen.entries) == chosen.found:
        return f"all {chosen.found:,}" if chosen.found > 1 else "one picture"
    rest = f"; --start {last} goes on" if last < chosen.found else ""
    return f"{choice.start + 1:,} to {last:,} of {chosen.found:,}{rest}"


def page_of(run: FinishedRun, chosen: Chosen, choice: Choice) -> str:
    """The page's HTML."""
    counts, problems, stages = run.manifest["counts"], run.problems(), run.manifest["stages"]
    warnings = {
        "flagged": counts["flagged"],
        "failed": counts["pictures"] - counts["described"],
        "unreadable files": counts["bad_pictures"],
    }
    is_asked = any(stage["requests"] for stage in stages.values())
    total = sum(stage["seconds"] for stage in stages.values()) or 1.0
    by_rules = stages.get("summary", {}).get("expert") == "rules"
    return render_page(
        PAGE,
        name=run.folder.resolve().name,
        images=run.manifest["images"],
        badges=[
            f"{counts['pictures']:,} pictures",
            f"{counts['described']:,} descriptions",
            f"{counts['repeated_files']:,} repeated files",
        ],
        warnings=[f"{number:,} {what}" for what, number in warnings.items() if number],
        only=choice.only,
        states=STATES,
        reasons=FILTERED_BY,
        sources=SOURCES,
        num_problems=f"{len(problems):,}" if problems else "",
        problems=[(one["file"], one["stage"], clipped(one["problem"])) for one in problems[:MOST_PROBLEMS]],
        more_problems=max(0, len(problems) - MOST_PROBLEMS),
        stage_heads=[*STAGE_HEADS, *(("tokens", "cost") if is_asked else ())],
        stages=[_stage_row(name, stage, total, is_asked) for name, stage in stages.items()],
        footer=_footer(run, chosen, choice),
        data={
            "entries": chosen.entries,
            "prompt": "prompt (no model was asked: rules wrote the description)" if by_rules else "prompt",
        },
    )


def _stage_row(name: str, stage: Mapping[str, Any], total: float, is_asked: bool) -> list[str]:
    """Cells of a stage's row in the table, the last two where any stage asked a language model."""
    rate = stage["pictures_per_second"]
    row = [
        name,
        stage["expert"],
        f"{stage['done']:,}",
        f"{stage['failed']:,}",
        f"{stage['seconds']:,.1f}",
        f"{stage['seconds'] / total:.0%}",
        "–" if rate is None else f"{rate:,.2f}",
    ]
    if is_asked:
        row.append(f"{stage['prompt_tokens']:,} + {stage['completion_tokens']:,}" if stage["requests"] else "–")
        row.append("–" if stage["cost"] is None or not stage["requests"] else f"{stage['cost']:.4f}")
    return row


def _footer(run: FinishedRun, chosen: Chosen, choice: Choice) -> list[str]:
    sentences = [f"In this page: {limits_sentence(chosen, choice)}."]
    if chosen.without_picture:
        sentences.append(f"{chosen.without_picture:,} pictures could not be shown.")
    if run.manifest.get("prompts") != prompt_parts():
        sentences.append("The wording of prompts has changed since this run; they are shown in today's.")
    return sentences
