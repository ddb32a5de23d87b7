"""The benchmark of readers takes a training step on every record of each."""

from __future__ import annotations

import pytest

from benchmarks import data_reading
from monkey.processing import MonkeyProcessor


@pytest.mark.parametrize("kind", ["json", "parquet", "tar, streamed"])
def test_a_reader_gives_every_record_to_a_training_step(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("MONKEY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    name, _, is_streamed = kind.partition(", ")
    path = data_reading.write_data(tmp_path / "data", data_reading.SHARDS, 64)[name]
    processor, step, seen = MonkeyProcessor.from_pretrained(data_reading.CHECKPOINT), data_reading.make_steps(), []

    def use(batch):
        seen.extend(batch["contents"].sources)
        return step(batch)

    if is_streamed:
        data_reading.streamed(path, processor, 0, data_reading.SHARDS, use)()
    else:
        data_reading.planned(path, processor, 0, use)()
    assert len(seen) == len(set(seen)) == data_reading.SHARDS
