"""OpenAI's responses: requests as chats, and answers as responses, for clients that ask no other way.

Nothing is kept between requests, so that a response names none before it, and no tool is called.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from monkey.reply import Reply
from monkey.serving.protocol import (
    ApiError,
    ChatRequest,
    Lenient,
    Message,
    NamedSchema,
    ObjectForm,
    Place,
    SchemaForm,
    Settings,
    TextForm,
    TextPart,
    Tokenizer,
    event,
    model_of_message,
    read_fields,
    tagged,
    told_logprobs,
)

LOGPROBS = "message.output_text.logprobs"
"""What asks for probabilities, in `include`."""


class InputMessage(Message):
    type: Literal["message"] | None = None


class FlatSchemaForm(NamedSchema):
    """JSON of a schema, which is not wrapped as in chats."""

    type: Literal["json_schema"]


class TextSettings(Lenient):
    format: Annotated[TextForm | ObjectForm | FlatSchemaForm, Field(discriminator="type")] | None = None


class ChatOfResponse(ChatRequest):
    """A request for a response, as one of a chat."""

    of_messages: ClassVar[str] = "input"
    of_schema: ClassVar[str] = "text.format.schema"

    instructions: str | None = None
    """As they were sent; the first message holds them, too."""


class ResponseRequest(Settings):
    """A response that is wanted."""

    input: Annotated[
        list[InputMessage],
        BeforeValidator(lambda value: [{"role": "user", "content": value}] if isinstance(value, str) else value),
    ] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextSettings | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    """The second is of models that reason apart, and brings nothing here."""

    def as_chat(self) -> ChatOfResponse:
        """Return the same as a chat."""
        fields = {name: getattr(self, name) for name in Settings.model_fields}
        messages = list(self.input)
        if self.instructions:
            part = TextPart(type="text", text=self.instructions)
            messages.insert(0, InputMessage.model_construct(role="developer", content=[part]))
        return ChatOfResponse.model_construct(
            **fields,
            messages=messages,
            instructions=self.instructions,
            max_tokens=self.max_output_tokens,
            logprobs=LOGPROBS in (self.include or ()) or bool(self.top_logprobs),
            response_format=self._format(),
        )

    def _format(self) -> TextForm | ObjectForm | SchemaForm | None:
        form = self.text and self.text.format
        if isinstance(form, FlatSchemaForm):
            return SchemaForm.model_construct(type=form.type, json_schema=form)
        return form


def parse_response_request(body: bytes, max_images: int) -> ChatOfResponse:
    """Read the request in a body of JSON, or raise ApiError naming the first field that is wrong."""
    request = read_fields(ResponseRequest, body, _model_at).as_chat()
    request.check(max_images)
    return request


def _model_at(place: Place) -> type[Lenient]:
    """Return the model that a field belongs to."""
    if len(place) == 1:
        return ResponseRequest
    if place[0] == "text":
        return TextSettings if len(place) == 2 else tagged((TextForm, ObjectForm, FlatSchemaForm), place[2])
    return model_of_message(InputMessage, place)


class ResponseObject:
    """The answer to one request in the making, as clients of the responses read it; arguments as of `Completion`."""

    def __init__(self, request: ChatOfResponse, replies: Sequence[Reply], tokenizer: Tokenizer):
        (self._reply,) = replies
        self._tokenizer, self._tells_logprobs = tokenizer, bool(request.logprobs)
        self._item_id = f"msg_{uuid.uuid4().hex}"
        self._text, self._told, self._number = "", 0, 0
        form = request.response_format
        wanted: dict[str, Any] = {"type": "text"}
        if isinstance(form, SchemaForm):
            wanted = {**form.json_schema.model_dump(by_alias=True), "type": "json_schema"}
        elif form is not None:
            wanted = {"type": form.type}
        self._fields = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": request.model,
            "background": False,
            "error": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_tokens,
            "metadata": {},
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": request.temperature,
            "text": {"format": wanted},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": request.top_p,
            "truncation": "disabled",
            "user": None,
        }

    def whole(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return the response in one piece, after the answer's end."""
        (self._text,) = texts
        return self._response(self._status)

    def opening(self) -> bytes:
        """Return the events before the first piece."""
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"id": self._item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        return b"".join(
            (
                self._event("response.created", response=self._response("in_progress")),
                self._event("response.in_progress", response=self._response("in_progress")),
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", **self._place, part=part),
            )
        )

    def chunk(self, index: int, text: str) -> bytes:
        """Return the events of one piece of the answer."""
        self._text += text
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=self._logprobs())

    def end_of(self, index: int) -> bytes:
        """Return the events after the answer's end."""
        text = {"text": self._text, "logprobs": self._content["logprobs"]}
        return b"".join(
            (
                self._event("response.output_text.done", **self._place, **text),
                self._event("response.content_part.done", **self._place, part=self._content),
                self._event("response.output_item.done", output_index=0, item=self._item),
            )
        )

    def ending(self) -> bytes:
        """Return the last event."""
        return self._event(f"response.{self._status}", response=self._response(self._status))

    def failure(self, error: ApiError) -> bytes:
        """Return the last event where the answer cannot go on; clients look for the error in one of two places."""
        return self._event("error", **error.body["error"], **error.body)

    @property
    def _status(self) -> str:
        return "incomplete" if self._reply.finish_reason == "length" else "completed"

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    @property
    def _content(self) -> dict[str, Any]:
        told = told_logprobs(self._reply.logprobs, self._tokenizer) if self._tells_logprobs else []
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": told}

    @property
    def _item(self) -> dict[str, Any]:
        own = {"id": self._item_id, "type": "message", "status": self._status}
        return {**own, "role": "assistant", "content": [self._content]}

    def _logprobs(self) -> list[dict[str, Any]]:
        """Return the probabilities of tokens that were not told yet."""
        new = self._reply.logprobs[self._told :] if self._tells_logprobs else []
        self._told += len(new)
        return told_logprobs(new, self._tokenizer)

    def _response(self, status: str) -> dict[str, Any]:
        is_over = status != "in_progress"
        prompt, new = self._reply.prompt_tokens, self._reply.new_tokens
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self._reply.reused_tokens},
            "output_tokens": new,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + new,
        }
        return {
            **self._fields,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [self._item] if is_over else [],
            "usage": usage if is_over else None,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, **fields, "sequence_number": number} | {"type": kind}, kind)
