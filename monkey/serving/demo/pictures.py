"""Pictures that people upload: kept for their conversation, each person's apart from the others', and no longer.

Every file of a person has that person's token in its name, which nobody can guess. gradio copies files before it
shows them and keeps their names, so the copies are found by the token, too.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

KEEP_SECONDS, CHECK_EVERY_SECONDS = 3600, 60
"""How old files get, and how often old ones are looked for."""

LONGEST_SHOWN_SIDE = 1200
"""Pixels of the longer side of what the page shows of a picture; the model reads the picture itself."""

SMALL_PIXELS = 512 * 512
"""Up to here a picture is shown as PNG, without loss; larger ones as JPEG."""


@dataclass(frozen=True)
class KeptPicture:
    """An uploaded picture.

    Attributes:
        name: what its owner calls it.
        file: its bytes as they came.
        shown: the same upright, RGB, and small enough for a page.
        size: width and height of the upright picture.
    """

    name: str
    file: Path
    shown: Path
    size: tuple[int, int]


@dataclass
class _Belongings:
    """What one person has here."""

    token: str = field(default_factory=lambda: secrets.token_hex(12))
    count: int = 0
    pictures: dict[str, KeptPicture] = field(default_factory=dict)
    """By the file name of what is shown."""
    uploads: dict[Path, tuple[int, int] | None] = field(default_factory=dict)
    """Where they were uploaded, and which file lay there: gradio puts equal files of all people into one place."""


class PictureStore:
    """Pictures below one folder, which holds nothing else that matters; callers may be many threads.

    Args:
        folder: gradio's folder for uploads.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._own = folder / "pictures"
        self._of: dict[str, _Belongings] = {}
        self._lock = threading.Lock()

    def take(self, person: str, uploaded: Path, name: str, opened: Callable[[bytes, str], Image.Image]) -> KeptPicture:
        """Keep an uploaded file for a person. Where it was uploaded, it stays as long, good or bad, for the page may
        still be fetching it.

        Args:
            opened: opens the file's bytes, of which errors say `name`.

        Raises:
            FileNotFoundError: the file is not there any more.
            ValueError: whatever `opened` finds wrong.
        """
        with self._lock:
            self._belongings(person).uploads[uploaded] = _identity(uploaded)
        return self.add(person, uploaded.read_bytes(), name, opened)

    def add(self, person: str, content: bytes, name: str, opened: Callable[[bytes, str], Image.Image]) -> KeptPicture:
        """Keep a picture for a person, given its file's bytes; the rest as of `take`."""
        image = opened(content, name)
        file = self._new_path(person, "original")
        file.write_bytes(content)
        picture = KeptPicture(name, file, self.keep_image(person, image), image.size)
        with self._lock:
            self._belongings(person).pictures[picture.shown.name] = picture
        return picture

    def keep_image(self, person: str, image: Image.Image) -> Path:
        """A file that the page can show, of a picture made for a person.

        Raises:
            FileNotFoundError: the person has been released since they gave their pictures.
        """
        if person not in self._of:
            raise FileNotFoundError("the pictures were deleted")
        is_small = image.width * image.height <= SMALL_PIXELS
        path = self._new_path(person, "png" if is_small else "jpg")
        shown = image
        if max(image.size) > LONGEST_SHOWN_SIDE:
            shown = image.copy()
            shown.thumbnail((LONGEST_SHOWN_SIDE, LONGEST_SHOWN_SIDE))
        shown.save(path, **({} if is_small else {"quality": 88}))
        with self._lock:
            is_theirs = person in self._of and path.name.startswith(self._of[person].token)
        if not is_theirs:
            _remove(path)
            raise FileNotFoundError("the pictures were deleted")
        return path

    def find(self, person: str, path: str) -> KeptPicture | None:
        """A person's own picture by what the page calls it; nobody else's, and no other file."""
        with self._lock:
            belongings = self._of.get(person)
            return belongings.pictures.get(Path(path).name) if belongings else None

    def release(self, person: str) -> None:
        """Delete everything of a person; what somebody else uploaded too stays until that one goes."""
        with self._lock:
            belongings = self._of.pop(person, None)
            if belongings is None:
                return
            for path, identity in belongings.uploads.items():
                if _identity(path) != identity:
                    continue
                heirs = [other.uploads for other in self._of.values() if path in other.uploads]
                if heirs:
                    heirs[0][path] = identity
                else:
                    _remove(path)
        for path in self._files():
            if belongings.token in path.name:
                _remove(path)

    def sweep(self, now: float | None = None) -> None:
        """Delete files that are older than `KEEP_SECONDS`."""
        oldest = (time.time() if now is None else now) - KEEP_SECONDS
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    _remove(path)

    def _files(self) -> list[Path]:
        """Every file in the folder; what others delete meanwhile is no error."""
        return [Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names]

    def _belongings(self, person: str) -> _Belongings:
        return self._of.setdefault(person, _Belongings())

    def _new_path(self, person: str, ending: str) -> Path:
        with self._lock:
            belongings = self._belongings(person)
            belongings.count += 1
            name = f"{belongings.token}-{belongings.count}.{ending}"
        self._own.mkdir(parents=True, exist_ok=True)
        return self._own / name


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that was put into its place later; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _remove(path: Path) -> None:
    """Delete a file, and the folder that it leaves empty."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not empty, or somebody else was faster
        path.parent.rmdir()


class Sweeper:
    """Sweeps a store in a thread of its own while a `with` block runs."""

    def __init__(self, store: PictureStore):
        self._store = store
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sweep, name="sweeper", daemon=True)

    def __enter__(self) -> Sweeper:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sweep(self) -> None:
        while not self._ended.wait(CHECK_EVERY_SECONDS):
            self._store.sweep()
