"""What a run does a second: samples, tokens, supervised tokens, how full the rows are, FLOPs, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Set

import torch
import torch.distributed as dist

from monkey.configuration import MonkeyConfig
from monkey.data.batches import BatchContents
from monkey.training.flops import peak_flops, training_flops

_COUNTED = ("samples", "tokens", "slots", "supervised", "images", "model_flops", "hardware_flops")


class Meter:
    """Counts batches as they are trained on, and tells the rates since it was last asked.

    Args:
        flops_of: FLOPs of one batch's step, forward and backward: those of the model, and those that were done, which
            include what checkpointing computes again.
        peak_flops: FLOP/s that one device can do; None where that is not known.
        clock: seconds.
    """

    def __init__(
        self,
        flops_of: Callable[[BatchContents], tuple[float, float]],
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._flops_of = flops_of
        self._peak_flops = peak_flops
        self._clock = clock
        self._counts = dict.fromkeys(_COUNTED, 0.0)
        self._paused = 0.0
        self._since = clock()

    def count(self, contents: BatchContents) -> None:
        model_flops, hardware_flops = self._flops_of(contents)
        counted = (
            len(contents.sources),
            contents.tokens,
            contents.slots,
            contents.supervised,
            contents.images,
            model_flops,
            hardware_flops,
        )
        for name, value in zip(_COUNTED, counted, strict=True):
            self._counts[name] += value

    def leave_out(self, seconds: float) -> None:
        """Time since the last report that was no training: evaluations, checkpoints."""
        self._paused += seconds

    def since_last(self, device: torch.device) -> dict[str, float]:
        """Rates over all processes since the last call; every process calls it."""
        now = self._clock()
        seconds = max(now - self._since - self._paused, 1e-9)
        totals = torch.tensor([self._counts[name] for name in _COUNTED], dtype=torch.float64, device=device)
        processes = 1
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            processes = dist.get_world_size()
            dist.all_reduce(totals)
        counts = dict(zip(_COUNTED, totals.tolist(), strict=True))
        self._counts = dict.fromkeys(_COUNTED, 0.0)
        self._since, self._paused = now, 0.0
        rates = {
            "samples_per_second": counts["samples"] / seconds,
            "tokens_per_second": counts["tokens"] / seconds,
            "supervised_tokens": counts["supervised"],
            "images_per_second": counts["images"] / seconds,
            "fill_rate": counts["tokens"] / max(counts["slots"], 1),
            "tflops_per_device": counts["model_flops"] / seconds / processes / 1e12,
        }
        if self._peak_flops:
            rates["mfu"] = counts["model_flops"] / seconds / processes / self._peak_flops
            rates["hfu"] = counts["hardware_flops"] / seconds / processes / self._peak_flops
        if device.type == "cuda":
            rates["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            rates["memory_reserved_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
        return rates


def flops_counter(
    config: MonkeyConfig, trains: Set[str], lora_rank: int, vision_checkpointing: bool, decoder_checkpointing: bool
) -> Callable[[BatchContents], tuple[float, float]]:
    """What `Meter` asks for, by the formulas of `monkey.training.flops`."""

    def count(contents: BatchContents) -> tuple[float, float]:
        flops = training_flops(
            config,
            trains,
            contents.images,
            [own for own, _ in contents.runs],
            contents.supervised,
            prefixes=[prefix for _, prefix in contents.runs],
            lora_rank=lora_rank,
            vision_checkpointing=vision_checkpointing,
            decoder_checkpointing=decoder_checkpointing,
        )
        return flops.model, flops.hardware

    return count


def device_peak(device: torch.device, dtype: torch.dtype, given: float | None = None) -> float | None:
    """FLOP/s that MFU is a part of: `given` in TFLOP/s, a table's for a GPU, a quick matrix product's on a CPU."""
    if given is not None:
        return given * 1e12
    if device.type == "cuda":
        return peak_flops(torch.cuda.get_device_name(device), dtype)
    size = 1024
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
