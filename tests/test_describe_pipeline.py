"""The whole pipeline with a model in every stage, tiny and untrained: loading, batching, decoding, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monkey.describe import weights
from monkey.describe.records import FinishedRun
from tests.describe_models import write_all
from tests.drawn import SAMPLES
from tests.test_describe_run import describe, outputs_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    models = {name: str(path) for name, path in write_all(tmp_path_factory.mktemp("models")).items()}
    return {
        "stages": {
            "caption": {"expert": "blip2", "model": models["blip2"], "max_new_tokens": 6, "batch_size": 2},
            "regions": {"expert": "florence2", "model": models["florence2"], "max_new_tokens": 24, "batch_size": 2},
            "text": {"expert": "none"},
            "segments": {
                "expert": "sam", "model": models["sam"], "points_per_side": 3, "most": 4,
                "least_predicted_overlap": -9.0, "least_stability": 0.0, "most_box_overlap": 1.0,
            },
            "segment_captions": {"expert": "blip2", "model": models["blip2"], "max_new_tokens": 6, "batch_size": 3},
            "matching": {"expert": "blip2", "model": models["matcher"], "batch_size": 5},
            "filters": {"region_score": 0.2, "segment_score": 0.2},
            "summary": {"expert": "transformers", "model": models["causal"], "max_new_tokens": 12, "batch_size": 2},
        }
    }  # fmt: skip


def test_every_stage_runs_one_model_at_a_time_and_its_results_are_whole(config, tmp_path, monkeypatch):
    opened = []

    def counted(name, settings):
        opened.append(name)
        return whole(name, settings)

    whole = weights.open_model
    for module in ("blip2", "florence2", "sam", "local_llm"):
        monkeypatch.setattr(f"monkey.describe.{module}.open_model", counted)
    assert describe(SAMPLES / "images", tmp_path / "run", config) == 0
    assert opened == [
        "Blip2ForConditionalGeneration",
        "Florence2ForConditionalGeneration",
        "SamModel",
        "Blip2ForConditionalGeneration",
        "Blip2ForImageTextRetrieval",
        "AutoModelForCausalLM",
    ]
    run = FinishedRun(tmp_path / "run")
    for picture in run.pictures():
        assert len(picture["regions"].regions) == 2
        assert len(picture["segments"].segments) == len(picture["segment_captions"].texts) == 4
        assert len(picture["matching"].segments) == 4
        assert len(picture["filters"].candidates) == 6
        assert picture["summary"].attempts in (1, 2)
    entry = run.manifest["stages"]["summary"]
    assert entry["prompt_tokens"] > 1000
    assert entry["loading_seconds"] > 0
    # Going on loads nothing.
    opened.clear()
    first = outputs_of(tmp_path / "run")
    assert describe(SAMPLES / "images", tmp_path / "run", config) == 0
    assert opened == []
    assert outputs_of(tmp_path / "run") == first


def test_a_run_that_was_stopped_between_batches_makes_the_same_bytes(config, tmp_path):
    assert describe(SAMPLES / "images", tmp_path / "whole", config) == 0
    assert describe(SAMPLES / "images", tmp_path / "run", config) == 0
    for path in (tmp_path / "run" / "journals").glob("*.jsonl"):
        # As a kill would leave it: two batches of two pictures there, and half a line.
        lines = path.read_bytes().splitlines(keepends=True)
        if "images" not in path.name and "usage" not in path.name:
            path.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    assert describe(SAMPLES / "images", tmp_path / "run", config) == 0
    assert outputs_of(tmp_path / "run") == outputs_of(tmp_path / "whole")


def test_a_model_of_another_kind_stops_before_any_picture_is_looked_at(config, tmp_path, capsys):
    wrong = json.loads(json.dumps(config))
    wrong["stages"]["matching"]["model"] = config["stages"]["segments"]["model"]
    assert describe(SAMPLES / "images", tmp_path / "run", wrong) == 2
    error = capsys.readouterr().err
    assert "stages.matching: " in error
    assert "is a sam (SamModel) model, and matching crops with captions needs Blip2ForImageTextRetrieval" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_open_stop_at_their_stage_and_the_work_before_is_kept(config, tmp_path, capsys):
    import shutil

    broken = json.loads(json.dumps(config))
    folder = tmp_path / "matcher"
    shutil.copytree(Path(config["stages"]["matching"]["model"]), folder)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    broken["stages"]["matching"]["model"] = str(folder)
    assert describe(SAMPLES / "images", tmp_path / "run", broken) == 2
    error = capsys.readouterr().err
    assert "stages.matching: " in error
    assert "cannot be opened as Blip2ForImageTextRetrieval" in error
    assert error.count("\n") == 1
    kept = tmp_path / "run" / "journals" / "segment_captions.0-of-1.jsonl"
    assert len(kept.read_bytes().splitlines()) == 5
