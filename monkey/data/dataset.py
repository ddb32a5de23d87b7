"""Training records as samples, made once for a whole data set, and the loaders that deal them to a run.

    record ── encode, once ──► Tokens ──► sample, with its pixels, in a loading process ── collate ──► batch

A record is tokenised once, for the plan of packed rows, which measures it, and for its samples. The tokens are kept in
a cache folder and mapped into memory by every process. An image is opened where a sample is asked for, in the loader's
processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from monkey.data.mixture import Records
from monkey.data.packing import (
    BadSample,
    BatchPlan,
    RowPlan,
    SampleSizes,
    Unit,
    packed_batch,
    padded_batch,
    shared_tokens,
)
from monkey.data.records import BAD, Record
from monkey.data.rows import ChangedFile
from monkey.files import cache_folder
from monkey.images import StoredImage, has_sound_header, open_image
from monkey.journal import atomic_folder, digest
from monkey.processing import UNSUPERVISED, Encoded, MonkeyProcessor
from monkey.prompts import IMAGE_PLACE

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
"""What a scheduler sends before it kills: SIGTERM, and SIGUSR1 where asked to warn early (Windows has none).

SIGINT is Ctrl-C.
"""

_PROBES = 8
"""Samples that are encoded again where kept tokens are taken up, lest they were made by another tokenizer's code."""

_PART = 64
"""Records that a process reads at a time."""

Sample = dict[str, Any]


# The tokens of a whole data set

_ARRAYS, _SLOTS = ("ids", "supervised", "ends", "shared", "prefix", "images"), "slots"


@dataclass(frozen=True)
class Tokens:
    """Tokens of N samples, one sample behind the other: 5 bytes per text token, and the slots of an image as one.

    An image's grid, and so how many slots it has, is that of its size when its record was read.

    Attributes:
        ids: [tokens] int32, the slots of an image as one `pad_id`.
        supervised: [tokens] bool, whether the loss counts it.
        ends: [N + 1] where each sample begins, and where the last ends.
        shared, prefix, images: [N] as of `SampleSizes`.
        pad_id: id of an image's slots.
        slots: how many those are; [images of all samples] int32 where images lie on grids of their own.
        folder: where they are kept; None where they are in memory alone.
    """

    ids: np.ndarray
    supervised: np.ndarray
    ends: np.ndarray
    shared: np.ndarray
    prefix: np.ndarray
    images: np.ndarray
    pad_id: int
    slots: int | np.ndarray
    folder: Path | None = None

    @classmethod
    def join(cls, parts: Sequence[_Part], pad_id: int, slots: int | None) -> Tokens:
        """Put the parts of a data set behind each other; `slots` is None where images have slots of their own."""
        ids, supervised, rows, own = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "supervised", "rows", "slots")
        )
        lengths, *columns = rows.T
        columns = map(np.ascontiguousarray, columns)
        return cls(ids, supervised, np.cumsum([0, *lengths]), *columns, pad_id, own if slots is None else slots)

    @classmethod
    def open(cls, folder: Path, pad_id: int, slots: int | None) -> Tokens | None:
        """Map what was kept into memory; None where nothing was. `slots` as of `join`."""
        names = _ARRAYS if slots is not None else (*_ARRAYS, _SLOTS)
        try:
            arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in names]
        except (OSError, ValueError, EOFError):  # EOFError: an empty file, as a power cut may leave it
            return None
        return cls(*arrays[: len(_ARRAYS)], pad_id, arrays[-1] if slots is None else slots, folder)

    def keep(self, folder: Path) -> Tokens:
        """Write them to a folder and return them as mapped from there. Raises OSError where that cannot be."""
        slots = self.slots if isinstance(self.slots, int) else None
        with atomic_folder(folder) as partial_folder:
            for name in _ARRAYS if slots is not None else (*_ARRAYS, _SLOTS):
                np.save(partial_folder / f"{name}.npy", getattr(self, name))
        return Tokens.open(folder, self.pad_id, slots) or self

    def __len__(self) -> int:
        return len(self.ends) - 1

    def sample(self, number: int) -> Sample:
        """Return `input_ids` and `labels` of a sample."""
        own = slice(self.ends[number], self.ends[number + 1])
        counts = np.ones(self.ends[number + 1] - self.ends[number], np.int64)
        counts[self.ids[own] == self.pad_id] = self.slots_of(number)
        ids, supervised = (np.repeat(array[own], counts) for array in (self.ids, self.supervised))
        return {"input_ids": ids.tolist(), "labels": np.where(supervised, ids, UNSUPERVISED).tolist()}

    def slots_of(self, number: int) -> int | np.ndarray:
        """Return the slots of every image of a sample, or those of each."""
        if isinstance(self.slots, int):
            return self.slots
        return self.slots[self._first_images[number] : self._first_images[number + 1]]

    @cached_property
    def _first_images(self) -> np.ndarray:
        """[N + 1] place of each sample's first image among all images."""
        return np.concatenate([[0], np.cumsum(self.images, dtype=np.int64)])

    @cached_property
    def sizes(self) -> SampleSizes:
        """What the plan of packed rows knows of each sample."""
        starts = self.ends[:-1]
        if isinstance(self.slots, int):
            slots = self.images * self.slots
        else:
            slots = np.diff(np.concatenate([[0], np.cumsum(self.slots, dtype=np.int64)])[self._first_images])
        lengths = np.diff(self.ends) + slots - self.images
        # The first token of a sample has no position that predicts it.
        supervised = np.add.reduceat(self.supervised, starts, dtype=np.int32) - self.supervised[starts]
        tokens, shared, images, counted, slots = (
            column.astype(np.int32) for column in (lengths, self.shared, self.images, supervised, slots)
        )
        return SampleSizes(tokens, shared, np.array(self.prefix), images, counted, slots)


