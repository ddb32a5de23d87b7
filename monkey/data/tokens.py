"""The tokens of a whole data set: made once, kept in a cache folder, and mapped into memory by every process.

They are what the plan of packed rows measures and what samples are made of. A text token takes 5 bytes; the slots of an
image, all alike, are kept as one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from monkey.data.packing import SampleSizes
from monkey.journal import atomic_folder
from monkey.processing import UNSUPERVISED

COLUMNS = ("shared", "prefix", "images")
_ARRAYS = ("ids", "supervised", "ends", *COLUMNS)


def cache_folder() -> Path:
    """Return the folder of what can be made again: `$MONKEY_CACHE`, else `monkey` in the user's cache."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MONKEY_CACHE") or users / "monkey")


@dataclass(frozen=True)
class Tokens:
    """Tokens of N samples, one sample behind the other.

    Attributes:
        ids: [tokens] int32, the slots of an image as one `pad_id`.
        supervised: [tokens] bool, whether the loss counts it.
        ends: [N + 1] where each sample begins, and where the last ends.
        shared, prefix, images: [N] as of `SampleSizes`.
        pad_id, image_tokens: id and number of an image's slots.
        folder: where they are kept; None where they are in memory alone.
    """

    ids: np.ndarray
    supervised: np.ndarray
    ends: np.ndarray
    shared: np.ndarray
    prefix: np.ndarray
    images: np.ndarray
    pad_id: int
    image_tokens: int
    folder: Path | None = None

    @classmethod
    def join(cls, parts: Sequence[EncodedPart], pad_id: int, image_tokens: int) -> Tokens:
        """Put the parts of a data set behind each other."""
        ids, supervised, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
        lengths, *columns = rows.T
        return cls(ids, supervised, np.cumsum([0, *lengths]), *map(np.ascontiguousarray, columns), pad_id, image_tokens)

    @classmethod
    def open(cls, folder: Path, pad_id: int, image_tokens: int) -> Tokens | None:
        """Map what was kept into memory; None where nothing was."""
        try:
            arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS]
        except (OSError, ValueError):
            return None
        return cls(*arrays, pad_id, image_tokens, folder)

    def keep(self, folder: Path) -> Tokens:
        """Write them to a folder and return them as mapped from there. Raises OSError where that cannot be."""
        with atomic_folder(folder) as partial:
            for name in _ARRAYS:
                np.save(partial / f"{name}.npy", getattr(self, name))
        return Tokens.open(folder, self.pad_id, self.image_tokens) or self

    def __len__(self) -> int:
        return len(self.ends) - 1

    def sample(self, number: int) -> dict[str, list[int]]:
        """Return `input_ids` and `labels` of a sample."""
        own = slice(self.ends[number], self.ends[number + 1])
        counts = np.where(self.ids[own] == self.pad_id, self.image_tokens, 1)
        ids, supervised = (np.repeat(array[own], counts) for array in (self.ids, self.supervised))
        return {"input_ids": ids.tolist(), "labels": np.where(supervised, ids, UNSUPERVISED).tolist()}

    @cached_property
    def sizes(self) -> SampleSizes:
        """What the plan of packed rows knows of each sample."""
        starts = self.ends[:-1]
        lengths = np.diff(self.ends) + self.images * (self.image_tokens - 1)
        # The first token of a sample has no position that predicts it.
        supervised = np.add.reduceat(self.supervised, starts, dtype=np.int32) - self.supervised[starts]
        return SampleSizes(
            lengths.astype(np.int32),
            self.shared.astype(np.int32),
            np.array(self.prefix),
            self.images.astype(np.int32),
            supervised.astype(np.int32),
        )


EncodedPart = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Some samples: ids, which of them are supervised, and a row (length, shared, prefix, images) per sample."""


def compress(ids: Sequence[int], labels: Sequence[int], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and which are supervised, the slots of each image as one."""
    whole = np.array(ids, np.int32)
    stays = whole != pad_id
    stays[1:] |= whole[:-1] != pad_id
    return whole[stays], np.array(labels)[stays] != UNSUPERVISED
