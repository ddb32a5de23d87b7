"""Requests in batches with their images decoded, made ahead of the model in DataLoader workers.

Requests about one image follow each other, so that it is decoded once. Where a batch ends between two of them, the next
one goes on with the image as the model has read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from eval.backends import Failure, Request
from monkey.processing import MonkeyProcessor


@dataclass(frozen=True)
class PlannedBatch:
    """Requests to be asked together. `carried` is the image that the batch before leaves for the first of them, and
    `kept` the one that this batch leaves."""

    requests: tuple[Request, ...]
    carried: Path | None = None
    kept: Path | None = None


@dataclass(frozen=True)
class PreparedBatch:
    """Requests that can be asked, the ids of their prompts, their images on the CPU, and the failures of the others."""

    requests: tuple[Request, ...]
    prompts: tuple[tuple[int, ...], ...]
    images: tuple[Path, ...]
    """Those that were opened: every different one of the requests but the carried one."""
    canvases: torch.Tensor | None
    """Bytes [len(images), 3, H, W] as `MonkeyImageProcessor.canvas` gives them."""
    failures: tuple[Failure, ...]
    kept: Path | None = None


def plan_batches(requests: Sequence[Request], batch_size: int) -> list[PlannedBatch]:
    """Batches of `batch_size` requests, and one of the rest; requests that begin with one image follow each other."""
    by_image: dict[Path, list[Request]] = {}
    for request in requests:
        by_image.setdefault(request.images[0], []).append(request)
    ordered = [request for group in by_image.values() for request in group]
    parts = [tuple(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]
    # What each two neighbouring batches share; nothing before the first and after the last.
    shared = [
        last.images[0] if last.images[0] == first.images[0] else None for (*_, last), (first, *_) in pairwise(parts)
    ]
    return [
        PlannedBatch(part, carried, kept)
        for part, carried, kept in zip(parts, [None, *shared], [*shared, None], strict=True)
    ]


def prepare(processor: MonkeyProcessor, plan: PlannedBatch) -> PreparedBatch:
    """Open each image once and encode the prompts; what users wrote is inert text, whatever characters it holds.

    A request whose image does not open, or whose prompt is too long, becomes a failure and leaves the others alone.
    """
    canvases: dict[Path, np.ndarray] = {}
    faults: dict[Path, Exception] = {}
    ready, prompts, failures = [], [], []
    for request in plan.requests:
        try:
            prompt = processor.encode(request.conversation).ids
            for image in dict.fromkeys(request.images):
                if image != plan.carried:
                    _open(processor, image, canvases, faults)
        except (OSError, ValueError) as error:
            failures.append(failure_of(request, error))
            continue
        ready.append(request)
        prompts.append(tuple(prompt))
    stacked = torch.from_numpy(np.stack(list(canvases.values()))) if canvases else None
    return PreparedBatch(tuple(ready), tuple(prompts), tuple(canvases), stacked, tuple(failures), plan.kept)


def prepare_batch(processor: MonkeyProcessor, requests: Sequence[Request]) -> PreparedBatch:
    """A batch that shares nothing with others."""
    return prepare(processor, PlannedBatch(tuple(requests)))


def failure_of(request: Request, error: Exception) -> Failure:
    return Failure(request.row, f"{request.question.source}: {error}")


def _open(
    processor: MonkeyProcessor, image: Path, canvases: dict[Path, np.ndarray], faults: dict[Path, Exception]
) -> None:
    """Decode an image that was not met before; raise what was wrong with it each time that it is met."""
    if image in faults:
        raise faults[image]
    if image in canvases:
        return
    try:
        canvases[image] = processor.image_processor.canvas(image)
    except (OSError, ValueError) as error:
        faults[image] = error
        raise
