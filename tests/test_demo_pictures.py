"""Uploaded pictures are kept for their owner only, and no longer than they have to be."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from monkey.images import open_image
from monkey.serving.demo.pictures import KEEP_SECONDS, LONGEST_SHOWN_SIDE, PictureStore


@pytest.fixture
def store(tmp_path) -> PictureStore:
    return PictureStore(tmp_path / "uploads")


def _opened(content: bytes, name: str) -> Image.Image:
    return open_image(content, name=name)


def _bytes_of(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def _uploaded(store: PictureStore, content: bytes, name: str = "a.png") -> Path:
    path = store.folder / "0123abcd" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _left(store: PictureStore) -> list[str]:
    return sorted(path.name for path in store.folder.rglob("*") if path.is_file())


def test_a_taken_picture_is_kept_as_it_came_and_goes_with_its_upload(store):
    content = _bytes_of(Image.new("RGB", (40, 30), "red"))
    upload = _uploaded(store, content)
    picture = store.take("ada", upload, "mine.png", _opened)
    assert picture.file.read_bytes() == content
    assert (picture.name, picture.size) == ("mine.png", (40, 30))
    with Image.open(picture.shown) as shown:
        assert shown.size == (40, 30)
    store.release("ada")
    assert _left(store) == []
    assert not upload.parent.exists()


def test_a_picture_that_two_people_uploaded_stays_until_both_have_gone(store):
    content = _bytes_of(Image.new("RGB", (40, 30), "red"))
    for person, next_to_go in (("ada", "bob"), ("bob", "ada")):
        upload = _uploaded(store, content)
        store.take("ada", upload, "a.png", _opened)
        upload.unlink()
        _uploaded(store, content)  # as gradio does: a new file in the same place
        store.take("bob", upload, "a.png", _opened)
        store.release(person)
        assert upload.is_file()
        store.release(next_to_go)
        assert _left(store) == []


def test_a_picture_that_somebody_has_just_uploaded_outlives_one_who_had_it_before(store):
    content = _bytes_of(Image.new("RGB", (40, 30), "red"))
    upload = _uploaded(store, content)
    store.take("ada", upload, "a.png", _opened)
    upload.unlink()
    _uploaded(store, content)
    store.release("ada")
    assert store.take("bob", upload, "a.png", _opened).size == (40, 30)


def test_a_bad_picture_is_refused_and_goes_with_the_person(store):
    with pytest.raises(ValueError, match=r"mine\.png is not an image"):
        store.take("ada", _uploaded(store, b"hello"), "mine.png", _opened)
    with pytest.raises(FileNotFoundError):
        store.take("ada", store.folder / "nothing", "mine.png", _opened)
    store.release("ada")
    assert _left(store) == []


def test_what_is_shown_is_upright_small_and_in_a_format_of_browsers(store):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = _bytes_of(Image.new("RGB", (3000, 1000), "red"), "TIFF", exif=exif)
    picture = store.add("ada", photo, "scan.tiff", _opened)
    assert picture.size == (1000, 3000)
    with Image.open(picture.shown) as shown:
        assert shown.format == "JPEG"
        assert shown.height == LONGEST_SHOWN_SIDE
        assert shown.width == pytest.approx(LONGEST_SHOWN_SIDE / 3, abs=1)


def test_a_picture_is_found_by_its_owner_only(store):
    picture = store.add("ada", _bytes_of(Image.new("L", (4, 3))), "a.png", _opened)
    assert store.find("ada", f"/wherever/{picture.shown.name}") is picture
    assert store.find("bob", str(picture.shown)) is None
    assert store.find("ada", str(picture.file)) is None


def test_releasing_deletes_everything_of_one_person_and_nothing_of_others(store):
    content = _bytes_of(Image.new("L", (4, 3)))
    own = store.add("ada", content, "a.png", _opened)
    other = store.add("bob", content, "a.png", _opened)
    copy = _uploaded(store, b"as gradio copies it", own.shown.name)
    drawn = store.keep_image("ada", Image.new("RGB", (4, 3)))
    store.release("ada")
    assert not any(path.exists() for path in (own.file, own.shown, copy, drawn))
    assert other.file.exists()
    assert other.shown.exists()
    assert store.find("ada", own.shown.name) is None
    store.release("ada")
    store.release("nobody")


def test_what_is_older_than_an_hour_is_swept_whosever_it_is(store):
    old = store.add("ada", _bytes_of(Image.new("L", (4, 3))), "a.png", _opened)
    young = store.add("ada", _bytes_of(Image.new("L", (5, 3))), "b.png", _opened)
    never_asked = _uploaded(store, b"anything")
    now = young.file.stat().st_mtime
    for path in (old.file, old.shown, never_asked):
        os.utime(path, (now - KEEP_SECONDS - 1,) * 2)
    store.sweep(now)
    assert _left(store) == sorted([young.file.name, young.shown.name])


def test_nothing_is_kept_for_somebody_who_cleared_meanwhile(store):
    store.add("ada", _bytes_of(Image.new("L", (4, 3))), "a.png", _opened)
    store.release("ada")
    with pytest.raises(FileNotFoundError):
        store.keep_image("ada", Image.new("RGB", (4, 3)))
    assert _left(store) == []
