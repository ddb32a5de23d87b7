"""OpenAI's chat completions: what a request may hold, what is refused and how, and how an answer is told.

What changes no answer passes, as OpenAI lets it: fields of book-keeping, values that ask for nothing, empty ones. A
field that would change the answer and cannot is refused by its name, in a sentence that says what to do.
"""

from __future__ import annotations

import codecs
import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.responses import JSONResponse

from monkey.conversation import Template
from monkey.decoding import Decoding
from monkey.reply import Reply

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256
"""OpenAI's number of stop texts; and how long one may be, since each is looked for at every token."""

MAX_TEXT = 200_000
"""Characters of all messages together, far more than a model reads."""

ROLES = ("system", "developer", "user", "assistant")

WITHOUT_EFFECT = frozenset((
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "cache_control",
    "parallel_tool_calls", "service_tier", "store", "reasoning_effort", "reasoning", "prediction", "keep_alive",
    "id", "chat_id", "session_id", "conversation_id", "message_id", "request_id", "priority", "cache_salt",
))  # fmt: skip
"""Fields of OpenAI's, of other servers and of chat programs that never change an answer of a model that writes what it
says at once and calls no tools."""

WITHOUT_EFFECT_IN_MESSAGES = frozenset(
    ("name", "id", "cache_control", "annotations", "logprobs", "reasoning", "reasoning_content", "status")
)
"""The same in messages and their parts."""

NO_TOOLS = "this server calls no tools; leave it out, and put what a tool found into a user's message"

# fmt: off
UNSUPPORTED: dict[str, dict[str, list[Any]]] = {
    "one answer comes from a request; ask several times, with other seeds": {"n": [1], "best_of": [1]},
    "tokens are chosen by temperature and top_p alone; leave it out": {
        "frequency_penalty": [0], "presence_penalty": [0], "repetition_penalty": [1], "length_penalty": [1],
        "logit_bias": [], "top_k": [-1, 0], "min_p": [0], "typical_p": [1], "use_beam_search": [False],
    },
    "no probabilities are told here; leave it out (in Python, Decoding(confidence=True) tells an answer's)": {
        "logprobs": [False], "top_logprobs": [0], "prompt_logprobs": [0],
    },
    "an answer ends where the model ends it; leave it out": {"min_tokens": [0], "ignore_eos": [False]},
    "answers end at texts; name them in stop": {"stop_token_ids": []},
    "a stop text is no part of the answer; leave it out": {"include_stop_str_in_output": [False]},
    "an answer cannot be held to a form; ask for the form in the question's words, and leave it out": {
        "response_format": [{"type": "text"}],
        "guided_json": [], "guided_regex": [], "guided_choice": [], "guided_grammar": [],
    },
    NO_TOOLS: {
        "tools": [], "tool_choice": ["none", "auto"], "tool_calls": [],
        "functions": [], "function_call": ["none", "auto"],
    },
    "how the prompt is written is said by form: chatml, questions, plain or decoder": {
        "chat_template": [], "chat_template_kwargs": [{"enable_thinking": False}],
        "add_generation_prompt": [True], "echo": [False],
    },
    "an answer is always a new message; leave it out": {"continue_final_message": [False]},
    "answers are told as text; leave it out": {"modalities": [["text"]], "audio": [], "return_token_ids": [False]},
    "the model has one way of answering; ask in the question's words to be brief, and leave it out": {
        "verbosity": ["medium"],
    },
    "nothing is looked up; leave it out": {"web_search_options": []},
}
"""What to do instead of the fields that are not supported, and the values of each that ask for nothing; empty ones
always do."""
# fmt: on

NEUTRAL = {name: values for fields in UNSUPPORTED.values() for name, values in fields.items()}
WAYS_OUT = {name: way_out for way_out, fields in UNSUPPORTED.items() for name in fields}


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is not answered, and why, in the shape that OpenAI's clients read.

    Args:
        status: of HTTP.
        message: one sentence, for the person who asked.
        code: what programs tell it by.
        param: the field that is wrong, as `messages.0.content`.
        retry_after: seconds after which it may be asked again; None where that would be in vain.
    """

    status: int
    message: str
    code: str | None
    param: str | None = None
    retry_after: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        elif self.status >= 500:
            # OpenAI's client asks again after every server error unless it is told not to.
            headers["X-Should-Retry"] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def shown(value: Any, length: int = 60) -> str:
    """Return a value as it stands in a message."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def unsupported(name: str, value: Any, why: str) -> ApiError:
    return ApiError(400, f"{name} is {shown(value)}, and {why}", param=name, code="unsupported_value")


class _Lenient(BaseModel):
    """Knows its fields, and passes over others where they ask for nothing."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    without_effect: ClassVar[frozenset[str]] = WITHOUT_EFFECT_IN_MESSAGES

    @model_validator(mode="before")
    @classmethod
    def _pass_over(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {
            name: value for name, value in fields.items() if name in cls.model_fields or not cls._is_idle(name, value)
        }

    @classmethod
    def _is_idle(cls, name: str, value: Any) -> bool:
        return name in cls.without_effect or value in (None, "", [], {}) or value in NEUTRAL.get(name, ())


class TextPart(_Lenient):
    type: Literal["text", "input_text", "output_text"]
    """The last two are of OpenAI's responses."""
    text: str


