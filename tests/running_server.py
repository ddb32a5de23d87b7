"""A server of the tiny model on loopback, in this process, and the official client of it."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import openai
import torch
from PIL import Image

from monkey.modeling import MonkeyForConditionalGeneration
from monkey.serving.access import bind
from monkey.serving.server import Api, Server
from monkey.serving.session import Answerer
from tests.conftest import random_model
from tests.small_processor import EOD, small_config

PATIENCE = 60
"""Seconds after which something that must happen is taken not to."""


@dataclass
class Running:
    """A server that runs."""

    url: str
    api: Api
    interrupt: Callable[[], None]
    connections: Callable[[], int] = int
    """How many are open."""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].removesuffix("/v1"))

    @property
    def engine(self):
        return self.api.answerer.engine

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=PATIENCE)

    def ask(self, content, **fields):
        """The completion of one message, or all chunks of it."""
        fields = {"max_tokens": 8, **fields}
        with self.client() as client:
            told = client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": content}], **fields
            )
            return list(told) if fields.get("stream") is True else told

    def talk(self, messages: list[dict], **fields) -> str:
        """The answer to a conversation."""
        return self.text("", extra_body={"messages": messages, **fields})

    def text(self, content, **fields) -> str:
        return self.ask(content, **fields).choices[0].message.content


@contextmanager
def running(answerer: Answerer, *settings, **more) -> Iterator[Running]:
    """The server of an answerer, in a thread of its own; settings are those of `Api`."""
    listener = bind("127.0.0.1", 0)
    api = Api(answerer, *settings, **more)
    server = Server(api, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield Running(server.url, api, server.interrupt, lambda: len(server.server_state.connections))
    finally:
        server.interrupt()
        thread.join()
        api.close()


def talkative_model() -> MonkeyForConditionalGeneration:
    """A tiny model that goes on to its limit in printable characters, other ones for other prompts and pictures."""
    model = random_model(small_config())
    with torch.no_grad():
        # The first ranks of the vocabulary are the printable characters of ASCII.
        model.lm_head.weight[94:] = 0
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                parameter.mul_(5)
    return model


def photo(number: int = 0) -> Image.Image:
    return Image.linear_gradient("L").rotate(90 * number).resize((40 + number, 30)).convert("RGB")


def data_uri(image: Image.Image | bytes, kind: str = "png") -> str:
    if isinstance(image, Image.Image):
        stream = io.BytesIO()
        image.save(stream, kind)
        image = stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def image_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def asking(text: str, *numbers: int) -> list[dict]:
    """A question about pictures as parts of a message."""
    return [*(image_part(data_uri(photo(number))) for number in numbers), text_part(text)]


def connected(server: Running, room: int | None = None) -> socket.socket:
    """A connection on which nothing was sent, with room for so many bytes that nobody has read."""
    connection = socket.socket()
    connection.settimeout(PATIENCE)
    if room is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.connect(("127.0.0.1", server.port))
    return connection


def sent(
    server: Running, body: dict | bytes, head: str = "", length: int | None = None, room: int | None = None
) -> socket.socket:
    """A connection on which a request was sent and nothing read; the server closes it after its answer.

    Args:
        head: further lines, each with its end.
        length: what the request says of its body's length, where that is not so.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = connected(server, room)
    lines = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + head
    if "content-type" not in head.lower():
        lines += "Content-Type: application/json\r\n"
    length = len(content) if length is None else length
    connection.sendall(f"{lines}Content-Length: {length}\r\n\r\n".encode() + content)
    return connection


def received(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer on a connection."""
    with connection:
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


def until(condition) -> None:
    """Wait for something that another thread is about to do; fails where it never comes."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


class Gate:
    """Holds an engine's steps until it is opened."""

    def __init__(self):
        self._open, self.rows = threading.Event(), []
        """How many rows each step had."""

    def open(self) -> None:
        self._open.set()

    def wait(self) -> None:
        assert self._open.wait(PATIENCE), "the gate was never opened"


@contextmanager
def held(engine) -> Iterator[Gate]:
    """The gate of an engine whose answers go on to their limit; whatever happens, it is open in the end."""
    gate, logits = Gate(), engine._logits

    def endless(last):
        gate.wait()
        gate.rows.append(len(last))
        given = logits(last)
        given[..., EOD] = -1e9
        return given

    engine._logits = endless
    try:
        yield gate
    finally:
        gate.open()
        engine._logits = logits
