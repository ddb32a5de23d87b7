"""python -m monkey.data.documents --output outputs/documents --train 8000 --heldout 300 --known 300"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from monkey.cli import ArgumentParser, run_program
from monkey.data.documents.sets import DOCUMENTS, SPLITS, Settings, write_set


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m monkey.data.documents",
        description="Draws dense little documents with questions and answers, for training and for evaluation.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make; one with the same set is reused")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same set (default 0)")
    parser.add_argument("--side", type=int, default=224, metavar="PIXELS", help="of each image (default 224)")
    parser.add_argument(
        "--ratios",
        nargs="+",
        default=[],
        metavar="W:H",
        help="shapes of the images by turns, as 3:1 1:3, each with the area of a square of --side (all square)",
    )
    for split, holds in SPLITS.items():
        parser.add_argument(f"--{split.replace('_', '-')}", type=int, default=0, metavar="N", help=f"images: {holds}")
    parser.add_argument(
        "--documents",
        nargs="+",
        default=list(DOCUMENTS),
        metavar="KIND[=WEIGHT]",
        help=f"kinds to draw, and how often against the others ({', '.join(DOCUMENTS)})",
    )
    parser.add_argument("--questions", type=int, default=6, help="most per image, reading it aside (default 6)")
    parser.add_argument("--damage", type=float, default=0.25, help="how often turned, noisy, compressed (default 0.25)")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    return parser.parse_args(arguments)


def settings_of(flags: argparse.Namespace) -> Settings:
    """Return the settings that the flags ask for. Raises ValueError naming the flag."""
    weights = {}
    for text in flags.documents:
        name, equals, weight = text.partition("=")
        if name not in DOCUMENTS:
            raise ValueError(f"--documents: unknown kind {name!r}; there is {', '.join(DOCUMENTS)}")
        if equals and not (weight.isdecimal() and int(weight)):
            raise ValueError(f"--documents {text}: the weight must be a whole number of at least 1")
        weights[name] = int(weight) if equals else 1
    if flags.workers < 1:
        raise ValueError(f"--workers must be 1 or more, not {flags.workers}")
    counts = {split: getattr(flags, split) for split in SPLITS}
    return Settings(flags.seed, flags.side, counts, weights, flags.questions, flags.damage, tuple(flags.ratios))


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse(arguments)
    return run_program(lambda: draw_set(flags), stopped="stopped; the same command goes on where it was")


def draw_set(flags: argparse.Namespace) -> None:
    """Draw the set, or find it drawn, and print what it holds."""
    manifest, reused = write_set(flags.output, settings_of(flags), flags.workers)
    print(f"{'reusing' if reused else 'wrote'} {flags.output}")
    for split, found in manifest["counts"].items():
        print(f"  {split:<15} {found['pictures']:>6} images {sum(found['questions'].values()):>7} questions")


if __name__ == "__main__":
    sys.exit(main())
