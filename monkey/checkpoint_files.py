"""A checkpoint's weight files, and their names, shapes and types without reading weights."""

from __future__ import annotations

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

from monkey.files import checkpoint_file, read_json


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
    content = read_json(str(index))
    weight_map = content.get("weight_map")
    is_map = isinstance(weight_map, dict) and all(isinstance(shard, str) for shard in weight_map.values())
    if not is_map or not weight_map or not isinstance(content.get("metadata", {}), dict):
        raise ValueError(
            f"{index} is not an index of shards, an object with the file of each tensor under 'weight_map'; copy or "
            "download it again"
        )
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{index} names the shard {shard!r}, which is not a file beside it; the index is refused")
    return shards


def read_tensors(name: Any, hub: dict[str, Any], variant: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of all weight files of a checkpoint by name, with shape and type and without values."""
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(name, hub, variant):
        tensors.update(file_tensors(path))
    return tensors


def file_shapes(path: str | Path) -> dict[str, torch.Size]:
    """Tensor name → shape of one file; errors as of `file_tensors`."""
    return {name: tensor.shape for name, tensor in file_tensors(path).items()}


def file_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of one file on the meta device, without values; nothing but tensors is ever unpickled.

    Raises:
        ValueError: a truncated file, or a `.bin` that holds something else than tensors.
    """
    if str(path).endswith(".safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                return {key: _without_values(file, key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    return load_bin(path, map_location="meta")


def _without_values(file: Any, key: str) -> torch.Tensor:
    shape = file.get_slice(key).get_shape()
    type_of = file.get_slice(key)[:0] if shape else file.get_tensor(key)
    return torch.empty(shape, dtype=type_of.dtype, device="meta")


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
    except (RuntimeError, EOFError, LookupError, OSError, ValueError) as error:
        if "allocate memory" in str(error):
            raise not_enough_memory(path, error) from error
        raise ValueError(f"{path} is not a whole weight file ({error}); copy or download it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} is not a dictionary of tensors, so it is not a checkpoint shard")
    return tensors


def not_enough_memory(path: str | Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: the memory does not suffice to open it ({str(error).splitlines()[0]}); free memory, raise the limit "
        "(ulimit -v), or take a machine with more"
    )


def _with_variant(filename: str, variant: str | None) -> str:
    stem, dot, rest = filename.partition(".")
    return f"{stem}.{variant}{dot}{rest}" if variant else filename


def _shard(name: Any, shard: str, index: str, hub: dict[str, Any]) -> str:
    path = checkpoint_file(name, shard, **hub)
    if path is None:
        raise FileNotFoundError(f"{name}: {shard}, which {index} names, is missing; copy or download it again")
    return path
