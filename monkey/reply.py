"""An answer on its way to whoever asked: its tokens become text, and the text comes in chunks."""

from __future__ import annotations

import codecs
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from monkey.boxes import WHOLE, BoxStream, Located, Share, located
from monkey.tokenization import BOX_MARKERS

POLL_SECONDS = 0.25
"""How often whoever waits for the next chunk gets the chance to give up."""

REPLY_TIMEOUT = 600.0
"""Seconds to wait for one chunk at most. The first needs the whole prompt: minutes at full size on a CPU."""

KEPT_MARKERS = frozenset(BOX_MARKERS)
"""Tokens of the vocabulary's special ones that belong to an answer: they say where something is."""

_MARKERS = re.compile("|".join(map(re.escape, BOX_MARKERS)))

LONGEST_UNSURE = 32
"""Tokens that may end in the middle of a character one after the other; more are no text in UTF-8."""

FinishReason = Literal["stop", "length", "cancelled"]


class Logprob(NamedTuple):
    """How likely a token was that was chosen: its natural log-probability, before all settings of its request."""

    token: int
    value: float
    likeliest: list[tuple[int, float]]
    """Tokens that were most likely in its place, with theirs."""


class Reply(Iterator[str]):
    """An answer, as an iterator of its chunks; joined, they are the answer without white space around it.

    An empty chunk comes every `POLL_SECONDS` in which nothing new was written. Iterating raises TimeoutError when
    nothing comes for `timeout` seconds, MemoryError when the device's memory does not suffice,
    concurrent.futures.CancelledError when the model was closed before it began, and whatever else the model raised.
    A reply that is closed or dropped stops its answer, so a caller that goes away costs no more than the token in
    progress: the engine holds no more than a weak reference. One thread at a time may read a reply; any may close it.

    Attributes:
        prompt_tokens: tokens of the whole prompt with its images.
        reused_tokens: those of them that had been read for an earlier question; told before the first chunk.
        token_ids: tokens written so far, without the one that ends an answer.
        confidence: after the end, where it was asked for: exp of the mean log-probability of the answer's tokens, the
            one that ends it included, before temperature and top_p; 1 for an answer that the model was certain of.
        logprobs: of each of `token_ids`, where they were asked for.
        log_probability, is_greedy: after the end, of an answer that was given to be weighed: the sum of its tokens'
            log-probabilities, the one that ends it included, and whether each token was the likeliest.
        error: after the end, what the model raised.
        has_begun: set when the model turns to it; the time before is waiting in line.
        is_closed: whether nobody wants the answer any more.
    """

    def __init__(self, prompt_tokens: int):
        self.prompt_tokens, self.reused_tokens = prompt_tokens, 0
        self.timeout = REPLY_TIMEOUT
        self.token_ids: list[int] = []
        self.logprobs: list[Logprob] = []
        self.confidence: float | None = None
        self.log_probability: float | None = None
        self.is_greedy: bool | None = None
        self.has_begun = threading.Event()
        self._chunks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock, self._tell = threading.Lock(), self._chunks.put
        self._finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self.is_closed = self._is_over = False
        self._waited = 0.0
        self._read: list[str] = []

    def put(self, chunk: str) -> None:
        """Give text to whoever reads; called by the engine."""
        if chunk:
            with self._lock:
                self._tell(chunk)

    def end(self, reason: FinishReason | None, error: BaseException | None = None) -> None:
        """Say that nothing comes after this; called by the engine."""
        self._finish_reason, self.error = reason, error
        with self._lock:
            self._tell(None)

    def listen(self, tell: Callable[[str | None], object]) -> None:
        """Have `tell` called with each chunk, and None at the end, in the engine's thread, in place of iterating."""
        with self._lock:
            while not self._chunks.empty():
                tell(self._chunks.get())
            self._tell = tell

    def __next__(self) -> str:
        if self._is_over:
            raise StopIteration
        try:
            chunk = self._chunks.get(timeout=POLL_SECONDS)
        except queue.Empty:
            self._wait_on()
            return ""
        self._waited = 0.0
        if chunk is not None:
            self._read.append(chunk)
            return chunk
        self._is_over = True
        if self.error is not None:
            raise self.error
        raise StopIteration

    def _wait_on(self) -> None:
        self._waited += POLL_SECONDS if self.has_begun.is_set() else 0.0  # waiting in line does not count
        if self._waited >= self.timeout:
            self.close()
            raise TimeoutError(f"the model wrote nothing for {self.timeout:g} seconds")

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
        """None until the end; then "stop", "length" (no room for more tokens) or "cancelled"."""
        return "cancelled" if self._finish_reason is None and self.is_closed else self._finish_reason

    @property
    def new_tokens(self) -> int:
        """How many tokens were written so far."""
        return len(self.token_ids)

    def close(self) -> None:
        """Stop the answer; chunks that were not read are gone."""
        self.is_closed = self._is_over = True

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _BytesOfTokens:
    """Text of tokens that are bytes, as Qwen's are, or control tokens, which are texts."""

    def __init__(self, tokenizer: PreTrainedTokenizer, markers: frozenset[str]):
        self._tokenizer, self._markers = tokenizer, markers
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        content = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(content, str):
            content = content.encode() if content in self._markers else b""
        return self._utf8.decode(content)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _DecodedTokens:
    """Text of tokens that mean something beside each other alone: a blank before a word, the bytes of a character.

    A token is decoded behind those that the last certain text came from, and its own text is what that adds.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, markers: frozenset[str]):
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._skipped = {id_ for id_, token in added if token.special and token.content not in markers}
        self._certain: list[int] = []
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        self._waiting.append(token)
        new = self._read_waiting()
        # A character whose bytes are not all there yet shows as U+FFFD.
        if not new or (new.endswith("\ufffd") and len(self._waiting) < LONGEST_UNSURE):
            return ""
        self._certain, self._waiting = self._waiting, []
        return new

    def finish(self) -> str:
        return self._read_waiting()

    def _read_waiting(self) -> str:
        known = self._tokenizer.decode(self._certain) if self._certain else ""
        return self._tokenizer.decode([*self._certain, *self._waiting])[len(known) :]


class Detokenizer:
    """Makes text of tokens, as far as it is certain at each of them.

    Held back are bytes of an unfinished character, what may turn out to be the beginning of a stop text or, on a canvas
    with padding, a box, and white space that may be the answer's end. White space at the beginning is dropped.

    Args:
        share: of the canvas that boxes are on, see `monkey.boxes`; they become those of the image.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizer | PreTrainedTokenizerFast,
        stop: Sequence[str] = (),
        keep_markers: bool = True,
        share: Share = WHOLE,
    ):
        self._keep_markers = keep_markers
        self._boxes = None if share == WHOLE else BoxStream(share)
        text_of = _DecodedTokens if isinstance(tokenizer, PreTrainedTokenizerFast) else _BytesOfTokens
        # Where boxes move, they are found by their markers.
        self._text = text_of(tokenizer, KEPT_MARKERS if keep_markers or self._boxes else frozenset())
        self._stop = tuple(stop)
        self._held = ""
        self._has_begun = False
        self.is_stopped = False

    def push(self, token: int) -> str:
        """Return the text that is certain with one more token; `is_stopped` says that a stop text came."""
        self._hold(self._text.push(token))
        self._cut_at_stop()
        return self._take(len(self._held) if self.is_stopped else len(self._held) - self._count_unsure())

    def finish(self) -> str:
        """Return the rest, at the end."""
        if not self.is_stopped:
            self._hold(self._text.finish(), is_last=True)
            self._cut_at_stop()
        return self._take(len(self._held))

    def _hold(self, text: str, is_last: bool = False) -> None:
        """Add text that was decoded, its boxes moved where they have to be."""
        if self._boxes is not None:
            text = self._boxes.push(text) + (self._boxes.finish() if is_last else "")
            if not self._keep_markers:
                text = _MARKERS.sub("", text)
        self._held += text

    def _cut_at_stop(self) -> None:
        found = [start for text in self._stop if (start := self._held.find(text)) >= 0]
        if found:
            self._held = self._held[: min(found)]
            self.is_stopped = True

    def _count_unsure(self) -> int:
        """Count the characters at the end that may be the beginning of a stop text."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self._stop):
                return length
        return 0

    def _take(self, length: int) -> str:
        """Return the first `length` held characters, without white space at either end of the answer."""
        if not self._has_begun:
            certain = self._held[:length]
            dropped = len(certain) - len(certain.lstrip())
            self._held, length = self._held[dropped:], length - dropped
        chunk = self._held[:length].rstrip()
        self._held = self._held[len(chunk) :]
        self._has_begun = self._has_begun or bool(chunk)
        return chunk
