"""Many requests answered at once by one model: a new one joins the others between two steps, a finished one leaves.

The evaluator, scores while training, `monkey.ask`, the demo and the server all ask here. In each turn the engine reads
a part of what is new (images through the vision side, then the tokens of several prompts in one packed row), and writes
one token of every answer in progress. The beginning of a prompt that was read before, an image above all, is not read
again: rows refer to its keys and values (`monkey.kv_cache`). Each row has its own positions, rotary growth and random
numbers, so that in fp32 a greedy answer is that of its prompt alone, whatever else is in the batch.

Shape letters: N rows, T tokens of a pass, D decoder width, H, W an image's canvas.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
import traceback
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from monkey.boxes import WHOLE, Share
from monkey.configuration import MonkeyConfig
from monkey.decoders import longest_sequence
from monkey.decoding import Decoding, choose_tokens, make_generator, penalise
from monkey.grammar import Grammar, SchemaError
from monkey.grids import NO_WINDOWS, Grid
from monkey.image_processing import MonkeyImageProcessor
from monkey.kv_cache import KVCache, Prefill, PrefixBlock, PrefixStore
from monkey.language import find_ntk_alpha
from monkey.modeling import MonkeyForConditionalGeneration, image_slots
from monkey.processing import MonkeyProcessor, TooLong
from monkey.reply import Detokenizer, FinishReason, Logprob, Reply

CHUNK = 512
"""Prompt tokens that are read between two steps of the answers in progress."""

PREFILL_TOKENS = 16384
"""Prompt tokens that are read in one pass while no answer is in progress."""

LONGEST_REST = 128
"""Tokens at the end of a prompt that are not kept for others, nor wait for the images of others."""

IMAGES_AT_ONCE = 4
"""Images of waiting requests that go through the vision side together."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image as the model sees it, uint8 [3, H, W], and what tells it from others: the digest of its pixels, say.

    Where one image may lie on several canvases, by requests that limit its windows, the digest must tell those too. The
    image covers a `share` of it, by which boxes in answers are moved. With `global_only` its windows are not seen.
    """

    digest: bytes
    pixels: np.ndarray
    share: Share = WHOLE
    global_only: bool = False

    @classmethod
    def of(cls, pixels: np.ndarray, share: Share = WHOLE) -> Canvas:
        """Return a canvas with the SHA-256 of its shape and pixels."""
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels))
        return cls(digest.digest(), pixels, share)

    @classmethod
    def read(
        cls, image: Any, processor: MonkeyImageProcessor, name: str | None = None, digest: bytes | None = None
    ) -> Canvas:
        """Return the canvas of an image; the arguments are those of `MonkeyImageProcessor.canvas`."""
        pixels, share = processor.canvas(image, name), WHOLE
        if processor.fit == "pad":
            share = processor.place(processor.measure(image, name)).share
        return cls.of(pixels, share) if digest is None else cls(digest, pixels, share)

    def seen_whole(self) -> Canvas:
        """Return this canvas as one that is seen as its global view alone."""
        return replace(self, digest=b"global view " + self.digest, global_only=True)

    def grid(self, config: MonkeyConfig) -> Grid:
        """Return rows and columns of its windows; the model's where all images lie on one grid."""
        if self.global_only:
            return NO_WINDOWS
        if not config.is_ragged:
            return config.grid
        _, height, width = self.pixels.shape
        return height // config.window_size, width // config.window_size


@dataclass(eq=False)
class Request:
    """A prompt to be continued.

    Args:
        ids: the whole prompt, with a span for each of `images`.
        limit: most new tokens; `decoding` says no more than that here.
        end_ids: tokens that end the answer.
        is_conversation: whether what follows this prompt may be asked next, so that its keys and values are kept.
        min_new_tokens: tokens before which the answer does not end.
        given: the whole answer, the token that ends it included, to be weighed instead of written; `limit` has room
            for it.
        grammar: what the answer is held to; each request needs its own.
    """

    ids: list[int]
    images: list[Canvas]
    decoding: Decoding
    limit: int
    end_ids: frozenset[int]
    is_conversation: bool = False
    min_new_tokens: int = 1
    given: tuple[int, ...] = ()
    grammar: Grammar | None = None


