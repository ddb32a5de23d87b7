"""One fine-tuning run, from flags to a checkpoint.

Everything that can be wrong with the flags, the data and the checkpoint is found before anything is written.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from monkey.adapters import add_decoder_lora, merge_peft, open_adapted
from monkey.checkpoint_card import card_of
from monkey.configuration import MonkeyConfig
from monkey.data.dataset import ConversationDataset, errors_as_raised, first_readable
from monkey.data.mixture import Records, holds_images, open_records
from monkey.data.packing import BatchPlan, RowPlan, fill_rate
from monkey.data.records import Record
from monkey.data.streaming import StreamedBatches, StreamSettings
from monkey.decoders import decoder_layers, longest_sequence
from monkey.decoding import Decoding
from monkey.engine import Canvas, Engine, Request
from monkey.journal import PARTIAL, remove_partials
from monkey.language import LowRankAdapter
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.parts import lora_linears
from monkey.processing import UNSUPERVISED, MonkeyProcessor
from monkey.prompts import BOX_MARKERS
from monkey.quantised import keep_trained_in_float32, open_four_bit
from monkey.training.arguments import Flags, PartArguments
from monkey.training.memory import (
    MemoryPlan,
    StepSize,
    describe_misfit,
    gpu_gib,
    plan,
    plan_table,
    settings_of_flags,
)
from monkey.training.meter import Meter, StepFlops, count_flops, device_peak
from monkey.training.model_card import run_record, write_loss_curve, write_model_card, write_record
from monkey.training.recipes import PartCount, apply_recipe, base_model, recipe_table
from monkey.training.resuming import (
    MAKE_ROOM,
    check_whole,
    checkpoint_to_resume,
    clear_folder,
    full_disk_named,
    is_finished,
    logs_inside,
    move_into_place,
    nothing_left_of_a_false_start,
    read_record,
    read_stream,
    refuse_other_model,
    refuse_other_recipe,
    warn_of_other_flags,
    warn_of_other_threads,
    writing,
)
from monkey.training.trainer import (
    BestCheckpoint,
    Evaluator,
    MonkeyTrainer,
    gathered,
    shared_folder,
    step_dtype,
    undisturbed,
    wait_for_everyone,
)
from monkey.vision import ResamplerAttention, WindowAdapter


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
        check_whole(resume_from, sharded=bool(training.deepspeed))
        refuse_other_recipe(resume_from, flags.recipe)
    set_seed(training.seed)
    processor = MonkeyProcessor.from_pretrained(flags.model.model_name_or_path, **flags.model.layout)
    _refuse_large_grid(flags, processor)
    _check_lora_targets(flags)
    train_set = streamed_samples(flags, processor, resume_from) or training_samples(flags, processor)
    eval_set = held_out_samples(flags, processor) if flags.data.eval_data_path else None
    if evaluator is not None:
        evaluator.check(processor)
    batches = None if isinstance(train_set, StreamedBatches) else batch_plan(flags, train_set)
    if resume_from is not None and _is_finished(flags, resume_from, batches):
        if training.process_index == 0:
            remove_partials(output_dir)
        return output_dir
    model, counts = open_model(flags)
    if resume_from is not None:
        refuse_other_model(resume_from, base_model(model))
    _refuse_long_samples(base_model(model).config, batches, train_set)
    memory = _memory_plan(flags, model, batches)
    record = _record(flags, counts, train_set, eval_set, batches, memory, resume_from)
    if resume_from is not None and training.process_index == 0:
        warn_of_other_threads(resume_from, training.device)
        warn_of_other_flags(resume_from, record["flags"], record["data"])
    if training.process_index == 0:
        _announce(flags, model, counts, memory, record)
        if "decoder" not in flags.recipe.trains and has_new_markers(model, processor):
            print(
                "note: the markers of boxes are new to this decoder and all have one embedding, which the recipe "
                f"{flags.recipe.name} leaves as it is, so it cannot learn to write them: train the decoder whole "
                "first, or make the model without --boxes"
            )
    with (
        nothing_left_of_a_false_start(output_dir),
        full_disk_named(output_dir),
        logs_inside(output_dir),
        errors_as_raised(),
    ):
        with _missing_packages_named():
            if training.process_index == 0:
                remove_partials(output_dir)  # of a run that was killed
            trainer = _trainer(flags, model, processor, train_set, eval_set, batches, record, evaluator, resume_from)
            clear_folder(flags, resume_from)
            try:
                trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
            finally:
                trainer.stop.restore()
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


# Samples and the plan of their batches


def training_samples(flags: Flags, processor: MonkeyProcessor) -> ConversationDataset:
    """Return the samples of `--data_path`; with `--overfit N` the first N records that can be read alone."""
    data = flags.data
    records = open_records(data.data_path, data.image_root, "--image_root", data.data_weights)
    _print_notices(flags, records)
    passed: list[str] = []
    if flags.run.overfit:
        records, passed = first_readable(records, flags.run.overfit, data.skip_bad_rows)
    return _samples(flags, " ".join(data.data_path), records, processor, data.packing, passed)


def streamed_samples(flags: Flags, processor: MonkeyProcessor, resume_from: Path | None) -> StreamedBatches | None:
    """Return the batches of `--data_path` as they come, None where none of its sets is a stream."""
    data, training = flags.data, flags.training
    if not data.streams():
        return None
    settings = StreamSettings(
        buffer=data.stream_buffer,
        seed=_data_seed(flags),
        batch_size=training.per_device_train_batch_size,
        rows=data.row_settings if data.packing else None,
        sharing=data.sharing,
        max_length=data.model_max_length,
        skip_bad=data.skip_bad_rows,
        root_name="--image_root",
    )
    state = None if resume_from is None else read_stream(resume_from)
    processes = training.process_index, training.world_size, training.dataloader_num_workers
    batches = StreamedBatches(data.sets(), processor, settings, *processes, state)
    _print_notices(flags, batches)
    return batches


def _data_seed(flags: Flags) -> int:
    training = flags.training
    return training.seed if training.data_seed is None else training.data_seed


def held_out_samples(flags: Flags, processor: MonkeyProcessor) -> ConversationDataset:
    """Return the samples of `--eval_data_path`."""
    data = flags.data
    records = open_records(data.eval_data_path, data.image_root, "--image_root")
    _print_notices(flags, records)
    return _samples(flags, data.eval_data_path, records, processor, packing=False)


def _print_notices(flags: Flags, told: Records | ConversationDataset | StreamedBatches) -> None:
    if flags.training.process_index == 0:
        for notice in told.notices:
            print(f"note: {notice}")


def _samples(
    flags: Flags,
    path: str,
    records: Sequence[Record],
    processor: MonkeyProcessor,
    packing: bool,
    passed: Sequence[str] = (),
) -> ConversationDataset:
    """Return records as samples: encoded now unless they are met as they come, which a plan or a list cannot do.

    Args:
        passed: sentences about records that were left out before.
    """
    data = flags.data
    is_first = flags.training.process_index == 0
    dataset = ConversationDataset(
        records, processor, data.model_max_length, data.cache_images, data.sharing, data.skip_bad_rows
    )
    dataset.left_out += passed
    if packing or data.skip_bad_rows or not data.lazy_preprocess:
        _prepare_together(flags, dataset)
        dataset.leave_out(dataset.bad)
    if data.cache_images and is_first:
        print(f"--cache_images: up to {dataset.cache_bytes() / 2**20:,.0f} MiB for {path} in each loading process")
    _print_notices(flags, dataset)
    for sentence in dataset.left_out if is_first else ():
        print(f"left out: {sentence}")
    return dataset


def _prepare_together(flags: Flags, dataset: ConversationDataset) -> None:
    """Encode every record in the first process and let the others have it; one that fails ends them all."""
    training, is_first = flags.training, flags.training.process_index == 0
    if is_first:
        dataset.prepare(not flags.data.lazy_preprocess, training.dataloader_num_workers)
    if training.world_size == 1:
        return
    told = [(dataset.tokens.folder or dataset.tokens, dataset.bad) if is_first else None]
    dist.broadcast_object_list(told)
    if not is_first:
        made, dataset.bad = told[0]
        dataset.tokens = dataset.take_up(made) if isinstance(made, Path) else made
        if dataset.tokens is None:  # another machine, which does not see the cache folder of the first
            dataset.prepare(check_images=False)


def batch_plan(flags: Flags, dataset: ConversationDataset) -> RowPlan | BatchPlan:
    """Return the batches of the whole run: the same for one process or many, and for a resumed run."""
    training, seed = flags.training, _data_seed(flags)

    def order_of(number: int) -> np.ndarray:
        if isinstance(dataset.records, Records):
            return dataset.records.epoch(number, seed)
        return np.random.default_rng((seed, number)).permutation(len(dataset))

    if not flags.data.packing:
        batch_size = training.per_device_train_batch_size
        return BatchPlan(order_of, batch_size, training.world_size, training.dataloader_drop_last)
    sizes = dataset.tokens.sizes
    passes = None if training.max_steps > 0 else int(np.ceil(training.num_train_epochs))
    try:
        return RowPlan(sizes, flags.data.row_settings, order_of, passes, training.world_size)
    except ValueError as error:
        longest = int(sizes.tokens.argmax())
        raise ValueError(f"{dataset.records[longest].source}: {error}; raise --pack_tokens") from error


# Before the run


def _announce(
    flags: Flags, model: nn.Module, counts: list[PartCount], memory: MemoryPlan | None, record: dict[str, Any]
) -> None:
    """Print what trains, on what, what it needs, and with which flags."""
    if not record["data"]["has_images"]:
        named = " ".join(flags.data.data_path)
        looked_at = "no record" if record["data"]["samples"]["train"] is not None else "none of the first records"
        print(f"note: {looked_at} of {named} has an image, so the model learns from text alone")
    print(recipe_table(flags.recipe, counts))
    if memory is not None:
        print(plan_table(memory))
    print(_flops(flags, model)[0])
    print(flags.table())


def has_new_markers(model: nn.Module, processor: MonkeyProcessor) -> bool:
    """Whether the markers of boxes are tokens that nothing has trained yet, as new_model.py --boxes adds them."""
    ids = processor.tokenizer.convert_tokens_to_ids(list(BOX_MARKERS))
    rows = base_model(model).get_input_embeddings().weight  # none where ZeRO-3 holds them elsewhere
    are_tokens = None not in ids and len(set(ids)) == len(BOX_MARKERS)
    return are_tokens and len(rows) > max(ids) and bool((rows[ids] == rows[ids[0]]).all())


def _is_finished(flags: Flags, checkpoint: Path, batches: RowPlan | BatchPlan | None) -> bool:
    """Whether the run has made all its steps and saved its end; says so. A self-test has its answers to give yet."""
    training, output_dir = flags.training, Path(flags.training.output_dir)
    steps = training.max_steps
    if steps <= 0:  # as the library counts them
        an_epoch = max(1, math.ceil(batches.rows_an_epoch / training.gradient_accumulation_steps))
        steps = math.ceil(training.num_train_epochs * an_epoch)
    first = training.process_index == 0
    if flags.run.overfit or not gathered(first and is_finished(checkpoint, output_dir, steps))[0]:
        return False
    if first:
        print(f"{output_dir} holds a finished run, whose {checkpoint.name} was its last: nothing is left to train")
    return True


def _refuse_large_grid(flags: Flags, processor: MonkeyProcessor) -> None:
    """ValueError for a grid of which no image fits into a sample, before any is made."""
    limit, named = flags.data.model_max_length, flags.model
    grids = processor.image_processor.allowed_grids
    flag, given = ("grids", named.grids) if grids else ("grid", named.grid)
    tokens = min(map(processor.tokens_of, grids), default=processor.image_tokens)
    if given is not None and tokens > limit:
        least = "at least " if grids else ""
        raise ValueError(
            f"--{flag} {given} makes {least}{tokens:,} tokens of an image, and --model_max_length {limit:,} holds "
            "fewer: give a smaller grid or raise it"
        )


def _check_lora_targets(flags: Flags) -> None:
    """ValueError for --lora_targets that the decoder does not have, before any weight is read."""
    if flags.lora.lora_targets is not None:
        config = MonkeyConfig.from_pretrained(flags.model.model_name_or_path, **flags.model.layout)
        config.lora_targets = flags.lora.lora_targets
        with torch.device("meta"):
            lora_linears(MonkeyForConditionalGeneration(config))


def _refuse_long_samples(
    config: MonkeyConfig, batches: RowPlan | BatchPlan | None, dataset: ConversationDataset
) -> None:
    """ValueError for a sample beyond what the decoder is exact for in packed rows, before a step meets it."""
    longest = longest_sequence(config.text_config)
    if not isinstance(batches, RowPlan) or longest is None or batches.sizes.tokens.max() <= longest:
        return
    number = int(batches.sizes.tokens.argmax())
    raise ValueError(
        f"{dataset.records[number].source}: the sample has {batches.sizes.tokens[number]:,} tokens, and packed rows of "
        f"the {config.text_config.model_type} decoder are exact up to {longest:,} (its sliding window, or its rotary "
        "positions): shorten it, give a smaller grid, or --packing False"
    )


def _memory_plan(flags: Flags, model: nn.Module, batches: RowPlan | BatchPlan | None) -> MemoryPlan | None:
    """Return what the run will need of its GPU, None on a CPU; ValueError where weights and states alone have no room.

    What a step holds besides is an estimate, about which a warning is said.
    """
    room = gpu_gib(flags.training.device)
    if room is None:
        return None
    config = base_model(model).config
    changes: dict[str, Any] = {"gpus": flags.training.world_size}
    if isinstance(batches, RowPlan):
        sizes, rows, budget = batches.sizes, batches.epoch(0, flags.training.process_index), batches.settings.budget
        images = max(sum(sizes.unit_images(unit) for unit in row) for row in rows)
        supervised = max(int(sum(sizes.supervised[list(unit)].sum() for unit in row)) for row in rows)
        largest = StepSize(images, 1, budget, supervised)
        if config.is_ragged:
            fullest = max(rows, key=lambda row: sum(map(sizes.unit_slots, row)))
            images = sum(map(sizes.unit_images, fullest))
            views = sum(map(sizes.unit_slots, fullest)) // config.vision_config.num_queries
            largest = replace(largest, images=images, windows=views - images * config.global_view)
        changes |= {"batch_size": 0, "pack_tokens": budget, "largest_step": largest}
    elif flags.data.packing:
        changes |= {"batch_size": 0, "pack_tokens": flags.data.row_settings.budget}
    memory = plan(config, settings_of_flags(flags.resolved(), **changes))
    sentence = describe_misfit(memory, room)
    if sentence is not None and memory.sums > room * 2**30 and not flags.run.ignore_memory_plan:
        raise ValueError(f"{sentence}; or start all the same with --ignore_memory_plan True")
    if sentence is not None:
        warnings.warn(f"{sentence}; the run starts, and may run out of memory", stacklevel=2)
    return memory


def _record(
    flags: Flags,
    counts: list[PartCount],
    train_set: ConversationDataset | StreamedBatches,
    eval_set: ConversationDataset | None,
    batches: RowPlan | BatchPlan | None,
    memory: MemoryPlan | None,
    resume_from: Path | None,
) -> dict[str, Any]:
    parts = [{"part": count.part, "trains": count.trains, "parameters": count.parameters} for count in counts]
    streamed = isinstance(train_set, StreamedBatches)
    data: dict[str, Any] = {"samples": {"train": None if streamed else len(train_set), "eval": len(eval_set or ())}}
    data["has_images"] = train_set.has_images if streamed else holds_images(train_set.records)
    data["processes"] = flags.training.world_size
    if streamed:
        data["files"] = train_set.describe()
    elif isinstance(train_set.records, Records):
        data["files"] = [
            {"path": str(file.path), "records": file.stop - file.start, "weight": file.weight}
            for file in train_set.records.files
        ]
    left_out = [*([] if streamed else train_set.left_out), *(eval_set.left_out if eval_set is not None else ())]
    if resume_from is not None:  # what it had met on its way
        left_out = list(dict.fromkeys([*left_out, *read_record(resume_from).get("left_out", ())]))
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
    return {**record, "left_out": left_out, "planned_bytes": {} if memory is None else memory.lines}


def _trainer(
    flags: Flags,
    model: nn.Module,
    processor: MonkeyProcessor,
    train_set: ConversationDataset | StreamedBatches,
    eval_set: ConversationDataset | None,
    batches: RowPlan | BatchPlan | None,
    record: dict[str, Any],
    evaluator: Evaluator | None,
    resume_from: Path | None,
) -> MonkeyTrainer:
    training, output_dir = flags.training, Path(flags.training.output_dir)
    best = None
    if training.eval_strategy != "no":
        metric = training.metric_for_best_model or ("eval_score" if evaluator is not None else "eval_loss")
        greater = training.greater_is_better
        greater = "loss" not in metric if greater is None else greater
        best = BestCheckpoint(output_dir, metric, greater, fresh=resume_from is None, args=training)
    meter = Meter(*_flops(flags, model), device_peak(training.device, step_dtype(training), flags.run.peak_tflops))
    # `set_checkpointing` has done it, part by part.
    training.activation_checkpointing = training.gradient_checkpointing = False
    return MonkeyTrainer(
        model,
        training,
        processor,
        train_set,
        eval_set,
        run_record=record,
        card=card_of(flags.model.model_name_or_path),
        parts=flags.parts,
        plan=batches,
        meter=meter,
        evaluator=evaluator,
        best=best,
        skip_bad_rows=flags.data.skip_bad_rows,
    )


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


def _refuse_unfinished(trainer: MonkeyTrainer, flags: Flags) -> None:
    """Stopped where a signal ended the run; ValueError where it made no step."""
    stop = trainer.stop
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
    final, log = output_dir / f".final{PARTIAL}", trainer.state.log_history
    is_adapter = hasattr(trainer.model, "peft_config")
    with shared_folder(final, trainer.args) as folder:
        trainer.save_model(str(folder / "adapter" if is_adapter else folder))
        wait_for_everyone()
        if trainer.args.should_save:
            if is_adapter:
                _save_merged(trainer, flags, folder)
            write_record(folder / "training_log.json", log)
            best = trainer.best.record if trainer.best is not None else None
            write_loss_curve(log, folder / "loss_curve.png", best and best["step"])
            write_model_card(folder, trainer.run_record, _scores(trainer), flags.model.model_name_or_path, log)
    if trainer.args.should_save:
        move_into_place(final, output_dir)
        shutil.rmtree(final)


def _save_merged(trainer: MonkeyTrainer, flags: Flags, folder: Path) -> None:
    """Merge `folder/adapter` into the starting weights, opened again, so that the trainer's engine does not matter."""
    if flags.training.deepspeed:
        # Else ZeRO-3 would hand this one process an empty model, to be filled by all of them.
        unset_hf_deepspeed_config()
    precision = "4bit" if flags.recipe.four_bit else "full"
    dtype = step_dtype(flags.training)
    adapter = folder / "adapter"
    tuned = open_adapted(adapter, flags.model.model_name_or_path, precision, dtype)
    merged, _ = merge_peft(tuned, adapter, dtype)
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