class RefusalPart(_Lenient):
    """What an assistant said in place of an answer."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


def clean_url(url: str) -> str:
    """Return an address, with a data-URI's base64 as it is written most strictly.

    Broken into lines, written as a URL writes it (`%2B`), in the alphabet for URLs or without padding, it means the
    same. A blank inside a line is left to be refused: a `+` may have stood there.
    """
    url = url.strip()
    if url[:5].lower() != "data:":
        return url
    head, comma, encoded = unquote(url).partition(",")
    encoded = re.sub(r"[ \t]*[\r\n]+[ \t]*", "", encoded).replace("-", "+").replace("_", "/").rstrip("=")
    return f"{head}{comma}{encoded}{'=' * (-len(encoded) % 4)}"


Detail = Literal["auto", "low", "high"] | None
"""Images are always read at full size: OpenAI's "low" costs as much as "high"."""


class ImageAddress(_Lenient):
    url: Annotated[str, AfterValidator(clean_url)]
    detail: Detail = None


class ImagePart(_Lenient):
    type: Literal["image_url", "input_image"]
    """The second is of OpenAI's responses, where the address is a text."""
    image_url: Annotated[
        ImageAddress, BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value)
    ]
    detail: Detail = None


Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]


class Message(_Lenient):
    role: str
    refusal: str | None = None
    content: list[Part] = Field(None, validate_default=True)
    """Parts, also where it was written as a text; an assistant's may have been a refusal, or nothing."""

    @field_validator("role")
    @classmethod
    def _check_role(cls, role: str) -> str:
        if role not in ROLES:
            way_out = NO_TOOLS if role in ("tool", "function") else f"roles are {', '.join(ROLES)}"
            raise PydanticCustomError("unsupported_value", way_out)
        return role

    @field_validator("content", mode="before")
    @classmethod
    def _write_as_parts(cls, content: Any, message: ValidationInfo) -> Any:
        if content is None and message.data.get("role") == "assistant":
            content = message.data.get("refusal") or ""
        if content is None:
            raise PydanticCustomError("missing", "it is missing, and a text or a list of parts is needed")
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(_Lenient):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class ChatRequest(_Lenient):
    """What is asked for. Four fields are not OpenAI's: `form`, `picture_labels` and `max_windows` are those of
    `Answerer.chat`, and with `skip_special_tokens`, which vLLM has too, answers come without the markers of boxes."""

    without_effect = WITHOUT_EFFECT

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: list[str] = Field([])
    seed: int | None = None
    form: Template | None = None
    picture_labels: bool | None = None
    max_windows: int | None = Field(None, ge=1)
    skip_special_tokens: bool | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @field_validator("stop", mode="before")
    @classmethod
    def _list_stops(cls, stop: Any) -> Any:
        stops = stop if isinstance(stop, list) else [stop]
        return [text for text in stops if text not in (None, "")]

    @property
    def urls(self) -> list[str]:
        """Where the images are, in their order."""
        return [part.image_url.url for part in self._parts() if isinstance(part, ImagePart)]

    def conversation(self, images: list[bytes | str]) -> list[dict[str, Any]]:
        """Return the messages as `Answerer.chat` takes them, with the images in their places.

        Instructions (of the system or a developer) may be several and stand anywhere; they are one message at the
        beginning here, with empty lines between. An assistant's empty message at the end, which some clients send to
        be filled, is left out.
        """
        left = iter(images)
        instructions: list[dict[str, Any]] = []
        turns: list[dict[str, Any]] = []
        for message in self.messages:
            parts = [
                {"type": "image", "image": next(left)}
                if isinstance(part, ImagePart)
                else {"type": "text", "text": part.text}
                for part in message.content
            ]
            if message.role in ("system", "developer"):
                instructions += [*([{"type": "text", "text": "\n\n"}] if instructions else []), *parts]
            else:
                turns.append({"role": message.role, "content": parts})
        if turns and turns[-1]["role"] == "assistant" and not any(part["text"] for part in turns[-1]["content"]):
            turns.pop()
        return [*([{"role": "system", "content": instructions}] if instructions else []), *turns]

    def decoding(self, default: Decoding) -> Decoding:
        """Return how tokens are chosen: as the request says, and as `default` does where it says nothing."""
        given = {
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": tuple(self.stop) or None,
            "keep_markers": not self.skip_special_tokens,
        }
        try:
            return replace(default, **{name: value for name, value in given.items() if value is not None})
        except ValueError as error:
            raise ApiError(400, str(error), param=str(error).split(" ", 1)[0], code="invalid_value") from error

    def check(self, max_images: int) -> None:
        """Raise ApiError for what single fields do not say."""
        if self.max_tokens and self.max_completion_tokens not in (None, self.max_tokens):
            why = f"max_completion_tokens {self.max_completion_tokens}; give one"
            raise unsupported("max_tokens", self.max_tokens, why)
        for number, message in enumerate(self.messages):
            for place, part in enumerate(message.content):
                if isinstance(part, ImagePart) and message.role != "user":
                    name = f"messages.{number}.content.{place}.type"
                    raise unsupported(name, part.type, "only a user's message can hold an image")
        if len(self.stop) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in self.stop):
            why = f"up to {MAX_STOPS} texts of {MAX_STOP_CHARACTERS} characters are taken"
            raise unsupported("stop", self.stop, why)
        if (count := len(self.urls)) > max_images:
            message = f"the messages hold {count} images, more than the {max_images} allowed (--max-pictures)"
            raise ApiError(400, message, param="messages", code="too_many_images")
        if (length := sum(len(part.text) for part in self._parts() if not isinstance(part, ImagePart))) > MAX_TEXT:
            message = f"the messages hold {length:,} characters, more than the {MAX_TEXT:,} allowed; shorten them"
            raise ApiError(400, message, param="messages", code="context_length_exceeded")

    def _parts(self) -> Iterator[TextPart | RefusalPart | ImagePart]:
        return (part for message in self.messages for part in message.content)


