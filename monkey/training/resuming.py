"""The folder of a run: what it may hold before, how finished work gets into it, and what a run goes on from.

Before it goes on from a checkpoint, a run looks whether that is whole, of this model, and made with the same flags.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import os
import pickle
import random
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from monkey.checkpoint import published_shapes
from monkey.checkpoint_files import file_shapes
from monkey.configuration import MonkeyConfig
from monkey.files import required_file
from monkey.journal import PARTIAL
from monkey.training.arguments import GROUPS, Flags
from monkey.training.recipes import Recipe

SCORES, SCORES_FILE = "scores", "scores.json"
BEST, BEST_FILE = "best", "best.json"
STREAM_FILE = "stream.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAKE_ROOM = "make room, then --resume_from_checkpoint True where checkpoints were saved"

_WEIGHT_FILE = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|pytorch_model(-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json"
)
_RUN_FILES = (
    "config.json", "run.json", "training_log.json", "loss_curve.png", "README.md", "adapter/adapter_config.json",
)  # fmt: skip
"""Besides the weights, what a run would write over."""

_LOGGING_DIR = "TENSORBOARD_LOGGING_DIR"


# What lies in the folder


def written_weights(folder: Path) -> list[Path]:
    """Return the files of `folder` under the names that a checkpoint's weights have."""
    return [path for path in folder.iterdir() if _WEIGHT_FILE.fullmatch(path.name)] if folder.is_dir() else []


def checkpoint_places(folder: Path) -> list[Path]:
    """Return what lies where a run would write `checkpoint-N`, by step."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    return sorted((path for path, step in steps.items() if step), key=lambda path: int(steps[path][1]))


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that runs left in `folder`, by step; what else is named `checkpoint-…` is not one."""
    return [path for path in checkpoint_places(folder) if (path / "trainer_state.json").is_file()]


