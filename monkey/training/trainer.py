"""transformers' Trainer with what Monkey's runs need besides.

- a checkpoint is written beside its place and renamed, so that a folder `checkpoint-N` is always whole;
- a checkpoint opens like any other: weights under the published names, config, processor, and the run's record;
- a step without a supervised token, or with a loss that is not finite, stops with the names of its records.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import Trainer

from monkey.training.lora import load_adapter, save_adapter
from monkey.training.record import write_json

_WEIGHT_FILE = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|pytorch_model(-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json"
)


class MonkeyTrainer(Trainer):
    """Trainer for a Monkey model, wrapped in PEFT or not.

    Args:
        run_record: written as `run.json` into every checkpoint.
    """

    def __init__(self, *args: Any, run_record: dict[str, Any], **kwargs: Any):
        self._checkpoint_parent: Path | None = None
        self.run_record = run_record
        config = kwargs["model"].config
        use_cache = vars(config).get("use_cache")
        super().__init__(*args, **kwargs)
        # Trainer turns the cache off in the config, and a checkpoint would keep that; each step turns it off instead.
        if use_cache is None:
            del config.use_cache
        else:
            config.use_cache = use_cache

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        sources = inputs.pop("sources", [])
        if inputs.pop("supervised_tokens", None) == 0:
            raise ValueError(f"step {self.state.global_step + 1} has no supervised token: {_records(sources)}")
        inputs["use_cache"] = False
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._refuse_non_finite(loss, f"step {self.state.global_step + 1}: the loss", sources)
        return loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        sources = inputs.pop("sources", [])
        inputs.pop("supervised_tokens", None)
        inputs["use_cache"] = False
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None:
            self._refuse_non_finite(loss, "the held-out loss", sources)
        return loss, logits, labels

    @staticmethod
    def _refuse_non_finite(loss: torch.Tensor, what: str, sources: list[str]) -> None:
        if not torch.isfinite(loss):
            raise ValueError(f"{what} is {loss.item()}, so the run stopped before using it: {_records(sources)}")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write weights (or the adapter), config, processor and record to `output_dir`."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(self.model, "peft_config"):
            save_adapter(self.model, folder, state_dict)
        else:
            self.model.save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        write_json(folder / "run.json", self.run_record)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoint_parent or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-N` in a hidden folder, then rename it into place."""
        output_dir = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        with self.written_aside(output_dir / f".{name}.partial") as aside:
            self._checkpoint_parent = aside
            try:
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Put a checkpoint's weights into the model; the library's own reads files by the names in memory."""
        model = self.model if model is None else model
        if hasattr(model, "peft_config"):
            load_adapter(model, Path(resume_from_checkpoint))
            return
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that runs left in `folder`, by step; whatever else is named `checkpoint-…` is not one."""
    return [path for path in _checkpoint_places(folder) if (path / "trainer_state.json").is_file()]


def other_checkpoint_places(folder: Path) -> list[Path]:
    """What lies where a run would write `checkpoint-N`, and is none of a run's checkpoints."""
    return [path for path in _checkpoint_places(folder) if not (path / "trainer_state.json").is_file()]


def _checkpoint_places(folder: Path) -> list[Path]:
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    return sorted((path for path, step in steps.items() if step), key=lambda path: int(steps[path][1]))


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, or only the link where it is one."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def weight_files(folder: Path) -> list[Path]:
    """Files of `folder` under the names that a checkpoint's weights have."""
    return [path for path in folder.iterdir() if _WEIGHT_FILE.fullmatch(path.name)] if folder.is_dir() else []


def move_into_place(aside: Path, folder: Path) -> None:
    """Move a finished checkpoint's files into `folder`, replacing an earlier one's and leaving every other file.

    The config goes last: until it is there, the folder does not open as a checkpoint.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    for stale in weight_files(folder):
        stale.unlink()
    for entry in sorted(aside.iterdir(), key=lambda entry: entry.name == "config.json"):
        if entry.is_dir():
            move_into_place(entry, folder / entry.name)
        else:
            os.replace(entry, folder / entry.name)


def _records(sources: list[str]) -> str:
    return f"the batch holds {', '.join(sources)}" if sources else "the batch does not name its records"
