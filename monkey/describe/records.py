"""What a run writes: its folder, the records of each stage, and reading them back.

A run's folder:

    config.yaml               the configuration with every value stated
    manifest.json             counts, versions, prompts; by stage: settings, seconds, tokens, cost; digests of outputs
    stages/<stage>.jsonl      one line a picture, in the order of the pictures' names; the stages are those of `RESULTS`
    problems.jsonl            pictures without a description: {"file", "stage", "problem"}
    train.json                training records with the detailed-caption prompt, paths relative to the picture folder
    detailed_captions.json    [{"img_id", "detailed_caption"}, …] as in the published dataset
    journals/                 what the work itself writes as it goes; only journal.py reads it

All but config.yaml and journals/ appear when the run is complete, each whole. Everything but the manifest is equal to
the byte however often the run was stopped and in however many processes it ran.

A line of stages/<stage>.jsonl is `{"image": SHA-256 of the picture's file, "key": …, …}` and then the fields of the
stage's class below, tuples as lists. `key` stands for all that the result depends on: the picture, the settings of the
stage and what it was given by the stages before it.

    {"image": "9f…", "key": "03…", "file": "signs/000000.png", "also": [], "width": 224, "height": 224}     images
    {"image": "9f…", "key": "5c…", "text": "a shop sign that hangs from a rail"}                            caption
    {"image": "9f…", "key": "e1…", "regions": [{"box": [0.08, 0.16, 0.92, 0.95], "text": "a red sign"}]}    regions

A picture that a stage failed on has no line in it and in none after it. Boxes are [left, top, right, bottom] as shares
of the picture's width and height, in [0, 1].
"""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any

CONFIG, MANIFEST, STAGES, PROBLEMS = "config.yaml", "manifest.json", "stages", "problems.jsonl"
TRAINING, DETAILED, JOURNALS = "train.json", "detailed_captions.json", "journals"

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of width and height."""


@dataclass(frozen=True)
class Picture:
    """`file` is the picture's name in the picture folder, `also` names of files with the same bytes."""

    file: str
    also: tuple[str, ...]
    width: int
    height: int


@dataclass(frozen=True)
class Caption:
    """Of the whole picture."""

    text: str


@dataclass(frozen=True)
class Region:
    box: Box
    text: str


@dataclass(frozen=True)
class Regions:
    """Dense captions."""

    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Line:
    """One line of text that was read, with the reader's confidence."""

    box: Box
    text: str
    score: float


@dataclass(frozen=True)
class Lines:
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Segment:
    """A part of the picture.

    `area` is the mask's share of the picture, `score` the segmenter's own. `mask` is the mask on a small grid over the
    whole picture, as `masks.pack_mask` writes it; null where only the box is known.
    """

    box: Box
    area: float
    score: float
    mask: str | None = None


