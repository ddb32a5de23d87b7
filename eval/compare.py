"""Compare two runs, question by question.

    python -m eval.compare result/A result/B
    python -m eval.compare result/A result/B --tasks textvqa_val,docvqa_test --variant original
    python -m eval.compare result/A result/B --json
    python -m eval.compare A_samples_docvqa_val.jsonl B_samples_docvqa_val.jsonl      # logs of lmms-eval or VLMEvalKit

Differences are B minus A in percentage points, over the rows of both. Rows are paired, and the images, not the
questions, are drawn and swapped: the interval is of a bootstrap clustered by image, `p` of a sign-flip permutation
test, `p (Holm)` the same after Holm's correction over the tasks, `McNemar` its exact test where scores are 0 or 1 (it
takes questions as independent). `detectable` is the smallest true difference that such a comparison finds four times of
five at the 5 % level.

Runs whose rows differ are refused. Exit status 2 for that and for a mistake in the command or the runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from eval.peer_logs import add_metric_flag, open_any_run
from eval.run_folder import Line, Run, TaskRun, json_text
from eval.score import comma_list, exit_status, parser_of, units_of
from eval.statistics import DRAWS, LEVEL, PERMUTATIONS, SEED, Difference, difference, holm
from eval.tables import ABSENT, aligned, shown, shown_interval

HEADS = ("task", "n", "A", "B", "B - A", "95 % interval", "p", "p (Holm)", "McNemar", "won/lost/tied", "detectable")

SIGNIFICANT = 1.0 - LEVEL
MARK = "*"

_ASKED = ("question_id", "question", "references", "image", "image_sha256", "prompt")
"""What must agree between two lines of one row, in the order in which a difference is named."""


@dataclass(frozen=True)
class TaskComparison:
    """A task of two runs. Scores are from 0 to 1; `p_holm` is corrected over the tasks compared together."""

    first: TaskRun
    second: TaskRun
    variant: str
    value_first: float
    value_second: float
    difference: Difference
    p_holm: float = 1.0

    @property
    def name(self) -> str:
        return self.first.name

    @property
    def is_significant(self) -> bool:
        return self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """Two runs: their tasks in common, and the names of those that only one has."""

    first: Run
    second: Run
    tasks: tuple[TaskComparison, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def compare_runs(
    first: Run,
    second: Run,
    names: Sequence[str] | None = None,
    variant: str | None = None,
    any_prompt: bool = False,
) -> Comparison:
    """Pair the tasks that both runs have, or those named.

    Args:
        variant: of the metric; None for each task's headline.
        any_prompt: compare even if the questions were put in other words.

    Raises:
        ValueError: no task in common, a named one that a run lacks, or rows that differ.
    """
    pairs = _pair_tasks(first, second, names)
    for one, other in pairs:
        check_same_rows(one, other, any_prompt)
    compared = [_compare_task(one, other, variant) for one, other in pairs]
    corrected = holm([one.difference.p_value for one in compared])
    return Comparison(
        first,
        second,
        tuple(replace(one, p_holm=p_value) for one, p_value in zip(compared, corrected, strict=True)),
        tuple(name for name in first.tasks if name not in second.tasks and name != pairs[0][0].name),
        tuple(name for name in second.tasks if name not in first.tasks and name != pairs[0][1].name),
    )


def _pair_tasks(first: Run, second: Run, names: Sequence[str] | None) -> list[tuple[TaskRun, TaskRun]]:
    """Return the tasks of two runs by their names; two evaluators may call the only task of each otherwise."""
    if names is None:
        names = [name for name in first.tasks if name in second.tasks]
        if not names:
            ones, others = list(first.tasks.values()), list(second.tasks.values())
            if len(ones) == len(others) == 1 and not _are_of_one_evaluator(ones[0], others[0]):
                return [(ones[0], others[0])]
            raise ValueError(
                f"no task in common: {first.folder} has {', '.join(first.tasks)} and {second.folder} "
                f"{', '.join(second.tasks)}"
            )
    return list(zip(first.chosen(names), second.chosen(names), strict=True))


def _are_of_one_evaluator(first: TaskRun, second: TaskRun) -> bool:
    return first.results.get("evaluator") == second.results.get("evaluator")


def check_same_rows(first: TaskRun, second: TaskRun, any_prompt: bool = False) -> None:
    """Refuse two runs of a task that were not asked the same.

    Raises ValueError that says what differs, in how many rows, and in which first.
    """
    name = first.name
    if first.results["metric"] != second.results["metric"]:
        raise ValueError(
            f"{name}: scored by {first.results['metric']} in {first.folder} and {second.results['metric']} in "
            f"{second.folder}; they do not compare"
        )
    ones, others = ({line["row"]: line for line in task.lines} for task in (first, second))
    for task, missing in ((second, sorted(ones.keys() - others.keys())), (first, sorted(others.keys() - ones.keys()))):
        if missing:
            line = (ones if task is second else others)[missing[0]]
            raise ValueError(
                f"{name}: {len(missing)} of {len(ones.keys() | others.keys())} rows are not in {task.folder}, first "
                f"row {line['row']} (question_id {line['question_id']!r}); runs compare only over the same rows"
            )
    if not ones:
        raise ValueError(f"{name}: neither {first.folder} nor {second.folder} has an answer to compare")
    # Each evaluator numbers and words questions in its own way; the references are the data set's.
    fields = _ASKED if _are_of_one_evaluator(first, second) else ("references",)
    for field in (field for field in fields if field != "prompt" or not any_prompt):
        pairs = {row: (_asked(ones[row], field), _asked(others[row], field)) for row in ones}
        # Lines of runs before the image's hash was kept have None.
        differing = [row for row, (one, other) in pairs.items() if one != other and None not in (one, other)]
        if differing:
            row = differing[0]
            one, other = map(_excerpt, pairs[row])
            raise ValueError(
                f"{name}: {field} differs in {len(differing)} of {len(ones)} rows, first in row {row} (question_id "
                f"{ones[row]['question_id']!r}): {one} in {first.folder} and {other} in {second.folder}"
                + ("; --any-prompt compares all the same" if field == "prompt" else "")
            )


def _asked(line: Line, field: str) -> Any:
    # The folder of the images may be another one on another machine.
    return PurePath(line["image"]).name if field == "image" else line.get(field)


def _excerpt(value: Any, longest: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def _compare_task(first: TaskRun, second: TaskRun, variant: str | None) -> TaskComparison:
    chosen = first.results["headline"] if variant is None else variant
    for task in (first, second):
        if chosen not in task.results["scores"]:
            raise ValueError(
                f"{task.folder} has no variant {chosen!r}; it has {', '.join(task.results['scores'])} (python -m "
                "eval.score writes all that the metric has)"
            )
    if variant is None and chosen != second.results["headline"]:
        raise ValueError(
            f"{first.name}: the headline is {chosen} in {first.folder} and {second.results['headline']} in "
            f"{second.folder}; choose with --variant"
        )
    ones, others = (units_of(task.results["metric"], chosen, task.lines) for task in (first, second))
    return TaskComparison(first, second, chosen, ones.value, others.value, difference(ones, others))


def comparison_row(one: TaskComparison) -> dict[str, Any]:
    """Return a task as JSON: percentages and percentage points, p values as they are."""
    found = one.difference
    return {
        "task": one.name,
        "metric": one.first.results["metric"],
        "variant": one.variant,
        "n": found.units,
        "clusters": found.clusters,
        "a": 100.0 * one.value_first,
        "b": 100.0 * one.value_second,
        "difference": 100.0 * found.value,
        "standard_error": _percent(found.standard_error),
        "interval": None if found.interval is None else [*map(_percent, found.interval)],
        "p": found.p_value,
        "p_method": f"sign-flip permutation by image, {found.p_method}",
        "p_holm": one.p_holm,
        "mcnemar": found.mcnemar,
        "wins": found.wins,
        "losses": found.losses,
        "ties": found.ties,
        "detectable": _percent(found.detectable),
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def shown_p(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def shown_difference(value: float) -> str:
    return f"{value:+.2f}"


def comparison_text(comparison: Comparison) -> str:
    """Return the table, with a mark at the differences that are significant after Holm's correction, and a legend."""
    body = []
    for one in comparison.tasks:
        row = comparison_row(one)
        variant = "" if one.variant == "official" else f" ({one.variant})"
        body.append(
            (
                one.name + variant,
                str(row["n"]),
                shown(row["a"]),
                shown(row["b"]),
                shown_difference(row["difference"]) + (MARK if one.is_significant else " "),
                shown_interval(row["interval"], signed=True),
                shown_p(row["p"]),
                shown_p(row["p_holm"]),
                shown_p(row["mcnemar"]),
                f"{row['wins']}/{row['losses']}/{row['ties']}",
                shown(row["detectable"]),
            )
        )
    number = len(comparison.tasks)
    tasks = "one task" if number == 1 else f"{number} tasks"
    lines = [
        f"A  {comparison.first.folder}",
        f"B  {comparison.second.folder}",
        "",
        aligned(HEADS, body, frozenset((0,))),
        f"{MARK} significant at 5 % after Holm's correction over {tasks}; won: B scores more",
    ]
    for letter, names in (("A", comparison.only_first), ("B", comparison.only_second)):
        if names:
            lines.append(f"only in {letter}, not compared: {', '.join(names)}")
    return "\n".join(lines) + "\n"


