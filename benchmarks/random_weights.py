"""The model at the published size with random weights, in bfloat16 or with its decoder packed in 4 bits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from monkey import MonkeyConfig, MonkeyForConditionalGeneration
from monkey.quantised import open_four_bit


def tiny_config() -> MonkeyConfig:
    """To try a program where there is no GPU."""
    vision = {"window_size": 28, "patch_size": 14, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    return MonkeyConfig(
        vision_config={**vision, "num_queries": 4, "num_positions": 4},
        text_config={**text, "num_attention_heads": 2},
        image_start_id=433,
    )


def random_model(
    config: MonkeyConfig, device: str, four_bit: bool = False, folder: Path | None = None
) -> MonkeyForConditionalGeneration:
    """A model of `config` on `device`.

    Args:
        four_bit: pack the decoder: the weights are written to a folder first (19.4 GB at full size, taken away again),
            and opened from there as a checkpoint is.
        folder: where that folder is made; a temporary place when None.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cpu" if four_bit else device):
            model = MonkeyForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    if not four_bit:
        return model
    with tempfile.TemporaryDirectory(dir=folder, prefix="random-weights-") as weights:
        model.save_pretrained(weights)
        del model
        return open_four_bit(weights, device_map={"": device})
