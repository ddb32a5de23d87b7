"""The vision side: cut a canvas into views, encode all views of all images in one pass, resample each to tokens.

An image's canvas is cut into windows, row by row; window *w* passes through the shared vision transformer with
low-rank adapter set *w*. The whole canvas, shrunk to one window, is added last and uses no adapter. A resampler
turns every view into the same number of tokens.

Method: Monkey, arXiv 2311.06607, section 3.1; transformer: OpenCLIP ViT-bigG; resampler: Qwen-VL, arXiv 2308.12966.

Shape letters: I images, V views of all images, N patches of a view, C vision width, Q queries, D decoder width,
r adapter rank. Inside an encoder the views of a batch lie by adapter set, [V, N, C]: all windows that pass through the
first set, then those of the second, and so on, and at the end the global views, which pass through none. Each set's
windows are one contiguous slice; `counts` says how many there are of each. Images on grids of their own come as
windows already, which are sorted by set before the encoder and put back in their order behind it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from monkey.configuration import MonkeyConfig
from monkey.grids import Grid
from monkey.part_configs import MonkeyVisionConfig


def views(pixel_values: torch.Tensor, config: MonkeyConfig) -> torch.Tensor:
    """Cut canvases into views.

    Args:
        pixel_values: normalised canvases [I, 3, H, W].
        config: gives the grid and the window size in pixels.

    Returns:
        [views of one, I, 3, window, window]: the windows row by row, then (if `config.global_view`) the canvas shrunk
        bicubically without antialiasing, as published.

    Raises:
        ValueError: when H×W is not the configured canvas.
    """
    height, width = config.canvas_size
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[-2:]) != (height, width):
        advice = "open the processor and the model with the same grid"
        if config.is_ragged:
            advice = "windows of images on other grids need image_grids"
        raise ValueError(
            f"pixel_values has shape {list(pixel_values.shape)}, but grid={tuple(config.grid)} of "
            f"{config.window_size}-pixel windows needs [images, 3, {height}, {width}]; {advice}"
        )
    rows, columns = config.grid
    cut = rearrange(pixel_values, "i c (r h) (s w) -> (r s) i c h w", r=rows, s=columns)
    if not config.global_view:
        return cut
    shrunk = F.interpolate(pixel_values, size=(config.window_size, config.window_size), mode="bicubic")
    return torch.cat([cut, shrunk[None]])


def sorted_views(
    windows: torch.Tensor, grids: Sequence[Grid], config: MonkeyConfig
) -> tuple[torch.Tensor, list[int], list[int]]:
    """Sort the views of images on grids of their own by adapter set.

    A window passes through the set of that cell of the base grid which holds its centre.

    Args:
        windows: normalised [W, 3, window, window], those of one image after the other, row by row.
        grids: rows and columns of each image.

    Returns:
        The views [V, 3, window, window], windows by set and then (if `config.global_view`) each image's canvas shrunk
        as by `views`; how many windows there are of each set; and the place among the views of each image's windows,
        row by row, and of its global view.

    Raises:
        ValueError: windows of another size, or more or fewer of them than the grids have.
    """
    numbers = [rows * columns for rows, columns in grids]
    side = config.window_size
    if windows.ndim != 4 or tuple(windows.shape[-2:]) != (side, side) or len(windows) != sum(numbers):
        raise ValueError(
            f"pixel_values has shape {list(windows.shape)}, but image_grids={[list(grid) for grid in grids]} of "
            f"{side}-pixel windows need [{sum(numbers)}, 3, {side}, {side}]; take both from one processor"
        )
    sets = [own for grid in grids for own in config.adapter_sets(grid)]
    counts = [sets.count(number) for number in range(max(1, config.num_adapters))]
    order = sorted(range(len(sets)), key=sets.__getitem__)
    place_of = dict(zip(order, itertools.count()))
    parts, places, start = [windows[torch.tensor(order, device=windows.device)]], [], 0
    for image, ((rows, columns), own) in enumerate(zip(grids, windows.split(numbers), strict=True)):
        places += [place_of[start + window] for window in range(len(own))]
        start += len(own)
        if config.global_view:
            canvas = rearrange(own, "(r s) c h w -> 1 c (r h) (s w)", r=rows, s=columns)
            parts.append(F.interpolate(canvas, size=(side, side), mode="bicubic"))
            places.append(len(sets) + image)
    return torch.cat(parts), counts, places


def grow_positions(positions: torch.Tensor, cells: int) -> torch.Tensor:
    """Grow a square grid of position embeddings [P, C] bicubically to `cells` cells [cells, C], in fp32."""
    old, new = math.isqrt(positions.shape[0]), math.isqrt(cells)
    if old == new:
        return positions
    grid = rearrange(positions.float(), "(h w) c -> 1 c h w", h=old)
    grown = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return rearrange(grown, "1 c h w -> (h w) c").to(positions.dtype)


def sincos_positions(side: int, width: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine table [side², width] of MAE: columns of the grid in the first half, rows in the second."""
    if width % 4:
        raise ValueError(f"a 2-D sine-cosine table needs a width divisible by 4, not {width}")
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float32) / (width / 4))
    angles = torch.arange(side, dtype=torch.float32)[:, None] * omega
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    column = line.repeat(side, 1)
    row = line.repeat_interleave(side, dim=0)
    return torch.cat([column, row], dim=1)


