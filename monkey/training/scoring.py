"""Scores while a run trains: the model answers held-out questions, training goes on undisturbed, the best is kept.

Who asks and scores comes from outside (`Evaluator`), since this package does not know the evaluator. What it writes
goes to `scores/step-N` of the run's folder; the weights of the best evaluation so far to `best`, beside the checkpoints
and never pruned with them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import GenerationConfig

from monkey.processing import MonkeyProcessor
from monkey.training.guards import gathered
from monkey.training.recipes import base_model
from monkey.training.record import write_json

SCORES, SCORES_FILE = "scores", "scores.json"
BEST, BEST_FILE = "best", "best.json"


class Evaluator(Protocol):
    """Asks held-out questions of the model that trains, and scores the answers.

    Every process calls it, at the same steps; what it returns is the same in all of them.
    """

    def check(self, processor: MonkeyProcessor) -> None:
        """ValueError or FileNotFoundError, before the first step, for a question that cannot be asked."""
        ...

    def __call__(self, model: nn.Module, processor: MonkeyProcessor, folder: Path, step: int) -> dict[str, float]:
        """Score in percent by task. `folder` is written whole or not at all, with a `scores.json` in it.

        `model` is in evaluation mode, out of the wrappers of DDP and DeepSpeed, and may be wrapped by PEFT.
        """
        ...


class Scoring:
    """An evaluator at work in one run: called at each evaluation, by all processes.

    Args:
        evaluator: asks and scores.
        processor: of the run.
        output_dir: of the run.
        autocast_dtype: what the steps are computed in, where autocast narrows the weights; None where it does not.

    Raises:
        ValueError: a folder under `scores` that a run would write over, and none has written.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        processor: MonkeyProcessor,
        output_dir: Path,
        autocast_dtype: torch.dtype | None = None,
    ):
        self._evaluator = evaluator
        self._processor = processor
        self._folder = Path(output_dir) / SCORES
        self._autocast_dtype = autocast_dtype
        for folder in sorted(self._folder.glob("step-*")):
            if not (folder / SCORES_FILE).is_file():
                raise ValueError(
                    f"{folder} was not written by a run (it has no {SCORES_FILE}) and a run may need its name: move it "
                    "away, or name another --output_dir"
                )

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Score in percent by task."""
        bare = extract_model_from_parallel(model)
        narrowing = contextlib.nullcontext()
        if self._autocast_dtype is not None:
            narrowing = torch.autocast(base_model(bare).device.type, self._autocast_dtype)
        with undisturbed(bare), narrowing:
            return self._evaluator(bare, self._processor, self._folder / f"step-{step}", step)


def score_metrics(scores: Mapping[str, float], prefix: str = "eval") -> dict[str, float]:
    """Names for the log: `eval_score_<task>` of each task, and their mean as `eval_score`."""
    metrics = {f"{prefix}_score_{task}": value for task, value in scores.items()}
    return {**metrics, f"{prefix}_score": sum(scores.values()) / len(scores)}


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and with plain generation settings; afterwards everything is as it was before.

    That is the mode of each module, the model's generation settings (sampling and stop words of a chat are no part of
    an evaluation, but belong into the checkpoint), and the random states of Python, NumPy and PyTorch: training goes
    on bit for bit as if nothing had been asked.
    """
    bare = base_model(extract_model_from_parallel(model))
    modes = [(module, module.training) for module in model.modules()]
    settings = bare.generation_config
    python_state, numpy_state = random.getstate(), np.random.get_state()
    on_cpu = bare.device.type == "cpu"
    generators = torch.random.fork_rng(
        devices=[] if on_cpu else [bare.device], device_type="cuda" if on_cpu else bare.device.type
    )
    with generators:
        model.eval()
        bare.generation_config = GenerationConfig()
        try:
            yield
        finally:
            bare.generation_config = settings
            for module, training in modes:
                module.training = training
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@dataclass(frozen=True)
class BestRecord:
    """What `best/best.json` says of the weights beside it."""

    step: int
    metric: str
    value: float
    scores: dict[str, float]
    """Every score of that evaluation in percent, by its name in the log; none where only a loss was taken."""


