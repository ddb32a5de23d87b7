"""What a run made, counted, and what other thresholds would have kept: tables, and the same as JSON, CSV and SVG."""

from __future__ import annotations

import argparse
import csv
import hashlib
import heapq
import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monkey.describe.filters import DUPLICATE, REASONS, Thresholds, filter_candidates
from monkey.describe.findings import SOURCES
from monkey.describe.output import MANIFEST, FinishedRun, ImageRun
from monkey.describe.prompt import sentences
from monkey.journal import write_atomic, write_json

STATS = """What a run made, counted: words, sentences and regions per image, what was filtered and flagged, vocabulary.

python -m monkey.describe stats RUN                  # prints a table; RUN/statistics.json and RUN/statistics.svg
python -m monkey.describe stats RUN --output FOLDER  # the files there instead
"""

SWEEP = """Other thresholds on a run's records, without asking its experts again.

    python -m monkey.describe sweep RUN                                    # RUN/sweep.csv, sweep.json and sweep.svg
    python -m monkey.describe sweep RUN --sample 200 --seed 1 --region-score 0.2:0.6:0.05 --overlap 0.5,0.6,0.7

One threshold moves at a time, the others stay as the run has them. A range is LOW:HIGH:STEP, both ends in it, or values
with commas between; the run's own value is always among them. Kept are notes of an expert that pass all filters; the
duplicate rate is the share of duplicates among those that pass by score.
"""

MAX_BINS, MAX_VALUES = 20, 1000
RANGES: Mapping[str, tuple[str, str]] = {
    "region_score": ("0:0.95:0.05", "match of crop and caption that a region must exceed"),
    "segment_score": ("0:0.95:0.05", "match that a segment must exceed"),
    "text_score": ("0.5:0.95:0.05", "confidence that a text must exceed"),
    "overlap": ("0.3:0.9:0.1", "overlap of boxes from which equal captions are one"),
}
"""Threshold to usual range and what it is; each is a flag."""

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
# A broken rule without the figure or letter of one description: "it has … sentences, more than …".
_PARTICULAR = re.compile(r"\d+|'.'")

Panel = tuple[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]
"""What stands under a panel of a chart, and its lines by name: their places across and up."""


def open_run(flags: argparse.Namespace) -> tuple[FinishedRun, Path]:
    """Return the run and the folder that what is counted goes to."""
    run = FinishedRun(flags.run)
    folder = flags.output or run.folder
    if not folder.is_dir():
        raise FileNotFoundError(f"--output {folder}: no such folder")
    return run, folder


