"""Monkey: high-resolution vision-language models, from published weights to training, evaluation and demo.

    import monkey

    model = monkey.load("echo840/Monkey")
    print(model.ask("sign.png", "What does the sign say?").text)

Importing the package registers its classes with transformers' Auto factories under `model_type: monkey`, and under
Qwen-VL's `qwen`, so that both open without remote code.
"""

from __future__ import annotations

import importlib
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText

from monkey import processing, tokenization
from monkey.configuration import MonkeyConfig, QwenVLConfig
from monkey.image_processing import MonkeyImageProcessor
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.tokenization import QwenTokenizer

__version__ = "0.1.0"

_OPENED_LATER = {
    "Decoding": "monkey.serving.decoding",
    "Reply": "monkey.serving.reply",
    "load": "monkey.serving.session",
}
"""Names of the package that are only imported when they are used, and where they lie."""

__all__ = [
    "Decoding",
    "MonkeyConfig",
    "MonkeyForConditionalGeneration",
    "MonkeyImageProcessor",
    "MonkeyProcessor",
    "QwenTokenizer",
    "Reply",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _OPENED_LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OPENED_LATER[name]), name)


for _config_class in (MonkeyConfig, QwenVLConfig):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
AutoModelForImageTextToText.register(MonkeyConfig, MonkeyForConditionalGeneration, exist_ok=True)
tokenization.register()
processing.register()
