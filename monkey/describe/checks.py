"""Rules that a description must keep, as the published prompt states them: short, without numbers or single letters."""

from __future__ import annotations

import re
from dataclasses import dataclass

# A sentence ends in a mark, perhaps a closing quote, and space; what follows the last one is one too.
_SENTENCE = re.compile(r"\S.*?[.!?…][\"'”’)\]]*(?=\s|$)|\S.*$", re.DOTALL)
_DIGIT = re.compile(r"\d")
# Not the words "a" and "I", no part of "it's", "T-shirt" or "U.S.".
_LETTER = re.compile(r"(?<![\w'’.\-])[B-HJ-Zb-hj-z](?![\w'’\-]|\.\w)")
_MARKUP = re.compile(r"</?(?:img|ref|box|quad|s)>|<\|")


@dataclass(frozen=True)
class Rules:
    most_sentences: int = 5


def sentences(text: str) -> list[str]:
    return _SENTENCE.findall(text.strip())


def problems_of(text: str, rules: Rules) -> tuple[str, ...]:
    """The rules that a description breaks, each as a clause; none for a good one."""
    found = []
    if not text.strip():
        return ("it is empty",)
    if len(sentences(text)) > rules.most_sentences:
        found.append(f"it has {len(sentences(text))} sentences, more than {rules.most_sentences}")
    if _DIGIT.search(text):
        found.append("it has digits")
    if letter := _LETTER.search(text):
        found.append(f"it has the single letter {letter.group()!r}")
    if _MARKUP.search(text):
        found.append("it has markup")
    return tuple(found)


def one_line(text: str) -> str:
    """Text without line breaks, control characters and doubled spaces, as a record holds it."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())
