"""A run, or two side by side, as one HTML file that needs nothing else.

    python -m eval.report result/NAME                  # result/NAME/report.html
    python -m eval.report result/A result/B            # result/B/report-vs-A.html, with what changed from A to B
    python -m eval.report logs/                        # of lmms-eval or VLMEvalKit, see eval/peer_logs.py
    python -m eval.report result/NAME --format md      # prints the table instead: text, md, csv, json, tex

The page holds the scores with intervals, ceilings and published figures, charts, and a browser of questions with small
images, references, answers and the score of every variant. It makes no request to anywhere. Images are looked for
where the run found them (relative paths: from the current folder), then under --images. Exit status 2 for a mistake in
the command or the runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.compare import Comparison, compare_runs, comparison_row, shown_difference, shown_p
from eval.peer_logs import add_metric_flag, open_any_run
from eval.report_rows import Limits, Shown, Thumbnails, chosen_rows, page_data, thumbnails
from eval.run_folder import Run, TaskRun
from eval.score import comma_list, exit_status, parser_of, score_table
from eval.tables import (
    FORMATS,
    HEADS,
    PART_HEADS,
    cells,
    notes,
    part_rows,
    shown,
    shown_interval,
    shown_metric,
    table_row,
)
from monkey.journal import write_atomic
from monkey.page import draw_svg, render_page

COMPARISON_HEADS = ("task", "n", "A", "B", "B − A", "95 % interval", "p (Holm)", "won / lost / tied", "ceiling")
COMPARISON_HEADS += ("Monkey", "Qwen-VL")

PARTIAL_BINS = 10

_COLOURS = {"light": ("#2563c9", "#c2570c", "#5b6472", "#dde1e8"), "dark": ("#7fb0ff", "#ffab66", "#9aa4b5", "#303745")}
"""Of the first run, the second, words, and lines, as in page.css."""

Results = Mapping[str, Any]


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
    runs = [first] if second is None else [first, second]
    if comparison is None:
        groups, compared = [(task,) for task in first.chosen(names)], []
    else:
        groups = [(one.first, one.second) for one in comparison.tasks]
        compared = [{**comparison_row(one), "is_significant": one.is_significant} for one in comparison.tasks]
    results = [list(map(with_intervals, group)) for group in groups]
    rows = [list(map(table_row, of_task)) for of_task in results]
    chosen = [chosen_rows(group, limits.questions) for group in groups]
    images = thumbnails(chosen, limits, image_root)
    names_of_runs = [run.name for run in runs]
    return render_page(
        Path(__file__).with_suffix(".html"),
        runs=[
            {"colour": f"name-{'ab'[place]}", **_describe_run(run, [of_task[place] for of_task in results])}
            for place, run in enumerate(runs)
        ],
        heads=HEADS if comparison is None else COMPARISON_HEADS,
        part_heads=PART_HEADS,
        table=[_score_cells(*of_task) for of_task in rows if comparison is None]
        + [_comparison_cells(row, of_task[0]) for row, of_task in zip(compared, rows, strict=False)],
        left_out=[] if comparison is None else _left_out(comparison),
        tasks=[_describe_task(names_of_runs, *one) for one in zip(groups, results, rows, strict=True)],
        score_chart=_draw_scores(rows, names_of_runs),
        change_chart=_draw_changes(compared),
        changes=[
            (row["task"], *(shown_p(row[name]) for name in ("p", "p_holm", "mcnemar")), shown(row["detectable"]))
            for row in compared
        ],
        limits=_describe_limits(chosen, images, limits),
        data=page_data(chosen, names_of_runs, images),
        shown=shown,
        shown_interval=shown_interval,
    )


def with_intervals(task: TaskRun) -> Results:
    """Return a task's results; where they were stored without intervals, its scores are worked out from the lines."""
    if "interval" in task.headline:
        return task.results
    return {**task.results, "scores": score_table(task.results["metric"], task.lines, task.population)}


def _describe_run(run: Run, results: Sequence[Results]) -> dict[str, Any]:
    checkpoints = {str((one.get("checkpoint") or {}).get("path")) for one in results} - {"None"}
    prompts = {str((one.get("prompt") or {}).get("name")) for one in results} - {"None"}
    words = [
        f"checkpoint {', '.join(sorted(checkpoints))}" if checkpoints else "no checkpoint named",
        f"prompt {', '.join(sorted(prompts))}" if prompts else "",
        f"{sum(one['n'] for one in results):,} answers to {len(results)} tasks",
    ]
    unfinished = f" Unfinished: {', '.join(run.unfinished)}." if run.unfinished else ""
    facts = " · ".join(filter(None, words)) + unfinished
    return {"name": run.name, "facts": facts, "complete": all(one["complete"] for one in results)}


