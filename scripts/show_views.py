"""Draw what the model sees of a picture: its windows, row by row, and the global view.

    python scripts/show_views.py PICTURE OUTPUT.png
    python scripts/show_views.py PICTURE OUTPUT.png --checkpoint echo840/Monkey --grid 2,3

Without a checkpoint, the published geometry: 2×2 windows of 448 pixels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from monkey import MonkeyConfig, MonkeyImageProcessor
from monkey.images import open_image
from monkey.vision import views

MARGIN = 16
"""Pixels of white between views."""


def drawn_views(image: Image.Image, config: MonkeyConfig) -> Image.Image:
    """The views that a model of `config` gets of `image`, each with its adapter and tokens written above."""
    processor = MonkeyImageProcessor.from_config(config)
    pixels = processor([image], return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    shown = (views(pixels, config)[:, 0] * std + mean).clamp(0, 1).mul(255).byte()
    size, label = config.window_size, max(16, config.window_size // 16)
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
        sheet.paste(Image.fromarray(view.permute(1, 2, 0).numpy()), (left, top + label))
        draw.rectangle((left - 1, top + label - 1, left + size, top + label + size), outline="black")
    return sheet


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("output", type=Path, help="PNG to write")
    parser.add_argument("--checkpoint", help="folder or hub name whose geometry to use")
    parser.add_argument("--grid", help="ROWS,COLUMNS of windows")
    options = parser.parse_args(arguments)
    try:
        grid = tuple(int(part) for part in options.grid.split(",")) if options.grid else None
        if options.checkpoint:
            config = MonkeyConfig.from_pretrained(options.checkpoint, grid=grid)
        else:
            config = MonkeyConfig(grid=grid or (2, 2))
        drawn_views(open_image(options.picture), config).save(options.output, optimize=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {config.num_views} views, {config.image_tokens} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
