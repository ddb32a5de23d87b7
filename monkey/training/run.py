"""One fine-tuning run, from flags to a checkpoint.

Everything that can be wrong with the flags, the data and the checkpoint is found before anything is written.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainerState, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_pt_utils import safe_globals

from monkey.checkpoint import published_shapes
from monkey.checkpoint_card import card_of
from monkey.checkpoint_files import file_shapes
from monkey.configuration import MonkeyConfig
from monkey.data.packing import BatchPlan, RowPlan, fill_rate
from monkey.data.records import Record, Records, holds_images
from monkey.journal import remove_partials
from monkey.language import LowRankAdapter, MonkeyAttention
from monkey.location import required_file
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import UNSUPERVISED, MonkeyProcessor
from monkey.training.arguments import GROUPS, Flags, PartArguments
from monkey.training.dataset import Collator, ConversationDataset, PackedCollator, Tolerant, errors_as_raised
from monkey.training.lora import add_decoder_lora
from monkey.training.memory import MemoryPlan, describe_misfit, gpu_gib, plan, plan_table, settings_of_flags
from monkey.training.merging import merged_peft
from monkey.training.quantised import keep_trained_in_float32, open_four_bit
from monkey.training.recipes import PartCount, Recipe, apply_recipe, base_model, recipe_table
from monkey.training.report import (
    Meter,
    StepFlops,
    count_flops,
    device_peak,
    run_record,
    write_loss_curve,
    write_model_card,
    write_record,
)
from monkey.training.samples import batch_plan, held_out_samples, training_samples
from monkey.training.trainer import (
    BEST,
    BEST_FILE,
    SCORES,
    SCORES_FILE,
    BestCheckpoint,
    Evaluator,
    FrozenGuard,
    MonkeyTrainer,
    StopOnSignal,
    checkpoint_places,
    checkpoints,
    gathered,
    remove_checkpoint,
    shared_folder,
    undisturbed,
    wait_for_everyone,
    writing,
)
from monkey.vision import ResamplerAttention, WindowAdapter

_MAKE_ROOM = "make room, then --resume_from_checkpoint True where checkpoints were saved"


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
        if training.process_index == 0:
            remove_partials(output_dir)
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
        if memory is not None:
            print(plan_table(memory))
        print(_flops(flags, model)[0])
        print(flags.table())

    with (
        _nothing_left_of_a_false_start(output_dir),
        _full_disk_named(output_dir),
        _logs_inside(output_dir),
        errors_as_raised(),
    ):
        with _missing_packages_named():
            if training.process_index == 0:
                remove_partials(output_dir)  # of a run that was killed
            trainer = _trainer(flags, model, processor, train_set, eval_set, batches, record, evaluator, resume_from)
            _clear(flags, resume_from)
            try:
                trainer.train(resume_from_checkpoint=resume_from)
            finally:
                _stop_on_signal(trainer).restore()
        _refuse_unfinished(trainer, flags)
        if (eval_set is not None or evaluator is not None) and not _evaluated_at_the_end(trainer):
            trainer.evaluate()
        # Before the merged checkpoint is written, for which one process leaves ZeRO-3's setting.
        report = _overfit_report(trainer, flags, train_set, processor) if flags.run.overfit else None
        with writing(output_dir, _MAKE_ROOM):
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


def _memory_plan(flags: Flags, model: nn.Module, batches: RowPlan | BatchPlan) -> MemoryPlan | None:
    """Return what the run will need of its GPU, None on a CPU; ValueError where weights and states alone have no room.

    What a step holds besides is an estimate, about which a warning is said.
    """
    room = _room(flags)
    if room is None:
        return None
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
    sentence = describe_misfit(memory, room)
    if sentence is not None and memory.sums > room * 2**30 and not flags.run.ignore_memory_plan:
        raise ValueError(f"{sentence}; or start all the same with --ignore_memory_plan True")
    if sentence is not None:
        _warn(f"{sentence}; the run starts, and may run out of memory")
    return memory


def _room(flags: Flags) -> float | None:
    """Return the GiB of this process's GPU; None on a CPU."""
    return gpu_gib() if flags.training.device.type == "cuda" else None


