"""The processes of a run, as torchrun or a scheduler starts them: who takes which questions, and what they tell.

Answers are in the journals, in a folder that all processes see. What little else they tell each other, the questions of
each and what came of them, goes through the store that they meet at. There each also shows that it lives, whatever it
is busy with, so that a live one is waited for without a limit.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

SILENCE = 300.0
"""Seconds without a sign of life after which a process that is waited for counts as gone."""

PIECE = 2**20
"""Characters of one value in the store; torch's refuses values of more than 8 MiB."""

_BEAT, _LOOK = 5.0, 0.05


class Stopped(ValueError):
    """Another process of the run ended with this sentence, or is gone."""


class Processes:
    """The processes of a run, this one among them.

    Args:
        rank: number of this one, from 0.
        size: of all.
        store: where they meet: a store of torch.distributed; None for one that is alone.
        timeout: see `SILENCE`.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, timeout: float = SILENCE):
        self.rank, self.size = rank, size
        self._store, self._timeout = store, timeout
        self._own_count = 0

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Processes:
        """Return those that torchrun, or a scheduler with its variables, started.

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
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def ranks(self) -> range:
        return range(self.size)

    @property
    def others(self) -> range:
        """The ranks of all but the first."""
        return range(1, self.size)

    @contextmanager
    def together(self) -> Iterator[None]:
        """The time in which the processes depend on each other: an error here stops the others too.

        None ends well without the first, which scores; and the first ends last, because the store may be its own.
        """
        ended = threading.Event()
        if self._store is not None:
            threading.Thread(target=self._show_life, args=(ended,), daemon=True).start()
        try:
            yield
            if self.is_first:
                self.tell("ended/0", True)
                for other in self.others:
                    self.hear(f"ended/{other}", other)
            else:
                self.hear("ended/0")
                self.tell(f"ended/{self.rank}", True)
        except Stopped:
            raise
        except BaseException as error:
            # Where the store is gone with its process, the others notice that too.
            with suppress(Stopped):
                self.tell("failure", {"rank": self.rank, "sentence": str(error) or type(error).__name__})
            raise
        finally:
            ended.set()

    def _show_life(self, ended: threading.Event) -> None:
        """Count up, until the end; a store that is lost is noticed by whoever uses it next."""
        with suppress(Stopped):
            while not ended.is_set():
                self._call("add", f"alive/{self.rank}", 1)
                ended.wait(min(_BEAT, self._timeout / 4))

    def tell(self, key: str, content: Any) -> None:
        """Let the others hear something under a key: pieces first, then under the key itself their number."""
        if self._store is None:
            return
        text = json.dumps(content)
        starts = range(0, len(text), PIECE)
        for number, start in enumerate(starts):
            self._call("set", f"{key}/{number}", text[start : start + PIECE])
        self._call("set", key, str(len(starts)))

    def was_told(self, key: str) -> bool:
        return self._call("check", [key])

    def hear(self, key: str, teller: int = 0, while_waiting: Callable[[], None] = lambda: None) -> Any:
        """Wait for what another process, `teller`, tells under a key, and return it.

        Raises Stopped when a process ended early, or when for long the teller has shown no life.
        """
        beats, since = None, time.monotonic()
        while not self.was_told(key):
            self.check_others()
            while_waiting()
            if (now_beats := self._call("add", f"alive/{teller}", 0)) != beats:
                beats, since = now_beats, time.monotonic()
            elif time.monotonic() - since > self._timeout:
                raise Stopped(
                    f"process {self.rank} of the run has waited {self._timeout:.0f} seconds for process {teller} "
                    "without a sign of it; the answers so far are kept, and the same command goes on"
                )
            time.sleep(_LOOK)
        return self._read(key)

    def count_settled(self, amount: int) -> int:
        """Add to the number of questions that all processes have settled, and return it."""
        self._own_count += amount
        return self._own_count if self._store is None else self._call("add", "settled", amount)

    def check_others(self) -> None:
        """Raise Stopped when another process ended early."""
        if self._store is not None and self.was_told("failure"):
            told = self._read("failure")
            raise Stopped(f"process {told['rank']} of the run stopped: {told['sentence']}")

    def _read(self, key: str) -> Any:
        """Return what was told under a key."""
        pieces = [self._call("get", f"{key}/{number}") for number in range(int(self._call("get", key)))]
        return json.loads(b"".join(pieces))

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the store; one that is lost becomes a sentence."""
        import torch.distributed as dist

        try:
            return getattr(self._store, name)(*arguments)
        except dist.DistError as error:
            raise Stopped(
                f"process {self.rank} cannot reach the others of the run any more ({str(error).splitlines()[0]}); the "
                "answers so far are kept, and the same command goes on"
            ) from error
