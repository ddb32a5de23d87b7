"""HTTP to a server that speaks OpenAI's chat completions, by the `openai` client with its retries.

The key is sent to the given address only (redirections are not followed), and stands in no message.
"""

from __future__ import annotations

import contextlib
import json
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable that holds a key where no other is named."""

OF_THE_REQUEST = frozenset((400, 413, 415, 422))
"""Statuses that speak of one request; any other failure would be that of every request."""

MAX_SHOWN = 300


class ServerGone(OSError):
    """The server does not answer, or answers nobody."""


class CompletionsClient:
    """Sends requests to one server, from any number of threads. What a busy server refuses is sent again after a while.

    Args:
        base_url: the address up to and without `/chat/completions`, for example http://localhost:8000/v1.
        api_key: sent as a bearer token; None sends none.
        attempts: how often a request is sent at most.
        timeout: seconds until an answer must have come.
        called: what messages call the address: the flag or key that it was given by.

    Raises:
        ValueError: the address is not of http or https, or the package `openai` is missing.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        attempts: int = 6,
        timeout: float = 300.0,
        called: str = "--base-url",
    ):
        self.base_url = checked_url(base_url, called)
        self.attempts, self.timeout = attempts, timeout
        self._key, self._called = api_key, called
        try:
            import openai
        except ImportError as error:
            raise ValueError(
                "a server is asked with the package openai, which is not installed: pip install 'monkey[client]'"
            ) from error
        self._client = openai.OpenAI(
            base_url=self.base_url,
            api_key=api_key or "none",
            timeout=timeout,
            max_retries=attempts - 1,
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        self._headers = {} if api_key else {"Authorization": openai.Omit()}

    @property
    def ending_missing(self) -> str:
        """The end of a sentence on an address that may lack its last part; nothing where it has it."""
        return "" if self.base_url.endswith("/v1") else f"; most servers want {self._called} to end in /v1"

    def listed_models(self) -> list[str]:
        """Return the names that the server lists; none where it has no such list, as some have not."""
        _, reply = self._ask(self._models().list)
        with contextlib.suppress(ValueError, LookupError, TypeError):
            return [entry["id"] for entry in json.loads(reply)["data"]]
        return []

    def described_model(self, name: str) -> Any:
        """Return what the server says of a model, as JSON; None where it says nothing."""
        status, reply = self._ask(self._models().retrieve, name)
        with contextlib.suppress(ValueError):
            return json.loads(reply) if status == 200 else None
        return None

    def complete(self, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Return status and content of the reply to a chat completion, after as many attempts as are allowed.

        Args:
            body: `model`, `messages`, and whatever else the server knows.

        Raises:
            TimeoutError: the last attempt got no answer in time.
            ServerGone: the last attempt found no server, or the server refuses everything.
        """
        more = {name: value for name, value in body.items() if name not in ("model", "messages")}
        create = self._client.chat.completions.with_raw_response.create
        return self._ask(create, model=body["model"], messages=body["messages"], extra_body=more)

    def _models(self) -> Any:
        # Asked once: at the start a user is waiting.
        return self._client.with_options(max_retries=0).models.with_raw_response

    def _ask(self, method: Callable[..., Any], *arguments: Any, **more: Any) -> tuple[int, bytes]:
        import openai

        try:
            reply = method(*arguments, **more, extra_headers=self._headers)
            return reply.status_code, reply.content
        except openai.APITimeoutError:
            raise TimeoutError from None
        except openai.APIConnectionError as error:
            reason = error.__cause__ or error
            raise ServerGone(f"{self._called} {self.base_url}: nothing answers there ({reason})") from None
        except openai.APIStatusError as error:
            return self._refused(error.response, is_question=bool(more))

    def _refused(self, reply: Any, is_question: bool) -> tuple[int, bytes]:
        """Status and content of a refusal that speaks of one request; ServerGone for one of every request."""
        status = reply.status_code
        is_final = reply.headers.get("x-should-retry") == "false"
        is_busy = status in (408, 409, 429) or status >= 500
        if is_question and not (is_busy or is_final or status in OF_THE_REQUEST):
            hint = self.ending_missing if status == 404 else ""
            raise ServerGone(f"{self.base_url} refuses with {status}: {self.said(reply.content)}{hint}")
        if status in (401, 403):
            raise ServerGone(f"{self.base_url} refuses the key with {status}: {self.said(reply.content)}")
        return status, reply.content

    def said(self, reply: bytes) -> str:
        """What the server says of an error, on one line; some repeat the key."""
        text = reply.decode("utf-8", "replace")
        with contextlib.suppress(ValueError, LookupError, TypeError):
            text = json.loads(text)["error"]["message"]
        text = " ".join(str(text).split())
        return (text.replace(self._key, "…") if self._key else text)[:MAX_SHOWN] or "nothing more"


def checked_url(base_url: str, called: str = "--base-url") -> str:
    """Return the address without a slash at its end; ValueError when it is not one of http or https."""
    parts = urllib.parse.urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{called} {base_url!r} is not an http:// or https:// address, like http://localhost:8000/v1")
    if parts.username or parts.password:
        raise ValueError(f"{called} must hold no name or password; a key comes from the variable {KEY_VARIABLE}")
    return base_url.rstrip("/")
