"""One conversation, whoever holds it: a training record, an evaluation question, a chat, a request.

    record, question, messages of a client ──► Conversation ──► write ──► segments ──► MonkeyProcessor.encode ──► ids

A conversation is messages, a message is parts, and a part is text or an image. Text is trusted, so that tokens of
control in it count, or inert, so that every character of it is plain: what people write can never become `<img>` or
`<|im_start|>`. `write` makes segments of a conversation in one of these templates:

`plain`      each text as it is, one after the other, an end of text behind each answer: the form of training.
`questions`  the same, with a user's text put into the question prompt of training, `<img></img> question Answer: `,
             unless it is such a prompt already.
`chatml`     Qwen's chat form, `<|im_start|>role … <|im_end|>`. Each image stands where its part stands, as Qwen-VL's
             chat writes it: `Picture 1: <img></img>` and a line break, with numbers that run through the conversation.
`decoder`    the chat template of the decoder's own tokenizer, which `monkey.chat_template` writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from monkey.prompts import (
    BOX_MARKERS,
    CHAT_END,
    CHAT_PICTURE_LABEL,
    CHAT_START,
    CHAT_SYSTEM,
    END_OF_TEXT,
    IMAGE_PLACE,
    VQA_AS_TRAINED,
    after_image,
    is_prompt,
)

ROLES = ("system", "user", "assistant")

Template = Literal["chatml", "questions", "plain", "decoder"]
TEMPLATES: tuple[str, ...] = get_args(Template)

_BOX_MARKER = re.compile(f"({'|'.join(map(re.escape, BOX_MARKERS))})")
_PLACEHOLDER = re.compile("<img>(.*?)</img>", re.DOTALL)

UNSUPERVISED = -100
"""Label of a position that the loss leaves out."""


@dataclass(frozen=True)
class Text:
    """A text; in a trusted one, control tokens and image placeholders count."""

    text: str
    trusted: bool = False


@dataclass(frozen=True)
class Image:
    """An image: whatever `monkey.images.open_image` takes, or None as long as it is to be given apart.

    `path` is written into its slots among the ids, as the published code does; nothing opens it. With `global_only`
    the model sees the global view alone: the whole image, small.
    """

    source: Any = None
    path: str = ""
    global_only: bool = False

    @property
    def placeholder(self) -> str:
        return f"<img>{self.path}</img>"


Part = Text | Image


@dataclass(frozen=True)
class Message:
    """What one side says; `role` is one of `ROLES`."""

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text with `<img></img>` where an image stands."""
        return "".join(part.text if isinstance(part, Text) else IMAGE_PLACE for part in self.parts)


