"""A checkpoint's weight files, and their names and shapes without reading weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from monkey.location import checkpoint_file


def weight_files(name: Any, hub: dict[str, Any], variant: str | None = None) -> list[str]:
    """Every weight file of a checkpoint: safetensors if there are any, else `.bin`; one file or shards.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is not there.
    """
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        found = checkpoint_file(name, _with_variant(single, variant), **hub)
        if found is not None:
            return [found]
        index = _with_variant(index, variant)
        found = checkpoint_file(name, index, **hub)
        if found is not None:
            return [_shard(name, shard, index, hub) for shard in shard_names(found)]
    raise FileNotFoundError(
        f"{name} holds no weights: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}, nor the index of a sharded one"
    )


def shard_names(index: str | Path) -> list[str]:
    """Names of the shards of an index file, in order, or ValueError when it is not an index."""
    try:
        weight_map = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not an index of shards ({error}); copy or download it again") from error
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{index} names the shard {shard!r}, which is not a file beside it; the index is refused")
    return shards


def read_shapes(name: Any, hub: dict[str, Any], variant: str | None = None) -> dict[str, torch.Size]:
    """Tensor name → shape over all weight files of a checkpoint."""
    shapes: dict[str, torch.Size] = {}
    for path in weight_files(name, hub, variant):
        shapes.update(file_shapes(path))
    return shapes


def file_shapes(path: str | Path) -> dict[str, torch.Size]:
    """Tensor name → shape of one file; nothing but tensors is ever unpickled.

    Raises:
        ValueError: a truncated file, or a `.bin` that holds something else than tensors.
    """
    if str(path).endswith(".safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                return {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    tensors = load_bin(path, map_location="meta")
    return {key: tensor.shape for key, tensor in tensors.items()}


def load_bin(path: str | Path, map_location: str = "cpu") -> dict[str, torch.Tensor]:
    """Tensors of a `.bin` file, memory-mapped where its format allows.

    Raises:
        ValueError: a truncated file, or one that holds something else than tensors.
    """
    try:
        try:
            tensors = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            tensors = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds something else than tensors and is refused: unpickling it could run code; "
            "save its tensors alone, or use a safetensors copy"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a whole weight file ({error}); copy or download it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} is not a dictionary of tensors, so it is not a checkpoint shard")
    return tensors


def _with_variant(filename: str, variant: str | None) -> str:
    stem, dot, rest = filename.partition(".")
    return f"{stem}.{variant}{dot}{rest}" if variant else filename


def _shard(name: Any, shard: str, index: str, hub: dict[str, Any]) -> str:
    path = checkpoint_file(name, shard, **hub)
    if path is None:
        raise FileNotFoundError(f"{name}: {shard}, which {index} names, is missing; copy or download it again")
    return path
