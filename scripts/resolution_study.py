"""Do resolution, adapters a window and the shape of the grid pay? Monkeys from one base, with equal steps and data.

    bash scripts/resolution_study.sh             # from the base that ships; another one can be named
    bash scripts/resolution_study.sh --quick     # one seed and fewer steps of four arms
    bash scripts/resolution_study.sh --arms own-adapters stretched any-grid       # those about shapes alone
    bash scripts/resolution_study.sh --measured docs/resolution.json    # runs that this file lacks

Windows are small, so that two cores are enough. A base of larger ones is put on them first, and all of it trained
there (configs/training/reader-base.yaml), so that the windows of no arm are new to it. Each arm of `ARMS` is put on
its grid from that, trained with configs/training/reader-study.yaml on the same pages in the same order, once a seed,
and asked the same questions. Pages have many shapes, and letters such that the best grid of up to four windows shows
them all. Scores are told apart by the height of the letters that the answer stands in, in pixels as 2×2 windows show
them with the page's ratio kept, and by the page's shape. A value is the mean over questions and seeds; its interval
is a bootstrap over images of the questions' means over seeds, so it holds the luck of the questions drawn; the lowest
and the highest seed beside it show the luck of training.

OUTPUT holds table.md, table.csv, differences.md, results.json, scores.png and answers.json, the score of every answer,
with which another machine goes on. What was finished is kept when the command is repeated.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.statistics import difference, estimate, mean_units
from monkey.cli import ArgumentParser, whole_number
from monkey.journal import atomic_file, write_atomic, write_json
from monkey.provenance import fingerprint
from scripts.stages import REPOSITORY, evaluate, keep_settings, run, train

TASK = "pages_heldout"
HEADLINE = "official"
BATCH = 4
"""Pages of a step, of all processes together."""
WINDOW, PIXELS_OF_A_TOKEN = 112, 16
"""Sides of a window, and of the square of it that becomes one token."""
BASE_WINDOWS, WINDOWS = 2, 4
"""Most windows that the pages of the base and those of the arms are drawn for."""
KINDS = ("table=2", "label", "menu", "timetable", "sign", "slide", "bars", "lines")
"""Kinds of which every page can be read in so few small windows; those of the arms have `MORE_KINDS`, too."""
MORE_KINDS = ("form", "card", "screen", "pie")
QUESTIONS = 6
"""Most questions of a page."""
LONGEST = 700
"""Characters of a page's conversation in training, that those of the most windows fit the decoder's positions too."""


@dataclass(frozen=True)
class Arm:
    """One way to see an image.

    Attributes:
        window: the side of a window in parts of the base's own.
        grids, fit: which grids an image may take, as set_grid.py has them, `grid` alone by default, and how it is put
            on one; padded as the base sees it by default.
    """

    name: str
    title: str
    grid: str
    adapters: str = "per_window"
    global_view: bool = True
    window: int = 1
    grids: str | None = None
    fit: str = "pad"


ARMS = (
    Arm("one-view", "one view", "1,1", "none", False),
    Arm("larger-window", "one view, twice the pixels, positions interpolated", "1,1", "none", False, 2),
    Arm("no-adapters", "2×2 windows, no adapter", "2,2", "none"),
    Arm("shared-adapter", "2×2 windows, one shared adapter", "2,2", "shared"),
    Arm("own-adapters", "2×2 windows, an adapter each", "2,2"),
    Arm("without-global", "2×2 windows, an adapter each, no global view", "2,2", global_view=False),
    Arm("six-windows", "2×3 windows, an adapter each", "2,3"),
    Arm("stretched", "2×2 windows, an adapter each, stretched", "2,2", fit="stretch"),
    Arm("any-grid", "any grid of up to four windows", "2,2", grids=f"up-to-{WINDOWS}"),
)
QUICK_ARMS = "one-view", "own-adapters", "stretched", "any-grid"


@dataclass(frozen=True)
class Answer:
    """What an arm said to a question.

    Attributes:
        score: 0 to 1.
        height: of the letters of the right answer, in pixels as 2×2 windows of the base show them with the ratio kept;
            0 where no text has to be read.
        image: its file.
        ratio: of the image's longer side to the shorter.
    """

    score: float
    height: float
    image: str
    ratio: float


Answers = Mapping[str, Answer]
"""By question id."""


@dataclass(frozen=True)
class Part:
    """Questions about text whose letters and pages are at least and below such a height and ratio."""

    title: str
    height: tuple[float, float] = (0.0, float("inf"))
    ratio: tuple[float, float] = (1.0, float("inf"))

    def holds(self, answer: Answer) -> bool:
        """Whether a question is of this part; those about nothing written are of none."""
        return (
            answer.height > 0
            and self.height[0] <= answer.height < self.height[1]
            and self.ratio[0] <= answer.ratio < self.ratio[1]
        )


ALL = Part("all text")
OBLONG = Part("2:1 and more", ratio=(2, float("inf")))
SIZES = (
    Part("below 7", (0, 7)),
    Part("7 to 9", (7, 9)),
    Part("9 to 12", (9, 12)),
    Part("12 and up", (12, float("inf"))),
)
SHAPES = (Part("below 1.3:1", ratio=(1, 1.3)), Part("1.3:1 to 2:1", ratio=(1.3, 2)), OBLONG)
PARTS = (ALL, *SIZES, *SHAPES)

CONTRASTS = (
    ("2×2 windows, an adapter each, against one view", "own-adapters", "one-view", ALL),
    ("the same, against one view of as many pixels", "own-adapters", "larger-window", ALL),
    ("an adapter each, against none", "own-adapters", "no-adapters", ALL),
    ("an adapter each, against a shared one", "own-adapters", "shared-adapter", ALL),
    ("the global view, against none", "own-adapters", "without-global", ALL),
    ("2×3 windows, against 2×2", "six-windows", "own-adapters", ALL),
    ("padded, against stretched", "own-adapters", "stretched", ALL),
    ("padded, against stretched", "own-adapters", "stretched", OBLONG),
    ("any grid, against 2×2", "any-grid", "own-adapters", ALL),
    ("any grid, against 2×2", "any-grid", "own-adapters", OBLONG),
)
"""What the paper's findings are about, and what shapes are worth: a title, the arms that differ in it, and where."""


