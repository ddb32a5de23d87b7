"""A run, or two side by side, as one HTML file that needs nothing else.

    python -m eval.report result/NAME                  # result/NAME/report.html
    python -m eval.report result/A result/B            # result/B/report-vs-A.html, with what changed from A to B
    python -m eval.report result/NAME --format md      # prints the table instead: text, md, csv, json, tex

The page holds the scores with intervals, ceilings and published figures, charts, and a browser of questions with small
images, references, answers and the score of every variant. It makes no request to anywhere. Images are looked for
where the run found them (relative paths: from the current folder), then under --images. Exit status 2 for a mistake in
the command or the runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.compare import Comparison, TaskComparison, compare_runs, comparison_row, shown_difference, shown_p
from eval.report_rows import Limits, Shown, Thumbnails, chosen_rows, page_data, thumbnails
from eval.run_folder import Run, TaskRun, open_run
from eval.score import comma_list, exit_status, parser_of, score_table
from eval.tables import FORMATS, HEADS, PART_HEADS, notes, part_rows, shown, shown_interval, shown_metric, table_row
from monkey.journal import write_atomic
from monkey.page import draw_svg, render_page

LETTERS = "ab"
"""Which colours of report.css the runs have, in their order."""

COMPARISON_HEADS = ("task", "n", "A", "B", "B − A", "95 % interval", "p (Holm)", "won / lost / tied", "ceiling")
COMPARISON_HEADS += ("Monkey", "Qwen-VL")

PARTIAL_BINS = 10

_COLOURS = {"light": ("#2563c9", "#c2570c", "#5b6472", "#dde1e8"), "dark": ("#7fb0ff", "#ffab66", "#9aa4b5", "#303745")}
"""Of the first run, the second, words, and lines, as in page.css."""


def report_html(
    first: Run,
    second: Run | None = None,
    names: Sequence[str] | None = None,
    limits: Limits | None = None,
    image_root: Path | None = None,
    any_prompt: bool = False,
) -> str:
    """Return the page.

    Raises ValueError where two runs do not compare (`eval.compare.compare_runs`) or a run is damaged.
    """
    limits = limits or Limits()
    comparison = None if second is None else compare_runs(first, second, names, any_prompt=any_prompt)
    if comparison is None:
        groups = [(task,) for task in first.chosen(names)]
    else:
        groups = [(one.first, one.second) for one in comparison.tasks]
    runs = [first] if second is None else [first, second]
    results = [tuple(map(with_intervals, tasks)) for tasks in groups]
    chosen = [chosen_rows(tasks, limits.questions) for tasks in groups]
    pictures = thumbnails(chosen, limits, image_root)
    values: dict[str, Any] = {
        "runs": [_header(run, letter, [of[place] for of in results]) for place, (run, letter) in _lettered(runs)],
        "compared": comparison is not None,
        "heads": HEADS if comparison is None else COMPARISON_HEADS,
        "part_heads": PART_HEADS,
        "left_out": [] if comparison is None else _left_out(comparison),
        "tasks": [_task(runs, tasks, of) for tasks, of in zip(groups, results, strict=True)],
        "task_names": [("", "all tasks"), *((one.task.name, one.task.name) for one in chosen)],
        "limits": _limits_sentence(chosen, pictures, limits),
        "data": page_data(chosen, [run.name for run in runs], pictures),
        **_score_chart(results, runs),
    }
    for number, task in enumerate(values["tasks"]):
        rows = [table_row(one) for one in results[number]]
        one = None if comparison is None else comparison.tasks[number]
        task["variant"] = "official" if one is None else one.variant
        task["cells"] = _score_cells(rows[0]) if one is None else _comparison_cells(one, rows[0])
    if comparison is not None:
        values |= _changes(comparison)
    return render_page(Path(__file__).with_suffix(".html"), **values)


def _lettered(runs: Sequence[Run]) -> list[tuple[int, tuple[Run, str]]]:
    return list(enumerate(zip(runs, LETTERS, strict=False)))


def with_intervals(task: TaskRun) -> Mapping[str, Any]:
    """Return a task's results; where they were stored without intervals, its scores are worked out from the lines."""
    if "interval" in task.headline:
        return task.results
    return {**task.results, "scores": score_table(task.results["metric"], task.lines, task.population)}


