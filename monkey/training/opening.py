"""The model that a run starts from: opened at the run's precision, with what trains, dropout and checkpointing set."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from monkey.language import LowRankAdapter, MonkeyAttention
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.training.arguments import Flags, TrainingArguments
from monkey.training.lora import add_decoder_lora
from monkey.training.overfit import without_dropout
from monkey.training.part_arguments import PartArguments
from monkey.training.quantised import keep_trained_in_float32, open_four_bit
from monkey.training.recipes import PartCount, apply_recipe, base_model
from monkey.vision import ResamplerAttention, WindowAdapter


def open_model(flags: Flags) -> tuple[nn.Module, list[PartCount]]:
    """The model with its recipe applied, wrapped in PEFT where the decoder gets adapters, and the count of each part.

    Precision: fp32 weights, for autocast to narrow. With `--bf16`, what is frozen is held in bf16, and what trains in
    fp32; with DeepSpeed all is bf16, since it keeps the fp32 copy of what trains itself.

    Raises:
        ValueError, FileNotFoundError: a checkpoint that is missing, does not fit, or is no start for this recipe.
    """
    recipe = flags.recipe
    model = open_base(flags)
    built_in = bool(model.config.text_config.adapter_rank)
    if built_in:
        _use_built_in_adapters(model, flags)
    elif recipe.decoder_lora:
        model = add_decoder_lora(model, flags.lora)
    elif flags.lora.lora_dropout and "lora_dropout" in flags.given:
        raise ValueError(
            f"--lora_dropout {flags.lora.lora_dropout:g} would have no effect: neither the recipe {recipe.name} nor "
            f"{flags.model.model_name_or_path} gives the decoder adapters; leave it out, or add --recipe lora-llm"
        )
    if recipe.trains == {"window adapters"} and not base_model(model).config.num_adapters:
        raise ValueError(
            f"--recipe {recipe.name}: {flags.model.model_name_or_path} has no window adapters; open it on a grid, for "
            "instance --grid 2,2, which adds them"
        )
    counts = apply_recipe(model, recipe)
    if flags.training.bf16 and not flags.training.deepspeed:
        narrow_frozen(model)
        keep_trained_in_float32(model)
    set_dropout(base_model(model), flags.parts)
    if flags.run.overfit:
        without_dropout(model)
    set_checkpointing(base_model(model), flags.parts, flags.training)
    return model, counts


def _use_built_in_adapters(model: MonkeyForConditionalGeneration, flags: Flags) -> None:
    """Set the dropout of adapters that the checkpoint was built with; ValueError for a size that they do not have."""
    text_config = model.config.text_config
    rank = text_config.adapter_rank
    for name in ("lora_r", "lora_alpha"):  # as many of both: the scale, which trains, starts as 1
        if name in flags.named and getattr(flags.lora, name) != rank:
            raise ValueError(
                f"--{name} {getattr(flags.lora, name)} would have no effect: {flags.model.model_name_or_path} has "
                f"decoder adapters built in, of rank {rank} and with scales that train; leave it out"
            )
    if "lora_dropout" in flags.named:
        text_config.adapter_dropout = flags.lora.lora_dropout
        for module in model.modules():
            if isinstance(module, LowRankAdapter):
                module.dropout = flags.lora.lora_dropout


def open_base(flags: Flags) -> MonkeyForConditionalGeneration:
    """The starting weights as they are, without adapters of this run."""
    training = flags.training
    if training.deepspeed:
        import deepspeed

        # ZeRO-3 shards the model while it opens; on CPUs the library sets this up only later.
        deepspeed.init_distributed()
    name, grid = flags.model.model_name_or_path, flags.model.grid_shape
    # A decoder that trains without DeepSpeed starts from the checkpoint's own bits; a frozen one fits in bf16.
    narrow = training.bf16 and (training.deepspeed or "decoder" not in flags.recipe.trains)
    dtype = torch.bfloat16 if narrow else torch.float32
    if flags.recipe.four_bit:
        model = open_four_bit(name, grid=grid, dtype=dtype)
    else:
        model = MonkeyForConditionalGeneration.from_pretrained(name, grid=grid, dtype=dtype)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"--model_name_or_path {name} is a PEFT adapter: continue its run with --resume_from_checkpoint, or start "
            "from the merged checkpoint beside it"
        )
    # Trainer would set these itself, and warn about it.
    text_config = model.config.text_config
    text_config.eos_token_id = text_config.pad_token_id = model.config.eod_id
    return model


def narrow_frozen(model: nn.Module) -> None:
    """Hold what does not train in bf16; 4-bit weights are no floats and stay."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(torch.bfloat16)


def set_dropout(model: MonkeyForConditionalGeneration, parts: PartArguments) -> None:
    """Set each part's dropout to what its flag says, in the modules and in the config."""
    vision, text = model.config.vision_config, model.config.text_config
    for kind, config, field, attribute, given in (
        (WindowAdapter, vision, "adapter_dropout", "dropout", parts.vision_adapter_dropout),
        (ResamplerAttention, vision, "resampler_dropout", "dropout", parts.resampler_dropout),
        (MonkeyAttention, text, "attention_dropout", "attention_dropout", parts.decoder_dropout),
    ):
        if given is None:
            continue
        setattr(config, field, given)
        for module in model.modules():
            if isinstance(module, kind):
                setattr(module, attribute, given)


def set_checkpointing(
    model: MonkeyForConditionalGeneration, parts: PartArguments, training: TrainingArguments
) -> tuple[bool, bool]:
    """Activation checkpointing of vision transformer and decoder, each by its flag; returns what was set.

    Not Trainer's own, which knows one flag for both. Never reentrant: that form gives a layer no gradient when its
    input needs none, as the window adapters' below a frozen vision transformer, and says nothing.
    """
    both = bool(training.activation_checkpointing)
    settings = {**(training.activation_checkpointing_kwargs or {}), "use_reentrant": False}
    chosen = tuple(both if own is None else own for own in (parts.vision_checkpointing, parts.decoder_checkpointing))
    parts.vision_checkpointing, parts.decoder_checkpointing = chosen
    for layers, on in zip((model.model.visual.layers, model.model.language_model.layers), chosen, strict=True):
        for layer in layers:
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = partial(checkpoint, **settings)
    return chosen
