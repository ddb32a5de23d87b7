"""`python -m monkey.describe run`: pictures in, descriptions out."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from monkey.cli import EXIT_PARTIAL
from monkey.describe.configuration import Configuration, read_configuration
from monkey.describe.outputs import write_outputs
from monkey.describe.pictures import list_pictures, of_shard
from monkey.describe.records import CONFIG, JOURNALS
from monkey.describe.shards import Shard, Workplace, shard_of
from monkey.describe.stages import STAGES, digest_of
from monkey.describe.work import Work
from monkey.images import counted
from monkey.journal import write_atomic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="experts and settings (.yaml)")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="of pictures, with its subfolders")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="RUN", help="folder of the run; goes on in its own"
    )
    parser.add_argument("--shard", metavar="I/N", help="of N processes this is I, from 0 (what torchrun says, or 0/1)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def main(flags: argparse.Namespace) -> int:
    """Runs the command; 1 where an expert failed on a picture. Raises ValueError and OSError, each one sentence."""
    shard = shard_of(flags.shard, os.environ)
    configuration = read_configuration(flags.config)
    require_place(flags.output)
    show = not flags.quiet and shard.index == 0
    digests = {stage: chosen.digest() for stage, chosen in configuration.experts.items()}
    listing = list_pictures(flags.images, show)
    settings = digest_of([digests, configuration.flagged])
    if show:
        print(configuration.text(), end="", flush=True)
    with Workplace(flags.output / JOURNALS, shard, settings) as place:
        write_atomic(flags.output / CONFIG, configuration.text())
        mine = of_shard(listing.pictures, shard.index, shard.count)
        with Work(listing, mine, configuration.experts, digests, place.folder, shard) as work:
            for stage in STAGES.values():
                work.do(stage, show)
            place.finish(listing.digest(), [asdict(problem) for problem in work.problems])
        waiting = place.waiting_for(listing.digest())
        if waiting:
            print(_waiting(shard, waiting))
            return 0
        with Work(listing, listing.pictures, configuration.experts, digests, place.folder, shard) as whole:
            manifest = write_outputs(flags.output, whole, configuration, place.problems())
    print(report(flags.output, manifest, configuration))
    failed = sum(entry["failed"] for stage, entry in manifest["stages"].items() if stage != "images")
    return EXIT_PARTIAL if failed else 0


def require_place(output: Path) -> None:
    """Raises ValueError where `output` is no folder for a run."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file, and the folder of a run is needed")
    if output.is_dir() and any(output.iterdir()) and not (output / JOURNALS).is_dir():
        raise ValueError(f"--output {output} holds something else (no {JOURNALS}); give another folder")


def _waiting(shard: Shard, waiting: list[Shard]) -> str:
    names = ", ".join(map(str, waiting))
    return f"shard {shard} is done; the last of {names} to be done writes the outputs"


def report(output: Path, manifest: dict, configuration: Configuration) -> str:
    """A few lines on what was made."""
    counts = manifest["counts"]
    lines = [
        f"{output}: {counts['described']:,} descriptions of {counts['files']:,} files "
        f"({counts['repeated_files']:,} repeated, {counts['bad_pictures']:,} unreadable)"
    ]
    if others := counted(manifest["other_files"], "  left out, as no pictures by their endings: "):
        lines.append(others)
    failed = {stage: entry["failed"] for stage, entry in manifest["stages"].items() if entry["failed"]}
    if failed:
        listed = ", ".join(f"{stage} {count:,}" for stage, count in failed.items())
        lines.append(f"  failed ({listed}): problems.jsonl says why; the same command tries again")
    if counts["flagged"]:
        what = "are in the outputs" if configuration.flagged else "are left out of the outputs"
        lines.append(f"  {counts['flagged']:,} break a rule and {what}")
    for stage, entry in manifest["stages"].items():
        if entry["prompt_tokens"]:
            cost = "" if entry["cost"] is None else f", cost {entry['cost']:.4f}"
            tokens = f"{entry['prompt_tokens']:,} + {entry['completion_tokens']:,} tokens"
            lines.append(f"  {stage}: {entry['requests']:,} requests, {tokens}{cost}")
    lines.append(f"  train on it with --data_path {output / 'train.json'} --image_root {manifest['images']}")
    return "\n".join(lines)
