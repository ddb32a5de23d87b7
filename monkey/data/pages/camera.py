"""What a camera and a scanner do to a page, and where its boxes are afterwards.

Everything is random by a NumPy generator, and mild enough that the page can still be read: blur and noise are measured
against the height of its letters.
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from monkey.data.pages.facts import Box

PHOTOGRAPHED = 0.6
"""How many of the images that a camera or a scanner sees are a camera's."""


@dataclass(frozen=True)
class Move:
    """Where points of an image went: a homography [3, 3] of (x, y, 1)."""

    matrix: np.ndarray

    def points(self, points: np.ndarray) -> np.ndarray:
        """Return points [N, 2] as they are afterwards."""
        moved = np.column_stack([points, np.ones(len(points))]) @ self.matrix.T
        return moved[:, :2] / moved[:, 2:]

    def box(self, box: Box) -> Box:
        """Return the smallest upright box around a box as it is afterwards."""
        left, top, right, bottom = box
        corners = self.points(np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float))
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    def scale(self, box: Box) -> float:
        """Return how many times as high what stands upright in a box is afterwards."""
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        above, below = self.points(np.array([(x, y - 0.5), (x, y + 0.5)], float))
        return float(math.dist(above, below))


STILL = Move(np.eye(3))


def waves(rng: np.random.Generator, size: tuple[int, int], exponent: float = 1.0, cells: int = 0) -> np.ndarray:
    """Return noise [height, width] between 0 and 1 whose amplitudes fall as 1/f**exponent, as those of photographs do.

    Args:
        cells: leaves out what is finer than so many waves across; 0 for none.
    """
    # Such noise goes on at its right where it began at its left, so that large images are tiled with it.
    width, height = (min(256, 2 ** math.ceil(math.log2(side))) for side in size)
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    along, across = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
    frequency = np.maximum(np.hypot(along, across), 1.0)
    spectrum /= frequency**exponent
    spectrum[0, 0] = 0
    if cells:
        spectrum *= frequency <= cells
    field = np.fft.irfft2(spectrum, s=(height, width))
    low, high = field.min(), field.max()
    field = (field - low) / max(high - low, 1e-9)
    return np.tile(field, (-(-size[1] // height), -(-size[0] // width)))[: size[1], : size[0]]


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the matrix [3, 3] that takes four points [4, 2] to four others."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    solved = np.linalg.solve(np.array(rows, float), target.reshape(-1))
    return np.append(solved, 1.0).reshape(3, 3)


def put_on(image: Image.Image, background: Image.Image, corners: np.ndarray) -> tuple[Image.Image, Move]:
    """Return the background with the image on it, whose corners lie at `corners` [4, 2], clockwise from top left."""
    width, height = image.size
    matrix = homography(np.array([(0, 0), (width, 0), (width, height), (0, height)], float), corners)
    back = np.linalg.inv(matrix)
    back /= back[2, 2]
    coefficients = back.reshape(-1)[:8].tolist()
    laid = image.transform(background.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    mask = Image.new("L", image.size, 255)
    mask = mask.transform(background.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    return Image.composite(laid, background, mask), Move(matrix)


def surface(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return what a page may lie on: a table, a cloth, a wall, of any colour."""
    base = rng.uniform(20, 225, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(20, 235))
    grain = waves(rng, size, rng.uniform(0.6, 1.6))[..., None] - 0.5
    if rng.random() < 0.4:  # wood: drawn out to one side
        long = Image.fromarray((grain[..., 0] * 255 + 128).astype(np.uint8))
        strip = long.crop((0, 0, max(size[0] // 12, 2), size[1])).resize(size, Image.Resampling.BICUBIC)
        grain = np.asarray(strip, float)[..., None] / 255 - 0.5
    return Image.fromarray(np.clip(base + grain * rng.uniform(10, 90), 0, 255).astype(np.uint8))


def turn_and_tilt(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Move]:
    """Photograph a page that lies on something, not quite from above. The page stays whole."""
    width, height = image.size
    angle, tilt = math.radians(rng.uniform(-6, 6)), rng.uniform(0, 0.06)
    centre = np.array([width / 2, height / 2])
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float) - centre
    corners += rng.uniform(-tilt, tilt, (4, 2)) * (width, height)
    turn = np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    corners = corners @ turn.T
    margins = rng.uniform(0.005, 0.05, 4) * min(width, height)
    corners += margins[:2] - corners.min(axis=0)
    across, down = (corners.max(axis=0) + margins[2:]).round().astype(int)
    return put_on(image, surface(rng, (int(across), int(down))), corners)


def shade(image: Image.Image, rng: np.random.Generator, depth: float) -> Image.Image:
    """Return the image under uneven light, at its darkest 1 - `depth` of it; at times with the edge of a shadow."""
    small = waves(rng, (48, 48), 2.0, cells=3)
    if rng.random() < 0.5:
        direction = rng.uniform(0, 2 * math.pi)
        y, x = np.mgrid[-0.5:0.5:48j, -0.5:0.5:48j]
        edge = (x * math.cos(direction) + y * math.sin(direction) - rng.uniform(-0.3, 0.3)) * rng.uniform(6, 40)
        small = 0.4 * small + 0.6 / (1 + np.exp(-edge))
    light = Image.fromarray((255 * (1 - depth * small)).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    return _multiply(image, np.asarray(light, float)[..., None] / 255)


def _multiply(image: Image.Image, factor: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image, float) * factor, 0, 255).astype(np.uint8))


def tint(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image on paper that is not quite white, with its fibres."""
    colour = 1 - rng.uniform(0, 0.15) * np.array([0.15, 0.45, 1.0]) - rng.uniform(0, 0.05)
    return _multiply(
        image, colour * (1 - rng.uniform(0, 0.1) * waves(rng, image.size, rng.uniform(0.2, 0.8))[..., None])
    )


def fade(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image with less contrast, and a little brighter or darker."""
    pixels = np.asarray(image, float)
    pixels = (pixels - 128) * rng.uniform(0.5, 0.85) + 128 + rng.uniform(-10, 40)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def blur(image: Image.Image, rng: np.random.Generator, letters: float) -> Image.Image:
    """Return the image out of focus by a part of the height of its letters."""
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.02, 0.07) * letters))


def grain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image with the noise of a sensor."""
    deviation = rng.uniform(2, 12)
    shape = (*image.size[::-1], 3 if rng.random() < 0.5 else 1)
    pixels = np.asarray(image, float) + rng.standard_normal(shape, np.float32) * deviation
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def compress(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image as JPEG left it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(30, 85)))
    return Image.open(buffer).convert("RGB")


def look_through(image: Image.Image, rng: random.Random, letters: float, in_colour: bool) -> tuple[Image.Image, Move]:
    """Return the page as a camera or a scanner sees it, and where its points went.

    Args:
        letters: the height of its least letters in pixels.
        in_colour: whether a scanner keeps its colours.
    """
    generator = np.random.default_rng(rng.getrandbits(64))
    if rng.random() < PHOTOGRAPHED:
        return photograph(image, generator, letters)
    return scan(image, generator, letters, in_colour)


def photograph(image: Image.Image, rng: np.random.Generator, letters: float) -> tuple[Image.Image, Move]:
    """Return the page as a camera sees it, and where its points went. `letters` is the height of its least letters."""
    if rng.random() < 0.4:
        image = tint(image, rng)
    image, move = turn_and_tilt(image, rng)
    if rng.random() < 0.8:
        image = shade(image, rng, rng.uniform(0.1, 0.5))
    if rng.random() < 0.5:
        image = blur(image, rng, letters)
    if rng.random() < 0.6:
        image = grain(image, rng)
    return (compress(image, rng) if rng.random() < 0.7 else image), move


def scan(image: Image.Image, rng: np.random.Generator, letters: float, in_colour: bool) -> tuple[Image.Image, Move]:
    """Return the page as a scanner or, unless `in_colour`, a copier sees it, and where its points went."""
    move = STILL
    if rng.random() < 0.5:
        image = tint(image, rng)
    if rng.random() < 0.6:
        image, move = turn_a_little(image, rng)
    if rng.random() < 0.5:
        image = fade(image, rng)
    if not in_colour and rng.random() < 0.5:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.4:
        image = blur(image, rng, letters)
    if rng.random() < 0.4:
        image = grain(image, rng)
    return (compress(image, rng) if rng.random() < 0.7 else image), move


def turn_a_little(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Move]:
    """Return the page as it lay on a scanner, turned by up to two degrees about its middle; its corners may be cut."""
    width, height = image.size
    angle = math.radians(rng.uniform(-2, 2))
    turn = np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    centre = np.array([width / 2, height / 2])
    corners = (np.array([(0, 0), (width, 0), (width, height), (0, height)], float) - centre) @ turn.T + centre
    edge = tuple(int(x) for x in np.median(np.asarray(image)[:, 0], axis=0))
    return put_on(image, Image.new("RGB", image.size, edge), corners)
