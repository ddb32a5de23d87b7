"""Monkey in VLMEvalKit, on current PyTorch and transformers: this file in the place of its `vlmeval/vlm/monkey.py`.

    pip install .                                                             # this project, beside VLMEvalKit
    cp integrations/vlmevalkit/monkey.py VLMEvalKit/vlmeval/vlm/monkey.py
    cd VLMEvalKit && python run.py --data DocVQA_VAL --model monkey

The names that VLMEvalKit's `vlmeval/config.py` has stay as they are, and further lines open other checkpoints:

    "monkey": partial(vlm.Monkey, model_path="echo840/Monkey"),
    "monkey-chat": partial(vlm.MonkeyChat, model_path="echo840/Monkey-Chat"),
    "monkey-small": partial(vlm.Monkey, model_path="models/small", dtype="float32"),
    "monkey-mine": partial(vlm.Monkey, model_path="outputs/mine", grids="up-to-6", batch_size=8),

VLMEvalKit asks a model that it opens one question at a time, and a service `--api-nproc` at once. With `batch_size`
above 1 this model calls itself a service, in one process, and answers so many together; give `--api-nproc` as many.
"""

from __future__ import annotations

from typing import Any

from vlmeval.dataset import DATASET_TYPE
from vlmeval.vlm.base import BaseModel

import monkey
from monkey.devices import choose_dtype, choose_place

SHORT, LONG = 10, 512
"""Most tokens of an answer to a multiple-choice or yes-or-no question, and to another, as in the file that this one
replaces, with which VLMEvalKit's published figures were made."""


class Monkey(BaseModel):
    """A checkpoint, opened by `monkey.load`, whose prompt of training every question is put into.

    Args:
        model_path: a folder, or a hub name.
        batch_size: questions that are answered at once.
        dtype: by default bfloat16 on a GPU that has it, else float32.
        max_new_tokens: of every answer; by default as of `SHORT` and `LONG`.
        form: how a question is written, see `monkey.conversation`; the checkpoint's own when None.
        settings: of `monkey.load`: device, grid, grids, fit, max_windows, quantization.
    """

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(
        self,
        model_path: str = "echo840/Monkey",
        batch_size: int = 1,
        dtype: str | None = None,
        max_new_tokens: int | None = None,
        form: str | None = None,
        **settings: Any,
    ):
        super().__init__()
        dtype = choose_dtype(dtype, choose_place(settings.get("device", "auto")))
        self.is_api = batch_size > 1
        self.max_new_tokens, self.form = max_new_tokens, form
        self.answerer = monkey.load(model_path, dtype=dtype, max_rows=batch_size, **settings)

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Answer a question whose texts and images stand where the data set puts them.

        Raises:
            ValueError: it holds a video.
        """
        # Of a set of the user's own VLMEvalKit says by default that it is multiple choice, whatever it holds.
        kind = None if dataset is None else DATASET_TYPE(dataset, default=None)
        is_short = kind in ("MCQ", "Y/N") or dataset == "HallusionBench"
        limit = self.max_new_tokens or (SHORT if is_short else LONG)
        question = {"role": "user", "content": list(map(read_part, message))}
        return self.answerer.chat([question], monkey.Decoding(limit, keep_markers=False), form=self.form).text


class MonkeyChat(Monkey):
    """The same; its checkpoint says how it is asked."""

    def __init__(self, model_path: str = "echo840/Monkey-Chat", **settings: Any):
        super().__init__(model_path, **settings)


def read_part(part: dict[str, str]) -> dict[str, str]:
    """Return a part of VLMEvalKit's message as one of a chat."""
    kind, value = part["type"], part["value"]
    if kind not in ("text", "image"):
        raise ValueError(f"the question holds a part of type {kind!r}, and Monkey reads text and images")
    return {"type": kind, kind: value}
