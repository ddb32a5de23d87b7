"""How fast a run trains: samples, tokens and FLOPs per second, and the share of the device's peak."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from monkey.configuration import MonkeyConfig
from monkey.data.packing import BatchContents
from monkey.devices import widest_float
from monkey.grids import Grid
from monkey.training.memory import StepSize, by_depth, dry_model, dry_step
from monkey.training.recipes import Recipe


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of training on a batch, forward and backward, by what it holds.

    One multiply-accumulate is two. `pair` is of a query and a key that it sees; causal attention has half of all.
    Where images lie on grids of their own, `window` is of a window and `image` of what each has besides, its global
    view; else `image` is of all of it.
    """

    image: float
    token: float
    pair: float
    supervised: float
    window: float = 0.0

    def of(self, contents: BatchContents) -> float:
        pairs = sum(own**2 / 2 + own * prefix for own, prefix in contents.runs)
        return (
            self.image * contents.images
            + self.window * contents.windows
            + self.token * sum(own for own, _ in contents.runs)
            + self.pair * pairs
            + self.supervised * contents.supervised
        )

    def __str__(self) -> str:
        window = f"{self.window:.3g} per window, " if self.window else ""
        return (
            f"model FLOPs, counted by PyTorch on one step in bf16 with SDPA, without checkpointing: {self.image:.3g} "
            f"per image, {window}{self.token:.3g} per token, {self.pair:.3g} per query and key (causal attention counts"
            f" half), {self.supervised:.3g} per supervised token\n"
            "MFU = model FLOPs / (seconds · devices · peak); checkpointing's recomputation counts in HFU only"
        )


def count_flops(
    config: MonkeyConfig, recipe: Recipe, lora_rank: int = 32, checkpointing: tuple[bool, bool] = (False, False)
) -> StepFlops:
    """Count the operations of a training step once, on tensors without storage.

    Args:
        checkpointing: of vision transformer and decoder; what they compute again counts too.
    """
    if not config.is_ragged:
        return _count_flops(config.to_json_string(use_diff=False), recipe, lora_rank, checkpointing)
    one, two = (count_flops(_on_one_grid(config, (1, columns)), recipe, lora_rank, checkpointing) for columns in (1, 2))
    window = two.image - one.image
    return replace(one, image=one.image - window, window=window)


def _on_one_grid(config: MonkeyConfig, grid: Grid) -> MonkeyConfig:
    fixed = copy.deepcopy(config)
    fixed.grid, fixed.grids = grid, None
    return fixed


@functools.lru_cache(maxsize=64)
def _count_flops(config: str, recipe: Recipe, lora_rank: int, checkpointing: tuple[bool, bool]) -> StepFlops:
    whole = MonkeyConfig.from_dict(json.loads(config))
    size = StepSize(images=1, rows=1, tokens=whole.image_tokens + 2, supervised=1)

    def trace(shallow: MonkeyConfig) -> dict[str, float]:
        marks: dict[str, Mapping[Any, int]] = {}
        with FakeTensorMode():
            model = dry_model(shallow, recipe, (torch.bfloat16, torch.bfloat16), checkpointing, lora_rank)
            with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
                dry_step(model, size, lambda part: marks.update({part: _counts(counter)}))
                marks["end"] = _counts(counter)
        return _by_part(marks)

    flops = by_depth(trace, whole, depth=1)  # each layer after the first adds the same
    token, pair = flops["decoder"] / size.tokens, flops["attention"] / size.tokens**2
    return StepFlops(flops["vision"], token, pair, flops["loss"])


def _counts(counter: FlopCounterMode) -> dict[Any, int]:
    return dict(counter.get_flop_counts().get("Global", {}))


def _by_part(marks: Mapping[str, Mapping[Any, int]]) -> dict[str, float]:
    """Return what was counted from each mark to the next, by part of the model; the decoder's attention by itself."""
    flops = dict.fromkeys(("vision", "decoder", "attention", "loss"), 0.0)
    for part, following in itertools.pairwise(marks):
        where = next((name for name in ("vision", "loss") if part.startswith(name)), "decoder")
        for operation, count in marks[following].items():
            is_attention = where == "decoder" and "attention" in str(operation)
            flops["attention" if is_attention else where] += count - marks[part].get(operation, 0)
    return flops


def _attention(query, key, value, *_args, **_settings) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(_gradient, query, key, value, *_args, **_settings) -> int:
    # Four products for the forward pass's two; what flash attention computes again inside is left out, as is customary.
    return 2 * sdpa_flop_count(query, key, value)


def _in_place_product(_, first, second, **_settings) -> int:
    return 2 * first[0] * first[1] * first[2] * second[2]


# Operations that PyTorch's counter does not know.
_UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.aten.baddbmm_: _in_place_product,
}

