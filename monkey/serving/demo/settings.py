"""What people set in the page: how tokens are chosen, and what a question may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from monkey.checkpoint_card import CheckpointCard
from monkey.decoding import Decoding, decoding_of
from monkey.serving.demo.wording import Wording

LONGEST_QUESTION = 4000
"""Characters of a question."""

MOST_PICTURES = 8
"""Pictures of one question."""

MOST_NEW_TOKENS = 2048
HIGHEST_TEMPERATURE = 2.0
LARGEST_SEED = 2**32 - 1


class Refusal(Exception):
    """A sentence for the page, in the reader's language, about something that cannot be done."""


def checked_question(question: Any, missing: str, words: Wording) -> str:
    """The text without white space around it.

    Raises:
        Refusal: there is none, which `missing` says, it is too long, or it holds half of a character.
    """
    question = question.strip() if isinstance(question, str) else ""
    if not question:
        raise Refusal(missing)
    if len(question) > LONGEST_QUESTION:
        raise Refusal(words.long_question.format(length=f"{len(question):,}", limit=f"{LONGEST_QUESTION:,}"))
    if any("\ud800" <= character <= "\udfff" for character in question):
        raise Refusal(words.half_character)
    return question


def checked_decoding(settings: Sequence[Any], is_description: bool, card: CheckpointCard, words: Wording) -> Decoding:
    """Decoding of what the drawer holds: temperature, top_p and longest answer, of answers and of descriptions, and
    the seed. What is empty is as the card says.

    Raises:
        Refusal: a number that means nothing.
    """
    *sampling, seed = settings
    temperature, top_p, longest = sampling[3:] if is_description else sampling[:3]
    default = decoding_of(card.descriptions if is_description else card.answers)
    return replace(
        default,
        temperature=_number(temperature, 0, HIGHEST_TEMPERATURE, default.temperature, words.temperature, words),
        top_p=_number(top_p, 0.01, 1, default.top_p, words.top_p, words),
        max_new_tokens=int(_number(longest, 1, MOST_NEW_TOKENS, default.max_new_tokens, words.longest, words)),
        seed=_seed(seed, words),
        confidence=True,
    )


def _number(value: Any, least: float, most: float, default: float, name: str, words: Wording) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Refusal(words.bad_number.format(name=name, least=f"{least:g}", most=f"{most:g}"))
    return value


def _seed(seed: Any, words: Wording) -> int | None:
    if seed is None:
        return None
    is_number = isinstance(seed, (int, float)) and not isinstance(seed, bool) and math.isfinite(seed)
    if not is_number or seed != int(seed) or not 0 <= seed <= LARGEST_SEED:
        raise Refusal(words.bad_seed.format(limit=f"{LARGEST_SEED:,}"))
    return int(seed)
