"""Monkey: high-resolution vision-language models, from published weights to training, evaluation and demo.

Importing the package registers its classes with transformers' Auto factories under `model_type: monkey`; the
classes themselves are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "MonkeyConfig": "monkey.configuration",
    "MonkeyForConditionalGeneration": "monkey.modeling",
    "MonkeyImageProcessor": "monkey.processing",
    "MonkeyProcessor": "monkey.processing",
    "QwenTokenizer": "monkey.tokenization",
}

__all__ = ["MonkeyConfig", "MonkeyForConditionalGeneration", "MonkeyImageProcessor", "MonkeyProcessor", "QwenTokenizer"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'monkey' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
