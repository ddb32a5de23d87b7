"""What a run tells while it trains, and what it leaves behind beside its weights.

While it trains: samples, tokens and FLOPs per second. Afterwards: `run.json`, `training_log.json`, `loss_curve.png` and
a model card, README.md, made from the run's own record and from nothing else.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from jinja2 import Environment, FileSystemLoader, Template, Undefined
from markupsafe import Markup
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from monkey import provenance
from monkey.checkpoint_card import CARD_FILE as CHECKPOINT_CARD
from monkey.checkpoint_card import read_card
from monkey.configuration import MonkeyConfig
from monkey.data.packing import BatchContents
from monkey.journal import write_atomic
from monkey.provenance import git_revision
from monkey.training.memory import StepSize, by_depth, dry_model, dry_step
from monkey.training.recipes import Recipe

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


# Rates


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of training on a batch, forward and backward, by what it holds.

    One multiply-accumulate is two. `pair` is of a query and a key that it sees; causal attention has half of all.
    """

    image: float
    token: float
    pair: float
    supervised: float

    def of(self, contents: BatchContents) -> float:
        pairs = sum(own**2 / 2 + own * prefix for own, prefix in contents.runs)
        return (
            self.image * contents.images
            + self.token * sum(own for own, _ in contents.runs)
            + self.pair * pairs
            + self.supervised * contents.supervised
        )

    def __str__(self) -> str:
        return (
            f"model FLOPs, counted by PyTorch on one step in bf16 with SDPA, without checkpointing: {self.image:.3g} "
            f"per image, {self.token:.3g} per token, {self.pair:.3g} per query and key (causal attention counts half), "
            f"{self.supervised:.3g} per supervised token\n"
            "MFU = model FLOPs / (seconds · devices · peak); checkpointing's recomputation counts in HFU only"
        )


def count_flops(
    config: MonkeyConfig, recipe: Recipe, lora_rank: int = 32, checkpointing: tuple[bool, bool] = (False, False)
) -> StepFlops:
    """Count the operations of a training step once, on tensors without storage.

    Args:
        checkpointing: of vision transformer and decoder; what they compute again counts too.
    """
    return _count_flops(config.to_json_string(use_diff=False), recipe, lora_rank, checkpointing)


@functools.lru_cache(maxsize=64)
def _count_flops(config: str, recipe: Recipe, lora_rank: int, checkpointing: tuple[bool, bool]) -> StepFlops:
    whole = MonkeyConfig.from_dict(json.loads(config))
    size = StepSize(images=1, rows=1, tokens=whole.image_tokens + 2, supervised=1)

    def trace(shallow: MonkeyConfig) -> dict[str, float]:
        marks: dict[str, Mapping[Any, int]] = {}
        with FakeTensorMode():
            model = dry_model(shallow, recipe, (torch.bfloat16, torch.bfloat16), checkpointing, lora_rank)
            with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
                dry_step(model, size, lambda part: marks.update({part: _counts(counter)}))
                marks["end"] = _counts(counter)
        return _by_part(marks)

    flops = by_depth(trace, whole)
    token, pair = flops["decoder"] / size.tokens, flops["attention"] / size.tokens**2
    return StepFlops(flops["vision"], token, pair, flops["loss"])


def _counts(counter: FlopCounterMode) -> dict[Any, int]:
    return dict(counter.get_flop_counts().get("Global", {}))


def _by_part(marks: Mapping[str, Mapping[Any, int]]) -> dict[str, float]:
    """Return what was counted from each mark to the next, by part of the model; the decoder's attention by itself."""
    flops = dict.fromkeys(("vision", "decoder", "attention", "loss"), 0.0)
    for part, following in itertools.pairwise(marks):
        where = next((name for name in ("vision", "loss") if part.startswith(name)), "decoder")
        for operation, count in marks[following].items():
            is_attention = where == "decoder" and "attention" in str(operation)
            flops["attention" if is_attention else where] += count - marks[part].get(operation, 0)
    return flops


def _attention(query, key, value, *_args, **_settings) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(_gradient, query, key, value, *_args, **_settings) -> int:
    # Four products for the forward pass's two; what flash attention computes again inside is left out, as is customary.
    return 2 * sdpa_flop_count(query, key, value)


def _in_place_product(_, first, second, **_settings) -> int:
    return 2 * first[0] * first[1] * first[2] * second[2]


# Operations that PyTorch's counter does not know.
_UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.aten.baddbmm_: _in_place_product,
}

