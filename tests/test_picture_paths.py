"""Paths of pictures as people and other systems write them: found, or refused with what is there instead."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from monkey.data.picture_paths import PicturePaths


@pytest.fixture
def folder(tmp_path) -> Path:
    """`set/images` with a few pictures, a link to a folder outside, and a pipe."""
    images = tmp_path / "set" / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("a.png", "caf\u00e9.png", "a b#c %20\u4e2d.png", "Screenshot 9.41\u202fAM.png"):
        (images / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "set" / "pics").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(images / "pipe.png")
    return tmp_path / "set"


def find(folder: Path, path: str, root: Path | None = None) -> Path:
    return PicturePaths(folder / "rows.jsonl", root, "--data-root").find(path, "rows.jsonl:7")


def test_names_as_other_systems_give_them_are_found(folder):
    for name in ("a.png", "a b#c %20\u4e2d.png", "Screenshot 9.41\u202fAM.png"):
        assert find(folder, f"images/{name}") == folder / "images" / name
    assert find(folder, "images\\a.png") == folder / "images" / "a.png"
    (folder / "images\\a.png").touch()
    assert find(folder, "images\\a.png") == folder / "images\\a.png"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Images/A.PNG", r"no picture Images/A.PNG in .*; there is images/a.png \(letter case and accents count\)$"),
        ("images\\A.png", r"; there is images/a.png \("),
        ("images/cafe\u0301.png", "; there is images/caf\u00e9.png \\("),
        ("images/none.png", r"no picture images/none.png in \S+ and \S+$"),
        ("images/sub", "what has this name is a folder, a pipe or a device"),
        ("images/pipe.png", "what has this name is a folder, a pipe or a device"),
        ("pics/a.png", r"leads out of .*/set through a symbolic link, to .*elsewhere/a.png; copy .* as --data-root"),
        ("..\\elsewhere\\a.png", "leads out of .*; give a folder that holds it as --data-root"),
        ("C:\\scans\\a.png", "is absolute; make it relative, or give the pictures' folder as --data-root"),
        ("images/a\tb.png", r"'images/a\\tb.png' holds characters that no path in a record can have; rename the file"),
        ("images/\udcff.png", "holds characters that no path in a record can have"),
    ],
)
def test_each_refusal_says_what_is_there_or_the_way_out(folder, path, message):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        find(folder, path)
    assert str(caught.value).startswith("rows.jsonl:7: ")
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_the_way_out_of_a_linked_folder_leads_out(folder):
    assert find(folder, "a.png", folder.parent / "elsewhere") == folder.parent / "elsewhere" / "a.png"


def test_a_folder_is_listed_once_however_many_pictures_are_missing(folder, monkeypatch):
    listed = []
    listing = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listing(path))
    paths = PicturePaths(folder / "rows.jsonl", folder, "--data-root")
    for number in range(20):
        with pytest.raises(FileNotFoundError):
            paths.find(f"images/{number}.png", "rows.jsonl:7")
    assert len(listed) == 2
