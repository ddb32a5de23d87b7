"""The files of a checkpoint: its weights' names, shapes and types, what stands for all of them, and writing it whole.

An adapter only means something on the weights that it was trained on, and a name does not tell: folders move, and other
weights take their place. So `base.json` in an adapter's folder holds the shapes of its base's decoder, which have to
fit, and a digest of samples of its weight files. Another digest only warns, for a `.bin` may have become safetensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from monkey.configuration import MonkeyConfig
from monkey.files import base_of, check_field, checkpoint_file, read_json
from monkey.grids import check_fit, check_grid, expand_grids, plain_grids
from monkey.journal import atomic_folder
from monkey.provenance import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from monkey.checkpoint_card import CheckpointCard

logger = logging.getLogger(__name__)

BASE_FILE = "base.json"

GREEDY_FILES = (
    ADAPTER_CONFIG_NAME,
    "config.json",
    "qwen.tiktoken",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    *("tokenizer.json", "chat_template.jinja"),
)
"""Files beside the weights that a greedy answer depends on. Their order is part of the keys in evaluation journals."""

SAMPLED_FILES = (
    "config.json",
    "generation_config.json",
    "qwen.tiktoken",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    ADAPTER_CONFIG_NAME,
    BASE_FILE,
    *("tokenizer.json", "chat_template.jinja"),
)
"""Those that any answer may depend on, the checkpoint's own settings of generation among them."""

# Names of the decoder's own tensors, published or its library's; those of adapters built into it are left out, for they
# train.
_DECODER_TENSOR = re.compile(
    r"(?:transformer\.(?:wte|ln_f)|lm_head|transformer\.h\.\d+\.(?!.*_lora\.).+|model\.language_model\..+)\.(?:weight|bias)"
)

_DIGESTED_PLACES, _DIGESTED_BYTES = 1024, 1024
"""Places of a weight file, evenly spread, that its digest is of, and bytes of each.

Its ends are not enough: embedding and head lie there, which adapters of the decoder leave as they are.
"""


