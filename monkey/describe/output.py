"""What a run writes, each file whole, and reading it back; published descriptions are of the same form.

    config.yaml               the configuration with every value stated
    manifest.json             counts, versions, prompts; by stage: settings, seconds, tokens, cost; digests of outputs
    stages/<stage>.jsonl      one line per image, in the order of the images' names; see findings.py
    problems.jsonl            images without a description: {"file", "stage", "problem"}
    train.json                training records with the detailed-caption prompt, paths relative to the image folder
    detailed_captions.json    [{"img_id", "detailed_caption"}, …] as in the published dataset
    journals/                 what the work itself writes as it goes; only pipeline.py reads it

All but config.yaml and journals/ appear when the run is complete. Everything but the manifest is equal to the byte
however often the run was stopped and in however many processes it ran.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monkey.data.rows import ImagePaths, IndexedRows, fail, text_of
from monkey.describe.experts import Spent
from monkey.describe.findings import RESULTS, Result, decode
from monkey.describe.pipeline import STAGES, USAGE, Configuration, Work
from monkey.describe.prompt import prompt_parts
from monkey.journal import atomic_file, json_line, write_atomic, write_json
from monkey.prompts import DETAILED_CAPTION_AS_TRAINED, IMAGE_PLACE
from monkey.provenance import file_digest, git_revision, package_versions

FORMAT = "monkey descriptions, 1"
CONFIG, MANIFEST, PROBLEMS, JOURNALS = "config.yaml", "manifest.json", "problems.jsonl", "journals"
TRAINING, DETAILED = "train.json", "detailed_captions.json"
PACKAGES = ("torch", "transformers", "pillow", "numpy", "rapidocr", "onnxruntime")
"""Those that can change what experts find."""

Captions = Iterable[tuple[str, str]]
"""Image and description: a file name, below the folder of the images, and a text."""


def stage_file(stage: str) -> str:
    return f"stages/{stage}.jsonl"


# Descriptions


def published_rows(captions: Captions) -> Iterator[Mapping[str, Any]]:
    """Yield rows as the published chatgpt.py writes them."""
    for image, text in captions:
        yield {"img_id": image, "detailed_caption": text}


def training_rows(captions: Captions) -> Iterator[Mapping[str, Any]]:
    """Yield training records that ask for a detailed caption, with the prompt as trained."""
    for image, text in captions:
        question = DETAILED_CAPTION_AS_TRAINED.replace(IMAGE_PLACE, f"<img>{image}</img>")
        turns = [{"from": "user", "value": question}, {"from": "assistant", "value": text}]
        yield {"id": image, "conversations": turns}


def read_published(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the descriptions of a published file, or of a run's detailed_captions.json, one by one.

    Raises ValueError or FileNotFoundError naming the file and the row.
    """
    for source, row in IndexedRows(path):
        image, text = text_of(row, "img_id", source), text_of(row, "detailed_caption", source)
        for key, value in (("img_id", image), ("detailed_caption", text)):
            if not value.strip():
                fail(source, f"{key!r} is empty")
        yield image, text


def write_list(path: Path, rows: Iterable[Any]) -> int:
    """Write a JSON list with a row on each line, and return how many."""
    count = 0
    with atomic_file(path) as stream:
        stream.write(b"[")
        for count, row in enumerate(rows, start=1):
            stream.write((b",\n" if count > 1 else b"\n") + json.dumps(row, ensure_ascii=False).encode("utf-8"))
        stream.write(b"\n]\n")
    return count


def convert(source: Path, images: Path, output: Path) -> tuple[int, list[str]]:
    """Write training records of published descriptions; return how many, and the images that the folder lacks.

    Raises ValueError and OSError, each one sentence; then nothing is written.
    """
    paths, left_out = ImagePaths(source, images, "--images"), []

    def present() -> Iterator[tuple[str, str]]:
        found = False
        for image, text in read_published(source):
            try:
                paths.find(image, str(source))
            except FileNotFoundError:
                left_out.append(image)
                continue
            found = True
            yield image, text
        if not found:
            raise ValueError(f"none of the {len(left_out):,} images of {source} is in {images}")

    return write_list(output, training_rows(present())), left_out


# Writing a run


def write_outputs(
    output: Path, work: Work, configuration: Configuration, problems: Sequence[Mapping[str, str]]
) -> Mapping[str, Any]:
    """Write everything but the journals, and return the manifest.

    Args:
        work: over all images of the run, none of its stages looked at yet.
        problems: what the processes failed on.
    """
    # Without its manifest a run is not complete, so the former one goes first and the new one comes last.
    (output / MANIFEST).unlink(missing_ok=True)
    for stage in STAGES.values():
        work.look(stage)
        with atomic_file(output / stage_file(stage.name)) as stream:
            for image in work.images:
                if image.digest in work.keys[stage.name]:
                    stream.write(json_line(work.row(stage.name, image)))
    refused = [{"file": file, "stage": "images", "problem": problem} for file, problem in work.listing.refused]
    order = list(STAGES)
    listed = sorted([*refused, *problems], key=lambda problem: (problem["file"], order.index(problem["stage"])))
    write_atomic(output / PROBLEMS, b"".join(map(json_line, listed)))
    for name, rows in ((TRAINING, training_rows), (DETAILED, published_rows)):
        write_list(output / name, rows(_descriptions(work, configuration.flagged)))
    manifest = _manifest(output, work, configuration, listed)
    write_json(output / MANIFEST, manifest)
    return manifest


