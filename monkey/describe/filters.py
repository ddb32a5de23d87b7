"""What is kept of all that the experts saw: by score, then one of equal captions at one place.

The thresholds are those of the published add_all_json.py: regions above 0.4 and segments above 0.5 of image-text
matching, texts above 0.85 of the reader's confidence, equal captions once where boxes overlap by 0.6.

Two things differ. The published overlap adds one to every width and height, as is done with pixels, but its boxes are
shares of the image: nearly any two of them then overlap by more than 0.6, and a caption is kept once wherever it
stands. Here the overlap is that of the boxes. And the published code compares segments with each other only; here
equal captions of regions and segments at one place are one too, and the better score stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from monkey.describe.experts import Expert, ExpertSettings, Item, setting
from monkey.describe.findings import REGION, SEGMENT, TEXT, Box, Candidate, Filtered, overlap

SCORE, DUPLICATE, EMPTY = "score", "duplicate", "empty"
REASONS = (SCORE, DUPLICATE, EMPTY)

FILTERED = ("regions", "text", "segments", "segment_captions", "matching")
"""The stages whose results are filtered."""


@dataclass(frozen=True)
class Thresholds(ExpertSettings):
    """Scores above these are kept; `overlap` is the intersection over union from which equal captions are one."""

    region_score: float = setting(0.4, least=0, most=1)
    segment_score: float = setting(0.5, least=0, most=1)
    text_score: float = setting(0.85, least=0, most=1)
    overlap: float = setting(0.6, least=0, most=1)


class Filter(Expert):
    """Judges what the other experts found."""

    Settings = Thresholds
    needs_image = False

    def find(self, item: Item) -> Filtered:
        return filter_candidates(item.results, self.settings)


def filter_candidates(results: Mapping[str, Any], thresholds: Thresholds) -> Filtered:
    """Return every candidate of an image with what becomes of it: regions, then texts, then segments.

    Args:
        results: of the stages FILTERED, by their names.
    """
    least = {REGION: thresholds.region_score, TEXT: thresholds.text_score, SEGMENT: thresholds.segment_score}
    judged = [_judge_score(candidate, least[candidate.source]) for candidate in _candidates(results)]
    return Filtered(tuple(_drop_duplicates(judged, thresholds.overlap)))


def _candidates(results: Mapping[str, Any]) -> Iterator[Candidate]:
    regions, segments, scores = results["regions"].regions, results["segments"].segments, results["matching"]
    for index, (region, score) in enumerate(zip(regions, scores.regions, strict=True)):
        yield Candidate(REGION, index, _rounded(region.box), region.text.strip(), score)
    for index, line in enumerate(results["text"].lines):
        yield Candidate(TEXT, index, _rounded(line.box), line.text.strip(), line.score)
    captioned = zip(segments, results["segment_captions"].texts, scores.segments, strict=True)
    for index, (segment, text, score) in enumerate(captioned):
        yield Candidate(SEGMENT, index, _rounded(segment.box), text.strip(), score)


def _rounded(box: Box) -> Box:
    left, top, right, bottom = (round(value, 3) for value in box)
    return left, top, right, bottom


def _judge_score(candidate: Candidate, threshold: float) -> Candidate:
    if not candidate.text:
        return replace(candidate, dropped=EMPTY, because="its text is empty")
    if candidate.score <= threshold:
        return replace(candidate, dropped=SCORE, because=f"its score is {candidate.score:g}, not above {threshold:g}")
    return candidate


def _drop_duplicates(candidates: Sequence[Candidate], least: float) -> list[Candidate]:
    """Keep, of equal captions at one place, the one with the highest score; texts are compared among themselves."""
    result = list(candidates)
    kept: dict[tuple[bool, str], list[int]] = {}
    for place in sorted(range(len(result)), key=lambda place: -result[place].score):
        candidate = result[place]
        if candidate.dropped is not None:
            continue
        equal = kept.setdefault((candidate.source == TEXT, candidate.text.casefold()), [])
        for other in (result[number] for number in equal):
            common = overlap(candidate.box, other.box)
            if common >= least:
                because = f"{other.source} {other.index} says the same, and their boxes overlap by {common:.2f}"
                result[place] = replace(candidate, dropped=DUPLICATE, because=because)
                break
        else:
            equal.append(place)
    return result
