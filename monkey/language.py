"""The language side: transformers' Qwen2 with what Qwen-7B has besides.

Three differences (Qwen-VL, arXiv 2308.12966): rotary positions are applied in fp32; past `seq_length`, in evaluation
only, the rotary base grows (dynamic NTK) and queries are scaled by log(position) / log(seq_length) (log-n). The
24 GB variant of Monkey adds low-rank adapters to four linears.

Shape letters: B batch, T tokens, D width, H heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    Qwen2DecoderLayer,
    Qwen2MLP,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
    eager_attention_forward,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from monkey.attention import RUNS, Layout, Runs, packed_runs
from monkey.devices import widest_float
from monkey.kv_cache import KVCache, Prefill, grow_in_place
from monkey.part_configs import MonkeyTextConfig

LOSS_LOGITS = 256 * 151_936
"""Logits of supervised positions that exist at once, 148 MiB in fp32: 256 positions at the published vocabulary."""


def loss_rows(vocab_size: int) -> int:
    """Supervised positions whose logits exist at once. A small vocabulary has many: a GPU waits on short chunks."""
    return max(1, LOSS_LOGITS // vocab_size)


def find_ntk_alpha(length: int, config: MonkeyTextConfig) -> float:
    """Return the growth of the rotary base in evaluation, for a prompt of `length` tokens (Qwen's dynamic NTK).

    Decoders of other families have none.
    """
    if not getattr(config, "use_dynamic_ntk", False):
        return 1.0
    return max(2 ** math.ceil(math.log(length / config.seq_length, 2) + 1) - 1, 1)


def rotary_tables(
    config: MonkeyTextConfig, position_ids: torch.Tensor, alphas: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine [B, 1, T, d] in fp32 of `position_ids` [B, T]; the sine as `rotate` takes it.

    Args:
        alphas: growth of the rotary base, one for all tokens or one for each of the T.
    """
    width, base = config.head_dim, config.rope_parameters["rope_theta"]
    exponents = torch.arange(0, width, 2, device=position_ids.device).float() / width
    distinct = list(dict.fromkeys(alphas))
    tables = [1.0 / (base * alpha ** (width / (width - 2))) ** exponents for alpha in distinct]
    frequencies = tables[0]
    if len(distinct) > 1:
        frequencies = torch.stack(tables)[[distinct.index(alpha) for alpha in alphas]]
    angles = position_ids[:, None, :, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def logn_factors(config: MonkeyTextConfig, positions: torch.Tensor, end: int | torch.Tensor) -> torch.Tensor | None:
    """Log-n factors [B, 1, T, 1] of the queries at `positions` [B, T], in evaluation; None where all are 1.

    Args:
        end: one past the last position; a tensor where asking would make a device wait.
    """
    if not config.use_logn_attn or (isinstance(end, int) and end <= config.seq_length):
        return None
    counted = (positions + 1).clamp(min=config.seq_length).to(widest_float(positions.device))
    return (counted.log() / math.log(config.seq_length)).float()[:, None, :, None]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate [B, H, T, d] by its positions, in fp32 whatever the type of `x`.

    The halves of a head are each other's partner, with the sign in the sine of the first: rounded as ever, with fewer
    operations, for each of which a GPU waits.
    """
    full = x.float()
    return (full * cos + full.roll(x.shape[-1] // 2, dims=-1) * sin).type_as(x)


class RMSNorm(Qwen2RMSNorm):
    """Qwen2's norm in two operations, rounded where Qwen2 rounds: before the weight."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.weight * F.rms_norm(hidden_states, self.weight.shape, eps=self.variance_epsilon)


class LanguageHead(nn.Linear):
    """Hidden states to logits, or straight to a loss without ever holding the logits of every position.

    Attributes:
        logit_scale, logit_cap: what some families multiply their logits by, and then let none go beyond, softly.
    """

    logit_scale: float = 1.0
    logit_cap: float | None = None

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [..., vocabulary] of `hidden` [..., D]; with `targets` [N] of `hidden` [N, D], their summed loss.

        `weights` [N] weigh the targets within that sum, otherwise each counts once.

        The loss is the cross-entropy in fp32, of `loss_rows` positions at a time; several such chunks are computed
        again for their gradients instead of being kept. It is one call of this module for any N: where parameters
        are sharded, each process gathers them once.
        """
        if targets is None:
            return self._logits(hidden)
        rows = loss_rows(self.out_features)
        given = [tensor for tensor in (hidden, targets, weights) if tensor is not None]
        chunks = list(zip(*(tensor.split(rows) for tensor in given), strict=True))
        if len(chunks) == 1 or not torch.is_grad_enabled():
            losses = [self._summed_loss(*chunk) for chunk in chunks]
        else:
            losses = [checkpoint(self._summed_loss, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(losses).sum()

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = F.linear(hidden, self.weight, self.bias)
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_cap is not None:
            logits = self.logit_cap * torch.tanh(logits / self.logit_cap)
        return logits

    def _summed_loss(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = self._logits(hidden).float()
        if weights is None:
            return F.cross_entropy(logits, targets, reduction="sum")
        return F.cross_entropy(logits, targets, reduction="none") @ weights


class LowRankAdapter(nn.Module):
    """`scale · up(down(dropout(x)))`, the decoder adapter of the published 24 GB variant."""

    def __init__(self, in_features: int, out_features: int, rank: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(F.dropout(x, self.dropout, self.training), self.down), self.up) * self.scale

    def reset_parameters(self) -> None:
        """Kaiming-uniform `down`, zero `up`, unit scale: a new adapter changes nothing."""
        bound = 1 / math.sqrt(self.down.shape[-1])
        init.uniform_(self.down, -bound, bound)
        init.zeros_(self.up)
        init.ones_(self.scale)


def _adapter(config: MonkeyTextConfig, in_features: int, out_features: int) -> LowRankAdapter | None:
    if not config.adapter_rank:
        return None
    return LowRankAdapter(in_features, out_features, config.adapter_rank, config.adapter_dropout)


class MonkeyAttention(Qwen2Attention):
    """Qwen2's attention with fp32 rotary positions, log-n scaled queries and optional adapters."""

    def __init__(self, config: MonkeyTextConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        widths = [linear.out_features for linear in (self.q_proj, self.k_proj, self.v_proj)]
        self.qkv_adapter = _adapter(config, config.hidden_size, sum(widths))
        self.o_adapter = _adapter(config, widths[0], config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        projections = [linear(hidden_states) for linear in (self.q_proj, self.k_proj, self.v_proj)]
        if self.qkv_adapter is not None:
            deltas = self.qkv_adapter(hidden_states).split([x.shape[-1] for x in projections], dim=-1)
            projections = [x + delta for x, delta in zip(projections, deltas, strict=True)]
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in projections)

        cos, sin, query_scale = position_embeddings
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if query_scale is not None:
            query = query * query_scale.to(query.dtype)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        dropout = self.attention_dropout if self.training else 0.0
        implementation = self.config._attn_implementation if kwargs.get("runs") is None else RUNS
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        attended = attended.flatten(2)
        output = self.o_proj(attended)
        if self.o_adapter is not None:
            output = output + self.o_adapter(attended)
        return output, weights


class MonkeyMLP(Qwen2MLP):
    def __init__(self, config: MonkeyTextConfig):
        super().__init__(config)
        self.gate_adapter = _adapter(config, config.hidden_size, config.intermediate_size)
        self.up_adapter = _adapter(config, config.hidden_size, config.intermediate_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.gate_adapter is not None:
            gate, up = gate + self.gate_adapter(x), up + self.up_adapter(x)
        return self.down_proj(self.act_fn(gate) * up)


class MonkeyDecoderLayer(Qwen2DecoderLayer):
    def __init__(self, config: MonkeyTextConfig, layer_idx: int):
        # Not Qwen2DecoderLayer's own: it would allocate an attention and an MLP only to throw them away.
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = MonkeyAttention(config, layer_idx)
        self.mlp = MonkeyMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class MonkeyTextModel(Qwen2PreTrainedModel):
    """Embeddings, decoder layers and the final norm; the head belongs to the whole model."""

    config: MonkeyTextConfig
    config_class = MonkeyTextConfig
    _no_split_modules = ["MonkeyDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": MonkeyDecoderLayer, "attentions": MonkeyAttention}  # noqa: RUF012

    def __init__(self, config: MonkeyTextConfig):
        super().__init__(config)
        # No padding_idx: the padding token is also end-of-text, whose embedding trains.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([MonkeyDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LowRankAdapter):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        segments: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Last hidden states [B, T, D] of `input_ids` [B, T] or `inputs_embeds` [B, T, D].

        With `segments` [R, 4], B is 1 and the row is packed (`monkey.attention`); `position_ids` say where each token
        stands in its own sample.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None and segments is None:
            past_key_values = DynamicCache(config=self.config)
        grow_in_place(past_key_values)
        length = inputs_embeds.shape[1]
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        slots = (torch.arange(length, device=inputs_embeds.device) + past)[None]
        if position_ids is None:
            position_ids = slots
        mask, alpha, factors = None, 1.0, None
        if segments is not None:
            # No sample of a packed row is longer than what NTK and log-n begin at, whatever the row's own length.
            kwargs["runs"] = self._runs(segments, inputs_embeds, attention_mask, past_key_values)
        else:
            mask = self._causal_mask(inputs_embeds, attention_mask, past_key_values, position_ids)
            if not self.training:
                alpha = self._ntk_alpha(length, past_key_values)
                factors = logn_factors(self.config, slots, past + length)
        hidden_states = self.run_layers(
            inputs_embeds,
            position_ids,
            (*rotary_tables(self.config, position_ids, [alpha]), factors),
            attention_mask=mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def read_prompts(
        self, hidden: torch.Tensor, position_ids: torch.Tensor, alphas: Sequence[float], prompts: Prefill
    ) -> torch.Tensor:
        """Return the last hidden states [n, D], normalised, of the n prompts that end in a pass; evaluation only.

        Args:
            hidden: [1, T, D], embedded tokens and image features.
            position_ids: [1, T] on the CPU, of each token in its own prompt.
            alphas: growth of the rotary base of each token, from `find_ntk_alpha`.
            prompts: the layout, whose blocks get their keys and values.
        """
        embedded = self.embed_positions(position_ids, alphas)
        return self.norm(self.run_prefill(hidden, position_ids, embedded, prompts)[0])

    def write_tokens(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        alphas: Sequence[float],
        rows: KVCache,
        run_layers: Callable[..., torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the hidden states [N, D], normalised, of one more token of each of N rows; evaluation only.

        Args:
            hidden, position_ids, alphas: as of `read_prompts`, with T = N.
            rows: the layout, which was prepared for this step.
            run_layers: `run_layers`, compiled.
        """
        embedded = self.embed_positions(position_ids, alphas)
        return self.norm(
            (run_layers or self.run_layers)(hidden, position_ids.to(hidden.device), embedded, runs=rows)[0]
        )

    def watch(
        self, hidden: torch.Tensor, position_ids: torch.Tensor, alphas: Sequence[float], layout: Layout, layers: int
    ) -> None:
        """Let tokens pass through the first `layers` layers, for a layout that looks at them; as `read_prompts`."""
        self.run_layers(hidden, position_ids, self.embed_positions(position_ids, alphas), layers, runs=layout)

    def embed_positions(
        self, position_ids: torch.Tensor, alphas: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return rotary tables and log-n factors of tokens in evaluation, by their places in their own prompts.

        Args:
            position_ids: [B, T] on the CPU; padding is not counted.
            alphas: as of `rotary_tables`.
        """
        placed = position_ids.to(self.embed_tokens.weight.device)
        factors = logn_factors(self.config, placed, int(position_ids.max()) + 1)
        return (*rotary_tables(self.config, placed, alphas), factors)

    def run_layers(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        count: int | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Return hidden states [B, T, D] after the first `count` layers, all by default, and before the last norm.

        `kwargs` go to every layer, `runs` among them.
        """
        kwargs = {"attention_mask": None, "past_key_values": None, "use_cache": False, **kwargs}
        for layer in self.layers[:count]:
            hidden_states = layer(
                hidden_states, position_embeddings=position_embeddings, position_ids=position_ids, **kwargs
            )
        return hidden_states

    def run_prefill(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        runs: Prefill,
    ) -> torch.Tensor:
        """Return the last hidden states [1, n, D] of the n prompts that end in this pass.

        Of all other tokens only keys and values are wanted, so the last layer computes nothing else of them.
        """
        hidden_states = self.run_layers(hidden_states, position_ids, position_embeddings, -1, runs=runs)
        last = self.layers[-1]
        attended, _ = last.self_attn(
            last.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=None,
            runs=runs.of_last_tokens(),
        )
        if not runs.last_tokens:
            return hidden_states[:, :0]
        hidden_states = hidden_states[:, runs.last_tokens].to(attended.device) + attended
        return hidden_states + last.mlp(last.post_attention_layernorm(hidden_states))

    def _causal_mask(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | dict | None,
        cache: Cache | None,
        position_ids: torch.Tensor,
    ) -> torch.Tensor | None:
        # `generate` prepares the masks of a static cache itself, one per kind of layer; ours are all of one kind.
        if isinstance(attention_mask, dict):
            return attention_mask["full_attention"]
        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=position_ids,
        )

    def _runs(
        self,
        segments: torch.Tensor,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
    ) -> Runs:
        runs = packed_runs(segments, inputs_embeds, attention_mask, cache)
        if not self.training and runs.longest > self.config.seq_length:
            raise ValueError(
                f"segments hold a sample of {runs.longest} tokens; in evaluation the decoder treats those beyond "
                f"seq_length={self.config.seq_length} by their own length, so give it in a row of its own"
            )
        return runs

    def _ntk_alpha(self, length: int, cache: Cache | None) -> float:
        """Return the growth of the rotary base: from the prefill's length, then fixed as long as its cache lives."""
        if cache is None:
            return find_ntk_alpha(length, self.config)
        # The cache carries its own prefill's figure: two generations on one model must not share it.
        fresh = not hasattr(cache, "ntk_alpha") or (
            not torch.compiler.is_compiling() and int(cache.get_seq_length()) == 0
        )
        if fresh:
            cache.ntk_alpha = find_ntk_alpha(length, self.config)
        return cache.ntk_alpha