@dataclass(frozen=True)
class Conversation:
    """What was said, by turns."""

    messages: tuple[Message, ...]

    @property
    def images(self) -> list[Any]:
        """The sources of the images in their order."""
        return [image.source for image in self._images()]

    @property
    def global_only(self) -> list[bool]:
        """Which of the images are seen as their global view alone."""
        return [image.global_only for image in self._images()]

    def _images(self) -> Iterator[Image]:
        return (part for message in self.messages for part in message.parts if isinstance(part, Image))

    @classmethod
    def from_prompt(cls, text: str, trusted: bool = True) -> Conversation:
        """One text, with the placeholders in it if it is trusted; `attach_images` gives the images."""
        return cls((Message("user", tuple(split_placeholders(text) if trusted else [Text(text)])),))

    @classmethod
    def from_question(cls, images: Iterable[Any], text: str) -> Conversation:
        """A text that people write, behind its images."""
        return cls((Message("user", (*map(Image, images), *split_box_markers(text))),))

    @classmethod
    def from_turns(cls, turns: Sequence[Mapping[str, str]], images: Any = None, trusted: bool = True) -> Conversation:
        """The published form of training records.

        Args:
            turns: `{"role": "user" | "assistant", "text": …}`, with `<img></img>` where an image stands.
            images: in the order of the placeholders; without any placeholder they go first.
            trusted: False makes every character of the turns plain text.
        """
        if not turns:
            raise ValueError("the conversation has no turn")
        messages = []
        for number, turn in enumerate(turns, start=1):
            if not isinstance(turn, Mapping) or not isinstance(turn.get("text"), str) or "role" not in turn:
                raise ValueError(f"turn {number} is not of the form {{'role': 'user' or 'assistant', 'text': …}}")
            parts = split_placeholders(turn["text"]) if trusted else [Text(turn["text"])]
            messages.append(Message(turn["role"], tuple(parts)))
        return attach_images([cls(tuple(messages))], images)[0]

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """A chat in the form of transformers and OpenAI, all of whose content is inert.

        The markers of boxes alone (`<ref>`, `<box>`, `<quad>`) are tokens, as in training: a question may say where
        something is, and an answer that did is read as it was written.

        Args:
            messages: `{"role": …, "content": text | parts}`, a part being `{"type": "text", "text": …}` or
                `{"type": "image"}`, with the image under "image" where it is given here, and under "detail" "low" for
                its global view alone; "high" and "auto" are all views.

        Raises:
            ValueError: a message or part that is not of this form, by its number.
        """
        if not messages:
            raise ValueError("the conversation has no message")
        return cls(tuple(_read_message(message, number) for number, message in enumerate(messages, start=1)))

    def check_answers(self) -> None:
        """Raise ValueError unless turns alternate from a user's to an assistant's, and every answer says something."""
        for number, message in enumerate(self.messages, start=1):
            expected = "user" if number % 2 else "assistant"
            if message.role != expected:
                found = f"turn {number} is the {message.role}'s where the {expected}'s follows"
                raise ValueError(f"{found}; turns alternate")
            if expected == "user":
                continue
            if any(isinstance(part, Image) for part in message.parts):
                raise ValueError(f"turn {number} is the assistant's and has a place for an image; only users have them")
            if not message.text.strip():
                raise ValueError(f"turn {number}, the assistant's, is empty; there is nothing to learn from it")
        if len(self.messages) % 2:
            number = len(self.messages)
            raise ValueError(f"the conversation ends with the user's turn {number}; an answer must follow it")

    def check_question(self) -> None:
        """Raise ValueError unless a user's message that asks something comes last, and every image is there."""
        last = self.messages[-1]
        if last.role != "user":
            raise ValueError(f"the conversation ends with the {last.role}'s message; a user's must be last")
        for number, image in enumerate(self.images, start=1):
            if image is None:
                raise ValueError(f"image {number} of {len(self.images)} is missing: its part has nothing under 'image'")
        if not last.text.strip():
            raise ValueError("the question is empty")


def _read_message(message: Mapping[str, Any], number: int) -> Message:
    where = f"message {number}"
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        raise ValueError(f"{where} has the role {role!r}, and roles are {', '.join(ROLES)}")
    if role == "system" and number > 1:
        raise ValueError(f"{where} is a system message, which can only be the first")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"{where} has {type(content).__name__} content, and a text or a list of parts is needed")
    parts = [_read_part(part, role, f"part {place} of {where}") for place, part in enumerate(content, start=1)]
    return Message(role, tuple(_split_texts(parts)))


def _read_part(part: Any, role: str, where: str) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind != "image":
        raise ValueError(f"{where} is not of the form {{'type': 'text', 'text': …}} or {{'type': 'image'}}")
    if role != "user":
        raise ValueError(f"{where} is an image, and only a user's message can hold one")
    unknown = sorted(set(part) - {"type", "image", "detail"})
    if unknown:
        raise ValueError(f"{where} names its image under {unknown[0]!r}; use 'image'")
    detail = part.get("detail") or "auto"
    if detail not in ("auto", "low", "high"):
        raise ValueError(f"{where} has the detail {detail!r}, and 'low', 'high' or 'auto' is needed")
    return Image(part.get("image"), global_only=detail == "low")


