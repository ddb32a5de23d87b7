"""Greedy answers of the engine behind `monkey.ask`, the demo and the server, with the moments of their tokens."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch

from monkey.decoding import Decoding
from monkey.engine import Canvas, Engine, Request

TOKENS_AS_NUMBERS = SimpleNamespace(convert_ids_to_tokens=lambda token: f"{token},".encode())
"""A tokenizer for the engine whose text is the tokens' numbers, so that every token is a chunk."""


class Written(NamedTuple):
    """New tokens [B, n], the moments when every row had its first and its last, and how many came between."""

    tokens: torch.Tensor
    first: float
    last: float
    between: int


def run_engine(engine: Engine, prompts: Sequence[Sequence[int]], images: Sequence[Canvas], new_tokens: int) -> Written:
    """Continue prompts of one image each, asked at the same time, by `new_tokens` tokens.

    Rows whose prompt was read earlier have more than one token when the last has its first: those do not count as
    coming between.
    """
    decoding = Decoding(max_new_tokens=new_tokens)
    stamped = [_Stamped() for _ in prompts]
    with engine._lock:  # none is admitted before all are in line
        replies = [
            engine.submit(Request(list(ids), [image], decoding, new_tokens, frozenset()))
            for ids, image in zip(prompts, images, strict=True)
        ]
        for reply, chunks in zip(replies, stamped, strict=True):
            reply._chunks = chunks
    texts = [reply.text for reply in replies]
    first = max(chunks.moments[0] for chunks in stamped)
    moments = [moment for chunks in stamped for moment in chunks.moments]
    tokens = torch.tensor([[int(number) for number in text.split(",")[:-1]] for text in texts])
    return Written(tokens, first, max(moments), sum(moment > first for moment in moments))


class _Stamped(queue.Queue):
    """Chunks of an answer, and the moments at which the engine gave them."""

    def __init__(self):
        super().__init__()
        self.moments: list[float] = []

    def put(self, chunk: str | None, *rest) -> None:
        if chunk is not None:
            self.moments.append(time.perf_counter())
        super().put(chunk, *rest)
