"""A conversation to take along: as JSON for programs, as Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import monkey
from monkey.boxes import located, without_markup
from monkey.serving.demo.conversation import Answer, Conversation, Exchange, last_pictures
from monkey.serving.demo.wording import Wording

DECODING_FIELDS = ("max_new_tokens", "temperature", "top_p", "seed")


def as_json(conversation: Conversation, models: Sequence[dict[str, Any]]) -> str:
    """Everything that was asked and answered, with boxes in pixels of the upright picture.

    Args:
        models: what is to be said of each model, its "name" among it.
    """
    content = {
        "monkey": monkey.__version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": list(models),
        "exchanges": [
            _exchange(exchange, conversation[: number + 1], models) for number, exchange in enumerate(conversation)
        ],
    }
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def as_markdown(conversation: Conversation, names: Sequence[str], words: Wording) -> str:
    """The conversation for reading; what people and models wrote stands in quotations, where it cannot be a heading."""
    lines = [f"# Monkey: {', '.join(names)}"]
    for exchange in conversation:
        for picture in exchange.pictures:
            lines.append(f"*{words.picture}: {_inline(picture.name)}, {picture.size[0]}×{picture.size[1]}*")
        lines.append(f"**{words.question}**\n\n{_quoted(exchange.asked)}")
        for name, answer in zip(names, exchange.answers, strict=True):
            title = f"{words.answer} ({_inline(name)})" if len(names) > 1 else words.answer
            stopped = f" {words.stopped}" if answer.is_stopped else ""
            lines.append(f"**{title}**\n\n{_quoted(without_markup(answer.text) + stopped)}")
    return "\n\n".join(lines) + "\n"


def _exchange(exchange: Exchange, so_far: Conversation, models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    pictures = last_pictures(so_far)
    size = pictures[-1].size if pictures else None
    decoding = asdict(exchange.decoding)
    return {
        "question": exchange.asked,
        "is_description": exchange.is_description,
        "pictures": [
            {"name": picture.name, "width": picture.size[0], "height": picture.size[1]} for picture in exchange.pictures
        ],
        "decoding": {name: decoding[name] for name in DECODING_FIELDS},
        "answers": [
            {"model": model["name"], **_answer(answer, size)}
            for model, answer in zip(models, exchange.answers, strict=True)
        ],
    }


def _answer(answer: Answer, size: tuple[int, int] | None) -> dict[str, Any]:
    boxes = located(answer.text) if size else []
    return {
        "text": answer.text,
        "is_stopped": answer.is_stopped,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "confidence": answer.confidence,
        "boxes": [{"label": box.label, "pixels": [round(side) for side in box.in_pixels(size)]} for box in boxes],
    }


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in (text or "…").splitlines())


def _inline(text: str) -> str:
    return " ".join(text.split())
