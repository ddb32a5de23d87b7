"""What a run made, counted: words, sentences and regions a picture, what was filtered, what was flagged, vocabulary.

python -m monkey.describe stats RUN                  # prints a table; RUN/statistics.json and RUN/statistics.png
python -m monkey.describe stats RUN --output FOLDER  # the files there instead
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monkey.describe.charts import COLOURS, new_figure, write_chart
from monkey.describe.checks import sentences
from monkey.describe.filters import DUPLICATE, EMPTY, SCORE
from monkey.describe.finished import open_finished
from monkey.describe.records import REGION, SEGMENT, TEXT, FinishedRun, PictureRun
from monkey.journal import write_atomic

SOURCES = (REGION, TEXT, SEGMENT)
REASONS = (SCORE, DUPLICATE, EMPTY)
COMMON_WORDS = 30
MOST_BINS = 20

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
# A broken rule without the figure or letter of one description: "it has … sentences, more than …".
_PARTICULAR = re.compile(r"\d+|'.'")


def words(text: str) -> list[str]:
    """Runs of letters and digits, hyphens and apostrophes inside them, in small letters."""
    return [word.casefold() for word in _WORD.findall(text)]


@dataclass
class Counts:
    """What is counted over pictures. Lists have one entry a description (words, sentences) or filtered picture."""

    words: list[int] = field(default_factory=list)
    sentences: list[int] = field(default_factory=list)
    candidates: dict[str, list[int]] = field(default_factory=lambda: {source: [] for source in SOURCES})
    kept: dict[str, list[int]] = field(default_factory=lambda: {source: [] for source in SOURCES})
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    asked_again: int = 0
    vocabulary: Counter[str] = field(default_factory=Counter)

    def add(self, picture: PictureRun) -> None:
        if "filters" in picture.results:
            found = picture["filters"].candidates
            totals = Counter(candidate.source for candidate in found)
            kept = Counter(candidate.source for candidate in found if candidate.dropped is None)
            for source in SOURCES:
                self.candidates[source].append(totals[source])
                self.kept[source].append(kept[source])
            self.dropped.update((one.source, one.dropped) for one in found if one.dropped is not None)
        if "summary" in picture.results:
            summary = picture["summary"]
            said = words(summary.text)
            self.words.append(len(said))
            self.sentences.append(len(sentences(summary.text)))
            self.vocabulary.update(said)
            self.flagged += bool(summary.problems)
            self.asked_again += summary.attempts > 1
            self.rules.update({_PARTICULAR.sub("…", problem) for problem in summary.problems})


def count(run: FinishedRun) -> Counts:
    counts = Counts()
    for picture in tqdm(run.pictures(), total=len(run), desc="pictures", unit="picture", disable=None):
        counts.add(picture)
    return counts


def distribution(values: Sequence[int]) -> dict[str, Any]:
    """Mean, median, standard deviation of the sample, extremes, and bins [first value, last value, how many]."""
    if not values:
        return {"n": 0}
    return {
        "n": len(values),
        "mean": round(statistics.fmean(values), 4),
        "median": statistics.median(values),
        "sd": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
        "least": min(values),
        "most": max(values),
        "histogram": histogram(values),
    }


def histogram(values: Sequence[int]) -> list[list[int]]:
    """At most MOST_BINS bins of equal width over whole numbers, each [first, last, how many], none left out."""
    low, high = min(values), max(values)
    width = -(-(high - low + 1) // MOST_BINS)
    counts = Counter((value - low) // width for value in values)
    return [
        [low + place * width, low + (place + 1) * width - 1, counts[place]]
        for place in range((high - low) // width + 1)
    ]


def statistics_of(run: FinishedRun, counts: Counts) -> dict[str, Any]:
    """What statistics.json holds."""
    described = len(counts.words)
    total = sum(counts.vocabulary.values())
    return {
        "run": run.folder.resolve().name,
        "pictures": len(run),
        "described": described,
        "flagged": {
            "count": counts.flagged,
            "share": _share(counts.flagged, described),
            "rules": dict(counts.rules.most_common()),
            "asked_again": counts.asked_again,
        },
        "words": distribution(counts.words),
        "sentences": distribution(counts.sentences),
        "candidates": {source: distribution(counts.candidates[source]) for source in SOURCES},
        "kept": {source: distribution(counts.kept[source]) for source in SOURCES},
        "kept_together": distribution([sum(each) for each in zip(*counts.kept.values(), strict=True)]),
        "filters": {source: _filter_rates(counts, source) for source in SOURCES},
        "vocabulary": {
            "words": total,
            "different": len(counts.vocabulary),
            "once": sum(1 for number in counts.vocabulary.values() if number == 1),
            "share_different": _share(len(counts.vocabulary), total),
            "most_common": [list(pair) for pair in counts.vocabulary.most_common(COMMON_WORDS)],
        },
    }


def _filter_rates(counts: Counts, source: str) -> dict[str, Any]:
    """Candidates, what stays and what goes for each reason; shares are of the candidates."""
    total, kept = sum(counts.candidates[source]), sum(counts.kept[source])
    dropped = {reason: counts.dropped[source, reason] for reason in REASONS}
    return {
        "candidates": total,
        "kept": kept,
        "kept_share": _share(kept, total),
        "dropped": dropped,
        "dropped_shares": {reason: _share(number, total) for reason, number in dropped.items()},
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def table(found: Mapping[str, Any]) -> str:
    """The statistics as lines to read."""
    lines = [
        f"{found['run']}: {found['described']:,} descriptions of {found['pictures']:,} pictures",
        "",
        f"{'':24}{'n':>8}{'mean':>9}{'median':>9}{'sd':>8}{'least':>8}{'most':>8}",
    ]
    rows = {"words": found["words"], "sentences": found["sentences"]}
    for source in SOURCES:
        rows |= {f"{source}s seen": found["candidates"][source], f"{source}s kept": found["kept"][source]}
    for name, one in {**rows, "kept together": found["kept_together"]}.items():
        if one["n"]:
            figures = f"{one['mean']:9.2f}{one['median']:9g}{one['sd']:8.2f}{one['least']:8,}{one['most']:8,}"
            lines.append(f"{name + ' a picture':24}{one['n']:8,}{figures}")
    lines += ["", f"{'':24}{'seen':>8}{'kept':>16}" + "".join(f"{reason:>16}" for reason in REASONS)]
    for source, rates in found["filters"].items():
        cells = [(rates["kept"], rates["kept_share"])]
        cells += [(rates["dropped"][reason], rates["dropped_shares"][reason]) for reason in REASONS]
        figures = "".join(f"{number:,} ({_percent(share)})".rjust(16) for number, share in cells)
        lines.append(f"{source + 's':24}{rates['candidates']:8,}{figures}")
    flagged, vocabulary = found["flagged"], found["vocabulary"]
    lines += [
        "",
        f"flagged: {flagged['count']:,} ({_percent(flagged['share'])}); asked again: {flagged['asked_again']:,}",
    ]
    lines += [f"  {rule}: {number:,}" for rule, number in flagged["rules"].items()]
    lines.append(
        f"vocabulary: {vocabulary['different']:,} different of {vocabulary['words']:,} words "
        f"({_percent(vocabulary['share_different'])}), {vocabulary['once']:,} of them used once"
    )
    common = ", ".join(f"{word} {number:,}" for word, number in vocabulary["most_common"][:12])
    return "\n".join([*lines, f"  most common: {common}"] if common else lines) + "\n"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Histograms of words, sentences and kept regions, and what was filtered by source, as a PNG."""
    figure, ((first, second), (third, fourth)) = new_figure(2, 2, 10, 7)
    drawn = ((first, "words", "words"), (second, "sentences", "sentences"), (third, "kept_together", "notes kept"))
    for axes, key, label in drawn:
        one = found[key]
        axes.set(xlabel=f"{label} a picture", ylabel="pictures")
        if not one["n"]:
            continue
        lows, highs, numbers = zip(*one["histogram"], strict=True)
        width = highs[0] - lows[0] + 1
        axes.bar([low - 0.5 for low in lows], numbers, width, align="edge", color="C0", edgecolor="white")
        axes.axvline(one["mean"], color="0.3", linestyle="--", linewidth=1)
        axes.set_title(f"mean {one['mean']:.1f}, median {one['median']:g}, sd {one['sd']:.1f}", fontsize="medium")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
    _draw_filters(fourth, found["filters"])
    write_chart(figure, path)


