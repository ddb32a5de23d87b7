"""The tasks as text: the list of `--list` and the sheet of `--show TASK`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from eval.metrics import METRICS, Variant
from eval.prompting import AS_TRAINED, FORMS, PUBLISHED
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
        f"as-trained    {json.dumps(FORMS[task.prompt][AS_TRAINED], ensure_ascii=False)}",
        f"published     {json.dumps(FORMS[task.prompt][PUBLISHED], ensure_ascii=False)}",
        f"answer        at most {task.max_new_tokens} tokens",
        f"metric        {task.metric}: {metric.meaning}",
        *_variants(metric.variants, task.headline),
    ]
    if task.annotations is not None:
        lines.insert(2, f"answers       {task.annotations}, when it is there, instead of those beside the questions")
    if task.published is not None:
        scores = task.published
        lines.append(f"reported      Monkey {scores.monkey}, Qwen-VL {scores.qwen_vl} ({scores.source})")
    if task.note:
        lines.append(f"note          {task.note}")
    return "\n".join(lines)


def _variants(variants: Mapping[str, Variant], headline: str) -> list[str]:
    width = max(map(len, variants))
    return [
        f"  {name:<{width}}  {'(headline) ' if name == headline else ''}{variant.meaning}"
        for name, variant in variants.items()
    ]


def _size(task: Task) -> str:
    return "any size" if task.n_expected is None else f"n={task.n_expected}"
