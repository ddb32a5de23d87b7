"""Encoded samples to one batch of the model: padded rows, or one packed row.

Both give what the loss needs as two lists: the positions, counted through the flattened batch, that predict a
supervised token, and those tokens. So logits are computed there only, and the first token of a question that stands
behind a shared picture is predicted by the picture's last.

Shape letters: B rows, T tokens of a row, N supervised tokens, R runs of a packed row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from monkey.processing import UNSUPERVISED, MonkeyProcessor

Sample = Mapping[str, Any]
"""`input_ids`, `labels` (lists), `source`, and `pixel_values` [I, 3, H, W] if it has images."""


class BadSample(NamedTuple):
    """Comes in the place of a sample that could not be made: a sentence that names its record."""

    sentence: str
    of_one_record: bool = True
    """Whether the other records can still be read."""


@dataclass(frozen=True)
class BatchContents:
    """What a batch is made of; it stays on the host and is what a run reports.

    Attributes:
        sources: file and line of each record.
        supervised: number of supervised tokens.
        weight: what the batch adds to the divisor of the step's loss: its supervised tokens, or, where each mean
            counts the same, its means.
        runs: tokens of each stretch that attends to itself, and of the shared prefix that it also attends to.
        tokens: tokens that the decoder reads, without padding.
        slots: tokens that there was room for, padding included.
        images: pictures that are encoded.
        bad: sentences about the samples that were to be in it and could not be made.
    """

    sources: tuple[str, ...]
    supervised: int
    weight: int
    runs: tuple[tuple[int, int], ...]
    tokens: int
    slots: int
    images: int
    bad: tuple[BadSample, ...] = ()


def padded_batch(samples: Sequence[Sample], processor: MonkeyProcessor, equal_means: bool = False) -> dict[str, Any]:
    """Samples as rows padded to the longest.

    Args:
        equal_means: the loss is the mean over batches of each one's mean, as the published script has it, not the mean
            over all supervised tokens: `loss_weights` [N] come with the batch.

    Returns:
        `input_ids`, `attention_mask` [B, T], `loss_positions`, `loss_targets` [N], `pixel_values` if there are images,
        and `contents`.
    """
    batch = dict(processor.collate(samples))
    labels = batch.pop("labels")
    # The first label of a row has no position that predicts it.
    predicted = labels[:, 1:] != UNSUPERVISED
    rows, positions = predicted.nonzero(as_tuple=True)
    lengths = tuple(len(sample["input_ids"]) for sample in samples)
    supervised = int(predicted.sum())
    if equal_means:
        batch["loss_weights"] = torch.full((supervised,), 1 / max(supervised, 1))
    return {
        **batch,
        "loss_positions": rows * labels.shape[1] + positions,
        "loss_targets": labels[:, 1:][predicted],
        "contents": BatchContents(
            sources=tuple(sample["source"] for sample in samples),
            supervised=supervised,
            weight=bool(supervised) if equal_means else supervised,
            runs=tuple((length, 0) for length in lengths),
            tokens=sum(lengths),
            slots=labels.numel(),
            images=len(batch.get("pixel_values", ())),
        ),
    }


def packed_batch(
    units: Sequence[Sequence[Sample]], room: int, filler_id: int, equal_means: bool = False
) -> dict[str, Any]:
    """Units of samples as one packed row (`monkey.attention`).

    Args:
        units: samples that share their first `shared` tokens and the images in them, or single samples.
        room: tokens that the row could have held.
        filler_id: the one token of a row without samples, which supervises nothing.
        equal_means: as of `padded_batch`, over samples: what its batches of one sample give.

    Returns:
        `input_ids`, `position_ids` [1, T], `segments` [R, 4], `loss_positions`, `loss_targets` [N], `pixel_values` if
        there are images, and `contents`.

    Raises:
        ValueError: samples of a unit that differ where they should be the same, naming both.
    """
    row = _Row()
    for unit in units:
        row.add(unit)
    samples = [sample for unit in units for sample in unit]
    pixels = [unit[0]["pixel_values"] for unit in units if "pixel_values" in unit[0]]
    batch: dict[str, Any] = {
        "input_ids": torch.tensor([row.ids or [filler_id]]),
        "position_ids": torch.tensor([row.positions or [0]]),
        "segments": torch.tensor(row.segments or [(0, 1, 0, 0)]),
        "loss_positions": torch.tensor(row.loss_positions, dtype=torch.long),
        "loss_targets": torch.tensor(row.loss_targets, dtype=torch.long),
    }
    if equal_means:
        batch["loss_weights"] = torch.tensor([1 / count for count in row.supervised for _ in range(count)])
    if pixels:
        batch["pixel_values"] = torch.cat(pixels)
    batch["contents"] = BatchContents(
        sources=tuple(sample["source"] for sample in samples),
        supervised=len(row.loss_targets),
        weight=sum(map(bool, row.supervised)) if equal_means else len(row.loss_targets),
        runs=tuple((end - start, prefix_end - prefix_start) for start, end, prefix_start, prefix_end in row.segments),
        tokens=len(row.ids),
        slots=room,
        images=len(batch.get("pixel_values", ())),
    )
    return batch


class _Row:
    """A packed row as it grows."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[tuple[int, int, int, int]] = []
        self.loss_positions: list[int] = []
        self.loss_targets: list[int] = []
        self.supervised: list[int] = []
        """Supervised tokens of each run."""

    def add(self, unit: Sequence[Sample]) -> None:
        shared = unit[0]["shared"] if len(unit) > 1 else 0
        prefix = unit[0]["input_ids"][:shared]
        prefix_start = len(self.ids)
        if shared:
            self._extend(prefix, [UNSUPERVISED] * shared, 0, prefix_start, prefix_start)
        for sample in unit:
            if sample["input_ids"][:shared] != prefix:
                raise ValueError(
                    f"{sample['source']} and {unit[0]['source']} should share their first {shared} tokens and do not"
                )
            self._extend(
                sample["input_ids"][shared:], sample["labels"][shared:], shared, prefix_start, prefix_start + shared
            )

    def _extend(
        self, ids: Sequence[int], labels: Sequence[int], first_position: int, prefix_start: int, prefix_end: int
    ) -> None:
        """One run; its first token is predicted by the last of its prefix, if it has one."""
        start, supervised_before = len(self.ids), len(self.loss_targets)
        self.ids += ids
        self.positions += range(first_position, first_position + len(ids))
        self.segments.append((start, start + len(ids), prefix_start, prefix_end))
        for offset, label in enumerate(labels):
            predictor = start + offset - 1 if offset else prefix_end - 1
            if label != UNSUPERVISED and (offset or prefix_end > prefix_start):
                self.loss_positions.append(predictor)
                self.loss_targets.append(label)
        self.supervised.append(len(self.loss_targets) - supervised_before)


def shared_tokens(ids: Sequence[int], labels: Sequence[int], image_end_id: int) -> int:
    """Leading tokens through the last `</img>`, where nothing up to there is supervised; else 0."""
    if image_end_id not in ids:
        return 0
    end = len(ids) - ids[::-1].index(image_end_id)
    return end if end < len(ids) and all(label == UNSUPERVISED for label in labels[:end]) else 0
