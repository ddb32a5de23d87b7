"""Shared by all tests: no network, the recorded figures, and tiny models.

What hands files of tests to processes imports this too and runs none, so torch is imported where it is used.
"""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

import monkey  # noqa: F401  before timm and transformers, which else meet a torchvision that cannot be imported

if TYPE_CHECKING:
    import torch

    from monkey import MonkeyConfig, MonkeyForConditionalGeneration

GOLDEN = Path(__file__).parent / "golden"
CLIP_MEAN = 0.48145466, 0.4578275, 0.40821073
CLIP_STD = 0.26862954, 0.26130258, 0.27577711


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """What is kept between runs, such as the tokens of training records, is kept apart from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONKEY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_certificates(tmp_path_factory):
    """No test asks anybody who has one, and each client of httpx would read the machine's, which takes it 40 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_CERT_FILE", raising=False)
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


@pytest.fixture(autouse=True, scope="module")
def libraries_are_no_garbage():
    """Take what has been imported out of the collector's sight: the trainer collects in each run, 0.3 s otherwise."""
    gc.collect()
    gc.freeze()


class Golden:
    """Figures recorded from the published implementation, and the checkpoint they were recorded with."""

    folder = GOLDEN
    checkpoint = GOLDEN / "checkpoint"

    def __init__(self):
        from safetensors.torch import load_file

        self.cases = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
        self.tensors = load_file(GOLDEN / "cases.safetensors")

    def pixels(self, *names: str) -> torch.Tensor:
        """Normalised 896×896 canvases [n, 3, 896, 896], by plain Pillow, apart from the project's processor."""
        import numpy as np
        import torch
        from PIL import Image

        mean, std = (torch.tensor(channels)[:, None, None] for channels in (CLIP_MEAN, CLIP_STD))
        canvases = []
        for name in names:
            with Image.open(GOLDEN / "images" / name) as image:
                resized = image.convert("RGB").resize((896, 896), Image.Resampling.BICUBIC)
            tensor = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
            canvases.append((tensor - mean) / std)
        return torch.stack(canvases)


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="session")
def golden_model(golden) -> MonkeyForConditionalGeneration:
    """The published-layout checkpoint, in fp32 and evaluation mode. Read-only: tests that change it open their own."""
    from monkey import MonkeyForConditionalGeneration

    return MonkeyForConditionalGeneration.from_pretrained(golden.checkpoint)


def tiny_config(**changes) -> MonkeyConfig:
    """A Monkey of a few thousand parameters; keywords override fields, nested ones by `vision_`/`text_` prefix."""
    from monkey import MonkeyConfig

    vision = {
        "window_size": 28,
        "patch_size": 7,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2.0,
        "num_queries": 4,
        "num_positions": 4,
        "adapter_rank": 4,
        "mlp_adapter_rank": 4,
    }
    text = {
        "vocab_size": 320,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "seq_length": 64,
    }
    whole = {"image_start_id": 300}
    for key, value in changes.items():
        if key.startswith("vision_"):
            vision[key.removeprefix("vision_")] = value
        elif key.startswith("text_"):
            text[key.removeprefix("text_")] = value
        else:
            whole[key] = value
    return MonkeyConfig(vision_config=vision, text_config=text, **whole)


def random_model(config: MonkeyConfig, seed: int = 0) -> MonkeyForConditionalGeneration:
    """A model whose every tensor, adapters and biases included, is random and matters to the output."""
    import torch

    from monkey import MonkeyForConditionalGeneration

    torch.manual_seed(seed)
    model = MonkeyForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("pos_embed",)):
                continue
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise * (0.3 if name.endswith(("up", "scale")) else 0.1))
    return model


def prompt_ids(config: MonkeyConfig, *parts: int | list[int]) -> list[int]:
    """Token ids of a prompt: lists are text, the number 1 is an image span filled with padding slots."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, list):
            ids.extend(part)
        else:
            ids.extend([config.image_start_id, *[config.image_pad_id] * config.image_tokens, config.image_end_id])
    return ids


def left_padded(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """Batch of ids and attention mask [B, T], padded on the left."""
    import torch

    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[pad] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
    }


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> SimpleNamespace:
    """What runs of the trainer start from, by `training_start.write_start`."""
    from tests.training_start import write_start

    return write_start(tmp_path_factory.mktemp("start"))
