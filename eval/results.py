"""What a run leaves behind: predictions.jsonl and results.json a task, and the summary of the run.

Every file is written whole or not at all. Scores in predictions are between 0 and 1; in results and tables they are
percentages. Nothing in these files depends on when, on how many processes or in how many starts the answers were made;
that is what timing.jsonl is for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.metrics import score_all
from eval.run_folder import JOURNAL, PREDICTIONS, RESULTS, SUMMARY, json_text, lines_text, write_whole
from eval.tasks import Task
from monkey.data.records import Question

__all__ = ["JOURNAL", "PREDICTIONS", "RESULTS", "SUMMARY", "TIMING", "write_json", "write_lines", "write_whole"]

TIMING = "timing.jsonl"

MOST_NAMED = 10
"""Rows that a message names before it only counts the rest."""


def write_json(path: Path, content: Any) -> None:
    write_whole(path, json_text(content))


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    write_whole(path, lines_text(rows))


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Say which folder could not be written, where the error does not, and that the answers are kept."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise
        raise OSError(
            f"{folder}: results cannot be written ({error.strerror}); make room and give the same command again, the "
            "answers are kept"
        ) from error


def prediction_line(
    task: Task, question: Question, image_sha256: str, prompt: str, entry: Mapping[str, Any]
) -> dict[str, Any]:
    """One line of predictions.jsonl; `answer` is the stripped text, which is what every variant scores."""
    answer = entry["raw"].strip()
    return {
        "row": question.row,
        "question_id": question.question_id,
        "image": str(question.image),
        "image_sha256": image_sha256,
        "question": question.question,
        "references": list(question.answers),
        "prompt": prompt,
        "raw": entry["raw"],
        "answer": answer,
        "tokens": entry["tokens"],
        "stop": entry["stop"],
        "scores": score_all(task.metric, answer, question.answers),
        **({"more": dict(question.more)} if question.more else {}),
    }


def published_scores(task: Task) -> dict[str, Any] | None:
    return None if task.published is None else asdict(task.published)


def incompleteness(results: Mapping[str, Any]) -> list[str]:
    """Sentences on the rows of a task that were not answered exactly once; none when all were."""
    task = results["task"]
    failures = results["failed"]
    sentences = [f"{task}: {failure['reason']}" for failure in failures[:MOST_NAMED]]
    if len(failures) > MOST_NAMED:
        sentences.append(f"{task}: {len(failures)} questions could not be asked, of which {MOST_NAMED} are named")
    for kind, what in (
        ("missing", "not answered"),
        ("duplicate", "answered twice and differently (--repair asks them again and keeps the others)"),
        ("foreign", "answered without being asked (row numbers or ids)"),
    ):
        rows = results[kind]
        if rows:
            counted = Counter(map(str, rows))
            named = ", ".join(list(counted)[:MOST_NAMED])
            more = f" and {len(counted) - MOST_NAMED} more" if len(counted) > MOST_NAMED else ""
            sentences.append(f"{task}: {len(rows)} of {results['n_expected']} questions {what}: {named}{more}")
    return sentences


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(content, ensure_ascii=False) + "\n")


def throughput(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What asking took: questions, different images, tokens; seconds of the process that was longest at it; rates.

    Figures of the backends are summed over processes; those called `peak_…` are the largest.
    """
    seconds: Counter[int] = Counter()
    totals = dict.fromkeys(("questions", "images", "tokens"), 0)
    work: dict[str, float] = {}
    for report in reports:
        seconds[report["rank"]] += report["seconds"]
        totals = {name: total + report[name] for name, total in totals.items()}
        for name, value in report["work"].items():
            work[name] = max(work.get(name, 0), value) if name.startswith("peak_") else work.get(name, 0) + value
    longest = max(seconds.values(), default=0.0)
    rates = {f"{name}_per_second": round(totals[name] / longest, 3) if longest else None for name in totals}
    return {**totals, "seconds": round(longest, 3), **rates, "processes": len(seconds), "work": work}


def shown_throughput(figures: Mapping[str, Any], failed: int = 0) -> str:
    """The figures in a sentence; shares of the stages, padding and memory where the backend gives them.

    `failed` counts the questions that could not be asked.
    """
    if not figures["questions"]:
        why = f"none of the {failed:,} that were left could be asked" if failed else "the answers were there"
        return f"asked no question: {why}"
    work = figures["work"]
    parts = [f"{figures[f'{name}_per_second']:.1f} {name}/s" for name in ("questions", "images", "tokens")]
    stages = {name.removesuffix("_seconds"): value for name, value in work.items() if name.endswith("_seconds")}
    if total := sum(stages.values()):
        parts += [f"{name} {value / total:.0%}" for name, value in stages.items()]
    if work.get("prefill_tokens"):
        parts.append(f"padding {work.get('padding_tokens', 0) / work['prefill_tokens']:.0%} of the prompts")
    if "peak_bytes" in work:
        parts.append(f"{work['peak_bytes'] / 2**30:.1f} GiB at most")
    return f"asked {figures['questions']} questions in {figures['seconds']:.1f} s: {', '.join(parts)}"
