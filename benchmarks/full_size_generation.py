"""Answering at the published size with random weights: vision, first token, decoding and memory on one GPU.

    python -m benchmarks.full_size_generation --output outputs/full_size/generation.json
    python -m benchmarks.full_size_generation --compile
    python -m benchmarks.full_size_generation --quantization 4bit

`benchmarks/gpu.sh` runs the three. Weights are random and made on the device: no answer means anything, and speed and
memory are those of the published ones. Images are pages. Decoding is the engine's, behind `monkey.ask`, the demo
and the server.

Figures: `vision_images_per_second`, `first_token_seconds` (from pixels) and `tokens_per_second` after it, by how many
images or requests at once; `peak_gb` and `reserved_gb` (10^9 bytes) of one request about one image, weights included.
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

import numpy as np
import torch

from benchmarks.engine_run import TOKENS_AS_NUMBERS, run_engine
from benchmarks.measure import finish, seconds
from benchmarks.random_weights import PACKINGS, page_canvases, random_model, tiny_config
from monkey import MonkeyConfig, MonkeyForConditionalGeneration, MonkeyImageProcessor
from monkey.engine import Canvas, Engine
from monkey.training.model_card import package_versions


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, nargs=2, default=(2, 2), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--images", type=int, nargs="+", default=(1, 4, 16), help="at once through the vision side")
    parser.add_argument("--requests", type=int, nargs="+", default=(1, 8), help="answered at once")
    parser.add_argument("--question", type=int, default=50, help="tokens of a prompt beside its image")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile the step that writes a token")
    parser.add_argument("--quantization", choices=PACKINGS, help="pack the decoder's weights (bitsandbytes, torchao)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of nothing, to try the program on a CPU")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args(argv)
    cuda = options.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        print("error: torch sees no CUDA device here; --device cpu --tiny tries the program", file=sys.stderr)
        return 2
    if options.compile and not cuda:
        print("error: --compile is for CUDA; leave it out", file=sys.stderr)
        return 2

    config = tiny_config() if options.tiny else MonkeyConfig(grid=tuple(options.grid))
    model = random_model(config, options.device, options.quantization).eval()
    figures = measured(model, options)
    if cuda:
        figures["device"] = torch.cuda.get_device_name()
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    result = {
        "benchmark": "full_size_generation",
        "figures": figures,
        "settings": settings,
        "versions": package_versions(),
    }
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


@torch.no_grad()
def measured(model: MonkeyForConditionalGeneration, options: argparse.Namespace) -> dict[str, Any]:
    """The figures, by number of images or requests."""
    config, device = model.config, options.device
    height, width = (side * config.window_size for side in config.grid)
    numbers = np.random.default_rng(0)
    canvases = np.stack(page_canvases(config, max(*options.images, *options.requests)))
    image_processor = MonkeyImageProcessor(size={"height": height, "width": width})
    processor = SimpleNamespace(tokenizer=TOKENS_AS_NUMBERS, image_processor=image_processor)
    figures: dict[str, Any] = {"vision_images_per_second": {}, "first_token_seconds": {}, "tokens_per_second": {}}

    for count in options.images:
        pixels = image_processor.normalised(torch.from_numpy(canvases[:count]).to(device)).to(model.dtype)
        model.get_image_features(pixels)
        taken = statistics.median(
            seconds(lambda pixels=pixels: model.get_image_features(pixels), device) for _ in range(options.repeats)
        )
        figures["vision_images_per_second"][count] = count / taken

    span = [config.image_start_id, *[config.image_pad_id] * config.image_tokens, config.image_end_id]
    words = numbers.integers(0, config.image_start_id - 1, (len(canvases), options.question)).tolist()
    for count in options.requests:
        engine = Engine(model, processor, max_rows=count, cache_bytes=0, compiled=options.compile)
        images = [Canvas(bytes([row]), canvases[row]) for row in range(count)]
        prompts = [[*span, *words[row]] for row in range(count)]

        def run(engine=engine, prompts=prompts, images=images) -> tuple[float, float]:
            start = _now(device)
            written = run_engine(engine, prompts, images, options.new_tokens)
            return written.first - start, written.between / (written.last - written.first)

        warm_up = seconds(run, device)
        if options.compile:
            figures.setdefault("warm_up_seconds", {})[count] = warm_up
        if device.startswith("cuda") and count == 1:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            run()
            figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            figures["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
        runs = [run() for _ in range(options.repeats)]
        figures["first_token_seconds"][count] = statistics.median(first for first, _ in runs)
        figures["tokens_per_second"][count] = statistics.median(rate for _, rate in runs)
        engine.close()
    return figures


def _now(device: str) -> float:
    """The moment, once the device's queue is empty."""
    finish(device)
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
