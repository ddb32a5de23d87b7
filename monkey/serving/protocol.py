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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args
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
from monkey.decoding import MAX_LOGPROBS, Decoding
from monkey.grammar import ANY_OBJECT
from monkey.reply import Logprob, Reply
from monkey.tokenization import QwenTokenizer
from monkey.tokenization_decoder import DecoderTokenizer

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256
"""OpenAI's number of stop texts; and how long one may be, since each is looked for at every token."""

LOWEST_LOGPROB = -9999.0
"""What OpenAI tells of tokens that are as good as impossible; JSON has no infinity."""

Tokenizer = QwenTokenizer | DecoderTokenizer

MAX_TEXT = 200_000
"""Characters of all messages together, far more than a model reads."""

ROLES = ("system", "developer", "user", "assistant")

WITHOUT_EFFECT = frozenset((
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "cache_control",
    "parallel_tool_calls", "service_tier", "store", "reasoning_effort", "reasoning", "prediction", "keep_alive",
    "id", "chat_id", "session_id", "conversation_id", "message_id", "request_id", "priority", "cache_salt",
    "max_tool_calls",
))  # fmt: skip
"""Fields of OpenAI's, of other servers and of chat programs that never change an answer of a model that writes what it
says at once and calls no tools."""

WITHOUT_EFFECT_IN_MESSAGES = frozenset(
    ("name", "id", "cache_control", "annotations", "logprobs", "reasoning", "reasoning_content", "status")
)
"""The same in messages and their parts."""

NO_TOOLS = "this server calls no tools; leave it out, and put what a tool found into a user's message"

ONE_TOOL = (
    "the model does not decide whether to call one; name one in tool_choice, whose arguments the answer is then, or "
    "leave them out"
)

# fmt: off
UNSUPPORTED: dict[str, dict[str, list[Any]]] = {
    "every answer is told; ask for several with n, and take the one that you like best": {"best_of": [1]},
    "tokens are chosen by temperature, top_p, top_k and penalties alone; leave it out": {
        "length_penalty": [1], "logit_bias": [], "min_p": [0], "typical_p": [1], "use_beam_search": [False],
    },
    "probabilities are those of answers; leave it out, and set logprobs": {"prompt_logprobs": [0]},
    "an answer ends where the model ends it; leave it out": {"min_tokens": [0], "ignore_eos": [False]},
    "answers end at texts; name them in stop": {"stop_token_ids": []},
    "a stop text is no part of the answer; leave it out": {"include_stop_str_in_output": [False]},
    "an answer is held to JSON by response_format; send the schema there": {
        "guided_json": [], "guided_regex": [], "guided_choice": [], "guided_grammar": [], "structured_outputs": [],
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
    "no answers and conversations are kept here; leave it out, and send all messages each time": {
        "previous_response_id": [], "conversation": [], "prompt": [], "background": [False],
    },
    "a prompt that is too long is refused and never cut; leave it out": {"truncation": ["disabled"]},
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


class Lenient(BaseModel):
    """Knows its fields, and passes over others where they ask for nothing."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    without_effect: ClassVar[frozenset[str]] = WITHOUT_EFFECT_IN_MESSAGES
    empty_is_none: ClassVar[bool] = False
    """Whether a field that may be left out may also be empty, as some clients send it."""

    @model_validator(mode="before")
    @classmethod
    def _pass_over(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        known = cls.known()
        return {
            name: value
            for name, value in fields.items()
            if not (cls._may_be_empty(name) and value in ("", [], {}) if name in known else cls._is_idle(name, value))
        }

    @classmethod
    def _may_be_empty(cls, name: str) -> bool:
        return cls.empty_is_none and name in cls.model_fields and not cls.model_fields[name].is_required()

    @classmethod
    def known(cls) -> list[str]:
        """Return the names of the fields, as requests have them."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def _is_idle(cls, name: str, value: Any) -> bool:
        return name in cls.without_effect or value in (None, "", [], {}) or value in NEUTRAL.get(name, ())


Request = TypeVar("Request", bound=Lenient)


class TextPart(Lenient):
    type: Literal["text", "input_text", "output_text"]
    """The last two are of OpenAI's responses."""
    text: str


class RefusalPart(Lenient):
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
"""With "low" the model sees the global view alone; else all views."""


class ImageAddress(Lenient):
    url: Annotated[str, AfterValidator(clean_url)]
    detail: Detail = None


class ImagePart(Lenient):
    type: Literal["image_url", "input_image"]
    """The second is of OpenAI's responses, where the address is a text."""
    image_url: Annotated[
        ImageAddress, BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value)
    ]
    detail: Detail = None
    """As the responses have it; in chats it is beside the address."""

    @property
    def seen(self) -> str:
        return self.image_url.detail or self.detail or "auto"


Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]


