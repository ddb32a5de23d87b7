"""Scores of the answers of a run: of rows, of all together, and of parts; and a stored run scored again.

    python -m eval.score result/NAME                    # every task: predictions, results and summaries written again
    python -m eval.score result/NAME --check            # writes nothing; exit status 1 when a stored score differs
    python -m eval.score result/NAME --format md        # how the table is printed: text, md, csv, json, tex

Scoring again needs no model. Each file is written whole, after everything was computed. Answers, prompts and accounts
stay as they are; scores, intervals and ceilings are those of the metrics as they stand now. Exit status 2 for a mistake
in the command or the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.metrics import best_answer, ceiling, metric_named, score_all
from eval.metrics.corpus import Item, Population, combine_columns, unit_sums
from eval.metrics.due_f1 import key_of_item
from eval.metrics.yes_no import ability_of
from eval.run_folder import LOCK, RESULTS, Line, Run, TaskRun, open_run, write_published_files, write_task
from eval.statistics import Units, estimate, estimates, mean_units
from eval.tables import FORMATS, table_row, write_summary
from monkey.cli import ArgumentParser, run_program
from monkey.journal import hold

# Rows, and units for the statistics


def needs_whole_set(metric: str) -> bool:
    """Whether a variant of the metric weighs by rows that may not have been asked."""
    return any(variant.whole_set for variant in metric_named(metric).corpus.values())


def item_of(line: Line) -> Item:
    """A line of predictions.jsonl as a corpus metric sees it."""
    more = line.get("more", {})
    unit = str(more.get("document", line["image"]))
    return Item(line["answer"], tuple(line["references"]), unit, line["question"], more)


def with_row_scores(
    metric: str, lines: Sequence[Mapping[str, Any]], population: Population | None = None
) -> list[dict[str, Any]]:
    """The lines with the scores of the corpus variants that score rows (CIDEr, the nearest option…)."""
    items = list(map(item_of, lines))
    known = [item.references for item in items] if population is None else population
    added: list[dict[str, float]] = [{} for _ in lines]
    for name, variant in metric_named(metric).corpus.items():
        if variant.item_scores is not None:
            for scores, score in zip(added, variant.item_scores(items, known), strict=True):
                scores[name] = score
    return [{**line, "scores": {**scores, **line["scores"]}} for line, scores in zip(lines, added, strict=True)]


# Every variant of a metric


def score_table(metric: str, lines: Sequence[Line], population: Population | None = None) -> dict[str, dict[str, Any]]:
    """Every variant of a metric in percent over scored lines, with its standard error, 95 % interval and ceiling.

    `ceiling` is what the best reference of each row scores when it is given as the answer: a variant whose ceiling is
    under 100 cannot be reached on these data, or is broken for them. Figures are None where there is no line.
    """
    row = metric_named(metric)
    variants = row.all_variants
    of_rows = [name for name in variants if name in row.variants or row.corpus[name].item_scores is not None]
    found = estimates({name: units_of(metric, name, lines) for name in of_rows})
    # Their units are documents, whose number is another than that of the images.
    found |= {name: estimate(units_of(metric, name, lines)) for name in variants if name not in found}
    ceilings = _ceilings(metric, lines, population)
    return {
        name: {
            "value": _percent(found[name].value),
            "n": found[name].units,
            "ceiling": _percent(ceilings[name]),
            "meaning": variant.meaning,
            "standard_error": _rounded(found[name].standard_error),
            "interval": None if found[name].interval is None else [*map(_rounded, found[name].interval)],
            "interval_method": found[name].method,
            "clusters": found[name].clusters,
        }
        for name, variant in variants.items()
    }


def units_of(metric: str, variant: str, lines: Sequence[Line]) -> Units:
    """What the value of one variant is computed from, clustered by image, or by document where it is of the corpus.

    Raises ValueError where a line lacks the variant.
    """
    corpus = metric_named(metric).corpus.get(variant)
    if corpus is not None and corpus.item_scores is None:
        # A unit for each document or image, which is drawn by itself.
        sums = unit_sums(corpus, list(map(item_of, lines)))
        table = np.array(list(sums.values()), dtype=np.float64).reshape(len(sums), len(corpus.sum_names))
        return Units(table, list(sums), combine_columns(corpus))
    for line in lines:
        if variant not in line["scores"]:
            raise ValueError(
                f"row {line['row']} has no score of {metric} ({variant}); score the run again with python -m eval.score"
            )
    return mean_units([line["scores"][variant] for line in lines], [line["image"] for line in lines])


def _ceilings(metric: str, lines: Sequence[Line], population: Population | None) -> dict[str, float | None]:
    """Score of the best answers by every variant; rows with the same references are looked at once."""
    variants = metric_named(metric).variants
    corpus = {
        name: ceiling(metric, name, list(map(item_of, lines)), population) for name in metric_named(metric).corpus
    }
    found: dict[tuple[str, ...], dict[str, float]] = {}
    sums = dict.fromkeys(variants, 0.0)
    for line in lines:
        references = tuple(line["references"])
        if references not in found:
            found[references] = {name: best_answer(metric, name, references)[1] for name in variants}
        for name, best in found[references].items():
            sums[name] += best
    return {**corpus, **{name: total / len(lines) if lines else None for name, total in sums.items()}}


def _rounded(value: float | None) -> float | None:
    """Percent without the digits in which matrix products differ between machines: files stay equal to the byte."""
    return None if value is None else round(100.0 * value, 6)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


# Parts of a set, where its own evaluation tells them apart: questions of people and of a generator, open and binary
# ones, each key of a form. Rows are told apart under a name: a key of the row ('part'), a key inside of it
# ('types.structural'), or what the metric reads from the row (`DERIVED_PARTS`). A row that has nothing there is in no
# part under that name.

MOST_PARTS = 200
"""Each part has a bootstrap of its own."""


def binary_or_open(item: Item) -> str | None:
    """GQA's two kinds of question: those that query something are open, those to verify, choose or compare binary."""
    structural = _under(item.more, "types.structural")
    return None if structural is None else "open" if structural == "query" else "binary"