# The model that a run starts from


def open_model(flags: Flags) -> tuple[nn.Module, list[PartCount]]:
    """The model with its recipe applied, wrapped in PEFT where the decoder gets adapters, and the count of each part.

    Precision: fp32 weights, for autocast to narrow. With `--bf16` or `--fp16`, what is frozen is held so, and what
    trains in fp32; with DeepSpeed all is held so, since it keeps the fp32 copy of what trains itself.

    Raises:
        ValueError, FileNotFoundError: a checkpoint that is missing, does not fit, or is no start for this recipe.
    """
    recipe = flags.recipe
    model = open_base(flags)
    built_in = bool(model.config.built_in_rank)
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
    narrow = step_dtype(flags.training)
    if narrow != torch.float32 and not flags.training.deepspeed:
        narrow_frozen(model, narrow)
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
    if flags.lora.lora_targets is not None:
        raise ValueError(
            f"--lora_targets {' '.join(flags.lora.lora_targets)} would have no effect: "
            f"{flags.model.model_name_or_path} has decoder adapters built in, each where it is; leave it out"
        )
    for name in ("lora_r", "lora_alpha"):  # as many of both: the scale, which trains, starts as 1
        if name in flags.named and getattr(flags.lora, name) != rank:
            raise ValueError(
                f"--{name} {getattr(flags.lora, name)} would have no effect: {flags.model.model_name_or_path} has "
                f"decoder adapters built in, of rank {rank} and with scales that train; leave it out"
            )
    if "lora_dropout" in flags.named:
        text_config.adapter_dropout = flags.lora.lora_dropout
        _set_dropouts(model, LowRankAdapter, flags.lora.lora_dropout)


