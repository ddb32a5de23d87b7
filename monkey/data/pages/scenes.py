"""Images without text: shapes on a ground, gradients, noise, and surfaces with the statistics of photographs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from monkey.data.pages.camera import waves
from monkey.data.pages.facts import Page, Shape

COLOURS = {
    "red": (205, 35, 35), "green": (30, 140, 60), "blue": (30, 85, 190), "yellow": (245, 205, 25),
    "orange": (240, 125, 20), "purple": (125, 45, 165), "black": (20, 20, 22), "white": (250, 250, 250),
    "brown": (115, 70, 35), "pink": (240, 130, 175), "grey": (130, 130, 134),
}  # fmt: skip

TEMPLATES = {
    "scene": ("plain shaded", "grained"),
    "gradient": ("straight round", "corners"),
    "noise": ("fine coarse", "lines"),
    "texture": ("clouds weave field", "patches"),
}
"""Templates of training and held-out ones of each kind of image without text."""

_SUPERSAMPLING = 3


def draw_scene(kind: str, template: str, rng: random.Random, size: tuple[int, int]) -> Page:
    """Draw an image without any text; `template` is of `TEMPLATES`, with the kind's name before it."""
    generator = np.random.default_rng(rng.getrandbits(64))
    style = template.removeprefix(f"{kind}-")
    if kind == "scene":
        return _draw_shapes(template, style, rng, generator, size)
    image, what = _WITHOUT_SHAPES[style](generator, size)
    return Page(kind, template, image, description=f"{what} without any text.")


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _two_colours(generator: np.random.Generator) -> np.ndarray:
    while True:
        colours = generator.uniform(0, 255, (2, 3))
        if np.abs(colours[0] - colours[1]).max() > 60:
            return colours


def _blend(generator: np.random.Generator, share: np.ndarray) -> np.ndarray:
    """Return two colours mixed by a share [height, width] between 0 and 1."""
    first, second = _two_colours(generator)
    return first + (second - first) * share[..., None]


def _straight(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, str]:
    angle = generator.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    share = x * math.cos(angle) + y * math.sin(angle)
    return _image(_blend(generator, (share - share.min()) / np.ptp(share))), "A gradient of two colours"


def _round(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, str]:
    y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    far = np.hypot(x - generator.uniform(-0.7, 0.7), y - generator.uniform(-0.7, 0.7))
    return _image(
        _blend(generator, (far / far.max()) ** generator.uniform(0.6, 1.6))
    ), "A round gradient of two colours"


