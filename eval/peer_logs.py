"""Answers that other evaluators wrote, read as runs: scored by our metrics, with ceilings, intervals and paired tests.

    python -m eval.report logs/models__small                            # *_samples_<task>.jsonl of lmms-eval
    python -m eval.compare outputs/A/A_DocVQA_VAL.xlsx outputs/B/B_DocVQA_VAL.xlsx       # predictions of VLMEvalKit
    python -m eval.report logs/20261130_230140_samples_receipts.jsonl --metric anls      # a task that has no row here

What a log leaves out is not made up. Where it names no image, each question counts as a cluster of its own, and the
intervals are narrower than those of questions that share images. Nothing is written beside a log but a report.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.metrics import METRICS, metric_named, nearest, score_all
from eval.run_folder import RESULTS, Line, Run, TaskRun, open_run
from eval.score import item_of, score_table, with_row_scores

LMMS_EVAL, VLMEVALKIT = "lmms-eval", "VLMEvalKit"

TASK_METRICS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("docvqa_val", "docvqa_val_lite", "infovqa_val", "infovqa_val_lite"), ("anls", "official")),
    **dict.fromkeys(("chartqa", "chartqa_lite", "chartqa_test"), ("relaxed_accuracy", "official")),
    **dict.fromkeys(("gqa", "gqa_lite", "gqa_testdev_balanced"), ("gqa_accuracy", "official")),
    **dict.fromkeys(("textvqa_val", "vizwiz_vqa_val"), ("vqa_score", "evalai")),
    **dict.fromkeys(("ok_vqa_val2014", "vqav2_val"), ("vqa_score", "official")),
    **dict.fromkeys(("ai2d", "ai2d_test", "mmbench_dev_en", "mmbench_dev_en_v11"), ("choice_accuracy", "official")),
    **dict.fromkeys(("mmbench_en_dev", "mmbench_en_dev_lite"), ("choice_accuracy", "official")),
    **dict.fromkeys(("scienceqa", "scienceqa_img", "scienceqa_test"), ("choice_accuracy", "official")),
    **dict.fromkeys(("ocrvqa_test", "ocrvqa_testcore"), ("accuracy", "official")),
    **dict.fromkeys(("textcaps_val", "flickr30k_test"), ("cider", "official")),
    "ocrbench": ("ocrbench", "official"),
    **dict.fromkeys(("pope", "pope_random", "pope_pop", "pope_adv"), ("pope", "official")),
    **dict.fromkeys(("seedbench", "seedbench_lite", "seedbench_img"), ("seedbench", "official")),
}
"""Metric and headline variant of a task, by its name at either evaluator in small letters."""

LOGGED_METRICS = {"anls": ("anls", "official"), "relaxed_overall": ("relaxed_accuracy", "official")}
"""The same by a score that lmms-eval logs beside an answer, for tasks of the user's own."""

SAMPLE_FIELDS = {"doc_id": int, "target": str, "filtered_resps": str | list, "input": str}
"""What a line of a sample log of lmms-eval (0.6 and 0.7) must hold."""

SHEET_COLUMNS = ("index", "question", "answer", "prediction")
"""What a sheet of VLMEvalKit must hold."""

FAILURES = ("Failed to obtain answer", "[LMMS_EVAL_REQUEST_FAILED", "[LMMS_EVAL_BUDGET_EXCEEDED]")
"""What stands in the place of answers that an evaluator did not get."""

_SAMPLES = re.compile(r"(?P<date>.+)_samples_(?P<task>.+)\.jsonl")
_OPTIONS = "ABCDEFGHI"


@dataclass(frozen=True)
class PeerTask(TaskRun):
    """A task whose lines were read from another evaluator's log; its folder is the log."""

    read: tuple[Line, ...] = ()

    @property
    def lines(self) -> list[Line]:
        return list(self.read)

    population = None


def open_any_run(place: str | Path, metric: str | None = None) -> Run:
    """The run in a folder of ours, or in logs of lmms-eval or VLMEvalKit: a file, or the folder that holds them.

    Args:
        metric: of all tasks of others' logs, instead of those in `TASK_METRICS`.

    Raises:
        FileNotFoundError: nothing there that is a run.
        ValueError: a log of another form, a task without a metric, or a run of ours with another one than `metric`.
    """
    place = Path(place)
    if metric is not None and metric not in METRICS:
        raise ValueError(f"--metric {metric} is no metric; {nearest(metric, METRICS)}")
    # VLMEvalKit links to its latest sheets from the folder above theirs.
    found = {path.resolve(): path for path in sorted(_logs_in(place), reverse=True)} if place.is_dir() else {}
    logs = [place] if place.is_file() else sorted(found.values())
    if not logs or any(place.glob(f"*/{RESULTS}")):
        run = open_run(place)
        others = sorted({task.results["metric"] for task in run.tasks.values()} - {metric})
        if metric is not None and others:
            raise ValueError(f"--metric {metric} is for logs of other evaluators; {place} is scored by {others[0]}")
        return run
    tasks: dict[str, PeerTask] = {}
    for log in logs:
        task = _read_log(log, metric)
        if task.name in tasks:
            raise ValueError(f"{log} and {tasks[task.name].folder} are both of task {task.name}; name one of them")
        tasks[task.name] = task
    return Run(place, tasks, ())