class Message(Lenient):
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


class StreamOptions(Lenient):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class TextForm(Lenient):
    """Any answer."""

    type: Literal["text"]

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The JSON schema that answers are held to, if any."""
        return None


class ObjectForm(Lenient):
    """Any JSON object."""

    type: Literal["json_object"]

    @property
    def wanted(self) -> dict[str, Any] | None:
        return ANY_OBJECT


class NamedSchema(Lenient):
    """A JSON schema; what is not `strict` is held to all the same."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class SchemaForm(Lenient):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def wanted(self) -> dict[str, Any] | None:
        return self.json_schema.schema_


class Function(Lenient):
    """What a tool is called by, and the JSON schema of its arguments."""

    name: str
    description: str | None = None
    strict: bool | None = None
    parameters: dict[str, Any] | None = None


class Tool(Lenient):
    type: Literal["function"]
    function: Function


class ChosenFunction(Lenient):
    name: str


class ToolChoice(Lenient):
    type: Literal["function"]
    function: ChosenFunction


class Settings(Lenient):
    """What chats and responses are asked with alike. Some fields are not OpenAI's: `form`, `picture_labels` and
    `max_windows` are those of `Answerer.chat`; `top_k`, `repetition_penalty` and `skip_special_tokens`, with which
    answers come without the markers of boxes, are vLLM's."""

    without_effect, empty_is_none = WITHOUT_EFFECT, True

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    top_k: int | None = Field(None, ge=-1)
    """-1 and 0 are all tokens."""
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    form: Template | None = None
    picture_labels: bool | None = None
    max_windows: int | None = Field(None, ge=1)
    skip_special_tokens: bool | None = None


class ChatRequest(Settings):
    """A chat to be answered."""

    of_messages: ClassVar[str] = "messages"
    """The field that holds them."""
    of_schema: ClassVar[str] = "response_format.json_schema.schema"

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: list[str] = Field([])
    n: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    response_format: Annotated[TextForm | ObjectForm | SchemaForm, Field(discriminator="type")] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | Literal["none", "auto", "required"] | None = Field(None, union_mode="left_to_right")

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _check_choice(cls, choice: Any) -> Any:
        if isinstance(choice, str) and choice not in ("none", "auto", "required"):
            raise PydanticCustomError("unsupported_value", NO_TOOLS)
        return choice

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
                {"type": "image", "image": next(left), "detail": part.seen}
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

    @property
    def held_to(self) -> tuple[str, dict[str, Any]] | None:
        """The field of the JSON schema that answers are held to, and the schema; None where they are free."""
        if (number := self._chosen_tool()) is not None:
            return f"tools.{number}.function.parameters", self.tools[number].function.parameters or ANY_OBJECT
        wanted = self.response_format and self.response_format.wanted
        return wanted and (self.of_schema, wanted)

    @property
    def called(self) -> str | None:
        """The function whose arguments the answer is, if any."""
        number = self._chosen_tool()
        return None if number is None else self.tools[number].function.name

    def _chosen_tool(self) -> int | None:
        """Return the number of the one tool that the model has to call, if any; its wish is never asked."""
        names = [tool.function.name for tool in self.tools or ()]
        if self.tool_choice == "required" and len(names) == 1:
            return 0
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.function.name in names:
            return names.index(self.tool_choice.function.name)
        return None

    def decodings(self, default: Decoding) -> list[Decoding]:
        """Return how the tokens of each answer are chosen, the seeds of several counting up from the request's."""
        first = self._decoding(default)
        seeds = [first.seed if first.seed is None else first.seed + number for number in range(self.n or 1)]
        return [replace(first, seed=seed) for seed in seeds]

    def _decoding(self, default: Decoding) -> Decoding:
        """Return how tokens are chosen: as the request says, and as `default` does where it says nothing."""
        given = {
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "top_k": self.top_k and max(0, self.top_k),
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
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
        if self.top_logprobs and not self.logprobs:
            raise unsupported("top_logprobs", self.top_logprobs, "logprobs is not true; set it")
        if self._chosen_tool() is None:
            if isinstance(self.tool_choice, ToolChoice):
                name = self.tool_choice.function.name
                raise unsupported("tool_choice", name, "no tool of that name is among tools; add it")
            if self.tool_choice == "required":
                raise unsupported("tool_choice", "required", ONE_TOOL)
            if self.tools and self.tool_choice != "none":
                raise unsupported("tools", [tool.function.name for tool in self.tools], ONE_TOOL)
        for number, message in enumerate(self.messages):
            for place, part in enumerate(message.content):
                if isinstance(part, ImagePart) and message.role != "user":
                    name = f"{self.of_messages}.{number}.content.{place}.type"
                    raise unsupported(name, part.type, "only a user's message can hold an image")
        if len(self.stop) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in self.stop):
            why = f"up to {MAX_STOPS} texts of {MAX_STOP_CHARACTERS} characters are taken"
            raise unsupported("stop", self.stop, why)
        if (count := len(self.urls)) > max_images:
            message = f"the messages hold {count} images, more than the {max_images} allowed (--max-pictures)"
            raise ApiError(400, message, param=self.of_messages, code="too_many_images")
        if (length := sum(len(part.text) for part in self._parts() if not isinstance(part, ImagePart))) > MAX_TEXT:
            message = f"the messages hold {length:,} characters, more than the {MAX_TEXT:,} allowed; shorten them"
            raise ApiError(400, message, param=self.of_messages, code="context_length_exceeded")

    def _parts(self) -> Iterator[TextPart | RefusalPart | ImagePart]:
        return (part for message in self.messages for part in message.content)


