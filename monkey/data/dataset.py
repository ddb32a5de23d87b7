"""Training records as samples and batches.

    record ── encode, once ──► Tokens ──► sample, with its pixels, in a loading process ── collate ──► batch

A record is tokenised once, for the plan of the rows and for its samples; see `monkey.data.tokens`. An image is opened
where a sample is asked for, in the loader's processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from monkey.data.batches import BadSample, packed_batch, padded_batch, shared_tokens
from monkey.data.mixture import Records
from monkey.data.packing import BatchPlan, RowPlan, Unit
from monkey.data.records import BAD, Record
from monkey.data.rows import ChangedFile
from monkey.data.tokens import COLUMNS, EncodedPart, Tokens, cache_folder, compress
from monkey.images import DECODER_ERRORS, FORMATS, open_image
from monkey.journal import digest
from monkey.processing import Encoded, MonkeyProcessor
from monkey.prompts import IMAGE_PLACE

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What a scheduler sends before it kills: SIGTERM, and SIGUSR1 where asked to warn early. SIGINT is Ctrl-C."""

_PROBES = 8
"""Samples that are encoded again where kept tokens are taken up, lest they were made by another tokenizer's code."""

Sample = dict[str, Any]


class ConversationDataset(Dataset):
    """One sample a record: `input_ids`, `labels`, `pixel_values` if it has images, and `source`, its file and line.

    `pixel_values` are the canvases' bytes, uint8: the trainer normalises them on its device.
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
        self._canvases: dict[Path, torch.Tensor] | None = {} if cache_images else None

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
        if self.sharing == "turns":
            return [self._join(first, others, shared)]
        return [{**sample, "shared": shared} for sample in (first, *others)]

    def source(self, number: int) -> str:
        """Return where a record stands."""
        return self.records.source(number) if isinstance(self.records, Records) else self.records[number].source

    def encode(self, record: Record) -> Encoded:
        """Return ids, labels and image files of a record; no image is opened."""
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
                sample["pixel_values"] = torch.stack([self._canvas(path) for path in record.images])
        return {**sample, "source": record.source}

    def _canvas(self, path: Path) -> torch.Tensor:
        if self._canvases is not None and path in self._canvases:
            return self._canvases[path]
        canvas = torch.from_numpy(self.processor.image_processor.canvas(path))
        if self._canvases is not None:
            self._canvases[path] = canvas
        return canvas

    def _join(self, first: Sample, others: Sequence[Sample], shared: int) -> Sample:
        """Return samples about the same images as one: the first as it is, of the others what stands behind them."""
        joined = dict(first, source=" + ".join(sample["source"] for sample in (first, *others)))
        for key in ("input_ids", "labels"):
            joined[key] = first[key] + [token for sample in others for token in sample[key][shared:]]
        with _naming(joined["source"]):
            self.processor.check_length(joined["input_ids"], self.max_length, "the conversation")
        return joined

    def cache_bytes(self) -> int:
        """Memory that `cache_images` comes to need in one process, once every image was used."""
        size = self.processor.image_processor.size
        images = {path for record in self.records for path in record.images}
        return len(images) * 3 * size["height"] * size["width"]

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
            check_images: read every record and each image's header, even where tokens were kept.
            workers: processes that read records beside this one.
        """
        folder = self._tokens_folder()
        tokens = self.take_up(folder) if folder is not None else None
        if tokens is not None and check_images:
            self._examine(False, check_images, workers)
            tokens = None if self.bad else tokens
        if tokens is None:
            parts, is_lasting = self._examine(True, check_images, workers)
            tokens = Tokens.join(parts, self.processor.tokenizer.image_pad_id, self.processor.image_tokens)
            if folder is not None and is_lasting and not self.bad:
                try:
                    tokens = tokens.keep(folder)
                except OSError as error:
                    self.notices.append(f"tokens are not kept for the next run: {error}")
        self.tokens = tokens

    def take_up(self, folder: Path) -> Tokens | None:
        """Return the tokens that are kept in a folder, None where there are none of these records."""
        tokens = Tokens.open(folder, self.processor.tokenizer.image_pad_id, self.processor.image_tokens)
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

    def _tokens_folder(self) -> Path | None:
        """Return where tokens of these records are kept, under the name of all that they depend on."""
        if not isinstance(self.records, Records):
            return None
        name = digest(
            records=self.records.fingerprint(),
            vocabulary=hashlib.sha256(repr(self.processor.tokenizer.get_vocab()).encode()).hexdigest(),
            image_tokens=self.processor.image_tokens,
            lengths=[self.max_length, self.processor.max_positions],
            is_joined=self.sharing == "turns",
        )
        return cache_folder() / "tokens" / name

    def _examine(self, encode: bool, check_images: bool, workers: int) -> tuple[list[EncodedPart], bool]:
        """Read every record in parts; also return whether the tokens depend on nothing but records and tokenizer."""
        loader = DataLoader(
            _Examined(self, encode, check_images),
            batch_size=64,
            num_workers=workers,
            collate_fn=_collate_examined,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=leave_signals_to_the_run,
        )
        parts, is_lasting = [], True
        with tqdm(total=len(self), desc="reading records", unit="record", leave=False, disable=None) as progress:
            for part, part_is_lasting, bad, count in loader:
                parts.append(part)
                is_lasting &= part_is_lasting
                self.bad |= bad
                progress.update(count)
        return parts, is_lasting


