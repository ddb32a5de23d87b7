"""Tokens of a data set are made once, taken up by the next run, and made anew where anything about them is another."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monkey.data.dataset import ConversationDataset, cache_folder
from monkey.data.mixture import open_records
from tests.small_processor import small_processor

COUNT = 20


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Records of two images and without one, and a cache folder of their own."""
    monkeypatch.setenv("MONKEY_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (200, 100), "red").save(tmp_path / "a.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "b.png")
    asked = ("<img>a.png</img> What? Answer: ", "<img>a.png</img><img>b.png</img> {}? Answer: ", "Say {}. Answer: ")
    write(tmp_path / "train.json", [row(asked[n % 3].format(n), f"it is {n}") for n in range(COUNT)])
    return tmp_path / "train.json"


def row(question: str, answer: str) -> dict:
    return {"conversations": [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]}


def write(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows))


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """The sources of the records that were encoded, as it happens."""
    made: list[str] = []
    encode = ConversationDataset.encode
    monkeypatch.setattr(
        ConversationDataset, "encode", lambda self, record: made.append(record.source) or encode(self, record)
    )
    return made


def prepared(path: Path, check_images: bool = False, **settings) -> ConversationDataset:
    settings = {"max_length": 2048, "sharing": "branches", **settings}
    dataset = ConversationDataset(open_records(path), small_processor(), **settings)
    dataset.prepare(check_images)
    return dataset


def same(one: dict, other: dict) -> bool:
    pixels = [sample.get("pixel_values") for sample in (one, other)]
    return all(one[key] == other[key] for key in ("input_ids", "labels", "source")) and (
        pixels[0] is pixels[1] is None or torch.equal(*pixels)
    )


def test_the_next_run_takes_them_up_and_its_samples_are_those_of_the_encoder(data, encoded):
    plain = ConversationDataset(open_records(data), small_processor(), 2048, sharing="branches")
    first = prepared(data)
    assert len(encoded) == COUNT
    second = prepared(data, check_images=True)
    assert len(encoded) < 2 * COUNT  # a few, to see that they are the same
    assert first.tokens.folder == second.tokens.folder == next((cache_folder() / "tokens").iterdir())
    for dataset in (first, second):
        assert dataset.tokens.sizes.tokens.tolist() == [len(sample["input_ids"]) for sample in plain]
        assert all(same(sample, expected) for sample, expected in zip(dataset, plain, strict=True))
        assert all(same(*pair) for pair in zip(dataset[0, 3, 6], plain[0, 3, 6], strict=True))


def test_other_records_or_another_length_are_encoded_anew(data, encoded):
    folders = {prepared(data).tokens.folder}
    write(data, [row("Say it. Answer: ", str(n)) for n in range(COUNT)])
    folders.add(prepared(data).tokens.folder)
    folders.add(prepared(data, max_length=2047).tokens.folder)
    assert (len(folders), len(encoded)) == (3, 3 * COUNT)


def test_tokens_that_the_code_would_make_otherwise_are_not_taken_up(data, encoded):
    tokens = prepared(data).tokens
    expected = np.array(tokens.ids)
    np.save(tokens.folder / "ids.npy", expected + 1)
    assert (prepared(data).tokens.ids == expected).all()
    (tokens.folder / "ids.npy").unlink()
    assert (prepared(data).tokens.ids == expected).all()
    (tokens.folder / "ids.npy").write_bytes(b"")
    assert (prepared(data).tokens.ids == expected).all()


def test_a_picture_that_went_is_told_though_its_tokens_are_kept(data):
    prepared(data)
    data.with_name("b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.json\[1\], turn 0: no image b\.png"):
        prepared(data, check_images=True)
    dataset = prepared(data, check_images=True, skip_bad=True)
    dataset.leave_out(dataset.bad)
    assert len(dataset) == len(dataset.tokens) == COUNT - len(range(1, COUNT, 3))


def test_a_picture_that_went_is_told_though_no_header_is_looked_at(data):
    prepared(data)
    data.with_name("a.png").write_bytes(b"")
    prepared(data)
    data.with_name("b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.json\[1\], turn 0: no image b\.png"):
        prepared(data)


def test_boxes_in_pixels_are_encoded_by_every_run(data):
    messages = [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": "<bbox>"}]
    write(data, [{"messages": messages, "images": ["a.png"], "objects": {"bbox": [[20, 10, 100, 50]]}}])
    assert prepared(data).tokens.folder is None


def test_the_cache_needs_no_home_where_its_place_is_named(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: 1 / 0)
    monkeypatch.setenv("XDG_CACHE_HOME", "users")
    monkeypatch.setenv("MONKEY_CACHE", "own")
    assert cache_folder() == Path("own")
    monkeypatch.delenv("MONKEY_CACHE")
    assert cache_folder() == Path("users/monkey")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path(os.path.expanduser("~/.cache/monkey"))


def test_where_they_cannot_be_kept_the_run_goes_on_and_says_so(data, monkeypatch):
    data.with_name("file").write_text("")
    monkeypatch.setenv("MONKEY_CACHE", str(data.with_name("file")))
    dataset = prepared(data)
    assert len(dataset.tokens) == COUNT
    assert "tokens are not kept for the next run: " in dataset.notices[0]
