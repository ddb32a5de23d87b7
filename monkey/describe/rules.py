"""Rule-based experts for rendered pictures: they draw a picture again and so know what it shows.

They look for the set that `python -m monkey.data.render` wrote around a picture, whose manifest says what it was drawn
with, and take a picture's word only when its pixels are those that were drawn. They need no weights, and make a whole
run that can be judged by anyone who looks at the picture.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from monkey.data.render.difficulty import Difficulty
from monkey.data.render.fonts import describe_font
from monkey.data.render.generate import MOST_ATTEMPTS
from monkey.data.render.settings import Settings
from monkey.data.render.sheet import Picture as DrawnPicture
from monkey.data.render.sheet import Thing
from monkey.data.render.tasks import TASKS
from monkey.data.render.write import FORMAT, MANIFEST
from monkey.describe.boxes import area, overlap
from monkey.describe.expert import Expert, ExpertSettings, Failure, Item
from monkey.describe.records import (
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

CAPTIONS = {
    "shapes": "coloured shapes on a card",
    "bars": "a bar chart with a title",
    "signs": "a shop sign that hangs from a rail",
    "receipts": "a receipt from a shop",
    "tables": "a table of numbers under a coloured heading",
}
"""What a picture of each task shows as a whole."""


@dataclass(frozen=True)
class RenderedSet:
    """A set that was drawn, and what it takes to draw its pictures again."""

    folder: Path
    settings: Settings

    @classmethod
    def around(cls, path: Path) -> RenderedSet:
        """The set that holds SET/images/<split>/<task>/<number>.png. Raises ValueError where there is none."""
        folder = path.resolve().parents[3] if len(path.resolve().parents) > 3 else path.parent
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {manifest['format']!r}")
            return cls(folder, _settings(manifest["settings"]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"it lies in no set of `python -m monkey.data.render`, which is all that rules know ({error})"
            ) from error

    def drawn(self, path: Path, picture: Image.Image) -> DrawnPicture:
        """The picture drawn again. Raises ValueError when it comes out otherwise."""
        split, task, number = path.parts[-3], path.parts[-2], path.stem
        if task not in TASKS or not number.isdecimal():
            raise ValueError(f"{task}/{path.name} is no picture of a rendered set")
        for attempt in range(MOST_ATTEMPTS + 1):
            rng = random.Random(f"{self.settings.seed}/{split}/{task}/{int(number)}/{attempt}")
            drawn = TASKS[task].draw(rng, self.settings.scene(split))
            if drawn.image.size == picture.size and drawn.image.tobytes() == picture.tobytes():
                return drawn
        raise ValueError("drawn again it looks otherwise, as with another version of Pillow; draw its set anew")


def _settings(described: dict) -> Settings:
    """Settings as a manifest records them. Raises ValueError for a set in fonts of the machine it was drawn on."""
    if described["fonts"] != [describe_font(None)]:
        raise ValueError("it was drawn in other fonts than the one built into this Pillow")
    selection = {task: tuple(kinds) for task, kinds in described["tasks"].items()}
    return Settings(
        described["seed"],
        described["train"],
        described["heldout"],
        described["image_size"],
        selection,
        Difficulty(**described["difficulty"]),
    )


class RuleExpert(Expert):
    """Knows the pictures of rendered sets."""

    Settings = ExpertSettings

    def __init__(self, settings: ExpertSettings):
        super().__init__(settings)
        self._sets: dict[Path, RenderedSet] = {}

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        results: list[Result | Failure] = []
        for item in items:
            try:
                results.append(self.told(item, self._drawn(item)))
            except ValueError as error:
                results.append(Failure(str(error)))
        return results

    def told(self, item: Item, drawn: DrawnPicture) -> Result:
        """The result for one picture."""
        raise NotImplementedError

    def _drawn(self, item: Item) -> DrawnPicture:
        place = item.path.parent
        if place not in self._sets:
            self._sets[place] = RenderedSet.around(item.path)
        return self._sets[place].drawn(item.path, item.picture)


class RuleCaptions(RuleExpert):
    def told(self, item: Item, drawn: DrawnPicture) -> Result:
        return Caption(CAPTIONS[item.path.parts[-2]])


class RuleRegions(RuleExpert):
    """Every thing that was drawn under a name."""

    def told(self, item: Item, drawn: DrawnPicture) -> Result:
        return Regions(tuple(Region(thing.box, thing.name) for thing in drawn.things))


class RuleText(RuleExpert):
    """Every string that was drawn."""

    def told(self, item: Item, drawn: DrawnPicture) -> Result:
        return Lines(tuple(Line(text.box, text.name, 1.0) for text in drawn.written))


class RuleSegments(RuleExpert):
    """The boxes of things and strings, the largest first, as a segmenter finds both."""

    most = 20

    def told(self, item: Item, drawn: DrawnPicture) -> Result:
        found = sorted((*drawn.things, *drawn.written), key=lambda thing: -area(thing.box))
        return Segments(tuple(Segment(thing.box, round(area(thing.box), 5), 1.0) for thing in found[: self.most]))


class RuleSegmentCaptions(RuleExpert):
    """What was drawn at each segment's place: the name of a thing, or the kind of a string."""

    def told(self, item: Item, drawn: DrawnPicture) -> Result:
        segments = item.results["segments"].segments
        return SegmentCaptions(tuple(_best(_named(drawn), segment.box)[0] for segment in segments))


class RuleMatching(RuleExpert):
    """How much of a box and of the place where its caption is true overlap."""

    def told(self, item: Item, drawn: DrawnPicture) -> Result:
        named = _named(drawn)
        captions = item.results["segment_captions"].texts
        segments = zip(item.results["segments"].segments, captions, strict=True)
        return Scores(
            tuple(_match(named, region.text, region.box) for region in item.results["regions"].regions),
            tuple(_match(named, text, segment.box) for segment, text in segments),
        )


def _named(drawn: DrawnPicture) -> list[Thing]:
    kinds = [Thing("a number" if text.name.isdigit() else "a word", text.box) for text in drawn.written]
    return [*drawn.things, *kinds]


def _best(named: Sequence[Thing], box: tuple[float, float, float, float]) -> tuple[str, float]:
    """Name of the thing whose box overlaps most, and by how much."""
    found = max(named, key=lambda thing: overlap(thing.box, box))
    return found.name, overlap(found.box, box)


def _match(named: Sequence[Thing], text: str, box: tuple[float, float, float, float]) -> float:
    return round(max((overlap(thing.box, box) for thing in named if thing.name == text), default=0.0), 4)
