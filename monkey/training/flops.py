"""Floating-point operations of a training step, and what GPUs can do: the two sides of MFU.

One multiply-accumulate is two operations. Counted are matrix products and attention; norms, activations and adapters'
dropout are left out, as is customary. Causal attention counts half. What trains decides over the backward pass: a
frozen linear above something that trains passes a gradient through (as costly as forward), a trained one also makes
its weight's; below the first thing that trains there is none, and the global view has none below the resampler where
the shared transformer is frozen.

MFU counts `Flops.model`; HFU counts `Flops.hardware`, which has checkpointing's second forward pass besides.
The recomputation inside flash attention's own backward is in neither.

Shape letters as in `monkey.vision` and `monkey.language`.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch

from monkey.configuration import MonkeyConfig
from monkey.language import loss_rows
from monkey.training.activation_bytes import decoder_in_graph, graph_views

FORMULA = """\
FLOPs (1 multiply-accumulate = 2), forward:
  vision, a view:    2·N·(3·patch²·C) + layers · [2·N·(4·C² + 2·C·F) + 4·N²·C]
  + adapters, a window: layers · 2·N·C·(6·r + 2·r_mlp)
  resampler, a view: 2·N·(C·D + 2·D²) + 4·Q·N·D + 2·Q·2·D²;  its queries once: 2·Q·D²
  decoder:           layers · [2·T·(4·D·A + 3·D·M) + 4·A·pairs],  pairs = Σ samples (t²/2 + t·shared prefix)
  + LoRA of rank r:  layers · 2·T·r·(in + out of q, k, v, o, gate, up)
  head:              2·supervised·D·vocabulary
backward: as much again for each gradient that is made, of an input and of a weight; attention twice its forward
N patches, C vision width, F its MLP, Q queries, D decoder width, A heads·head width, M its MLP, T tokens
MFU = model FLOPs / (seconds · GPUs · peak); checkpointing's recomputation counts in HFU only"""


@dataclass(frozen=True)
class Pass:
    """Operations of a part of the model.

    Attributes:
        recompute: of the forward pass that checkpointing does again.
    """

    forward: float = 0.0
    backward: float = 0.0
    recompute: float = 0.0

    def __add__(self, other: Pass) -> Pass:
        return Pass(self.forward + other.forward, self.backward + other.backward, self.recompute + other.recompute)

    def times(self, count: float) -> Pass:
        return Pass(self.forward * count, self.backward * count, self.recompute * count)


@dataclass(frozen=True)
class Flops:
    """Operations of a training step, by part."""

    vision: Pass
    decoder: Pass
    head: Pass

    @property
    def whole(self) -> Pass:
        return self.vision + self.decoder + self.head

    @property
    def model(self) -> float:
        """Forward and backward: what MFU counts."""
        return self.whole.forward + self.whole.backward

    @property
    def hardware(self) -> float:
        """With what checkpointing computes again: what HFU counts."""
        return self.model + self.whole.recompute

    def table(self) -> str:
        """TFLOPs by part, to be shown beside `FORMULA`."""
        lines = [f"{'TFLOPs':<10}{'forward':>10}{'backward':>10}{'recompute':>10}"]
        for name, part in (("vision", self.vision), ("decoder", self.decoder), ("head", self.head)):
            counts = (part.forward, part.backward, part.recompute)
            lines.append(f"{name:<10}" + "".join(f"{count / 1e12:>10.3f}" for count in counts))
        return "\n".join(lines)


def linear(
    rows: float, inputs: int, outputs: int, *, input_gradient: bool, weight_gradient: bool, again: bool = False
) -> Pass:
    """A product of [rows, inputs] and [inputs, outputs]; `again` where checkpointing computes it a second time."""
    once = 2.0 * rows * inputs * outputs
    return Pass(once, once * (input_gradient + weight_gradient), once * again)