# Part of a device's name (lower case; the first that fits counts) -> peak by type, dense, accumulating in fp32 as
# training does, at boost clock. fp32 is without TF32. Sources are NVIDIA's documents of each product: data sheets of
# H200, H100 (sparse figures, halved), A100, L40S, L40, L4, A40, A30, A10, V100 and T4; the GA102 white paper (RTX 3090,
# A6000) and the Ada white paper (RTX 4090, RTX 6000 Ada), where accumulation in fp32 has a figure of its own.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("h200", {"half": 989e12, "fp32": 67e12}),
    ("gh200", {"half": 989e12, "fp32": 67e12}),
    ("h100 pcie", {"half": 756e12, "fp32": 51e12}),
    ("h100 nvl", {"half": 835e12, "fp32": 60e12}),
    ("h100", {"half": 989e12, "fp32": 67e12}),
    ("h800 pcie", {"half": 756e12, "fp32": 51e12}),
    ("h800", {"half": 989e12, "fp32": 67e12}),
    ("a100", {"half": 312e12, "fp32": 19.5e12}),
    ("a800", {"half": 312e12, "fp32": 19.5e12}),
    ("l40s", {"half": 362e12, "fp32": 91.6e12}),
    ("l40", {"half": 181e12, "fp32": 90.5e12}),
    ("l4", {"half": 121e12, "fp32": 30.3e12}),
    ("a40", {"half": 149.7e12, "fp32": 37.4e12}),
    ("a30", {"half": 165e12, "fp32": 10.3e12}),
    ("a10", {"half": 125e12, "fp32": 31.2e12}),
    ("rtx 6000 ada", {"half": 364e12, "fp32": 91.1e12}),
    ("a6000", {"half": 154.8e12, "fp32": 38.7e12}),
    ("rtx 4090", {"half": 165e12, "fp32": 82.6e12}),
    ("rtx 3090 ti", {"half": 80e12, "fp32": 40e12}),
    ("rtx 3090", {"half": 71e12, "fp32": 35.6e12}),
    # Neither has bfloat16.
    ("v100", {"float16": 125e12, "fp32": 15.7e12}),
    ("t4", {"float16": 65e12, "fp32": 8.1e12}),
)


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Return the peak dense operations per second of a GPU, None for an unknown one or a type that it lacks.

    Args:
        device_name: as `torch.cuda.get_device_name` says it.
    """
    words = f" {device_name.lower().replace('-', ' ')} "
    peaks = next((peaks for name, peaks in _PEAKS if f" {name} " in words), {})
    if dtype == torch.float32:
        return peaks.get("fp32")
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    own = peaks.get("float16") if dtype == torch.float16 else None
    return own or peaks.get("half")


@functools.cache
def device_peak(device: torch.device, dtype: torch.dtype, given: float | None = None) -> float | None:
    """Return the FLOP/s that MFU is a part of: `given` in TFLOP/s, a table's, on a CPU a quick product's, or None.

    Measured once in a process.
    """
    if given is not None:
        return given * 1e12
    if device.type == "cuda":
        return peak_flops(torch.cuda.get_device_name(device), dtype)
    if device.type != "cpu":
        return None
    size = 1024
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


_COUNTED = ("samples", "tokens", "slots", "supervised", "images", "windows", "model_flops", "hardware_flops")


class Meter:
    """Counts batches as they are trained on, and tells the rates since it was last asked.

    Args:
        model_flops: of a batch's step.
        hardware_flops: those that are done, which include what checkpointing computes again.
        peak_flops: FLOP/s that one device can do; None where that is not known.
        clock: seconds.
    """

    def __init__(
        self,
        model_flops: StepFlops,
        hardware_flops: StepFlops,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._flops = model_flops, hardware_flops
        self._peak_flops = peak_flops
        self._clock = clock
        self._counts = dict.fromkeys(_COUNTED, 0.0)
        self._paused = 0.0
        self._since = clock()

    def count(self, contents: BatchContents) -> None:
        sizes = len(contents.sources), contents.tokens, contents.slots, contents.supervised
        flops = (each.of(contents) for each in self._flops)
        for name, value in zip(_COUNTED, (*sizes, contents.images, contents.windows, *flops), strict=True):
            self._counts[name] += value

    def leave_out(self, seconds: float) -> None:
        """Take time since the last report for no training: evaluations, checkpoints."""
        self._paused += seconds

    def since_last(self, device: torch.device) -> dict[str, float]:
        """Return the rates over all processes since the last call; every process calls it."""
        now = self._clock()
        seconds = max(now - self._since - self._paused, 1e-9)
        totals = torch.tensor([self._counts[name] for name in _COUNTED], dtype=widest_float(device), device=device)
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
        if counts["windows"]:
            rates["windows_per_second"] = counts["windows"] / seconds
        if self._peak_flops:
            rates["mfu"] = counts["model_flops"] / seconds / processes / self._peak_flops
            rates["hfu"] = counts["hardware_flops"] / seconds / processes / self._peak_flops
        if device.type == "cuda":
            rates["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            rates["memory_reserved_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
        return rates
