"""Training records as samples: pictures are opened where a sample is asked for, in the loader's processes."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from monkey.data.batches import BadSample, packed_batch, padded_batch, shared_tokens
from monkey.data.packing import SampleSizes, Unit
from monkey.data.records import Record, Records, Turn
from monkey.data.rows import ChangedFile
from monkey.images import DECODER_ERRORS, FORMATS, open_image
from monkey.processing import UNSUPERVISED, MonkeyImageProcessor, MonkeyProcessor
from monkey.prompts import IMAGE_PLACE
from monkey.training.loading import leave_signals_to_the_run

SHARING = ("apart", "branches", "turns")
"""What becomes of several records about one picture: each for itself; questions behind one picture that do not see
each other; turns of one conversation."""


BAD = (ValueError, FileNotFoundError)
"""What is raised for a record that cannot become a sample."""


@dataclass(frozen=True)
class KeptTokens:
    """Tokens of all samples, one behind the other: whole arrays, which forked loading processes share.

    Attributes:
        ids: [tokens] int32.
        supervised: [tokens] bool.
        ends: [N + 1] where each sample begins, and where the last ends.
    """

    ids: np.ndarray
    supervised: np.ndarray
    ends: np.ndarray

    def sample(self, number: int) -> dict[str, list[int]]:
        """`input_ids` and `labels`, as `MonkeyProcessor.encode_conversation` gives them."""
        own = slice(self.ends[number], self.ends[number + 1])
        ids = self.ids[own]
        return {"input_ids": ids.tolist(), "labels": np.where(self.supervised[own], ids, UNSUPERVISED).tolist()}


class ConversationDataset(Dataset):
    """One sample a record: `input_ids`, `labels`, `pixel_values` if it has pictures, and `source`, its file and line.

    `pixel_values` are the canvases' bytes, uint8: the trainer normalises them on its device.
    Asked for a unit (a tuple of numbers) it gives the unit's samples: of those that share a picture, the first has the
    pixels and all have `shared`, the number of leading tokens that they have in common.

    Args:
        records: conversations with the paths of their pictures.
        processor: turns one into tokens and pixels.
        max_length: most tokens of a sample; a longer one is refused, because cutting it could cut a picture.
        cache_images: keep the pixels of every picture, in each process that loads; see `cache_bytes`.
        sharing: one of `SHARING`, for units of several records.
        cache_tokens: keep what `sizes` reads in `tokens`; not with "turns", whose samples are made of several records.
        skip_bad: `check` and `sizes` note bad records in `bad`, by their numbers, instead of raising for the first;
            `leave_out` takes them out, and `left_out` has the sentences about all that were.

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
        cache_tokens: bool = False,
        skip_bad: bool = False,
    ):
        self.records = records
        self.max_length = max_length
        self.sharing = sharing
        self.cache_tokens = cache_tokens
        self.tokens: KeptTokens | None = None
        self.skip_bad = skip_bad
        self.bad: dict[int, str] = {}
        self.left_out: list[str] = []
        self.processor = _with_pixels(processor, _Canvases(processor.image_processor, keep=cache_images))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int | Unit) -> Any:
        if not isinstance(index, tuple):
            return self._numbered(index)
        if len(index) == 1:
            return [self._numbered(index[0])]
        if self.sharing == "turns":
            return [self._sample(joined([self.records[number] for number in index]), self.processor)]
        first = self._numbered(index[0])
        others = [self._numbered(number, pixels=False) for number in index[1:]]
        shared = shared_tokens(first["input_ids"], first["labels"], self.processor.tokenizer.image_end_id)
        return [{**sample, "shared": shared} for sample in (first, *others)]

    def _numbered(self, number: int, pixels: bool = True) -> dict[str, Any]:
        """Sample of a record by its number, from the tokens that were kept if they were."""
        if self.tokens is None:
            processor = self.processor if pixels else _with_pixels(self.processor, _NoPixels())
            return self._sample(self.records[number], processor)
        sample: dict[str, Any] = self.tokens.sample(number)
        if not pixels:
            return {**sample, "source": self.source(number)}
        record = self.records[number]
        if record.images:
            with _named(record):
                sample |= self.processor.image_processor(list(record.images), return_tensors="pt")
        return {**sample, "source": record.source}

    def source(self, number: int) -> str:
        """Where a record stands."""
        return self.records.source(number) if isinstance(self.records, Records) else self.records[number].source

    def _sample(self, record: Record, processor: MonkeyProcessor) -> dict[str, Any]:
        turns = [{"role": turn.role, "text": turn.text} for turn in record.turns]
        with _named(record):
            sample = processor.encode_conversation(turns, list(record.images), max_length=self.max_length)
        return {**sample, "source": record.source}

    def check(self) -> None:
        """Read every record as a sample, its pictures' headers instead of their pixels."""
        checker = _with_pixels(self.processor, _HeadersOnly(self.processor.image_processor))
        for number in tqdm(range(len(self)), desc="checking records", unit="record", leave=False, disable=None):
            try:
                self._sample(self.records[number], checker)
            except BAD as error:
                if not self.skip_bad:
                    raise
                self.bad[number] = str(error)

    def leave_out(self, bad: Mapping[int, str]) -> None:
        """Take records out, by the numbers that they have now; ValueError where none is left."""
        if bad and len(bad) == len(self):
            raise ValueError(f"all {len(bad):,} records are bad; the first: {next(iter(bad.values()))}")
        self.left_out += bad.values()
        if isinstance(self.records, Records):
            self.records.leave_out(list(bad))
        else:
            self.records = [record for number, record in enumerate(self.records) if number not in bad]

    def sizes(self, check_pictures: bool, workers: int = 0) -> SampleSizes:
        """Lengths of all good samples, and what they share, for the plan of the rows; keeps the tokens if asked to.

        Args:
            check_pictures: also read each picture's header.
            workers: processes that read records beside this one.
        """
        stand_in = _HeadersOnly(self.processor.image_processor) if check_pictures else _NoPixels()
        measured = _Measured(self, _with_pixels(self.processor, stand_in))
        loader = DataLoader(
            measured,
            batch_size=64,
            num_workers=workers,
            collate_fn=_joined,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=leave_signals_to_the_run,
        )
        parts = []
        with tqdm(total=len(self), desc="measuring records", unit="record", leave=False, disable=None) as progress:
            for *part, bad in loader:
                parts.append(part)
                self.bad |= bad
                progress.update(len(part[0]) + len(bad))
        rows, ids, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
        tokens, shared, prefix, images, supervised = rows.T
        if self.cache_tokens:
            self.tokens = KeptTokens(ids, targets, np.cumsum([0, *tokens]))
        narrow = (column.astype(np.int32) for column in (images, supervised))
        return SampleSizes(tokens.astype(np.int32), shared.astype(np.int32), prefix.copy(), *narrow)

    def cache_bytes(self) -> int:
        """Memory that `cache_images` comes to need in one process, once every picture was used."""
        size = self.processor.image_processor.size
        pictures = {path for record in self.records for path in record.images}
        return len(pictures) * 3 * size["height"] * size["width"]


