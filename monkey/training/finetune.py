"""One fine-tuning run, from flags to a checkpoint.

Everything that can be wrong with the flags, the data and the checkpoint is found before anything is written.
"""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from monkey.checkpoint_card import card_of
from monkey.data.dataset import Collator, ConversationDataset, PackedCollator, Tolerant, errors_as_raised
from monkey.data.mixture import Records, holds_images
from monkey.data.packing import BatchPlan, RowPlan, fill_rate
from monkey.processing import MonkeyProcessor
from monkey.training.arguments import Flags
from monkey.training.checks import missing_packages_named
from monkey.training.flops import FORMULA
from monkey.training.guards import FrozenGuard, StopOnSignal, gathered
from monkey.training.memory_plan import MemoryPlan, plan, plan_of_gpu, refusal
from monkey.training.memory_settings import settings_of_flags
from monkey.training.merging import merged_peft
from monkey.training.metering import Meter, device_peak, flops_counter
from monkey.training.model_card import write_model_card
from monkey.training.opening import open_model
from monkey.training.overfit import OverfitReport, overfit_report
from monkey.training.places import (
    MAKE_ROOM,
    checkpoint_to_resume,
    clear_places,
    full_disk_named,
    logs_inside,
    move_into_place,
    nothing_left_of_a_false_start,
    writing,
)
from monkey.training.recipes import PartCount, base_model, recipe_table
from monkey.training.record import run_record, write_json, write_loss_curve
from monkey.training.resuming import (
    check_whole,
    is_finished,
    recorded,
    refuse_other_model,
    refuse_other_recipe,
    warn_of_other_flags,
    warn_of_other_threads,
)
from monkey.training.samples import batch_plan, held_out_samples, training_samples
from monkey.training.scoring import BestCheckpoint, Evaluator, Scoring
from monkey.training.trainer import MonkeyTrainer


class Stopped(Exception):
    """A signal ended the run after a whole step, and its state is saved."""

    def __init__(self, step: int, number: int, output_dir: Path):
        self.number = number
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}; {output_dir / f'checkpoint-{step}'} holds "
            "the state: continue with --resume_from_checkpoint True"
        )


def finetune(flags: Flags, evaluator: Evaluator | None = None) -> Path:
    """Train as the flags say; return the folder of the trained checkpoint.

    The folder holds the checkpoint with its processor, `README.md` (the model card), `run.json`, `training_log.json`
    and `loss_curve.png`. Where the decoder had adapters it holds the merged checkpoint, and `adapter/` the PEFT adapter
    with the trained vision parts. `best/` holds the weights of the best evaluation, if there were any on the way.

    Args:
        evaluator: answers and scores the questions of `--eval_tasks`.

    Raises:
        ValueError, FileNotFoundError: flags, records or checkpoint that do not work, in one sentence.
        Stopped: a scheduler's signal ended the run, which can be continued.
    """
    training = flags.training
    output_dir = Path(training.output_dir)
    resume_from = checkpoint_to_resume(flags)
    if resume_from is not None:
        check_whole(Path(resume_from), sharded=bool(training.deepspeed))
        refuse_other_recipe(Path(resume_from), flags.recipe)
    set_seed(training.seed)
    processor = MonkeyProcessor.from_pretrained(flags.model.model_name_or_path, grid=flags.model.grid_shape)
    _refuse_large_grid(flags, processor)
    train_set = training_samples(flags, processor)
    eval_set = held_out_samples(flags, processor) if flags.data.eval_data_path else None
    if evaluator is not None:
        evaluator.check(processor)
    batches = batch_plan(flags, train_set)
    if resume_from is not None and _is_finished(flags, Path(resume_from), batches):
        clear_places(flags, resume_from)
        return output_dir
    model, counts = open_model(flags)
    if resume_from is not None:
        refuse_other_model(Path(resume_from), base_model(model))
    memory = _memory_plan(flags, model, batches)
    record = _record(flags, counts, train_set, eval_set, batches, memory, resume_from)
    if resume_from is not None and training.process_index == 0:
        warn_of_other_threads(Path(resume_from), training.device)
        warn_of_other_flags(Path(resume_from), record["flags"], record["data"])
    if training.process_index == 0:
        for notice in getattr(eval_set and eval_set.records, "notices", ()):
            print(f"note: {notice}")
        if not record["data"]["has_images"]:
            named = " ".join(flags.data.data_path)
            print(f"note: no record of {named} has an image, so the model learns from text alone")
        print(recipe_table(flags.recipe, counts))
        print(memory.table())
        print(FORMULA)
        print(flags.table())

    with (
        nothing_left_of_a_false_start(output_dir),
        full_disk_named(output_dir),
        logs_inside(output_dir),
        errors_as_raised(),
    ):
        with missing_packages_named():
            trainer = _trainer(flags, model, processor, train_set, eval_set, batches, record, evaluator, resume_from)
            clear_places(flags, resume_from)
            try:
                trainer.train(resume_from_checkpoint=resume_from)
            finally:
                _stop_on_signal(trainer).restore()
        _refuse_unfinished(trainer, flags)
        if (eval_set is not None or evaluator is not None) and not _evaluated_at_the_end(trainer):
            trainer.evaluate()
        # Before the merged checkpoint is written, for which one process leaves ZeRO-3's setting.
        report = _overfit_report(trainer, flags, train_set, processor) if flags.run.overfit else None
        with writing(output_dir, MAKE_ROOM):
            _save(trainer, flags, output_dir)
        if report is not None:
            report.check()
    return output_dir


