"""Score the stored answers of a run again, without a model.

    python -m eval.score result/NAME                    # every task: predictions, results and summaries written again
    python -m eval.score result/NAME --check            # writes nothing; exit status 1 when a stored score differs
    python -m eval.score result/NAME --format md        # how the table is printed: text, md, csv, json, tex

Each file is written whole, after everything was computed. Answers, prompts and accounts stay as they are; scores,
intervals and ceilings are those of the metrics as they stand now. Exit status 2 for a mistake in the command or the
run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.corpus_scores import with_row_scores
from eval.metrics import metric_named, score_all
from eval.parts import part_scores
from eval.run_folder import LOCK, RESULTS, Run, TaskRun, open_run, write_published_files, write_task
from eval.score_table import score_table
from eval.tables import FORMATS, table_row, write_summary
from monkey.cli import ArgumentParser, run_program
from monkey.journal import hold

SAME, DIFFERENT = 0, 1

_TOLERANCE = 1e-9
"""Scores nearer than this are equal; sums may have been added in another order."""


@dataclass(frozen=True)
class Rescored:
    """A task with its scores computed anew."""

    stored: TaskRun
    lines: list[dict[str, Any]]
    results: dict[str, Any]


def rescore(task: TaskRun) -> Rescored:
    """Score every answer of a task with its metric as it stands now.

    Raises ValueError when the metric, or its headline variant, is no more.
    """
    metric, headline = task.results["metric"], task.results["headline"]
    place = task.folder / RESULTS
    try:
        variants = metric_named(metric).all_variants
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if headline not in variants:
        raise ValueError(f"{place}: metric {metric} has no variant {headline!r} any more; it has {', '.join(variants)}")
    lines = [{**line, "scores": score_all(metric, line["answer"], line["references"])} for line in task.lines]
    lines = with_row_scores(metric, lines, task.population)
    scores = score_table(metric, lines, task.population)
    parts = part_scores(metric, list(task.results.get("parts", {})), lines, task.population)
    return Rescored(task, lines, {**task.results, "scores": scores, **({"parts": parts} if parts else {})})


def rescored_run(run: Run, names: Sequence[str] | None = None) -> list[Rescored]:
    return [rescore(task) for task in run.chosen(names)]


def differences(rescored: Rescored) -> list[str]:
    """Sentences on what the stored scores of a task have that scoring it again does not give; none when they agree."""
    stored, name = rescored.stored, rescored.stored.name
    sentences = []
    for variant, row in rescored.results["scores"].items():
        kept = stored.results["scores"].get(variant)
        if kept is None:
            sentences.append(f"{name}: variant {variant} is not stored")
            continue
        for figure in ("value", "ceiling", "standard_error"):
            if figure in kept and not _close(kept[figure], row[figure]):
                sentences.append(f"{name}: {figure} of {variant} is {kept[figure]} as stored and {row[figure]} now")
        pairs = zip(stored.lines, rescored.lines, strict=True)
        changed = [
            (old, new) for old, new in pairs if not _close(old["scores"].get(variant), new["scores"].get(variant))
        ]
        if changed:
            old, new = changed[0]
            sentences.append(
                f"{name}: {len(changed)} of {len(rescored.lines)} rows score differently by {variant}, first row "
                f"{old['row']} (question_id {old['question_id']!r}): {old['scores'].get(variant)} as stored, "
                f"{new['scores'].get(variant)} now"
            )
    gone = [variant for variant in stored.results["scores"] if variant not in rescored.results["scores"]]
    return [*sentences, *(f"{name}: variant {variant} is stored and is no more" for variant in gone)]


def write_rescored(run: Run, rescored: Sequence[Rescored]) -> list[Mapping[str, Any]]:
    """Write tasks and the run's summaries; returns the results of all its tasks, those not scored again as stored."""
    for one in rescored:
        write_task(one.stored.folder, one.results, one.lines)
        write_published_files(run.folder, one.results, one.lines)
    anew = {one.stored.name: one.results for one in rescored}
    results = [anew.get(name, task.results) for name, task in run.tasks.items()]
    write_summary(run.folder, results)
    return results


def parser_of(documentation: str | None, program: str) -> ArgumentParser:
    return ArgumentParser(
        prog=f"python -m {program}",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def comma_list(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return names


def exit_status(work: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Return what `work` returns; what a user has wrong is one sentence."""
    return run_program(lambda: work(options))


def arguments() -> ArgumentParser:
    parser = parser_of(__doc__, "eval.score")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--tasks", type=comma_list, help="only these tasks; commas between")
    parser.add_argument("--check", action="store_true", help="compare with what is stored and write nothing")
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the printed table (%(default)s)")
    return parser


def score_again(options: argparse.Namespace) -> int:
    run = open_run(options.run)
    rescored = rescored_run(run, options.tasks)
    if options.check:
        sentences = [sentence for one in rescored for sentence in differences(one)]
        for sentence in sentences:
            print(sentence)
        if not sentences:
            print(f"{run.folder}: the stored scores of {len(rescored)} tasks are those of the metrics as they stand")
        return DIFFERENT if sentences else SAME
    with hold(run.folder / LOCK, "wait for it to end"):
        results = write_rescored(run, rescored)
    print(FORMATS[options.format]([table_row(one) for one in results]), end="")
    return SAME


def main(command: Sequence[str] | None = None) -> int:
    return exit_status(score_again, arguments().parse_args(command))


def _close(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else abs(one - other) <= _TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