def earlier_evaluations(output_dir: Path) -> list[Path]:
    """Return the folders that evaluations of an earlier run left in `output_dir`: its best checkpoint, its scores."""
    best = [path for path in [output_dir / BEST] if (path / BEST_FILE).is_file()]
    scores = [path for path in (output_dir / SCORES).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return [*best, *sorted(path for path in scores if (path / SCORES_FILE).is_file())]


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, or only the link where it is one."""
    if folder.is_symlink():
        folder.unlink()
        return
    # By another name first: what a killed run leaves of it must not look like a checkpoint.
    going = folder.with_name(f".{folder.name}.gone{PARTIAL}")
    shutil.rmtree(going, ignore_errors=True)
    os.replace(folder, going)
    shutil.rmtree(going)


def checkpoint_to_resume(flags: Flags) -> Path | None:
    """Return the folder of `--resume_from_checkpoint`; ValueError where the run would write over an earlier one's."""
    output_dir, wanted = Path(flags.training.output_dir), flags.training.resume_from_checkpoint
    _check_writable(output_dir)
    if flags.training.save_strategy != "no":
        _refuse_strangers(checkpoint_places(output_dir), "trainer_state.json")
    if flags.run.eval_tasks:
        _refuse_strangers(sorted((output_dir / SCORES).glob("step-*")), SCORES_FILE)
    found = checkpoints(output_dir)
    if wanted is not None and wanted.lower() != "false":
        if wanted.lower() == "true":
            if not found:
                raise FileNotFoundError(f"--resume_from_checkpoint True: {output_dir} holds no checkpoint-N folder")
            return found[-1]
        if not (Path(wanted) / "trainer_state.json").is_file():
            raise FileNotFoundError(f"--resume_from_checkpoint {wanted}: there is no trainer_state.json in it")
        return Path(wanted)
    files = [*written_weights(output_dir), *(output_dir / name for name in _RUN_FILES)]
    written = [*files, *earlier_evaluations(output_dir)]
    if not flags.training.overwrite_output_dir and (found or any(path.exists() for path in written)):
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
    """Raise ValueError where the folder cannot be made or written to."""
    nearest = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"--output_dir {output_dir}: {nearest} is a file, not a folder: name another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"--output_dir {output_dir}: this user may not write to {nearest}: name another folder")


# How a run leaves the folder


def clear_folder(flags: Flags, resume_from: Path | None) -> None:
    """With --overwrite_output_dir, remove an earlier run's checkpoints: a later resume would take the furthest."""
    if flags.training.process_index == 0 and resume_from is None and flags.training.overwrite_output_dir:
        output_dir = Path(flags.training.output_dir)
        for folder in (*checkpoints(output_dir), *earlier_evaluations(output_dir)):
            remove_checkpoint(folder)


def move_into_place(aside: Path, folder: Path) -> None:
    """Move a finished checkpoint's files into `folder`, replacing an earlier one's and leaving every other file.

    The config goes last: until it is there, the folder does not open as a checkpoint.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    for stale in written_weights(folder):
        stale.unlink()
    for entry in sorted(aside.iterdir(), key=lambda entry: entry.name == "config.json"):
        if entry.is_dir():
            move_into_place(entry, folder / entry.name)
        else:
            os.replace(entry, folder / entry.name)


@contextlib.contextmanager
def logs_inside(output_dir: Path) -> Iterator[None]:
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
def nothing_left_of_a_false_start(folder: Path) -> Iterator[None]:
    """Remove `folder` when the run stopped before it wrote anything but an empty log."""
    had_logs = (folder / "tensorboard").exists()
    try:
        yield
    except BaseException:
        if not had_logs and not checkpoints(folder):
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        raise
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextlib.contextmanager
def full_disk_named(output_dir: Path) -> Iterator[None]:
    """Turn a full disk, under whatever writes to the run's folder or elsewhere, into one sentence: OSError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        place = getattr(error, "filename", None) or output_dir
        said = _said_by_a_disk(error, output_dir)
        if said is None or (isinstance(error, OSError) and error.errno not in _FULL):
            raise
        raise OSError(f"{place} could not be written ({said}); {MAKE_ROOM}") from error


@contextlib.contextmanager
def writing(place: Path, advice: str) -> Iterator[None]:
    """Turn what keeps `place` from being written, a full disk or anything else, into one sentence about it: OSError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        said = _said_by_a_disk(error, place)
        if said is None:
            raise
        raise OSError(f"{place} could not be written ({said}); {advice}") from error


def _said_by_a_disk(error: Exception, place: Path) -> str | None:
    """Return what an error says of a disk that could not be written to; None for any other error."""
    said = " ".join(str(error).split())
    if isinstance(error, OSError):  # of a file that is not there the error says all
        return None if isinstance(error, FileNotFoundError) else error.strerror or said
    if isinstance(error, SafetensorError):
        return said if "I/O error" in said or "IoError" in said else None
    # torch.save tells of a disk by an error of its archive's writer, or of the end that it cannot write after that.
    if not any(name in said for name in ("PytorchStreamWriter", "inline_container.cc")):
        return None
    nearest = next(path for path in (place, *place.absolute().parents) if path.exists())
    return f"torch could write no further, {shutil.disk_usage(nearest).free // 2**20:,} MiB are free there"


# Going on from a checkpoint

_ORDER = (
    "data_path", "data_weights", "seed", "data_seed", "model_max_length", "packing", "pack_tokens",
    "share_images", "look_ahead", "most_shared", "streaming", "stream_buffer", "per_device_train_batch_size",
    "gradient_accumulation_steps",
)  # fmt: skip
"""Flags that say which samples make which step."""
_KEPT = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    *(f"{group}_{quantity}" for group in GROUPS for quantity in ("learning_rate", "weight_decay")),
)  # fmt: skip
"""Flags whose values the states of optimiser and schedule hold, and so bring along."""

_INSTEAD = "resume from an earlier checkpoint, or copy this one again"


def _is_trainer_state(content: Any) -> bool:
    history = TrainerState(**content).log_history
    return isinstance(content["global_step"], int) and all(isinstance(entry["step"], int) for entry in history or ())


def _is_record(content: Any) -> bool:
    kinds = {"flags": dict, "recipe": dict, "data": dict, "left_out": list}  # older versions have fewer of them
    return all(isinstance(content.get(name, kind()), kind) for name, kind in kinds.items())


def _is_stream(content: Any) -> bool:
    return isinstance(content["lanes"], int) and isinstance(content["sets"], list) and isinstance(content["at"], dict)


def _is_optimizer(content: Any) -> bool:
    return isinstance(content["state"], dict) and all(
        isinstance(one["params"], list) for one in content["param_groups"]
    )


def _sets_generators(content: Any) -> bool:
    """Whether random states can be set; tried on generators that nothing draws from."""
    random.Random().setstate(content["python"])
    np.random.RandomState().set_state(content["numpy"])
    torch.Generator().set_state(content["cpu"])
    return True


_STATES: dict[str, Callable[[Any], bool]] = {
    "trainer_state.json": _is_trainer_state,
    "run.json": _is_record,
    STREAM_FILE: _is_stream,
    "optimizer.pt": _is_optimizer,
    "scheduler.pt": lambda content: isinstance(content["last_epoch"], int),
    "rng_state.pth": _sets_generators,
    "scaler.pt": lambda _: True,
}
"""File of a checkpoint -> whether its content, an object, is of the form that a run goes on from."""


def check_whole(checkpoint: Path, sharded: bool) -> None:
    """Raise ValueError or FileNotFoundError for a file of a checkpoint that is damaged, or missing where it is needed.

    Args:
        sharded: DeepSpeed keeps the optimiser's state in files of its own, and looks at them itself.
    """
    for name in () if sharded else ("optimizer.pt", "scheduler.pt"):
        if not (checkpoint / name).is_file():
            raise FileNotFoundError(
                f"--resume_from_checkpoint {checkpoint}: there is no {name} in it, without which no run goes on as "
                "it was (--save_only_model and --deepspeed write none): start from its weights with "
                "--model_name_or_path, or resume with the flags that it was made with"
            )
    for path in sorted(checkpoint.iterdir()):
        name = "rng_state.pth" if re.fullmatch(r"rng_state_\d+\.pth", path.name) else path.name
        if name in _STATES:
            content = _json(path) if path.suffix == ".json" else _tensors(path)
            try:
                is_one = isinstance(content, dict) and _STATES[name](content)
            except (TypeError, ValueError, KeyError, IndexError, RuntimeError):  # other content has no such parts
                is_one = False
            if not is_one:
                raise ValueError(f"{path} is not what a run saves there ({type(content).__name__}): {_INSTEAD}")
    if (checkpoint / "adapter_config.json").is_file():
        file_shapes(required_file(checkpoint, "adapter_model.safetensors", "the adapter's weights"))


def _tensors(path: Path) -> Any:
    """Read a file of `torch.save`; nothing but tensors, numbers and their containers is ever unpickled."""
    # torch.save writes a zip archive, whose end is its table of contents.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not whole: {_INSTEAD}")
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


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not whole ({error}): {_INSTEAD}") from None


def read_record(checkpoint: Path) -> dict[str, Any]:
    """Return the run's record in a checkpoint; empty where there is none."""
    path = checkpoint / "run.json"
    return _json(path) if path.is_file() else {}


def read_stream(checkpoint: Path) -> dict[str, Any]:
    """Return where a checkpoint's streams stand; ValueError where its run had none."""
    path = checkpoint / STREAM_FILE
    if not path.is_file():
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: its run read no stream (there is no {STREAM_FILE}): resume "
            "without --streaming, or start from its weights with --model_name_or_path"
        )
    return _json(path)


