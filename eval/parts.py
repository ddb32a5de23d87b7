"""Scores of the parts of a set, where its own evaluation tells them apart: questions of people and of a generator, open
and binary ones, each key of a form.

Rows are told apart under a name: a key of the row ('part'), a key inside of it ('types.structural'), or what the metric
reads from the row (`DERIVED`). A row that has nothing there is in no part under that name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from eval.corpus_scores import item_of
from eval.metrics.corpus import Item, Population
from eval.metrics.due_f1 import key_of_item
from eval.run_folder import Line
from eval.score_table import score_table

MOST_PARTS = 200
"""Each part has a bootstrap of its own."""


def binary_or_open(item: Item) -> str | None:
    """GQA's two kinds of question: those that query something are open, those to verify, choose or compare binary."""
    structural = _under(item.more, "types.structural")
    return None if structural is None else "open" if structural == "query" else "binary"


DERIVED: Mapping[tuple[str, str], Callable[[Item], str | None]] = {
    ("due_f1", "key"): key_of_item,
    ("gqa_accuracy", "binary_or_open"): binary_or_open,
}
"""By metric and name."""


def part_of(metric: str, name: str, item: Item) -> str | None:
    """The part that an item is in under a name; None for none."""
    derived = DERIVED.get((metric, name))
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
        if parts:
            tables[name] = {part: _scored(metric, parts[part], population) for part in sorted(parts)}
    return tables


def check_parts(metric: str, names: Iterable[str], items: Sequence[Item], place: str) -> None:
    """Raises ValueError where rows differ too much under a name to be parts of a set."""
    for name in names:
        parts = {part_of(metric, name, item) for item in items} - {None}
        if len(parts) > MOST_PARTS:
            raise ValueError(
                f"{place}: the rows have {len(parts):,} values of {name!r}, and a set has at most {MOST_PARTS} parts"
            )


def _scored(metric: str, lines: Sequence[Line], population: Population | None) -> dict[str, Any]:
    table = score_table(metric, lines, population)
    for figures in table.values():
        del figures["meaning"]
    return {"rows": len(lines), "scores": table}


def _under(more: Mapping[str, Any], path: str) -> str | None:
    value: Any = more
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return str(value) if isinstance(value, (str, int)) and str(value).strip() else None
