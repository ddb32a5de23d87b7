"""Where a model looks, as numbers and as images: the resampler's queries in each view, an answer's tokens in an image.

Weights are those of the attention itself: softmax(QKᵀ/√d) is computed from what the modules are given in one forward
pass, in fp32, for the rows that are asked about and for no others. An answer's tokens see the tokens of a view, and
those see patches: the weights of both, multiplied, say what an answer's tokens see of each patch. What the vision
transformer has mixed between patches before is not undone, so a map shows where features were read.

Shape letters: I images, V views, Q tokens of a view, N = n² patches of a view, A tokens of an answer, T tokens of a
prompt with its answer, H heads, d head width, D decoder width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from monkey.boxes import WHOLE, Share
from monkey.configuration import MonkeyConfig
from monkey.engine import Canvas
from monkey.grids import Grid
from monkey.image_processing import MonkeyImageProcessor
from monkey.language import find_ntk_alpha
from monkey.modeling import MonkeyForConditionalGeneration, image_slots
from monkey.vision import ResamplerAttention, sorted_views, views

ROWS_AT_ONCE = 64
"""Tokens of an answer whose weights over the whole prompt exist at once, for every head."""

MARGIN = 16
"""Pixels of white between views."""

SMALLEST_VIEW = 224
"""Pixels of a view's side as it is drawn; smaller ones would be narrower than what is written above them."""

LONGEST_SIDE = 1600
"""Pixels of an image under heat; larger ones are made smaller."""

HEAT = np.float32([(20, 11, 53), (133, 33, 107), (229, 92, 48), (252, 190, 40), (252, 255, 164)])
"""Colours from no attention to the most."""

OPACITY = 0.8
"""Of the heat where attention is highest."""


@dataclass(frozen=True, eq=False)
class ImageAttention:
    """Attention to one image, by view: the windows, row by row, then the global view where there is one.

    Attributes:
        grid: rows and columns of the image's windows.
        queries: float32 [V, n, n], where the resampler's queries look, their mean; each view's sums to 1.
        answer: float32 [V, n, n], where the answer's tokens look, their mean. All views sum to `share`.
        share: part of the answer tokens' attention that goes to this image's tokens, from 0 to 1; the rest goes to
            text and to other images.
        covered: parts of the canvas's width and height that the image covers, less than 1 where it is padded.
    """

    grid: tuple[int, int]
    queries: np.ndarray
    answer: np.ndarray
    share: float
    covered: Share = WHOLE

    @property
    def queries_on_windows(self) -> np.ndarray:
        """[rows·n, columns·n], the windows as they lie on the canvas; sums to 1."""
        return self._on_windows(self.queries)

    @property
    def answer_on_windows(self) -> np.ndarray:
        """[rows·n, columns·n], the windows as they lie on the canvas; sums to 1."""
        return self._on_windows(self.answer)

    @property
    def queries_on_global_view(self) -> np.ndarray | None:
        """[n, n] over the whole canvas; sums to 1. None without a global view."""
        return self._on_global_view(self.queries)

    @property
    def answer_on_global_view(self) -> np.ndarray | None:
        """[n, n] over the whole canvas; sums to 1. None without a global view."""
        return self._on_global_view(self.answer)

    def _on_windows(self, maps: np.ndarray) -> np.ndarray:
        rows, columns = self.grid
        return _scale_to_one(rearrange(maps[: rows * columns], "(r s) h w -> (r h) (s w)", r=rows))

    def _on_global_view(self, maps: np.ndarray) -> np.ndarray | None:
        return _scale_to_one(maps[-1]) if len(maps) > math.prod(self.grid) else None


def _scale_to_one(weights: np.ndarray) -> np.ndarray:
    """Scale weights so that they sum to 1; all zero stays so."""
    total = weights.sum()
    return weights / total if total > 0 else weights


# The weights


