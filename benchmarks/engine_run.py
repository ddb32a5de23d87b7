"""Greedy answers of the engine behind `monkey.ask`, the demo and the server, with the moments of their tokens."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch

from monkey.serving.decoding import Decoding
from monkey.serving.engine import Engine
from monkey.serving.reply import Reply
from monkey.serving.request import Picture, Request

TOKENS_AS_NUMBERS = SimpleNamespace(convert_ids_to_tokens=lambda token: f"{token},".encode())
"""A tokenizer for the engine whose text is the tokens' numbers, so that every token is a piece."""

PATIENCE_SECONDS = 600.0


class Written(NamedTuple):
    """New tokens [B, n], the moments when every row had its first and its last, and how many came between."""

    tokens: torch.Tensor
    first: float
    last: float
    between: int


def run_engine(
    engine: Engine, prompts: Sequence[Sequence[int]], pictures: Sequence[Picture], new_tokens: int
) -> Written:
    """Continue prompts of one picture each, asked at the same time, by `new_tokens` tokens.

    Rows whose prompt was read earlier have more than one token when the last has its first: those do not count as
    coming between.
    """
    decoding = Decoding(max_new_tokens=new_tokens)
    stamped = [_Stamped() for _ in prompts]
    with engine._lock:  # none is admitted before all are in line
        deliveries = [
            engine.submit(Request(list(ids), [picture], decoding, new_tokens, frozenset()))
            for ids, picture in zip(prompts, pictures, strict=True)
        ]
        for delivery, pieces in zip(deliveries, stamped, strict=True):
            delivery.pieces = pieces
    texts = [Reply(delivery, PATIENCE_SECONDS).text for delivery in deliveries]
    first = max(pieces.moments[0] for pieces in stamped)
    moments = [moment for pieces in stamped for moment in pieces.moments]
    tokens = torch.tensor([[int(number) for number in text.split(",")[:-1]] for text in texts])
    return Written(tokens, first, max(moments), sum(moment > first for moment in moments))


class _Stamped(queue.Queue):
    """Pieces of an answer, and the moments at which the engine gave them."""

    def __init__(self):
        super().__init__()
        self.moments: list[float] = []

    def put(self, piece: str | None, *rest) -> None:
        if piece is not None:
            self.moments.append(time.perf_counter())
        super().put(piece, *rest)
