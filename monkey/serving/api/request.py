"""The body of `/v1/chat/completions`: which fields there are, what passes, and what is refused.

What changes no answer passes, as OpenAI lets it: fields of book-keeping, values that ask for nothing, empty ones. A
field that would change the answer and cannot is refused by its name, in a sentence that says what to do.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from monkey.conversation import Template
from monkey.serving.api.errors import ApiError, shown
from monkey.serving.api.pictures import clean_address
from monkey.serving.decoding import Decoding

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
"""The same of messages and their parts."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": (),
    "top_k": (-1, 0),
    "min_p": (0,),
    "typical_p": (1,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "echo": (False,),
    "stop_token_ids": (),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({"enable_thinking": False},),
    "return_token_ids": (False,),
    "response_format": ({"type": "text"},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "modalities": (["text"],),
    "audio": (),
    "verbosity": ("medium",),
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    "web_search_options": (),
}
"""Fields that are not supported, and the values of each that ask for nothing; empty ones always do."""

_SAMPLING = "tokens are chosen by temperature and top_p alone; leave it out"
_IN_WORDS = "an answer cannot be held to a form; ask for the form in the question's words, and leave it out"
_NO_TOOLS = "this server calls no tools; leave it out, and put what a tool found into a user's message"
_OWN_FORM = "how the prompt is written is said by form: chatml, questions or plain"
_SURENESS = "no probabilities are told here; leave it out (in Python, Decoding(confidence=True) tells an answer's)"

WAYS_OUT: dict[str, str] = {
    "n": "one answer comes from a request; ask several times, with other seeds",
    "best_of": "one answer comes from a request; leave it out",
    **dict.fromkeys(("logprobs", "top_logprobs", "prompt_logprobs"), _SURENESS),
    **dict.fromkeys(("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar"), _IN_WORDS),
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call", "tool_calls"), _NO_TOOLS),
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "add_generation_prompt", "echo"), _OWN_FORM),
    "continue_final_message": "an answer is always a new message; leave it out",
    "stop_token_ids": "answers end at texts; name them in stop",
    "include_stop_str_in_output": "a stop text is no part of the answer; leave it out",
    "return_token_ids": "answers are told as text; leave it out",
    "modalities": "answers are text; leave it out",
    "audio": "answers are text; leave it out",
    "verbosity": "the model has one way of answering; ask in the question's words to be brief, and leave it out",
    "web_search_options": "nothing is looked up; leave it out",
    "ignore_eos": "an answer ends where the model ends it; leave it out",
    "min_tokens": "an answer ends where the model ends it; leave it out",
}
"""What to do in place of what is not supported; for all others it is `_SAMPLING`."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Part(_Strict):
    model_config = ConfigDict(extra="allow")


class TextPart(_Part):
    type: Literal["text", "input_text", "output_text"]
    """The last two are of OpenAI's responses."""
    text: str


class RefusalPart(_Part):
    """What an assistant said in place of an answer."""

    type: Literal["refusal"]
    text: str = Field(alias="refusal")


Detail = Literal["auto", "low", "high"] | None
"""Pictures are always read at full size: OpenAI's "low" costs as much as "high"."""


class ImageAddress(_Part):
    url: Annotated[str, AfterValidator(clean_address)]
    detail: Detail = None


class ImagePart(_Part):
    type: Literal["image_url", "input_image"]
    """The second is of OpenAI's responses, where the address is a text."""
    image_url: Annotated[ImageAddress, BeforeValidator(lambda value: {"url": value} if _is_text(value) else value)]
    detail: Detail = None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _content_kind(content: Any) -> str:
    return "parts" if isinstance(content, list) else "text"


Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")],
    Discriminator(_content_kind),
]


class Message(_Strict):
    model_config = ConfigDict(extra="allow")

    role: str
    content: Content | None = None
    refusal: str | None = None

    @property
    def parts(self) -> list[TextPart | RefusalPart | ImagePart]:
        """The content as parts, whichever way it was written; of an assistant it may be a refusal, or nothing."""
        content = self.content if self.content is not None else self.refusal or ""
        return [TextPart(type="text", text=content)] if isinstance(content, str) else content


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class ChatRequest(_Strict):
    """What is asked for. Three fields are not OpenAI's: `form` and `picture_labels` are of `monkey.conversation.write`,
    and with `skip_special_tokens`, which vLLM has too, an answer comes without the markers of boxes."""

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
    form: Template | None = None
    picture_labels: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def urls(self) -> list[str]:
        """Where the pictures are, in their order."""
        return [part.image_url.url for message in self.messages for part in message.parts if _is_picture(part)]

    def conversation(self, pictures: list[bytes | str]) -> list[dict[str, Any]]:
        """The messages as `Conversation.from_messages` takes them, with the pictures in their places.

        Instructions (of the system or a developer) may be several and stand anywhere; they are one message at the
        beginning here, with empty lines between. An assistant's empty message at the end, which some clients send to
        be filled, is left out.
        """
        left = iter(pictures)
        instructions: list[dict[str, Any]] = []
        turns: list[dict[str, Any]] = []
        for message in self.messages:
            parts = [
                {"type": "image", "image": next(left)} if _is_picture(part) else {"type": "text", "text": part.text}
                for part in message.parts
            ]
            if message.role in ("system", "developer"):
                instructions += [*([{"type": "text", "text": "\n\n"}] if instructions else []), *parts]
            else:
                turns.append({"role": message.role, "content": parts})
        if turns and turns[-1]["role"] == "assistant" and not any(part["text"] for part in turns[-1]["content"]):
            turns.pop()
        return [*([{"role": "system", "content": instructions}] if instructions else []), *turns]

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
        for number, message in enumerate(self.messages):
            _check_message(message, f"messages.{number}")
        for name, value in (self.model_extra or {}).items():
            if _asks_for_nothing(name, value, WITHOUT_EFFECT) or value in NEUTRAL.get(name, ()):
                continue
            if name not in NEUTRAL:
                raise _unknown(name, type(self).model_fields)
            raise _unsupported(name, value, WAYS_OUT.get(name, _SAMPLING))
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _unsupported(
                "max_tokens", self.max_tokens, f"max_completion_tokens {self.max_completion_tokens}; give one"
            )
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
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if text]

    def _texts(self) -> list[str]:
        return [part.text for message in self.messages for part in message.parts if not _is_picture(part)]


