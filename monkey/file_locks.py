"""Locks on open files, freed by the operating system when their holder ends, however it ends."""

from __future__ import annotations

import errno
import time
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind; two runs in one folder are then not noticed.
    fcntl = None

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def locked(stream: Any, patience: float = 0.0) -> bool:
    """Whether the file could be locked for this process, waiting `patience` seconds for it.

    Where the file system has no locks, as some of clusters have not, every file counts as free.
    """
    if fcntl is None:
        return True
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return True
            raise
        else:
            return True


def unlock(stream: Any) -> None:
    """Close a locked file. Processes forked meanwhile have it open too, and would keep a lock that is only closed."""
    if fcntl is not None and not stream.closed:
        fcntl.flock(stream, fcntl.LOCK_UN)
    stream.close()