def open_base(flags: Flags) -> MonkeyForConditionalGeneration:
    """The starting weights as they are, without adapters of this run."""
    training = flags.training
    if training.deepspeed:
        import deepspeed

        # ZeRO-3 shards the model while it opens; on CPUs the library sets this up only later.
        deepspeed.init_distributed()
    name, layout = flags.model.model_name_or_path, flags.model.layout
    # A decoder that trains without DeepSpeed starts from the checkpoint's own bits; a frozen one fits in half of them.
    narrow = training.deepspeed or "decoder" not in flags.recipe.trains
    dtype = step_dtype(training) if narrow else torch.float32
    if flags.recipe.four_bit:
        model = open_four_bit(name, **layout, dtype=dtype)
    else:
        model = MonkeyForConditionalGeneration.from_pretrained(name, **layout, dtype=dtype)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"--model_name_or_path {name} is a PEFT adapter: continue its run with --resume_from_checkpoint, or start "
            "from the merged checkpoint beside it"
        )
    if flags.lora.lora_targets is not None:
        model.config.lora_targets = flags.lora.lora_targets
    # Trainer would set these itself, and warn about it.
    text_config = model.config.text_config
    text_config.eos_token_id = text_config.pad_token_id = model.config.eod_id
    return model


def narrow_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold what does not train in `dtype`; 4-bit weights are no floats and stay."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)


