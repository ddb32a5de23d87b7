"""Pictures that people upload: how long they are kept, and that nothing else can be named in their place."""

from __future__ import annotations

import json
import re
from typing import Any

CHECK_EVERY_SECONDS, KEEP_SECONDS = 60, 3600
"""How often old uploads are looked for, and how old they get."""

_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class UploadsOnly:
    """ASGI middleware that refuses requests with an address where the path of an uploaded file belongs.

    gradio itself refuses the paths of files that nobody uploaded, but it would download an address.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or _is_upload(scope):
            await self.app(scope, receive, send)
            return
        body = await _whole_body(receive)
        if _names_address(body):
            await _refuse(send)
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> dict[str, Any]:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, receive_again, send)


def _is_upload(scope: dict[str, Any]) -> bool:
    """Whether the request brings files, rather than naming them."""
    return dict(scope["headers"]).get(b"content-type", b"").lower().startswith(b"multipart/form-data")


async def _whole_body(receive: Any) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client went away
            return b""
        parts.append(message.get("body", b""))
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


async def _refuse(send: Any) -> None:
    body = json.dumps({"detail": "pictures are uploaded here, not fetched from an address"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
