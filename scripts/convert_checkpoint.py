"""Turn a checkpoint's `.bin` shards into safetensors or back, and its config.json into the published flat one.

    python scripts/convert_checkpoint.py SOURCE TARGET --format safetensors
    python scripts/convert_checkpoint.py SOURCE TARGET --format bin --config published

Names and bits stay as they are, shard by shard: no more than one shard is in memory. SOURCE is a folder or a hub name
in the offline cache. `--config published` writes the flat config.json that the published code reads; `--config monkey`
ours; by default the file is copied. TARGET is written whole or not at all. Code is never copied: what the published
Auto classes need beside the weights is said at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

import monkey
from monkey.checkpoint_card import card_of
from monkey.cli import ArgumentParser, run_program
from monkey.files import read_json, refuse_existing, refuse_missing
from monkey.journal import atomic_folder, write_json

if TYPE_CHECKING:
    import torch

WEIGHT_SUFFIXES = {"safetensors": ".safetensors", "bin": ".bin"}


def convert(source: str, target: str | Path, weight_format: str, config: str = "copy") -> Path:
    """Write `source`'s checkpoint into the new folder `target`.

    Args:
        source: folder or hub name.
        target: folder that does not exist yet, or is empty.
        weight_format: `safetensors` or `bin`.
        config: `copy`, `published` or `monkey`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: no weights, or a missing shard.
        ValueError: `target` holds something already, or a shard holds something else than tensors.
    """
    target = Path(target)
    refuse_existing(target)
    refuse_missing(source)

    from monkey.checkpoint_files import weight_files
    from monkey.flat_config import published_config

    files = [Path(path) for path in weight_files(source, {})]
    with atomic_folder(target) as folder:
        dtype = _write_weights(files, folder, weight_format)
        _copy_other_files(files[0].parent, folder)
        card_of(source).write(folder)
        if config != "copy":
            parsed = monkey.MonkeyConfig.from_pretrained(source)
            content = json.loads(parsed.to_json_string())
            if config == "published":
                content = published_config(parsed, str(dtype).removeprefix("torch."))
            write_json(folder / "config.json", content, sort_keys=True)
    return target


def _write_weights(files: list[Path], folder: Path, weight_format: str) -> torch.dtype:
    """Write every shard in `weight_format` with its index; returns the type of the first floating tensor."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    from monkey.checkpoint_files import load_bin

    safetensors = SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME
    single, index = safetensors if weight_format == "safetensors" else (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    weight_map: dict[str, str] = {}
    total_size, dtype = 0, None
    for number, path in enumerate(tqdm(files, desc="shards", unit="shard"), start=1):
        tensors = load_file(path) if path.suffix == ".safetensors" else load_bin(path)
        tensors = {name: _own_storage(tensor) for name, tensor in tensors.items()}
        stem, dot, suffix = single.rpartition(".")
        name = single if len(files) == 1 else f"{stem}-{number:05d}-of-{len(files):05d}{dot}{suffix}"
        if weight_format == "safetensors":
            save_file(tensors, folder / name, metadata={"format": "pt"})
        else:
            torch.save(tensors, folder / name)
        for key, tensor in tensors.items():
            weight_map[key] = name
            total_size += tensor.numel() * tensor.element_size()
            if dtype is None and tensor.is_floating_point():
                dtype = tensor.dtype
    if len(files) > 1:
        content = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        write_json(folder / index, content)
    return dtype or torch.float32


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a copy where it shows only a part of a larger or shared storage."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.contiguous().clone()


def _copy_other_files(source: Path, folder: Path) -> None:
    """Tokenizer, processor, generation config, licence: all that is neither weights nor code."""
    for path in source.iterdir():
        weights = path.suffix in WEIGHT_SUFFIXES.values() or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.suffix != ".py":
            shutil.copyfile(path, folder / path.name)


def code_that_is_missing(folder: Path) -> list[str]:
    """Return the modules that the folder's `auto_map`s name and that are not in it."""
    maps = [read_json(path).get("auto_map") for path in sorted(folder.glob("*config.json"))]
    values = [value for one in maps if isinstance(one, dict) for value in one.values()]
    named = [name for value in values for name in (value if isinstance(value, list) else [value])]
    files = {f"{name.rpartition('--')[2].partition('.')[0]}.py" for name in named if isinstance(name, str)}
    return sorted(file for file in files if not (folder / file).is_file())


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or hub name")
    parser.add_argument("target", help="new folder")
    parser.add_argument("--format", choices=sorted(WEIGHT_SUFFIXES), default="safetensors")
    parser.add_argument("--config", choices=["copy", "published", "monkey"], default="copy")
    options = parser.parse_args(arguments)

    def write() -> None:
        folder = convert(options.source, options.target, options.format, options.config)
        print(folder)
        if missing := code_that_is_missing(folder):
            print(
                f"config.json names code that is not there: to open the folder with trust_remote_code=True, copy "
                f"{', '.join(missing)} and the files that they import from the published repository beside it",
                file=sys.stderr,
            )

    return run_program(write)


if __name__ == "__main__":
    sys.exit(main())
