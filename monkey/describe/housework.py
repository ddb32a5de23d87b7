"""The two stages that need no model: opening each picture, and filtering what the experts saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monkey.describe.expert import Expert, ExpertSettings, Failure, Item
from monkey.describe.filters import FilterSettings, filtered
from monkey.describe.records import Picture, Result


class Opening(Expert):
    """Width and height of each picture that opens; one that does not never comes here."""

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [Picture(item.file, item.also, *item.picture.size) for item in items]


@dataclass(frozen=True)
class ThresholdSettings(FilterSettings, ExpertSettings):
    def check(self) -> None:
        super().check()
        for name in ("region_score", "segment_score", "text_score", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and a number from 0 to 1 is needed")


class Thresholds(Expert):
    Settings = ThresholdSettings
    looks = False

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        settings = self.settings
        return [filtered(*(item.results[stage] for stage in FILTERED), settings) for item in items]


FILTERED = ("regions", "text", "segments", "segment_captions", "matching")
"""The stages whose results are filtered, in the order of `filtered`'s arguments."""