def add_metric_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag by which a log's answers are scored with a metric of ours."""
    parser.add_argument("--metric", metavar="NAME", help="of logs of other evaluators (the task's)")


def _logs_in(folder: Path) -> Iterator[Path]:
    """The logs in a folder and those right below it; sheets that VLMEvalKit derives from a sheet are left out."""
    files = [*folder.glob("*"), *folder.glob("*/*")]
    sheets = [path for path in files if path.suffix in (".xlsx", ".tsv") and path.is_file()]
    stems = {(path.parent, path.stem) for path in sheets}
    for path in sheets:
        parts = path.stem.split("_")
        if not any((path.parent, "_".join(parts[:end])) in stems for end in range(1, len(parts))):
            yield path
    yield from (path for path in files if _SAMPLES.fullmatch(path.name))


def _read_log(path: Path, metric: str | None) -> PeerTask:
    if path.suffix in (".xlsx", ".tsv"):
        evaluator, task, (lines, own) = VLMEVALKIT, _task_of_sheet(path), _read_sheet(path)
    elif named := _SAMPLES.fullmatch(path.name):
        evaluator, task, (lines, own) = LMMS_EVAL, named["task"], _read_samples(path)
    else:
        raise ValueError(
            f"{path} is no log that is known: lmms-eval's are called DATE_samples_TASK.jsonl, and VLMEvalKit's "
            "MODEL_DATASET.xlsx or .tsv"
        )
    metric, headline = _choose_metric(path, task, metric, own)
    _refuse_unscorable(path, metric, lines)
    _refuse_failures(path, lines)
    has_images = all(line["image"] for line in lines)
    scored = [
        {
            **line,
            "image": line["image"] or f"not logged, row {line['row']}",
            "scores": score_all(metric, line["answer"], line["references"]),
        }
        for line in lines
    ]
    scored = with_row_scores(metric, scored)
    figures = [f"{name} {100 * value:.2f}" for name, value in own.items()]
    images = "" if has_images else " It names no images: each question is its own cluster."
    note = f"Read from the log of {evaluator}" + (f", whose own figures are {', '.join(figures)}." if figures else ".")
    results = {
        "task": task,
        "metric": metric,
        "headline": headline,
        "complete": True,
        "n": len(lines),
        "n_expected": len(lines),
        "scores": score_table(metric, scored),
        "note": note + images,
        "evaluator": evaluator,
    }
    return PeerTask(path, results, tuple(scored))


def _refuse_unscorable(path: Path, metric: str, lines: Sequence[Line]) -> None:
    """Raise ValueError for a log without references, or with a row that the metric cannot score."""
    row = metric_named(metric)
    # Some published rows have an empty reference; a split that is kept secret has no other.
    if not any(reference.strip() for line in lines for reference in line["references"]):
        raise ValueError(f"{path}: no row has a reference; only a split with answers can be scored")
    for line in lines:
        place, count = f"{path}: row {line['row']}", len(line["references"])
        if count < row.minimum_references:
            raise ValueError(
                f"{place} has {count} reference, and {metric} needs {row.minimum_references}; --metric accuracy does "
                "with one"
            )
        if fault := row.find_fault(item_of(line)):
            raise ValueError(f"{place}: {metric} cannot score it: {fault}; name another with --metric")


def _refuse_failures(path: Path, lines: Sequence[Line]) -> None:
    """Raise ValueError where a sentence about a failure stands in the place of an answer."""
    failed = [line for line in lines if line["answer"].startswith(FAILURES)]
    if failed:
        raise ValueError(
            f"{path}: {len(failed)} of {len(lines)} answers are none, first in row {failed[0]['row']} "
            f"({failed[0]['answer'][:60]!r}); ask them again with the evaluator that wrote the log"
        )


def _choose_metric(path: Path, task: str, metric: str | None, own: Mapping[str, float]) -> tuple[str, str]:
    if metric is not None:
        return metric, "official"
    if task.lower() in TASK_METRICS:
        return TASK_METRICS[task.lower()]
    for name, row in LOGGED_METRICS.items():
        if name in own:
            return row
    raise ValueError(f"{path}: no metric is known for task {task}; name one with --metric ({', '.join(METRICS)})")


