"""Keys and values that were computed: beginnings of prompts that many rows refer to, and what each row has of its own.

A prompt's beginning is a chain of blocks (`PrefixBlock`), each computed once and never copied for those who share it:
at full size the keys and values of one image are 0.67 GB. What follows, some tens of tokens, is a row's tail. `Prefill`
and `KVCache` are layouts in the sense of `monkey.attention`: of a pass that reads prompts, and of a step that writes
one token of every row. `GrowingLayer` is for `model.generate`.

Shape letters: H heads, d head width, T tokens of a pass, L tokens of a block, N rows of a step, R rows that there is
room for, S positions of a tail that there is room for.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from monkey.attention import Tokens, attend_with_lse, index_tokens, merge

CACHE_STEP = 128
"""Positions that buffers get room for beyond those needed: 64 MiB at full size and batch 1."""

COMPILED_CACHE_STEP = 2048
"""The same where a step is compiled: room is a multiple of it, since each new shape is compiled anew."""

SHARED_TOKENS = 128
"""Length from which a block is referred to; shorter ones are copied into a row's tail, which takes fewer products."""

SHORTEST_REUSE = 16
"""Tokens that a prompt must have in common with a part of a block for the part to be worth a block of its own."""

MAX_BLOCKS = 512
"""Most blocks that a store keeps, however short they are."""