@dataclass
class EngineStats:
    """Counts since the engine was opened, and what took how long."""

    requests: int = 0
    images: int = 0
    """Images that went through the vision side."""
    read_tokens: int = 0
    """Prompt tokens that the decoder computed."""
    reused_tokens: int = 0
    """Prompt tokens whose keys and values another prompt had left, or leaves in the same pass."""
    new_tokens: int = 0
    steps: int = 0
    """Steps of the decoder that wrote one token of every row."""
    vision_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(eq=False)
class _Row:
    """A request on its way: `cached` of its `ids` have keys and values."""

    request: Request
    reply: weakref.ref[Reply]
    detokenizer: Detokenizer
    generator: torch.Generator | None
    ntk_alpha: float
    spans: list[tuple[int, int]]
    """First and one past the last slot of each image."""
    ids: list[int]
    cache_keys: list[int | bytes]
    prefix: PrefixBlock | None = None
    """What was read so far; once the row writes, what it refers to of that."""
    parts: list[PrefixBlock] = field(default_factory=list)
    """Blocks of a stretch that is being read chunk by chunk."""
    read: int = 0
    """Tokens of the prompt that were computed for this row."""
    cached: int = 0
    is_suspect: bool = False
    """Whether reading failed, in company: it is read alone next, so that an error reaches its own asker only."""
    log_probability: float = 0.0
    is_greedy: bool = True
    """Whether every token of a given answer was the likeliest."""
    chosen: int = 0
    likeliest: list[tuple[int, float]] = field(default_factory=list)
    """Of the token that was chosen last, the likeliest in its place with their log-probabilities."""
    reason: FinishReason | None = None
    error: SchemaError | None = None
    """Why the answer cannot go on as its request wants it."""

    @property
    def tail_start(self) -> int:
        """Position of the first token that the row has keys and values of its own for."""
        return self.prefix.end if self.prefix else 0

    @property
    def new_tokens(self) -> int:
        return len(self.ids) - len(self.request.ids)

    @property
    def is_wanted(self) -> bool:
        reply = self.reply()
        return reply is not None and not reply.is_closed

    def needed(self) -> list[Canvas]:
        """Return the images whose slots are still to be read."""
        images = zip(self.request.images, self.spans, strict=True)
        return [image for image, (_, end) in images if end > self.tail_start]

    def next_stop(self, start: int) -> int:
        """Return where a block from `start` on ends: behind an image, before the prompt's rest, or with the prompt."""
        rest = len(self.ids) - LONGEST_REST
        stops = [end for _, end in self.spans if end > start]
        return min([*stops, rest if rest > max([start, *stops]) else len(self.ids)])

    def put(self, text: str) -> None:
        if (reply := self.reply()) is not None:
            reply.put(text)

    def end(self, reason: FinishReason | None, error: BaseException | None = None) -> None:
        if (reply := self.reply()) is not None:
            if self.request.decoding.confidence and self.chosen:
                reply.confidence = math.exp(self.log_probability / self.chosen)
            if self.request.given:
                reply.log_probability, reply.is_greedy = self.log_probability, self.is_greedy
            reply.end(reason, error)


