"""What a checkpoint's name stands for: the files that answers depend on, and the processor that belongs to it."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

from monkey.adapter_base import BASE_FILE, read_base_record
from monkey.checkpoint_files import weight_files
from monkey.files import checkpoint_file, read_json
from monkey.processing import MonkeyProcessor
from monkey.provenance import file_digest, fingerprint

__all__ = ["base_of", "checkpoint_fingerprint", "file_digest", "processor_of"]

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "qwen.tiktoken",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    ADAPTER_CONFIG_NAME,
    BASE_FILE,
)
"""Files beside the weights that an answer may depend on."""

GREEDY_FILES = (
    ADAPTER_CONFIG_NAME,
    "config.json",
    "qwen.tiktoken",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Those that the evaluator's answers depend on, which are greedy. Their order is part of the keys in its journals."""


def base_of(checkpoint: str | Path) -> str | None:
    """The base of a PEFT adapter folder; None for a checkpoint that stands alone.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an adapter that names no base.
    """
    settings = checkpoint_file(checkpoint, ADAPTER_CONFIG_NAME)
    if settings is None or checkpoint_file(checkpoint, "config.json") is not None:
        return None
    base = read_json(settings).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{settings}: base_model_name_or_path must name the checkpoint that was trained, not {base!r}")
    return base


def processor_of(checkpoint: str | Path, grid: tuple[int, int] | None = None) -> MonkeyProcessor:
    """The processor of a checkpoint; that of the base for an adapter folder without one, on the adapter's grid.

    Args:
        grid: rows and columns of windows other than the checkpoint's own.
    """
    base = base_of(checkpoint)
    if base is None or checkpoint_file(checkpoint, "qwen.tiktoken") is not None:
        return MonkeyProcessor.from_pretrained(checkpoint, grid=grid)
    trained = read_base_record(checkpoint)
    return MonkeyProcessor.from_pretrained(base, grid=grid or (None if trained is None else tuple(trained.grid)))


def checkpoint_fingerprint(checkpoint: str | Path, sampled: bool = True) -> str:
    """Return the SHA-256 over the bytes of every file that answers depend on, an adapter's base included.

    Args:
        sampled: whether the settings of generation count; False for the evaluator, which has its own.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or a file of it is missing.
    """
    return fingerprint(_files_of(checkpoint, sampled))


def _files_of(checkpoint: str | Path, sampled: bool) -> list[str]:
    base = base_of(checkpoint)
    if base is None:
        names = SMALL_FILES if sampled else GREEDY_FILES[1:]
        return [*_present(checkpoint, names), *weight_files(checkpoint, {})]
    found = _present(checkpoint, SMALL_FILES if sampled else GREEDY_FILES)
    weights = _present(checkpoint, (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME))
    return [*found, *weights, *_files_of(base, sampled)]


def _present(checkpoint: str | Path, names: tuple[str, ...]) -> list[str]:
    return [path for name in names if (path := checkpoint_file(checkpoint, name)) is not None]
