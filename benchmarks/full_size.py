"""Training at the published size with random weights: samples a second, MFU, and memory planned against measured.

    python -m benchmarks.full_size --recipe lora-llm --output outputs/full_size/lora-llm.json
    python -m benchmarks.full_size --recipe full-llm --pack-tokens 8192 --questions 4

`benchmarks/gpu.sh` runs the recipes one after another. Rows are packed as the trainer packs them, images are pages
that lie on the device already (reading images is the loader's, and not measured here). Precision is the trainer's for
recipes with a frozen decoder: frozen weights in bf16, trained ones in fp32, autocast. `full-llm` and `everything` hold
weights and gradients in bf16 and Adam's moments in bf16 or, with `--optimizer adamw_8bit`, in 8 bits, which fits one
GPU: DeepSpeed's fp32 copies would need several. FLOPs are counted by `monkey.training.meter.count_flops`;
recomputation counts in HFU only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.measure import finish
from benchmarks.random_weights import page_canvases, random_model, tiny_config
from benchmarks.training import draw, packed_rows
from monkey import MonkeyConfig, MonkeyImageProcessor
from monkey.adapters import add_decoder_lora
from monkey.quantised import keep_trained_in_float32
from monkey.training.arguments import PartArguments
from monkey.training.finetune import narrow_frozen, set_checkpointing
from monkey.training.memory import StepSize, plan
from monkey.training.meter import count_flops, device_peak
from monkey.training.model_card import package_versions
from monkey.training.recipes import RECIPES, apply_recipe, base_model


def build(options: argparse.Namespace) -> tuple[torch.nn.Module, bool]:
    """The model as a run of the recipe holds it, and whether its steps need autocast."""
    recipe = RECIPES[options.recipe]
    config = tiny_config() if options.tiny else MonkeyConfig(grid=tuple(options.grid))
    model: Any = random_model(config, options.device, "4bit" if recipe.four_bit else None)
    if recipe.decoder_lora:
        model = add_decoder_lora(model, SimpleNamespace(lora_r=32, lora_alpha=32, lora_dropout=0.05))
    apply_recipe(model, recipe)
    autocast = "decoder" not in recipe.trains
    if autocast:
        narrow_frozen(model, torch.bfloat16)
        keep_trained_in_float32(model)
    parts = PartArguments(
        vision_checkpointing=options.vision_checkpointing, decoder_checkpointing=options.decoder_checkpointing
    )
    set_checkpointing(
        base_model(model), parts, SimpleNamespace(activation_checkpointing=False, activation_checkpointing_kwargs=None)
    )
    return model.train(), autocast


def show_pages(units: list[list[dict[str, Any]]], config: MonkeyConfig, device: str) -> None:
    """Put a page in the place of each image of `units`."""
    processor = MonkeyImageProcessor.from_config(config)
    for unit, canvas in zip(units, page_canvases(config, len(units)), strict=True):
        pixels = processor.normalised(torch.from_numpy(canvas)[None].to(device)).to(torch.bfloat16)
        for sample in unit:
            sample["pixel_values"] = pixels


def make_optimiser(name: str, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, lr=1e-5)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="lora-llm")
    parser.add_argument("--grid", type=int, nargs=2, default=(2, 2), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--pack-tokens", type=int, default=4096)
    parser.add_argument("--questions", type=int, default=1, help="about each picture")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--vision-checkpointing", action="store_true")
    parser.add_argument("--decoder-checkpointing", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of nothing, to try the program on a CPU")
    parser.add_argument("--optimizer", choices=("adamw", "adamw_8bit"), default="adamw", help="8 bits: bitsandbytes")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args(argv)
    options.dtype, options.seed = "bfloat16", 0
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("error: torch sees no CUDA device here; --device cpu --tiny tries the program", file=sys.stderr)
        return 2

    model, autocast = build(options)
    config = base_model(model).config
    span = config.image_tokens + 2
    options.images = max(1, options.pack_tokens // (span + 70 * options.questions))
    units = draw(options, config, options.questions)
    show_pages(units, config, options.device)
    rows, filled = packed_rows(units, options, keep_contents=True)
    contents = [row.pop("contents") for row in rows]
    optimiser = make_optimiser(options.optimizer, [p for p in model.parameters() if p.requires_grad])
    again = options.vision_checkpointing, options.decoder_checkpointing
    counters = [count_flops(config, RECIPES[options.recipe], checkpointing=kind) for kind in ((False, False), again)]
    flops = [sum(counter.of(one) for one in contents) for counter in counters]

    def step() -> float:
        finish(options.device)
        start = time.perf_counter()
        for row in rows:
            with torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=autocast):
                loss = model(**row, num_items_in_batch=sum(c.supervised for c in contents), use_cache=False).loss
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        finish(options.device)
        return time.perf_counter() - start

    step()
    seconds = statistics.median(step() for _ in range(options.steps))
    peak = device_peak(torch.device(options.device), torch.bfloat16)
    figures: dict[str, Any] = {
        "samples_per_second": sum(len(one.sources) for one in contents) / seconds,
        "seconds_a_step": seconds,
        "tflops_per_second": flops[0] / seconds / 1e12,
        "mfu": None if peak is None else flops[0] / seconds / peak,
        "hfu": None if peak is None else flops[1] / seconds / peak,
        "fill_rate": filled,
        "images": sum(one.images for one in contents),
    }
    if options.device.startswith("cuda"):
        figures["device"] = torch.cuda.get_device_name()
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        figures["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    if autocast:
        planned = plan(
            config,
            recipe=RECIPES[options.recipe],
            batch_size=0,
            pack_tokens=options.pack_tokens,
            largest_step=StepSize(
                max(one.images for one in contents), 1, options.pack_tokens, max(one.supervised for one in contents)
            ),
            vision_checkpointing=options.vision_checkpointing,
            decoder_checkpointing=options.decoder_checkpointing,
        )
        figures["planned_gib"] = planned.total / 2**30
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    result = {"benchmark": "full_size", "figures": figures, "settings": settings, "versions": package_versions()}
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
