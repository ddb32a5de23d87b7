"""The expert `none`: a stage that is left out, because what it looks for is not wanted or not there."""

from __future__ import annotations

from collections.abc import Sequence

from monkey.describe.expert import Expert, Failure, Item
from monkey.describe.records import Lines, Regions, Result, SegmentCaptions, Segments


class NoRegions(Expert):
    looks = False

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [Regions(())] * len(items)


class NoText(Expert):
    looks = False

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [Lines(())] * len(items)


class NoSegments(Expert):
    looks = False

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [Segments(())] * len(items)


class NoSegmentCaptions(Expert):
    """Empty captions, which the filters drop."""

    looks = False

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [SegmentCaptions(("",) * len(item.results["segments"].segments)) for item in items]
