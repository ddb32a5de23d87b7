"""Monkey: high-resolution vision-language models, from published weights to training, evaluation and demo.

    import monkey

    model = monkey.load("echo840/Monkey")
    print(model.ask("sign.png", "What does the sign say?").text)

Importing the package takes a moment: its names are imported when they are first used. Its classes are known to
transformers' Auto factories under `model_type: monkey`, and under Qwen-VL's `qwen`, so that both open without remote
code.
"""

from __future__ import annotations

import importlib
from typing import Any

from monkey import import_hooks

__version__ = "0.1.0"

_MODULES = {
    "DecoderTokenizer": "monkey.tokenization_decoder",
    "Decoding": "monkey.decoding",
    "MonkeyConfig": "monkey.configuration",
    "MonkeyForConditionalGeneration": "monkey.modeling",
    "MonkeyImageProcessor": "monkey.image_processing",
    "MonkeyProcessor": "monkey.processing",
    "QwenTokenizer": "monkey.tokenization",
    "Reply": "monkey.reply",
    "load": "monkey.serving.session",
}
"""Where each name of the package lies."""

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


import_hooks.install()
