"""One fine-tuning run, from flags to a checkpoint.

Everything that can be wrong with the flags, the data and the checkpoint is found before anything is written.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from monkey.data.records import read_records
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.training.arguments import Flags
from monkey.training.dataset import Collator, ConversationDataset, errors_as_raised
from monkey.training.lora import add_decoder_lora, merged_model
from monkey.training.recipes import RECIPES, PartCount, Recipe, apply_recipe, recipe_table
from monkey.training.record import run_record, write_json, write_loss_curve
from monkey.training.trainer import (
    MonkeyTrainer,
    checkpoints,
    move_into_place,
    other_checkpoint_places,
    remove_checkpoint,
    weight_files,
)

# Besides the weights, what a run would write over.
_RUN_FILES = ("config.json", "run.json", "training_log.json", "loss_curve.png", "adapter/adapter_config.json")


def finetune(flags: Flags) -> Path:
    """Train as the flags say; return the folder of the trained checkpoint.

    The folder holds the checkpoint with its processor, `run.json`, `training_log.json` and `loss_curve.png`. With
    `--use_lora` it holds the merged checkpoint, and `adapter/` the PEFT adapter with the trained vision parts.

    Raises:
        ValueError, FileNotFoundError: flags, records or checkpoint that do not work, in one sentence.
    """
    training = flags.training
    output_dir = Path(training.output_dir)
    resume_from = _checkpoint_to_resume(flags)
    set_seed(training.seed)
    processor = MonkeyProcessor.from_pretrained(flags.model.model_name_or_path, grid=flags.model.grid_shape)
    train_set = _dataset(flags, flags.data.data_path, processor)
    eval_set = _dataset(flags, flags.data.eval_data_path, processor) if flags.data.eval_data_path else None
    model = _open_model(flags)
    recipe = RECIPES[training.fix_vit, flags.lora.use_lora]
    if resume_from is not None:
        _refuse_other_recipe(Path(resume_from), recipe)
    if recipe.decoder_lora and not model.config.text_config.adapter_rank:
        model = add_decoder_lora(model, flags.lora)
    counts = apply_recipe(model, recipe)
    samples = {"train": len(train_set), "eval": len(eval_set or ())}
    record = _record(flags, recipe, counts, samples)
    if training.process_index == 0:
        print(recipe_table(recipe, counts))
        print("\n".join(f"--{name} {value}" for name, value in flags.given.items()))

    with _no_empty_folder_left(output_dir), errors_as_raised():
        trainer = MonkeyTrainer(
            model=model,
            args=training,
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=Collator(processor),
            processing_class=processor,
            run_record=record,
        )
        if resume_from is None and training.overwrite_output_dir and training.process_index == 0:
            # A later resume would take the furthest of them.
            for folder in checkpoints(output_dir):
                remove_checkpoint(folder)
        trainer.train(resume_from_checkpoint=resume_from)
        if trainer.state.global_step == 0:
            raise ValueError(
                f"{flags.data.data_path}: no step was made, for its {len(train_set)} records do not fill one batch of "
                f"--per_device_train_batch_size {training.per_device_train_batch_size}, and --dataloader_drop_last "
                "leaves them out"
            )
        if eval_set is not None and not _evaluated_at_the_end(trainer):
            trainer.evaluate()
        _save(trainer, flags, output_dir)
    return output_dir


def _checkpoint_to_resume(flags: Flags) -> str | None:
    """Folder of `--resume_from_checkpoint`, and a refusal to write over an earlier run."""
    output_dir, wanted = Path(flags.training.output_dir), flags.training.resume_from_checkpoint
    _check_writable(output_dir)
    last = str(checkpoints(output_dir)[-1]) if checkpoints(output_dir) else None
    others = other_checkpoint_places(output_dir)
    if others and flags.training.save_strategy != "no":
        raise ValueError(
            f"--output_dir {output_dir}: {others[0].name} in it is no checkpoint of a run (it has no "
            "trainer_state.json) and a run may need its name: move it away, or name another folder"
        )
    if wanted is not None and wanted.lower() != "false":
        if wanted.lower() == "true":
            if last is None:
                raise FileNotFoundError(f"--resume_from_checkpoint True: {output_dir} holds no checkpoint-N folder")
            return last
        if not (Path(wanted) / "trainer_state.json").is_file():
            raise FileNotFoundError(f"--resume_from_checkpoint {wanted}: there is no trainer_state.json in it")
        return wanted
    written = [*weight_files(output_dir), *(output_dir / name for name in _RUN_FILES)]
    if not flags.training.overwrite_output_dir and (last is not None or any(path.exists() for path in written)):
        raise ValueError(
            f"--output_dir {output_dir} holds an earlier run: continue it with --resume_from_checkpoint True, replace "
            "it with --overwrite_output_dir True, or name another folder"
        )
    return None


def _check_writable(output_dir: Path) -> None:
    """ValueError where the folder cannot be made or written to."""
    nearest = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"--output_dir {output_dir}: {nearest} is a file, not a folder: name another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"--output_dir {output_dir}: this user may not write to {nearest}: name another folder")


def _refuse_other_recipe(checkpoint: Path, recipe: Recipe) -> None:
    """A checkpoint's optimiser knows only what its own recipe trained."""
    record = checkpoint / "run.json"
    trained = json.loads(record.read_text(encoding="utf-8"))["recipe"]["name"] if record.is_file() else recipe.name
    if trained != recipe.name:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} was trained as {trained}, but these flags ask for {recipe.name}: "
            "resume with the same --fix_vit and --use_lora, or start from its weights with --model_name_or_path"
        )


