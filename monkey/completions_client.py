"""HTTP to a server that speaks OpenAI's chat completions: keys, time-outs, and asking again what a busy server refused.

The key is sent to the given address only (redirections are not followed), and stands in no message.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable that holds a key where no other is named."""

BUSY = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
"""Statuses after which the same request may succeed."""

OF_THE_REQUEST = frozenset((400, 413, 415, 422))
"""Statuses that speak of one request; any other failure would be that of every request."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
_MOST_SHOWN = 300


class ServerGone(OSError):
    """The server does not answer, or answers nobody."""


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class CompletionsClient:
    """Sends requests to one server, from any number of threads.

    Args:
        base_url: the address up to and without `/chat/completions`, for example http://localhost:8000/v1.
        api_key: sent as a bearer token; None sends none.
        attempts: how often a request is sent at most.
        timeout: seconds until an answer must have come.
        first_wait: seconds before the second attempt; each later wait is twice as long. A server that says how long to
            wait (Retry-After) is believed, up to `LONGEST_WAIT`.
        called: what messages call the address: the flag or key that it was given by.

    Raises:
        ValueError: the address is not of http or https.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        attempts: int = 6,
        timeout: float = 300.0,
        first_wait: float = FIRST_WAIT,
        called: str = "--base-url",
    ):
        self.base_url = checked_url(base_url, called)
        self.attempts, self.timeout = attempts, timeout
        self._key, self._first_wait, self._called = api_key, first_wait, called
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._opener = urllib.request.build_opener(_NoRedirection)

    @property
    def ending_missing(self) -> str:
        """The end of a sentence on an address that may lack its last part; nothing where it has it."""
        return "" if self.base_url.endswith("/v1") else f"; most servers want {self._called} to end in /v1"

    def listed_models(self) -> list[str]:
        """The names that the server lists; none where it has no such list."""
        status, reply = self.send("models", None, attempts=1)
        if status != 200:
            return []
        try:
            return [entry["id"] for entry in json.loads(reply)["data"]]
        except (ValueError, LookupError, TypeError):
            # Some servers have no such list; then the name must be given.
            return []

    def send(self, path: str, body: Mapping[str, Any] | None, attempts: int | None = None) -> tuple[int, bytes]:
        """Status and content of the reply, after as many attempts as it takes and are allowed.

        Raises:
            TimeoutError: the last attempt got no answer in time.
            ServerGone: the last attempt found no server, or the server refuses everything.
        """
        data = None if body is None else json.dumps(body).encode("utf-8")
        problem: Exception | None = None
        attempts = attempts or self.attempts
        for attempt in range(attempts):
            demand = urllib.request.Request(f"{self.base_url}/{path}", data, self._headers)
            asked = None
            try:
                with self._opener.open(demand, timeout=self.timeout) as reply:
                    return reply.status, reply.read()
            except urllib.error.HTTPError as error:
                status, said = error.code, error.read()
                is_final = error.headers.get("X-Should-Retry") == "false"  # what the openai client heeds too
                if status not in BUSY or is_final:
                    if body is not None and status not in OF_THE_REQUEST and not is_final:
                        hint = self.ending_missing if status == 404 else ""
                        raise ServerGone(f"{self.base_url} refuses with {status}: {self.said(said)}{hint}") from None
                    if status in (401, 403):
                        raise ServerGone(f"{self.base_url} refuses the key with {status}: {self.said(said)}") from None
                    return status, said
                problem, asked = None, _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                problem = error
            if attempt + 1 < attempts:
                time.sleep(min(LONGEST_WAIT, asked if asked is not None else self._first_wait * 2**attempt))
        if problem is None:
            return status, said
        reason = getattr(problem, "reason", problem)
        if isinstance(reason, TimeoutError):
            raise TimeoutError
        raise ServerGone(f"{self._called} {self.base_url}: nothing answers there ({reason or type(problem).__name__})")

    def said(self, reply: bytes) -> str:
        """What the server says of an error, on one line; some repeat the key."""
        text = reply.decode("utf-8", "replace")
        with contextlib.suppress(ValueError, LookupError, TypeError):
            text = json.loads(text)["error"]["message"]
        text = " ".join(str(text).split())
        return (text.replace(self._key, "…") if self._key else text)[:_MOST_SHOWN] or "nothing more"


def checked_url(base_url: str, called: str = "--base-url") -> str:
    """The address without a slash at its end, or ValueError when it is not one of http or https."""
    parts = urllib.parse.urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{called} {base_url!r} is not an http:// or https:// address, like http://localhost:8000/v1")
    if parts.username or parts.password:
        raise ValueError(f"{called} must hold no name or password; a key comes from the variable {KEY_VARIABLE}")
    return base_url.rstrip("/")


def _seconds(header: str | None) -> float | None:
    """The value of Retry-After, where it is a number of seconds."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
