"""A conversation as the page holds it: what was asked, about which pictures, and what one model or two answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from monkey.decoding import Decoding
from monkey.prompts import is_prompt
from monkey.serving.demo.pictures import KeptPicture


@dataclass(frozen=True)
class Answer:
    """What one model has said, so far or in the end.

    Attributes:
        text: as the model wrote it, with the markup of boxes.
        is_finished: nothing will be added.
        is_stopped: somebody stopped it before its end.
        drawn: a file of the last picture with the answer's boxes on it.
        prompt_tokens, new_tokens: of the whole prompt with its pictures, and of the answer.
        confidence: see `monkey.reply`.
    """

    text: str = ""
    is_finished: bool = False
    is_stopped: bool = False
    drawn: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    confidence: float | None = None


@dataclass(frozen=True)
class Exchange:
    """A question, or a wish for a description, and what came of it: one answer from each model."""

    asked: str
    pictures: tuple[KeptPicture, ...]
    decoding: Decoding
    is_description: bool
    answers: tuple[Answer, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was answered."""
        return not any(answer.text for answer in self.answers)

    def with_answer(self, place: int, answer: Answer) -> Exchange:
        return replace(self, answers=(*self.answers[:place], answer, *self.answers[place + 1 :]))


Conversation = tuple[Exchange, ...]


def begun(
    conversation: Conversation,
    asked: str,
    pictures: Sequence[KeptPicture],
    decoding: Decoding,
    num_models: int,
    is_description: bool = False,
) -> Conversation:
    """The conversation with a new question."""
    exchange = Exchange(asked, tuple(pictures), decoding, is_description, (Answer(),) * num_models)
    return (*conversation, exchange)


def last_pictures(conversation: Conversation) -> tuple[KeptPicture, ...]:
    """The pictures that were shown last; none where there are none at all."""
    return next((exchange.pictures for exchange in reversed(conversation) if exchange.pictures), ())


def settled(conversation: Conversation) -> Conversation:
    """Without a last exchange that came to nothing, and with broken answers as they are."""
    if conversation and conversation[-1].is_empty:
        conversation = conversation[:-1]
    return tuple(_finished(exchange) for exchange in conversation)


def stopped(conversation: Conversation) -> Conversation:
    """With the answers that are not finished marked as stopped."""
    return tuple(_finished(exchange, is_stopped=True) for exchange in conversation)


def _finished(exchange: Exchange, is_stopped: bool = False) -> Exchange:
    answers = (
        answer if answer.is_finished else replace(answer, is_finished=True, is_stopped=is_stopped)
        for answer in exchange.answers
    )
    return replace(exchange, answers=tuple(answers))


def messages_for(conversation: Conversation, place: int, form: str) -> list[dict[str, Any]]:
    """What `Answerer.chat` takes to answer the last question, with the answers that this one of the models gave.

    Args:
        place: of the model among those that answer.
        form: how its chats are written, see `monkey.conversation`.
    """
    messages: list[dict[str, Any]] = []
    for exchange in conversation:
        parts: list[dict[str, Any]] = [{"type": "image", "image": picture.file} for picture in exchange.pictures]
        parts.append({"type": "text", "text": _for_model(exchange.asked, form)})
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": exchange.answers[place].text})
    return messages[:-1]


def last_alone(conversation: Conversation) -> Conversation:
    """The last question by itself, about the pictures that were shown last."""
    return (replace(conversation[-1], pictures=last_pictures(conversation)),)


def _for_model(asked: str, form: str) -> str:
    """A text as training wrote it: prompts that stand for themselves have a space before and behind."""
    return f" {asked} " if form != "chatml" and is_prompt(asked) else asked
