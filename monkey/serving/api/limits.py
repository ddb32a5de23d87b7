"""How much is taken on: bytes, pictures, requests at a time, and seconds."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from monkey.serving.api.errors import ApiError

LONGEST_WAIT = 60
"""Most seconds after which a caller is told to come again."""

DISCARDED = 4
"""How many times the allowed bytes are read of a body that is refused, so that its sender gets to read why."""

PAUSE_SECONDS = 1.0
"""After which a sender is taken to have sent all that it wants to of a body that is refused."""


@dataclass(frozen=True)
class Limits:
    """Of one server; all but the last two have flags of `python -m monkey.serve`."""

    body_bytes: int = 32 * 2**20
    """Of a request, base64 included."""
    pictures: int = 8
    """Of a request."""
    queue: int = 32
    """Requests that wait while others are answered."""
    seconds: float = 600.0
    """From a request's first byte to the answer's last."""
    body_seconds: float = 60.0
    """For a request's body to arrive."""
    send_seconds: float = 60.0
    """For a caller to read so much that there is room for the next piece of a stream."""


class Admission:
    """Counts the requests in the house, and turns away those for whom there is no room.

    Args:
        capacity: how many are in the house at once, those that wait included.
        at_once: how many of them are answered at the same time.
    """

    def __init__(self, capacity: int, at_once: int):
        self.capacity, self.at_once = capacity, at_once
        self.in_flight = 0
        self.is_draining = self.is_stopped = False
        self._deadlines: set[asyncio.Timeout] = set()
        self._seconds: deque[float] = deque(maxlen=32)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, or ApiError."""
        if self.is_draining:
            raise ApiError(
                503, "the server is about to end and takes no more requests", code="shutting_down", retry_after=5
            )
        if self.in_flight >= self.capacity:
            raise ApiError(
                429,
                f"{self.in_flight} requests are being answered or wait already; ask again later",
                code="rate_limit_exceeded",
                retry_after=self._wait(),
            )
        self.in_flight += 1
        begun = time.monotonic()
        try:
            yield
            self._seconds.append(time.monotonic() - begun)  # not of one that was refused, which takes no time
        finally:
            self.in_flight -= 1

    @asynccontextmanager
    async def deadline(self, seconds: float) -> AsyncIterator[None]:
        """Raises TimeoutError in the block after so many seconds, or when all are to stop."""
        async with asyncio.timeout(seconds) as timeout:
            self._deadlines.add(timeout)
            try:
                yield
            finally:
                self._deadlines.discard(timeout)

    def stop(self) -> None:
        """Let nobody in and wait for nobody any longer; called in the event loop."""
        self.is_draining = self.is_stopped = True
        for timeout in self._deadlines:
            if not timeout.expired():
                timeout.reschedule(0.0)

    def _wait(self) -> int:
        """Seconds until a place is likely free: as long as the answers of late took, shared among those at once."""
        typical = statistics.median(self._seconds) if self._seconds else 1.0
        return min(LONGEST_WAIT, max(1, math.ceil(typical / self.at_once)))


async def read_body(scope: dict[str, Any], receive: Any, limits: Limits, admission: Admission) -> bytes | None:
    """A request's body of JSON; None where the client went away.

    Raises:
        ApiError: too long, too slow, or not said to be JSON: browsers send that to no other site unasked.
    """
    kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise ApiError(415, "the body must come as `Content-Type: application/json`", code="content_type")
    seconds = min(limits.body_seconds, limits.seconds)
    try:
        async with admission.deadline(seconds):
            return await _received(receive, limits.body_bytes)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {seconds:g} seconds", code="timeout") from None


async def _received(receive: Any, limit: int) -> bytes | None:
    parts: list[bytes] = []
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part, more = message.get("body", b""), message.get("more_body", False)
        length += len(part)
        parts.append(part)
        if length > limit:
            raise ApiError(
                413, f"the request is longer than the {limit:,} bytes allowed (--max-body-mib)", code="body_too_large"
            )
    return b"".join(parts)


class WholeBodies:
    """ASGI middleware that reads a request to its end before it is answered or refused.

    A connection that is closed while bytes of its request are unread is reset, and its sender, still sending, may never
    see why. So what is refused before its body was read (no key, no room, no such path) is read first and thrown away,
    up to `DISCARDED` times the allowed bytes and for the seconds that a body has, until it pauses; it holds no place.
    """

    def __init__(self, app: Any, limits: Limits, admission: Admission):
        self.app, self._limits, self._admission = app, limits, admission

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        # Who waits to be told that it may send has sent nothing, and needs not.
        is_unread = b"expect" not in dict(scope["headers"])

        async def receive_and_note() -> dict[str, Any]:
            nonlocal is_unread
            message = await receive()
            is_unread = message.get("more_body", False)
            return message

        async def send_after_reading(message: dict[str, Any]) -> None:
            nonlocal is_unread
            # 408 says that the rest does not come.
            if is_unread and message.get("status") != 408:
                await self._discard(receive)
            is_unread = False
            await send(message)

        await self.app(scope, receive_and_note, send_after_reading)

    async def _discard(self, receive: Any) -> None:
        left = DISCARDED * self._limits.body_bytes
        with suppress(TimeoutError):
            async with self._admission.deadline(self._limits.body_seconds):
                while left > 0:
                    message = await asyncio.wait_for(receive(), PAUSE_SECONDS)
                    if not message.get("more_body", False):
                        break
                    left -= len(message["body"])
