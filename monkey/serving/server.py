"""The server: OpenAI's chat completions, responses and models, health and metrics over FastAPI, from start to end.

A request is let in, its body is read and checked, its images are fetched and opened, and its answer is one of the
engine's running batch. Whoever goes away before the end stops the answer.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monkey.conversation import TEMPLATES, Template
from monkey.engine import Engine
from monkey.grammar import Grammar, SchemaError
from monkey.processing import TooLong
from monkey.reply import POLL_SECONDS, Reply
from monkey.serving.access import Access, base_url, cannot_listen
from monkey.serving.fetching import Fetcher, image_sources
from monkey.serving.protocol import ApiError, ChatRequest, Completion, parse_request, shown, unsupported
from monkey.serving.responses import ResponseObject, parse_response_request
from monkey.serving.session import Answerer

OPENED_AT_ONCE = 2
"""Bodies and images that are being taken apart at the same time: one image may take hundreds of megabytes."""

COMPILED_AT_ONCE = 2
"""Schemas, each for some seconds at most, see `monkey.grammar`."""

LONGEST_RETRY = 60
"""Most seconds after which a caller is told to come again."""

DISCARDED = 4
"""How many times the allowed bytes are read of a body that is refused, so that its sender gets to read why."""

PAUSE_SECONDS = 1.0
"""After which a sender is taken to have sent all that it wants to of a body that is refused."""

LAST_WORDS_SECONDS = 1.0
"""For a caller whose time is over to make room for what says so."""

KEEP_ALIVE = 75
"""Seconds that a connection without a request stays open: longer than clients and proxies keep theirs (5 to 60), since
what is sent while the connection is being closed is answered by a reset. Whoever takes as long for the head of a
request, or to read an answer that is over, is parted with."""

GRACE = 5
"""Seconds that the end of the server waits for answers to be read, and for threads after a second signal."""

HISTOGRAM_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

GETS = ["GET", "HEAD"]

HINTS = {
    "/v1/completions": '; a text is continued by a chat whose one message holds it, with "form": "plain"',
    "/v1/embeddings": "; the model writes answers and makes no embeddings",
}
"""For those who ask for another of OpenAI's paths."""

EVENT_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The second has a proxy in between pass each event on at once."""


@dataclass(frozen=True)
class Limits:
    """How much is taken on; all but the last two have flags of `python -m monkey.serve`."""

    body_bytes: int = 32 * 2**20
    """Of a request, base64 included."""
    images: int = 8
    """Of a request."""
    queue: int = 32
    """Requests that wait while others are answered."""
    seconds: float = 600.0
    """From a request's arrival until its answer is sent."""
    body_seconds: float = 60.0
    """For a request's body to arrive."""
    send_seconds: float = 60.0
    """For a caller to read so much that there is room for the next piece of an answer."""


@dataclass
class Visit:
    """One request from its arrival until its answers are sent."""

    begun: float
    """On the event loop's clock, as the next one."""
    deadline: float
    outcome: str = "left"
    """What the metrics count it as: until another is known, its caller went away."""
    replies: list[Reply] = field(default_factory=list)
    first_piece: float | None = None
    """When the first text of an answer came."""
    places: ExitStack = field(default_factory=ExitStack)
    """Those in line of the second and further answers."""


class Admission:
    """Lets requests in while there is room, and turns others away.

    Args:
        capacity: how many are in at once, those that wait included.
        at_once: how many of them are answered at the same time.

    Attributes:
        is_draining: nobody is let in any longer.
        is_stopped: nobody is waited for any longer.
    """

    def __init__(self, capacity: int, at_once: int):
        self.capacity, self.at_once = capacity, at_once
        self.in_flight = 0
        self.is_draining = self.is_stopped = False
        self._deadlines: set[asyncio.Timeout] = set()
        self._seconds: deque[float] = deque(maxlen=32)

    @contextmanager
    def place(self, count: int = 1) -> Iterator[None]:
        """Keep places for one request, or raise ApiError."""
        if self.is_draining:
            message = "the server is about to end and takes no more requests"
            raise ApiError(503, message, code="shutting_down", retry_after=5)
        if self.in_flight + count > self.capacity:
            message = f"{self.in_flight} answers are being written or wait already; ask again later"
            raise ApiError(429, message, code="rate_limit_exceeded", retry_after=self.retry_after())
        self.in_flight += count
        begun = time.monotonic()
        try:
            yield
            self._seconds.append(time.monotonic() - begun)  # not of one that was refused, which takes no time
        finally:
            self.in_flight -= count

    @asynccontextmanager
    async def deadline(self, time: float) -> AsyncIterator[None]:
        """Raise TimeoutError in the block at a time of the event loop, or as soon as nobody is waited for."""
        async with asyncio.timeout_at(0 if self.is_stopped else time) as timeout:
            self._deadlines.add(timeout)
            try:
                yield
            finally:
                self._deadlines.discard(timeout)

    def stop(self) -> None:
        """Wait for nobody any longer; called in the event loop."""
        self.is_stopped = True
        for timeout in self._deadlines:
            if not timeout.expired():
                timeout.reschedule(0)

    def retry_after(self) -> int:
        """Return in how many seconds a place is likely free: as answers of late took, shared among those at once."""
        typical = statistics.median(self._seconds) if self._seconds else 1.0
        return min(LONGEST_RETRY, max(1, math.ceil(typical / self.at_once)))


