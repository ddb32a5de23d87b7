"""The weights of the best evaluation are kept, whole, over kills, full disks and resumed runs; the curve marks them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from monkey.journal import remove_partials
from monkey.training import trainer
from monkey.training.model_card import write_loss_curve
from monkey.training.resuming import earlier_evaluations
from monkey.training.trainer import BestCheckpoint
from tests.small_processor import refusal


@pytest.mark.parametrize(("rank", "writes", "expected"), [(1, False, "first"), (2, True, None), (3, False, "third")])
def test_each_node_may_have_a_folder_of_its_own(tmp_path, monkeypatch, rank, writes, expected):
    def gathered(own: Path | None) -> list[Path | None]:
        folders = [Path("first"), None, Path("third"), None]
        return [*folders[:rank], own, *folders[rank + 1 :]]

    monkeypatch.setattr(trainer, "gathered", gathered)
    args = SimpleNamespace(process_index=rank, should_save=writes)
    with trainer.shared_folder(tmp_path / "out", args) as folder:
        assert folder == (Path(expected) if expected else folder)
        assert folder.is_dir() == writes
    assert (tmp_path / "out").is_dir() == writes


class TestBest:
    """The folder `best`, with weights that are a file of text."""

    @staticmethod
    def _offer(best: BestCheckpoint, step: int, value: float, **more: float) -> bool:
        def save(folder: Path) -> None:
            assert folder.is_dir()
            assert not list(folder.iterdir())
            (folder / "weights").write_text(str(step))

        return best.keep(step, {best.metric: value, **more}, save)

    def _kept(self, output: Path) -> tuple[int, float, int]:
        record = json.loads((output / "best" / "best.json").read_text())
        return record["step"], record["value"], int((output / "best" / "weights").read_text())

    def test_the_best_stays_and_equals_do_not_replace_it(self, tmp_path):
        best = BestCheckpoint(tmp_path, "eval_score", greater_is_better=True)
        kept = [self._offer(best, step, value) for step, value in ((1, 10.0), (2, 30.0), (3, 30.0), (4, 20.0))]
        assert kept == [True, True, False, False]
        assert self._kept(tmp_path) == (2, 30.0, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["best"]

    def test_of_losses_the_smallest_is_best_and_nan_never_is(self, tmp_path):
        best = BestCheckpoint(tmp_path, "loss", greater_is_better=False)
        values = ((1, float("nan")), (2, 2.0), (3, 1.0), (4, 1.5), (5, float("nan")))
        assert [self._offer(best, *pair) for pair in values] == [False, True, True, False, False]
        assert self._kept(tmp_path) == (3, 1.0, 3)

    def test_a_resumed_run_goes_on_from_the_value_on_disk(self, tmp_path):
        self._offer(
            BestCheckpoint(tmp_path, "score", greater_is_better=True), 5, 50.0, eval_score_a=50.0, eval_loss=1.0
        )
        assert json.loads((tmp_path / "best" / "best.json").read_text()) == {
            "step": 5,
            "metric": "eval_score",
            "value": 50.0,
            "scores": {"eval_score": 50.0, "eval_score_a": 50.0},
        }
        resumed = BestCheckpoint(tmp_path, "score", greater_is_better=True)
        assert resumed.record["step"] == 5
        assert not self._offer(resumed, 6, 49.0)
        assert self._offer(resumed, 7, 51.0)
        assert self._kept(tmp_path) == (7, 51.0, 7)

    def test_a_run_that_begins_anew_is_not_measured_against_the_one_before(self, tmp_path):
        self._offer(BestCheckpoint(tmp_path, "loss", greater_is_better=False), 5, 0.1)
        fresh = BestCheckpoint(tmp_path, "score", greater_is_better=True, fresh=True)
        assert fresh.record is None
        assert self._offer(fresh, 1, 2.0)
        assert self._kept(tmp_path) == (1, 2.0, 1)

    def test_a_full_disk_leaves_the_former_best_whole(self, tmp_path):
        best = BestCheckpoint(tmp_path, "score", greater_is_better=True)
        self._offer(best, 5, 50.0)

        def full(folder: Path) -> None:
            (folder / "weights").write_text("half")
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            best.keep(6, {"eval_score": 60.0}, full)
        assert self._kept(tmp_path) == (5, 50.0, 5)
        assert best.record["step"] == 5
        assert [path.name for path in tmp_path.iterdir()] == ["best"]

    @pytest.mark.parametrize("renames", [2, 3])
    def test_killed_between_the_renames_a_whole_best_is_found(self, tmp_path, monkeypatch, renames):
        best = BestCheckpoint(tmp_path, "score", greater_is_better=True)
        self._offer(best, 5, 50.0)
        done = []
        real = os.replace

        class Killed(BaseException):
            """Stands for SIGKILL; removing files is left out below, since a killed process removes none."""

        def replace(*paths):
            real(*paths)
            done.append(paths)
            if len(done) == renames:
                raise Killed

        monkeypatch.setattr("monkey.journal.os.replace", replace)
        monkeypatch.setattr("monkey.journal.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            self._offer(best, 6, 60.0)
        monkeypatch.undo()
        remove_partials(tmp_path)  # as a run does before it starts
        found = BestCheckpoint(tmp_path, "score", greater_is_better=True)
        assert found.record["step"] == (5 if renames == 2 else 6)  # the first is of best.json
        assert self._kept(tmp_path)[0] == found.record["step"]
        assert self._offer(found, 8, 80.0)
        assert [path.name for path in tmp_path.iterdir()] == ["best"]

    def test_what_is_none_of_a_runs_is_refused(self, tmp_path):
        (tmp_path / "best").mkdir()
        (tmp_path / "best" / "thesis.tex").touch()

        def opened():
            return BestCheckpoint(tmp_path, "score", greater_is_better=True)

        assert "was not written by a run (it has no best.json)" in refusal(opened)
        (tmp_path / "best" / "best.json").write_text('{"step": 3}')
        assert "best.json is damaged (KeyError: 'metric')" in refusal(opened)

    def test_another_metric_is_refused_with_both(self, tmp_path):
        self._offer(BestCheckpoint(tmp_path, "loss", greater_is_better=False), 1, 1.0)
        message = refusal(lambda: BestCheckpoint(tmp_path, "score", greater_is_better=True))
        assert "was chosen by eval_loss, and this run would choose by eval_score" in message

    def test_a_metric_that_the_evaluation_does_not_give_is_refused(self, tmp_path):
        best = BestCheckpoint(tmp_path, "score_textvqa", greater_is_better=True)
        message = refusal(lambda: best.keep(1, {"eval_loss": 1.0, "eval_score": 2.0}, lambda folder: None))
        assert "eval_score_textvqa is not among what the evaluation gives: eval_loss, eval_score" in message

    def test_what_a_new_run_must_remove_is_only_what_runs_wrote(self, tmp_path):
        self._offer(BestCheckpoint(tmp_path, "score", greater_is_better=True), 1, 1.0)
        for name, own in (("step-1", True), ("step-2", False), ("step-new", True)):
            (tmp_path / "scores" / name).mkdir(parents=True)
            if own:
                (tmp_path / "scores" / name / "scores.json").touch()
        assert earlier_evaluations(tmp_path) == [tmp_path / "best", tmp_path / "scores" / "step-1"]


class TestCurve:
    HISTORY = (
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.5},
        {"step": 2, "eval_loss": 1.7, "eval_score_a": 10.0, "eval_score_b": 30.0, "eval_score": 20.0},
        {"step": 4, "eval_score_a": 50.0, "eval_score_b": 30.0, "eval_score": 40.0},
    )

    def test_losses_and_scores_stand_on_axes_of_their_own_with_the_best_step(self, tmp_path, monkeypatch):
        from matplotlib.figure import Figure

        figures = []
        real = Figure.savefig
        monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), real(self, *a, **k)))
        write_loss_curve(list(self.HISTORY), tmp_path / "curve.png", best_step=4)
        # Without scores there is one axis, and a single task needs no mean.
        write_loss_curve(list(self.HISTORY[:2]), tmp_path / "losses.png")
        write_loss_curve([{"step": 2, "eval_score_a": 10.0, "eval_score": 10.0}], tmp_path / "task.png")
        labels = [[text.get_text() for legend in one.legends for text in legend.get_texts()] for one in figures]
        assert labels == [
            ["training loss", "held-out loss", "a", "b", "mean score", "best: step 4"], ["training loss"], ["a"]
        ]  # fmt: skip
        assert [len(figure.axes) for figure in figures] == [2, 1, 2]
        left, right = figures[0].axes
        assert "loss" in left.get_ylabel()
        assert right.get_ylabel() == "score (percent)"
        assert [line.get_ydata().tolist() for line in right.lines] == [[10, 50], [30, 30], [20, 40]]
        with Image.open(tmp_path / "curve.png") as curve:
            assert curve.format == "PNG"
        assert {path.name for path in tmp_path.iterdir()} == {"curve.png", "losses.png", "task.png"}
