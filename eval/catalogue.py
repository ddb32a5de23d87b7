"""The tasks as text: the list of `--list` and the sheet of `--show TASK`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from eval.metrics import METRICS, Variant
from eval.metrics.corpus import CorpusVariant
from eval.prompting import AS_TRAINED, PUBLISHED, forms_of
from eval.tasks import GROUPS, TASKS, Task


def task_list() -> str:
    """One line a task, then the groups."""
    width = max(map(len, TASKS))
    lines = [
        f"{row.name:<{width}}  {_size(row):>9}  {row.metric} ({row.headline}), {row.file}" for row in TASKS.values()
    ]
    lines += ["", *(f"{name}: {' '.join(members)}" for name, members in GROUPS.items())]
    return "\n".join(lines)


def task_sheet(task: Task) -> str:
    """Everything on one task; prompts stand in double quotes, so that a blank at their end shows."""
    metric = METRICS[task.metric]
    lines = [
        f"{task.name}: {_size(task)}" + (f", {task.split}" if task.split else ""),
        f"questions     {task.file}",
        f"as-trained    {json.dumps(forms_of(task)[AS_TRAINED], ensure_ascii=False)}",
        f"published     {json.dumps(forms_of(task)[PUBLISHED], ensure_ascii=False)}",
        f"answer        at most {task.max_new_tokens} tokens",
        f"metric        {task.metric}: {metric.meaning}",
        *_variants(metric.all_variants, task.headline),
    ]
    if task.annotations is not None:
        lines.insert(2, f"answers       {task.annotations}, when it is there, instead of those beside the questions")
    if task.parts:
        lines.append(f"parts         by {', '.join(task.parts)}, where the rows have it")
    if task.published is not None:
        scores = task.published
        lines.append(
            f"reported      Monkey {_shown(scores.monkey)}, Qwen-VL {_shown(scores.qwen_vl)} ({scores.source})"
        )
    else:
        lines.append("reported      nothing of Monkey or Qwen-VL is known here")
    if task.note:
        lines.append(f"note          {task.note}")
    return "\n".join(lines)


def _variants(variants: Mapping[str, Variant | CorpusVariant], headline: str) -> list[str]:
    """One line a variant, the headline first; what scores all answers together is marked."""
    width = max(map(len, variants))
    lines = []
    for name in sorted(variants, key=lambda name: name != headline):
        marks = ("(headline) " if name == headline else "") + (
            "(all answers together) " if isinstance(variants[name], CorpusVariant) else ""
        )
        lines.append(f"  {name:<{width}}  {marks}{variants[name].meaning}")
    return lines


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value}"


def _size(task: Task) -> str:
    if task.n_expected is None:
        return "n unknown" if task.published else "any size"
    return f"n={task.n_expected}"