class Metrics:
    """What the server did and does, in Prometheus' text format."""

    def __init__(self, engine: Engine):
        self.registry, self._engine = CollectorRegistry(), engine
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=HISTOGRAM_SECONDS)
        ends = "Chat completions, by how they ended or by the status they were refused with"
        self._requests = counter("monkey_requests", ends, ["outcome"])
        self._prompt_tokens = counter("monkey_prompt_tokens", "Tokens of prompts, those of images included")
        self._new_tokens = counter("monkey_completion_tokens", "Tokens of answers")
        self._seconds = histogram("monkey_request_seconds", "From a request's arrival to its end")
        first_piece = "From a request's arrival to the first text of its answer"
        self._first_piece = histogram("monkey_first_piece_seconds", first_piece)
        self.registry.register(self)

    def count(self, visit: Visit, now: float) -> None:
        """Count a request that is over."""
        self._requests.labels(visit.outcome).inc()
        self._seconds.observe(now - visit.begun)
        if visit.first_piece is not None:
            self._first_piece.observe(visit.first_piece - visit.begun)
        if visit.replies:
            self._prompt_tokens.inc(visit.replies[0].prompt_tokens)
            self._new_tokens.inc(sum(reply.new_tokens for reply in visit.replies))

    def collect(self) -> Iterator[Metric]:
        """Yield the engine's figures at the moment at which they are asked for."""
        engine, stats = self._engine, self._engine.stats
        gauges = (
            ("monkey_running_rows", "Requests that are being read or answered", engine.running),
            ("monkey_waiting_requests", "Requests in line", engine.waiting),
            ("monkey_max_rows", "Requests that are answered at the same time at most", engine.max_rows),
        )
        counters = (
            ("monkey_prefix_cache_hit_tokens", "Prompt tokens that had been read before", stats.reused_tokens),
            ("monkey_prefix_cache_miss_tokens", "Prompt tokens that had to be read", stats.read_tokens),
            ("monkey_images_encoded", "Images that went through the vision side", stats.images),
            ("monkey_decoder_steps", "Steps that wrote one token of every running answer", stats.steps),
        )
        yield from (GaugeMetricFamily(*gauge) for gauge in gauges)
        yield from (CounterMetricFamily(*counter) for counter in counters)

    def text(self) -> bytes:
        return generate_latest(self.registry)


