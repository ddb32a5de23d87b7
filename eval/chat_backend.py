"""The `hf` backend for others' models: any AutoModelForImageTextToText of transformers that has a chat template.

A question is one message of the user's, images and texts in their order, and each example before it a message of the
user's and the assistant's; the answer is greedy. Unlike Monkey's
tokenizer, those of other models may read control tokens in a question's text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from eval.backends import Answer, Failure, Request, parts_of
from eval.model_backend import Batch, load_batches, read_answer
from monkey import MonkeyConfig
from monkey.configuration import QwenVLConfig
from monkey.conversation import Message
from monkey.devices import DTYPES, choose_device, choose_dtype
from monkey.files import checkpoint_file, read_json, required_file
from monkey.images import open_image
from monkey.provenance import fingerprint

OURS = (MonkeyConfig.model_type, QwenVLConfig.model_type)

_NOT_ANSWERING = frozenset(("generation_config.json", "trainer_state.json", "training_args.bin"))


class ChatBackend:
    """Answers with a model of transformers' own.

    Args: as those of `eval.model_backend.ModelBackend`.

    Raises:
        FileNotFoundError, ValueError: the checkpoint does not open, or has no chat template.
    """

    name = "hf"
    asks_in_turns = True

    def __init__(
        self,
        checkpoint: str,
        device: str | None = None,
        dtype: str | None = None,
        num_workers: int = 2,
        seed: int = 3407,
    ):
        torch.manual_seed(seed)
        self.device = choose_device(device)
        dtype = choose_dtype(dtype, self.device)
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        if getattr(self.processor, "chat_template", None) is None:
            raise ValueError(f"{checkpoint} has no chat template, so there is no telling how its model is asked")
        # Generation continues at the right.
        self.processor.tokenizer.padding_side = "left"
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=DTYPES[dtype])
        self.model = model.to(self.device).eval()
        own = model.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else self.processor.tokenizer.eos_token_id
        self.end_ids = frozenset(ends if isinstance(ends, list) else [ends])
        pad = own.pad_token_id if own.pad_token_id is not None else min(self.end_ids)
        # Sampling and penalties of the checkpoint are no part of an evaluation; the ids of its tokens are.
        model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id, eos_token_id=sorted(self.end_ids), pad_token_id=pad
        )
        self.fingerprint = folder_fingerprint(checkpoint)
        self.num_workers = num_workers
        self.settings: dict[str, Any] = {
            "do_sample": False,
            "num_beams": 1,
            "min_new_tokens": 1,
            "eos_token_id": sorted(self.end_ids),
            "dtype": dtype,
            "chat_template": hashlib.sha256(json.dumps(self.processor.chat_template).encode()).hexdigest(),
        }

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterable[Batch]:
        return load_batches(requests, batch_size, self.num_workers, partial(prepare_chats, self.processor))

    @torch.no_grad()
    def generate_answers(self, batch: Batch) -> list[Answer | Failure]:
        if batch.inputs is None:
            return list(batch.failures)
        inputs = {
            name: tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else None)
            for name, tensor in batch.inputs.items()
        }
        generated = self.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            min_new_tokens=1,
            max_new_tokens=batch.requests[0].task.max_new_tokens,
        )
        answers = [
            read_answer(request, ids, self.end_ids, self.processor.tokenizer)
            for request, ids in zip(batch.requests, generated[:, inputs["input_ids"].shape[1] :].tolist(), strict=True)
        ]
        return [*batch.failures, *answers]


def prepare_chats(processor: Any, requests: Sequence[Request]) -> Batch:
    """Open the images and encode the messages; a request whose image does not open becomes a failure."""
    ready, chats, failures = [], [], []
    for request in requests:
        try:
            chat = [{"role": message.role, "content": _content(message)} for message in request.turns.messages]
        except (OSError, ValueError) as error:
            failures.append(Failure(request.row, f"{request.question.source}: {error}"))
            continue
        ready.append(request)
        chats.append(chat)
    if not chats:
        return Batch((), None, tuple(failures))
    inputs = processor.apply_chat_template(
        chats,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        processor_kwargs={"padding": True, "return_tensors": "pt"},
    )
    return Batch(tuple(ready), dict(inputs), tuple(failures))


def _content(message: Message) -> list[dict[str, Any]]:
    return [
        {"type": "image", "image": open_image(part)} if isinstance(part, Path) else {"type": "text", "text": part}
        for part in parts_of(message)
    ]


def is_ours(checkpoint: str) -> bool:
    """Whether a checkpoint is Monkey's, Qwen-VL's or an adapter, which `ModelBackend` opens; else it is another's.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a model that does not read images and write text.
    """
    config = checkpoint_file(checkpoint, "config.json")
    if config is None:
        return True
    kind = read_json(config).get("model_type")
    if kind in OURS:
        return True
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ValueError(
            f"{config}: model_type {kind!r} is neither Monkey's nor that of another model that transformers opens for "
            "images and text"
        )
    return False


def folder_fingerprint(checkpoint: str) -> str:
    """Return the SHA-256 over the files beside config.json, but for notes and settings of sampling."""
    folder = Path(required_file(checkpoint, "config.json", "the shape of the model")).parent
    return fingerprint(
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix != ".md" and path.name not in _NOT_ANSWERING and path.name[0] != "."
    )