def _header(run: Run, letter: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    checkpoints = {str((one.get("checkpoint") or {}).get("path")) for one in results} - {"None"}
    prompts = {str((one.get("prompt") or {}).get("name")) for one in results} - {"None"}
    words = [
        f"checkpoint {', '.join(sorted(checkpoints))}" if checkpoints else "no checkpoint named",
        f"prompt {', '.join(sorted(prompts))}" if prompts else "",
        f"{sum(one['n'] for one in results):,} answers to {len(results)} tasks",
    ]
    unfinished = f" Unfinished: {', '.join(run.unfinished)}." if run.unfinished else ""
    return {
        "name": run.name,
        "letter": letter,
        "facts": " · ".join(filter(None, words)) + unfinished,
        "complete": all(one["complete"] for one in results),
    }


def _left_out(comparison: Comparison) -> list[str]:
    of_runs = ((comparison.first, comparison.only_first), (comparison.second, comparison.only_second))
    return [f"Only in {run.name}, not compared: {', '.join(names)}." for run, names in of_runs if names]


def _cell(text: str, kind: str = "", tone: str = "") -> dict[str, str]:
    return {"text": text, "kind": kind, "tone": tone}


def _score_cells(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the cells under HEADS behind the task's name."""
    count = _cell(str(row["n"])) if row["complete"] else _cell(f"{row['n']} of {row['n_expected']}", tone="bad")
    return [
        count,
        _cell(shown_metric(row), "text"),
        _cell(shown(row["value"]), "main"),
        _cell(shown_interval(row["interval"])),
        *(_cell(shown(row[name])) for name in ("ceiling", "original", "original_ceiling")),
        *(_cell(shown(row[name], 1)) for name in ("published", "published_qwen_vl")),
    ]


def _comparison_cells(one: TaskComparison, published: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the cells under COMPARISON_HEADS behind the task's name."""
    row = comparison_row(one)
    tone = "" if not one.is_significant else "good" if row["difference"] > 0 else "bad"
    return [
        _cell(str(row["n"])),
        _cell(shown(row["a"])),
        _cell(shown(row["b"])),
        _cell(shown_difference(row["difference"]), "main", tone),
        _cell(shown_interval(row["interval"], signed=True)),
        _cell(shown_p(row["p_holm"])),
        _cell(f"{row['wins']} / {row['losses']} / {row['ties']}"),
        _cell(shown(published["ceiling"])),
        *(_cell(shown(published[name], 1)) for name in ("published", "published_qwen_vl")),
    ]


def _task(runs: Sequence[Run], tasks: Sequence[TaskRun], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the page says of one task under its name."""
    rows = [table_row(one) for one in results]
    sentences = [
        (f"{run.name}: " if len(runs) > 1 else "") + note
        for run, one in zip(runs, results, strict=True)
        for note in notes(one)
    ]
    headline = results[0]["headline"]
    distributions = [[line["scores"][headline] for line in task.lines if headline in line["scores"]] for task in tasks]
    return {
        "name": tasks[0].name,
        "scores": " → ".join(shown(row["value"]) for row in rows),
        "metric": shown_metric(rows[-1]),
        "n": rows[-1]["n"],
        "headline": headline,
        "notes": list(dict.fromkeys(sentences)),
        "runs": [_details(run, letter, results[place]) for place, (run, letter) in _lettered(runs)],
        **_histogram(distributions),
    }


def _details(run: Run, letter: str, results: Mapping[str, Any]) -> dict[str, Any]:
    prompt = results.get("prompt") or {}
    return {
        "name": run.name,
        "letter": letter,
        "parts": part_rows(results),
        "facts": _facts(results),
        "prompt": {"name": None, **prompt} if "text" in prompt else None,
        "variants": [
            {
                "name": name,
                "is_headline": name == results["headline"],
                "value": shown(figures["value"]),
                "error": shown(figures.get("standard_error")),
                "interval": shown_interval(figures.get("interval")),
                "ceiling": shown(figures.get("ceiling")),
                "meaning": figures.get("meaning", ""),
            }
            for name, figures in results["scores"].items()
        ],
    }


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the scores are scores of; only what the run recorded."""
    headline = results["scores"][results["headline"]]
    data, checkpoint = results.get("dataset") or {}, results.get("checkpoint") or {}
    counts = [f"{results['n_expected']} expected", f"{results['n']} answered"]
    counts += [
        f"{len(results[name])} {name}" for name in ("missing", "duplicate", "foreign", "failed") if results.get(name)
    ]
    for name, label in (("cut_off_at_max_new_tokens", "cut off"), ("empty", "empty")):
        counts += [f"{results[name]} {label}"] if results.get(name) else []
    facts = {
        "questions": ", ".join(counts),
        "interval": f"{headline.get('interval_method')} over {headline.get('clusters')} images",
        "checkpoint": checkpoint.get("path"),
        "model": checkpoint.get("fingerprint"),
        "data": None if "file" not in data else f"{data['file']}, SHA-256 {str(data.get('sha256'))[:16]}…",
        "generation": _settings(results.get("generation")),
        "versions": _settings(results.get("versions")),
        "revision": results.get("revision"),
        "published in": (results.get("published") or {}).get("source"),
    }
    return [(name, value) for name, value in facts.items() if value is not None]


def _settings(values: Mapping[str, Any] | None) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None) if values else None


def _score_chart(results: Sequence[Sequence[Mapping[str, Any]]], runs: Sequence[Run]) -> dict[str, Any]:
    """Draw scores with whiskers, and beside them ceilings and published scores."""
    rows = [[table_row(one) for one in of_task] for of_task in results]
    marks = {
        "ceiling": ("|", "ceiling"),
        "published": ("D", "Monkey, published"),
        "published_qwen_vl": ("^", "Qwen-VL, published"),
    }

    def draw(axes: Any, colours: Sequence[str]) -> None:
        for number, of_task in enumerate(rows):
            for place, row in enumerate(of_task):
                _whisker(
                    axes, row["value"], row["interval"], number + 0.12 * (2 * place - len(of_task) + 1), colours[place]
                )
        for column, (marker, label) in marks.items():
            places = [
                (of_task[0][column], number) for number, of_task in enumerate(rows) if of_task[0][column] is not None
            ]
            if places:
                axes.scatter(
                    *zip(*places, strict=True),
                    marker=marker,
                    s=36,
                    color=colours[2],
                    facecolors="none" if marker != "|" else None,
                    label=label,
                )
        for run, colour in zip(runs, colours, strict=False):
            axes.scatter([], [], color=colour, label=_drawn_name(run.name))
        axes.set_xlim(-2, 102)
        axes.figure.legend(loc="outside upper left", ncols=5, frameon=False, labelcolor=colours[2], fontsize=9)

    names = [of_task[0]["task"] for of_task in rows]
    caption = "; ".join(
        f"{of_task[0]['task']}: {' and '.join(shown(row['value']) for row in of_task)} percent" for of_task in rows
    )
    return {"score_chart": _row_chart(names, draw), "score_caption": caption}


def _changes(comparison: Comparison) -> dict[str, Any]:
    """Draw the differences of two runs, and tabulate how sure they are."""
    rows = [comparison_row(one) for one in comparison.tasks]

    def draw(axes: Any, colours: Sequence[str]) -> None:
        axes.axvline(0, color=colours[2], linewidth=1)
        for number, row in enumerate(rows):
            _whisker(axes, row["difference"], row["interval"], number, colours[1])

    return {
        "change_chart": _row_chart([row["task"] for row in rows], draw),
        "change_caption": "; ".join(f"{row['task']}: {row['difference']:+.2f} percentage points" for row in rows),
        "changes": [
            (row["task"], *(shown_p(row[name]) for name in ("p", "p_holm", "mcnemar")), shown(row["detectable"]))
            for row in rows
        ],
    }


def _whisker(axes: Any, value: float | None, interval: Sequence[float] | None, y: float, colour: str) -> None:
    if value is not None:
        axes.plot(interval or [value, value], [y, y], color=colour, linewidth=2, alpha=0.65, solid_capstyle="round")
        axes.plot([value], [y], "o", color=colour, markersize=6)


def _row_chart(names: Sequence[str], draw: Any) -> dict[str, str]:
    """Draw a line per name, for a light and for a dark page."""

    def finish(axes: Any, colours: Sequence[str]) -> None:
        axes.set_yticks(range(len(names)), map(_drawn_name, names))
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="x", color=colours[3])
        draw(axes, colours)

    return _both_themes((9, 0.9 + 0.3 * len(names)), finish)


def _both_themes(size: tuple[float, float], draw: Any) -> dict[str, str]:
    from matplotlib.figure import Figure

    drawn = {}
    for theme, colours in _COLOURS.items():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes, colours)
        axes.set_axisbelow(True)
        axes.tick_params(colors=colours[2], labelcolor=colours[2], length=0)
        axes.spines[:].set_visible(False)
        drawn[theme] = draw_svg(figure)
    return drawn


def _drawn_name(name: str) -> str:
    """Return a name as matplotlib writes it: `$` begins no formula."""
    return name.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")


def _histogram(distributions: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Draw how many rows score exactly 0, in each of ten steps between, and exactly 1, for one run or two."""
    columns = [score_counts(scores) for scores in distributions]
    if not any(map(any, columns)):
        return {"histogram": None}

    def draw(axes: Any, colours: Sequence[str]) -> None:
        width = 0.8 / len(columns)
        for place, (column, colour) in enumerate(zip(columns, colours, strict=False)):
            bars = axes.bar(
                [slot + width * (place - (len(columns) - 1) / 2) for slot in range(len(column))],
                column,
                width,
                color=colour,
            )
            axes.bar_label(bars, [str(count) if count else "" for count in column], color=colours[2], fontsize=8)
        axes.set_xticks([0, (PARTIAL_BINS + 1) / 2, PARTIAL_BINS + 1], ["0", "between", "1"])
        axes.set_yticks([])

    caption = "; ".join(
        f"score 0: {column[0]}, between: {sum(column[1:-1])}, score 1: {column[-1]}" for column in columns
    )
    return {"histogram": _both_themes((6.2, 1.4), draw), "histogram_caption": caption}


def score_counts(scores: Sequence[float]) -> list[int]:
    """Count rows with exactly 0, in each of ten steps between, with exactly 1."""
    counts = [0] * (PARTIAL_BINS + 2)
    for score in scores:
        between = 1 + min(PARTIAL_BINS - 1, int(score * PARTIAL_BINS))
        counts[0 if score <= 0 else PARTIAL_BINS + 1 if score >= 1 else between] += 1
    return counts


def _limits_sentence(chosen: Sequence[Shown], pictures: Thumbnails, limits: Limits) -> str:
    """Say what of the run is in the page and what is not."""
    parts = [f"Questions in this page, at most {limits.questions} a task.", *(one.sentence for one in chosen)]
    if pictures.missing:
        parts.append(f"{pictures.missing} images could not be opened here.")
    if pictures.left_out:
        parts.append(
            f"{pictures.left_out} pictures were left out: this page holds at most {limits.pictures} of them and stops "
            f"at {limits.picture_bytes / 1e6:g} MB."
        )
    return " ".join([*parts, "Tables and charts count every row."])


def arguments() -> argparse.ArgumentParser:
    defaults = Limits()
    parser = parser_of(__doc__, "eval.report")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("other", metavar="RUN2", nargs="?", help="folder of a run that is compared with it")
    parser.add_argument("--output", type=Path, help="where the page goes (report.html in the run's folder)")
    parser.add_argument("--tasks", type=comma_list, help="only these tasks; commas between")
    parser.add_argument("--images", type=Path, help="folder under which images are looked for, too")
    parser.add_argument(
        "--questions", type=int, default=defaults.questions, help="most questions of a task in the page (%(default)s)"
    )
    parser.add_argument("--pictures", type=int, default=defaults.pictures, help="most images (%(default)s)")
    parser.add_argument(
        "--megabytes", type=float, default=defaults.picture_bytes / 1e6, help="most room for images (%(default)g)"
    )
    parser.add_argument("--any-prompt", action="store_true", help="compare even if the prompts differ")
    parser.add_argument("--format", choices=("html", *FORMATS), default="html", help="html, or a table to print")
    return parser


def report(options: argparse.Namespace) -> int:
    for flag in ("questions", "pictures", "megabytes"):
        if getattr(options, flag) < 0:
            raise ValueError(f"--{flag} {getattr(options, flag)} must not be negative")
    first = open_run(options.run)
    second = None if options.other is None else open_run(options.other)
    if options.format != "html":
        if second is not None:
            raise ValueError(f"--format {options.format} is of one run; python -m eval.compare prints two")
        rows = [table_row(with_intervals(task)) for task in first.chosen(options.tasks)]
        print(FORMATS[options.format](rows), end="")
        return 0
    limits = Limits(options.questions, options.pictures, int(options.megabytes * 1e6))
    html = report_html(first, second, options.tasks, limits, options.images, options.any_prompt)
    place = options.output
    if place is None:
        place = first.folder / "report.html" if second is None else second.folder / f"report-vs-{first.name}.html"
    if not place.parent.is_dir():
        raise FileNotFoundError(f"--output {place}: the folder {place.parent} does not exist")
    write_atomic(place, html)
    print(f"written to {place} ({place.stat().st_size / 1e6:.1f} MB)")
    return 0


def main(command: Sequence[str] | None = None) -> int:
    return exit_status(report, arguments().parse_args(command))


if __name__ == "__main__":
    sys.exit(main())
