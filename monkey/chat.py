"""Qwen's chat form (ChatML) as segments of text, in which what people write can never become a token of control.

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    …<|im_end|>
    <|im_start|>assistant

Content is inert: `<img>` and `<|im_start|>` in it are characters. The markers of boxes alone (`<ref>`, `<box>`,
`<quad>`) are tokens, as in Qwen-VL's chat: a question may say where something is, and an answer that did is read so.

Each image stands where its part stands, as Qwen-VL's chat writes it: `Picture 1: <img></img>` and a line break, with
numbers that run through the conversation, as in Qwen-VL's demo.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from monkey.places import share_images
from monkey.prompts import CHAT_PICTURE_LABEL, CHAT_SYSTEM, IMAGE_PLACE
from monkey.tokenization import BOX_MARKERS, CHAT_END, CHAT_START

ROLES = ("system", "user", "assistant")

Segment = tuple[str, bool]
"""A text, and whether special tokens and image places in it count (True), or every character is plain text (False)."""

_BOX_MARKER = re.compile(f"({'|'.join(map(re.escape, BOX_MARKERS))})")


def inert_segments(text: str) -> list[Segment]:
    """Split what people write: the markers of boxes are tokens of their own, as published, and all else is plain."""
    return [(part, part in BOX_MARKERS) for part in _BOX_MARKER.split(text) if part]


def chat_segments(
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    picture_labels: bool = True,
) -> tuple[list[Segment], list[Any]]:
    """Segments of a conversation, and one entry for each image part: its image, or None where it names none.

    Args:
        messages: `{"role": …, "content": text | parts}`, a part being `{"type": "text", "text": …}` or
            `{"type": "image"}`, with the image under "image" where it is given here. Qwen's system message is put
            first when there is none.
        add_generation_prompt: end with the start of an assistant's turn.
        continue_final_message: leave the last message open, to be continued.
        picture_labels: write `Picture n: ` before each image and a line break after it.

    Raises:
        ValueError: a message or part that is not of this form, by its number.
    """
    if not messages:
        raise ValueError("the conversation has no message")
    if add_generation_prompt and continue_final_message:
        raise ValueError("add_generation_prompt and continue_final_message exclude each other; set one")
    if not isinstance(messages[0], Mapping) or messages[0].get("role") != "system":
        messages = [{"role": "system", "content": CHAT_SYSTEM}, *messages]
        first = 0
    else:
        first = 1
    segments: list[Segment] = []
    images: list[Any] = []
    for number, message in enumerate(messages, start=first):
        where = f"message {number}"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise ValueError(f"{where} has the role {role!r}, and roles are {', '.join(ROLES)}")
        if role == "system" and segments:
            raise ValueError(f"{where} is a system message, which can only be the first")
        # Role and line break are segments of their own, as Qwen's code encodes them: a line break at the beginning of
        # the content must not merge with the one before it.
        segments += [(CHAT_START, True), (role, False), ("\n", False)]
        segments += _content(message.get("content"), role, where, images, picture_labels)
        segments += [(CHAT_END, True), ("\n", False)]
    if continue_final_message:
        segments = segments[:-2]
    if add_generation_prompt:
        segments += [(CHAT_START, True), ("assistant", False), ("\n", False)]
    return segments, images


def _content(content: Any, role: str, where: str, images: list[Any], picture_labels: bool) -> list[Segment]:
    """Segments of one message's content; its images are added to `images`."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"{where} has {type(content).__name__} content, and a text or a list of parts is needed")
    segments: list[Segment] = []
    text = ""
    for number, part in enumerate(content, start=1):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind == "image":
            if role != "user":
                raise ValueError(f"part {number} of {where} is an image, and only a user's message can hold one")
            unknown = sorted(set(part) - {"type", "image"})
            if unknown:
                raise ValueError(f"part {number} of {where} names its image under {unknown[0]!r}; use 'image'")
            images.append(part.get("image"))
            if picture_labels:
                text += CHAT_PICTURE_LABEL.format(number=len(images))
            segments += [*inert_segments(text), (IMAGE_PLACE, True)]
            text = "\n" if picture_labels else ""
        else:
            raise ValueError(
                f"part {number} of {where} is not of the form {{'type': 'text', 'text': …}} or {{'type': 'image'}}"
            )
    return [*segments, *inert_segments(text)]


def rendered(segments: Sequence[Segment]) -> str:
    """The segments as one string, for people to read: in a string, content cannot be told from control tokens."""
    return "".join(text for text, _ in segments)


def images_of_chats(own: list[list[Any]], images: Any) -> list[list[Any]]:
    """Images of each conversation's image parts: the parts' own, or those given beside them, in the parts' order.

    Args:
        own: what `chat_segments` found in each conversation's image parts.

    Raises:
        ValueError: a part without an image, an image without a part, or images in both places.
    """
    parts = [image for chat in own for image in chat]
    if images is None:
        if any(image is None for image in parts):
            raise ValueError(
                f"{sum(image is None for image in parts)} of {len(parts)} image parts hold no image; put it under "
                "'image' or pass images="
            )
        return own
    if any(image is not None for image in parts):
        raise ValueError("images were given both in the messages' parts and in images=; use one of the two")
    if not parts:
        raise ValueError("images= was given, and the conversation has no image part")
    return share_images([len(chat) for chat in own], images)


def check_turns(turns: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError unless the turns of a training conversation alternate, end with an answer, and none is empty."""
    if not turns:
        raise ValueError("the conversation has no turn")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("text"), str) or "role" not in turn:
            raise ValueError(f"turn {number} is not of the form {{'role': 'user' or 'assistant', 'text': …}}")
        expected = "user" if number % 2 else "assistant"
        if turn["role"] != expected:
            raise ValueError(f"turn {number} is the {turn['role']}'s where the {expected}'s follows; turns alternate")
        if expected == "assistant" and not turn["text"].strip():
            raise ValueError(f"turn {number}, the assistant's, is empty; there is nothing to learn from it")
    if len(turns) % 2:
        raise ValueError(f"the conversation ends with the user's turn {len(turns)}; an answer must follow it")