def _record(
    flags: Flags,
    counts: list[PartCount],
    train_set: ConversationDataset,
    eval_set: ConversationDataset | None,
    batches: RowPlan | BatchPlan,
    memory: MemoryPlan | None,
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
    return {**record, "left_out": left_out, "planned_bytes": {} if memory is None else dict(memory.lines)}


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
    best = None
    if training.eval_strategy != "no":
        metric = training.metric_for_best_model or ("eval_score" if evaluator is not None else "eval_loss")
        greater = training.greater_is_better
        greater = "loss" not in metric if greater is None else greater
        best = BestCheckpoint(output_dir, metric, greater, fresh=resume_from is None)
    meter = Meter(*_flops(flags, model), device_peak(training.device, dtype, flags.run.peak_tflops))
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
        meter=meter,
        evaluator=evaluator,
        best=best,
        guard=guard,
    )
    trainer.add_callback(guard)
    trainer.add_callback(StopOnSignal())
    return trainer


def _flops(flags: Flags, model: nn.Module) -> tuple[StepFlops, StepFlops]:
    """Return the operations of the model, and those that are done, which checkpointing adds to."""
    config, parts = base_model(model).config, flags.parts
    once, again = (False, False), (bool(parts.vision_checkpointing), bool(parts.decoder_checkpointing))
    return tuple(count_flops(config, flags.recipe, flags.lora.lora_r, kind) for kind in (once, again))


@contextlib.contextmanager
def _missing_packages_named() -> Iterator[None]:
    """Flags of the library may ask for packages that only it knows of: ValueError that says which."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"a flag needs a package that is not installed here: {error}") from error


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
    with shared_folder(output_dir / ".final") as aside:
        trainer.save_model(str(aside / "adapter" if is_adapter else aside))
        wait_for_everyone()
        if not trainer.args.should_save:
            return
        if is_adapter:
            _save_merged(trainer, flags, aside)
        write_record(aside / "training_log.json", trainer.state.log_history)
        best = trainer.best.record if trainer.best is not None else None
        write_loss_curve(trainer.state.log_history, aside / "loss_curve.png", best and best.step)
        write_model_card(
            aside, trainer.run_record, _scores(trainer), flags.model.model_name_or_path, trainer.state.log_history
        )
        _move_into_place(aside, output_dir)


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
    write_record(folder / "run.json", trainer.run_record)


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


# The folder of a run

_WEIGHT_FILE = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|pytorch_model(-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json"
)

# Besides the weights, what a run would write over.
_RUN_FILES = (
    "config.json",
    "run.json",
    "training_log.json",
    "loss_curve.png",
    "README.md",
    "adapter/adapter_config.json",
)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_LOGGING_DIR = "TENSORBOARD_LOGGING_DIR"


def weight_files(folder: Path) -> list[Path]:
    """Files of `folder` under the names that a checkpoint's weights have."""
    return [path for path in folder.iterdir() if _WEIGHT_FILE.fullmatch(path.name)] if folder.is_dir() else []


def _move_into_place(aside: Path, folder: Path) -> None:
    """Move a finished checkpoint's files into `folder`, replacing an earlier one's and leaving every other file.

    The config goes last: until it is there, the folder does not open as a checkpoint.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    for stale in weight_files(folder):
        stale.unlink()
    for entry in sorted(aside.iterdir(), key=lambda entry: entry.name == "config.json"):
        if entry.is_dir():
            _move_into_place(entry, folder / entry.name)
        else:
            os.replace(entry, folder / entry.name)


@contextlib.contextmanager
def _full_disk_named(output_dir: Path) -> Iterator[None]:
    """A full disk under whatever else writes, logs for instance, is one sentence that names its file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        place = error.filename or output_dir
        raise OSError(f"{place} could not be written ({error.strerror}); {_MAKE_ROOM}") from error


