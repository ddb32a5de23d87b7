"""How much GPU memory a training run will need, part by part, before its first step.

Parameters are counted on a model without storage, activations by the formulas of `monkey.training.activation_bytes`,
and what DeepSpeed allocates by what its version 0.19 does. What cannot be derived is an assumption with a name:
`CUDA_CONTEXT`, `NCCL_BUFFERS`, `FRAGMENTATION`. The peak is the largest of a step's phases, for activations of
different parts are not all there at once. Gradients count in full, as in every step but the first of an accumulation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from monkey.configuration import MonkeyConfig
from monkey.training.activation_bytes import FP32
from monkey.training.memory_phases import step_phases
from monkey.training.memory_settings import (
    PartSizes,
    PlanSettings,
    part_sizes,
    recipe_fields,
    shipped_zero,
    step_size,
)
from monkey.training.recipes import RECIPES

GIB, MIB = 2**30, 2**20

CUDA_CONTEXT = 600 * MIB
"""Assumed for the CUDA context, loaded kernels and cuBLAS workspaces of a process."""
NCCL_BUFFERS = 300 * MIB
"""Assumed for NCCL's channels, where there are several GPUs."""
FRAGMENTATION = 0.05
"""Assumed part of activations and buffers that the allocator loses to rounding and holes."""

FOUR_BIT = 0.5 + 1 / 64 + FP32 / (64 * 256)
"""Bytes a weight in NF4 with double quantisation: 4 bits, a byte a block of 64, a float a 256 blocks."""
EIGHT_BIT_MOMENTS = 2 * (1 + FP32 / 256)
"""Bytes a parameter of 8-bit Adam's two moments: a byte each, and a float a block of 256."""


@dataclass(frozen=True)
class MemoryPlan:
    """What one GPU holds at the peak of a step.

    Attributes:
        lines: (what, bytes), which add up to the peak.
        phase: the part of a step that has the peak.
        phases: phase -> bytes of the whole GPU in it.
        host: bytes in the memory of the machine, a process.
        saved: what autograd keeps between the passes, by part: `vision`, `resampler`, `decoder`, `logits`.
    """

    config: MonkeyConfig
    settings: PlanSettings
    sizes: PartSizes
    lines: tuple[tuple[str, int], ...]
    phase: str
    phases: dict[str, int]
    host: int
    saved: dict[str, int]

    @property
    def total(self) -> int:
        return sum(count for _, count in self.lines)

    def fits(self, gpu_gib: float) -> bool:
        return self.total <= gpu_gib * GIB

    def table(self) -> str:
        """The lines side by side by ZeRO stage, the plan's own marked."""
        return _table(self)


def plan(
    config: MonkeyConfig, settings: PlanSettings | None = None, *, sizes: PartSizes | None = None, **changes: Any
) -> MemoryPlan:
    """Plan the memory of one GPU.

    Args:
        settings, changes: settings, and fields of them to replace.
        sizes: counts from `part_sizes`, where they were taken already.

    Raises:
        ValueError: settings that do not go together, in one sentence.
    """
    settings = replace(settings or PlanSettings(), **changes)
    lora_rank = settings.lora_rank if settings.decoder_lora and not config.text_config.adapter_rank else 0
    sizes = sizes or part_sizes(config, lora_rank)
    step = step_size(config, settings)
    static, host = _static(settings, sizes)
    kept, phases = step_phases(config, settings, sizes, step)
    needs = {name: sum(phase.values()) for name, phase in phases.items()}
    phase = max(needs, key=needs.__getitem__)
    margins = {
        "CUDA context (assumed)": CUDA_CONTEXT if settings.cuda else 0,
        "NCCL (assumed)": NCCL_BUFFERS if settings.cuda and settings.gpus > 1 else 0,
    }
    fixed = sum(static.values()) + sum(margins.values())
    loss = FRAGMENTATION if settings.cuda else 0.0
    lines = {
        **static,
        **phases[phase],
        **margins,
        f"fragmentation ({loss:.0%}, assumed)": int(loss * needs[phase]),
    }
    return MemoryPlan(
        config,
        settings,
        sizes,
        tuple((name, int(count)) for name, count in lines.items() if count),
        phase,
        {name: int(fixed + (1 + loss) * need) for name, need in needs.items()},
        host,
        kept,
    )


