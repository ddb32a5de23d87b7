"""A demo whose model says what a script tells it, on a free port of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from PIL import Image

from monkey.images import open_image


class ScriptedAnswerer:
    """Has what the demo uses of an `Answerer`, and remembers what it was asked.

    An answer is the size of the picture and the question, word by word; `pause` seconds pass between words.
    """

    name = "scripted <b>model</b>"
    max_bytes = 200_000
    max_pixels = 1_000_000
    model = SimpleNamespace(
        config=SimpleNamespace(canvas_size=(896, 896), grid=(2, 2), image_tokens=1280), device="cpu"
    )

    def __init__(self):
        self.pause = 0.0
        self.asked: list[str] = []
        self.running = 0
        self.most_running = 0
        self.cut_short = threading.Event()
        self.held: threading.Event | None = None
        """Answers begin when it is set."""
        self.script: str | Exception | None = None
        self._counting = threading.Lock()

    def open_picture(self, source: Any, name: str | None = None) -> Image.Image:
        return open_image(source, name=name, max_bytes=self.max_bytes, max_pixels=self.max_pixels)

    def ask(self, picture: Image.Image, question: str) -> Iterator[str]:
        self.asked.append(question)
        return self._pieces(self.script or f"On {picture.width}×{picture.height}: {question}")

    def describe(self, picture: Image.Image, decoding: Any) -> Iterator[str]:
        self.asked.append(f"describe {decoding.seed}")
        return self._pieces(self.script or f"A picture of {picture.width}×{picture.height}, seed {decoding.seed}.")

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
