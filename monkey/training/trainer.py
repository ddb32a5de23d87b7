"""transformers' Trainer with what Monkey's runs need besides.

- a checkpoint is written beside its place and renamed, so that a folder `checkpoint-N` is always whole;
- a checkpoint opens like any other: weights under the published names, config, processor, and the run's record;
- a step without a supervised token, or with a loss or gradients that are not finite, stops all processes with the
  names of its records, and the state before it is saved;
- samples are packed into planned rows, and the loss is a mean over the supervised tokens of the whole step, or, with
  `--published True`, over the means of its batches;
- an evaluation is a loss over held-out records and scores of generated answers.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Trainer
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from monkey.checkpoint_card import CheckpointCard
from monkey.data.batches import BatchContents
from monkey.data.dataset import EqualShares, PlannedBatches, PlannedLoader
from monkey.data.packing import BatchPlan, RowPlan
from monkey.training.guards import FrozenGuard, any_process, gathered
from monkey.training.lora import load_adapter, save_adapter
from monkey.training.metering import Meter
from monkey.training.part_arguments import PartArguments
from monkey.training.places import checkpoints, remove_checkpoint, writing
from monkey.training.recipes import base_model, part_of
from monkey.training.record import write_json
from monkey.training.scoring import BestCheckpoint, Scoring, score_metrics

_UNLOGGED = "unlogged loss"
"""Where a checkpoint keeps what the next logged loss is a mean of, besides the steps to come."""

_MOST_STEPS_LEFT_OUT = 8
"""Steps one behind the other without a record that can be read, after which more than a few records are bad."""


class MonkeyTrainer(Trainer):
    """Trainer for a Monkey model, wrapped in PEFT or not.

    Args:
        run_record: written as `run.json` into every checkpoint.
        card: of the starting weights, which every checkpoint carries on.
        parts: rates and decays by part.
        plan: the batches of each process, packed or padded.
        meter: counts what is done.
        scoring: answers held-out questions at every evaluation.
        best: keeps the weights of the best evaluation.
        guard: checks that frozen parameters stay.
        held_out_collator: makes the batches of the held-out loss.
        skip_bad_rows: leave out records that turn out to be bad on the way, instead of stopping.
    """

    def __init__(
        self,
        *args: Any,
        run_record: dict[str, Any],
        card: CheckpointCard,
        parts: PartArguments,
        plan: RowPlan | BatchPlan,
        meter: Meter | None = None,
        scoring: Scoring | None = None,
        best: BestCheckpoint | None = None,
        guard: FrozenGuard | None = None,
        held_out_collator: Any = None,
        skip_bad_rows: bool = False,
        **kwargs: Any,
    ):
        self._checkpoint_parent: Path | None = None
        self.run_record = run_record
        self.card = card
        self.parts = parts
        self.plan = plan
        self.meter = meter
        self.scoring = scoring
        self.best = best
        self.guard = guard
        self.held_out_collator = held_out_collator
        self.skip_bad_rows = skip_bad_rows
        self._steps_left_out = 0  # one behind the other, until now
        self._window: list[BatchContents] = []  # of the step that is being made
        config = kwargs["model"].config
        use_cache = vars(config).get("use_cache")
        held_out = kwargs.pop("eval_dataset", None)
        # The library wants a held-out set wherever it evaluates; here there may be scores alone.
        super().__init__(*args, eval_dataset=[] if held_out is None else held_out, **kwargs)
        self.eval_dataset = held_out
        # Trainer turns the cache off in the config, and a checkpoint would keep that; each step turns it off instead.
        if use_cache is None:
            del config.use_cache
        else:
            config.use_cache = use_cache

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """The planned batches; not prepared by accelerate, since they are dealt to the processes already."""
        batches = PlannedBatches(self.plan, self.args.process_index)
        return PlannedLoader(self.train_dataset, batches, **self._loader_settings(self.data_collator))

    def _loader_settings(self, collator: Any) -> dict[str, Any]:
        workers = self.args.dataloader_num_workers
        return {
            "collate_fn": collator,
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
            size = image_processor.size
            inputs["blank_pixel_values"] = torch.zeros(1, 3, size["height"], size["width"], device=self.args.device)
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
        batches, supervised = super().get_batch_samples(epoch_iterator, num_batches, device)
        bad = self._left_out(batch["contents"] for batch in batches)
        if not bad or supervised is None or int(supervised):
            self._steps_left_out = 0
            return batches, supervised
        self._steps_left_out += 1
        if self._steps_left_out == _MOST_STEPS_LEFT_OUT:
            raise ValueError(
                f"no record of the last {_MOST_STEPS_LEFT_OUT} steps could be read, lastly {bad[-1]}{self._saved()}"
            )
        return batches, supervised.clamp(min=1)

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
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        contents = inputs.pop("contents")
        self._window.append(contents)
        if num_items_in_batch is not None and not int(num_items_in_batch):
            raise ValueError(f"step {self.state.global_step + 1} has no supervised token: {_records(self._sources())}")
        if self.meter is not None:
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
        if norm is not None and not math.isfinite(norm):
            self._stop(f"the gradient norm is {float(norm):g}")
        self._window.clear()
        return norm

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

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Held-out loss a supervised token, and the scores of generated answers, as far as each was asked for."""
        metrics: dict[str, float] = {}
        with self._paused_meter():
            if self.eval_dataset is not None:
                metrics[f"{metric_key_prefix}_loss"] = self._held_out_loss()
            if self.scoring is not None:
                metrics |= score_metrics(self.scoring(self._evaluated_model(), self.state.global_step))
        self.log(metrics)
        if self.best is not None:
            if self.guard is not None:
                self.guard.check(self.state.global_step)
            with writing(self.best.folder, "what was there before still is: make room and continue from a checkpoint"):
                self.best.offer(self.state.global_step, metrics, lambda folder: self.save_model(str(folder)))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluated_model(self) -> nn.Module:
        return self.model_wrapped if self.is_deepspeed_enabled else self.model

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Mean over all supervised tokens of the held-out records, over all processes."""
        shares = EqualShares(
            len(self.eval_dataset), self.args.eval_batch_size, self.args.process_index, self.args.world_size
        )
        loader = PlannedLoader(self.eval_dataset, shares, **self._loader_settings(self.held_out_collator))
        model = self._evaluated_model()
        was_training = model.training
        model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        all_contents, not_finite = [], []
        for batch in tqdm(loader, desc="held-out loss", unit="batch", leave=False, disable=self._quiet()):
            contents = batch.pop("contents")
            inputs = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                loss = model(**inputs, num_items_in_batch=1).loss
            if not torch.isfinite(loss):
                not_finite += contents.sources
            total += torch.tensor([loss.item(), contents.supervised], dtype=torch.float64, device=self.args.device)
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
        if self.meter is not None:
            self.meter.leave_out(time.perf_counter() - start)

    def _quiet(self) -> bool | None:
        return True if self.args.disable_tqdm or self.args.process_index else None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs and self.state.global_step == self._initial_global_step:
            return  # the library's summary of no step at all
        if self.meter is not None and "loss" in logs:
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
        write_json(folder / "run.json", self.run_record)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoint_parent or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-N` in a hidden folder, then rename it into place."""
        output_dir = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        if self.guard is not None:
            self.guard.check(self.state.global_step)
        with self.written_aside(output_dir / f".{name}.partial") as aside, self._paused_meter():
            self._checkpoint_parent = aside
            self.state.stateful_callbacks.pop(_UNLOGGED, None)
            if not self._window:  # within a step, the losses of its first batches would come twice
                losses = gathered(self._tr_loss.item())
                self.state.stateful_callbacks[_UNLOGGED] = {"losses": losses, "since": self._globalstep_last_logged}
            advice = "earlier checkpoints are whole: make room and continue with --resume_from_checkpoint True"
            try:
                with writing(output_dir / name, advice):
                    super()._save_checkpoint(model, trial)
            finally:
                self._checkpoint_parent = None
            self._wait_for_everyone()
            if self.args.should_save:
                earlier = {folder.name: folder for folder in checkpoints(output_dir)}
                if name in earlier:
                    remove_checkpoint(earlier.pop(name))
                os.replace(aside / name, output_dir / name)
                if self.args.save_total_limit is not None:
                    # By age: a run resumed from an early checkpoint writes smaller steps than those that it leaves.
                    oldest = sorted(earlier.values(), key=lambda folder: folder.stat().st_mtime)
                    for folder in oldest[: max(0, len(oldest) + 1 - self.args.save_total_limit)]:
                        remove_checkpoint(folder)

    def save_final(self, folder: Path) -> None:
        """Write the trained model (an adapter where PEFT is on) to `folder`; every process calls it."""
        self.save_model(str(folder))
        self._wait_for_everyone()

    @contextlib.contextmanager
    def written_aside(self, aside: Path) -> Iterator[Path]:
        """An empty folder for all processes to write to, removed afterwards with what was not moved out of it."""
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self._wait_for_everyone()
        try:
            yield aside
        finally:
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)

    def _wait_for_everyone(self) -> None:
        if dist.is_initialized():
            dist.barrier()

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
