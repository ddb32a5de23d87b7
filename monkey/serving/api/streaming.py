"""A reply as OpenAI's clients read it: whole, or piece by piece as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

from monkey.reply import Reply

DONE = b"data: [DONE]\n\n"

LAST_WORDS_SECONDS = 1.0
"""For a caller whose time is over to make room for the event that says so."""

EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy in between passes each event on at once
]


async def pieces_of(reply: Reply, threads: Executor) -> AsyncIterator[str]:
    """Pieces of an answer that a thread waits for; leaving the iterator stops the answer.

    Raises what iterating `reply` raises.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[str | None] = asyncio.Queue()

    def read() -> None:
        for piece in reply:
            if piece:
                loop.call_soon_threadsafe(waiting.put_nowait, piece)

    reading = loop.run_in_executor(threads, read)
    reading.add_done_callback(lambda _: waiting.put_nowait(None))
    try:
        while (piece := await waiting.get()) is not None:
            yield piece
        await reading
    finally:
        reply.close()


class Completion:
    """One answer in the making.

    Args:
        model: the name that it was asked by.
        includes_usage: whether a stream tells at its end how many tokens there were.
    """

    def __init__(self, model: str, reply: Reply, includes_usage: bool = False):
        self._reply, self._includes_usage = reply, includes_usage
        self._fields = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._role = {"role": "assistant"}

    @property
    def usage(self) -> dict[str, int]:
        prompt, new = self._reply.prompt_tokens, self._reply.new_tokens
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def whole(self, text: str) -> dict[str, Any]:
        """The answer in one piece, after its end."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            **self._fields,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": self._reply.finish_reason}],
            "usage": self.usage,
        }

    def piece(self, text: str) -> bytes:
        """The event of one piece."""
        return self._chunk({"content": text})

    def ending(self) -> bytes:
        """The last events, after the answer's end."""
        end = self._chunk({}, self._reply.finish_reason)
        return end + (self._event([], self.usage) if self._includes_usage else b"") + DONE

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        delta, self._role = {**self._role, **delta}, {}  # the first one says whose words they are
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}], None)

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        told = {"usage": usage} if self._includes_usage else {}
        return event({**self._fields, "object": "chat.completion.chunk", "choices": choices, **told})


class EventStream:
    """A response of server-sent events, which begins with the first of them: until then it may still be another.

    Args:
        seconds: after which `put` raises TimeoutError where the caller reads nothing, so that there is no room.
    """

    def __init__(self, send: Any, seconds: float):
        self._send, self._seconds = send, seconds
        self.has_begun = False

    async def put(self, events: bytes, is_last: bool = False) -> None:
        async with asyncio.timeout(self._seconds):
            if not self.has_begun:
                self.has_begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
            await self._send({"type": "http.response.body", "body": events, "more_body": not is_last})

    async def put_last_words(self, events: bytes) -> None:
        """End after time: a caller who does not read is not waited for, and its connection is cut off."""
        self._seconds = LAST_WORDS_SECONDS
        with suppress(TimeoutError):
            await self.put(events, is_last=True)


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event that holds a value as JSON; in ASCII, since some clients end a line at U+2028 too."""
    return f"data: {json.dumps(value)}\n\n".encode()
