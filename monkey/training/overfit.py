"""`--overfit N`: a self-test of model, data and optimiser together. What was trained on must come back word for word.

A run that trains on N records alone, without dropout, must be able to repeat their answers. If it cannot, something
between the file and the weights is broken: labels beside their tokens, pictures in another order, a part that does not
train, a prompt that generation makes otherwise.

Each assistant's turn is asked for by itself, after the true turns before it, from exactly the ids that stood before it
in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from monkey.data.records import Record
from monkey.language import LowRankAdapter, MonkeyAttention
from monkey.processing import UNSUPERVISED, MonkeyProcessor
from monkey.training.recipes import base_model
from monkey.training.scoring import undisturbed
from monkey.vision import ResamplerAttention, WindowAdapter

# Class → its attribute that is a probability of dropout.
_DROPOUTS: dict[type[nn.Module], str] = {
    nn.Dropout: "p",
    WindowAdapter: "dropout",
    LowRankAdapter: "dropout",
    ResamplerAttention: "dropout",
    MonkeyAttention: "attention_dropout",
}

_SHOWN = 60
"""Characters of an answer that a message shows."""


@dataclass(frozen=True)
class Miss:
    """An answer that did not come back."""

    source: str
    turn: int
    """Number of the assistant's turn in its conversation, from 0, as messages about records count."""
    expected: str
    generated: str
    ended: bool
    """Whether the model ended the answer itself, within as many tokens as the reference has."""

    def __str__(self) -> str:
        cut = "" if self.ended else " without an end"
        return f"{self.source}, turn {self.turn}: expected {_short(self.expected)}, got {_short(self.generated)}{cut}"


@dataclass(frozen=True)
class OverfitReport:
    """How many of the records came back with every answer."""

    reproduced: int
    total: int
    misses: tuple[Miss, ...]

    def __str__(self) -> str:
        lines = [f"overfit: {self.reproduced} of {self.total} records reproduced"]
        return "\n".join([*lines, *(f"  {miss}" for miss in self.misses)])

    def check(self) -> None:
        """ValueError, with the counts and the first miss, unless every record was reproduced."""
        if self.reproduced < self.total:
            raise ValueError(
                f"--overfit {self.total}: only {self.reproduced} of {self.total} records were reproduced after "
                f"training on them alone; {self.misses[0]}; train for more steps or at a higher rate, then look at the "
                "data with scripts/check_data.py"
            )


def without_dropout(model: nn.Module) -> None:
    """Turn every dropout of the model off. The config keeps its values, and so does a checkpoint."""
    for module in model.modules():
        for kind, attribute in _DROPOUTS.items():
            if isinstance(module, kind):
                setattr(module, attribute, 0.0)


def overfit_report(
    model: nn.Module, processor: MonkeyProcessor, records: Sequence[Record], max_length: int | None = None
) -> OverfitReport:
    """Ask the model for every answer of the records; where steps are narrowed by autocast, call it within that.

    Args:
        model: a Monkey, wrapped by PEFT or not; with weights sharded by ZeRO-3 every process must ask.
        processor: of the run, with its own image processor.
        records: those that it was trained on.
        max_length: most tokens of a sample in training.
    """
    misses: list[Miss] = []
    reproduced = 0
    with undisturbed(model):
        for record in records:
            own = list(_misses(base_model(model), processor, record, max_length))
            misses += own
            reproduced += not own
    return OverfitReport(reproduced, len(records), tuple(misses))


def _misses(model: nn.Module, processor: MonkeyProcessor, record: Record, max_length: int | None) -> Iterator[Miss]:
    """The answers of a record that do not come back."""
    ids, labels, images = processor.encode(record.conversation, labels=True, max_length=max_length)
    all_pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"] if images else None
    tokenizer = processor.tokenizer
    turns = record.conversation.messages
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    for number, (start, stop) in zip(answers, supervised_spans(labels), strict=True):
        prompt = ids[:start]
        pictures = prompt.count(tokenizer.image_start_id)
        pixels = all_pixels[:pictures] if pictures else None
        generated = _greedy(model, prompt, pixels, stop - start, tokenizer.eod_id)
        ended = tokenizer.eod_id in generated
        text = tokenizer.decode(generated[: generated.index(tokenizer.eod_id)] if ended else generated)
        expected = tokenizer.decode(ids[start : stop - 1])
        if not ended or text != expected:
            yield Miss(record.source, number, expected, text, ended)


def supervised_spans(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Start and stop of each run of supervised tokens; a run is an answer and its end-of-text."""
    is_supervised = [False, *(label != UNSUPERVISED for label in labels), False]
    edges = [position for position in range(len(labels) + 1) if is_supervised[position] != is_supervised[position + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


@torch.no_grad()
def _greedy(
    model: nn.Module, prompt: Sequence[int], pixels: torch.Tensor | None, tokens: int, end_id: int
) -> list[int]:
    """At most `tokens` ids after the prompt."""
    input_ids = torch.tensor([prompt], device=model.device)
    pictures = {} if pixels is None else {"pixel_values": pixels.to(model.device)}
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        **pictures,
        do_sample=False,
        num_beams=1,
        max_new_tokens=tokens,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    return generated[0, len(prompt) :].tolist()


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