@dataclass(frozen=True)
class Segments:
    """The largest first."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class SegmentCaptions:
    """One caption a segment, in their order."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """How well each crop and its caption match, in [0, 1]: of the regions and of the segments, in their order."""

    regions: tuple[float, ...]
    segments: tuple[float, ...]


REGION, TEXT, SEGMENT = "region", "text", "segment"


@dataclass(frozen=True)
class Candidate:
    """What one expert saw at one place, and whether it is kept.

    `source` is "region", "text" or "segment", `index` its place in that stage's list. `score` is the match of crop and
    caption, or the reader's confidence in a text. `dropped` is null for what is kept, else "score", "duplicate" or
    "empty", and `because` says it in words.
    """

    source: str
    index: int
    box: Box
    text: str
    score: float
    dropped: str | None = None
    because: str | None = None


@dataclass(frozen=True)
class Filtered:
    """Every region, text and segment of the picture, in this order, kept or not. Boxes have three decimals."""

    candidates: tuple[Candidate, ...]

    @property
    def kept(self) -> tuple[Candidate, ...]:
        return tuple(candidate for candidate in self.candidates if candidate.dropped is None)


@dataclass(frozen=True)
class Summary:
    """The description. `problems` are the rules it breaks after `attempts` attempts; none is a good description."""

    text: str
    problems: tuple[str, ...]
    attempts: int


Result = Picture | Caption | Regions | Lines | Segments | SegmentCaptions | Scores | Filtered | Summary

RESULTS: Mapping[str, type] = {
    "images": Picture,
    "caption": Caption,
    "regions": Regions,
    "text": Lines,
    "segments": Segments,
    "segment_captions": SegmentCaptions,
    "matching": Scores,
    "filters": Filtered,
    "summary": Summary,
}
"""What a record of each stage holds, in the order of the stages."""


@dataclass(frozen=True)
class PictureRun:
    """All that a complete run has on one picture; `results` by stage, without those after a failure."""

    image: str
    results: Mapping[str, Result]

    def __getitem__(self, stage: str) -> Any:
        return self.results[stage]


class FinishedRun:
    """A complete run's folder, read picture by picture.

    Raises:
        FileNotFoundError: the folder or its manifest is missing.
        ValueError: the manifest is not JSON.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; give the --output of a run")
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {MANIFEST}: it is no run, or one that is not complete yet")
        try:
            self.manifest: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); run again to write it anew") from error

    def __len__(self) -> int:
        """Pictures that opened."""
        return int(self.manifest["counts"]["pictures"])

    def pictures(self) -> Iterator[PictureRun]:
        """Every picture that opened, in order; no more than one is held in memory.

        Raises ValueError naming file and line of a record that is not of its form.
        """
        streams = {stage: self.records(stage) for stage in RESULTS}
        waiting = {stage: next(stream, None) for stage, stream in streams.items()}
        while (first := waiting["images"]) is not None:
            image, results = first[0], {}
            for stage, stream in streams.items():
                found = waiting[stage]
                if found is not None and found[0] == image:
                    results[stage] = found[1]
                    waiting[stage] = next(stream, None)
            yield PictureRun(image, results)

    def records(self, stage: str) -> Iterator[tuple[str, Result]]:
        """Image hash and result of each line of a stage."""
        path = self.folder / STAGES / f"{stage}.jsonl"
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                where = f"{path}:{number}"
                try:
                    row = json.loads(line)
                    yield row["image"], result_from_json(stage, row)
                except (ValueError, LookupError, TypeError) as error:
                    raise ValueError(f"{where} is not a record of {stage} ({error})") from error

    def problems(self) -> list[Mapping[str, str]]:
        lines = (self.folder / PROBLEMS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def result_to_json(result: Result) -> dict[str, Any]:
    """The fields of a stage's record; tuples become lists in JSON."""
    return asdict(result)


def result_from_json(stage: str, row: Mapping[str, Any]) -> Result:
    """The stage's class from the fields of a record; other fields are left alone.

    Raises ValueError, LookupError or TypeError when a field is missing or of another kind.
    """
    return _decoded(RESULTS[stage], row)


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, Any], ...]:
    """Name and type of each field of a dataclass."""
    hints = typing.get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in fields(kind))


def _decoded(kind: Any, value: Any) -> Any:
    """`value` of JSON as `kind`: a dataclass, a tuple, or a number, text or null."""
    if is_dataclass(kind):
        return kind(**{name: _decoded(hint, value[name]) for name, hint in _fields(kind)})
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise TypeError(f"a list is needed where {value!r} stands")
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_decoded(one, entry) for one, entry in zip(kinds, value, strict=True))
    wanted = tuple(inner) if isinstance(kind, UnionType) else (kind,)
    allowed = (*wanted, int) if float in wanted else wanted
    if not isinstance(value, allowed) or isinstance(value, bool):
        names = " or ".join(getattr(one, "__name__", str(one)) for one in wanted)
        raise TypeError(f"{names} is needed where {value!r} stands")
    return float(value) if wanted == (float,) else value