def _left_out(comparison: Comparison) -> list[str]:
    of_runs = ((comparison.first, comparison.only_first), (comparison.second, comparison.only_second))
    return [f"Only in {run.name}, not compared: {', '.join(names)}." for run, names in of_runs if names]


def _score_cells(row: Results) -> dict[str, Any]:
    """Return the line of a task under HEADS: each cell with what it is, text, main, good or bad."""
    _, *texts = cells(row)
    kinds = ["" if row["complete"] else "bad", "text", "main", *[""] * (len(texts) - 3)]
    return {"task": row["task"], "variant": "official", "cells": list(zip(texts, kinds, strict=True))}


def _comparison_cells(row: Results, published: Results) -> dict[str, Any]:
    """Return the line of a task under COMPARISON_HEADS."""
    tone = "main" if not row["is_significant"] else "main good" if row["difference"] > 0 else "main bad"
    texts = [
        str(row["n"]),
        shown(row["a"]),
        shown(row["b"]),
        shown_difference(row["difference"]),
        shown_interval(row["interval"], signed=True),
        shown_p(row["p_holm"]),
        f"{row['wins']} / {row['losses']} / {row['ties']}",
        shown(published["ceiling"]),
        *(shown(published[name], 1) for name in ("published", "published_qwen_vl")),
    ]
    marked = [(text, tone if place == 3 else "") for place, text in enumerate(texts)]
    return {"task": row["task"], "variant": row["variant"], "cells": marked}


def _describe_task(
    names: Sequence[str], tasks: Sequence[TaskRun], results: Sequence[Results], rows: Sequence[Results]
) -> dict[str, Any]:
    """Return what the page says of one task under its name."""
    sentences = [
        (f"{name}: " if len(names) > 1 else "") + note
        for name, one in zip(names, results, strict=True)
        for note in notes(one)
    ]
    headline = results[0]["headline"]
    counts = [
        score_counts([line["scores"][headline] for line in task.lines if headline in line["scores"]]) for task in tasks
    ]
    return {
        "name": tasks[0].name,
        "scores": " → ".join(shown(row["value"]) for row in rows),
        "metric": shown_metric(rows[-1]),
        "n": rows[-1]["n"],
        "headline": headline,
        "notes": list(dict.fromkeys(sentences)),
        "runs": [{"results": one, "parts": part_rows(one), "facts": _list_facts(one)} for one in results],
        "histogram": _draw_histogram(counts),
    }


def _list_facts(results: Results) -> list[tuple[str, str]]:
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
        "generation": _join_settings(results.get("generation")),
        "versions": _join_settings(results.get("versions")),
        "revision": results.get("revision"),
        "published in": (results.get("published") or {}).get("source"),
    }
    return [(name, value) for name, value in facts.items() if value is not None]


def _join_settings(values: Mapping[str, Any] | None) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None) if values else None


def _describe_limits(chosen: Sequence[Shown], images: Thumbnails, limits: Limits) -> str:
    """Say what of the run is in the page and what is not."""
    parts = [f"Questions in this page, at most {limits.questions} a task.", *(one.sentence for one in chosen)]
    if images.missing:
        parts.append(f"{images.missing} images could not be opened here.")
    if images.left_out:
        parts.append(
            f"{images.left_out} images were left out: this page holds at most {limits.pictures} of them and stops "
            f"at {limits.picture_bytes / 1e6:g} MB."
        )
    return " ".join([*parts, "Tables and charts count every row."])


# Charts, each for a light and for a dark page, with what they say in words

Draw = Callable[[Any, Sequence[str]], None]


def _draw_scores(rows: Sequence[Sequence[Results]], runs: Sequence[str]) -> dict[str, str]:
    """Draw scores with whiskers, and beside them ceilings and published scores."""
    marks = (
        ("ceiling", "|", "ceiling"),
        ("published", "D", "Monkey, published"),
        ("published_qwen_vl", "^", "Qwen-VL, published"),
    )

    def draw(axes: Any, colours: Sequence[str]) -> None:
        for number, of_task in enumerate(rows):
            for place, row in enumerate(of_task):
                shift = 0.12 * (2 * place - len(of_task) + 1)
                _whisker(axes, row["value"], row["interval"], number + shift, colours[place])
        for column, marker, label in marks:
            places = [(of_task[0][column], y) for y, of_task in enumerate(rows) if of_task[0][column] is not None]
            if places:
                filling = None if marker == "|" else "none"
                style = {"marker": marker, "s": 36, "color": colours[2], "facecolors": filling}
                axes.scatter(*zip(*places, strict=True), label=label, **style)
        for run, colour in zip(runs, colours, strict=False):
            axes.scatter([], [], color=colour, label=_drawn_name(run))
        axes.set_xlim(-2, 102)
        axes.figure.legend(loc="outside upper left", ncols=5, frameon=False, labelcolor=colours[2], fontsize=9)

    values = [
        f"{of_task[0]['task']}: {' and '.join(shown(row['value']) for row in of_task)} percent" for of_task in rows
    ]
    return _row_chart([of_task[0]["task"] for of_task in rows], draw, "; ".join(values))


