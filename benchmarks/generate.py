"""Generation beside the published order of work, same weights, tokens compared in the same run.

    python -m benchmarks.generate
    python -m benchmarks.generate --quick
    python -m benchmarks.generate --device cuda --dtype bfloat16 --width 4096 --layers 32 --vocabulary 151936

The baseline materialises attention, concatenates keys and values at every step, computes logits for every position
and keeps them. Prompts are one image of 1280 tokens and a short question. Ratios, at batch 1 and 4 (`_4`):
`first_token_speedup` baseline / ours in time to the first token, from image features; `decode_speedup` baseline /
ours in time of the following tokens; `memory_ratio` ours / baseline in peak bytes of a whole generation (not weights).
"""

from __future__ import annotations

import statistics
import sys

import torch

from benchmarks.measure import arguments, compare, largest_difference, peak_bytes, report, seconds
from benchmarks.published import PublishedMonkey
from monkey import MonkeyConfig, MonkeyForConditionalGeneration
from monkey.checkpoint import published_names


def build(options) -> MonkeyForConditionalGeneration:
    """A decoder with random weights behind the published geometry of 1280 image tokens; its vision is minimal."""
    torch.manual_seed(options.seed)
    config = MonkeyConfig(
        vision_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1},
        text_config={
            "hidden_size": options.width,
            "intermediate_size": options.width * 11 // 4,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "vocab_size": options.vocabulary,
        },
        image_start_id=options.vocabulary - 8,
    )
    return MonkeyForConditionalGeneration(config).to(options.device, getattr(torch, options.dtype)).eval()


def prompts(model, batch: int, options) -> dict[str, torch.Tensor]:
    """`batch` prompts of one image and a question, and random features for the images."""
    config = model.config
    span = [config.image_start_id, *[config.image_pad_id] * config.image_tokens, config.image_end_id]
    ids = torch.tensor([[*span, 7 + row, *range(20, 20 + options.question)] for row in range(batch)])
    features = torch.randn(batch, config.image_tokens, options.width, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids.to(options.device),
        "attention_mask": torch.ones_like(ids).to(options.device),
        "image_features": features.to(options.device, model.dtype) * 0.05,
    }


class Sides:
    """The two ways to continue the same prompts, greedily and for a fixed number of tokens."""

    def __init__(self, model, baseline: PublishedMonkey, inputs: dict[str, torch.Tensor], new_tokens: int):
        self.model, self.baseline, self.inputs, self.new_tokens = model, baseline, inputs, new_tokens

    @torch.no_grad()
    def ours(self, new_tokens: int | None = None) -> torch.Tensor:
        count = new_tokens or self.new_tokens
        output = self.model.generate(
            **self.inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=-1
        )
        return output[:, self.inputs["input_ids"].shape[1] :]

    @torch.no_grad()
    def published(self, new_tokens: int | None = None) -> torch.Tensor:
        count = new_tokens or self.new_tokens
        baseline = _GivenFeatures(self.baseline.tensors, self.baseline.config, self.inputs["image_features"])
        output = baseline.generate(self.inputs["input_ids"], self.inputs["attention_mask"], True, count)
        return output[:, self.inputs["input_ids"].shape[1] :]


class _GivenFeatures(PublishedMonkey):
    """The baseline with its features given: `benchmarks/vision.py` times how they are made."""

    def __init__(self, tensors, config, features: torch.Tensor):
        super().__init__(tensors, config)
        self.features = features

    def image_features(self, pixel_values):
        return self.features


def measure(sides: Sides, repeats: int, device: str, suffix: str, ratios: dict[str, float]) -> None:
    """First token, following tokens and memory at one batch size, into `ratios`."""
    if not torch.equal(sides.ours(), sides.published()):
        raise SystemExit("error: the two sides generated different tokens")
    theirs, ours, ratios[f"first_token_speedup{suffix}"] = compare(
        lambda: sides.published(1), lambda: sides.ours(1), repeats, device
    )
    print(f"first token{suffix}: published order {theirs:.3f} s, ours {ours:.3f} s")
    decoding = []
    for _ in range(repeats):
        # Neighbouring runs, so that drift of the machine cancels: whole generation less its first token.
        pair = []
        for run in (sides.published, sides.ours):
            pair.append(seconds(run, device) - seconds(lambda run=run: run(1), device))
        decoding.append(pair)
    ratios[f"decode_speedup{suffix}"] = statistics.median(theirs / ours for theirs, ours in decoding)
    for name, index in (("published order", 0), ("ours", 1)):
        spent = statistics.median(pair[index] for pair in decoding) / (sides.new_tokens - 1)
        print(f"decode{suffix}: {name} {1000 * spent:.1f} ms a step")
    theirs_peak, ours_peak = peak_bytes(sides.published, device), peak_bytes(sides.ours, device)
    ratios[f"memory_ratio{suffix}"] = ours_peak / theirs_peak
    print(f"peak{suffix}: published order {theirs_peak / 2**20:.0f} MiB, ours {ours_peak / 2**20:.0f} MiB")


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--question", type=int, default=20, help="tokens after the image")
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args(argv)
    if options.quick:
        options.layers, options.repeats, options.new_tokens = min(options.layers, 4), 2, 12

    model = build(options)
    baseline = PublishedMonkey(published_names(model, dict(model.state_dict())), model.config)
    ratios: dict[str, float] = {}
    for batch, suffix in ((1, ""), (4, "_4")):
        sides = Sides(model, baseline, prompts(model, batch, options), options.new_tokens)
        measure(sides, options.repeats, options.device, suffix, ratios)
    if options.device == "cpu" and options.dtype == "float32":
        _half_precision(model, baseline, options, ratios)
    report("generate", ratios, vars(options))
    return 0


@torch.no_grad()
def _half_precision(model, baseline, options, ratios: dict[str, float]) -> None:
    """bfloat16 beside float32 on a CPU, batch 1: time to the first token, and the error of its logits."""
    sides = Sides(model, baseline, prompts(model, 1, options), options.new_tokens)
    full_seconds = statistics.median(seconds(lambda: sides.ours(1), "cpu") for _ in range(3))
    exact = model(**sides.inputs, logits_to_keep=1).logits
    half = model.to(torch.bfloat16)
    sides.inputs["image_features"] = sides.inputs["image_features"].to(torch.bfloat16)
    sides.ours(1)
    half_seconds = statistics.median(seconds(lambda: sides.ours(1), "cpu") for _ in range(3))
    error = largest_difference(half(**sides.inputs, logits_to_keep=1).logits, exact) / float(exact.abs().max())
    ratios["first_token_bf16_speedup"], ratios["first_token_bf16_relative_error"] = full_seconds / half_seconds, error
    print(f"bfloat16: first token {half_seconds:.3f} s, largest relative error of its logits {error:.1e}")


if __name__ == "__main__":
    sys.exit(main())
