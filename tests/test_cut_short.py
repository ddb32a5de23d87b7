"""Runs that are cut short, killed, told to stop or out of room, go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from finetune_multitask import main
from monkey.training.resuming import checkpoints, is_finished, warn_of_other_threads
from monkey.training.trainer import MonkeyTrainer
from tests import forked
from tests.outside_doors import ROOT
from tests.training_start import PACKED, SAVE, log, losses, same_weights, train, words_of


@contextlib.contextmanager
def _started(words: list[str], said: Path) -> Iterator[forked.Forked]:
    """The program in a process of its own; what it says goes to a file."""
    said.touch()
    # With another number of threads sums are added up in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    program = ["finetune_multitask.py", *words]
    process = forked.start(forked.run_words, program, cwd=ROOT, env=environment, stdout=said)
    yield process
    process.wait(300)


class TestCutShort:
    MORE = (*PACKED, *SAVE, "--max_steps", "8", "--save_total_limit", "2", "--report_to", "none")

    @pytest.fixture(scope="class")
    def straight(self, start, tmp_path_factory) -> Path:
        return train(start, tmp_path_factory.mktemp("straight") / "out", *self.MORE)

    def _goes_on(self, start, output: Path, straight: Path) -> None:
        train(start, output, *self.MORE, "--resume_from_checkpoint", "True")
        assert losses(output) == losses(straight)
        assert same_weights(output, straight)
        assert not [path for path in output.iterdir() if path.name.endswith(".partial")]

    def test_a_killed_run_resumes_bit_for_bit(self, start, tmp_path, straight):
        output, said = tmp_path / "out", tmp_path / "said.txt"
        with _started(words_of(start, output, *self.MORE), said) as process:
            # As a checkpoint is being written, so that half of it lies there.
            process.wait_for(lambda: bool(list(output.glob(".checkpoint-3.*"))), said)
            process.kill()
        whole = checkpoints(output)
        assert whole
        assert all((folder / "run.json").is_file() and (folder / "optimizer.pt").is_file() for folder in whole)
        self._goes_on(start, output, straight)

    def test_a_signal_saves_the_state_after_a_whole_step_and_stops(self, start, tmp_path, straight):
        output, said = tmp_path / "out", tmp_path / "said.txt"
        rare = (*self.MORE, "--save_steps", "1000", "--max_steps", "1000", "--dataloader_num_workers", "2")
        with _started(words_of(start, output, *rare), said) as process:
            process.wait_for(lambda: "'loss'" in said.read_text(), said)
            # To the loading processes too, as schedulers and torchrun send it.
            os.killpg(process.pid, signal.SIGTERM)
        assert process.returncode == 128 + signal.SIGTERM
        (saved,) = checkpoints(output)
        assert f"stopped by SIGTERM after step {saved.name.removeprefix('checkpoint-')}; {saved}" in said.read_text()
        assert not (output / "model.safetensors").exists()
        steps = str(int(saved.name.removeprefix("checkpoint-")) + 1)
        train(start, output, *self.MORE, "--max_steps", steps, "--resume_from_checkpoint", "True")
        common = min(int(steps), len(losses(straight)))
        assert losses(output)[:common] == losses(straight)[:common]

    def test_a_full_disk_is_one_sentence_and_leaves_earlier_checkpoints_whole(self, start, tmp_path, straight, capfd):
        output = tmp_path / "out"
        train(start, output, *self.MORE, "--max_steps", "1")
        for path in output.glob("*.*"):  # as if it had been interrupted
            path.unlink()
        size = (straight / "model.safetensors").stat().st_size
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # A file that grows past this fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
        try:
            assert main(words_of(start, output, *self.MORE, "--resume_from_checkpoint", "True")) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        (sentence,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert "checkpoint-2 could not be written" in sentence
        assert "--resume_from_checkpoint True" in sentence
        assert [folder.name for folder in checkpoints(output)] == ["checkpoint-1"]
        self._goes_on(start, output, straight)


# Twelve records in batches of eight: three steps are an epoch and a half.
WITHIN_AN_EPOCH = (
    *("--max_steps", "3", "--per_device_train_batch_size", "8"),
    *(*SAVE, "--save_total_limit", "1", "--report_to", "none"),
)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _end(output: Path) -> dict[str, bytes]:
    """Files of a run's end that are the same whenever it was made: the record names its flags, the log has a clock."""
    kept = {name: content for name, content in _files(output).items() if not name.startswith("checkpoint-")}
    return {name: content for name, content in kept.items() if Path(name).name not in ("run.json", "training_log.json")}