_DROPOUTS: dict[type[nn.Module], str] = {
    nn.Dropout: "p",
    WindowAdapter: "dropout",
    LowRankAdapter: "dropout",
    ResamplerAttention: "dropout",
}
"""Class -> its attribute that is a probability of dropout."""

_ATTENTION_DROPOUT = "attention_dropout"
"""The same of the attention of every decoder, ours and the library's."""


def _set_dropouts(model: nn.Module, kind: type[nn.Module], value: float) -> None:
    for module in model.modules():
        if isinstance(module, kind):
            setattr(module, _DROPOUTS[kind], value)


def _set_attention_dropout(model: MonkeyForConditionalGeneration, value: float) -> None:
    for module in model.model.language_model.modules():
        if isinstance(getattr(module, _ATTENTION_DROPOUT, None), (int, float)):
            setattr(module, _ATTENTION_DROPOUT, value)


def set_dropout(model: MonkeyForConditionalGeneration, parts: PartArguments) -> None:
    """Set each part's dropout to what its flag says, in the modules and in the config."""
    vision, text = model.config.vision_config, model.config.text_config
    for kind, config, field, given in (
        (WindowAdapter, vision, "adapter_dropout", parts.vision_adapter_dropout),
        (ResamplerAttention, vision, "resampler_dropout", parts.resampler_dropout),
    ):
        if given is not None:
            setattr(config, field, given)
            _set_dropouts(model, kind, given)
    if parts.decoder_dropout is not None:
        text.attention_dropout = parts.decoder_dropout
        _set_attention_dropout(model, parts.decoder_dropout)


