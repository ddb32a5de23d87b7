"""Many requests answered at once by one model: a new one joins the others between two steps, a finished one leaves.

One thread computes, in turns. In each it reads a part of what is new (images through the vision side, a stretch of a
prompt, or the short rests of several prompts together), and writes one token of every answer in progress. A prompt's
beginning that was read before is not read again (`PrefixStore`); the decoder's steps are those of
`monkey.prefix_generation`. Each row has its own positions, rotary growth and random numbers, so that in fp32 a greedy
answer is that of its prompt alone, whatever else is in the batch.

Shape letters: N rows, T tokens of a step, D decoder width.
"""

from __future__ import annotations

import math
import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.serving.asides import Asides
from monkey.serving.decoding import chosen_tokens, generator_of
from monkey.serving.prefix_store import PrefixStore
from monkey.serving.reply import Delivery, FinishReason, TextAssembly
from monkey.serving.request import Picture, Request, Row
from monkey.serving.row_cache import RowCache
from monkey.serving.steps import DecoderSteps

CHUNK = 512
"""Prompt tokens that are read between two steps of the answers in progress."""

LONGEST_REST = 128
"""Tokens of a prompt that are read together with the ends of other prompts."""

IMAGES_AT_ONCE = 4
"""Images of waiting requests that go through the vision side together."""

ROOM = 128
"""Positions that rows get room for ahead of time."""

COMPILED_ROOM = 2048
"""The same where a step is compiled: room is a multiple of it, since each new shape is compiled anew."""


@dataclass
class EngineStats:
    """Counts since the engine was opened."""

    requests: int = 0
    images: int = 0
    """Images that went through the vision side."""
    vision_calls: int = 0
    read_tokens: int = 0
    """Prompt tokens that the decoder computed."""
    reused_tokens: int = 0
    """Prompt tokens whose keys and values were kept from an earlier prompt."""
    new_tokens: int = 0
    steps: int = 0
    """Steps of the decoder that wrote one token of every row."""