def watched_layers(num_layers: int) -> range:
    """Return the layers whose attention is shown unless others are named: the middle half of the decoder's.

    The first layers attend by position and to the beginning of the prompt, whatever the question is, and the last
    ones to the words that are being written; what is looked up in an image is looked up between. That is a choice
    from the literature on such decoders, not measured on the published weights. In a small model of three layers,
    trained on rendered signs and asked for the number of 25 others, the weights peaked at 26 times those of an even
    look in the middle layer, at 17 in the first and at 23 in the last.
    """
    return range(num_layers // 4, num_layers - num_layers // 4)


def read_image(
    model: MonkeyForConditionalGeneration, pixel_values: torch.Tensor, image_grids: Sequence[Grid] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of an image, and the resampler's weights [V, Q, N], windows row by row before the global view.

    Args:
        pixel_values, image_grids: of one image, as of `MonkeyForConditionalGeneration.get_image_features`, whose result
            the features are.
    """
    attention = model.model.visual.resampler.attention
    weights: list[torch.Tensor] = []
    hook = attention.register_forward_pre_hook(
        lambda module, given: weights.append(resampler_weights(module, given[0], given[1]))
    )
    try:
        features = model.get_image_features(pixel_values, image_grids)
    finally:
        hook.remove()
    if image_grids is None:
        return features, weights[0]
    # The encoder has windows by adapter set.
    _, _, places = sorted_views(pixel_values, image_grids, model.config)
    return features, weights[0][places]


def resampler_weights(attention: ResamplerAttention, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return weights [B, Q, N] of the queries [Q, D] over `key` [B, N, D], mean over heads, in fp32 on the CPU."""
    projections = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    (query_weight, query_bias), (key_weight, key_bias), _ = projections
    query = rearrange(F.linear(query, query_weight, query_bias), "q (h d) -> h q d", h=attention.num_heads).float()
    weights = []
    for view in key:  # the weights of all heads of one view at a time
        keys = rearrange(F.linear(view, key_weight, key_bias), "n (h d) -> h d n", h=attention.num_heads).float()
        weights.append((query @ keys / math.sqrt(query.shape[-1])).softmax(dim=-1).mean(dim=0).cpu())
    return torch.stack(weights)


class _Watched:
    """Causal attention of one row of tokens that sums up the weights of its last tokens in the layers to be watched."""

    def __init__(self, layers: Sequence[int], count: int, columns: torch.Tensor, longest: int):
        self.longest = longest
        self.layers, self.count, self.columns = frozenset(layers), count, columns
        self.total = torch.zeros(count, len(columns))

    def attend(self, query, key, value, layer, scaling, dropout=0.0):
        """As `monkey.attention.Layout.attend`."""
        if layer in self.layers:
            self._watch(query[0], key[0].repeat_interleave(query.shape[1] // key.shape[1], dim=0), scaling)
        is_grouped = key.shape[1] != query.shape[1]
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=is_grouped
        )
        return attended.transpose(1, 2)

    def _watch(self, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        length = query.shape[1]
        key, places = key.float().transpose(1, 2), torch.arange(length, device=query.device)
        columns = self.columns.to(query.device)
        for start in range(0, self.count, ROWS_AT_ONCE):
            own = places[length - self.count :][start : start + ROWS_AT_ONCE]
            scores = (query[:, own].float() * scaling) @ key
            weights = scores.masked_fill(places > own[:, None], -torch.inf).softmax(dim=-1).mean(dim=0)
            self.total[start : start + len(own)] += weights[:, columns].cpu()


def answer_weights(
    model: MonkeyForConditionalGeneration,
    prompt: Sequence[int],
    answer: Sequence[int],
    features: torch.Tensor,
    layers: Sequence[int] | None = None,
    image_grids: Sequence[Grid] | None = None,
) -> torch.Tensor:
    """Return what each of an answer's tokens saw of the images' tokens when it was chosen.

    That is at the position before its own: the first is chosen where the prompt ends.

    Args:
        prompt: ids, with a span for each image.
        answer: ids, at least one.
        features: of the images, [I, V·Q, D], or [tokens of all images, D] with `image_grids`.
        layers: of the decoder, counted from 0; `watched_layers` when None.
        image_grids: of each image, where they lie on grids of their own.

    Returns:
        [A, tokens of all images] on the CPU, the mean over heads and `layers`; a row and what goes to text sum to 1.

    Raises:
        ValueError: layers that the decoder does not have, or spans that do not fit the images.
    """
    decoder = model.model.language_model
    count = decoder.config.num_hidden_layers
    layers = watched_layers(count) if layers is None else sorted(set(layers))
    if not len(layers) or not all(0 <= layer < count for layer in layers):
        raise ValueError(f"layers are {list(layers)}, and the decoder's {count} are counted from 0")
    ids = torch.tensor([[*prompt, *answer[:-1]]])
    columns = image_slots(ids, model.config, len(features), image_grids)[0].nonzero()[:, 0]
    embeddings = model.get_input_embeddings()
    embedded = embeddings(ids.to(embeddings.weight.device))
    hidden = model.model.place_image_features(embedded, ids, features, image_grids)
    positions = torch.arange(ids.shape[1])[None]
    alphas = [find_ntk_alpha(len(prompt), decoder.config)]
    watched = _Watched(layers, len(answer), columns, ids.shape[1])
    # Behind the last layer that is watched, nothing is looked at.
    decoder.watch(hidden, positions, alphas, watched, layers[-1] + 1)
    return watched.total / len(layers)


def build_maps(grid: Grid, resampler: torch.Tensor, answer: torch.Tensor, covered: Share = WHOLE) -> ImageAttention:
    """Make the maps of one image.

    Args:
        resampler: [V, Q, N], as of `read_image`.
        answer: [A, V·Q], the image's columns of `answer_weights`.
        covered: parts of its canvas that the image covers.
    """
    num_views, num_queries, patches = resampler.shape
    side = math.isqrt(patches)
    seen = answer.mean(dim=0).unflatten(0, (num_views, num_queries))
    carried = torch.einsum("vq,vqn->vn", seen, resampler)
    maps = [x.reshape(num_views, side, side).numpy() for x in (resampler.mean(dim=1), carried)]
    return ImageAttention(grid, *maps, share=float(seen.sum()), covered=covered)


def compute_maps(
    model: MonkeyForConditionalGeneration,
    processor: MonkeyImageProcessor,
    prompt: Sequence[int],
    answer: Sequence[int],
    canvases: Sequence[Canvas],
    layers: Sequence[int] | None,
    run: Callable[[Callable[[], Any]], Any],
) -> list[ImageAttention]:
    """Compute the maps of every image of a prompt.

    Args:
        processor: what made the canvases.
        prompt, answer, layers: as of `answer_weights`.
        canvases: of the images; one at a time is on the model's device.
        run: calls what it is given where the model may be used, and gives its result. Each image is one call and the
            decoder another, so that whoever shares the model waits for no more than one of them.
    """
    device = model.model.visual.projection.device
    grids: list[Grid] = []
    read = []
    for canvas in canvases:
        inputs = processor.cut([canvas.pixels])
        pixels = processor.normalised(torch.from_numpy(inputs["pixel_values"])).to(device, model.dtype)
        own = [tuple(grid) for grid in inputs["image_grids"].tolist()] if processor.is_ragged else None
        read.append(run(partial(read_image, model, pixels, own)))
        grids += own or [tuple(model.config.grid)]
    features = torch.cat([own for own, _ in read])
    weights = run(partial(answer_weights, model, prompt, answer, features, layers, grids if own else None))
    by_image = weights.split([model.config.tokens_of(grid) for grid in grids], dim=1)
    return [
        build_maps(grid, resampler, own, canvas.share)
        for grid, (_, resampler), own, canvas in zip(grids, read, by_image, canvases, strict=True)
    ]


# Images of them


def draw_heat(
    image: Image.Image, attention: np.ndarray, highest: float | None = None, covered: Share = WHOLE
) -> Image.Image:
    """Draw an image, in RGB, with heat where attention is.

    Args:
        image: upright, of any size; a side above `LONGEST_SIDE` pixels is made so long.
        attention: weights from 0 [rows, columns] over the whole canvas, such as those of `ImageAttention`; stretched
            to the image's sides.
        highest: the weight that is drawn hottest; the largest of `attention` when None. One for several images makes
            them comparable.
        covered: parts of the canvas's width and height that the image covers; the rest of the weights is not drawn.
    """
    shown = image.convert("RGB")
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    highest = float(attention.max()) if highest is None else highest
    heat = Image.fromarray(np.asarray(attention, np.float32) / (highest or 1.0))
    inside = (0, 0, heat.width * covered[0], heat.height * covered[1])
    level = np.asarray(heat.resize(shown.size, Image.Resampling.BICUBIC, inside)).clip(0, 1)[..., None]
    steps = level * (len(HEAT) - 1)
    below = steps.astype(int).clip(max=len(HEAT) - 2)[..., 0]
    colour = HEAT[below] + (HEAT[below + 1] - HEAT[below]) * (steps - below[..., None])
    opacity = OPACITY * np.sqrt(level)
    return Image.fromarray(np.rint(np.asarray(shown) * (1 - opacity) + colour * opacity).astype(np.uint8))


def draw_views(
    image: Image.Image,
    config: MonkeyConfig,
    attention: np.ndarray | None = None,
    max_windows: int | None = None,
) -> Image.Image:
    """Draw the views that a model of `config` gets of an image, each with its adapter and tokens written above.

    Args:
        attention: [V, n, n], `queries` or `answer` of an `ImageAttention`, drawn as heat on one scale for all views.
        max_windows: as the image was read with.
    """
    size = max(config.window_size, SMALLEST_VIEW)
    label = max(16, size // 16)
    processor = MonkeyImageProcessor.from_config(config, max_windows=max_windows)
    grid = grid_of(image.size, config, max_windows)
    rows, columns = grid
    adapters = config.adapter_sets(grid)
    cell = size + MARGIN, size + MARGIN + label
    sheet = Image.new("RGB", (MARGIN + (columns + int(config.global_view)) * cell[0], MARGIN + rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(label * 3 // 4)
    for index, view in enumerate(_make_views(image, config, processor)):
        row, column = divmod(index, columns) if index < len(adapters) else (0, columns)
        left, top = MARGIN + column * cell[0], MARGIN + row * cell[1]
        has_adapter = index < len(adapters) and config.num_adapters
        name = f"window {index}" if index < len(adapters) else "global view"
        name += f", adapter {adapters[index]}" if has_adapter else ", no adapter"
        draw.text((left, top), f"{name}: {config.vision_config.num_queries} tokens", fill="black", font=font)
        view = view.resize((size, size), Image.Resampling.BICUBIC)
        if attention is not None:
            view = draw_heat(view, attention[index], float(attention.max()))
        sheet.paste(view, (left, top + label))
        draw.rectangle((left - 1, top + label - 1, left + size, top + label + size), outline="black")
    return sheet


def grid_of(size: tuple[int, int], config: MonkeyConfig, max_windows: int | None = None) -> Grid:
    """Return rows and columns of the windows that a model of `config` gets of an image of a width and height."""
    processor = MonkeyImageProcessor.from_config(config, max_windows=max_windows)
    return processor.place(size[::-1]).grid or config.grid


def _make_views(image: Image.Image, config: MonkeyConfig, processor: MonkeyImageProcessor) -> list[Image.Image]:
    inputs = processor([image], return_tensors="pt")
    if processor.is_ragged:
        made, _, places = sorted_views(inputs["pixel_values"], inputs["image_grids"].tolist(), config)
        made = made[places]
    else:
        made = views(inputs["pixel_values"], config)[:, 0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    shown = (made * std + mean).clamp(0, 1).mul(255).byte()
    return [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in shown]
