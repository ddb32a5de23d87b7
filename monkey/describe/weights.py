"""Opening an expert's model through transformers, by hub name or folder, and telling one model from another.

No code of a checkpoint ever runs (`trust_remote_code` is never set), and PyTorch files are read with `weights_only`,
which is transformers' way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monkey.cli import library_bars
from monkey.describe.expert import ExpertSettings, how
from monkey.files import read_json, required_file

_SAMPLES, _SAMPLE_BYTES = 16, 65536
_READ_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja")

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelSettings(ExpertSettings):
    """`model` is a hub name or a folder, `revision` a commit or branch of the hub.

    `dtype` "auto" is bfloat16 on a GPU and float32 elsewhere; `device` "auto" is a GPU where there is one.
    """

    model: str = field(default="", metadata={"changes_result": False})  # its identity stands for it
    revision: str | None = field(default=None, metadata={"changes_result": False})
    dtype: str = "auto"
    device: str = how("auto")

    def check(self) -> None:
        super().check()
        if not self.model:
            raise ValueError("model is missing: give a hub name or a folder")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, and one of {', '.join(DTYPES)} is needed")

    def that_change_results(self) -> dict[str, Any]:
        # The same configuration on a GPU and on a CPU makes results of other precision.
        return {**super().that_change_results(), "dtype": dtype_of(self)}


def device_of(settings: ModelSettings) -> str:
    """The device, each process of a machine with several GPUs its own."""
    import torch

    if settings.device != "auto":
        return settings.device
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def dtype_of(settings: ModelSettings) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if device_of(settings).startswith("cuda") else "float32"


def model_identity(settings: ModelSettings, kinds: Mapping[str, Sequence[str]], purpose: str) -> dict[str, str]:
    """What stands for the model's bytes, after checking that it is of a kind that the stage can use.

    Args:
        kinds: model types of `config.json`, each with the architectures that are meant; none means any of the type.
        purpose: what the model is for, as messages say it.

    Raises:
        FileNotFoundError: no such folder or hub name.
        ValueError: a model of another kind.
    """
    location = {"revision": settings.revision} if settings.revision else {}
    path = required_file(settings.model, "config.json", purpose, **location)
    config = read_json(path)
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    wanted = kinds.get(kind)
    if wanted is None or (wanted and architectures and not set(wanted) & set(architectures)):
        found = f"{kind} ({', '.join(architectures)})" if architectures else str(kind)
        names = " or ".join(name for type_, names in kinds.items() for name in (names or [type_])) or "another kind"
        raise ValueError(f"{settings.model} is a {found} model, and {purpose} needs {names}")
    if os.path.isdir(settings.model):
        return {"weights": folder_digest(Path(settings.model))}
    from transformers.utils.hub import extract_commit_hash

    return {"model": settings.model, "commit": extract_commit_hash(str(path), None) or str(settings.revision)}


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and sizes of a model's files, all of the small ones and samples of the large ones.

    Samples spread over a file tell apart what training tells apart, at a cost that does not grow with the weights.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _READ_FILES for path in folder.glob(pattern)}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(stream.read())
                continue
            for number in range(_SAMPLES):
                stream.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def open_model(class_name: str, settings: ModelSettings) -> tuple[Any, Any]:
    """Model and processor (or tokenizer, for a model of text alone), the model ready to be asked.

    Raises ValueError in one sentence when the weights do not fit the class or the device.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    where = {"revision": settings.revision} if settings.revision else {}
    reader = transformers.AutoTokenizer if class_name == "AutoModelForCausalLM" else transformers.AutoProcessor
    try:
        with library_bars(False):  # which would break the stage's own
            model, loaded = getattr(transformers, class_name).from_pretrained(
                settings.model, dtype=getattr(torch, dtype_of(settings)), output_loading_info=True, **where
            )
            processor = reader.from_pretrained(settings.model, **where)
        if missing := sorted(loaded["missing_keys"]):
            # They would be random, and what the expert says with them.
            raise ValueError(f"{len(missing)} of its weights are not there, {missing[0]} the first")
        return model.to(device_of(settings)).eval(), processor
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{settings.model} does not fit into the memory of {device_of(settings)}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{settings.model} cannot be opened as {class_name} ({reason})") from error


def free_memory() -> None:
    """Give back what a model that nobody holds any more took."""
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