def without_dropout(model: nn.Module) -> None:
    """Turn every dropout of the model off. The config keeps its values, and so does a checkpoint."""
    for kind in _DROPOUTS:
        _set_dropouts(model, kind, 0.0)
    _set_attention_dropout(base_model(model), 0.0)


def set_checkpointing(model: MonkeyForConditionalGeneration, parts: PartArguments, training: Any) -> tuple[bool, bool]:
    """Activation checkpointing of vision transformer and decoder, each by its flag; returns what was set.

    Not Trainer's own, which knows one flag for both. Never reentrant: that form gives a layer no gradient when its
    input needs none, as the window adapters' below a frozen vision transformer, and says nothing.
    """
    both = bool(training.activation_checkpointing)
    settings = {**(training.activation_checkpointing_kwargs or {}), "use_reentrant": False}
    chosen = tuple(both if own is None else own for own in (parts.vision_checkpointing, parts.decoder_checkpointing))
    parts.vision_checkpointing, parts.decoder_checkpointing = chosen
    decoder = decoder_layers(model.model.language_model)
    for layers, on in zip((model.model.visual.blocks, decoder), chosen, strict=True):
        for layer in layers:
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = partial(checkpoint, **settings)
    return chosen


# The self-test: what was trained on must come back word for word


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
    engine = Engine(base_model(model), processor)
    with undisturbed(model):
        for record in records:
            own = list(_misses(engine, processor, record, max_length))
            misses += own
            reproduced += not own
    return OverfitReport(reproduced, len(records), tuple(misses))