def _descriptions(work: Work, flagged: bool) -> Iterator[tuple[str, str]]:
    """Yield descriptions that keep the rules; with `flagged` those that do not as well, if not empty."""
    for image in work.images:
        if image.digest in work.keys["summary"]:
            summary: Any = work.result("summary", image)
            if summary.text and (flagged or not summary.problems):
                yield image.file, summary.text.replace("<img>", " ").replace("</img>", " ")


def _manifest(
    output: Path, work: Work, configuration: Configuration, problems: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    listing = work.listing
    described = [image for image in work.images if image.digest in work.keys["summary"]]
    failed = Counter(problem["stage"] for problem in problems)
    names = [*map(stage_file, STAGES), PROBLEMS, TRAINING, DETAILED]
    versions = package_versions(PACKAGES)
    return {
        "format": FORMAT,
        "images": str(listing.folder),
        "counts": {
            "files": listing.num_files,
            "pictures": len(work.keys["images"]),
            "repeated_files": sum(len(image.also) for image in listing.images),
            "bad_pictures": failed["images"],
            "described": len(described),
            "flagged": sum(1 for image in described if work.row("summary", image)["problems"]),
        },
        "other_files": dict(listing.others),
        "stages": _stages(work, configuration, failed),
        "prompts": prompt_parts(),
        "versions": {package: version for package, version in versions.items() if version is not None},
        "git_revision": git_revision(),
        "sha256": {name: file_digest(output / name) for name in names},
    }


def _stages(work: Work, configuration: Configuration, failed: Mapping[str, int]) -> dict[str, Any]:
    """Return what the manifest says of each stage, with what all processes and attempts of these settings cost."""
    totals, spent = defaultdict(Counter), defaultdict(Spent)
    for path in sorted(work.folder.glob(f"{USAGE}.*.jsonl")):
        lines = path.read_bytes().splitlines(keepends=True)
        for row in (json.loads(line) for line in lines if line.endswith(b"\n")):
            if work.digests.get(row["stage"]) == row["digest"]:
                totals[row["stage"]].update({key: row[key] for key in ("pictures", "seconds", "loading_seconds")})
                spent[row["stage"]].add(row["requests"], row["prompt_tokens"], row["completion_tokens"])
    return {
        stage: {
            "expert": chosen.name,
            "settings": dataclasses.asdict(chosen.settings),
            "digest": work.digests[stage],
            "done": len(work.keys[stage]),
            "failed": failed[stage],
            "seconds": round(total["seconds"], 3),
            "loading_seconds": round(total["loading_seconds"], 3),
            "pictures_per_second": round(total["pictures"] / total["seconds"], 3) if total["seconds"] else None,
            **vars(spent[stage]),
            "cost": spent[stage].cost(chosen.settings),
        }
        for stage, chosen in configuration.experts.items()
        for total in (totals[stage],)
    }


# Reading a run


@dataclass(frozen=True)
class ImageRun:
    """All that a complete run has on one image; `results` by stage, without those after a failure."""

    digest: str
    results: Mapping[str, Result]

    def __contains__(self, stage: str) -> bool:
        return stage in self.results

    def __getitem__(self, stage: str) -> Any:
        return self.results[stage]


class FinishedRun:
    """A complete run's folder, read image by image.

    Raises FileNotFoundError or ValueError, one sentence, for no run, one that is not complete, or a damaged one.
    """

    def __init__(self, folder: Path):
        self.folder, path = folder, folder / MANIFEST
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; give the --output of a run")
        if not path.is_file() and (folder / JOURNALS).is_dir():
            raise ValueError(
                f"{folder} is not complete: {MANIFEST} is missing, which is written last; go on with "
                f"`python -m monkey.describe run --config {folder / CONFIG} --images FOLDER --output {folder}`"
            )
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {MANIFEST}: it is no run")
        try:
            self.manifest: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found = self.manifest["format"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is no manifest ({error}); the run's command writes it anew") from error
        if found != FORMAT:
            raise ValueError(f"{path} has the format {found!r}, and {FORMAT!r} is needed: it is of another run")
        files = [*map(stage_file, RESULTS), PROBLEMS]
        if missing := [name for name in files if not (folder / name).is_file()]:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; the run's command writes them anew")

    def __len__(self) -> int:
        """Count the images that opened."""
        return int(self.manifest["counts"]["pictures"])

    def images(self) -> Iterator[ImageRun]:
        """Yield every image that opened, in order; no more than one is held in memory.

        Raises ValueError naming file and line of a record that is not of its form.
        """
        streams = {stage: self._records(stage) for stage in RESULTS}
        waiting = {stage: next(stream, None) for stage, stream in streams.items()}
        while (first := waiting["images"]) is not None:
            there = {stage: found[1] for stage, found in waiting.items() if found is not None and found[0] == first[0]}
            yield ImageRun(first[0], there)
            waiting |= {stage: next(streams[stage], None) for stage in there}

    def _records(self, stage: str) -> Iterator[tuple[str, Result]]:
        """Yield digest and result of each line of a stage."""
        path = self.folder / stage_file(stage)
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    row = json.loads(line)
                    yield row["image"], decode(RESULTS[stage], row)
                except (ValueError, LookupError, TypeError) as error:
                    raise ValueError(f"{path}:{number} is not a record of {stage} ({error})") from error

    def problems(self) -> list[Mapping[str, str]]:
        lines = (self.folder / PROBLEMS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
