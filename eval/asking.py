"""Putting requests to a backend: answers into the journal batch by batch, memory that runs out, and what it took."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from eval.backends import Answer, Backend, Failure, Request, growth
from eval.journal import Journal

Taken = Callable[[Sequence[Answer | Failure]], None]


@dataclass
class Report:
    """What came of a chunk besides its answers: rows that failed, with the reason, and rows that were never asked.

    `images` counts different ones, `seconds` is wall time in this process, `work` holds the figures that the backend
    itself gives.
    """

    rank: int = 0
    questions: int = 0
    images: int = 0
    tokens: int = 0
    seconds: float = 0.0
    smallest_batch: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    foreign: list[int] = field(default_factory=list)
    work: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Report:
        failures = {int(row): reason for row, reason in content["failures"].items()}
        return cls(**{**content, "failures": failures})


class Asker:
    """Asks chunk after chunk with one backend. The batch it begins with gets smaller when memory runs out.

    Args:
        told: called with the number of requests that each batch settled.
    """

    def __init__(self, backend: Backend, batch_size: int, rank: int = 0, told: Callable[[int], None] = lambda _: None):
        self.backend = backend
        self.batch_size = batch_size
        self._rank = rank
        self._told = told

    def ask(self, requests: Sequence[Request], keys: Mapping[int, str], journal: Journal) -> Report:
        """Put requests to the backend; every answer is in the journal before the next batch begins."""
        report = Report(self._rank, images=len({request.question.image for request in requests}))
        before, started = dict(getattr(self.backend, "work", {})), time.monotonic()

        def take(results: Iterable[Answer | Failure]) -> None:
            entries = []
            for result in results:
                if result.row not in keys:
                    report.foreign.append(result.row)
                elif isinstance(result, Failure):
                    report.failures[result.row] = result.reason
                else:
                    entries.append(journal_entry(result, keys[result.row]))
                    report.tokens += result.tokens
            journal.append(entries)
            report.questions += len(entries)
            self._told(len(entries))

        self._settle(requests, take)
        report.seconds = time.monotonic() - started
        report.smallest_batch = self.batch_size
        report.work = growth(before, getattr(self.backend, "work", {}))
        return report

    def _settle(self, requests: Sequence[Request], take: Taken) -> None:
        left = {request.row: request for request in requests}

        def taken(results: Sequence[Answer | Failure]) -> None:
            take(results)
            for result in results:
                left.pop(result.row, None)

        while left and not self._asked(list(left.values()), taken):
            # Out of the handler, where the error held the tensors of the batch.
            _free_memory()
            if self.batch_size == 1:
                self._one_by_one(list(left.values()), take)
                return
            self.batch_size //= 2
            tqdm.write(f"out of memory; going on with batches of {self.batch_size}")

    def _asked(self, requests: Sequence[Request], taken: Taken) -> bool:
        """Ask in batches; whether memory sufficed to the end."""
        import torch

        for batch in self.backend.batches(requests, self.batch_size):
            try:
                results = self.backend.generate_answers(batch)
            except torch.OutOfMemoryError:
                return False
            taken(results)
        return True

    def _one_by_one(self, requests: Sequence[Request], take: Taken) -> None:
        for request in requests:
            if not self._asked([request], take):
                _free_memory()
                take([Failure(request.row, f"{request.question.source}: out of memory with this question alone")])


def _free_memory() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def journal_entry(answer: Answer, key: str) -> dict[str, Any]:
    return {"key": key, "row": answer.row, "raw": answer.raw, "tokens": answer.tokens, "stop": answer.stop}
