"""A training step beside one that is made as the published code makes it: same weights, same samples, same loss.

    python -m benchmarks.training
    python -m benchmarks.training --quick
    python -m benchmarks.training --device cuda --dtype bfloat16 --width 4096 --layers 32 --questions 1 4

A step is forward and backward over all samples and one AdamW update, of the recipe `full-llm`. The baseline pads every
sample to 2048 tokens, encodes its picture anew, window after window, materialises attention, computes the logits of
every position, and goes through the samples one by one, as the published script does with its batch of 1. Ours packs
the questions about a picture behind it into rows of at most `--pack-tokens`. Neither side checkpoints activations
unless `--checkpointing` asks both to (the published script does so in the decoder). Pictures are decoded beforehand on
both sides. Dropout is off on both sides, so that losses and gradient norms can be, and are, compared: a difference ends
the run.

Ratios: `step_speedup_K` baseline / ours in time with K questions a picture; `memory_ratio_K` ours / baseline in peak
bytes of forward and backward, and `memory_ratio` that of one question; `padding_K`, `tokens_K` tokens that the baseline
and ours read in the decoder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import arguments, compare, peak_bytes, report
from benchmarks.published import PublishedMonkey
from monkey import MonkeyConfig, MonkeyForConditionalGeneration
from monkey.checkpoint import published_names
from monkey.data.batches import packed_batch
from monkey.data.packing import RowSettings, SampleSizes, fill_rate, rows_of, units_of
from monkey.training.recipes import RECIPES, apply_recipe
from monkey.vision import WindowAdapter

PADDED = 2048
"""Tokens that the published script pads every sample to."""

# Relative difference of losses that is rounding: sums of thousands of products in another order.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 1e-2}


class PublishedStep(PublishedMonkey):
    """The published order of work, with the decoder's layers recomputed in the backward pass if asked."""

    checkpointing = False

    def decoder_block(self, hidden, *rest):
        if not self.checkpointing:
            return super().decoder_block(hidden, *rest)
        return checkpoint(super().decoder_block, hidden, *rest, use_reentrant=False)


def build(options) -> MonkeyForConditionalGeneration:
    """A model with random weights whose adapters matter, set to train as `full-llm`."""
    torch.manual_seed(options.seed)
    config = MonkeyConfig(
        grid=tuple(options.grid),
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
            "num_attention_heads": options.width // 64 if options.width < 4096 else 32,
            "vocab_size": options.vocabulary,
            "seq_length": PADDED,
        },
        image_start_id=options.vocabulary - 79,
    )
    model = MonkeyForConditionalGeneration(config).to(options.device, getattr(torch, options.dtype)).train()
    for module in model.modules():
        if isinstance(module, WindowAdapter):
            torch.nn.init.normal_(module.up, std=0.02)
    apply_recipe(model, RECIPES["full-llm"])
    if options.checkpointing:
        for layer in model.model.language_model.layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return model