def weight_files(name: Any, hub: dict[str, Any], variant: str | None = None) -> list[str]:
    """Return every weight file of a checkpoint: safetensors if there are any, else `.bin`; one file or shards.

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
            return [_shard(name, shard, index, hub) for shard in _shard_names(found)]
    raise FileNotFoundError(
        f"{name} holds no weights: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}, nor the index of a sharded one"
    )


def _with_variant(filename: str, variant: str | None) -> str:
    stem, dot, rest = filename.partition(".")
    return f"{stem}.{variant}{dot}{rest}" if variant else filename


def _shard_names(index: str) -> list[str]:
    """Return the names of the shards of an index file, in order, or raise ValueError when it is not an index."""
    content = read_json(index)
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


def _shard(name: Any, shard: str, index: str, hub: dict[str, Any]) -> str:
    path = checkpoint_file(name, shard, **hub)
    if path is None:
        raise FileNotFoundError(f"{name}: {shard}, which {index} names, is missing; copy or download it again")
    return path


def file_shapes(path: str | Path) -> dict[str, torch.Size]:
    """Return tensor name → shape of one file; errors as of `file_tensors`."""
    return {name: tensor.shape for name, tensor in file_tensors(path).items()}


def file_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one file on the meta device, without values; nothing but tensors is ever unpickled.

    Raises:
        ValueError: a truncated file, or a `.bin` that holds something else than tensors.
    """
    if not str(path).endswith(".safetensors"):
        return load_bin(path, map_location="meta")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: _without_values(file, key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error


def _without_values(file: Any, key: str) -> torch.Tensor:
    shape = file.get_slice(key).get_shape()
    type_of = file.get_slice(key)[:0] if shape else file.get_tensor(key)
    return torch.empty(shape, dtype=type_of.dtype, device="meta")


def load_bin(path: str | Path, map_location: str = "cpu") -> dict[str, torch.Tensor]:
    """Return the tensors of a `.bin` file, memory-mapped where its format allows.

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
    """The refusal of a file that the system's memory could not hold."""
    return ValueError(
        f"{path}: the memory does not suffice to open it ({str(error).splitlines()[0]}); free memory, raise the limit "
        "(ulimit -v), or take a machine with more"
    )


def checkpoint_fingerprint(checkpoint: str | Path, sampled: bool = True) -> str:
    """Return the SHA-256 over every file that answers depend on, weights included; an adapter's with its base's.

    Args:
        sampled: whether it is of `SAMPLED_FILES`; False for the evaluator, whose answers are greedy.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or a file of it is missing.
    """
    return fingerprint(_files_of_answers(checkpoint, sampled))


def _files_of_answers(checkpoint: str | Path, sampled: bool) -> list[str]:
    base = base_of(checkpoint)
    if base is None:
        names = SAMPLED_FILES if sampled else GREEDY_FILES[1:]
        return [*_present(checkpoint, names), *weight_files(checkpoint, {})]
    found = _present(checkpoint, SAMPLED_FILES if sampled else GREEDY_FILES)
    weights = _present(checkpoint, (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME))
    return [*found, *weights, *_files_of_answers(base, sampled)]


def _present(checkpoint: str | Path, names: Iterable[str]) -> list[str]:
    return [path for name in names if (path := checkpoint_file(checkpoint, name)) is not None]


@dataclass(frozen=True)
class BaseRecord:
    """The base that an adapter was trained on, as `base.json` holds it."""

    name: str
    """Folder or hub name at the time: for people; it is not compared."""
    grid: list[int]
    """Rows and columns of the trained model, which need not be the checkpoint's own."""
    window_adapters: str
    global_view: bool
    decoder_shapes: str
    """SHA-256 over published names and shapes of the decoder's tensors."""
    weights_digest: str = ""
    """SHA-256 over sizes and samples of the weight files; empty in older records, which held sampled values."""
    quantisation: dict[str, Any] | None = None
    """How the base was quantised while training (`monkey.quantised.quantisation_of`), None when it was not."""
    grids: str | list[list[int]] | None = None
    """The set of grids that images lay on, None for one grid."""
    fit: str = "stretch"

    @property
    def layout(self) -> dict[str, Any]:
        """What `from_pretrained` needs to open the base as it was trained."""
        return {
            "grid": tuple(self.grid),
            "window_adapters": self.window_adapters,
            "global_view": self.global_view,
            **self._shapes,
        }

    @property
    def content(self) -> dict[str, Any]:
        """What `base.json` holds; of `grids` and `fit` only what is not as published."""
        written = {key: value for key, value in asdict(self).items() if key not in ("grids", "fit")}
        return {**written, **self._shapes}

    @property
    def _shapes(self) -> dict[str, Any]:
        shapes: dict[str, Any] = {}
        if self.grids is not None:
            shapes["grids"] = plain_grids(self.grids)
        return shapes if self.fit == "stretch" else {**shapes, "fit": self.fit}


def record_base(name: str, config: MonkeyConfig, quantisation: dict[str, Any] | None = None) -> BaseRecord | None:
    """Return the record of a checkpoint opened as `config`, or None where it has no files to tell it by.

    That is a model made in memory, one whose checkpoint is gone, and one that was packed on disk.
    """
    try:
        config_file = checkpoint_file(name, "config.json")
    except FileNotFoundError:
        return None
    if config_file is None or "quantization_config" in read_json(config_file):
        return None
    files = weight_files(name, {})
    return BaseRecord(
        name=str(name),
        grid=list(config.grid),
        window_adapters=config.window_adapters,
        global_view=config.global_view,
        decoder_shapes=_digest_decoder(files),
        weights_digest=digest_samples(files),
        quantisation=quantisation,
        grids=config.grids,
        fit=config.fit,
    )


def _digest_decoder(files: list[str]) -> str:
    shapes = {key: tuple(shape) for path in files for key, shape in file_shapes(path).items()}
    listed = json.dumps(sorted((key, shape) for key, shape in shapes.items() if _DECODER_TENSOR.fullmatch(key)))
    return hashlib.sha256(listed.encode()).hexdigest()


def digest_samples(files: list[str]) -> str:
    """Return the digest by which a base is known again, without reading all of its weights."""
    digest = hashlib.sha256()
    for path in files:
        last = max(0, os.path.getsize(path) - _DIGESTED_BYTES)
        digest.update(f"{os.path.getsize(path)}\n".encode())
        with open(path, "rb", buffering=0) as file:
            for number in range(_DIGESTED_PLACES):
                file.seek(last * number // (_DIGESTED_PLACES - 1))
                digest.update(file.read(_DIGESTED_BYTES))
    return digest.hexdigest()


def read_base_record(folder: str | Path, **hub: Any) -> BaseRecord | None:
    """Return the record in an adapter folder, or None where there is none; ValueError for one that is damaged."""
    path = checkpoint_file(folder, BASE_FILE, **hub)
    if path is None:
        return None
    content = read_json(path)
    known = {field.name for field in fields(BaseRecord)}
    try:
        record = BaseRecord(**{key: value for key, value in content.items() if key in known})
        check_grid(record.grid)
        if record.grids is not None:
            expand_grids(record.grids)
        check_fit(record.fit)
        check_field("global_view", record.global_view, "flag")
        for field in ("name", "window_adapters", "decoder_shapes", "weights_digest"):
            check_field(field, getattr(record, field), "text")
        if not isinstance(record.quantisation, (dict, type(None))):
            raise ValueError("quantisation must be an object or null")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the record of a base ({error}); copy the adapter's folder again") from None
    return record


def check_base(folder: str | Path, trained: BaseRecord | None, base: BaseRecord | None) -> None:
    """Refuse a base or grid that the adapter in `folder` was not trained on; warn of other weight files.

    Folders without `base.json`, and bases that were built in memory, have nothing to compare and pass.

    Raises:
        ValueError: naming both bases, and what differs.
    """
    if trained is None or base is None:
        return
    if trained.decoder_shapes != base.decoder_shapes:
        raise ValueError(
            f"{folder} is an adapter of {trained.name}, and {base.name} has a decoder of another size: give the base "
            "that the adapter was trained on"
        )
    there, here = (", ".join(f"{key}={value!r}" for key, value in one.layout.items()) for one in (trained, base))
    if there != here:
        raise ValueError(
            f"{folder} is an adapter for {there}, and {base.name} was opened with {here}: open it with {there}"
        )
    if trained.weights_digest not in ("", base.weights_digest):
        logger.warning(
            "%s is an adapter of %s, and the weight files of %s are others: the same weights in another form do no "
            "harm, but on other weights the adapter answers wrongly",
            folder, trained.name, base.name,
        )  # fmt: skip


def write_checkpoint(model: PreTrainedModel, processor: ProcessorMixin, target: Path, card: CheckpointCard) -> Path:
    """Write a model with its processor and card into the new folder `target`, whole or not at all."""
    with atomic_folder(target) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        card.write(folder)
    return target
