"""Answers of one model or two to the last question of a conversation, piece by piece and side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from monkey.serving.demo.conversation import Answer, Conversation, last_alone, messages_for
from monkey.serving.demo.settings import Refusal
from monkey.serving.demo.wording import Wording

if TYPE_CHECKING:
    from monkey.reply import Reply
    from monkey.serving.session import Answerer

REDUCED_NEW_TOKENS = 128
"""Longest answer when memory did not suffice for all that was asked for."""

SHOW_EVERY_SECONDS = 0.05
"""The page is told no more often, however fast a model writes."""


def answered(
    answerers: Sequence[Answerer], names: Sequence[str], conversation: Conversation, words: Wording
) -> Iterator[tuple[Conversation, str]]:
    """The conversation as its last answers grow, and a sentence about what was made smaller, or "".

    Where memory does not suffice, the last question is asked once more by itself.

    Raises:
        Refusal: what a model could not do, after whatever the others still said.
    """
    faults: list[str] = []
    note = ""
    with ExitStack() as replies:
        voices = [_Voice(answerer, place, conversation) for place, answerer in enumerate(answerers)]
        for voice in voices:
            replies.callback(voice.close)
        speaking, shown_at = list(voices), 0.0
        while speaking:
            for voice in tuple(speaking):
                try:
                    has_more = voice.step()
                except _EXPECTED as error:
                    speaking.remove(voice)
                    fault = _sentence(error, words)
                    faults.append(f"{names[voice.place]}: {fault}" if len(voices) > 1 else fault)
                else:
                    if not has_more:
                        speaking.remove(voice)
                note = words.reduced.format(limit=REDUCED_NEW_TOKENS) if voice.is_reduced else note
                conversation = (*conversation[:-1], conversation[-1].with_answer(voice.place, voice.answer))
            if not speaking or time.monotonic() - shown_at >= SHOW_EVERY_SECONDS:
                shown_at = time.monotonic()
                yield conversation, note
    if faults:
        raise Refusal(" ".join(faults))


class _Voice:
    """One model's answer to the last question."""

    def __init__(self, answerer: Answerer, place: int, conversation: Conversation):
        self._answerer, self.place = answerer, place
        self._conversation = conversation
        self._reply: Reply | None = None
        self.answer = Answer()
        self.is_reduced = False

    def step(self) -> bool:
        """Take the next piece; False at the end. Raises what `Answerer.chat` and its replies raise."""
        try:
            if self._reply is None:
                messages = messages_for(self._conversation, self.place, self._answerer.form)
                self._reply = self._answerer.chat(messages, self._conversation[-1].decoding)
            piece = next(self._reply, None)
        except MemoryError:
            if not self._reduce():
                raise
            return True
        if piece is None:
            reply = self._reply
            self.answer = replace(
                self.answer,
                is_finished=True,
                prompt_tokens=reply.prompt_tokens,
                new_tokens=reply.new_tokens,
                confidence=reply.confidence,
            )
        elif piece:
            self.answer = replace(self.answer, text=self.answer.text + piece)
        return piece is not None

    def _reduce(self) -> bool:
        """Begin again with less; False when that was done already."""
        if self.is_reduced:
            return False
        self.close()
        self.is_reduced, self._reply, self.answer = True, None, Answer()
        (last,) = last_alone(self._conversation)
        shorter = min(last.decoding.max_new_tokens, REDUCED_NEW_TOKENS)
        self._conversation = (replace(last, decoding=replace(last.decoding, max_new_tokens=shorter)),)
        return True

    def close(self) -> None:
        if self._reply is not None:
            self._reply.close()


# Of errors to sentences. What is not here is a fault of ours and is shown as gradio shows those.
_SENTENCES: tuple[tuple[type[BaseException], Callable[[BaseException, Wording], str]], ...] = (
    (FileNotFoundError, lambda error, words: words.gone_picture),
    (TimeoutError, lambda error, words: words.timed_out.format(reason=error)),
    (MemoryError, lambda error, words: words.out_of_memory),
    (ValueError, lambda error, words: words.refused.format(reason=error)),
    (CancelledError, lambda error, words: words.closed),
)
_EXPECTED = tuple(kind for kind, _ in _SENTENCES)


def _sentence(error: BaseException, words: Wording) -> str:
    return next(sentence(error, words) for kind, sentence in _SENTENCES if isinstance(error, kind))
