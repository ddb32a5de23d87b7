"""What a run leaves behind beside its weights: `run.json`, `training_log.json`, `loss_curve.png` and a model card.

The card, README.md, is made from the run's own record and from nothing else.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, FileSystemLoader, Template, Undefined
from markupsafe import Markup

from monkey import provenance
from monkey.checkpoint_card import CARD_FILE as CHECKPOINT_CARD
from monkey.checkpoint_card import read_card
from monkey.journal import write_atomic
from monkey.provenance import git_revision

CARD_FILE = "README.md"

# Packages whose version can change a run's numbers; those that are not installed are left out.
_RECORDED_PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "deepspeed", "safetensors", "tiktoken", "pillow", "numpy",
)  # fmt: skip


# The record


def package_versions() -> dict[str, str]:
    """Return the version of Python and of each installed package that can change a run's numbers."""
    found = provenance.package_versions(_RECORDED_PACKAGES)
    return {package: version for package, version in found.items() if version is not None}


def run_record(flags: dict[str, Any], recipe: dict[str, Any], data: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return all that repeats a run: resolved flags, what trained, on what, seed, CPU threads, versions, revision."""
    return {
        "flags": flags,
        "recipe": recipe,
        "data": data,
        "seed": seed,
        "cpu_threads": torch.get_num_threads(),
        "versions": package_versions(),
        "git_revision": git_revision(),
    }


def write_record(path: Path, content: Any) -> None:
    """Write indented JSON; what JSON does not know becomes text."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


_TASK_COLOURS = ("C2", "C1", "C4", "C5", "C6", "C7", "C8", "C9")


def write_loss_curve(history: Sequence[Mapping[str, float]], path: Path, best_step: int | None = None) -> None:
    """Draw the losses over steps, and on a second axis the scores in percent where there are any.

    Args:
        history: the trainer's log; drawn are `loss`, `eval_loss`, `eval_score_<task>`, and their mean `eval_score`.
        path: of the PNG, written whole.
        best_step: step of the weights that were kept as the best.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = []
    for key, label, style, colour in (("loss", "training loss", "-", "C0"), ("eval_loss", "held-out loss", "o-", "C3")):
        lines += _draw(axes, history, key, style, label=label, color=colour, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss (nats per supervised token)")
    axes.grid(alpha=0.3)
    tasks = list(dict.fromkeys(key for entry in history for key in entry if key.startswith("eval_score_")))
    if tasks:
        right = axes.twinx()
        right.set(ylabel="score (percent)")
        for number, task in enumerate(tasks):
            style, colour = "s-" if len(tasks) == 1 else ".:", _TASK_COLOURS[number % len(_TASK_COLOURS)]
            label = task.removeprefix("eval_score_")
            lines += _draw(right, history, task, style, label=label, color=colour, linewidth=1.2)
        if len(tasks) > 1:  # with one its line is the mean
            lines += _draw(right, history, "eval_score", "s-", label="mean score", color="black", linewidth=2)
        low, high = right.get_ylim()
        right.set_ylim(max(low, -2), min(max(high, low + 5), 102))
    if best_step is not None:
        best = {"color": "0.35", "linestyle": "--", "linewidth": 1, "label": f"best: step {best_step}"}
        lines.append(axes.axvline(best_step, **best))
    columns = 4
    rows = -(-len(lines) // columns)
    if lines:
        # Below the axes, where no curve can run.
        figure.legend(handles=lines, loc="lower center", ncols=columns, frameon=False, fontsize="small")
    # Room for the legend and the labels; to let matplotlib measure it would be to draw everything twice.
    figure.subplots_adjust(left=0.09, right=0.92 if tasks else 0.98, top=0.96, bottom=0.12 + 0.042 * rows)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(path, picture.getvalue())


def _draw(axes: Any, history: Sequence[Mapping[str, float]], key: str, style: str, **look: Any) -> list[Any]:
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    return axes.plot(*zip(*points, strict=True), style, markersize=4, **look) if points else []


# The model card

_MOST_ROWS = 60
"""Rows of a table before it refers to `run.json` for the rest."""

_HYPERPARAMETERS = (
    "learning_rate", "lr", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "weight_decay", "dropout", "adam_beta1",
    "adam_beta2", "adam_epsilon", "optim", "max_grad_norm", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "model_max_length", "packing", "pack", "grid",
    "grids", "fit", "lora", "q_lora", "bf16", "fp16", "gradient_checkpointing", "deepspeed",
)  # fmt: skip
"""Flags that say how a run learnt, in the order of the card; a name stands for itself and for `name_…` of a part."""


def model_card(
    run_record: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]] | None,
    base: str,
    log_history: Sequence[Mapping[str, Any]],
    terms: str = "",
) -> str:
    """Return the card's text, `model_card.md` filled in: YAML front matter, then Markdown.

    What was not recorded is left out, and a checkpoint without scores says so. File names, flags and names of data sets
    come from users: whatever the template prints is a number, a code span, or YAML that a library wrote, so that
    nothing of theirs is markup.

    Args:
        run_record: as `run_record` gives it.
        scores: one row per task, as the evaluator's `summary.json` has them; None or empty when nothing was evaluated.
        base: name or folder of the starting weights.
        log_history: the trainer's log.
        terms: of the starting weights.
    """
    recipe, flags, data, merge, versions = (
        value if isinstance(value := run_record.get(name), Mapping) else {}
        for name in ("recipe", "flags", "data", "merge", "versions")
    )
    parts = [part for part in recipe.get("parts") or () if isinstance(part, Mapping)]
    counts = [(part["parameters"], part.get("trains")) for part in parts if _is_number(part.get("parameters"))]
    scores = [row for row in scores or () if row]
    heads = list(dict.fromkeys(key for row in scores for key in row))
    files = {name: flags[name] for name in ("data_path", "eval_data_path", "mixture") if flags.get(name)}
    repeat = {name: run_record[name] for name in ("seed", "git_revision") if run_record.get(name) is not None}
    return _card_template().render(
        front=Markup(_front_matter(base)),
        recipe=recipe,
        base=base,
        merge=merge,
        parts=[
            (part.get("part", ""), "trained" if part.get("trains") else "frozen", part.get("parameters", ""))
            for part in parts
        ],
        trained=sum(count for count, trains in counts if trains),
        counted=sum(count for count, _ in counts),
        data=data,
        data_rows=[*_flat(files), *_flat(data)],
        hyperparameters=_as_given(_flat(_learnt_with(flags))),
        scores=[[row.get(head, "") for head in heads] for row in scores],
        score_heads=[_cell(head) for head in heads],
        losses=_losses(log_history),
        provenance=_as_given(_flat({**repeat, **versions})),
        terms=terms,
    )


def write_model_card(
    folder: str | Path,
    run_record: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]] | None,
    base: str,
    log_history: Sequence[Mapping[str, Any]],
) -> Path:
    """Write `model_card(…)`, with the terms of the checkpoint's own card there, as README.md; return its path."""
    path = Path(folder) / CARD_FILE
    beside = path.with_name(CHECKPOINT_CARD)
    terms = read_card(beside).terms["en"] if beside.is_file() else ""
    write_atomic(path, model_card(run_record, scores, base, log_history, terms))
    return path


def _card_template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), finalize=_cell, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"code": _code, "table": _table}
    return environment.get_template("model_card.md")


