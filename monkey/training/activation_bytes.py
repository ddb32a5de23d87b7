"""What autograd keeps between the forward and the backward pass, in bytes, from the model's sizes alone.

One row a saved tensor, as the operations of `monkey.vision` and `monkey.language` save them: a linear keeps its input
where its weight trains, a norm its input and its statistics, GELU and SiLU their input, a product its two factors,
attention its queries, keys, values, output and one log-sum a query and head. A view, and a tensor that two operations
save, counts once. Parameters never count.

The rows hold for fused attention (CUDA's flash and memory-efficient kernels, the CPU's own). The math fallback would
keep two score matrices [heads, tokens, tokens] besides. Two things differ between devices: CUDA keeps a dropout mask
as one byte an element and norms' statistics in fp32, a CPU keeps both in the type of the input.

Shape letters: M vision tokens in the graph, N patches of a view, C vision width, F width of an MLP, Q queries, D
decoder width, A heads × head width, T decoder tokens, H heads, r adapter rank.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from monkey.configuration import MonkeyConfig
from monkey.language import loss_rows

FP32 = 4

Rows = dict[str, int]
"""Name of a saved tensor -> bytes."""


@dataclass(frozen=True)
class ElementBytes:
    """Bytes of an element, by what holds it."""

    compute: int
    """What linears and attention read and write."""
    vision_stream: int
    """The vision transformer's residual stream."""
    decoder_stream: int
    cuda: bool = True
    autocast_weights: int = 0
    """Under autocast, bytes of a trained weight's narrow copy (2), else 0."""
    autocast_frozen: int = 0
    """The same for a frozen weight; 0 where it is stored narrow already."""

    @property
    def autocast(self) -> bool:
        return bool(self.autocast_weights)

    def mask(self, stream: int) -> int:
        """Of a dropout mask over a tensor of `stream` bytes an element."""
        return 1 if self.cuda else stream

    def statistic(self, stream: int) -> int:
        return FP32 if self.cuda else stream

    @property
    def norm_of_linear(self) -> int:
        """Of a LayerNorm's input where a linear made it: CUDA's autocast widens it first."""
        return FP32 if self.autocast and self.cuda else self.compute


def element_bytes(
    precision: str, trains: Set[str] = frozenset(), *, cuda: bool = True, frozen: int = FP32
) -> ElementBytes:
    """Bytes by precision: `bf16` (weights and all), `autocast` (fp32 trained weights) or `fp32`.

    Args:
        trains: parts that train.
        frozen: under autocast, bytes of an element of what does not: 4, or 2 where it is held in bf16.
    """
    if precision == "fp32":
        return ElementBytes(FP32, FP32, FP32, cuda)
    if precision == "bf16":
        return ElementBytes(2, 2, 2, cuda)
    if precision != "autocast":
        raise ValueError(f"precision={precision!r} is not one of 'bf16', 'autocast', 'fp32'")
    # A stream has the type of the embeddings that it starts from; LayerNorm is fp32 under CUDA's autocast.
    vision = FP32 if cuda or "vision transformer" in trains else frozen
    decoder = FP32 if "decoder" in trains else frozen
    return ElementBytes(2, vision, decoder, cuda, 2, 2 if frozen == FP32 else 0)


def graph_views(config: MonkeyConfig, trains: Set[str]) -> int:
    """Views whose vision transformer is inside the graph: all, the windows alone, or none."""
    if "vision transformer" in trains:
        return config.num_views
    return config.num_windows if "window adapters" in trains and config.num_adapters else 0


def vision_layer(
    config: MonkeyConfig, trains: Set[str], images: int, sizes: ElementBytes, *, first: bool = False
) -> Rows:
    """Saved tensors of one vision layer. `first`: below it nothing trains, where the transformer is frozen."""
    vision = config.vision_config
    views = graph_views(config, trains)
    if not views:
        return {}
    transformer = "vision transformer" in trains
    per_view = images * vision.patches_per_side**2
    tokens, window_tokens = views * per_view, config.num_windows * per_view
    width, mlp = vision.hidden_size, vision.intermediate_size
    compute, stream = sizes.compute, sizes.vision_stream
    cast = compute != stream
    reaches_input = transformer or not first
    norm = tokens * (width * stream + 2 * sizes.statistic(stream))
    rows = {
        "norm 1 input": norm if reaches_input else 0,
        "queries, keys, values": tokens * 3 * width * compute,
        "attention output": tokens * width * compute,
        "attention log-sums": tokens * vision.num_attention_heads * FP32,
        "norm 2 input": norm,
        "GELU input": tokens * mlp * compute,
    }
    if transformer:
        rows |= {
            "in_proj input": tokens * width * compute,
            "fc1 input": tokens * width * compute,
            "fc2 input": tokens * mlp * compute,
        }
    if config.num_adapters:
        ranks = 2 * vision.adapter_rank * compute + vision.mlp_adapter_rank * stream
        in_mask, out_mask = sizes.mask(stream), sizes.mask(compute)
        rows["adapters' low rank"] = window_tokens * ranks
        # `up · scale`, and under autocast the narrow copy of `down`.
        ups = 4 * vision.adapter_rank * compute + vision.mlp_adapter_rank * stream
        downs = (2 * vision.adapter_rank + vision.mlp_adapter_rank) * sizes.autocast_weights
        rows["adapters' scaled products"] = config.num_adapters * width * (ups + downs)
        if vision.adapter_dropout:
            masks = (in_mask if reaches_input else 0) + out_mask + in_mask
            rows["adapters' dropout masks"] = window_tokens * width * masks
            rows["adapters' inputs"] = window_tokens * width * 3 * compute
        elif cast:
            rows["adapters' inputs"] = window_tokens * width * 2 * compute
        elif not transformer:
            rows["adapters' inputs"] = tokens * width * compute
    matrices = 4 * width**2 + 2 * width * mlp
    rows["narrow copies of weights"] = matrices * _narrow_copy(sizes, transformer)
    return rows


