"""Attention by runs: the one layout of packed training rows, questions that share an image, and the engine's rows.

A run is a stretch of tokens that attend causally among themselves and, where the run has a prefix, to all of it. A
training sample alone is one run without prefix. Several questions about one image are a run with the image and, behind
it, one run per question whose prefix it is: the questions share the image and do not see each other. Both are exact,
since a token's scores are those that its sample alone would give. `monkey.kv_cache` lays out what the engine reads and
writes in the same way, with prefixes that were computed earlier.

The decoder's layers get their layout as the keyword `runs`, an object with the method `attend`, and any decoder of
transformers takes it when it is opened with `attn_implementation="runs"`:

    model(input_ids, position_ids=position_ids, runs=Runs(runs, device), use_cache=False)

With `attn_implementation="runs_or_sdpa"` the same decoder also takes padded batches and caches, as ever, where no runs
are given.

Shape letters: B batch, H heads, T tokens of the row, S tokens that are seen, d head width, R runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

RUNS = "runs"
"""Name of the layout among transformers' attention implementations."""

RUNS_OR_SDPA = "runs_or_sdpa"
"""Name of what attends by runs where they are given, and as the library does by SDPA where not."""

QUERY_TOKENS = 64
"""Tokens whose scores exist at once where they are written out, which bounds the memory of long prompts."""

_KERNEL_GROUPS = "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters
"""Whether the kernel takes fewer heads of keys than of queries, as from torch 2.12 on."""

Run = tuple[int, int, int, int]
"""Start and end of a run, start and end of its prefix (equal where it has none)."""


Tokens = slice | torch.Tensor
"""Tokens of a row: neighbours, or their numbers."""


