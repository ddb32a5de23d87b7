"""Other thresholds on a run's records, without asking its experts again.

    python -m monkey.describe sweep RUN                                    # RUN/sweep.csv, sweep.json and sweep.png
    python -m monkey.describe sweep RUN --sample 200 --seed 1 --region-score 0.2:0.6:0.05 --overlap 0.5,0.6,0.7

One threshold moves at a time, the others stay as the run has them. A range is LOW:HIGH:STEP, both ends in it, or values
with commas between; the run's own value is always among them. Kept are notes of an expert that pass all filters; the
duplicate rate is the share of duplicates among those that pass by score.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import heapq
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monkey.describe.charts import COLOURS, new_figure, write_chart
from monkey.describe.filters import DUPLICATE, FilterSettings, filtered
from monkey.describe.finished import open_finished
from monkey.describe.records import MANIFEST, REGION, SEGMENT, TEXT, Filtered, FinishedRun, PictureRun
from monkey.journal import write_atomic

SOURCES = (REGION, TEXT, SEGMENT)
GIVEN = ("regions", "text", "segments", "segment_captions", "matching")
RANGES: Mapping[str, tuple[str, str]] = {
    "region_score": ("0:0.95:0.05", "match of crop and caption that a region must exceed"),
    "segment_score": ("0:0.95:0.05", "match that a segment must exceed"),
    "text_score": ("0.5:0.95:0.05", "confidence that a text must exceed"),
    "overlap": ("0.3:0.9:0.1", "overlap of boxes from which equal captions are one"),
}
"""Field of FilterSettings to usual range and what it is; each is a flag."""

MOST_VALUES = 1000


@dataclass(frozen=True)
class Row:
    """What one setting keeps of a sample: by source, seen, kept and duplicates."""

    threshold: str
    value: float
    own: bool
    """Whether it is the run's."""
    pictures: int
    seen: Mapping[str, int]
    kept: Mapping[str, int]
    duplicates: Mapping[str, int]

    def duplicate_rate(self, source: str | None = None) -> float:
        """Share of duplicates among what passes by score, of a source or all; 0 where nothing passes."""
        sources = SOURCES if source is None else (source,)
        duplicates = sum(self.duplicates[one] for one in sources)
        return duplicates / max(1, duplicates + sum(self.kept[one] for one in sources))

    def kept_a_picture(self, source: str) -> float:
        return self.kept[source] / self.pictures

    def flat(self) -> dict[str, Any]:
        """The row as columns of the CSV."""
        return {
            "threshold": self.threshold,
            "value": self.value,
            "own": int(self.own),
            "pictures": self.pictures,
            **{f"{source}s_seen": self.seen[source] for source in SOURCES},
            **{f"{source}s_kept": self.kept[source] for source in SOURCES},
            **{f"{source}s_kept_a_picture": round(self.kept_a_picture(source), 4) for source in SOURCES},
            **{f"{source}s_duplicate": self.duplicates[source] for source in SOURCES},
            "duplicate_rate": round(self.duplicate_rate(), 4),
        }


def values_of(text: str, flag: str) -> list[float]:
    """LOW:HIGH:STEP or values with commas between, each in [0, 1], sorted. Raises ValueError naming the flag."""
    try:
        numbers = [float(word) for word in text.split(":" if ":" in text else ",")]
    except ValueError:
        numbers = []
    if ":" in text and len(numbers) == 3:
        low, high, step = numbers
        if not (0 <= low <= high <= 1 and step > 0 and (high - low) / step < MOST_VALUES):
            raise ValueError(
                f"{flag} {text}: 0 ≤ LOW ≤ HIGH ≤ 1, STEP above 0 and under {MOST_VALUES} values are needed"
            )
        numbers = [round(low + place * step, 6) for place in range(math.floor((high - low) / step + 1e-6) + 1)]
    elif ":" in text or not numbers:
        raise ValueError(f"{flag} {text!r} is no range: give LOW:HIGH:STEP, or values with commas between")
    if not all(0 <= number <= 1 for number in numbers):
        raise ValueError(f"{flag} {text}: thresholds lie in [0, 1]")
    return sorted(set(numbers))


def own_settings(run: FinishedRun) -> FilterSettings:
    """The thresholds of a run. Raises ValueError where its manifest has none."""
    names = [entry.name for entry in dataclasses.fields(FilterSettings)]
    try:
        settings = run.manifest["stages"]["filters"]["settings"]
        return FilterSettings(**{name: float(settings[name]) for name in names})
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{run.folder / MANIFEST} does not say the run's thresholds ({error})") from error


def sample(run: FinishedRun, size: int, seed: int) -> list[PictureRun]:
    """`size` pictures that were filtered, drawn by seed and picture: the same whatever else a run holds."""

    def draw(picture: PictureRun) -> str:
        return hashlib.sha256(f"{seed}/{picture.image}".encode()).hexdigest()

    pictures = tqdm(run.pictures(), total=len(run), desc="reading", unit="picture", disable=None)
    # Masks are what takes the memory, and filters do not look at them.
    filtered_ones = (_without_masks(picture) for picture in pictures if "filters" in picture.results)
    return heapq.nsmallest(size, filtered_ones, key=draw)


def _without_masks(picture: PictureRun) -> PictureRun:
    found = picture["segments"]
    segments = tuple(dataclasses.replace(segment, mask=None) for segment in found.segments)
    return PictureRun(picture.image, {**picture.results, "segments": dataclasses.replace(found, segments=segments)})