# Before the run


def _is_finished(flags: Flags, checkpoint: Path, batches: RowPlan | BatchPlan) -> bool:
    """Whether the run has made all its steps and saved its end; says so. A self-test has its answers to give yet."""
    training, output_dir = flags.training, Path(flags.training.output_dir)
    # As the library counts them.
    an_epoch = max(1, math.ceil(batches.rows_an_epoch / training.gradient_accumulation_steps))
    steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * an_epoch)
    first = training.process_index == 0
    if flags.run.overfit or not gathered(first and is_finished(checkpoint, output_dir, steps))[0]:
        return False
    if first:
        print(f"{output_dir} holds a finished run, whose {checkpoint.name} was its last: nothing is left to train")
    return True


def _refuse_large_grid(flags: Flags, processor: MonkeyProcessor) -> None:
    """ValueError for a grid of which no picture fits into a sample, before any is made."""
    limit = flags.data.model_max_length
    if flags.model.grid_shape is not None and processor.image_tokens > limit:
        raise ValueError(
            f"--grid {flags.model.grid} makes {processor.image_tokens:,} tokens of a picture, and --model_max_length "
            f"{limit:,} holds fewer: give a smaller grid or raise it"
        )


def _memory_plan(flags: Flags, model: nn.Module, batches: RowPlan | BatchPlan) -> MemoryPlan:
    """What the run will need; ValueError where this GPU has less."""
    config = base_model(model).config
    changes: dict[str, Any] = {"gpus": flags.training.world_size}
    if isinstance(batches, RowPlan):
        sizes, rows = batches.sizes, batches.epoch(0, flags.training.process_index)
        changes |= {
            "pack_tokens": batches.settings.budget,
            "batch_size": 0,
            "images_per_step": max(sum(sizes.unit_images(unit) for unit in row) for row in rows),
            "supervised_tokens": max(int(sum(sizes.supervised[list(unit)].sum() for unit in row)) for row in rows),
        }
    memory = plan(config, settings_of_flags(flags.resolved(), config.text_config.hidden_size, **changes))
    room = _room(flags)
    sentence = None if room is None or flags.run.ignore_memory_plan else refusal(memory, room)
    if sentence is not None:
        raise ValueError(sentence)
    return memory


def _room(flags: Flags) -> float | None:
    """GiB of this process's GPU; None on a CPU."""
    return plan_of_gpu() if flags.training.device.type == "cuda" else None


def _record(
    flags: Flags,
    counts: list[PartCount],
    train_set: ConversationDataset,
    eval_set: ConversationDataset | None,
    batches: RowPlan | BatchPlan,
    memory: MemoryPlan,
    resume_from: str | None,
) -> dict[str, Any]:
    parts = [{"part": count.part, "trains": count.trains, "parameters": count.parameters} for count in counts]
    data: dict[str, Any] = {"samples": {"train": len(train_set), "eval": len(eval_set or ())}}
    data["has_images"] = holds_images(train_set.records)
    data["processes"] = flags.training.world_size
    if isinstance(train_set.records, Records):
        data["files"] = [
            {"path": str(file.path), "records": file.stop - file.start, "weight": file.weight}
            for file in train_set.records.files
        ]
    left_out = [*train_set.left_out, *(eval_set.left_out if eval_set is not None else ())]
    if resume_from is not None:  # what it had met on its way
        left_out = list(dict.fromkeys([*left_out, *recorded(Path(resume_from)).get("left_out", ())]))
    data["left_out"] = len(left_out)
    if isinstance(batches, RowPlan):
        data["rows_an_epoch"] = batches.rows_an_epoch * batches.processes
        data["fill_rate"] = round(fill_rate(batches.epoch(0), batches.sizes, batches.settings.budget), 4)
    record = run_record(
        flags=flags.resolved(),
        recipe={"name": flags.recipe.name, "parts": parts},
        data=data,
        seed=flags.training.seed,
    )
    return {**record, "left_out": left_out, "planned_bytes": dict(memory.lines)}


