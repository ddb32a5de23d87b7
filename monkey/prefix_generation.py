"""Greedy answers to many prompts, each image read once: prompts that begin with the same image share its prefix.

A prompt's prefix is `<img>` and the image's tokens. Their keys and values depend on the image alone (and, past
`seq_length`, on the growth of the rotary base), so they are computed once for all prompts about the image and never
copied: the rest of each prompt, and each new token, attends to the shared prefix and to its own row. Prefixes have no
padding; only the rests, some tens of tokens, are padded to one length. A text alone, or one with more images, goes the
same way: all that follows the prefix, later images included, is its rest. Every token keeps the position that it has in
its prompt alone, so that in fp32 an answer is that of its prompt alone, whatever else is in the batch.

Shape letters: I images, V views, Q tokens of a view, N prompts, L prefix tokens, T tokens of a step, H heads, d head
width, D decoder width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import DynamicCache

from monkey.cache import grow_in_place
from monkey.configuration import MonkeyConfig, MonkeyTextConfig
from monkey.language import ntk_alpha, project, rotary_tables
from monkey.modeling import image_slots
from monkey.prefix_attention import PrefixAttention, Prefixes


@dataclass
class GenerationStats:
    """What answering took, added up over batches; seconds are wall time with the device's queue emptied."""

    prompts: int = 0
    images: int = 0
    """Images that went through the vision side."""
    prompt_tokens: int = 0
    """Tokens of the prompts as they were asked, each with its image."""
    prefill_tokens: int = 0
    """Positions that the decoder computed before the first new tokens, padding included."""
    padding_tokens: int = 0
    """Those among them that are padding."""
    new_tokens: int = 0
    vision_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @contextmanager
    def timed(self, phase: str, device: torch.device) -> Iterator[None]:
        """Add the time of the block to `phase`: 'vision', 'prefill' or 'decode'."""
        _finish(device)
        start = time.perf_counter()
        yield
        _finish(device)
        name = f"{phase}_seconds"
        setattr(self, name, getattr(self, name) + time.perf_counter() - start)


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass(eq=False)
class PrefixedImage:
    """An image to be asked about: `features` [V·Q, D], and the prefix of each rotary growth that was needed so far."""

    features: torch.Tensor
    prefixes: dict[float, tuple[Prefixes, int]] = field(default_factory=dict)

    def alone(self) -> PrefixedImage:
        """The same without a hold on the memory of the images it was computed with."""
        kept = {alpha: (prefixes.alone(index), 0) for alpha, (prefixes, index) in self.prefixes.items()}
        return PrefixedImage(self.features.clone(), kept)


@dataclass(eq=False)
class _Row:
    """One prompt on its way.

    `rest` is what follows the prefix at `place` (None without one), and holds the places of `images`.
    """

    rest: list[int]
    images: Sequence[PrefixedImage]
    place: tuple[Prefixes, int] | None
    limit: int
    answer: list[int] = field(default_factory=list)

    @property
    def prefix_length(self) -> int:
        return 0 if self.place is None else self.place[0].length


@torch.no_grad()
def greedy_answers(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Sequence[PrefixedImage]],
    max_new_tokens: Sequence[int],
    end_id: int,
    min_new_tokens: int = 1,
    stats: GenerationStats | None = None,
) -> list[list[int]]:
    """New tokens of each prompt; the last is `end_id` unless its limit came first.

    Args:
        model: a MonkeyForConditionalGeneration in evaluation mode, whose parameters are whole in this process.
        prompts: ids of whole prompts, not padded.
        images: those of each prompt in the order of their places; one object wherever it is the same image.
        max_new_tokens: limit of each prompt.
        min_new_tokens: tokens before which `end_id` is not chosen.
        stats: what to add counts and times to; nothing is measured without.

    Raises:
        ValueError: an empty prompt, or places and images that do not fit.
    """
    config = model.config
    _check(prompts, images, config)
    begins = [prompt[0] == config.image_start_id for prompt in prompts]
    groups: dict[tuple[float, bool], list[int]] = {}
    for number, prompt in enumerate(prompts):
        alpha = rotary_growth(len(prompt), config.text_config)
        groups.setdefault((alpha, begins[number]), []).append(number)
    answers: list[list[int]] = [[] for _ in prompts]
    for (alpha, has_prefix), numbers in groups.items():
        skipped = 0
        if has_prefix:
            _begin(model, [images[number][0] for number in numbers], alpha, stats)
            skipped = 1 + config.image_tokens
        rows = [
            _Row(
                rest=list(prompts[number][skipped:]),
                images=images[number][1:] if has_prefix else images[number],
                place=images[number][0].prefixes[alpha] if has_prefix else None,
                limit=max_new_tokens[number],
                answer=answers[number],
            )
            for number in numbers
        ]
        _Generation(model, rows, alpha, end_id, min_new_tokens, stats).run()
    if stats is not None:
        stats.prompts += len(prompts)
        stats.prompt_tokens += sum(map(len, prompts))
        stats.new_tokens += sum(map(len, answers))
    return answers


