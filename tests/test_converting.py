"""`check_data.py --convert` writes records of other forms as ours, with what training would learn unchanged."""

from __future__ import annotations

import json

import pytest

from monkey.data.converting import convert_records
from monkey.data.mixture import open_records, record_sets
from scripts import check_data
from tests.made_shards import llava_row, png, turns, write_table
from tests.small_processor import refusal, small_processor


def encoded(records) -> list:
    return [small_processor().encode(record.conversation, labels=True)[:2] for record in records]


@pytest.fixture
def mixed(tmp_path):
    """Records of three forms about images in files, and one that is bad."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    messages = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "nobody"}]
    rows = [
        {"id": "a", "image": "0.png", "system": "Be short.", "conversations": turns(0)},
        {"messages": messages, "images": ["1.png"]},
        {"id": 7, "conversations": turns(2, "<img>2.png</img> ")},
        {"conversations": turns(3)},
    ]
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(rows))
    return path


def test_records_of_files_are_the_same_to_training(mixed, capsys):
    out = mixed.with_name("ours.jsonl")
    assert check_data.main([str(mixed), "--convert", str(out)]) == 1  # there is a bad record
    assert "ours.jsonl: 3 records in our form, 1 bad ones left out\n" in capsys.readouterr().out
    records = open_records(out)
    before = open_records(mixed)
    assert encoded(records) == encoded(before[number] for number in range(3))
    assert [record.images for record in records] == [before[number].images for number in range(3)]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("id") for line in lines] == ["a", None, 7]
    assert lines[0]["conversations"][0] == {"from": "user", "value": "Be short.\n<img>0.png</img>\nWhat is 0?"}
    assert {record.form for record in records} == {""}


def test_images_of_rows_become_files_each_once(tmp_path):
    rows = [llava_row(1), llava_row(2), llava_row(1) | {"id": "again"}]
    path = write_table(tmp_path / "theirs.parquet", rows)
    out = tmp_path / "ours.jsonl"
    assert convert_records(record_sets(path), out) == (3, [], tmp_path)
    records = open_records(out)
    assert encoded(records) == encoded(open_records(path))
    assert [record.images[0].read_bytes() for record in records] == [png(1), png(2), png(1)]
    assert len(list((tmp_path / "ours-images").iterdir())) == 2


def test_what_cannot_be_written_is_refused_and_leaves_nothing(mixed, tmp_path):
    out = tmp_path / "ours.jsonl"
    path = write_table(tmp_path / "rows.parquet", [llava_row(1) | {"conversations": "x"}])
    assert "all 1 records are bad" in refusal(lambda: convert_records(record_sets(path), out))
    other = tmp_path / "other"
    other.mkdir()
    (other / "t.jsonl").write_text(json.dumps({"image": "0.png", "conversations": turns(0)}))
    (other / "0.png").write_bytes(png(0))
    sentence = refusal(lambda: convert_records(record_sets([mixed, other / "t.jsonl"]), out))
    assert f"images are looked up in {tmp_path} and in {other}" in sentence
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("ours")) == []
    assert "ends in .jsonl" in refusal(lambda: convert_records(record_sets(mixed), tmp_path / "ours.json"))
    out.write_text("")
    assert "is there already" in refusal(lambda: convert_records(record_sets(mixed), out))
