"""Greedy answers of the engine behind `monkey.ask`, the demo and the server, with the moments of their tokens."""

from __future__ import annotations

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
    deliveries = [
        engine.submit(Request(list(ids), [picture], decoding, new_tokens, frozenset()))
        for ids, picture in zip(prompts, pictures, strict=True)
    ]
    replies = [Reply(delivery, PATIENCE_SECONDS) for delivery in deliveries]
    texts = [[next(piece for piece in reply if piece)] for reply in replies]
    first, before = time.perf_counter(), sum(delivery.new_tokens for delivery in deliveries)
    for reply, text in zip(replies, texts, strict=True):
        text.extend(piece for piece in reply if piece)
    last = time.perf_counter()
    tokens = torch.tensor([[int(number) for number in "".join(text).split(",")[:-1]] for text in texts])
    return Written(tokens, first, last, tokens.numel() - before)
