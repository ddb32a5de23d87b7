"""The questions of a run as a queue of chunks that its processes share.

Each process takes the next chunk when it has done its last, so that none waits for a slower one. What they tell each
other goes through the store that torchrun's processes meet at: the chunks, a counter of those taken, and a report of
each. Answers do not: they are in the journals, in a folder that all processes see.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from eval.backends import Request

MOST_TOGETHER = 256
"""Questions on one image from where on they may be dealt to several processes."""

SILENCE = 300.0
"""Seconds without a sign of life after which a process counts as gone."""

_SIGN_OF_LIFE, _LOOK = 5.0, 0.05


def in_order(requests: Sequence[Request]) -> list[list[Request]]:
    """The requests in groups of one image, at most `MOST_TOGETHER` each; groups with long prompts first.

    So neighbours share their image, or are of about one length, which leaves little padding; and what needs the most
    memory comes first.
    """
    image_of = {request.row: str(request.question.image) for request in requests}
    groups = []
    for _, members in groupby(sorted(requests, key=lambda request: image_of[request.row]), lambda r: image_of[r.row]):
        group = sorted(members, key=lambda request: (-len(request.prompt), request.row))
        groups += [group[start : start + MOST_TOGETHER] for start in range(0, len(group), MOST_TOGETHER)]
    return sorted(groups, key=lambda group: (-len(group[0].prompt), group[0].row))


def chunks(requests: Sequence[Request], size: int, batch_size: int) -> list[list[Request]]:
    """The requests of a task, dealt for `size` processes: images stay whole, chunks get smaller towards the end.

    Each takes its share of half of what is left, but no less than a few batches, since a chunk costs a start of the
    processes that open images. One process takes all at once.
    """
    groups = in_order(requests)
    if size == 1:
        return [[request for group in groups for request in group]] if groups else []
    least = 4 * batch_size
    left, dealt = len(requests), []
    chunk: list[Request] = []
    wanted = max(least, left // (2 * size))
    for group in groups:
        chunk += group
        if len(chunk) >= wanted:
            dealt.append(chunk)
            left -= len(chunk)
            wanted = max(least, left // (2 * size))
            chunk = []
    return [*dealt, chunk] if chunk else dealt


class Stopped(ValueError):
    """Another process of the run ended with this sentence, or is gone."""


class OwnStore:
    """What a store of torch.distributed does here, for a process that is alone."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self._values[key] = value.encode("utf-8")

    def get(self, key: str) -> bytes:
        return self._values[key]

    def add(self, key: str, amount: int) -> int:
        total = int(self._values.get(key, b"0")) + amount
        self._values[key] = str(total).encode("ascii")
        return total

    def check(self, keys: Sequence[str]) -> bool:
        return all(key in self._values for key in keys)


class Processes:
    """The processes of a run, this one among them.

    Args:
        rank: number of this one, from 0.
        size: of all.
        store: where they meet: a store of torch.distributed.
        silence: seconds after which one that shows no sign of life counts as gone.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, silence: float = SILENCE):
        self.rank, self.size = rank, size
        self._store = OwnStore() if store is None else store
        self._silence = silence
        self._seen: dict[int, tuple[int, float]] = {}
        self._looked = 0.0
        self._ended = threading.Event()

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Processes:
        """Those that torchrun, or a scheduler with its variables, started.

        Raises ValueError when they cannot meet.
        """
        if int(environment.get("WORLD_SIZE", "1")) == 1:
            return cls()
        import torch.distributed as dist

        try:
            store, rank, size = next(dist.rendezvous("env://"))
        except (ValueError, dist.DistError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"the {environment['WORLD_SIZE']} processes of WORLD_SIZE cannot meet ({reason}); start with torchrun"
            ) from error
        return cls(rank, size, dist.PrefixStore("evaluation", store))

    @property
    def first(self) -> bool:
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """The time in which the processes depend on each other: an error here stops the others too.

        None ends well without the first, which scores; and the first ends last, because the store may be its own.
        """
        pulse = threading.Thread(target=self._show_life, daemon=True)
        if self.size > 1:
            pulse.start()
        try:
            yield
            if self.first:
                self.tell("ended/0", True)
                for other in range(1, self.size):
                    self.hear(f"ended/{other}")
            else:
                self.hear("ended/0")
                self.tell(f"ended/{self.rank}", True)
        except Stopped:
            raise
        except BaseException as error:
            self._tell_the_end(error)
            raise
        finally:
            self._ended.set()

    def tell(self, key: str, content: Any) -> None:
        with self._reached():
            self._store.set(key, json.dumps(content, ensure_ascii=False))

    def hear(self, key: str) -> Any:
        """What was told under a key, waiting for it.

        Raises Stopped when whoever could tell it ended or is gone.
        """
        while not self.told(key):
            self.go_on()
            time.sleep(_LOOK)
        with self._reached():
            return json.loads(self._store.get(key))

    def told(self, key: str) -> bool:
        with self._reached():
            return self._store.check([key])

    def count(self, key: str, amount: int = 1) -> int:
        """Add to a counter that all share, and return its value."""
        with self._reached():
            return self._store.add(key, amount)

    def go_on(self) -> None:
        """Raise Stopped when another process ended early or shows no life."""
        if self.size == 1:
            return
        if self.told("end"):
            with self._reached():
                told = json.loads(self._store.get("end"))
            raise Stopped(f"process {told['rank']} of the run stopped: {told['sentence']}")
        now = time.monotonic()
        if now - self._looked < min(1.0, self._silence / 4):
            return
        self._looked = now
        for other in range(self.size) if self.first else (0,):
            if other == self.rank or self.told(f"ended/{other}"):
                continue
            beats = self.count(f"life/{other}", 0)
            before, since = self._seen.setdefault(other, (beats, now))
            if beats != before:
                self._seen[other] = beats, now
            elif now - since > self._silence:
                raise Stopped(
                    f"process {other} of the run has shown no life for {self._silence:.0f} seconds; the answers so far "
                    "are kept, and the same command goes on"
                )

    def deal(self, all_chunks: Sequence[Any]) -> None:
        """Make these the run's chunks; for the first process."""
        for number, chunk in enumerate(all_chunks):
            self.tell(f"chunk/{number}", chunk)
        self.tell("chunks", len(all_chunks))

    def taken(self) -> Iterator[tuple[int, Any]]:
        """Numbers and chunks, each given to one process."""
        total = self.hear("chunks")
        while (number := self.count("taken") - 1) < total:
            yield number, self.hear(f"chunk/{number}")

    def _show_life(self) -> None:
        import torch.distributed as dist

        while not self._ended.is_set():
            try:
                self._store.add(f"life/{self.rank}", 1)
            except dist.DistError:
                # The store is gone; the next use of it in the main thread says so.
                return
            self._ended.wait(min(_SIGN_OF_LIFE, self._silence / 4))

    def _tell_the_end(self, error: BaseException) -> None:
        sentence = str(error) or type(error).__name__
        try:
            self.tell("end", {"rank": self.rank, "sentence": sentence})
        except Stopped:
            # The store is gone with its process; the others notice that too.
            return

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn a lost store into a sentence."""
        if self.size == 1:
            yield
            return
        import torch.distributed as dist

        try:
            yield
        except dist.DistError as error:
            raise Stopped(
                f"process {self.rank} cannot reach the others of the run any more ({str(error).splitlines()[0]}); the "
                "answers so far are kept, and the same command goes on"
            ) from error
