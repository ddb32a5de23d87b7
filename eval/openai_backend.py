"""The `openai` backend: asks a server that speaks OpenAI's chat completions, with pictures as base64.

vLLM, SGLang, llama.cpp and hosted services do. Requests run side by side; what a busy server refuses is asked again
after a while. The key comes from an environment variable, is sent to the given address only, and stands in no file and
no message.
"""

from __future__ import annotations

import base64
import io
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from eval.backends import STOPPED_AT_END, STOPPED_AT_LENGTH, Answer, Failure, Request, in_batches
from monkey.completions_client import FIRST_WAIT, CompletionsClient
from monkey.images import FORMATS, open_image

SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


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
        first_wait: float = FIRST_WAIT,
    ):
        self._client = CompletionsClient(base_url, api_key, attempts, timeout, first_wait)
        self.base_url = self._client.base_url
        listed = self._client.listed_models()
        if model is None:
            if len(listed) != 1:
                found = f"{len(listed)} models ({', '.join(listed[:9])})" if listed else "no model"
                raise ValueError(
                    f"{self.base_url} lists {found}; name one as --served-model{self._client.ending_missing}"
                )
            model = listed[0]
        self.model = model
        # What stands behind a name can change without a sign; the address and the name are all there is to tell.
        self.fingerprint = f"{self.base_url} {model}"
        self.settings: dict[str, Any] = {"temperature": 0, **self._as_it_is()}
        self._concurrency = concurrency
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="openai")

    def _as_it_is(self) -> dict[str, Any]:
        """With these our own server adds nothing to a prompt and leaves out what `hf` does; other servers know none."""
        status, reply = self._client.send(f"models/{quote(self.model)}", None, attempts=1)
        try:
            forms = json.loads(reply)["forms"] if status == 200 else ()
        except (ValueError, LookupError, TypeError):
            forms = ()
        return {"form": "plain", "skip_special_tokens": True} if "plain" in forms else {}

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
            status, reply = self._client.send("chat/completions", body)
        except TimeoutError:
            return Failure(
                request.row,
                f"{source}: no answer within {self._client.timeout:g} seconds, {self._client.attempts} times",
            )
        if status != 200:
            return Failure(request.row, f"{source}: {self.base_url} answers {status}: {self._client.said(reply)}")
        try:
            return read_answer(request.row, json.loads(reply))
        except (ValueError, LookupError, TypeError) as error:
            return Failure(request.row, f"{source}: the server's answer is not a chat completion ({error})")


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
    with Image.open(path, formats=FORMATS) as image:
        image.load()
        kind = SENT_AS_THEY_ARE.get(image.format or "")
        if kind is not None:
            content = path.read_bytes()
        else:
            kind, stream = "image/png", io.BytesIO()
            open_image(path).save(stream, "PNG")
            content = stream.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def read_answer(row: int, completion: Mapping[str, Any]) -> Answer:
    """The answer in a chat completion."""
    choice = completion["choices"][0]
    text = choice["message"]["content"] or ""
    tokens = (completion.get("usage") or {}).get("completion_tokens", len(text.split()))
    return Answer(row, text, tokens, STOPPED_AT_LENGTH if choice.get("finish_reason") == "length" else STOPPED_AT_END)
