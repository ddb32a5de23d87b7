"""Generation beside the published order of work, same weights, tokens compared in the same run.

    python -m benchmarks.generate
    python -m benchmarks.generate --quick
    python -m benchmarks.generate --device cuda --dtype bfloat16 --width 4096 --layers 32 --vocabulary 151936

The baseline materialises attention, concatenates keys and values at every step, computes logits for every position
and keeps them. Prompts are one image of 1280 tokens and a short question. Ratios, at batch 1, 4 (`_4`) and 8 (`_8`):
`first_token_speedup` baseline / ours in time to the first token, from image features; `decode_speedup` baseline /
ours in time of the following tokens; `memory_ratio` ours / baseline in peak bytes of a whole generation (not weights).
Those are of `model.generate`. `engine_…` are the same of what `monkey.ask`, the demo and the server run
(`monkey.engine`): its requests arrive together, and its first token is there when every request has one.
`first_token_fraction` and `decode_fraction`: how much of the time of `model.generate` the decoder's matrix products and
attention take by themselves, at the same shapes and in turn with it; 1 is what the machine allows.
`engine_first_token_fraction` and `engine_decode_fraction` are the engine's.
Figures, a batch size each: `tokens_per_second` after the first token, of all rows together, and `first_token_seconds`,
of the three.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.engine_run import TOKENS_AS_NUMBERS, Written, run_engine
from benchmarks.measure import arguments, finish, largest_difference, peak_bytes, report, seconds
from benchmarks.published import PublishedMonkey
from benchmarks.random_weights import made_on
from monkey import MonkeyConfig, MonkeyForConditionalGeneration
from monkey.checkpoint import published_names
from monkey.engine import Canvas, Engine

BATCHES = (1, 4, 8)
SIDES = ("published", "ours", "engine")


def build(options) -> MonkeyForConditionalGeneration:
    """A decoder with random weights behind the published geometry of 1280 image tokens; its vision is minimal."""
    torch.manual_seed(options.seed)
    config = MonkeyConfig(
        vision_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1},
        text_config={
            "hidden_size": options.width,
            "intermediate_size": options.width * 43 // 16,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "vocab_size": options.vocabulary,
        },
        image_start_id=options.vocabulary - 8,
    )
    with made_on(options.device, getattr(torch, options.dtype)):
        model = MonkeyForConditionalGeneration(config).eval()
    return model


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
    """Three ways to continue the same prompts, greedily and for a fixed number of tokens."""

    def __init__(self, model, baseline: PublishedMonkey, inputs: dict[str, torch.Tensor], new_tokens: int):
        self.model, self.inputs, self.new_tokens = model, inputs, new_tokens
        self.baseline = _GivenFeatures(baseline.tensors, baseline.config, inputs["image_features"])

    @torch.no_grad()
    def ours(self) -> Written:
        clock = _Clock(self.model.device.type)
        output = self.model.generate(
            **self.inputs,
            max_new_tokens=self.new_tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=[],
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return self._written(output, clock.moments)

    @torch.no_grad()
    def published(self) -> Written:
        clock = _Clock(self.model.device.type)
        output = self.baseline.generate(
            self.inputs["input_ids"], self.inputs["attention_mask"], True, self.new_tokens, each_token=clock.note
        )
        return self._written(output, clock.moments)

    def _written(self, output: torch.Tensor, moments: list[float]) -> Written:
        tokens = output[:, self.inputs["input_ids"].shape[1] :]
        return Written(tokens, moments[0], moments[-1], tokens.numel() - len(tokens))

    def engine(self) -> Written:
        """A new engine for every run, so that nothing was read before."""
        prompts = self.inputs["input_ids"].tolist()
        images = [Canvas(bytes([row]), np.full(1, row)) for row in range(len(prompts))]
        with _given_features(self.model, self.inputs["image_features"]) as processor:
            engine = Engine(self.model, processor, max_rows=len(prompts))
            written = run_engine(engine, prompts, images, self.new_tokens)
            engine.close()
        return written._replace(tokens=written.tokens.to(self.model.device))


@contextmanager
def _given_features(model, features: torch.Tensor) -> Iterator[SimpleNamespace]:
    """A processor for the engine, for images that are numbers of rows of `features`."""
    original = model.get_image_features
    model.get_image_features = lambda rows: features[rows.flatten().long()]
    try:
        yield SimpleNamespace(
            tokenizer=TOKENS_AS_NUMBERS,
            image_processor=SimpleNamespace(
                normalised=lambda rows: rows, cut=lambda canvases: {"pixel_values": np.stack(canvases)}
            ),
        )
    finally:
        model.get_image_features = original


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


class Products:
    """What any implementation has to compute at these shapes: the decoder's matrix products and attention, no more.

    Norms, rotations, activations, residuals, the cache and the choice of tokens are left out.
    """

    def __init__(self, model: MonkeyForConditionalGeneration, inputs: dict[str, torch.Tensor]):
        self.model = model
        self.batch, self.length = inputs["input_ids"].shape

    def pass_through(self, queries: int) -> Callable[[], None]:
        """Return what computes one pass of the last `queries` tokens of every row."""
        decoder = self.model.model.language_model
        config, dtype = decoder.config, self.model.dtype
        device = self.model.device
        inputs = {
            width: torch.randn(self.batch, queries, width, device=device, dtype=dtype)
            for width in (config.hidden_size, config.intermediate_size)
        }
        shape = self.batch, config.num_attention_heads
        query = torch.randn(*shape, queries, config.head_dim, device=device, dtype=dtype)
        keys = torch.randn(*shape, self.length, config.head_dim, device=device, dtype=dtype)
        linears = [module for module in decoder.layers.modules() if isinstance(module, torch.nn.Linear)]

        @torch.no_grad()
        def run() -> None:
            for linear in linears:
                torch.nn.functional.linear(inputs[linear.in_features], linear.weight, linear.bias)
            for _ in decoder.layers:
                torch.nn.functional.scaled_dot_product_attention(query, keys, keys, is_causal=queries > 1)
            self.model.lm_head(inputs[config.hidden_size][:, -1])

        return run

    def timed(self, steps: int = 8) -> tuple[float, float]:
        """Seconds of a prefill, and of a step of one token, divided by the rows."""
        device = self.model.device.type
        prefill, step = self.pass_through(self.length), self.pass_through(1)
        for run in (prefill, step):
            run()
        first = seconds(prefill, device)
        return first, statistics.median(seconds(step, device) for _ in range(steps)) / self.batch


class _GivenFeatures(PublishedMonkey):
    """The baseline with its features given: `benchmarks/vision.py` times how they are made."""

    def __init__(self, tensors, config, features: torch.Tensor):
        super().__init__(tensors, config)
        self.features = features

    def image_features(self, pixel_values):
        return self.features


def timed(run) -> tuple[float, float]:
    """Seconds until every row has a token, and seconds a token after that, of all rows together."""
    start = time.perf_counter()
    written = run()
    return written.first - start, (written.last - written.first) / written.between


def measure(sides: Sides, repeats: int, device: str, suffix: str, ratios: dict[str, float]) -> dict[str, dict]:
    """First token, following tokens and memory at one batch size, into `ratios`; what each side did."""
    expected = sides.published().tokens
    for name in SIDES[1:]:
        if not torch.equal(getattr(sides, name)().tokens, expected):
            raise SystemExit(f"error: {name} and the published order generated different tokens")
    # Neighbouring runs, so that drift of the machine cancels in their ratio.
    products = Products(sides.model, sides.inputs)
    runs = [
        {**{name: timed(getattr(sides, name)) for name in SIDES}, "products": products.timed()} for _ in range(repeats)
    ]
    rows = len(expected)
    figures = {"first_token_seconds": {}, "tokens_per_second": {}}
    for index, (name, unit) in enumerate((("first_token", "to the first token"), ("decode", "a token after it"))):
        medians = {side: statistics.median(run[side][index] for run in runs) for side in (*SIDES, "products")}
        for side, prefix in (("ours", ""), ("engine", "engine_")):
            for ratio, other in (("speedup", "published"), ("fraction", "products")):
                ratios[f"{prefix}{name}_{ratio}{suffix}"] = statistics.median(
                    run[other][index] / run[side][index] for run in runs
                )
        shown = ", ".join(f"{side} {1000 * value:.1f} ms" for side, value in medians.items())
        print(f"batch {rows}: {shown} {unit}")
        for side in SIDES:
            value = medians[side]
            figure = ("first_token_seconds", value) if name == "first_token" else ("tokens_per_second", 1 / value)
            figures[figure[0]][side] = round(figure[1], 4)
    peaks = {name: peak_bytes(getattr(sides, name), device) for name in SIDES[:2]}
    ratios[f"memory_ratio{suffix}"] = peaks["ours"] / peaks["published"]
    print(f"peak at batch {rows}: " + ", ".join(f"{side} {peak / 2**20:.0f} MiB" for side, peak in peaks.items()))
    return figures


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4, help="128 wide each by default, as published")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--question", type=int, default=20, help="tokens after the image")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, metavar="ROWS")
    options = parser.parse_args(argv)
    if options.quick:
        options.layers, options.repeats, options.new_tokens = min(options.layers, 4), 2, 12

    model = build(options)
    baseline = PublishedMonkey(published_names(model, dict(model.state_dict())), model.config)
    ratios: dict[str, float] = {}
    figures = {}
    for batch in options.batches:
        sides = Sides(model, baseline, prompts(model, batch, options), options.new_tokens)
        suffix = "" if batch == 1 else f"_{batch}"
        figures[f"batch_{batch}"] = measure(sides, options.repeats, options.device, suffix, ratios)
    if options.device == "cpu" and options.dtype == "float32":
        _half_precision(model, baseline, options, ratios)
    report("generate", ratios, vars(options), figures)
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
