"""From a path written in a record to a file that the record may name: inside its root, and there."""

from __future__ import annotations

import os.path
import re
from pathlib import Path

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""`http:`, `file:`, `data:`; a single letter before the colon is a Windows drive."""


class PicturePaths:
    """Finds the pictures of one file of records.

    With `image_root` that folder is the only root, and absolute paths inside it are allowed. Without it a relative
    path is looked up in the folder of the records and then in the current one. No path may lead out of its root,
    neither by `..` nor through a symbolic link. `root_name` is what messages call `image_root`.
    """

    def __init__(self, records: Path, image_root: str | Path | None, root_name: str = "image_root") -> None:
        if image_root is not None and not Path(image_root).is_dir():
            raise FileNotFoundError(f"{image_root}: the folder of the pictures does not exist")
        self._root_name = root_name
        self._only_root = image_root is not None
        folders = [Path(image_root)] if image_root is not None else [records.parent, Path()]
        self._roots = [(folder, os.path.realpath(folder)) for folder in folders]
        self._found: dict[str, Path] = {}  # many records ask about one picture

    def find(self, path: str, where: str) -> Path:
        """The file that `path` names. `where` begins the message of a ValueError or FileNotFoundError."""
        if path not in self._found:
            self._found[path] = self._look_up(path, where)
        return self._found[path]

    def _look_up(self, path: str, where: str) -> Path:
        if not path.strip():
            raise ValueError(f"{where}: the path of a picture is empty")
        if not path.isprintable():
            raise ValueError(f"{where}: {path!r} holds characters that no path has")
        if _SCHEME.match(path):
            raise ValueError(f"{where}: {path[:80]} is a URL; download the picture and name the file")
        if os.path.isabs(path) and not self._only_root:
            raise ValueError(
                f"{where}: {path} is absolute; make it relative, or give the pictures' folder as {self._root_name}"
            )
        for folder, real_folder in self._roots:
            real = os.path.realpath(os.path.join(real_folder, path))
            if not Path(real).is_relative_to(real_folder):
                raise ValueError(
                    f"{where}: {path} leads out of {real_folder}; give a folder that holds it as {self._root_name}"
                )
            if os.path.isfile(real):
                return folder / path
        tried = " and ".join(real_folder for _, real_folder in self._roots)
        raise FileNotFoundError(f"{where}: no picture {path} in {tried}")