DERIVED_PARTS: Mapping[tuple[str, str], Callable[[Item], str | None]] = {
    ("due_f1", "key"): key_of_item,
    ("gqa_accuracy", "binary_or_open"): binary_or_open,
    ("mme", "ability"): ability_of,
}
"""By metric and name."""


def part_of(metric: str, name: str, item: Item) -> str | None:
    """The part that an item is in under a name; None for none."""
    derived = DERIVED_PARTS.get((metric, name))
    return _under(item.more, name) if derived is None else derived(item)


def part_scores(
    metric: str, names: Iterable[str], lines: Sequence[Line], population: Population | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """{name: {part: {"rows": number, "scores": every variant as in `score_table`}}}, names without a part left out."""
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        parts: dict[str, list[Line]] = {}
        for line in lines:
            part = part_of(metric, name, item_of(line))
            if part is not None:
                parts.setdefault(part, []).append(line)
        for part, own in sorted(parts.items()):
            scores = score_table(metric, own, population)
            for figures in scores.values():
                del figures["meaning"]
            tables.setdefault(name, {})[part] = {"rows": len(own), "scores": scores}
    return tables


def check_parts(metric: str, names: Iterable[str], items: Sequence[Item], place: str) -> None:
    """Raises ValueError where rows differ too much under a name to be parts of a set."""
    for name in names:
        parts = {part_of(metric, name, item) for item in items} - {None}
        if len(parts) > MOST_PARTS:
            raise ValueError(
                f"{place}: the rows have {len(parts):,} values of {name!r}, and a set has at most {MOST_PARTS} parts"
            )


def _under(more: Mapping[str, Any], path: str) -> str | None:
    value: Any = more
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return str(value) if isinstance(value, (str, int)) and str(value).strip() else None


# A stored run scored again

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
    return ArgumentParser(prog=f"python -m {program}", description=documentation)


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
