"""Which samples share a batch, planned from their lengths alone, and the batch that is made of them.

Samples come in a drawn order. Those about the same image may form one *unit*, so that the image is encoded once and
its tokens stand once. Units are put into rows of at most `budget` tokens: a row opens with the oldest unit that waits,
then takes, first fit, every one of the next `look_ahead` that still fits. The plan depends on lengths, order and
settings, nothing else, so a resumed run makes the same rows and takes them up where it stopped.

A batch is padded rows or one packed row. Both give what the loss needs as two lists: the positions, counted through the
flattened batch, that predict a supervised token, and those tokens. So logits are computed there only, and the first
token of a question behind a shared image is predicted by the image's last.

Shape letters: B rows, T tokens of a row, N supervised tokens, R runs of a packed row.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from monkey.conversation import UNSUPERVISED

if TYPE_CHECKING:
    from monkey.processing import MonkeyProcessor

SHARING = ("apart", "branches", "turns")
"""What becomes of several records about one image: each for itself; questions behind one image that do not see each
other; turns of one conversation."""

Unit = tuple[int, ...]
"""Numbers of the samples that share an image's tokens; most often one."""
Row = list[Unit]


@dataclass(frozen=True)
class SampleSizes:
    """What the plan knows of each sample.

    Attributes:
        tokens: [N] length.
        shared: [N] leading tokens, through the last image, that samples with the same `prefix` have in common.
        prefix: [N] number of the sample's prefix; the same for equal images and equal tokens up to `shared`.
        images: [N] images.
        supervised: [N] tokens that the loss counts.
        slots: [N] tokens of its images, without those that open and close their spans; None where nobody asks.
    """

    tokens: np.ndarray
    shared: np.ndarray
    prefix: np.ndarray
    images: np.ndarray
    supervised: np.ndarray
    slots: np.ndarray | None = None

    def unit_tokens(self, unit: Unit) -> int:
        """Tokens of a unit, the shared ones counted once."""
        # One by one: for the few samples of a unit, NumPy's own sum takes several times as long.
        own = sum(self.tokens.item(number) for number in unit)
        return own if len(unit) == 1 else own - (len(unit) - 1) * self.shared.item(unit[0])

    def unit_images(self, unit: Unit) -> int:
        """Images that are encoded for a unit."""
        return int(self.images[unit[0]])

    def unit_slots(self, unit: Unit) -> int:
        """Tokens of the images that are encoded for a unit."""
        return int(self.slots[unit[0]])


@dataclass(frozen=True)
class RowSettings:
    """How samples share rows.

    Attributes:
        budget: most tokens of a row.
        look_ahead: units that wait to be chosen from.
        share: put samples about the same image together, as many as fit.
        most_shared: most samples of a unit.
    """

    budget: int
    look_ahead: int = 256
    share: bool = True
    most_shared: int = 16

    def __post_init__(self) -> None:
        for name in ("budget", "look_ahead", "most_shared"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} does not work: give 1 or more")


def units_of(order: Sequence[int], sizes: SampleSizes, settings: RowSettings) -> Iterator[Unit]:
    """The samples of one pass as units, each where the first of its samples stands in the order."""
    if not settings.share:
        yield from ((int(index),) for index in order)
        return
    order = np.asarray(order)
    open_units: dict[int, tuple[list[int], int]] = {}  # prefix -> the unit that takes samples, its room left
    units: list[list[int]] = []
    columns = (column[order].tolist() for column in (sizes.tokens, sizes.shared, sizes.prefix))
    for index, tokens, shared, prefix in zip(order.tolist(), *columns, strict=True):
        unit, room = open_units.get(prefix, ((), 0)) if shared else ((), 0)
        if unit and len(unit) < settings.most_shared and tokens - shared <= room:
            unit.append(index)
            open_units[prefix] = unit, room - tokens + shared
            continue
        units.append([index])
        if shared:
            open_units[prefix] = units[-1], settings.budget - tokens
    yield from map(tuple, units)