class BestCheckpoint:
    """The best weights of a run by one metric of its evaluations, in the folder `best`.

    The folder outlives the run: one that is resumed goes on from the value in `best.json`. All processes make this
    object and offer to it, since all of them take part in saving sharded weights.

    Args:
        output_dir: of the run.
        metric: a name in the log, with or without its `eval_`.
        greater_is_better: whether it grows as the model gets better.
        fresh: the run begins anew, so the first that it offers replaces an earlier run's best, whatever its metric.

    Raises:
        ValueError: a `best` that no run has written, or one that was chosen by another metric.
    """

    def __init__(self, output_dir: Path, metric: str, greater_is_better: bool, fresh: bool = False):
        self.folder = Path(output_dir) / BEST
        self.metric = f"eval_{metric.removeprefix('eval_')}"
        self._sign = 1.0 if greater_is_better else -1.0
        self._aside = self.folder.with_name(f".{BEST}.partial")
        self._former = self.folder.with_name(f".{BEST}.former")
        found: BestRecord | str | None = None
        if _is_first_process():
            try:
                found = self._opened(fresh)
            except ValueError as error:
                found = str(error)
        found = gathered(found)[0]
        if isinstance(found, str):
            raise ValueError(found)
        self.record: BestRecord | None = found

    def offer(self, step: int, metrics: Mapping[str, float], save: Callable[[Path], None]) -> bool:
        """Keep the weights when the metrics are better than those of the kept ones; say whether they are.

        Args:
            save: writes the weights to a folder that exists and is empty; all processes call it.

        Raises:
            ValueError: the evaluation does not give the metric.
        """
        if self.metric not in metrics:
            raise ValueError(
                f"--metric_for_best_model {self.metric} is not among what the evaluation gives: "
                f"{', '.join(sorted(metrics))}"
            )
        value = float(metrics[self.metric])
        better = not math.isnan(value) and (self.record is None or self._sign * value > self._sign * self.record.value)
        if not gathered(better)[0]:
            return False
        scores = {name: float(score) for name, score in metrics.items() if name.startswith("eval_score")}
        record = BestRecord(step, self.metric, value, scores)
        self._keep(record, save)
        self.record = record
        return True

    def _keep(self, record: BestRecord, save: Callable[[Path], None]) -> None:
        """Write the weights aside, then put them in the place of the former ones."""
        first = _is_first_process()
        if first:
            shutil.rmtree(self._aside, ignore_errors=True)
            self._aside.mkdir(parents=True)
        _wait_for_everyone()
        try:
            save(self._aside)
            _wait_for_everyone()
            if first:
                write_json(self._aside / BEST_FILE, asdict(record))
                if self.folder.exists():
                    os.replace(self.folder, self._former)
                os.replace(self._aside, self.folder)
                shutil.rmtree(self._former, ignore_errors=True)
        finally:
            if first:
                shutil.rmtree(self._aside, ignore_errors=True)
        _wait_for_everyone()

    def _opened(self, fresh: bool) -> BestRecord | None:
        """The record of what lies there, None where it does not count.

        A run that was killed between two renames has its former best put back.
        """
        if self._former.exists():
            if self.folder.exists():
                shutil.rmtree(self._former)
            else:
                os.replace(self._former, self.folder)
        if not self.folder.exists():
            return None
        path = self.folder / BEST_FILE
        if not path.is_file():
            raise ValueError(
                f"{self.folder} was not written by a run (it has no {BEST_FILE}) and the best checkpoint needs its "
                "name: move it away, or name another --output_dir"
            )
        if fresh:
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            record = BestRecord(**{field.name: content[field.name] for field in fields(BestRecord)})
            record = replace(record, step=int(record.step), value=float(record.value), scores=dict(record.scores))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): move {self.folder} away") from None
        if record.metric != self.metric:
            raise ValueError(
                f"{self.folder} was chosen by {record.metric}, and this run would choose by {self.metric}: resume with "
                "the same --metric_for_best_model, or move the folder away"
            )
        return record


def earlier_evaluations(output_dir: Path) -> list[Path]:
    """Folders that evaluations of an earlier run left in `output_dir`: its best checkpoint and its scores."""
    best = Path(output_dir) / BEST
    scores = [path for path in (Path(output_dir) / SCORES).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return [
        *([best] if (best / BEST_FILE).is_file() else []),
        *sorted(path for path in scores if (path / SCORES_FILE).is_file()),
    ]


def _is_first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _wait_for_everyone() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