def _dataset(flags: Flags, path: str, processor: MonkeyProcessor) -> ConversationDataset:
    """Records of a file as samples, checked now unless `--lazy_preprocess`."""
    dataset = ConversationDataset(
        read_records(path, image_root=flags.data.image_root),
        processor,
        max_length=flags.data.model_max_length,
        cache_images=flags.data.cache_images,
    )
    if flags.data.cache_images and flags.training.process_index == 0:
        print(f"--cache_images: up to {dataset.cache_bytes() / 2**20:,.0f} MiB for {path} in each loading process")
    if not len(dataset):
        raise ValueError(f"{path} holds no record")
    # One process reads for all: a failing one makes the launcher stop the others.
    if not flags.data.lazy_preprocess and flags.training.process_index == 0:
        dataset.check()
    return dataset


def _open_model(flags: Flags) -> MonkeyForConditionalGeneration:
    """The starting weights: fp32, for autocast to narrow; bf16 where DeepSpeed keeps the fp32 copy itself."""
    if flags.training.deepspeed:
        import deepspeed

        # ZeRO-3 shards the model while it opens; on CPUs the library sets this up only later.
        deepspeed.init_distributed()
    narrow = flags.training.bf16 and flags.training.deepspeed
    model = MonkeyForConditionalGeneration.from_pretrained(
        flags.model.model_name_or_path,
        grid=flags.model.grid_shape,
        dtype=torch.bfloat16 if narrow else torch.float32,
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"--model_name_or_path {flags.model.model_name_or_path} is a PEFT adapter: continue its run with "
            "--resume_from_checkpoint, or start from the merged checkpoint beside it"
        )
    # Trainer would set these itself, and warn about it.
    text_config = model.config.text_config
    text_config.eos_token_id = text_config.pad_token_id = model.config.eod_id
    return model


def _record(flags: Flags, recipe: Recipe, counts: list[PartCount], samples: dict[str, int]) -> dict[str, Any]:
    parts = [{"part": count.part, "trains": count.trains, "parameters": count.parameters} for count in counts]
    return run_record(
        flags=flags.resolved(),
        recipe={"name": recipe.name, "parts": parts},
        data={"samples": samples},
        seed=flags.training.seed,
    )


def _evaluated_at_the_end(trainer: MonkeyTrainer) -> bool:
    return any(
        "eval_loss" in entry and entry["step"] == trainer.state.global_step for entry in trainer.state.log_history
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
        write_loss_curve(trainer.state.log_history, aside / "loss_curve.png")
        move_into_place(aside, output_dir)


def _save_merged(trainer: MonkeyTrainer, flags: Flags, folder: Path) -> None:
    """Merge `folder/adapter` into the starting weights, opened again, so that the trainer's engine does not matter."""
    if flags.training.deepspeed:
        # Else ZeRO-3 would hand this one process an empty model, to be filled by all of them.
        unset_hf_deepspeed_config()
    merged = merged_model(_open_model(flags), folder / "adapter")
    merged.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    write_json(folder / "run.json", trainer.run_record)


@contextlib.contextmanager
def _no_empty_folder_left(folder: Path) -> Iterator[None]:
    """Remove `folder` when the run stopped before it wrote anything."""
    try:
        yield
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