class _Examined(Dataset):
    """Of each record its tokens, its row of `Tokens`, and whether they depend on its text alone; or what is wrong."""

    def __init__(self, dataset: ConversationDataset, encode: bool, check_images: bool):
        self.dataset = dataset
        self.encode = encode
        self.check_images = check_images
        self._sound: set[Path] = set()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], bool] | tuple[int, str]:
        dataset = self.dataset
        try:
            record = dataset.records[index]
            ids, labels, _ = dataset.encode(record) if self.encode else ([], [], ())
            if self.check_images:
                self._check_headers(record)
        except BAD as error:
            if not dataset.skip_bad:
                raise
            return index, _describe(error, dataset.source(index))
        shared = shared_tokens(ids, labels, dataset.processor.tokenizer.image_end_id)
        if dataset.sharing == "turns" and not _can_join(record):
            shared = 0
        prefix = hashlib.blake2b(repr((record.images, ids[:shared])).encode(), digest_size=8).digest()
        short = compress(ids, labels, dataset.processor.tokenizer.image_pad_id)
        row = len(short[0]), shared, int.from_bytes(prefix, "big", signed=True), len(record.images)
        return *short, row, not record.reads_sizes

    def _check_headers(self, record: Record) -> None:
        settings = self.dataset.processor.image_processor.opening
        for path in record.images:
            if path not in self._sound and not _has_sound_header(path, **settings):
                with _naming(record.source):
                    # It decodes the image to say what is wrong with it, in the words that training would.
                    open_image(path, **settings)
            self._sound.add(path)


def _collate_examined(examined: Sequence[tuple]) -> tuple[EncodedPart, bool, dict[int, str], int]:
    """Join several records as three arrays, which go from process to process at once, and the bad ones apart."""
    bad = dict(one for one in examined if len(one) == 2)
    good = [one for one in examined if len(one) == 4]
    ids, supervised, rows, are_lasting = zip(*good, strict=True) if good else ([[]], [[]], [], [])
    part = (
        np.concatenate(ids).astype(np.int32),
        np.concatenate(supervised).astype(bool),
        np.array(rows, np.int64).reshape(-1, len(COLUMNS) + 1),
    )
    return part, all(are_lasting), bad, len(examined)


def _has_sound_header(path: Path, max_bytes: int, max_pixels: int, **_: Any) -> bool:
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            return width * height <= max_pixels and path.stat().st_size <= max_bytes
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return False


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


class EqualShares(Sampler):
    """All samples in batches for one process of several; every process gets the same number of batches, some empty."""

    def __init__(self, count: int, batch_size: int, process: int, processes: int):
        own = range(process, count, processes)
        batches = math.ceil(math.ceil(count / processes) / batch_size)
        self._batches = [list(own[number * batch_size : (number + 1) * batch_size]) for number in range(batches)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


class PlannedLoader(DataLoader):
    """A loader of planned batches. It draws nothing from PyTorch's own generator, so a resumed run goes on alike."""

    def __init__(self, dataset: Dataset, batch_sampler: Sampler, **settings: Any):
        settings.setdefault("generator", torch.Generator().manual_seed(0))
        settings.setdefault("worker_init_fn", leave_signals_to_the_run)
        super().__init__(dataset, batch_sampler=batch_sampler, **settings)

    def set_epoch(self, number: int) -> None:
        self.batch_sampler.set_epoch(number)


def leave_signals_to_the_run(_worker: int) -> None:
    """Schedulers and torchrun signal whole process groups; a loading process that ended of it would fail the step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def errors_as_raised() -> Iterator[None]:
    """Give an error of a loading process as it was raised there, without the traceback that PyTorch puts around it."""
    try:
        yield
    except BAD as error:
        message = str(error)
        if "\nOriginal Traceback" not in message:
            raise
        raise type(error)(message.rpartition(f"\n{type(error).__name__}: ")[2].strip()) from error
