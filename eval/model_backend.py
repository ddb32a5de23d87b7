"""The `hf` backend: our model answers, greedily, in left-padded batches.

Images are decoded and prompts encoded in DataLoader workers, ahead of the model. As in the published evaluator an
answer has at least one token, ends at end-of-text or at the task's limit, and is decoded without special tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import GenerationConfig
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

from eval.backends import STOPPED_AT_END, STOPPED_AT_LENGTH, Answer, Failure, Request
from eval.questions import file_digest
from monkey import MonkeyForConditionalGeneration, MonkeyProcessor
from monkey.checkpoint_files import weight_files
from monkey.location import checkpoint_file, read_json, required_file
from monkey.prompts import after_image

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class PreparedBatch:
    """Requests whose images opened, their tensors on the CPU (None without any), and the failures of the others."""

    requests: tuple[Request, ...]
    inputs: dict[str, torch.Tensor] | None
    failures: tuple[Failure, ...]


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
        if grid is not None and adapter_base(checkpoint) is not None:
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
                (`monkey.training.scoring.undisturbed`).
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
        self.settings: dict[str, Any] = {
            "do_sample": False,
            "num_beams": 1,
            "min_new_tokens": 1,
            "eos_token_id": self.end_id,
            "pad_token_id": self.end_id,
            "dtype": dtype,
            "grid": list(model.config.grid),
        }

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterable[PreparedBatch]:
        return DataLoader(
            requests,
            batch_size=batch_size,
            num_workers=min(self.num_workers, -(-len(requests) // batch_size)),
            collate_fn=partial(prepare_batch, self.processor),
        )

    # Not inference mode: what the model caches there could not be used in a training step that follows.
    @torch.no_grad()
    def generate_answers(self, batch: PreparedBatch) -> list[Answer | Failure]:
        results: list[Answer | Failure] = list(batch.failures)
        if batch.inputs is None:
            return results
        inputs = {name: tensor.to(self.device) for name, tensor in batch.inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(DTYPES[self.dtype])
        generated = self.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            min_new_tokens=1,
            max_new_tokens=batch.requests[0].task.max_new_tokens,
            eos_token_id=self.end_id,
            pad_token_id=self.end_id,
        )
        answers = generated[:, inputs["input_ids"].shape[1] :].tolist()
        results += [self._answer(request, ids) for request, ids in zip(batch.requests, answers, strict=True)]
        return results

    def _answer(self, request: Request, ids: list[int]) -> Answer:
        ended = self.end_id in ids
        ids = ids[: ids.index(self.end_id)] if ended else ids
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(request.row, text, len(ids), STOPPED_AT_END if ended else STOPPED_AT_LENGTH)


def prepare_batch(processor: Any, requests: Sequence[Request]) -> PreparedBatch:
    """Open the images and encode the prompts; the question is inert text, whatever characters it holds.

    A request whose image does not open, or whose prompt is too long, becomes a failure and leaves the others alone.
    """
    ready, samples, failures = [], [], []
    for request in requests:
        question = request.question
        text = replace(request.form, text=after_image(request.form.text)).ask(question.question)
        try:
            encoded = processor(text=[text], images=[[question.image]], inert_text=True, return_tensors="pt")
        except (OSError, ValueError) as error:
            failures.append(Failure(request.row, f"{question.source}: {error}"))
            continue
        ready.append(request)
        samples.append({"input_ids": encoded["input_ids"][0].tolist(), "pixel_values": encoded["pixel_values"]})
    inputs = processor.collate(samples, padding_side="left") if samples else None
    return PreparedBatch(tuple(ready), inputs, tuple(failures))


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


SMALL_FILES = (
    "config.json",
    "qwen.tiktoken",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Files beside the weights that an answer depends on; generation_config.json is not one of them here."""


def check_checkpoint(checkpoint: str) -> None:
    """Raise FileNotFoundError or ValueError for what cannot be a checkpoint, without reading its weights."""
    base = adapter_base(checkpoint)
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


def adapter_base(checkpoint: str) -> str | None:
    """The checkpoint that a PEFT adapter folder was trained on; None for a checkpoint of its own.

    Raises ValueError when the adapter names none.
    """
    settings = checkpoint_file(checkpoint, ADAPTER_CONFIG_NAME)
    if settings is None or checkpoint_file(checkpoint, "config.json") is not None:
        return None
    base = read_json(settings).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{settings}: base_model_name_or_path must name the checkpoint that was trained, not {base!r}")
    return base


def adapter_weights(checkpoint: str) -> str:
    """The weight file of a PEFT adapter folder, or FileNotFoundError."""
    for name in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME):
        if (found := checkpoint_file(checkpoint, name)) is not None:
            return found
    raise FileNotFoundError(
        f"{checkpoint} holds no weights: neither {ADAPTER_SAFE_WEIGHTS_NAME} nor {ADAPTER_WEIGHTS_NAME}"
    )


def answering_files(checkpoint: str) -> list[str]:
    """Every file that an answer depends on; those of an adapter and then those of its base."""
    base = adapter_base(checkpoint)
    if base is None:
        return [*_present(checkpoint, SMALL_FILES), *weight_files(checkpoint, {})]
    own = [*_present(checkpoint, (ADAPTER_CONFIG_NAME, *SMALL_FILES)), adapter_weights(checkpoint)]
    return [*own, *_present(base, SMALL_FILES), *weight_files(base, {})]


def _present(checkpoint: str, names: Sequence[str]) -> list[str]:
    return [path for name in names if (path := checkpoint_file(checkpoint, name)) is not None]


def checkpoint_fingerprint(checkpoint: str) -> str:
    """SHA-256 over the bytes of every file of a checkpoint that an answer depends on, weights and base included."""
    digest = hashlib.sha256()
    for path in answering_files(checkpoint):
        digest.update(f"{Path(path).name} {file_digest(Path(path))}\n".encode())
    return digest.hexdigest()
