"""The work of one process: its pictures through all stages, one stage after the other, each done once.

A stage's expert is opened when the first picture needs it and freed before the next stage, so that one model is in
memory at a time. Batches are cut by the places of the pictures, not by what is left to do: a run that was stopped goes
on with the batches it would have had, and a model sees the same neighbours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monkey.describe.configuration import ChosenExpert
from monkey.describe.expert import Expert, Failure, Item, Spent
from monkey.describe.pictures import Listing, PictureFile
from monkey.describe.records import result_from_json, result_to_json
from monkey.describe.shards import Shard
from monkey.describe.stages import Stage
from monkey.describe.weights import ModelSettings, free_memory
from monkey.images import open_image
from monkey.journal import Journal, append_forced, json_line

USAGE = "usage"


class Stopped(ValueError):
    """An expert can go on with no picture; what was finished is kept."""


@dataclass(frozen=True)
class Problem:
    file: str
    stage: str
    problem: str


class Work:
    """What is done and what is not, of some pictures of a folder.

    Args:
        experts: by stage, with their digests in `digests`.
        folder: of the journals.
    """

    def __init__(
        self,
        listing: Listing,
        pictures: Sequence[PictureFile],
        experts: Mapping[str, ChosenExpert],
        digests: Mapping[str, str],
        folder: Path,
        shard: Shard,
    ):
        self.listing, self.pictures = listing, pictures
        self.experts, self.digests, self.folder, self.shard = experts, digests, folder, shard
        self._usage = folder / f"{USAGE}.{shard}.jsonl"
        self.journals: dict[str, Journal] = {}
        self.keys: dict[str, dict[str, str]] = {}
        """By stage, the key of each picture that is done there."""
        self.problems: list[Problem] = []

    def __enter__(self) -> Work:
        if self._usage.is_file():
            # What a crash has left behind the last whole line.
            os.truncate(self._usage, self._usage.read_bytes().rfind(b"\n") + 1)
        return self

    def __exit__(self, *_: object) -> None:
        for journal in self.journals.values():
            journal.close()

    def look(self, stage: Stage) -> list[tuple[int, str]]:
        """Open a stage's journal; places and keys of the pictures that it has still to do."""
        own, others = self.folder / f"{stage.name}.{self.shard}.jsonl", self.folder.glob(f"{stage.name}.*.jsonl")
        self.journals[stage.name] = Journal(own, sorted(others))
        done = self.keys[stage.name] = {}
        missing = []
        for place, picture in enumerate(self.pictures):
            item = self.item(stage, picture)
            if item is None:
                continue
            key = stage.key(self.digests[stage.name], item, self.experts[stage.name].settings)
            if key in self.journals[stage.name]:
                done[picture.image] = key
            else:
                missing.append((place, key))
        return missing

    def item(self, stage: Stage, picture: PictureFile) -> Item | None:
        """A picture with the results that a stage needs; None where one of them is missing."""
        if any(picture.image not in self.keys[need] for need in stage.needs):
            return None
        results = {need: self.result(need, picture) for need in stage.needs}
        return Item(picture.image, self.listing.path(picture), picture.file, picture.also, results)

    def row(self, stage: str, picture: PictureFile) -> Mapping[str, Any]:
        return self.journals[stage][self.keys[stage][picture.image]]

    def result(self, stage: str, picture: PictureFile) -> Any:
        return result_from_json(stage, self.row(stage, picture))

    def do(self, stage: Stage, show_progress: bool = True) -> None:
        """Do what a stage has still to do.

        Raises Stopped when its expert can go on with no picture.
        """
        missing = self.look(stage)
        if not missing:
            return
        chosen = self.experts[stage.name]
        started = time.perf_counter()
        try:
            expert = chosen.kind(chosen.settings)
        except (ValueError, OSError) as error:
            raise Stopped(f"stages.{stage.name}: {error}") from error
        self._note(stage, 0, 0.0, time.perf_counter() - started, Spent())
        total = sum(1 for picture in self.pictures if all(picture.image in self.keys[need] for need in stage.needs))
        hidden = None if show_progress else True  # None: shown on a terminal only
        bar = tqdm(total=total, initial=total - len(missing), desc=stage.name, unit="picture", disable=hidden)
        size = chosen.settings.batch_size
        batches = [list(group) for _, group in groupby(missing, lambda entry: entry[0] // size)]
        try:
            with bar:
                started = time.perf_counter()
                for batch, items, unopened in self._opened(stage, batches, expert.looks):
                    self._do_batch(stage, expert, batch, items, unopened, started)
                    bar.update(len(batch))
                    started = time.perf_counter()
        finally:
            expert.close()
            del expert
            if isinstance(chosen.settings, ModelSettings):
                free_memory()

    def _do_batch(
        self,
        stage: Stage,
        expert: Expert,
        batch: Sequence[tuple[int, str]],
        items: Sequence[Item],
        unopened: Mapping[str, str],
        started: float,
    ) -> None:
        """`started` is when the wait for the batch's pictures began, which is part of what it costs."""
        before = replace(expert.spent)
        outcomes = _asked(expert, items, stage.name) if items else []
        now = expert.spent
        spent = Spent(
            now.requests - before.requests,
            now.prompt_tokens - before.prompt_tokens,
            now.completion_tokens - before.completion_tokens,
        )
        # First what it cost: tokens of a batch whose records a crash then loses were paid for all the same.
        self._note(stage, len(items), time.perf_counter() - started, 0.0, spent)
        keys = {self.pictures[place].image: key for place, key in batch}
        files = {self.pictures[place].image: self.pictures[place].file for place, _ in batch}
        finished = [
            (item.image, outcome)
            for item, outcome in zip(items, outcomes, strict=True)
            if not isinstance(outcome, Failure)
        ]
        rows = [{"image": image, "key": keys[image], **result_to_json(result)} for image, result in finished]
        if rows:
            self.journals[stage.name].append(rows)
        self.keys[stage.name] |= {image: keys[image] for image, _ in finished}
        failures = [
            (item, outcome) for item, outcome in zip(items, outcomes, strict=True) if isinstance(outcome, Failure)
        ]
        stopping = next((failure for _, failure in failures if failure.stops), None)
        if stopping is not None:
            raise Stopped(
                f"stages.{stage.name}: {stopping.problem}; what was finished is kept, and the same command goes on"
            )
        self.problems += [Problem(item.file, stage.name, failure.problem) for item, failure in failures]
        self.problems += [Problem(files[image], stage.name, sentence) for image, sentence in unopened.items()]

    def _opened(
        self, stage: Stage, batches: Sequence[Sequence[tuple[int, str]]], looks: bool
    ) -> Iterator[tuple[Sequence[tuple[int, str]], list[Item], dict[str, str]]]:
        """Batches with their items and what did not open; the next is read while one is worked on."""
        with ThreadPoolExecutor(1, thread_name_prefix="reading") as reader:
            ahead = reader.submit(self._read, stage, batches[0], looks)
            for number, batch in enumerate(batches):
                items, unopened = ahead.result()
                if number + 1 < len(batches):
                    ahead = reader.submit(self._read, stage, batches[number + 1], looks)
                yield batch, items, unopened

    def _read(self, stage: Stage, batch: Sequence[tuple[int, str]], looks: bool) -> tuple[list[Item], dict[str, str]]:
        items, unopened = [], {}
        for place, _ in batch:
            picture = self.pictures[place]
            item = self.item(stage, picture)
            try:
                items.append(replace(item, picture=open_image(item.path, name=picture.file)) if looks else item)
            except (ValueError, OSError) as error:
                unopened[picture.image] = str(error)
        return items, unopened

    def _note(self, stage: Stage, pictures: int, seconds: float, loading: float, spent: Spent) -> None:
        """Append to the account of what the stages cost."""
        row = {
            "stage": stage.name,
            "digest": self.digests[stage.name],
            "pictures": pictures,
            "seconds": round(seconds, 4),
            "loading_seconds": round(loading, 4),
            **vars(spent),
        }
        with self._usage.open("ab", buffering=0) as stream:
            append_forced(stream, json_line(row), self._usage)


def _asked(expert: Expert, items: Sequence[Item], stage: str) -> Sequence[Any]:
    """What the expert says. Raises Stopped where its device has too little memory."""
    try:
        return expert(items)
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise Stopped(
            f"stages.{stage}: {len(items)} pictures at a time do not fit into the device's memory; give a batch_size "
            f"below {expert.settings.batch_size}; what was finished is kept"
        ) from error