def _make_row(request: Request, reply: Reply, config: MonkeyConfig, processor: MonkeyProcessor, device) -> _Row:
    """Return a request before anything was done; ValueError for image places and images that do not fit, or TooLong."""
    longest = longest_sequence(config.text_config)
    if longest is not None:
        tokens = len(request.ids) + len(request.given[:-1])
        if tokens > longest:
            raise TooLong(
                f"the prompt has {tokens:,} tokens, and the {config.text_config.model_type} decoder is exact "
                f"here up to {longest:,} (its sliding window, or its rotary positions): give less text or fewer images"
            )
        # The last token is written and not read.
        request = replace(request, limit=min(request.limit, longest - len(request.ids) + 1))
    grids = [image.grid(config) for image in request.images]
    differ = config.is_ragged or NO_WINDOWS in grids
    image_slots(torch.tensor([request.ids]), config, len(grids), grids if differ else None)
    starts = [position + 1 for position, token in enumerate(request.ids) if token == config.image_start_id]
    spans = [(start, start + config.tokens_of(grid)) for start, grid in zip(starts, grids, strict=True)]
    cache_keys: list[int | bytes] = list(request.ids)
    for image, (start, end) in zip(request.images, spans, strict=True):
        cache_keys[start:end] = [image.digest] * (end - start)
    decoding = request.decoding
    share = request.images[-1].share if request.images else WHOLE
    return _Row(
        request,
        weakref.ref(reply),
        Detokenizer(processor.tokenizer, decoding.stop, decoding.keep_markers, share),
        make_generator(decoding, device),
        find_ntk_alpha(len(request.ids), config.text_config),
        spans,
        list(request.ids),
        cache_keys,
    )


