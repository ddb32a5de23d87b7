"""Pictures of what a model sees: its windows and the global view, and heat over a picture where it looks."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from monkey.configuration import MonkeyConfig
from monkey.image_processing import MonkeyImageProcessor
from monkey.vision import views

MARGIN = 16
"""Pixels of white between views."""

SMALLEST_VIEW = 224
"""Pixels of a view's side as it is drawn; smaller ones would be narrower than what is written above them."""

LONGEST_SIDE = 1600
"""Pixels of a picture under heat; larger ones are made smaller."""

HEAT = np.float32([(20, 11, 53), (133, 33, 107), (229, 92, 48), (252, 190, 40), (252, 255, 164)])
"""Colours from no attention to the most."""

OPACITY = 0.8
"""Of the heat where attention is highest."""


def overlaid(image: Image.Image, attention: np.ndarray, highest: float | None = None) -> Image.Image:
    """A picture, RGB, with heat where attention is.

    Args:
        image: upright, of any size; a side above `LONGEST_SIDE` pixels is made so long.
        attention: weights from 0 [rows, columns] over the whole picture, such as those of
            `monkey.serving.attention_maps.PictureAttention`; stretched to its sides, as the canvas was.
        highest: the weight that is drawn hottest; the largest of `attention` when None. One for several pictures makes
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


def views_drawn(image: Image.Image, config: MonkeyConfig, attention: np.ndarray | None = None) -> Image.Image:
    """The views that a model of `config` gets of a picture, each with its adapter and tokens written above.

    Args:
        attention: [V, n, n], `queries` or `answer` of a `PictureAttention`, drawn as heat on one scale for all views.
    """
    processor = MonkeyImageProcessor.from_config(config)
    pixels = processor([image], return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    shown = (views(pixels, config)[:, 0] * std + mean).clamp(0, 1).mul(255).byte()
    size = max(config.window_size, SMALLEST_VIEW)
    label = max(16, size // 16)
    rows, columns = config.grid
    cell = size + MARGIN, size + MARGIN + label
    sheet = Image.new("RGB", (MARGIN + (columns + int(config.global_view)) * cell[0], MARGIN + rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(label * 3 // 4)
    tokens = config.vision_config.num_queries
    for index, view in enumerate(shown):
        row, column = divmod(index, columns) if index < config.num_windows else (0, columns)
        left, top = MARGIN + column * cell[0], MARGIN + row * cell[1]
        name = f"window {index}, adapter {index}" if index < config.num_windows else "global view, no adapter"
        draw.text((left, top), f"{name}: {tokens} tokens", fill="black", font=font)
        drawn = Image.fromarray(view.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
        if attention is not None:
            drawn = overlaid(drawn, attention[index], float(attention.max()))
        sheet.paste(drawn, (left, top + label))
        draw.rectangle((left - 1, top + label - 1, left + size, top + label + size), outline="black")
    return sheet
