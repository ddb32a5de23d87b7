"""Training records read as they come, from shards that are too many to be looked through before.

    sets ──► Lane: a block of records ──► encoded, shuffled, put into rows ──► batches, each with its position

A run deals its sets to *lanes*, as many as it has loading processes: whole shards where there are enough of them, else
the rows by turns, so that in one pass over a set every record is in one lane, once. A lane draws from its sets by their
weights, which are shares of the samples here, since how much a stream holds is not known; one that ends begins again.

It draws a *block*, the buffer of the shuffle, and of it makes a small data set, to which applies all that applies to a
large one: bad records, shared images, packed rows. The order within a block depends on the seed and on nothing else. So
where a lane stands is said by the places in its sets where the block began, and by how many of its batches are through:
a run that goes on reads the block's records again and takes the next batch. What is in memory is a block a lane, of at
most `settings.buffer` records and of about `BLOCK_BYTES` of images, whatever the sets hold.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from monkey.data.dataset import ConversationDataset, PlannedLoader, Tolerant
from monkey.data.mixture import RecordFile, RecordSet, permutation
from monkey.data.packing import BadSample, RowSettings, rows_of, units_of
from monkey.data.records import BAD, Record, read_record
from monkey.data.rows import ImagePaths
from monkey.data.shards import BrokenShard, find_shards, read_shard
from monkey.images import StoredImage
from monkey.processing import MonkeyProcessor

BLOCK_BYTES = 256 * 2**20
"""Of images that lie in their records; a block ends with the record that reaches it."""

_WAITS = (1, 2, 4, 8, 16, 32, 64)
"""Seconds before a stream that broke off is opened again."""

_BREAKS = (BrokenShard, OSError, http.client.HTTPException, httpx.HTTPError)
"""What reading a shard raises, at an address too."""

_LOOKED_AT = 16
"""Records of each set that are read before the first step."""

Place = list[int]
"""Where a lane stands in one of its sets; what the numbers mean the set knows."""


@dataclass(frozen=True)
class StreamSettings:
    """How streams become batches.

    Attributes:
        buffer: records that are shuffled among each other, in each lane.
        seed: of every order.
        batch_size: samples of a padded batch.
        rows: how samples share packed rows, None for padded batches.
        sharing, max_length, skip_bad: as of `ConversationDataset`.
        root_name: what messages call the folder of images.
    """

    buffer: int
    seed: int
    batch_size: int
    rows: RowSettings | None
    sharing: str
    max_length: int
    skip_bad: bool = False
    root_name: str = "image_root"


# What a lane draws from


class ShardSource:
    """The records of a set of shards, one shard after the other; a place is [pass, shard of the lane's own, row]."""

    start: Place = [0, 0, 0]  # noqa: RUF012 (never changed)

    def __init__(self, one: RecordSet, number: int, root_name: str) -> None:
        self.name = str(one.path)
        self.number = number
        self.shards = find_shards(one.path, fetch=False)
        self.size = f"{len(self.shards):,} shards"
        self._images = ImagePaths(one.path, one.image_root, root_name)

    def passes(self, place: Place) -> int:
        """Return how often the set was gone through before a place."""
        return place[0]

    def read(self, place: Place, lane: int, lanes: int, seed: int) -> Iterator[tuple[Place, Record | BadSample]]:
        """Give a lane's records from a place on, each with the place behind it, without an end.

        Raises:
            ValueError: a whole pass had no record for the lane.
        """
        turn, shard, row = place
        while True:
            order = permutation(len(self.shards), seed, self.number, turn)
            by_rows = len(self.shards) < lanes
            own = order if by_rows else order[lane::lanes]
            given = shard or row
            for index in range(shard, len(own)):
                for number, got in self._read_shard(self.shards[own[index]], row):
                    if not by_rows or number < 0 or number % lanes == lane:
                        given += 1
                        yield [turn, index + (number < 0), number + 1], got
                row = 0
            if not given and lanes == 1:
                raise ValueError(f"{self.name}: holds no records")
            if not given:
                raise ValueError(f"{self.name}: one of {lanes} loading processes has no record in it; give it fewer")
            turn, shard = turn + 1, 0

    def _read_shard(self, path: str, row: int) -> Iterator[tuple[int, Record | BadSample]]:
        """Give the rows of a shard with their numbers, and -1 with what breaks it off."""
        is_here, tries = "://" not in path, 0
        while True:
            try:
                for number, source, fields in read_shard(path, row):
                    yield number, self._record(fields, source)
                    row, tries = number + 1, 0
                return
            except _BREAKS as error:
                if is_here or tries == len(_WAITS):
                    is_gone = not (is_here or isinstance(error, BrokenShard))
                    yield -1, BadSample(_describe_break(path, row, error), of_one_record=not is_gone)
                    return
                time.sleep(_WAITS[tries])
                tries += 1

    def _record(self, fields: Any, source: str) -> Record | BadSample:
        try:
            if isinstance(fields, ValueError):
                raise fields
            return read_record(fields, source, self._images)
        except BAD as error:
            return BadSample(str(error))


def _describe_break(path: str, row: int, error: Exception) -> str:
    if isinstance(error, BrokenShard):
        return str(error)
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path}: cannot be read from row {row:,} on ({reason})"


