"""A training step beside one that is made as the published code makes it: same weights, same samples, same loss.

    python -m benchmarks.training
    python -m benchmarks.training --quick
    python -m benchmarks.training --device cuda --dtype bfloat16 --width 2048 --layers 24 --images 4 --pack-tokens 4096

A step is forward and backward over all samples and one AdamW update, of the recipe `full-llm`. The baseline pads every
sample to 2048 tokens, encodes its image anew, window after window, materialises attention, computes the logits of
every position, and goes through the samples one by one, as the published script does with its batch of 1. Ours packs
the questions about an image behind it, into rows of at most `--pack-tokens`.

The published script checkpoints the decoder. Here neither side does unless `--decoder-checkpointing` asks both to: so
the baseline is not charged for a recomputation that a small model does not need, and no gain in time is bought by
leaving it out on one side. `--vision-checkpointing` is ours alone. Images are decoded beforehand and random on both
sides. Dropout is off on both sides, so that losses and gradient norms can be, and are, compared: a difference ends the
run before it reports anything.

Ratios: `step_speedup_K` baseline / ours in time with K questions per image; `memory_ratio_K` ours / baseline in bytes
at the peak of a step, weights and optimiser's state included, and `memory_ratio` the largest of them; `ragged_rate`
views (windows and global views) a second in our steps with images on several grids, over the same on one. Figures:
samples/s, GiB, tokens read in the decoder and the part of them that is no padding, and `seconds_after`: forward and
backward with the fewest questions, in the published order and after each of our changes, one run each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import arguments, compare, peak_bytes, report, seconds
from benchmarks.published import PublishedMonkey
from benchmarks.random_weights import made_on
from benchmarks.vision import RAGGED
from monkey import MonkeyConfig, MonkeyForConditionalGeneration
from monkey.checkpoint import published_names
from monkey.data.packing import RowSettings, SampleSizes, fill_rate, packed_batch, rows_of, units_of
from monkey.grids import Grid
from monkey.processing import UNSUPERVISED
from monkey.training.recipes import RECIPES, apply_recipe
from monkey.vision import WindowAdapter

PADDED = 2048
"""Tokens that the published script pads every sample to."""

TEXT_TOKENS = (20, 120)
"""Fewest and most tokens of text of a sample; a fifth of them, the last ones, are the answer."""

# Relative difference of losses that is rounding: sums of thousands of products in another order.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 1e-2}

Batches = list[dict[str, Any]]


class PublishedStep(PublishedMonkey):
    """The published order of work, with the decoder's layers recomputed in the backward pass if asked."""

    checkpointing = False

    def decoder_block(self, hidden, *rest):
        if not self.checkpointing:
            return super().decoder_block(hidden, *rest)
        return checkpoint(super().decoder_block, hidden, *rest, use_reentrant=False)


