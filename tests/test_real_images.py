"""Images as people have them, from the file to the answer: what the model sees is what a person sees."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

import monkey
from monkey import ask, cli
from monkey.boxes import drawn, located
from monkey.serving.attention_maps import LONGEST_SIDE, draw_heat
from monkey.serving.session import Answerer
from tests.conftest import random_model
from tests.small_processor import small_config, small_processor

SHORT = monkey.Decoding(max_new_tokens=8)
MARKED_CORNER, OTHER_CORNER = (0, 0), (-1, 0)
"""Places of the canvas as (row, column): the mark of `scene`, and the corner below it."""


def scene(width: int, height: int) -> Image.Image:
    """An image whose parts can be told apart: blue, with a red mark at the top left and a green strip at the right."""
    image = Image.new("RGB", (width, height), (20, 40, 200))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 3, height // 3), fill=(220, 30, 40))
    draw.rectangle((width - 1 - width // 4, 0, width, height), fill=(30, 180, 60))
    return image


def phone_photo(path: Path) -> Image.Image:
    """Held upright, as phones save it: the pixels lie on their side, and EXIF says so."""
    upright = scene(900, 1200)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", quality=95, exif=exif)
    return upright


def scanned_page(path: Path) -> Image.Image:
    """A4 at 300 dots an inch, in two tones."""
    page = Image.new("L", (2480, 3508), 255)
    draw = ImageDraw.Draw(page)
    for line in range(40):
        draw.rectangle((250, 300 + 70 * line, 1200 + 23 * line, 330 + 70 * line), fill=0)
    page = page.point(lambda level: 255 * (level > 127), mode="1")
    page.save(path, "TIFF", compression="group4", dpi=(300, 300))
    return page.convert("RGB")


def saved(image: Image.Image, path: Path, mode: str = "RGB", **options) -> Image.Image:
    image.convert(mode).save(path, **options)
    return image


def animated_gif(path: Path) -> Image.Image:
    first = scene(120, 80)
    return saved(first, path, save_all=True, append_images=[ImageOps.invert(first)] * 3, duration=80, loop=0)


def deep_png(path: Path) -> Image.Image:
    grey = scene(160, 120).convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path, "PNG")
    return grey.convert("RGB")


def transparent_png(path: Path) -> Image.Image:
    """Black ink on clear paper, as drawing programs export it."""
    ink = scene(90, 60).convert("L")
    clear = Image.new("RGBA", ink.size, (0, 0, 0, 0))
    clear.putalpha(ink)
    clear.save(path, "PNG")
    return ImageOps.invert(ink).convert("RGB")


REAL = {
    "a phone photograph": (phone_photo, "jpg"),
    "a scanned page": (scanned_page, "tif"),
    "a CMYK JPEG": (lambda path: saved(scene(300, 200), path, "CMYK", quality=95), "jpg"),
    "an animated GIF": (animated_gif, "gif"),
    "a 16-bit PNG": (deep_png, "png"),
    "a WebP": (lambda path: saved(scene(200, 150), path, quality=95), "webp"),
    "a PNG with transparency": (transparent_png, "png"),
    "an AVIF": (lambda path: saved(scene(200, 150), path, quality=95), "avif"),
    "a JPEG 2000": (lambda path: saved(scene(200, 150), path), "jp2"),
    "one pixel": (lambda path: saved(Image.new("RGB", (1, 1), (220, 30, 40)), path), "png"),
    "a panorama": (lambda path: saved(scene(20_000, 10), path), "png"),
}
LOSSLESS = ("a scanned page", "a 16-bit PNG", "a PNG with transparency", "one pixel", "a panorama")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    random_model(small_config()).save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    with monkey.load(checkpoint, "cpu") as model:
        yield model


def canvas(model: Answerer, image) -> np.ndarray:
    return model.processor.image_processor.canvas(image).astype(int)


@pytest.mark.parametrize("name", REAL)
def test_the_model_sees_what_a_person_sees_and_answers(name, model, checkpoint, tmp_path, capsys):
    draw, ending = REAL[name]
    path = tmp_path / f"real.{ending}"
    meant = canvas(model, draw(path))
    # A lossy file, a palette, or colours of ink change a level a little; an image turned or inverted, by over 100.
    tolerance = 0 if name in LOSSLESS else 12
    assert np.abs(canvas(model, path) - meant).max() <= tolerance
    answer = model.ask(path, "What is it?", SHORT).text
    assert answer
    for form in (path.read_bytes(), f"data:image/{ending};base64,{base64.b64encode(path.read_bytes()).decode()}"):
        assert model.ask(form, "What is it?", SHORT).text == answer
    words = ["-c", str(checkpoint), "--device", "cpu", "--image", str(path), "--max-new-tokens", "8", "What is it?"]
    assert ask.main(words) == 0
    assert capsys.readouterr().out == answer + "\n"


@pytest.mark.parametrize("name", ["a phone photograph", "a scanned page", "one pixel", "a panorama"])
def test_boxes_and_heat_are_drawn_on_it(name, model, tmp_path):
    draw, ending = REAL[name]
    path = tmp_path / f"real.{ending}"
    meant = draw(path)
    image = model.open_image(path)
    assert image.size == meant.size
    (box,) = located("<ref>it</ref><box>(0,0),(500,1000)</box>")
    assert box.in_pixels(image.size) == (0, 0, image.width / 2, image.height)
    assert drawn(image, [box]).size == image.size
    turns = [{"role": "user", "content": [{"type": "image", "image": path}, {"type": "text", "text": "What is it?"}]}]
    (seen,) = model.attention_maps(turns, "a sign")
    assert 0 < seen.share < 1
    heat = draw_heat(image, seen.answer_on_windows)
    assert max(heat.size) == min(max(image.size), LONGEST_SIDE)


def test_a_folder_of_them_is_asked_about_and_a_pdf_among_them_costs_no_other(checkpoint, tmp_path, capsys):
    for number, (draw, ending) in enumerate(REAL.values()):
        draw(tmp_path / f"{number}.{ending}")
    (tmp_path / "report.jpg").write_bytes(b"%PDF-1.7")
    words = ["-c", str(checkpoint), "--device", "cpu", "--image", str(tmp_path), "--max-new-tokens", "4", "--json"]
    assert ask.main([*words, "What is it?"]) == cli.EXIT_PARTIAL
    said = capsys.readouterr()
    names = [Path(json.loads(line)["images"][0]).stem for line in said.out.splitlines()]
    assert names == sorted(str(number) for number in range(len(REAL)))
    assert f"error: {tmp_path / 'report.jpg'} is a PDF; render its pages to PNG first" in said.err


def test_a_phone_photograph_is_upright_and_a_panorama_keeps_its_ends(model, tmp_path):
    phone_photo(tmp_path / "photo.jpg")
    seen = canvas(model, tmp_path / "photo.jpg")
    red, blue = (seen[:, row, column] for row, column in (MARKED_CORNER, OTHER_CORNER))
    assert (red.argmax(), blue.argmax()) == (0, 2)
    assert model.open_image(tmp_path / "photo.jpg").size == (900, 1200)
    saved(scene(20_000, 10), tmp_path / "wide.png")
    seen = canvas(model, tmp_path / "wide.png")
    assert (seen[:, 0, 0].argmax(), seen[:, 0, -1].argmax()) == (0, 1)


def test_a_pdf_is_refused_with_advice_wherever_it_is_given(model, checkpoint, tmp_path, capsys):
    path = tmp_path / "report.png"
    buffer = io.BytesIO()
    scene(40, 30).save(buffer, "PDF")
    path.write_bytes(buffer.getvalue())
    advice = "is a PDF; render its pages to PNG first"
    with pytest.raises(ValueError) as caught:
        model.ask(path, "What is it?", SHORT)
    assert str(caught.value) == f"{path} {advice}"
    words = ["-c", str(checkpoint), "--device", "cpu", "--image", str(path), "What is it?"]
    assert ask.main(words) == cli.EXIT_USAGE
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {path} {advice}"


def test_an_image_beyond_the_limits_is_refused_and_the_next_is_answered(model, tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 6_000)).save(path)
    with pytest.raises(ValueError, match="120,000,000 pixels"):
        model.ask(path, "What is it?", SHORT)
    assert model.ask(scene(40, 30), "What is it?", SHORT).text