@dataclass(frozen=True)
class Extent:
    """How much a run of the study does: seeds, steps, pages to train on and to ask about, steps of the base."""

    seeds: int
    steps: int
    pictures: int
    heldout: int
    base_steps: int


FREE = "base", "seeds"
"""Settings that may differ between calls whose runs are put together: a name, and how many there are."""
FULL, QUICK = Extent(3, 800, 3200, 150, 1500), Extent(1, 120, 480, 50, 150)


def write_conversations(data: Path) -> Path:
    """Make one record of a page's questions, as turns, so that all arms see each page as often; return their file.

    A page's questions are left out from where its conversation would have more than `LONGEST` characters.
    """
    file = data / "pages.json"
    records: dict[str, dict[str, Any]] = {}
    for record in json.loads((data / "train.json").read_text(encoding="utf-8")):
        turns = record["conversations"]
        tag, _, rest = turns[0]["value"].partition("</img>")
        page = records.setdefault(tag, {"id": record["id"], "conversations": []})["conversations"]
        turns = [{**turns[0], "value": rest}, *turns[1:]] if page else turns
        if not page or sum(len(turn["value"]) for turn in (*page, *turns)) <= LONGEST:
            page += turns
    write_json(file, list(records.values()))
    return file


def scores_of(predictions: Path, questions: Path, window: int) -> dict[str, Answer]:
    """Return the answers of a run by question id.

    Args:
        window: pixels of the base's window, in four of which heights are measured.

    Raises ValueError where the two files do not tell of the same questions.
    """
    from PIL import Image

    rows = {str(row["question_id"]): row for row in _read(questions)}
    answers = {str(line["question_id"]): line for line in _read(predictions)}
    if rows.keys() != answers.keys():
        raise ValueError(
            f"{predictions} has answers to {len(answers)} questions, not to the {len(rows)} of {questions}"
        )
    sizes: dict[str, tuple[int, int]] = {}
    for name in {row["image"] for row in rows.values()}:
        with Image.open(questions.parent / name) as image:
            sizes[name] = image.size
    found = {}
    for name, line in answers.items():
        longer, shorter = sorted(sizes[rows[name]["image"]], reverse=True)
        height = rows[name]["text_height"] * 2 * window / longer
        found[name] = Answer(line["scores"][HEADLINE], height, rows[name]["image"], longer / shorter)
    return found


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_answers(file: Path, runs: Mapping[str, Sequence[Answers]], settings: Mapping[str, Any]) -> None:
    """Write the score of every answer of all runs, questions in one order, for `read_answers`."""
    asked = next(iter(runs.values()))[0]
    questions = {name: [answer.image, answer.height, answer.ratio] for name, answer in asked.items()}
    scores = {arm: [[answers[name].score for name in asked] for answers in of_arm] for arm, of_arm in runs.items()}
    content = {"settings": dict(settings), "questions": questions, "scores": scores}
    write_atomic(file, json.dumps(content, ensure_ascii=False) + "\n")


