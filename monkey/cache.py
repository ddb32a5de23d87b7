"""Keys and values that grow in place: a step writes one token instead of copying all of those before it."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

ROOM = 128
"""Tokens that a buffer has room for beyond those it holds when it is made: 64 MiB at full size and batch 1."""


class GrowingLayer(DynamicLayer):
    """The library's growing layer over buffers with room to spare; same contents, same operations.

    `keys` and `values` [B, H, T, d] are always the filled part of the buffers, until something else replaces them
    (beam search picks rows, for one); the next step then moves into new buffers.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            # Writing in place would spoil what the backward pass needs.
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        length = used + key_states.shape[-2]
        if self._buffers is None or not self._in_buffers() or length > self._buffers[0].shape[-2]:
            self._buffers = (
                self._with_room(key_states, self.keys, used),
                self._with_room(value_states, self.values, used),
            )
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., used:length, :] = states
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)
        return self.keys, self.values

    def reset(self) -> None:
        super().reset()
        self._buffers = None

    def _in_buffers(self) -> bool:
        """Whether keys and values are still the first part of the buffers, every row of them."""
        return all(
            held.data_ptr() == buffer.data_ptr() and held.shape[0] == buffer.shape[0]
            for held, buffer in zip((self.keys, self.values), self._buffers, strict=True)
        )

    @staticmethod
    def _with_room(states: torch.Tensor, held: torch.Tensor, used: int) -> torch.Tensor:
        """A buffer for what is held and the new states, with room beyond."""
        batch, heads, new, width = states.shape
        buffer = states.new_empty(batch, heads, used + new + ROOM, width)
        if used:
            buffer[..., :used, :] = held
        return buffer


def grow_in_place(cache: Cache | None) -> None:
    """Let the layers of a fresh DynamicCache grow in place; any other cache stays as it is."""
    if type(cache) is not DynamicCache:
        return
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and not layer.is_initialized:
            cache.layers[index] = GrowingLayer()
