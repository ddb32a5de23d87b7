"""The `openai` backend: asks a server that speaks OpenAI's chat completions, with pictures as base64.

vLLM, SGLang, llama.cpp and hosted services do. Requests run side by side; what a busy server refuses is asked again
after a while. The key comes from an environment variable, is sent to the given address only (redirections are not
followed), and stands in no file and no message.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from eval.backends import STOPPED_AT_END, STOPPED_AT_LENGTH, Answer, Failure, Request, in_batches

KEY_VARIABLE = "OPENAI_API_KEY"
BUSY = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
"""Statuses after which the same request may succeed."""

OF_THE_REQUEST = frozenset((400, 413, 415, 422))
"""Statuses that speak of one request; any other failure would be that of every request."""

SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_MOST_SHOWN = 300
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0


class ServerGone(OSError):
    """The server does not answer, or answers nobody."""


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class OpenAIBackend:
    """Answers of a model behind a server.

    Args:
        base_url: the address up to and without `/chat/completions`, for example http://localhost:8000/v1.
        model: the name that the server knows it by; None takes the only one that it lists.
        api_key: sent as a bearer token; None sends none.
        concurrency: requests at a time.
        attempts: how often a request is sent at most.
        timeout: seconds until an answer must have come.
        first_wait: seconds before the second attempt; each later wait is twice as long.

    Raises:
        ValueError: the address is not of http or https, or the server lists several models and none is named.
        ServerGone: nothing answers there, or the key is refused.
    """

    name = "openai"
    device = None

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        attempts: int = 6,
        timeout: float = 300.0,
        first_wait: float = _FIRST_WAIT,
    ):
        self.base_url = checked_url(base_url)
        self._key = api_key
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._attempts, self._timeout, self._first_wait = attempts, timeout, first_wait
        self._opener = urllib.request.build_opener(_NoRedirection)
        listed = self._listed_models()
        if model is None:
            if len(listed) != 1:
                raise ValueError(
                    f"{self.base_url} lists {len(listed)} models ({', '.join(listed[:9])}); name one as --served-model"
                )
            model = listed[0]
        self.model = model
        # What stands behind a name can change without a sign; the address and the name are all there is to tell.
        self.fingerprint = f"{self.base_url} {model}"
        self.settings: dict[str, Any] = {"temperature": 0}
        self._concurrency = concurrency
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="openai")

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterator[list[Future]]:
        """Batches of answers on their way; as many requests ahead as keep the server busy."""
        ahead: deque[list[Future]] = deque()
        try:
            for batch in in_batches(requests, batch_size):
                ahead.append([self._pool.submit(self._answer, request) for request in batch])
                while sum(map(len, ahead)) - len(ahead[0]) >= self._concurrency:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            for futures in ahead:
                for future in futures:
                    future.cancel()

    def generate_answers(self, batch: Sequence[Future]) -> list[Answer | Failure]:
        try:
            return [future.result() for future in batch]
        finally:
            for future in batch:
                future.cancel()

    def _answer(self, request: Request) -> Answer | Failure:
        source = request.question.source
        try:
            content = message_content(request)
        except (OSError, ValueError) as error:
            return Failure(request.row, f"{source}: {error}")
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": request.task.max_new_tokens,
            **self.settings,
        }
        try:
            status, reply = self._send("chat/completions", body)
        except TimeoutError:
            return Failure(request.row, f"{source}: no answer within {self._timeout:g} seconds, {self._attempts} times")
        if status != 200:
            return Failure(request.row, f"{source}: {self.base_url} answers {status}: {self._said(reply)}")
        try:
            return read_answer(request.row, json.loads(reply))
        except (ValueError, LookupError, TypeError) as error:
            return Failure(request.row, f"{source}: the server's answer is not a chat completion ({error})")

    def _listed_models(self) -> list[str]:
        status, reply = self._send("models", None, attempts=1)
        if status != 200:
            return []
        try:
            return [entry["id"] for entry in json.loads(reply)["data"]]
        except (ValueError, LookupError, TypeError):
            # Some servers have no such list; then the name must be given.
            return []

    def _send(self, path: str, body: Mapping[str, Any] | None, attempts: int | None = None) -> tuple[int, bytes]:
        """Status and content of the reply, after as many attempts as it takes and are allowed.

        Raises:
            TimeoutError: the last attempt got no answer in time.
            ServerGone: the last attempt found no server, or the server refuses everything.
        """
        data = None if body is None else json.dumps(body).encode("utf-8")
        problem: Exception | None = None
        attempts = attempts or self._attempts
        for attempt in range(attempts):
            demand = urllib.request.Request(f"{self.base_url}/{path}", data, self._headers)
            asked = None
            try:
                with self._opener.open(demand, timeout=self._timeout) as reply:
                    return reply.status, reply.read()
            except urllib.error.HTTPError as error:
                status, said = error.code, error.read()
                if status not in BUSY:
                    if body is not None and status not in OF_THE_REQUEST:
                        raise ServerGone(f"{self.base_url} refuses with {status}: {self._said(said)}") from None
                    if status in (401, 403):
                        raise ServerGone(f"{self.base_url} refuses the key with {status}: {self._said(said)}") from None
                    return status, said
                problem, asked = None, _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                problem = error
            if attempt + 1 < attempts:
                time.sleep(min(_LONGEST_WAIT, asked if asked is not None else self._first_wait * 2**attempt))
        if problem is None:
            return status, said
        reason = getattr(problem, "reason", problem)
        if isinstance(reason, TimeoutError):
            raise TimeoutError
        raise ServerGone(f"--base-url {self.base_url}: nothing answers there ({reason or type(problem).__name__})")

    def _said(self, reply: bytes) -> str:
        """What the server says of an error, on one line; some repeat the key."""
        text = reply.decode("utf-8", "replace")
        with contextlib.suppress(ValueError, LookupError, TypeError):
            text = json.loads(text)["error"]["message"]
        text = " ".join(str(text).split())
        return (text.replace(self._key, "…") if self._key else text)[:_MOST_SHOWN] or "nothing more"


def checked_url(base_url: str) -> str:
    """The address without a slash at its end, or ValueError when it is not one of http or https."""
    parts = urllib.parse.urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"--base-url {base_url!r} is not an http:// or https:// address, like http://localhost:8000/v1"
        )
    if parts.username or parts.password:
        raise ValueError(f"--base-url must hold no name or password; a key comes from the variable {KEY_VARIABLE}")
    return base_url.rstrip("/")


def message_content(request: Request) -> list[dict[str, Any]]:
    """The prompt in OpenAI's form: pictures and texts in their order.

    Raises OSError or ValueError when a picture does not open.
    """
    return [
        {"type": "image_url", "image_url": {"url": data_url(part)}}
        if isinstance(part, Path)
        else {"type": "text", "text": part}
        for part in request.parts
    ]


def data_url(path: Path) -> str:
    """A picture file as a URL that holds it: its own bytes where servers read the format, else as PNG."""
    with Image.open(path) as image:
        image.load()
        kind = SENT_AS_THEY_ARE.get(image.format or "")
        if kind is not None:
            content = path.read_bytes()
        else:
            kind, stream = "image/png", io.BytesIO()
            image.convert("RGB").save(stream, "PNG")
            content = stream.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def read_answer(row: int, completion: Mapping[str, Any]) -> Answer:
    """The answer in a chat completion."""
    choice = completion["choices"][0]
    text = choice["message"]["content"] or ""
    tokens = (completion.get("usage") or {}).get("completion_tokens", len(text.split()))
    return Answer(row, text, tokens, STOPPED_AT_LENGTH if choice.get("finish_reason") == "length" else STOPPED_AT_END)


def _seconds(header: str | None) -> float | None:
    """The value of Retry-After, where it is a number of seconds."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
