"""The stages of a run: what each needs of those before it, who does it, and what is done already.

A result is kept under a key made of the image's bytes, the stage's expert with its settings and weights, and what the
stage was given. So a changed setting redoes its own stage, and later ones exactly where what they are given has
changed: after a new threshold, for one, a description is written anew only where the language model's question differs.

A stage's expert is opened when the first image needs it and freed before the next stage, so that one model is in memory
at a time. Batches are cut by the places of the images, not by what is left to do: a run that was stopped goes on with
the batches it would have had, and a model sees the same neighbours.

Images are dealt to processes by their bytes, image i to process (SHA-256 mod n). No image is claimed, so there is no
claim to be lost, and a process that is killed leaves nothing to clear away: the same command goes on, and so does any
other number of processes, once the old ones have ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from monkey import journal
from monkey.data.rows import NOT_IN_PATHS
from monkey.describe import experts
from monkey.describe.experts import Expert, ExpertSettings, Failure, Item, Spent, read_settings
from monkey.describe.filters import FILTERED, Filter
from monkey.describe.findings import RESULTS, ImageFile, Result, decode
from monkey.describe.prompt import write_prompt
from monkey.describe.writers import Endpoint, LocalModel, Rules
from monkey.files import read_settings_file
from monkey.images import FORMATS, describe_others, open_image, read_image_file, split_names
from monkey.journal import Journal, describe_holder, hold, holder_of, json_line, write_atomic

USAGE = "usage"


# Stages


def digest_of(content: Any) -> str:
    """Return the SHA-256 of JSON content."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class Opening(Expert):
    """Width and height of each image that opens; one that does not never comes here."""

    def find(self, item: Item) -> ImageFile:
        return ImageFile(item.file, item.also, *item.image.size)


def _all_results(item: Item, _: Any) -> Any:
    return {stage: dataclasses.asdict(result) for stage, result in item.results.items()}


def _question(item: Item, settings: Any) -> str:
    return write_prompt(item.results["caption"], item.results["filters"], settings.most_sentences)


@dataclass(frozen=True)
class Stage:
    """One stage of the work.

    Attributes:
        experts: by the names that a configuration knows them by.
        needs: the stages whose results an expert is given.
        given: what of an item a result depends on, beside the image, the expert and its settings.
    """

    name: str
    experts: dict[str, type[Expert]]
    needs: tuple[str, ...] = ("images",)
    given: Callable[[Item, Any], Any] = lambda *_: None

    def key(self, digest: str, item: Item, settings: Any) -> str:
        """Return the key of an image's record; `digest` stands for expert and settings."""
        return digest_of([digest, item.digest, self.given(item, settings)])[:32]


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("images", {"opening": Opening}, (), lambda item, _: [item.file, list(item.also)]),
        Stage("caption", {"blip2": experts.Blip2Captions, "monkey": experts.MonkeyCaptions}),
        Stage("regions", {"florence2": experts.Florence2Regions, "none": experts.NO_REGIONS}),
        Stage("text", {"rapidocr": experts.RapidOcrText, "none": experts.NO_TEXT}),
        Stage("segments", {"sam": experts.SamSegments, "none": experts.NO_SEGMENTS}),
        Stage(
            "segment_captions",
            {"blip2": experts.Blip2SegmentCaptions, "none": experts.NO_SEGMENT_CAPTIONS},
            ("segments",),
            _all_results,
        ),
        Stage(
            "matching",
            {"blip2": experts.Blip2Matching, "none": experts.NO_MATCHING},
            ("regions", "segments", "segment_captions"),
            _all_results,
        ),
        Stage("filters", {"thresholds": Filter}, FILTERED, _all_results),
        Stage(
            "summary",
            {"openai": Endpoint, "transformers": LocalModel, "rules": Rules},
            ("caption", "filters"),
            _question,
        ),
    )
}
"""The order of work. To add an expert, write its class and add it here."""

assert tuple(STAGES) == tuple(RESULTS)


# Configuration