def _is_picture(part: TextPart | RefusalPart | ImagePart) -> bool:
    return isinstance(part, ImagePart)


def _check_message(message: Message, place: str) -> None:
    if message.role in ("tool", "function"):
        raise _unsupported(f"{place}.role", message.role, _NO_TOOLS)
    if message.role not in ROLES:
        raise _unsupported(f"{place}.role", message.role, f"roles are {', '.join(ROLES)}")
    if message.content is None and message.role != "assistant":
        raise ApiError(
            400,
            f"{place}.content is missing, and a text or a list of parts is needed",
            param=f"{place}.content",
            code="missing_required_parameter",
        )
    _check_extras(message, place)
    for number, part in enumerate(message.parts):
        own = f"{place}.content.{number}"
        _check_extras(part, own)
        if isinstance(part, ImagePart):
            _check_extras(part.image_url, f"{own}.image_url")
            if message.role != "user":
                raise _unsupported(f"{own}.type", part.type, "only a user's message can hold a picture")


def _check_extras(model: BaseModel, place: str) -> None:
    for name, value in (model.model_extra or {}).items():
        if _asks_for_nothing(name, value, WITHOUT_EFFECT_IN_MESSAGES):
            continue
        if name in WAYS_OUT:
            raise _unsupported(f"{place}.{name}", value, WAYS_OUT[name])
        raise _unknown(f"{place}.{name}", type(model).model_fields)


def _asks_for_nothing(name: str, value: Any, without_effect: Collection[str]) -> bool:
    return name in without_effect or value in (None, "", [], {})


def parse_request(body: bytes, max_pictures: int) -> ChatRequest:
    """The request in a body of JSON, or ApiError naming the first field that is wrong."""
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _of_validation(error, body) from error
    request.check(max_pictures)
    return request


def _unknown(place: str, known: Mapping[str, Any]) -> ApiError:
    return ApiError(
        400,
        f"{shown(place)} is not known to this server, and might change the answer; leave it out ({', '.join(known)} "
        "are known)",
        param=place[:120],
        code="unknown_parameter",
    )


def _unsupported(name: str, value: Any, why: str) -> ApiError:
    return ApiError(400, f"{name} is {shown(value)}, and {why}", param=name, code="unsupported_value")


_TAGS = frozenset(("text", "parts", "image_url", "input_text", "input_image", "output_text", "refusal"))
"""Choices between kinds of content, which pydantic puts into the place of an error."""

_PARTS = """{"type": "text", "text": …} or {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}"""

_CODES = {"missing": "missing_required_parameter"}
"""OpenAI's names of some faults; wrong types are `invalid_type`, all others `invalid_value`."""


def _of_validation(error: ValidationError, body: bytes) -> ApiError:
    first = max(error.errors(include_url=False, include_input=False), key=lambda fault: len(fault["loc"]))
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        try:
            body.decode()
        except UnicodeDecodeError as wrong:
            message = f"byte {wrong.start + 1:,} is not of UTF-8; send it in UTF-8"
        return ApiError(400, f"the body is not JSON that can be read: {message}", code="invalid_json")
    place: list[str] = []
    before: str | int = ""
    for step in first["loc"]:
        is_choice = step in _TAGS and (before == "content" or isinstance(before, int))
        if not (is_choice or step == "str" or str(step).startswith(("list[", "function-"))):
            place.append(str(step)[:60])
        before = step
    param = ".".join(place)
    if "content" in place[-2:]:
        tag = first.get("ctx", {}).get("tag")
        what = "it is a text, or a list of parts of the form" if place[-1] == "content" else "a part is"
        message = f"{f'a part of type {shown(tag)} is not taken; ' if tag else ''}{what} {_PARTS}"
    code = "invalid_type" if kind.endswith("_type") else _CODES.get(kind, "invalid_value")
    return ApiError(400, f"{param or 'the body'}: {message}", param=param or None, code=code)
