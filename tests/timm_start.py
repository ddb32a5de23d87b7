"""Tiny models with an encoder of timm, one of each family, and a checkpoint of one for the tests of training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from monkey.configuration import MonkeyConfig
from monkey.part_configs import TimmVisionConfig
from monkey.processing import MonkeyProcessor
from monkey.tokenization import QwenTokenizer
from tests.conftest import random_model, tiny_config
from tests.small_processor import CHECKPOINT, small_config

ARCHITECTURES = {
    "siglip": "vit_base_patch16_siglip_224",
    "siglip averaged": "vit_base_patch16_siglip_gap_224",
    "clip": "vit_base_patch16_clip_224",
    "dinov2": "vit_giant_patch14_reg4_dinov2",
    "dinov3": "vit_small_patch16_dinov3",
    "dinov3 gated": "vit_small_plus_patch16_dinov3_qkvb",
    "eva": "eva_giant_patch14_clip_224",
    "eva-02": "eva02_base_patch16_clip_224",
    "mixed rotary": "vit_base_patch16_rope_mixed_224",
    "naflex": "naflexvit_base_patch16_siglip",
    "radio": "vit_base_patch16_radio_v3",
    "radio naflex": "naflexvit_base_patch16_radio_v3",
}
TINY = {"embed_dim": 32, "num_heads": 2}


def timm_config(architecture: str = ARCHITECTURES["clip"], base=tiny_config, vision=None, **changes) -> MonkeyConfig:
    """Windows of four by four patches, two blocks, the decoder of `base`."""
    config = base(**changes)
    sizes = {"window_size": 56 if "patch14" in architecture else 64, "num_hidden_layers": 2, "num_queries": 4}
    ranks = {"adapter_rank": 4, "mlp_adapter_rank": 4}
    whole = {"architecture": architecture, "architecture_args": TINY, **sizes, **ranks, **(vision or {})}
    config.vision_config = TimmVisionConfig(**whole)
    return config


def with_timm(start: SimpleNamespace, base: Path) -> SimpleNamespace:
    """The records of `start`, and in the folder `base` a checkpoint with an encoder of timm."""
    config = timm_config(ARCHITECTURES["dinov3 gated"], base=small_config, grid=(2, 2))
    random_model(config).save_pretrained(base)
    MonkeyProcessor.from_config(config, QwenTokenizer(CHECKPOINT / "qwen.tiktoken")).save_pretrained(base)
    return SimpleNamespace(folder=start.folder, base=base, data=start.data, records=start.records)
