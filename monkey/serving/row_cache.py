"""Keys and values of rows of any length side by side, which come and go while the others are being continued.

Shape letters: R rows that there is room for, N rows of a step, T tokens of a step, S positions that there is room for,
E positions that a step sees, H heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

LayerStates = tuple[torch.Tensor, ...]
"""Keys or values [H, tokens, d] of one row, a tensor a layer."""


class RowCache:
    """Buffers [R, H, S, d] a layer, written in place; both cache and attention of the decoder's layers.

    A step is prepared first: it continues the rows `first` to `first + N`, each from its own position. Where a row has
    fewer new tokens than others, those behind its last are padding: nothing sees them before they are written over.

    Args:
        is_fixed: steps see whole buffers, unused rows included, so that their shapes seldom change.
    """

    def __init__(self, num_layers: int, is_fixed: bool = False):
        self.keys: list[torch.Tensor | None] = [None] * num_layers
        self.values: list[torch.Tensor | None] = [None] * num_layers
        self.is_fixed = is_fixed
        self.rows = self.length = 0

    def reserve(self, rows: int, length: int) -> None:
        """Make room for rows and positions; the buffers grow as they are next written."""
        self.rows, self.length = max(rows, self.rows), max(length, self.length)

    def clear(self) -> None:
        """Forget everything, and give the memory back."""
        self.keys = [None] * len(self.keys)
        self.values = [None] * len(self.values)
        self.rows = self.length = 0

    def settle(self) -> None:
        """Take back what was reserved and could not be had: there is room for what all buffers have room for."""
        held = [buffer for buffer in (*self.keys, *self.values) if buffer is not None]
        self.rows = min((buffer.shape[0] for buffer in held), default=0)
        self.length = min((buffer.shape[2] for buffer in held), default=0)

    def prepare(self, first: int, positions: torch.Tensor, device: torch.device) -> None:
        """For the step to come: its rows, and the positions [N, T] of its tokens, each row's one after the other."""
        self._first = first
        count, tokens = positions.shape
        starts = positions[:, 0]
        self._start = int(starts[0])
        self._are_level = bool((starts == self._start).all()) and not self.is_fixed
        self._end = self.length if self.is_fixed else int(starts.max()) + tokens
        self._positions = positions.to(device)
        self._row_numbers = torch.arange(first, first + count, device=device)[:, None]
        self._mask: torch.Tensor | None = None
        self._is_causal = self._are_level and tokens > 1 and self._start == 0
        if not self._is_causal and not (self._are_level and tokens == 1):
            self._mask = (torch.arange(self._end, device=device) <= self._positions[..., None])[:, None]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a step's keys and values [N, H, T, d]; those that it sees, [N, H, E, d]."""
        seen = []
        for buffers, states in ((self.keys, key), (self.values, value)):
            buffer = self._with_room(buffers, layer, states)
            if self._are_level:
                rows = slice(self._first, self._first + states.shape[0])
                buffer[rows, :, self._start : self._start + states.shape[2]] = states
            else:
                rows, positions = self._row_numbers.to(buffer.device), self._positions.to(buffer.device)
                buffer[rows, :, positions] = states.transpose(1, 2)
            seen.append(buffer[self._first : self._first + states.shape[0], :, : self._end])
        return seen[0], seen[1]

    def __call__(self, query, key, value, scaling, dropout=0.0):
        """Query [N, H, T, d], keys and values [N, H, E, d] to [N, T, H, d]."""
        mask = None if self._mask is None else self._mask.to(query.device)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=self._is_causal, scale=scaling
        ).transpose(1, 2)

    def write(self, row: int, start: int, keys: LayerStates, values: LayerStates) -> None:
        """Put keys and values from elsewhere into a row, from position `start` on."""
        for layer in range(len(self.keys)):
            for buffers, states in ((self.keys, keys[layer]), (self.values, values[layer])):
                self._with_room(buffers, layer, states[None])[row, :, start : start + states.shape[1]] = states

    def read(self, row: int, start: int, end: int) -> tuple[LayerStates, LayerStates]:
        """Keys and values of a row's positions, in memory of their own unless they are the whole buffer."""
        keys, values = (
            tuple(
                part if part.numel() == buffer.numel() else part.clone()
                for buffer in buffers
                for part in (buffer[row, :, start:end],)
            )
            for buffers in (self.keys, self.values)
        )
        return keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row over those of another."""
        for buffers in (self.keys, self.values):
            for buffer in buffers:
                buffer[target, :, :length] = buffer[source, :, :length]

    def _with_room(self, buffers: list[torch.Tensor | None], layer: int, states: torch.Tensor) -> torch.Tensor:
        """The buffer of a layer, larger than it was where more was reserved; `states` [N, H, T, d] tell its kind."""
        buffer = buffers[layer]
        if buffer is not None and buffer.shape[0] >= self.rows and buffer.shape[2] >= self.length:
            return buffer
        # Zeros: what a step sees of unused positions has no weight, but not-a-number times nothing is not nothing.
        grown = states.new_zeros(self.rows, states.shape[1], self.length, states.shape[3])
        if buffer is not None:
            grown[: buffer.shape[0], :, : buffer.shape[2]] = buffer
        if self.is_fixed:
            torch._dynamo.mark_static_address(grown)
        buffers[layer] = grown
        return grown