class TestFinished:
    @pytest.mark.parametrize(
        "more",
        [
            WITHIN_AN_EPOCH,
            (
                *WITHIN_AN_EPOCH,
                "--max_steps",
                "-1",
                "--num_train_epochs",
                "1.5",
                "--recipe",
                "lora-llm",
                "--bf16",
                "True",
            ),
        ],
        ids=["steps", "epochs of lora-llm in bf16"],
    )
    def test_resuming_it_changes_no_byte_and_a_lost_end_is_made_again(self, start, tmp_path, capsys, more):
        output = train(start, tmp_path / "out", *more)
        before, steps = _files(output), [entry["step"] for entry in log(output) if "loss" in entry]
        train(start, output, *more, "--resume_from_checkpoint", "True")
        assert "holds a finished run, whose checkpoint-3 was its last" in capsys.readouterr().out
        assert _files(output) == before
        end = _end(output)
        for name in end:
            (output / name).unlink()
        train(start, output, *more, "--resume_from_checkpoint", "True")
        assert _end(output) == end
        assert [entry["step"] for entry in log(output) if "loss" in entry] == steps == [1, 2, 3]
        assert not [entry for entry in log(output) if "train_loss" in entry]  # of the no steps that were made
        train(start, output, *more, "--max_steps", "4", "--resume_from_checkpoint", "True")
        assert len(losses(output)) == 4  # more steps are trained when asked for

    def test_the_end_of_an_earlier_run_in_the_folder_is_not_this_runs(self, start, tmp_path):
        output = train(start, tmp_path / "out", *WITHIN_AN_EPOCH)
        earlier = {name: content for name, content in _files(output).items() if not name.startswith("checkpoint-")}
        other = (*WITHIN_AN_EPOCH, "--learning_rate", "2e-3")
        train(start, output, *other, "--overwrite_output_dir", "True")
        end = _end(output)
        for name, content in earlier.items():  # as if it had been killed before it moved its own end in
            (output / name).write_bytes(content)
        train(start, output, *other, "--resume_from_checkpoint", "True")
        assert _end(output) == end

    def test_killed_at_any_write_of_its_end_it_ends_as_if_it_had_not_been(self, start, tmp_path):
        """The disk as each write of the last checkpoint and of the end found it is what a kill there leaves."""
        output = tmp_path / "out"
        disks = {"recording": True}

        def keep_the_disk(event: str, arguments: tuple) -> None:
            writes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
            if not disks["recording"] or not writes or not str(arguments[0]).startswith(str(output)):
                return
            disks["recording"] = False
            if list(output.glob(".checkpoint-3.*")) or (output / "checkpoint-3").exists():
                shutil.copytree(output, tmp_path / "disks" / f"{len(list((tmp_path / 'disks').glob('*'))):03}")
            disks["recording"] = True

        (tmp_path / "disks").mkdir()
        sys.addaudithook(keep_the_disk)  # for as long as Python runs
        try:
            train(start, output, *WITHIN_AN_EPOCH)
        finally:
            disks["recording"] = False
        kept = sorted((tmp_path / "disks").iterdir())
        finished = [is_finished(checkpoints(disk)[-1], disk, 3) for disk in kept]
        assert finished == sorted(finished)  # once it is, it stays so
        last = [(disk / "checkpoint-3").exists() for disk in kept].index(True)
        half = [(disk / "README.md").exists() for disk in kept].index(True)
        assert 0 < last < half < finished.index(True)
        for number in (last - 1, last, half, finished.index(True) - 1, finished.index(True)):
            disk = kept[number]
            train(start, disk, *WITHIN_AN_EPOCH, "--resume_from_checkpoint", "True")
            assert _end(disk) == _end(output), number
            assert losses(disk) == losses(output), number


