"""Nothing but an uploaded file can be named in a picture's place."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_BODY_BYTES = 1 << 20
"""Longest body of a request that brings no files: a question has a few thousand characters."""

UPLOAD_PATH = "/gradio_api/upload"
"""gradio's route for uploads, which reads files out of a form and never a JSON body. It bounds their size itself."""

_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class UploadsOnly:
    """ASGI middleware that refuses requests with an address where the path of an uploaded file belongs.

    gradio itself refuses the paths of files that nobody uploaded, but it would download an address. The route alone
    decides which bodies are looked at: what headers say about a body, gradio may read otherwise.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] == UPLOAD_PATH:
            await self.app(scope, receive, send)
            return
        body = await _whole_body(receive)
        if body is None:
            await _refuse(send, 413, f"the request is longer than the {MAX_BODY_BYTES:,} bytes allowed")
            return
        if _names_address(body):
            await _refuse(send, 400, "pictures are uploaded here, not fetched from an address")
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> dict[str, Any]:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, receive_again, send)


async def _whole_body(receive: Any) -> bytes | None:
    """The body, or None as soon as it is longer than `MAX_BODY_BYTES`."""
    parts: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client went away
            return b""
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _names_address(body: bytes) -> bool:
    """Whether a JSON body holds `"path": "…://…"` anywhere. What is no JSON is left for gradio to refuse."""
    try:
        waiting = [json.loads(body)] if body else []
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and _ADDRESS.match(path):
                return True
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


async def _refuse(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
