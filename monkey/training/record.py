"""What a run leaves behind beside its weights: `run.json`, `training_log.json` and `loss_curve.png`."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

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


def package_versions() -> dict[str, str]:
    """Version of Python and of each installed package that can change a run's numbers."""
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_revision() -> str | None:
    """Commit of the source tree this package lies in, with `-dirty` when files differ; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def run_record(flags: dict[str, Any], recipe: dict[str, Any], data: dict[str, Any], seed: int) -> dict[str, Any]:
    """Everything needed to repeat a run: resolved flags, what trained, how much data, seed, versions, revision."""
    return {
        "flags": flags,
        "recipe": recipe,
        "data": data,
        "seed": seed,
        "versions": package_versions(),
        "git_revision": git_revision(),
    }


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def write_loss_curve(history: list[dict[str, float]], path: Path) -> None:
    """Draw training loss, and held-out loss where there is any, over steps; `history` is the trainer's log."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held-out", "o-")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats a supervised token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path)
