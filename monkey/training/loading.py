"""From samples to the batches of each process: padded or packed rows, the same number of them everywhere."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from monkey.data.packing import BatchPlan, RowPlan

# What a scheduler sends before it kills: SIGTERM, and SIGUSR1 where asked to warn early. SIGINT is Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def leave_signals_to_the_run(_worker: int) -> None:
    """Schedulers and torchrun signal whole process groups; a loading process that ended of it would fail the step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


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

    def __init__(self, dataset: Dataset, batch_sampler: Sampler, **settings: Any):
        settings.setdefault("generator", torch.Generator().manual_seed(0))
        settings.setdefault("worker_init_fn", leave_signals_to_the_run)
        super().__init__(dataset, batch_sampler=batch_sampler, **settings)

    def set_epoch(self, number: int) -> None:
        self.batch_sampler.set_epoch(number)


class EqualShares(Sampler):
    """All samples in batches for one process of several; every process gets the same number of batches, some empty."""

    def __init__(self, count: int, batch_size: int, process: int, processes: int):
        own = range(process, count, processes)
        batches = math.ceil(math.ceil(count / processes) / batch_size)
        self._batches: Sequence[Sequence[int]] = [
            own[number * batch_size : (number + 1) * batch_size] for number in range(batches)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (list(batch) for batch in self._batches)
