"""The two commands: the quickstart's chain at a small size, its table, and what the set-up says when it must stop."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import stages
from scripts.quickstart import TASKS, main, table
from tests.test_small_model import in_process

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_quickstart_chain_goes_from_drawing_to_scores(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(run=in_process))
    for pictures, heldout, steps in ((4, 2, 1), (8, 4, 2)):  # the second replaces what the first made
        capfd.readouterr()
        sizes = ["--pictures", str(pictures), "--heldout", str(heldout), "--steps", str(steps)]
        assert main(["--output", str(tmp_path / "run"), *sizes]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "→" in line] == TASKS.split(",")
    assert any(line.strip().endswith(f"demo.py -c {tmp_path}/run/finetuned --compare models/small") for line in lines)
    run = tmp_path / "run"
    assert (run / "finetuned" / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    for name in ("before", "after"):
        summary = json.loads((run / "result" / name / "summary.json").read_text())
        assert summary["complete"] is True
        assert {line["task"] for line in summary["tasks"]} == set(TASKS.split(","))
        for line in summary["tasks"]:
            predictions = (run / "result" / name / line["task"] / "predictions.jsonl").read_text().splitlines()
            assert len(predictions) == line["n"] == line["n_expected"]


def test_a_task_without_a_picture_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--heldout", "1"])
    assert "--heldout: 1 is not a whole number of at least 2" in capsys.readouterr().err


def test_table_shows_each_task_before_and_after():
    before = {"a": {"value": 0.0, "n": 4, "metric": "accuracy"}, "b": {"value": 10.0, "n": 2, "metric": "anls"}}
    after = {"a": {"value": 50.0, "n": 4, "metric": "accuracy"}, "b": {"value": 100.0, "n": 2, "metric": "anls"}}
    rows = [line.split() for line in table(before, after).splitlines()]
    assert rows[2:] == [["a", "4", "accuracy", "0.0", "→", "50.0"], ["b", "2", "anls", "10.0", "→", "100.0"]]


def test_quickstart_touches_nothing_that_it_did_not_make(tmp_path, capsys):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "mine.txt").write_text("mine")
    assert main(["--output", str(tmp_path)]) == 2
    assert "holds something that the quickstart did not make" in capsys.readouterr().err
    assert (tmp_path / "result" / "mine.txt").read_text() == "mine"


def set_up(tmp_path, **environment) -> subprocess.CompletedProcess:
    """Source scripts/environment.sh with an empty place for the virtual environment."""
    return subprocess.run(
        ["bash", "-c", f'repository="{REPOSITORY}"; . "{REPOSITORY}/scripts/environment.sh"; echo "using $python"'],
        env=os.environ | {"VENV": str(tmp_path / "venv")} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def fake(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_set_up_names_a_missing_interpreter(tmp_path):
    done = set_up(tmp_path, PYTHON="python9")
    assert done.returncode == 2
    assert done.stderr.startswith("error: python9 is not on PATH")


def test_set_up_names_an_old_interpreter_and_the_version_needed(tmp_path):
    old = fake(tmp_path / "python", 'case "$1" in -V) echo Python 3.9.2 ;; *) exit 1 ;; esac')
    done = set_up(tmp_path, PYTHON=str(old))
    assert done.returncode == 2
    assert "is Python 3.9.2, but 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_set_up_names_a_full_disk_and_both_sizes(tmp_path):
    fake(tmp_path / "df", "echo header; echo fs 9 9 1048576 9% /")
    done = set_up(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHON=sys.executable)
    assert done.returncode == 2
    assert "has 1 GiB free, but the requirements need 4 GiB" in done.stderr