@dataclass(frozen=True)
class ChosenExpert:
    """An expert of a stage with its settings."""

    stage: str
    name: str
    kind: type[Expert]
    settings: ExpertSettings

    def digest(self) -> str:
        """Return what stands for all that results depend on, but what the stage is given.

        Raises ValueError or FileNotFoundError for a model that is missing or not of the stage's kind.
        """
        try:
            identity = self.kind.identity(self.settings)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"stages.{self.stage}: {error}") from error
        return digest_of(
            {
                "stage": self.stage,
                "expert": self.name,
                "version": self.kind.version,
                "settings": self.settings.that_change_results(),
                "identity": dict(identity),
            }
        )


@dataclass(frozen=True)
class Configuration:
    """Who does each stage, and whether descriptions that break a rule (`flagged`) are put into the outputs too."""

    experts: Mapping[str, ChosenExpert]
    flagged: bool = False

    def text(self) -> str:
        """Return it as YAML with every value stated."""
        stages = {
            stage: {"expert": chosen.name, **dataclasses.asdict(chosen.settings)}
            for stage, chosen in self.experts.items()
        }
        content = {"stages": stages, "output": {"flagged": self.flagged}}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def read_configuration(path: Path) -> Configuration:
    """Return the configuration in a YAML file, which names an expert for each stage, with its settings.

        stages:
          caption: {expert: blip2, model: Salesforce/blip2-opt-2.7b}
          filters: {text_score: 0.9}
        output: {flagged: false}

    Raises FileNotFoundError, or ValueError in one sentence that names the file and the key.
    """
    content = read_settings_file(path, f"--config {path}")
    try:
        return configuration_of(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def configuration_of(content: Any) -> Configuration:
    """Return the configuration of a YAML file's content. Raises ValueError naming the key."""
    top = _keys(content, "the file", ("stages", "output"))
    stages = _keys(top.get("stages", {}), "stages", tuple(STAGES), "stage")
    flagged = _keys(top.get("output", {}), "output", ("flagged",)).get("flagged", False)
    if not isinstance(flagged, bool):
        raise ValueError(f"output.flagged is {flagged!r}, and true or false is needed")
    chosen = {name: _choose(stage, stages.get(name)) for name, stage in STAGES.items()}
    seen = [name for name in ("regions", "segments") if chosen[name].name != "none"]
    if chosen["matching"].name == "none" and seen:
        raise ValueError(f"stages.matching is left out, and what {' and '.join(seen)} find cannot be scored without it")
    return Configuration(chosen, flagged)


def _keys(content: Any, where: str, known: tuple[str, ...], noun: str = "key") -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds {content!r}, and keys with values are needed")
    for key in content:
        if key not in known:
            raise ValueError(f"{where} has the unknown {noun} {key!r}; there is {', '.join(known)}")
    return content


def _choose(stage: Stage, given: Any) -> ChosenExpert:
    """Return the expert of a stage: the one that is named, the only one, or none where a stage can be left out."""
    where, names = f"stages.{stage.name}", ", ".join(stage.experts)
    usual = next((name for name in stage.experts if name == "none" or len(stage.experts) == 1), None)
    if given is None and usual is None:
        raise ValueError(f"{where} is missing; choose an expert: {names}")
    if not isinstance(given, dict | None):
        raise ValueError(f"{where} holds {given!r}, and keys with values are needed, like {{expert: {names}}}")
    settings = {"expert": usual} if given is None else dict(given)
    name = settings.pop("expert", usual if usual != "none" else None)
    if name is None:
        raise ValueError(f"{where} names no expert; there is {names}")
    if name not in stage.experts:
        raise ValueError(f"{where}.expert is {name!r}; there is {names}")
    kind = stage.experts[name]
    return ChosenExpert(stage.name, name, kind, read_settings(kind.Settings, settings, where))


# Images


@dataclass(frozen=True)
class ListedImage:
    """One image: SHA-256 of its bytes, its first name in the folder, and the other names it has there."""

    digest: str
    file: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        refused: names that no record can hold or that cannot be read, each with the reason.
        others: how many files are no images, by their endings.
    """

    folder: Path
    images: tuple[ListedImage, ...]
    refused: tuple[tuple[str, str], ...]
    others: Mapping[str, int]

    @property
    def num_files(self) -> int:
        return sum(1 + len(image.also) for image in self.images) + len(self.refused)

    def path(self, image: ListedImage) -> Path:
        return self.folder / image.file

    def digest(self) -> str:
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"{image.digest} {image.file} {image.also}\n".encode())
        return digest.hexdigest()


def list_images(folder: Path, show_progress: bool = True) -> Listing:
    """Return every image below a folder, in the order of names, equal ones as one.

    Raises FileNotFoundError for a folder that is missing, ValueError for one without an image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--images {folder}: no such folder")
    names, others = split_names(_names(folder))
    if not names:
        found = describe_others(others, ", but ")
        raise ValueError(f"--images {folder} holds no image{found}; formats: {', '.join(FORMATS)}")
    root, files, refused = folder.resolve(), {}, []
    bar = {"total": len(names), "desc": "finding images", "unit": "file", "disable": None if show_progress else True}
    with ThreadPoolExecutor(8) as pool:
        found = list(tqdm(pool.map(lambda name: _digest_file(root, name), names), **bar))
    for name, (digest, problem) in zip(names, found, strict=True):
        if digest is None:
            # A name that is not UTF-8 can be told, in outputs as on a screen, only with its bytes spelled out.
            refused.append((name.encode("utf-8", "backslashreplace").decode("utf-8"), problem))
        else:
            files.setdefault(digest, []).append(name)
    images = tuple(ListedImage(digest, first, tuple(also)) for digest, (first, *also) in files.items())
    return Listing(folder, images, tuple(refused), others)


def _names(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield Path(parent, name).relative_to(folder).as_posix()


def _digest_file(root: Path, name: str) -> tuple[str | None, str]:
    """Return the SHA-256 of a file's bytes, or None and what is wrong with it."""
    path = root / name
    if NOT_IN_PATHS.search(name) or "<img>" in name or "</img>" in name:
        return None, "its name holds characters that a training record cannot hold; rename it"
    if not path.resolve().is_relative_to(root):
        return None, "it is a link that leads out of the folder, where training would not follow it; copy it there"
    try:
        return hashlib.sha256(read_image_file(path, name=name)).hexdigest(), ""
    except (FileNotFoundError, ValueError) as error:
        return None, str(error)


# Processes that share a run


@dataclass(frozen=True)
class Shard:
    """Process `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    def deal(self, images: Sequence[ListedImage]) -> list[ListedImage]:
        """Return this process's share. By their bytes: a folder may grow, and names may change."""
        return [image for image in images if int(image.digest[:12], 16) % self.count == self.index]

    def everyone(self) -> list[Shard]:
        return [Shard(index, self.count) for index in range(self.count)]


def shard_of(text: str | None, environment: Mapping[str, str]) -> Shard:
    """Return the shard of `--shard i/n`, or of what torchrun sets. Raises ValueError for what is no shard."""
    if text is None:
        return Shard(int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1")))
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ValueError(f"--shard {text!r} is no i/n with i from 0 and below n, as 0/4 is")
    return Shard(int(found[1]), int(found[2]))


@contextmanager
def hold_shard(folder: Path, shard: Shard, settings: str) -> Iterator[None]:
    """Hold a run's journals as one of its shards.

    Args:
        settings: stands for the settings of the run; processes of other settings are refused.

    Raises ValueError when another process works on the same images or with other settings.
    """
    note = {"settings": settings}
    with hold(folder / f"{shard}.lock", f"wait for shard {shard} to end", note, any_host=True):
        # Held before the others are looked at: of two that start at once, one at least sees the other.
        for path in sorted(folder.glob("[0-9]*-of-*.lock")):
            holder = None if path.stem == str(shard) else holder_of(path)
            if holder is None or (path.stem.endswith(f"-of-{shard.count}") and holder.get("settings") == settings):
                continue
            raise ValueError(
                f"{folder.parent} is being written by {describe_holder(holder)} as shard {path.stem}, with another "
                "configuration or another number of shards; wait for it, or give another --output"
            )
        _finished_file(folder, shard).unlink(missing_ok=True)
        yield


def finish_shard(folder: Path, shard: Shard, mark: Mapping[str, str], problems: Sequence[Mapping[str, str]]) -> None:
    """Say that a process is done. `mark` stands for the settings and the images that it saw."""
    content = {**mark, "problems": list(problems)}
    write_atomic(_finished_file(folder, shard), json.dumps(content, ensure_ascii=False))


def read_finished(folder: Path, shard: Shard, mark: Mapping[str, str]) -> list[Mapping[str, str]] | None:
    """Return the problems of a process; None where it is not done, or saw other images or settings."""
    path = _finished_file(folder, shard)
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content["problems"] if content and mark.items() <= content.items() else None


def _finished_file(folder: Path, shard: Shard) -> Path:
    return folder / f"finished.{shard}.json"


# Work


class Stopped(ValueError):
    """An expert can go on with no image; what was finished is kept."""


class Work:
    """What is done and what is not, of some images of a folder.

    Args:
        chosen: experts by stage, with their digests in `digests`.
        folder: of the journals.
    """

    def __init__(
        self,
        listing: Listing,
        images: Sequence[ListedImage],
        chosen: Mapping[str, ChosenExpert],
        digests: Mapping[str, str],
        folder: Path,
        shard: Shard,
    ):
        self.listing, self.images = listing, images
        self.chosen, self.digests, self.folder, self.shard = chosen, digests, folder, shard
        self.journals: dict[str, Journal] = {}
        self.keys: dict[str, dict[str, str]] = {}
        """By stage, the key of each image that is done there, by its digest."""
        self.problems: list[dict[str, str]] = []

    def __enter__(self) -> Work:
        self._usage = self.folder / f"{USAGE}.{self.shard}.jsonl"
        if self._usage.is_file():
            # What a crash has left behind the last whole line.
            os.truncate(self._usage, self._usage.read_bytes().rfind(b"\n") + 1)
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.journals.values():
            one.close()

    def look(self, stage: Stage) -> list[tuple[int, str]]:
        """Open a stage's journal; return places and keys of the images that it has still to do."""
        own, others = self.folder / f"{stage.name}.{self.shard}.jsonl", self.folder.glob(f"{stage.name}.*.jsonl")
        self.journals[stage.name] = Journal(own, sorted(others))
        done = self.keys[stage.name] = {}
        missing = []
        for place, image in enumerate(self.images):
            if not self._is_ready(stage, image):
                continue
            key = stage.key(self.digests[stage.name], self._item(stage, image), self.chosen[stage.name].settings)
            if key in self.journals[stage.name]:
                done[image.digest] = key
            else:
                missing.append((place, key))
        return missing

    def _is_ready(self, stage: Stage, image: ListedImage) -> bool:
        return all(image.digest in self.keys[need] for need in stage.needs)

    def _item(self, stage: Stage, image: ListedImage) -> Item:
        results = {need: self.result(need, image) for need in stage.needs}
        return Item(image.digest, self.listing.path(image), image.file, image.also, results)

    def row(self, stage: str, image: ListedImage) -> Mapping[str, Any]:
        return self.journals[stage][self.keys[stage][image.digest]]

    def result(self, stage: str, image: ListedImage) -> Result:
        return decode(RESULTS[stage], self.row(stage, image))

    def do(self, stage: Stage, show_progress: bool = True) -> None:
        """Do what a stage has still to do. Raises Stopped when its expert can go on with no image."""
        missing = self.look(stage)
        if not missing:
            return
        chosen, started = self.chosen[stage.name], time.perf_counter()
        try:
            expert = chosen.kind(chosen.settings)
        except (ValueError, OSError) as error:
            raise Stopped(f"stages.{stage.name}: {error}") from error
        self._note(stage, 0, 0.0, time.perf_counter() - started, Spent())
        total = sum(self._is_ready(stage, image) for image in self.images)
        batches = [list(some) for _, some in groupby(missing, lambda one: one[0] // chosen.settings.batch_size)]
        hidden = None if show_progress else True  # None: shown on a terminal only
        bar = tqdm(total=total, initial=total - len(missing), desc=stage.name, unit="image", disable=hidden)
        try:
            with bar:
                started = time.perf_counter()
                for items, keys in self._read_ahead(stage, batches, expert.needs_image):
                    self._do_batch(stage, expert, items, keys, started)
                    bar.update(len(items))
                    started = time.perf_counter()
        finally:
            expert.close()

    def _do_batch(
        self,
        stage: Stage,
        expert: Expert,
        read: Sequence[Item | tuple[str, Failure]],
        keys: Mapping[str, str],
        started: float,
    ) -> None:
        """Ask an expert about a batch and keep what it finds.

        Args:
            read: the items, and name and failure of each file that did not open.
            started: when the wait for the batch's images began, which is part of what it costs.
        """
        items = [item for item in read if isinstance(item, Item)]
        failures = [failed for failed in read if not isinstance(failed, Item)]
        outcomes = _ask(expert, items, stage.name) if items else []
        # First what it cost: tokens of a batch whose records a crash then loses were paid for all the same.
        self._note(stage, len(items), time.perf_counter() - started, 0.0, expert.spent)
        expert.spent = Spent()
        rows = []
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, Failure):
                failures.append((item.file, outcome))
            else:
                rows.append({"image": item.digest, "key": keys[item.digest], **dataclasses.asdict(outcome)})
        if rows:
            self.journals[stage.name].append(rows)
        self.keys[stage.name] |= {row["image"]: row["key"] for row in rows}
        if stop := next((failure for _, failure in failures if failure.stops), None):
            kept = "what was finished is kept, and the same command goes on"
            raise Stopped(f"stages.{stage.name}: {stop.problem}; {kept}")
        for file, failure in failures:
            self.problems.append({"file": file, "stage": stage.name, "problem": failure.problem})

    def _read_ahead(
        self, stage: Stage, batches: Sequence[Sequence[tuple[int, str]]], needs_image: bool
    ) -> Iterator[tuple[list[Item | tuple[str, Failure]], dict[str, str]]]:
        """Yield batches with their keys; the next is read while one is worked on."""
        with ThreadPoolExecutor(1, thread_name_prefix="reading") as reader:
            reading = [reader.submit(self._read, stage, batch, needs_image) for batch in batches[:1]]
            for number, batch in enumerate(batches, start=1):
                reading += [reader.submit(self._read, stage, later, needs_image) for later in batches[number:][:1]]
                yield reading.pop(0).result(), {self.images[place].digest: key for place, key in batch}

    def _read(
        self, stage: Stage, batch: Sequence[tuple[int, str]], needs_image: bool
    ) -> list[Item | tuple[str, Failure]]:
        read = []
        for place, _ in batch:
            item = self._item(stage, self.images[place])
            try:
                read.append(replace(item, image=open_image(item.path, name=item.file)) if needs_image else item)
            except (ValueError, OSError) as error:
                read.append((item.file, Failure(str(error))))
        return read

    def _note(self, stage: Stage, images: int, seconds: float, loading: float, spent: Spent) -> None:
        """Append to the account of what the stages cost."""
        row = {
            "stage": stage.name,
            "digest": self.digests[stage.name],
            "pictures": images,
            "seconds": round(seconds, 4),
            "loading_seconds": round(loading, 4),
            **vars(spent),
        }
        with self._usage.open("ab", buffering=0) as stream:
            journal.append_forced(stream, json_line(row), self._usage)


def _ask(expert: Expert, items: Sequence[Item], stage: str) -> Sequence[Result | Failure]:
    """Return what an expert finds. Raises Stopped where its device has too little memory."""
    try:
        return expert(items)
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise Stopped(
            f"stages.{stage}: {len(items)} images at a time do not fit into the device's memory; give a batch_size "
            f"below {expert.settings.batch_size}; what was finished is kept"
        ) from error