def rows_of(units: Iterator[Unit], sizes: SampleSizes, settings: RowSettings) -> Iterator[Row]:
    """Units as rows, first fit over the waiting ones; every unit is in exactly one row.

    Raises:
        ValueError: a unit longer than the budget, with both numbers.
    """
    waiting: list[tuple[Unit, int]] = []
    while True:
        for unit in itertools.islice(units, settings.look_ahead - len(waiting)):
            length = sizes.unit_tokens(unit)
            if length > settings.budget:
                raise ValueError(f"sample {unit[0]} is {length} tokens long, and a row holds {settings.budget}")
            waiting.append((unit, length))
        if not waiting:
            return
        row, left, room = [], [], settings.budget
        for unit, length in waiting:
            if length <= room:
                row.append(unit)
                room -= length
            else:
                left.append((unit, length))
        waiting = left
        yield row


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """A plan is very many small tuples in no cycle: looking for cycles among them took longer than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class RowPlan:
    """The rows of a whole run, dealt to its processes.

    Rows are planned over the passes as one stream and cut into epochs of equal length, so that every process makes
    the same number of steps in each. A run over whole passes has its last rows split until they can be dealt evenly:
    nothing is left out and nothing is seen twice.

    Args:
        order_of: pass number -> order of the samples, drawn from the seed.
        passes: how many times the data is gone through; None for as long as wanted.
        processes: how many share each step.
    """

    def __init__(
        self,
        sizes: SampleSizes,
        settings: RowSettings,
        order_of: Callable[[int], np.ndarray],
        passes: int | None,
        processes: int = 1,
    ):
        self.sizes = sizes
        self.settings = settings
        self._order_of = order_of
        self.processes = processes
        with _collector_paused():
            rows = list(self._stream(1 if passes is None else passes))
        self.rows_an_epoch = -(-len(rows) // (processes * (passes or 1)))
        self._whole = None if passes is None else _split_last(rows, self.rows_an_epoch * processes * passes)
        self._ahead: Iterator[Row] | None = None
        self._epoch = 0
        self._last: list[Row] = []

    def _stream(self, passes: int | None) -> Iterator[Row]:
        numbers = itertools.count() if passes is None else range(passes)
        orders = (units_of(self._order_of(number), self.sizes, self.settings) for number in numbers)
        return rows_of(itertools.chain.from_iterable(orders), self.sizes, self.settings)

    def epoch(self, number: int, process: int = 0) -> list[Row]:
        """Rows of one process in epoch `number`, in the order of its steps."""
        size = self.rows_an_epoch * self.processes
        if self._whole is not None:
            rows = self._whole[number * size : (number + 1) * size]
        else:
            rows = self._next_epochs(number, size)
        return rows[process :: self.processes]

    def _next_epochs(self, number: int, size: int) -> list[Row]:
        """Rows of an epoch of an endless run; the last ones asked for are kept, going back further plans anew."""
        if self._ahead is None or number < self._epoch - 1:
            self._ahead, self._epoch = self._stream(None), 0
        while self._epoch <= number:
            with _collector_paused():
                self._last = [next(self._ahead) for _ in range(size)]
            self._epoch += 1
        return self._last


class BatchPlan:
    """The padded batches of a run, dealt to its processes: every sample of a pass is in exactly one.

    Args:
        order_of: pass number -> order of the samples; all passes are of one length.
        batch_size: samples of one process's batch.
        drop_last: leave out the samples that do not fill the last batch of all processes.
    """

    def __init__(
        self, order_of: Callable[[int], np.ndarray], batch_size: int, processes: int = 1, drop_last: bool = False
    ):
        self._order_of = order_of
        self._together = batch_size * processes
        self._processes = processes
        whole, rest = divmod(len(order_of(0)), self._together)
        self.rows_an_epoch = whole + (1 if rest and not drop_last else 0)

    def epoch(self, number: int, process: int = 0) -> list[list[int]]:
        """Batches of one process in pass `number`; where too few samples are left for all, some are empty."""
        order = self._order_of(number)
        batches = []
        for row in range(self.rows_an_epoch):
            together = order[row * self._together : (row + 1) * self._together]
            batches.append([int(index) for index in np.array_split(together, self._processes)[process]])
        return batches


def fill_rate(rows: Sequence[Row], sizes: SampleSizes, budget: int) -> float:
    """Part of the rows' room that tokens take."""
    used = sum(sizes.unit_tokens(unit) for row in rows for unit in row)
    return used / (len(rows) * budget) if rows else 0.0


