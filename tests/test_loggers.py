"""What W&B and trackio are told of a run, where they are installed; see test_training_flags for where they are not."""

from __future__ import annotations

import sqlite3

import pytest

from tests.training_start import train

RATES = ("mfu", "tokens_per_second", "fill_rate", "loss")


def reported(name: str, start, tmp_path, monkeypatch):
    """Train two steps that report to a logger, offline and below `tmp_path`: trackio asks where when it is imported."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip(name, reason=f"{name} comes with pip install '.[tracking]'")
    train(start, tmp_path / "out", "--peak_tflops", "0.1", "--report_to", name)


def test_wandb_is_told_the_rates(start, tmp_path, monkeypatch):
    reported("wandb", start, tmp_path, monkeypatch)
    (run,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = run.read_bytes()
    assert [rate for rate in RATES if f"train/{rate}".encode() not in content] == []


def test_trackio_is_told_the_rates(start, tmp_path, monkeypatch):
    reported("trackio", start, tmp_path, monkeypatch)
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = [row[0] for row in database.execute("SELECT CAST(metrics AS TEXT) FROM metrics")]
    for rate in RATES:
        assert sum(f'"train/{rate}"' in row for row in rows) == 2
