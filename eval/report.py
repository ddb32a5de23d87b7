"""A run, or two side by side, as one HTML file that needs nothing else.

    python -m eval.report result/NAME                  # result/NAME/report.html
    python -m eval.report result/A result/B            # result/B/report-vs-A.html, with what changed from A to B
    python -m eval.report result/NAME --format md      # prints the table instead: text, md, csv, json, tex

The page holds the scores with intervals, ceilings and published figures, charts, and a browser of questions with small
pictures, references, answers and the score of every variant. It makes no request to anywhere. Pictures are looked for
where the run found them (relative paths: from the current folder), then under --images. Exit status 2 for a mistake in
the command or the runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval import report_sections as sections
from eval.compare import compare_runs
from eval.report_questions import Limits, Pictures, Shown, chosen_rows, page_data, thumbnails
from eval.report_sections import Reported, with_intervals
from eval.run_folder import Run, open_run, write_whole
from eval.score import comma_list, exit_status, parser_of
from eval.tables import FORMATS, table_row
from monkey import html_page as markup

PAGE = Path(__file__).with_name("report_page")
"""Of the page's style and script."""


def report_html(
    first: Run,
    second: Run | None = None,
    names: Sequence[str] | None = None,
    limits: Limits | None = None,
    image_root: Path | None = None,
    any_prompt: bool = False,
) -> str:
    """The page.

    Raises ValueError where two runs do not compare (`eval.compare.compare_runs`) or a run is damaged.
    """
    limits = limits or Limits()
    comparison = None if second is None else compare_runs(first, second, names, any_prompt=any_prompt)
    if comparison is None:
        groups = [(task,) for task in first.chosen(names)]
    else:
        groups = [(one.first, one.second) for one in comparison.tasks]
    runs = [first] if second is None else [first, second]
    reported = [Reported(tasks, tuple(map(with_intervals, tasks))) for tasks in groups]
    chosen = [chosen_rows(tasks, limits.questions) for tasks in groups]
    pictures = thumbnails(chosen, limits, image_root)
    body = [
        sections.scores_section(reported) if comparison is None else sections.differences_section(reported, comparison),
        sections.chart_section(reported, runs),
        *([] if comparison is None else [sections.changes_section(comparison)]),
        sections.tasks_section(reported, runs),
        sections.questions_section(chosen, comparison is not None),
    ]
    return markup.page(
        f"Evaluation of {' and '.join(run.name for run in runs)}",
        sections.header(runs, reported),
        body,
        page_data(chosen, [run.name for run in runs], pictures),
        f"<p>{markup.text(_limits_sentence(chosen, pictures, limits))}</p>",
        PAGE,
    )


def _limits_sentence(chosen: Sequence[Shown], pictures: Pictures, limits: Limits) -> str:
    """What of the run is in the page and what is not."""
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
    parser.add_argument("--pictures", type=int, default=defaults.pictures, help="most pictures (%(default)s)")
    parser.add_argument(
        "--megabytes", type=float, default=defaults.picture_bytes / 1e6, help="most room for pictures (%(default)g)"
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
    write_whole(place, html)
    print(f"written to {place} ({place.stat().st_size / 1e6:.1f} MB)")
    return 0


def main(command: Sequence[str] | None = None) -> int:
    return exit_status(report, arguments().parse_args(command))


if __name__ == "__main__":
    sys.exit(main())
