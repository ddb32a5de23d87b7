"""Check training data before a run does: every row, every image, every length, what is there twice, what leaks.

    python scripts/check_data.py outputs/quickstart/data/train.json
    python scripts/check_data.py train.json more.jsonl --checkpoint echo840/Monkey --eval heldout.jsonl --json out.json
    python scripts/check_data.py configs/data/paper_mixture.yaml --image-root data --preview 5
    python scripts/check_data.py theirs.parquet --convert ours.jsonl

FILE is a JSON list, a JSONL file, tables or tars with images, hub:owner/name:split, or a mixture (.yaml) of
conversations; data/README.md has the forms. --convert writes those that are sound in ours. Lengths need the tokenizer
of --checkpoint. Exit status: 0 all is well, 1 there are problems, 2 the check could not be made.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from monkey.cli import EXIT_PARTIAL, ArgumentParser, run_program, whole_number
from monkey.data.check import CHECKS, Report, check_data
from monkey.data.converting import convert_records
from monkey.data.mixture import record_sets
from monkey.data.preview import draw_pieces


def parse_flags(words: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="training conversations; see above")
    parser.add_argument("--checkpoint", help="folder or hub name whose tokenizer counts; without it no lengths")
    parser.add_argument("--max-length", type=whole_number(1), default=2048, help="tokens that a sample may have")
    parser.add_argument("--eval", nargs="+", default=[], metavar="FILE", help="questions or conversations held out")
    parser.add_argument("--image-root", help="folder of the images; else each file's own, then the current one")
    parser.add_argument("--eval-image-root", help="the same for --eval; --image-root when not given")
    parser.add_argument("--workers", type=whole_number(0), help="processes; 0: none but this one; else as many as pay")
    parser.add_argument("--skip", nargs="+", default=[], choices=CHECKS, metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the whole report there")
    parser.add_argument("--convert", type=Path, metavar="OUT.jsonl", help="write the sound records as ours")
    parser.add_argument("--preview", type=whole_number(0), default=0, metavar="N", help="show what N records supervise")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="of the preview")
    parser.add_argument("--show", type=whole_number(0), default=10, metavar="N", help="sentences printed a problem")
    return parser.parse_args(words)


def print_report(report: Report, sentences: int, in_colour: bool) -> None:
    for source, pieces in report.previews:
        print(f"{source}\n  {draw_pieces(pieces, in_colour)}\n")
    for line in report.sentences(sentences):
        print(line)
    print(f"\n{report.table()}\n")
    for file in report.files:
        weight = f", weight {file['weight']:g}" if file["weight"] != 1 else ""
        print(f"{file['path']}: {file['rows']:,} rows, {file['role']}{weight}")
        for form, rows in file.get("forms", {}).items():
            print(f"{file['path']}: {rows:,} records in {form}, read as ours")
    print(f"{report.images:,} images", end="")
    print(f"; longest sample {report.longest[0]:,} tokens, {report.longest[1]}" if report.longest[0] else "")
    for check, reason in report.skipped.items():
        print(f"not checked: {check} ({reason})")


def main(words: list[str] | None = None) -> int:
    flags = parse_flags(words)
    return run_program(lambda: check(flags), stopped="stopped; nothing was written")


def check(flags: argparse.Namespace) -> int:
    """Check, print and write what the flags say; return the exit status."""
    if flags.json and (flags.json.is_dir() or not flags.json.parent.is_dir()):
        raise ValueError(f"--json {flags.json}: give a file in a folder that exists")
    report = check_data(
        flags.files,
        evaluation=flags.eval,
        checkpoint=flags.checkpoint,
        image_root=flags.image_root,
        evaluation_image_root=flags.eval_image_root or flags.image_root,
        max_length=flags.max_length,
        workers=flags.workers,
        skip=flags.skip,
        preview=flags.preview,
    )
    if flags.json:
        shown = ("json", "preview", "color", "show", "convert")
        report.write_json(flags.json, {name: value for name, value in vars(flags).items() if name not in shown})
    on_terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print_report(report, flags.show, flags.color == "always" or (flags.color == "auto" and on_terminal))
    if flags.convert:
        written, left_out, root = convert_records(
            record_sets(flags.files, flags.image_root), flags.convert, "--image-root"
        )
        print(f"{flags.convert}: {written:,} records in our form, {len(left_out):,} bad ones left out", end="")
        print("" if root in (None, flags.convert.parent) else f"; train with --image_root {root}")
    return 0 if report.is_clean else EXIT_PARTIAL


if __name__ == "__main__":
    sys.exit(main())
