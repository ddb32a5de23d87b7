"""The summary of a run: one row a task, as text, Markdown, CSV, JSON and LaTeX, and the sentences that go with it.

All scores are percentages: two decimals in tables, full floats in JSON and CSV. Everything comes from the content of
results.json files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.run_folder import SUMMARY, json_text, write_whole

Results = Mapping[str, Any]
Row = Mapping[str, Any]

HEADS = ("task", "n", "metric", "score", "95 % interval", "ceiling", "original", "its ceiling", "Monkey", "Qwen-VL")
TEXT_COLUMNS = frozenset((0, 2))
"""Columns that stand on the left; the others are numbers."""

PART_HEADS = ("task, told apart by", "part", "rows", "score", "95 % interval", "ceiling", "original")
PART_TEXT_COLUMNS = frozenset((0, 1))

ABSENT = "-"


def table_row(results: Results) -> dict[str, Any]:
    """Return the line of a task in summary.json, and what every table shows; None where there is no figure."""
    headline = results["scores"][results["headline"]]
    original = results["scores"].get("original", {})
    published = results.get("published") or {}
    return {
        "task": results["task"],
        "n": results["n"],
        "n_expected": results["n_expected"],
        "complete": results["complete"],
        "metric": results["metric"],
        "headline": results["headline"],
        "value": headline["value"],
        "standard_error": headline.get("standard_error"),
        "interval": headline.get("interval"),
        "ceiling": headline.get("ceiling"),
        "original": original.get("value"),
        "original_ceiling": original.get("ceiling"),
        "published": published.get("monkey"),
        "published_qwen_vl": published.get("qwen_vl"),
        "published_source": published.get("source"),
    }


def shown(value: float | None, decimals: int = 2) -> str:
    return ABSENT if value is None else f"{value:.{decimals}f}"


def shown_interval(interval: Sequence[float] | None, signed: bool = False) -> str:
    if interval is None:
        return ABSENT
    low, high = (f"{bound:+.2f}" if signed else f"{bound:.2f}" for bound in interval)
    return f"{low} – {high}"


def shown_metric(row: Row) -> str:
    return row["metric"] if row["headline"] == "official" else f"{row['metric']} ({row['headline']})"


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's cells under HEADS."""
    return (
        row["task"],
        str(row["n"]) if row["complete"] else f"{row['n']} of {row['n_expected']}",
        shown_metric(row),
        shown(row["value"]),
        shown_interval(row["interval"]),
        shown(row["ceiling"]),
        shown(row["original"]),
        shown(row["original_ceiling"]),
        shown(row["published"], decimals=1),
        shown(row["published_qwen_vl"], decimals=1),
    )


def aligned(heads: Sequence[str], body: Sequence[Sequence[str]], text_columns: frozenset[int] = TEXT_COLUMNS) -> str:
    """Return a table for a terminal; columns that are not text stand on the right."""
    widths = [max(len(line[column]) for line in (heads, *body)) for column in range(len(heads))]

    def line(of: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if column in text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(of, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(heads), line(["-" * width for width in widths]), *map(line, body)]) + "\n"


def text_table(rows: Sequence[Row]) -> str:
    return aligned(HEADS, [cells(row) for row in rows])


def markdown_table(rows: Sequence[Row]) -> str:
    return _markdown_lines(HEADS, [cells(row) for row in rows], TEXT_COLUMNS)


def csv_table(rows: Sequence[Row]) -> str:
    """Return full floats, the interval in two columns, and an empty cell where there is no figure."""
    stream = io.StringIO()
    names = list(table_row(_NO_RESULTS)) if not rows else list(rows[0])
    place = names.index("interval")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*names[:place], "interval_low", "interval_high", *names[place + 1 :]])
    for row in rows:
        values = list(row.values())
        writer.writerow([*values[:place], *(row["interval"] or (None, None)), *values[place + 1 :]])
    return stream.getvalue()


def json_table(rows: Sequence[Row]) -> str:
    return json_text({"complete": all(row["complete"] for row in rows), "tasks": list(rows)})


def latex_table(rows: Sequence[Row]) -> str:
    """Return a tabular that needs no package."""
    columns = "".join("l" if column in TEXT_COLUMNS else "r" for column in range(len(HEADS)))
    lines = [
        f"\\begin{{tabular}}{{{columns}}}",
        "\\hline",
        _latex_line(HEADS),
        "\\hline",
        *(_latex_line(cells(row)) for row in rows),
        "\\hline",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


FORMATS: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "text": text_table,
    "md": markdown_table,
    "csv": csv_table,
    "json": json_table,
    "tex": latex_table,
}
"""The table in each form that `--format` offers."""


