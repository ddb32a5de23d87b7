"""The `hf` backend: our model answers, greedily, and reads each image once for all questions about it.

Images are decoded in DataLoader workers, ahead of the model; the rest is `monkey.engine`. Requests about one
image follow each other, so that it is decoded once; where a batch ends between two of them, the next one goes on with
the image as the model has read it. As in the published evaluator
an answer has at least one token, ends at end-of-text or at the task's limit, and is decoded without
special tokens.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import GenerationConfig
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

from eval.backends import STOPPED_AT_END, STOPPED_AT_LENGTH, Answer, Failure, Request
from monkey import MonkeyForConditionalGeneration, MonkeyProcessor, checkpoint_files
from monkey.checkpoint_files import weight_files
from monkey.decoding import Decoding
from monkey.engine import Canvas, Engine
from monkey.engine import Request as EngineRequest
from monkey.files import base_of, checkpoint_file, required_file

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


class ModelBackend:
    """Answers with a Monkey checkpoint.

    Args:
        checkpoint: a folder, PEFT's adapter folders included, or a hub name in the offline cache.
        device: 'cpu', 'cuda', 'cuda:1', …; None takes a GPU where there is one.
        dtype: a name of DTYPES; None takes bfloat16 on a GPU that has it and float32 elsewhere.
        grid: (rows, columns) of windows, None for the checkpoint's own. A PEFT adapter has only the one it has.
        num_workers: processes that decode images ahead; 0 decodes in this one.

    Raises:
        FileNotFoundError, ValueError: the checkpoint does not open, a GPU is asked for and there is none, or a grid
            for an adapter.
    """

    name = "hf"

    def __init__(
        self,
        checkpoint: str,
        device: str | None = None,
        dtype: str | None = None,
        grid: tuple[int, int] | None = None,
        num_workers: int = 2,
        seed: int = 3407,
    ):
        if grid is not None and base_of(checkpoint) is not None:
            raise ValueError(
                f"--grid {','.join(map(str, grid))}: {checkpoint} is an adapter, trained for one grid; leave --grid "
                "out, or name the merged checkpoint"
            )
        torch.manual_seed(seed)
        device = choose_device(device)
        dtype = choose_dtype(dtype, device)
        fingerprint = checkpoint_fingerprint(checkpoint)
        processor = MonkeyProcessor.from_pretrained(checkpoint, grid=grid)
        model = MonkeyForConditionalGeneration.from_pretrained(checkpoint, grid=grid, dtype=DTYPES[dtype])
        model = model.to(device).eval()
        # The checkpoint's generation settings (sampling, the stop words of its chat) are no part of an evaluation.
        model.generation_config = GenerationConfig()
        self._hold(model, processor, dtype, fingerprint, num_workers)

    @classmethod
    def around(
        cls, model: nn.Module, processor: MonkeyProcessor, fingerprint: str, num_workers: int = 2
    ) -> ModelBackend:
        """A backend of a model that is open already, of its device, dtype and grid; nothing of the model is changed.

        Args:
            model: a Monkey, PEFT's layers in it or not, in evaluation mode and with plain generation settings
                (`monkey.training.trainer.undisturbed`).
            fingerprint: stands for the model's bytes.
        """
        weights = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        dtype = next(name for name, kind in DTYPES.items() if kind == weights)
        backend = cls.__new__(cls)
        backend._hold(model, processor, dtype, fingerprint, num_workers)
        if torch.is_autocast_enabled(backend.model.device.type):
            narrow = torch.get_autocast_dtype(backend.model.device.type)
            backend.settings["dtype"] = f"{dtype}, computed in {str(narrow).removeprefix('torch.')}"
        return backend

    def _hold(self, model: nn.Module, processor: Any, dtype: str, fingerprint: str, num_workers: int) -> None:
        self.model, self.processor = model, processor
        self.device, self.dtype = str(model.device), dtype
        self.fingerprint = fingerprint
        self.num_workers = num_workers
        self.end_id = processor.tokenizer.eod_id
        # Between two batches stays what the last image's prefix takes, see `PreparedBatch.kept`.
        text = model.config.text_config
        width = 2 * text.num_key_value_heads * text.head_dim * text.num_hidden_layers * DTYPES[dtype].itemsize
        self.engine = Engine(model, processor, cache_bytes=width * (model.config.image_tokens + 2))
        self._kept: dict[Path, Canvas] = {}
        self._counts = {"prompts": 0, "prompt_tokens": 0, "new_tokens": 0}
        self.settings: dict[str, Any] = {
            "do_sample": False,
            "num_beams": 1,
            "min_new_tokens": 1,
            "eos_token_id": self.end_id,
            "pad_token_id": self.end_id,
            "dtype": dtype,
            "grid": list(model.config.grid),
        }

    @property
    def work(self) -> dict[str, float]:
        """What answering took so far, added up over batches, and the most memory that was in use at once."""
        stats = self.engine.stats
        return {
            "prompts": self._counts["prompts"],
            "images": stats.images,
            "prompt_tokens": self._counts["prompt_tokens"],
            "prefill_tokens": stats.read_tokens,
            "padding_tokens": 0,
            "new_tokens": self._counts["new_tokens"],
            "vision_seconds": stats.vision_seconds,
            "prefill_seconds": stats.prefill_seconds,
            "decode_seconds": stats.decode_seconds,
            "peak_bytes": peak_bytes(self.model.device),
        }

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterable[PreparedBatch]:
        """Batches of `batch_size`; requests about one image follow each other in them."""
        return DataLoader(
            plan_batches(requests, batch_size),
            batch_size=None,
            num_workers=min(self.num_workers, -(-len(requests) // batch_size)),
            collate_fn=partial(prepare, self.processor),
        )

    # Not inference mode: what the model caches there could not be used in a training step that follows.
    @torch.no_grad()
    def generate_answers(self, batch: PreparedBatch) -> list[Answer | Failure]:
        images, faults = self._open_images(batch)
        results: list[Answer | Failure] = list(batch.failures)
        asked, requests = [], []
        for request, prompt in zip(batch.requests, batch.prompts, strict=True):
            fault = next((faults[image] for image in request.images if image in faults), None)
            if fault is not None:
                results.append(failure_of(request, fault))
                continue
            limit = request.task.max_new_tokens
            canvases = [images[path] for path in request.images]
            ends = frozenset([self.end_id])
            requests.append(EngineRequest(list(prompt), canvases, Decoding(limit), limit, ends))
            asked.append(request)
        self._kept = {path: canvas for path, canvas in images.items() if path == batch.kept}
        return [*results, *self._ask(asked, requests)]

    def _ask(self, asked: Sequence[Request], requests: Sequence[EngineRequest]) -> list[Answer]:
        self.engine.max_rows = max(1, len(requests))
        generated = self.engine.run_greedily(requests)
        self._counts["prompts"] += len(requests)
        self._counts["prompt_tokens"] += sum(len(request.ids) for request in requests)
        self._counts["new_tokens"] += sum(map(len, generated))
        return [self._answer(request, ids) for request, ids in zip(asked, generated, strict=True)]

    def _open_images(self, batch: PreparedBatch) -> tuple[dict[Path, Canvas], dict[Path, Exception]]:
        """Return the images of a batch, and what is wrong with those that do not open.

        One that the batch before should have left is opened here where that batch could not: it failed, or ran out of
        memory and is asked again in other batches.
        """
        images, self._kept = self._kept, {}
        faults: dict[Path, Exception] = {}
        if batch.canvases is not None:
            opened = zip(batch.images, batch.canvases.numpy(), strict=True)
            images |= {path: Canvas(str(path).encode(), pixels) for path, pixels in opened}
        for path in {path: None for request in batch.requests for path in request.images}:
            if path in images:
                continue
            try:
                images[path] = Canvas(str(path).encode(), self.processor.image_processor.canvas(path))
            except (OSError, ValueError) as error:
                faults[path] = error
        return images, faults

    def _answer(self, request: Request, ids: list[int]) -> Answer:
        ended = self.end_id in ids
        ids = ids[: ids.index(self.end_id)] if ended else ids
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(request.row, text, len(ids), STOPPED_AT_END if ended else STOPPED_AT_LENGTH)


def peak_bytes(device: torch.device) -> int:
    """Most memory in use so far: of the GPU's tensors, or of this whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def choose_device(name: str | None) -> str:
    """The device to run on, or ValueError when one is asked for that torch does not see here."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name} is no device that torch knows; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device {name}: torch {torch.__version__} sees no CUDA device; leave --device out to run on the CPU"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices, counted from 0")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device.type not in ("cpu", "cuda", accelerator and accelerator.type):
        raise ValueError(
            f"--device {name}: torch {torch.__version__} cannot compute on it here; use cpu, cuda or cuda:N"
        )
    return name


def choose_dtype(name: str | None, device: str) -> str:
    """The dtype's name: bfloat16 on a GPU that computes in it, float32 elsewhere, unless one is named."""
    if name is not None:
        return name
    return "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"


def check_checkpoint(checkpoint: str) -> None:
    """Raise FileNotFoundError or ValueError for what cannot be a checkpoint, without reading its weights."""
    base = base_of(checkpoint)
    if base is None:
        _check_whole(checkpoint)
        return
    adapter_weights(checkpoint)
    try:
        _check_whole(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{checkpoint} is an adapter, and its base cannot be opened: {error}") from error


def _check_whole(checkpoint: str) -> None:
    required_file(checkpoint, "config.json", "the shape of the model")
    weight_files(checkpoint, {})


def adapter_weights(checkpoint: str) -> str:
    """The weight file of a PEFT adapter folder, or FileNotFoundError."""
    for name in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME):
        if (found := checkpoint_file(checkpoint, name)) is not None:
            return found
    raise FileNotFoundError(
        f"{checkpoint} holds no weights: neither {ADAPTER_SAFE_WEIGHTS_NAME} nor {ADAPTER_WEIGHTS_NAME}"
    )


def checkpoint_fingerprint(checkpoint: str) -> str:
    """Return the SHA-256 over every file of a checkpoint that a greedy answer depends on, weights and base included."""
    return checkpoint_files.checkpoint_fingerprint(checkpoint, sampled=False)
