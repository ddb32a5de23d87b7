"""Who may ask: keys, and which name a server without keys is called by."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Any

from monkey.serving.api.errors import ApiError

OPEN_PATHS = frozenset(("/health",))
"""What is answered without a key."""

LOOPBACK_NAMES = frozenset(("127.0.0.1", "localhost", "[::1]"))


class Access:
    """ASGI middleware that lets through who has a key, or, without keys, who calls this machine by its own name.

    The second keeps web pages out: one that makes its own name point to 127.0.0.1 still sends that name as `Host`.

    Args:
        keys: any of them opens; where there is none, no key is asked for.
        is_loopback: whether only this machine reaches the server.
    """

    def __init__(self, app: Any, keys: Iterable[str], is_loopback: bool):
        self.app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._checks_host = is_loopback and not self._digests

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        error = self._error(scope) if scope["type"] == "http" and scope["path"] not in OPEN_PATHS else None
        await (self.app if error is None else error.response())(scope, receive, send)

    def _error(self, scope: dict[str, Any]) -> ApiError | None:
        headers = dict(scope["headers"])
        if self._digests and not self._knows(headers.get(b"authorization", b"")):
            return ApiError(
                401,
                "a key is needed, as `Authorization: Bearer KEY`, and none or a wrong one came",
                code="invalid_api_key",
            )
        if self._checks_host and _name_of(headers.get(b"host", b"")) not in LOOPBACK_NAMES:
            return ApiError(403, "this server is for its own machine; call it by 127.0.0.1 or localhost", code="host")
        return None

    def _knows(self, header: bytes) -> bool:
        kind, _, key = header.partition(b" ")
        given = _digest(key.strip())
        # All are compared, each in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return kind.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    """Of one length, which comparing in constant time needs."""
    return hashlib.sha256(key).digest()


def _name_of(host: bytes) -> str:
    """The name in a `Host` header, without its port."""
    text = host.decode("latin-1").lower()
    return text[: text.find("]") + 1] if text.startswith("[") else text.partition(":")[0]
