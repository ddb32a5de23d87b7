"""Conversations in the chat template of a decoder's own tokenizer, where what people write stays inert.

The template, a program in Jinja, is never shown a text of the conversation: it is run over marks in their places, and
what it writes between the marks is trusted. So its control tokens count, and none that stands in a message can. A
template that changes what it is given is noticed by the same marks, and refused; one that takes white space off the
ends of a message, as most do, has it taken off here.

Only the roles decide what a template writes, so each sequence of roles is rendered once. Thinking is switched off where
a template has a switch, and one that takes a date gets a fixed one, so that a prompt is the same tomorrow.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from monkey.conversation import Image, Message, Part, Segment, Text, check_ending, join_parts, split_box_markers
from monkey.prompts import VQA_AS_TRAINED, after_image, is_prompt
from monkey.tokenization_decoder import DecoderTokenizer

_DAY = datetime(2024, 7, 26)

FIXED = {"enable_thinking": False, "date_string": _DAY.strftime("%d %b %Y")}
"""Variables that templates of several families look for."""

_DATED = "".join(
    f" | replace('%{sign}', '{_DAY.strftime(f'%{sign}')}')"
    for sign in (*"aAbBdHIjmMpSyY", "-d", "-m", "-H", "-I", "-M")
)
_STRFTIME_NOW = "{% macro strftime_now(format) %}{{ format" + _DATED + " }}{% endmacro +%}"
"""Stands before a template that asks for the date itself, by a function that the library gives it; that of today."""

# White space that no template writes itself, and signs that one which escapes, splits or cases a text would change.
_EDGE = "\f"
_MARK = "Aq{number}<&\">'\\ \n\n  Éß{number}qA"


class _Skeleton(NamedTuple):
    """What a template writes around the messages of a conversation."""

    order: tuple[int, ...]
    """Numbers of the messages as they stand in what is written; some put the system's before the last question."""
    texts: tuple[str, ...]
    """Before the first of them, between each two, and behind the last."""
    strips: tuple[tuple[bool, bool], ...]
    """Whether it takes white space off the beginning and the end of each."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Raises:
        ValueError: the tokenizer has none.
    """

    def __init__(self, tokenizer: DecoderTokenizer):
        if not tokenizer.chat_template:
            raise ValueError(
                "form is 'decoder', and the decoder's tokenizer has no chat template: take the form questions, which "
                "needs none, or give the prompt as text"
            )
        self._source = tokenizer.get_chat_template()
        self._tokens = tuple(sorted(tokenizer.special_tokens_map.items()))
        self._control = tokenizer.control

    def write(
        self,
        messages: Sequence[Message],
        question_prompt: str = VQA_AS_TRAINED,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> list[Segment]:
        """Segments of a conversation; supervised are the answers, and what of the template a model must say with each.

        That is what ends a turn, and what stands before an answer but not in the prompt that asks for it. Images stand
        where their parts stand. Of texts, only the markers of boxes are trusted, whatever they came as.

        Args:
            question_prompt: a question that stands in it is taken out: the template says by itself that an answer
                follows. Spaces around other prompts of training go too.
            add_generation_prompt: end with what begins an answer.
            continue_final_message: leave the last message open, to be continued.

        Raises:
            ValueError: the template refuses the roles, changes a text, or ends an answer without control token.
        """
        check_ending(add_generation_prompt, continue_final_message)
        roles = tuple(message.role for message in messages)
        skeleton = self._skeleton(roles)
        segments: list[Segment] = []
        before = skeleton.texts[0]
        for number, strips, after in zip(skeleton.order, skeleton.strips, skeleton.texts[1:], strict=True):
            message, is_answer = messages[number], roles[number] == "assistant"
            opening = self._opening(roles[:number]) if is_answer and number else before
            if not before.startswith(opening):
                # As where earlier answers stand without a thought, and the last with one.
                opening = before
            segments += [Segment(opening, True), Segment(before[len(opening) :], True, is_answer)]
            segments += join_parts(_content(message, question_prompt, strips), is_answer)
            end = self._end_of(after) if is_answer else 0
            segments.append(Segment(after[:end], True, is_answer))
            before = after[end:]
        if continue_final_message:
            del segments[-1:]
        elif add_generation_prompt:
            last = skeleton.texts[-1]
            segments.append(Segment(self._opening(roles)[len(last) - len(before) :], True))
        else:
            segments.append(Segment(before, True))
        return [segment for segment in segments if segment.text]

    @property
    def end_of_turn(self) -> str:
        """The control token that ends an answer."""
        after = self._skeleton(("user", "assistant")).texts[-1]
        found = self._control.search(after[: self._end_of(after)])
        assert found is not None
        return found.group().strip()

    def _opening(self, roles: tuple[str, ...]) -> str:
        """What stands between the last message and an answer in the prompt that asks for it.

        It is the template's generation prompt, unless an answer has control tokens of the template behind that.
        """
        asked, answered = self._skeleton(roles, True).texts[-1], self._skeleton((*roles, "assistant")).texts[-2]
        is_whole = answered.startswith(asked) and not self._control.search(answered[len(asked) :])
        return asked if is_whole else answered

    def _end_of(self, after: str) -> int:
        """Where the control token ends that is the first behind an answer."""
        found = self._control.search(after)
        if found is None:
            raise ValueError(
                f"the decoder's chat template writes {after[:40]!r} behind an answer, which has no control token, so "
                "that no answer would end: take the form questions"
            )
        return found.end()

    def _skeleton(self, roles: tuple[str, ...], add_generation_prompt: bool = False) -> _Skeleton:
        return _render(self._source, self._tokens, roles, add_generation_prompt)


@functools.lru_cache(maxsize=4096)
def _render(
    source: str, tokens: tuple[tuple[str, str], ...], roles: tuple[str, ...], add_generation_prompt: bool
) -> _Skeleton:
    marks = [_MARK.format(number=number) for number in range(len(roles))]
    chat = [{"role": role, "content": f"{_EDGE}{mark}{_EDGE}"} for role, mark in zip(roles, marks, strict=True)]
    try:
        dated = _STRFTIME_NOW + source if "strftime_now" in source else source
        (text,), _ = render_jinja_template(
            [chat], chat_template=dated, add_generation_prompt=add_generation_prompt, **dict(tokens), **FIXED
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        order = ", ".join(roles) or "no message"
        raise ValueError(f"the decoder's chat template refuses a conversation of {order}: {reason}") from error
    for number, (role, mark) in enumerate(zip(roles, marks, strict=True), start=1):
        if text.count(mark) != 1:
            raise ValueError(
                f"the decoder's chat template does not write message {number}, the {role}'s, once and as it is, so "
                "that nobody could tell what a user wrote from what steers: take the form questions"
            )
    order = sorted(range(len(roles)), key=lambda number: text.index(marks[number]))
    texts, strips = [], []
    for number in order:
        before, _, text = text.partition(marks[number])
        strips.append((not before.endswith(_EDGE), not text.startswith(_EDGE)))
        texts.append(before.removesuffix(_EDGE))
        text = text.removeprefix(_EDGE)
    return _Skeleton(tuple(order), (*texts, text), tuple(strips))


def _content(message: Message, question_prompt: str, strips: tuple[bool, bool]) -> list[Part]:
    """The parts of a message as they stand in a chat."""
    parts = list(message.parts)
    if message.role == "user":
        parts = _take_out(parts, question_prompt)
    if parts and strips[0] and isinstance(parts[0], Text):
        parts[0] = replace(parts[0], text=parts[0].text.lstrip())
    if parts and strips[1] and isinstance(parts[-1], Text):
        parts[-1] = replace(parts[-1], text=parts[-1].text.rstrip())
    # A marker of boxes that came as trusted text may touch others: they are split anew, and all else is inert.
    return [own for part in parts for own in ([part] if isinstance(part, Image) else split_box_markers(part.text))]


def _take_out(parts: list[Part], question_prompt: str) -> list[Part]:
    """Parts whose text was a prompt of training, without what stands around a question there."""
    texts = [place for place, part in enumerate(parts) if isinstance(part, Text)]
    whole = "".join(part.text for part in parts if isinstance(part, Text))
    if not is_prompt(whole):
        return parts
    head, _, tail = after_image(question_prompt).partition("{question}")
    stands_together = texts[-1] - texts[0] == len(texts) - 1
    if not (stands_together and tail.strip() and whole.startswith(head) and whole.endswith(tail)):
        head = tail = ""
    first, last = texts[0], texts[-1]
    parts[first] = replace(parts[first], text=parts[first].text.removeprefix(head).lstrip())
    parts[last] = replace(parts[last], text=parts[last].text.removesuffix(tail).rstrip())
    return parts