def _corners(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, str]:
    small = Image.fromarray(generator.integers(0, 256, (2, 2, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC), "A gradient of four colours"


def _fine(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, str]:
    deviation, channels = generator.uniform(20, 90), generator.choice((1, 3))
    noise = generator.standard_normal((size[1], size[0], channels)) * deviation
    return _image(generator.uniform(60, 200, 3) + noise), "Noise"


def _coarse(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, str]:
    cell = int(generator.integers(3, 24))
    cells = generator.integers(0, 256, (size[1] // cell + 1, size[0] // cell + 1, 3), np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST), "Coloured blocks"


def _stripes_of_noise(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, str]:
    shape = (1, size[0], 1) if generator.random() < 0.5 else (size[1], 1, 1)
    line = generator.integers(0, 256, shape)
    noise = generator.standard_normal((size[1], size[0], 3)) * generator.uniform(5, 40)
    return _image(line * np.ones(3) + noise), "Noise in stripes"


def _clouds(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, str]:
    share = waves(generator, size, generator.uniform(1.2, 2.2))
    return _image(_blend(generator, share)), "A cloudy surface"


def _weave(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, str]:
    y, x = np.mgrid[: size[1], : size[0]]
    across, down = generator.uniform(4, 18, 2)
    bands = 0.5 + 0.25 * (np.sin(2 * math.pi * x / across) + np.sin(2 * math.pi * y / down))
    return _image(_blend(generator, 0.75 * bands + 0.25 * waves(generator, size, 0.8))), "A woven surface"


def _field(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, str]:
    """Light falls from above on a ground that is rougher the nearer it is, as in a landscape."""
    horizon = int(size[1] * generator.uniform(0.3, 0.6))
    sky = _blend(generator, np.linspace(0, 0.5, size[1])[:, None] + 0.3 * waves(generator, size, 2.0))
    ground = _blend(generator, 0.6 * waves(generator, size, 1.2) + 0.4 * waves(generator, size, 0.6))
    ground *= np.linspace(0.6, 1.15, size[1])[:, None, None]
    ridge = horizon + (waves(generator, (size[0], 8), 1.6)[0] - 0.5) * size[1] * generator.uniform(0.05, 0.3)
    share = np.clip(np.arange(size[1])[:, None] - ridge, 0, 1)[..., None]
    pixels = sky * (1 - share) + ground * share + generator.standard_normal((size[1], size[0], 1)) * 4
    return _image(pixels).filter(ImageFilter.GaussianBlur(0.6)), "A landscape with a blurred sky and rough ground"


def _patches(generator: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, str]:
    """Fields of colour with soft edges, as things out of focus."""
    pixels = np.ones((size[1], size[0], 3)) * generator.uniform(0, 255, 3)
    y, x = np.mgrid[: size[1], : size[0]]
    for _ in range(int(generator.integers(4, 14))):
        radius = generator.uniform(0.08, 0.4) * max(size)
        far = np.hypot(x - generator.uniform(0, size[0]), y - generator.uniform(0, size[1])) / radius
        share = (1 / (1 + np.exp((far - 1) * generator.uniform(3, 25))))[..., None]
        pixels = pixels * (1 - share) + generator.uniform(0, 255, 3) * share
    pixels += (waves(generator, size, 1.0)[..., None] - 0.5) * generator.uniform(10, 60)
    return _image(pixels), "Blurred patches of colour"


_WITHOUT_SHAPES: Mapping[str, Callable[[np.random.Generator, tuple[int, int]], tuple[Image.Image, str]]] = {
    "straight": _straight, "round": _round, "corners": _corners, "fine": _fine, "coarse": _coarse,
    "lines": _stripes_of_noise, "clouds": _clouds, "weave": _weave, "field": _field, "patches": _patches,
}  # fmt: skip


def _polygon(points: int, start: float = -0.25, inner: float = 0.0) -> list[tuple[float, float]]:
    """Return the corners of a regular polygon, or of a star with an inner radius, in a circle of radius 1."""
    count = points * 2 if inner else points
    radii = [inner if inner and index % 2 else 1.0 for index in range(count)]
    turns = [2 * math.pi * (start + index / count) for index in range(count)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for radius, turn in zip(radii, turns, strict=True)]


_ARM = 0.3
_POLYGONS = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "rectangle": [(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)],
    "triangle": _polygon(3), "pentagon": _polygon(5), "hexagon": _polygon(6), "star": _polygon(5, inner=0.42),
    "diamond": [(0, -1), (0.65, 0), (0, 1), (-0.65, 0)],
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM), (_ARM, 1), (-_ARM, 1),
        (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
SHAPES = ("circle", "ring", *_POLYGONS)


def _draw_shapes(
    template: str, style: str, rng: random.Random, generator: np.random.Generator, size: tuple[int, int]
) -> Page:
    """Shapes that do not touch, on a ground whose colour none of them has."""
    ground = rng.choice(list(COLOURS))
    base = np.array(COLOURS[ground], float)
    pixels = np.ones((size[1], size[0], 1)) * base
    if style != "plain":
        depth = generator.uniform(20, 60)
        pixels = pixels + (waves(generator, size, 2.0 if style == "shaded" else 0.7)[..., None] - 0.5) * depth
    image = _image(pixels).resize((size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    names = [name for name in COLOURS if math.dist(COLOURS[name], COLOURS[ground]) > 90]
    least, shapes = min(size), []
    for _ in range(rng.randint(1, 8)):
        radius = least * rng.uniform(0.06, 0.2)
        for _ in range(40):
            x, y = rng.uniform(radius + 2, size[0] - radius - 2), rng.uniform(radius + 2, size[1] - radius - 2)
            box = x - radius, y - radius, x + radius, y + radius
            gap = 3
            if all(
                box[2] + gap < other.box[0] or other.box[2] + gap < box[0] or box[3] + gap < other.box[1]
                or other.box[3] + gap < box[1] for other in shapes
            ):  # fmt: skip
                shapes.append(_draw_shape(draw, rng.choice(SHAPES), rng.choice(names), (x, y), radius))
                break
    parts = [f"a {shape.colour} {shape.name}".replace("a orange", "an orange") for shape in shapes]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    image = image.resize(size, Image.Resampling.LANCZOS)
    description = f"{listed[0].upper()}{listed[1:]} on {ground}."
    return Page("scene", template, image, shapes=tuple(shapes), description=description)


def _draw_shape(draw: ImageDraw.ImageDraw, name: str, colour: str, at: tuple[float, float], radius: float) -> Shape:
    scale, fill = _SUPERSAMPLING, COLOURS[colour]
    if name in _POLYGONS:
        points = [(at[0] + radius * x, at[1] + radius * y) for x, y in _POLYGONS[name]]
        draw.polygon([(x * scale, y * scale) for x, y in points], fill=fill)
        left, top = (min(point[axis] for point in points) for axis in (0, 1))
        right, bottom = (max(point[axis] for point in points) for axis in (0, 1))
        return Shape(name, colour, (left, top, right, bottom))
    box = at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius
    drawn = tuple(edge * scale for edge in box)
    if name == "circle":
        draw.ellipse(drawn, fill=fill)
    else:
        draw.ellipse(drawn, outline=fill, width=max(2, round(radius * 0.3 * scale)))
    return Shape(name, colour, box)