def _trainer(
    flags: Flags,
    model: nn.Module,
    processor: MonkeyProcessor,
    train_set: ConversationDataset,
    eval_set: ConversationDataset | None,
    batches: RowPlan | BatchPlan,
    record: dict[str, Any],
    evaluator: Evaluator | None,
    resume_from: str | None,
) -> MonkeyTrainer:
    training, output_dir = flags.training, Path(flags.training.output_dir)
    base = base_model(model)
    dtype = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    autocast = dtype if dtype != torch.float32 and not training.deepspeed else None
    best = None
    if training.eval_strategy != "no":
        metric = training.metric_for_best_model or ("eval_score" if evaluator is not None else "eval_loss")
        greater = training.greater_is_better
        greater = "loss" not in metric if greater is None else greater
        best = BestCheckpoint(output_dir, metric, greater, fresh=resume_from is None)
    counter = flops_counter(
        base.config,
        flags.recipe.trains,
        flags.lora.lora_r if hasattr(model, "peft_config") else 0,
        flags.parts.vision_checkpointing,
        flags.parts.decoder_checkpointing,
    )
    # `set_checkpointing` has done it, part by part.
    training.activation_checkpointing = training.gradient_checkpointing = False
    guard = FrozenGuard(base.named_parameters())
    published = flags.parts.published
    if flags.data.packing:
        collator: Any = PackedCollator(processor, flags.data.row_settings.budget, published)
    else:
        collator = Collator(processor, published)
    trainer = MonkeyTrainer(
        model=model,
        args=training,
        train_dataset=Tolerant(train_set),
        eval_dataset=None if eval_set is None else Tolerant(eval_set),
        skip_bad_rows=flags.data.skip_bad_rows,
        data_collator=collator,
        held_out_collator=Collator(processor),
        processing_class=processor,
        run_record=record,
        card=card_of(flags.model.model_name_or_path),
        parts=flags.parts,
        plan=batches,
        meter=Meter(counter, device_peak(training.device, dtype, flags.run.peak_tflops)),
        scoring=None if evaluator is None else Scoring(evaluator, processor, output_dir, autocast),
        best=best,
        guard=guard,
    )
    trainer.add_callback(guard)
    trainer.add_callback(StopOnSignal())
    return trainer


# After the run


def _stop_on_signal(trainer: MonkeyTrainer) -> StopOnSignal:
    return next(call for call in trainer.callback_handler.callbacks if isinstance(call, StopOnSignal))


def _refuse_unfinished(trainer: MonkeyTrainer, flags: Flags) -> None:
    """Stopped where a signal ended the run; ValueError where it made no step."""
    stop = _stop_on_signal(trainer)
    if stop.stopped_at is not None:
        raise Stopped(stop.stopped_at, stop.received or signal.SIGTERM, Path(flags.training.output_dir))
    if trainer.state.global_step == 0:
        raise ValueError(
            f"{' '.join(flags.data.data_path)}: no step was made, for its {len(trainer.train_dataset)} records do not "
            f"fill one batch of --per_device_train_batch_size {flags.training.per_device_train_batch_size}, and "
            "--dataloader_drop_last leaves them out"
        )


def _evaluated_at_the_end(trainer: MonkeyTrainer) -> bool:
    return any(
        entry["step"] == trainer.state.global_step and ("eval_loss" in entry or "eval_score" in entry)
        for entry in trainer.state.log_history
    )


def _save(trainer: MonkeyTrainer, flags: Flags, output_dir: Path) -> None:
    """Write the trained checkpoint, its record, log and curve beside their place, then move them in."""
    is_adapter = hasattr(trainer.model, "peft_config")
    with trainer.written_aside(output_dir / ".final.partial") as aside:
        trainer.save_final(aside / "adapter" if is_adapter else aside)
        if not trainer.args.should_save:
            return
        if is_adapter:
            _save_merged(trainer, flags, aside)
        write_json(aside / "training_log.json", trainer.state.log_history)
        best = trainer.best.record if trainer.best is not None else None
        write_loss_curve(trainer.state.log_history, aside / "loss_curve.png", best and best.step)
        write_model_card(
            aside, trainer.run_record, _scores(trainer), flags.model.model_name_or_path, trainer.state.log_history
        )
        move_into_place(aside, output_dir)


def _save_merged(trainer: MonkeyTrainer, flags: Flags, folder: Path) -> None:
    """Merge `folder/adapter` into the starting weights, opened again, so that the trainer's engine does not matter."""
    if flags.training.deepspeed:
        # Else ZeRO-3 would hand this one process an empty model, to be filled by all of them.
        unset_hf_deepspeed_config()
    precision = "4bit" if flags.recipe.four_bit else "full"
    dtype = torch.bfloat16 if flags.training.bf16 else torch.float32
    merged, _, _ = merged_peft(folder / "adapter", flags.model.model_name_or_path, precision, dtype)
    merged.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    trainer.card.write(folder)
    write_json(folder / "run.json", trainer.run_record)


def _scores(trainer: MonkeyTrainer) -> list[dict[str, Any]]:
    """A row for each score of the last evaluation."""
    evaluated = [entry for entry in trainer.state.log_history if "eval_score" in entry]
    return [
        {"task": name.removeprefix("eval_score").lstrip("_") or "mean", "score": round(value, 2), "step": entry["step"]}
        for entry in evaluated[-1:]
        for name, value in entry.items()
        if name.startswith("eval_score")
    ]


def _overfit_report(
    trainer: MonkeyTrainer, flags: Flags, train_set: ConversationDataset, processor: MonkeyProcessor
) -> OverfitReport:
    """How many of the records come back, printed."""
    with trainer.accelerator.autocast():
        report = overfit_report(trainer.model, processor, train_set.records, flags.data.model_max_length)
    if flags.training.process_index == 0:
        print(report)
    return report
