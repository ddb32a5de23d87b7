"""Putting requests to a backend: their order, answers into the journal, memory that runs out, and what it took."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from eval.backends import Answer, Backend, Failure, Request, growth
from monkey.journal import Journal

MAX_TOGETHER = 256
"""Questions on one image from where on they may be shared among several processes."""


def shard(requests: Iterable[Request], size: int) -> list[list[Request]]:
    """Share requests among `size` processes. Those on one image stay together; long prompts come first.

    So neighbours share their image, or are of about one length, which leaves little padding; and what needs the most
    memory comes first.
    """
    by_image: dict[str, list[Request]] = {}
    for request in requests:
        by_image.setdefault(str(request.question.image), []).append(request)
    groups = []
    for own in by_image.values():
        group = sorted(own, key=_longest_first)
        groups += [group[start : start + MAX_TOGETHER] for start in range(0, len(group), MAX_TOGETHER)]
    groups.sort(key=lambda group: _longest_first(group[0]))
    shares: list[list[Request]] = [[] for _ in range(size)]
    for group in groups:
        min(shares, key=len).extend(group)
    return shares


def _longest_first(request: Request) -> tuple[int, int]:
    return -len(request.prompt), request.row


@dataclass
class Report:
    """What came of asking besides the answers: rows that failed, with the reason, and rows that were never asked.

    `images` counts different ones, `seconds` is wall time in this process, `work` holds the figures that the backend
    itself gives.
    """

    rank: int = 0
    questions: int = 0
    images: int = 0
    tokens: int = 0
    seconds: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)
    foreign: list[int] = field(default_factory=list)
    work: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Report:
        failures = {int(row): reason for row, reason in content["failures"].items()}
        return cls(**{**content, "failures": failures})


class Asker:
    """Asks with one backend. The batch it begins with gets smaller when memory runs out.

    Args:
        told: called with the number of requests that each batch settled.
    """

    def __init__(self, backend: Backend, batch_size: int, rank: int = 0, told: Callable[[int], None] = lambda _: None):
        self.backend = backend
        self.batch_size = batch_size
        self.rank = rank
        self._told = told

    def ask(self, requests: Sequence[Request], keys: Mapping[int, str], journal: Journal) -> Report:
        """Put requests to the backend; every answer is in the journal before the next batch begins."""
        report = Report(self.rank, images=len({request.question.image for request in requests}))
        left = {request.row: request for request in requests}
        before, started = dict(getattr(self.backend, "work", {})), time.monotonic()

        def take(results: Iterable[Answer | Failure]) -> None:
            answers = []
            for result in results:
                left.pop(result.row, None)
                if result.row not in keys:
                    report.foreign.append(result.row)
                elif isinstance(result, Failure):
                    report.failures[result.row] = result.reason
                else:
                    answers.append({"key": keys[result.row], **asdict(result)})
            journal.append(answers)
            report.questions += len(answers)
            report.tokens += sum(answer["tokens"] for answer in answers)
            self._told(len(answers))

        while not (is_done := self._ask_in_batches(list(left.values()), take)) and self.batch_size > 1:
            self.batch_size //= 2
            tqdm.write(f"out of memory; going on with batches of {self.batch_size}")
        for request in () if is_done else list(left.values()):
            if not self._ask_in_batches([request], take):
                take([Failure(request.row, f"{request.question.source}: out of memory with this question alone")])
        report.seconds = time.monotonic() - started
        report.work = growth(before, getattr(self.backend, "work", {}))
        return report

    def _ask_in_batches(self, requests: Sequence[Request], take: Callable[[Iterable[Answer | Failure]], None]) -> bool:
        """Ask; whether memory sufficed to the end.

        Memory that runs out in `batches` is no matter of their size here: that of a shared backend asks all processes,
        and one alone cannot ask again.
        """
        for batch in self.backend.batches(requests, self.batch_size):
            try:
                answers = self.backend.generate_answers(batch)
            except RuntimeError as error:
                # A backend that needs no model has not imported torch.
                torch = sys.modules.get("torch")
                if torch is None or not isinstance(error, torch.OutOfMemoryError):
                    raise
                break
            take(answers)
        else:
            return True
        # Out of the handler, where the error held the tensors of the batch.
        gc.collect()
        torch.cuda.empty_cache()
        return False


JOURNAL_FIELDS = {"row": int, "raw": str, "tokens": int, "stop": str}
"""What a line of a journal holds beside its key."""


def throughput(reports: Sequence[Report]) -> dict[str, Any]:
    """Return what asking took: questions, different images, tokens; seconds of the slowest process; rates.

    Figures of the backends are summed over processes; those called `peak_…` are the largest.
    """
    seconds: Counter[int] = Counter()
    totals = dict.fromkeys(("questions", "images", "tokens"), 0)
    work: dict[str, float] = {}
    for report in reports:
        seconds[report.rank] += report.seconds
        totals = {name: total + getattr(report, name) for name, total in totals.items()}
        for name, value in report.work.items():
            work[name] = max(work.get(name, 0), value) if name.startswith("peak_") else work.get(name, 0) + value
    longest = max(seconds.values(), default=0.0)
    rates = {f"{name}_per_second": round(totals[name] / longest, 3) if longest else None for name in totals}
    return {**totals, "seconds": round(longest, 3), **rates, "processes": len(seconds), "work": work}


def describe_throughput(figures: Mapping[str, Any], failed: int = 0) -> str:
    """Return the figures in a sentence; shares of the stages, padding and memory where the backend gives them.

    `failed` counts the questions that could not be asked.
    """
    if not figures["questions"]:
        why = f"none of the {failed:,} that were left could be asked" if failed else "the answers were there"
        return f"asked no question: {why}"
    work = figures["work"]
    parts = [f"{figures[f'{name}_per_second']:.1f} {name}/s" for name in ("questions", "images", "tokens")]
    stages = {name.removesuffix("_seconds"): value for name, value in work.items() if name.endswith("_seconds")}
    if total := sum(stages.values()):
        parts += [f"{name} {value / total:.0%}" for name, value in stages.items()]
    if work.get("prefill_tokens"):
        parts.append(f"padding {work.get('padding_tokens', 0) / work['prefill_tokens']:.0%} of the prompts")
    if "peak_bytes" in work:
        parts.append(f"{work['peak_bytes'] / 2**30:.1f} GiB at most")
    return f"asked {figures['questions']} questions in {figures['seconds']:.1f} s: {', '.join(parts)}"
