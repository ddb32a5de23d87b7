"""What is kept of all that the experts saw: by score, then one of equal captions at one place.

The thresholds are those of the published add_all_json.py: regions above 0.4 and segments above 0.5 of image-text
matching, texts above 0.85 of the reader's confidence, equal captions once where boxes overlap by 0.6.

Two things differ. The published overlap adds one to every width and height, as is done with pixels, but its boxes are
shares of the picture: nearly any two of them then overlap by more than 0.6, and a caption is kept once wherever it
stands. Here the overlap is that of the boxes. And the published code compares segments with each other only; here
equal captions of regions and segments at one place are one too, and the better score stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from monkey.describe.boxes import overlap, rounded
from monkey.describe.records import (
    REGION,
    SEGMENT,
    TEXT,
    Candidate,
    Filtered,
    Lines,
    Regions,
    Scores,
    SegmentCaptions,
    Segments,
)

SCORE, DUPLICATE, EMPTY = "score", "duplicate", "empty"


@dataclass(frozen=True)
class FilterSettings:
    """Scores above these are kept; `overlap` is the intersection over union from which equal captions are one."""

    region_score: float = 0.4
    segment_score: float = 0.5
    text_score: float = 0.85
    overlap: float = 0.6

    def threshold(self, source: str) -> float:
        return {REGION: self.region_score, SEGMENT: self.segment_score, TEXT: self.text_score}[source]


def filtered(
    regions: Regions,
    lines: Lines,
    segments: Segments,
    captions: SegmentCaptions,
    scores: Scores,
    settings: FilterSettings,
) -> Filtered:
    """Every candidate of a picture with what becomes of it: regions, then texts, then segments."""
    judged = [
        _by_score(candidate, settings.threshold(candidate.source))
        for candidate in _candidates(regions, lines, segments, captions, scores)
    ]
    return Filtered(tuple(_without_duplicates(judged, settings.overlap)))


def _candidates(
    regions: Regions, lines: Lines, segments: Segments, captions: SegmentCaptions, scores: Scores
) -> Iterator[Candidate]:
    for index, (region, score) in enumerate(zip(regions.regions, scores.regions, strict=True)):
        yield Candidate(REGION, index, rounded(region.box), region.text.strip(), score)
    for index, line in enumerate(lines.lines):
        yield Candidate(TEXT, index, rounded(line.box), line.text.strip(), line.score)
    matched = zip(segments.segments, captions.texts, scores.segments, strict=True)
    for index, (segment, text, score) in enumerate(matched):
        yield Candidate(SEGMENT, index, rounded(segment.box), text.strip(), score)


def _by_score(candidate: Candidate, threshold: float) -> Candidate:
    if not candidate.text:
        return replace(candidate, dropped=EMPTY, because="its text is empty")
    if candidate.score <= threshold:
        return replace(candidate, dropped=SCORE, because=f"its score is {candidate.score:g}, not above {threshold:g}")
    return candidate


def _without_duplicates(candidates: list[Candidate], least: float) -> list[Candidate]:
    """Of equal captions at one place the one with the highest score, the first of equal ones; texts among texts."""
    result = list(candidates)
    staying: dict[tuple[bool, str], list[int]] = {}
    for place in sorted(range(len(result)), key=lambda place: -result[place].score):
        candidate = result[place]
        if candidate.dropped is not None:
            continue
        equal = staying.setdefault((candidate.source == TEXT, candidate.text.casefold()), [])
        for other in equal:
            common = overlap(candidate.box, result[other].box)
            if common >= least:
                same = f"{result[other].source} {result[other].index}"
                because = f"{same} says the same, and their boxes overlap by {common:.2f}"
                result[place] = replace(candidate, dropped=DUPLICATE, because=because)
                break
        else:
            equal.append(place)
    return result
