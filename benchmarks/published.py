"""A baseline that executes as the published code does, on published names, for benchmarks and parity tests.

One window after another through the vision transformer; attention matrices materialised; each adapter product a
separate operation; keys and values concatenated at every step; logits for every position kept; everything padded is
computed. Written from the description of what the published weights compute; it shares no code with `monkey`, so
equal outputs of the two are evidence.

Shapes: B batch, T tokens, N patches, H heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from monkey.configuration import MonkeyConfig


class PublishedMonkey:
    """The published computation over a dictionary of published tensors."""

    def __init__(self, tensors: dict[str, torch.Tensor], config: MonkeyConfig):
        self.tensors = tensors
        self.config = config
        self.alpha = 1.0

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        output = x @ self.tensors[f"{name}.weight"].t()
        bias = self.tensors.get(f"{name}.bias")
        return output if bias is None else output + bias

    def adapter(self, x: torch.Tensor, name: str) -> torch.Tensor:
        low = x @ self.tensors[f"{name}.lora_a.weight"].t()
        return (low @ self.tensors[f"{name}.lora_b.weight"].t()) * self.tensors[f"{name}.lora_scale"]

    def layer_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps=1e-6)

    # Vision

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[I, 3, H, W] → [I, V·256, D], window after window."""
        config, size = self.config, self.config.window_size
        rows, columns = config.grid
        parts = []
        for row in range(rows):
            for column in range(columns):
                window = pixel_values[:, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
                parts.append(self.encode_view(window, row * columns + column if config.num_adapters else None))
        if config.global_view:
            parts.append(self.encode_view(F.interpolate(pixel_values, size=(size, size), mode="bicubic"), None))
        return torch.cat(parts, dim=1)

    def encode_view(self, pixels: torch.Tensor, window: int | None) -> torch.Tensor:
        """One view of every image, [I, 3, s, s], with the adapters of one window or none."""
        prefix = "transformer.visual"
        weight = self.tensors[f"{prefix}.conv1.weight"]
        x = F.conv2d(pixels.to(weight.dtype), weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
        x = x + _grown(self.tensors[f"{prefix}.positional_embedding"], x.shape[1])
        x = self.layer_norm(x, f"{prefix}.ln_pre").transpose(0, 1)  # the published blocks run sequence first
        for index in range(self.config.vision_config.num_hidden_layers):
            x = self.vision_block(x, f"{prefix}.transformer.resblocks.{index}", window)
        x = self.resample(x.transpose(0, 1), f"{prefix}.attn_pool")
        return self.layer_norm(x, f"{prefix}.ln_post") @ self.tensors[f"{prefix}.proj"]

    def vision_block(self, x: torch.Tensor, name: str, window: int | None) -> torch.Tensor:
        length, batch, width = x.shape
        heads = self.config.vision_config.num_attention_heads
        normed = self.layer_norm(x, f"{name}.ln_1")
        mixed = self.linear(normed, f"{name}.attn.in_proj")
        if window is not None:
            mixed = mixed + self.adapter(normed, f"{name}.attn.in_proj_lora.{window}")
        query, key, value = mixed.view(length, batch, heads, 3 * (width // heads)).split(width // heads, dim=-1)
        query, key, value = (
            part.reshape(length, batch * heads, width // heads).transpose(0, 1) for part in (query, key, value)
        )
        scores = torch.bmm(query / math.sqrt(width // heads), key.transpose(1, 2)).softmax(dim=-1)
        context = torch.bmm(scores, value).view(batch, heads, length, width // heads)
        context = context.permute(2, 0, 1, 3).reshape(length, batch, width)
        output = self.linear(context, f"{name}.attn.out_proj")
        if window is not None:
            output = output + self.adapter(context, f"{name}.attn.out_proj_lora.{window}")
        x = x + output
        hidden = F.gelu(self.linear(self.layer_norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc"))
        output = x + self.linear(hidden, f"{name}.mlp.c_proj")
        return output if window is None else output + self.adapter(x, f"{name}.mlp_lora.{window}")

    def resample(self, x: torch.Tensor, name: str) -> torch.Tensor:
        positions = self.tensors[f"{name}.pos_embed"]
        if f"{name}.kv_proj.weight" in self.tensors:
            x = self.linear(x, f"{name}.kv_proj")
        value = self.layer_norm(x, f"{name}.ln_kv").transpose(0, 1)
        key = value + _grown(positions, value.shape[0])[:, None]
        query = self.layer_norm(self.tensors[f"{name}.query"], f"{name}.ln_q") + positions
        query = query[:, None].repeat(1, value.shape[1], 1)
        output, _ = F.multi_head_attention_forward(
            query,
            key,
            value,
            query.shape[-1],
            self.config.resampler_heads,
            self.tensors[f"{name}.attn.in_proj_weight"],
            self.tensors[f"{name}.attn.in_proj_bias"],
            None,
            None,
            False,
            0.0,
            self.tensors[f"{name}.attn.out_proj.weight"],
            self.tensors[f"{name}.attn.out_proj.bias"],
        )
        return output.transpose(0, 1)

    # Decoder

    def embed(self, input_ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings with each image span's slots overwritten, in order."""
        hidden = self.tensors["transformer.wte.weight"][input_ids].clone()
        if features is not None:
            starts = (input_ids == self.config.image_start_id).nonzero().tolist()
            ends = (input_ids == self.config.image_end_id).nonzero().tolist()
            for image, ((row, start), (_, end)) in enumerate(zip(starts, ends, strict=True)):
                hidden[row, start + 1 : end] = features[image].to(hidden.dtype)
        return hidden

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        features: torch.Tensor | None = None,
        cache: list | None = None,
        training: bool = False,
    ) -> torch.Tensor:
        """Logits [B, T, vocabulary] of every position; `cache` is extended in place, one (key, value) a layer."""
        text = self.config.text_config
        hidden = self.embed(input_ids, features)
        past = cache[0][0].shape[1] if cache else 0
        length, total = input_ids.shape[1], past + input_ids.shape[1]
        if past == 0:
            self.alpha = 1.0
            if text.use_dynamic_ntk and not training:
                self.alpha = max(2 ** math.ceil(math.log(total / text.seq_length, 2) + 1) - 1, 1)
        cos, sin = self.rotary(total, hidden.device)
        minimum = torch.finfo(hidden.dtype).min
        causal = torch.full((length, total), minimum, dtype=hidden.dtype, device=hidden.device).triu(past + 1)
        mask = causal + ((1 - attention_mask[:, None, None, :total]) * minimum).to(hidden.dtype)
        mask = mask.clamp(min=minimum)
        for index in range(text.num_hidden_layers):
            hidden = self.decoder_block(hidden, index, (cos, sin), mask, cache, training)
        return self.linear(self.rms_norm(hidden, "transformer.ln_f"), "lm_head")

    def rotary(self, total: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        text = self.config.text_config
        base = text.rope_parameters["rope_theta"] * self.alpha ** (text.head_dim / (text.head_dim - 2))
        inverse = 1.0 / (base ** (torch.arange(0, text.head_dim, 2, device=device).float() / text.head_dim))
        angles = torch.outer(torch.arange(total, device=device).float(), inverse)
        angles = torch.cat([angles, angles], dim=-1)[None, :, None]
        return angles.cos(), angles.sin()

    def decoder_block(self, hidden, index, rotary, mask, cache, training):
        text = self.config.text_config
        name = f"transformer.h.{index}"
        adapted = f"{name}.attn.c_attn_lora.lora_scale" in self.tensors
        normed = self.rms_norm(hidden, f"{name}.ln_1")
        mixed = self.linear(normed, f"{name}.attn.c_attn")
        if adapted:
            mixed = mixed + self.adapter(normed, f"{name}.attn.c_attn_lora")
        batch, length = hidden.shape[:2]
        query, key, value = (
            part.view(batch, length, text.num_attention_heads, text.head_dim) for part in mixed.chunk(3, dim=-1)
        )
        cos, sin = (table[:, -length:] for table in rotary)
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        if cache is not None:
            if len(cache) > index:
                key = torch.cat([cache[index][0], key], dim=1)
                value = torch.cat([cache[index][1], value], dim=1)
                cache[index] = (key, value)
            else:
                cache.append((key, value))
        if text.use_logn_attn and not training:
            total = key.shape[1]
            factors = [
                math.log(position, text.seq_length) if position > text.seq_length else 1.0
                for position in range(total - length + 1, total + 1)
            ]
            query = query * torch.tensor(factors, device=query.device)[None, :, None, None].to(query.dtype)
        query, key, value = (part.permute(0, 2, 1, 3) for part in (query, key, value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(text.head_dim) + mask
        context = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, -1)
        output = self.linear(context, f"{name}.attn.c_proj")
        if adapted:
            output = output + self.adapter(context, f"{name}.attn.c_proj_lora")
        hidden = hidden + output
        normed = self.rms_norm(hidden, f"{name}.ln_2")
        up, gate = self.linear(normed, f"{name}.mlp.w1"), self.linear(normed, f"{name}.mlp.w2")
        if adapted:
            up = up + self.adapter(normed, f"{name}.mlp.w1_lora")
            gate = gate + self.adapter(normed, f"{name}.mlp.w2_lora")
        return hidden + self.linear(up * F.silu(gate), f"{name}.mlp.c_proj")

    def rms_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        full = x.float()
        normed = full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + self.config.text_config.rms_norm_eps)
        return normed.type_as(x) * self.tensors[f"{name}.weight"]

    # What a user calls

    def loss(self, input_ids, attention_mask, labels, pixel_values) -> torch.Tensor:
        """Mean cross-entropy of the supervised tokens, in training mode without dropout."""
        features = None if pixel_values is None else self.image_features(pixel_values)
        logits = self.logits(input_ids, attention_mask, features, training=True)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())

    @torch.no_grad()
    def generate(
        self, input_ids, attention_mask, pixel_values, max_new_tokens: int, each_token: Callable = lambda: None
    ) -> torch.Tensor:
        """Greedy continuation [B, T + max_new_tokens], exactly that long; `each_token` is called as it grows."""
        features = None if pixel_values is None else self.image_features(pixel_values)
        cache: list = []
        step = input_ids
        kept = []  # the published evaluator asks generate for every step's states, so they stay alive
        for _ in range(max_new_tokens):
            logits = self.logits(step, attention_mask, features, cache)
            kept.append(logits)
            features = None
            step = logits[:, -1].argmax(dim=-1, keepdim=True)
            input_ids = torch.cat([input_ids, step], dim=1)
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(step), 1)], dim=1)
            each_token()
        return input_ids


class PublishedTraining:
    """The published script's optimisation: the Trainer of transformers 4.32 without DeepSpeed, AdamW written out.

    A step's loss is the mean over its micro-batches of each one's mean over its supervised tokens, and gradients are
    clipped to a norm of 1. Biases and every LayerNorm, all of which are on the vision side, do not decay; the decoder's
    RMSNorms do, since that version spares no class but LayerNorm.

    Args:
        model: whose tensors that require gradients train.
        rate: learning rate, the same at every step.
    """

    def __init__(self, model: PublishedMonkey, rate: float, decay: float, betas: tuple[float, float] = (0.9, 0.95)):
        self.model, self.rate, self.decay, self.betas = model, rate, decay, betas
        self.trained = {name: tensor for name, tensor in model.tensors.items() if tensor.requires_grad}
        self.moments = {name: [torch.zeros_like(tensor)] * 2 for name, tensor in self.trained.items()}
        self.steps = 0

    @staticmethod
    def decays(name: str) -> bool:
        """Whether weight decay applies to the tensor of this published name."""
        is_layer_norm = name.startswith("transformer.visual.") and name.split(".")[-2].startswith("ln_")
        return "bias" not in name and not is_layer_norm

    def step(self, micro_batches: list[dict[str, torch.Tensor | None]]) -> tuple[float, float]:
        """Train on micro-batches of `PublishedMonkey.loss`'s arguments; return the loss and the gradients' norm."""
        losses = torch.stack([self.model.loss(**batch) for batch in micro_batches])
        loss = losses.mean()
        gradients = torch.autograd.grad(loss, list(self.trained.values()), allow_unused=True, materialize_grads=True)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        self.steps += 1
        with torch.no_grad():
            for (name, tensor), gradient in zip(self.trained.items(), gradients, strict=True):
                self._update(name, tensor, gradient * min(1.0, 1.0 / (norm.item() + 1e-6)))
        return loss.item(), norm.item()

    def _update(self, name: str, tensor: torch.Tensor, gradient: torch.Tensor) -> None:
        first, second = self.moments[name]
        first = self.betas[0] * first + (1 - self.betas[0]) * gradient
        second = self.betas[1] * second + (1 - self.betas[1]) * gradient**2
        self.moments[name] = [first, second]
        if self.decays(name):
            tensor.mul_(1 - self.rate * self.decay)
        mean = first / (1 - self.betas[0] ** self.steps)
        scale = (second / (1 - self.betas[1] ** self.steps)).sqrt() + 1e-8
        tensor.sub_(self.rate * mean / scale)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    full = x.float()
    first, second = full.chunk(2, dim=-1)
    return (full * cos + torch.cat([-second, first], dim=-1) * sin).type_as(x)


def _grown(positions: torch.Tensor, cells: int) -> torch.Tensor:
    old, new = math.isqrt(positions.shape[0]), math.isqrt(cells)
    if old == new:
        return positions
    grid = positions.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grown = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grown.permute(0, 2, 3, 1).flatten(0, 2).to(positions.dtype)
