"""One run at a time in a folder: a lock file that names its holder.

The file is locked by the operating system while its holder lives, so that the lock of a killed run frees itself. The
name in it serves the message, and the case of another machine that shares the folder but not the lock.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from eval.journal import ORPHANS_LIVE
from monkey import file_locks

LOCK = "run.lock"


class RunLock:
    """Holds a run's folder as long as the context is open.

    `found_stale`: the last holder was killed, so that processes it had started may live on for a moment.

    Raises ValueError naming process and machine of the run that holds the folder.
    """

    def __init__(self, folder: Path):
        self.path = folder / LOCK
        self.found_stale = False

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._stream = self.path.open("a+b", buffering=0)
            holder = self._holder()
            if not file_locks.locked(self._stream, 0.0 if _lives(holder) else ORPHANS_LIVE):
                self._refuse(self._holder())
            if self._still_there():
                break
            # Its last holder took the file away between our opening and our locking it.
            file_locks.unlock(self._stream)
        if holder is not None and holder["host"] != platform.node():
            self._refuse(holder)
        self.found_stale = holder is not None
        try:
            self._stream.truncate(0)
            self._stream.write(json.dumps({"pid": os.getpid(), "host": platform.node()}).encode("utf-8"))
        except OSError as error:
            self.__exit__()
            raise OSError(
                f"{self.path} cannot be written ({error.strerror}); make room and give the same command again"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)
        file_locks.unlock(self._stream)

    def _holder(self) -> dict | None:
        """Who is named in the file; None in a new one, and where a crash left no whole name."""
        self._stream.seek(0)
        try:
            holder = json.loads(self._stream.readall())
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None
        whole = isinstance(holder, dict) and isinstance(holder.get("pid"), int) and isinstance(holder.get("host"), str)
        return holder if whole else None

    def _still_there(self) -> bool:
        try:
            return os.fstat(self._stream.fileno()).st_ino == self.path.stat().st_ino
        except FileNotFoundError:
            return False

    def _refuse(self, holder: dict | None) -> None:
        file_locks.unlock(self._stream)
        who = "another run" if holder is None else f"process {holder['pid']} on {holder['host']}"
        raise ValueError(
            f"{self.path.parent} is being written by {who}; wait for it, give another --save_name, or, if it is gone, "
            f"remove {self.path}"
        )


def _lives(holder: dict | None) -> bool:
    """Whether the named process is known to live; one on another machine cannot be asked."""
    if holder is None or holder["host"] != platform.node() or os.name == "nt":
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
