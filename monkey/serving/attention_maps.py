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

from monkey.configuration import MonkeyConfig
from monkey.image_processing import MonkeyImageProcessor
from monkey.language import find_ntk_alpha
from monkey.modeling import MonkeyForConditionalGeneration, image_slots
from monkey.vision import ResamplerAttention, views

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
        grid: rows and columns of windows.
        queries: float32 [V, n, n], where the resampler's queries look, their mean; each view's sums to 1.
        answer: float32 [V, n, n], where the answer's tokens look, their mean. All views sum to `share`.
        share: part of the answer tokens' attention that goes to this image's tokens, from 0 to 1; the rest goes to
            text and to other images.
    """

    grid: tuple[int, int]
    queries: np.ndarray
    answer: np.ndarray
    share: float

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


def read_image(model: MonkeyForConditionalGeneration, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [1, V·Q, D] of a normalised canvas [1, 3, H, W], and the resampler's weights [V, Q, N]."""
    attention = model.model.visual.resampler.attention
    weights: list[torch.Tensor] = []
    hook = attention.register_forward_pre_hook(
        lambda module, given: weights.append(resampler_weights(module, given[0], given[1]))
    )
    try:
        return model.get_image_features(pixels), weights[0]
    finally:
        hook.remove()


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
) -> torch.Tensor:
    """Return what each of an answer's tokens saw of the images' tokens when it was chosen.

    That is at the position before its own: the first is chosen where the prompt ends.

    Args:
        prompt: ids, with a span for each image.
        answer: ids, at least one.
        features: [I, V·Q, D].
        layers: of the decoder, counted from 0; `watched_layers` when None.

    Returns:
        [A, I·V·Q] on the CPU, the mean over heads and `layers`; a row and what goes to text sum to 1.

    Raises:
        ValueError: layers that the decoder does not have, or spans that do not fit the images.
    """
    decoder = model.model.language_model
    count = decoder.config.num_hidden_layers
    layers = watched_layers(count) if layers is None else sorted(set(layers))
    if not len(layers) or not all(0 <= layer < count for layer in layers):
        raise ValueError(f"layers are {list(layers)}, and the decoder's {count} are counted from 0")
    ids = torch.tensor([[*prompt, *answer[:-1]]])
    columns = image_slots(ids, model.config, num_images=len(features))[0].nonzero()[:, 0]
    embeddings = model.get_input_embeddings()
    embedded = embeddings(ids.to(embeddings.weight.device))
    hidden = model.model.place_image_features(embedded, ids, features)
    positions = torch.arange(ids.shape[1])[None]
    alphas = [find_ntk_alpha(len(prompt), decoder.config)]
    watched = _Watched(layers, len(answer), columns, ids.shape[1])
    # Behind the last layer that is watched, nothing is looked at.
    decoder.watch(hidden, positions, alphas, watched, layers[-1] + 1)
    return watched.total / len(layers)


def build_maps(grid: tuple[int, int], resampler: torch.Tensor, answer: torch.Tensor) -> ImageAttention:
    """Make the maps of one image.

    Args:
        resampler: [V, Q, N], as of `read_image`.
        answer: [A, V·Q], the image's columns of `answer_weights`.
    """
    num_views, num_queries, patches = resampler.shape
    side = math.isqrt(patches)
    seen = answer.mean(dim=0).unflatten(0, (num_views, num_queries))
    carried = torch.einsum("vq,vqn->vn", seen, resampler)
    maps = [x.reshape(num_views, side, side).numpy() for x in (resampler.mean(dim=1), carried)]
    return ImageAttention(grid, *maps, share=float(seen.sum()))


def compute_maps(
    model: MonkeyForConditionalGeneration,
    prompt: Sequence[int],
    answer: Sequence[int],
    pixels: torch.Tensor,
    layers: Sequence[int] | None,
    run: Callable[[Callable[[], Any]], Any],
) -> list[ImageAttention]:
    """Compute the maps of every image of a prompt.

    Args:
        prompt, answer, layers: as of `answer_weights`.
        pixels: normalised canvases [I, 3, H, W], anywhere; one at a time is on the model's device.
        run: calls what it is given where the model may be used, and gives its result. Each image is one call and the
            decoder another, so that whoever shares the model waits for no more than one of them.
    """
    device = model.model.visual.patch_embedding.weight.device
    read = [run(partial(read_image, model, own[None].to(device))) for own in pixels]
    features = torch.cat([own for own, _ in read])
    weights = run(partial(answer_weights, model, prompt, answer, features, layers))
    by_image = weights.split(model.config.image_tokens, dim=1)
    grid = tuple(model.config.grid)
    return [build_maps(grid, resampler, own) for (_, resampler), own in zip(read, by_image, strict=True)]


# Images of them


def draw_heat(image: Image.Image, attention: np.ndarray, highest: float | None = None) -> Image.Image:
    """Draw an image, in RGB, with heat where attention is.

    Args:
        image: upright, of any size; a side above `LONGEST_SIDE` pixels is made so long.
        attention: weights from 0 [rows, columns] over the whole image, such as those of `ImageAttention`; stretched
            to its sides, as the canvas was.
        highest: the weight that is drawn hottest; the largest of `attention` when None. One for several images makes
            them comparable.
    """
    shown = image.convert("RGB")
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    highest = float(attention.max()) if highest is None else highest
    heat = Image.fromarray(np.asarray(attention, np.float32) / (highest or 1.0))
    level = np.asarray(heat.resize(shown.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    steps = level * (len(HEAT) - 1)
    below = steps.astype(int).clip(max=len(HEAT) - 2)[..., 0]
    colour = HEAT[below] + (HEAT[below + 1] - HEAT[below]) * (steps - below[..., None])
    opacity = OPACITY * np.sqrt(level)
    return Image.fromarray(np.rint(np.asarray(shown) * (1 - opacity) + colour * opacity).astype(np.uint8))


def draw_views(image: Image.Image, config: MonkeyConfig, attention: np.ndarray | None = None) -> Image.Image:
    """Draw the views that a model of `config` gets of an image, each with its adapter and tokens written above.

    Args:
        attention: [V, n, n], `queries` or `answer` of an `ImageAttention`, drawn as heat on one scale for all views.
    """
    size = max(config.window_size, SMALLEST_VIEW)
    label = max(16, size // 16)
    rows, columns = config.grid
    cell = size + MARGIN, size + MARGIN + label
    sheet = Image.new("RGB", (MARGIN + (columns + int(config.global_view)) * cell[0], MARGIN + rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(label * 3 // 4)
    for index, view in enumerate(_make_views(image, config)):
        row, column = divmod(index, columns) if index < config.num_windows else (0, columns)
        left, top = MARGIN + column * cell[0], MARGIN + row * cell[1]
        name = f"window {index}, adapter {index}" if index < config.num_windows else "global view, no adapter"
        draw.text((left, top), f"{name}: {config.vision_config.num_queries} tokens", fill="black", font=font)
        view = view.resize((size, size), Image.Resampling.BICUBIC)
        if attention is not None:
            view = draw_heat(view, attention[index], float(attention.max()))
        sheet.paste(view, (left, top + label))
        draw.rectangle((left - 1, top + label - 1, left + size, top + label + size), outline="black")
    return sheet


def _make_views(image: Image.Image, config: MonkeyConfig) -> list[Image.Image]:
    processor = MonkeyImageProcessor.from_config(config)
    pixels = processor([image], return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    shown = (views(pixels, config)[:, 0] * std + mean).clamp(0, 1).mul(255).byte()
    return [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in shown]
