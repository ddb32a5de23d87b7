"""What a run leaves behind: predictions.jsonl and results.json a task, and one summary of the run.

Every file is written whole or not at all. Scores in predictions are between 0 and 1; in results and tables they are
percentages.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.metrics import METRICS, best_answer, score_all
from eval.tasks import Task
from monkey.data.records import Question

MOST_NAMED = 10
"""Rows that a message names before it only counts the rest."""

PREDICTIONS, RESULTS, JOURNAL, SUMMARY = "predictions.jsonl", "results.json", "journal.jsonl", "summary.json"


def write_whole(path: Path, text: str) -> None:
    """Replace a file by `text`, so that a reader sees the old one or the new one and never a part."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def prediction_line(task: Task, question: Question, prompt: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """One line of predictions.jsonl; `answer` is the stripped text, which is what every variant scores."""
    answer = entry["raw"].strip()
    return {
        "row": question.row,
        "question_id": question.question_id,
        "image": str(question.image),
        "question": question.question,
        "references": list(question.answers),
        "prompt": prompt,
        "raw": entry["raw"],
        "answer": answer,
        "tokens": entry["tokens"],
        "stop": entry["stop"],
        "scores": score_all(task.metric, answer, question.answers),
    }


def score_table(task: Task, questions: Sequence[Question], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every variant of the task's metric in percent, over the answered rows.

    `ceiling` is what the best reference of each row scores when it is given as the answer: a variant whose ceiling is
    under 100 cannot be reached on these data, or is broken for them. `value` is None when nothing was answered.
    """
    references = {question.row: question.answers for question in questions}
    table = {}
    for name, variant in METRICS[task.metric].variants.items():
        scores = [line["scores"][name] for line in lines]
        ceilings = [best_answer(task.metric, name, references[line["row"]])[1] for line in lines]
        table[name] = {
            "value": _percent(scores),
            "n": len(scores),
            "ceiling": _percent(ceilings),
            "meaning": variant.meaning,
        }
    return table


def published_scores(task: Task) -> dict[str, Any] | None:
    return None if task.published is None else asdict(task.published)


def summary_row(results: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a task in summary.json and in the printed table."""
    headline = results["scores"][results["headline"]]
    original = results["scores"].get("original")
    return {
        "task": results["task"],
        "n": results["n"],
        "n_expected": results["n_expected"],
        "complete": results["complete"],
        "metric": results["metric"],
        "headline": results["headline"],
        "value": headline["value"],
        "ceiling": headline["ceiling"],
        "original": None if original is None else original["value"],
        "published": None if results["published"] is None else results["published"]["monkey"],
    }


def summary_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table a run ends with: one line a task, percentages with two decimals."""
    heads = ("task", "n", "metric", "score", "ceiling", "original", "published")
    body = [
        (
            row["task"],
            str(row["n"]) if row["complete"] else f"{row['n']} of {row['n_expected']}",
            row["metric"] if row["headline"] == "official" else f"{row['metric']} ({row['headline']})",
            _shown(row["value"]),
            _shown(row["ceiling"]),
            _shown(row["original"]),
            _shown(row["published"], decimals=1),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (heads, *body)) for column in range(len(heads))]
    text_columns = {0, 2}

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if column in text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(heads), line(["-" * width for width in widths]), *map(line, body)])


def incompleteness(results: Mapping[str, Any]) -> list[str]:
    """Sentences on the rows of a task that were not answered exactly once; none when all were."""
    task = results["task"]
    sentences = [f"{task}: {failure['reason']}" for failure in results["failed"][:MOST_NAMED]]
    for kind, what in (
        ("missing", "not answered"),
        ("duplicate", "answered more than once"),
        ("foreign", "answered without being asked (row numbers)"),
    ):
        rows = results[kind]
        if rows:
            counted = Counter(map(str, rows))
            named = ", ".join(list(counted)[:MOST_NAMED])
            more = f" and {len(counted) - MOST_NAMED} more" if len(counted) > MOST_NAMED else ""
            sentences.append(f"{task}: {len(rows)} of {results['n_expected']} questions {what}: {named}{more}")
    return sentences


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Sentences for the reader of the scores: the row's note, another size of set, cut-off answers, a low ceiling."""
    task, data, headline = results["task"], results["dataset"], results["scores"][results["headline"]]
    sentences = [f"{task}: {results['note']}"] if results["note"] else []
    if data["rows_in_published_set"] not in (None, data["rows_in_file"]):
        sentences.append(
            f"{task}: {data['file']} has {data['rows_in_file']} questions and the published set "
            f"{data['rows_in_published_set']}, so the scores do not compare"
        )
    if results["settings"]["limit"] is not None and results["n_expected"] < data["rows_in_file"]:
        sentences.append(f"{task}: only the first {results['n_expected']} of {data['rows_in_file']} questions asked")
    if results["cut_off_at_max_new_tokens"]:
        sentences.append(
            f"{task}: {results['cut_off_at_max_new_tokens']} answers were cut off at "
            f"{results['settings']['max_new_tokens']} tokens"
        )
    if headline["ceiling"] is not None and headline["ceiling"] < 100.0:
        sentences.append(f"{task}: no answer can score more than {headline['ceiling']:.2f} on these references")
    return sentences


def _percent(scores: Sequence[float]) -> float | None:
    return 100.0 * sum(scores) / len(scores) if scores else None


def _shown(value: float | None, decimals: int = 2) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
