"""A demo whose model says what a script tells it, on a free port of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np

from monkey.checkpoint_card import CheckpointCard
from monkey.images import open_image
from monkey.serving.attention_maps import ImageAttention
from monkey.serving.demo import running_demo
from monkey.serving.demo_answers import Choice, Models
from tests.small_processor import small_config

LIMITS = SimpleNamespace(max_bytes=200_000, max_pixels=3_000_000, opening={})


class ScriptedReply(Iterator[str]):
    """An answer word by word, with what a `Reply` says of itself."""

    prompt_tokens = 17
    confidence = 0.5

    def __init__(self, answerer: ScriptedAnswerer, script: str | Exception):
        self._answerer, self.new_tokens = answerer, 0
        self._pieces = answerer._pieces(script)

    def __next__(self) -> str:
        piece = next(self._pieces)
        self.new_tokens += bool(piece)
        return piece

    def close(self) -> None:
        self._pieces.close()


class ScriptedAnswerer:
    """Has what the demo uses of an `Answerer`, and remembers what it was asked.

    An answer is the sizes of all pictures, the number of earlier questions, and the question, word by word; `pause`
    seconds pass between words.
    """

    form = "questions"

    def __init__(self, name: str = "scripted <b>model</b>", grid: tuple[int, int] = (2, 2)):
        self.name = name
        self.model = SimpleNamespace(config=small_config(grid=grid), device="cpu")
        self.processor = SimpleNamespace(image_processor=SimpleNamespace(max_windows=None))
        self.forget()

    def forget(self) -> None:
        """As if newly made."""
        self.pause = 0.0
        self.asked: list[str] = []
        self.told: list[str] = []
        """Its answers before the question that was asked last."""
        self.decodings: list[Any] = []
        self.running = 0
        self.most_running = 0
        self.cut_short = threading.Event()
        self.held: threading.Event | None = None
        """Answers begin when it is set."""
        self.script: str | Exception | Sequence[str | Exception] | None = None
        """What is said to every question, or to one after the other."""
        self._counting = threading.Lock()

    def chat(self, messages: Sequence[dict], decoding: Any) -> ScriptedReply:
        parts = [part for message in messages for part in message["content"] if message["role"] == "user"]
        sizes = [open_image(part["image"]).size for part in parts if part["type"] == "image"]
        question = messages[-1]["content"][-1]["text"]
        self.told = [message["content"] for message in messages if message["role"] == "assistant"]
        earlier = len(self.told)
        self.asked.append(question)
        self.decodings.append(decoding)
        shown = " and ".join(f"{width}×{height}" for width, height in sizes)
        script = self.script or f"On {shown}{f' after {earlier}' if earlier else ''}: {question}"
        if isinstance(script, list):
            script = script.pop(0)
        return ScriptedReply(self, script)

    def attention_maps(self, messages: Sequence[dict], answer: str) -> list[ImageAttention]:
        config = self.model.config
        maps = np.full((config.num_views, 2, 2), 1 / (4 * config.num_views), np.float32)
        count = sum(part["type"] == "image" for message in messages[::2] for part in message["content"])
        return [ImageAttention(tuple(config.grid), maps * config.num_views, maps * 0.25, 0.25)] * count

    def close(self) -> None:
        pass

    def _pieces(self, script: str | Exception) -> Iterator[str]:
        with self._counting:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        finished = False
        try:
            while self.held is not None and not self.held.wait(0.05):
                yield ""
            if isinstance(script, Exception):
                yield "Well,"
                raise script
            for number, word in enumerate(script.split(" ")):
                time.sleep(self.pause)
                yield f" {word}" if number else word
            finished = True
        finally:
            with self._counting:
                self.running -= 1
            if not finished:
                self.cut_short.set()


def models_of(
    *answerers: ScriptedAnswerer, opened: threading.Event | None = None, card: CheckpointCard | None = None
) -> Models:
    """Scripted models, there when `opened` is set."""

    def choice(answerer: ScriptedAnswerer) -> Choice:
        def open_it() -> ScriptedAnswerer:
            if opened is not None:
                opened.wait(60)
            return answerer

        return Choice(answerer.name, LIMITS, open_it, card or CheckpointCard())

    return Models([choice(answerer) for answerer in answerers])


@contextmanager
def scripted_demo(*answerers: ScriptedAnswerer | Models, **settings: Any) -> Iterator[str]:
    """The address of a running demo of these answerers, which are being opened."""
    models = answerers[0] if isinstance(answerers[0], Models) else models_of(*answerers)
    with running_demo(models, "127.0.0.1", free_port(), **settings) as app:
        threading.Thread(target=_open, args=(models,), daemon=True).start()
        yield app.local_url


def _open(models: Models) -> None:
    with suppress(ValueError):  # the page says it
        models.open()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