def index_tokens(tokens: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> Tokens:
    """Return numbers of tokens as what indexes them: a slice of neighbours in their order copies nothing."""
    if np.array_equal(tokens, np.arange(tokens[0], tokens[0] + len(tokens))):
        return slice(int(tokens[0]), int(tokens[-1]) + 1)
    return torch.as_tensor(tokens, device=device)


class Layout(Protocol):
    """Who sees whom in one pass through the layers."""

    longest: int
    """Tokens of the longest sequence, its prefix included."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scaling: float,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """Return what the queries attend to, [1, T, H, d], from query, key and value [1, H, T, d] of one layer."""
        ...


# What attention functions of the library are given beside queries, keys and values, and no layout has.
_LEFT_OUT = {
    "softcap": "caps its scores",
    "s_aux": "has attention sinks",
    "position_bias": "adds a bias to its scores",
}


def attend_by_runs(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    runs: Layout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the layout says: an attention function of transformers' `AttentionInterface`.

    Raises:
        ValueError: no layout, or a kind of attention that no layout has.
    """
    if runs is None:
        raise ValueError(
            f'attn_implementation="{RUNS}" needs the keyword runs=, a layout such as monkey.attention.Runs'
        )
    for name, what in _LEFT_OUT.items():
        if options.get(name) is not None:
            raise ValueError(f"this decoder {what} ({name}), and attention by runs does not; use another one")
    window = options.get("sliding_window")
    if window is not None and runs.longest > window:
        raise ValueError(
            f"this decoder sees {window} tokens back (sliding_window), and a run with its prefix has {runs.longest}; "
            "attention by runs sees all of them"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return runs.attend(query, key, value, module.layer_idx, scaling, dropout), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The layout says who sees whom, so no [T, T] mask is made."""


AttentionInterface.register(RUNS, attend_by_runs)
AttentionMaskInterface.register(RUNS, _no_mask)

_has_layout: ContextVar[bool] = ContextVar("has_layout", default=False)


@contextmanager
def without_masks() -> Iterator[None]:
    """Let decoders with `RUNS_OR_SDPA` make no masks: a [T, T] one of a packed row would be read by nobody."""
    token = _has_layout.set(True)
    try:
        yield
    finally:
        _has_layout.reset(token)


def _attend_by_either(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None, **options: Any
) -> tuple[torch.Tensor, None]:
    # By the keyword, not by `without_masks`: a checkpointed layer is computed again after that has ended.
    attend = sdpa_attention_forward if options.get("runs") is None else attend_by_runs
    return attend(module, query, key, value, attention_mask, **options)


def _mask_by_either(*arguments: Any, **options: Any) -> torch.Tensor | None:
    return None if _has_layout.get() else sdpa_mask(*arguments, **options)


AttentionInterface.register(RUNS_OR_SDPA, _attend_by_either)
AttentionMaskInterface.register(RUNS_OR_SDPA, _mask_by_either)


def checked_runs(segments: torch.Tensor, length: int) -> list[Run]:
    """Return the rows of `segments` [R, 4] as runs.

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


def packed_runs(
    segments: torch.Tensor, hidden: torch.Tensor, attention_mask: torch.Tensor | None, cache: Any | None
) -> Runs:
    """Return the layout of a packed row [1, T, D] from its `segments` [R, 4].

    Raises:
        ValueError: as `checked_runs`; or several rows, padding or a cache, which no packed row has.
    """
    if cache is not None or attention_mask is not None or hidden.shape[0] != 1:
        others = ["an attention_mask"] * (attention_mask is not None) + ["a cache"] * (cache is not None)
        raise ValueError(
            "segments pack one row without padding or cache, but "
            f"{' and '.join([f'the batch has {hidden.shape[0]} rows', *others])}"
        )
    return Runs(checked_runs(segments, hidden.shape[1]), hidden.device)


class Runs:
    """The runs of one packed row, whose prefixes lie in the row itself; prepared once for all layers.

    On CUDA in half precision every run goes through one variable-length flash kernel; elsewhere runs of one prefix are
    one product, so that nothing is computed between samples that share nothing. Gradients flow through both.
    """

    def __init__(self, runs: list[Run], device: torch.device):
        self.runs = runs
        self.longest = max(end - start + prefix_end - prefix_start for start, end, prefix_start, prefix_end in runs)
        self._device = device
        self._products: tuple | None = None
        self._lengths: tuple | None = None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scaling: float,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """As `Layout.attend`."""
        is_grouped = key.shape[1] != query.shape[1]
        if _has_kernel(query, dropout):
            return self._by_kernel(query, key, value, scaling, is_grouped)
        return self._run_by_run(query, key, value, scaling, dropout, is_grouped)

    def _run_by_run(self, query, key, value, scaling, dropout, is_grouped):
        if self._products is None:
            self._products = self._plan_products()
        products, order = self._products
        dtype = query.dtype
        if query.device.type == "cpu" and query.requires_grad:
            # On processors the backward pass takes two to three times as long in half precision.
            query, key, value = query.float(), key.float(), value.float()
        outputs = [
            F.scaled_dot_product_attention(
                query[:, :, own], key[:, :, seen], value[:, :, seen],
                mask if mask is None else mask.to(query.dtype), dropout,
                is_causal=mask is None, scale=scaling, enable_gqa=is_grouped,
            )
            for own, seen, mask in products
        ]  # fmt: skip
        attended = torch.cat(outputs, dim=2).to(dtype)
        return (attended if order is None else attended[:, :, order]).transpose(1, 2)

    def _plan_products(self) -> tuple[list[tuple[Tokens, Tokens, torch.Tensor | None]], torch.Tensor | None]:
        """Return the products, as queries, the tokens that they see and a mask, and the order of tokens after them.

        A mask is what is added to the scores, in fp32: of bools, every layer would make that again, which takes a third
        as long as its attention.

        A run without prefix is one product, and all runs of one prefix are one: of an image and twenty questions two.
        """
        groups: dict[Run | tuple[int, int], list[Run]] = {}
        for run in self.runs:
            groups.setdefault(run if run[2] == run[3] else run[2:], []).append(run)
        products, places = [], []
        for runs in groups.values():
            own = np.concatenate([np.arange(start, end) for start, end, _, _ in runs])
            places.append(own)
            prefix_start, prefix_end = runs[0][2:]
            if prefix_start == prefix_end:
                products.append((index_tokens(own, self._device), index_tokens(own, self._device), None))
                continue
            seen = np.concatenate([np.arange(prefix_start, prefix_end), own])
            starts = np.concatenate([np.full(end - start, start) for start, end, _, _ in runs])
            mask = (seen >= starts[:, None]) & (seen <= own[:, None])
            mask[:, : prefix_end - prefix_start] = True
            places_of = (index_tokens(tokens, self._device) for tokens in (own, seen))
            added = torch.from_numpy(np.where(mask, np.float32(0), np.float32(-np.inf)))
            products.append((*places_of, added.to(self._device)))
        order = np.argsort(np.concatenate(places))
        is_sorted = bool((order == np.arange(len(order))).all())
        return products, None if is_sorted else torch.from_numpy(order).to(self._device)

    def _by_kernel(self, query, key, value, scaling, is_grouped):
        if self._lengths is None:
            self._lengths = self._kernel_lengths()
        order, query_ends, key_ends, longest_query, longest_key = self._lengths
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        grouped = {"enable_gqa": True} if is_grouped else {}
        if is_grouped and not _KERNEL_GROUPS:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
            grouped = {}
        if order is not None:
            key, value = key[order], value[order]
        # The kernel aligns queries with the last keys of their run, so a prefix is seen whole.
        attended = varlen.varlen_attn(
            query, key, value, query_ends, key_ends, longest_query, longest_key,
            scale=scaling, window_size=(-1, 0), **grouped,
        )  # fmt: skip
        return attended[None]

    def _kernel_lengths(self):
        """Return the order of keys (None as they lie), the ends of queries and keys, and their longest runs."""
        # In NumPy: a row of a small model has a thousand runs, and the GPU waits for this.
        starts, ends, prefix_starts, prefix_ends = np.array(self.runs).T
        own, shared = ends - starts, prefix_ends - prefix_starts
        order = None
        if shared.any():
            stretches = np.stack([prefix_starts, starts], axis=1).ravel()
            lengths = np.stack([shared, own], axis=1).ravel()
            # Counting on within each stretch: its start, less the keys that earlier ones have taken.
            before = np.cumsum(lengths) - lengths
            order = np.arange(lengths.sum()) + np.repeat(stretches - before, lengths)
            order = torch.from_numpy(order).to(self._device)
        query_ends, key_ends = (
            torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)).to(self._device)
            for counts in (own, own + shared)
        )
        return order, query_ends, key_ends, int(own.max()), self.longest


