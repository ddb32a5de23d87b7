"""An answer on its way to whoever asked: its tokens become text, and the text comes piece by piece."""

from __future__ import annotations

import codecs
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Literal

from transformers import PreTrainedTokenizer

from monkey.boxes import Located, located
from monkey.tokenization import BOX_MARKERS

POLL_SECONDS = 0.25
"""How often whoever waits for the next piece gets the chance to give up."""

KEPT_MARKERS = frozenset(BOX_MARKERS)
"""Tokens of the vocabulary's special ones that belong to an answer: they say where something is."""

FinishReason = Literal["stop", "length", "cancelled"]


class Delivery:
    """What the model's side has of a reply: where pieces go, and whether anybody still wants them."""

    def __init__(self, prompt_tokens: int):
        self.prompt_tokens = prompt_tokens
        self.new_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.confidence: float | None = None
        self.error: BaseException | None = None
        self.begun = threading.Event()
        """Set when the model turns to it; the time before is waiting in line."""
        self.cancelled = threading.Event()
        self.pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def put(self, piece: str) -> None:
        if piece:
            self.pieces.put(piece)

    def end(self, reason: FinishReason | None, error: BaseException | None = None) -> None:
        """Nothing comes after this; whoever waits is told."""
        self.finish_reason, self.error = reason, error
        self.pieces.put(None)


class Reply(Iterator[str]):
    """An answer, as an iterator of its pieces; joined, they are the answer without white space around it.

    An empty piece comes every `POLL_SECONDS` in which nothing new was written. Iterating raises TimeoutError when
    nothing comes for `patience` seconds, MemoryError when the device's memory does not suffice,
    concurrent.futures.CancelledError when the model was closed before it began, and whatever else the model raised.
    A reply that is closed or dropped stops its answer, so a caller that goes away costs no more than the token in
    progress. One thread at a time may read a reply; any may close it.

    Attributes:
        finish_reason: None until the end; then "stop", "length" (no room for more tokens) or "cancelled".
        prompt_tokens: tokens of the whole prompt with its images.
        new_tokens: tokens written so far, without the one that ends an answer.
        confidence: after the end, where it was asked for: exp of the mean log-probability of the answer's tokens, the
            one that ends it included, before temperature and top_p; 1 for an answer that the model was certain of.
    """

    def __init__(self, delivery: Delivery, patience: float):
        self._delivery = delivery
        self._patience = patience
        self._waited = 0.0
        self._is_over = False
        self._read: list[str] = []

    def __next__(self) -> str:
        if self._is_over:
            raise StopIteration
        try:
            piece = self._delivery.pieces.get(timeout=POLL_SECONDS)
        except queue.Empty:
            self._wait_on()
            return ""
        self._waited = 0.0
        if piece is not None:
            self._read.append(piece)
            return piece
        self._is_over = True
        if self._delivery.error is not None:
            raise self._delivery.error
        raise StopIteration

    def _wait_on(self) -> None:
        self._waited += POLL_SECONDS if self._delivery.begun.is_set() else 0.0  # waiting in line does not count
        if self._waited >= self._patience:
            self.close()
            raise TimeoutError(f"the model wrote nothing for {self._patience:g} seconds")

    @property
    def text(self) -> str:
        """The whole answer; waits for its end, and raises what iterating raises."""
        for _ in self:
            pass
        return "".join(self._read)

    @property
    def boxes(self) -> list[Located]:
        """Where the whole answer says that things are, see `monkey.boxes`; waits as `text` does."""
        return located(self.text)

    @property
    def finish_reason(self) -> FinishReason | None:
        if self._delivery.finish_reason is None and self._delivery.cancelled.is_set():
            return "cancelled"
        return self._delivery.finish_reason

    @property
    def prompt_tokens(self) -> int:
        return self._delivery.prompt_tokens

    @property
    def new_tokens(self) -> int:
        return self._delivery.new_tokens

    @property
    def confidence(self) -> float | None:
        return self._delivery.confidence

    def close(self) -> None:
        """Stop the answer; pieces that were not read are gone."""
        self._is_over = True
        self._delivery.cancelled.set()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self):
        self._delivery.cancelled.set()


class TextAssembly:
    """Tokens to text, as far as it is certain at each of them.

    Held back are bytes of an unfinished character, what may turn out to be the beginning of a stop text, and white
    space that may be the answer's end. White space at the beginning is dropped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizer, stop: Sequence[str] = (), keep_markers: bool = True):
        self._tokenizer = tokenizer
        self._markers = KEPT_MARKERS if keep_markers else frozenset()
        self._stop = tuple(stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._has_begun = False
        self.is_stopped = False

    def push(self, token: int) -> str:
        """The text that is certain with one more token; `is_stopped` says that a stop text came."""
        content = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(content, str):
            content = content.encode() if content in self._markers else b""
        self._held += self._utf8.decode(content)
        self._cut_at_stop()
        return self._given(len(self._held) if self.is_stopped else len(self._held) - self._unsure())

    def finish(self) -> str:
        """The rest, at the end."""
        if not self.is_stopped:
            self._held += self._utf8.decode(b"", final=True)
            self._cut_at_stop()
        return self._given(len(self._held))

    def _cut_at_stop(self) -> None:
        places = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        if places:
            self._held = self._held[: min(places)]
            self.is_stopped = True

    def _unsure(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self._stop):
                return length
        return 0

    def _given(self, length: int) -> str:
        """The first `length` held characters, without white space at either end of the answer."""
        if not self._has_begun:
            certain = self._held[:length]
            dropped = len(certain) - len(certain.lstrip())
            self._held, length = self._held[dropped:], length - dropped
        piece = self._held[:length].rstrip()
        self._held = self._held[len(piece) :]
        self._has_begun = self._has_begun or bool(piece)
        return piece
