"""python -m monkey.data.pages --output outputs/pages --train 8000 --heldout 300 --known 300"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from monkey.cli import ArgumentParser, run_program, whole_number
from monkey.data.pages.drawing import KINDS, SPLITS, Limits
from monkey.data.pages.page_sets import RARE, USUAL, Settings, draw, write_set
from monkey.data.pages.sheet import draw_pages, lay_out
from monkey.data.pages.wordings import read_own_words
from monkey.journal import write_atomic

SHEET_PAGES, SHEET_WIDTH, SHEET_HEIGHT = 3, 1400, 170
"""Pages of each kind on a sheet, its pixels across, and the highest that a page is on it."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m monkey.data.pages",
        description="Draws pages by real typesetting, with questions as people ask, for training and for evaluation.",
    )
    parser.add_argument("--output", type=Path, help="folder to make; one with the same set is reused")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="the same seed gives the same set (default 0)")
    for name, split in SPLITS.items():
        parser.add_argument(f"--{name}", type=whole_number(0), default=0, metavar="N", help=f"pages: {split.holds}")
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=[f"{kind}={RARE.get(kind, USUAL)}" for kind in KINDS],
        metavar="KIND[=WEIGHT]",
        help=f"kinds to draw, and how often against the others ({', '.join(KINDS)})",
    )
    parser.add_argument(
        "--wordings", type=Path, metavar="FILE",
        help="ask for fields alone, in the sentences of this file, such as configs/data/tickets-german.yaml",
    )  # fmt: skip
    parser.add_argument("--questions", type=whole_number(1), default=8, metavar="N", help="most per page (default 8)")
    limits = Limits()
    parser.add_argument(
        "--window", type=whole_number(1), default=limits.window, metavar="PIXELS",
        help=f"side of the windows of the model that will see them (default {limits.window})",
    )  # fmt: skip
    parser.add_argument(
        "--windows", type=whole_number(1), default=limits.windows, metavar="N",
        help=f"most windows of an image (default {limits.windows})",
    )  # fmt: skip
    parser.add_argument("--workers", type=whole_number(1), default=min(2, os.cpu_count() or 1), help="processes (2)")
    look = parser.add_mutually_exclusive_group()
    look.add_argument(
        "--preview",
        type=whole_number(1),
        metavar="N",
        help="print what is asked about N pages of each split; their images go to --output where it is given",
    )
    look.add_argument(
        "--sheet", type=Path, metavar="FILE", help="write an image of a few pages of each kind, to look at"
    )
    flags = parser.parse_args(arguments)
    counts = [f"--{name}" for name in SPLITS if getattr(flags, name)]
    if counts and (flags.preview or flags.sheet):
        parser.error(f"--preview and --sheet draw no set; leave them out, or {', '.join(counts)}")
    return flags


def settings_of(flags: argparse.Namespace) -> Settings:
    """Return the settings that the flags ask for. Raises ValueError naming the flag, FileNotFoundError."""
    weights = {}
    for text in flags.kinds:
        name, equals, weight = text.partition("=")
        if name not in KINDS:
            raise ValueError(f"--kinds: unknown kind {name!r}; there is {', '.join(KINDS)}")
        if equals and not (weight.isdecimal() and int(weight)):
            raise ValueError(f"--kinds {text}: the weight must be a whole number of at least 1")
        weights[name] = int(weight) if equals else 1
    counts = {split: getattr(flags, split) for split in SPLITS}
    own_words = read_own_words(flags.wordings) if flags.wordings else {}
    return Settings(flags.seed, counts, weights, flags.questions, Limits(flags.window, flags.windows), own_words)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse(arguments)
    run = show if flags.sheet else preview if flags.preview else draw_set
    return run_program(lambda: run(flags), stopped="stopped; the same command goes on where it was")


def show(flags: argparse.Namespace) -> None:
    """Write a sheet of pages, as the ending of its file says."""
    settings, file = settings_of(flags), flags.sheet
    form = Image.registered_extensions().get(file.suffix.lower())
    if form not in Image.SAVE:
        raise ValueError(f"--sheet {file}: no image is written with such an ending; name a .png or a .jpg")
    content = io.BytesIO()
    lay_out(
        draw_pages(list(settings.weights), SHEET_PAGES, settings.seed, settings.limits), SHEET_WIDTH, SHEET_HEIGHT
    ).save(content, form, quality=55)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content.getvalue())
    print(f"wrote {file}")


def draw_set(flags: argparse.Namespace) -> None:
    """Draw the set, or find it drawn, and print what it holds."""
    settings = settings_of(flags)
    if flags.output is None:
        raise ValueError("--output is missing: name the folder to make, or give --preview")
    if not sum(settings.counts.values()):
        raise ValueError(f"nothing to draw: give --{', --'.join(SPLITS)}, each with a number of pages")
    manifest, reused = write_set(flags.output, settings, flags.workers)
    print(f"{'reusing' if reused else 'wrote'} {flags.output}")
    for split, found in manifest["counts"].items():
        print(f"  {split:<8} {found['pictures']:>6} images {sum(found['questions'].values()):>7} questions")


def preview(flags: argparse.Namespace) -> None:
    """Print questions and answers of some pages of each split, and keep their images where `--output` says."""
    settings = settings_of(flags)
    if flags.output is not None:
        flags.output.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        for number in range(flags.preview):
            page, questions = draw(settings, split, number)
            name = f"{split}-{number:03d}"
            print(f"\n{name}: {page.kind} ({page.template}), {page.image.width}×{page.image.height}")
            if flags.output is not None:
                page.image.save(flags.output / f"{name}.png")
            for question in questions:
                turn = "  and" if question.follows else ""
                print(f"  {question.kind:<12} {question.wording:<7}{turn} {question.text!r} → {question.answer!r}")


if __name__ == "__main__":
    sys.exit(main())
