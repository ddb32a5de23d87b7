"""What stops a run: numbers that are not finite, frozen parameters that move, and the scheduler's signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from monkey.data.dataset import SIGNALS

# torchrun hands Ctrl-C on to processes that the terminal has told already.
_LAUNCHED = "TORCHELASTIC_RUN_ID"

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is raised in any process; all of them must ask."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return flag
    raised = torch.tensor(int(flag), device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def gathered(value: Any) -> list[Any]:
    """The value of every process, in their order; all of them must ask."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def checksum(parameter: torch.Tensor) -> int:
    """Sum of a parameter's bytes read as integers: any single change moves it."""
    # Where ZeRO-3 shards a parameter, this process has a slice of it.
    held = getattr(parameter, "ds_tensor", parameter).detach()
    return int(held.contiguous().view(_INTEGERS[held.element_size()]).sum(dtype=torch.int64))


class FrozenGuard(TrainerCallback):
    """Refuses a checkpoint, or the end of a run, when a parameter that should be frozen has moved."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]]):
        self._frozen = [(name, parameter) for name, parameter in named_parameters if not parameter.requires_grad]
        self._checksums: list[int] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._checksums = [checksum(parameter) for _, parameter in self._frozen]

    def check(self, step: int) -> None:
        """ValueError naming the parameters that moved."""
        if not self._checksums:
            return
        moved = [
            name
            for (name, parameter), before in zip(self._frozen, self._checksums, strict=True)
            if checksum(parameter) != before
        ]
        if moved:
            raise ValueError(
                f"step {step}: {len(moved)} frozen parameters moved, for instance {moved[0]}; what was trained is not "
                "what the recipe says, so nothing more is saved"
            )

    def on_train_end(self, args, state, control, **kwargs):
        self.check(state.global_step)


class StopOnSignal(TrainerCallback):
    """On SIGTERM, SIGUSR1 or Ctrl-C in any process: finish the step, write a checkpoint, stop all of them.

    A second Ctrl-C stops at once, by KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.stopped_at: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        def remember(number: int, _frame: Any) -> None:
            if number == signal.SIGINT and _LAUNCHED not in os.environ:
                if self.received == signal.SIGINT:
                    raise KeyboardInterrupt
                # Not print, which the signal may have interrupted.
                os.write(2, b"\nCtrl-C: the run stops after this step and saves its state; again to stop at once\n")
            if self.received is None:
                self.received = number

        try:
            # What is ignored stays so: a job behind `nohup` or `&` is not meant by the terminal's Ctrl-C.
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, remember) for number in heard}
        except ValueError:  # not the main thread, which alone may handle signals
            self._before = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if any_process(self.received is not None, args.device):
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