def comparison_json(comparison: Comparison) -> str:
    return json_text(
        {
            "a": str(comparison.first.folder),
            "b": str(comparison.second.folder),
            "level": LEVEL,
            "draws": DRAWS,
            "permutations": PERMUTATIONS,
            "seed": SEED,
            "tasks": [comparison_row(one) for one in comparison.tasks],
            "only_in_a": list(comparison.only_first),
            "only_in_b": list(comparison.only_second),
        }
    )


def arguments() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, "eval.compare")
    parser.add_argument("first", metavar="A", help="folder of a run, or a log of lmms-eval or VLMEvalKit")
    parser.add_argument("second", metavar="B", help="folder of the run that is compared with it")
    parser.add_argument("--tasks", type=comma_list, help="only these tasks; commas between (all in common)")
    parser.add_argument("--variant", help="of the metrics (each task's headline)")
    parser.add_argument("--any-prompt", action="store_true", help="compare even if the prompts differ")
    add_metric_flag(parser)
    parser.add_argument("--json", action="store_true", help="print JSON with full floats")
    return parser


def compare(options: argparse.Namespace) -> int:
    comparison = compare_runs(
        open_any_run(options.first, options.metric),
        open_any_run(options.second, options.metric),
        options.tasks,
        options.variant,
        options.any_prompt,
    )
    print((comparison_json if options.json else comparison_text)(comparison), end="")
    return 0


def main(command: Sequence[str] | None = None) -> int:
    return exit_status(compare, arguments().parse_args(command))


if __name__ == "__main__":
    sys.exit(main())
