"""Several runs of the trainer, one after another, in each of several processes with the variables that torchrun sets.

JOBS.json lists runs as the words of `finetune_multitask.py`. Starting processes costs more than a tiny run does, so
the tests give many to one launch. Process R writes JOBS.R.json: for each run null, or the sentence that it ended with.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

from monkey.training.arguments import parse_flags
from monkey.training.finetune import Stopped, finetune


def without_compiler() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives, half a minute on a cold machine; gloo does."""
    if importlib.util.find_spec("deepspeed") is None:
        return
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def run(words: list[str]) -> str | None:
    try:
        finetune(parse_flags(words))
    except (ValueError, OSError, Stopped) as ended:
        return str(ended)
    return None


def main(jobs: Path) -> None:
    without_compiler()
    ended = [run(words) for words in json.loads(jobs.read_text(encoding="utf-8"))]
    jobs.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(ended), encoding="utf-8")
