"""Monkey: high-resolution vision-language models, from published weights to training, evaluation and demo.

Importing the package registers its classes with transformers' Auto factories under `model_type: monkey`, and under
Qwen-VL's `qwen`, so that both open without remote code.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText

from monkey import processing, tokenization
from monkey.configuration import MonkeyConfig, QwenVLConfig
from monkey.image_processing import MonkeyImageProcessor
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.tokenization import QwenTokenizer

__version__ = "0.1.0"

__all__ = ["MonkeyConfig", "MonkeyForConditionalGeneration", "MonkeyImageProcessor", "MonkeyProcessor", "QwenTokenizer"]

for _config_class in (MonkeyConfig, QwenVLConfig):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
AutoModelForImageTextToText.register(MonkeyConfig, MonkeyForConditionalGeneration, exist_ok=True)
tokenization.register()
processing.register()