def _draw_changes(rows: Sequence[Results]) -> dict[str, str]:
    """Draw the differences of two runs."""

    def draw(axes: Any, colours: Sequence[str]) -> None:
        axes.axvline(0, color=colours[2], linewidth=1)
        for number, row in enumerate(rows):
            _whisker(axes, row["difference"], row["interval"], number, colours[1])

    caption = "; ".join(f"{row['task']}: {row['difference']:+.2f} percentage points" for row in rows)
    return _row_chart([row["task"] for row in rows], draw, caption) if rows else {}


def _whisker(axes: Any, value: float | None, interval: Sequence[float] | None, y: float, colour: str) -> None:
    if value is not None:
        axes.plot(interval or [value, value], [y, y], color=colour, linewidth=2, alpha=0.65, solid_capstyle="round")
        axes.plot([value], [y], "o", color=colour, markersize=6)


def _row_chart(names: Sequence[str], draw: Draw, caption: str) -> dict[str, str]:
    """Draw a line per name."""

    def finish(axes: Any, colours: Sequence[str]) -> None:
        axes.set_yticks(range(len(names)), map(_drawn_name, names))
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="x", color=colours[3])
        draw(axes, colours)

    return _draw_both((9, 0.9 + 0.3 * len(names)), finish, caption)


def _draw_histogram(columns: Sequence[Sequence[int]]) -> dict[str, str]:
    """Draw how many rows score exactly 0, in each of ten steps between, and exactly 1, for one run or two."""
    if not any(map(any, columns)):
        return {}
    width = 0.8 / len(columns)

    def draw(axes: Any, colours: Sequence[str]) -> None:
        for place, (column, colour) in enumerate(zip(columns, colours, strict=False)):
            shift = width * (place - (len(columns) - 1) / 2)
            bars = axes.bar([slot + shift for slot in range(len(column))], column, width, color=colour)
            axes.bar_label(bars, [str(count) if count else "" for count in column], color=colours[2], fontsize=8)
        axes.set_xticks([0, (PARTIAL_BINS + 1) / 2, PARTIAL_BINS + 1], ["0", "between", "1"])
        axes.set_yticks([])

    said = [f"score 0: {column[0]}, between: {sum(column[1:-1])}, score 1: {column[-1]}" for column in columns]
    return _draw_both((6.2, 1.4), draw, "; ".join(said))


def _draw_both(size: tuple[float, float], draw: Draw, caption: str) -> dict[str, str]:
    from matplotlib.figure import Figure

    drawn = {"caption": caption}
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


def score_counts(scores: Sequence[float]) -> list[int]:
    """Count rows with exactly 0, in each of ten steps between, with exactly 1."""
    counts = [0] * (PARTIAL_BINS + 2)
    for score in scores:
        between = 1 + min(PARTIAL_BINS - 1, int(score * PARTIAL_BINS))
        counts[0 if score <= 0 else PARTIAL_BINS + 1 if score >= 1 else between] += 1
    return counts


# The command


def arguments() -> argparse.ArgumentParser:
    defaults = Limits()
    parser = parser_of(__doc__, "eval.report")
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a log of lmms-eval or VLMEvalKit")
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
    add_metric_flag(parser)
    parser.add_argument("--format", choices=("html", *FORMATS), default="html", help="html, or a table to print")
    return parser


def report(options: argparse.Namespace) -> int:
    for flag in ("questions", "pictures", "megabytes"):
        if getattr(options, flag) < 0:
            raise ValueError(f"--{flag} {getattr(options, flag)} must not be negative")
    first = open_any_run(options.run, options.metric)
    second = None if options.other is None else open_any_run(options.other, options.metric)
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
        name = "report.html" if second is None else f"report-vs-{first.name}.html"
        of_run = (second or first).folder
        place = of_run.with_name(f"{of_run.stem}-{name}") if of_run.is_file() else of_run / name
    if not place.parent.is_dir():
        raise FileNotFoundError(f"--output {place}: the folder {place.parent} does not exist")
    write_atomic(place, html)
    print(f"written to {place} ({place.stat().st_size / 1e6:.1f} MB)")
    return 0


def main(command: Sequence[str] | None = None) -> int:
    return exit_status(report, arguments().parse_args(command))


if __name__ == "__main__":
    sys.exit(main())