def notes(results: Results) -> list[str]:
    """Return what a reader must know: the task's note, another size of set, grids, cut-off answers, a low ceiling."""
    sentences = [results["note"]] if results.get("note") else []
    data = results.get("dataset") or {}
    in_file, in_published = data.get("rows_in_file"), data.get("rows_in_published_set")
    if in_published is not None and in_file != in_published:
        sentences.append(
            f"The file has {in_file} questions and the published set {in_published}, so the scores do not compare."
        )
    if in_file is not None and results["n_expected"] < in_file:
        sentences.append(f"{results['n_expected']} of {in_file} questions were asked.")
    if grids := results.get("grids"):
        counted = ", ".join(f"{count} {grid}" for grid, count in sorted(grids.items(), key=lambda one: -one[1]))
        sentences.append(f"Images by rows and columns of their windows: {counted}.")
    cut_off = results.get("cut_off_at_max_new_tokens")
    if cut_off:
        limit = (results.get("settings") or {}).get("max_new_tokens")
        sentences.append(f"{cut_off} answers were cut off" + (f" at {limit} tokens." if limit else "."))
    if results.get("empty"):
        sentences.append(f"{results['empty']} answers are empty.")
    ceiling = results["scores"][results["headline"]].get("ceiling")
    if ceiling is not None and ceiling < 100.0:
        sentences.append(f"No answer can score more than {ceiling:.2f} on these references.")
    if not results["complete"]:
        counts = {kind: len(results.get(kind) or ()) for kind in ("missing", "duplicate", "foreign")}
        named = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        sentences.append(
            f"Incomplete: {results['n']} of {results['n_expected']} rows ({named or 'not accounted for'})."
        )
    return sentences


def part_rows(results: Results) -> list[tuple[str, ...]]:
    """Return the cells under PART_HEADS of each part of a task."""
    rows = []
    for name, parts in results.get("parts", {}).items():
        for part, of_part in parts.items():
            headline, original = (of_part["scores"].get(one, {}) for one in (results["headline"], "original"))
            figures = shown(headline["value"]), shown_interval(headline["interval"]), shown(headline["ceiling"])
            rows.append(
                (f"{results['task']}, {name}", part, str(of_part["rows"]), *figures, shown(original.get("value")))
            )
    return rows


def _markdown_lines(heads: Sequence[str], body: Sequence[Sequence[str]], text_columns: frozenset[int]) -> str:
    rule = ["---" if column in text_columns else "---:" for column in range(len(heads))]
    escaped = [[_markdown(cell) for cell in line] for line in body]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, rule, *escaped))


def markdown_summary(all_results: Sequence[Results]) -> str:
    """Return the table, that of the parts, and the notes under them."""
    blocks = [markdown_table([table_row(results) for results in all_results])]
    if of_parts := [row for results in all_results for row in part_rows(results)]:
        blocks.append(_markdown_lines(PART_HEADS, of_parts, PART_TEXT_COLUMNS))
    named = [(results["task"], note) for results in all_results for note in notes(results)]
    if named:
        blocks.append("".join(f"- {_markdown(task)}: {_markdown(note)}\n" for task, note in named))
    return "\n".join(blocks)


def write_summary(folder: Path, all_results: Sequence[Results]) -> None:
    """Write summary.json, .md, .csv and .tex, each whole."""
    rows = [table_row(results) for results in all_results]
    write_whole(folder / SUMMARY, json_table(rows))
    write_whole(folder / "summary.md", markdown_summary(all_results))
    write_whole(folder / "summary.csv", csv_table(rows))
    write_whole(folder / "summary.tex", latex_table(rows))


_MARKDOWN_ESCAPES = str.maketrans({mark: f"\\{mark}" for mark in "\\|`*_[]<>"} | {"\n": " "})
_LATEX_ESCAPES = str.maketrans(
    {mark: f"\\{mark}" for mark in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "–": "--", "\n": " "}
)


def _markdown(cell: str) -> str:
    return cell.translate(_MARKDOWN_ESCAPES)


def _latex_line(line: Sequence[str]) -> str:
    return " & ".join(cell.translate(_LATEX_ESCAPES) for cell in line) + r" \\"


_NO_RESULTS: Results = {
    "task": None, "n": 0, "n_expected": 0, "complete": True, "metric": None, "headline": "",
    "scores": {"": {"value": None}},
}  # fmt: skip
"""For the head of a CSV without rows."""