def _narrow_copy(sizes: ElementBytes, trained: bool) -> int:
    return sizes.autocast_weights if trained else sizes.autocast_frozen


def vision_embedding(config: MonkeyConfig, trains: Set[str], images: int, sizes: ElementBytes) -> Rows:
    """Saved tensors below the first vision layer."""
    if "vision transformer" not in trains:
        return {}
    vision, views = config.vision_config, config.num_views
    tokens = views * images * vision.patches_per_side**2
    stream = sizes.vision_stream
    return {
        "pixels": views * images * vision.num_channels * vision.window_size**2 * sizes.compute,
        "first norm input": tokens * (vision.hidden_size * stream + 2 * sizes.statistic(stream)),
    }


def vision_layer_input(config: MonkeyConfig, trains: Set[str], images: int, sizes: ElementBytes) -> int:
    """Bytes of one layer's input, which is all that checkpointing keeps of the layer."""
    vision = config.vision_config
    tokens = graph_views(config, trains) * images * vision.patches_per_side**2
    return tokens * vision.hidden_size * sizes.vision_stream


def resampler(config: MonkeyConfig, trains: Set[str], images: int, sizes: ElementBytes) -> Rows:
    """Saved tensors of the resampler, the final norm and the projection; of all views."""
    vision, width = config.vision_config, config.text_config.hidden_size
    trained = bool({"resampler", "position table"} & trains)
    compute, norm = sizes.compute, sizes.norm_of_linear
    patches = config.num_views * images * vision.patches_per_side**2
    queries = config.num_views * images * vision.num_queries
    rows: Rows = {}
    if trained or graph_views(config, trains):
        rows |= {
            "norm input": patches * (width * norm + 2 * sizes.statistic(norm)),
            "queries": vision.num_queries * width * compute,
            "keys, values": patches * 2 * width * compute,
            "attention output": queries * width * compute,
            "attention log-sums": queries * config.resampler_heads * FP32,
            "final norm input": queries * (width * norm + 2 * sizes.statistic(norm)),
        }
    if trained:
        projects = vision.hidden_size != width
        rows |= {
            "kv_proj input": patches * vision.hidden_size * compute if projects else 0,
            "query input": vision.num_queries * width * compute,
            "key, value inputs": patches * 2 * width * compute,
        }
    if "vision projection" in trains:
        rows["projection input"] = queries * width * compute
    if rows:
        attention = 4 * width**2 + vision.hidden_size * width
        copies = attention * _narrow_copy(sizes, trained)
        rows["narrow copies of weights"] = copies + width**2 * _narrow_copy(sizes, "vision projection" in trains)
    return rows


@dataclass(frozen=True)
class DecoderBatch:
    """What the decoder is given in one forward pass.

    Attributes:
        tokens: of the whole batch, padding counted: rows × padded length, or the packed row's length.
        rows: padded samples; 0 where the samples are packed into one row.
        key_tokens: keys that the runs of a packed row read, a shared prefix once for each run; 0 for `tokens`.
    """

    tokens: int
    rows: int = 0
    key_tokens: int = 0


@dataclass(frozen=True)
class DecoderAdapters:
    """Low-rank adapters on the decoder's q, k, v, o, gate and up projections.

    Attributes:
        built_in: those of the published 24 GB variant, which read the input of q, k and v once and learn a scale;
            otherwise PEFT's.
    """

    rank: int = 0
    dropout: float = 0.05
    built_in: bool = False


def decoder_in_graph(trains: Set[str]) -> bool:
    """Whether gradients are wanted for the decoder's input: its embeddings train, or something of the vision side."""
    return bool(trains - {"decoder adapters"})


