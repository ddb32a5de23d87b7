"""python -m monkey.data.render --output outputs/drawn --seed 0 --train 4000 --heldout 500"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monkey.data.render.difficulty import LEVELS, changed
from monkey.data.render.fonts import installed_fonts, require_font
from monkey.data.render.settings import Settings
from monkey.data.render.tasks import TASKS, select
from monkey.data.render.write import write_set


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    kinds = "; ".join(f"{name}: {', '.join(task.kinds + task.harder)}" for name, task in TASKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m monkey.data.render",
        description="Draws document-like pictures with questions and answers, for training and for evaluation.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make; one with the same set is reused")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same set (default 0)")
    parser.add_argument("--train", type=int, required=True, metavar="N", help="pictures to train on; 0 for none")
    parser.add_argument("--heldout", type=int, required=True, metavar="N", help="pictures to evaluate on")
    parser.add_argument("--image-size", type=int, default=224, metavar="S", help="side in pixels (default 224)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="NAME[:KIND,…]",
        help=f"kinds of picture, and of question where not the usual ones are wanted ({kinds})",
    )
    parser.add_argument("--level", choices=LEVELS, default="easy", help="how hard (default easy)")
    parser.add_argument(
        "--difficulty", nargs="+", default=[], metavar="FIELD=VALUE", help="changes to the level: colours=4 jitter=1"
    )
    parser.add_argument(
        "--fonts",
        nargs="+",
        default=["built-in"],
        metavar="FONT",
        help="built-in (default), installed (well-known ones of this machine), or font files",
    )
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    parser.add_argument("--overwrite", action="store_true", help="replace a set of other settings")
    return parser.parse_args(arguments)


def _font_files(name: str) -> tuple[str | None, ...]:
    """The files that one word of --fonts stands for."""
    if name == "built-in":
        return (None,)
    return installed_fonts() if name == "installed" else (require_font(name),)


def settings_of(flags: argparse.Namespace) -> Settings:
    """The settings that the flags ask for. Raises ValueError naming the flag."""
    changes = {}
    for text in flags.difficulty:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--difficulty wants FIELD=VALUE, not {text!r}")
        changes[name] = value
    if flags.workers < 1:
        raise ValueError(f"--workers must be 1 or more, not {flags.workers}")
    return Settings(
        flags.seed,
        flags.train,
        flags.heldout,
        flags.image_size,
        select(flags.tasks),
        changed(flags.level, changes),
        tuple(file for name in flags.fonts for file in _font_files(name)),
    )


def report(output: Path, manifest: dict[str, Any], reused: bool) -> str:
    """A few lines on what is in the set."""
    counts, guessed = manifest["counts"], manifest["majority_answer"]
    lines = [f"{'reusing' if reused else 'wrote'} {output}"]
    for split, found in counts.items():
        lines.append(f"  {split:<8} {found['pictures']:>6} pictures {found['questions']:>7} questions")
    lines.append("  score of the best constant answer to each wording, without looking:")
    lines.append("  " + "  ".join(f"{task} {share:.2f}" for task, share in guessed.items()))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 2 on what the user can mend."""
    flags = parse(arguments)
    try:
        settings = settings_of(flags)
        manifest, reused = write_set(flags.output, settings, flags.workers, flags.overwrite)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(flags.output, manifest, reused))
    return 0


if __name__ == "__main__":
    sys.exit(main())
