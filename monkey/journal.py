"""What outlives a crash: journals of finished work, files and folders that are written whole, and who holds a place.

A journal is one append-only file of JSON lines per process, each line a record under its `key`, a digest of everything
that the record depends on. Whatever was appended is on the disk; a line torn by a crash is cut off before the next is
written. A record is found by its key alone, whichever process wrote it, so that a job goes on with any number of them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock as LibraryLock
from filelock import Timeout

PARTIAL = ".partial"
"""End of the names of what is being written and has not come into its place yet."""

LOCK = ".lock"

ORPHAN_GRACE = 15.0
"""Seconds that the loading processes of a killed program may outlive it with its locks held: they look every five."""


def digest(**parts: Any) -> str:
    """SHA-256 over everything that a record depends on, as hexadecimal text."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def json_line(row: Any) -> bytes:
    """One row of a JSONL file. Halves of surrogate pairs, from names that are not UTF-8, become the escapes of JSON."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def read_records(path: Path, fields: Mapping[str, type], way_out: str) -> Iterator[dict[str, Any]]:
    """Yield every record of a journal in the order written, without holding the file.

    A line that another process is just writing ends it. Raises ValueError naming a damaged line.

    Args:
        fields, way_out: as of `Journal`.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            if line.strip():
                record = _parse_record(line, fields)
                if record is None:
                    raise ValueError(f"{path}:{number} is damaged; {way_out}")
                yield record


class FileLock(LibraryLock):
    """The library's lock; where the file system has none, as NFS without its daemon, every file counts as free."""

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().acquire(*args, **kwargs)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            return None


class Journal:
    """Records by key: those of every process of a job to read, this one's file to append to.

    Args:
        path: this process's file; it is made where it does not exist, and held until `close`.
        others: files of other processes, read and never written; `path` among them is passed over.
        fields: names and types that each record must have.
        way_out: what the user can do about a damaged line, the end of a sentence.
        busy: what the user can do when another run holds `path`, the end of a sentence.
        timeout: seconds to wait for another holder to end.
        mend: blank the damaged lines of this process's file instead of refusing them.

    Raises:
        ValueError: another run holds the file, or a line is damaged; with file and line.
    """

    def __init__(
        self,
        path: Path,
        others: Iterable[Path] = (),
        *,
        fields: Mapping[str, type] | None = None,
        way_out: str = "remove that line, and its work is done again",
        busy: str = "wait for it to end",
        timeout: float = 0.0,
        mend: bool = False,
    ):
        self.path, self._others, self._way_out = path, [other for other in others if other != path], way_out
        self._fields = {"key": str} | dict(fields or {})
        self._places: dict[str, tuple[Path, int]] = {}
        self._ends: dict[Path, tuple[int, int]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}{LOCK}")
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            raise ValueError(f"{path} is being written by another run; {busy}") from None
        try:
            # Without a buffer, what a full disk refused is not written by a later close.
            self._stream = path.open("a+b", buffering=0)
            self._cut_torn_line()
            if mend:
                self.blank(lambda record: record is None)
            self.refresh()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others hold the file. Calling it again does nothing."""
        if hasattr(self, "_stream"):
            self._stream.close()
        if self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Read the last record under a key from the disk. Raises KeyError."""
        path, offset = self._places[key]
        with path.open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write records, each with its `key`, by one call that forces them to the disk.

        Raises OSError naming the file where they cannot be written, on a full disk for one.
        """
        lines = [json_line(row) for row in rows]
        offset = os.fstat(self._stream.fileno()).st_size
        append_forced(self._stream, b"".join(lines), self.path)
        for row, line in zip(rows, lines, strict=True):
            self._places[row["key"]] = (self.path, offset)
            offset += len(line)
        self._ends[self.path] = (offset, self._ends.get(self.path, (0, 0))[1] + len(lines))

    def clear(self) -> None:
        """Forget every record of this process's file."""
        self._stream.truncate(0)
        self._ends.pop(self.path, None)
        self._places = {key: place for key, place in self._places.items() if place[0] != self.path}

    def refresh(self) -> None:
        """Take in what other processes have appended since the files were last read."""
        for path in (*self._others, self.path):
            if path.exists():
                self._index(path)

    def blank(self, is_bad: Callable[[dict[str, Any] | None], bool]) -> int:
        """Overwrite the lines of this process's file whose record is bad with blanks, and return how many.

        It happens in place, so that a crash on the way loses no other line. None stands for a damaged line.
        """
        count = offset = 0
        with self.path.open("r+b") as file:
            for line in file.read().splitlines(keepends=True):
                content = line.rstrip(b"\r\n")
                if content.strip() and is_bad(_parse_record(content, self._fields)):
                    file.seek(offset)
                    file.write(b" " * len(content))
                    count += 1
                offset += len(line)
        self._ends.pop(self.path, None)
        self._places = {key: place for key, place in self._places.items() if place[0] != self.path}
        self._index(self.path)
        return count

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        self._stream.truncate(content.rfind(b"\n") + 1)

    def _index(self, path: Path) -> None:
        offset, number = self._ends.get(path, (0, 0))
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # another process is just writing it
                number += 1
                if line.strip():
                    record = _parse_record(line, self._fields)
                    if record is None:
                        raise ValueError(f"{path}:{number} is damaged; {self._way_out}")
                    self._places[record["key"]] = (path, offset)
                offset += len(line)
        self._ends[path] = (offset, number)