class _AddProducts(torch.autograd.Function):
    """Add low [V', N, r] · up [sets, r, out] to the first V' of output [V, N, out], in place, set by set.

    What autograd does by itself for slices that are changed in place copies the whole gradient once for every set.
    """

    @staticmethod
    def forward(ctx, output: torch.Tensor, low: torch.Tensor, up: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        ctx.mark_dirty(output)
        ctx.save_for_backward(low, up)
        ctx.counts = list(counts)
        own = output[: len(low)].split(ctx.counts)
        for part, low_of_set, up_of_set in zip(own, low.split(ctx.counts), up, strict=True):
            part.flatten(0, 1).addmm_(low_of_set.flatten(0, 1), up_of_set)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        low, up = ctx.saved_tensors
        own = gradient[: len(low)].split(ctx.counts)
        of_low = torch.cat([part @ up_of_set.T for part, up_of_set in zip(own, up, strict=True)])
        parts = zip(low.split(ctx.counts), own, strict=True)
        of_up = torch.stack([low_of_set.flatten(0, 1).T @ part.flatten(0, 1) for low_of_set, part in parts])
        return gradient, of_low, of_up, None


class WindowAdapter(nn.Module):
    """Low-rank adapters, one set a window: `scale_w · up_w(down_w(dropout(x_w)))` by two batched products.

    The scale is learned and starts at 1; there is no alpha / r.
    """

    def __init__(self, config: MonkeyConfig, in_features: int, out_features: int, rank: int):
        super().__init__()
        self.dropout = config.vision_config.adapter_dropout
        self.down = nn.Parameter(torch.empty(config.num_adapters, rank, in_features))
        self.up = nn.Parameter(torch.empty(config.num_adapters, out_features, rank))
        self.scale = nn.Parameter(torch.empty(config.num_adapters, 1))

    def add_to_windows(self, output: torch.Tensor, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Add the adapters' products of `x` [V, N, in] to `output` [V, N, out], in place, for its windows.

        Args:
            counts: how many of the views, from the first on, pass through each set; none through it in a pass of
                global views alone.
        """
        total = sum(counts)
        if not total:
            return output
        low_rank = F.dropout(x[:total], self.dropout, self.training)
        up = (self.up * self.scale[..., None]).transpose(1, 2)
        if len(set(counts)) == 1:
            windows = low_rank.unflatten(0, (len(counts), -1)).flatten(1, 2)
            low = torch.bmm(windows, self.down.transpose(1, 2))
            # Autocast leaves in-place operations alone, so their types are made equal here.
            product = low.to(output.dtype), up.to(output.dtype)
            output[:total].unflatten(0, (len(counts), -1)).flatten(1, 2).baddbmm_(*product)
            return output
        parts = zip(low_rank.split(list(counts)), self.down, strict=True)
        low = torch.cat([own @ down.T for own, down in parts])
        return _AddProducts.apply(output, low.to(output.dtype), up.to(output.dtype), counts)

    def reset_parameters(self) -> None:
        """Kaiming-uniform `down`, zero `up`, unit scale: a new adapter changes nothing."""
        bound = 1 / math.sqrt(self.down.shape[-1])
        init.uniform_(self.down, -bound, bound)
        init.zeros_(self.up)
        init.ones_(self.scale)


def _window_adapter(config: MonkeyConfig, in_features: int, out_features: int, rank: int) -> WindowAdapter | None:
    return WindowAdapter(config, in_features, out_features, rank) if config.num_adapters else None


class MonkeyVisionAttention(nn.Module):
    """Self-attention within each view. The rows of `in_proj` go head by head: its query, its key, its value."""

    def __init__(self, config: MonkeyConfig):
        super().__init__()
        vision = config.vision_config
        self.num_heads = vision.num_attention_heads
        self.in_proj = nn.Linear(vision.hidden_size, 3 * vision.hidden_size)
        self.out_proj = nn.Linear(vision.hidden_size, vision.hidden_size)
        self.in_adapter = _window_adapter(config, vision.hidden_size, 3 * vision.hidden_size, vision.adapter_rank)
        self.out_adapter = _window_adapter(config, vision.hidden_size, vision.hidden_size, vision.adapter_rank)

    def forward(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        projected = self.in_proj(x)
        if self.in_adapter is not None:
            projected = self.in_adapter.add_to_windows(projected, x, counts)
        query, key, value = rearrange(projected, "v n (h q d) -> q v h n d", h=self.num_heads, q=3)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = rearrange(attended, "v h n d -> v n (h d)")
        output = self.out_proj(attended)
        if self.out_adapter is not None:
            output = self.out_adapter.add_to_windows(output, attended, counts)
        return output


class MonkeyVisionMLP(nn.Module):
    def __init__(self, config: MonkeyVisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MonkeyVisionLayer(GradientCheckpointingLayer):
    """Pre-norm block on [V, N, C]; the MLP's adapter reads the residual before the second norm."""

    def __init__(self, config: MonkeyConfig):
        super().__init__()
        vision = config.vision_config
        self.layernorm1 = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.attention = MonkeyVisionAttention(config)
        self.layernorm2 = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.mlp = MonkeyVisionMLP(vision)
        self.mlp_adapter = _window_adapter(config, vision.hidden_size, vision.hidden_size, vision.mlp_adapter_rank)

    def forward(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """One block on [V, N, C], whose first views pass through the adapter sets, `counts` through each."""
        x = x + self.attention(self.layernorm1(x), counts)
        output = x + self.mlp(self.layernorm2(x))
        if self.mlp_adapter is not None:
            output = self.mlp_adapter.add_to_windows(output, x, counts)
        return output


class ResamplerAttention(nn.Module):
    """Cross-attention of the resampler; the rows of `in_proj_weight` are query, key, value."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"resampler_heads={num_heads} does not divide the resampler's width {width}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Query [Q, D], shared by every view; key and value [B, N, D]; returns [B, Q, D]."""
        inputs = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        query, key, value = (F.linear(x, weight, bias) for x, weight, bias in inputs)
        query = rearrange(query, "q (h d) -> 1 h q d", h=self.num_heads).expand(key.shape[0], -1, -1, -1)
        key, value = (rearrange(x, "b n (h d) -> b h n d", h=self.num_heads) for x in (key, value))
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out_proj(rearrange(attended, "b h q d -> b q (h d)"))


def first_projections(width: int) -> torch.Tensor:
    """Weights [3·width, width] that a resampler trained from nothing starts with.

    Queries and keys start near the identity, so that through the positions they share a query first looks at its own
    place in the view.
    """
    noise = nn.init.xavier_uniform_(torch.empty(3 * width, width))
    query, key, value = noise.chunk(3)
    identity = torch.eye(width)
    return torch.cat([0.1 * query + identity, 0.1 * key + identity, value])


class Resampler(nn.Module):
    """One cross-attention from learned queries to a view's patches, positions added to queries and keys."""

    def __init__(self, config: MonkeyConfig):
        super().__init__()
        vision, width = config.vision_config, config.text_config.hidden_size
        self.query = nn.Parameter(torch.empty(vision.num_queries, width))
        # A parameter because published checkpoints save it; fixed, and frozen by every recipe.
        self.pos_embed = nn.Parameter(torch.empty(vision.num_queries, width), requires_grad=False)
        # The published module has no projection where the widths are equal already.
        self.kv_proj = (
            nn.Linear(vision.hidden_size, width, bias=False) if vision.hidden_size != width else nn.Identity()
        )
        self.ln_q = nn.LayerNorm(width, eps=vision.layer_norm_eps)
        self.ln_kv = nn.LayerNorm(width, eps=vision.layer_norm_eps)
        self.attention = ResamplerAttention(width, config.resampler_heads, vision.resampler_dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, C] → [B, Q, D]."""
        value = self.ln_kv(self.kv_proj(x))
        key = value + grow_positions(self.pos_embed, x.shape[1])
        return self.attention(self.ln_q(self.query) + self.pos_embed, key, value)


class VisionModel(nn.Module):
    """Images to tokens by views, encoder and resampler. A subclass is an encoder with its adapters."""

    def __init__(self, config: MonkeyConfig):
        super().__init__()
        self.config = config
        self.build_encoder(config)
        vision, width = config.vision_config, config.text_config.hidden_size
        self.resampler = Resampler(config)
        self.post_layernorm = nn.LayerNorm(width, eps=vision.layer_norm_eps)
        self.projection = nn.Parameter(torch.empty(width, width))

    def build_encoder(self, config: MonkeyConfig) -> None:
        """Make the modules of the encoder."""
        raise NotImplementedError

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The encoder's layers, each a `GradientCheckpointingLayer`."""
        raise NotImplementedError

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, Sequence[Callable]]:
        """Return embedded views [V, N, C] of pixels [V, 3, window, window], and what they then pass through.

        Those are the blocks, and whatever ends the encoder: functions of [V, N, C] and `counts`, as of `encode`.
        """
        raise NotImplementedError

    def encode(self, pixels: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return the patches' features [V, N, C] of views [V, 3, window, window], which lie by adapter set.

        Where the shared encoder is frozen, gradients end at the window adapters, so the global views, which have none,
        are encoded outside the graph: they keep no activations and have no backward pass below the resampler.

        Args:
            counts: windows of each adapter set, of the first set first; what is left at the end is global views.
        """
        x, steps = self.embed(pixels)
        total = sum(counts)
        # A slice of what trains nothing has no graph; with all views in one pass it would join that of the windows.
        outside = x[total:] if torch.is_grad_enabled() and not self.shared_part_trains() else x[:0]
        x = x[: x.shape[0] - outside.shape[0]]
        for step in steps:
            x = step(x, counts)
            if outside.shape[0]:
                # Layer by layer, so that a sharded layer is gathered once for both.
                with torch.no_grad():
                    outside = step(outside, ())
        return torch.cat([x, outside]) if outside.shape[0] else x

    def shared_part_trains(self) -> bool:
        """Whether gradients are wanted for anything of the encoder except window adapters."""
        raise NotImplementedError

    def forward(self, pixel_values: torch.Tensor, grids: Sequence[Grid] | None = None) -> torch.Tensor:
        """Features of each image's windows, row by row, then of its global view.

        Args:
            pixel_values: canvases [I, 3, H, W] of the model's grid, or with `grids` windows [W, 3, window, window].
            grids: of each image, where they lie on grids of their own.

        Returns:
            [I, views of one · Q, D], or with `grids` the tokens of one image after the other, [tokens, D].
        """
        if grids is not None:
            pixels, counts, places = sorted_views(pixel_values, grids, self.config)
            return self._resample(self.encode(pixels, counts))[torch.tensor(places, device=pixels.device)].flatten(0, 1)
        pixels = views(pixel_values, self.config)
        num_views, num_images = pixels.shape[:2]
        num_windows = self.config.num_windows
        sets = max(1, self.config.num_adapters)
        features = self.encode(pixels.flatten(0, 1), [num_windows // sets * num_images] * sets)
        return rearrange(self._resample(features), "(v i) q d -> i (v q) d", v=num_views)

    def see_whole(self, canvases: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the features [I, Q, D] of the global views alone of canvases [3, H, W], as `forward` has them last."""
        size = (self.config.window_size, self.config.window_size)
        shrunk = [F.interpolate(canvas[None], size=size, mode="bicubic") for canvas in canvases]
        return self._resample(self.encode(torch.cat(shrunk), ()))

    def _resample(self, features: torch.Tensor) -> torch.Tensor:
        """[V, N, C] → [V, Q, D]."""
        return self.post_layernorm(self.resampler(features)) @ self.projection


class MonkeyVisionModel(VisionModel):
    """The published encoder, OpenCLIP ViT-bigG, with a set of adapters for each window."""

    def build_encoder(self, config: MonkeyConfig) -> None:
        vision = config.vision_config
        self.patch_embedding = nn.Conv2d(
            vision.num_channels, vision.hidden_size, vision.patch_size, stride=vision.patch_size, bias=False
        )
        self.position_embedding = nn.Parameter(torch.empty(vision.num_positions, vision.hidden_size))
        self.pre_layernorm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.layers = nn.ModuleList([MonkeyVisionLayer(config) for _ in range(vision.num_hidden_layers)])

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.layers

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, Sequence[Callable]]:
        # The global view was shrunk at the pixels' own precision.
        x = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        return self.pre_layernorm(x + grow_positions(self.position_embedding, x.shape[1])), self.layers

    def shared_part_trains(self) -> bool:
        embedding = [self.patch_embedding.weight, self.position_embedding, *self.pre_layernorm.parameters()]
        return any(parameter.requires_grad for parameter in embedding) or any(
            parameter.requires_grad for name, parameter in self.layers.named_parameters() if "_adapter." not in name
        )