def draw(options, config: MonkeyConfig, questions: int) -> list[list[dict[str, Any]]]:
    """Pictures with so many questions each: units of samples of 20 to 120 tokens of text, a fifth of it the answer."""
    generator = torch.Generator().manual_seed(options.seed + questions)

    def ids(count: int) -> list[int]:
        return torch.randint(1, config.eod_id, (count,), generator=generator).tolist()

    span = [config.image_start_id, *[config.image_pad_id] * config.image_tokens, config.image_end_id]
    units = []
    for picture in range(options.images):
        pixels = torch.randn(1, 3, *config.canvas_size, generator=generator).to(options.device)
        unit = []
        for number in range(questions):
            length = int(torch.randint(20, 121, (1,), generator=generator))
            prompt, answer = [*span, *ids(length - length // 5)], ids(length // 5)
            sample = {
                "input_ids": [*prompt, *answer],
                "labels": [-100] * len(prompt) + answer,
                "source": f"picture {picture}, question {number}",
                "shared": len(span),
                "pixel_values": pixels.to(getattr(torch, options.dtype)),
            }
            unit.append(sample)
        units.append(unit)
    return units


def packed_rows(units: Sequence[Sequence[dict]], options) -> tuple[list[dict[str, Any]], float]:
    """Our batches, as the trainer's plan makes them, and how full they are."""
    samples = [sample for unit in units for sample in unit]
    pictures = [number for number, unit in enumerate(units) for _ in unit]
    supervised = [sum(label != -100 for label in sample["labels"]) for sample in samples]
    columns = ([len(x["input_ids"]) for x in samples], [x["shared"] for x in samples], pictures)
    sizes = SampleSizes(*(torch.tensor(c).numpy() for c in (*columns, [1] * len(samples), supervised)))
    settings = RowSettings(budget=options.pack_tokens)
    rows = list(rows_of(units_of(range(len(samples)), sizes, settings), sizes, settings))
    batches = []
    for row in rows:
        members = []
        for unit in row:
            first, *others = (samples[index] for index in unit)
            members.append([first, *({k: v for k, v in one.items() if k != "pixel_values"} for one in others)])
        batch = packed_batch(members, options.pack_tokens, filler_id=0)
        del batch["contents"]
        batches.append({name: tensor.to(options.device) for name, tensor in batch.items()})
    return batches, fill_rate(rows, sizes, options.pack_tokens)


def padded_samples(units: Sequence[Sequence[dict]], config: MonkeyConfig, device: str) -> list[dict[str, Any]]:
    """The baseline's batches of one, each padded to `PADDED`."""
    batches = []
    for sample in (sample for unit in units for sample in unit):
        empty = PADDED - len(sample["input_ids"])
        row = {
            "input_ids": [*sample["input_ids"], *[config.eod_id] * empty],
            "attention_mask": [1] * len(sample["input_ids"]) + [0] * empty,
            "labels": [*sample["labels"], *[-100] * empty],
        }
        tensors = {name: torch.tensor([values], device=device) for name, values in row.items()}
        batches.append({**tensors, "pixel_values": sample["pixel_values"]})
    return batches


def our_passes(model: MonkeyForConditionalGeneration, batches: list[dict], total: int) -> float:
    """Forward and backward over all rows; the loss a supervised token."""
    losses = []
    for batch in batches:
        loss = model(**batch, num_items_in_batch=total, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())
    return float(sum(losses))


def their_passes(baseline: PublishedMonkey, batches: list[dict], total: int) -> float:
    losses = []
    for batch in batches:
        loss = baseline.loss(**batch) * ((batch["labels"] != -100).sum() / total)
        loss.backward()
        losses.append(loss.detach())
    return float(sum(losses))


def gradient_norm(parameters: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([p.grad.float().norm() for p in parameters if p.grad is not None]).norm())


def with_update(passes: Callable[[], float], optimiser: torch.optim.Optimizer) -> Callable[[], float]:
    """A whole step. The update is of rate zero, so that every step starts from the same weights."""

    def step() -> float:
        loss = passes()
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return step


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 2, 5], help="a picture")
    parser.add_argument("--images", type=int, default=1, help="in a step")
    parser.add_argument("--pack-tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512, help="of the decoder")
    parser.add_argument("--layers", type=int, default=8, help="of the decoder")
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--vision-width", type=int, default=512)
    parser.add_argument("--vision-layers", type=int, default=6)
    parser.add_argument("--vision-heads", type=int, default=8)
    parser.add_argument("--grid", type=int, nargs=2, default=(2, 2), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--checkpointing", action="store_true", help="of the decoder, on both sides")
    options = parser.parse_args(argv)
    if options.quick:
        options.layers, options.vision_layers, options.repeats = 1, 1, 1
        options.questions = [number for number in options.questions if number < 3]

    model = build(options)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = published_names(model, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    # A row of the published layout trains where the tensor of ours that it comes from does.
    flags = published_names(model, {n: torch.full_like(t, float(n in trained)) for n, t in model.state_dict().items()})
    baseline = PublishedStep(
        {name: tensor.contiguous().requires_grad_(bool(flags[name].flatten()[0])) for name, tensor in tensors.items()},
        model.config,
    )
    baseline.checkpointing = options.checkpointing
    ours_trained = [p for p in model.parameters() if p.requires_grad]
    theirs_trained = [t for t in baseline.tensors.values() if t.requires_grad]
    ours_update, theirs_update = (torch.optim.AdamW(p, lr=0.0) for p in (ours_trained, theirs_trained))

    ratios: dict[str, float] = {}
    for questions in options.questions:
        units = draw(options, model.config, questions)
        total = sum(label != -100 for unit in units for sample in unit for label in sample["labels"])
        rows, filled = packed_rows(units, options)
        samples = padded_samples(units, model.config, options.device)
        ours, theirs = partial(our_passes, model, rows, total), partial(their_passes, baseline, samples, total)
        _check_equal(ours, theirs, ours_trained, theirs_trained, options.dtype)

        their_seconds, our_seconds, ratio = compare(
            with_update(theirs, theirs_update), with_update(ours, ours_update), options.repeats, options.device
        )
        their_peak, our_peak = (peak_bytes(passes, options.device) for passes in (theirs, ours))
        ours_update.zero_grad()
        theirs_update.zero_grad()
        ratios[f"step_speedup_{questions}"] = ratio
        ratios[f"memory_ratio_{questions}"] = our_peak / their_peak
        ratios[f"padding_{questions}"] = len(samples) * PADDED
        ratios[f"tokens_{questions}"] = sum(row["input_ids"].numel() for row in rows)
        print(
            f"{questions} question(s) a picture: published order {len(samples) / their_seconds:.3f} samples/s and "
            f"{their_peak / 2**20:.0f} MiB, ours {len(samples) / our_seconds:.3f} samples/s and "
            f"{our_peak / 2**20:.0f} MiB; {len(rows)} row(s), {filled:.0%} full",
            flush=True,
        )
    ratios["memory_ratio"] = ratios[f"memory_ratio_{options.questions[0]}"]
    report("training", ratios, vars(options))
    return 0


def _check_equal(
    ours: Callable[[], float],
    theirs: Callable[[], float],
    ours_trained: Sequence[torch.Tensor],
    theirs_trained: Sequence[torch.Tensor],
    dtype: str,
) -> None:
    """SystemExit where losses, or the norms of the gradients, are not those of the same step."""
    figures = [(theirs(), gradient_norm(theirs_trained)), (ours(), gradient_norm(ours_trained))]
    for tensor in (*ours_trained, *theirs_trained):
        tensor.grad = None
    for what, their_figure, our_figure in zip(("loss", "gradient norm"), *figures, strict=True):
        if abs(our_figure - their_figure) > TOLERANCE[dtype] * abs(their_figure):
            raise SystemExit(f"error: the {what} of the two sides differs: {their_figure:.6f} and {our_figure:.6f}")


if __name__ == "__main__":
    sys.exit(main())
