"""From pictures to descriptions to a model that trains on them, by the commands of the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_multitask import main as finetune
from scripts.check_data import main as check_data
from scripts.new_model import main as new_model
from tests.drawn import draw_pages
from tests.test_describe_run import REPOSITORY, describe

pytestmark = pytest.mark.slow


def test_descriptions_pass_the_check_and_the_small_model_learns_from_them(tmp_path: Path, monkeypatch):
    images = draw_pages(tmp_path / "set", train=40) / "images" / "train"
    run, base = tmp_path / "run", tmp_path / "base"
    assert describe(images, run) == 0
    assert new_model([str(REPOSITORY / "configs/model/small"), str(base)]) == 0
    checked = [str(run / "train.json"), "--image-root", str(images), "--checkpoint", str(base), "--workers", "0"]
    assert check_data([*checked, "--max-length", "512"]) == 0
    monkeypatch.chdir(REPOSITORY)
    words = [
        "--config", "configs/training/small.yaml",
        "--model_name_or_path", str(base), "--data_path", str(run / "train.json"), "--image_root", str(images),
        "--output_dir", str(tmp_path / "tuned"), "--max_steps", "12", "--logging_steps", "1",
        "--per_device_train_batch_size", "4",
    ]  # fmt: skip
    assert finetune(words) == 0
    log = json.loads((tmp_path / "tuned" / "training_log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
