"""The decoder's work on rows of a `RowCache`: reading a stretch of one prompt, or new tokens of many rows at once.

Shape letters: N rows, T tokens of a step, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monkey.language import project
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.prefix_generation import position_embeddings, run_for_keys, run_layers
from monkey.serving.row_cache import RowCache


class DecoderSteps:
    """Steps of a model's decoder, each row at its own positions and with its own growth of the rotary base.

    Args:
        compiled: compile the step that writes one token of each row.
    """

    def __init__(self, model: MonkeyForConditionalGeneration, compiled: bool = False):
        self.decoder, self.head = model.model.language_model, model.lm_head
        self.device = self.decoder.embed_tokens.weight.device
        # Shapes change only when rows or room are added, so each is compiled once.
        self._write_layers = (
            torch.compile(run_layers, mode="reduce-overhead", dynamic=False) if compiled else run_layers
        )

    def read_stretch(
        self,
        scratch: RowCache,
        ids: Sequence[int],
        start: int,
        growth: float,
        images: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        """Keys and values of the tokens `ids` of one row, from position `start` on.

        Args:
            images: position of each image's first slot, and its features [slots, D].
        """
        end = start + len(ids)
        hidden = self._embedded([list(ids)])
        for first, features in images:
            low, high = max(first, start), min(first + len(features), end)
            if low < high:
                hidden[0, low - start : high - start] = features[low - first : high - first]
        positions = torch.arange(start, end)[None]
        scratch.prepare(0, positions, self.device)
        rotary = self._rotary(positions, [growth])
        run_for_keys(self.decoder.layers, hidden, positions, rotary, scratch, scratch)

    def read_rests(
        self,
        cache: RowCache,
        first: int,
        rests: Sequence[Sequence[int]],
        starts: Sequence[int],
        growths: Sequence[float],
    ) -> torch.Tensor:
        """Last hidden states [N, D] after the rests of the rows from place `first` on, padded behind to one length."""
        width = max(map(len, rests))
        # Padding stands behind a row's last token, so that being causal hides it.
        ids = [[*rest, *[0] * (width - len(rest))] for rest in rests]
        positions = torch.tensor(starts)[:, None] + torch.arange(width)
        cache.prepare(first, positions, self.device)
        rotary = self._rotary(positions, growths)
        hidden = run_layers(self.decoder.layers, self._embedded(ids), positions, rotary, cache, cache)
        last = torch.tensor([len(rest) - 1 for rest in rests], device=hidden.device)
        return hidden[torch.arange(len(rests), device=hidden.device), last]

    def write(
        self, cache: RowCache, tokens: Sequence[int], starts: Sequence[int], growths: Sequence[float]
    ) -> torch.Tensor:
        """Last hidden states [N, D] after one more token of each row."""
        count = len(tokens)
        unused = cache.rows - count if cache.is_fixed else 0
        positions = torch.tensor([*starts, *[0] * unused])[:, None]
        cache.prepare(0, positions, self.device)
        rotary = self._rotary(positions, [*growths, *growths[:1] * unused])
        hidden = self._embedded([[token] for token in (*tokens, *[0] * unused)])
        return self._write_layers(self.decoder.layers, hidden, positions, rotary, cache, cache)[:count, -1]

    def logits(self, last: torch.Tensor) -> torch.Tensor:
        """Logits [N, vocabulary] in fp32 of last hidden states [N, D]."""
        return project(self.head, self.decoder.norm(last)).float()

    def _embedded(self, ids: list[list[int]]) -> torch.Tensor:
        return self.decoder.embed_tokens(torch.tensor(ids, device=self.device))

    def _rotary(self, positions: torch.Tensor, growths: Sequence[float]) -> tuple:
        """Cosine, sine and log-n factors of `positions` [N, T]; rows of one growth share a table."""
        config = self.decoder.config
        if len(set(growths)) == 1:
            return position_embeddings(config, positions, growths[0], self.device)
        own = [
            position_embeddings(config, row[None], growth, self.device)
            for row, growth in zip(positions, growths, strict=True)
        ]
        scale = position_embeddings(config, positions, growths[0], self.device)[2]
        return torch.cat([cos for cos, _, _ in own]), torch.cat([sin for _, sin, _ in own]), scale
