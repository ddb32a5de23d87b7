"""The language side: transformers' Qwen2 with what Qwen-7B has besides.

Three differences (Qwen-VL, arXiv 2308.12966): rotary positions are applied in fp32; past `seq_length`, in evaluation
only, the rotary base grows (dynamic NTK) and queries are scaled by log(position) / log(seq_length) (log-n). The
24 GB variant of Monkey adds low-rank adapters to four linears.

Shape letters: B batch, T tokens, D width, H heads, d head width.
"""

from __future__ import annotations

import math

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
    rotate_half,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from monkey.cache import grow_in_place
from monkey.configuration import MonkeyTextConfig
from monkey.packed_attention import PackedAttention, checked_runs

LOSS_LOGITS = 256 * 151_936
"""Logits of supervised positions that exist at once, 148 MiB in fp32: 256 positions at the published vocabulary."""


def loss_rows(vocab_size: int) -> int:
    """Supervised positions whose logits exist at once. A small vocabulary has many: a GPU waits on short chunks."""
    return max(1, LOSS_LOGITS // vocab_size)


def ntk_alpha(length: int, seq_length: int) -> float:
    """Growth of the rotary base for a prompt of `length` tokens, padding counted (Qwen's dynamic NTK)."""
    return max(2 ** math.ceil(math.log(length / seq_length, 2) + 1) - 1, 1)


def rotary_tables(
    position_ids: torch.Tensor, head_dim: int, base: float, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [B, 1, T, d] in fp32 of `position_ids` [B, T], for the base grown by `alpha`."""
    grown = base * alpha ** (head_dim / (head_dim - 2))
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device).float() / head_dim
    angles = position_ids[:, None, :, None].float() * (1.0 / grown**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate [B, H, T, d] by its positions, in fp32 whatever the type of `x`."""
    full = x.float()
    return (full * cos + rotate_half(full) * sin).type_as(x)


def project(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`linear(x)`, with every thread of a CPU at work where `x` is a single row.

    Decoding one token is reading the weights, and the CPU's matrix-vector product reads them with one thread. As a
    batch of products, one a thread, it read them 1.5 to 1.8 times as fast on two cores; rounding aside the same.
    A function and not a class of linear: quantisers replace linears by their exact type. A linear that somebody hooked
    into is called: ZeRO-3 gathers its weights, and accelerate fetches them, only then, in every process the same.
    """
    if torch.compiler.is_compiling():
        return linear(x)
    threads = torch.get_num_threads()
    is_row = x.shape[-1] == x.numel() and x.device.type == "cpu" and x.dtype == torch.float32
    if (
        not is_row
        or type(linear) not in (nn.Linear, LanguageHead)
        or _is_hooked(linear)
        or torch.is_grad_enabled()
        or linear.out_features % threads
        or linear.weight.dtype != x.dtype
    ):
        return linear(x)
    slices = linear.weight.view(threads, -1, linear.in_features).transpose(1, 2)
    product = torch.bmm(x.reshape(1, 1, -1).expand(threads, -1, -1), slices).view(*x.shape[:-1], -1)
    return product if linear.bias is None else product + linear.bias


def _is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says."""
    return bool(module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module))


class LanguageHead(nn.Linear):
    """Hidden states to logits, or straight to a loss without ever holding the logits of every position."""

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
            return super().forward(hidden)
        rows = loss_rows(self.out_features)
        given = [tensor for tensor in (hidden, targets, weights) if tensor is not None]
        chunks = list(zip(*(tensor.split(rows) for tensor in given), strict=True))
        if len(chunks) == 1 or not torch.is_grad_enabled():
            losses = [self._summed_loss(*chunk) for chunk in chunks]
        else:
            losses = [checkpoint(self._summed_loss, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(losses).sum()

    def _summed_loss(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = F.linear(hidden, self.weight, self.bias).float()
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
        packed_attention: PackedAttention | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        projections = [project(linear, hidden_states) for linear in (self.q_proj, self.k_proj, self.v_proj)]
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
        if packed_attention is not None:
            attended, weights = packed_attention(query, key, value, self.scaling, dropout), None
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            attended, weights = attend(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
        attended = attended.flatten(2)
        output = project(self.o_proj, attended)
        if self.o_adapter is not None:
            output = output + self.o_adapter(attended)
        return output, weights


class MonkeyMLP(Qwen2MLP):
    def __init__(self, config: MonkeyTextConfig):
        super().__init__(config)
        self.gate_adapter = _adapter(config, config.hidden_size, config.intermediate_size)
        self.up_adapter = _adapter(config, config.hidden_size, config.intermediate_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = project(self.gate_proj, x), project(self.up_proj, x)
        if self.gate_adapter is not None:
            gate, up = gate + self.gate_adapter(x), up + self.up_adapter(x)
        return project(self.down_proj, self.act_fn(gate) * up)


class MonkeyDecoderLayer(Qwen2DecoderLayer):
    def __init__(self, config: MonkeyTextConfig, layer_idx: int):
        # Not Qwen2DecoderLayer's own: it would allocate an attention and an MLP only to throw them away.
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = MonkeyAttention(config, layer_idx)
        self.mlp = MonkeyMLP(config)
        self.input_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


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
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
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

        With `segments` [R, 4], B is 1 and the row is packed (`monkey.packed_attention`); `position_ids` say where each
        token stands in its own sample.
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
        slots = torch.arange(length, device=inputs_embeds.device) + past
        if position_ids is None:
            position_ids = slots[None]
        packed = None
        if segments is not None:
            packed = self._packed_attention(segments, inputs_embeds, attention_mask, past_key_values)
            mask = None
        # `generate` prepares the masks of a static cache itself, one a kind of layer; all our layers are of one kind.
        elif isinstance(attention_mask, dict):
            mask = attention_mask["full_attention"]
        else:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        # No sample of a packed row is longer than what NTK and log-n begin at, whatever the row's own length.
        alpha = self._rotary_alpha(length, past_key_values) if packed is None else 1.0
        query_scale = self._query_scale(slots, past, length) if packed is None else None
        cos, sin = rotary_tables(position_ids, self.config.head_dim, self.config.rope_parameters["rope_theta"], alpha)
        position_embeddings = (cos, sin, query_scale)

        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                packed_attention=packed,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def _packed_attention(
        self,
        segments: torch.Tensor,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
    ) -> PackedAttention:
        if cache is not None or attention_mask is not None or inputs_embeds.shape[0] != 1:
            others = ["an attention_mask"] * (attention_mask is not None) + ["a cache"] * (cache is not None)
            raise ValueError(
                "segments pack one row without padding or cache, but "
                f"{' and '.join([f'the batch has {inputs_embeds.shape[0]} rows', *others])}"
            )
        packed = PackedAttention(checked_runs(segments, inputs_embeds.shape[1]), inputs_embeds.device)
        if not self.training and packed.longest > self.config.seq_length:
            raise ValueError(
                f"segments hold a sample of {packed.longest} tokens; in evaluation the decoder treats those beyond "
                f"seq_length={self.config.seq_length} by their own length, so give it in a row of its own"
            )
        return packed

    def _rotary_alpha(self, length: int, cache: Cache | None) -> float:
        """Dynamic-NTK growth: from the length of the prefill, then fixed for as long as its cache lives."""
        if self.training or not self.config.use_dynamic_ntk:
            return 1.0
        if cache is None:
            return ntk_alpha(length, self.config.seq_length)
        # The cache carries its own prefill's figure: two generations on one model must not share it.
        fresh = not hasattr(cache, "rotary_alpha") or (
            not torch.compiler.is_compiling() and int(cache.get_seq_length()) == 0
        )
        if fresh:
            cache.rotary_alpha = ntk_alpha(length, self.config.seq_length)
        return cache.rotary_alpha

    def _query_scale(self, slots: torch.Tensor, past: int | torch.Tensor, length: int) -> torch.Tensor | None:
        """Log-n factors [T, 1] of the queries at `slots` (0-based, padding counted), or None where all are 1."""
        if self.training or not self.config.use_logn_attn:
            return None
        seq_length = self.config.seq_length
        if isinstance(past, int) and past + length <= seq_length:
            return None
        positions = (slots + 1).clamp(min=seq_length).double()
        return (positions.log() / math.log(seq_length)).float()[:, None]
