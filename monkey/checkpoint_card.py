"""The card of a checkpoint: what it is asked with, under which terms it comes, what it can do, and questions to try.

`monkey_card.json` lies beside the weights, and what is made from a checkpoint carries it on. Published folders have no
such file: theirs is known here. Its texts are shown and asked as plain text, whatever they hold. Every key may be left
out:

    {
      "prompts": {"question": "<img></img> {question} Answer: ", "descriptions": ["Describe the picture."]},
      "sampling": {"answers": {"max_new_tokens": 512, "temperature": 0, "top_p": 1},
                   "descriptions": {"max_new_tokens": 250, "temperature": 0.7, "top_p": 1, "seed": 0}},
      "terms": "Apache-2.0.",
      "languages": {"en": "English", "zh": "英文"},
      "abilities": "It reads drawn receipts.",
      "questions": ["What is the total?"]
    }
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from monkey.files import base_of, checkpoint_file, read_json
from monkey.prompts import DESCRIPTION_PROMPTS, DETAILED_CAPTION_AS_TRAINED, IMAGE_PLACE, VQA_AS_TRAINED, after_image

CARD_FILE = "monkey_card.json"

MOST_BYTES = 2**16
LONGEST_TEXT = 2000
MOST_TEXTS = 20

Text = Mapping[str, str]
"""A text in English, under "en", and in Chinese where there is one, under "zh"."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, as of `monkey.decoding.Decoding`."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


FOR_ANSWERS = Sampling()
"""As the published demo answers questions."""

FOR_DESCRIPTIONS = Sampling(max_new_tokens=250, temperature=0.7, seed=0)
"""As the published demo describes an image, but for the seed, which it leaves to chance."""

UNKNOWN_TERMS = {
    "en": "The terms of these weights are not stated: look where they come from before you use them.",
    "zh": "这些权重没有注明使用条款：使用前请查明其来源。",
}
MONKEY_TERMS = {
    "en": "The Monkey weights are for research only; commercial use is not allowed.",
    "zh": "Monkey 权重仅供研究使用，不得用于商业用途。",
}
QWEN_TERMS = {
    "en": "The Qwen-VL weights come under the Tongyi Qianwen licence; read it before you use them commercially.",
    "zh": "Qwen-VL 权重适用通义千问许可协议；商业使用前请先阅读。",
}