def rotary_growth(length: int, config: MonkeyTextConfig) -> float:
    """Dynamic-NTK growth of the rotary base in evaluation, for a prompt of `length` tokens alone."""
    return ntk_alpha(length, config.seq_length) if config.use_dynamic_ntk else 1.0


def _check(prompts: Sequence[Sequence[int]], images: Sequence[Sequence[PrefixedImage]], config: MonkeyConfig) -> None:
    for number, (prompt, own) in enumerate(zip(prompts, images, strict=True)):
        if not prompt:
            raise ValueError(f"prompt {number} is empty and has no image, so there is nothing to continue")
        try:
            image_slots(torch.tensor([prompt]), config, num_images=len(own))
        except ValueError as error:
            raise ValueError(str(error).replace("prompt 0:", f"prompt {number}:")) from error


def _begin(model: nn.Module, images: Sequence[PrefixedImage], alpha: float, stats: GenerationStats | None) -> None:
    """Compute the prefixes of the images that lack them, in one pass."""
    missing = [image for image in dict.fromkeys(images) if alpha not in image.prefixes]
    if not missing:
        return
    decoder = model.model.language_model
    features = torch.stack([image.features for image in missing])
    with _timed(stats, "prefill", features.device):
        start = torch.tensor([model.config.image_start_id], device=features.device)
        start = decoder.embed_tokens(start).expand(len(missing), 1, -1)
        hidden = torch.cat([start, features.to(start.dtype)], dim=1)
        positions = torch.arange(hidden.shape[1])[None]
        rotary = position_embeddings(decoder.config, positions, alpha, hidden.device)
        recorded = _Recorded()
        run_for_keys(decoder.layers, hidden, positions, rotary, recorded, _causal)
    prefixes = Prefixes(tuple(recorded.keys), tuple(recorded.values))
    for index, image in enumerate(missing):
        image.prefixes[alpha] = prefixes, index
    if stats is not None:
        stats.prefill_tokens += hidden.shape[0] * hidden.shape[1]


class _Recorded:
    """In the place of a cache: keeps the keys and values of every layer."""

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def update(self, key: torch.Tensor, value: torch.Tensor, *_) -> tuple[torch.Tensor, torch.Tensor]:
        # They come as views of [I, L, H, d]; every later product would copy them to their own order again.
        self.keys.append(key.contiguous())
        self.values.append(value.contiguous())
        return self.keys[-1], self.values[-1]


def _causal(query, key, value, scaling, dropout=0.0):
    """Causal attention of rows without padding: [I, H, L, d] to [I, L, H, d]."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling).transpose(1, 2)


def _no_queries(query, key, value, scaling, dropout=0.0):
    """Attention of no query, [I, 0, H, d]: of a prefix's last layer only keys and values are used."""
    return query[:, :, :0].transpose(1, 2)