class TestCtrlC:
    MORE = ("--save_strategy", "steps", "--save_steps", "100", "--max_steps", "3", "--report_to", "none")

    @pytest.fixture(autouse=True)
    def as_in_a_terminal(self):
        """Where the tests run in the background, Ctrl-C is ignored."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def test_ignored_it_stays_ignored(self, start, tmp_path, monkeypatch):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._pressed(monkeypatch, at_step=1, times=2)
        assert main(words_of(start, tmp_path / "out", *self.MORE)) == 0

    def _pressed(self, monkeypatch, at_step: int, times: int, number: int = signal.SIGINT) -> None:
        original = MonkeyTrainer.training_step

        def press(self, *args, **kwargs):
            if self.state.global_step == at_step - 1:
                for _ in range(times):
                    signal.raise_signal(number)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(MonkeyTrainer, "training_step", press)

    def test_once_saves_the_state_after_the_step_and_goes_on_when_resumed(self, start, tmp_path, monkeypatch, capfd):
        output = tmp_path / "out"
        with monkeypatch.context() as patch:
            self._pressed(patch, at_step=2, times=1)
            assert main(words_of(start, output, *self.MORE)) == 130
        said = capfd.readouterr().err
        assert "Ctrl-C: the run stops after this step" in said
        assert f"stopped by SIGINT after step 2; {output / 'checkpoint-2'} holds the state" in said
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        train(start, output, *self.MORE, "--resume_from_checkpoint", "True")
        straight = train(start, tmp_path / "straight", *self.MORE)
        assert losses(output) == losses(straight)
        assert same_weights(output, straight)

    def test_twice_stops_at_once_in_a_sentence(self, start, tmp_path, monkeypatch, capfd):
        self._pressed(monkeypatch, at_step=2, times=2)
        assert main(words_of(start, tmp_path / "out", *self.MORE)) == 130
        assert capfd.readouterr().err.endswith(
            "interrupted; --resume_from_checkpoint True goes on from the last checkpoint\n"
        )
        assert not checkpoints(tmp_path / "out")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_schedulers_warning_stops_it_too(self, start, tmp_path, monkeypatch):
        self._pressed(monkeypatch, at_step=1, times=1, number=signal.SIGUSR1)
        assert main(words_of(start, tmp_path / "out", *self.MORE)) == 128 + signal.SIGUSR1
        assert [folder.name for folder in checkpoints(tmp_path / "out")] == ["checkpoint-1"]

    def test_before_the_first_step_it_is_a_sentence(self, start, tmp_path, monkeypatch, capfd):
        def pressed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("monkey.training.finetune.open_model", pressed)
        assert main(words_of(start, tmp_path / "out")) == 130
        assert capfd.readouterr().err.splitlines()[-1].startswith("interrupted; ")

    def test_torchrun_hands_it_on_and_that_is_no_second_one(self, start, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        self._pressed(monkeypatch, at_step=1, times=2)
        assert main(words_of(start, tmp_path / "out", *self.MORE)) == 130
        assert [folder.name for folder in checkpoints(tmp_path / "out")] == ["checkpoint-1"]


def test_a_full_disk_under_a_log_is_a_sentence_too(start, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.integrations.TensorBoardCallback.on_log", full)
    with pytest.raises(OSError, match=r"out could not be written \(No space left on device\); make room"):
        train(start, tmp_path / "out", "--report_to", "tensorboard")


def test_another_number_of_threads_is_said(start, tmp_path, recwarn):
    output = train(start, tmp_path / "out", *SAVE, "--max_steps", "1", "--report_to", "none")
    (saved,) = checkpoints(output)
    threads = torch.get_num_threads()
    warn_of_other_threads(saved, torch.device("cpu"))
    assert not [said for said in recwarn if "CPU threads" in str(said.message)]
    record = json.loads((saved / "run.json").read_text())
    assert record["cpu_threads"] == threads
    (saved / "run.json").write_text(json.dumps(record | {"cpu_threads": threads + 3}))
    with pytest.warns(UserWarning, match=f"{threads + 3} CPU threads and this process has {threads}"):
        train(start, output, *SAVE, "--max_steps", "2", "--report_to", "none", "--resume_from_checkpoint", "True")