def decoder_layer(
    config: MonkeyConfig,
    trains: Set[str],
    batch: DecoderBatch,
    sizes: ElementBytes,
    adapters: DecoderAdapters,
    *,
    first: bool = False,
) -> Rows:
    """Saved tensors of one decoder layer."""
    if not trains:
        return {}
    text, tokens = config.text_config, batch.tokens
    trained = "decoder" in trains
    width, mlp = text.hidden_size, text.intermediate_size
    heads = text.num_attention_heads * text.head_dim
    compute, stream = sizes.compute, sizes.decoder_stream
    reaches_input = decoder_in_graph(trains) or not first
    # RMSNorm computes in fp32: its input widened, and for its weight's gradient the result narrowed again.
    norm = tokens * (width * (FP32 + (stream if trained else 0)) + FP32)
    keys = max(batch.key_tokens, tokens)
    rows = {
        "norm 1": norm if reaches_input else 0,
        "queries": tokens * heads * compute,
        "keys, values": keys * 2 * heads * compute,
        "attention output": tokens * heads * compute,
        "attention log-sums": tokens * text.num_attention_heads * FP32,
        "norm 2": norm,
        "SiLU input, output, factor": tokens * 3 * mlp * compute,
    }
    if batch.rows > 1:
        # A mask for padding becomes one of scores; without padding there is none, attention is causal by itself.
        rows["attention mask"] = tokens**2 // batch.rows * compute
    if trained:
        # Autocast narrows the input of every linear anew.
        narrowed = 5 if compute != stream else 2
        rows["projections' inputs"] = tokens * narrowed * width * compute
        rows["down_proj input"] = tokens * mlp * compute
        if not batch.rows and not sizes.cuda:
            # The CPU attends run by run and puts the outputs together in a tensor of its own.
            rows["o_proj input"] = tokens * heads * compute
    if adapters.rank:
        packed_on_cpu = not batch.rows and not sizes.cuda
        rows |= _adapter_rows(tokens, width, heads, mlp, sizes, adapters, trained, reaches_input, packed_on_cpu)
    matrices = 4 * width * heads + 3 * width * mlp
    rows["narrow copies of weights"] = matrices * _narrow_copy(sizes, trained)
    return rows


def _adapter_rows(
    tokens: int,
    width: int,
    heads: int,
    mlp: int,
    sizes: ElementBytes,
    adapters: DecoderAdapters,
    decoder_trains: bool,
    reaches_input: bool,
    packed_on_cpu: bool,
) -> Rows:
    """Saved tensors of a layer's adapters."""
    compute = sizes.compute
    reading_qkv = 1 if adapters.built_in else 3
    rows = {"adapters' low rank": tokens * adapters.rank * (reading_qkv + 3) * compute}
    if adapters.built_in:
        rows["adapters' products"] = tokens * (3 * heads + width + 2 * mlp) * compute
    if adapters.dropout:
        # PEFT widens the input to its own fp32 weights under autocast.
        mask = sizes.mask(FP32 if sizes.autocast else compute)
        masked = (reading_qkv if reaches_input else 0) + 2
        rows["adapters' dropout masks"] = tokens * (masked * width + heads) * mask
        rows["adapters' inputs"] = tokens * ((reading_qkv + 2) * width + heads) * compute
    elif sizes.autocast:
        rows["adapters' inputs"] = tokens * ((reading_qkv + 2) * width + heads) * compute
    elif not decoder_trains:
        rows["adapters' inputs"] = tokens * (2 * width + (heads if packed_on_cpu else 0)) * compute
    # q, k, v: width to heads; o: heads to width; gate, up: width to the MLP's.
    ends = reading_qkv * width + 3 * heads + (heads + width) + 2 * (width + mlp)
    rows["narrow copies of adapters"] = adapters.rank * ends * sizes.autocast_weights
    return rows


def decoder_layer_input(config: MonkeyConfig, batch: DecoderBatch, sizes: ElementBytes) -> int:
    """Bytes of one layer's input, which is all that checkpointing keeps of the layer."""
    return batch.tokens * config.text_config.hidden_size * sizes.decoder_stream


def decoder_shared(config: MonkeyConfig, trains: Set[str], batch: DecoderBatch, sizes: ElementBytes) -> Rows:
    """Saved once for all layers, and by the final norm."""
    if not trains:
        return {}
    text = config.text_config
    trained = sizes.decoder_stream if "decoder" in trains else 0
    positions = batch.tokens // max(batch.rows, 1)
    return {
        "rotary cosines, sines": 2 * positions * text.head_dim * FP32,
        "final norm": batch.tokens * (text.hidden_size * (FP32 + trained) + FP32),
    }


def head(config: MonkeyConfig, trains: Set[str], supervised: int, sizes: ElementBytes) -> Rows:
    """Saved by the head and the loss over `supervised` positions."""
    if not trains:
        return {}
    text = config.text_config
    chunked = supervised > loss_rows(text.vocab_size)
    keeps_hidden = chunked or "decoder" in trains
    hidden = sizes.decoder_stream if chunked else sizes.compute
    return {
        "hidden states": supervised * text.hidden_size * hidden if keeps_hidden else 0,
        # The loss's own positions and targets.
        "targets": 2 * supervised * 8,
        "log-probabilities": 0 if chunked else supervised * text.vocab_size * FP32,
        "narrow copies of weights": 0
        if chunked
        else text.hidden_size * text.vocab_size * _narrow_copy(sizes, "decoder" in trains),
    }