def _static(settings: PlanSettings, sizes: PartSizes) -> tuple[dict[str, int], int]:
    """Lines that are there all the time, and bytes on the host."""
    stage, shards, offload = settings.zero_stage, settings.sharded, settings.offload
    trained = sizes.trained(settings.trains)
    lines: dict[str, int] = {}
    host = 0
    for part, count in sizes.parts.items():
        width = settings.trained_bytes if part in settings.trains else settings.frozen_bytes
        packed = sizes.packable if part == "decoder" and settings.four_bit else 0
        weights = int((count - packed) * width + packed * FOUR_BIT) // (shards if stage == 3 else 1)
        if offload == "all":
            host += weights
        else:
            lines[f"weights: {part}"] = weights
    if stage == 3:
        # Fetching ahead stops at `max_live`, but the tensor that crosses it may be the largest of all.
        live = min(sizes.total, settings.zero.max_live + max(sizes.largest.values()))
        lines["ZeRO-3 gathered weights"] = (live + settings.zero.prefetch_bucket) * settings.trained_bytes
    gradient = trained * settings.trained_bytes // (shards if stage >= 2 else 1)
    exact = trained if settings.optimizer == "adamw" else 0
    if settings.optimizer == "adamw_8bit" and "decoder" in settings.trains:
        exact = sizes.embedding
    moments = int(exact * 2 * FP32 + (trained - exact) * EIGHT_BIT_MOMENTS) // shards
    # ZeRO keeps an fp32 copy of its part, of fp32 weights too, except in stage 3.
    master = trained * FP32 // shards if stage and (stage < 3 or settings.precision == "bf16") else 0
    on_host = {"gradients": gradient, "optimiser moments": moments, "fp32 master weights": master}
    if offload == "none":
        lines |= on_host
    else:
        host += sum(on_host.values())
    if stage == 0 and settings.gpus > 1:
        lines["DDP's reduction buckets"] = gradient
    return lines, int(host)


_TOP = ("weights", "ZeRO-3 gathered", "gradients", "optimiser", "fp32", "DDP", "activations")
_BOTTOM = ("CUDA", "NCCL", "fragmentation")


def _place(name: str) -> int:
    """Where a line stands in the table, by its first words: at the top, at the bottom, or between."""
    for place, start in [*enumerate(_TOP), *enumerate(_BOTTOM, len(_TOP) + 1)]:
        if name.startswith(start):
            return place
    return len(_TOP)


def _table(whole: MemoryPlan) -> str:
    """A column a ZeRO stage; a stage that the settings rule out has none."""
    columns: dict[str, MemoryPlan] = {}
    for stage in (0, 1, 2, 3):
        offload = whole.settings.offload if stage == whole.settings.zero_stage else "none"
        if stage == 3 and whole.settings.four_bit:
            continue
        name = "DDP" if stage == 0 else f"ZeRO-{stage}"
        name += "*" if stage == whole.settings.zero_stage else ""
        zero = whole.settings.zero
        if stage and stage != whole.settings.zero_stage:
            zero = shipped_zero(stage, whole.config.text_config.hidden_size)
        columns[name] = plan(
            whole.config, whole.settings, sizes=whole.sizes, zero_stage=stage, offload=offload, zero=zero
        )
    names = list(dict.fromkeys(name for each in columns.values() for name, _ in each.lines))
    names.sort(key=_place)
    width = max(map(len, names))
    lines = ["MiB".ljust(width) + "".join(f"{name:>12}" for name in columns)]
    for name in names:
        cells = [dict(each.lines).get(name) for each in columns.values()]
        shown = ("-" if cell is None else f"{cell / MIB:,.1f}" for cell in cells)
        lines.append(name.ljust(width) + "".join(f"{cell:>12}" for cell in shown))
    lines.append("GiB".ljust(width) + "".join(f"{each.total / GIB:>12.2f}" for each in columns.values()))
    settings, step = whole.settings, step_size(whole.config, whole.settings)
    lines += [
        "kept for the backward pass, MiB: " + ", ".join(f"{k} {v / MIB:,.1f}" for k, v in whole.saved.items()),
        "whole GPU by phase, GiB: " + ", ".join(f"{k} {v / GIB:.2f}" for k, v in whole.phases.items()),
    ]
    lines.append(
        f"* this plan: {settings.recipe} on {settings.gpus} GPU(s), a forward pass of {step.images} image(s), "
        f"{step.batch.tokens} tokens, {step.supervised} supervised; peak in the {whole.phase}"
        + (f"; {whole.host / GIB:.1f} GiB of host memory a process" if whole.host else "")
    )
    return "\n".join(lines)


@dataclass(frozen=True)
class Advice:
    """One change and what it gives, on top of the changes before it that are no detour.

    Attributes:
        detour: it helps, but costs so much time and host memory that the changes after it do without it.
    """

    change: str
    plan: MemoryPlan
    detour: bool = False

    @property
    def gives(self) -> str:
        host = f" and {self.plan.host / GIB:.0f} GiB of host memory a process" if self.plan.host else ""
        return f"{self.plan.total / GIB:.1f} GiB a GPU{host}"

    def sentence(self, gpu_gib: float) -> str:
        verdict = "fits" if self.plan.fits(gpu_gib) else "still too much"
        return f"{self.change}: {self.gives}, {verdict}"