def _split_texts(parts: Iterable[Part]) -> Iterator[Part]:
    """Split neighbouring texts as one, since a marker of boxes may lie across the seam."""
    text = ""
    for part in parts:
        if isinstance(part, Text):
            text += part.text
        else:
            yield from split_box_markers(text)
            yield part
            text = ""
    yield from split_box_markers(text)


def split_placeholders(text: str) -> list[Part]:
    """Parts of a trusted text: an image for each `<img>path</img>`, and the texts between."""
    pieces = _PLACEHOLDER.split(text)
    parts = [Image(path=piece) if place % 2 else Text(piece, trusted=True) for place, piece in enumerate(pieces)]
    return [part for part in parts if isinstance(part, Image) or part.text]


def split_box_markers(text: str) -> list[Part]:
    """Parts of a text that people write: the markers of boxes are tokens, as published, and all else is plain."""
    return [Text(piece, piece in BOX_MARKERS) for piece in _BOX_MARKER.split(text) if piece]


def attach_images(conversations: Sequence[Conversation], images: Any) -> list[Conversation]:
    """Put images into the placeholders of conversations; in one without any, its images go first.

    Args:
        images: None, one image, a flat list in the order of the placeholders over the batch, or one list (or None) a
            conversation. A flat list for several conversations without any placeholder means one image for each.

    Raises:
        ValueError: more or fewer images than placeholders, with both numbers and the text's number.
    """
    shared = _share_images([len(conversation.images) for conversation in conversations], images)
    return [_fill(conversation, own) for conversation, own in zip(conversations, shared, strict=True)]


def _fill(conversation: Conversation, images: Sequence[Any]) -> Conversation:
    if not conversation.images:
        first, *others = conversation.messages
        return Conversation((replace(first, parts=(*map(Image, images), *first.parts)), *others))
    rest = iter(images)
    messages = []
    for message in conversation.messages:
        parts = (replace(part, source=next(rest)) if isinstance(part, Image) else part for part in message.parts)
        messages.append(replace(message, parts=tuple(parts)))
    return Conversation(tuple(messages))


def _share_images(places: Sequence[int], images: Any) -> list[list[Any]]:
    """The images of each text, whose numbers of placeholders are `places`."""
    if images is None:
        images = []
    elif not isinstance(images, (list, tuple)):
        images = [images]
    if any(own is None or isinstance(own, (list, tuple)) for own in images):
        return _check_lists(places, images)
    if not sum(places) and images:
        if len(places) not in (1, len(images)):
            raise ValueError(
                f"{len(images)} images for {len(places)} texts without a place for one: give one image a text, or one "
                "list of images a text"
            )
        return [list(images)] if len(places) == 1 else [[image] for image in images]
    if sum(places) != len(images):
        by_text = ", ".join(f"text {number} has {count}" for number, count in enumerate(places, start=1) if count)
        raise ValueError(
            f"{_count(len(images), 'image')} for {_count(sum(places), 'place')} ({by_text}); give one image for each "
            "<img></img>"
        )
    rest = iter(images)
    return [[next(rest) for _ in range(count)] for count in places]


def _check_lists(places: Sequence[int], images: Sequence[Any]) -> list[list[Any]]:
    for number, own in enumerate(images, start=1):
        if own is not None and not isinstance(own, (list, tuple)):
            raise ValueError(
                f"images mixes lists and single images (entry {number} is a {type(own).__name__}); give either a flat "
                "list or one list a text"
            )
    if len(images) != len(places):
        raise ValueError(f"images holds {len(images)} lists for {len(places)} texts; give one list a text")
    for number, (count, own) in enumerate(zip(places, images, strict=True), start=1):
        if count and count != len(own or ()):
            raise ValueError(f"text {number} has {_count(count, 'place')} for {_count(len(own or ()), 'image')}")
    return [list(own or ()) for own in images]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Segment(NamedTuple):
    """A text that is tokenised by itself; `supervised` where a model learns to say it."""

    text: str
    trusted: bool
    supervised: bool = False