def is_finished(checkpoint: Path, output_dir: Path, steps: int) -> bool:
    """Return whether `output_dir` holds the end of a run of `steps` steps, made from this checkpoint.

    The files of an end are moved to their places with config.json as the last. An end of other weights is an earlier
    run's, or of fewer steps.
    """
    if _json(checkpoint / "trainer_state.json")["global_step"] < steps or not (output_dir / "config.json").is_file():
        return False
    is_adapter = (checkpoint / "adapter_config.json").is_file()
    names = ["adapter_model.safetensors"] if is_adapter else [path.name for path in written_weights(checkpoint)]
    end = output_dir / "adapter" if is_adapter else output_dir
    return all((end / name).is_file() and filecmp.cmp(checkpoint / name, end / name, shallow=False) for name in names)


def refuse_other_recipe(checkpoint: Path, recipe: Recipe) -> None:
    """Raise ValueError where the checkpoint was trained by another recipe, whose parts alone its optimiser knows."""
    trained = read_record(checkpoint).get("recipe", {}).get("name", recipe.name)
    if trained != recipe.name:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} was trained as {trained}, but these flags ask for {recipe.name}: "
            f"resume with --recipe {trained}, or start from its weights with --model_name_or_path"
        )


def refuse_other_model(checkpoint: Path, model: torch.nn.Module) -> None:
    """Raise ValueError for a checkpoint of another grid or size; an adapter names its base when it is loaded."""
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
    for field, there, here in (("grids", saved.grids, config.grids), ("fit", saved.fit, config.fit)):
        if there != here:
            raise ValueError(
                f"--resume_from_checkpoint {checkpoint} was trained with {field}={there}, and this run would go on "
                f"with {field}={here}: give the same --{field}, or start from its weights with --model_name_or_path"
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
    record = read_record(checkpoint)
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
    before = read_record(checkpoint).get("cpu_threads", now)
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
