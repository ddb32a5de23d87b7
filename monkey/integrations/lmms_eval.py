"""Monkey as a model of lmms-eval (0.7 or later), which finds it once both are installed.

    python -m lmms_eval eval --model monkey --model_args pretrained=models/small --tasks docvqa_val --batch_size 8
    accelerate launch --num_processes 8 -m lmms_eval eval --model monkey …        # a model on each GPU
    python -m lmms_eval eval --model monkey --force_simple --tasks seedbench_ppl …   # options by likelihood

`MonkeyChat` gets a task's messages, each image where the task puts it. `MonkeySimple`, which `--force_simple` takes,
gets a task's images and then its text; only of such models does lmms-eval ask likelihoods. Both answer through
`monkey.load`, `batch_size` requests at once, and read an image once for all that is asked about it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from monkey.cli import grid_set
from monkey.conversation import TEMPLATES
from monkey.decoding import Decoding
from monkey.devices import choose_dtype, choose_place
from monkey.prompts import is_prompt
from monkey.reply import Reply
from monkey.serving.session import MAX_ROWS, load

MAX_NEW_TOKENS = 128
"""Of a task that names none, as lmms-eval's own models have it."""

UNAVAILABLE = {"num_beams": (None, 1), "repetition_penalty": (None, 1), "top_k": (None, 0, -1)}
"""Settings of a task that change answers and are not there, with the values that change nothing."""

KNOWN = {"max_new_tokens", "temperature", "do_sample", "top_p", "until", *UNAVAILABLE}

Messages = list[dict[str, Any]]


class OptionLoss(NamedTuple):
    """What lmms-eval's multiple choice takes the smallest of: minus the log-probability of an option, in nats."""

    loss: float
    is_greedy: bool

    def strip(self) -> str:
        """Return an empty text.

        lmms-eval's cache asks this of every result and keeps none that is empty. A pair that it kept would come back
        as a list and be made a text before the task reads it.
        """
        return ""


class Monkey(lmms):
    """What both kinds of model share.

    Args:
        pretrained: a checkpoint folder, PEFT's adapter folders included, or a hub name.
        batch_size: requests that are answered at the same time; "auto" is 8.
        device: of a run in one process: "cpu", "cuda", "cuda:1", …; by default a GPU if there is one. In a launch of
            several processes each has its own.
        dtype: "float32", "bfloat16" or "float16"; by default the half precision of a CUDA device, else float32,
            as of evaluate_vqa.py.
        quantization: "4bit" packs the decoder.
        grid: rows and columns of windows, "2x3".
        grids: of which each image takes the best, "up-to-6" or "1x2;2x1;2x2".
        fit: "stretch" or "pad".
        max_windows: leaves out grids of more windows.
        form: how a question is written: "questions" puts it into the prompt of training, unless it ends in `Answer:`
            already; "plain" leaves it as it is; "chatml", "decoder". By default the checkpoint's own.
        picture_labels: of "chatml", as of `monkey.serving.session.Answerer.chat`.

    Raises:
        FileNotFoundError, ValueError: as `monkey.load`.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        grid: str | None = None,
        grids: str | None = None,
        fit: str | None = None,
        max_windows: int | None = None,
        form: str | None = None,
        picture_labels: bool = True,
    ):
        super().__init__()
        if form not in (None, *TEMPLATES):
            raise ValueError(f"form is {form!r}, and it is one of {', '.join(TEMPLATES)}")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1:
            device = str(self.accelerator.device)
        device = device or "auto"
        dtype = choose_dtype(dtype, choose_place(device))
        self.max_rows = MAX_ROWS if batch_size == "auto" else _read_whole("batch_size", batch_size)
        if grid is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", grid):
            raise ValueError(f"grid is {grid!r}; write rows and columns, as 2x3")
        self.answerer = load(
            str(pretrained),
            device,
            dtype,
            quantization,
            max_rows=self.max_rows,
            grid=None if grid is None else tuple(map(int, grid.split("x"))),
            grids=None if grids is None else _read_grids(grids),
            fit=fit,
            max_windows=max_windows,
        )
        self.device = self.answerer.engine.device
        self.form = form or self.answerer.form
        self._chat = {"form": self.form, "picture_labels": picture_labels}

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return an answer to each request, with its tokens counted."""
        self._name_unused(requests)
        # A setting that is not to be had ends the run before anything is asked.
        decodings = [_read_decoding_of(request) for request in requests]

        def ask(request: Instance, decoding: Decoding) -> Reply:
            return self.answerer.chat(self._messages(request), decoding, **self._chat)

        def read(reply: Reply) -> GenerationResult:
            return GenerationResult(reply.text, TokenCounts(reply.prompt_tokens, reply.new_tokens))

        return self._in_line(requests, decodings, ask, read)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return an `OptionLoss` for each (context, option).

        lmms-eval takes the option of the smallest figure, so that this is a loss and no log-likelihood. It is summed
        over the option's tokens and the one that ends an answer: the probability of exactly this answer. It comes as
        the text of a result, since lmms-eval makes a text of a bare pair.

        Raises:
            ValueError: an option that no context belongs to, which `acc_mutual_info` asks for.
        """

        def ask(request: Instance, option: str) -> Reply:
            return self.answerer.weigh(self._messages(request), option, **self._chat)

        def read(reply: Reply) -> GenerationResult:
            _ = reply.text
            return GenerationResult(OptionLoss(-reply.log_probability, reply.is_greedy))

        return self._in_line(requests, [self._option(request) for request in requests], ask, read)

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("tasks of several rounds, in which an answer decides what is asked next, are not run")

    def clean(self) -> None:
        """Let go of the model; lmms-eval calls this before a judge is opened."""
        self.answerer.close()
        del self.answerer
        super().clean()

    def _in_line(
        self,
        requests: Sequence[Instance],
        settings: Sequence[Any],
        ask: Callable[[Instance, Any], Reply],
        read: Callable[[Reply], Any],
    ) -> list[Any]:
        """Return what comes of each request; twice as many as are answered at once have their images opened."""
        results = []
        waiting: deque[tuple[Instance, Reply]] = deque()
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Monkey answers") as bar:

            def finish_first() -> None:
                request, reply = waiting.popleft()
                with _naming(request):
                    results.append(read(reply))
                bar.update()

            for request, setting in zip(requests, settings, strict=True):
                with _naming(request):
                    waiting.append((request, ask(request, setting)))
                if len(waiting) > 2 * self.max_rows:
                    finish_first()
            while waiting:
                finish_first()
        return results

    def _doc(self, request: Instance) -> Mapping[str, Any]:
        *_, doc_id, task, split = request.args
        return self.task_dict[task][split][doc_id]

    def _option(self, request: Instance) -> str:
        """Return an option as it stands behind its context."""
        if len(request.args) == 2:
            raise ValueError(
                f"task {request.task_name} asks how likely its options are without a question (acc_mutual_info), which "
                "is not computed; name another metric"
            )
        context, option = request.args[:2]
        if callable(option):
            option = option(self._doc(request))
        # Prompts of training and chats end in white space of their own, which is not doubled.
        stays = self.form == "plain" or (self.form == "questions" and is_prompt(context))
        return option if stays and not context[-1:].isspace() else option.lstrip()

    def _name_unused(self, requests: Sequence[Instance]) -> None:
        """Say once which settings of tasks are for other models."""
        unused = sorted({name for request in requests for name in _settings_of(request)} - KNOWN)
        if unused and self.rank == 0:
            print(f"generation settings that are not for this model: {', '.join(unused)}", file=sys.stderr)

    def _messages(self, request: Instance) -> Messages:
        raise NotImplementedError


class MonkeySimple(Monkey):
    """Gets a task's images, and then its text."""

    is_simple = True

    def _messages(self, request: Instance) -> Messages:
        context, _, doc_to_visual, *_ = request.args
        images = (doc_to_visual(self._doc(request)) if doc_to_visual else None) or []
        parts = [{"type": "image", "image": image} for image in images]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": context}]}]