def position_embeddings(
    config: MonkeyTextConfig, positions: torch.Tensor, alpha: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Cosine, sine and log-n factors of `positions` [1 or N, T], which are those in the prompt, padding not counted."""
    scale = None
    if config.use_logn_attn and int(positions.max()) >= config.seq_length:
        counted = (positions + 1).clamp(min=config.seq_length).double()
        scale = (counted.log() / math.log(config.seq_length)).float()[:, None, :, None].to(device)
    cos, sin = rotary_tables(positions.to(device), config.head_dim, config.rope_parameters["rope_theta"], alpha)
    return cos, sin, scale


def run_layers(layers, hidden, positions, rotary, cache, attention) -> torch.Tensor:
    """Hidden states [N, T, D] through layers, before the last norm."""
    positions = positions.to(hidden.device)
    for layer in layers:
        hidden = layer(
            hidden,
            attention_mask=None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            position_embeddings=rotary,
            packed_attention=attention,
        )
    return hidden


def run_for_keys(layers, hidden, positions, rotary, cache, attention) -> None:
    """As `run_layers`, of tokens whose keys and values alone are wanted: the last layer computes nothing else."""
    hidden = run_layers(layers[:-1], hidden, positions, rotary, cache, attention)
    last = layers[-1]
    last.self_attn(
        last.input_layernorm(hidden),
        attention_mask=None,
        past_key_values=cache,
        position_embeddings=rotary,
        packed_attention=_no_queries,
    )


class _Generation:
    """Rows of one rotary growth, with images or all without, from their rests to their answers."""

    def __init__(self, model, rows: list[_Row], alpha: float, end_id: int, min_new_tokens: int, stats):
        self.model = model
        self.decoder = model.model.language_model
        self.device = self.decoder.embed_tokens.weight.device
        self.alpha = alpha
        self.end_id, self.min_new_tokens = end_id, min_new_tokens
        self.stats = stats
        # Rows of one image side by side, images in the order that their prefixes lie in.
        blocks: dict[Prefixes, int] = {}
        for row in rows:
            if row.place is not None:
                blocks.setdefault(row.place[0], len(blocks))
        self.rows = sorted(rows, key=lambda row: (0, 0) if row.place is None else (blocks[row.place[0]], row.place[1]))
        cache = DynamicCache(config=self.decoder.config)
        grow_in_place(cache)
        self.attention = PrefixAttention(cache)

    def run(self) -> None:
        with _timed(self.stats, "prefill", self.device):
            tokens = self._choose(self._read_rests())
        with _timed(self.stats, "decode", self.device):
            while True:
                kept = self._take(tokens)
                if not kept:
                    return
                tokens = self._choose(self._step([tokens[index] for index in kept]))

    def _read_rests(self) -> torch.Tensor:
        """Last hidden states [N, D] of the prompts."""
        lengths = [len(row.rest) for row in self.rows]
        self.width = max(lengths)
        ids = [row.rest + [self.end_id] * (self.width - len(row.rest)) for row in self.rows]
        # Padding stands behind a row's last token, so that being causal hides it; later steps need a mask.
        causal = torch.ones(self.width, self.width, dtype=torch.bool, device=self.device).tril()
        positions = self.rows[0].prefix_length + torch.arange(self.width)[None]
        images = [image for row in self.rows for image in row.images]
        hidden = self._run(torch.tensor(ids), positions, causal[None, None], images)
        self.unpadded = torch.arange(self.width)[None] < torch.tensor(lengths)[:, None]
        if self.stats is not None:
            self.stats.prefill_tokens += len(ids) * self.width
            self.stats.padding_tokens += len(ids) * self.width - sum(lengths)
        last = torch.tensor(lengths, device=self.device) - 1
        return hidden[torch.arange(len(ids), device=self.device), last]

    def _step(self, tokens: list[int]) -> torch.Tensor:
        """Last hidden states [N, D] after one more token of each row."""
        produced = len(self.rows[0].answer)
        positions = [[row.prefix_length + len(row.rest) + produced - 1] for row in self.rows]
        mask = None
        if not bool(self.unpadded.all()):
            mask = F.pad(self.unpadded, (0, produced), value=True)[:, None, None].to(self.device)
        return self._run(torch.tensor(tokens)[:, None], torch.tensor(positions), mask)[:, -1]

    def _run(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        images: Sequence[PrefixedImage] = (),
    ) -> torch.Tensor:
        self.attention.prepare([row.place for row in self.rows], mask)
        hidden = self.decoder.embed_tokens(ids.to(self.device))
        if images:
            features = torch.stack([image.features for image in images])
            # Behind a prefix, the first token is the `</img>` of a span that stands before.
            begun = 0 if self.rows[0].place is None else 1
            placed = self.model.model.place_image_features(hidden[:, begun:], ids[:, begun:], features)
            hidden = torch.cat([hidden[:, :begun], placed], dim=1)
        rotary = position_embeddings(self.decoder.config, positions, self.alpha, self.device)
        return run_layers(self.decoder.layers, hidden, positions, rotary, self.attention, self.attention)

    def _choose(self, last: torch.Tensor) -> list[int]:
        logits = project(self.model.lm_head, self.decoder.norm(last)).float()
        if len(self.rows[0].answer) < self.min_new_tokens:
            logits[:, self.end_id] = -torch.inf
        return logits.argmax(dim=-1).tolist()

    def _take(self, tokens: list[int]) -> list[int]:
        """Give each row its token; the places of the rows that go on. The others leave the batch."""
        kept = []
        for index, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            row.answer.append(token)
            if token != self.end_id and len(row.answer) < row.limit:
                kept.append(index)
        if kept and len(kept) < len(tokens):
            self.rows = [self.rows[index] for index in kept]
            self.unpadded = self.unpadded[kept]
            self.attention.cache.batch_select_indices(torch.tensor(kept, device=self.device))
        return kept


@contextmanager
def _timed(stats: GenerationStats | None, phase: str, device: torch.device) -> Iterator[None]:
    if stats is None:
        yield
        return
    with stats.timed(phase, device):
        yield