@dataclass
class Api:
    """Everything that one server knows.

    Args:
        fetcher: of images at addresses; None fetches none.
        keys, is_loopback: as of `monkey.serving.access.Access`.
        origins: of web pages whose scripts may ask.
        form, picture_labels: as of `Answerer.chat`, where a request does not say.
    """

    answerer: Answerer
    limits: Limits = Limits()
    fetcher: Fetcher | None = None
    keys: Sequence[str] = ()
    is_loopback: bool = True
    origins: Sequence[str] = ()
    form: Template | None = None
    picture_labels: bool = True

    def __post_init__(self):
        at_once = self.answerer.engine.max_rows
        self.admission = Admission(at_once + self.limits.queue, at_once)
        self.metrics = Metrics(self.answerer.engine)
        self.created = int(time.time())
        self._opening = ThreadPoolExecutor(OPENED_AT_ONCE, thread_name_prefix="opening")
        self._compiling = ThreadPoolExecutor(COMPILED_AT_ONCE, thread_name_prefix="compiling")

    def close(self) -> None:
        """Let go of the threads; answers in progress end with the answerer."""
        for threads in (self._opening, self._compiling):
            threads.shutdown(wait=False, cancel_futures=True)

    def describe_model(self) -> dict[str, Any]:
        return {
            "id": self.answerer.name,
            "object": "model",
            "created": self.created,
            "owned_by": "monkey",  # tells our server from others
            "forms": [form for form in TEMPLATES if form in self.answerer.processor.forms],
            "card": self.answerer.card.as_json(),
        }

    def check_model(self, name: str) -> None:
        if name != self.answerer.name:
            message = f"there is no model {shown(name)} here, only {self.answerer.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def submit(
        self, body: bytes, parse: Callable[[bytes, int], ChatRequest], visit: Visit
    ) -> tuple[ChatRequest, list[Reply]]:
        """Read the request in a body, which `parse` does, and have it answered as often as it says."""
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._opening)
        request = await in_thread(parse, body, self.limits.images)
        self.check_model(request.model)
        decodings = request.decodings(self.answerer.for_answers)
        if len(decodings) > (most := self.answerer.engine.max_rows):
            raise unsupported("n", request.n, f"at most {most} answers are written at the same time; ask for fewer")
        if len(decodings) > 1:
            visit.places.enter_context(self.admission.place(len(decodings) - 1))
        grammar = None
        if request.held_to is not None:
            grammar = await self._compile(*request.held_to)
        messages = request.conversation(await image_sources(request.urls, self.fetcher))
        labels = self.picture_labels if request.picture_labels is None else request.picture_labels
        try:
            self.answerer.limited_processor(request.max_windows)
        except ValueError as error:
            raise ApiError(400, str(error), param="max_windows", code="unsupported_value") from error
        settings = {"form": request.form or self.form, "picture_labels": labels, "max_windows": request.max_windows}
        chat = partial(self.answerer.chat_often, **settings, grammar=grammar)
        try:
            return request, await in_thread(chat, messages, decodings)
        except TooLong as error:
            raise ApiError(400, str(error), param=request.of_messages, code="context_length_exceeded") from error
        except (ValueError, FileNotFoundError) as error:
            raise ApiError(400, str(error), param=request.of_messages, code="invalid_value") from error
        except MemoryError as error:
            raise ApiError(503, str(error), code="out_of_memory") from error

    async def _compile(self, name: str, schema: dict[str, Any]) -> Grammar:
        """Return what holds answers to the schema that stands in a field."""
        compiling = asyncio.get_running_loop().run_in_executor(self._compiling, self.answerer.grammars.compile, schema)
        try:
            return await compiling
        except SchemaError as error:
            raise ApiError(400, f"{name}: {error}", param=name, code="invalid_json_schema") from error
        except ModuleNotFoundError as error:
            raise ApiError(400, f"{name}: {error}", param=name, code="unsupported_value") from error

    async def pieces(self, request: Request, visit: Visit, asked: ChatRequest) -> AsyncIterator[tuple[int, str | None]]:
        """Yield the texts of answers as they come, with their numbers, as long as they are wanted and in time.

        None comes at the end of each answer.
        """
        arrived: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()
        for index, reply in enumerate(visit.replies):
            reply.listen(partial(_put_from_thread, asyncio.get_running_loop(), arrived, index))
        reminder, left = asyncio.create_task(_remind(arrived)), len(visit.replies)
        try:
            while left:
                index, piece = await arrived.get()
                if piece is None:
                    left -= 1
                    _check_ended(visit.replies[index], asked)
                    visit.outcome = str(visit.replies[index].finish_reason) if index == 0 else visit.outcome
                    yield index, None
                elif piece:
                    visit.first_piece = visit.first_piece or _clock()
                    yield index, piece
                else:
                    await self._check_wanted(request, visit)
        finally:
            reminder.cancel()

    async def _check_wanted(self, request: Request, visit: Visit) -> None:
        if self.admission.is_stopped or _clock() > visit.deadline:
            raise self.too_late()
        if await request.is_disconnected():
            raise ClientDisconnect

    def too_late(self) -> ApiError:
        if self.admission.is_stopped:
            return cut_off()
        return ApiError(504, f"the answer took longer than the {self.limits.seconds:g} seconds allowed", code="timeout")