def _draw_filters(axes: Any, filters: Mapping[str, Any]) -> None:
    """A bar a source, from what stays to what goes for each reason."""
    shades = {SCORE: "0.55", DUPLICATE: "0.75", EMPTY: "0.88"}
    for place, source in enumerate(SOURCES):
        rates = filters[source]
        start = rates["kept"]
        axes.barh(place, start, color=COLOURS[source])
        for reason in REASONS:
            label = f"filtered: {reason}" if place == 0 else None
            axes.barh(place, rates["dropped"][reason], left=start, color=shades[reason], label=label)
            start += rates["dropped"][reason]
    axes.set_yticks(range(len(SOURCES)), [f"{source}s" for source in SOURCES])
    axes.invert_yaxis()
    axes.set(xlabel="seen by the experts", title="coloured: kept")
    axes.legend(frameon=False, fontsize="small")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of statistics.json and .png (the run's folder)")


def main(flags: argparse.Namespace) -> int:
    """Runs the command. Raises ValueError and OSError, each one sentence."""
    run = open_finished(flags.run)
    folder = flags.output or run.folder
    if not folder.is_dir():
        raise FileNotFoundError(f"--output {folder}: no such folder")
    found = statistics_of(run, count(run))
    print(table(found), end="")
    write_atomic(folder / "statistics.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    draw(found, folder / "statistics.png")
    print(f"written to {folder / 'statistics.json'} and {folder / 'statistics.png'}")
    return 0
