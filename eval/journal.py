"""The journal of a run: one line an answer, appended and flushed batch by batch, so that an interrupted run goes on.

A line is worth something only under its key: task, row, question id, image bytes, exact prompt, generation settings
and model. When any of these changes the key does, and the answer is asked for again. Lines are never changed, unless a
repair blanks them out; a line torn by a crash is cut off before the next is written. Each process of a run has a file
of its own for a task; who wrote a line says nothing about it, so that a run goes on with any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from monkey import file_locks

JOURNALS = "journal*.jsonl"
"""The journals of a task, of whichever processes."""

ORPHANS_LIVE = 15.0
"""Seconds that the loading processes of a killed run may outlive it, with its files open: they look every five."""

_FIELDS = {"key": str, "row": int, "raw": str, "tokens": int, "stop": str}
"""What a line holds; see `eval.asking.journal_entry`."""


def answer_key(**parts: Any) -> str:
    """SHA-256 over everything an answer depends on."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def journal_name(rank: int) -> str:
    """Name of the journal that the process of this rank writes."""
    return f"journal-{rank}.jsonl" if rank else "journal.jsonl"


def journals_of(folder: Path) -> list[Path]:
    """The journals in a task's folder, in the order of their processes."""
    return sorted(folder.glob(JOURNALS), key=lambda path: (len(path.name), path.name))


class Journal:
    """An append-only file of answers, held by one process at a time.

    Args:
        patience: seconds to wait for another holder to end.

    Raises ValueError when another run holds it.
    """

    def __init__(self, path: Path, patience: float = 0.0):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, what a full disk refused is not written by a later close.
        self._stream = path.open("a+b", buffering=0)
        if not file_locks.locked(self._stream, patience):
            self._stream.close()
            raise ValueError(f"{path.parent} is being written by another run; give another --save_name")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        file_locks.unlock(self._stream)

    def clear(self) -> None:
        """Forget every answer."""
        self._stream.truncate(0)

    def read(self, keys: Iterable[str]) -> list[Mapping[str, Any]]:
        """The lines under these keys, in the order written. A torn last line is cut off; any other broken line is
        an error.

        Raises ValueError naming file and line.
        """
        self._stream.seek(0)
        content = self._stream.readall()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            self._stream.truncate(whole)
        return _entries(content[:whole], self.path, frozenset(keys))

    def blank(self, is_bad: Callable[[Mapping[str, Any] | None], bool]) -> int:
        """Overwrite with blanks the lines whose entry is bad, None being that of a damaged line; return how many."""
        self._stream.seek(0)
        count = place = 0
        # In its place, so that a crash on the way loses no other line. This stream could only append.
        with self.path.open("r+b") as file:
            for line in self._stream.readall().splitlines(keepends=True):
                content = line.rstrip(b"\r\n")
                if content.strip() and is_bad(_entry(content)):
                    file.seek(place)
                    file.write(b" " * len(content))
                    count += 1
                place += len(line)
        return count

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write lines so that they outlast a crash from here on.

        Raises OSError naming the file when they cannot be written, on a full disk for one.
        """
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode("utf-8")
        written = 0
        try:
            while written < len(lines):
                written += self._stream.write(lines[written:])
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise OSError(
                f"{self.path} cannot be written ({error.strerror}); make room and give the same command again, "
                "those written are kept"
            ) from error


def read_entries(path: Path, keys: Iterable[str]) -> list[Mapping[str, Any]]:
    """The lines of another process's journal under these keys; a line it is just writing is left out."""
    content = path.read_bytes()
    return _entries(content[: content.rfind(b"\n") + 1], path, frozenset(keys))


def _entries(lines: bytes, path: Path, wanted: frozenset[str]) -> list[Mapping[str, Any]]:
    entries = []
    for number, line in enumerate(lines.splitlines(), start=1):
        if not line.strip():
            continue
        entry = _entry(line)
        if entry is None:
            raise ValueError(
                f"{path}:{number} is damaged; --repair keeps all other answers and asks this one again, --fresh starts "
                "again without any"
            )
        if entry["key"] in wanted:
            entries.append(entry)
    return entries


def _entry(line: bytes) -> Mapping[str, Any] | None:
    """The answer of a line; None where it is damaged."""
    try:
        entry = json.loads(line)
        is_whole = all(isinstance(entry[name], kind) for name, kind in _FIELDS.items())
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None
    return entry if is_whole else None
