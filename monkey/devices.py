"""On which device a model computes, and in which type: what was asked for, and what there is.

Cards before Ampere (compute capability 8.0), such as V100, T4 and RTX 20, compute in float16 and not in bfloat16, which
PyTorch emulates there without a word. Apple's GPUs (`mps`) know no float64. Nobody has tried this project on one, so
that answers are computed there where it is named, never unasked.
"""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ALL_CARDS = "sequential"
"""What transformers calls a model that fills one CUDA device after the other."""

FIRST_WITH_BFLOAT16 = (8, 0)
"""Compute capability of the first CUDA devices that compute in it."""


def choose_device(name: str | None, flag: str = "--device") -> str:
    """Return the device of a model: the one named, else a CUDA device where there is one.

    Args:
        flag: what errors call the setting.

    Raises:
        ValueError: no such device, or none that torch can compute on here.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"{flag} {name} is no device that torch knows; use cpu, cuda, cuda:N, or mps on a Mac"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{flag} {name}: torch {torch.__version__} sees no CUDA device; leave {flag} out to run on the CPU"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{flag} {name}: there are only {torch.cuda.device_count()} CUDA devices, counted from 0")
    if device.type == "cpu" and device.index:
        raise ValueError(f"{flag} {name}: there is one CPU; use cpu")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device.type not in ("cpu", "cuda", accelerator and accelerator.type):
        raise ValueError(
            f"{flag} {name}: torch {torch.__version__} cannot compute on it here; leave {flag} out, or use cpu, cuda, "
            "cuda:N, or mps on a Mac"
        )
    return name


def choose_place(name: str) -> str:
    """Return what transformers calls the place of a model that may be spread over several devices.

    Args:
        name: as of `choose_device`, or "auto": the CUDA device where there is one, all where there are several.
    """
    if name != "auto":
        return choose_device(name, "device")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return "cpu" if not cards else "cuda" if cards == 1 else ALL_CARDS


def half_precision(place: str) -> torch.dtype:
    """Return bfloat16, or float16 where a device of `place` (as of `choose_place`) does not compute in bfloat16."""
    return torch.float16 if _lacking_bfloat16(place) else torch.bfloat16


def choose_dtype(name: str | None, place: str) -> str:
    """Return the name of the type to evaluate in: the one named, else a CUDA device's half precision, else float32.

    Raises:
        ValueError: bfloat16 is named, and a device does not compute in it.
    """
    if name is not None:
        check_dtype(DTYPES[name], place, f"dtype {name}")
        return name
    if not place.startswith(("cuda", ALL_CARDS)):
        return "float32"
    return str(half_precision(place)).removeprefix("torch.")


def check_dtype(
    dtype: torch.dtype, place: str, setting: str, instead: str = "take float16 or float32, or leave it out"
) -> None:
    """Raise ValueError for bfloat16 on a device that does not compute in it.

    Args:
        setting: what asks for the type, as errors call it.
        instead: what to do, as errors say it.
    """
    lacking = _lacking_bfloat16(place) if dtype == torch.bfloat16 else None
    if lacking:
        raise ValueError(f"{setting}: {lacking} does not compute in bfloat16: {instead}")


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs, which have none wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def _lacking_bfloat16(place: str) -> str | None:
    """Return what a device is called that does not compute in bfloat16; None where all do."""
    if place.startswith("mps"):
        return None if torch.backends.mps.is_macos_or_newer(14, 0) else "a Mac before macOS 14"
    if torch.version.hip or not place.startswith(("cuda", ALL_CARDS)):
        return None
    index = None if place == ALL_CARDS else torch.device(place).index
    if place == "cuda":
        index = torch.cuda.current_device()
    for card in range(torch.cuda.device_count()) if index is None else [index]:
        capability = torch.cuda.get_device_capability(card)
        if capability < FIRST_WITH_BFLOAT16:
            version, first = (".".join(map(str, pair)) for pair in (capability, FIRST_WITH_BFLOAT16))
            return f"{torch.cuda.get_device_name(card)} (compute capability {version}, below {first})"
    return None
