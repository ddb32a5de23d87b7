"""A run folder written by hand, without a model or a runner, for the tests of what comes after a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eval.metrics import score_all
from eval.run_folder import PREDICTIONS, RESULTS
from eval.score import score_table, with_row_scores

QUESTIONS_AN_IMAGE = 2


def line(row: int, answer: str, references: Sequence[str], metric: str = "accuracy", **changes: Any) -> dict[str, Any]:
    """A line of predictions.jsonl; two questions share an image."""
    content = {
        "row": row,
        "question_id": 100 + row,
        "image": f"images/{row // QUESTIONS_AN_IMAGE}.png",
        "image_sha256": f"{row // QUESTIONS_AN_IMAGE:064x}",
        "question": f"What is number {row}?",
        "references": list(references),
        "prompt": f"<img></img> What is number {row}? Answer: ",
        "raw": f" {answer}",
        "answer": answer,
        "tokens": 1,
        "stop": "end",
        **changes,
    }
    return {**content, "scores": score_all(metric, content["answer"], content["references"]), **changes}


def results(task: str, metric: str, headline: str, lines: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The content of results.json for these lines."""
    return {
        "task": task,
        "metric": metric,
        "headline": headline,
        "complete": True,
        "n": len(lines),
        "n_expected": len(lines),
        "scores": score_table(metric, lines),
        "published": {"monkey": 65.1, "qwen_vl": 60.2, "source": "somewhere"},
        "note": "",
        "prompt": {"name": "as-trained", "text": "<img></img> {question} Answer: ", "sha256": "0" * 64},
        "checkpoint": {"path": "a/checkpoint", "fingerprint": "one"},
        "settings": {"max_new_tokens": 10, "limit": None},
        **changes,
    }


def write_task(
    run: Path,
    task: str,
    answers: Sequence[tuple[str, Sequence[str]]],
    metric: str = "accuracy",
    headline: str = "official",
    changes: dict[int, dict[str, Any]] | None = None,
    **of_results: Any,
) -> Path:
    """Write a task of a run from (answer, references) pairs; `changes` alters lines by their row."""
    lines = [
        line(row, **{"answer": answer, "references": references, "metric": metric, **(changes or {}).get(row, {})})
        for row, (answer, references) in enumerate(answers)
    ]
    lines = with_row_scores(metric, lines)
    folder = run / task
    folder.mkdir(parents=True)
    (folder / PREDICTIONS).write_text(
        "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines), encoding="utf-8"
    )
    content = results(task, metric, headline, lines, **of_results)
    (folder / RESULTS).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return run


def write_pictures(root: Path, count: int, colour: str = "green") -> None:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (900, 600), colour).save(root / "images" / f"{number}.png")


def answers(right: Sequence[bool]) -> list[tuple[str, list[str]]]:
    """(answer, references) pairs that are right or wrong as told."""
    return [(f"thing {row}" if good else "no idea", [f"thing {row}", "x"]) for row, good in enumerate(right)]
