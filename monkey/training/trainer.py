"""transformers' Trainer with what Monkey's runs need besides.

- a checkpoint is written beside its place and renamed, so that a folder `checkpoint-N` is always whole;
- a checkpoint opens like any other: weights under the published names, config, processor, and the run's record;
- a step without a supervised token, or with a loss or gradients that are not finite, stops all processes with the
  names of its records, and the state before it is saved;
- samples are packed into planned rows, and the loss is a mean over the supervised tokens of the whole step, or, with
  `--published True`, over the means of its batches;
- an evaluation is a loss over held-out records and scores of generated answers, and the best weights are kept.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import GenerationConfig, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from monkey.adapters import load_adapter, save_adapter
from monkey.checkpoint_card import CheckpointCard
from monkey.data.dataset import (
    SIGNALS,
    Collator,
    ConversationDataset,
    PackedCollator,
    PlannedBatches,
    PlannedLoader,
    Tolerant,
)
from monkey.data.packing import BatchContents, BatchPlan, RowPlan
from monkey.data.streaming import StreamedBatches, streamed_loader
from monkey.devices import widest_float
from monkey.journal import atomic_folder
from monkey.processing import MonkeyProcessor
from monkey.training.arguments import PartArguments
from monkey.training.meter import Meter
from monkey.training.model_card import write_record
from monkey.training.recipes import base_model, part_of
from monkey.training.resuming import (
    BEST,
    BEST_FILE,
    SCORES,
    STREAM_FILE,
    checkpoints,
    remove_checkpoint,
    writing,
)

_UNLOGGED = "unlogged loss"
"""Where a checkpoint keeps what the next logged loss is a mean of, besides the steps to come."""

_MOST_STEPS_LEFT_OUT = 8
"""Steps one behind the other without a record that can be read, after which more than a few records are bad."""


class Evaluator(Protocol):
    """Asks held-out questions of the model that trains, and scores the answers.

    Every process calls it, at the same steps; what it returns is the same in all of them.
    """

    def check(self, processor: MonkeyProcessor) -> None:
        """Raise ValueError or FileNotFoundError, before the first step, for a question that cannot be asked."""
        ...

    def __call__(self, model: nn.Module, processor: MonkeyProcessor, folder: Path, step: int) -> dict[str, float]:
        """Return the score in percent by task. `folder` is written whole or not at all, with a `scores.json` in it.

        `model` is out of the wrappers of DDP and DeepSpeed, and may be wrapped by PEFT.
        """
        ...


# Processes and files


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is raised in any process; all of them must ask."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return flag
    raised = torch.tensor(int(flag), device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def gathered(value: Any) -> list[Any]:
    """The value of every process, in their order; all of them must ask."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def is_first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def wait_for_everyone() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _writes(args: TrainingArguments | None) -> bool:
    """Whether this process writes what one does for all, or with `--save_on_each_node` for those of its node."""
    return is_first_process() if args is None else args.should_save


@contextlib.contextmanager
def shared_folder(path: Path, args: TrainingArguments | None = None) -> Iterator[Path]:
    """As `monkey.journal.atomic_folder`, for a folder that all processes of a run write to.

    One process makes it for all, with `--save_on_each_node` one of each node for those behind it in the order of ranks.
    """
    rank = 0 if args is None else args.process_index
    with contextlib.ExitStack() as stack:
        partial = stack.enter_context(atomic_folder(path)) if _writes(args) else None
        yield [folder for folder in gathered(partial)[: rank + 1] if folder is not None][-1]
        wait_for_everyone()
    wait_for_everyone()


# What stops a run

# torchrun hands Ctrl-C on to processes that the terminal has told already.
_LAUNCHED = "TORCHELASTIC_RUN_ID"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(parameter: torch.Tensor) -> int:
    """Sum of a parameter's bytes read as integers: any single change moves it."""
    # Where ZeRO-3 shards a parameter, this process has a slice of it.
    held = getattr(parameter, "ds_tensor", parameter).detach()
    return int(held.contiguous().view(_INTEGERS[held.element_size()]).sum(dtype=torch.int64))