def cut_off() -> ApiError:
    return ApiError(503, "the server ended before the answer did", code="shutting_down", retry_after=5)


def _check_ended(reply: Reply, asked: ChatRequest) -> None:
    """Raise what an answer ended with, where that is no end of its own."""
    if isinstance(reply.error, MemoryError):
        raise ApiError(503, str(reply.error), code="out_of_memory")
    if isinstance(reply.error, SchemaError):
        name, _ = asked.held_to
        raise ApiError(400, f"{name}: {reply.error}", param=name, code="invalid_json_schema")
    if isinstance(reply.error, CancelledError) or reply.finish_reason == "cancelled":
        raise cut_off()
    if reply.error is not None:
        raise reply.error


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _put_from_thread(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue, index: int, piece: str | None) -> None:
    with suppress(RuntimeError):  # the loop was closed: nobody waits any more
        loop.call_soon_threadsafe(queue.put_nowait, (index, piece))


async def _remind(queue: asyncio.Queue) -> None:
    """Put an empty piece again and again, so that whoever waits for the next gets to look around."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        queue.put_nowait((0, ""))


async def admitted(request: Request) -> AsyncIterator[Visit]:
    """Let a request in, before its body is read and until its answer is sent."""
    api: Api = request.app.state.api
    visit = Visit(_clock(), request.scope["deadline"])
    try:
        with api.admission.place():
            yield visit
    except ApiError as error:
        visit.outcome = str(error.status)
        raise
    except ClientDisconnect:
        raise
    except Exception:
        visit.outcome = "500"
        raise
    finally:
        for reply in visit.replies:
            reply.close()
        visit.places.close()
        api.metrics.count(visit, _clock())


def _api_of(request: Request) -> Api:
    return request.app.state.api


OfServer = Annotated[Api, Depends(_api_of)]

router = APIRouter()


@router.post("/v1/chat/completions")
async def complete(request: Request, api: OfServer, visit: Annotated[Visit, Depends(admitted)]) -> Response:
    """Answer a conversation, whole or as a stream of events."""
    return await _answer(request, api, visit, parse_request, Completion)


@router.post("/v1/responses")
async def respond(request: Request, api: OfServer, visit: Annotated[Visit, Depends(admitted)]) -> Response:
    """Answer a conversation as `complete` does, for clients that ask in the other way."""
    return await _answer(request, api, visit, parse_response_request, ResponseObject)


async def _answer(
    request: Request,
    api: Api,
    visit: Visit,
    parse: Callable[[bytes, int], ChatRequest],
    kind: type[Completion] | type[ResponseObject],
) -> Response:
    body = await read_body(request, api)
    try:
        async with api.admission.deadline(visit.deadline):
            asked, visit.replies = await api.submit(body, parse, visit)
    except TimeoutError:
        raise api.too_late() from None
    answer = kind(asked, visit.replies, api.answerer.processor.tokenizer)
    pieces = api.pieces(request, visit, asked)
    first = await anext(pieces)  # until there is text, what goes wrong has a status of its own
    if asked.stream:
        events = _events(visit, answer, first, pieces)
        return StreamingResponse(events, headers=EVENT_HEADERS, media_type="text/event-stream")
    texts = [""] * len(visit.replies)
    texts[first[0]] = first[1] or ""
    async for index, piece in pieces:
        texts[index] += piece or ""
    return JSONResponse(answer.whole(texts))


async def _events(
    visit: Visit,
    answer: Completion | ResponseObject,
    first: tuple[int, str | None],
    pieces: AsyncIterator[tuple[int, str | None]],
) -> AsyncIterator[bytes]:
    try:
        yield answer.opening() + _told(answer, *first)
        async for index, piece in pieces:
            yield _told(answer, index, piece)
        yield answer.ending()
    except ApiError as error:
        visit.outcome = str(error.status)
        yield answer.failure(error)


def _told(answer: Completion | ResponseObject, index: int, piece: str | None) -> bytes:
    return answer.end_of(index) if piece is None else answer.chunk(index, piece)


async def read_body(request: Request, api: Api) -> bytes:
    """Read a request's body of JSON.

    Raises:
        ApiError: too long, too slow, cut off by the server's end, or not said to be JSON: browsers send that to no
            other site unasked.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body must come as `Content-Type: application/json`", code="content_type")
    limits, seconds = api.limits, min(api.limits.body_seconds, api.limits.seconds)
    body = bytearray()
    try:
        async with api.admission.deadline(_clock() + seconds):
            async for part in request.stream():
                body += part
                if len(body) > limits.body_bytes:
                    message = f"the request is longer than the {limits.body_bytes:,} bytes allowed (--max-body-mib)"
                    raise ApiError(413, message, code="body_too_large")
    except TimeoutError:
        if api.admission.is_stopped:
            raise cut_off() from None
        raise ApiError(408, f"the body did not arrive within {seconds:g} seconds", code="timeout") from None
    return bytes(body)


