"""Finding one file of a checkpoint: in a folder, or under a hub name (the offline cache included)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from monkey.settings_files import read_settings_file

LOCATION_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that say where a checkpoint lies."""


_POINTER = b"version https://git-lfs.github.com/spec/v"
_LARGEST_POINTER = 1024
"""Bytes; git-lfs calls nothing larger a pointer."""


# What transformers and peft raise where a value in a file of theirs has another type than they expect.
_NOT_EXPECTED = (
    AttributeError,
    LookupError,
    OSError,
    OverflowError,
    RecursionError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


def location_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that say where a checkpoint lies, out of all that `from_pretrained` was given."""
    return {key: arguments[key] for key in LOCATION_KEYS if arguments.get(key) is not None}


def checkpoint_file(checkpoint: str | os.PathLike, filename: str, **location: Any) -> str | None:
    """Path of `filename` in a checkpoint, or None when the checkpoint has no such file.

    Raises:
        FileNotFoundError: no such folder, and no such name on the hub.
        ValueError: the checkpoint is a file, or the file in it is a git-lfs pointer.
    """
    checkpoint = os.fspath(checkpoint)
    refuse_missing(checkpoint)
    from transformers.utils import cached_file

    try:
        path = cached_file(
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
    if path is not None:
        _refuse_pointer(path)
    return path


def _refuse_pointer(path: str) -> None:
    """Raise ValueError for what git-lfs leaves in the place of a large file that was not fetched."""
    if os.path.getsize(path) < _LARGEST_POINTER:
        with open(path, "rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
        if is_pointer:
            raise ValueError(
                f"{path} is a git-lfs pointer, and not the file itself: run `git lfs pull` in {os.path.dirname(path)}"
            )


def refuse_missing(checkpoint: str) -> None:
    """Raise what `checkpoint_file` does of a name that can be on no hub; programs ask before they import anything."""
    if os.path.isfile(checkpoint):
        raise ValueError(f"{checkpoint} is a file, and a checkpoint is a folder or a hub name")
    if not os.path.isdir(checkpoint) and _is_written_as_path(checkpoint):
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint folder")


def required_file(checkpoint: str | os.PathLike, filename: str, purpose: str, **location: Any) -> str:
    """Path of `filename` in a checkpoint, or FileNotFoundError naming the checkpoint, the file and its purpose."""
    path = checkpoint_file(checkpoint, filename, **location)
    if path is None:
        place = "the folder" if os.path.isdir(checkpoint) else "the hub's offline cache"
        raise FileNotFoundError(f"{os.fspath(checkpoint)}: no {filename} in {place}, and it is needed for {purpose}")
    return path


@contextmanager
def refused_in_a_sentence(file: str | os.PathLike) -> Iterator[None]:
    """Say in one sentence what the libraries raise at a file whose values they do not expect.

    Raises:
        ValueError: naming `file`; torch.OutOfMemoryError passes.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{os.fspath(file)} asks for a package that is not here: {_on_one_line(error)}") from error
    except _NOT_EXPECTED as error:
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise
        reason = f"{type(error).__name__}: {_on_one_line(error)}"
        raise ValueError(f"{os.fspath(file)} is not of the form that is read here ({reason})") from error


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


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
