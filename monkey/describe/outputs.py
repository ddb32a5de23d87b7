"""A complete run's outputs out of its journals: each whole, in the order of the pictures, the manifest last."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from monkey.describe.configuration import Configuration
from monkey.describe.expert import Spent
from monkey.describe.prompting import prompt_parts
from monkey.describe.published import DetailedCaption, json_list, published_rows, training_rows
from monkey.describe.records import DETAILED, MANIFEST, PROBLEMS, STAGES, TRAINING
from monkey.describe.stages import STAGES as STAGE_TABLE
from monkey.describe.work import USAGE, Work
from monkey.journal import atomic_file, write_atomic

FORMAT = "monkey descriptions, 1"


def write_outputs(
    output: Path, work: Work, configuration: Configuration, problems: Sequence[Mapping[str, str]]
) -> Mapping[str, Any]:
    """Write everything but the journals; returns the manifest.

    Args:
        work: over all pictures of the run, none of its stages looked at yet.
        problems: what the processes failed on.
    """
    # Without its manifest a run is not complete, so the former one goes first and the new one comes last.
    (output / MANIFEST).unlink(missing_ok=True)
    for stage in STAGE_TABLE.values():
        work.look(stage)
        with atomic_file(output / STAGES / f"{stage.name}.jsonl") as stream:
            for picture in work.pictures:
                if picture.image in work.keys[stage.name]:
                    row = json.dumps(work.row(stage.name, picture), ensure_ascii=False)
                    stream.write(row.encode("utf-8") + b"\n")
    refused = [{"file": file, "stage": "images", "problem": problem} for file, problem in work.listing.refused]
    listed = sorted(
        [*refused, *problems], key=lambda problem: (problem["file"], list(STAGE_TABLE).index(problem["stage"]))
    )
    write_atomic(output / PROBLEMS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed))
    for name, rows in ((TRAINING, training_rows), (DETAILED, published_rows)):
        with atomic_file(output / name) as stream:
            stream.writelines(json_list(rows(_descriptions(work, configuration.flagged))))
    manifest = _manifest(output, work, configuration, listed)
    write_atomic(output / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def _descriptions(work: Work, flagged: bool) -> Iterator[DetailedCaption]:
    """Descriptions for training: those that keep the rules, with `flagged` those that do not as well, if not empty."""
    for picture in work.pictures:
        if picture.image not in work.keys["summary"]:
            continue
        summary = work.result("summary", picture)
        if summary.text and (flagged or not summary.problems):
            yield DetailedCaption(picture.file, summary.text.replace("<img>", " ").replace("</img>", " "))


def _manifest(
    output: Path, work: Work, configuration: Configuration, problems: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    listing = work.listing
    described = [picture for picture in work.pictures if picture.image in work.keys["summary"]]
    failed = Counter(problem["stage"] for problem in problems)
    usage = _usage(work)
    stages = {}
    for stage, chosen in configuration.experts.items():
        totals, spent = usage[stage]
        rate = round(totals["pictures"] / totals["seconds"], 3) if totals["seconds"] else None
        stages[stage] = {
            "expert": chosen.name,
            "settings": {key: value for key, value in chosen.described().items() if key != "expert"},
            "digest": work.digests[stage],
            "done": len(work.keys[stage]),
            "failed": failed[stage],
            "seconds": round(totals["seconds"], 3),
            "loading_seconds": round(totals["loading_seconds"], 3),
            "pictures_per_second": rate,
            **vars(spent),
            "cost": spent.cost(chosen.settings),
        }
    names = [f"{STAGES}/{stage}.jsonl" for stage in STAGE_TABLE] + [PROBLEMS, TRAINING, DETAILED]
    return {
        "format": FORMAT,
        "images": str(listing.folder),
        "counts": {
            "files": listing.files,
            "pictures": len(work.keys["images"]),
            "repeated_files": sum(len(picture.also) for picture in listing.pictures),
            "bad_pictures": failed["images"],
            "described": len(described),
            "flagged": sum(1 for picture in described if work.row("summary", picture)["problems"]),
        },
        "other_files": dict(listing.others),
        "stages": stages,
        "prompts": prompt_parts(),
        "versions": _versions(),
        "git_revision": _revision(),
        "sha256": {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in names},
    }


def _usage(work: Work) -> dict[str, tuple[Counter, Spent]]:
    """By stage, pictures, seconds and what was spent, of all processes and attempts with the present settings."""
    usage: dict[str, tuple[Counter, Spent]] = defaultdict(lambda: (Counter(), Spent()))
    for path in sorted(work.folder.glob(f"{USAGE}.*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                continue
            row = json.loads(line)
            if work.digests.get(row["stage"]) != row["digest"]:
                continue
            totals, spent = usage[row["stage"]]
            totals.update({key: row[key] for key in ("pictures", "seconds", "loading_seconds")})
            spent.add(row["requests"], row["prompt_tokens"], row["completion_tokens"])
    return usage


def _versions() -> dict[str, str]:
    from monkey.training.report import package_versions

    versions = package_versions()
    for package in ("rapidocr", "onnxruntime"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _revision() -> str | None:
    from monkey.training.report import git_revision

    return git_revision()
