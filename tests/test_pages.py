"""Drawn pages: every template draws, words stand where their boxes say, and splits share nothing that was made up."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

pytest.importorskip("typst", reason="the pages are set by typst")
pytest.importorskip("faker", reason="names of the pages are Faker's")

from dataclasses import replace

from monkey.data.pages import camera, charts, drawing, scenes
from monkey.data.pages.drawing import KINDS, TYPESET, Limits, draw_page, moved, templates_of
from monkey.data.pages.facts import NumberFormat, Page, Word
from monkey.data.pages.sheet import lay_out
from monkey.data.pages.spelling import DAYS, GOODS, REGIONS, SHARED, Writer, is_held_out, write_amount
from monkey.data.pages.typefaces import FAMILIES, HELD_OUT_FAMILIES

REPOSITORY = Path(__file__).resolve().parent.parent
TEMPLATES = [
    (kind, held_out, name) for kind in KINDS for held_out in (False, True) for name in templates_of(kind, held_out)
]
CLEAN: dict[str, Page] = {}


def clean_page(kind: str, held_out: bool, template: str) -> Page:
    """A clean page of a template, drawn once for all tests."""
    if template not in CLEAN:
        rng = random.Random(f"test {template}")
        CLEAN[template] = draw_page(kind, rng, "heldout" if held_out else "train", template=template, clean=True)
    return CLEAN[template]


def ground_of(pixels: np.ndarray) -> np.ndarray:
    """The most frequent colour."""
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return colours[counts.argmax()]


def ink_in(image: Image.Image, box: tuple[float, ...], around: float = 0.0) -> np.ndarray:
    """Where a part of an image differs from the colour around its word, as booleans."""
    left, top, right, bottom = box
    area = tuple(map(round, (left - around, top - around, right + around, bottom + around)))
    pixels = np.asarray(image.crop(area), int)
    return np.abs(pixels - ground_of(pixels)).max(axis=2) > 70


@pytest.mark.parametrize(
    ("kind", "held_out", "template"), TEMPLATES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_template_draws_and_tells_what_it_printed(kind, held_out, template):
    page = clean_page(kind, held_out, template)
    assert (page.kind, page.template, page.image.mode) == (kind, template, "RGB")
    assert page.description
    assert bool(page.words) == (kind not in scenes.TEMPLATES)
    width, height = page.image.size
    for word in page.words:
        left, top, right, bottom = word.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    lines = [word.line for word in page.words]
    assert lines == sorted(lines)
    text = " ".join(word.text for word in page.words)
    for field in page.fields:
        assert field.value in text
        assert field.label in text
        assert field.key not in page.absent
    for table in page.tables:
        for row in table.rows:
            assert len(row) == len(table.columns) == len(table.column_keys)
            assert all(cell.text in text and bool(cell.text) == (cell.box is not None) for cell in row)


@pytest.mark.parametrize(
    ("kind", "held_out", "template"), TEMPLATES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_box_of_a_word_holds_its_ink_and_little_else(kind, held_out, template):
    page = clean_page(kind, held_out, template)
    for word in page.words:
        if not word.text.isalnum() or word.height < 5:
            continue  # a dot or a dash has little ink to find
        ink = ink_in(page.image, word.box, 1.5)
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        assert len(rows), f"{word.text} has no ink in its box"
        # Antialiasing and the bearings of letters are what is left: three pixels at the sides, two above and below.
        bearing = 3 + 0.3 * word.height
        assert rows[0] <= 4, f"{word.text}: ink begins {rows[0]} rows below"
        assert rows[-1] >= len(ink) - 5, f"{word.text}: ink ends {len(ink) - rows[-1]} rows above"
        assert columns[0] <= bearing, f"{word.text}: ink begins {columns[0]} columns later"
        assert columns[-1] >= ink.shape[1] - 1 - bearing, f"{word.text}: ink ends {ink.shape[1] - columns[-1]} earlier"


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_gives_the_same_page_to_the_byte(kind):
    first, second = (draw_page(kind, random.Random(5), "train") for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert replace(first, image=None) == replace(second, image=None)


def digest(kinds: tuple[str, ...]) -> str:
    pages = [draw_page(kind, random.Random(9), "train") for kind in kinds]
    texts, regions = [], set()
    for seed in range(90):
        writer = Writer(random.Random(seed), False)
        regions.add(writer.region)
        texts += [writer.person(), writer.company(), writer.address(), writer.phone(), writer.country(), writer.email()]
    assert regions == set(REGIONS)
    drawn = b"".join(page.image.tobytes() for page in pages)
    return hashlib.sha256(drawn + "\n".join(texts).encode()).hexdigest()


def test_another_process_draws_the_same_bytes():
    """Whatever it drew before, and in whatever order its sets of strings come."""
    kinds = ("bars", "receipt", "texture", "pie", "letter")
    program = f"from tests.test_pages import digest; print(digest({kinds[::-1]}[::-1]))"
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == digest(kinds)


def test_splits_share_no_template_and_no_typeface():
    for kind in KINDS:
        assert not set(templates_of(kind, False)) & set(templates_of(kind, True))
        assert templates_of(kind, False)
        assert templates_of(kind, True)
    assert not {family.name for family in FAMILIES} & {family.name for family in HELD_OUT_FAMILIES}


def test_splits_share_no_word_that_is_chosen():
    for held_out in (False, True):
        for seed in range(12):
            writer = Writer(random.Random(seed), held_out)
            texts = [
                writer.person(),
                writer.company(),
                writer.city(),
                writer.goods(),
                writer.sentence(),
                writer.country(),
            ]
            texts += [writer.street(), writer.made_up(), writer.shop().split()[0]]
            for word in re.findall(r"[^\W\d_]{2,}", " ".join(texts)):
                assert word.casefold() in SHARED or is_held_out(word) == held_out, word


def test_half_of_the_words_are_made_up():
    writer = Writer(random.Random(3), False)
    listed = set(writer.english.get_words_list()) | set(GOODS)
    words = [writer.word() for _ in range(600)]
    assert 0.4 < sum(word not in listed for word in words) / len(words) < 0.6


def test_pages_of_the_splits_have_their_typefaces(monkeypatch):
    used = set()
    real = drawing.Setting
    monkeypatch.setattr(drawing, "Setting", lambda content: used.add(content["font"]) or real(content))
    for seed in range(6):
        draw_page("sign", random.Random(seed), "heldout", clean=True)
    assert used <= {family.name for family in HELD_OUT_FAMILIES}
    used.clear()
    for seed in range(6):
        page = draw_page("sign", random.Random(seed), "known", clean=True)
        assert page.template in templates_of("sign", True)
    assert used <= {family.name for family in FAMILIES}


def test_letters_are_as_large_as_the_limits_say():
    for limits in (Limits(), Limits(window=160)):
        for kind in ("receipt", "letter", "table", "bars"):
            page = draw_page(kind, random.Random(2), "train", limits, clean=True)
            shown = limits.shown(*page.image.size) * np.median([word.height for word in page.words])
            assert shown > 0.85 * limits.smallest


def test_limits_that_no_page_fits_are_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(drawing, "ATTEMPTS", 10)
    with pytest.raises(ValueError, match="in 1 windows of 28 pixels with letters of 7: give larger windows"):
        draw_page("letter", random.Random(1), "train", Limits(window=28, windows=1))


@pytest.mark.parametrize("device", ["photograph", "scan"])
def test_camera_moves_boxes_with_the_page(device):
    """A coloured mark is found again where the moved box says."""
    seen = 0
    for seed in range(8):
        image = Image.new("RGB", (300, 200), "white")
        box = (190.0, 60.0, 230.0, 84.0)
        image.paste((255, 0, 0), tuple(map(int, box)))
        generator = np.random.default_rng(seed)
        given = (image, generator, 14.0) if device == "photograph" else (image, generator, 14.0, True)
        image, move = getattr(camera, device)(*given)
        page = moved(Page("sign", "t", image, words=(Word("mark", box, 0, 24.0),)), move)
        pixels = np.asarray(page.image.convert("HSV"), int)
        red = (np.minimum(pixels[..., 0], 255 - pixels[..., 0]) < 12) & (pixels[..., 1] > 150) & (pixels[..., 2] > 60)
        left, top, right, bottom = page.words[0].box
        inside = red[round(top) : round(bottom), round(left) : round(right)]
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        assert len(rows) >= bottom - top - 4, seed
        assert len(columns) >= right - left - 4, seed
        assert inside.mean() > 0.6, seed
        assert 0.7 * 24 < page.words[0].height < 1.3 * 24
        seen += move is not camera.STILL
    assert seen >= (8 if device == "photograph" else 2)


def test_about_half_of_the_pages_are_clean(monkeypatch):
    looked = []
    monkeypatch.setattr(drawing, "_look_through", lambda page, rng, letters: looked.append(page) or page)
    for seed in range(60):
        draw_page("gradient", random.Random(seed), "train")
    assert 18 <= len(looked) <= 42


def test_sums_of_receipts_are_right():
    for seed in range(6):
        page = draw_page("receipt", random.Random(seed), "train", clean=True)
        numbers = {field.key: field.number for field in page.fields}
        prices = [row[-1].number for row in page.tables[0].rows]
        total = sum(prices) + sum(numbers.get(key, 0) for key in ("tax", "discount", "tip"))
        assert numbers["total"] == pytest.approx(total, abs=0.011)
        if "subtotal" in numbers:
            assert numbers["subtotal"] == pytest.approx(sum(prices), abs=0.005)
        if "cash" in numbers:
            assert numbers["change"] == pytest.approx(numbers["cash"] - numbers["total"], abs=0.005)


def test_what_comes_first_in_time_is_earlier():
    pairs = 0
    for seed in range(25):
        page = draw_page("ticket", random.Random(seed), "train", clean=True)
        values = {field.key: field.value for field in page.fields}
        for first, second in (("start_time", "end_time"), ("departure_time", "arrival_time")):
            if first in values and second in values:
                assert values[first] <= values[second]
                pairs += 1
    assert pairs >= 3


def test_shares_of_a_pie_are_a_whole():
    for seed in range(4):
        table = draw_page("pie", random.Random(seed), "train", clean=True).tables[0]
        assert sum(row[1].number for row in table.rows) == 100


def test_a_shape_of_a_scene_has_its_colour():
    page = draw_page("scene", random.Random(4), "train", template="scene-plain", clean=True)
    assert page.shapes
    for shape in page.shapes:
        left, top, right, bottom = map(round, shape.box)
        pixels = np.asarray(page.image.crop((left, top, right, bottom)), int)
        near = np.abs(pixels - np.array(scenes.COLOURS[shape.colour])).max(axis=2) < 12
        assert near.mean() > 0.2, shape
        assert near.any(axis=0).mean() > 0.9, shape
        assert near.any(axis=1).mean() > 0.9, shape


def has_colour(image: Image.Image, box: tuple[float, ...], colour: str) -> bool:
    pixels = np.asarray(image.crop(tuple(map(round, box))), int)
    return bool((np.abs(pixels - np.array(ImageColor.getrgb(colour))).max(axis=2) < 20).any())


def test_a_field_has_the_colour_that_it_tells():
    found = 0
    for seed in range(12):
        page = draw_page("table", random.Random(seed), "train", template="table-open", clean=True)
        for field in page.fields:
            if field.colour:
                assert has_colour(page.image, field.box, drawing.COLOURS[field.colour]), field
                found += 1
    assert found >= 2


def test_a_slice_has_the_colour_of_its_name_in_the_legend():
    page = draw_page("pie", random.Random(6), "train", template="pie-legend", clean=True)
    for row in page.tables[0].rows:
        left, top, _, bottom = row[0].box
        swatch = left - 3.5 * row[0].height, top, left, bottom
        assert has_colour(page.image, swatch, charts.COLOURS[row[0].colour]), row


def test_a_copier_takes_no_colour_that_is_told():
    page = draw_page("pie", random.Random(6), "train", template="pie-legend", clean=True)
    assert drawing._tells_colours(page)
    for seed in range(8):
        image, _ = camera.scan(page.image, np.random.default_rng(seed), 12.0, True)
        assert np.ptp(np.asarray(image, int), axis=2).max() > 40


def test_a_bar_without_a_number_tells_its_number_alone():
    for seed in range(12):
        page = draw_page("bars", random.Random(seed), "train", template="bars-upright", clean=True)
        cell = page.tables[0].rows[0][1]
        if not cell.text:
            assert cell.box is None
            assert cell.number > 0
            return
    pytest.fail("no chart without numbers was drawn")


@pytest.mark.parametrize(
    ("numbers", "printed"),
    [
        (NumberFormat("$"), "$1,234.50"),
        (NumberFormat("€", False, True, ",", "."), "1.234,50 €"),
        (NumberFormat("CHF", True, True, ".", "'"), "CHF 1'234.50"),
        (NumberFormat(), "1,234.50"),
    ],
)
def test_amounts_are_printed_as_the_region_prints_them(numbers, printed):
    assert write_amount(1234.5, numbers) == printed
    assert write_amount(-1234.5, numbers) == "-" + printed


def test_a_day_in_numbers_can_be_read_in_one_way():
    for seed in range(40):
        writer = Writer(random.Random(seed), False)
        day = writer.day()
        text = writer.write_day(day)
        if re.fullmatch(r"\d\d?[/-]\d\d?[/-]\d{4}", text):
            assert day.day > 12
        assert is_held_out(day.isoformat()) is False
    assert len(DAYS) == 7


def test_typefaces_have_the_letters_of_all_regions():
    from fontTools.ttLib import TTFont
    from matplotlib import font_manager

    from monkey.data.pages.typefaces import add_fonts_to_matplotlib

    add_fonts_to_matplotlib()
    for family in FAMILIES + HELD_OUT_FAMILIES:
        if family.is_typst:
            continue
        path = font_manager.findfont(font_manager.FontProperties(family=family.name), fallback_to_default=False)
        missing = set("äöüßéèêàâçñíóúôîïåøæãõìòÅØÉ€£$%&'*-–") - {chr(code) for code in TTFont(path).getBestCmap()}
        assert not missing, family.name


def test_sheet_shows_every_page():
    pages = [Page("sign", "t", Image.new("RGB", size, "red")) for size in ((100, 50), (50, 100), (300, 20))]
    sheet = np.asarray(lay_out(pages, 200, 60))
    assert sheet.shape[1] == 200
    assert (sheet == (255, 0, 0)).all(axis=2).sum() > 3000


def test_charts_have_no_templates_but_their_own():
    assert set(charts.TEMPLATES) | set(scenes.TEMPLATES) | set(TYPESET) == set(KINDS)