# Part of a device's name (lower case; the first that fits counts) -> peak by type, dense, accumulating in fp32 as
# training does, at boost clock. fp32 is without TF32. Sources are NVIDIA's documents of each product: data sheets of
# H200, H100 (sparse figures, halved), A100, L40S, L40, L4, A40, A30, A10, V100 and T4; the GA102 white paper (RTX 3090,
# A6000) and the Ada white paper (RTX 4090, RTX 6000 Ada), where accumulation in fp32 has a figure of its own.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("h200", {"half": 989e12, "fp32": 67e12}),
    ("gh200", {"half": 989e12, "fp32": 67e12}),
    ("h100 pcie", {"half": 756e12, "fp32": 51e12}),
    ("h100 nvl", {"half": 835e12, "fp32": 60e12}),
    ("h100", {"half": 989e12, "fp32": 67e12}),
    ("h800 pcie", {"half": 756e12, "fp32": 51e12}),
    ("h800", {"half": 989e12, "fp32": 67e12}),
    ("a100", {"half": 312e12, "fp32": 19.5e12}),
    ("a800", {"half": 312e12, "fp32": 19.5e12}),
    ("l40s", {"half": 362e12, "fp32": 91.6e12}),
    ("l40", {"half": 181e12, "fp32": 90.5e12}),
    ("l4", {"half": 121e12, "fp32": 30.3e12}),
    ("a40", {"half": 149.7e12, "fp32": 37.4e12}),
    ("a30", {"half": 165e12, "fp32": 10.3e12}),
    ("a10", {"half": 125e12, "fp32": 31.2e12}),
    ("rtx 6000 ada", {"half": 364e12, "fp32": 91.1e12}),
    ("a6000", {"half": 154.8e12, "fp32": 38.7e12}),
    ("rtx 4090", {"half": 165e12, "fp32": 82.6e12}),
    ("rtx 3090 ti", {"half": 80e12, "fp32": 40e12}),
    ("rtx 3090", {"half": 71e12, "fp32": 35.6e12}),
    # Neither has bfloat16.
    ("v100", {"float16": 125e12, "fp32": 15.7e12}),
    ("t4", {"float16": 65e12, "fp32": 8.1e12}),
)


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Return the peak dense operations per second of a GPU, None for an unknown one or a type that it lacks.

    Args:
        device_name: as `torch.cuda.get_device_name` says it.
    """
    words = f" {device_name.lower().replace('-', ' ')} "
    peaks = next((peaks for name, peaks in _PEAKS if f" {name} " in words), {})
    if dtype == torch.float32:
        return peaks.get("fp32")
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    own = peaks.get("float16") if dtype == torch.float16 else None
    return own or peaks.get("half")


def device_peak(device: torch.device, dtype: torch.dtype, given: float | None = None) -> float | None:
    """Return the FLOP/s that MFU is a part of: `given` in TFLOP/s, else a table's, on a CPU a quick product's."""
    if given is not None:
        return given * 1e12
    if device.type == "cuda":
        return peak_flops(torch.cuda.get_device_name(device), dtype)
    size = 1024
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


_COUNTED = ("samples", "tokens", "slots", "supervised", "images", "model_flops", "hardware_flops")


class Meter:
    """Counts batches as they are trained on, and tells the rates since it was last asked.

    Args:
        model_flops: of a batch's step.
        hardware_flops: those that are done, which include what checkpointing computes again.
        peak_flops: FLOP/s that one device can do; None where that is not known.
        clock: seconds.
    """

    def __init__(
        self,
        model_flops: StepFlops,
        hardware_flops: StepFlops,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._flops = model_flops, hardware_flops
        self._peak_flops = peak_flops
        self._clock = clock
        self._counts = dict.fromkeys(_COUNTED, 0.0)
        self._paused = 0.0
        self._since = clock()

    def count(self, contents: BatchContents) -> None:
        sizes = len(contents.sources), contents.tokens, contents.slots, contents.supervised, contents.images
        flops = (each.of(contents) for each in self._flops)
        for name, value in zip(_COUNTED, (*sizes, *flops), strict=True):
            self._counts[name] += value

    def leave_out(self, seconds: float) -> None:
        """Take time since the last report for no training: evaluations, checkpoints."""
        self._paused += seconds

    def since_last(self, device: torch.device) -> dict[str, float]:
        """Return the rates over all processes since the last call; every process calls it."""
        now = self._clock()
        seconds = max(now - self._since - self._paused, 1e-9)
        totals = torch.tensor([self._counts[name] for name in _COUNTED], dtype=torch.float64, device=device)
        processes = 1
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            processes = dist.get_world_size()
            dist.all_reduce(totals)
        counts = dict(zip(_COUNTED, totals.tolist(), strict=True))
        self._counts = dict.fromkeys(_COUNTED, 0.0)
        self._since, self._paused = now, 0.0
        rates = {
            "samples_per_second": counts["samples"] / seconds,
            "tokens_per_second": counts["tokens"] / seconds,
            "supervised_tokens": counts["supervised"],
            "images_per_second": counts["images"] / seconds,
            "fill_rate": counts["tokens"] / max(counts["slots"], 1),
            "tflops_per_device": counts["model_flops"] / seconds / processes / 1e12,
        }
        if self._peak_flops:
            rates["mfu"] = counts["model_flops"] / seconds / processes / self._peak_flops
            rates["hfu"] = counts["hardware_flops"] / seconds / processes / self._peak_flops
        if device.type == "cuda":
            rates["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            rates["memory_reserved_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
        return rates


# The loss curve

# Away from the blue and red of the losses; more tasks begin again.
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

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
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
    if lines:
        # Below the axes, where no curve can run.
        figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
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
    "per_device_train_batch_size", "gradient_accumulation_steps", "model_max_length", "packing", "pack", "grid", "lora",
    "q_lora", "bf16", "fp16", "gradient_checkpointing", "deepspeed",
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