def checkpoint_to_resume(flags: Flags) -> str | None:
    """Folder of `--resume_from_checkpoint`, and a refusal to write over an earlier run."""
    output_dir, wanted = Path(flags.training.output_dir), flags.training.resume_from_checkpoint
    _check_writable(output_dir)
    last = str(checkpoints(output_dir)[-1]) if checkpoints(output_dir) else None
    if flags.training.save_strategy != "no":
        _refuse_strangers(checkpoint_places(output_dir), "trainer_state.json")
    _refuse_strangers(sorted((output_dir / SCORES).glob("step-*")), SCORES_FILE)
    if wanted is not None and wanted.lower() != "false":
        if wanted.lower() == "true":
            if last is None:
                raise FileNotFoundError(f"--resume_from_checkpoint True: {output_dir} holds no checkpoint-N folder")
            return last
        if not (Path(wanted) / "trainer_state.json").is_file():
            raise FileNotFoundError(f"--resume_from_checkpoint {wanted}: there is no trainer_state.json in it")
        return wanted
    written = [*weight_files(output_dir), *(output_dir / name for name in _RUN_FILES), *earlier_evaluations(output_dir)]
    if not flags.training.overwrite_output_dir and (last is not None or any(path.exists() for path in written)):
        raise ValueError(
            f"--output_dir {output_dir} holds an earlier run: continue it with --resume_from_checkpoint True, replace "
            "it with --overwrite_output_dir True, or name another folder"
        )
    return None


def _refuse_strangers(folders: Sequence[Path], mark: str) -> None:
    """Raise ValueError for a folder where a run would write one of its own, and that none has written."""
    for folder in folders:
        if not (folder / mark).is_file():
            raise ValueError(
                f"--output_dir {folder.parent}: {folder.name} in it is no folder of a run (it has no {mark}) and a run "
                "may need its name: move it away, or name another folder"
            )


def _check_writable(output_dir: Path) -> None:
    """ValueError where the folder cannot be made or written to."""
    nearest = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"--output_dir {output_dir}: {nearest} is a file, not a folder: name another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"--output_dir {output_dir}: this user may not write to {nearest}: name another folder")


def _clear(flags: Flags, resume_from: str | None) -> None:
    """With --overwrite_output_dir, remove an earlier run's checkpoints: a later resume would take the furthest."""
    if flags.training.process_index == 0 and resume_from is None and flags.training.overwrite_output_dir:
        output_dir = Path(flags.training.output_dir)
        for folder in (*checkpoints(output_dir), *earlier_evaluations(output_dir)):
            remove_checkpoint(folder)


@contextlib.contextmanager
def _logs_inside(output_dir: Path) -> Iterator[None]:
    """TensorBoard's files in the run's folder, one place for a run and its continuations, unless the user named one."""
    if _LOGGING_DIR in os.environ:
        yield
        return
    os.environ[_LOGGING_DIR] = str(output_dir / "tensorboard")
    try:
        yield
    finally:
        del os.environ[_LOGGING_DIR]


@contextlib.contextmanager
def _nothing_left_of_a_false_start(folder: Path) -> Iterator[None]:
    """Remove `folder` when the run stopped before it wrote anything but an empty log."""
    had_logs = (folder / "tensorboard").exists()
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished and not had_logs and not checkpoints(folder):
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def earlier_evaluations(output_dir: Path) -> list[Path]:
    """Return the folders that evaluations of an earlier run left in `output_dir`: its best checkpoint, its scores."""
    best = Path(output_dir) / BEST
    scores = [path for path in (Path(output_dir) / SCORES).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return [
        *([best] if (best / BEST_FILE).is_file() else []),
        *sorted(path for path in scores if (path / SCORES_FILE).is_file()),
    ]


# Going on from a checkpoint

# Which samples make which step.
_ORDER = (
    "data_path", "data_weights", "seed", "data_seed", "model_max_length", "packing", "pack_tokens",
    "share_images", "look_ahead", "most_shared", "per_device_train_batch_size", "gradient_accumulation_steps",
)  # fmt: skip

# What the optimiser's state and the schedule's hold, and so bring along.
_KEPT = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    *(f"{group}_{quantity}" for group in GROUPS for quantity in ("learning_rate", "weight_decay")),
)  # fmt: skip


_INSTEAD = "resume from an earlier checkpoint, or copy this one again"


def _sets_generators(state: Any) -> bool:
    """Whether random states can be set; tried on generators that nothing draws from."""
    random.Random().setstate(state["python"])
    np.random.RandomState().set_state(state["numpy"])
    torch.Generator().set_state(state["cpu"])
    return True


def _is_trainer_state(content: Any) -> bool:
    history = TrainerState(**content).log_history
    return isinstance(content["global_step"], int) and all(isinstance(entry["step"], int) for entry in history or ())