@dataclass(frozen=True)
class CheckpointCard:
    """What is known of a checkpoint beside its weights.

    Attributes:
        question_prompt: what a question is put into, an image's place first.
        description_prompts: what a description may be asked for with; the first unless another is chosen.
        answers, descriptions: how their tokens are chosen.
        terms, languages, abilities: for people. The last two may be empty.
        questions: that show what it can do.
    """

    question_prompt: str = VQA_AS_TRAINED
    description_prompts: tuple[str, ...] = (after_image(DETAILED_CAPTION_AS_TRAINED).strip(), *DESCRIPTION_PROMPTS)
    answers: Sampling = FOR_ANSWERS
    descriptions: Sampling = FOR_DESCRIPTIONS
    terms: Text = field(default_factory=UNKNOWN_TERMS.copy)
    languages: Text = field(default_factory=dict)
    abilities: Text = field(default_factory=dict)
    questions: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The content of its file."""
        content = {
            "prompts": {"question": self.question_prompt, "descriptions": list(self.description_prompts)},
            "sampling": {"answers": asdict(self.answers), "descriptions": asdict(self.descriptions)},
            "terms": dict(self.terms),
            "languages": dict(self.languages),
            "abilities": dict(self.abilities),
            "questions": list(self.questions),
        }
        return {key: value for key, value in content.items() if value}

    def write(self, folder: str | os.PathLike) -> None:
        """Write it beside the weights of a checkpoint in `folder`."""
        text = json.dumps(self.as_json(), ensure_ascii=False, indent=2) + "\n"
        (Path(folder) / CARD_FILE).write_text(text, encoding="utf-8")

    def under_terms_of(self, other: CheckpointCard) -> CheckpointCard:
        """The card of what is made from both checkpoints. Raises ValueError where its terms are too long for a card."""
        if other.terms["en"] in self.terms["en"]:
            return self
        joined = {
            language: " ".join(card.terms.get(language, card.terms["en"]) for card in (self, other))
            for language in self.terms.keys() | other.terms.keys()
        }
        if (length := max(map(len, joined.values()))) > LONGEST_TEXT:
            raise ValueError(
                f"the terms of both checkpoints together have {length:,} characters, more than the {LONGEST_TEXT:,} of "
                f"a card; shorten those in one {CARD_FILE}"
            )
        return replace(self, terms=joined)


def card_of(checkpoint: str | os.PathLike) -> CheckpointCard:
    """The card beside a checkpoint's weights; else that of an adapter's base, of a published checkpoint, or a neutral
    one, which says that the terms are not known.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a card that is none, with its file and key.
    """
    if path := checkpoint_file(checkpoint, CARD_FILE):
        return read_card(path)
    if base := base_of(checkpoint):
        # An adapter of an adapter, or of itself, is none.
        return card_of(base) if checkpoint_file(base, "config.json") else CheckpointCard()
    config = read_json(checkpoint_file(checkpoint, "config.json"))
    # The flat config.json is that of the published code, and of nothing that is written here without a card.
    if isinstance(visual := config.get("visual"), dict):
        return CheckpointCard(terms=MONKEY_TERMS if "lora_repeat_num" in visual else QWEN_TERMS)
    return CheckpointCard()


def read_card(path: str | os.PathLike) -> CheckpointCard:
    """Raises ValueError, a sentence with file and key, for what is no card; OSError for a file that cannot be read."""
    if (size := os.path.getsize(path)) > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, more than the {MOST_BYTES:,} of a card")
    content = read_json(str(path))
    _check(content, _CARD, str(path))
    prompts, sampling = content.get("prompts", {}), content.get("sampling", {})
    given = {
        "question_prompt": prompts.get("question"),
        "description_prompts": tuple(prompts.get("descriptions", ())),
        "answers": replace(FOR_ANSWERS, **sampling.get("answers", {})),
        "descriptions": replace(FOR_DESCRIPTIONS, **sampling.get("descriptions", {})),
        "questions": tuple(content.get("questions", ())),
    }
    for name in ("terms", "languages", "abilities"):
        text = content.get(name)
        given[name] = {"en": text} if isinstance(text, str) else text
    return CheckpointCard(**{name: value for name, value in given.items() if value})


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and value.isprintable()


def _is_by_language(value: Any) -> bool:
    texts = {"en": value} if isinstance(value, str) else value
    return isinstance(texts, dict) and {"en"} <= texts.keys() <= {"en", "zh"} and all(map(_is_text, texts.values()))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST_TEXTS and all(map(_is_text, value))


def _is_question_prompt(value: Any) -> bool:
    is_whole = _is_text(value) and value.startswith(IMAGE_PLACE)
    return is_whole and value.count(IMAGE_PLACE) == value.count("{question}") == 1


def _is_number_from(least: float, most: float, kinds: tuple[type, ...] = (int,)) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds and least <= value <= most


_TEXTS = (_are_texts, f"a list of 1 to {MOST_TEXTS} texts, each of 1 to {LONGEST_TEXT:,} printable characters,")
_BY_LANGUAGE = (
    _is_by_language,
    f'a text of 1 to {LONGEST_TEXT:,} printable characters, or {{"en": text, "zh": text}},',
)
_SAMPLING = {
    "max_new_tokens": (_is_number_from(1, 2048), "a whole number from 1 to 2048"),
    "temperature": (
        lambda value: any(_is_number_from(least, most, (int, float))(value) for least, most in ((0, 0), (0.001, 2))),
        "0 or a number from 0.001 to 2",
    ),
    "top_p": (_is_number_from(0.01, 1, (int, float)), "a number from 0.01 to 1"),
    "seed": (
        lambda value: value is None or _is_number_from(0, 2**32 - 1)(value),
        "null or a whole number from 0 to 4,294,967,295",
    ),
}
_CARD = {
    "prompts": {
        "question": (_is_question_prompt, "a text that begins with its only <img></img> and has one {question}"),
        "descriptions": _TEXTS,
    },
    "sampling": {"answers": _SAMPLING, "descriptions": _SAMPLING},
    "terms": _BY_LANGUAGE,
    "languages": _BY_LANGUAGE,
    "abilities": _BY_LANGUAGE,
    "questions": _TEXTS,
}
"""Of each key what a value must be, as a check and in words; of an object the keys below it."""


def _check(content: Any, keys: Mapping[str, Any], place: str) -> None:
    """ValueError for an object that has other keys, or other values under them."""
    if not isinstance(content, dict):
        raise ValueError(f"{place} is {_shown(content)}, and an object is needed")
    for key, value in content.items():
        if key not in keys:
            raise ValueError(f"{place} has a key {_shown(key)}, and there can be {', '.join(keys)}")
        if isinstance(keys[key], dict):
            _check(value, keys[key], f"{place}: {key}")
            continue
        is_right, needed = keys[key]
        if not is_right(value):
            raise ValueError(f"{place}: {key} is {_shown(value)}, and {needed} is needed")


def _shown(value: Any) -> str:
    """A value on one line, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
