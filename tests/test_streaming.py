"""Streams: every record once a pass over all loading processes, resumed exactly, in memory that does not grow."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from monkey.data import streaming
from monkey.data.dataset import Collator, PackedCollator
from monkey.data.mixture import record_sets
from monkey.data.packing import BadSample, RowSettings
from monkey.data.streaming import StreamedBatches, StreamSettings, streamed_loader
from tests import forked
from tests.made_shards import llava_row, tar_members, turns, write_table, write_tar
from tests.outside_doors import ROOT
from tests.small_processor import refusal, small_processor

PACKED = RowSettings(budget=80, look_ahead=8)


def settings(**changes) -> StreamSettings:
    given = {"buffer": 6, "seed": 3, "batch_size": 2, "rows": None, "sharing": "apart", "max_length": 64}
    return StreamSettings(**{**given, **changes})


def sets_of(*paths: Path, stream: bool = True, weights=None):
    from dataclasses import replace

    return [
        replace(one, stream=stream and one.path.suffix != ".json")
        for one in record_sets([str(path) for path in paths], weights=weights)
    ]


def open_stream(*paths: Path, weights=None, process=0, processes=1, workers=0, state=None, **changes):
    return StreamedBatches(
        sets_of(*paths, weights=weights), small_processor(), settings(**changes), process, processes, workers, state
    )


def sources_of(batch) -> list[str]:
    samples = [sample for unit in batch for sample in (unit if isinstance(unit, list) else [unit])]
    return [Path(sample["source"]).name for sample in samples if not isinstance(sample, BadSample)]


def tars(folder: Path, shards: int, rows: int = 10) -> Path:
    for shard in range(shards):
        write_tar(folder / f"s-{shard}.tar", tar_members(range(shard * rows, shard * rows + rows)))
    return folder / f"s-{{0..{shards - 1}}}.tar"


def one_pass(lane, processor) -> list[str]:
    """What a lane gives before it begins again, where a block ends with the pass."""
    given: list[str] = []
    for batch, _ in lane.batches(processor):
        if lane.places[0][0]:
            return given
        given += sources_of(batch)
    raise AssertionError


class TestLanes:
    @pytest.mark.parametrize(("shards", "processes", "workers"), [(5, 1, 1), (6, 2, 3), (3, 2, 2), (1, 2, 2)])
    def test_in_one_pass_every_record_is_in_one_lane_once(self, tmp_path, shards, processes, workers):
        path = tars(tmp_path, shards)
        given: Counter = Counter()
        for process in range(processes):
            stream = open_stream(path, process=process, processes=processes, workers=workers, buffer=1, batch_size=1)
            for lane in stream.own_lanes():
                given.update(one_pass(lane, stream.processor))
        assert given == Counter(f"s-{shard}.tar[{row}]" for shard in range(shards) for row in range(10))

    @pytest.mark.parametrize("rows", [None, PACKED], ids=["padded", "packed"])
    def test_a_block_gives_each_of_its_records_once_in_another_order(self, tmp_path, rows):
        stream = open_stream(tars(tmp_path, 1, 40), buffer=40, rows=rows)
        lane = stream.own_lanes()[0]
        given = one_pass(lane, stream.processor)
        assert sorted(given) == sorted(f"s-0.tar[{row}]" for row in range(40))
        assert given != [f"s-0.tar[{row}]" for row in range(40)]
        assert given == one_pass(stream.own_lanes()[0], stream.processor)
        assert given != one_pass(
            open_stream(tars(tmp_path, 1, 40), buffer=40, rows=rows, seed=4).own_lanes()[0], stream.processor
        )

    def test_shards_come_in_another_order_in_each_pass(self, tmp_path):
        stream = open_stream(tars(tmp_path, 8, 2), buffer=1, batch_size=1)
        names = [sources_of(batch)[0][:3] for batch, _ in islice(stream, 48)]
        passes = [tuple(names[first : first + 16 : 2]) for first in (0, 16, 32)]
        assert len(set(passes)) == 3
        assert all(len(set(own)) == 8 for own in passes)

    def test_weights_are_shares_of_the_samples(self, tmp_path):
        (tmp_path / "own.json").write_text(json.dumps([{"conversations": turns(n, "")} for n in range(3)]))
        stream = open_stream(tars(tmp_path, 2), tmp_path / "own.json", weights=[3, 1], buffer=4, batch_size=1)
        given = Counter(sources_of(batch)[0] for batch, _ in islice(stream, 80))
        of_file = {name: count for name, count in given.items() if name.startswith("own")}
        assert sum(of_file.values()) == 20
        assert set(of_file.values()) <= {6, 7}
        assert {count for name, count in given.items() if name.startswith("s-")} == {3}
        assert stream.notices[:2] == [
            f"{tmp_path}/s-{{0..1}}.tar: 75.0% of the samples",
            f"{tmp_path}/own.json: 25.0% of the samples",
        ]


def batches_of(stream, count: int) -> list[tuple[list[str], tuple]]:
    return [(sources_of(batch), position) for batch, position in islice(stream, count)]


class TestResuming:
    @pytest.mark.parametrize("rows", [None, PACKED], ids=["padded", "packed"])
    @pytest.mark.parametrize("kind", ["tar", "parquet", "mixture"])
    def test_it_goes_on_exactly_where_it_stopped(self, tmp_path, rows, kind):
        paths = [tars(tmp_path, 3)]
        if kind == "parquet":
            for shard in range(3):
                write_table(tmp_path / f"p-{shard}.parquet", [llava_row(10 * shard + n) for n in range(10)], 4)
            paths = [tmp_path / "p-{0..2}.parquet"]
        if kind == "mixture":
            (tmp_path / "own.json").write_text(json.dumps([{"conversations": turns(n, "")} for n in range(4)]))
            paths.append(tmp_path / "own.json")
        changes = {"rows": rows, "workers": 2}
        whole = batches_of(open_stream(*paths, **changes), 24)
        for stop in (1, 6, 17):
            positions = dict(position for _, position in whole[:stop])
            state = json.loads(json.dumps(open_stream(*paths, **changes).state(positions)))
            assert batches_of(open_stream(*paths, **changes, state=state), 24 - stop) == whole[stop:]

    def test_fewer_processes_go_on_without_repeats_or_losses(self, tmp_path):
        path = tars(tmp_path, 4)
        positions, given = {}, Counter()
        for process in range(2):
            for own, position in batches_of(open_stream(path, process=process, processes=2, workers=2), 3 + process):
                given.update(own)
                positions |= dict([position])
        state = open_stream(path, processes=2, workers=2).state(positions)
        stream = open_stream(path, state=state)
        for lane in stream.own_lanes():
            for batch, position in lane.batches(stream.processor):
                if position["places"][0][0] or stream.sources[0].passes(lane.places[0]):
                    break
                given.update(sources_of(batch))
        assert set(given.values()) == {1}
        sentence = refusal(lambda: open_stream(path, processes=5, state=state))
        assert "dealt to 4 loading processes, and there are 5 processes" in sentence

    def test_other_sets_are_refused(self, tmp_path):
        path = tars(tmp_path, 2)
        state = open_stream(path).state({})
        assert "resume with the same" in refusal(lambda: open_stream(tmp_path / "s-0.tar", state=state))

    def test_sets_that_grew_are_refused(self, tmp_path):
        tars(tmp_path, 2)
        own = tmp_path / "own.json"
        own.write_text(json.dumps([{"conversations": turns(n, "")} for n in range(3)]))
        state = open_stream(tmp_path / "s-*.tar", own).state({})
        open_stream(tmp_path / "s-*.tar", own, state=state)
        write_tar(tmp_path / "s-2.tar", tar_members([30]))
        grown = refusal(lambda: open_stream(tmp_path / "s-*.tar", own, state=state))
        assert f"{tmp_path}/s-*.tar: 3 shards, and there were 2 shards when the checkpoint was written" in grown
        (tmp_path / "s-2.tar").unlink()
        own.write_text(json.dumps([{"conversations": turns(n, "")} for n in range(4)]))
        assert f"{own}: 4 records, and there were 3 records" in refusal(
            lambda: open_stream(tmp_path / "s-*.tar", own, state=state)
        )


class TestLoader:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_of_loading_processes_are_those_of_one(self, tmp_path, workers):
        path, processor = tars(tmp_path, 3), small_processor()
        for rows, collate in ((None, Collator(processor)), (PACKED, PackedCollator(processor, PACKED.budget))):
            expected = batches_of(open_stream(path, rows=rows, workers=2), 8)
            loader = streamed_loader(open_stream(path, rows=rows, workers=2), collate, num_workers=workers)
            given = [batch["contents"] for batch in islice(loader, 8)]
            found = [([Path(source).name for source in one.sources], one.position) for one in given]
            assert found == expected
            assert min(one.images for one in given) > 0

    def test_it_can_be_sent_to_another_process(self, tmp_path):
        stream = open_stream(tars(tmp_path, 2))
        assert batches_of(pickle.loads(pickle.dumps(stream)), 5) == batches_of(stream, 5)


class Flaky:
    """A server whose connection breaks off, and comes back."""

    def __init__(self, monkeypatch, breaks: int, kind: type[Exception] = ConnectionResetError):
        self.left, self.waited = breaks, []
        read = streaming.read_shard

        def breaking(path, start=0):
            for number, *rest in read(path.removeprefix("far://"), start):
                if self.left and number % 4 == 3:
                    self.left -= 1
                    raise kind("the line went dead")
                yield number, *rest

        monkeypatch.setattr(streaming, "read_shard", breaking)
        monkeypatch.setattr(streaming, "find_shards", lambda path, fetch: [f"far://{path}"])
        monkeypatch.setattr(streaming.time, "sleep", self.waited.append)


class TestBadInput:
    def all_of(self, stream, count) -> tuple[list[str], list[str]]:
        batches = [batch for batch, _ in islice(stream, count)]
        return [one for batch in batches for one in sources_of(batch)], [
            sample.sentence for batch in batches for sample in batch if isinstance(sample, BadSample)
        ]

    def test_a_stream_that_breaks_and_comes_back_loses_nothing(self, tmp_path, monkeypatch):
        path = write_tar(tmp_path / "x.tar", tar_members(range(20)))
        flaky = Flaky(monkeypatch, 4)
        given, bad = self.all_of(open_stream(path, buffer=1, batch_size=1), 20)
        assert (given, bad) == ([f"x.tar[{row}]" for row in range(20)], [])
        assert flaky.waited[:2] == [1, 2]

    def test_a_stream_that_stays_away_stops_the_run_and_not_for_the_other_records(self, tmp_path, monkeypatch):
        path = write_tar(tmp_path / "x.tar", tar_members(range(20)))
        Flaky(monkeypatch, 100)
        stream = open_stream(path, skip_bad=True, buffer=20)
        (bad,) = [one for batch, _ in islice(stream, 1) for one in batch if isinstance(one, BadSample)][:1]
        assert bad.sentence == f"far://{path}: cannot be read from row 3 on (the line went dead)"
        assert not bad.of_one_record

    def test_a_shard_cut_in_the_middle_gives_its_beginning_and_the_others(self, tmp_path):
        path = tars(tmp_path, 2)
        whole = (tmp_path / "s-0.tar").read_bytes()
        (tmp_path / "s-0.tar").write_bytes(whole[:10_240])
        given, bad = self.all_of(open_stream(path, skip_bad=True, buffer=15), 7)
        assert sorted(given) == [*(f"s-0.tar[{row}]" for row in range(4)), *(f"s-1.tar[{row}]" for row in range(10))]
        assert [sentence.startswith(f"{tmp_path}/s-0.tar: breaks off") for sentence in bad] == [True]

    def test_bad_records_come_in_the_place_of_samples(self, tmp_path):
        rows = [llava_row(n) for n in range(6)]
        rows[2] = llava_row(2) | {"conversations": turns(2, "<image><image>")}
        rows[4] = llava_row(4) | {"conversations": turns(4, "<image>" + "long " * 200)}
        path = write_table(tmp_path / "x.parquet", rows)
        given, bad = self.all_of(open_stream(path, buffer=6, skip_bad=True), 2)
        assert sorted(given) == [f"x.parquet[{row}]" for row in (0, 1, 3, 5)]
        assert [sentence.split(":")[0][-12:] for sentence in bad] == ["x.parquet[2]", "x.parquet[4]"]

    def test_a_first_record_that_is_bad_is_told_at_the_start(self, tmp_path):
        path = write_table(tmp_path / "x.parquet", [llava_row(0) | {"conversations": "none"}])
        assert refusal(lambda: open_stream(path)) == f"{path}[0]: 'conversations' must be a list, found a text"

    @pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
    def test_a_stream_without_records_is_named(self, tmp_path, name):
        write = write_tar if name == "x.tar" else write_table
        path = write(tmp_path / name, [])
        assert refusal(lambda: open_stream(path)) == f"{path}: holds no records"

    def test_a_set_with_fewer_rows_than_loading_processes_is_named(self, tmp_path):
        stream = open_stream(write_tar(tmp_path / "x.tar", tar_members(range(2))), workers=4)
        sentence = refusal(lambda: list(islice(stream, 8)))
        assert sentence == f"{tmp_path}/x.tar: one of 4 loading processes has no record in it; give it fewer"


MEASURE = """
import sys, resource
from itertools import islice
from tests.test_streaming import open_stream
from monkey.data.packing import RowSettings
path, rows = sys.argv[1], int(sys.argv[2])
stream = open_stream(path, buffer=64, rows=RowSettings(2048, 32), max_length=256)
given, peaks = 0, []
for batch, _ in stream:
    given += sum(map(len, batch))
    if given >= rows // 10 and not peaks or given >= rows:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        if given >= rows:
            break
print(given, *peaks)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_records(tmp_path):
    """Ten thousand; benchmarks/data_reading.py shows it with a hundred thousand."""
    rows = [{"conversations": turns(number, "")} for number in range(1000)]
    for shard in range(10):
        write_table(tmp_path / f"p-{shard}.parquet", rows, 100)
    (tmp_path / "said").mkdir()
    words = ["-c", MEASURE, str(tmp_path / "p-*.parquet"), "10000"]
    measured = forked.run(words, ROOT, os.environ, tmp_path / "said", timeout=600)
    assert measured.returncode == 0, measured.stderr
    given, early, late = map(int, measured.stdout.split())
    assert given >= 10_000
    assert late - early < 4 * 1024  # KiB; ten thousand of these records take 12 MiB as Python has them