# File of a checkpoint -> whether its content is of the form that a run goes on from.
_STATES: dict[str, Callable[[Any], bool]] = {
    "trainer_state.json": _is_trainer_state,
    "run.json": lambda content: all(
        isinstance(content.get(name, kind()), kind)
        for name, kind in {"flags": dict, "recipe": dict, "data": dict, "left_out": list}.items()
    ),
    "optimizer.pt": lambda content: (
        isinstance(content["state"], dict)
        and all(isinstance(group["params"], list) for group in content["param_groups"])
    ),
    "scheduler.pt": lambda content: isinstance(content["last_epoch"], int),
    "rng_state.pth": _sets_generators,
    "scaler.pt": lambda content: isinstance(content, dict),
}


def check_whole(checkpoint: Path, sharded: bool) -> None:
    """ValueError or FileNotFoundError for a file of a checkpoint that is damaged, or missing where a run needs it.

    Args:
        sharded: DeepSpeed keeps the optimiser's state in files of its own, and looks at them itself.
    """
    for name in _STATES:
        if name.endswith(".json") and (checkpoint / name).is_file():
            _check_state(checkpoint / name, _json(checkpoint / name), _STATES[name])
    if not sharded:
        for name in ("optimizer.pt", "scheduler.pt"):
            if not (checkpoint / name).is_file():
                raise FileNotFoundError(
                    f"--resume_from_checkpoint {checkpoint}: there is no {name} in it, without which no run goes on as "
                    "it was (--save_only_model and --deepspeed write none): start from its weights with "
                    "--model_name_or_path, or resume with the flags that it was made with"
                )
    for path in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")):
        # torch.save writes a zip archive, whose end is its table of contents.
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not whole: {_INSTEAD}")
        name = "rng_state.pth" if path.name.startswith("rng_state") else path.name
        if name in _STATES:
            _check_state(path, _tensors(path), _STATES[name])
    if (checkpoint / "adapter_config.json").is_file():
        file_shapes(required_file(checkpoint, "adapter_model.safetensors", "the adapter's weights"))


def _check_state(path: Path, content: Any, is_one: Callable[[Any], bool]) -> None:
    """ValueError for a file that can be read, and holds something else than a run goes on from."""
    try:
        good = isinstance(content, dict) and is_one(content)
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError):  # what is not of its form has no such parts
        good = False
    if not good:
        raise ValueError(f"{path} is not what a run saves there ({type(content).__name__}): {_INSTEAD}")


def _tensors(path: Path) -> Any:
    """Content of a file of `torch.save`; nothing but tensors, numbers and their containers is ever unpickled."""
    try:
        with safe_globals():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is not what a run saves there: it holds other things than tensors and numbers, and unpickling "
            f"them could run code: {_INSTEAD}"
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not whole ({' '.join(str(error).split())[:200]}): {_INSTEAD}") from None


def is_finished(checkpoint: Path, output_dir: Path, steps: int) -> bool:
    """Whether `output_dir` holds the end of a run of `steps` steps, made from this checkpoint.

    The files of an end are moved to their places with config.json as the last. An end of other weights is an earlier
    run's, or of fewer steps.
    """
    if _json(checkpoint / "trainer_state.json")["global_step"] < steps or not (output_dir / "config.json").is_file():
        return False
    is_adapter = (checkpoint / "adapter_config.json").is_file()
    names = ["adapter_model.safetensors"] if is_adapter else [path.name for path in weight_files(checkpoint)]
    end = output_dir / "adapter" if is_adapter else output_dir
    return all((end / name).is_file() and filecmp.cmp(checkpoint / name, end / name, shallow=False) for name in names)


def refuse_other_recipe(checkpoint: Path, recipe: Recipe) -> None:
    """A checkpoint's optimiser knows only what its own recipe trained."""
    trained = recorded(checkpoint).get("recipe", {}).get("name", recipe.name)
    if trained != recipe.name:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} was trained as {trained}, but these flags ask for {recipe.name}: "
            f"resume with --recipe {trained}, or start from its weights with --model_name_or_path"
        )


def refuse_other_model(checkpoint: Path, model: torch.nn.Module) -> None:
    """ValueError for a checkpoint of another grid or size; an adapter is compared with its base when it is loaded."""
    if not (checkpoint / "config.json").is_file():
        return
    saved, config = MonkeyConfig.from_pretrained(checkpoint), model.config
    if tuple(saved.grid) != tuple(config.grid):
        rows, columns = saved.grid
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} was trained on grid={tuple(saved.grid)}, and this run would go on "
            f"with grid={tuple(config.grid)}: give --grid {rows},{columns}, or start from its weights with "
            "--model_name_or_path"
        )
    there, here = (published_shapes(type(model), one) for one in (saved, config))
    wrong = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if wrong:
        one, other = (list(shapes.get(wrong[0], ())) or "nothing" for shapes in (there, here))
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} is of another model than --model_name_or_path: {wrong[0]} is "
            f"{one} there and {other} here ({len(wrong)} tensors differ): give the base that the run started from"
        )