@router.api_route("/v1/models", methods=GETS)
async def list_models(api: OfServer) -> Response:
    return JSONResponse({"object": "list", "data": [api.describe_model()]})


@router.api_route("/v1/models/{name:path}", methods=GETS)
async def show_model(api: OfServer, name: str) -> Response:
    api.check_model(name)
    return JSONResponse(api.describe_model())


@router.api_route("/health", methods=GETS)
async def health(api: OfServer) -> Response:
    if api.admission.is_draining:
        return JSONResponse({"status": "ending"}, 503)
    return JSONResponse({"status": "ok", "model": api.answerer.name})


@router.api_route("/metrics", methods=GETS)
async def show_metrics(api: OfServer) -> Response:
    return Response(api.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def build_app(api: Api) -> FastAPI:
    middleware = [
        Middleware(Border, limits=api.limits, admission=api.admission),
        Middleware(Access, keys=api.keys, is_loopback=api.is_loopback),
    ]
    if api.origins:
        # Outermost: a browser asks for leave without a key, and shows a page no refusal without its marks.
        settings = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"], "expose_headers": ["Retry-After"]}
        middleware.insert(0, Middleware(AllowedOrigins, allow_origins=api.origins, **settings))
    handlers = {ApiError: _refuse, HTTPException: _refuse_path, Exception: _tell_of_fault}
    app = FastAPI(openapi_url=None, middleware=middleware, exception_handlers=handlers)
    app.state.api = api
    app.include_router(router)
    return app


class AllowedOrigins(CORSMiddleware):
    """Lets scripts of the named origins ask, and refuses those of others in the shape of all refusals."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        origin, method = (shown(request_headers[name]) for name in ("origin", "access-control-request-method"))
        message = f"{bytes(answer.body).decode()}: scripts of {origin} may not send {method} here; those of pages that "
        message += f"--cors-origins names may, by {' and '.join(self.allow_methods)}"
        refusal = ApiError(400, message, code="cors").response()
        refusal.headers.update({name: told for name, told in answer.headers.items() if not name.startswith("content-")})
        return refusal


async def _refuse(request: Request, error: ApiError) -> Response:
    return error.response()


async def _tell_of_fault(request: Request, error: Exception) -> Response:
    """Answer where a fault of ours came up, which the log tells and the answer does not."""
    return ApiError(500, "the server failed at this request; its log says how", code="internal_error").response()


async def _refuse_path(request: Request, error: HTTPException) -> Response:
    """Answer who asks for a path that does not exist, or in another way."""
    message = f"{request.method} {shown(request.url.path, 120)}: {error.detail}"
    headers = error.headers or {}
    if error.status_code == 405:
        message += f"; use {headers.get('Allow', 'GET or POST')}"
        if request.method == "OPTIONS":
            message += ", and start the server with --cors-origins for pages of other origins"
        response = ApiError(405, message, code="method_not_allowed").response()
    else:
        message += HINTS.get(request.scope["path"], "")
        message += (
            "; this server answers POST /v1/chat/completions and lists its model at /v1/models, so a client's base_url "
            f"ends in /v1, as {request.base_url}v1"
        )
        response = ApiError(error.status_code, message, code="not_found").response()
    response.headers.update(headers)
    return response


class Border:
    """ASGI middleware for what holds of every request on its way in and out.

    In: //v1/models/ is read as /v1/models, since clients join addresses carelessly. Out: each part of an answer has
    limited seconds to be read, and a request is read to its end before it is answered or refused. A connection that is
    closed while bytes of its request are unread is reset, and its sender, still sending, may never see why. So what is
    refused before its body was read (no key, no room, no such path) is read first and thrown away, up to `DISCARDED`
    times the allowed bytes and for the seconds that a body has, until it pauses; it holds no place.
    """

    def __init__(self, app: ASGIApp, limits: Limits, admission: Admission):
        self.app, self._limits, self._admission = app, limits, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline = _clock() + self._limits.seconds
        # Who waits to be told that it may send has sent nothing, and needs not.
        is_unread = b"expect" not in dict(scope["headers"])

        async def receive_and_note() -> Message:
            nonlocal is_unread
            message = await receive()
            is_unread = message.get("more_body", False)
            return message

        async def send_in_time(message: Message) -> None:
            nonlocal is_unread
            # 408 says that the rest does not come.
            if is_unread and message.get("status") != 408:
                await self._discard(receive)
            is_unread = False
            end = max(_clock() + LAST_WORDS_SECONDS, min(_clock() + self._limits.send_seconds, deadline))
            try:
                async with asyncio.timeout_at(end):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None  # who does not read is taken to have gone

        path = "/" + "/".join(filter(None, scope["path"].split("/")))
        with suppress(ClientDisconnect, asyncio.CancelledError):  # the second from uvicorn, where its grace is over
            await self.app({**scope, "path": path, "deadline": deadline}, receive_and_note, send_in_time)

    async def _discard(self, receive: Receive) -> None:
        left = DISCARDED * self._limits.body_bytes
        with suppress(TimeoutError):
            async with self._admission.deadline(_clock() + self._limits.body_seconds):
                while left > 0:
                    message = await asyncio.wait_for(receive(), PAUSE_SECONDS)
                    if not message.get("more_body", False):
                        break
                    left -= len(message["body"])


class Server(uvicorn.Server):
    """Ends when the answers in progress are finished, and refuses others meanwhile.

    A second signal ends it at once, and the process with it, whatever its callers and threads are at.

    Attributes:
        url: what OpenAI's client takes as `base_url`.
        announcement: printed when it is heard there, and not before; nothing when empty.
    """

    def __init__(self, api: Api, listener: socket.socket):
        self.url = base_url(listener)
        self.announcement = ""
        self._admission = api.admission
        self._is_urgent = False
        self._longest = api.limits.seconds + KEEP_ALIVE
        self._seen: dict[tuple[Any, Any, bool], float] = {}
        super().__init__(
            uvicorn.Config(
                build_app(api),
                http="h11",
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=GRACE,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.announcement and self.started:
            print(self.announcement, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupt()
        if self._is_urgent:
            last_resort = threading.Timer(2 * GRACE, os._exit, [128 + sig])
            last_resort.daemon = True
            last_resort.start()
        elif left := self._admission.in_flight:
            print(f"{signal.Signals(sig).name}: finishing {left} requests; once more ends them", file=sys.stderr)

    def interrupt(self) -> None:
        """End when the answers in progress are finished; called again, at once. From any thread."""
        self._is_urgent = self._admission.is_draining
        self._admission.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._is_urgent:
            self._admission.stop()
        if self._admission.is_draining and (not self._admission.in_flight or self._is_urgent):
            self.should_exit = True
        self._part_with_lingering()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _part_with_lingering(self) -> None:
        """Close the connections that have been at the same thing for too long: one request, or none."""
        now, seen = time.monotonic(), {}
        for connection in list(self.server_state.connections):
            cycle, transport = connection.cycle, connection.transport
            is_over = cycle is None or cycle.response_complete or transport.is_closing()
            state = connection, cycle, is_over
            seen[state] = self._seen.get(state, now)
            if now - seen[state] > (KEEP_ALIVE if is_over else self._longest):
                # What a caller does not read keeps a connection open for ever that is closed and not aborted.
                (transport.abort if transport.get_write_buffer_size() else transport.close)()
        self._seen = seen


def serve(api: Api, listener: socket.socket, announcement: str = "") -> None:
    """Serve until a signal says to end.

    Args:
        announcement: as of `Server`.

    Raises:
        ValueError: another process has begun to listen there since `bind`.
    """
    host, port = listener.getsockname()[:2]
    try:
        server = Server(api, listener)
        server.announcement = announcement
        server.run(sockets=[listener])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise cannot_listen(host, port, error) from error
    finally:
        api.close()
        if threading.current_thread() is threading.main_thread():
            # What is left to wait for is the model's thread; Ctrl-C ends that as SIGTERM does, which exits at once.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