def _has_kernel(query: torch.Tensor, dropout: float) -> bool:
    """Whether PyTorch's variable-length flash kernel takes these tensors: Ampere or newer, half precision."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and not dropout
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def attend_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    is_causal: bool = False,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention [B, H, T, d] of queries to S keys, and its log-sum-exp [B, H, T] in fp32.

    With the log-sum-exp two attentions of the same queries become one, see `merge`. There is no gradient. Keys and
    values may have fewer heads, each of which serves as many heads of queries, neighbours of each other.

    Args:
        is_causal: as many queries as keys, each of which sees those up to its own.
        mask: [B, 1, 1, S], added to the scores.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and is_causal:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    elif groups > 1:
        # Queries that see the same keys are one product, whichever heads and tokens they are of.
        outputs, sums = attend_with_lse(query.unflatten(1, (-1, groups)).flatten(2, 3), key, value, scaling, mask=mask)
        outputs, sums = (x.unflatten(2, (groups, -1)).flatten(1, 2) for x in (outputs, sums))
        return outputs, sums
    if query.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return flash(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scaling)
    return _written_out(query, key, value, scaling, is_causal, mask)


def _written_out(query, key, value, scaling, is_causal, mask):
    """As `attend_with_lse`, with the scores of a few queries at a time in memory."""
    outputs, sums = [], []
    for start in range(0, query.shape[2], QUERY_TOKENS):
        own = query[:, :, start : start + QUERY_TOKENS]
        end = start + own.shape[2] if is_causal else key.shape[2]
        scores = (own * scaling @ key[:, :, :end].transpose(-1, -2)).float()
        if is_causal:
            hidden = torch.ones(own.shape[2], end, dtype=torch.bool, device=query.device).triu(start + 1)
            scores = scores.masked_fill(hidden, -torch.inf)
        if mask is not None:
            scores = scores + mask
        sums.append(scores.logsumexp(dim=-1))
        outputs.append((scores - sums[-1][..., None]).exp().to(value.dtype) @ value[:, :, :end])
    return torch.cat(outputs, dim=2), torch.cat(sums, dim=2)


def merge(
    one: torch.Tensor, one_lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention of queries to the keys of both, from that to each with its log-sum-exp."""
    share = torch.sigmoid(other_lse - one_lse)[..., None]
    return torch.lerp(one.float(), other.float(), share).to(one.dtype), torch.logaddexp(one_lse, other_lse)