def warn_of_other_flags(checkpoint: Path, flags: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Say where the run will not go on as it would have without the break, and which flags have no effect.

    Args:
        flags: this run's, resolved.
        data: what this run's record says of its data.
    """
    record = recorded(checkpoint)
    before = record.get("flags", {})
    # As JSON gives them back, tuples as lists.
    now = json.loads(json.dumps(dict(flags), default=str))
    other = [name for name in (*_ORDER, *_KEPT) if name in before and before[name] != now.get(name)]
    order = [f"--{name} {now.get(name)} instead of {before[name]}" for name in other if name in _ORDER]
    for what, unit in (("samples", "records"), ("processes", "processes")):
        counts = [_training_count(part, what) for part in (data, record.get("data", {}))]
        if None not in counts and counts[0] != counts[1]:
            order.append(f"{counts[0]} {unit} instead of {counts[1]}")
    if order:
        _warn(f"{checkpoint}: this run has {', '.join(order)}: it goes on, but not through the data as it would have")
    kept = [f"--{name} {now.get(name)}" for name in other if name in _KEPT]
    if kept:
        _warn(f"{checkpoint}: {', '.join(kept)} without effect: the optimiser goes on with its saved values")


def warn_of_other_threads(checkpoint: Path, device: torch.device) -> None:
    """On a CPU sums are split over the threads, so only with as many as before does a run go on bit for bit."""
    now = torch.get_num_threads()
    before = recorded(checkpoint).get("cpu_threads", now)
    if device.type == "cpu" and before != now:
        _warn(
            f"{checkpoint} was written with {before} CPU threads and this process has {now}: the run goes on, but not "
            f"bit for bit as without the break; for that set OMP_NUM_THREADS={before}"
        )


def _training_count(data: Mapping[str, Any], what: str) -> int | None:
    count = data.get(what)
    return count.get("train") if isinstance(count, Mapping) else count


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)


def recorded(checkpoint: Path) -> dict[str, Any]:
    """The run's record in a checkpoint; empty where there is none."""
    path = checkpoint / "run.json"
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not whole ({error}): {_INSTEAD}") from None


# The model that a run starts from


def open_model(flags: Flags) -> tuple[nn.Module, list[PartCount]]:
    """The model with its recipe applied, wrapped in PEFT where the decoder gets adapters, and the count of each part.

    Precision: fp32 weights, for autocast to narrow. With `--bf16`, what is frozen is held in bf16, and what trains in
    fp32; with DeepSpeed all is bf16, since it keeps the fp32 copy of what trains itself.

    Raises:
        ValueError, FileNotFoundError: a checkpoint that is missing, does not fit, or is no start for this recipe.
    """
    recipe = flags.recipe
    model = open_base(flags)
    built_in = bool(model.config.text_config.adapter_rank)
    if built_in:
        _use_built_in_adapters(model, flags)
    elif recipe.decoder_lora:
        model = add_decoder_lora(model, flags.lora)
    elif flags.lora.lora_dropout and flags.is_set("lora_dropout"):
        raise ValueError(
            f"--lora_dropout {flags.lora.lora_dropout:g} would have no effect: neither the recipe {recipe.name} nor "
            f"{flags.model.model_name_or_path} gives the decoder adapters; leave it out, or add --recipe lora-llm"
        )
    if recipe.trains == {"window adapters"} and not base_model(model).config.num_adapters:
        raise ValueError(
            f"--recipe {recipe.name}: {flags.model.model_name_or_path} has no window adapters; open it on a grid, for "
            "instance --grid 2,2, which adds them"
        )
    counts = apply_recipe(model, recipe)
    if flags.training.bf16 and not flags.training.deepspeed:
        narrow_frozen(model)
        keep_trained_in_float32(model)
    set_dropout(base_model(model), flags.parts)
    if flags.run.overfit:
        without_dropout(model)
    set_checkpointing(base_model(model), flags.parts, flags.training)
    return model, counts


def _use_built_in_adapters(model: MonkeyForConditionalGeneration, flags: Flags) -> None:
    """Set the dropout of adapters that the checkpoint was built with; ValueError for a size that they do not have."""
    text_config = model.config.text_config
    rank = text_config.adapter_rank
    for name in ("lora_r", "lora_alpha"):  # as many of both: the scale, which trains, starts as 1
        if name in flags.named and getattr(flags.lora, name) != rank:
            raise ValueError(
                f"--{name} {getattr(flags.lora, name)} would have no effect: {flags.model.model_name_or_path} has "
                f"decoder adapters built in, of rank {rank} and with scales that train; leave it out"
            )
    if "lora_dropout" in flags.named:
        text_config.adapter_dropout = flags.lora.lora_dropout
        for module in model.modules():
            if isinstance(module, LowRankAdapter):
                module.dropout = flags.lora.lora_dropout


def open_base(flags: Flags) -> MonkeyForConditionalGeneration:
    """The starting weights as they are, without adapters of this run."""
    training = flags.training
    if training.deepspeed:
        import deepspeed

        # ZeRO-3 shards the model while it opens; on CPUs the library sets this up only later.
        deepspeed.init_distributed()
    name, grid = flags.model.model_name_or_path, flags.model.grid_shape
    # A decoder that trains without DeepSpeed starts from the checkpoint's own bits; a frozen one fits in bf16.
    narrow = training.bf16 and (training.deepspeed or "decoder" not in flags.recipe.trains)
    dtype = torch.bfloat16 if narrow else torch.float32
    if flags.recipe.four_bit:
        model = open_four_bit(name, grid=grid, dtype=dtype)
    else:
        model = MonkeyForConditionalGeneration.from_pretrained(name, grid=grid, dtype=dtype)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"--model_name_or_path {name} is a PEFT adapter: continue its run with --resume_from_checkpoint, or start "
            "from the merged checkpoint beside it"
        )
    # Trainer would set these itself, and warn about it.
    text_config = model.config.text_config
    text_config.eos_token_id = text_config.pad_token_id = model.config.eod_id
    return model


