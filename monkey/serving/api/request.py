"""The body of `/v1/chat/completions`: which fields there are, and what is refused rather than passed over.

A field that would change the answer and cannot is refused by its name; null is as if a field were left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from monkey.serving.api.errors import ApiError, shown
from monkey.serving.decoding import Decoding
from monkey.serving.dialogue import Form

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256
"""OpenAI's number of stop texts; and how long one may be, since each is looked for at every token."""

MAX_TEXT = 200_000
"""Characters of all messages together, far more than a model reads."""

WITHOUT_EFFECT = frozenset(
    ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls")
)
"""Fields of OpenAI's that never change an answer."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
"""Fields of OpenAI's that are not supported, and the values of each that ask for nothing."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageAddress(_Strict):
    url: str
    detail: Literal["auto", "high"] | None = None
    """Pictures are always read at full size, so "low" is refused."""


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageAddress


def _content_kind(content: Any) -> str:
    return "parts" if isinstance(content, list) else "text"


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")],
    Discriminator(_content_kind),
]


class Message(_Strict):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ChatRequest(_Strict):
    """What is asked for. Two fields are not OpenAI's: `form` is of `monkey.serving.dialogue`, and with
    `skip_special_tokens`, which vLLM has too, an answer comes without the markers of boxes."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    form: Form | None = None
    skip_special_tokens: bool | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def urls(self) -> list[str]:
        """Where the pictures are, in their order."""
        return [part.image_url.url for part in self._parts() if isinstance(part, ImagePart)]

    def conversation(self, pictures: list[bytes | str]) -> list[dict[str, Any]]:
        """The messages as `monkey.chat.chat_segments` takes them, with the pictures in their places."""
        left = iter(pictures)
        return [
            {
                # OpenAI's newer name of the same role.
                "role": "system" if message.role == "developer" else message.role,
                "content": message.content
                if isinstance(message.content, str)
                else [
                    {"type": "text", "text": part.text}
                    if isinstance(part, TextPart)
                    else {"type": "image", "image": next(left)}
                    for part in message.content
                ],
            }
            for message in self.messages
        ]

    def decoding(self, default: Decoding) -> Decoding:
        """How tokens are chosen: as the request says, and as `default` does where it says nothing."""
        given = {
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": tuple(self._stops()) or None,
            "keep_markers": not self.skip_special_tokens,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        try:
            return replace(default, **settings)
        except ValueError as error:
            raise ApiError(400, str(error), param=str(error).split(" ", 1)[0], code="invalid_value") from error

    def check(self, max_pictures: int) -> None:
        """Raise ApiError for what the types alone do not say."""
        for message, number in zip(self.messages, range(len(self.messages)), strict=True):
            for name, value in (message.model_extra or {}).items():
                if value not in (None, [], {}):
                    raise _unsupported(f"messages.{number}.{name}", value, "a message has a role and a content here")
        for name, value in (self.model_extra or {}).items():
            _check_extra(name, value)
        if self.stream_options is not None and not self.stream:
            raise _unsupported("stream_options", "given", "it goes with stream=true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _unsupported("max_tokens", self.max_tokens, f"max_completion_tokens {self.max_completion_tokens}")
        stops = self._stops()
        if len(stops) > MAX_STOPS or max(map(len, stops), default=0) > MAX_STOP_CHARACTERS:
            raise _unsupported("stop", stops, f"up to {MAX_STOPS} texts of {MAX_STOP_CHARACTERS} characters are taken")
        if (count := len(self.urls)) > max_pictures:
            raise ApiError(
                400,
                f"the messages hold {count} pictures, more than the {max_pictures} allowed (--max-pictures)",
                param="messages",
                code="too_many_images",
            )
        if (length := sum(map(len, self._texts()))) > MAX_TEXT:
            raise ApiError(
                400,
                f"the messages hold {length:,} characters, more than the {MAX_TEXT:,} allowed; shorten them",
                param="messages",
                code="context_length_exceeded",
            )

    def _stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def _parts(self) -> list[TextPart | ImagePart]:
        return [part for message in self.messages if isinstance(message.content, list) for part in message.content]

    def _texts(self) -> list[str]:
        whole = [message.content for message in self.messages if isinstance(message.content, str)]
        return whole + [part.text for part in self._parts() if isinstance(part, TextPart)]


def parse_request(body: bytes, max_pictures: int) -> ChatRequest:
    """The request in a body of JSON, or ApiError naming the first field that is wrong."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _of_validation(error) from error
    request.check(max_pictures)
    return request


def _check_extra(name: str, value: Any) -> None:
    if value is None or name in WITHOUT_EFFECT:
        return
    if name not in NEUTRAL:
        known = ", ".join([*ChatRequest.model_fields, *sorted(NEUTRAL)])
        raise ApiError(
            400,
            f"{shown(name)} is not a field of this server, which would have to ignore it; there are {known}",
            param=name[:60],
            code="unknown_parameter",
        )
    if value not in NEUTRAL[name]:
        options = " or ".join(map(repr, NEUTRAL[name]))
        raise _unsupported(name, value, f"only {options} can be had from this server; leave it out")


def _unsupported(name: str, value: Any, why: str) -> ApiError:
    return ApiError(400, f"{name} is {shown(value)}, and {why}", param=name, code="unsupported_value")


_TAGS = frozenset(("text", "parts", "image_url"))
"""Choices between kinds of content, which pydantic puts into the place of an error."""


def _of_validation(error: ValidationError) -> ApiError:
    first = max(error.errors(include_url=False, include_input=False), key=lambda fault: len(fault["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON that can be read: {first['msg']}", code="invalid_json")
    place: list[str] = []
    before: str | int = ""
    for step in first["loc"]:
        is_choice = step in _TAGS and (before == "content" or isinstance(before, int))
        if not (is_choice or step == "str" or str(step).startswith("list[")):
            place.append(str(step)[:60])
        before = step
    param = ".".join(place)
    return ApiError(400, f"{param or 'the body'}: {first['msg']}", param=param or None, code="invalid_value")
