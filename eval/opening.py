"""From flags to the backend that answers: one row a backend, and what each needs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence

from eval.backends import Backend, EchoBackend, OracleBackend
from eval.tasks import Task
from monkey.location import refuse_missing

Opener = Callable[[], Backend]


def backend_opener(options: argparse.Namespace, tasks: Sequence[Task]) -> Opener:
    """A function that opens the backend of `--backend`; what can be told wrong without opening it is told here.

    Raises FileNotFoundError or ValueError for a flag that is missing, goes with another backend, or names nothing.
    """
    for flag, backend in FLAGS_OF_ONE.items():
        if getattr(options, flag) is not None and options.backend != backend:
            raise ValueError(f"--{flag.replace('_', '-')} goes with --backend {backend}, not with {options.backend}")
    return BACKENDS[options.backend](options, tasks)


def _open_model(options: argparse.Namespace, _: Sequence[Task]) -> Opener:
    if not options.checkpoint:
        raise ValueError("--checkpoint is needed: a folder of a checkpoint or its hub name")
    refuse_missing(options.checkpoint)
    from eval.chat_backend import ChatBackend, is_ours
    from eval.model_backend import ModelBackend, check_checkpoint, choose_device

    device = device_of_process(choose_device(options.device), os.environ)
    if is_ours(options.checkpoint):
        check_checkpoint(options.checkpoint)
        return lambda: ModelBackend(
            options.checkpoint, device, options.dtype, options.grid, options.num_workers, options.seed
        )
    if options.grid is not None:
        raise ValueError(f"--grid is of Monkey's windows, and {options.checkpoint} is another model; leave it out")
    return lambda: ChatBackend(options.checkpoint, device, options.dtype, options.num_workers, options.seed)


def device_of_process(device: str, environment: Mapping[str, str]) -> str:
    """The GPU of this process where several share a machine and none is named by its number."""
    if device != "cuda" or "LOCAL_RANK" not in environment:
        return device
    import torch

    return f"cuda:{int(environment['LOCAL_RANK']) % torch.cuda.device_count()}"


def _open_server(options: argparse.Namespace, _: Sequence[Task]) -> Opener:
    from eval.openai_backend import OpenAIBackend
    from monkey.completions_client import KEY_VARIABLE, checked_url

    if options.base_url is None:
        raise ValueError("--backend openai needs --base-url, for example http://localhost:8000/v1")
    checked_url(options.base_url)
    variable = options.api_key_variable or KEY_VARIABLE
    key = os.environ.get(variable)
    if options.api_key_variable and not key:
        raise ValueError(f"--api-key-variable {variable}: there is no such environment variable, or it is empty")
    settings = {"concurrency": options.concurrency, "timeout": options.timeout}
    given = {name: value for name, value in settings.items() if value is not None}
    return lambda: OpenAIBackend(options.base_url, options.served_model, key, **given)


def _open_replay(options: argparse.Namespace, tasks: Sequence[Task]) -> Opener:
    from eval.replay_backend import ReplayBackend

    if options.predictions is None:
        raise ValueError("--backend replay needs --predictions, a file of answers or a folder of such files")
    return lambda: ReplayBackend(options.predictions, [task.name for task in tasks])


BACKENDS: Mapping[str, Callable[[argparse.Namespace, Sequence[Task]], Opener]] = {
    "hf": _open_model,
    "openai": _open_server,
    "replay": _open_replay,
    "oracle": lambda *_: OracleBackend,
    "echo": lambda *_: EchoBackend,
}

FLAGS_OF_ONE: Mapping[str, str] = {
    "base_url": "openai",
    "served_model": "openai",
    "api_key_variable": "openai",
    "concurrency": "openai",
    "timeout": "openai",
    "predictions": "replay",
    "device": "hf",
    "dtype": "hf",
    "grid": "hf",
}
"""Flags that only one backend reads, by their names in the parsed options."""