def read_answers(file: Path, settings: Mapping[str, Any], questions: Path) -> dict[str, list[Answers]]:
    """Return the runs of a study by arm, one a seed, that `write_answers` wrote on another machine.

    Raises ValueError where it had other settings, or asked other questions than those of a file.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.keys() != {"settings", "questions", "scores"}:
        raise ValueError(f"{file} is no answers.json of this study")
    for name, value in settings.items():
        if name not in FREE and content["settings"].get(name) != value:
            raise ValueError(f"{file} was measured with {name} {content['settings'].get(name)}, not {value}")
    asked = {str(row["question_id"]): row["image"] for row in _read(questions)}
    if asked != {name: image for name, (image, *_) in content["questions"].items()}:
        raise ValueError(
            f"{file} tells of {len(content['questions'])} questions that are not the {len(asked)} of {questions}; "
            "other versions of the packages that draw pages may draw others"
        )
    return {
        arm: [
            {
                name: Answer(score, height, image, ratio)
                for score, (name, (image, height, ratio)) in zip(scores, content["questions"].items(), strict=True)
            }
            for scores in of_arm
        ]
        for arm, of_arm in content["scores"].items()
    }


def _asked_of(part: Part, answers: Answers) -> list[str]:
    """Return the ids of the questions of a part."""
    return [name for name, answer in answers.items() if part.holds(answer)]


def _means(runs: Sequence[Answers], names: Sequence[str]) -> list[float]:
    """Return the score of each question, the mean over the seeds."""
    return [sum(answers[name].score for answers in runs) / len(runs) for name in names]


def summary(runs: Sequence[Answers]) -> list[dict[str, Any]]:
    """Return a row for each part: questions, mean in percent, interval, and the mean of each seed.

    Args:
        runs: one a seed, over the same questions.
    """
    rows = []
    for part in PARTS:
        names = _asked_of(part, runs[0])
        if not names:
            continue
        scores = _means(runs, names)
        found = estimate(mean_units(scores, [runs[0][name].image for name in names]))
        rows.append(
            {
                "part": part.title,
                "questions": len(names),
                "value": 100 * sum(scores) / len(scores),
                "interval": None if found.interval is None else [100 * bound for bound in found.interval],
                "seeds": [100 * sum(answers[name].score for name in names) / len(names) for answers in runs],
            }
        )
    return rows


def differences(runs: dict[str, Sequence[Answers]]) -> list[dict[str, Any]]:
    """Return `CONTRASTS`, question by question, in points, without those of an arm that was not measured.

    Args:
        runs: of each arm, one a seed, all over the same questions.
    """
    rows = []
    for title, more, less, part in CONTRASTS:
        if more not in runs or less not in runs:
            continue
        asked = runs[more][0]
        names = _asked_of(part, asked)
        if not names:
            continue
        images = [asked[name].image for name in names]
        found = difference(*(mean_units(_means(runs[arm], names), images) for arm in (less, more)))
        pairs = zip(runs[more], runs[less], strict=True)
        rows.append(
            {
                "title": title,
                "part": part.title,
                "value": 100 * found.value,
                "interval": None if found.interval is None else [100 * bound for bound in found.interval],
                "seeds": [
                    100 * sum(one[name].score - other[name].score for name in names) / len(names)
                    for one, other in pairs
                ],
                "p_value": found.p_value,
            }
        )
    return rows


def differences_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: a line a contrast."""
    lines = []
    for row in rows:
        p_value = "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}"
        lines.append(f"| {row['title']} | {row['part']} | {_cell(row, '+.1f')} | {p_value} |")
    return "\n".join(["| points of ANLS | of | difference | p |", "|---|---|---|---|", *lines])