@dataclass(eq=False)
class PrefixBlock:
    """Keys and values of a stretch of tokens behind those of its parent.

    Attributes:
        cache_keys: what tells its tokens from others: ids, and within an image the digest of its pixels.
        keys, values: [1, H, L, d] per layer, in memory of their own.
    """

    cache_keys: tuple[Hashable, ...]
    parent: PrefixBlock | None = None
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    children: list[PrefixBlock] = field(default_factory=list)
    last_used: int = 0

    def __post_init__(self) -> None:
        self.start = self.parent.end if self.parent else 0
        self.end = self.start + len(self.cache_keys)

    def __len__(self) -> int:
        return len(self.cache_keys)

    def __bool__(self) -> bool:
        return True

    @property
    def chain(self) -> list[PrefixBlock]:
        """All blocks of the beginning that ends with this one, in their order."""
        return [*(self.parent.chain if self.parent else ()), self]

    @property
    def num_bytes(self) -> int:
        return len(self.keys) * (self.keys[0].nbytes + self.values[0].nbytes) if self.keys else 0

    def record(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take the next layer's keys and values, without a hold on the memory of others."""
        self.keys.append(key.clone(memory_format=torch.contiguous_format))
        self.values.append(value.clone(memory_format=torch.contiguous_format))

    def cut(self, length: int) -> PrefixBlock:
        """Return its first tokens as a block."""
        block = PrefixBlock(self.cache_keys[:length], self.parent)
        for key, value in zip(self.keys, self.values, strict=True):
            block.record(key[:, :, :length], value[:, :, :length])
        return block


class PrefixStore:
    """Finds the longest beginning of a prompt that was read before; the least recently used is forgotten first.

    A tree of blocks for each growth of the rotary base, which keys depend on.

    Args:
        max_bytes: of the keys and values that are kept when nobody uses them; 0 keeps none.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._roots: dict[float, list[PrefixBlock]] = {}
        self._blocks: list[PrefixBlock] = []
        self._clock = count(1)

    @property
    def num_bytes(self) -> int:
        return sum(block.num_bytes for block in self._blocks)

    def clear(self) -> None:
        self._roots, self._blocks = {}, []

    def find(self, ntk_alpha: float, cache_keys: Sequence[Hashable]) -> PrefixBlock | None:
        """Return the last block of the longest known beginning of `cache_keys`."""
        found = None
        while True:
            start = found.end if found else 0
            shared = [(_shared(block, cache_keys, start), block) for block in self._siblings(ntk_alpha, found)]
            length, best = max(shared, key=lambda pair: (pair[0], -len(pair[1])), default=(0, None))
            if length and length == len(best):
                found, best.last_used = best, next(self._clock)
                continue
            if length >= SHORTEST_REUSE and best.keys:
                found = best.cut(length)
                self.insert(ntk_alpha, found)
            return found

    def insert(self, ntk_alpha: float, block: PrefixBlock) -> None:
        """Remember a block, whose keys and values may be computed later in the same pass."""
        block.last_used = next(self._clock)
        self._siblings(ntk_alpha, block.parent).append(block)
        self._blocks.append(block)

    def discard(self, block: PrefixBlock) -> None:
        if block in self._blocks:
            self._blocks.remove(block)
            for siblings in (block.parent.children,) if block.parent else self._roots.values():
                if block in siblings:
                    siblings.remove(block)

    def join(self, ntk_alpha: float, parts: Sequence[PrefixBlock], in_use: set[PrefixBlock | None]) -> PrefixBlock:
        """Make one block of neighbouring ones and put it in their place; whoever refers to the last refers to it now.

        Where others go on from between them, nothing changes and the last is returned.
        """
        if any(one in in_use or one.children != [other] for one, other in pairwise(parts)):
            return parts[-1]
        joined = PrefixBlock(tuple(key for part in parts for key in part.cache_keys), parts[0].parent)
        for layer in range(len(parts[0].keys)):
            joined.keys.append(torch.cat([part.keys[layer] for part in parts], dim=2))
            joined.values.append(torch.cat([part.values[layer] for part in parts], dim=2))
            for part in parts:  # so that no more than one layer is there twice
                part.keys[layer], part.values[layer] = joined.keys[layer][:, :, :0], joined.values[layer][:, :, :0]
        for child in parts[-1].children:
            child.parent = joined
        joined.children = parts[-1].children
        for part in reversed(parts):
            self.discard(part)
        self.insert(ntk_alpha, joined)
        return joined

    def trim(self, in_use: set[PrefixBlock | None]) -> None:
        """Forget what nobody uses and there is no room for, ends before what they build on."""
        num_bytes = self.num_bytes
        while num_bytes > self.max_bytes or len(self._blocks) > MAX_BLOCKS:
            free = [block for block in self._blocks if not block.children and block not in in_use]
            if not free:
                return
            # What could never be kept does not drive out what can.
            first = min(free, key=lambda block: (block.num_bytes <= self.max_bytes, block.last_used))
            self.discard(first)
            num_bytes -= first.num_bytes

    def _siblings(self, ntk_alpha: float, parent: PrefixBlock | None) -> list[PrefixBlock]:
        return parent.children if parent else self._roots.setdefault(ntk_alpha, [])


def _shared(block: PrefixBlock, cache_keys: Sequence[Hashable], start: int) -> int:
    """How many of a block's tokens `cache_keys` have from `start` on."""
    if tuple(cache_keys[start : start + len(block)]) == block.cache_keys:
        return len(block)
    pairs = zip(block.cache_keys, cache_keys[start:], strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(cache_keys) - start)


@dataclass(frozen=True)
class _Level:
    """Tokens of a pass and the blocks that they see, one block per token; tokens of one block are one product."""

    tokens: Tokens
    groups: list[tuple[Tokens, PrefixBlock]]

    def attend(self, query, attended, lse, layer, scaling):
        """Return what the queries [1, H, T, d] attend to and its log-sum-exp [1, H, T], from both without blocks."""
        parts = [
            attend_with_lse(query[:, :, tokens], block.keys[layer], block.values[layer], scaling)
            for tokens, block in self.groups
        ]
        outputs, sums = parts[0] if len(parts) == 1 else (torch.cat(x, dim=2) for x in zip(*parts, strict=True))
        if self.tokens == slice(0, query.shape[2]):
            return merge(attended, lse, outputs, sums)
        outputs, sums = merge(attended[:, :, self.tokens], lse[:, :, self.tokens], outputs, sums)
        attended[:, :, self.tokens], lse[:, :, self.tokens] = outputs, sums
        return attended, lse


def _levels(spans: Sequence[range], prefixes: Sequence[PrefixBlock | None]) -> list[_Level]:
    """Return levels of a pass, the first blocks of all prefixes first, from each prefix and the tokens that see it."""
    chains = [prefix.chain if prefix else [] for prefix in prefixes]
    levels = []
    for depth in range(max(map(len, chains), default=0)):
        groups: dict[PrefixBlock, list[int]] = {}
        for span, chain in zip(spans, chains, strict=True):
            if depth < len(chain) and span:
                groups.setdefault(chain[depth], []).extend(span)
        if groups:
            tokens = [token for group in groups.values() for token in group]
            levels.append(
                _Level(index_tokens(tokens), [(index_tokens(group), block) for block, group in groups.items()])
            )
    return levels


class Prefill:
    """The layout of a pass that reads prompts: the tokens of blocks one after another in one row.

    A block that was read earlier in the same pass may be the parent of a later one.

    Args:
        blocks: without keys and values, which the pass fills in.
        ends: whether a prompt ends with each block.
    """

    def __init__(self, blocks: Sequence[PrefixBlock], ends: Sequence[bool]):
        self.blocks, self._ends = blocks, ends
        stops = torch.tensor([len(block) for block in blocks]).cumsum(dim=0).tolist()
        self._spans = [range(stop - len(block), stop) for block, stop in zip(blocks, stops, strict=True)]
        self.longest = max(block.end for block in blocks)
        self.last_tokens = [span[-1] for span, is_end in zip(self._spans, ends, strict=True) if is_end]
        self._queries = self._spans
        self._levels = _levels(self._spans, [block.parent for block in blocks])

    def of_last_tokens(self) -> Prefill:
        """Return the layout of a layer whose queries are the last token of each prompt alone."""
        last = Prefill(self.blocks, self._ends)
        last._queries = [
            span[-1:] if is_end else span[:0] for span, is_end in zip(self._spans, self._ends, strict=True)
        ]
        stops = torch.tensor(self._ends).cumsum(dim=0).tolist()
        places = [range(stop - is_end, stop) for stop, is_end in zip(stops, self._ends, strict=True)]
        last._levels = _levels(places, [block.parent for block in self.blocks])
        return last

    def attend(self, query, key, value, layer, scaling, dropout=0.0):
        """As `monkey.attention.Layout.attend`, for the tokens that are queries; keys and values are recorded."""
        for block, span in zip(self.blocks, self._spans, strict=True):
            own = slice(span.start, span.stop)
            block.record(key[:, :, own], value[:, :, own])
        if not any(self._queries):
            return query[:, :, :0].transpose(1, 2)
        parts = [
            self._attend_to_own(query, key, value, layer, scaling, *given)
            for given in zip(self.blocks, self._spans, self._queries, strict=True)
            if given[-1]
        ]
        attended, lse = (torch.cat(x, dim=2) for x in zip(*parts, strict=True))
        query = query if self._queries is self._spans else query[:, :, self.last_tokens]
        for level in self._levels:
            attended, lse = level.attend(query, attended, lse, layer, scaling)
        return attended.transpose(1, 2)

    def _attend_to_own(self, query, key, value, layer, scaling, block, span, queries):
        query = query[:, :, queries.start : queries.stop]
        key, value = key[:, :, span.start : span.stop], value[:, :, span.start : span.stop]
        is_causal = len(queries) == len(span)
        if block.parent or query.device.type == "cpu":
            return attend_with_lse(query, key, value, scaling, is_causal)
        # Nothing is merged with it, and a GPU's own kernel writes no scores out.
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=is_causal, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
        )
        return attended, attended.new_zeros(attended.shape[:-1], dtype=torch.float32)