def parse_request(body: bytes, max_images: int) -> ChatRequest:
    """Read the request in a body of JSON, or raise ApiError naming the first field that is wrong."""
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal_of(error, body) from error
    request.check(max_images)
    return request


_PARTS = (
    'a text, or a list of parts of the form {"type": "text", "text": …} or '
    '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}'
)


def _refusal_of(error: ValidationError, body: bytes) -> ApiError:
    """Return what is told of the first fault that pydantic found."""
    first = error.errors(include_url=False)[0]
    kind, message, value = first["type"], first["msg"], first["input"]
    if kind == "json_invalid":
        message = f"the body is not JSON that can be read: {_why_not_utf8(body) or message}"
        return ApiError(400, message, code="invalid_json")
    place = [str(step)[:60] for step in first["loc"]]
    if place[2:3] == ["content"]:
        del place[4:5]  # the type of a part, which stands between its number and its field
    param, name = ".".join(place), place[-1] if place else ""
    if kind == "extra_forbidden" and name not in WAYS_OUT:
        known = ", ".join(_model_at(first["loc"]).model_fields)
        message = f"{shown(param)} is not known to this server, and might change the answer; leave it out"
        return ApiError(400, f"{message} ({known} are known)", param=param, code="unknown_parameter")
    if kind in ("extra_forbidden", "unsupported_value"):
        return unsupported(param, value, WAYS_OUT.get(name, message))
    if "content" in place[-2:] and kind != "missing":
        tag = first.get("ctx", {}).get("tag")
        message = f"{f'a part of type {shown(tag)} is not taken; ' if tag else ''}content is {_PARTS}"
    code = "missing_required_parameter" if kind == "missing" else "invalid_value"
    if kind.endswith("_type"):
        code = "invalid_type"
    return ApiError(400, f"{param or 'the body'}: {message}", param=param or None, code=code)


def _model_at(place: tuple[int | str, ...]) -> type[_Lenient]:
    """Return the model that a field belongs to: `messages, 0, content, 0, text, lang` to `TextPart`."""
    if len(place) < 3:
        return ChatRequest if len(place) == 1 else StreamOptions
    if len(place) < 6:
        return Message
    if len(place) > 6:
        return ImageAddress
    parts = TextPart, RefusalPart, ImagePart
    return next(part for part in parts if place[4] in get_args(part.model_fields["type"].annotation))


def _why_not_utf8(body: bytes) -> str | None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1:,} is not of UTF-8; send it in UTF-8"
    return None


class Completion:
    """One answer in the making, as OpenAI's clients read it: whole, or chunk by chunk as server-sent events.

    Args:
        model: the name that it was asked by.
        includes_usage: whether a stream tells at its end how many tokens there were.
    """

    def __init__(self, model: str, reply: Reply, includes_usage: bool = False):
        self._reply, self._includes_usage = reply, includes_usage
        self._fields = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._role = {"role": "assistant"}

    @property
    def usage(self) -> dict[str, int]:
        prompt, new = self._reply.prompt_tokens, self._reply.new_tokens
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def whole(self, text: str) -> dict[str, Any]:
        """Return the answer in one piece, after its end."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reply.finish_reason}
        return {**self._fields, "object": "chat.completion", "choices": [choice], "usage": self.usage}

    def chunk(self, text: str) -> bytes:
        """Return the event of one piece of the answer."""
        return self._choice({"content": text})

    def ending(self) -> bytes:
        """Return the last events, after the answer's end."""
        end = self._choice({}, self._reply.finish_reason)
        return end + (self._event([], self.usage) if self._includes_usage else b"") + b"data: [DONE]\n\n"

    def _choice(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        delta, self._role = {**self._role, **delta}, {}  # the first one says whose words they are
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}], None)

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        told = {"usage": usage} if self._includes_usage else {}
        return event({**self._fields, "object": "chat.completion.chunk", "choices": choices, **told})


def event(value: dict[str, Any]) -> bytes:
    """Return a server-sent event that holds a value as JSON; in ASCII, since some clients end a line at U+2028 too."""
    return f"data: {json.dumps(value)}\n\n".encode()
