"""The journals of a run: what is done is appended to one file a stage and process, and never changed.

A record is found by its key alone, whichever process wrote it, so that a run goes on with any number of processes. A
batch is written by one call and forced to the disk; a line torn by a crash is cut off before the next is written.
Records under other keys, of other settings or of pictures that are gone, stay: to go back to a setting costs nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class StageJournal:
    """Records of one stage: those of all processes to read, this one's to write.

    Raises ValueError naming file and line of one that is damaged.
    """

    def __init__(self, folder: Path, stage: str, shard: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.own = folder / f"{stage}.{shard}.jsonl"
        self._stream = self.own.open("a+b", buffering=0)
        paths = sorted({*folder.glob(f"{stage}.*.jsonl"), self.own})
        self._paths = paths
        self._readers = [path.open("rb") for path in paths]
        self._places: dict[str, tuple[int, int]] = {}
        for number in range(len(paths)):
            self._index(number)
        # A reader keeps what it has read ahead, a torn line that is cut off by now for one.
        number = paths.index(self.own)
        self._readers[number].close()
        self._readers[number] = self.own.open("rb")

    def __enter__(self) -> StageJournal:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._stream, *self._readers):
            stream.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Mapping[str, Any]:
        number, offset = self._places[key]
        reader = self._readers[number]
        reader.seek(offset)
        return json.loads(reader.readline())

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write records, each with its `key`, so that they outlast a crash from here on.

        Raises OSError naming the file when they cannot be written, on a full disk for one.
        """
        if not rows:
            return
        number = self._paths.index(self.own)
        start = os.fstat(self._stream.fileno()).st_size
        lines = [json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n" for row in rows]
        write_lines(self._stream, b"".join(lines), self.own)
        for row, line in zip(rows, lines, strict=True):
            self._places[row["key"]] = (number, start)
            start += len(line)

    def _index(self, number: int) -> None:
        path, offset = self._paths[number], 0
        for count, line in enumerate(self._readers[number], start=1):
            if not line.endswith(b"\n"):
                # Torn, or another process is just writing it.
                if path == self.own:
                    self._stream.truncate(offset)
                break
            try:
                self._places[json.loads(line)["key"]] = (number, offset)
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(
                    f"{path}:{count} is damaged ({error}); remove that line, and it is made again"
                ) from error
            offset += len(line)


def cut_torn_line(path: Path) -> None:
    """Take away what a crash has left behind the last whole line of a file, where there is one."""
    if path.is_file():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def write_lines(stream: Any, content: bytes, path: Path) -> None:
    """Append to a stream without a buffer and force it to the disk. Raises OSError naming the file."""
    written = 0
    try:
        while written < len(content):
            written += stream.write(content[written:])
        os.fsync(stream.fileno())
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}); make room and give the same command again, what was written "
            "is kept"
        ) from error
