"""The doors through which the tests of `tests/golden/outside` reach the project: all that they know of its inside.

The tests themselves know programs, the public names of the README, and files. Whoever moves what stands behind a door
changes the door, not what is recorded; what a door returns is said by its docstring.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import forked

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ROOT / "tests" / "golden" / "outside"
SMALL = ROOT / "models" / "small"
IMAGE_ROOT = OUTSIDE
"""Where `images/` has the 27 documents that the records are about."""

PATIENCE = 600
"""Seconds after which a program that must end is taken not to."""


# To the inside


def encode_records(path: Path, image_root: Path, checkpoint: Path) -> list[dict[str, Any]]:
    """The training records of a file as samples, in order.

    Each has `ids` and `labels` (lists of equal length, -100 where nothing is learnt) and `images` (paths).
    """
    from monkey import MonkeyProcessor
    from monkey.data.dataset import ConversationDataset
    from monkey.data.mixture import open_records

    records = open_records(path, image_root)
    samples = ConversationDataset(records, MonkeyProcessor.from_pretrained(checkpoint), max_length=2048)
    return [
        {"ids": list(sample["input_ids"]), "labels": list(sample["labels"]), "images": list(records[number].images)}
        for number, sample in ((number, samples[number]) for number in range(len(samples)))
    ]


def finetune(words: Sequence[str]) -> int:
    """Exit status of `python finetune_multitask.py WORDS`, run in this process, which has torch imported already."""
    import finetune_multitask

    return finetune_multitask.main(list(words))


# To programs


def environment(**more: str) -> dict[str, str]:
    """This process's own without what a launcher or a user may have set, and with one thread."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OPENAI_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    own = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**kept, **own, "PYTHONPATH": path, **more}


def run_program(*words: str | Path, fresh: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
    """A program from the repository's root, to its end: `*.sh` by bash, all else (`x.py`, `-m x`) by this Python.

    Args:
        fresh: by an interpreter of its own, which `*.sh` starts in any case; else in a process that has the libraries.
    """
    words = tuple(map(str, words))
    if words[0].endswith(".sh") or fresh:
        command = ["bash" if words[0].endswith(".sh") else sys.executable, *words]
        return subprocess.run(
            command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    with tempfile.TemporaryDirectory() as folder:
        return forked.run(words, ROOT, environment(**more), Path(folder), PATIENCE)


def succeeded(*words: str | Path, fresh: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
    """`run_program`, which must end with exit status 0."""
    ended = run_program(*words, fresh=fresh, **more)
    assert ended.returncode == 0, f"{words}: {ended.returncode}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    return ended


@contextlib.contextmanager
def program_at_work(*words: str | Path, log: Path, **more: str) -> Iterator[forked.Forked]:
    """A program that runs until the block ends; what it says goes to `log`."""
    program = forked.start(forked.run_words, [*map(str, words)], cwd=ROOT, env=environment(**more), stdout=log)
    try:
        yield program
    finally:
        program.send_signal(signal.SIGTERM)
        try:
            program.wait(60)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_open(url: str, program: forked.Forked, log: Path) -> None:
    """Until the address answers 200; RuntimeError where the program has ended or takes too long."""
    import time

    import httpx

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=10).status_code == 200:
                return
        if program.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer: {log.read_text()[-2000:]}")


# Checkpoints


def float32_copy(folder: Path) -> Path:
    """`models/small` in full precision, in which the answers of all ways to ask are equal."""
    import torch

    from monkey import MonkeyForConditionalGeneration, MonkeyProcessor

    MonkeyForConditionalGeneration.from_pretrained(SMALL, dtype=torch.float32).save_pretrained(folder)
    MonkeyProcessor.from_pretrained(SMALL).save_pretrained(folder)
    shutil.copy(SMALL / "monkey_card.json", folder)
    return folder


def tiny_experts(folder: Path) -> Path:
    """Folder with `blip2`, `matcher`, `sam` and `florence2`: models with random weights, the same each time.

    A half-done run knows its models by their bytes, so another seed here would begin it anew.
    """
    from tests import describe_models

    for name in ("blip2", "matcher", "sam", "florence2"):
        describe_models.FAMILIES[name](folder / name)
    return folder


# What stands in the record in a shorter form


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def in_runs(ids: Sequence[int]) -> list[Any]:
    """Ids with each run of more than three equal ones as [id, count]."""
    short: list[Any] = []
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or ids[place] != ids[start]:
            count = place - start
            short += [[ids[start], count]] if count > 3 else [ids[start]] * count
            start = place
    return short


def without(content: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A mapping without these keys, at whatever depth."""

    def stripped(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: stripped(one) for name, one in value.items() if name not in names}
        return [stripped(one) for one in value] if isinstance(value, list) else value

    return stripped(content)


def asked_now(stderr: str) -> int:
    """How many rows `ask --input` says that it asked."""
    return int(re.search(r"([\d,]+) of them asked now", stderr)[1].replace(",", ""))
