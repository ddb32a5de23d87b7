"""The phases of a training step, and what each holds on a GPU beside weights, gradients and optimiser states.

What autograd keeps is counted by `monkey.training.activation_bytes`; added here are the tensors that only a phase has:
logits and their copies, a layer that checkpointing computes again, gradients on their way, buckets.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from monkey.configuration import MonkeyConfig
from monkey.language import loss_rows
from monkey.training import activation_bytes as saved
from monkey.training.activation_bytes import FP32
from monkey.training.memory_settings import PartSizes, PlanSettings, StepSize

Phase = dict[str, int]
"""Line -> bytes, of what only one phase of a step holds."""

_GROUPS = {
    "vision": ("vision transformer", "window adapters"),
    "resampler": ("resampler", "position table", "vision projection"),
    "decoder": ("decoder", "decoder adapters"),
}
"""Parts whose gradients are made in the same phase of a step."""


def step_phases(
    config: MonkeyConfig, settings: PlanSettings, sizes: PartSizes, step: StepSize
) -> tuple[dict[str, int], dict[str, Phase]]:
    """What autograd keeps by part, and what each phase of a step holds beside the static lines."""
    trains, elements = settings.trains, settings.elements
    vision, text = config.vision_config, config.text_config
    compute, images = elements.compute, step.images
    built_in = text.adapter_rank
    rank = built_in or (settings.lora_rank if settings.decoder_lora else 0)
    dropout = text.adapter_dropout if built_in else settings.lora_dropout
    adapters = saved.DecoderAdapters(rank, dropout, bool(built_in))

    def kept(layer: Any, count: int, checkpointed: bool, layer_input: int) -> tuple[int, int]:
        """Bytes until the part's own backward pass, and during it."""
        first, other = (sum(layer(first=value).values()) for value in (True, False))
        if not checkpointed or not other:
            return first + (count - 1) * other, 0
        return count * layer_input, other

    def total(rows: saved.Rows) -> int:
        return sum(rows.values())

    vision_kept, vision_again = kept(
        partial(saved.vision_layer, config, trains, images, elements),
        vision.num_hidden_layers,
        settings.vision_checkpointing,
        saved.vision_layer_input(config, trains, images, elements),
    )
    vision_kept += total(saved.vision_embedding(config, trains, images, elements))
    resampler = total(saved.resampler(config, trains, images, elements))
    decoder_kept, decoder_again = kept(
        partial(saved.decoder_layer, config, trains, step.batch, elements, adapters),
        text.num_hidden_layers,
        settings.decoder_checkpointing,
        saved.decoder_layer_input(config, step.batch, elements),
    )
    decoder_kept += total(saved.decoder_shared(config, trains, step.batch, elements))
    logits = total(saved.head(config, trains, step.supervised, elements))

    height, width = config.canvas_size
    # uint8 as it arrives, and the fp32 canvas it becomes.
    pixels = images * vision.num_channels * height * width * (1 + FP32)
    rows = min(step.supervised, loss_rows(text.vocab_size))
    chunked = step.supervised > rows
    # Forward: logits, their fp32 copy and the log-probabilities; backward: those, and two gradients like them.
    loss = rows * text.vocab_size * (3 if chunked else 2) * FP32
    patches = images * vision.patches_per_side**2
    graph_tokens = saved.graph_views(config, trains) * patches
    # Gradients that stand beside the saved tensors: of the MLP's two or three inner products and of the stream; of
    # RMSNorm's fp32 intermediates in the decoder; of keys and values in the resampler.
    vision_work = graph_tokens * (2 * vision.intermediate_size * compute + vision.hidden_size * elements.vision_stream)
    inner = max(3 * text.intermediate_size * compute, 5 * text.hidden_size * FP32)
    decoder_work = step.batch.tokens * (inner + text.hidden_size * elements.decoder_stream)
    resampler_work = config.num_views * patches * 2 * text.hidden_size * compute if resampler else 0
    if settings.four_bit:
        # The backward pass of a packed linear unpacks it.
        decoder_work += text.hidden_size * max(text.intermediate_size, text.hidden_size) * compute
    casts = _cached_copies(settings, sizes, chunked) * elements.autocast_weights
    gradients = partial(_gradient_buffers, settings, sizes, chunked)
    whole = {
        "activations: vision": vision_kept,
        "activations: resampler": resampler,
        "activations: decoder": decoder_kept,
        "activations: logits and loss": logits,
        "pixels": pixels,
    }
    below = {name: whole[name] for name in ("activations: vision", "activations: resampler", "pixels")}
    phases: dict[str, Phase] = {
        "loss": {**whole, "activations: logits and loss": logits + loss, "autocast's copies of weights": casts},
        "decoder's backward": {
            **{name: count for name, count in whole.items() if name != "activations: logits and loss"},
            "one layer computed again": decoder_again,
            "backward in flight": decoder_work,
            **gradients("decoder"),
        },
        "resampler's backward": {**below, "backward in flight": resampler_work, **gradients("resampler")},
        "vision's backward": {
            "activations: vision": vision_kept,
            "one layer computed again": vision_again,
            "backward in flight": vision_work,
            "pixels": pixels,
            **gradients("vision"),
        },
        "optimiser's step": {"fp32 gradients of the step": _step_bytes(settings, sizes)},
    }
    if chunked or "decoder" in trains:
        phases["loss"] |= gradients("decoder")
    if settings.evaluation_batch:
        phases["evaluation"] = _evaluation(config, settings, compute)
    by_part = {"vision": vision_kept, "resampler": resampler, "decoder": decoder_kept, "logits": logits}
    return by_part, phases