class FileSource:
    """The records of a file whose rows have numbers; a place is [records that the lane was given]."""

    start: Place = [0]  # noqa: RUF012 (never changed)

    def __init__(self, one: RecordSet, number: int, root_name: str) -> None:
        self.name = str(one.path)
        self.number = number
        self._file = RecordFile(one, root_name)
        one.check_count(len(self._file))
        self.size = f"{len(self._file):,} records"

    def passes(self, place: Place) -> int:
        return place[0] // len(self._file)

    def read(self, place: Place, lane: int, lanes: int, seed: int) -> Iterator[tuple[Place, Record | BadSample]]:
        """As of `ShardSource`: the orders of all passes, one behind the other, are dealt to the lanes by turns."""
        (given,), turn, order = place, -1, np.empty(0, np.int64)
        while True:
            own, index = divmod(lane + given * lanes, len(self._file))
            if own != turn:
                turn, order = own, permutation(len(self._file), seed, self.number, own)
            given += 1
            try:
                yield [given], self._file.read(int(order[index]))
            except BAD as error:
                yield [given], BadSample(str(error))


class Lane:
    """One of the parts that a run's sets are dealt to, and where it stands."""

    def __init__(
        self,
        number: int,
        lanes: int,
        sources: Sequence[ShardSource | FileSource],
        shares: Sequence[float],
        settings: StreamSettings,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        self.number = number
        self.lanes = lanes
        self.sources = sources
        self.shares = np.array(shares) / sum(shares)
        self.settings = settings
        position = position or {"places": [one.start for one in sources], "taken": [0] * len(sources)}
        self.places = list(position["places"])
        self.taken = np.array(position["taken"], np.int64)
        self.done = position.get("done", 0)
        """Batches of the block that begins here which are through."""
        self.given = position.get("given", 0)
        """Batches since the run began."""

    def batches(self, processor: MonkeyProcessor) -> Iterator[tuple[list, dict[str, Any]]]:
        """Give what batches are made of, each with the position behind it, without an end."""
        seed = self.settings.seed
        readers = [
            source.read(place, self.number, self.lanes, seed)
            for source, place in zip(self.sources, self.places, strict=True)
        ]
        while True:
            start = {"places": list(self.places), "taken": self.taken.tolist()}
            batches = self._batches_of_block(*self._read_block(readers), processor)
            for number, batch in enumerate(batches, start=1):
                if number <= self.done:
                    continue
                self.given += 1
                yield batch(), {**start, "done": number, "given": self.given}
            self.done = 0

    def _read_block(self, readers: Sequence[Iterator]) -> tuple[list[Record], list[BadSample]]:
        records, bad, size = [], [], 0
        while len(records) + len(bad) < self.settings.buffer and size < BLOCK_BYTES:
            # The set that is furthest behind its share: exact, and nothing has to be drawn.
            chosen = int(np.argmax(self.shares * (self.taken.sum() + 1) - self.taken))
            self.places[chosen], got = next(readers[chosen])
            self.taken[chosen] += 1
            if isinstance(got, BadSample):
                bad.append(got)
                continue
            records.append(got)
            size += sum(len(image) for image in got.images if isinstance(image, StoredImage))
        return records, bad

    def _batches_of_block(
        self, records: list[Record], bad: list[BadSample], processor: MonkeyProcessor
    ) -> list[Callable[[], list]]:
        """Return the batches of a block, whose images are opened when each is called; bad records go with the first."""
        settings = self.settings
        dataset = ConversationDataset(records, processor, settings.max_length, sharing=settings.sharing, skip_bad=True)
        dataset.hold_tokens()
        bad = [*bad, *map(BadSample, dataset.bad.values())]
        batches: list[Callable[[], list]] = []
        if len(dataset.bad) < len(records):
            dataset.leave_out(dataset.bad)
            order = permutation(len(dataset), settings.seed, self.number, int(self.taken.sum()))
            if settings.rows is None:
                size = settings.batch_size
                parts = [order[first : first + size].tolist() for first in range(0, len(order), size)]
            else:
                sizes = dataset.tokens.sizes
                parts = list(rows_of(units_of(order, sizes, settings.rows), sizes, settings.rows))
            tolerant = Tolerant(dataset)
            batches = [lambda part=part: [tolerant[one] for one in part] for part in parts]
        if bad:
            first = batches[0] if batches else list
            ill = bad if settings.rows is None else [bad]
            batches[:1] = [lambda: [*first(), *ill]]
        return batches


# A run's batches


class StreamedBatches(IterableDataset):
    """What one process's batches are made of, each with its lane and the position behind it.

    Args:
        sets: what is learnt from; weights are shares of the samples.
        process, processes: which of how many this is.
        workers: loading processes of each.
        state: of a checkpoint, to go on from; its lanes stay, whatever the number of processes is now.

    Attributes:
        notices: sentences for the user.
        has_images: whether any of the first records has one.

    Raises:
        FileNotFoundError, ValueError: a set that cannot be opened, a first record that is bad (unless bad ones are
            skipped), a state of other sets, of sets of another size, or of fewer lanes than there are processes.
    """

    def __init__(
        self,
        sets: Sequence[RecordSet],
        processor: MonkeyProcessor,
        settings: StreamSettings,
        process: int = 0,
        processes: int = 1,
        workers: int = 0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.sets = list(sets)
        self.processor = processor
        self.settings = settings
        self.process = process
        self.processes = processes
        kinds = [ShardSource if one.stream else FileSource for one in sets]
        self.sources = [
            kind(one, number, settings.root_name) for number, (kind, one) in enumerate(zip(kinds, sets, strict=True))
        ]
        self.lanes = state["lanes"] if state else processes * max(1, workers)
        at = state["at"] if state else {}
        self.positions: dict[int, dict[str, Any]] = {int(lane): position for lane, position in at.items()}
        self._check_state(state)
        shares = np.array([one.weight for one in sets]) / sum(one.weight for one in sets)
        self.notices = [
            f"{source.name}: {share:.1%} of the samples" for source, share in zip(self.sources, shares, strict=True)
        ] * (len(sets) > 1)
        self.has_images = False
        for source in self.sources:
            self._look_at(source)

    def _check_state(self, state: Mapping[str, Any] | None) -> None:
        names = [source.name for source in self.sources]
        if state and state["sets"] != names:
            raise ValueError(
                f"the checkpoint's streams are {', '.join(state['sets'])}, and --data_path names {', '.join(names)}: "
                "resume with the same, or start from its weights with --model_name_or_path"
            )
        # A place says little in an order of other shards: what was read would be read again, or never.
        sizes = state.get("sizes", []) if state else []  # checkpoints of before have none
        for source, size in zip(self.sources, sizes, strict=False):
            if source.size != size:
                raise ValueError(
                    f"{source.name}: {source.size}, and there were {size} when the checkpoint was written: resume with "
                    "the same, or start from its weights with --model_name_or_path"
                )
        if self.lanes < self.processes:
            raise ValueError(
                f"the checkpoint's streams are dealt to {self.lanes} loading processes, and there are "
                f"{self.processes} processes that train: resume with at most {self.lanes}"
            )

    def _look_at(self, source: ShardSource | FileSource) -> None:
        reader = source.read(source.start, 0, 1, self.settings.seed)
        for number in range(_LOOKED_AT):
            place, got = next(reader)
            if source.passes(place) and number:
                return
            if isinstance(got, BadSample):
                if not self.settings.skip_bad:
                    raise ValueError(got.sentence)
                continue
            if number == 0 and got.form:
                self.notices.append(f"{source.name}: the first record is in {got.form}, read as ours")
            self.has_images |= bool(got.images)

    def describe(self) -> list[dict[str, Any]]:
        """Return path, kind and weight of each set, for a run's record."""
        return [{"path": str(one.path), "weight": one.weight, "stream": one.stream} for one in self.sets]

    def state(self, positions: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Return what a checkpoint keeps, of the positions of lanes."""
        return {
            "lanes": self.lanes,
            "sets": [source.name for source in self.sources],
            "sizes": [source.size for source in self.sources],
            "at": {str(lane): positions[lane] for lane in sorted(positions)},
        }

    def passes(self, positions: Mapping[int, Mapping[str, Any]]) -> list[int]:
        """Return for each set how often some lane went through all of its part."""
        return [
            max((source.passes(one["places"][number]) for one in positions.values()), default=0)
            for number, source in enumerate(self.sources)
        ]

    def own_lanes(self, worker: int = 0, workers: int = 1) -> list[Lane]:
        """Return the lanes of a loading process, the one whose turn it is first."""
        shares = [one.weight for one in self.sets]
        lanes = [
            Lane(number, self.lanes, self.sources, shares, self.settings, self.positions.get(number))
            for number in range(self.process, self.lanes, self.processes)
        ]
        return sorted(lanes, key=lambda lane: (lane.given, lane.number))[worker::workers]

    def __iter__(self) -> Iterator[tuple[list, tuple[int, dict[str, Any]]]]:
        info = get_worker_info()
        lanes = self.own_lanes(info.id, info.num_workers) if info else self.own_lanes()
        readers = [(lane.number, lane.batches(self.processor)) for lane in lanes]
        while readers:
            for number, reader in readers:
                batch, position = next(reader)
                yield batch, (number, position)


class StreamedCollator:
    """Collates what `StreamedBatches` gives; the batch's contents say which lane it is of, and where that stands."""

    def __init__(self, collate: Callable[[list], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, streamed: tuple[list, tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        batch = self.collate(streamed[0])
        return {**batch, "contents": replace(batch["contents"], position=streamed[1])}


def streamed_loader(batches: StreamedBatches, collate: Callable[[list], Any], **settings: Any) -> PlannedLoader:
    """Return the loader of one process, whose batches have no end."""
    return PlannedLoader(batches, batch_size=None, collate_fn=StreamedCollator(collate), **settings)