class Engine:
    """Continues prompts, up to `max_rows` of them at once; callers may be many threads.

    Args:
        model: in evaluation mode, on its device.
        max_rows: requests whose answers are written at the same time; others wait in line.
        cache_bytes: of keys and values of images and conversations that are kept for later prompts.
        compiled: compile the step that writes tokens; CUDA only.
        thread: what computes; a new `computing_thread` when None.

    Attributes:
        stats: what was done so far.
    """

    def __init__(
        self,
        model: MonkeyForConditionalGeneration,
        processor: MonkeyProcessor,
        max_rows: int = 8,
        cache_bytes: int = 2**30,
        compiled: bool = False,
        thread: ThreadPoolExecutor | None = None,
    ):
        self.model, self.processor = model, processor
        self.max_rows = max_rows
        self.stats = EngineStats()
        self._store = PrefixStore(cache_bytes)
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._feature_bytes = cache_bytes // 8
        self._images_at_once = IMAGES_AT_ONCE
        self._steps = DecoderSteps(model, compiled)
        self.device = self._steps.device
        self._num_layers = len(self._steps.decoder.layers)
        self._cache = RowCache(self._num_layers, is_fixed=compiled)
        self._lock = threading.RLock()  # the end of a job that is over at once is dealt with inside `submit`
        self._waiting: deque[Row] = deque()
        self._reading: list[Row] = []
        self._writing: list[Row] = []
        """Rows of the cache, in its order."""
        self._asides = Asides()
        self._at_work: Sequence[Row] = ()
        """Whom an error of what is being computed concerns."""
        self._is_running = self._is_closing = False
        self._thread = thread or computing_thread()

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are being read or answered."""
        return len(self._reading) + len(self._writing)

    def submit(self, request: Request) -> Delivery:
        """Put a request in line.

        Raises:
            ValueError: places and pictures that do not fit.
            RuntimeError: the engine is closed.
        """
        generator = generator_of(request.decoding, self.model.lm_head.weight.device)
        assembly = TextAssembly(self.processor.tokenizer, request.decoding.stop, request.decoding.keep_markers)
        row = Row.of(request, self.model.config, assembly, generator)
        with self._lock:
            if self._is_closing:
                raise RuntimeError("the model was closed; open it again to ask")
            self.stats.requests += 1
            self._waiting.append(row)
            self._wake()
        return row.delivery

    def between_steps(self, work: Callable[[], Any]) -> Future:
        """Do other work with the model in the computing thread, between two steps of the answers in progress.

        Returns:
            The future of what `work` returns or raises; MemoryError where the device's memory does not suffice.

        Raises:
            RuntimeError: the engine is closed.
        """
        with self._lock:
            if self._is_closing:
                raise RuntimeError("the model was closed; open it again to ask")
            future = self._asides.add(partial(self._relieved, work))
            self._wake()
        return future

    def _relieved(self, work: Callable[[], Any]) -> Any:
        """What `work` gives; where memory does not suffice, once more without what is only kept for later."""
        for is_last in (False, True):
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)
            if is_last or not self._relieve():
                raise MemoryError(f"the memory of {self.device} does not suffice for this")

    def close(self) -> None:
        """Stop the answers in progress and refuse those in line; returns when the model is at rest."""
        with self._lock:
            self._is_closing = True
        self._thread.shutdown(wait=True)
        self._stop_all()
        self._store.clear()

    def _wake(self) -> None:
        """Have the thread work, if it rests; the lock is held."""
        if not self._is_running:
            self._is_running = True
            self._start()

    def _start(self) -> None:
        self._thread.submit(self._work).add_done_callback(self._ended)

    @torch.no_grad()
    def _work(self) -> None:
        while self._turn():
            pass

    def _ended(self, job: Future) -> None:
        """After the last turn: an error goes to those whom it concerns, and the others go on."""
        error = job.exception()
        if error is None:
            return
        self._recover(error)
        with self._lock:
            if not self._is_closing:
                self._start()

    def _recover(self, error: BaseException) -> None:
        rows = self._at_work or [*self._reading, *self._writing]
        if _is_out_of_memory(error):
            # Its frames hold the tensors that were in the way.
            traceback.clear_frames(error.__traceback__)
            self._cache.settle()
            if self._relieve():
                return
            rows = rows[-1:]
            error = MemoryError(f"the memory of {self.device} does not suffice for this picture and prompt")
        for row in rows:
            self._remove(row)
            row.delivery.end(None, error)

    def _relieve(self) -> bool:
        """Free memory that can be done without; whether there was any."""
        can_relieve = bool(self._store.num_bytes or self._features or self._images_at_once > 1)
        self._store.clear()
        self._features.clear()
        self._images_at_once = 1
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return can_relieve

    def _turn(self) -> bool:
        """Read a part, write a token; whether there is anything left to do."""
        self._at_work = ()
        if self._is_closing:
            self._stop_all()
            return False
        with self._lock:
            self._admit()
            aside = self._asides.take()
            if aside is None and not self._reading and not self._writing:
                self._is_running = False
                return False
        if aside is not None:
            aside()
        if self._reading:
            self._read()
            self._part_with_finished()
        if self._writing:
            self._write()
            self._part_with_finished()
        return True

    def _stop_all(self) -> None:
        for row in (*self._reading, *self._writing):
            row.delivery.end("cancelled")
        for row in self._waiting:
            row.delivery.end(None, CancelledError("the model was closed before it came to this request"))
        self._reading, self._writing = [], []
        self._waiting.clear()
        self._asides.cancel()
        self._cache.clear()

    def _part_with_finished(self) -> None:
        """Let go of what is finished or no longer wanted."""
        for row in [row for row in self._reading if row.delivery.cancelled.is_set()]:
            self._remove(row)
            row.delivery.end("cancelled")
        for row in list(self._writing):
            if row.reason is None and row.delivery.cancelled.is_set():
                row.reason = "cancelled"
            if row.reason is not None:
                self._finish(row, row.reason)
        if not self._writing and not self._cache.is_fixed:
            self._cache.clear()

    def _finish(self, row: Row, reason: FinishReason) -> None:
        self._at_work = (row,)
        if row.request.is_conversation:
            ends = [*(end for _, end in row.spans), row.cached]
            read = partial(self._cache.read, self._writing.index(row))
            self._store.keep(row.growth, row.symbols[: row.cached], ends, read)
        self._remove(row)
        delivery = row.delivery
        if row.request.decoding.confidence and row.chosen:
            delivery.confidence = math.exp(row.log_probability / row.chosen)
        delivery.put(row.assembly.finish())
        delivery.end(reason)

    def _remove(self, row: Row) -> None:
        """Take a row out; the last row of the cache takes its place."""
        if row in self._reading:
            self._reading.remove(row)
            return
        if row not in self._writing:
            return
        place, last = self._writing.index(row), self._writing[-1]
        if row is not last:
            self._cache.move(len(self._writing) - 1, place, last.cached)
            self._writing[place] = last
        self._writing.pop()

    def _admit(self) -> None:
        """Requests in line take the free places; the lock is held."""
        for row in [row for row in self._waiting if row.delivery.cancelled.is_set()]:
            self._waiting.remove(row)
            row.delivery.end("cancelled")
        while self._waiting and self.running < self.max_rows:
            row = self._waiting.popleft()
            row.delivery.begun.set()
            self._reading.append(row)

    def _read(self) -> None:
        """One part of reading: the rests of several prompts, some images, or a stretch of a prompt."""
        for row in self._reading:
            if row.scratch is None:
                self._plan(row)
        ready = [row for row in self._reading if row.read_until <= row.cached]
        if ready:
            self._join(ready)
            return
        missing = {
            picture.digest: picture
            for row in self._reading
            for picture in row.needed()
            if picture.digest not in row.features
        }
        if missing:
            self._encode(list(missing.values())[: self._images_at_once])
        else:
            self._read_stretch(self._reading[0])

    def _plan(self, row: Row) -> None:
        """What is known of a prompt, and how far it is to be read before its rest can join the others."""
        prompt = row.symbols[:-1]  # the last token is always computed, for what follows it
        row.stretches = self._store.find(row.growth, prompt)
        row.cached = sum(stretch.length for stretch in row.stretches)
        last_image = max((end for _, end in row.spans if end > row.cached), default=0)
        rest_begins = len(row.ids) - LONGEST_REST
        row.read_until = max(last_image, rest_begins) if rest_begins > row.cached else last_image
        for picture in row.needed():
            if picture.digest in self._features:
                self._features.move_to_end(picture.digest)
                row.features[picture.digest] = self._features[picture.digest]

    def _encode(self, pictures: list[Picture]) -> None:
        """Features of pictures, for every row that needs them and for later ones."""
        digests = {picture.digest for picture in pictures}
        rows = self._at_work = [row for row in self._reading if digests & {picture.digest for picture in row.needed()}]
        canvases = torch.from_numpy(np.stack([picture.canvas for picture in pictures])).to(self.device)
        pixels = self.processor.image_processor.normalised(canvases).to(self.model.dtype)
        features = self.model.get_image_features(pixels)
        self.stats.vision_calls += 1
        self.stats.images += len(pictures)
        for picture, own in zip(pictures, features, strict=True):
            self._features[picture.digest] = own.clone()  # no hold on the memory of the others
            for row in rows:
                row.features[picture.digest] = self._features[picture.digest]
        while self._features and _bytes_of(self._features.values()) > self._feature_bytes:
            self._features.popitem(last=False)

    def _read_stretch(self, row: Row) -> None:
        """Read on in a prompt, in keys and values of its own; at the end of an image they are kept for others."""
        self._at_work = (row,)
        if row.scratch is None:
            scratch = RowCache(self._num_layers)
            scratch.reserve(1, row.read_until)
            for stretch in row.stretches:
                scratch.write(0, stretch.start, stretch.keys, stretch.values)
            row.scratch, row.stretches, row.reused = scratch, [], row.cached
        start = row.cached
        end = min(row.read_until, start + (CHUNK if self._writing else 4 * CHUNK))
        images = [
            (first, row.features[picture.digest])
            for picture, (first, beyond) in zip(row.request.pictures, row.spans, strict=True)
            if beyond > start
        ]
        self._steps.read_stretch(row.scratch, row.ids[start:end], start, row.growth, images)
        row.cached = end
        if end == row.read_until:
            row.features = {}
            ends = [beyond for _, beyond in row.spans if beyond <= end]
            self._store.keep(row.growth, row.symbols[:end], ends, partial(row.scratch.read, 0))

    def _join(self, rows: list[Row]) -> None:
        """Read the rests of prompts together and choose their first tokens; from here on they write with the others."""
        self._at_work = rows
        first = len(self._writing)
        rests = [row.ids[row.cached :] for row in rows]
        self._reserve([*self._writing, *rows], max(map(len, rests)))
        for place, row in enumerate(rows, start=first):
            if row.scratch is not None:
                self._cache.write(place, 0, *row.scratch.read(0, 0, row.cached))
            for stretch in row.stretches:
                self._cache.write(place, stretch.start, stretch.keys, stretch.values)
        last = self._steps.read_rests(
            self._cache, first, rests, [row.cached for row in rows], [row.growth for row in rows]
        )
        chosen = self._choose(last, rows)
        for row in rows:
            reused = row.cached if row.scratch is None else row.reused
            self.stats.reused_tokens += reused
            self.stats.read_tokens += len(row.ids) - reused
            self._reading.remove(row)
            self._writing.append(row)
            row.cached, row.scratch, row.stretches = len(row.ids), None, []
        self._take(rows, *chosen)

    def _write(self) -> None:
        """One more token of every answer in progress."""
        rows = self._at_work = list(self._writing)
        self._reserve(rows, 1)
        last = self._steps.write(
            self._cache, [row.ids[-1] for row in rows], [row.cached for row in rows], [row.growth for row in rows]
        )
        chosen = self._choose(last, rows)
        self.stats.steps += 1
        for row in rows:
            row.cached += 1
        self._take(rows, *chosen)

    def _reserve(self, rows: Sequence[Row], width: int) -> None:
        """Room for `width` more tokens of each row, with some to spare when it has to grow."""
        needed = max(row.cached for row in rows) + width
        if needed <= self._cache.length and len(rows) <= self._cache.rows:
            return
        count, length = len(rows), needed + ROOM
        if self._cache.is_fixed:
            count, length = 1 << (count - 1).bit_length(), -(-length // COMPILED_ROOM) * COMPILED_ROOM
        self._cache.reserve(count, length if needed > self._cache.length else 0)

    def _choose(self, last: torch.Tensor, rows: Sequence[Row]) -> tuple[list[int], list[float]]:
        """The next token of each row from its last hidden state [N, D], and its log-probability where it is asked."""
        logits = self._steps.logits(last)
        wanted = [place for place, row in enumerate(rows) if row.request.decoding.confidence]
        certain = logits[wanted].log_softmax(dim=-1) if wanted else None
        for place, row in enumerate(rows):
            if not row.delivery.new_tokens:
                logits[place, list(row.request.end_ids)] = -torch.inf
        tokens = chosen_tokens(logits, [row.request.decoding for row in rows], [row.generator for row in rows])
        log_probabilities = [0.0] * len(rows)
        if certain is not None:
            own = torch.tensor([tokens[place] for place in wanted], device=certain.device)
            for place, value in zip(wanted, certain.gather(1, own[:, None])[:, 0].tolist(), strict=True):
                log_probabilities[place] = value
        return tokens, log_probabilities

    def _take(self, rows: Sequence[Row], tokens: Sequence[int], log_probabilities: Sequence[float]) -> None:
        """Give each row its token; pieces of text go out, and a row that ends here is marked."""
        for row, token, log_probability in zip(rows, tokens, log_probabilities, strict=True):
            row.chosen += 1
            row.log_probability += log_probability
            if token in row.request.end_ids:
                row.reason = "stop"
                continue
            row.ids.append(token)
            row.symbols.append(token)
            row.delivery.new_tokens += 1
            self.stats.new_tokens += 1
            row.delivery.put(row.assembly.push(token))
            if row.assembly.is_stopped:
                row.reason = "stop"
            elif row.delivery.new_tokens >= row.request.limit:
                row.reason = "length"


def computing_thread() -> ThreadPoolExecutor:
    """A thread of its own, for a model to be opened and to compute in."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of a CPU, whose allocator has no error of its own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