def narrow_frozen(model: nn.Module) -> None:
    """Hold what does not train in bf16; 4-bit weights are no floats and stay."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(torch.bfloat16)


def set_dropout(model: MonkeyForConditionalGeneration, parts: PartArguments) -> None:
    """Set each part's dropout to what its flag says, in the modules and in the config."""
    vision, text = model.config.vision_config, model.config.text_config
    for kind, config, field, attribute, given in (
        (WindowAdapter, vision, "adapter_dropout", "dropout", parts.vision_adapter_dropout),
        (ResamplerAttention, vision, "resampler_dropout", "dropout", parts.resampler_dropout),
        (MonkeyAttention, text, "attention_dropout", "attention_dropout", parts.decoder_dropout),
    ):
        if given is None:
            continue
        setattr(config, field, given)
        for module in model.modules():
            if isinstance(module, kind):
                setattr(module, attribute, given)


def set_checkpointing(model: MonkeyForConditionalGeneration, parts: PartArguments, training: Any) -> tuple[bool, bool]:
    """Activation checkpointing of vision transformer and decoder, each by its flag; returns what was set.

    Not Trainer's own, which knows one flag for both. Never reentrant: that form gives a layer no gradient when its
    input needs none, as the window adapters' below a frozen vision transformer, and says nothing.
    """
    both = bool(training.activation_checkpointing)
    settings = {**(training.activation_checkpointing_kwargs or {}), "use_reentrant": False}
    chosen = tuple(both if own is None else own for own in (parts.vision_checkpointing, parts.decoder_checkpointing))
    parts.vision_checkpointing, parts.decoder_checkpointing = chosen
    for layers, on in zip((model.model.visual.layers, model.model.language_model.layers), chosen, strict=True):
        for layer in layers:
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = partial(checkpoint, **settings)
    return chosen


# The self-test: what was trained on must come back word for word


# Class → its attribute that is a probability of dropout.
_DROPOUTS: dict[type[nn.Module], str] = {
    nn.Dropout: "p",
    WindowAdapter: "dropout",
    LowRankAdapter: "dropout",
    ResamplerAttention: "dropout",
    MonkeyAttention: "attention_dropout",
}

