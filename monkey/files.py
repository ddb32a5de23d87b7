"""Files of settings and of checkpoints: found, read within limits, and refused in one sentence.

A file of a few hundred bytes can nest so deeply, or name itself so often, that whoever reads it runs out of stack,
memory or time. What is read here is an object of bounded size and depth, whatever the file holds. A checkpoint is a
folder, or a name on the hub (the offline cache included).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

MAX_BYTES = {"JSON": 64 * 2**20, "TOML": 2**20, "YAML": 2**20}
"""Of a file. The index of a large checkpoint is a JSON of some megabytes; the others are written by people."""

MAX_DEPTH = 64
"""Objects and lists inside each other."""

MAX_VALUES = 1_000_000
"""Values of one depth, with those that YAML's aliases repeat."""

MAX_COUNT = 2**31 - 1
"""Of anything that a config counts; sizes beyond overflow where tensors are made of them."""

LOCATION_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that say where a checkpoint lies."""

_POINTER = b"version https://git-lfs.github.com/spec/v"
_LARGEST_POINTER = 1024
"""Bytes; git-lfs calls nothing larger a pointer."""


def read_settings_file(path: str | os.PathLike, where: str | None = None) -> dict[str, Any]:
    """Return the object in a file; TOML and JSON are told by their endings, anything else is YAML.

    Args:
        where: what messages call the file; its path when None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, too deep, malformed or not an object of keys with values, with the line where there is
            one.
    """
    where = where or os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{where}: no such file")
    form = {".json": "JSON", ".toml": "TOML"}.get(Path(path).suffix, "YAML")
    if (size := os.path.getsize(path)) > MAX_BYTES[form]:
        raise ValueError(f"{where} has {size:,} bytes, more than the {MAX_BYTES[form]:,} of a {form} file of settings")
    return parse_settings(Path(path).read_bytes(), form, where)


def read_json(path: str | os.PathLike | None) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one where `path` is None; errors as of `read_settings_file`."""
    return {} if path is None else read_settings_file(path)