def table(measured: dict[str, list[dict[str, Any]]], parts: Sequence[Part]) -> str:
    """Return a Markdown table: a line an arm, a column a part."""
    titles = [row["part"] for row in next(iter(measured.values()))]
    titles = [part.title for part in parts if part.title in titles]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for arm in ARMS:
        if arm.name not in measured:
            continue
        cells = {row["part"]: _cell(row) for row in measured[arm.name]}
        lines.append(f"| {arm.title} | {' | '.join(cells[title] for title in titles)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], form: str = ".1f") -> str:
    text = f"{row['value']:{form}}"
    if row["interval"] is not None:
        text += f" [{row['interval'][0]:{form}}, {row['interval'][1]:{form}}]"
    if len(row["seeds"]) > 1:
        text += f" ({min(row['seeds']):{form}} to {max(row['seeds']):{form}})"
    return text


def plot(measured: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Draw scores over the height of letters, a line an arm, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = [size.title for size in SIZES]
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, arm in enumerate(arm for arm in ARMS if arm.name in measured):
        rows = [row for row in measured[arm.name] if row["part"] in sizes]
        places = [sizes.index(row["part"]) + 0.06 * (number - len(measured) / 2) for row in rows]
        values = [row["value"] for row in rows]
        intervals = [row["interval"] or [row["value"]] * 2 for row in rows]
        errors = [
            [value - low for value, (low, _) in zip(values, intervals, strict=True)],
            [high - value for value, (_, high) in zip(values, intervals, strict=True)],
        ]
        axes.errorbar(places, values, errors, marker="o", markersize=4, capsize=3, label=arm.title)
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlabel("height of the answer's letters, pixels in 2×2 windows")
    axes.set_ylabel("ANLS in percent, 95 % interval over pages")
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8)
    with atomic_file(file) as stream:
        figure.savefig(stream, dpi=130, format="png")
    plt.close(figure)


def write(output: Path, runs: dict[str, Sequence[Answers]], settings: dict[str, Any]) -> None:
    """Write the tables in three forms, the differences and the plot, each file whole or not at all.

    Args:
        runs: of each arm, one a seed.
    """
    measured = {name: summary(of_arm) for name, of_arm in runs.items()}
    compared = differences(runs)
    results = {"settings": settings, "arms": measured, "differences": compared}
    tables = "\n\n".join(table(measured, parts) for parts in ((ALL, *SIZES), SHAPES))
    write_atomic(output / "table.md", f"{tables}\n")
    write_atomic(output / "differences.md", f"{differences_table(compared)}\n")
    write_json(output / "results.json", results)
    write_answers(output / "answers.json", runs, settings)
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["arm", "part", "questions", "value", "low", "high", "seeds"])
    for name, rows in measured.items():
        for row in rows:
            low, high = row["interval"] or ("", "")
            seeds = " ".join(f"{value:.3f}" for value in row["seeds"])
            writer.writerow([name, row["part"], row["questions"], row["value"], low, high, seeds])
    write_atomic(output / "table.csv", lines.getvalue())
    plot(measured, output / "scores.png")


def draw(title: str, folder: Path, window: int, windows: int, *flags: str) -> None:
    """Draw pages for a number of windows."""
    run(
        title,
        *("-m", "monkey.data.pages", "--output", folder, "--window", str(window), "--windows", str(windows)),
        *("--questions", str(QUESTIONS), *flags),
    )


