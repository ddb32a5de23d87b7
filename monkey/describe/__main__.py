"""Detailed descriptions of images by several experts.

python -m monkey.describe run --config configs/describe/offline.yaml --images data/pages/images --output RUN
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monkey.cli import EXIT_PARTIAL, EXIT_USAGE, ArgumentParser, run_program
from monkey.describe import counts, view
from monkey.describe.output import CONFIG, JOURNALS, convert, write_outputs
from monkey.describe.pipeline import (
    STAGES,
    Configuration,
    Work,
    digest_of,
    finish_shard,
    hold_shard,
    list_images,
    read_configuration,
    read_finished,
    shard_of,
)
from monkey.images import describe_others
from monkey.journal import write_atomic


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 1 where an expert failed on an image, 2 on what the user can mend."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in COMMANDS:
        return _tell_commands(words)
    command = COMMANDS[words[0]]
    flags = command.parser(words[0]).parse_args(words[1:])
    return run_program(
        lambda: command.main(flags), "interrupted; what was finished is kept, and the same command goes on"
    )


def _tell_commands(words: Sequence[str]) -> int:
    """Print what commands there are and their flags: as help where it was asked for, else as a mistake."""
    if words and words[0] in ("-h", "--help"):
        print(f"{__doc__}\ncommands, each with --help:\n")
        for name, command in COMMANDS.items():
            print(f"{name}: {command.help}\n  {command.parser(name).format_usage()}")
        return 0
    given = f"unknown command {words[0]!r}" if words else "a command is missing"
    print(f"error: {given}; there is {', '.join(COMMANDS)}", file=sys.stderr)
    return EXIT_USAGE


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="experts and settings (.yaml)")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="of images, with its subfolders")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="RUN", help="folder of the run; goes on in its own"
    )
    parser.add_argument("--shard", metavar="I/N", help="of N processes this is I, from 0 (what torchrun says, or 0/1)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(flags: argparse.Namespace) -> int:
    """Describe the images of a folder; 1 where an expert failed on one."""
    shard = shard_of(flags.shard, os.environ)
    configuration = read_configuration(flags.config)
    require_place(flags.output)
    show = not flags.quiet and shard.index == 0
    digests = {stage: chosen.digest() for stage, chosen in configuration.experts.items()}
    listing = list_images(flags.images, show)
    if show:
        print(configuration.text(), end="", flush=True)
    folder, settings = flags.output / JOURNALS, digest_of([digests, configuration.flagged])
    mark = {"settings": settings, "pictures": listing.digest()}
    with hold_shard(folder, shard, settings):
        write_atomic(flags.output / CONFIG, configuration.text())
        with Work(listing, shard.deal(listing.images), configuration.experts, digests, folder, shard) as work:
            for stage in STAGES.values():
                work.do(stage, show)
            finish_shard(folder, shard, mark, work.problems)
        finished = {one: read_finished(folder, one, mark) for one in shard.everyone()}
        if waiting := [one for one, problems in finished.items() if problems is None]:
            names = ", ".join(map(str, waiting))
            print(f"shard {shard} is done; the last of {names} to be done writes the outputs")
            return 0
        with Work(listing, listing.images, configuration.experts, digests, folder, shard) as whole:
            problems = [problem for some in finished.values() for problem in some]
            manifest = write_outputs(flags.output, whole, configuration, problems)
    print(report(flags.output, manifest, configuration))
    failed = sum(entry["failed"] for stage, entry in manifest["stages"].items() if stage != "images")
    return EXIT_PARTIAL if failed else 0


def require_place(output: Path) -> None:
    """Raise ValueError where `output` is no folder for a run."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file, and the folder of a run is needed")
    if output.is_dir() and any(output.iterdir()) and not (output / JOURNALS).is_dir():
        raise ValueError(f"--output {output} holds something else (no {JOURNALS}); give another folder")


def report(output: Path, manifest: Mapping, configuration: Configuration) -> str:
    """Return a few lines on what was made."""
    counts, stages = manifest["counts"], manifest["stages"]
    lines = [
        f"{output}: {counts['described']:,} descriptions of {counts['files']:,} files "
        f"({counts['repeated_files']:,} repeated, {counts['bad_pictures']:,} unreadable)"
    ]
    if others := describe_others(manifest["other_files"], "  left out, as no images by their endings: "):
        lines.append(others)
    if failed := [f"{stage} {entry['failed']:,}" for stage, entry in stages.items() if entry["failed"]]:
        lines.append(f"  failed ({', '.join(failed)}): problems.jsonl says why; the same command tries again")
    if counts["flagged"]:
        what = "are in the outputs" if configuration.flagged else "are left out of the outputs"
        lines.append(f"  {counts['flagged']:,} break a rule and {what}")
    for stage, entry in stages.items():
        if entry["prompt_tokens"]:
            cost = "" if entry["cost"] is None else f", cost {entry['cost']:.4f}"
            tokens = f"{entry['prompt_tokens']:,} + {entry['completion_tokens']:,} tokens"
            lines.append(f"  {stage}: {entry['requests']:,} requests, {tokens}{cost}")
    lines.append(f"  train on it with --data_path {output / 'train.json'} --image_root {manifest['images']}")
    return "\n".join(lines)


def add_convert_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="list of img_id and detailed_caption")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="of the images")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="training records to write (.json)")


def convert_published(flags: argparse.Namespace) -> int:
    written, left_out = convert(flags.input, flags.images, flags.output)
    print(f"{flags.output}: {written:,} records")
    if left_out:
        print(f"  {len(left_out):,} images are not in {flags.images} and left out, {left_out[0]} the first")
    return 0


@dataclass(frozen=True)
class Command:
    """A command: a line of help, more on it, its flags, and what it does with them."""

    help: str
    more: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], int]

    def parser(self, name: str) -> argparse.ArgumentParser:
        parser = ArgumentParser(prog=f"python -m monkey.describe {name}", description=self.more)
        self.add_flags(parser)
        return parser


COMMANDS: Mapping[str, Command] = {
    "run": Command("describe the images of a folder", "Images in, descriptions out.", add_run_flags, run),
    "convert": Command(
        "make training records of published descriptions",
        "Training records out of descriptions in the published form; images that the folder lacks are left out.",
        add_convert_flags,
        convert_published,
    ),
    "view": Command("write a page that shows a run", view.__doc__, view.add_flags, view.main),
    "stats": Command(
        "count words, sentences and regions of a run", counts.STATS, counts.add_stats_flags, counts.write_stats
    ),
    "sweep": Command(
        "try other thresholds on a run, without its experts", counts.SWEEP, counts.add_sweep_flags, counts.write_sweep
    ),
}


if __name__ == "__main__":
    sys.exit(main())