class KVCache:
    """Rows that are being continued: each refers to a prefix and has a tail; the layout of a step of all of them.

    Tails lie in buffers [R, H, S, d] per layer, written in place.

    Args:
        is_fixed: prefixes are copied into the tails, and steps see whole buffers, unused rows included, so that shapes
            seldom change: for a compiled step.
    """

    def __init__(self, num_layers: int, is_fixed: bool = False):
        self.is_fixed = is_fixed
        self._num_layers = num_layers
        self.clear()

    def clear(self) -> None:
        """Forget all rows, and give the memory back."""
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.rows = self.length = self.longest = 0
        self._prefixes: list[PrefixBlock | None] = []
        self._levels: list[_Level] = []

    def admit(self, row: int, rest: PrefixBlock) -> PrefixBlock | None:
        """Give a row a tail that begins with `rest`, the end of its prompt, and with short blocks before it.

        Returns:
            The prefix that the row refers to; what follows it is in the tail.
        """
        copied, prefix = [rest], rest.parent
        while prefix and (self.is_fixed or len(prefix) < SHARED_TOKENS):
            copied, prefix = [prefix, *copied], prefix.parent
        start = copied[0].start
        if not self.keys:
            self.keys, self.values = ([x[:0] for x in states] for states in (rest.keys, rest.values))
        self.reserve(row + 1, rest.end - start)
        for block in copied:
            tail = slice(block.start - start, block.end - start)
            for layer in range(self._num_layers):
                self.keys[layer][row, :, tail] = block.keys[layer][0]
                self.values[layer][row, :, tail] = block.values[layer][0]
        return prefix

    def reserve(self, rows: int, length: int) -> None:
        """Make room for rows and for positions of their tails, with some to spare where it has to grow."""
        if rows <= self.rows and length <= self.length:
            return
        rows, length = max(rows, self.rows), self.length if length <= self.length else length + CACHE_STEP
        if self.is_fixed:
            rows = 1 << (rows - 1).bit_length()
            length = -(-length // COMPILED_CACHE_STEP) * COMPILED_CACHE_STEP
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                buffers[layer] = self._grown(buffer, rows, length)
        self.rows, self.length = rows, length

    def _grown(self, buffer: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        held, heads, filled, width = buffer.shape
        # Zeros: what a step sees of unused positions has no weight, but not-a-number times nothing is not nothing.
        grown = buffer.new_zeros(max(rows, held), heads, max(length, filled if held else 0), width)
        grown[:held, :, : filled if held else 0] = buffer if held else buffer[:, :, :0]
        if self.is_fixed:
            torch._dynamo.mark_static_address(grown)
        return grown

    def prepare(self, prefixes: Sequence[PrefixBlock | None], positions: Sequence[int]) -> None:
        """For the step to come: the prefix of each row, and the position of its token in its tail."""
        unused = self.rows - len(positions) if self.is_fixed else 0
        positions = [*positions, *[0] * unused]
        ends = [prefix.end if prefix else 0 for prefix in prefixes]
        self.longest = max(end + position + 1 for end, position in zip(ends, positions, strict=False))
        self._is_level = len(set(positions)) == 1 and not self.is_fixed
        self._position = positions[0]
        device = self.keys[0].device
        self._positions = torch.tensor(positions, device=device)
        self._row_numbers = torch.arange(len(positions), device=device)
        self._end = self.length if self.is_fixed else max(positions) + 1
        self._mask = self._bias = None
        if not self._is_level:
            self._mask = (torch.arange(self._end, device=device) <= self._positions[:, None])[:, None, None]
        if list(prefixes) != self._prefixes:
            self._prefixes = list(prefixes)
            self._levels = _levels([range(row, row + 1) for row in range(len(prefixes))], prefixes)

    def attend(self, query, key, value, layer, scaling, dropout=0.0):
        """As `monkey.attention.Layout.attend`, for one token [1, H, N, d] of each row."""
        by_row = query.transpose(0, 2)
        keys = self._write(self.keys[layer], key.transpose(0, 2))
        values = self._write(self.values[layer], value.transpose(0, 2))
        if not self._levels:
            mask = None if self._mask is None else self._mask.to(query.device)
            attended = F.scaled_dot_product_attention(
                by_row, keys, values, attn_mask=mask, scale=scaling, enable_gqa=keys.shape[1] != by_row.shape[1]
            )
            return attended.transpose(0, 2).transpose(1, 2)
        attended, lse = attend_with_lse(by_row, keys, values, scaling, mask=self._additive_mask(query))
        attended, lse = attended.transpose(0, 2), lse.transpose(0, 2)
        for level in self._levels:
            attended, lse = level.attend(query, attended, lse, layer, scaling)
        return attended.transpose(1, 2)

    def _write(self, buffer: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Write a step's keys or values [N, H, 1, d]; return those that it sees, [N, H, S, d]."""
        rows = states.shape[0]
        if self._is_level:
            buffer[:rows, :, self._position : self._position + 1] = states
        else:
            own = self._row_numbers.to(buffer.device), self._positions.to(buffer.device)
            buffer[own[0], :, own[1]] = states[:, :, 0]
        return buffer[:rows, :, : self._end]

    def _additive_mask(self, query: torch.Tensor) -> torch.Tensor | None:
        if self._mask is not None and self._bias is None:
            self._bias = torch.zeros_like(self._mask, dtype=query.dtype).masked_fill_(~self._mask, -torch.inf)
        return None if self._bias is None else self._bias.to(query.device)

    def read(self, row: int, start: int, end: int, block: PrefixBlock) -> None:
        """Let a block record a part of a row's tail."""
        for keys, values in zip(self.keys, self.values, strict=True):
            block.record(keys[row : row + 1, :, start:end], values[row : row + 1, :, start:end])

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row's tail over those of another."""
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :length] = buffer[source, :, :length]


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
        buffer = states.new_empty(batch, heads, used + new + CACHE_STEP, width)
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
