"""What a scanner or a camera does to a sheet."""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import cos, radians, sin

import numpy as np
from PIL import Image, ImageFilter

from scripts.wild.engines import Drawn, Mark


def scan(drawn: Drawn, effects: Mapping[str, float], rng: random.Random) -> Drawn:
    """Return the sheet as scanned; boxes turn with it.

    Effects: `angle` in degrees, `contrast` (1 leaves it), `shadow` (how dark one side gets, of 1), `blur` (radius in
    pixels), `noise` (standard deviation, of 255), `grey` (1 for a scan without colour). `jpeg` is the quality that the
    file is written with.
    """
    noise = np.random.default_rng(rng.getrandbits(32))
    image, (width, height) = drawn.image, drawn.image.size
    angle = effects.get("angle", 0.0)
    if angle:
        _, paper = max(image.getcolors(width * height))
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=paper)
    if effects.get("grey"):
        image = image.convert("L").convert("RGB")
    if effects.get("blur"):
        image = image.filter(ImageFilter.GaussianBlur(effects["blur"]))
    pixels = np.asarray(image).astype(np.float32)
    pixels = 235 + (pixels - 235) * effects.get("contrast", 1.0) if "contrast" in effects else pixels
    if effects.get("shadow"):
        x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
        side = rng.uniform(0, 6.283)
        along = (x - 0.5) * cos(side) + (y - 0.5) * sin(side)
        pixels = pixels * (1 - effects["shadow"] * np.clip(along + 0.3, 0, 1) ** 1.5)[..., None]
    if effects.get("noise"):
        pixels = pixels + noise.normal(0, effects["noise"], (height, width, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def turn(mark: Mark) -> Mark:
        left, top, right, bottom = mark.box
        # Pillow turns counter-clockwise about the middle, y pointing down.
        cosine, sine = cos(radians(angle)), sin(radians(angle))
        corners = [(x - width / 2, y - height / 2) for x in (left, right) for y in (top, bottom)]
        xs = [x * cosine + y * sine + width / 2 for x, y in corners]
        ys = [-x * sine + y * cosine + height / 2 for x, y in corners]
        box = max(0, min(xs)), max(0, min(ys)), min(width, max(xs)), min(height, max(ys))
        return Mark(mark.text, box, mark.height)

    return Drawn(image, tuple(map(turn, drawn.words)), {name: turn(mark) for name, mark in drawn.marks.items()})
