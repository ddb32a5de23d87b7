"""Makes the files of a task from the official release of its data set; see data/README.md.

    python -m eval.prepare --list
    python -m eval.prepare textvqa_val --src downloads/textvqa
    python -m eval.prepare vqav2_val --src downloads/coco --out /data/root --link

Nothing is downloaded. Writes the task's files below --out, which is the evaluator's --data-root, all of them or none,
and a manifest with counts and SHA-256. Exit status: 0 when all is written, 2 when it could not be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.prepare.table import PREPARERS, preparer_named
from eval.prepare.write import manifest_path, prepare
from eval.tasks import TASKS
from monkey.cli import ArgumentParser, run_program

_UNVERIFIED = "(as remembered, not verified: read those of the publisher)"


def arguments() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="python -m eval.prepare", description=__doc__)
    parser.add_argument("task", nargs="?", metavar="TASK", help="name of the task; --list has them")
    parser.add_argument("--src", type=Path, metavar="DIR", help="folder that holds the unpacked release")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="the data root to write below (.)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--copy", action="store_true", help="copy images; this is the default")
    how.add_argument("--link", action="store_true", help="make hard links to images instead")
    parser.add_argument("--allow-count", action="store_true", help="go on with another number of questions")
    parser.add_argument("--allow-missing", action="store_true", help="leave out questions without an image that opens")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there with other content")
    parser.add_argument("--list", action="store_true", help="the tasks, what each needs and where that is")
    return parser


def describe(name: str) -> str:
    """Return what a task needs, where to get it, under which terms, and what is written."""
    preparer, task = preparer_named(name), TASKS[name]
    size = f", {task.n_expected:,} questions" if task.n_expected is not None else ""
    lines = [
        f"{name}{size}",
        f"  needs   {preparer.needs}",
        f"  from    {preparer.source}",
        f"  terms   {preparer.terms} {_UNVERIFIED}",
        f"  writes  {task.file}",
        *([f"          {task.annotations}"] if task.annotations is not None else []),
    ]
    return "\n".join(lines)


def report(name: str, manifest: dict[str, Any], out: Path) -> str:
    """Return what was written, and what to know about it."""
    expected = manifest["questions_expected"]
    counts = f"{manifest['questions']:,} questions" + (f" of {expected:,}" if expected is not None else "")
    lines = [f"wrote {out / TASKS[name].file}: {counts}, {manifest['pictures']:,} images"]
    if manifest["pictures_missing"]:
        lines.append(
            f"{manifest['pictures_missing']:,} images are missing or cannot be opened, and "
            f"{manifest['questions_without_picture']:,} questions were left out with them; the first: "
            f"{manifest['pictures_missing_first'][0]}"
        )
    if manifest["questions_without_reference"]:
        lines.append(
            f"{manifest['questions_without_reference']:,} questions have no reference with text; the first: "
            f"{manifest['questions_without_reference_first'][0]}"
        )
    lines += [f"note: {statement}" for statement in manifest["statements"]]
    lines.append(f"source: {manifest['source']}")
    lines.append(f"terms: {manifest['terms_as_remembered']} {_UNVERIFIED}")
    lines.append(f"manifest: {out / manifest_path(TASKS[name])}")
    return "\n".join(lines)


def run(flags: argparse.Namespace) -> None:
    if flags.list:
        print("\n".join(f"{describe(name)}\n" for name in PREPARERS))
        return
    if flags.task is None:
        raise ValueError("give the name of a task; --list has them")
    if flags.src is None:
        preparer = preparer_named(flags.task)
        raise ValueError(f"--src is needed: the folder of the release, with {preparer.needs}, from {preparer.source}")
    names = ("link", "allow_count", "allow_missing", "overwrite")
    manifest = prepare(flags.task, flags.src, flags.out, **{name: getattr(flags, name) for name in names})
    print(report(flags.task, manifest, flags.out))


def main(words: Sequence[str] | None = None) -> int:
    flags = arguments().parse_args(words)
    return run_program(lambda: run(flags), "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