class _Measured(Dataset):
    """What `SampleSizes` holds of each sample, and its ids and which of them are supervised, none if not kept."""

    def __init__(self, dataset: ConversationDataset, processor: MonkeyProcessor):
        self.dataset = dataset
        self.processor = processor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[tuple[int, ...], np.ndarray, np.ndarray] | tuple[int, str]:
        """That of a sample, or the number of a bad one and what is wrong with it."""
        try:
            record = self.dataset.records[index]
            sample = self.dataset._sample(record, self.processor)
        except BAD as error:
            if not self.dataset.skip_bad:
                raise
            return index, str(error)
        ids = sample["input_ids"]
        shared = shared_tokens(ids, sample["labels"], self.processor.tokenizer.image_end_id)
        if self.dataset.sharing == "turns" and not _can_join(record):
            shared = 0
        prefix = hashlib.blake2b(repr((record.images, ids[:shared])).encode(), digest_size=8).digest()
        supervised = np.array(sample["labels"]) != UNSUPERVISED
        number = int.from_bytes(prefix, "big", signed=True)
        row = len(ids), shared, number, len(record.images), int(supervised[1:].sum())
        kept = len(ids) if self.dataset.cache_tokens else 0
        return row, np.array(ids[:kept], np.int32), supervised[:kept]