class Engine:
    """Continues prompts, up to `max_rows` of them at once; callers may be many threads.

    Args:
        model: in evaluation mode, on its device.
        max_rows: requests whose answers are written at the same time; others wait in line.
        cache_bytes: of keys and values of images and conversations that are kept for later prompts.
        compiled: compile the step that writes tokens; CUDA only.
        thread: what computes; a new `computing_thread` when None. `run` needs none.

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
        self._decoder = model.model.language_model
        self.device = model.get_input_embeddings().weight.device
        self._decode_layers = None
        if compiled:
            if not hasattr(self._decoder, "run_layers"):
                raise ValueError(
                    f"compile=True: the step of a {model.config.text_config.model_type} decoder is not compiled, only "
                    "that of Qwen-7B; leave it out"
                )
            # Shapes change only when rows or room are added, so each is compiled once.
            self._decode_layers = torch.compile(self._decoder.run_layers, mode="reduce-overhead", dynamic=False)
        self._cache = KVCache(model.config.text_config.num_hidden_layers, is_fixed=compiled)
        self._store = PrefixStore(cache_bytes)
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._feature_bytes = cache_bytes // 8
        self._images_at_once, self._prefill_tokens = IMAGES_AT_ONCE, PREFILL_TOKENS
        self._lock = threading.RLock()  # a request that is over at once is dealt with inside `submit`
        self._waiting: deque[_Row] = deque()
        self._reading: list[_Row] = []
        self._writing: list[_Row] = []
        """Rows of the cache, in its order."""
        self._exclusive: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._at_work: Sequence[_Row] = ()
        """The rows that an error of what is being computed concerns."""
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

    def submit(self, request: Request) -> Reply:
        """Put a request in line.

        Raises:
            ValueError: image places and images that do not fit.
            RuntimeError: the engine is closed.
        """
        reply = self._enqueue(request)
        with self._lock:
            self._wake()
        return reply

    def run(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer requests in the calling thread, with its autocast; every reply is over when this returns.

        Raises:
            ValueError, RuntimeError: as `submit`.
        """
        replies = [self._enqueue(request) for request in requests]
        self._is_running = True
        try:
            self._work()
        except BaseException:
            self._stop_all()
            raise
        finally:
            self._is_running = False
        return replies

    def run_greedily(self, requests: Sequence[Request]) -> list[list[int]]:
        """As `run`; return the new tokens of greedy requests, the one that ends an answer included.

        Weights that are sharded over processes are gathered in every process alike: `generate` sees to that, which goes
        on until the longest answer of all processes has ended.

        Raises:
            torch.OutOfMemoryError: the device's memory does not suffice.
        """
        if is_sharded(self.model):
            return self._generate_in_step(requests) if requests else []
        replies = self.run(requests)
        for error in (reply.error for reply in replies if reply.error is not None):
            raise torch.OutOfMemoryError(str(error)) if isinstance(error, MemoryError) else error
        ends = [list(request.end_ids)[:1] for request in requests]
        return [
            [*reply.token_ids, *(end if reply.finish_reason == "stop" else [])]
            for reply, end in zip(replies, ends, strict=True)
        ]

    @torch.no_grad()
    def _generate_in_step(self, requests: Sequence[Request]) -> list[list[int]]:
        (end_id,) = requests[0].end_ids
        samples = [{"input_ids": request.ids} for request in requests]
        for sample, request in zip(samples, requests, strict=True):
            if request.images:
                sample.update(self._image_inputs(request.images))
        inputs = self.processor.collate(samples, padding_side="left")
        generated = self.model.generate(
            **{name: tensor.to(self.device) for name, tensor in inputs.items()},
            do_sample=False,
            num_beams=1,
            min_new_tokens=requests[0].min_new_tokens,
            max_new_tokens=max(request.limit for request in requests),
            eos_token_id=end_id,
            pad_token_id=end_id,
        )
        answers = [
            row[: request.limit]
            for row, request in zip(generated[:, inputs["input_ids"].shape[1] :].tolist(), requests, strict=True)
        ]
        return [ids[: ids.index(end_id) + 1] if end_id in ids else ids for ids in answers]

    def run_exclusive(self, work: Callable[[], Any]) -> Future:
        """Do other work with the model in the computing thread, between two steps of the answers in progress.

        Returns:
            The future of what `work` returns or raises; MemoryError where the device's memory does not suffice.

        Raises:
            RuntimeError: the engine is closed.
        """
        future: Future = Future()
        with self._lock:
            self._check_open()
            self._exclusive.append((future, work))
            self._wake()
        return future

    def close(self) -> None:
        """Stop the answers in progress and refuse those in line; returns when the model is at rest."""
        with self._lock:
            self._is_closing = True
        self._thread.shutdown(wait=True)
        self._stop_all()
        self._store.clear()

    def _enqueue(self, request: Request) -> Reply:
        reply = Reply(len(request.ids))
        row = _make_row(request, reply, self.model.config, self.processor, self.model.lm_head.weight.device)
        with self._lock:
            self._check_open()
            self.stats.requests += 1
            self._waiting.append(row)
        return reply

    def _check_open(self) -> None:
        if self._is_closing:
            raise RuntimeError("the model was closed; open it again to ask")

    def _wake(self) -> None:
        """Have the thread work, if it rests; the lock is held."""
        if not self._is_running:
            self._is_running = True
            self._thread.submit(self._work)

    @torch.no_grad()
    def _work(self) -> None:
        """Turn after turn until there is nothing left; an error goes to those whom it concerns."""
        error: Exception | None = None
        while True:
            if error is not None:
                # Its frames hold tensors, which may be what was in the way.
                traceback.clear_frames(error.__traceback__)
                self._recover(error)
                error = None
            try:
                if not self._turn():
                    return
            except Exception as raised:
                error = raised

    def _turn(self) -> bool:
        """Read a part, write a token; whether there is anything left to do."""
        self._at_work = ()
        if self._is_closing:
            self._stop_all()
            return False
        with self._lock:
            self._admit()
            job = self._exclusive.popleft() if self._exclusive else None
            if job is None and not self.running:
                self._trim()
                self._is_running = False
                return False
        for row in self._reading:
            self._plan(row)
        self._trim()
        if job is not None:
            self._do(*job)
        if self._reading:
            self._read()
            self._part_with_finished()
        if self._writing:
            self._write()
            self._part_with_finished()
        return True

    def _do(self, future: Future, work: Callable[[], Any]) -> None:
        """Do exclusive work; where memory does not suffice, once more without what is only kept for later."""
        if not future.set_running_or_notify_cancel():
            return
        for is_last in (False, True):
            try:
                future.set_result(work())
                return
            except BaseException as raised:
                error = raised
            if not _is_out_of_memory(error):
                break
            traceback.clear_frames(error.__traceback__)
            error = MemoryError(f"the memory of {self.device} does not suffice for this")
            if is_last or not self._relieve():
                break
        future.set_exception(error)

    def _recover(self, error: Exception) -> None:
        """After an error: another attempt with more memory or in other company, or the end of those it concerns."""
        rows = list(self._at_work or (*self._reading, *self._writing))
        if _is_out_of_memory(error):
            if self._relieve():
                return
            rows = rows[-1:]
            error = MemoryError(f"the memory of {self.device} does not suffice for this image and prompt")
        elif len(rows) > 1 and not any(row.is_suspect for row in rows) and set(rows) <= set(self._reading):
            for row in rows:
                row.is_suspect = True
            return
        for row in rows:
            self._remove(row)
            row.end(None, error)

    def _relieve(self) -> bool:
        """Free memory that can be done without; whether there was any."""
        before = (self._images_at_once, self._prefill_tokens, len(self._features))
        had_blocks = bool(self._store.num_bytes)
        self._store.clear()
        self._images_at_once, self._prefill_tokens = 1, CHUNK
        self._forget_features(0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return had_blocks or before != (self._images_at_once, self._prefill_tokens, len(self._features))

    def _stop_all(self) -> None:
        for row in (*self._reading, *self._writing):
            row.end("cancelled")
        for row in self._waiting:
            row.end(None, CancelledError("the model was closed before it came to this request"))
        for future, _ in self._exclusive:
            future.cancel()
        self._reading, self._writing = [], []
        self._waiting.clear()
        self._exclusive.clear()
        self._cache.clear()

    def _admit(self) -> None:
        """Requests in line take the free places; the lock is held."""
        for row in [row for row in self._waiting if not row.is_wanted]:
            self._waiting.remove(row)
            row.end("cancelled")
        while self._waiting and self.running < self.max_rows:
            row = self._waiting.popleft()
            if (reply := row.reply()) is not None:
                reply.has_begun.set()
            self._reading.append(row)

    def _part_with_finished(self) -> None:
        """Let go of what is finished or no longer wanted."""
        for row in [row for row in self._reading if not row.is_wanted]:
            self._remove(row)
            row.end("cancelled")
        for row in list(self._writing):
            if row.reason is None and not row.is_wanted:
                row.reason = "cancelled"
            if row.reason is not None or row.error is not None:
                self._finish(row, row.reason)
        if not self._writing and not self._cache.is_fixed:
            self._cache.clear()

    def _finish(self, row: _Row, reason: FinishReason | None) -> None:
        self._at_work = (row,)
        if row.request.is_conversation and self._store.max_bytes:
            self._keep(row)
        self._remove(row)
        if not self._waiting:  # who comes next may ask about the same image
            self._trim()
        row.put(row.detokenizer.finish())
        row.end(reason, row.error)

    def _keep(self, row: _Row) -> None:
        """Keep what a row has of its own, prompt and answer, for when its conversation goes on."""
        parent = self._store.find(row.ntk_alpha, row.cache_keys[: row.cached])
        start = parent.end if parent else 0
        if row.tail_start <= start < row.cached:
            block = PrefixBlock(tuple(row.cache_keys[start : row.cached]), parent)
            self._cache.read(self._writing.index(row), start - row.tail_start, row.cached - row.tail_start, block)
            self._store.insert(row.ntk_alpha, block)

    def _remove(self, row: _Row) -> None:
        """Take a row out; the last row of the cache takes its place."""
        if row in self._reading:
            self._reading.remove(row)
            return
        if row not in self._writing:
            return
        place, last = self._writing.index(row), self._writing[-1]
        if row is not last:
            self._cache.move(len(self._writing) - 1, place, last.cached - last.tail_start)
            self._writing[place] = last
        self._writing.pop()

    def _trim(self) -> None:
        self._store.trim({row.prefix for row in (*self._reading, *self._writing)})

    def _plan(self, row: _Row) -> None:
        """Find what was read of a prompt by others meanwhile; the last token is always computed."""
        found = self._store.find(row.ntk_alpha, row.cache_keys[: len(row.request.ids) - 1])
        if found is not None and found.end > row.tail_start:
            row.prefix, row.parts = found, []
        for image in row.needed():
            if image.digest in self._features:
                self._features.move_to_end(image.digest)

    def _read(self) -> None:
        """One part of reading: the rests of several prompts, some images, or chunks of several prompts."""
        missing = {
            image.digest: image for row in self._reading for image in row.needed() if image.digest not in self._features
        }
        short = [
            row
            for row in self._reading
            if len(row.ids) - row.tail_start <= LONGEST_REST
            and not any(image.digest in missing for image in row.needed())
        ]
        if short:
            self._prefill(short)
        elif missing:
            first, *_ = missing.values()
            alike = [image for image in missing.values() if image.global_only == first.global_only]
            self._encode(alike[: self._images_at_once])
        else:
            self._prefill(self._reading)

    def _encode(self, images: list[Canvas]) -> None:
        """Compute the features of images, for every row that needs them and for later ones.

        Args:
            images: all of them with their windows, or all seen as their global views alone.
        """
        digests = {image.digest for image in images}
        self._at_work = [row for row in self._reading if digests & {image.digest for image in row.needed()}]
        with self._timed("vision"):
            if images[0].global_only:
                features = self.model.get_global_features([self._normalised(image.pixels) for image in images])
            else:
                inputs = self._image_inputs(images)
                features = self.model.get_image_features(*inputs.values())
                if "image_grids" in inputs:
                    features = features.split(list(map(self.model.config.tokens_of, inputs["image_grids"].tolist())))
        self.stats.images += len(images)
        for image, own in zip(images, features, strict=True):
            self._features[image.digest] = own.clone()  # no hold on the memory of the others
        self._forget_features(self._feature_bytes)

    def _image_inputs(self, images: Sequence[Canvas]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` of images, normalised on the model's device, and `image_grids` where they have some."""
        arrays = self.processor.image_processor.cut([image.pixels for image in images])
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return {**inputs, "pixel_values": self._normalised(arrays["pixel_values"])}

    def _normalised(self, pixels: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(pixels).to(self.device)
        return self.processor.image_processor.normalised(pixels).to(self.model.dtype)

    def _forget_features(self, max_bytes: int) -> None:
        """Forget the oldest features that no prompt waits for, down to `max_bytes`."""
        needed = {image.digest for row in self._reading for image in row.needed()}
        num_bytes = sum(x.nbytes for x in self._features.values())
        for digest in [digest for digest in self._features if digest not in needed]:
            if num_bytes <= max_bytes:
                return
            num_bytes -= self._features.pop(digest).nbytes

    def _prefill(self, rows: Sequence[_Row]) -> None:
        """Read chunks of prompts in one pass; those that end in it get their first tokens and write from here on."""
        rows = next(([row] for row in rows if row.is_suspect), list(rows))
        pieces = self._next_pieces(rows)
        self._at_work = list(dict.fromkeys(row for row, _, _ in pieces))
        try:
            with self._timed("prefill"):
                last = self._run_prefill(pieces)
        except BaseException:
            failed = {block for _, block, _ in pieces}
            for _, block, _ in reversed(pieces):
                self._store.discard(block)
            for row in self._reading:
                while row.prefix in failed:  # found in the same pass
                    row.prefix, row.parts = row.prefix.parent, []
            raise
        for row, block, is_end in pieces:
            row.read += len(block)
            self.stats.read_tokens += len(block)
            if not is_end:
                self._advance(row, block)
        ended = [(row, block) for row, block, is_end in pieces if is_end]
        if ended:
            self._join(ended, last)
        self._forget_features(self._feature_bytes)

    def _next_pieces(self, rows: Sequence[_Row]) -> list[tuple[_Row, PrefixBlock, bool]]:
        """Return what is to be read of rows next: blocks, and whether the prompt ends with each.

        A block is found by the rows behind at once, though the pass has still to compute it.
        """
        budget = CHUNK if self._writing else self._prefill_tokens
        pieces = []
        for row in rows:
            self._plan(row)
            prefix, start = row.prefix, row.tail_start
            while budget and start < len(row.ids):
                end = min(row.next_stop(start), start + budget)
                block, is_end = PrefixBlock(tuple(row.cache_keys[start:end]), prefix), end == len(row.ids)
                if not is_end:
                    self._store.insert(row.ntk_alpha, block)
                pieces.append((row, block, is_end))
                prefix, start, budget = block, end, budget - len(block)
        return pieces

    def _run_prefill(self, pieces: Sequence[tuple[_Row, PrefixBlock, bool]]) -> torch.Tensor:
        """Return the last hidden states [n, D] of the prompts that end here; the blocks get keys and values."""
        blocks, ends = [block for _, block, _ in pieces], [is_end for _, _, is_end in pieces]
        ids = [token for row, block, _ in pieces for token in row.ids[block.start : block.end]]
        hidden = self._embed(ids)
        offset = 0
        for row, block, _ in pieces:
            for image, (first, beyond) in zip(row.request.images, row.spans, strict=True):
                start, end = max(first, block.start), min(beyond, block.end)
                if start < end:
                    features = self._features[image.digest][start - first : end - first]
                    hidden[0, offset + start - block.start : offset + end - block.start] = features
            offset += len(block)
        positions = torch.cat([torch.arange(block.start, block.end) for block in blocks])[None]
        alphas = [row.ntk_alpha for row, block, _ in pieces for _ in range(len(block))]
        return self._decoder.read_prompts(hidden, positions, alphas, Prefill(blocks, ends))

    def _advance(self, row: _Row, block: PrefixBlock) -> None:
        """Note that a block of a row was read; a stretch that was read in several becomes one."""
        row.prefix = block
        row.parts.append(block)
        if row.next_stop(block.start) != block.end:
            return
        if len(row.parts) > 1:
            rows = (*self._reading, *self._writing)
            joined = self._store.join(row.ntk_alpha, row.parts, {other.prefix for other in rows})
            for other in rows:
                if other.prefix is block:
                    other.prefix = joined
        row.parts = []

    def _join(self, ended: Sequence[tuple[_Row, PrefixBlock]], last: torch.Tensor) -> None:
        """Give rows whose prompts were read a place in the cache, and choose their first tokens."""
        rows = [row for row, _ in ended]
        for place, (row, rest) in enumerate(ended, start=len(self._writing)):
            rest.parent = row.prefix
            row.prefix = self._cache.admit(place, rest)
        chosen = self._choose(last, rows)
        for row in rows:
            reused = max(0, len(row.ids) - row.read)  # less than none where reading began again
            self.stats.reused_tokens += reused
            if (reply := row.reply()) is not None:
                reply.reused_tokens = reused
            self._reading.remove(row)
            self._writing.append(row)
            row.cached = len(row.ids)
        self._take(rows, *chosen)

    def _write(self) -> None:
        """One more token of every answer in progress."""
        rows = self._at_work = list(self._writing)
        with self._timed("decode"):
            chosen = self._choose(self._decode(rows), rows)
        self.stats.steps += 1
        for row in rows:
            row.cached += 1
        self._take(rows, *chosen)

    def _decode(self, rows: Sequence[_Row]) -> torch.Tensor:
        """Return the last hidden states [N, D] after one more token of each row."""
        places = [row.cached - row.tail_start for row in rows]
        self._cache.reserve(len(rows), max(places) + 1)
        self._cache.prepare([row.prefix for row in rows], places)
        unused = self._cache.rows - len(rows) if self._cache.is_fixed else 0
        hidden = self._embed([*(row.ids[-1] for row in rows), *[0] * unused])
        positions = torch.tensor([[*(row.cached for row in rows), *[0] * unused]])
        alphas = [*(row.ntk_alpha for row in rows), *[rows[0].ntk_alpha] * unused]
        written = self._decoder.write_tokens(hidden, positions, alphas, self._cache, self._decode_layers)
        return written[: len(rows)]

    def _embed(self, ids: list[int]) -> torch.Tensor:
        return self.model.get_input_embeddings()(torch.tensor([ids], device=self.device))

    def _logits(self, last: torch.Tensor) -> torch.Tensor:
        """Return logits [N, vocabulary] in fp32 of last hidden states [N, D]."""
        return self.model.lm_head(last).float()

    def _choose(self, last: torch.Tensor, rows: Sequence[_Row]) -> tuple[list[int], list[float]]:
        """Choose each row's next token from its last hidden state [N, D]; its log-probability where that is asked."""
        logits = self._logits(last)
        settings = [row.request.decoding for row in rows]
        wanted = [
            place
            for place, (row, one) in enumerate(zip(rows, settings, strict=True))
            if one.confidence or one.logprobs is not None or row.request.given
        ]
        certain = logits[wanted].log_softmax(dim=-1) if wanted else None
        for place, row in enumerate(rows):
            self._hold_to_settings(row, logits[place])
        tokens = choose_tokens(logits, settings, [row.generator for row in rows])
        for place, row in enumerate(rows):
            if row.request.given:
                given = row.request.given[row.new_tokens]
                row.is_greedy &= given == tokens[place]
                tokens[place] = given
        log_probabilities = [0.0] * len(rows)
        if certain is not None:
            own = torch.tensor([tokens[place] for place in wanted], device=certain.device)
            for place, value in zip(wanted, certain.gather(1, own[:, None])[:, 0].tolist(), strict=True):
                log_probabilities[place] = value
            for place, of_all in zip(wanted, certain, strict=True):
                values, ids = (best.tolist() for best in of_all.topk(settings[place].logprobs or 0))
                rows[place].likeliest = list(zip(ids, values, strict=True))
        return tokens, log_probabilities

    def _hold_to_settings(self, row: _Row, logits: torch.Tensor) -> None:
        """Make tokens less likely or impossible, in place, as the request of a row wants it; `logits` [vocabulary]."""
        request, written = row.request, len(row.request.ids)
        if request.decoding.penalises:
            penalise(logits, request.decoding, request.ids, row.ids[written:])
        if row.new_tokens < request.min_new_tokens:
            logits[list(request.end_ids)] = -torch.inf
        if request.grammar is not None:
            try:
                request.grammar.restrict(logits, request.end_ids)
            except SchemaError as error:  # the others of the batch have nothing to do with it
                row.error = error

    def _take(self, rows: Sequence[_Row], tokens: Sequence[int], log_probabilities: Sequence[float]) -> None:
        """Give each row its token; text goes out, and a row that ends here is marked."""
        for row, token, log_probability in zip(rows, tokens, log_probabilities, strict=True):
            if row.error is not None:
                continue
            row.chosen += 1
            row.log_probability += log_probability
            if token in row.request.end_ids:
                row.reason = "stop"
                continue
            if row.request.grammar is not None:
                row.request.grammar.take(token)
            row.ids.append(token)
            row.cache_keys.append(token)
            self.stats.new_tokens += 1
            if (reply := row.reply()) is not None:
                reply.token_ids.append(token)
                if row.request.decoding.logprobs is not None:
                    reply.logprobs.append(Logprob(token, log_probability, row.likeliest))
            row.put(row.detokenizer.push(token))
            if row.detokenizer.is_stopped:
                row.reason = "stop"
            elif row.new_tokens >= row.request.limit:
                row.reason = "length"

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Add the time of the block to `stats`, as 'vision', 'prefill' or 'decode'."""
        start = time.perf_counter()
        yield
        if phase == "vision" and self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        name = f"{phase}_seconds"
        setattr(self.stats, name, getattr(self.stats, name) + time.perf_counter() - start)


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the weights lie in parts over several processes, and are whole only inside a module's own call."""
    return is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)


def computing_thread() -> ThreadPoolExecutor:
    """Return a thread of its own, for a model to be opened and to compute in."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out, or a CPU's, whose allocator has no error of its own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