def draw(path: Path, panels: Sequence[Panel]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
    for axes, (label, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (across, up) in series.items():
            axes.plot(across, up, marker=".", label=name)
        axes.set(xlabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="svg")
    write_atomic(path, stream.getvalue())


# What a run made


def add_stats_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of statistics.json and .svg (the run's folder)")


def write_stats(flags: argparse.Namespace) -> int:
    run, folder = open_run(flags)
    found = statistics_of(run)
    print(stats_table(found), end="")
    write_json(folder / "statistics.json", found)
    bins = {name: found[name].get("histogram", []) for name in ("words", "sentences", "kept_together")}
    drawn = {name: ([first for first, _, _ in some], [count for *_, count in some]) for name, some in bins.items()}
    panels = [(f"{name.replace('_', ' ')} per image", {"images": lines}) for name, lines in drawn.items()]
    draw(folder / "statistics.svg", panels)
    print(f"written to {folder / 'statistics.json'} and {folder / 'statistics.svg'}")
    return 0


def statistics_of(run: FinishedRun) -> dict[str, Any]:
    """Return what statistics.json holds."""
    seen, kept = {source: [] for source in SOURCES}, {source: [] for source in SOURCES}
    dropped, summaries = Counter(), []
    for image in tqdm(run.images(), total=len(run), desc="images", unit="image", disable=None):
        if "filters" in image:
            candidates = image["filters"].candidates
            for source in SOURCES:
                fates = [one.dropped for one in candidates if one.source == source]
                seen[source].append(len(fates))
                kept[source].append(fates.count(None))
                dropped.update((source, fate) for fate in fates)
        if "summary" in image:
            summaries.append(image["summary"])
    said = [[word.casefold() for word in _WORD.findall(one.text)] for one in summaries]
    vocabulary, rules = Counter(word for some in said for word in some), Counter()
    for one in summaries:
        rules.update({_PARTICULAR.sub("…", problem) for problem in one.problems})
    flagged = sum(bool(one.problems) for one in summaries)
    return {
        "run": run.folder.resolve().name,
        "pictures": len(run),
        "described": len(summaries),
        "flagged": {
            "count": flagged,
            "share": _share(flagged, len(summaries)),
            "rules": dict(rules.most_common()),
            "asked_again": sum(one.attempts > 1 for one in summaries),
        },
        "words": distribution([len(some) for some in said]),
        "sentences": distribution([len(sentences(one.text)) for one in summaries]),
        "candidates": {source: distribution(seen[source]) for source in SOURCES},
        "kept": {source: distribution(kept[source]) for source in SOURCES},
        "kept_together": distribution([sum(each) for each in zip(*kept.values(), strict=True)]),
        "filters": {
            source: {
                "candidates": sum(seen[source]),
                "kept": sum(kept[source]),
                "kept_share": _share(sum(kept[source]), sum(seen[source])),
                "dropped": {reason: dropped[source, reason] for reason in REASONS},
                "dropped_shares": {reason: _share(dropped[source, reason], sum(seen[source])) for reason in REASONS},
            }
            for source in SOURCES
        },
        "vocabulary": {
            "words": vocabulary.total(),
            "different": len(vocabulary),
            "once": sum(number == 1 for number in vocabulary.values()),
            "share_different": _share(len(vocabulary), vocabulary.total()),
            "most_common": [list(pair) for pair in vocabulary.most_common(30)],
        },
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def distribution(values: Sequence[int]) -> dict[str, Any]:
    """Return mean, median, deviation, extremes, and bins of equal width [first value, last value, how many]."""
    if not values:
        return {"n": 0}
    low, width = min(values), -(-(max(values) - min(values) + 1) // MAX_BINS)
    places = Counter((value - low) // width for value in values)
    bins = range((max(values) - low) // width + 1)
    return {
        "n": len(values),
        "mean": round(statistics.fmean(values), 4),
        "median": statistics.median(values),
        "sd": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
        "least": low,
        "most": max(values),
        "histogram": [[low + place * width, low + (place + 1) * width - 1, places[place]] for place in bins],
    }


def stats_table(found: Mapping[str, Any]) -> str:
    """Return the statistics as lines to read."""
    columns = ("n", "mean", "median", "sd", "least", "most")
    lines = [
        f"{found['run']}: {found['described']:,} descriptions of {found['pictures']:,} images",
        f"{'per image':16}" + "".join(f"{column:>9}" for column in columns),
    ]
    rows = {"words": found["words"], "sentences": found["sentences"]}
    for source in SOURCES:
        rows |= {f"{source}s seen": found["candidates"][source], f"{source}s kept": found["kept"][source]}
    lines += [f"{name:16}" + "".join(f"{row.get(column, '–'):>9}" for column in columns) for name, row in rows.items()]
    for source, rates in found["filters"].items():
        reasons = ", ".join(f"{number:,} by {reason}" for reason, number in rates["dropped"].items())
        lines.append(f"{source}s: {rates['kept']:,} of {rates['candidates']:,} kept; dropped {reasons}")
    flagged, vocabulary = found["flagged"], found["vocabulary"]
    lines.append(f"flagged: {flagged['count']:,}; asked again: {flagged['asked_again']:,}")
    lines += [f"  {rule}: {number:,}" for rule, number in flagged["rules"].items()]
    common = ", ".join(f"{word} {number:,}" for word, number in vocabulary["most_common"][:12])
    lines.append(f"vocabulary: {vocabulary['different']:,} different of {vocabulary['words']:,} words; {common}")
    return "\n".join(lines) + "\n"


# Other thresholds


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    parser.add_argument("--sample", type=int, default=1000, metavar="N", help="images to look at (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another draws other images (%(default)s)")
    for name, (usual, what) in RANGES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=usual, metavar="RANGE", help=f"{what} (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of sweep.csv, .json, .svg (the run's folder)")


def write_sweep(flags: argparse.Namespace) -> int:
    if flags.sample < 1:
        raise ValueError(f"--sample {flags.sample} is too small: 1 or more is needed")
    ranges = {name: values_of(getattr(flags, name), f"--{name.replace('_', '-')}") for name in RANGES}
    run, folder = open_run(flags)
    own, images = own_thresholds(run), draw_sample(run, flags.sample, flags.seed)
    if not images:
        raise ValueError(f"{run.folder} has no image that was filtered; problems.jsonl says why")
    check_records(run, images, own)
    rows = list(sweep(images, own, ranges))
    print(sweep_table(rows), end="")
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "sweep.csv", stream.getvalue())
    about = {"run": run.folder.resolve().name, "own": own, "seed": flags.seed, "pictures": len(images)}
    write_json(folder / "sweep.json", {**about, "rows": rows})
    draw(folder / "sweep.svg", [_panel(name, [row for row in rows if row["threshold"] == name]) for name in RANGES])
    print(f"{len(images):,} images; written to {folder / 'sweep.csv'}, sweep.json and sweep.svg")
    return 0


def _panel(threshold: str, rows: Sequence[Mapping[str, Any]]) -> Panel:
    values = [row["value"] for row in rows]
    lines = {f"{source}s kept per image": [row[f"{source}s_kept_a_picture"] for row in rows] for source in SOURCES}
    return threshold.replace("_", " "), {name: (values, line) for name, line in lines.items()}


def values_of(text: str, flag: str) -> list[float]:
    """Return LOW:HIGH:STEP or values with commas between, each in [0, 1], sorted. Raises ValueError naming the flag."""
    try:
        numbers = [float(word) for word in text.split(":" if ":" in text else ",")]
        if ":" in text:
            low, high, step = numbers
            if not (low <= high and step > 0 and (high - low) / step < MAX_VALUES):
                raise ValueError
            numbers = [round(low + place * step, 6) for place in range(math.floor((high - low) / step + 1e-6) + 1)]
        if not all(0 <= number <= 1 for number in numbers):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{flag} {text!r} is no range: give LOW:HIGH:STEP of fewer than {MAX_VALUES} values, or values with commas "
            "between, all in [0, 1]"
        ) from None
    return sorted(set(numbers))


def own_thresholds(run: FinishedRun) -> dict[str, float]:
    """Return the thresholds of a run. Raises ValueError where its manifest has none."""
    try:
        settings = run.manifest["stages"]["filters"]["settings"]
        return {name: float(settings[name]) for name in RANGES}
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{run.folder / MANIFEST} does not say the run's thresholds ({error})") from error


def draw_sample(run: FinishedRun, size: int, seed: int) -> list[ImageRun]:
    """Return `size` images that were filtered, drawn by seed and image: the same whatever else a run holds."""
    images = tqdm(run.images(), total=len(run), desc="reading", unit="image", disable=None)
    filtered = (image for image in images if "filters" in image)
    return heapq.nsmallest(size, filtered, key=lambda one: hashlib.sha256(f"{seed}/{one.digest}".encode()).hexdigest())


def check_records(run: FinishedRun, images: Sequence[ImageRun], own: Mapping[str, float]) -> None:
    """Raise ValueError where the run's own thresholds do not give what its records hold."""
    for image in images:
        if filter_candidates(image.results, Thresholds(**own)) != image["filters"]:
            raise ValueError(
                f"{run.folder}: filtered again with its own thresholds, {image['images'].file} comes out otherwise "
                "than in its records; run it again with this version first"
            )


def sweep(
    images: Sequence[ImageRun], own: Mapping[str, float], ranges: Mapping[str, Sequence[float]]
) -> Iterator[dict[str, Any]]:
    """Yield a row of the table for every value of every threshold, the run's own values among them."""
    for threshold, values in ranges.items():
        for value in sorted({*values, own[threshold]}):
            settings, counts = Thresholds(**{**own, threshold: value}), Counter()
            for image in images:
                for one in filter_candidates(image.results, settings).candidates:
                    counts.update([(one.source, "seen"), (one.source, one.dropped)])
            kept = sum(counts[source, None] for source in SOURCES)
            duplicates = sum(counts[source, DUPLICATE] for source in SOURCES)
            yield {
                "threshold": threshold,
                "value": value,
                "own": int(value == own[threshold]),
                "pictures": len(images),
                **{f"{source}s_seen": counts[source, "seen"] for source in SOURCES},
                **{f"{source}s_kept": counts[source, None] for source in SOURCES},
                **{f"{source}s_kept_a_picture": round(counts[source, None] / len(images), 4) for source in SOURCES},
                **{f"{source}s_duplicate": counts[source, DUPLICATE] for source in SOURCES},
                "duplicate_rate": round(duplicates / max(1, kept + duplicates), 4),
            }


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as lines to read, kept notes per image by source; the run's own value has a star."""
    lines = [f"{'kept per image':22}" + "".join(f"{source + 's':>10}" for source in SOURCES) + f"{'duplicates':>12}"]
    for row in rows:
        figures = "".join(f"{row[f'{source}s_kept_a_picture']:10.2f}" for source in SOURCES)
        name = f"{row['threshold']} {row['value']:g}{' *' if row['own'] else ''}"
        lines.append(f"{name:22}{figures}{row['duplicate_rate']:12.1%}")
    return "\n".join(lines) + "\n"
