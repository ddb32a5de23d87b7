"""A run goes on from whole checkpoints of its own model, and says where other flags would make it another run."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from finetune_multitask import main
from monkey.training.resuming import check_whole, full_disk_named, writing
from tests.training_start import log, losses, train, with_records, words_of

SAVE = ("--save_strategy", "steps", "--save_steps", "1", "--report_to", "none")


@pytest.fixture(scope="module")
def saved(start, tmp_path_factory) -> dict[str, Path]:
    """A run of each kind of checkpoint, one step long."""
    folder = tmp_path_factory.mktemp("saved")
    recipes = ("full-llm", "lora-llm")
    return {
        recipe: train(start, folder / recipe, "--recipe", recipe, "--max_steps", "1", *SAVE) / "checkpoint-1"
        for recipe in recipes
    }


def _resume(start, checkpoint: Path, output: Path, recipe: str, *more: str) -> list[str]:
    words = ("--recipe", recipe, "--resume_from_checkpoint", str(checkpoint), "--max_steps", "2", *SAVE, *more)
    return words_of(start, output, *words)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("full-llm", "model.safetensors"),
        ("full-llm", "optimizer.pt"),
        ("full-llm", "scheduler.pt"),
        ("full-llm", "rng_state.pth"),
        ("full-llm", "trainer_state.json"),
        ("full-llm", "run.json"),
        ("lora-llm", "adapter_model.safetensors"),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(start, saved, tmp_path, capsys, recipe, name):
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(saved[recipe], checkpoint)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    assert main(_resume(start, checkpoint, tmp_path / "out", recipe)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{name} is not " in line
    assert not (tmp_path / "out").exists()


class _Planted:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickle", "list", "other keys"])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run.json"])
def test_a_state_of_another_form_is_refused_by_name_and_never_executed(saved, tmp_path, name, kind):
    checkpoint, planted = tmp_path / "checkpoint-1", tmp_path / "executed"
    shutil.copytree(saved["full-llm"], checkpoint)
    content = {"pickle": _Planted(planted), "list": [1, 2], "other keys": {"state": 1, "recipe": 2}}[kind]
    if name.endswith(".json"):
        (checkpoint / name).write_bytes(pickle.dumps(content) if kind == "pickle" else json.dumps(content).encode())
    else:
        torch.save(content, checkpoint / name)
    with pytest.raises(ValueError, match=rf"{name} is not .*: resume from an earlier checkpoint, or copy") as caught:
        check_whole(checkpoint, sharded=False)
    assert "\n" not in str(caught.value)
    assert not planted.exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("trainer_state.json", {"unknown": 1}),
        ("trainer_state.json", {"log_history": [{"loss": 1.0}]}),
        ("optimizer.pt", {"param_groups": [{"lr": 1.0}]}),
        ("rng_state.pth", {"python": (1, 2)}),
        ("rng_state.pth", {"cpu": torch.zeros(3)}),
    ],
)
def test_a_state_that_could_not_be_gone_on_from_is_refused_before(saved, tmp_path, name, change):
    shutil.copytree(saved["full-llm"], tmp_path / "checkpoint-1")
    path = tmp_path / "checkpoint-1" / name
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        torch.save({**torch.load(path, weights_only=False), **change}, path)
    with pytest.raises(ValueError, match=rf"{name} is not what a run saves there"):
        check_whole(path.parent, sharded=False)


def test_the_record_of_an_older_version_has_fewer_fields(saved, tmp_path):
    shutil.copytree(saved["full-llm"], tmp_path / "checkpoint-1")
    path = tmp_path / "checkpoint-1" / "run.json"
    record = json.loads(path.read_text())
    del record["left_out"]
    path.write_text(json.dumps(record))
    check_whole(path.parent, sharded=False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EROFS])
def test_what_keeps_a_checkpoint_from_being_written_is_a_sentence_with_the_way_out(number):
    with (
        pytest.raises(OSError, match=rf"^checkpoint-2 could not be written \({os.strerror(number)}\); make room"),
        writing(Path("checkpoint-2"), "make room"),
    ):
        raise OSError(number, os.strerror(number), ".checkpoint-2.partial/optimizer.pt")
    with pytest.raises(FileNotFoundError, match=r"train\.json"), writing(Path("checkpoint-2"), "make room"):
        raise FileNotFoundError("train.json: no such file")


def test_a_full_disk_is_named_by_the_file_that_met_it():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "elsewhere/cache")
    with pytest.raises(OSError, match=r"^elsewhere/cache could not be written"), full_disk_named(Path("out")):
        raise error
    with pytest.raises(PermissionError) as caught, full_disk_named(Path("out")):
        raise PermissionError(errno.EACCES, "denied")
    assert caught.value.strerror == "denied"


def test_the_state_of_another_optimiser_is_refused(start, saved, tmp_path):
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(saved["full-llm"], checkpoint)
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    torch.save({**state, "param_groups": state["param_groups"] * 2}, checkpoint / "optimizer.pt")
    with pytest.raises(ValueError, match=r"checkpoint-1: optimizer\.pt and scheduler\.pt are of another optimiser"):
        train(start, tmp_path / "out", *_resume(start, checkpoint, tmp_path / "out", "full-llm"))


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("full-llm", "optimizer.pt"), ("full-llm", "scheduler.pt"), ("lora-llm", "adapter_model.safetensors")],
)
def test_a_missing_file_is_not_begun_anew_in_silence(start, saved, tmp_path, capsys, recipe, name):
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(saved[recipe], checkpoint)
    (checkpoint / name).unlink()
    assert main(_resume(start, checkpoint, tmp_path / "out", recipe)) == 2
    assert name in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [("full-llm", r"grid=\(2, 2\), and this run .* grid=\(1, 2\): give --grid 2,2"), ("lora-llm", r"grid=\(2, 2\)")],
)
def test_another_grid_is_one_sentence(start, saved, tmp_path, recipe, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(start, tmp_path / "out", *_resume(start, saved[recipe], tmp_path / "out", recipe, "--grid", "1,2"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_recipe_is_refused(start, saved, tmp_path):
    with pytest.raises(ValueError, match="trained as full-llm, but these flags ask for lora-llm"):
        train(start, tmp_path / "out", *_resume(start, saved["full-llm"], tmp_path / "out", "lora-llm"))


def _warned(start, *words: str) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(start, Path(words[words.index("--output_dir") + 1]), *words)
    return "\n".join(str(one.message) for one in caught)


def test_what_makes_another_run_of_it_is_said(start, saved, tmp_path):
    """Another order of the data, other data, and a rate that the saved optimiser overrides."""
    moved = with_records(start, tmp_path, *start.records[:8])
    other = ("--seed", "7", "--learning_rate", "0.5")
    said = _warned(moved, *_resume(moved, saved["full-llm"], tmp_path / "out", "full-llm", *other))
    assert "--seed 7 instead of 42" in said
    assert "8 records instead of 12: it goes on, but not through the data" in said
    assert "--learning_rate 0.5 without effect" in said
    assert [entry["learning_rate"] for entry in log(tmp_path / "out") if "loss" in entry] == [1e-3, 1e-3]


def test_the_same_flags_say_nothing(start, saved, tmp_path):
    said = _warned(start, *_resume(start, saved["full-llm"], tmp_path / "out", "full-llm"))
    assert "this run has" not in said
    assert "without effect" not in said
    assert len(losses(tmp_path / "out")) == 2
