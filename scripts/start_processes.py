"""torchrun, except that a program which has said what is wrong is not followed by a page about its processes, and that
SIGUSR1 is handed on to them, which end after a step with a checkpoint; torchrun alone would end by it and leave them.

    python scripts/start_processes.py --standalone --nproc_per_node 2 finetune_multitask.py FLAGS

Every flag: torchrun's. Exit status: that of the first process that failed.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

SAID = 2
"""Exit status of a program that has printed what is wrong."""


def hand_on(number: int, _frame: FrameType | None) -> None:
    """Send a signal to the processes that were started here, and wait for them as before, however long they take."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def main(words: list[str]) -> int:
    if hasattr(signal, "SIGUSR1"):  # Windows has none
        signal.signal(signal.SIGUSR1, hand_on)
    # It logs each failed process, and then raises about all of them.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        torchrun(words)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode != SAID and first.exitcode <= 128:  # above it, a run that a signal stopped has said so
            print(
                f"error: process {rank} ended with exit status {first.exitcode}; see its lines above", file=sys.stderr
            )
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