def train_base(base: Path, window: int, output: Path, extent: Extent, bf16: str, processes: int) -> Path:
    """Put a base on windows of another size and train all of it there; return its folder, made once."""
    data, started, trained = output / "data-base", output / "base-start", output / "base"
    draw("draw pages for the base", data, window, BASE_WINDOWS, "--train", str(extent.pictures), "--kinds", *KINDS)
    if not started.exists():
        run(
            "put the base on small windows",
            *("scripts/set_grid.py", base, started, "--grid", "1,1", "--grids", f"up-to-{BASE_WINDOWS}"),
            *("--fit", "pad", "--adapters", "none", "--global-view", "False", "--window", str(window)),
            *("--window-tokens", str((window // PIXELS_OF_A_TOKEN) ** 2)),
        )
    config, flags = "configs/training/reader-base.yaml", ("--max_steps", str(extent.base_steps), "--bf16", bf16)
    train("train the base on small windows", config, started, data / "train.json", trained, *flags, processes=processes)
    return trained


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
                *("--grids", arm.grids or arm.grid.replace(",", "x"), "--fit", arm.fit),
            )
        train(
            f"{arm.title}, seed {seed}: train",
            *("configs/training/reader-study.yaml", started, data / "pages.json", folder / "trained"),
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
    """Run the study; 2 on what the user can mend."""
    parser, count = ArgumentParser(description=__doc__), whole_number(1)
    base = REPOSITORY / "models" / "small-base"
    parser.add_argument("base", type=Path, nargs="?", default=base, help="checkpoint at one window, without adapters")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "outputs" / "study")
    parser.add_argument(
        "--measured", type=Path, metavar="FILE", help="answers.json of another machine, whose runs are not done again"
    )
    parser.add_argument("--quick", action="store_true", help=f"one seed of {', '.join(QUICK_ARMS)}, fewer steps")
    parser.add_argument(
        "--arms", nargs="+", choices=[arm.name for arm in ARMS], help="all of them, or those of --quick, if not given"
    )
    parser.add_argument("--steps", type=count, help=f"of training ({FULL.steps}, or {QUICK.steps} with --quick)")
    parser.add_argument("--seeds", type=count, help=f"runs of each arm ({FULL.seeds}, or {QUICK.seeds})")
    parser.add_argument("--pictures", type=count, help=f"pages to train on ({FULL.pictures}, or {QUICK.pictures})")
    parser.add_argument("--heldout", type=count, help=f"pages to ask about ({FULL.heldout}, or {QUICK.heldout})")
    parser.add_argument("--base-steps", type=count, help=f"of the base ({FULL.base_steps}, or {QUICK.base_steps})")
    parser.add_argument("--window", type=count, default=WINDOW, help="pixels of a window's side (default %(default)s)")
    parser.add_argument("--bf16", choices=("True", "False"), default="True", help="False trains in fp32 (default True)")
    parser.add_argument("--processes", type=int, choices=(1, 2, 4), default=2, help="that train (default 2)")
    options = parser.parse_args(words)
    usual = QUICK if options.quick else FULL
    extent = Extent(*(getattr(options, name) or getattr(usual, name) for name in usual.__dataclass_fields__))
    output = options.output.resolve()
    try:
        base, window = options.base.resolve(), options.window
        if options.measured and options.measured.resolve() == output / "answers.json":
            raise ValueError(f"--measured {options.measured} is what this study writes anew; name a copy of it")
        has_window = _window_of(base) == window
        settings = {"base": str(options.base), "weights": fingerprint(sorted(base.glob("*.safetensors")))}
        settings |= {"window": window, "bf16": options.bf16, **extent.__dict__}
        settings |= {"task": TASK, "metric": "anls", "variant": HEADLINE}
        keep_settings(output, settings, free=FREE)
        names = options.arms or (QUICK_ARMS if options.quick else [arm.name for arm in ARMS])
        wanted = [arm for arm in ARMS if arm.name in names]
        data = output / "data"
        pages = "--train", str(extent.pictures), "--heldout", str(extent.heldout)
        draw("draw pages", data, window, WINDOWS, *pages, "--kinds", *KINDS, *MORE_KINDS)
        write_conversations(data)
        questions = data / "heldout.jsonl"
        measured = read_answers(options.measured, settings, questions) if options.measured else {}
        if not has_window:
            base = train_base(base, window, output, extent, options.bf16, options.processes)
        runs: dict[str, list[Answers]] = {arm.name: [] for arm in wanted}
        # Seed by seed, so that a study that is cut short has every arm.
        for seed in range(extent.seeds):
            for arm in wanted:
                if seed < len(measured.get(arm.name, ())):
                    runs[arm.name].append(measured[arm.name][seed])
                    continue
                how = extent, seed, options.bf16, options.processes
                predictions = measure(arm, base, window, data, output, *how)
                runs[arm.name].append(scores_of(predictions, questions, window))
            write(output, runs, {**settings, "seeds": seed + 1})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nANLS in percent by height of the answer's letters and by shape of the page, {output / 'table.md'}:\n")
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


if __name__ == "__main__":
    sys.exit(main())