def parse_request(body: bytes, max_images: int) -> ChatRequest:
    """Read the request in a body of JSON, or raise ApiError naming the first field that is wrong."""
    request = read_fields(ChatRequest, body, _model_at)
    request.check(max_images)
    return request


Place = tuple[int | str, ...]
"""Of a fault in a request, as pydantic tells it."""


def read_fields(kind: type[Request], body: bytes, model_at: Callable[[Place], type[Lenient]]) -> Request:
    """Read a body of JSON, or raise ApiError naming the first field that is wrong.

    Args:
        model_at: tells which model the field at a place belongs to.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal_of(error, body, model_at) from error


_PARTS = (
    'a text, or a list of parts of the form {"type": "text", "text": …} or '
    '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}'
)


def _refusal_of(error: ValidationError, body: bytes, model_at: Callable[[Place], type[Lenient]]) -> ApiError:
    """Return what is told of the first fault that pydantic found."""
    first = error.errors(include_url=False)[0]
    kind, message, value = first["type"], first["msg"], first["input"]
    if kind == "json_invalid":
        message = f"the body is not JSON that can be read: {_why_not_utf8(body) or message}"
        return ApiError(400, message, code="invalid_json")
    place = [str(step)[:60] for step in first["loc"]]
    if place[2:3] == ["content"]:
        del place[4:5]  # the type of a part, which stands between its number and its field
    if place[:1] in (["response_format"], ["tool_choice"]):
        del place[1:2]  # so does the form's
    param, name = ".".join(place), place[-1] if place else ""
    if kind == "extra_forbidden" and name not in WAYS_OUT:
        known = ", ".join(model_at(first["loc"]).known())
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


def _model_at(place: Place) -> type[Lenient]:
    """Return the model that a field belongs to: `messages, 0, content, 0, text, lang` to `TextPart`."""
    if len(place) < 3:
        return ChatRequest if len(place) == 1 else StreamOptions
    if place[0] in ("tools", "tool_choice"):
        return {"tools": (Tool, Function), "tool_choice": (ToolChoice, ChosenFunction)}[place[0]][
            place[-2] == "function"
        ]
    if place[0] == "response_format":
        return NamedSchema if len(place) > 3 else tagged((TextForm, ObjectForm, SchemaForm), place[1])
    return model_of_message(Message, place)


def model_of_message(message: type[Message], place: Place) -> type[Lenient]:
    """Return the model, from a message inwards, that a field belongs to."""
    if len(place) < 6:
        return message
    return ImageAddress if len(place) > 6 else tagged((TextPart, RefusalPart, ImagePart), place[4])


def tagged(models: Iterable[type[Lenient]], tag: int | str) -> type[Lenient]:
    """Return the model of a `type`."""
    return next(model for model in models if tag in get_args(model.model_fields["type"].annotation))


def _why_not_utf8(body: bytes) -> str | None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1:,} is not of UTF-8; send it in UTF-8"
    return None


class Completion:
    """The answers to one request in the making, as OpenAI's clients read them: whole, or as server-sent events.

    Args:
        request: what was asked.
        replies: as many as it wanted.
        tokenizer: of their tokens.
    """

    def __init__(self, request: ChatRequest, replies: Sequence[Reply], tokenizer: Tokenizer):
        self._replies, self._tokenizer = replies, tokenizer
        self._includes_usage, self._tells_logprobs = request.includes_usage, bool(request.logprobs)
        self._called = request.called
        self._fields = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}
        self._begun: set[int] = set()
        self._told = [0] * len(replies)
        """Of how many tokens of each answer a stream has told the probabilities."""

    @property
    def usage(self) -> dict[str, int]:
        prompt, new = self._replies[0].prompt_tokens, sum(reply.new_tokens for reply in self._replies)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def whole(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return the answers in one piece, after their end."""
        choices = []
        for index, (text, reply) in enumerate(zip(texts, self._replies, strict=True)):
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if self._called is not None:
                message |= {"content": None, "tool_calls": [self._call(text)]}
            told = {"logprobs": self._logprobs(index), "finish_reason": reply.finish_reason}
            choices.append({"index": index, "message": message, **told})
        return {**self._fields, "object": "chat.completion", "choices": choices, "usage": self.usage}

    def opening(self) -> bytes:
        """Return the events before the first piece."""
        return b""

    def chunk(self, index: int, text: str) -> bytes:
        """Return the events of one piece of an answer."""
        if self._called is None:
            return self._choice(index, {"content": text})
        # The first one says what is called.
        call = {"function": {"arguments": text}} if index in self._begun else self._call(text)
        return self._choice(index, {"tool_calls": [{"index": 0, **call}]})

    def end_of(self, index: int) -> bytes:
        """Return the events after an answer's end."""
        return self._choice(index, {}, self._replies[index].finish_reason)

    def ending(self) -> bytes:
        """Return the last events, after the end of all answers."""
        return (self._event([], self.usage) if self._includes_usage else b"") + b"data: [DONE]\n\n"

    def failure(self, error: ApiError) -> bytes:
        """Return the last event where answers cannot go on."""
        return event(error.body)

    def _call(self, arguments: str) -> dict[str, Any]:
        function = {"name": self._called, "arguments": arguments}
        return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}

    def _choice(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        # The first one says whose words they are.
        role = {} if index in self._begun else {"role": "assistant"}
        self._begun.add(index)
        told = {"logprobs": self._logprobs(index), "finish_reason": finish_reason}
        return self._event([{"index": index, "delta": {**role, **delta}, **told}], None)

    def _logprobs(self, index: int) -> dict[str, Any] | None:
        """Return the probabilities of tokens that were not told yet; text may come later than its tokens, or not at
        all, where it was white space around the answer or a stop text."""
        if not self._tells_logprobs:
            return None
        new = self._replies[index].logprobs[self._told[index] :]
        self._told[index] += len(new)
        return {"content": told_logprobs(new, self._tokenizer), "refusal": None}

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        told = {"usage": usage} if self._includes_usage else {}
        return event({**self._fields, "object": "chat.completion.chunk", "choices": choices, **told})


def told_logprobs(logprobs: Iterable[Logprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return how likely tokens were, as OpenAI tells it."""
    return [
        {
            **_told_token(token, value, tokenizer),
            "top_logprobs": [_told_token(*other, tokenizer) for other in likeliest],
        }
        for token, value, likeliest in logprobs
    ]


def _told_token(token: int, value: float, tokenizer: Tokenizer) -> dict[str, Any]:
    content = tokenizer.convert_ids_to_tokens(token) if isinstance(tokenizer, QwenTokenizer) else None
    # Behind another, since some vocabularies have no blank before a word that stands first.
    text = tokenizer.decode([token, token])[len(tokenizer.decode([token])) :]
    if not isinstance(content, bytes):
        content = None if "\ufffd" in text else text.encode()  # bytes of a character that other tokens complete
    return {"token": text, "logprob": max(value, LOWEST_LOGPROB), "bytes": content and list(content)}


def event(value: dict[str, Any], name: str = "") -> bytes:
    """Return a server-sent event that holds a value as JSON; in ASCII, since some clients end a line at U+2028 too."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n".encode()
