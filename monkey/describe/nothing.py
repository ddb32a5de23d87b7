"""The expert `none`: a stage that is left out, because what it looks for is not wanted or not there."""

from __future__ import annotations

from collections.abc import Sequence

from monkey.describe.expert import Expert, Failure, Item
from monkey.describe.records import Lines, Regions, Result, Scores, SegmentCaptions, Segments


class Nothing(Expert):
    """Sees the same in every image: nothing."""

    looks = False
    result: Result

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [self.result] * len(items)


class NoRegions(Nothing):
    result = Regions(())


class NoText(Nothing):
    result = Lines(())


class NoSegments(Nothing):
    result = Segments(())


class NoSegmentCaptions(Nothing):
    """Empty captions, which the filters drop."""

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [SegmentCaptions(("",) * len(item.results["segments"].segments)) for item in items]


class NoMatching(Nothing):
    """No scores, for a run without regions and segments; a score of 0 for each, which the filters drop."""

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [
            Scores(
                (0.0,) * len(item.results["regions"].regions),
                (0.0,) * len(item.results["segments"].segments),
            )
            for item in items
        ]