def append_forced(stream: FileIO, content: bytes, path: Path) -> None:
    """Append to a file opened without a buffer and force it to the disk. Raises OSError naming the file."""
    try:
        while content:
            content = content[stream.write(content) :]
        os.fsync(stream.fileno())
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}); make room and give the same command again, what was written "
            "is kept"
        ) from error


def _parse_record(line: bytes, fields: Mapping[str, type]) -> dict[str, Any] | None:
    """Return the record of a line; None where it is damaged."""
    try:
        record = json.loads(line)
        is_whole = all(isinstance(record[name], kind) for name, kind in fields.items())
    except (ValueError, KeyError, TypeError):
        return None
    return record if is_whole else None


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a stream whose content takes the place of `path` when the context ends well.

    Raises OSError naming the file where it cannot be written; what was there before is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        # What goes wrong with the file itself; the context may fail at reading another.
        if error.errno is None or error.filename not in (None, str(partial)):
            raise
        raise OSError(f"{path} cannot be written ({error.strerror or error}); what was there before is kept") from error
    finally:
        partial.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_file(path) as stream:
        stream.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def write_json(path: Path, content: Any, sort_keys: bool = False) -> None:
    """Write indented JSON whole or not at all."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `path` when the context ends well.

    A folder that was there before is replaced; it stays as it was if anything goes wrong.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    former = path.with_name(f".{path.name}.{os.getpid()}.former{PARTIAL}")
    _remove(partial)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            os.replace(path, former)
        try:
            os.replace(partial, path)
        except OSError:
            if former.exists():
                os.replace(former, path)
            raise
    finally:
        _remove(partial)
        _remove(former)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder; what they were about to replace is put back."""
    for former in folder.glob(f".*.former{PARTIAL}"):
        path = former.with_name(former.name[1:].rsplit(".", 3)[0])
        if not path.exists():
            os.replace(former, path)
    for partial in folder.glob(f".*{PARTIAL}"):
        _remove(partial)


def _remove(path: Path) -> None:
    """Remove what lies there, if anything does: a folder whole, a link alone. What cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def hold(
    path: Path,
    busy: str,
    note: Mapping[str, Any] | None = None,
    any_host: bool = False,
) -> Iterator[bool]:
    """Hold the lock file `path` while the context is open; yield whether its last holder was killed.

    The operating system frees the lock however its holder ends. The file names the holder, for the message, and for the
    case of another machine that shares the folder but not the lock.

    Args:
        busy: what the user can do when another process holds it, the end of a sentence.
        note: what else others may want to know of the holder; see `holder_of`.
        any_host: trust the lock alone: what a killed process of another machine left behind refuses nobody.

    The loading processes of a killed holder are waited for. Raises ValueError naming process and machine of the holder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=ORPHAN_GRACE if _was_killed(_read_holder(path)) else 0)
    except Timeout:
        raise ValueError(f"{path.parent} is being written by {describe_holder(_read_holder(path))}; {busy}") from None
    try:
        last = _read_holder(path)
        if not any_host and last.get("host", platform.node()) != platform.node():
            raise ValueError(
                f"{path.parent} is being written by {describe_holder(last)}; {busy}, or, if it is gone, remove {path}"
            )
        try:
            path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), **(note or {})}), encoding="utf-8")
        except OSError as error:
            path.unlink(missing_ok=True)
            raise OSError(
                f"{path} cannot be written ({error.strerror}); make room and give the same command again"
            ) from error
        try:
            yield bool(last)
        finally:
            path.unlink(missing_ok=True)
    finally:
        lock.release()


def holder_of(path: Path) -> dict[str, Any] | None:
    """Who holds a lock file now, as its file says; None where nobody does."""
    if not path.exists():
        return None
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _read_holder(path)
    lock.release()
    return None


def describe_holder(holder: Mapping[str, Any]) -> str:
    """Name a holder in a sentence."""
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= set(holder) else "another process"


def _read_holder(path: Path) -> dict[str, Any]:
    """Content of a lock file; empty in a new one, and where a crash left no whole name."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, FileNotFoundError):
        return {}


def _was_killed(holder: Mapping[str, Any]) -> bool:
    """Whether the named process is known to be gone; one on another machine cannot be asked."""
    if os.name == "nt" or not isinstance(holder.get("pid"), int) or holder.get("host") != platform.node():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
