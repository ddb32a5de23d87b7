"""A small processor over the golden vocabulary, and what the tests of the processor ask of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from monkey.configuration import MonkeyConfig
from monkey.processing import MonkeyProcessor
from monkey.tokenization import QwenTokenizer

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "checkpoint"

START, END, PAD, EOD, IM_START, IM_END = 982, 983, 984, 768, 769, 770
"""Ids in the golden vocabulary of 768 ranks."""
FIRST_SPECIAL = 768


def small_config(grid=(1, 1), **text) -> MonkeyConfig:
    """One window of 28 pixels and the global view, four tokens each: eight tokens an image."""
    return MonkeyConfig(
        grid=grid,
        image_start_id=START,
        vision_config={
            "window_size": 28,
            "patch_size": 14,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_queries": 4,
            "num_positions": 4,
        },
        text_config={
            "vocab_size": 1024,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "seq_length": 2048,
            "max_position_embeddings": 512,
            **text,
        },
    )


def small_processor() -> MonkeyProcessor:
    return MonkeyProcessor.from_config(small_config(), QwenTokenizer(CHECKPOINT / "qwen.tiktoken"))


def picture(level: int = 0) -> Image.Image:
    return Image.new("RGB", (4, 3), (level, level, level))


def levels(batch, processor) -> list[int]:
    """The grey levels of a batch's pictures, in their order."""
    red = batch["pixel_values"][:, 0, 0, 0] * processor.image_processor.image_std[0]
    return torch.round((red + processor.image_processor.image_mean[0]) * 255).int().tolist()


def span(processor, path: str = "") -> list[int]:
    slots = list(path.encode())
    return [START, *slots, *[PAD] * (processor.image_tokens - len(slots)), END]


def plain(processor, text: str) -> list[int]:
    return processor.tokenizer.encode_text(text, split_special_tokens=True)


def refusal(call, kind: type[Exception] = ValueError) -> str:
    """The message of the error that a call gives, after checking its type and that it is one sentence."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message