class MonkeyChat(Monkey):
    """Gets a task's messages, each image where the task puts it."""

    is_simple = False

    def _messages(self, request: Instance) -> Messages:
        _, doc_to_messages, *_ = request.args
        return [
            {"role": message["role"], "content": list(map(_read_part, message["content"]))}
            for message in doc_to_messages(self._doc(request))
        ]


def _read_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image":
        raise ValueError(f"it holds a part of type {part['type']!r}, and Monkey reads text and images")
    return {"type": "image", "image": part["url"]}


def read_decoding(settings: Mapping[str, Any]) -> Decoding:
    """Return how to decode by the generation settings of a task; sampled answers draw on torch's own random numbers.

    Raises:
        ValueError: a setting that cannot be had.
    """
    for name, without_effect in UNAVAILABLE.items():
        is_moot = name == "top_k" and not _is_sampled(settings)
        if settings.get(name) not in without_effect and not is_moot:
            raise ValueError(
                f"it sets {name} to {settings[name]}, which is not to be had; --gen_kwargs {name}={without_effect[1]} "
                "asks without it"
            )
    until = settings.get("until") or ()
    stop = tuple(filter(None, [until] if isinstance(until, str) else until))
    sampled = {}
    if _is_sampled(settings):
        temperature, top_p = settings.get("temperature"), settings.get("top_p")
        sampled = {
            "temperature": 1.0 if temperature is None else temperature,
            "top_p": 1.0 if top_p is None else top_p,
            "seed": int(torch.randint(2**31, ())),
        }
    limit = settings.get("max_new_tokens")
    return Decoding(MAX_NEW_TOKENS if limit is None else limit, stop=stop, keep_markers=False, **sampled)


def _is_sampled(settings: Mapping[str, Any]) -> bool:
    """Return whether tokens are drawn: a temperature of 0 is greedy whatever stands beside it, and so is no word."""
    temperature = settings.get("temperature")
    return settings.get("do_sample", bool(temperature)) and temperature != 0


@contextmanager
def _naming(request: Instance) -> Iterator[None]:
    """Have an error say which task and document it is of."""
    try:
        yield
    except (ValueError, OSError, MemoryError, TimeoutError) as error:
        raise type(error)(f"task {request.task_name}, document {request.doc_id}: {error}") from error


def _settings_of(request: Instance) -> Mapping[str, Any]:
    """Return the generation settings of a task, which stand elsewhere for each kind of model."""
    return next(argument for argument in request.args if isinstance(argument, dict))


def _read_decoding_of(request: Instance) -> Decoding:
    with _naming(request):
        return read_decoding(_settings_of(request))


def _read_whole(name: str, value: Any) -> int:
    if not re.fullmatch(r"[1-9]\d*", str(value)):
        raise ValueError(f"{name} is {value}, and a whole number of at least 1 is needed")
    return int(value)


def _read_grids(value: str) -> Any:
    """Return the grids that stand in `--model_args`, whose commas part its settings."""
    try:
        return grid_set(str(value).replace(";", ","))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"grids is {value!r}; write up-to-6, or a list such as 1x2;2x1;2x2") from error
