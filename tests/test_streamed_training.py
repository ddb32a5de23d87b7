"""Runs that learn from streams: resumed to the bit, told when a set begins again, refused what a stream cannot do."""

from __future__ import annotations

import json
import shutil

import pytest

from monkey.training.arguments import parse_flags
from tests.made_shards import llava_row, png, turns, write_table, write_tar
from tests.small_processor import refusal
from tests.test_distributed import launch
from tests.training_start import NO_DROPOUT, PACKED, SAVE, losses, same_weights, train, words_of, write_start


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The start of the other tests of training, with three tars and a mixture of them and of its records."""
    start = write_start(tmp_path_factory.mktemp("streamed"))
    for shard in range(3):
        members = []
        for number in range(shard * 5, shard * 5 + 5):
            record = {"image": f"{number}.png", "conversations": turns(number)}
            members += [(f"{number}.png", png(number)), (f"{number}.json", json.dumps(record).encode())]
        write_tar(start.folder / f"s-{shard}.tar", members)
    start.mixture = start.folder / "mixture.yaml"
    start.mixture.write_text(
        "sets:\n- {name: a, path: 's-{0..2}.tar', stream: true, weight: 2}\n- {name: b, path: train.json}\n"
    )
    start.tars = str(start.folder / "s-*.tar")
    return start


def words(start, *more: str) -> tuple[str, ...]:
    return ("--data_path", str(start.mixture), "--stream_buffer", "7", *NO_DROPOUT, *more)


@pytest.mark.parametrize(
    ("shape", "workers"), [((), "0"), (PACKED, "2")], ids=["padded", "packed, with loading processes"]
)
def test_a_run_that_was_stopped_ends_as_the_whole_one(start, tmp_path, shape, workers, capsys):
    more = words(start, "--dataloader_num_workers", workers, *shape)
    whole = train(start, tmp_path / "whole", "--max_steps", "6", *SAVE, *more)
    shutil.copytree(whole, tmp_path / "part")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "part" / f"checkpoint-{step}")
    (tmp_path / "part" / "config.json").unlink()
    resumed = train(start, tmp_path / "part", "--max_steps", "6", *more, "--resume_from_checkpoint", "True")
    assert losses(resumed) == losses(whole)
    assert same_weights(resumed, whole)
    assert (tmp_path / "whole/checkpoint-6/stream.json").read_text() != (
        tmp_path / "whole/checkpoint-3/stream.json"
    ).read_text()
    printed = capsys.readouterr().out
    assert f"note: {start.folder}/s-{{0..2}}.tar: 66.7% of the samples" in printed
    record = json.loads((whole / "run.json").read_text())["data"]
    assert record["has_images"]
    assert [one["stream"] for one in record["files"]] == [True, False]


def test_it_is_said_when_a_set_ends_and_begins_again(start, tmp_path, capsys):
    (start.folder / "short.json").write_text(json.dumps([{"conversations": turns(1, "")}]))
    (start.folder / "short.yaml").write_text(
        "sets:\n- {name: a, path: 's-*.tar', stream: true}\n- {name: b, path: short.json}\n"
    )
    train(start, tmp_path / "run", "--data_path", str(start.folder / "short.yaml"), "--stream_buffer", "4")
    printed = capsys.readouterr().out
    assert f"note: {start.folder}/short.json ends and begins again" in printed


def test_bad_records_stop_the_run_or_are_left_out(start, tmp_path):
    rows = [llava_row(number) for number in range(20)]
    rows[17] = rows[17] | {"image": {"bytes": png(1, (90, 90))[:100], "path": "b.png"}}
    path = write_table(tmp_path / "x.parquet", rows)
    more = ("--data_path", str(path), "--streaming", "True", "--stream_buffer", "20", "--max_steps", "6", *NO_DROPOUT)
    sentence = refusal(lambda: train(start, tmp_path / "stops", *more))
    assert f"{path}[17]: b.png in {path}[17] is damaged or cut off" in sentence
    skipped = train(start, tmp_path / "skips", *more, "--skip_bad_rows", "True")
    record = json.loads((skipped / "run.json").read_text())
    assert [f"{path}[17]" in sentence for sentence in record["left_out"]] == [True]


def test_tables_by_number_make_the_run_of_files(start, tmp_path):
    """Without --streaming, rows are planned, shuffled over the whole set and counted in epochs."""
    rows = []
    for number in range(8):
        (start.folder / f"row-{number}.png").write_bytes(png(number))
        rows.append(llava_row(number) | {"image": {"bytes": png(number), "path": f"row-{number}.png"}})
    named = [row | {"image": row["image"]["path"]} for row in rows]
    (start.folder / "named.json").write_text(json.dumps(named))
    write_table(start.folder / "rows.parquet", rows)
    runs = [
        train(start, tmp_path / name, "--data_path", str(start.folder / name), *NO_DROPOUT)
        for name in ("named.json", "rows.parquet")
    ]
    assert losses(runs[0]) == losses(runs[1])
    assert same_weights(*runs)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--max_steps", "-1"), "--max_steps: {tars} is read as a stream, and how long a stream is, is not known"),
        (("--overfit", "2"), "--overfit: {tars} is read as a stream"),
        (("--cache_images", "True"), "--cache_images: {tars} is read as a stream"),
        (("--data_path", "train.json"), "--streaming True would have no effect: --data_path names no tables or tars"),
        (("--streaming", "False", "--stream_buffer", "9"), "--stream_buffer would have no effect"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(start, tmp_path, more, sentence):
    flags = words_of(start, tmp_path / "run", "--streaming", "True", "--data_path", start.tars, *more)
    assert sentence.format(tars=start.tars) in refusal(lambda: parse_flags(flags))


def test_a_run_of_files_is_not_resumed_as_a_stream(start, tmp_path):
    train(start, tmp_path / "run", "--max_steps", "1", *SAVE)
    more = ("--max_steps", "2", "--data_path", start.tars, "--streaming", "True", "--resume_from_checkpoint", "True")
    assert "its run read no stream (there is no stream.json)" in refusal(lambda: train(start, tmp_path / "run", *more))


@pytest.mark.slow
def test_two_processes_share_streams_and_go_on_where_they_stopped(start, tmp_path):
    more = words(start, "--per_device_train_batch_size", "2", *SAVE)
    jobs = {
        "whole": words_of(start, tmp_path / "whole", *more, "--max_steps", "4"),
        "part": words_of(start, tmp_path / "part", *more, "--max_steps", "2"),
        "resumed": words_of(start, tmp_path / "part", *more, "--max_steps", "4", "--resume_from_checkpoint", "True"),
    }
    assert set(launch(jobs, tmp_path).ended.values()) == {(None, None)}
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "part", tmp_path / "whole")
    state = json.loads((tmp_path / "whole/checkpoint-4/stream.json").read_text())
    assert (state["lanes"], [one["given"] for one in state["at"].values()]) == (2, [4, 4])