def _compress(ids: Sequence[int], labels: Sequence[int], pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids and which are supervised, the slots of each image as one, and how many those were."""
    whole = np.array(ids, np.int32)
    stays = whole != pad_id
    stays[1:] |= whole[:-1] != pad_id
    kept = whole[stays]
    lengths = np.diff(np.flatnonzero(np.append(stays, True)))
    return kept, np.array(labels)[stays] != UNSUPERVISED, lengths[kept == pad_id].astype(np.int32)


# Samples


class ConversationDataset(Dataset):
    """One sample per record: `input_ids`, `labels`, `pixel_values` if it has images, and `source`, its file and line.

    `pixel_values` are the canvases' bytes, uint8: the trainer normalises them on its device. Of images on grids of
    their own they are the windows', and `image_grids` [I, 2] are beside them.
    Asked for a unit (a tuple of numbers) it gives the unit's samples: of those that share an image, the first has the
    pixels and all have `shared`, the number of leading tokens that they have in common.

    Args:
        records: conversations with the paths of their images.
        processor: turns one into tokens and pixels.
        max_length: most tokens of a sample; a longer one is refused, because cutting it could cut an image.
        cache_images: keep the pixels of every image, in each process that loads; see `cache_bytes`.
        sharing: one of `monkey.data.packing.SHARING`, for units of several records.
        skip_bad: `prepare` notes bad records in `bad`, by their numbers, instead of raising for the first; `leave_out`
            takes them out, and `left_out` has the sentences about all that were.

    Raises (from `dataset[index]`):
        ValueError, FileNotFoundError: a record that cannot become a sample; the message begins with its source.
    """

    def __init__(
        self,
        records: Sequence[Record],
        processor: MonkeyProcessor,
        max_length: int,
        cache_images: bool = False,
        sharing: str = "apart",
        skip_bad: bool = False,
    ):
        self.records = records
        self.processor = processor
        self.max_length = max_length
        self.sharing = sharing
        self.tokens: Tokens | None = None
        self.skip_bad = skip_bad
        self.bad: dict[int, str] = {}
        self.left_out: list[str] = []
        self.notices: list[str] = []
        self._canvases: dict[Path | StoredImage, np.ndarray] | None = {} if cache_images else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int | Unit) -> Any:
        if not isinstance(index, tuple):
            return self._sample(index)
        first = self._sample(index[0])
        if len(index) == 1:
            return [first]
        others = [self._sample(number, pixels=False) for number in index[1:]]
        shared = shared_tokens(first["input_ids"], first["labels"], self.processor.tokenizer.image_end_id)
        if self.joins_turns:
            return [self._join(first, others, shared)]
        return [{**sample, "shared": shared} for sample in (first, *others)]

    @property
    def joins_turns(self) -> bool:
        """Whether records about one image become one conversation.

        In a chat template a turn begins with control tokens, which the joined would lack: there they are branches.
        """
        return self.sharing == "turns" and self.processor.form == "plain"

    def source(self, number: int) -> str:
        """Return where a record stands."""
        return self.records.source(number) if isinstance(self.records, Records) else self.records[number].source

    def encode(self, record: Record) -> Encoded:
        """Return ids, labels and image files of a record; no image is opened, or its header as by the processor."""
        with _naming(record.source):
            return self.processor.encode(record.conversation, labels=True, max_length=self.max_length)

    def _sample(self, number: int, pixels: bool = True) -> Sample:
        sample = None if self.tokens is None else self.tokens.sample(number)
        if sample is not None and not pixels:
            return {**sample, "source": self.source(number)}
        record = self.records[number]
        if sample is None:
            ids, labels, _ = self.encode(record)
            sample = {"input_ids": ids, "labels": labels}
        if pixels and record.images:
            with _naming(record.source):
                arrays = self.processor.image_processor.cut([self._canvas(path) for path in record.images])
                self._check_slots(number, record, arrays)
            sample |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        return {**sample, "source": record.source}

    def _canvas(self, path: Path | StoredImage) -> np.ndarray:
        if self._canvases is None:
            return self.processor.image_processor.canvas(path)
        if path not in self._canvases:
            self._canvases[path] = self.processor.image_processor.canvas(path)
        return self._canvases[path]

    def _check_slots(self, number: int, record: Record, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise ValueError for an image that has another size than when its record was tokenised."""
        if self.tokens is None or "image_grids" not in arrays:
            return
        for path, grid, slots in zip(record.images, arrays["image_grids"], self.tokens.slots_of(number), strict=True):
            if self.processor.tokens_of(grid) != slots:
                kept = f"remove {self.tokens.folder} and " if self.tokens.folder else ""
                raise ValueError(
                    f"{path} has another size than when its tokens were made, {self.processor.tokens_of(grid)} tokens "
                    f"instead of {slots}: {kept}start again"
                )

    def _join(self, first: Sample, others: Sequence[Sample], shared: int) -> Sample:
        """Return samples about the same images as one: the first as it is, of the others what stands behind them."""
        joined = dict(first, source=" + ".join(sample["source"] for sample in (first, *others)))
        for key in ("input_ids", "labels"):
            joined[key] = first[key] + [token for sample in others for token in sample[key][shared:]]
        with _naming(joined["source"]):
            self.processor.check_length(joined["input_ids"], self.max_length, "the conversation")
        return joined

    def cache_bytes(self) -> int:
        """Return the memory that `cache_images` comes to need in one process, once every image was used."""
        image_processor = self.processor.image_processor
        images = {path for record in self.records for path in record.images}
        if not image_processor.is_ragged:
            return len(images) * 3 * image_processor.size["height"] * image_processor.size["width"]
        return sum(3 * math.prod(image_processor.place(image_processor.measure(path)).canvas) for path in images)

    def leave_out(self, bad: Mapping[int, str]) -> None:
        """Take records out, by the numbers that they have now; ValueError where none is left."""
        if bad and len(bad) == len(self):
            raise ValueError(f"all {len(bad):,} records are bad; the first: {next(iter(bad.values()))}")
        self.left_out += bad.values()
        if isinstance(self.records, Records):
            self.records.leave_out(list(bad))
        else:
            self.records = [record for number, record in enumerate(self.records) if number not in bad]

    # All records at once

    def prepare(self, check_images: bool, workers: int = 0) -> None:
        """Make `tokens` of every record, or take those that an earlier run has kept; bad records are in `bad`.

        Args:
            check_images: read each image's header; that a record names images which are there is always looked at.
            workers: processes that read records beside this one.
        """
        if self.sharing == "turns" and not self.joins_turns:
            self.notices.append(
                "questions about one image are branches behind it, not turns of one conversation: in the decoder's own "
                "chat template each begins with control tokens, which --share_images turns would leave out"
            )
        folder = self._tokens_folder()
        tokens = self.take_up(folder) if folder is not None else None
        if tokens is not None:
            self._read_all(False, check_images, workers)
            tokens = None if self.bad else tokens
        if tokens is None:
            parts = self._read_all(True, check_images, workers)
            tokens = Tokens.join(parts, self.processor.tokenizer.image_pad_id, self._equal_slots)
            if folder is not None and not self.bad and all(part.is_lasting for part in parts):
                try:
                    tokens = tokens.keep(folder)
                except OSError as error:
                    self.notices.append(f"tokens are not kept for the next run: {error}")
        self.tokens = tokens

    def hold_tokens(self) -> None:
        """Make `tokens` of every record in memory, in this process; bad records are in `bad`."""
        part = _PartReader(self, encode=True, check_images=False)(range(len(self)))
        self.bad = part.bad
        self.tokens = Tokens.join([part], self.processor.tokenizer.image_pad_id, self._equal_slots)

    def take_up(self, folder: Path) -> Tokens | None:
        """Return the tokens that are kept in a folder, None where there are none of these records."""
        tokens = Tokens.open(folder, self.processor.tokenizer.image_pad_id, self._equal_slots)
        if tokens is None or len(tokens) != len(self):
            return None
        for number in np.linspace(0, len(self) - 1, _PROBES).astype(int).tolist():
            try:
                ids, labels, _ = self.encode(self.records[number])
            except BAD:  # which is told when all are encoded
                return None
            if tokens.sample(number) != {"input_ids": ids, "labels": labels}:
                return None
        return tokens

    @property
    def _equal_slots(self) -> int | None:
        """Slots of every image, None where images have slots of their own."""
        return None if self.processor.image_processor.is_ragged else self.processor.image_tokens

    def _tokens_folder(self) -> Path | None:
        """Return where tokens of these records are kept, under the name of all that they depend on."""
        if not isinstance(self.records, Records):
            return None
        images = self.processor.image_processor
        shapes = {
            "grids": [(grid, self.processor.tokens_of(grid)) for grid in images.allowed_grids],
            "window_size": images.window_size,
            "apply_exif": images.apply_exif,
        }
        name = digest(
            records=self.records.fingerprint(),
            vocabulary=self.processor.tokenizer.fingerprint,
            image_tokens=self.processor.image_tokens,
            lengths=[self.max_length, self.processor.max_positions],
            is_joined=self.joins_turns,
            **(shapes if images.is_ragged else {}),
            **({"fit": images.fit} if images.fit != "stretch" else {}),
        )
        return cache_folder() / "tokens" / name

    def _read_all(self, encode: bool, check_images: bool, workers: int) -> list[_Part]:
        stretches = [range(start, min(start + _PART, len(self))) for start in range(0, len(self), _PART)]
        parts = []
        with tqdm(total=len(self), desc="reading records", unit="record", leave=False, disable=None) as progress:
            for part in run_in_order(_PartReader(self, encode, check_images), stretches, workers):
                parts.append(part)
                self.bad |= part.bad
                progress.update(len(stretches[len(parts) - 1]))
        return parts


class _Part(NamedTuple):
    """Some records: ids, which are supervised, slots of each image, and a row per sound record.

    A row is (length, shared, prefix, images); `is_lasting` says whether the tokens depend on nothing but records, sizes
    of whole images and tokenizer; `bad` is as of the dataset.
    """

    ids: np.ndarray
    supervised: np.ndarray
    slots: np.ndarray
    rows: np.ndarray
    is_lasting: bool
    bad: dict[int, str]


class _PartReader:
    """Reads records of a dataset by their numbers, and says what is wrong with them."""

    def __init__(self, dataset: ConversationDataset, encode: bool, check_images: bool):
        self.dataset = dataset
        self.encode = encode
        self.check_images = check_images
        self._sound: set[Path] = set()

    def __call__(self, numbers: Sequence[int]) -> _Part:
        ids, supervised, slots, rows = [np.empty(0, np.int32)], [np.empty(0, bool)], [np.empty(0, np.int32)], []
        is_lasting, bad = True, {}
        for number in numbers:
            try:
                record, tokens, row = self._read(number)
            except BAD as error:
                if not self.dataset.skip_bad:
                    raise
                bad[number] = _describe(error, self.dataset.source(number))
                continue
            for arrays, array in zip((ids, supervised, slots), tokens, strict=True):
                arrays.append(array)
            rows.append(row)
            moves_boxes = self.dataset.processor.moves_boxes(record.conversation)
            is_lasting &= not (record.reads_sizes or moves_boxes)
        rows = np.array(rows, np.int64).reshape(-1, 4)
        return _Part(*map(np.concatenate, (ids, supervised, slots)), rows, is_lasting, bad)

    def _read(self, number: int) -> tuple[Record, tuple[np.ndarray, ...], tuple[int, int, int, int]]:
        dataset, tokenizer = self.dataset, self.dataset.processor.tokenizer
        record = dataset.records[number]
        ids, labels, _ = dataset.encode(record) if self.encode else ([], [], ())
        if self.check_images:
            self._check_headers(record)
        shared = shared_tokens(ids, labels, tokenizer.image_end_id)
        if dataset.joins_turns and not _can_join(record):
            shared = 0
        prefix = hashlib.blake2b(repr((record.images, ids[:shared])).encode(), digest_size=8).digest()
        tokens = _compress(ids, labels, tokenizer.image_pad_id)
        return record, tokens, (len(tokens[0]), shared, int.from_bytes(prefix, "big", signed=True), len(record.images))

    def _check_headers(self, record: Record) -> None:
        settings = self.dataset.processor.image_processor.opening
        limits = settings["max_bytes"], settings["max_pixels"]
        for image in record.images:
            if image not in self._sound and not has_sound_header(image, *limits):
                with _naming(record.source):
                    # It decodes the image to say what is wrong with it, in the words that training would.
                    open_image(image, **settings)
            if isinstance(image, Path):  # what lies beside its record would stay in memory for it
                self._sound.add(image)


def _can_join(record: Record) -> bool:
    """Return whether all images stand at the very beginning, with a text behind them."""
    opening = record.conversation.messages[0].text
    places = IMAGE_PLACE * len(record.images)
    return opening.startswith(places) and bool(opening.removeprefix(places).strip())


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Put a record's source before what was wrong with it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


class Tolerant(Dataset):
    """The samples of a dataset where a bad one is a `BadSample` instead of an error, and costs its unit only itself."""

    def __init__(self, dataset: ConversationDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | Unit) -> Any:
        try:
            return self.dataset[index]
        except BAD as error:
            if not isinstance(index, tuple):
                return _bad_sample(error, self.dataset.source(index))
            if len(index) == 1:
                return [_bad_sample(error, self.dataset.source(index[0]))]
        alone = {number: self[number] for number in index}
        bad = [sample for sample in alone.values() if isinstance(sample, BadSample)]
        good = tuple(number for number, sample in alone.items() if not isinstance(sample, BadSample))
        return [*(self.dataset[good] if good else ()), *bad]


def first_readable(records: Sequence[Record], count: int, skip_bad: bool) -> tuple[list[Record], list[str]]:
    """Return the first `count` records, and with `skip_bad` the sentences of bad ones among them that are passed over.

    Raises what is wrong with a bad record where none may be skipped, and ValueError where none can be read.
    """
    chosen: list[Record] = []
    passed: list[str] = []
    for number in range(len(records)):
        if len(chosen) == count:
            break
        try:
            chosen.append(records[number])
        except BAD as error:
            if not skip_bad:
                raise
            passed.append(str(error))
    if not chosen:
        raise ValueError(f"all {len(passed):,} records are bad; the first: {passed[0]}")
    return chosen, passed


def _bad_sample(error: Exception, source: str) -> BadSample:
    return BadSample(_describe(error, source), not isinstance(error, ChangedFile))


def _describe(error: Exception, source: str) -> str:
    sentence = str(error)
    return sentence if source in sentence else f"{source}: {sentence}"


# Batches


class Collator:
    """Collates samples to a padded batch; of none, for a process that has none left, a row that supervises nothing."""

    def __init__(self, processor: MonkeyProcessor, equal_means: bool = False):
        self.processor = processor
        self.equal_means = equal_means

    def __call__(self, samples: Sequence[Sample | BadSample]) -> dict[str, Any]:
        good = [sample for sample in samples if not isinstance(sample, BadSample)]
        if good:
            batch = padded_batch(good, self.processor, self.equal_means)
        else:
            batch = packed_batch([], 1, self.processor.tokenizer.eod_id, self.equal_means)
        return _with_bad(batch, samples)


class PackedCollator:
    """Collates units of samples to a packed row of at most `room` tokens."""

    def __init__(self, processor: MonkeyProcessor, room: int, equal_means: bool = False):
        self.filler_id = processor.tokenizer.eod_id
        self.room = room
        self.equal_means = equal_means

    def __call__(self, units: Sequence[Sequence[Sample | BadSample]]) -> dict[str, Any]:
        good = [[sample for sample in unit if not isinstance(sample, BadSample)] for unit in units]
        batch = packed_batch([unit for unit in good if unit], self.room, self.filler_id, self.equal_means)
        return _with_bad(batch, [sample for unit in units for sample in unit])


def _with_bad(batch: dict[str, Any], samples: Sequence[Sample | BadSample]) -> dict[str, Any]:
    bad = tuple(sample for sample in samples if isinstance(sample, BadSample))
    return {**batch, "contents": replace(batch["contents"], bad=bad)} if bad else batch


# Loaders


class PlannedBatches(Sampler):
    """Batches of one process, epoch by epoch: lists of what the dataset is asked for, samples or units of them."""

    def __init__(self, plan: RowPlan | BatchPlan, process: int = 0):
        self.plan = plan
        self.process = process
        self.number = 0

    def set_epoch(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.plan.rows_an_epoch

    def __iter__(self) -> Iterator[list]:
        return iter(self.plan.epoch(self.number, self.process))


class PlannedLoader(DataLoader):
    """A loader of planned batches. It draws nothing from PyTorch's own generator, so a resumed run goes on alike."""

    def __init__(self, dataset: Dataset, batch_sampler: Sampler | None = None, **settings: Any):
        settings.setdefault("generator", torch.Generator().manual_seed(0))
        settings.setdefault("worker_init_fn", leave_signals_to_the_run)
        super().__init__(dataset, batch_sampler=batch_sampler, **settings)

    def __iter__(self) -> Iterator[Any]:
        if not self.num_workers or not hasattr(signal, "pthread_sigmask"):  # as on Windows
            return super().__iter__()
        # A process that a signal reaches before it has learnt to leave it to the run would end of it.
        unheld = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unheld)

    def set_epoch(self, number: int) -> None:
        if self.batch_sampler is not None:  # a stream has none
            self.batch_sampler.set_epoch(number)


def leave_signals_to_the_run(_worker: int) -> None:
    """Schedulers and torchrun signal whole process groups; a loading process that ended of it would fail the step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class _Results(Dataset):
    """What a task makes of each of its arguments."""

    def __init__(self, task: Callable[[Any], Any], arguments: Sequence[Any]):
        self.task = task
        self.arguments = arguments

    def __len__(self) -> int:
        return len(self.arguments)

    def __getitem__(self, index: int) -> Any:
        return self.task(self.arguments[index])


def run_in_order(task: Callable[[Any], Any], arguments: Sequence[Any], workers: int) -> Iterator[Any]:
    """Yield what a task makes of its arguments, in their order, made in `workers` processes beside this one.

    Raises:
        ChildProcessError: a process ended by itself.
    """
    loader = PlannedLoader(_Results(task, arguments), batch_size=None, num_workers=workers, collate_fn=_unchanged)
    try:
        with errors_as_raised():
            yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            "a reading process ended by itself, for want of memory perhaps; run again with fewer --workers "
            "(--dataloader_num_workers in training)"
        ) from error


def _unchanged(result: Any) -> Any:
    return result


@contextlib.contextmanager
def errors_as_raised() -> Iterator[None]:
    """Give an error of a loading process as it was raised there, without the traceback that PyTorch puts around it."""
    try:
        yield
    except BAD as error:
        message = str(error)
        if "\nOriginal Traceback" not in message:
            raise
        kind = type(error)
        # A traceback names builtin errors alone without their module.
        name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        raise kind(message.rpartition(f"\n{name}: ")[2].strip()) from error
