"""From a path written in a record to a file that the record may name: inside its root, and there."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PureWindowsPath

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""`http:`, `file:`, `data:`; a single letter before the colon is a Windows drive."""

_LONGEST_PATH = 4096
"""Characters; Linux takes no longer path, and the base64 of hardly a picture is shorter."""
NOT_IN_PATHS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What a record cannot name a file by: control characters, ends of lines, and bytes that are not UTF-8."""


class PicturePaths:
    """Finds the pictures of one file of records.

    With `image_root` that folder is the only root, and absolute paths inside it are allowed. Without it a relative
    path is looked up in the folder of the records and then in the current one. No path may lead out of its root,
    neither by `..` nor through a symbolic link. Backslashes are taken for slashes where no file is named with them.
    `root_name` is what messages call `image_root`.
    """

    def __init__(self, records: Path, image_root: str | Path | None, root_name: str = "image_root") -> None:
        if image_root is not None and not Path(image_root).is_dir():
            raise FileNotFoundError(f"{image_root}: the folder of the pictures does not exist")
        self._root_name = root_name
        self._only_root = image_root is not None
        folders = [Path(image_root)] if image_root is not None else [records.parent, Path()]
        self._roots = [(folder, os.path.realpath(folder)) for folder in folders]
        self._found: dict[str, Path] = {}  # many records ask about one picture
        self._listed: dict[str, dict[str, str]] = {}

    def find(self, path: str, where: str) -> Path:
        """The file that `path` names. `where` begins the message of a ValueError or FileNotFoundError."""
        if path not in self._found:
            self._found[path] = self._look_up(path, where)
        return self._found[path]

    def _look_up(self, path: str, where: str) -> Path:
        if not path.strip():
            raise ValueError(f"{where}: the path of a picture is empty")
        if path.startswith("data:") or len(path) > _LONGEST_PATH:
            raise ValueError(
                f"{where}: {path[:40]}… holds the picture itself, as base64; write it to a file and name the file"
            )
        if NOT_IN_PATHS.search(path):
            raise ValueError(f"{where}: {path!r} holds characters that no path in a record can have; rename the file")
        if _SCHEME.match(path):
            raise ValueError(f"{where}: {path[:80]} is a URL; download the picture and name the file")
        is_of_windows = os.name != "nt" and PureWindowsPath(path).is_absolute()
        if is_of_windows or (os.path.isabs(path) and not self._only_root):
            raise ValueError(
                f"{where}: {path} is absolute; make it relative, or give the pictures' folder as {self._root_name}"
            )
        for folder, real_folder in self._roots:
            for spelling in dict.fromkeys((path, path.replace("\\", "/"))):
                real = os.path.realpath(os.path.join(real_folder, spelling))
                if not Path(real).is_relative_to(real_folder):
                    raise ValueError(f"{where}: {path} {self._way_out(real_folder, spelling, real)}")
                if os.path.isfile(real):
                    return folder / spelling
        tried = " and ".join(real_folder for _, real_folder in self._roots)
        raise FileNotFoundError(f"{where}: no picture {path} in {tried}{self._instead(path)}")

    def _way_out(self, root: str, path: str, real: str) -> str:
        if Path(os.path.normpath(os.path.join(root, path))).is_relative_to(root):
            return (
                f"leads out of {root} through a symbolic link, to {real}; copy the pictures into the folder, or give "
                f"the one that really holds them as {self._root_name} and write paths from there"
            )
        return f"leads out of {root}; give a folder that holds it as {self._root_name}"

    def _instead(self, path: str) -> str:
        """The end of a sentence on a picture that is not there: what is, where only the spelling differs."""
        for _, root in self._roots:
            if os.path.exists(os.path.join(root, path)):
                return "; what has this name is a folder, a pipe or a device"
            found: list[str] = []
            for part in Path(path.replace("\\", "/")).parts:
                names = self._names(os.path.join(root, *found))
                found.append(names.get(part) or names.get(_folded(part), ""))
            if all(found):
                return f"; there is {'/'.join(found)} (letter case and accents count)"
        return ""

    def _names(self, folder: str) -> dict[str, str]:
        """The names in a folder, each by itself and without what `_folded` takes off."""
        if folder not in self._listed:
            try:
                names = sorted(os.listdir(folder))
            except OSError:  # no folder, or none that may be looked into: then there is nothing to tell of
                names = []
            self._listed[folder] = {_folded(name): name for name in names} | {name: name for name in names}
        return self._listed[folder]


def _folded(name: str) -> str:
    """A name without letter case, and with accents composed, which macOS writes apart."""
    return unicodedata.normalize("NFC", name).casefold()