def parse_settings(raw: bytes, form: str, where: str) -> dict[str, Any]:
    """Return the object in the bytes of a JSON, YAML or TOML; errors as of `read_settings_file`."""
    try:
        content = _parse(raw.decode("utf-8-sig"), form)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{where}:{line}: not UTF-8 text (byte {raw[error.start]:#04x})") from None
    except RecursionError:
        raise _too_deep(where) from None
    except MemoryError:
        raise
    except Exception as error:  # YAML's `!!bool x` is a KeyError, 2020-13-45 and a number of 9,000 digits a ValueError
        raise _malformed(where, form, error) from None
    if not isinstance(content, dict):
        held = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{where} holds {held}, and an object of keys with values is needed")
    _refuse_endless(content, where)
    return content


def _parse(text: str, form: str) -> Any:
    if form == "YAML":
        import yaml  # here, for most programs read JSON only

        return yaml.safe_load(text)
    return tomllib.loads(text) if form == "TOML" else json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number that JSON has")


def _malformed(where: str, form: str, error: Exception) -> ValueError:
    """Say where a parser stopped, as exactly as it knows."""
    if isinstance(error, json.JSONDecodeError):
        return ValueError(f"{where}:{error.lineno}: malformed JSON at column {error.colno}: {error.msg}")
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    return ValueError(f"{where}{line}: malformed {form}: {getattr(error, 'problem', None) or _one_line(error)}")


def _refuse_endless(content: Any, where: str) -> None:
    level = [content]
    for _ in range(MAX_DEPTH):
        level = list(itertools.islice(_members(level), MAX_VALUES + 1))
        if len(level) > MAX_VALUES:
            raise ValueError(f"{where} holds more than {MAX_VALUES:,} values, repeated ones counted as often")
        if not level:
            return
    raise _too_deep(where)


def _members(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, (list, set, tuple)):
            yield from value


def _too_deep(where: str) -> ValueError:
    return ValueError(f"{where} nests objects and lists in each other more than {MAX_DEPTH} deep")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


_KINDS = {
    "count": (lambda value: _is_whole(value) and value > 0, "a whole number from 1 to 2,147,483,647 is"),
    "rank": (_is_whole, "a whole number from 0 to 2,147,483,647 is"),
    "number": (
        lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf,
        "a number from 0 on is",
    ),
    "flag": (lambda value: isinstance(value, bool), "true or false is"),
    "text": (lambda value: isinstance(value, str), "a text is"),
}


def check_field(name: str, value: Any, kind: str) -> None:
    """Raise ValueError unless the value of a field is a count, rank, number, flag or text, as `kind` says."""
    fits, needed = _KINDS[kind]
    if not fits(value):
        shown = repr(value)
        raise ValueError(f"{name} is {shown[:60]}{'…' * (len(shown) > 60)}, and {needed} needed")


@contextmanager
def refused_in_a_sentence(file: str | os.PathLike) -> Iterator[None]:
    """Say in one sentence what transformers and peft raise at a file whose values they do not expect.

    Raises:
        ValueError: naming `file`; torch.OutOfMemoryError passes.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{os.fspath(file)} asks for a package that is not here: {_one_line(error)}") from error
    except (
        *(AttributeError, LookupError, OSError, OverflowError, RecursionError),
        *(StrictDataclassError, TypeError, ValueError),
    ) as error:
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise ValueError(f"{os.fspath(file)} is not of the form that is read here ({reason})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def location_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that say where a checkpoint lies, out of all that `from_pretrained` was given."""
    return {key: arguments[key] for key in LOCATION_KEYS if arguments.get(key) is not None}


def checkpoint_file(checkpoint: str | os.PathLike, filename: str, **location: Any) -> str | None:
    """Return the path of `filename` in a checkpoint, or None when the checkpoint has no such file.

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


def required_file(checkpoint: str | os.PathLike, filename: str, purpose: str, **location: Any) -> str:
    """Return the path of `filename` in a checkpoint; FileNotFoundError names checkpoint, file and purpose."""
    path = checkpoint_file(checkpoint, filename, **location)
    if path is None:
        place = "the folder" if os.path.isdir(checkpoint) else "the hub's offline cache"
        raise FileNotFoundError(f"{os.fspath(checkpoint)}: no {filename} in {place}, and it is needed for {purpose}")
    return path


def project_folder() -> Path:
    """Return the folder with configs/, eval/, models/ and scripts/: a checkout, or the one that a wheel has."""
    package = Path(__file__).resolve().parent
    return package / "project" if (package / "project").is_dir() else package.parent


def refuse_missing(checkpoint: str) -> None:
    """Raise what `checkpoint_file` does of a name that can be on no hub; programs ask before they import anything."""
    if os.path.isfile(checkpoint):
        raise ValueError(f"{checkpoint} is a file, and a checkpoint is a folder or a hub name")
    if not os.path.isdir(checkpoint) and _is_written_as_path(checkpoint):
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint folder")


def refuse_existing(folder: Path) -> None:
    """Raise ValueError for a folder to write where something is already; an empty folder is nothing."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; name a new folder")


def _is_written_as_path(checkpoint: str) -> bool:
    """Whether the name is not `owner/name` on the hub, or its owner is a folder here."""
    owner, _, repository = checkpoint.partition("/")
    return not owner or owner.startswith((".", "~")) or not repository or "/" in repository or os.path.isdir(owner)


def _refuse_pointer(path: str) -> None:
    """Raise ValueError for what git-lfs leaves in the place of a large file that was not fetched."""
    if os.path.getsize(path) < _LARGEST_POINTER and Path(path).read_bytes().startswith(_POINTER):
        raise ValueError(
            f"{path} is a git-lfs pointer, and not the file itself: run `git lfs pull` in {os.path.dirname(path)}"
        )


def is_adapter(checkpoint: str | os.PathLike, **location: Any) -> bool:
    """Whether a checkpoint is a PEFT adapter, which needs its base, rather than a whole model."""
    if checkpoint_file(checkpoint, "adapter_config.json", **location) is None:
        return False
    return checkpoint_file(checkpoint, "config.json", **location) is None


def base_of(checkpoint: str | os.PathLike, **location: Any) -> str | None:
    """Return the base of a PEFT adapter; None for a checkpoint that stands alone.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an adapter that names no base.
    """
    if not is_adapter(checkpoint, **location):
        return None
    settings = checkpoint_file(checkpoint, "adapter_config.json", **location)
    base = read_json(settings).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{settings}: base_model_name_or_path must name the checkpoint that was trained, not {base!r}")
    return base
