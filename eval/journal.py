"""The journal of a run: one line an answer, appended and flushed batch by batch, so that an interrupted run goes on.

A line is worth something only under its key: task, row, question id, image bytes, exact prompt, generation settings
and model. When any of these changes the key does, and the answer is asked for again. Lines are never changed; a
line torn by a crash is cut off before the next is written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind; two runs in one folder are then not noticed.
    fcntl = None


def answer_key(**parts: Any) -> str:
    """SHA-256 over everything an answer depends on."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class Journal:
    """An append-only file of answers, held by one run at a time.

    Raises ValueError when another run holds it.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a+b")
        if fcntl is not None:
            try:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._stream.close()
                raise ValueError(f"{path.parent} is being written by another run; give another --save_name") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def clear(self) -> None:
        """Forget every answer."""
        self._stream.truncate(0)

    def read(self, keys: Iterable[str]) -> list[Mapping[str, Any]]:
        """The lines under these keys, in the order written. A torn last line is cut off; any other broken line is
        an error.

        Raises ValueError naming file and line.
        """
        wanted = set(keys)
        self._stream.seek(0)
        content = self._stream.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            self._stream.truncate(whole)
        entries = []
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
                key = entry["key"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}:{number} is damaged ({error}); --fresh starts again without it"
                ) from error
            if key in wanted:
                entries.append(entry)
        return entries

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write lines so that they outlast a crash from here on."""
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        self._stream.write(lines.encode("utf-8"))
        self._stream.flush()
        os.fsync(self._stream.fileno())
