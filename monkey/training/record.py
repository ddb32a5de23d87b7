"""What a run leaves behind beside its weights: `run.json`, `training_log.json` and `loss_curve.png`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from monkey import provenance
from monkey.provenance import git_revision

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Packages whose version can change a run's numbers; those that are not installed are left out.
_RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "deepspeed",
    "safetensors",
    "tiktoken",
    "pillow",
    "numpy",
)

# Away from the blue and red of the losses; more tasks begin again.
_TASK_COLOURS = ("C2", "C1", "C4", "C5", "C6", "C7", "C8", "C9")


def package_versions() -> dict[str, str]:
    """Version of Python and of each installed package that can change a run's numbers."""
    found = provenance.package_versions(_RECORDED_PACKAGES)
    return {package: version for package, version in found.items() if version is not None}


def run_record(flags: dict[str, Any], recipe: dict[str, Any], data: dict[str, Any], seed: int) -> dict[str, Any]:
    """All that repeats a run: resolved flags, what trained, how much data, seed, CPU threads, versions, revision."""
    return {
        "flags": flags,
        "recipe": recipe,
        "data": data,
        "seed": seed,
        "cpu_threads": torch.get_num_threads(),
        "versions": package_versions(),
        "git_revision": git_revision(),
    }


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def write_loss_curve(history: list[dict[str, float]], path: Path, best_step: int | None = None) -> None:
    """Draw the losses over steps, and on a second axis the scores in percent where there are any.

    Args:
        history: the trainer's log; drawn are `loss`, `eval_loss`, `eval_score_<task>`, and their mean `eval_score`.
        path: of the PNG, written whole.
        best_step: step of the weights that were kept as the best.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = []
    for key, label, style, colour in (("loss", "training loss", "-", "C0"), ("eval_loss", "held-out loss", "o-", "C3")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            lines += axes.plot(
                *zip(*points, strict=True), style, label=label, color=colour, linewidth=1.2, markersize=4
            )
    axes.set(xlabel="step", ylabel="loss (nats a supervised token)")
    axes.grid(alpha=0.3)
    lines += _draw_scores(axes, history)
    if best_step is not None:
        lines.append(
            axes.axvline(best_step, color="0.35", linestyle="--", linewidth=1, label=f"best: step {best_step}")
        )
    if lines:
        # Below the axes, where no curve can run.
        figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        figure.savefig(unfinished, format="png")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _draw_scores(axes: Axes, history: list[dict[str, float]]) -> list[Line2D]:
    """Thin lines for the tasks and a thick one for their mean, on an axis at the right; none without scores."""
    mean, prefix = "eval_score", "eval_score_"
    tasks = list(dict.fromkeys(key for entry in history for key in entry if key.startswith(prefix)))
    if not tasks:
        return []
    right = axes.twinx()
    right.set(ylabel="score (percent)")
    lines = []
    # With one task its line is the mean.
    drawn = [(task, task.removeprefix(prefix)) for task in tasks]
    if len(tasks) > 1:
        drawn.append((mean, "mean score"))
    for number, (key, label) in enumerate(drawn):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        is_mean = key == mean
        lines += right.plot(
            *zip(*points, strict=True),
            "s-" if is_mean or len(tasks) == 1 else ".:",
            label=label,
            color="black" if is_mean else _TASK_COLOURS[number % len(_TASK_COLOURS)],
            linewidth=2 if is_mean else 1.2,
            markersize=4,
        )
    low, high = right.get_ylim()
    right.set_ylim(max(low, -2), min(max(high, low + 5), 102))
    return lines
