"""The vision side beside the published order of work, same weights, outputs compared in the same run.

    python -m benchmarks.vision
    python -m benchmarks.vision --quick
    python -m benchmarks.vision --device cuda --dtype bfloat16 --width 1664 --layers 48 --heads 16 --images 4

The baseline encodes window after window, materialises attention and multiplies each adapter apart. Ratios:
`vision_speedup` baseline / ours in time of a forward pass; `vision_memory_ratio` ours / baseline in peak bytes of a
forward and backward pass (activations and gradients, not the weights); `matmul_fraction` our share of the machine's
matrix-product rate, measured in the same run; `ragged_rate` views a second of a batch of images on several grids, over
views a second of one on a single grid, forwards, and `ragged_train_rate` forwards and backwards.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import arguments, compare, largest_difference, matmul_rate, peak_bytes, report
from benchmarks.published import PublishedMonkey
from benchmarks.random_weights import made_on
from monkey import MonkeyConfig, MonkeyForConditionalGeneration
from monkey.checkpoint import published_names
from monkey.vision import WindowAdapter

RAGGED = ((1, 2), (2, 2), (3, 1), (2, 3))
"""Grids of a ragged batch: oblong both ways, square, and large, with 19 views; four images on 2×2 windows have 20."""


def build(options, grids: Sequence[tuple[int, int]] | None = None) -> MonkeyForConditionalGeneration:
    """A model with random weights whose adapters matter; its decoder is as small as can be."""
    torch.manual_seed(options.seed)
    config = MonkeyConfig(
        grid=tuple(options.grid),
        grids=None if grids is None else [list(grid) for grid in grids],
        vision_config={
            "hidden_size": options.width,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
        },
        text_config={
            "hidden_size": options.output_width,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": options.output_width // 128,
            "vocab_size": 1024,
        },
        image_start_id=982,
    )
    with made_on(options.device, getattr(torch, options.dtype)):
        model = MonkeyForConditionalGeneration(config).eval()
    for module in model.modules():
        if isinstance(module, WindowAdapter):
            torch.nn.init.normal_(module.up, std=0.02)
    return model


def train_step(encode, pixels, parameters) -> None:
    """Forward and backward of a scalar that depends on every feature."""
    for parameter in parameters:
        parameter.grad = None
    encode(pixels).float().square().mean().backward()


def parser() -> argparse.ArgumentParser:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=416)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4, help="104 wide each by default, as published")
    parser.add_argument("--output-width", type=int, default=512)
    parser.add_argument("--grid", type=int, nargs=2, default=(2, 2), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--images", type=int, default=1)
    return parser


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.quick:
        options.layers, options.repeats = min(options.layers, 2), min(options.repeats, 3)

    model = build(options)
    visual = model.model.visual
    baseline = PublishedMonkey(published_names(model, dict(model.state_dict())), model.config)
    pixels = torch.randn(options.images, 3, *model.config.canvas_size, device=options.device)
    ratios: dict[str, float] = {}

    with torch.no_grad():
        difference = largest_difference(baseline.image_features(pixels), visual(pixels))
        scale = float(visual(pixels).float().abs().max())
        tolerance = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}[options.dtype] * max(scale, 1.0)
        if difference > tolerance:
            raise SystemExit(f"error: the two sides differ by {difference:.2e}, more than {tolerance:.2e}")
        theirs, ours, ratios["vision_speedup"] = compare(
            lambda: baseline.image_features(pixels), lambda: visual(pixels), options.repeats, options.device
        )
        with FlopCounterMode(display=False) as counter:
            visual(pixels)
        rate = matmul_rate(options.device, getattr(torch, options.dtype))
        ratios["matmul_fraction"] = counter.get_total_flops() / ours / rate
        print(f"forward: published order {theirs:.3f} s, ours {ours:.3f} s, largest difference {difference:.1e}")
        print(f"ours: {counter.get_total_flops() / ours / 1e9:.0f} of the machine's {rate / 1e9:.0f} GFLOP/s")
        if options.device == "cpu" and options.dtype == "float32":
            _half_precision(model, pixels, ours, ratios)

    trained = {name: tensor.detach().requires_grad_() for name, tensor in baseline.tensors.items()}
    trainable = PublishedMonkey(trained, model.config)
    theirs_peak = peak_bytes(lambda: train_step(trainable.image_features, pixels, trained.values()), options.device)
    ours_peak = peak_bytes(lambda: train_step(visual, pixels, visual.parameters()), options.device)
    ratios["vision_memory_ratio"] = ours_peak / theirs_peak
    print(f"forward and backward: published order {theirs_peak / 2**20:.0f} MiB, ours {ours_peak / 2**20:.0f} MiB")
    beside_fixed(options, ratios)
    report("vision", ratios, vars(options))
    return 0


def beside_fixed(options, ratios: dict[str, float]) -> None:
    """A batch of images on several grids beside one of as many on the one grid, per view."""
    fixed, ragged = build(options).model.visual, build(options, RAGGED).model.visual
    config, own = ragged.config, RAGGED * options.images
    windows = torch.randn(sum(map(math.prod, own)), 3, config.window_size, config.window_size, device=options.device)
    canvases = torch.randn(len(own), 3, *config.canvas_size, device=options.device)
    tokens = len(own) * config.image_tokens, sum(map(config.tokens_of, own))
    views = [count // config.vision_config.num_queries for count in tokens]

    def rate(run_fixed: Callable[[], object], run_ragged: Callable[[], object]) -> float:
        fixed_seconds, ragged_seconds, ratio = compare(run_fixed, run_ragged, options.repeats, options.device)
        print(f"  {views[0] / fixed_seconds:.2f} views/s on one grid, {views[1] / ragged_seconds:.2f} on several")
        return ratio * views[1] / views[0]

    print(f"{len(own)} images on one grid, {views[0]} views, beside {len(own)} on several, {views[1]} views:")
    with torch.no_grad():
        ratios["ragged_rate"] = rate(partial(fixed, canvases), partial(ragged, windows, own))
    ratios["ragged_train_rate"] = rate(
        partial(train_step, fixed, canvases, list(fixed.parameters())),
        partial(train_step, partial(ragged, grids=own), windows, list(ragged.parameters())),
    )


def _half_precision(model, pixels, full_seconds: float, ratios: dict[str, float]) -> None:
    """bfloat16 beside float32 on a CPU: faster where the processor multiplies it, with the error it costs."""
    exact = model.model.visual(pixels)
    half = model.model.visual.to(torch.bfloat16)
    _, seconds, _ = compare(lambda: None, lambda: half(pixels), 3, "cpu")
    error = float((half(pixels).float() - exact).norm() / exact.norm())
    ratios["vision_bf16_speedup"], ratios["vision_bf16_relative_error"] = full_seconds / seconds, error
    print(f"bfloat16: {seconds:.3f} s, relative error {error:.1e}")
    model.model.visual.to(torch.float32)


if __name__ == "__main__":
    sys.exit(main())