def filtered_again(picture: PictureRun, settings: FilterSettings) -> Filtered:
    return filtered(*(picture[stage] for stage in GIVEN), settings)


def check_records(run: FinishedRun, pictures: Sequence[PictureRun], own: FilterSettings) -> None:
    """Raises ValueError where the run's own thresholds do not give what its records hold."""
    for picture in pictures:
        if filtered_again(picture, own) != picture["filters"]:
            raise ValueError(
                f"{run.folder}: filtered again with its own thresholds, {picture['images'].file} comes out otherwise "
                "than in its records; run it again with this version first"
            )


def swept(pictures: Sequence[PictureRun], own: FilterSettings, ranges: Mapping[str, Sequence[float]]) -> Iterator[Row]:
    """A row for every value of every threshold, the run's own values among them."""
    for threshold, values in ranges.items():
        ours = getattr(own, threshold)
        for value in sorted({*values, ours}):
            settings = dataclasses.replace(own, **{threshold: value})
            yield _row(pictures, settings, threshold, value, value == ours)


def _row(pictures: Sequence[PictureRun], settings: FilterSettings, threshold: str, value: float, own: bool) -> Row:
    seen, kept, duplicates = Counter(), Counter(), Counter()
    for picture in pictures:
        for candidate in filtered_again(picture, settings).candidates:
            seen[candidate.source] += 1
            kept[candidate.source] += candidate.dropped is None
            duplicates[candidate.source] += candidate.dropped == DUPLICATE
    return Row(threshold, value, own, len(pictures), seen, kept, duplicates)


def table(rows: Sequence[Row]) -> str:
    """The rows as lines to read, kept notes a picture by source; the run's own value has a star."""
    lines = []
    for threshold in dict.fromkeys(row.threshold for row in rows):
        heads = "".join(f"{source + 's':>10}" for source in SOURCES)
        lines += ["", f"{threshold:16}{heads}{'duplicates':>12}   kept a picture; share of duplicates"]
        for row in rows:
            if row.threshold == threshold:
                figures = "".join(f"{row.kept_a_picture(source):10.2f}" for source in SOURCES)
                lines.append(f"  {row.value:<6g}{'*' if row.own else '':8}{figures}{row.duplicate_rate():12.1%}")
    return "\n".join(lines[1:]) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Over each threshold, kept notes a picture and duplicate rates by source, as a PNG; the run's own is dashed."""
    thresholds = list(dict.fromkeys(row.threshold for row in rows))
    figure, axes = new_figure(2, len(thresholds), 3.4 * len(thresholds), 6)
    for column, threshold in enumerate(thresholds):
        chosen = [row for row in rows if row.threshold == threshold]
        values = [row.value for row in chosen]
        upper, lower = axes[0][column], axes[1][column]
        for source in SOURCES:
            style = {"color": COLOURS[source], "marker": ".", "linewidth": 1.3}
            upper.plot(values, [row.kept_a_picture(source) for row in chosen], label=f"{source}s", **style)
            lower.plot(values, [100 * row.duplicate_rate(source) for row in chosen], **style)
        for each in (upper, lower):
            each.axvline(next(row.value for row in chosen if row.own), color="0.35", linestyle="--", linewidth=1)
            each.set_ylim(bottom=0)
            each.grid(alpha=0.3)
        lower.set_xlabel(threshold.replace("_", " "))
    axes[0][0].set_ylabel("kept a picture")
    axes[1][0].set_ylabel("duplicates (percent)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(SOURCES), frameon=False)
    write_chart(figure, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    parser.add_argument("--sample", type=int, default=1000, metavar="N", help="pictures to look at (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another draws other pictures (%(default)s)")
    for name, (usual, what) in RANGES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=usual, metavar="RANGE", help=f"{what} (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of sweep.csv, .json, .png (the run's folder)")


def main(flags: argparse.Namespace) -> int:
    """Runs the command. Raises ValueError and OSError, each one sentence."""
    if flags.sample < 1:
        raise ValueError(f"--sample {flags.sample} is too small: 1 or more is needed")
    ranges = {name: values_of(getattr(flags, name), f"--{name.replace('_', '-')}") for name in RANGES}
    run = open_finished(flags.run)
    folder = flags.output or run.folder
    if not folder.is_dir():
        raise FileNotFoundError(f"--output {folder}: no such folder")
    own = own_settings(run)
    pictures = sample(run, flags.sample, flags.seed)
    if not pictures:
        raise ValueError(f"{run.folder} has no picture that was filtered; problems.jsonl says why")
    check_records(run, pictures, own)
    total = sum(len({*values, getattr(own, name)}) for name, values in ranges.items())
    rows = list(tqdm(swept(pictures, own, ranges), total=total, desc="sweeping", unit="value", disable=None))
    print(table(rows), end="")
    write_all(folder, rows, {"run": run.folder.resolve().name, "own": vars(own), "seed": flags.seed})
    print(f"{len(pictures):,} pictures; written to {folder / 'sweep.csv'}, sweep.json and sweep.png")
    return 0


def write_all(folder: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    flat = [row.flat() for row in rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_atomic(folder / "sweep.csv", stream.getvalue())
    content = {**about, "pictures": rows[0].pictures, "rows": flat}
    write_atomic(folder / "sweep.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    draw(rows, folder / "sweep.png")