def _joined(measured: Sequence[tuple[Any, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]:
    """Several of `_Measured` as three arrays, which go from process to process at once, and the bad ones."""
    good = [one for one in measured if len(one) == 3]
    rows, ids, supervised = zip(*good, strict=True) if good else ([], [[]], [[]])
    whole = np.concatenate(ids).astype(np.int32), np.concatenate(supervised).astype(bool)
    return np.array(rows, np.int64).reshape(-1, 5), *whole, dict(one for one in measured if len(one) == 2)


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
    sentence = str(error)
    return BadSample(sentence if source in sentence else f"{source}: {sentence}", not isinstance(error, ChangedFile))


@contextlib.contextmanager
def _named(record: Record) -> Iterator[None]:
    """Put a record's source before what was wrong with it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{record.source}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{record.source}: {error}") from error


def _can_join(record: Record) -> bool:
    """Whether all pictures stand at the very beginning, with a text behind them that is left without them."""
    places = IMAGE_PLACE * len(record.images)
    opening = record.turns[0].text
    return opening.startswith(places) and bool(opening.removeprefix(places).strip())


def joined(records: Sequence[Record]) -> Record:
    """Records about the same pictures as one conversation: the first as it is, the others' turns without pictures."""
    first = records[0]
    turns = list(first.turns)
    for record in records[1:]:
        opening = record.turns[0]
        text = opening.text.removeprefix(IMAGE_PLACE * len(record.images))
        turns += [Turn(opening.role, text), *record.turns[1:]]
    return Record(tuple(turns), first.images, " + ".join(record.source for record in records))


class _Canvases:
    """Stands in for the image processor; gives bytes, each picture's once if they are kept."""

    def __init__(self, image_processor: MonkeyImageProcessor, keep: bool):
        self.image_processor = image_processor
        self.size = image_processor.size
        self.max_bytes, self.max_pixels = image_processor.max_bytes, image_processor.max_pixels
        self._kept: dict[Path, torch.Tensor] | None = {} if keep else None

    def __call__(self, pictures: Sequence[Path], return_tensors: str) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.stack([self._canvas(path) for path in pictures])}

    def _canvas(self, path: Path) -> torch.Tensor:
        if self._kept is not None and path in self._kept:
            return self._kept[path]
        canvas = torch.from_numpy(self.image_processor.canvas(path))
        if self._kept is not None:
            self._kept[path] = canvas
        return canvas


class _NoPixels:
    """Stands in for the image processor where only tokens are wanted; opens nothing."""

    def __call__(self, pictures: Sequence[Path], return_tensors: str) -> dict[str, torch.Tensor]:
        return {}


class _HeadersOnly:
    """Stands in for the image processor; makes no pixels, but refuses what cannot be opened."""

    def __init__(self, image_processor: _Canvases):
        self.max_bytes, self.max_pixels = image_processor.max_bytes, image_processor.max_pixels
        self._sound: set[Path] = set()

    def __call__(self, pictures: Sequence[Path], return_tensors: str) -> dict[str, torch.Tensor]:
        for path in pictures:
            if path not in self._sound and not self._has_sound_header(path):
                # It decodes the picture to say what is wrong with it, in the words that training would.
                open_image(path, max_bytes=self.max_bytes, max_pixels=self.max_pixels)
            self._sound.add(path)
        return {}

    def _has_sound_header(self, path: Path) -> bool:
        try:
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                return width * height <= self.max_pixels and path.stat().st_size <= self.max_bytes
        except (*DECODER_ERRORS, Image.DecompressionBombError):
            return False


def _with_pixels(processor: MonkeyProcessor, stand_in: Any) -> MonkeyProcessor:
    """The same processor with something else making its pixels."""
    changed = copy.copy(processor)
    changed.image_processor = stand_in
    return changed


class Collator:
    """Samples to a padded batch; of none, for a process that has none left, a row that supervises nothing."""

    def __init__(self, processor: MonkeyProcessor, equal_means: bool = False):
        self.processor = processor
        self.equal_means = equal_means

    def __call__(self, samples: Sequence[dict[str, Any] | BadSample]) -> dict[str, Any]:
        good = [sample for sample in samples if not isinstance(sample, BadSample)]
        if good:
            batch = padded_batch(good, self.processor, self.equal_means)
        else:
            batch = packed_batch([], 1, self.processor.tokenizer.eod_id, self.equal_means)
        return _with_bad(batch, samples)


class PackedCollator:
    """Units of samples to a packed row of at most `room` tokens."""

    def __init__(self, processor: MonkeyProcessor, room: int, equal_means: bool = False):
        self.filler_id = processor.tokenizer.eod_id
        self.room = room
        self.equal_means = equal_means

    def __call__(self, units: Sequence[Sequence[dict[str, Any] | BadSample]]) -> dict[str, Any]:
        good = [[sample for sample in unit if not isinstance(sample, BadSample)] for unit in units]
        batch = packed_batch([unit for unit in good if unit], self.room, self.filler_id, self.equal_means)
        return _with_bad(batch, [sample for unit in units for sample in unit])


def _with_bad(batch: dict[str, Any], samples: Sequence[dict[str, Any] | BadSample]) -> dict[str, Any]:
    bad = tuple(sample for sample in samples if isinstance(sample, BadSample))
    return {**batch, "contents": replace(batch["contents"], bad=bad)} if bad else batch


@contextlib.contextmanager
def errors_as_raised() -> Iterator[None]:
    """Give an error of a loading process as it was raised there, without the traceback that PyTorch puts around it."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        if "\nOriginal Traceback" not in message:
            raise
        raise type(error)(message.rpartition(f"\n{type(error).__name__}: ")[2].strip()) from error
