"""The two files a task of the published evaluator leaves, under its names and in its form, for scripts that read them.

`<task>.json` is a list with one object an answer, `<task>.txt` two lines: the task and its score. Kept as they are:
the score is a percentage with two decimals for the VQA score and a share from 0 to 1 for everything else, and a
question's id is called `question_id`, `questionId` or `image`, or is left out, depending on the task. The score is that
of the `original` variant; a task that has none shows its headline.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.run_folder import Line, write_whole
from eval.tables import Results


@dataclass(frozen=True)
class Form:
    """How a task's answers were written: what the id is called, whether the references are there, the indent."""

    id_name: str | None = "questionId"
    annotation: bool = True
    indent: int | None = 2


_OF_METRIC = {"vqa_score": Form("question_id", annotation=False), "anls": Form(indent=None)}
_OF_TASK = {
    "chartqa": Form(id_name=None),
    "ai2diagram_test": Form("image"),
    "WTQ": Form("image"),
    "deepform": Form("image"),
    "KLC": Form("image"),
}


def published_form(results: Results) -> Form:
    return _OF_TASK.get(results["task"]) or _OF_METRIC.get(results["metric"]) or Form()


def answers_text(results: Results, lines: Sequence[Line]) -> str:
    """Content of `<task>.json`."""
    form = published_form(results)

    def entry(line: Line) -> dict[str, Any]:
        identity = {} if form.id_name is None else {form.id_name: line["question_id"]}
        references = {"annotation": line["references"]} if form.annotation else {}
        return {"image_path": line["image"], **identity, "answer": line["answer"], **references}

    return json.dumps([entry(line) for line in lines], ensure_ascii=False, indent=form.indent)


def score_text(results: Results, lines: Sequence[Line]) -> str:
    """Content of `<task>.txt`."""
    variant = "original" if "original" in results["scores"] else results["headline"]
    if lines and all(variant in line["scores"] for line in lines):
        # From the lines: dividing the percentage by 100 would change the last digits.
        share = sum(line["scores"][variant] for line in lines) / len(lines)
    else:
        percent = results["scores"][variant]["value"]
        share = None if percent is None else percent / 100.0
    if share is not None and results["metric"] == "vqa_score":
        share = round(100.0 * share, 2)
    return f"{results['task']}\n{share}\n"


def write_published_files(folder: Path, results: Results, lines: Sequence[Line]) -> None:
    """Write both beside the task's own folder, each whole."""
    write_whole(folder / f"{results['task']}.json", answers_text(results, lines))
    write_whole(folder / f"{results['task']}.txt", score_text(results, lines))