def _line(
    row: int, question_id: Any, image: str, question: str, references: Sequence[str], answer: str
) -> dict[str, Any]:
    return {
        "row": row,
        "question_id": question_id,
        "image": image,
        "question": question,
        "references": list(references),
        "prompt": question,
        "answer": answer.strip(),
        "scores": {},
    }


def _references(text: str) -> list[str]:
    """The references in a text that Python wrote of a list of them, or the text as the only one."""
    if text.startswith(("[", "(")):
        try:
            read = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return [text]
        if isinstance(read, (list, tuple)) and read and all(isinstance(one, (str, int, float)) for one in read):
            return list(map(str, read))
    return [text]


# lmms-eval


def _read_samples(path: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The lines of a sample log, and the means of the scores that stand in it.

    Of options that were weighed the answer is the number of the likeliest, as the target is.
    """
    lines: dict[int, dict[str, Any]] = {}
    own: Counter[str] = Counter()
    with path.open("rb") as stream:
        for number, text in enumerate(stream, start=1):
            place = f"{path}:{number}"
            sample = _read_sample(text, place)
            row = sample["doc_id"]
            if row in lines:
                raise ValueError(
                    f"{place}: document {row} was there before; a log of several filters or runs is not read, "
                    "write that of one"
                )
            image = next(iter(sample.get("input_media") or ()), "")
            if image.startswith("data:"):
                image = f"logged image {hashlib.sha256(image.encode()).hexdigest()[:16]}"
            answer = _read_answer(sample["filtered_resps"], place)
            lines[row] = _line(row, row, image, sample["input"], _references(sample["target"]), answer)
            counts = sample.get("token_counts") or [None]
            if len(counts) == 1 and counts[0]:
                lines[row]["tokens"] = counts[0].get("output_tokens")
            own.update({name: value for name, value in sample.items() if _is_score(name, value)})
    if not lines:
        raise ValueError(f"{path} is empty")
    return [lines[row] for row in sorted(lines)], {name: value / len(lines) for name, value in own.items()}


def _is_score(name: str, value: Any) -> bool:
    return name != "doc_id" and isinstance(value, (int, float)) and math.isfinite(value)


def _read_sample(text: bytes, place: str) -> Mapping[str, Any]:
    try:
        sample = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{place} is not JSON ({error}); the log was cut short") from error
    for name, kind in SAMPLE_FIELDS.items():
        if not isinstance(sample, dict) or not isinstance(sample.get(name), kind):
            raise ValueError(
                f"{place} has no {name!r} as sample logs of lmms-eval 0.6 and 0.7 have it; write the log again "
                "with one of these"
            )
    return sample


def _read_answer(answers: str | list[Any], place: str) -> str:
    if isinstance(answers, str):
        return answers
    try:
        losses = [float(loss) for loss, _ in answers]
    except (TypeError, ValueError):
        losses = []
    if not losses or any(map(math.isnan, losses)):
        raise ValueError(f"{place}: filtered_resps is neither an answer nor (loss, truth) of options")
    return str(losses.index(min(losses)))


# VLMEvalKit


def _task_of_sheet(path: Path) -> str:
    """The data set in the name MODEL_DATASET of a sheet, which lies in a folder of the model's name or below one."""
    for parent in path.absolute().parents:
        if path.stem.startswith(f"{parent.name}_") and parent.name:
            return path.stem.removeprefix(f"{parent.name}_")
    known = [name for name in TASK_METRICS if path.stem.lower().endswith(f"_{name}")]
    return path.stem[-max(map(len, known)) :] if known else path.stem


def _read_sheet(path: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    rows = _read_rows(path)
    lines = []
    for number, row in enumerate(rows):
        options = [f"{letter}. {row[letter]}" for letter in _OPTIONS if row.get(letter)]
        references = _references(row["answer"])
        if row["answer"] in tuple(_OPTIONS) and row.get(row["answer"]):
            references = [row["answer"], row[row["answer"]]]
        question = "\n".join([row["question"], *options])
        lines.append(_line(number, row["index"], row.get("image_path", ""), question, references, row["prediction"]))
    return lines, {}


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a sheet, every cell as a text."""
    import pandas

    try:
        if path.suffix == ".xlsx":
            table = pandas.read_excel(path, dtype=str, keep_default_na=False)
        else:
            table = pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except ImportError as error:
        raise ValueError(
            f"{path} needs openpyxl to be read: pip install openpyxl, or have VLMEvalKit write .tsv (PRED_FORMAT=tsv)"
        ) from error
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no sheet that can be read ({error})") from error
    absent = [name for name in SHEET_COLUMNS if name not in table]
    if absent:
        raise ValueError(
            f"{path} has no column {absent[0]!r} (it has {', '.join(map(str, table))}); a sheet of predictions, as "
            f"VLMEvalKit wrote in August 2026, has {', '.join(SHEET_COLUMNS)}"
        )
    if table.empty:
        raise ValueError(f"{path} has no row")
    return table.to_dict("records")
