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
import time

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.measure import arguments, finish, largest_difference, peak_bytes, report
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
    """The two ways to continue the same prompts, greedily and for a fixed number of tokens.

    Each returns the new tokens [B, n] and the moments at which they were there.
    """

    def __init__(self, model, baseline: PublishedMonkey, inputs: dict[str, torch.Tensor], new_tokens: int):
        self.model, self.inputs, self.new_tokens = model, inputs, new_tokens
        self.baseline = _GivenFeatures(baseline.tensors, baseline.config, inputs["image_features"])

    @torch.no_grad()
    def ours(self) -> tuple[torch.Tensor, list[float]]:
        clock = _Clock(self.model.device.type)
        output = self.model.generate(
            **self.inputs,
            max_new_tokens=self.new_tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=[],
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return output[:, self.inputs["input_ids"].shape[1] :], clock.moments

    @torch.no_grad()
    def published(self) -> tuple[torch.Tensor, list[float]]:
        clock = _Clock(self.model.device.type)
        output = self.baseline.generate(
            self.inputs["input_ids"], self.inputs["attention_mask"], True, self.new_tokens, each_token=clock.note
        )
        return output[:, self.inputs["input_ids"].shape[1] :], clock.moments


class _Clock(StoppingCriteria):
    """Notes when each token is there; stops nothing."""

    def __init__(self, device: str):
        self.device, self.moments = device, []

    def note(self) -> None:
        finish(self.device)
        self.moments.append(time.perf_counter())

    def __call__(self, input_ids, scores, **kwargs):
        self.note()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _GivenFeatures(PublishedMonkey):
    """The baseline with its features given: `benchmarks/vision.py` times how they are made."""

    def __init__(self, tensors, config, features: torch.Tensor):
        super().__init__(tensors, config)
        self.features = features

    def image_features(self, pixel_values):
        return self.features


def timed(run) -> tuple[float, float]:
    """Seconds to the first token, and seconds a token after it."""
    start = time.perf_counter()
    _, moments = run()
    return moments[0] - start, (moments[-1] - moments[0]) / (len(moments) - 1)


def measure(sides: Sides, repeats: int, device: str, suffix: str, ratios: dict[str, float]) -> None:
    """First token, following tokens and memory at one batch size, into `ratios`."""
    if not torch.equal(sides.ours()[0], sides.published()[0]):
        raise SystemExit("error: the two sides generated different tokens")
    # Neighbouring runs, so that drift of the machine cancels in their ratio.
    pairs = [(timed(sides.published), timed(sides.ours)) for _ in range(repeats)]
    for index, (name, unit) in enumerate((("first_token", "to the first token"), ("decode", "a token after it"))):
        theirs, ours = (statistics.median(pair[side][index] for pair in pairs) for side in (0, 1))
        ratios[f"{name}_speedup{suffix}"] = statistics.median(pair[0][index] / pair[1][index] for pair in pairs)
        print(f"batch{suffix or '_1'}: published order {1000 * theirs:.1f} ms {unit}, ours {1000 * ours:.1f} ms")
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
    sides = Sides(model, baseline, prompts(model, 1, options), 2)
    full = statistics.median(timed(sides.ours)[0] for _ in range(3))
    exact = model(**sides.inputs, logits_to_keep=1).logits
    model.to(torch.bfloat16)
    sides.inputs["image_features"] = sides.inputs["image_features"].to(torch.bfloat16)
    sides.ours()
    half = statistics.median(timed(sides.ours)[0] for _ in range(3))
    error = largest_difference(model(**sides.inputs, logits_to_keep=1).logits, exact) / float(exact.abs().max())
    ratios["first_token_bf16_speedup"], ratios["first_token_bf16_relative_error"] = full / half, error
    print(f"bfloat16: {1000 * half:.1f} ms to the first token, largest relative error of its logits {error:.1e}")


if __name__ == "__main__":
    sys.exit(main())
