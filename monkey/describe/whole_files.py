"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of `path` when the context ends well.

    Raises OSError naming the file when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        with unfinished.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        # What goes wrong with the file itself; the context may fail at reading another.
        if error.errno is None or error.filename not in (None, str(unfinished)):
            raise
        raise OSError(f"{path} cannot be written ({error.strerror or error}); what was there before is kept") from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file. Halves of surrogate pairs, from names that are not UTF-8, become the escapes of JSON."""
    with whole_file(path) as stream:
        stream.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def json_list(rows: Iterable[Any]) -> Iterator[bytes]:
    """A JSON list with a row on each line, piece by piece."""
    yield b"["
    between = b"\n"
    for row in rows:
        yield between + json.dumps(row, ensure_ascii=False).encode("utf-8")
        between = b",\n"
    yield b"\n]\n"
