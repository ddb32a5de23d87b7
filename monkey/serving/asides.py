"""Work that is not an answer, done in the computing thread between two steps of the answers in progress."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any


class Asides:
    """Pieces of work in line; whoever calls holds a lock."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future, Callable[[], Any]]] = deque()

    def add(self, work: Callable[[], Any]) -> Future:
        """Put work in line; the future of its result."""
        future: Future = Future()
        self._waiting.append((future, work))
        return future

    def cancel(self) -> None:
        """Drop what is in line; whoever waits for it gets CancelledError."""
        while self._waiting:
            self._waiting.popleft()[0].cancel()

    def take(self) -> Callable[[], None] | None:
        """The next piece of work, to be called without the lock; whatever it raises goes to whoever waits for it."""
        if not self._waiting:
            return None
        return partial(_do, *self._waiting.popleft())


def _do(future: Future, work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
