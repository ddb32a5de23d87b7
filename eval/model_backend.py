"""The `hf` backend: our model answers, greedily, and reads each image once for all questions about it.

Images are decoded in DataLoader workers, ahead of the model; the rest is `monkey.engine`. Requests about one image
follow each other, and the engine keeps what it read of the last image for the batch that comes next. As in the
published evaluator an answer has at least one token, ends at end-of-text or at the task's limit, and is decoded without
special tokens.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import GenerationConfig
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

from eval.backends import STOPPED_AT_END, STOPPED_AT_LENGTH, Answer, Failure, Request
from monkey import MonkeyConfig, MonkeyForConditionalGeneration, MonkeyImageProcessor, MonkeyProcessor
from monkey.boxes import WHOLE, Share
from monkey.checkpoint_files import checkpoint_fingerprint, weight_files
from monkey.decoders import longest_sequence
from monkey.decoding import Decoding
from monkey.devices import DTYPES, choose_device, choose_dtype
from monkey.engine import Canvas, Engine
from monkey.engine import Request as EngineRequest
from monkey.files import base_of, checkpoint_file, required_file
from monkey.part_configs import cached_width
from monkey.reply import Detokenizer


@dataclass(frozen=True)
class Batch:
    """Requests that can be asked, what the model is given for them, and the failures of the others."""

    requests: tuple[Request, ...]
    inputs: Any
    failures: tuple[Failure, ...]


def load_batches(requests: Sequence[Request], batch_size: int, num_workers: int, prepare: Any) -> Iterable[Any]:
    """What `prepare` makes of each `batch_size` requests, ahead of their turn in processes of their own."""
    return DataLoader(
        requests,
        batch_size=batch_size,
        num_workers=min(num_workers, -(-len(requests) // batch_size)),
        collate_fn=prepare,
    )


def by_image(requests: Sequence[Request]) -> list[Request]:
    """The requests, those that begin with one image behind each other."""
    groups: dict[Path, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.images[0], []).append(request)
    return [request for group in groups.values() for request in group]


def prepare(
    processor: MonkeyProcessor, end_ids: frozenset[int], requests: Sequence[Request], longest: int | None = None
) -> Batch:
    """Open each image once and encode the prompts; what users wrote is inert text, whatever characters it holds.

    The decoder is exact up to `longest` tokens, see `monkey.decoders.longest_sequence`.
    A request whose image does not open, or whose prompt is too long, becomes a failure and leaves the others alone.
    """
    canvases: dict[Path, Canvas] = {}
    ready, inputs, failures = [], [], []
    for request in requests:
        try:
            asked = request.turns if processor.form == "decoder" else request.conversation
            ids = processor.encode(asked, max_length=longest, add_generation_prompt=True).ids
            for path in request.images:
                if path not in canvases:
                    canvases[path] = Canvas.read(path, processor.image_processor, digest=os.fsencode(path))
        except (OSError, ValueError) as error:
            failures.append(Failure(request.row, f"{request.question.source}: {error}"))
            continue
        limit = request.task.max_new_tokens
        images = [canvases[path] for path in request.images]
        ready.append(request)
        inputs.append(EngineRequest(list(ids), images, Decoding(limit), limit, end_ids))
    return Batch(tuple(ready), inputs, tuple(failures))


class ModelBackend:
    """Answers with a Monkey checkpoint.

    Args:
        checkpoint: a folder, PEFT's adapter folders included, or a hub name in the offline cache.
        device: 'cpu', 'cuda', 'cuda:1', …; None takes a GPU where there is one.
        dtype: a name of DTYPES; None takes bfloat16 on a CUDA device that computes in it, float16 on others, float32
            elsewhere.
        grid: (rows, columns) of windows, None for the checkpoint's own. A PEFT adapter has only the one it has.
        num_workers: processes that decode images ahead; 0 decodes in this one.
        grids, fit: the grids that images may take, and how they are put on them; None for the checkpoint's own.
        max_windows: leaves out grids of more windows.

    Raises:
        FileNotFoundError, ValueError: the checkpoint does not open, a GPU is asked for and there is none, bfloat16
            on one that does not compute in it, or a grid for an adapter.
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
        *,
        grids: str | Sequence[tuple[int, int]] | None = None,
        fit: str | None = None,
        max_windows: int | None = None,
    ):
        layout = {"grid": grid, "grids": grids, "fit": fit}
        if grid is not None and base_of(checkpoint) is not None:
            raise ValueError(
                f"--grid {','.join(map(str, grid))}: {checkpoint} is an adapter, trained for one grid; leave --grid "
                "out, or name the merged checkpoint"
            )
        if (grids is not None or fit is not None) and base_of(checkpoint) is not None:
            raise ValueError(
                f"--grids and --fit: {checkpoint} is an adapter, trained with what it has of both; leave them out, or "
                "name the merged checkpoint"
            )
        torch.manual_seed(seed)
        device = choose_device(device)
        dtype = choose_dtype(dtype, device)
        fingerprint = checkpoint_fingerprint(checkpoint, sampled=False)
        processor = MonkeyProcessor.from_pretrained(checkpoint, **layout)
        if max_windows is not None:
            processor = processor.limit_windows(max_windows)
        model = MonkeyForConditionalGeneration.from_pretrained(checkpoint, **layout, dtype=DTYPES[dtype])
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
        self.asks_in_turns = processor.form == "decoder"
        self.end_id, self.end_ids = processor.tokenizer.eod_id, processor.end_ids()
        # Between two batches stays what the last image's prefix takes.
        width = cached_width(model.config.text_config) * DTYPES[dtype].itemsize
        largest = max(map(model.config.tokens_of, model.config.allowed_grids))
        self.engine = Engine(model, processor, cache_bytes=width * (largest + 2))
        self._counts = {"prompts": 0, "prompt_tokens": 0, "new_tokens": 0}
        self.settings: dict[str, Any] = {
            "do_sample": False,
            "num_beams": 1,
            "min_new_tokens": 1,
            "eos_token_id": self.end_id if len(self.end_ids) == 1 else sorted(self.end_ids),
            "pad_token_id": self.end_id,
            "dtype": dtype,
            "grid": list(model.config.grid),
            **_shapes(model.config, processor.image_processor),
            **({} if processor.form == "plain" else {"form": processor.form}),
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

    def image_grids(self, images: Iterable[Path]) -> dict[Path, tuple[int, int]]:
        """Return the grid of each image that can be read; none where all have the one of `settings`."""
        processor, grids = self.processor.image_processor, {}
        for image in images if processor.is_ragged else ():
            with suppress(OSError, ValueError):
                grids[image] = processor.place(processor.measure(image)).grid
        return grids

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterable[Batch]:
        """Batches of `batch_size`; requests about one image follow each other in them."""
        longest = longest_sequence(self.model.config.text_config)
        prepare_own = partial(prepare, self.processor, self.end_ids, longest=longest)
        return load_batches(by_image(requests), batch_size, self.num_workers, prepare_own)

    # Not inference mode: what the model caches there could not be used in a training step that follows.
    @torch.no_grad()
    def generate_answers(self, batch: Batch) -> list[Answer | Failure]:
        self.engine.max_rows = max(1, len(batch.requests))
        generated = self.engine.run_greedily(batch.inputs)
        self._counts["prompts"] += len(batch.inputs)
        self._counts["prompt_tokens"] += sum(len(one.ids) for one in batch.inputs)
        self._counts["new_tokens"] += sum(map(len, generated))
        answers = [
            read_answer(request, ids, self.end_ids, self.processor.tokenizer, one.images[-1].share)
            for request, ids, one in zip(batch.requests, generated, batch.inputs, strict=True)
        ]
        return [*batch.failures, *answers]


def _shapes(config: MonkeyConfig, images: MonkeyImageProcessor) -> dict[str, Any]:
    """Settings about the shapes of images, where they are not the published ones; they are part of answers' keys."""
    settings = {"grids": config.grids, "fit": config.fit, "max_windows": images.max_windows}
    usual = {"grids": None, "fit": "stretch", "max_windows": None}
    return {name: value for name, value in settings.items() if value != usual[name]}


def read_answer(
    request: Request, ids: Sequence[int], end_ids: frozenset[int], tokenizer: Any, share: Share = WHOLE
) -> Answer:
    """The answer in new tokens, up to the first that ends it; its boxes become those of the image (`monkey.boxes`)."""
    end = next((place for place, token in enumerate(ids) if token in end_ids), None)
    if share == WHOLE:
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    else:
        detokenizer = Detokenizer(tokenizer, keep_markers=False, share=share)
        text = "".join([*map(detokenizer.push, ids[:end]), detokenizer.finish()])
    return Answer(request.row, text, len(ids[:end]), STOPPED_AT_LENGTH if end is None else STOPPED_AT_END)


def peak_bytes(device: torch.device) -> int:
    """Most memory in use so far: of the GPU's tensors, or of this whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_checkpoint(checkpoint: str) -> None:
    """Raise FileNotFoundError or ValueError for what cannot be a checkpoint, without reading its weights."""
    base = base_of(checkpoint)
    if base is not None and not any(
        checkpoint_file(checkpoint, name) for name in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME)
    ):
        raise FileNotFoundError(
            f"{checkpoint} holds no weights: neither {ADAPTER_SAFE_WEIGHTS_NAME} nor {ADAPTER_WEIGHTS_NAME}"
        )
    try:
        required_file(base or checkpoint, "config.json", "the shape of the model")
        weight_files(base or checkpoint, {})
    except FileNotFoundError as error:
        if base is None:
            raise
        raise FileNotFoundError(f"{checkpoint} is an adapter, and its base cannot be opened: {error}") from error
