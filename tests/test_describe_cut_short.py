"""Runs of descriptions that are killed, go on, and are shared: the bytes of one straight run, each picture once."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from monkey import journal
from monkey.describe import work
from monkey.describe.records import RESULTS, FinishedRun
from monkey.describe.shards import Shard, Workplace, shard_of
from tests.drawn import SAMPLES, draw_documents
from tests.test_describe_run import REPOSITORY, describe, outputs_of, scripted

COUNT = 41


def small_batches() -> dict:
    return scripted(**{stage: {"batch_size": 3} for stage in RESULTS})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return draw_documents(tmp_path_factory.mktemp("drawn") / "set", heldout=COUNT) / "images"


@pytest.fixture(scope="module")
def straight(drawn, tmp_path_factory) -> dict[str, bytes]:
    """The outputs of a run that nothing disturbed."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert describe(drawn, run, small_batches()) == 0
    return outputs_of(run)


def times_done(run: Path) -> Counter:
    """How often each picture stands in the journals of each stage."""
    done = Counter()
    for stage in RESULTS:
        for path in (run / "journals").glob(f"{stage}.*.jsonl"):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    done[stage, json.loads(line)["image"]] += 1
    return done


class Killed(BaseException):
    """Stands for the end of the process."""


class TestCrashes:
    def test_a_crash_at_any_write_changes_nothing_in_the_end(self, tmp_path, monkeypatch):
        """Every few writes one is the last of its process, and leaves half of what it was to write."""
        run, config = tmp_path / "run", small_batches()
        assert describe(SAMPLES / "images", tmp_path / "straight", config) == 0
        whole, writes, crashes = journal.append_forced, 0, 0

        def torn(stream, content, path):
            nonlocal writes
            writes += 1
            # A process that dies before its first record gets nowhere: two writes are of the account.
            if writes == 4 + crashes % 3:
                writes = 0
                stream.write(content[: len(content) // 2])
                raise Killed
            whole(stream, content, path)

        monkeypatch.setattr(journal, "append_forced", torn)
        monkeypatch.setattr(work, "append_forced", torn)
        while True:
            try:
                assert describe(SAMPLES / "images", run, config) == 0
                break
            except Killed:
                crashes += 1
                assert crashes < 100
        assert crashes > 10
        assert outputs_of(run) == outputs_of(tmp_path / "straight")
        assert set(times_done(run).values()) == {1}

    def test_a_crash_while_outputs_are_written_leaves_no_run_that_looks_complete(self, tmp_path, monkeypatch):
        run, config = tmp_path / "run", small_batches()
        assert describe(SAMPLES / "images", run, config) == 0
        before = outputs_of(run)
        replace = os.replace

        def crash(source, target):
            if str(target).endswith("train.json"):
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", crash)
        with pytest.raises(Killed):
            describe(SAMPLES / "images", run, config)
        with pytest.raises(FileNotFoundError, match="is not complete yet"):
            FinishedRun(run)
        assert (run / "train.json").read_bytes() == before["train.json"]
        monkeypatch.undo()
        assert describe(SAMPLES / "images", run, config) == 0
        assert outputs_of(run) == before
        assert not [path for path in run.rglob("*") if path.name.endswith(journal.PARTIAL)]

    def test_a_full_disk_is_one_sentence_and_the_work_is_kept(self, tmp_path, monkeypatch, capsys):
        class Full:
            def write(self, content):
                raise OSError(28, "No space left on device")

        whole, writes = journal.append_forced, 0

        def full(stream, content, path):
            nonlocal writes
            writes += 1
            whole(Full() if writes > 12 else stream, content, path)

        monkeypatch.setattr(journal, "append_forced", full)
        assert describe(SAMPLES / "images", tmp_path / "run", small_batches()) == 2
        error = capsys.readouterr().err
        assert "cannot be written (No space left on device); make room" in error
        assert error.count("\n") == 1
        monkeypatch.undo()
        done = sum(times_done(tmp_path / "run").values())
        assert done > 0
        assert describe(SAMPLES / "images", tmp_path / "run", small_batches()) == 0
        assert set(times_done(tmp_path / "run").values()) == {1}


class TestShards:
    @pytest.mark.parametrize("count", [2, 3])
    def test_several_processes_make_the_bytes_of_one(self, drawn, straight, tmp_path, count, capsys):
        run, config = tmp_path / "run", small_batches()
        for index in range(count):
            assert not (run / "manifest.json").exists()
            assert describe(drawn, run, config, f"--shard={index}/{count}") == 0
            said = capsys.readouterr().out
            assert ("is done; the last of" in said) == (index < count - 1)
        assert outputs_of(run) == straight
        assert set(times_done(run).values()) == {1}
        assert FinishedRun(run).manifest["stages"]["regions"]["done"] == COUNT

    def test_any_other_number_of_processes_goes_on(self, drawn, straight, tmp_path):
        run, config = tmp_path / "run", small_batches()
        assert describe(drawn, run, config, "--shard=1/3") == 0
        assert 0 < len(times_done(run)) < COUNT * len(RESULTS)
        assert describe(drawn, run, config) == 0
        assert outputs_of(run) == straight
        assert set(times_done(run).values()) == {1}

    def test_one_shard_twice_and_another_number_of_shards_are_refused_while_one_works(self, tmp_path):
        folder = tmp_path / "run" / "journals"
        with Workplace(folder, Shard(0, 2), "settings"):
            with pytest.raises(ValueError, match=rf"process {os.getpid()} on .*; wait for shard 0-of-2 to end"):
                Workplace(folder, Shard(0, 2), "settings").__enter__()
            with pytest.raises(ValueError, match="pictures would be done twice"):
                Workplace(folder, Shard(0, 3), "settings").__enter__()
            with pytest.raises(ValueError, match="with another configuration"):
                Workplace(folder, Shard(1, 2), "other settings").__enter__()
            with Workplace(folder, Shard(1, 2), "settings"):
                pass
        with Workplace(folder, Shard(0, 3), "other settings"):
            pass

    def test_shards_come_from_the_flag_or_from_torchrun(self):
        assert shard_of("2/5", {"RANK": "0", "WORLD_SIZE": "2"}) == Shard(2, 5)
        assert shard_of(None, {"RANK": "1", "WORLD_SIZE": "2"}) == Shard(1, 2)
        assert shard_of(None, {}) == Shard(0, 1)

    def test_a_folder_that_changed_meanwhile_is_not_taken_for_done(self, drawn, tmp_path, capsys):
        shutil.copytree(drawn.parent, tmp_path / "set")
        images, run, config = tmp_path / "set" / "images", tmp_path / "run", small_batches()
        assert describe(images, run, config, "--shard=0/2") == 0
        for picture in sorted(images.rglob("*.jpg"))[:10]:
            picture.unlink()
        assert describe(images, run, config, "--shard=1/2") == 0
        assert not (run / "manifest.json").exists()
        assert describe(images, run, config, "--shard=0/2") == 0
        assert FinishedRun(run).manifest["counts"]["described"] == COUNT - 10


def start(images: Path, run: Path, config: Path, *more: str) -> subprocess.Popen:
    words = ["run", "--config", str(config), "--images", str(images), "--output", str(run), "--quiet", *more]
    command = [sys.executable, "-m", "tests.scripted_experts", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def written(run: Path) -> int:
    return sum(path.stat().st_size for path in (run / "journals").glob("*.jsonl")) if run.is_dir() else 0


@pytest.mark.slow
class TestProcesses:
    def test_kill_9_at_random_points_changes_no_byte_and_does_no_picture_twice(self, drawn, straight, tmp_path):
        run, config = tmp_path / "run", tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(small_batches()))
        chance, kills = random.Random(7), 0
        while kills < 4:
            process = start(drawn, run, config)
            limit = written(run) + chance.randint(1, 30_000)
            while process.poll() is None and written(run) < limit:
                time.sleep(0.001)
            process.kill()
            output = process.communicate()[0].decode()
            if process.returncode == 0:
                break
            assert process.returncode == -9, output
            kills += 1
        assert kills >= 3
        assert describe(drawn, run, config) == 0
        assert outputs_of(run) == straight
        assert set(times_done(run).values()) == {1}

    def test_two_at_once_never_do_one_picture_twice(self, drawn, straight, tmp_path):
        run, config = tmp_path / "run", tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(small_batches()))
        processes = [start(drawn, run, config, f"--shard={index}/2") for index in range(2)]
        for process in processes:
            output = process.communicate()[0].decode()
            assert process.returncode == 0, output
        assert outputs_of(run) == straight
        assert set(times_done(run).values()) == {1}


def test_the_last_two_to_end_at_once_both_write_the_same(drawn, straight, tmp_path):
    """Each is done before the other looks: then both write the outputs, which is as good as one."""
    run, config = tmp_path / "run", small_batches()
    assert describe(drawn, run, config, "--shard=0/2") == 0
    assert describe(drawn, run, config, "--shard=1/2") == 0
    assert describe(drawn, run, config, "--shard=0/2") == 0
    assert outputs_of(run) == straight