class FrozenGuard(TrainerCallback):
    """Refuses a checkpoint, or the end of a run, when a parameter that should be frozen has moved."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]]):
        self._frozen = [(name, parameter) for name, parameter in named_parameters if not parameter.requires_grad]
        self._checksums: list[int] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._checksums = [checksum(parameter) for _, parameter in self._frozen]

    def check(self, step: int) -> None:
        """ValueError naming the parameters that moved."""
        if not self._checksums:
            return
        moved = [
            name
            for (name, parameter), before in zip(self._frozen, self._checksums, strict=True)
            if checksum(parameter) != before
        ]
        if moved:
            raise ValueError(
                f"step {step}: {len(moved)} frozen parameters moved, for instance {moved[0]}; what was trained is not "
                "what the recipe says, so nothing more is saved"
            )

    def on_train_end(self, args, state, control, **kwargs):
        self.check(state.global_step)


class StopOnSignal(TrainerCallback):
    """On SIGTERM, SIGUSR1 or Ctrl-C in any process: finish the step, write a checkpoint, stop all of them.

    A second Ctrl-C stops at once, by KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.stopped_at: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        def remember(number: int, _frame: Any) -> None:
            if number == signal.SIGINT and _LAUNCHED not in os.environ:
                if self.received == signal.SIGINT:
                    raise KeyboardInterrupt
                # Not print, which the signal may have interrupted.
                os.write(2, b"\nCtrl-C: the run stops after this step and saves its state; again to stop at once\n")
            if self.received is None:
                self.received = number

        try:
            # What is ignored stays so: a job behind `nohup` or `&` is not meant by the terminal's Ctrl-C.
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, remember) for number in heard}
        except ValueError:  # not the main thread, which alone may handle signals
            self._before = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if any_process(self.received is not None, args.device):
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def step_dtype(training: TrainingArguments) -> torch.dtype:
    """Return the type that a step's products are computed in, as `--bf16` and `--fp16` say."""
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32


# Evaluation


def score_metrics(scores: Mapping[str, float]) -> dict[str, float]:
    """Return names for the log: `eval_score_<task>` of each task, and their mean as `eval_score`."""
    metrics = {f"eval_score_{task}": value for task, value in scores.items()}
    return {**metrics, "eval_score": sum(scores.values()) / len(scores)}


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