def attention(pairs: float, width: int, *, in_graph: bool, again: bool = False) -> Pass:
    """Scores and their weighted sum, of `pairs` of query and key over heads of `width` numbers together."""
    once = 4.0 * pairs * width
    return Pass(once, 2 * once * in_graph, once * again)


def _vision_layers(
    config: MonkeyConfig, trains: Set[str], views: int, windows: int, in_graph: bool, checkpointing: bool
) -> Pass:
    """All layers of the transformer, for one image's `views` of which `windows` have adapters."""
    vision = config.vision_config
    patches, width, mlp = vision.patches_per_side**2, vision.hidden_size, vision.intermediate_size
    trained = in_graph and "vision transformer" in trains
    adapted = in_graph and "window adapters" in trains
    rows, window_rows = views * patches, windows * patches
    again = in_graph and checkpointing
    has_adapters = bool(windows and config.num_adapters)
    whole = Pass()
    for layer in range(vision.num_hidden_layers):
        # Under a frozen transformer, nothing below the first layer's adapters wants a gradient.
        below = trained or (in_graph and layer > 0)
        flags = {"weight_gradient": trained, "again": again}
        whole += linear(rows, width, 3 * width, input_gradient=below, **flags)
        whole += attention(views * patches**2, width, in_graph=in_graph, again=again)
        whole += linear(rows, width, width, input_gradient=in_graph, **flags)
        whole += linear(rows, width, mlp, input_gradient=in_graph, **flags)
        # Recomputation stops at the last tensor to be saved: before the layer's last product.
        last = {"weight_gradient": trained, "again": again and has_adapters}
        whole += linear(rows, mlp, width, input_gradient=in_graph, **last)
        if not has_adapters:
            continue
        for rank, outputs, reaches, is_last in (
            (vision.adapter_rank, 3 * width, below, False),
            (vision.adapter_rank, width, in_graph, False),
            (vision.mlp_adapter_rank, width, in_graph, True),
        ):
            own = {"weight_gradient": adapted}
            whole += linear(window_rows, width, rank, input_gradient=reaches, again=again, **own)
            whole += linear(window_rows, rank, outputs, input_gradient=adapted, again=again and not is_last, **own)
    return whole


def vision_flops(config: MonkeyConfig, trains: Set[str] = frozenset(), *, checkpointing: bool = False) -> Pass:
    """One image: all its views through the transformer and the resampler."""
    vision, width = config.vision_config, config.text_config.hidden_size
    patches, queries, views = vision.patches_per_side**2, vision.num_queries, config.num_views
    inside = graph_views(config, trains)
    transformer = "vision transformer" in trains
    pixels = vision.num_channels * vision.patch_size**2
    whole = linear(views * patches, pixels, vision.hidden_size, input_gradient=False, weight_gradient=transformer)
    windows = config.num_windows
    if inside in (0, views):
        whole += _vision_layers(config, trains, views, windows, bool(inside), checkpointing)
    else:
        whole += _vision_layers(config, trains, inside, windows, True, checkpointing)
        whole += _vision_layers(config, trains, views - inside, 0, False, False)

    trained = "resampler" in trains
    in_graph = trained or bool(inside)
    flags = {"weight_gradient": trained}
    if vision.hidden_size != width:
        whole += linear(views * patches, vision.hidden_size, width, input_gradient=bool(inside), **flags)
    # Gradients pass the keys' and values' products where a norm or the patches below want them.
    whole += linear(views * patches, width, 2 * width, input_gradient=in_graph, **flags)
    whole += attention(views * queries * patches, width, in_graph=in_graph)
    whole += linear(views * queries, width, width, input_gradient=in_graph, **flags)
    projected = {"weight_gradient": "vision projection" in trains}
    whole += linear(
        views * queries, width, width, input_gradient=in_graph or bool(projected["weight_gradient"]), **projected
    )
    return whole