def _cached_copies(settings: PlanSettings, sizes: PartSizes, chunked: bool) -> int:
    """Trained weights that autocast holds narrow copies of until the forward pass ends, where nothing else keeps them.

    Layers that are not computed again keep their own, and so do the resampler and a head of one chunk.
    """
    again = {"vision": settings.vision_checkpointing, "decoder": settings.decoder_checkpointing}
    parts = [part for group, yes in again.items() if yes for part in _GROUPS[group] if part in settings.trains]
    copied = sum(sizes.matrices.get(part, 0) for part in parts)
    if "decoder" in parts:
        # The embeddings are looked up; the head is as large as they are.
        copied -= sizes.embedding * (1 if chunked else 2)
    return copied


def _gradient_buffers(settings: PlanSettings, sizes: PartSizes, chunked: bool, *groups: str) -> Phase:
    """What gradients of these groups of parts pass through before they are reduced."""
    stage, width = settings.zero_stage, settings.trained_bytes
    trained = [part for group in groups for part in _GROUPS[group] if part in settings.trains and sizes.parts.get(part)]
    largest = max((sizes.largest[part] for part in trained), default=0)
    # A gradient exists whole before it is added to those there or reduced, and the loss's chunks each make the head's.
    copies = 2 if "decoder" in trained and chunked else 1
    buckets = 0
    if stage and sizes.trained(settings.trains):
        buckets = settings.zero.reduce_bucket * width * (2 if settings.zero.overlap and stage < 3 else 1)
    return {"largest gradient, on its own": largest * width * copies, "ZeRO's reduction buckets": buckets}


def _step_bytes(settings: PlanSettings, sizes: PartSizes) -> int:
    """Widened gradients of the optimiser's step: stages 1 and 2 flatten their part and widen it, 3 by sub-groups."""
    if not settings.zero_stage or settings.offload != "none":
        return 0
    part = sizes.trained(settings.trains) // settings.sharded
    if settings.zero_stage == 3:
        return min(part, settings.zero.sub_group) * FP32
    return part * (settings.trained_bytes + FP32)


def _evaluation(config: MonkeyConfig, settings: PlanSettings, compute: int) -> Phase:
    """Generating in the loop: the cache, one vision layer's tensors, last-position logits."""
    text, vision, batch = config.text_config, config.vision_config, settings.evaluation_batch
    tokens = batch * (settings.evaluation_tokens or config.image_tokens + 2 + settings.text_tokens)
    heads = text.num_key_value_heads * text.head_dim
    patches = batch * config.num_views * vision.patches_per_side**2
    return {
        "KV cache": 2 * text.num_hidden_layers * heads * tokens * compute,
        "vision layer": patches * (2 * vision.intermediate_size + 3 * vision.hidden_size) * compute,
        "decoder layer": tokens * (3 * text.intermediate_size * compute + 2 * text.hidden_size * FP32),
        "logits": batch * text.vocab_size * (compute + FP32),
    }
