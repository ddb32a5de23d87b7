"""Conversations as the model reads them, in the form that it was trained with.

`chatml`     Qwen's chat form, see `monkey.chat`.
`questions`  turns one after the other as in training: `<img></img> question Answer: answer<|endoftext|>`, or as the
             checkpoint's card words a question. A user's message that is a prompt of training already, for it ends in
             `Answer:` or `English:`, stays as it is.
`plain`      the same, with every text as it is.

Content is always inert: `<img>` and `<|im_start|>` in it are plain text. Only the markers of boxes (`monkey.boxes`) are
tokens of their own, as in training: a question may say where something is, and an answer that did is read as written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from monkey.chat import Segment, chat_segments, inert_segments
from monkey.prompts import IMAGE_PLACE, VQA_AS_TRAINED, after_image
from monkey.tokenization import END_OF_TEXT

Form = Literal["chatml", "questions", "plain"]
FORMS: tuple[str, ...] = get_args(Form)

PROMPT_ENDS = ("Answer:", "English:")
"""How the prompts of training end, see `monkey.prompts`."""


def conversation_segments(
    messages: Sequence[Mapping[str, Any]],
    form: Form,
    question_prompt: str = VQA_AS_TRAINED,
    picture_labels: bool = True,
) -> tuple[list[Segment], list[Any]]:
    """Segments of a conversation up to the answer that is asked for, and its images in their order.

    Args:
        picture_labels: in `chatml`, write `Picture n: ` before each image and a line break after it, as Qwen-VL's chat
            does; published Monkey's does not.

    Raises:
        ValueError: a message that is not of the form of `monkey.chat`, no user's message at the end, an image part
            without its image, or an empty question.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}, and it is one of {', '.join(FORMS)}")
    # Checks all messages, whatever form they are written in then.
    segments, images = chat_segments(messages, add_generation_prompt=True, picture_labels=picture_labels)
    last = messages[-1]
    if last["role"] != "user":
        raise ValueError(f"the conversation ends with the {last['role']}'s message; a user's must be last")
    for number, image in enumerate(images, start=1):
        if image is None:
            raise ValueError(f"image {number} of {len(images)} is missing: its part has nothing under 'image'")
    if not any(kind == "image" or part.strip() for kind, part in _parts(last)):
        raise ValueError("the question is empty")
    if form != "chatml":
        segments = [segment for message in messages for segment in _turn(message, form, question_prompt)]
    return [own for segment in segments for own in ([segment] if segment[1] else inert_segments(segment[0]))], images


def _turn(message: Mapping[str, Any], form: Form, question_prompt: str) -> list[Segment]:
    """One message as training wrote it."""
    parts = _parts(message)
    text = "".join(part for kind, part in parts if kind == "text")
    if message["role"] == "user" and form == "questions" and not is_prompt(text):
        places: list[Segment] = [(IMAGE_PLACE, True) for kind, _ in parts if kind == "image"]
        return [*places, (after_image(question_prompt).replace("{question}", text.strip()), False)]
    segments = _merged(parts)
    if message["role"] == "assistant":
        segments.append((END_OF_TEXT, True))
    elif message["role"] == "system":
        segments.append(("\n", False))
    return segments


def is_prompt(text: str) -> bool:
    """Whether a text is a prompt of training already, rather than a question to put into one."""
    return text.rstrip().endswith(PROMPT_ENDS)


def _parts(message: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Kind and text of each part of a message that was checked."""
    content = message["content"]
    if isinstance(content, str):
        return [("text", content)]
    return [(part["type"], part.get("text", "")) for part in content]


def _merged(parts: list[tuple[str, str]]) -> list[Segment]:
    """Segments of parts; neighbouring texts are one."""
    segments: list[Segment] = []
    text = ""
    for kind, part in parts:
        if kind == "image":
            segments += [(text, False)] * bool(text) + [(IMAGE_PLACE, True)]
            text = ""
        else:
            text += part
    return segments + [(text, False)] * bool(text)
