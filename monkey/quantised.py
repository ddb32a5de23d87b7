"""A base in 4 bits for adapters to train on: opening it, and giving its weights back as ordinary numbers.

NF4 with double quantisation (QLoRA, arXiv 2305.14314), through bitsandbytes. Packed are the linears of the decoder's
layers and nothing else: the vision side trains or is small, the embeddings are looked up, and the head's rounding would
fall on the logits without a layer after it to make up for it.

Why not PEFT's `prepare_model_for_kbit_training`: it casts every parameter that is not packed to float32, which would
double the two billion parameters of the vision side, the embeddings and the head; it freezes everything, which a
recipe's table does here; and it makes the embeddings' output require a gradient for reentrant checkpointing, which is
not used here. What is left to do is to keep what trains in float32 (`keep_trained_in_float32`).
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from monkey.configuration import MonkeyConfig
from monkey.devices import ALL_CARDS, half_precision
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.part_configs import heads_by_layer, inner_width

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

QUANTISATION = {"bits": 4, "type": "nf4", "double": True}
"""How this project packs a decoder, as an adapter's `base.json` records it beside the weights' type."""

BLOCK = 64
"""Values that share one scale."""


def require_bitsandbytes() -> None:
    """ValueError where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "--q_lora packs the decoder in 4 bits and needs the bitsandbytes package: pip install bitsandbytes"
        )


def four_bit_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation for the decoder's layers; their products are computed in `compute_dtype`."""
    from transformers import BitsAndBytesConfig

    require_bitsandbytes()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=QUANTISATION["type"],
        bnb_4bit_use_double_quant=QUANTISATION["double"],
        bnb_4bit_compute_dtype=compute_dtype,
        # A name here means the module that has it and all below it.
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )


def open_four_bit(
    name: str,
    grid: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
    device_map: Any = None,
    **kwargs: Any,
) -> MonkeyForConditionalGeneration:
    """Open a checkpoint with its decoder's linears in 4 bits, ready for adapters.

    Args:
        name: folder or hub name of an ordinary checkpoint.
        grid: as in `from_pretrained`.
        dtype: of everything that is not packed, and of the packed linears' products; half precision as of
            `monkey.devices.half_precision` by default.
        device_map: by default everything on this process's GPU, or on the CPU where there is none.
        kwargs: for `from_pretrained`.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: no bitsandbytes; ZeRO-3; or sizes that it unpacks wrongly on a CPU.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    require_bitsandbytes()
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "--q_lora does not work with ZeRO-3, which shards weights before they are packed: use "
            "configs/deepspeed/zero2.json, or no --deepspeed"
        )
    if device_map is None:
        cuda = torch.cuda.is_available()
        device_map = {"": int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())) if cuda else "cpu"}
    on_cpu = device_map in ("cpu", {"": "cpu"})
    dtype = half_precision("cpu" if on_cpu else ALL_CARDS) if dtype is None else dtype
    model = MonkeyForConditionalGeneration.from_pretrained(
        name, grid=grid, dtype=dtype, device_map=device_map, quantization_config=four_bit_config(dtype), **kwargs
    )
    if on_cpu:
        _refuse_odd_widths(name, model.config)
    for linear in packed_linears(model).values():
        # Without this, the first forward in evaluation mode repacks the weights where the CPU has AVX512-BF16: their
        # scales lose bits for good, and the products that training makes afterwards carry no gradient.
        linear.support_avx512bf16_for_cpu = False
    return model


def packed_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every 4-bit linear of a model, wrapped by PEFT or not, by its path."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return {}
    from bitsandbytes.nn import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def quantisation_of(model: nn.Module) -> dict[str, Any] | None:
    """How a model's decoder is packed: bits, type, double, and the type of the numbers before; None when it is not."""
    linears = packed_linears(model)
    if not linears:
        return None
    weight = next(iter(linears.values())).weight
    state = weight.quant_state
    dtype = str(state.dtype).removeprefix("torch.")
    return {"bits": 4, "type": state.quant_type, "double": bool(state.nested), "dtype": dtype}


def keep_trained_in_float32(model: nn.Module) -> int:
    """Make every parameter that trains float32; return how many tensors that changed.

    A step of AdamW is often less than 1/256 of a weight, which bfloat16 rounds away. The forward pass then needs
    autocast, in evaluation as in training.
    """
    narrow = [p for p in model.parameters() if p.requires_grad and p.dtype != torch.float32]
    for parameter in narrow:
        parameter.data = parameter.data.float()
    return len(narrow)


def dequantise(linear: nn.Module) -> torch.Tensor:
    """Weight [out, in] of a 4-bit linear as the numbers that its product is computed with."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(linear.weight.data, linear.weight.quant_state).detach()


def dequantised_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict of the base of a 4-bit model, under our names and on the CPU, as a model without packing has it.

    PEFT's wrapper and adapters are left out, so that `monkey.checkpoint.published_names` takes the result. Values are
    those that the 4-bit model computes with, in the type that the weights had before they were packed.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    packed = packed_linears(base)
    state = {}
    for name, tensor in base.named_parameters():
        module, _, kind = name.rpartition(".")
        if "lora_A" in name or "lora_B" in name:
            continue
        value = dequantise(packed[module]) if module in packed and kind == "weight" else tensor.detach()
        # PEFT puts the linear that it adapts below a module of its own.
        state[name.replace(".base_layer.", ".")] = value.cpu()
    return state


def _refuse_odd_widths(name: str, config: MonkeyConfig) -> None:
    """ValueError for decoder linears whose rows are not whole blocks.

    bitsandbytes (0.50.2) unpacks such rows on a CPU with the scales of other blocks, and says nothing: an error of 25 %
    where 9 % is right. A GPU unpacks them well.
    """
    text = config.text_config
    widths = [("hidden_size", text.hidden_size), ("intermediate_size", inner_width(text))]
    widths += [("num_attention_heads · head_dim", heads * width) for heads, _, width in heads_by_layer(text)]
    for field, width in widths:
        if width % BLOCK:
            raise ValueError(
                f"{name} has text_config {field} {width}, and on a CPU bitsandbytes unpacks 4-bit linears rightly only "
                f"for multiples of {BLOCK}: use a GPU, or no 4 bits (--use_lora alone, or no --quantization)"
            )
