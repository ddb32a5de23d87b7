"""Experts for description runs that need no weights: what they say follows from an image's name and pixels alone.

Importing this module registers them as `scripted` for every stage that looks at images. `python -m
tests.scripted_experts run …` is `python -m monkey.describe run …` with them, for tests that start processes.
"""

from __future__ import annotations

import hashlib
import random
import sys

from monkey.describe import pipeline
from monkey.describe.experts import Expert, Failure, Item
from monkey.describe.findings import (
    Caption,
    Line,
    Lines,
    Region,
    Regions,
    Result,
    Scores,
    Segment,
    SegmentCaptions,
    Segments,
)

STAGES = ("caption", "regions", "text", "segments", "segment_captions", "matching")
CONFIG = {
    "stages": {
        **{stage: {"expert": "scripted"} for stage in STAGES},
        "filters": {"region_score": 0.4, "segment_score": 0.5, "text_score": 0.85, "overlap": 0.6},
        "summary": {"expert": "rules"},
    },
    "output": {"flagged": False},
}
NOT_KNOWN = (50, 40)
"""The scripted experts fail on images of this size."""
WORDS = ("HARVEST", "BAKERY", "STATION", "GARDEN", "LIBRARY", "OPTICIAN", "TAILOR")


class Scripted(Expert):
    """Says what `told` makes of an image and of random numbers that are the image's own."""

    def find(self, item: Item) -> Result | Failure:
        if item.image.size == NOT_KNOWN:
            return Failure("the script has nothing on this image")
        return self.told(item, random.Random(hashlib.sha256(item.image.tobytes()).hexdigest()))

    def told(self, item: Item, rng: random.Random) -> Result:
        raise NotImplementedError


class ScriptedCaptions(Scripted):
    def told(self, item, rng):
        return Caption("a drawn document")


class ScriptedRegions(Scripted):
    def told(self, item, rng):
        left = rng.choice((0.1, 0.2, 0.3))
        return Regions((Region((left, 0.05, left + 0.5, 0.3), "a heading"), Region((0.1, 0.4, 0.9, 0.9), "a table")))


class ScriptedText(Scripted):
    """Two lines; of an image that is told apart by its name `no-text`, none."""

    def told(self, item, rng):
        if "no-text" in item.file:
            return Lines(())
        boxes = ((0.1, 0.05, 0.5, 0.15), (0.1, 0.85, 0.5, 0.95))
        return Lines(tuple(Line(box, word, 1.0) for box, word in zip(boxes, rng.sample(WORDS, 2), strict=True)))


class ScriptedSegments(Scripted):
    """The table again, which the filters drop as a duplicate, and a line below it."""

    def told(self, item, rng):
        return Segments((Segment((0.1, 0.4, 0.9, 0.9), 0.4, 1.0), Segment((0.0, 0.95, 1.0, 1.0), 0.05, 1.0)))


class ScriptedSegmentCaptions(Scripted):
    def told(self, item, rng):
        return SegmentCaptions(("a table", "a line"))


class ScriptedMatching(Scripted):
    def told(self, item, rng):
        return Scores(tuple(0.9 for _ in item.results["regions"].regions), (0.9, 0.9))


_CLASSES = (
    ScriptedCaptions,
    ScriptedRegions,
    ScriptedText,
    ScriptedSegments,
    ScriptedSegmentCaptions,
    ScriptedMatching,
)
for _stage, _class in zip(STAGES, _CLASSES, strict=True):
    pipeline.STAGES[_stage].experts["scripted"] = _class

if __name__ == "__main__":
    from monkey.describe.__main__ import main

    sys.exit(main(sys.argv[1:]))