def _misses(engine: Engine, processor: MonkeyProcessor, record: Record, max_length: int | None) -> Iterator[Miss]:
    """The answers of a record that do not come back."""
    ids, labels, images = processor.encode(record.conversation, labels=True, max_length=max_length)
    canvases = [Canvas.read(image, processor.image_processor) for image in images]
    tokenizer = processor.tokenizer
    turns = record.conversation.messages
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    for number, (start, stop) in zip(answers, supervised_spans(labels), strict=True):
        prompt = ids[:start]
        shown = canvases[: prompt.count(tokenizer.image_start_id)]
        limit, ends = stop - start, processor.end_ids()
        (generated,) = engine.run_greedily([Request(prompt, shown, Decoding(limit), limit, ends, min_new_tokens=0)])
        end = next((place for place, token in enumerate(generated) if token in ends), None)
        ended, text = end is not None, tokenizer.decode(generated[:end])
        expected = tokenizer.decode(ids[start : stop - 1])
        if not ended or text != expected:
            yield Miss(record.source, number, expected, text, ended)


def supervised_spans(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Start and stop of each run of supervised tokens; a run is an answer and its end-of-text."""
    is_supervised = [False, *(label != UNSUPERVISED for label in labels), False]
    edges = [position for position in range(len(labels) + 1) if is_supervised[position] != is_supervised[position + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