def resampler_queries(config: MonkeyConfig, trains: Set[str]) -> Pass:
    """The learned queries' own projection, once a step whatever the number of images."""
    width, trained = config.text_config.hidden_size, "resampler" in trains
    return linear(config.vision_config.num_queries, width, width, input_gradient=trained, weight_gradient=trained)


def decoder_flops(
    config: MonkeyConfig,
    sample_lengths: Sequence[int],
    trains: Set[str] = frozenset(),
    *,
    prefixes: Sequence[int] | None = None,
    lora_rank: int = 0,
    checkpointing: bool = False,
    causal: float = 0.5,
) -> Pass:
    """All layers over samples of these lengths, each seeing only itself and its `prefixes` tokens of a shared image.

    Args:
        causal: part of a sample's own pairs that counts; 1 for kernels and counters that compute them all.
    """
    text = config.text_config
    prefixes = prefixes or [0] * len(sample_lengths)
    tokens = sum(sample_lengths)
    pairs = sum(causal * own**2 + own * prefix for own, prefix in zip(sample_lengths, prefixes, strict=True))
    width, mlp = text.hidden_size, text.intermediate_size
    heads = text.num_attention_heads * text.head_dim
    trained, in_graph = "decoder" in trains, bool(trains)
    rank = lora_rank or text.adapter_rank
    again = checkpointing and in_graph
    shapes = {"q": (width, heads), "k": (width, heads), "v": (width, heads), "o": (heads, width)}
    shapes |= {"gate": (width, mlp), "up": (width, mlp), "down": (mlp, width)}
    whole = Pass()
    for layer in range(text.num_hidden_layers):
        below = decoder_in_graph(trains) or (in_graph and layer > 0)
        whole += attention(pairs, heads, in_graph=in_graph, again=again)
        for name, (inputs, outputs) in shapes.items():
            reaches = below if name in "qkv" else in_graph
            # Recomputation stops at the last tensor to be saved: before the layer's last product.
            repeated = again and name != "down"
            whole += linear(tokens, inputs, outputs, input_gradient=reaches, weight_gradient=trained, again=repeated)
            if rank and name != "down":
                own = {"weight_gradient": "decoder adapters" in trains, "again": again}
                whole += linear(tokens, inputs, rank, input_gradient=reaches, **own)
                whole += linear(tokens, rank, outputs, input_gradient=in_graph, **own)
    return whole


def head_flops(config: MonkeyConfig, supervised: int, trains: Set[str] = frozenset()) -> Pass:
    """Logits of `supervised` positions."""
    text = config.text_config
    again = bool(trains) and supervised > loss_rows(text.vocab_size)
    return linear(
        supervised,
        text.hidden_size,
        text.vocab_size,
        input_gradient=bool(trains),
        weight_gradient="decoder" in trains,
        again=again,
    )


def training_flops(
    config: MonkeyConfig,
    trains: Set[str],
    images: int,
    sample_lengths: Sequence[int],
    supervised_tokens: int,
    *,
    prefixes: Sequence[int] | None = None,
    lora_rank: int = 0,
    vision_checkpointing: bool = False,
    decoder_checkpointing: bool = False,
) -> Flops:
    """Operations of one forward and backward pass.

    Args:
        trains: parts that train (`monkey.training.recipes.PARTS`).
        sample_lengths: tokens of each sample, its image's included, padding left out.
        prefixes: for samples behind a shared image, whose tokens are then a sample of their own: how many tokens it
            has; 0 for the others.
        lora_rank: of PEFT's adapters on the decoder.
    """
    vision = vision_flops(config, trains, checkpointing=vision_checkpointing).times(images)
    if images:
        vision += resampler_queries(config, trains)
    decoder = decoder_flops(
        config,
        sample_lengths,
        trains,
        prefixes=prefixes,
        lora_rank=lora_rank,
        checkpointing=decoder_checkpointing,
    )
    return Flops(vision, decoder, head_flops(config, supervised_tokens, trains))


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
    """Peak dense operations a second of a GPU, None for a CPU, an unknown GPU, or a type that it lacks.

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
