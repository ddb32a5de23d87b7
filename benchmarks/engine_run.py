"""Greedy answers of the engine behind `monkey.ask`, the demo and the server, with the moments of their tokens."""

from __future__ import annotations

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
    replies = [
        engine._enqueue(Request(list(ids), [image], decoding, new_tokens, frozenset()))
        for ids, image in zip(prompts, images, strict=True)
    ]
    for reply, own in zip(replies, stamped, strict=True):
        reply.listen(own.note)
    # In this thread, where what stands beside it computes too. Each thread that computes has helpers of its own, and
    # when there are more than processors, OpenMP puts them to sleep after every operation; the server has but one.
    engine.run([])
    for reply in replies:
        if reply.error is not None:
            raise reply.error
    first = max(own.moments[0] for own in stamped)
    moments = [moment for own in stamped for moment in own.moments]
    tokens = torch.tensor([[int(number) for number in own.text.split(",")[:-1]] for own in stamped])
    return Written(tokens, first, max(moments), sum(moment > first for moment in moments))


class _Stamped:
    """The text of an answer, and the moments at which the engine gave its chunks."""

    def __init__(self):
        self.text, self.moments = "", []

    def note(self, chunk: str | None) -> None:
        if chunk is None:
            return
        self.moments.append(time.perf_counter())
        self.text += chunk
