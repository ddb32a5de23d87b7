"""Finding one file of a checkpoint: in a folder, or under a hub name (the offline cache included)."""

from __future__ import annotations

import os
from typing import Any

from transformers.utils import cached_file

from monkey.settings_files import read_settings_file

LOCATION_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that say where a checkpoint lies."""


def location_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that say where a checkpoint lies, out of all that `from_pretrained` was given."""
    return {key: arguments[key] for key in LOCATION_KEYS if arguments.get(key) is not None}


def checkpoint_file(checkpoint: str | os.PathLike, filename: str, **location: Any) -> str | None:
    """Path of `filename` in a checkpoint, or None when the checkpoint has no such file.

    Raises:
        FileNotFoundError: no such folder, and no such name on the hub.
        ValueError: the checkpoint is a file.
    """
    checkpoint = os.fspath(checkpoint)
    if os.path.isfile(checkpoint):
        raise ValueError(f"{checkpoint} is a file, and a checkpoint is a folder or a hub name")
    if not os.path.isdir(checkpoint) and _is_written_as_path(checkpoint):
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint folder")
    try:
        return cached_file(
            checkpoint,
            filename,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **location,
        )
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"{checkpoint}: no such folder, and no such checkpoint on the hub ({reason})"
        ) from error


def required_file(checkpoint: str | os.PathLike, filename: str, purpose: str, **location: Any) -> str:
    """Path of `filename` in a checkpoint, or FileNotFoundError naming the checkpoint, the file and its purpose."""
    path = checkpoint_file(checkpoint, filename, **location)
    if path is None:
        place = "the folder" if os.path.isdir(checkpoint) else "the hub's offline cache"
        raise FileNotFoundError(f"{os.fspath(checkpoint)}: no {filename} in {place}, and it is needed for {purpose}")
    return path


def _is_written_as_path(checkpoint: str) -> bool:
    """Whether the name is not `owner/name` on the hub, or its owner is a folder here."""
    owner, _, repository = checkpoint.partition("/")
    return not owner or owner.startswith((".", "~")) or not repository or "/" in repository or os.path.isdir(owner)


def read_json(path: str | None) -> dict[str, Any]:
    """The JSON object in a file, or an empty one where there is no file.

    Raises:
        ValueError: the file is not JSON, with its line, or is no object; see `read_settings_file`.
    """
    return {} if path is None else read_settings_file(path)