_SHOWN = 60
"""Characters of an answer that a message shows."""


@dataclass(frozen=True)
class Miss:
    """An answer that did not come back."""

    source: str
    turn: int
    """Number of the assistant's turn in its conversation, from 0, as messages about records count."""
    expected: str
    generated: str
    ended: bool
    """Whether the model ended the answer itself, within as many tokens as the reference has."""

    def __str__(self) -> str:
        cut = "" if self.ended else " without an end"
        return f"{self.source}, turn {self.turn}: expected {_short(self.expected)}, got {_short(self.generated)}{cut}"


@dataclass(frozen=True)
class OverfitReport:
    """How many of the records came back with every answer."""

    reproduced: int
    total: int
    misses: tuple[Miss, ...]

    def __str__(self) -> str:
        lines = [f"overfit: {self.reproduced} of {self.total} records reproduced"]
        return "\n".join([*lines, *(f"  {miss}" for miss in self.misses)])

    def check(self) -> None:
        """ValueError, with the counts and the first miss, unless every record was reproduced."""
        if self.reproduced < self.total:
            raise ValueError(
                f"--overfit {self.total}: only {self.reproduced} of {self.total} records were reproduced after "
                f"training on them alone; {self.misses[0]}; train for more steps or at a higher rate, then look at the "
                "data with scripts/check_data.py"
            )


def without_dropout(model: nn.Module) -> None:
    """Turn every dropout of the model off. The config keeps its values, and so does a checkpoint."""
    for module in model.modules():
        for kind, attribute in _DROPOUTS.items():
            if isinstance(module, kind):
                setattr(module, attribute, 0.0)


def overfit_report(
    model: nn.Module, processor: MonkeyProcessor, records: Sequence[Record], max_length: int | None = None
) -> OverfitReport:
    """Ask the model for every answer of the records; where steps are narrowed by autocast, call it within that.

    Args:
        model: a Monkey, wrapped by PEFT or not; with weights sharded by ZeRO-3 every process must ask.
        processor: of the run, with its own image processor.
        records: those that it was trained on.
        max_length: most tokens of a sample in training.
    """
    misses: list[Miss] = []
    reproduced = 0
    with undisturbed(model):
        for record in records:
            own = list(_misses(base_model(model), processor, record, max_length))
            misses += own
            reproduced += not own
    return OverfitReport(reproduced, len(records), tuple(misses))


def _misses(model: nn.Module, processor: MonkeyProcessor, record: Record, max_length: int | None) -> Iterator[Miss]:
    """The answers of a record that do not come back."""
    turns = [{"role": turn.role, "text": turn.text} for turn in record.turns]
    sample = processor.encode_conversation(turns, list(record.images), max_length=max_length)
    tokenizer = processor.tokenizer
    ids = sample["input_ids"]
    answers = [number for number, turn in enumerate(record.turns) if turn.role == "assistant"]
    for number, (start, stop) in zip(answers, supervised_spans(sample["labels"]), strict=True):
        prompt = ids[:start]
        pictures = prompt.count(tokenizer.image_start_id)
        pixels = sample["pixel_values"][:pictures] if pictures else None
        generated = _greedy(model, prompt, pixels, stop - start, tokenizer.eod_id)
        ended = tokenizer.eod_id in generated
        text = tokenizer.decode(generated[: generated.index(tokenizer.eod_id)] if ended else generated)
        expected = tokenizer.decode(ids[start : stop - 1])
        if not ended or text != expected:
            yield Miss(record.source, number, expected, text, ended)


def supervised_spans(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Start and stop of each run of supervised tokens; a run is an answer and its end-of-text."""
    is_supervised = [False, *(label != UNSUPERVISED for label in labels), False]
    edges = [position for position in range(len(labels) + 1) if is_supervised[position] != is_supervised[position + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


@torch.no_grad()
def _greedy(
    model: nn.Module, prompt: Sequence[int], pixels: torch.Tensor | None, tokens: int, end_id: int
) -> list[int]:
    """At most `tokens` ids after the prompt."""
    input_ids = torch.tensor([prompt], device=model.device)
    pictures = {} if pixels is None else {"pixel_values": pixels.to(model.device)}
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        **pictures,
        do_sample=False,
        num_beams=1,
        max_new_tokens=tokens,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    return generated[0, len(prompt) :].tolist()


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
