"""A description by rules: caption, main objects with their places, one relation, and the words that can be read.

It works on what any experts saw, breaks no rule of the checks by itself, and invents nothing; it reads like a list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monkey.describe.boxes import area, overlap
from monkey.describe.expert import Failure, Item
from monkey.describe.prompting import prompt_parts
from monkey.describe.records import TEXT, Box, Candidate
from monkey.describe.summarising import Message, Summariser, SummarySettings

_DOWN, _ACROSS = ("upper", "", "lower"), ("left", "", "right")
_FILLS = 0.6
"""Share of the picture from which something is said to fill it."""
_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class RuleSummarySettings(SummarySettings):
    """`most_objects` and `most_words` bound the lists."""

    retries: int = 0
    most_objects: int = 6
    most_words: int = 6


class RuleSummary(Summariser):
    Settings = RuleSummarySettings

    @classmethod
    def identity(cls, settings: RuleSummarySettings) -> Mapping[str, Any]:
        return {"prompt": prompt_parts()}

    def answers(self, items: Sequence[Item], conversations: Sequence[list[Message]]) -> list[str | Failure]:
        return [self._description(item) for item in items]

    def _description(self, item: Item) -> str:
        kept = item.results["filters"].kept
        said = [f"The picture shows {item.results['caption'].text.rstrip('.')}."]
        objects = _objects([candidate for candidate in kept if candidate.source != TEXT], self.settings.most_objects)
        if objects:
            listed = _listed([f"{one.text} {_place(one.box)}" for one in objects])
            said.append(f"{listed[0].upper()}{listed[1:]} can be seen.")
        said += _relation(objects)
        said += _texts([candidate for candidate in kept if candidate.source == TEXT], self.settings.most_words)
        return " ".join(said)


def _objects(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """The largest of what is described without digits, one of each place, in reading order."""
    chosen: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: -area(candidate.box)):
        if re.search(r"\d", candidate.text) or candidate.text in ("a number", "a word"):
            continue
        if all(overlap(candidate.box, other.box) < _SAME for other in chosen):
            chosen.append(candidate)
    return sorted(chosen[:most], key=lambda candidate: (round(candidate.box[1], 1), candidate.box[0]))


_SAME = 0.8
"""Overlap from which two notes are on one object."""


def _place(box: Box) -> str:
    if area(box) > _FILLS:
        return "that fills most of it"
    across, down = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    words = [_DOWN[_third(down)], _ACROSS[_third(across)]]
    if words == ["", ""]:
        return "in the middle"
    if not words[1]:
        return {"upper": "at the top", "lower": "at the bottom"}[words[0]]
    return "at the " + " ".join(word for word in words if word)


def _third(share: float) -> int:
    return min(2, int(share * 3))


def _relation(objects: Sequence[Candidate]) -> list[str]:
    """Where the first object is, seen from the last, where that is plain."""
    if len(objects) < 2 or objects[0].text == objects[-1].text:
        return []
    first, last = objects[0], objects[-1]
    names = [_ARTICLE.sub("the ", one.text) for one in (first, last)]
    for low, high, word in ((0, 2, "to the left of"), (1, 3, "above")):
        if first.box[high] <= last.box[low]:
            return [f"{names[0][0].upper()}{names[0][1:]} is {word} {names[1]}."]
    if first.box[0] <= last.box[0] and first.box[1] <= last.box[1] and _holds(first.box, last.box):
        return [f"{names[1][0].upper()}{names[1][1:]} lies inside {names[0]}."]
    return []


def _holds(outer: Box, inner: Box) -> bool:
    return outer[2] >= inner[2] and outer[3] >= inner[3]


def _texts(candidates: Sequence[Candidate], most: int) -> list[str]:
    """The words that can be read, each once; numbers are mentioned, not told."""
    readable = [text for text in dict.fromkeys(candidate.text for candidate in candidates) if len(text) > 1]
    words = [text for text in readable if not re.search(r"\d", text)][:most]
    numbers = sum(1 for candidate in candidates if re.search(r"\d", candidate.text))
    said = []
    if words:
        noun = "word" if len(words) == 1 else "words"
        said.append(f"The {noun} {_listed([f'“{word}”' for word in words])} can be read.")
    if numbers:
        said.append("A number is written there." if numbers == 1 else "Several numbers are written there.")
    return said


def _listed(entries: Sequence[str]) -> str:
    return entries[0] if len(entries) == 1 else f"{', '.join(entries[:-1])} and {entries[-1]}"
