"""Time and memory of two sides in one process, in turn, as medians and ratios.

These machines are noisy: the sides alternate, and each ratio is the median over the pairs of neighbouring runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def arguments(description: str) -> argparse.ArgumentParser:
    """Flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute on two cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side that count")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def seconds(run: Callable[[], Any], device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call, of the wall or by another clock, the device's queue emptied before and after."""
    finish(device)
    start = clock()
    run()
    finish(device)
    return clock() - start


def compare(
    baseline: Callable[[], Any],
    ours: Callable[[], Any],
    repeats: int,
    device: str,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Median seconds of the baseline and of ours, and the median ratio baseline / ours over alternating pairs.

    Without `warm_up` both sides must have run before.
    """
    if warm_up:
        baseline()
        ours()
    pairs = [(seconds(baseline, device, clock), seconds(ours, device, clock)) for _ in range(repeats)]
    return (
        statistics.median(pair[0] for pair in pairs),
        statistics.median(pair[1] for pair in pairs),
        statistics.median(pair[0] / pair[1] for pair in pairs),
    )


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """Most bytes of tensors alive at once during the call, above those alive before it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    alive = peak = 0
    for _, size in sorted(_allocations(profile.profiler.kineto_results.experimental_event_tree())):
        alive += size
        peak = max(peak, alive)
    return peak


def matmul_rate(device: str, dtype: torch.dtype, size: int = 2048, repeats: int = 7) -> float:
    """FLOP/s of the machine's own square matrix product, the median of several."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / statistics.median(seconds(lambda: torch.mm(a, b), device) for _ in range(repeats))


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def report(
    benchmark: str, ratios: dict[str, float], settings: dict[str, Any], figures: dict[str, Any] | None = None
) -> None:
    """Print the result as the last line, one JSON object; `figures` are what the machine did, as it is."""
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    if str(settings.get("device", "")).startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name()
    rounded = {name: round(value, 4) for name, value in ratios.items()}
    more = {"figures": figures} if figures else {}
    print(json.dumps({"benchmark": benchmark, "ratios": rounded, **more, "settings": {**settings, **machine}}))


def finish(device: str) -> None:
    """Wait for the device's queue."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _allocations(events) -> list[tuple[int, int]]:
    """(time, bytes) of every allocation, negative for a release."""
    found = []
    for event in events:
        if hasattr(event.extra_fields, "alloc_size"):
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
        found.extend(_allocations(event.children))
    return found
