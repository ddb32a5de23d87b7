"""Attention of rows that share prefixes: several questions about an image see its keys and values without a copy.

Shape letters: I images, N rows, L prefix tokens, S own tokens of a row so far, T tokens of a step, H heads, d head
width, c any width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers.cache_utils import Cache

QUERY_TOKENS = 64
"""Tokens of each row whose attention scores exist at once, which bounds the memory of long questions."""


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Keys and values of the prefixes of I images, a pair [I, H, L, d] a layer, for one growth of the rotary base."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]

    def alone(self, index: int) -> Prefixes:
        """One image's, in memory of their own."""
        if self.keys[0].shape[0] == 1:
            return self
        chosen = slice(index, index + 1)
        return Prefixes(tuple(x[chosen].clone() for x in self.keys), tuple(x[chosen].clone() for x in self.values))


@dataclass(frozen=True)
class _Run:
    """Rows `rows` of the batch, the same number for each of the images `images` of `prefixes`."""

    prefixes: Prefixes
    images: slice
    rows: slice


def _runs(places: Sequence[tuple[Prefixes, int]]) -> list[_Run]:
    """As few products as possible: neighbouring images with as many rows each make one."""
    runs: list[_Run] = []
    start, per_image = 0, 0
    for (_, index), group in groupby(places, key=lambda place: (id(place[0]), place[1])):
        group = list(group)
        prefixes, end = group[0][0], start + len(group)
        before = runs[-1] if runs else None
        if before and before.prefixes is prefixes and before.images.stop == index and per_image == len(group):
            runs[-1] = _Run(prefixes, slice(before.images.start, index + 1), slice(before.rows.start, end))
        else:
            runs.append(_Run(prefixes, slice(index, index + 1), slice(start, end)))
        start, per_image = end, len(group)
    return runs


class PrefixAttention:
    """Attention of rows to the prefixes they share and to their own tokens; both cache and attention of the layers.

    One softmax over both, in fp32. The queries of all rows of an image are one product with its prefix.
    """

    def __init__(self, cache: Cache):
        self.cache = cache

    def prepare(self, places: Sequence[tuple[Prefixes, int] | None], mask: torch.Tensor | None) -> None:
        """For the step to come: the prefix of each row, and which of its own tokens [1 or N, 1, 1 or T, S] are seen."""
        self._runs = _runs(places) if places[0] is not None else []
        self._mask = mask

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_) -> tuple[torch.Tensor, torch.Tensor]:
        self._layer = layer
        return self.cache.update(key, value, layer)

    def __call__(self, query, key, value, scaling, dropout=0.0):
        """Query [N, H, T, d], own keys and values [N, H, S, d] to [N, T, H, d]."""
        parts = []
        for start in range(0, query.shape[2], QUERY_TOKENS):
            chosen = slice(start, start + QUERY_TOKENS)
            mask = self._mask if self._mask is None else self._mask[:, :, chosen]
            parts.append(self._attend(query[:, :, chosen] * scaling, key, value, mask))
        return torch.cat(parts, dim=2).transpose(1, 2)

    def _attend(self, query, key, value, mask):
        own = query @ key.transpose(-1, -2)
        if mask is not None:
            own = own.masked_fill(~mask, torch.finfo(own.dtype).min)
        length = self._runs[0].prefixes.length if self._runs else 0
        scores = own.new_empty(*own.shape[:-1], length + own.shape[-1])
        scores[..., length:] = own
        for run in self._runs:
            keys = run.prefixes.keys[self._layer][run.images]
            of_images = _by_image(query[run.rows], keys.shape[0]) @ keys.transpose(-1, -2)
            scores[run.rows, ..., :length] = _by_row(of_images, query.shape[2])
        weights = scores.float().softmax(dim=-1).to(value.dtype)
        attended = weights[..., length:] @ value
        for run in self._runs:
            values = run.prefixes.values[self._layer][run.images]
            of_images = _by_image(weights[run.rows, ..., :length], values.shape[0]) @ values
            attended[run.rows] += _by_row(of_images, query.shape[2])
        return attended


def _by_image(x: torch.Tensor, num_images: int) -> torch.Tensor:
    """[N, H, T, c] of rows, image after image, to [I, H, N/I·T, c]."""
    return x.unflatten(0, (num_images, -1)).transpose(1, 2).flatten(2, 3)


def _by_row(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """The way back, to [N, H, T, c]."""
    return x.unflatten(2, (-1, tokens)).transpose(1, 2).flatten(0, 1)
