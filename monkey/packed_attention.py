"""Attention over packed sequences: several samples in one row, each blind to the others.

A packed row is a list of *runs*. A run is a stretch of tokens that attend causally among themselves and, where the run
has a prefix, to every token of that earlier run. A sample alone is one run without prefix. Several questions about one
picture are a run with the picture and, behind it, one run a question whose prefix it is: the questions share the
picture and do not see each other. Both are exact, since a token's scores are those that its sample alone would give.

Shape letters: H heads, T tokens of the row, d head width, R runs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen

Run = tuple[int, int, int, int]
"""Start and end of a run, start and end of its prefix (equal where it has none)."""


def checked_runs(segments: torch.Tensor, length: int) -> list[Run]:
    """Rows of `segments` [R, 4] as runs.

    Raises:
        ValueError: runs that leave out or repeat a token of the row of `length` tokens, a prefix that is not an
            earlier run, or one that has itself a prefix.
    """
    runs = [tuple(row) for row in segments.tolist()]
    position = 0
    alone: set[tuple[int, int]] = set()
    for number, (start, end, prefix_start, prefix_end) in enumerate(runs):
        if start != position or end <= start:
            raise ValueError(f"segments: run {number} is tokens {start} to {end}, but token {position} comes next")
        if prefix_start == prefix_end:
            alone.add((start, end))
        elif (prefix_start, prefix_end) not in alone:
            raise ValueError(
                f"segments: the prefix of run {number}, tokens {prefix_start} to {prefix_end}, is not an earlier run "
                "without prefix"
            )
        position = end
    if position != length:
        raise ValueError(f"segments cover {position} tokens of a row of {length}")
    return runs


class PackedAttention:
    """The attention of one packed row, prepared once for all layers.

    On CUDA in half precision every run goes through one variable-length flash kernel; elsewhere each run is a product
    of its own, so that nothing is computed between samples and no [T, T] mask exists.
    """

    def __init__(self, runs: list[Run], device: torch.device):
        self.runs = runs
        self._device = device
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        self._lengths: tuple | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest sample, its prefix included."""
        return max(end - start + prefix_end - prefix_start for start, end, prefix_start, prefix_end in self.runs)

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, dropout: float = 0.0
    ) -> torch.Tensor:
        """Query, key and value [1, H, T, d] to [1, T, H, d]."""
        if _has_kernel(query, dropout):
            return self._by_kernel(query, key, value, scaling)
        return self._run_by_run(query, key, value, scaling, dropout)

    def _run_by_run(self, query, key, value, scaling, dropout):
        outputs = []
        for start, end, prefix_start, prefix_end in self.runs:
            keys, values, mask = key[:, :, start:end], value[:, :, start:end], None
            if prefix_start != prefix_end:
                keys = torch.cat([key[:, :, prefix_start:prefix_end], keys], dim=2)
                values = torch.cat([value[:, :, prefix_start:prefix_end], values], dim=2)
                mask = self._mask(prefix_end - prefix_start, end - start)
            outputs.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:end], keys, values, mask, dropout, is_causal=mask is None, scale=scaling
                )
            )
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _mask(self, prefix: int, own: int) -> torch.Tensor:
        """Boolean [own, prefix + own]: all of the prefix, and causally the run itself."""
        if (prefix, own) not in self._masks:
            mask = torch.ones(own, prefix + own, dtype=torch.bool, device=self._device).tril(prefix)
            self._masks[prefix, own] = mask
        return self._masks[prefix, own]

    def _by_kernel(self, query, key, value, scaling):
        if self._lengths is None:
            self._lengths = self._kernel_lengths()
        places, query_ends, key_ends, longest_query, longest_key = self._lengths
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        if places is not None:
            key, value = key[places], value[places]
        # The kernel aligns queries with the last keys of their run, so a prefix is seen whole.
        attended = varlen.varlen_attn(
            query, key, value, query_ends, key_ends, longest_query, longest_key, scale=scaling, window_size=(-1, 0)
        )
        return attended[None]

    def _kernel_lengths(self):
        """Key places (None for all in order), ends of queries and keys, and their longest runs."""
        # In NumPy: a row of a small model has a thousand runs, and the GPU waits for this.
        starts, ends, prefix_starts, prefix_ends = np.array(self.runs).T
        own, shared = ends - starts, prefix_ends - prefix_starts
        places = None
        if shared.any():
            stretches = np.stack([prefix_starts, starts], axis=1).ravel()
            lengths = np.stack([shared, own], axis=1).ravel()
            # Counting on within each stretch: its start, less the places that earlier ones have taken.
            before = np.cumsum(lengths) - lengths
            places = np.arange(lengths.sum()) + np.repeat(stretches - before, lengths)
            places = torch.from_numpy(places).to(self._device)
        query_ends, key_ends = (
            torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)).to(self._device)
            for counts in (own, own + shared)
        )
        return places, query_ends, key_ends, int(own.max()), self.longest


def _has_kernel(query: torch.Tensor, dropout: float) -> bool:
    """Whether PyTorch's variable-length flash kernel takes these tensors: Ampere or newer, half precision."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and not dropout
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )
