"""Do resolution, adapters a window and the shape of the grid pay? Monkeys from one base, with equal steps and data.

    bash scripts/resolution_study.sh             # from the base that ships; another one can be named
    bash scripts/resolution_study.sh --quick     # one seed of the three, some two minutes for each arm on two cores
    bash scripts/resolution_study.sh --arms oblong oblong-any-grid oblong-padded       # those about shapes alone

Each arm of `ARMS` is put on its grid from the same base, trained with configs/training/reader-study.yaml on the same
records in the same order, once a seed, and asked the same questions. There are two sets of documents, square ones and
`OBLONG` ones of the same area; arms compare within a set. Scores are told apart by the height of the letters
that the answer stands in, in pixels of the 224-pixel image. A value is the mean over questions and seeds; its
interval is a bootstrap over images of the questions' means over seeds, so it holds the luck of the questions drawn;
the lowest and the highest seed beside it show the luck of training.

OUTPUT holds table.md, table.csv, results.json and scores.png. What was finished is kept when the command is repeated.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.statistics import difference, estimate, mean_units
from monkey.cli import ArgumentParser
from scripts.stages import REPOSITORY, evaluate, run, train

TASK = "documents_heldout"
HEADLINE = "official"
BATCH = 8
"""Records of a step, of all processes together."""


@dataclass(frozen=True)
class Arm:
    """One way to see an image.

    Attributes:
        window: the side of a window in parts of the base's own.
        ratios: shapes of the documents; none for squares.
        grids, fit: which grids an image may take beside `grid`, and how it is put on one, as set_grid.py has them.
    """

    name: str
    title: str
    grid: str
    adapters: str = "per_window"
    global_view: bool = True
    window: int = 1
    ratios: tuple[str, ...] = ()
    grids: str | None = None
    fit: str = "stretch"

    @property
    def documents(self) -> str:
        """Name of the folder of its documents."""
        return "data-oblong" if self.ratios else "data"

    @property
    def shape_flags(self) -> tuple[str, ...]:
        """Flags of set_grid.py, where the arm says more than a grid."""
        grids = ("--grids", self.grids) if self.grids else ()
        return *grids, *(("--fit", self.fit) if self.fit != "stretch" else ())


OBLONG = ("3:1", "1:3", "2:1", "1:2")
"""Width over height of documents that are not square, by turns."""


ARMS = (
    Arm("one-view", "one view", "1,1", "none", False),
    Arm("larger-window", "one view, twice the pixels, positions interpolated", "1,1", "none", False, 2),
    Arm("no-adapters", "2×2 windows, no adapter", "2,2", "none"),
    Arm("shared-adapter", "2×2 windows, one shared adapter", "2,2", "shared"),
    Arm("own-adapters", "2×2 windows, an adapter each", "2,2"),
    Arm("without-global", "2×2 windows, an adapter each, no global view", "2,2", global_view=False),
    Arm("six-windows", "2×3 windows, an adapter each", "2,3"),
    Arm("oblong", "oblong documents, stretched over 2×2 windows", "2,2", ratios=OBLONG),
    Arm("oblong-padded", "oblong documents, padded to 2×2 windows", "2,2", ratios=OBLONG, fit="pad"),
    Arm("oblong-any-grid", "oblong documents, any grid of up to six windows", "2,2", ratios=OBLONG, grids="up-to-6"),
)


CONTRASTS = (
    ("2×2 windows, an adapter each, against one view", "own-adapters", "one-view"),
    ("the same, against one view of as many pixels", "own-adapters", "larger-window"),
    ("an adapter each, against none", "own-adapters", "no-adapters"),
    ("an adapter each, against a shared one", "own-adapters", "shared-adapter"),
    ("the global view, against none", "own-adapters", "without-global"),
    ("2×3 windows, against 2×2", "six-windows", "own-adapters"),
    ("oblong documents: any grid, against 2×2", "oblong-any-grid", "oblong"),
    ("oblong documents: padded, against stretched", "oblong-padded", "oblong"),
)
"""What the paper's findings are about, and what shapes are worth: a title, and the two arms that differ in it."""


@dataclass(frozen=True)
class Size:
    """Answers whose letters are at least `least` and at most `most` pixels high."""

    title: str
    least: int
    most: int


SIZES = (
    Size("all text", 1, 999),
    Size("up to 7", 1, 7),
    Size("8 and 9", 8, 9),
    Size("10 to 12", 10, 12),
    Size("13 up", 13, 999),
)


@dataclass(frozen=True)
class Extent:
    """How much a run of the study does: seeds, steps, images to train on and to ask about."""

    seeds: int
    steps: int
    pictures: int
    heldout: int


FULL, QUICK = Extent(3, 180, 2000, 100), Extent(1, 180, 2000, 100)


def scores_of(predictions: Path, questions: Path) -> dict[str, tuple[float, int, str]]:
    """By question id: score, height of the letters, image.

    Raises ValueError where the two files do not tell of the same questions.
    """
    rows = {str(row["question_id"]): row for row in _read(questions)}
    answers = {str(line["question_id"]): line for line in _read(predictions)}
    if rows.keys() != answers.keys():
        raise ValueError(
            f"{predictions} has answers to {len(answers)} questions, not to the {len(rows)} of {questions}"
        )
    return {
        name: (line["scores"][HEADLINE], rows[name]["text_height"], rows[name]["image"])
        for name, line in answers.items()
    }


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _asked_of(size: Size, run: dict[str, tuple[float, int, str]]) -> list[str]:
    """Ids of the questions whose answer's letters are of this size."""
    return [name for name, (_, height, _) in run.items() if size.least <= height <= size.most]


def _means(runs: Sequence[dict[str, tuple[float, int, str]]], names: Sequence[str]) -> list[float]:
    """Score of each question, the mean over the seeds."""
    return [sum(run[name][0] for run in runs) / len(runs) for name in names]


def summary(runs: Sequence[dict[str, tuple[float, int, str]]]) -> list[dict[str, Any]]:
    """One row a size: questions, mean in percent, interval, and the mean of each seed.

    Args:
        runs: one a seed, over the same questions.
    """
    rows = []
    for size in SIZES:
        names = _asked_of(size, runs[0])
        if not names:
            continue
        scores = _means(runs, names)
        found = estimate(mean_units(scores, [runs[0][name][2] for name in names]))
        rows.append(
            {
                "size": size.title,
                "questions": len(names),
                "value": 100 * sum(scores) / len(scores),
                "interval": None if found.interval is None else [100 * bound for bound in found.interval],
                "seeds": [100 * sum(run[name][0] for name in names) / len(names) for run in runs],
            }
        )
    return rows


def differences(runs: dict[str, Sequence[dict[str, tuple[float, int, str]]]]) -> list[dict[str, Any]]:
    """`CONTRASTS` over all text, question by question, in points; those with an arm that was not measured are left out.

    Args:
        runs: of each arm, one a seed, all over the same questions.
    """
    rows = []
    for title, more, less in CONTRASTS:
        if more not in runs or less not in runs:
            continue
        asked = runs[more][0]
        names = _asked_of(SIZES[0], asked)
        pictures = [asked[name][2] for name in names]
        found = difference(*(mean_units(_means(runs[arm], names), pictures) for arm in (less, more)))
        pairs = zip(runs[more], runs[less], strict=True)
        rows.append(
            {
                "title": title,
                "value": 100 * found.value,
                "interval": None if found.interval is None else [100 * bound for bound in found.interval],
                "seeds": [
                    100 * sum(one[name][0] - other[name][0] for name in names) / len(names) for one, other in pairs
                ],
                "p_value": found.p_value,
            }
        )
    return rows


def differences_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: a line a contrast."""
    lines = []
    for row in rows:
        p_value = "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}"
        lines.append(f"| {row['title']} | {_cell(row, '+.1f')} | {p_value} |")
    return "\n".join(["| points of ANLS, all text | difference | p |", "|---|---|---|", *lines])


def table(measured: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: a line an arm, a column a size."""
    sizes = [
        size.title for size in SIZES if any(row["size"] == size.title for rows in measured.values() for row in rows)
    ]
    lines = [f"| | {' | '.join(sizes)} |", f"|---|{'---|' * len(sizes)}"]
    for arm in ARMS:
        if arm.name not in measured:
            continue
        cells = {row["size"]: _cell(row) for row in measured[arm.name]}
        lines.append(f"| {arm.title} | {' | '.join(cells.get(size, '') for size in sizes)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], form: str = ".1f") -> str:
    text = f"{row['value']:{form}}"
    if row["interval"] is not None:
        text += f" [{row['interval'][0]:{form}}, {row['interval'][1]:{form}}]"
    if len(row["seeds"]) > 1:
        text += f" ({min(row['seeds']):{form}} to {max(row['seeds']):{form}})"
    return text


def plot(measured: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Score over height of letters, a line an arm, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = [size.title for size in SIZES[1:]]
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, arm in enumerate(arm for arm in ARMS if arm.name in measured):
        rows = [row for row in measured[arm.name] if row["size"] in sizes]
        places = [sizes.index(row["size"]) + 0.06 * (number - len(measured) / 2) for row in rows]
        values = [row["value"] for row in rows]
        intervals = [row["interval"] or [row["value"]] * 2 for row in rows]
        errors = [
            [value - low for value, (low, _) in zip(values, intervals, strict=True)],
            [high - value for value, (_, high) in zip(values, intervals, strict=True)],
        ]
        axes.errorbar(places, values, errors, marker="o", markersize=4, capsize=3, label=arm.title)
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlabel("height of the answer's letters, pixels of 224")
    axes.set_ylabel("ANLS in percent, 95 % interval over pictures")
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8)
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    figure.savefig(partial, dpi=130, format="png")
    plt.close(figure)
    partial.replace(file)


def write(output: Path, runs: dict[str, Sequence[dict[str, tuple[float, int, str]]]], settings: dict[str, Any]) -> None:
    """The table in three forms, the differences and the plot, each file whole or not at all.

    Args:
        runs: of each arm, one a seed.
    """
    measured = {name: summary(of_arm) for name, of_arm in runs.items()}
    compared = differences(runs)
    results = {"settings": settings, "arms": measured, "differences": compared}
    texts = {
        "table.md": table(measured) + "\n",
        "differences.md": differences_table(compared) + "\n",
        "results.json": json.dumps(results, indent=2) + "\n",
    }
    for name, text in texts.items():
        partial = output / f".{name}.partial-{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(output / name)
    partial = output / f".table.csv.partial-{os.getpid()}"
    with partial.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["arm", "size", "questions", "value", "low", "high", "seeds"])
        for name, rows in measured.items():
            for row in rows:
                low, high = row["interval"] or ("", "")
                seeds = " ".join(f"{value:.3f}" for value in row["seeds"])
                writer.writerow([name, row["size"], row["questions"], row["value"], low, high, seeds])
    partial.replace(output / "table.csv")
    plot(measured, output / "scores.png")


def measure(
    arm: Arm, base: Path, window: int, data: Path, output: Path, extent: Extent, seed: int, bf16: str, processes: int
) -> Path:
    """Train and ask one arm once; returns the file of its answers, without asking again where it is complete."""
    folder, result = output / "runs" / f"{arm.name}-{seed}", output / "result"
    predictions = result / f"{arm.name}-{seed}" / TASK / "predictions.jsonl"
    if not predictions.is_file():
        started = folder / "start"
        if not started.exists():
            run(
                f"{arm.title}, seed {seed}: put the base on its grid",
                *("scripts/set_grid.py", base, started, "--grid", arm.grid, "--adapters", arm.adapters),
                *("--global-view", str(arm.global_view), "--window", str(arm.window * window), "--seed", str(seed)),
                *arm.shape_flags,
            )
        train(
            f"{arm.title}, seed {seed}: train",
            *("configs/training/reader-study.yaml", started, data / "train.json", folder / "trained"),
            *("--max_steps", str(extent.steps), "--seed", str(seed), "--bf16", bf16),
            *("--per_device_train_batch_size", str(BATCH // processes)),
            processes=processes,
        )
        title = f"{arm.title}, seed {seed}: ask"
        evaluate(title, folder / "trained", TASK, data, result, f"{arm.name}-{seed}")
        # The answers are what counts, and thirty checkpoints with optimiser states are gigabytes.
        for checkpoint in (folder / "trained").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return predictions


def main(words: list[str] | None = None) -> int:
    """Runs the study; 2 on what the user can mend."""
    parser = ArgumentParser(description=__doc__)
    base = REPOSITORY / "models" / "small-base"
    parser.add_argument("base", type=Path, nargs="?", default=base, help="checkpoint at one window, without adapters")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "outputs" / "study")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], help="all of them if not given")
    parser.add_argument("--steps", type=int, help=f"of training ({FULL.steps}, or {QUICK.steps} with --quick)")
    parser.add_argument("--seeds", type=int, help=f"runs of each arm ({FULL.seeds}, or {QUICK.seeds})")
    parser.add_argument("--pictures", type=int, help=f"to train on ({FULL.pictures}, or {QUICK.pictures})")
    parser.add_argument("--heldout", type=int, help=f"pictures to ask about ({FULL.heldout}, or {QUICK.heldout})")
    parser.add_argument("--bf16", choices=("True", "False"), default="True", help="False trains in fp32 (default True)")
    parser.add_argument("--processes", type=int, choices=(1, 2, 4, 8), default=2, help="that train (default 2)")
    options = parser.parse_args(words)
    usual = QUICK if options.quick else FULL
    extent = Extent(*(getattr(options, name) or getattr(usual, name) for name in usual.__dataclass_fields__))
    output = options.output.resolve()
    try:
        window = _window_of(options.base)
        settings = {"base": str(options.base), **extent.__dict__, "task": TASK, "metric": "anls", "variant": HEADLINE}
        _check_same(output, settings)
        wanted = [arm for arm in ARMS if options.arms is None or arm.name in options.arms]
        for name, ratios in dict.fromkeys((arm.documents, arm.ratios) for arm in wanted):
            run(
                "draw oblong documents" if ratios else "draw documents",
                *("-m", "monkey.data.documents", "--output", output / name, "--side", str(2 * window)),
                *("--train", str(extent.pictures), "--heldout", str(extent.heldout)),
                *(("--ratios", *ratios) if ratios else ()),
            )
        data = {arm.name: output / arm.documents for arm in wanted}
        answered: dict[str, list[Path]] = defaultdict(list)
        # Seed by seed, so that a study that is cut short has every arm.
        for seed in range(extent.seeds):
            for arm in wanted:
                base = options.base.resolve()
                how = extent, seed, options.bf16, options.processes
                answered[arm.name].append(measure(arm, base, window, data[arm.name], output, *how))
            runs = {
                name: [scores_of(file, data[name] / "heldout.jsonl") for file in files]
                for name, files in answered.items()
            }
            write(output, runs, {**settings, "seeds": seed + 1})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nANLS in percent by height of the answer's letters, {output / 'table.md'}:\n")
    print((output / "table.md").read_text(encoding="utf-8"))
    print(f"What makes the difference, over the same questions, {output / 'differences.md'}:\n")
    print((output / "differences.md").read_text(encoding="utf-8"))
    return 0


def _window_of(base: Path) -> int:
    """Pixels of the base's window. Raises ValueError for one that is no base at one window without adapters."""
    from monkey import MonkeyConfig

    config = MonkeyConfig.from_pretrained(base)
    if config.num_windows != 1 or config.num_adapters or config.global_view:
        raise ValueError(f"{base} is no base: it has {config.num_windows} windows, {config.num_adapters} adapter sets")
    return config.window_size


def _check_same(output: Path, settings: dict[str, Any]) -> None:
    """Remember what a study is made with, and refuse to go on with another. Raises ValueError."""
    file = output / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        # More seeds add to a study; anything else makes another.
        differing = [name for name in settings if name != "seeds" and before.get(name) != settings[name]]
        if differing:
            raise ValueError(f"{output} holds a study of other {', '.join(differing)}; name another --output")
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