def configuration(options, grids: Sequence[Grid] | None = None) -> MonkeyConfig:
    """Sizes of the flags, without dropout."""
    return MonkeyConfig(
        grid=tuple(options.grid),
        grids=None if grids is None else [list(grid) for grid in grids],
        vision_config={
            "hidden_size": options.vision_width,
            "num_hidden_layers": options.vision_layers,
            "num_attention_heads": options.vision_heads,
            "adapter_dropout": 0.0,
        },
        text_config={
            "hidden_size": options.width,
            "intermediate_size": options.width * 43 // 16,
            "num_hidden_layers": options.layers,
            # Heads of 128, as published: narrower ones would make the baseline's attention matrices more.
            "num_attention_heads": max(1, options.width // 128),
            "vocab_size": options.vocabulary,
            "seq_length": PADDED,
        },
        image_start_id=options.vocabulary - 79,
    )


def build(config: MonkeyConfig, options) -> MonkeyForConditionalGeneration:
    """A model with random weights whose adapters matter, set to train as `full-llm`."""
    torch.manual_seed(options.seed)
    with made_on(options.device, getattr(torch, options.dtype)):
        model = MonkeyForConditionalGeneration(config).train()
    for module in model.modules():
        if isinstance(module, WindowAdapter):
            torch.nn.init.normal_(module.up, std=0.02)
    apply_recipe(model, RECIPES["full-llm"])
    for layers, wanted in (
        (model.model.visual.blocks, options.vision_checkpointing),
        (model.model.language_model.layers, options.decoder_checkpointing),
    ):
        for layer in layers:
            layer.gradient_checkpointing = wanted
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return model


def draw(options, config: MonkeyConfig, questions: int, grids: Sequence[Grid] = ()) -> list[list[dict[str, Any]]]:
    """Images with so many questions each: units of samples.

    Args:
        grids: of the images; `--images` of them on the model's grid where there are none.
    """
    generator = torch.Generator().manual_seed(options.seed + questions)

    def ids(count: int) -> list[int]:
        return torch.randint(1, config.eod_id, (count,), generator=generator).tolist()

    fewest, most = TEXT_TOKENS
    units = []
    for image, grid in enumerate(grids or [config.grid] * options.images):
        span = [config.image_start_id, *[config.image_pad_id] * config.tokens_of(grid), config.image_end_id]
        pixels = torch.randn(1, 3, *config.canvas_size, generator=generator)
        if config.is_ragged:
            pixels = torch.randn(math.prod(grid), 3, config.window_size, config.window_size, generator=generator)
        unit = []
        for number in range(questions):
            length = int(torch.randint(fewest, most + 1, (1,), generator=generator))
            prompt, answer = [*span, *ids(length - length // 5)], ids(length // 5)
            sample = {
                "input_ids": [*prompt, *answer],
                "labels": [UNSUPERVISED] * len(prompt) + answer,
                "source": f"image {image}, question {number}",
                "shared": len(span),
                "pixel_values": pixels.to(options.device, getattr(torch, options.dtype)),
            }
            if config.is_ragged:
                sample["image_grids"] = torch.tensor([grid])
            unit.append(sample)
        units.append(unit)
    return units


def packed_rows(units: Sequence[Sequence[dict]], options, keep_contents: bool = False) -> tuple[Batches, float]:
    """Our batches, as the trainer's plan makes them, with their `contents` if asked, and how full the rows are."""
    samples = [sample for unit in units for sample in unit]
    columns = (
        [len(sample["input_ids"]) for sample in samples],
        [sample["shared"] for sample in samples],
        [image for image, unit in enumerate(units) for _ in unit],
        [1] * len(samples),
        [supervised(sample) for sample in samples],
    )
    sizes = SampleSizes(*(np.array(column) for column in columns))
    settings = RowSettings(budget=options.pack_tokens)
    rows = list(rows_of(units_of(range(len(samples)), sizes, settings), sizes, settings))
    batches = []
    for row in rows:
        members = []
        for unit in row:
            first, *others = (samples[index] for index in unit)
            images = ("pixel_values", "image_grids")
            members.append([first, *({k: v for k, v in one.items() if k not in images} for one in others)])
        batch = packed_batch(members, options.pack_tokens, filler_id=0)
        contents = batch.pop("contents")
        batches.append({name: tensor.to(options.device) for name, tensor in batch.items()})
        if keep_contents:
            batches[-1]["contents"] = contents
    return batches, fill_rate(rows, sizes, options.pack_tokens)


def padded_samples(units: Sequence[Sequence[dict]], config: MonkeyConfig, device: str) -> Batches:
    """The baseline's batches of one, each padded to `PADDED`."""
    batches = []
    for sample in (sample for unit in units for sample in unit):
        empty = PADDED - len(sample["input_ids"])
        row = {
            "input_ids": [*sample["input_ids"], *[config.eod_id] * empty],
            "attention_mask": [1] * len(sample["input_ids"]) + [0] * empty,
            "labels": [*sample["labels"], *[UNSUPERVISED] * empty],
        }
        tensors = {name: torch.tensor([values], device=device) for name, values in row.items()}
        batches.append({**tensors, "pixel_values": sample["pixel_values"]})
    return batches


def at_supervised_positions(batches: Batches) -> Batches:
    """Batches of one with the positions of their loss in place of labels."""
    changed = []
    for batch in batches:
        others = {name: tensor for name, tensor in batch.items() if name != "labels"}
        targets = batch["labels"][0, 1:]
        positions = (targets != UNSUPERVISED).nonzero()[:, 0]
        changed.append({**others, "loss_positions": positions, "loss_targets": targets[positions]})
    return changed


def supervised(sample: dict[str, Any]) -> int:
    return sum(label != UNSUPERVISED for label in sample["labels"])


def our_passes(model: MonkeyForConditionalGeneration, batches: Batches, total: int) -> float:
    """Forward and backward over all batches; the loss a supervised token, of which there are `total`."""
    losses = []
    for batch in batches:
        loss = model(**batch, num_items_in_batch=total, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())
    return float(sum(losses))


def their_passes(baseline: PublishedMonkey, batches: Batches, total: int) -> float:
    losses = []
    for batch in batches:
        loss = baseline.loss(**batch) * ((batch["labels"] != UNSUPERVISED).sum() / total)
        loss.backward()
        losses.append(loss.detach())
    return float(sum(losses))


class Side:
    """One of the two: its passes over the same samples, its weights and their optimiser.

    Updates are of rate zero, so that every step starts from the same weights.
    """

    def __init__(self, weights: Sequence[torch.Tensor]):
        self.weights = weights
        self.trained = [weight for weight in weights if weight.requires_grad]
        self._optimiser = torch.optim.AdamW(self.trained, lr=0.0, fused=True)
        self.passes: Callable[[], float] = lambda: 0.0

    def step(self) -> float:
        loss = self.passes()
        self._update()
        return loss

    def first_step(self, device: str) -> tuple[int, float, float]:
        """Peak bytes of a step, its loss and the norm of its gradients."""
        losses: list[float] = []
        peak = peak_bytes(lambda: losses.append(self.passes()), device)
        norm = float(torch.stack([p.grad.float().norm() for p in self.trained if p.grad is not None]).norm())
        self._update()
        kept = [value for state in self._optimiser.state.values() for value in state.values()]
        resident = sum(t.nbytes for t in (*self.weights, *kept) if isinstance(t, torch.Tensor))
        return resident + peak, losses[0], norm

    def _update(self) -> None:
        self._optimiser.step()
        self._optimiser.zero_grad()


def published_copy(model: MonkeyForConditionalGeneration) -> PublishedStep:
    """The baseline on weights of its own, equal to the model's, of which the same train."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = model.state_dict()
    tensors = published_names(model, {name: tensor.clone() for name, tensor in state.items()})
    # A row of the published layout trains where the tensor of ours that it comes from does.
    flags = published_names(model, {name: torch.full_like(t, float(name in trained)) for name, t in state.items()})
    return PublishedStep(
        {name: tensor.contiguous().requires_grad_(bool(flags[name].flatten()[0])) for name, tensor in tensors.items()},
        model.config,
    )


def beside_published(options) -> tuple[dict[str, float], dict[str, Any]]:
    """Return ratios and figures of both sides at every number of questions."""
    config = configuration(options)
    model = build(config, options)
    baseline = published_copy(model)
    baseline.checkpointing = options.decoder_checkpointing
    ours, theirs = Side(list(model.parameters())), Side(list(baseline.tensors.values()))
    ratios: dict[str, float] = {}
    figures: dict[str, Any] = {}
    for questions in options.questions:
        units = draw(options, config, questions)
        total = sum(supervised(sample) for unit in units for sample in unit)
        rows, filled = packed_rows(units, options)
        samples = padded_samples(units, config, options.device)
        ours.passes = partial(our_passes, model, rows, total)
        theirs.passes = partial(their_passes, baseline, samples, total)

        (their_peak, *their_figures), (our_peak, *our_figures) = (s.first_step(options.device) for s in (theirs, ours))
        _refuse_difference(their_figures, our_figures, options.dtype)
        their_seconds, our_seconds, ratio = compare(
            theirs.step, ours.step, options.repeats, options.device, warm_up=False
        )
        ratios[f"step_speedup_{questions}"] = ratio
        ratios[f"memory_ratio_{questions}"] = our_peak / their_peak
        tokens = sum(len(sample["input_ids"]) for unit in units for sample in unit)
        read = sum(row["input_ids"].numel() for row in rows)
        figures[f"questions_{questions}"] = {
            "published": _rates(len(samples) / their_seconds, their_peak, len(samples) * PADDED, tokens),
            "ours": _rates(len(samples) / our_seconds, our_peak, read, read),
            "rows": len(rows),
            "row_fill_rate": round(filled, 4),
            "loss": their_figures[0],
        }
        print(
            f"{questions} question(s) per image: published order {len(samples) / their_seconds:.3f} samples/s and "
            f"{their_peak / 2**20:.0f} MiB, ours {len(samples) / our_seconds:.3f} samples/s and "
            f"{our_peak / 2**20:.0f} MiB; {len(rows)} row(s), {filled:.0%} full",
            flush=True,
        )
        if questions == min(options.questions):
            changes = {
                "published order": theirs.passes,
                "views in one pass, fused attention": partial(our_passes, model, samples, total),
                "logits where supervised": partial(our_passes, model, at_supervised_positions(samples), total),
                "no padding": ours.passes,
            }
            figures["seconds_after"] = _seconds_after(changes, (*ours.trained, *theirs.trained), options.device)
            print("  " + ", ".join(f"{name} {value:.2f} s" for name, value in figures["seconds_after"].items()))
    ratios["memory_ratio"] = max(ratios[f"memory_ratio_{questions}"] for questions in options.questions)
    return ratios, figures


def beside_fixed(options) -> float:
    """Rate of views in steps over images on several grids, beside as many on the one grid, a question each."""
    sides, views = [], []
    for grids in (None, RAGGED):
        config = configuration(options, grids)
        model = build(config, options)
        own = RAGGED if grids else [config.grid] * len(RAGGED)
        units = draw(options, config, 1, own)
        rows, _ = packed_rows(units, options)
        side = Side(list(model.parameters()))
        side.passes = partial(our_passes, model, rows, sum(supervised(sample) for (sample,) in units))
        sides.append(side)
        views.append(sum(map(config.tokens_of, own)) // config.vision_config.num_queries)
    (fixed, ragged), (fixed_views, ragged_views) = sides, views
    seconds_of_fixed, seconds_of_ragged, ratio = compare(fixed.step, ragged.step, options.repeats, options.device)
    print(
        f"{len(RAGGED)} images on one grid {fixed_views / seconds_of_fixed:.3f} views/s, on several "
        f"{ragged_views / seconds_of_ragged:.3f}",
        flush=True,
    )
    return ratio * ragged_views / fixed_views


def _rates(samples_a_second: float, peak: int, read: int, tokens: int) -> dict[str, float]:
    return {
        "samples_per_second": round(samples_a_second, 4),
        "peak_gib": round(peak / 2**30, 3),
        "tokens_read": read,
        "not_padding": round(tokens / read, 4),
    }


def _seconds_after(
    changes: dict[str, Callable[[], float]], trained: Sequence[torch.Tensor], device: str
) -> dict[str, float]:
    """Forward and backward after each change."""
    measured = {}
    for name, passes in changes.items():
        measured[name] = round(seconds(passes, device), 3)
        for tensor in trained:
            tensor.grad = None
    return measured


def _refuse_difference(theirs: Sequence[float], ours: Sequence[float], dtype: str) -> None:
    """SystemExit where losses, or the norms of the gradients, are not those of the same step."""
    for what, their_figure, our_figure in zip(("loss", "gradient norm"), theirs, ours, strict=True):
        # Written so that a NaN is a difference.
        if not abs(our_figure - their_figure) <= TOLERANCE[dtype] * abs(their_figure):
            raise SystemExit(f"error: the {what} of the two sides differs: {their_figure:.6f} and {our_figure:.6f}")


def parse(argv: list[str] | None) -> Any:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 2, 5], help="per image")
    parser.add_argument("--images", type=int, default=1, help="in a step")
    parser.add_argument("--pack-tokens", type=int, default=PADDED, help="most tokens of a row of ours")
    parser.add_argument("--width", type=int, default=512, help="of the decoder")
    parser.add_argument("--layers", type=int, default=8, help="of the decoder")
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--vision-width", type=int, default=416)
    parser.add_argument("--vision-layers", type=int, default=6)
    parser.add_argument("--vision-heads", type=int, default=4, help="104 wide each by default, as published")
    parser.add_argument("--grid", type=int, nargs=2, default=(2, 2), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--decoder-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--vision-checkpointing", action="store_true", help="ours only")
    options = parser.parse_args(argv)
    if options.quick:
        options.layers, options.vision_layers, options.repeats = 1, 1, 1
        options.vocabulary = min(options.vocabulary, 4096)
    longest = configuration(options).image_tokens + 2 + TEXT_TOKENS[1]
    room = min(options.pack_tokens, PADDED)
    if longest > room:
        parser.error(
            f"--grid {options.grid[0]} {options.grid[1]} makes samples of up to {longest} tokens, and a row holds "
            f"{room}: give a smaller --grid, or --pack-tokens {PADDED} or more"
        )
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    ratios, figures = beside_published(options)
    ratios["ragged_rate"] = beside_fixed(options)
    report("training", ratios, vars(options), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
