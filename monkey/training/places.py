"""The folder of a run: what it may hold before, what a run leaves in it, how finished work gets to its place."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from monkey.training.arguments import Flags
from monkey.training.scoring import earlier_evaluations

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

MAKE_ROOM = "make room, then --resume_from_checkpoint True where checkpoints were saved"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ARCHIVE_WRITER = ("PytorchStreamWriter", "inline_container.cc")

_LOGGING_DIR = "TENSORBOARD_LOGGING_DIR"


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
        return
    # By another name first: what a killed run leaves of it must not look like a checkpoint.
    going = folder.with_name(f".{folder.name}.gone.partial")
    shutil.rmtree(going, ignore_errors=True)
    os.replace(folder, going)
    shutil.rmtree(going)


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


@contextlib.contextmanager
def writing(place: Path, advice: str) -> Iterator[None]:
    """A full disk under any of the libraries that write is one sentence, OSError, about `place`."""
    try:
        yield
    except FileNotFoundError:
        raise  # names a file of its own, and no room would bring it back
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save tells of a disk by an error of its archive's writer, or of the end that it cannot write after that.
        if isinstance(error, RuntimeError) and not any(name in str(error) for name in _ARCHIVE_WRITER):
            raise
        said = " ".join(str(error).split())
        if isinstance(error, RuntimeError):  # whose words are about positions in an archive
            nearest = next(path for path in (place, *place.absolute().parents) if path.exists())
            said = f"torch could write no further, {shutil.disk_usage(nearest).free // 2**20:,} MiB are free there"
        raise OSError(f"{place} could not be written ({said}); {advice}") from error


@contextlib.contextmanager
def full_disk_named(output_dir: Path) -> Iterator[None]:
    """A full disk under whatever else writes, logs for instance, is one sentence that names its file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        place = error.filename or output_dir
        raise OSError(f"{place} could not be written ({error.strerror}); {MAKE_ROOM}") from error


def checkpoint_to_resume(flags: Flags) -> str | None:
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
    written = [*weight_files(output_dir), *(output_dir / name for name in _RUN_FILES), *earlier_evaluations(output_dir)]
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


def clear_places(flags: Flags, resume_from: str | None) -> None:
    """Remove what an interrupted run left half-written, and with --overwrite_output_dir its checkpoints."""
    if flags.training.process_index:
        return
    output_dir = Path(flags.training.output_dir)
    for partial in output_dir.glob(".*.partial"):
        shutil.rmtree(partial)  # what a run that was killed had not finished
    if resume_from is None and flags.training.overwrite_output_dir:
        # A later resume would take the furthest of them.
        for folder in (*checkpoints(output_dir), *earlier_evaluations(output_dir)):
            remove_checkpoint(folder)


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
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished and not had_logs and not checkpoints(folder):
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
