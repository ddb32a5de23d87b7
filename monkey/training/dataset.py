"""Training records as samples: pictures are opened where a sample is asked for, in the loader's processes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from monkey.data.records import Record
from monkey.images import FORMATS, open_image
from monkey.processing import UNSUPERVISED, MonkeyImageProcessor, MonkeyProcessor


class ConversationDataset(Dataset):
    """One sample a record: `input_ids`, `labels`, `pixel_values` if it has pictures, and `source`, its file and line.

    Args:
        records: conversations with the paths of their pictures.
        processor: turns one into tokens and pixels.
        max_length: most tokens of a sample; a longer one is refused, because cutting it could cut a picture.
        cache_images: keep the pixels of every picture, in each process that loads; see `cache_bytes`.

    Raises (from `dataset[index]`):
        ValueError, FileNotFoundError: a record that cannot become a sample; the message begins with its source.
    """

    def __init__(
        self, records: Sequence[Record], processor: MonkeyProcessor, max_length: int, cache_images: bool = False
    ):
        self.records = records
        self.max_length = max_length
        self.processor = processor
        if cache_images:
            self.processor = _with_pixels(processor, _KeptPixels(processor.image_processor))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._sample(self.records[index], self.processor)

    def _sample(self, record: Record, processor: MonkeyProcessor) -> dict[str, Any]:
        turns = [{"role": turn.role, "text": turn.text} for turn in record.turns]
        try:
            sample = processor.encode_conversation(turns, list(record.images), max_length=self.max_length)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{record.source}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{record.source}: {error}") from error
        return {**sample, "source": record.source}

    def check(self) -> None:
        """Read every record as a sample, its pictures' headers instead of their pixels; raise for the first bad one."""
        checker = _with_pixels(self.processor, _HeadersOnly(self.processor.image_processor))
        for record in tqdm(self.records, desc="checking records", unit="record", leave=False, disable=None):
            self._sample(record, checker)

    def cache_bytes(self) -> int:
        """Memory that `cache_images` comes to need in one process, once every picture was used."""
        size = self.processor.image_processor.size
        pictures = {path for record in self.records for path in record.images}
        return len(pictures) * 3 * size["height"] * size["width"] * torch.float32.itemsize


class _KeptPixels:
    """Stands in for the image processor; makes each picture's pixels once."""

    def __init__(self, image_processor: MonkeyImageProcessor):
        self.image_processor = image_processor
        self.size = image_processor.size
        self.max_bytes, self.max_pixels = image_processor.max_bytes, image_processor.max_pixels
        self._kept: dict[Path, torch.Tensor] = {}

    def __call__(self, pictures: Sequence[Path], return_tensors: str) -> dict[str, torch.Tensor]:
        for path in pictures:
            if path not in self._kept:
                self._kept[path] = self.image_processor([path], return_tensors=return_tensors)["pixel_values"]
        return {"pixel_values": torch.cat([self._kept[path] for path in pictures])}


class _HeadersOnly:
    """Stands in for the image processor; makes no pixels, but refuses what cannot be opened."""

    def __init__(self, image_processor: MonkeyImageProcessor | _KeptPixels):
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
        except (OSError, ValueError, Image.DecompressionBombError):
            return False


def _with_pixels(processor: MonkeyProcessor, stand_in: _KeptPixels | _HeadersOnly) -> MonkeyProcessor:
    """The same processor with something else making its pixels."""
    changed = copy.copy(processor)
    changed.image_processor = stand_in
    return changed


class Collator:
    """Samples to a batch; `sources` and `supervised_tokens` ride along for the trainer's checks."""

    def __init__(self, processor: MonkeyProcessor):
        self.processor = processor

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.processor.collate(samples))
        # The first label has no position that predicts it.
        batch["supervised_tokens"] = int((batch["labels"][:, 1:] != UNSUPERVISED).sum())
        batch["sources"] = [sample["source"] for sample in samples]
        return batch


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