def advice(whole: MemoryPlan, gpu_gib: float) -> list[Advice]:
    """Changes to make to a plan that does not fit, in the order in which they cost least, until it fits.

    Each is planned anew on top of those before; one that gives nothing is left out. Empty for a plan that fits.
    """
    steps: list[Advice] = []
    current = whole
    for change, fields in _changes(whole):
        if current.fits(gpu_gib):
            break
        settings = replace(current.settings, **fields)
        # Other adapters on the decoder are other parameters.
        counted = settings.decoder_lora == current.settings.decoder_lora
        changed = plan(whole.config, settings, sizes=current.sizes if counted else None)
        if changed.total < current.total:
            steps.append(Advice(change, changed, detour="offload" in fields and not settings.four_bit))
            current = current if steps[-1].detour else changed
    return steps


def _changes(whole: MemoryPlan) -> list[tuple[str, dict[str, Any]]]:
    """Flags to try, in order, with the fields of the settings that they change."""
    settings, config = whole.settings, whole.config
    changes: list[tuple[str, dict[str, Any]]] = []
    for part in ("vision", "decoder"):
        if not getattr(settings, f"{part}_checkpointing"):
            changes.append((f"--{part}_checkpointing True", {f"{part}_checkpointing": True}))
    known = {"images_per_step": None, "tokens_per_step": None, "supervised_tokens": None}
    sample = config.image_tokens + 2 + settings.questions_per_image * settings.text_tokens
    for images in (2, 1):
        # Whole blocks of 64, so that one long text does not shut its sample out.
        fewer = -(-images * sample // 64) * 64
        if settings.pack_tokens > fewer:
            change = f"--pack_tokens {fewer} --model_max_length {fewer}"
            changes.append((change, {"pack_tokens": fewer, **known}))
    if settings.batch_size > 1:
        changes.append(("--per_device_train_batch_size 1", {"batch_size": 1, **known}))
    stage, hidden = settings.zero_stage, config.text_config.hidden_size
    if settings.gpus > 1:
        for higher in range(max(stage + 1, 2), 3 if settings.four_bit else 4):
            fields = {"zero_stage": higher, "zero": shipped_zero(higher, hidden)}
            changes.append((f"--deepspeed configs/deepspeed/zero{higher}.json", fields))
            stage = higher
    if settings.offload != "all" and not settings.four_bit:
        fields = {"zero_stage": 3, "zero": shipped_zero(3, hidden), "offload": "all"}
        changes.append(("--deepspeed configs/deepspeed/zero3_offload.json", fields))
    for name in ("lora-llm", "qlora-llm"):
        recipe = RECIPES[name]
        # LoRA helps where something else than its own parts trains; packing helps any decoder that is not packed.
        narrower = recipe.four_bit or bool(settings.trains - recipe.trains)
        if name == settings.recipe or settings.four_bit or not narrower:
            continue
        fields, change = recipe_fields(recipe), f"--recipe {name}"
        if recipe.four_bit:
            fields |= {"zero_stage": 0, "offload": "none"}
            change += " without --deepspeed"
        changes.append((change, fields))
    return changes


def refusal(whole: MemoryPlan, gpu_gib: float) -> str | None:
    """The sentence with which the trainer refuses a plan that cannot fit, None where it fits."""
    if whole.fits(gpu_gib):
        return None
    steps = advice(whole, gpu_gib)
    path = [step for step in steps if not step.detour]
    # A flag may have been tried with several values; the last counts.
    last = {step.change.split()[0]: step.change for step in path}
    if last.get("--recipe", "").endswith("without --deepspeed"):
        last.pop("--deepspeed", None)
    ways = [f"{', '.join(last.values())} ({path[-1].gives})"] if path and path[-1].plan.fits(gpu_gib) else []
    # A detour is planned on top of the flags before it, and stands in for DeepSpeed's config and for another recipe.
    kept = [change for flag, change in last.items() if flag not in ("--deepspeed", "--recipe")]
    detours = [step for step in steps if step.detour and step.plan.fits(gpu_gib)]
    ways += [f"{', '.join([*kept, step.change])} ({step.gives})" for step in detours]
    if ways:
        what = f"change {'; or '.join(ways)}"
    elif steps:
        least = min(steps, key=lambda step: step.plan.total)
        what = f"no flag makes it fit ({least.gives} at the least), so use more or larger GPUs"
    else:
        what = "no flag makes it smaller, so use more or larger GPUs"
    return (
        f"--recipe {whole.settings.recipe} as set needs about {whole.total / GIB:.1f} GiB a GPU, of "
        f"{gpu_gib:.1f} GiB: {what}; or start all the same with --ignore_memory_plan True"
    )


def plan_of_gpu() -> float | None:
    """GiB of the visible CUDA device, None without one."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info()[1] / GIB
