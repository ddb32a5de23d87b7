"""Importing this registers our classes with transformers' Auto factories; `monkey.import_hooks` does it in time."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText

from monkey import processing, tokenization, tokenization_decoder
from monkey.configuration import MonkeyConfig, QwenVLConfig
from monkey.modeling import MonkeyForConditionalGeneration

for _config_class in (MonkeyConfig, QwenVLConfig):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
AutoModelForImageTextToText.register(MonkeyConfig, MonkeyForConditionalGeneration, exist_ok=True)
tokenization.register()
tokenization_decoder.register()
processing.register()
