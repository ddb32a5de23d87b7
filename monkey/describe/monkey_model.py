"""Captions by a Monkey checkpoint, asked and decoded as its card says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from monkey.describe.checks import one_line
from monkey.describe.expert import Expert, Failure, Item
from monkey.describe.records import Caption, Result
from monkey.describe.weights import ModelSettings, device_of, dtype_of, model_identity


@dataclass(frozen=True)
class DescriptionSettings(ModelSettings):
    """`prompt` null asks for what the checkpoint's card says; `max_new_tokens` null has the card's length."""

    model: str = "echo840/Monkey"
    prompt: str | None = None
    max_new_tokens: int | None = None

    def check(self) -> None:
        super().check()
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, and 1 or more is needed")


class Descriptions(Expert):
    """A description of each whole image, which stands where the paper has a caption."""

    Settings = DescriptionSettings

    def __init__(self, settings: DescriptionSettings):
        super().__init__(settings)
        import monkey

        self._model = monkey.load(settings.model, device_of(settings), dtype_of(settings), max_rows=settings.batch_size)
        self._decoding = self._model.for_descriptions
        if settings.max_new_tokens is not None:
            self._decoding = replace(self._decoding, max_new_tokens=settings.max_new_tokens)

    @classmethod
    def identity(cls, settings: DescriptionSettings) -> Mapping[str, Any]:
        return model_identity(settings, {"monkey": (), "qwen": ()}, "describing an image")

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        replies = [self._model.describe(item.picture, self.settings.prompt, self._decoding) for item in items]
        return [Caption(one_line(reply.text)) for reply in replies]

    def close(self) -> None:
        self._model.close()
