"""Evaluation while a run trains: held-out questions are asked of the model as it stands, by the evaluator's own code.

Prompts, greedy answers, normalisation, metrics and files are those of `evaluate_vqa.py`. Of each task a fixed part is
asked, the same at every step. The questions are dealt over the processes of the run and the answers gathered; each
process makes the same number of batches, so that weights sharded by ZeRO-3 are gathered in lock-step: there `generate`
goes on until the longest answer of all processes has ended.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from eval.backends import Answer, Failure, Request, in_batches
from eval.model_backend import ModelBackend, prepare
from eval.questions import QuestionSet, load_question_set
from eval.run import RunSettings, run_loaded
from eval.run_folder import JOURNAL
from eval.tasks import prompt_form, select_tasks
from monkey.journal import atomic_folder, write_json
from monkey.processing import MonkeyProcessor
from monkey.training.recipes import base_model
from monkey.training.resuming import SCORES_FILE
from monkey.training.trainer import gathered

DEFAULT_LIMIT = 200
"""Questions of a task. The standard error of an accuracy of one half is then 3.5 percentage points."""


def draw(question_set: QuestionSet, limit: int | None, seed: int) -> QuestionSet:
    """The set with `limit` of its questions, in the order of the file.

    The draw is by hashes of the questions' ids, so that neither the machine nor the order of the file changes it.
    """
    if limit is None or limit >= len(question_set.questions):
        return question_set
    chosen = sorted(
        question_set.questions,
        key=lambda question: hashlib.sha256(f"{seed} {question.question_id}".encode()).digest(),
    )[:limit]
    questions = tuple(sorted(chosen, key=lambda question: question.row))
    images = {question.image for question in questions}
    digests = {path: digest for path, digest in question_set.image_digests.items() if path in images}
    return replace(question_set, questions=questions, image_digests=digests)


class InTrainingEval:
    """Asks held-out questions of the model that trains; a `monkey.training.trainer.Evaluator`.

    Args:
        tasks: names or files, as `evaluate_vqa.py --dataset` takes them; their questions are read now.
        data_root: folder that the tasks' paths and their images start from.
        limit: questions of each task that are drawn; None for all.
        batch_size: questions of a batch, in each process.
        num_workers: processes that open images, beside each process of the run.

    Raises:
        FileNotFoundError, ValueError: what a user can have wrong; one sentence each.
    """

    def __init__(
        self,
        tasks: str,
        data_root: Path | None = None,
        limit: int | None = DEFAULT_LIMIT,
        batch_size: int = 4,
        num_workers: int = 2,
    ):
        selected = select_tasks(tasks)
        self._settings = RunSettings(Path(), data_root, batch_size=batch_size, limit=limit, show_progress=False)
        self._forms = [prompt_form(task, self._settings.prompt) for task in selected]
        self.question_sets = [draw(load_question_set(task, data_root), limit, self._settings.seed) for task in selected]
        self._num_workers = num_workers

    def __str__(self) -> str:
        counts = ", ".join(f"{len(one.questions)} of {one.task.name}" for one in self.question_sets)
        return f"questions at each evaluation: {counts}"

    def check(self, processor: MonkeyProcessor) -> None:
        """Encode every question and its image once, in the first process.

        Raises:
            ValueError: the first that cannot be asked, with its file and line.
        """
        if _rank_and_size()[0]:
            return
        for request in itertools.chain(*self._requests()):
            for failure in prepare(processor, processor.end_ids(), [request]).failures:
                raise ValueError(failure.reason)

    def __call__(self, model: nn.Module, processor: MonkeyProcessor, folder: Path, step: int) -> dict[str, float]:
        """Return the headline score in percent by task; the files of a run go to `folder`."""
        fingerprint = f"the open model at step {step}"
        opened = ModelBackend.around(base_model(model), processor, fingerprint, self._num_workers)
        backend = _SharedBackend(opened)
        scores: dict[str, float] = {}
        if _rank_and_size()[0] == 0:
            scores = self._run(backend, folder, step)
        else:
            for requests in self._requests():
                list(backend.batches(requests, self._settings.batch_size))
        return gathered(scores)[0]

    def _requests(self) -> list[list[Request]]:
        """The questions of each task with their prompts."""
        return [
            [Request(one.task, question, form) for question in one.questions]
            for one, form in zip(self.question_sets, self._forms, strict=True)
        ]

    def _run(self, backend: _SharedBackend, folder: Path, step: int) -> dict[str, float]:
        """Ask and score; `folder` is written whole or not at all."""
        with atomic_folder(folder) as partial:
            settings = replace(self._settings, folder=partial, checkpoint=f"the open model at step {step}")
            results = run_loaded(self.question_sets, self._forms, settings, backend)
            scores = {result["task"]: result["scores"][result["headline"]]["value"] for result in results}
            chosen = {"limit": settings.limit, "drawn_with_seed": settings.seed}
            write_json(partial / SCORES_FILE, {"step": step, "scores": scores, "questions": chosen})
            for result in results:
                # It serves to go on with an interrupted run; this one is asked again as a whole.
                (partial / result["task"] / JOURNAL).unlink()
        return scores


class _SharedBackend:
    """A backend whose questions are dealt over the processes of a run; all of them must ask, task after task."""

    def __init__(self, backend: ModelBackend):
        self._backend = backend
        self.name = backend.name
        self.settings: dict[str, Any] = backend.settings
        self.fingerprint = backend.fingerprint
        self.device = backend.device

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterable[Sequence[Answer]]:
        """The answers to all requests, of all processes; ValueError, in all of them, where one could not be asked."""
        rank, size = _rank_and_size()
        own = list(requests[rank::size])
        # A process with fewer questions repeats one, so that all make the same number of batches.
        repeated = requests[-1:] if len(own) < -(-len(requests) // size) else []
        prepared = self._backend.batches([*own, *repeated], batch_size)
        number = -(-len([*own, *repeated]) // batch_size)
        progress = tqdm(
            prepared,
            total=number,
            desc=requests[0].task.name,
            unit="batch",
            leave=False,
            disable=True if rank else None,
        )
        own_rows = {request.row for request in own}
        results = [result for batch in progress for result in self._backend.generate_answers(batch)]
        shares = gathered([result for result in results if result.row in own_rows])
        kept = [result for share in shares for result in share]
        failures = [result for result in kept if isinstance(result, Failure)]
        if failures:
            raise ValueError(f"{len(failures)} of {len(requests)} questions could not be asked: {failures[0].reason}")
        return in_batches(kept, batch_size)

    def generate_answers(self, batch: Sequence[Answer]) -> list[Answer | Failure]:
        return list(batch)


def _rank_and_size() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