def _front_matter(base: str) -> str:
    content = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": _text(base),
        "license": "other",
        "license_name": "see-the-licences-of-the-base",
        "tags": ["monkey"],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def _learnt_with(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that say how a run learnt, in the order of `_HYPERPARAMETERS`."""

    def place(name: str) -> int | None:
        if name in _HYPERPARAMETERS:
            return _HYPERPARAMETERS.index(name)
        return next((i for i, stem in enumerate(_HYPERPARAMETERS) if name.startswith(f"{stem}_")), None)

    chosen = [name for name, value in flags.items() if place(name) is not None and value is not None]
    return {name: flags[name] for name in sorted(chosen, key=lambda name: (place(name), name))}


def _as_given(rows: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Return values as a user gives them again, not as counts are read."""
    return [(name, _text(value)) for name, value in rows]


def _losses(history: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    rows = []
    for key, label in (("loss", "training"), ("eval_loss", "held-out")):
        entries = [entry for entry in history if _is_number(entry.get(key))]
        if entries:
            rows.append((label, entries[0][key], entries[-1][key], entries[-1].get("step", "")))
    return rows


def _table(rows: Sequence[Sequence[Any]], heads: Sequence[str], without_rows: str = "") -> Markup:
    """Return a Markdown table; every cell below its heads is a number or code."""
    if not rows:
        return Markup(without_rows)
    lines = [heads, ["---"] * len(heads), *([_cell(value) for value in row] for row in rows[:_MOST_ROWS])]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    if len(rows) > _MOST_ROWS:
        text.append(f"\n{len(rows) - _MOST_ROWS} more rows are in `run.json`.")
    return Markup("\n".join(text))


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the rows of a nested mapping: keys joined by a dot, and values."""
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        is_nested = isinstance(value, list | tuple) and any(isinstance(one, Mapping | list | tuple) for one in value)
        items = dict(enumerate(value)) if is_nested else value
        if isinstance(items, Mapping) and items:
            rows += _flat(items, f"{prefix}{key}.")
        elif value is not None:
            rows.append((f"{prefix}{key}", value))
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    """Return a value on one line; other characters than printable ones become spaces."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return "".join(character if character.isprintable() else " " for character in text).strip()


def _code(value: Any) -> Markup:
    """Return a code span that shows `value` and nothing else: no markup, and no end before its own."""
    text = _text("" if isinstance(value, Undefined) else value)
    if not text:
        return Markup()
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{fence}{space}{text}{space}{fence}")


def _cell(value: Any) -> str:
    """Return a number, or `value` as code; a table ends its cell at a bar even within a code span."""
    if isinstance(value, Markup):
        return value
    if _is_number(value):  # counts have their thousands set apart, measures five digits
        return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
    text = _text("" if isinstance(value, Undefined) else value)
    if "|" not in text:
        return _code(text)
    shown = "".join(letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text)
    return f"<code>{shown}</code>"