class BestCheckpoint:
    """The best weights of a run by one metric of its evaluations, in the folder `best`.

    The folder outlives the run: one that is resumed goes on from the value in `best.json`. All processes make this
    object and keep with it, since all of them take part in saving sharded weights.

    Args:
        output_dir: of the run.
        metric: a name in the log, with or without its `eval_`.
        greater_is_better: whether it grows as the model gets better.
        fresh: the run begins anew, so the first that it keeps replaces an earlier run's best, whatever its metric.
        args: the run's, which say what processes write; without them the first does.

    Attributes:
        record: what `best/best.json` says of the weights beside it: `step`, `metric`, `value`, and `scores`, every
            score of that evaluation in percent by its name in the log. None before the first.

    Raises:
        ValueError: a `best` that no run has written, or one that was chosen by another metric.
    """

    def __init__(self, output_dir: Path, metric: str, greater_is_better: bool, fresh: bool = False, args: Any = None):
        self.folder = Path(output_dir) / BEST
        self.metric = f"eval_{metric.removeprefix('eval_')}"
        self._args = args
        self._sign = 1.0 if greater_is_better else -1.0
        found: dict[str, Any] | str | None = None
        if is_first_process() and self.folder.exists():
            try:
                found = self._opened(fresh)
            except ValueError as error:
                found = str(error)
        found = gathered(found)[0]
        if isinstance(found, str):
            raise ValueError(found)
        self.record = found

    def keep(self, step: int, metrics: Mapping[str, float], save: Callable[[Path], None]) -> bool:
        """Keep the weights when the metrics are better than those of the kept ones; return whether they are.

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
        value, best = float(metrics[self.metric]), self.record
        better = not math.isnan(value) and (best is None or self._sign * value > self._sign * best["value"])
        if not gathered(better)[0]:
            return False
        scores = {name: float(score) for name, score in metrics.items() if name.startswith("eval_score")}
        record = {"step": step, "metric": self.metric, "value": value, "scores": scores}
        with shared_folder(self.folder, self._args) as folder:
            save(folder)
            if _writes(self._args):
                write_record(folder / BEST_FILE, record)
        self.record = record
        return True

    def _opened(self, fresh: bool) -> dict[str, Any] | None:
        """Return the record of what lies there, None where it does not count."""
        path = self.folder / BEST_FILE
        if not path.is_file():
            raise ValueError(
                f"{self.folder} was not written by a run (it has no {BEST_FILE}) and the best checkpoint needs its "
                "name: move it away, or name another --output_dir"
            )
        if fresh:
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            metric, _, _ = record["metric"], int(record["step"]), float(record["value"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): move {self.folder} away") from None
        if metric != self.metric:
            raise ValueError(
                f"{self.folder} was chosen by {metric}, and this run would choose by {self.metric}: resume with "
                "the same --metric_for_best_model, or move the folder away"
            )
        return record


# The trainer


class MonkeyTrainer(Trainer):
    """Trainer for a Monkey model, wrapped in PEFT or not.

    Args:
        run_record: written as `run.json` into every checkpoint.
        card: of the starting weights, which every checkpoint carries on.
        parts: rates and decays by part.
        train_set: samples, dealt by `plan`, or batches that come as a stream.
        plan: the batches of each process, packed or padded; None for a stream.
        meter: counts what is done.
        evaluator: answers held-out questions at every evaluation.
        best: keeps the weights of the best evaluation.
        skip_bad_rows: leave out records that turn out to be bad on the way, instead of stopping.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        processor: MonkeyProcessor,
        train_set: ConversationDataset | StreamedBatches,
        eval_set: ConversationDataset | None,
        *,
        run_record: dict[str, Any],
        card: CheckpointCard,
        parts: PartArguments,
        plan: RowPlan | BatchPlan | None,
        meter: Meter,
        evaluator: Evaluator | None = None,
        best: BestCheckpoint | None = None,
        skip_bad_rows: bool = False,
    ):
        self._partial: Path | None = None  # of the checkpoint that is being written
        self.run_record = run_record
        self.card = card
        self.parts = parts
        self.plan = plan
        self.meter = meter
        self.evaluator = evaluator
        self.best = best
        self.skip_bad_rows = skip_bad_rows
        self._steps_left_out = 0  # one behind the other, until now
        self._window: list[BatchContents] = []  # of the step that is being made
        stream = train_set if isinstance(train_set, StreamedBatches) else None
        self._positions: dict[int, Any] = dict(stream.positions) if stream else {}  # of lanes, before the last step
        self._next_positions: dict[int, Any] = {}  # of those that the last step, or the one that is made, has moved
        rows = stream.settings.rows if stream else plan.settings if isinstance(plan, RowPlan) else None
        collator: Any = Collator(processor, parts.published)
        if rows is not None:
            collator = PackedCollator(processor, rows.budget, parts.published)
        use_cache = vars(model.config).get("use_cache")
        super().__init__(
            model,
            args,
            collator,
            train_set if stream else Tolerant(train_set),
            # The library wants a held-out set wherever it evaluates; here there may be scores alone.
            eval_dataset=[],
            processing_class=processor,
        )
        self.eval_dataset = None if eval_set is None else Tolerant(eval_set)
        self.guard, self.stop = FrozenGuard(base_model(model).named_parameters()), StopOnSignal()
        self.add_callback(self.guard)
        self.add_callback(self.stop)
        # Trainer turns the cache off in the config, and a checkpoint would keep that; each step turns it off instead.
        if use_cache is None:
            del model.config.use_cache
        else:
            model.config.use_cache = use_cache

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """The batches, planned or as they come; not prepared by accelerate, since they are dealt to the processes."""
        if self.plan is None:
            return streamed_loader(
                self.train_dataset, self.data_collator, **self._loader_settings(None) | {"persistent_workers": False}
            )
        batches = PlannedBatches(self.plan, self.args.process_index)
        return PlannedLoader(self.train_dataset, batches, **self._loader_settings(self.data_collator))

    def _loader_settings(self, collator: Any) -> dict[str, Any]:
        workers = self.args.dataloader_num_workers
        return {
            **({} if collator is None else {"collate_fn": collator}),
            "num_workers": workers,
            "pin_memory": self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            "persistent_workers": bool(self.args.dataloader_persistent_workers and workers),
            "prefetch_factor": self.args.dataloader_prefetch_factor if workers else None,
        }

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """On the device, with canvases normalised there; a process without one encodes a blank canvas for nothing."""
        inputs = super()._prepare_inputs(inputs)
        image_processor = self.processing_class.image_processor
        if "pixel_values" in inputs:
            inputs["pixel_values"] = image_processor.normalised(inputs["pixel_values"])
        elif self.args.world_size > 1:
            size, side = image_processor.size, image_processor.window_size
            height, width = (side, side) if image_processor.is_ragged else (size["height"], size["width"])
            inputs["blank_pixel_values"] = torch.zeros(1, 3, height, width, device=self.args.device)
        inputs["use_cache"] = False
        return inputs

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """What the step's loss is divided by: the weight of all its batches, in all processes."""
        weight = torch.tensor(sum(batch["contents"].weight for batch in batch_samples), device=device)
        if self.args.world_size > 1:
            dist.all_reduce(weight)
        return weight

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """The batches of a step without the records that turned out to be bad; one with no other learns nothing."""
        if not self._window:  # the last step was made
            self._positions |= self._next_positions
            self._next_positions = {}
        batches, supervised = super().get_batch_samples(epoch_iterator, num_batches, device)
        bad = self._left_out(batch["contents"] for batch in batches)
        self._next_positions = dict(batch["contents"].position for batch in batches if batch["contents"].position)
        self._say_what_begins_again()
        if not bad or supervised is None or int(supervised):
            self._steps_left_out = 0
            return batches, supervised
        self._steps_left_out += 1
        if self._steps_left_out == _MOST_STEPS_LEFT_OUT:
            raise ValueError(
                f"no record of the last {_MOST_STEPS_LEFT_OUT} steps could be read, lastly {bad[-1]}{self._saved()}"
            )
        return batches, supervised.clamp(min=1)

    def _say_what_begins_again(self) -> None:
        """Say, once a pass, which streams this process has gone through."""
        if self.plan is not None:
            return
        before, now = map(self.train_dataset.passes, (self._positions, self._next_positions))
        for source, earlier, later in zip(self.train_dataset.sources, before, now, strict=True):
            if later > earlier and self.args.process_index == 0:
                print(f"note: {source.name} ends and begins again, for the {later + 1}. time")

    def _left_out(self, contents: Iterable[BatchContents]) -> list[str]:
        """What is wrong with bad records there, in any process; lists them, or stops the run in all processes."""
        own = [sample for one in contents for sample in one.bad]
        if not any_process(bool(own), self.args.device):
            return []
        bad = [sample for samples in gathered(own) for sample in samples]
        for sample in bad:
            if not (self.skip_bad_rows and sample.of_one_record):
                saved = self._saved()
                advice = ["mend it" + (" and continue with --resume_from_checkpoint True" if saved else "")]
                if sample.of_one_record:
                    advice.append("leave such records out with --skip_bad_rows True")
                raise ValueError(f"{sample.sentence}{saved}; {', or '.join(advice)}")
        listed = self.run_record["left_out"]
        for sentence in dict.fromkeys(sample.sentence for sample in bad):
            if sentence not in listed:
                listed.append(sentence)
                if self.args.process_index == 0:
                    print(f"left out: {sentence}")
        self.run_record["data"]["left_out"] = len(listed)
        return [sample.sentence for sample in bad]

    # Steps

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Make no step after the last: the library makes one more where a run is resumed at its end within an epoch."""
        unlogged = self.state.stateful_callbacks.pop(_UNLOGGED, None)
        if unlogged is not None and self.state.global_step == self._initial_global_step:  # as it was loaded
            losses = unlogged["losses"]
            alike = len(losses) == self.args.world_size
            self._tr_loss += losses[self.args.process_index] if alike else sum(losses) / len(losses)
            self._globalstep_last_logged = unlogged["since"]
        if self.plan is None:  # a stream stands where it goes on, and its one pass is the run
            part = self.state.global_step / self.state.max_steps
            kwargs |= {"epoch": part, "epochs_trained": part, "steps_trained_in_current_epoch": 0}
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        contents = inputs.pop("contents")
        self._window.append(contents)
        if num_items_in_batch is not None and not int(num_items_in_batch):
            raise ValueError(f"step {self.state.global_step + 1} has no supervised token: {_records(self._sources())}")
        self.meter.count(contents)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and self.is_deepspeed_enabled:
            self._window.clear()
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the library's; a loss that is not finite, in any process, stops all of them before it is used."""
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if any_process(not torch.isfinite(loss), self.args.device):
            losses = [f"{value:g}" for value in gathered(loss.item()) if not math.isfinite(value)]
            self._stop(f"the loss is {', '.join(losses)}")
        return result

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        self._fill_missing_gradients()
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # It is that of all processes' gradients together, so all of them stop here.
        if norm is not None and not math.isfinite(norm) and not self._scaled_too_far():
            self._stop(f"the gradient norm is {float(norm):g}")
        self._window.clear()
        return norm

    def _scaled_too_far(self) -> bool:
        """Whether the loss of `--fp16` was scaled too far: the scaler halves its scale and leaves the step out.

        At a scale below 1, sixteen halvings after the start, the gradients overflow by themselves.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def _fill_missing_gradients(self) -> None:
        """A step without any picture gives the vision side gradients of zero, not none, which would leave it out.

        Momentum and decay go on then as in several processes, where a blank picture gives the same zeros.
        """
        if not self.is_deepspeed_enabled:
            for parameter in self.model.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def _sources(self) -> list[str]:
        """Records of the step that is being made, of all processes."""
        own = [source for contents in self._window for source in contents.sources]
        return [source for sources in gathered(own) for source in sources]

    def _stop(self, what: str) -> NoReturn:
        """Save the state before this step, then raise in every process."""
        sources = self._sources()
        # DeepSpeed has already made the step by the time that it tells its gradient norm.
        saved = "" if self.is_deepspeed_enabled and "norm" in what else self._saved()
        step = self.state.global_step + 1
        raise ValueError(f"step {step}: {what}, so the run stopped before using it: {_records(sources)}{saved}")

    def _saved(self) -> str:
        """Save the state as it is, and say where; nothing where no step was made. All processes call it."""
        step = self.state.global_step
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        is_there = gathered(folder.is_dir())[0]
        if not is_there and step > self._initial_global_step:
            self._save_checkpoint(self.model, None)
            is_there = True
        return f"; the state before it is in {folder}" if is_there else ""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As the library's, which spares biases and norms; the published script decays the decoder's norms too."""
        names = super().get_decay_parameter_names(model)
        if self.parts.published:
            norms = [name for name, module in model.named_modules() if isinstance(module, Qwen2RMSNorm)]
            names += [f"{name}.weight" for name in norms]
        return names

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The library's optimiser, its groups divided by the parts' own learning rates and decays."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made:
            model = self.model if model is None else model
            decaying = set(self.get_decay_parameter_names(model))
            decays = {id(parameter) for name, parameter in model.named_parameters() if name in decaying}
            divide_groups(optimizer, base_model(model), self.parts, self.args, decays)
        return optimizer

    # Evaluation

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Return the held-out loss per supervised token, and the scores of answers, as far as each was asked for."""
        metrics: dict[str, float] = {}
        with self._paused_meter():
            if self.eval_dataset is not None:
                metrics["eval_loss"] = self._held_out_loss()
            if self.evaluator is not None:
                metrics |= score_metrics(self._scores())
        self.log(metrics)
        if self.best is not None:
            self.guard.check(self.state.global_step)
            with writing(self.best.folder, "what was there before still is: make room and continue from a checkpoint"):
                self.best.keep(self.state.global_step, metrics, lambda folder: self.save_model(str(folder)))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluated_model(self) -> nn.Module:
        return self.model_wrapped if self.is_deepspeed_enabled else self.model

    def _scores(self) -> dict[str, float]:
        """Return the evaluator's score in percent by task, computed as narrow as the steps are."""
        bare = extract_model_from_parallel(self._evaluated_model())
        folder = Path(self.args.output_dir) / SCORES / f"step-{self.state.global_step}"
        dtype = step_dtype(self.args)
        narrows = dtype != torch.float32 and not self.is_deepspeed_enabled
        with undisturbed(bare), torch.autocast(self.args.device.type, dtype, enabled=narrows):
            return self.evaluator(bare, self.processing_class, folder, self.state.global_step)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Mean over all supervised tokens of the held-out records, over all processes."""
        samples = range(len(self.eval_dataset))
        shares = BatchPlan(lambda _: samples, self.args.eval_batch_size, self.args.world_size)
        batches = PlannedBatches(shares, self.args.process_index)
        loader = PlannedLoader(self.eval_dataset, batches, **self._loader_settings(Collator(self.processing_class)))
        model = self._evaluated_model()
        was_training = model.training
        model.eval()
        wide = {"dtype": widest_float(self.args.device), "device": self.args.device}
        total = torch.zeros(2, **wide)
        all_contents, not_finite = [], []
        for batch in tqdm(loader, desc="held-out loss", unit="batch", leave=False, disable=self._quiet()):
            contents = batch.pop("contents")
            inputs = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                loss = model(**inputs, num_items_in_batch=1).loss
            if not torch.isfinite(loss):
                not_finite += contents.sources
            total += torch.tensor([loss.item(), contents.supervised], **wide)
            all_contents.append(contents)
        model.train(was_training)
        self._left_out(all_contents)
        if self.args.world_size > 1:
            dist.all_reduce(total)
        if not torch.isfinite(total[0]):
            sources = [source for sources in gathered(not_finite) for source in sources]
            raise ValueError(f"the held-out loss is {total[0].item():g}: {_records(sources)}{self._saved()}")
        if not total[1]:
            raise ValueError(f"no held-out record could be read{self._saved()}")
        return float(total[0] / total[1])

    @contextlib.contextmanager
    def _paused_meter(self) -> Iterator[None]:
        """Leave the time within out of the rates of training."""
        start = time.perf_counter()
        yield
        self.meter.leave_out(time.perf_counter() - start)

    def _quiet(self) -> bool | None:
        return True if self.args.disable_tqdm or self.args.process_index else None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs and self.state.global_step == self._initial_global_step:
            return  # the library's summary of no step at all
        if "loss" in logs:
            logs = {**logs, **self.meter.since_last(self.args.device)}
        super().log(logs, start_time)

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write weights (or the adapter), config, processor, card and record to `output_dir`."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(self.model, "peft_config"):
            save_adapter(self.model, folder, state_dict)
        else:
            self.model.save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        self.card.write(folder)
        write_record(folder / "run.json", self.run_record)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._partial or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-N` whole: beside its place, then into it."""
        place = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.guard.check(self.state.global_step)
        self.state.stateful_callbacks.pop(_UNLOGGED, None)
        if not self._window:  # within a step, the losses of its first batches would come twice
            losses = gathered(self._tr_loss.item())
            self.state.stateful_callbacks[_UNLOGGED] = {"losses": losses, "since": self._globalstep_last_logged}
        moved = {} if self._window else self._next_positions
        positions = {lane: one for own in gathered({**self._positions, **moved}) for lane, one in own.items()}
        advice = "earlier checkpoints are whole: make room and continue with --resume_from_checkpoint True"
        with self._paused_meter(), writing(place, advice), shared_folder(place, self.args) as self._partial:
            try:
                super()._save_checkpoint(model, trial)
            finally:
                partial, self._partial = self._partial, None
            wait_for_everyone()
            if self.args.should_save and self.plan is None:
                write_record(partial / STREAM_FILE, self.train_dataset.state(positions))
            if self.args.should_save:
                # The library makes a folder of this name within the one that it is given.
                for entry in (partial / place.name).iterdir():
                    os.replace(entry, partial / entry.name)
                (partial / place.name).rmdir()
        if self.args.should_save and self.args.save_total_limit is not None:
            # By age: a run resumed from an early checkpoint writes smaller steps than those that it leaves.
            others = sorted(checkpoints(place.parent), key=lambda folder: (folder == place, folder.stat().st_mtime))
            for folder in others[: -self.args.save_total_limit]:
                remove_checkpoint(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{checkpoint}: optimizer.pt and scheduler.pt are of another optimiser than this run's ({error}): "
                "resume with the flags that it was made with, or start from its weights with --model_name_or_path"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Put a checkpoint's weights into the model; the library's own reads files by the names in memory."""
        model = self.model if model is None else model
        if hasattr(model, "peft_config"):
            load_adapter(model, Path(resume_from_checkpoint))
            return
        # In fp32, which holds every weight exactly: with `--bf16` the model's own type would round what trains.
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())


def divide_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, parts: PartArguments, args: Any, decays: set[int]
) -> None:
    """Give each part's parameters their own learning rate and weight decay.

    Args:
        decays: ids of the parameters that decay; biases and norms do not.
    """
    part = {id(parameter): part_of(name) for name, parameter in model.named_parameters()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = part[id(parameter)]
            rate = parts.of_part(name, "learning_rate", args.learning_rate)
            decay = parts.of_part(name, "weight_decay", args.weight_decay) if id(parameter) in decays else 0.0
            new = groups.setdefault((rate, decay), {**group, "params": [], "lr": rate, "weight_decay": decay})
            new["params"].append(parameter)
    optimizer.param_groups[:] = groups.values()


def _records(sources: Sequence[str], shown: int = 32) -> str:
    if not sources:
        return "the batch does not name its records"
    more = f" and {len(sources) - shown} more" if len(sources) > shown else ""
    return f"the batch holds {', '.join(sources[:shown])}{more}"
