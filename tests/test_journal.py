"""Journals outlive crashes; files and folders are written whole or not at all; one run at a time holds a place."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys

import pytest

from monkey.journal import (
    Journal,
    atomic_file,
    atomic_folder,
    digest,
    hold,
    holder_of,
    read_records,
    remove_partials,
    write_atomic,
)


def row(key: str, value: int = 0) -> dict:
    return {"key": key, "value": value}


class TestJournal:
    def test_a_record_is_found_again_by_its_key(self, tmp_path):
        with Journal(tmp_path / "done.jsonl") as journal:
            journal.append([row("a", 1), row("b", 2)])
        with Journal(tmp_path / "done.jsonl") as journal:
            assert "a" in journal
            assert journal["b"] == row("b", 2)
            assert "c" not in journal
            assert len(journal) == 2

    def test_a_torn_line_is_cut_off_before_the_next_is_written(self, tmp_path):
        path = tmp_path / "done.jsonl"
        path.write_bytes(json.dumps(row("a")).encode() + b'\n{"key": "b", "val')
        with Journal(path) as journal:
            assert list(journal) == ["a"]
            journal.append([row("c")])
        assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]

    def test_a_damaged_line_is_named(self, tmp_path):
        path = tmp_path / "done.jsonl"
        path.write_text('{"key": "a"}\nnothing\n{"key": "b"}\n')
        with pytest.raises(ValueError, match=r"done\.jsonl:2 is damaged; begin again"):
            Journal(path, way_out="begin again")

    def test_damaged_lines_are_blanked_where_that_is_wanted(self, tmp_path):
        path = tmp_path / "done.jsonl"
        path.write_text('{"key": "a"}\nnothing\n{"key": "b"}\n')
        with Journal(path, mend=True) as journal:
            assert list(journal) == ["a", "b"]
        assert list(read_records(path, {"key": str}, "")) == [{"key": "a"}, {"key": "b"}]

    def test_every_record_of_a_file_is_read_in_order_but_for_one_that_is_just_written(self, tmp_path):
        path = tmp_path / "done.jsonl"
        with Journal(path) as journal:
            journal.append([row("a", 1), row("a", 2)])
        with path.open("ab") as stream:
            stream.write(b'{"key"')
        assert list(read_records(path, {"key": str}, "")) == [row("a", 1), row("a", 2)]
        path.write_text('{"key": "a"}\n[]\n')
        with pytest.raises(ValueError, match=r"done\.jsonl:2 is damaged; begin again"):
            list(read_records(path, {"key": str}, "begin again"))

    def test_a_record_without_a_field_is_damaged(self, tmp_path):
        path = tmp_path / "done.jsonl"
        path.write_text('{"key": "a", "value": "1"}\n')
        with pytest.raises(ValueError, match="damaged"):
            Journal(path, fields={"value": int})

    def test_records_of_other_processes_are_read_as_they_come(self, tmp_path):
        with Journal(tmp_path / "1.jsonl") as other:
            other.append([row("a")])
            with Journal(tmp_path / "0.jsonl", tmp_path.glob("*.jsonl")) as journal:
                assert "a" in journal
                other.append([row("b", 3)])
                assert "b" not in journal
                journal.refresh()
                assert journal["b"] == row("b", 3)

    def test_blanking_a_line_forgets_it_alone(self, tmp_path):
        path = tmp_path / "done.jsonl"
        with Journal(path) as journal:
            journal.append([row("a", 1), row("b", 2), row("c", 3)])
            size = path.stat().st_size
            assert journal.blank(lambda record: record is None or record["value"] == 2) == 1
            assert sorted(journal) == ["a", "c"]
            journal.append([row("b", 4)])
            assert journal["c"]["value"] == 3
            assert journal["b"]["value"] == 4
        assert path.stat().st_size > size

    def test_clearing_forgets_everything(self, tmp_path):
        with Journal(tmp_path / "done.jsonl") as journal:
            journal.append([row("a")])
            journal.clear()
            assert len(journal) == 0
            journal.append([row("b")])
            assert journal["b"] == row("b")

    def test_two_runs_cannot_write_one_journal(self, tmp_path):
        with Journal(tmp_path / "done.jsonl"), pytest.raises(ValueError, match="another run; name another"):
            Journal(tmp_path / "done.jsonl", busy="name another")
        Journal(tmp_path / "done.jsonl").close()

    def test_names_that_are_not_utf8_are_kept(self, tmp_path):
        with Journal(tmp_path / "done.jsonl") as journal:
            journal.append([{"key": "a", "name": "x\udc80"}])
            assert journal["a"]["name"] == "x\udc80"


class TestWholeFiles:
    def test_a_failure_keeps_what_was_there(self, tmp_path):
        path = tmp_path / "report.json"
        write_atomic(path, "old")
        with pytest.raises(ZeroDivisionError), atomic_file(path) as stream:
            stream.write(bytes(1 // 0))
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["report.json"]

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "report.json").mkdir()
        with pytest.raises(OSError, match=r"report\.json cannot be written"):
            write_atomic(tmp_path / "report.json", "new")

    def test_a_folder_replaces_the_former_whole(self, tmp_path):
        for name in ("one", "two"):
            with atomic_folder(tmp_path / "out") as folder:
                (folder / name).write_text(name)
        assert os.listdir(tmp_path / "out") == ["two"]
        with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out") as folder:
            (folder / "three").write_text(str(1 // 0))
        assert os.listdir(tmp_path / "out") == ["two"]
        assert os.listdir(tmp_path) == ["out"]

    @pytest.mark.skipif(os.name == "nt", reason="Windows lets only administrators make links")
    def test_a_link_to_a_folder_is_replaced_and_what_it_leads_to_stays(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "kept").touch()
        (tmp_path / "out").symlink_to("real")
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "new").touch()
        assert sorted(os.listdir(tmp_path)) == ["out", "real"]
        assert os.listdir(tmp_path / "out") == ["new"]
        (tmp_path / ".out.1.former.partial").symlink_to("real")
        remove_partials(tmp_path)
        assert sorted(os.listdir(tmp_path)) == ["out", "real"]
        assert os.listdir(tmp_path / "real") == ["kept"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_every_file_is_free(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Journal(tmp_path / "done.jsonl") as journal, Journal(tmp_path / "done.jsonl") as other:
        journal.append([row("a")])
        other.refresh()
        assert "a" in other
    with hold(tmp_path / "run.lock", "wait"):
        assert holder_of(tmp_path / "run.lock") is None


class TestHolding:
    def test_the_holder_is_named(self, tmp_path):
        with hold(tmp_path / "run.lock", "wait", note={"shard": "0-of-2"}) as was_killed:
            assert not was_killed
            assert holder_of(tmp_path / "run.lock")["shard"] == "0-of-2"
            with (
                pytest.raises(ValueError, match=f"process {os.getpid()} on {platform.node()}; wait"),
                hold(tmp_path / "run.lock", "wait"),
            ):
                pass
        assert holder_of(tmp_path / "run.lock") is None

    def test_a_killed_holder_frees_the_lock_and_is_noticed(self, tmp_path):
        program = (
            "import os, signal; from pathlib import Path; from monkey.journal import hold\n"
            f"with hold(Path({str(tmp_path / 'run.lock')!r}), 'wait'): os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", program], check=False)
        with hold(tmp_path / "run.lock", "wait") as was_killed:
            assert was_killed

    def test_a_holder_on_another_machine_cannot_be_asked(self, tmp_path):
        (tmp_path / "run.lock").write_text('{"pid": 1, "host": "elsewhere"}')
        with (
            pytest.raises(ValueError, match="process 1 on elsewhere; wait, or, if it is gone, remove"),
            hold(tmp_path / "run.lock", "wait"),
        ):
            pass


def test_a_digest_counts_every_part():
    assert digest(a=1, b="x") == digest(b="x", a=1) != digest(a=1, b="y")
