"""The order of work: what each stage needs of those before it, and what of that its results depend on.

A result is kept under a key made of the picture's bytes, the stage's expert with its settings and weights, and what
the stage was given. So a changed setting redoes its own stage, and later ones exactly where what they are given has
changed: after a new threshold, for one, a description is written anew only where the language model's question differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from monkey.describe.expert import Item
from monkey.describe.housework import FILTERED
from monkey.describe.prompting import prompt_of
from monkey.describe.records import RESULTS, result_to_json

KEY_LENGTH = 32


def digest_of(content: Any) -> str:
    """SHA-256 of JSON content."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _given(item: Item, _: Any) -> Any:
    return {stage: result_to_json(result) for stage, result in item.results.items()}


def _names(item: Item, _: Any) -> Any:
    return [item.file, list(item.also)]


def _question(item: Item, settings: Any) -> Any:
    return prompt_of(item.results["caption"], item.results["filters"], settings.most_sentences)


@dataclass(frozen=True)
class Stage:
    """`needs` are the stages whose results it is given, `given` is what of them its own result depends on."""

    name: str
    needs: tuple[str, ...] = ()
    given: Callable[[Item, Any], Any] = _given

    def key(self, digest: str, item: Item, settings: Any) -> str:
        """Key of a picture's record; `digest` stands for expert and settings."""
        return digest_of([digest, item.image, self.given(item, settings)])[:KEY_LENGTH]


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("images", given=_names),
        Stage("caption", ("images",), lambda *_: None),
        Stage("regions", ("images",), lambda *_: None),
        Stage("text", ("images",), lambda *_: None),
        Stage("segments", ("images",), lambda *_: None),
        Stage("segment_captions", ("segments",)),
        Stage("matching", ("regions", "segments", "segment_captions")),
        Stage("filters", FILTERED),
        Stage("summary", ("caption", "filters"), _question),
    )
}

assert tuple(STAGES) == tuple(RESULTS)
