"""The model at the published size with random weights, in bfloat16 or with its decoder packed, and real images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from monkey import MonkeyConfig, MonkeyForConditionalGeneration, MonkeyImageProcessor

PAGES = Path(__file__).resolve().parent.parent / "data" / "pages" / "images"
PACKINGS = ("4bit", "int8")


def tiny_config() -> MonkeyConfig:
    """To try a program where there is no GPU."""
    vision = {"window_size": 28, "patch_size": 14, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    return MonkeyConfig(
        vision_config={**vision, "num_queries": 4, "num_positions": 4},
        text_config={**text, "num_attention_heads": 2},
        image_start_id=433,
    )


@contextmanager
def made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Make the modules of the block on the device and in the type that they are to have: no copy is made on the way."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def random_model(config: MonkeyConfig, device: str, packing: str | None = None) -> MonkeyForConditionalGeneration:
    """A model of `config` in bfloat16 on `device`.

    Args:
        packing: how the decoder's linears are packed, where they lie: "4bit" by bitsandbytes, as `--q_lora` does, or
            "int8" by torchao, weights alone.
    """
    torch.manual_seed(0)
    with made_on(device, torch.bfloat16):
        model = MonkeyForConditionalGeneration(config)
    if packing == "4bit":
        _pack_in_four_bits(model, device)
    elif packing == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model.model.language_model.layers, Int8WeightOnlyConfig())
    return model


def _pack_in_four_bits(model: MonkeyForConditionalGeneration, device: str) -> None:
    """Replace the linears of the decoder's layers one after another, as `monkey.quantised` opens them."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for layer in model.model.language_model.layers:
        for name, linear in list(layer.named_modules()):
            if type(linear) is not nn.Linear:
                continue
            with torch.device("meta"):
                packed = Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=linear.bias is not None,
                    compute_dtype=torch.bfloat16,
                    compress_statistics=True,
                    quant_type="nf4",
                )
            kind = {"requires_grad": False, "compress_statistics": True, "quant_type": "nf4"}
            packed.weight = Params4bit(linear.weight.data, **kind).to(device)
            packed.bias = linear.bias
            packed.support_avx512bf16_for_cpu = False
            layer.set_submodule(name, packed)
    model.is_loaded_in_4bit = True


def page_canvases(config: MonkeyConfig, count: int) -> list[np.ndarray]:
    """The project's pages on the model's canvas, uint8 [3, H, W], again from the first where there are no more.

    Blank images would flatter: zeros take less power to multiply, and a card's clock follows its power.
    """
    processor = MonkeyImageProcessor.from_config(config)
    paths = sorted(PAGES.rglob("*.*"))
    canvases = [processor.canvas(path) for path in paths[:count]]
    return list(islice(cycle(canvases), count))
