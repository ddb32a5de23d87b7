"""The server's routes: OpenAI's chat completions and models, health and metrics.

A request takes a place, its body is read and checked, its pictures are fetched and opened, and its answer is one of the
engine's running batch. Whoever goes away before the end stops the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from monkey.conversation import TEMPLATES, Template
from monkey.serving.api.access import Access
from monkey.serving.api.errors import ApiError, shown
from monkey.serving.api.fetching import Fetcher
from monkey.serving.api.limits import Admission, Limits, WholeBodies, read_body
from monkey.serving.api.metrics import CONTENT_TYPE, Metrics, Record
from monkey.serving.api.pictures import picture_sources
from monkey.serving.api.request import ChatRequest, parse_request
from monkey.serving.api.streaming import Completion, EventStream, event, pieces_of
from monkey.serving.reply import Reply
from monkey.serving.session import Answerer, PromptTooLong

OPENED_AT_ONCE = 2
"""Bodies and pictures that are being taken apart at the same time: one picture may take hundreds of megabytes."""

OWNER = "monkey"
"""Of the models that are listed; it tells our server from others."""


class Api:
    """Everything that one server knows.

    Args:
        form: how conversations are written where a request does not say; the checkpoint's own when None.
        fetcher: of pictures at addresses; None fetches none.
        keys, is_loopback: as of `monkey.serving.api.access.Access`.
        origins: of web pages whose scripts may ask, as `monkey.serving.api.addresses.checked_origins` gives them.
        picture_labels: as of `Answerer.chat`, where a request does not say.

    Attributes:
        app: the ASGI application.
        admission: who is in the house.
    """

    def __init__(
        self,
        answerer: Answerer,
        limits: Limits | None = None,
        *,
        form: Template | None = None,
        fetcher: Fetcher | None = None,
        keys: Iterable[str] = (),
        is_loopback: bool = True,
        origins: Iterable[str] = (),
        picture_labels: bool = True,
    ):
        self.answerer, self.limits, self.form, self.fetcher = answerer, limits or Limits(), form, fetcher
        self.picture_labels = picture_labels
        at_once = answerer.engine.max_rows
        self.admission = Admission(at_once + self.limits.queue, at_once)
        self.metrics = Metrics(answerer.engine)
        self._created = int(time.time())
        self._opening = ThreadPoolExecutor(OPENED_AT_ONCE, thread_name_prefix="opening")
        self._reading = ThreadPoolExecutor(self.admission.capacity, thread_name_prefix="reading")
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", _Chat(self), methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ],
            middleware=[
                *_leave_for_pages(list(origins)),
                Middleware(WholeBodies, limits=self.limits, admission=self.admission),
                Middleware(Access, keys=tuple(keys), is_loopback=is_loopback),
                Middleware(_CleanPath),
            ],
            exception_handlers={ApiError: _refused, HTTPException: _of_http, Exception: _failed},
        )

    def close(self) -> None:
        """Let go of the threads; answers in progress end with the answerer."""
        for threads in (self._opening, self._reading):
            threads.shutdown(wait=False, cancel_futures=True)

    async def submitted(self, body: bytes) -> tuple[ChatRequest, Reply]:
        """The request in a body, and its answer on its way."""
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._opening)
        request = await in_thread(parse_request, body, self.limits.pictures)
        if request.model != self.answerer.name:
            raise self._no_model(request.model)
        decoding = request.decoding(self.answerer.for_answers)
        messages = request.conversation(await picture_sources(request.urls, self.fetcher))
        try:
            labels = self.picture_labels if request.picture_labels is None else request.picture_labels
            form = request.form or self.form
            reply = await in_thread(partial(self.answerer.chat, messages, decoding, form=form, picture_labels=labels))
        except PromptTooLong as error:
            raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from error
        except (ValueError, FileNotFoundError) as error:
            raise ApiError(400, str(error), param="messages", code="invalid_value") from error
        return request, reply

    def pieces(self, reply: Reply) -> Any:
        return aclosing(pieces_of(reply, self._reading))

    def _no_model(self, name: str) -> ApiError:
        return ApiError(
            404,
            f"there is no model {shown(name)} here, only {self.answerer.name!r}",
            param="model",
            code="model_not_found",
        )

    def _told(self) -> dict[str, Any]:
        return {
            "id": self.answerer.name,
            "object": "model",
            "created": self._created,
            "owned_by": OWNER,
            "forms": list(TEMPLATES),
            "card": self.answerer.card.as_json(),
        }

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._told()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["name"] != self.answerer.name:
            raise self._no_model(request.path_params["name"])
        return JSONResponse(self._told())

    async def _health(self, request: Request) -> Response:
        if self.admission.is_draining:
            return JSONResponse({"status": "ending"}, 503)
        return JSONResponse({"status": "ok", "model": self.answerer.name})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)


def _leave_for_pages(origins: list[str]) -> list[Middleware]:
    """Outermost: a browser asks for leave without a key, and shows a page no refusal without its marks."""
    settings = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"], "expose_headers": ["Retry-After"]}
    return [Middleware(CORSMiddleware, allow_origins=origins, **settings)] if origins else []


class _CleanPath:
    """ASGI middleware that reads //v1/models/ as /v1/models: clients join addresses carelessly."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = "/" + "/".join(filter(None, scope["path"].split("/")))
        await self._app({**scope, "path": path}, receive, send)