def _split_last(rows: list[Row], wanted: int) -> list[Row]:
    """As many rows as wanted: from the end backwards, rows give away half of their units, or half of their samples."""
    rows = list(rows)
    position = len(rows) - 1
    while len(rows) < wanted and position >= 0:
        row = rows[position]
        if len(row) == 1 and len(row[0]) > 1:
            unit = row[0]
            row = [unit[: len(unit) // 2], unit[len(unit) // 2 :]]
        if len(row) > 1:
            half = len(row) // 2
            rows[position : position + 1] = [row[:half], row[half:]]
            position += 1
        else:
            position -= 1
    # Fewer samples than processes: the rest take part in the last step with nothing of their own.
    return rows + [[] for _ in range(wanted - len(rows))]


# Batches

Sample = Mapping[str, Any]
"""`input_ids`, `labels` (lists), `source`, and if it has images `pixel_values` [I, 3, H, W], or on grids of their own
`pixel_values` [windows, 3, side, side] and `image_grids` [I, 2]."""


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
        images: images that are encoded.
        windows: windows of them, where images lie on grids of their own, and 0 where all have as many.
        bad: sentences about the samples that were to be in it and could not be made.
        position: of a streamed batch, its lane and where that stands behind it (`monkey.data.streaming`).
    """

    sources: tuple[str, ...]
    supervised: int
    weight: int
    runs: tuple[tuple[int, int], ...]
    tokens: int
    slots: int
    images: int
    windows: int = 0
    bad: tuple[BadSample, ...] = ()
    position: tuple[int, Mapping[str, Any]] | None = None


def padded_batch(samples: Sequence[Sample], processor: MonkeyProcessor, equal_means: bool = False) -> dict[str, Any]:
    """Samples as rows padded to the longest.

    Args:
        equal_means: the loss is the mean over batches of each one's mean, as the published script has it, not the mean
            over all supervised tokens: `loss_weights` [N] come with the batch.

    Returns:
        `input_ids`, `attention_mask` [B, T], `loss_positions`, `loss_targets` [N], `pixel_values` (and `image_grids`)
        if there are images, and `contents`.
    """
    import torch  # not above: what plans rows, and the flags of training, starts without it

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
            **_count_images(batch),
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
        `input_ids`, `position_ids` [1, T], `segments` [R, 4], `loss_positions`, `loss_targets` [N], `pixel_values` (and
        `image_grids`) if there are images, and `contents`.

    Raises:
        ValueError: samples of a unit that differ where they should be the same, naming both.
    """
    import torch

    from monkey.processing import join_images

    row = _Row()
    for unit in units:
        row.add(unit)
    samples = [sample for unit in units for sample in unit]
    batch: dict[str, Any] = {
        "input_ids": torch.tensor([row.ids or [filler_id]]),
        "position_ids": torch.tensor([row.positions or [0]]),
        "segments": torch.tensor(row.segments or [(0, 1, 0, 0)]),
        "loss_positions": torch.tensor(row.loss_positions, dtype=torch.long),
        "loss_targets": torch.tensor(row.loss_targets, dtype=torch.long),
    }
    if equal_means:
        batch["loss_weights"] = torch.tensor([1 / count for count in row.supervised for _ in range(count)])
    batch |= join_images(unit[0] for unit in units)
    batch["contents"] = BatchContents(
        sources=tuple(sample["source"] for sample in samples),
        supervised=len(row.loss_targets),
        weight=sum(map(bool, row.supervised)) if equal_means else len(row.loss_targets),
        runs=tuple((end - start, prefix_end - prefix_start) for start, end, prefix_start, prefix_end in row.segments),
        tokens=len(row.ids),
        slots=room,
        **_count_images(batch),
    )
    return batch


def _count_images(batch: Mapping[str, Any]) -> dict[str, int]:
    """Return `images` and `windows` as of `BatchContents`."""
    pixels = len(batch.get("pixel_values", ()))
    if "image_grids" not in batch:
        return {"images": pixels}
    return {"images": len(batch["image_grids"]), "windows": pixels}


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
