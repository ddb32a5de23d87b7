"""A request to the engine, and how far it has come.

Shape letters: H, W the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from monkey.configuration import MonkeyConfig
from monkey.modeling import image_slots
from monkey.prefix_generation import rotary_growth
from monkey.serving.decoding import Decoding
from monkey.serving.prefix_store import Stretch
from monkey.serving.reply import Delivery, FinishReason, TextAssembly
from monkey.serving.row_cache import RowCache


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture on the model's canvas, uint8 [3, H, W], and the SHA-256 of it that tells it from others."""

    digest: bytes
    canvas: np.ndarray


@dataclass(eq=False)
class Request:
    """A prompt to be continued.

    Args:
        ids: the whole prompt, with a span for each of `pictures`.
        limit: most new tokens; `decoding` says no more than that here.
        end_ids: tokens that end the answer; the first token is never one of them.
        is_conversation: whether what follows this prompt may be asked next, so that its keys and values are kept.
    """

    ids: list[int]
    pictures: list[Picture]
    decoding: Decoding
    limit: int
    end_ids: frozenset[int]
    is_conversation: bool = False


@dataclass(eq=False)
class Row:
    """A request on its way: `cached` of its `ids` have keys and values in its row of the cache."""

    request: Request
    delivery: Delivery
    spans: list[tuple[int, int]]
    """First and one past the last slot of each image."""
    growth: float
    assembly: TextAssembly
    generator: torch.Generator | None
    ids: list[int]
    symbols: list[int | bytes]
    stretches: list[Stretch] = field(default_factory=list)
    """What the store has of the prompt, until the row joins the others."""
    features: dict[bytes, torch.Tensor] = field(default_factory=dict)
    read_until: int = 0
    """Where reading in stretches stops and the rest begins that joins the others."""
    scratch: RowCache | None = None
    """Keys and values while it is read in stretches."""
    reused: int = 0
    """Tokens of the prompt that were read before."""
    cached: int = 0
    log_probability: float = 0.0
    chosen: int = 0
    reason: FinishReason | None = None

    def needed(self) -> list[Picture]:
        """Pictures whose slots are still to be read."""
        pictures = zip(self.request.pictures, self.spans, strict=True)
        return [picture for picture, (_, end) in pictures if end > self.cached]

    @classmethod
    def of(cls, request: Request, config: MonkeyConfig, assembly: TextAssembly, generator) -> Row:
        """A request before anything was done; ValueError for places and pictures that do not fit."""
        image_slots(torch.tensor([request.ids]), config, num_images=len(request.pictures))
        starts = [place + 1 for place, token in enumerate(request.ids) if token == config.image_start_id]
        spans = [(start, start + config.image_tokens) for start in starts]
        symbols: list[int | bytes] = list(request.ids)
        for picture, (start, end) in zip(request.pictures, spans, strict=True):
            symbols[start:end] = [picture.digest] * (end - start)
        growth = rotary_growth(len(request.ids), config.text_config)
        delivery = Delivery(len(request.ids))
        return cls(request, delivery, spans, growth, assembly, generator, list(request.ids), symbols)