class _Chat:
    """ASGI application of `/v1/chat/completions`."""

    def __init__(self, api: Api):
        self._api = api

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        with self._api.metrics.watched() as record:
            try:
                with self._api.admission.place():
                    body = await read_body(scope, receive, self._api.limits, self._api.admission)
                    if body is not None:
                        await self._while_wanted(self._answer(body, scope, send, record), receive)
            except ApiError as error:
                record.outcome = str(error.status)
                raise
            except Exception:
                record.outcome = "500"
                raise

    async def _while_wanted(self, answering: Any, receive: Any) -> None:
        """Answer until it is done or the caller is gone."""
        work, leaving = asyncio.create_task(answering), asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
        finally:
            work.cancel()
            leaving.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)

    async def _answer(self, body: bytes, scope: dict[str, Any], send: Any, record: Record) -> None:
        limits = self._api.limits
        stream = EventStream(send, limits.send_seconds)
        text: list[str] = []
        try:
            # Sending included: a caller who does not read what was written would stay for ever.
            async with self._api.admission.deadline(max(0.0, limits.seconds - record.seconds)):
                request, reply = await self._api.submitted(body)
                record.reply = reply
                completion = Completion(request.model, reply, request.includes_usage)
                async with self._api.pieces(reply) as pieces:
                    async for piece in pieces:
                        if not text:
                            record.first_piece()
                        text.append(piece)
                        if request.stream:
                            await stream.put(completion.piece(piece))
                if reply.finish_reason == "cancelled":
                    raise _cut_off()
                if request.stream:
                    await stream.put(completion.ending(), is_last=True)
                else:
                    await JSONResponse(completion.whole("".join(text)))(scope, None, send)
                record.outcome = reply.finish_reason
        except (TimeoutError, MemoryError, ApiError) as error:
            refusal = self._refusal(error)
            if not stream.has_begun:
                raise refusal from error
            record.outcome = str(refusal.status)
            await stream.put_last_words(event(refusal.body))

    def _refusal(self, error: Exception) -> ApiError:
        if isinstance(error, TimeoutError):
            if self._api.admission.is_stopped:
                return _cut_off()
            message = str(error) or f"the answer took longer than the {self._api.limits.seconds:g} seconds allowed"
            return ApiError(504, message, code="timeout")
        if isinstance(error, MemoryError):
            return ApiError(503, str(error), code="out_of_memory")
        return error


def _cut_off() -> ApiError:
    return ApiError(503, "the server ended before the answer did", code="shutting_down", retry_after=5)


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: ApiError) -> Response:
    return error.response()


async def _of_http(request: Request, error: HTTPException) -> Response:
    """Of the framework's own: for a path that does not exist, or that is asked for in another way."""
    message, code = f"{request.method} {shown(request.url.path, 120)}: {error.detail}", None
    if error.status_code == 404:
        code = "not_found"
        message += (
            "; this server answers POST /v1/chat/completions and lists its model at /v1/models, so a client's base_url "
            f"ends in /v1, as {request.base_url}v1"
        )
    elif error.status_code == 405:
        code = "method_not_allowed"
        message += f"; use {(error.headers or {}).get('Allow', 'GET or POST')}"
        if request.method == "OPTIONS":
            message += ", and start the server with --cors-origins for pages of other origins"
    response = ApiError(error.status_code, message, code=code).response()
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    """Of a fault of ours, which the log tells and the answer does not."""
    return ApiError(500, "the server failed at this request; its log says how", code="internal_error").response()