def write(
    conversation: Conversation,
    template: str = "plain",
    *,
    question_prompt: str = VQA_AS_TRAINED,
    picture_labels: bool = True,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    end_of_text: str = END_OF_TEXT,
) -> list[list[Segment]]:
    """Segments of each message; supervised are the answers and what ends each.

    Args:
        template: "plain", "questions" or "chatml"; "decoder" is written by `monkey.chat_template`.
        question_prompt: what "questions" puts a question into, the image's placeholder first.
        picture_labels: in "chatml", write `Picture n: ` before each image and a line break after it, as Qwen-VL's chat
            does; published Monkey's does not.
        add_generation_prompt: in "chatml", end with the start of an assistant's turn.
        continue_final_message: in "chatml", leave the last message open, to be continued.
        end_of_text: in the others, the control token behind each answer.
    """
    if template not in TEMPLATES:
        raise ValueError(f"form is {template!r}, and it is one of {', '.join(TEMPLATES)}")
    assert template != "decoder"
    if template != "chatml":
        prompt = question_prompt if template == "questions" else None
        return [_write_as_trained(message, prompt, end_of_text) for message in conversation.messages]
    check_ending(add_generation_prompt, continue_final_message)
    written = _write_chatml(conversation.messages, picture_labels)
    if continue_final_message:
        written[-1] = written[-1][:-2]
    if add_generation_prompt:
        written[-1] += _open_turn("assistant")
    return written


def check_ending(add_generation_prompt: bool, continue_final_message: bool) -> None:
    """Raise ValueError where a chat is to end in both ways."""
    if add_generation_prompt and continue_final_message:
        raise ValueError("add_generation_prompt and continue_final_message exclude each other; set one")


def _write_as_trained(message: Message, question_prompt: str | None, end_of_text: str) -> list[Segment]:
    parts = message.parts
    if message.role == "assistant":
        return [*join_parts(parts, supervised=True), Segment(end_of_text, True, True)]
    if message.role == "system":
        return [*join_parts(parts), Segment("\n", False)]
    question = "".join(part.text for part in parts if isinstance(part, Text))
    if question_prompt is not None and not is_prompt(question):
        images = [part for part in parts if isinstance(part, Image)]
        parts = (*images, *split_box_markers(after_image(question_prompt).replace("{question}", question.strip())))
    return join_parts(parts)


def _write_chatml(messages: Sequence[Message], picture_labels: bool) -> list[list[Segment]]:
    written: list[list[Segment]] = []
    number = 0
    for message in messages:
        parts: list[Part] = []
        for part in message.parts:
            if isinstance(part, Image) and picture_labels:
                number += 1
                parts += [Text(CHAT_PICTURE_LABEL.format(number=number)), part, Text("\n")]
            else:
                parts.append(part)
        is_answer = message.role == "assistant"
        segments = [*_open_turn(message.role), *join_parts(parts, is_answer), Segment(CHAT_END, True, is_answer)]
        written.append([*segments, Segment("\n", False)])
    if messages[0].role != "system":
        (system,) = _write_chatml([Message("system", (Text(CHAT_SYSTEM),))], picture_labels)
        written[0] = [*system, *written[0]]
    return written


def _open_turn(role: str) -> list[Segment]:
    # Role and line break are segments of their own, as Qwen's code encodes them: a line break at the beginning of the
    # content must not merge with the one before it.
    return [Segment(CHAT_START, True), Segment(role, False), Segment("\n", False)]


def join_parts(parts: Iterable[Part], supervised: bool = False) -> list[Segment]:
    """Segments of parts; neighbours of the same trust are one text."""
    segments: list[Segment] = []
    for part in parts:
        text, trusted = (part.text, part.trusted) if isinstance(part, Text) else (part.placeholder, True)
        if segments and segments[-1].trusted == trusted:
            text = segments.pop().text + text
        if text:
            segments.append(Segment(text, trusted, supervised))
    return segments
