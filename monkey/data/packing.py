"""Which samples share a row: planned from their lengths alone, before a picture is opened.

Samples come in a drawn order. Those about the same picture may form one *unit*, so that the picture is encoded once
and its tokens stand once. Units are put into rows of at most `budget` tokens: a row opens with the oldest unit that
waits, then takes, first fit, every one of the next `look_ahead` that still fits. The plan depends on lengths, order
and settings, nothing else, so a resumed run makes the same rows and takes them up where it stopped.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHARING = ("apart", "branches", "turns")
"""What becomes of several records about one image: each for itself; questions behind one image that do not see each
other; turns of one conversation."""

Unit = tuple[int, ...]
"""Numbers of the samples that share a picture's tokens; most often one."""
Row = list[Unit]


@dataclass(frozen=True)
class SampleSizes:
    """What the plan knows of each sample.

    Attributes:
        tokens: [N] length.
        shared: [N] leading tokens, through the last picture, that samples with the same `prefix` have in common.
        prefix: [N] number of the sample's prefix; the same for equal pictures and equal tokens up to `shared`.
        images: [N] pictures.
        supervised: [N] tokens that the loss counts.
    """

    tokens: np.ndarray
    shared: np.ndarray
    prefix: np.ndarray
    images: np.ndarray
    supervised: np.ndarray

    def unit_tokens(self, unit: Unit) -> int:
        """Tokens of a unit, the shared ones counted once."""
        # One by one: for the few samples of a unit, NumPy's own sum takes several times as long.
        own = sum(self.tokens.item(number) for number in unit)
        return own if len(unit) == 1 else own - (len(unit) - 1) * self.shared.item(unit[0])

    def unit_images(self, unit: Unit) -> int:
        """Pictures that are encoded for a unit."""
        return int(self.images[unit[0]])


@dataclass(frozen=True)
class RowSettings:
    """How samples share rows.

    Attributes:
        budget: most tokens of a row.
        look_ahead: units that wait to be chosen from.
        share: put samples about the same picture together, as many as fit.
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

    def refill() -> None:
        while len(waiting) < settings.look_ahead:
            unit = next(units, None)
            if unit is None:
                return
            length = sizes.unit_tokens(unit)
            if length > settings.budget:
                raise ValueError(f"sample {unit[0]} is {length} tokens long, and a row holds {settings.budget}")
            waiting.append((unit, length))

    while True:
        refill()
        if not waiting:
            return
        row: Row = []
        room = settings.budget
        left = []
        for unit, length in waiting:
            if length <= room:
                row.append(unit)
                room -= length
            else:
                left.append((unit, length))
        waiting[:] = left
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
        self._passes = passes
        self.processes = processes
        with _collector_paused():
            rows = list(self._stream(1 if passes is None else passes))
        if passes is None:
            self.rows_an_epoch = -(-len(rows) // processes)
            self._whole = None
        else:
            self.rows_an_epoch = -(-len(rows) // (processes * passes))
            self._whole = _split_last(rows, self.rows_an_epoch * processes * passes)
        self._ahead: Iterator[Row] | None = None
        self._epoch = 0
        self._last: list[Row] = []

    def _stream(self, passes: int | None) -> Iterator[Row]:
        def units() -> Iterator[Unit]:
            number = 0
            while passes is None or number < passes:
                yield from units_of(self._order_of(number), self.sizes, self.settings)
                number += 1

        return rows_of(units(), self.sizes, self.settings)

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
