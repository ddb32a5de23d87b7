"""Opening images: every form they come in, upright, RGB, within limits, and refused in one sentence."""

from __future__ import annotations

import base64
import io
import os
import random
import re
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from monkey.images import FORMATS, IMAGE_ENDINGS, open_image
from monkey.processing import MonkeyImageProcessor

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "checkpoint"


def random_pixels(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def file_of(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_of(width: int, height: int, bits: int, kind: int, rows: bytes, clear: bytes | None = None) -> bytes:
    """A PNG written by hand; `kind` 0 is grey, 2 colours, and `clear` the one that is transparent."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    head += b"" if clear is None else chunk(b"tRNS", clear)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds next to nothing."""
    return png_of(width, height, 8, 2, b"\0")


def refusal(source, kind: type[Exception] = ValueError, **options) -> str:
    """The message that opening gives, after checking its type and that it is one sentence."""
    with pytest.raises(kind) as caught:
        open_image(source, **options)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_every_form_of_one_image_is_the_same_image(tmp_path):
    pixels = random_pixels()
    image = Image.fromarray(pixels)
    png = file_of(image)
    path = tmp_path / "an image é.png"
    path.write_bytes(png)
    forms = {
        "PIL": image,
        "path": path,
        "path as str": str(path),
        "bytes": png,
        "bytearray": bytearray(png),
        "memoryview": memoryview(png),
        "data-URI": "data:image/png;base64," + base64.b64encode(png).decode(),
        "array HWC": pixels,
        "array CHW": pixels.transpose(2, 0, 1),
        "array with alpha": np.concatenate([pixels, np.full((6, 9, 1), 255, np.uint8)], axis=2),
        "array of floats": pixels / 255,
        "array of float16": (pixels / 255).astype(np.float16),
        "array of 16 bits": pixels.astype(np.uint16) * 257,
        "array of integers": pixels.astype(np.int64),
        "array not contiguous": np.asfortranarray(pixels),
        "tensor CHW": torch.from_numpy(pixels).permute(2, 0, 1),
        "tensor of floats": torch.from_numpy(pixels).permute(2, 0, 1) / 255,
        "tensor with gradient": (torch.from_numpy(pixels) / 255).requires_grad_(),
    }
    for name, form in forms.items():
        opened = open_image(form)
        assert opened.mode == "RGB", name
        assert np.array_equal(np.asarray(opened), pixels), name


def test_a_file_that_is_open_is_read_from_its_start_and_within_limits(tmp_path):
    png = file_of(Image.fromarray(random_pixels()))
    (tmp_path / "a.png").write_bytes(png)
    with tempfile.TemporaryFile() as written, (tmp_path / "a.png").open("rb") as file:
        written.write(png)  # and not rewound
        for source in (io.BytesIO(png), written, written, file, io.BufferedReader(io.BytesIO(png))):
            assert np.array_equal(np.asarray(open_image(source)), random_pixels())
        assert "more than the 9 allowed (max_bytes)" in refusal(file, max_bytes=9)
    assert refusal(file) == f"the open file {tmp_path / 'a.png'} cannot be read: I/O operation on closed file"
    assert refusal(io.StringIO("text")) == 'the open file gives str and not bytes; open it with mode "rb"'
    assert refusal(io.BytesIO(b"%PDF-1.7"), name="image 2") == "image 2 is a PDF; render its pages to PNG first"


def test_grey_arrays_become_grey_images():
    grey = random_pixels()[:, :, 0]
    meant = np.repeat(grey[:, :, None], 3, axis=2)
    for form in (grey, grey[:, :, None], grey[None], torch.from_numpy(grey), torch.from_numpy(grey) / 255):
        assert np.array_equal(np.asarray(open_image(form)), meant)
    assert np.array_equal(np.asarray(open_image(grey > 99)), (meant > 99) * 255)
    halves = torch.from_numpy(grey).to(torch.bfloat16) / 256
    assert np.abs(np.asarray(open_image(halves)).astype(int) - meant).max() <= 2  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "PA"])
def test_modes_are_converted_as_the_published_code_does(mode):
    image = Image.fromarray(random_pixels(channels=4), "RGBA").convert("RGB" if mode == "HSV" else "RGBA")
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert np.array_equal(np.asarray(open_image(image, published_pixels=True)), np.asarray(image.convert("RGB")))


@pytest.mark.filterwarnings("error")
def test_transparent_palette_is_published_with_its_colours_and_without_a_warning():
    image = Image.fromarray(random_pixels()).quantize(8)
    colours = np.asarray(image.convert("RGB"))
    opened = open_image(file_of(image, transparency=bytes([0, 128, 255])), published_pixels=True)
    assert np.array_equal(np.asarray(opened), colours)


def ink_on_clear() -> Image.Image:
    """Black of every strength where people see black letters, and nothing, which is black too, around them."""
    clear = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    clear.putalpha(Image.fromarray(np.tile(np.arange(0, 256, 16, dtype=np.uint8), (8, 1))))
    return clear


SEEN = np.tile(255 - np.arange(0, 256, 16), (8, 1))
"""`ink_on_clear` on white paper."""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        (lambda image: image, 0),
        (lambda image: image.convert("LA"), 0),
        (lambda image: image.convert("RGBa"), 0),
        (lambda image: image.quantize(16, method=Image.Quantize.FASTOCTREE), 8),
        (np.asarray, 0),
        (lambda image: np.asarray(image).transpose(2, 0, 1), 0),
        (lambda image: np.asarray(image) / 255, 0),
        (lambda image: torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1).half(), 1),
        (file_of, 0),
        (lambda image: file_of(image.convert("LA")), 0),
        (lambda image: file_of(image.quantize(16, method=Image.Quantize.FASTOCTREE)), 8),
        (lambda image: file_of(image, "WEBP", lossless=True, exact=True), 0),
        (lambda image: file_of(image, "TIFF"), 0),
        (lambda image: file_of(image, "TGA"), 0),
    ],
)
def test_what_is_transparent_is_seen_on_white(form, tolerance):
    opened = np.asarray(open_image(form(ink_on_clear()))).astype(int)
    assert np.abs(opened - SEEN[:, :, None]).max() <= tolerance
    published = np.asarray(open_image(form(ink_on_clear()), published_pixels=True))
    assert published.max() <= tolerance
    premultiplied = ink_on_clear().convert("LA").convert("La")
    assert np.array_equal(np.asarray(open_image(premultiplied))[:, :, 0], SEEN)


def test_a_colour_that_is_named_transparent_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 30, 40])
    image.putpixel((1, 0), 1)
    for data in (file_of(image, "GIF", transparency=0), file_of(image, transparency=0)):
        assert [open_image(data).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 30, 40)]
        assert open_image(data, published_pixels=True).getpixel((0, 0)) == (0, 0, 0)
    grey, colour = Image.new("L", (2, 1)), Image.new("RGB", (2, 1), "red")
    grey.putpixel((1, 0), 90)
    assert np.asarray(open_image(file_of(grey, transparency=0)))[0, :, 0].tolist() == [255, 90]
    assert open_image(file_of(colour, transparency=(255, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (png_of(4, 1, 2, 0, b"\0\x1b", b"\0\1"), [0, 255, 170, 255]),
        (png_of(2, 1, 4, 0, b"\0\x1f", b"\0\1"), [255, 255]),
        (png_of(8, 1, 1, 0, b"\0\x0f", b"\0\0"), [255] * 8),
        (png_of(2, 1, 16, 0, b"\0\x12\x34\xff\xff", b"\x12\x34"), [255, 255]),
        (png_of(2, 1, 16, 0, b"\0\x12\x34\xff\xff", b"\xff\xff"), [18, 255]),
        (png_of(2, 1, 16, 2, b"\0\x12\x34\x12\x34\x12\x34\x40\0\x40\0\x40\0", b"\x12\x34" * 3), [255, 64]),
    ],
)
def test_pngs_of_few_and_of_many_bits_are_transparent_where_they_say(data, seen):
    assert np.asarray(open_image(data))[0, :, 0].tolist() == seen


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_a_scan_of_fewer_bits_in_a_file_of_sixteen_is_not_black(bits):
    values = np.linspace(0, 2**bits - 1, 54).reshape(6, 9).astype(np.uint16)
    meant = np.rint(values * (255 / (2**bits - 1)))
    for form in (
        values,
        Image.fromarray(values),
        Image.fromarray(values.astype(np.int32)),
        Image.fromarray(values.astype(np.int32)).convert("I;16B"),
        file_of(Image.fromarray(values)),
        file_of(Image.fromarray(values), "TIFF"),
    ):
        assert np.array_equal(np.asarray(open_image(form))[:, :, 0], meant)
    assert "from 0 to 65536, and 0 to 65535 are known" in refusal(Image.fromarray(np.int32([[0, 65536]])))


def test_float_images_are_known_in_both_ranges_and_deep_ones_can_be_had_clipped_as_published():
    values = np.linspace(0, 1, 54, dtype=np.float32).reshape(6, 9)
    for scale in (1, 255):
        opened = open_image(file_of(Image.fromarray(values * scale), "TIFF"))
        assert np.array_equal(np.asarray(opened)[:, :, 0], np.rint(values * 255))
    assert "from -3 to 900" in refusal(Image.fromarray(np.array([[-3, 900]], np.float32)))
    for kind, high, low in ((np.uint16, 65535, 0), (np.float32, 1e5, 0), (np.int32, 9999, -5)):
        opened = open_image(Image.fromarray(np.array([[low, 200, 256, high]], kind)), published_pixels=True)
        assert np.asarray(opened)[0, :, 0].tolist() == [0, 200, 255, 255]


@pytest.mark.parametrize(("file_format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_moving_images_show_their_first_frame(file_format, options):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = file_of(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert open_image(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_exif_orientation_is_applied_once_or_ignored_on_request(orientation, file_format, options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(Image.fromarray(random_pixels()), file_format, exif=exif, **options)
    stored = Image.open(io.BytesIO(data))
    upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    opened = open_image(data)
    assert np.array_equal(np.asarray(opened), upright)
    assert np.array_equal(np.asarray(open_image(opened)), upright)
    assert np.array_equal(np.asarray(open_image(stored)), upright)
    assert np.array_equal(np.asarray(open_image(data, apply_exif=False)), random_pixels())


def test_tiff_is_turned_once_by_pil_itself_and_unreadable_exif_costs_no_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(Image.fromarray(random_pixels()), "TIFF", exif=exif)
    for apply_exif in (True, False):
        assert np.array_equal(np.asarray(open_image(data, apply_exif=apply_exif)), np.rot90(random_pixels(), -1))
    data = file_of(Image.fromarray(random_pixels()), "PNG", exif=b"Exif\x00\x00XX\x00*\x00\x00\x00\x08")
    assert np.array_equal(np.asarray(open_image(data)), random_pixels())


def test_the_callers_image_is_left_as_it_was():
    image = Image.fromarray(random_pixels())
    image.info["comment"] = "mine"
    opened = open_image(image)
    opened.putpixel((0, 0), (0, 0, 0))
    assert image.info == {"comment": "mine"}
    assert np.array_equal(np.asarray(image), random_pixels())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixels_and_bytes_are_limited_before_anything_is_decoded(tmp_path):
    assert "120,000,000 pixels (12000 × 10000), more than the 100,000,000" in refusal(png_header(12_000, 10_000))
    # Beyond twice its own limit, Pillow refuses by itself.
    assert "200,000,000 pixels, more than the 100,000,000 allowed" in refusal(png_header(20_000, 10_000))
    for image in (Image.fromarray(random_pixels()), random_pixels()):
        assert "54 pixels (9 × 6), more than the 53 allowed" in refusal(image, max_pixels=53)
    assert open_image(random_pixels(), max_pixels=54).size == (9, 6)
    assert refusal(Image.new("RGB", (0, 5))) == "the image has no pixels (0 × 5)"
    data = b"not a picture at all" * 10
    path = tmp_path / "big.png"
    path.write_bytes(data)
    for source in (path, data):
        assert "200 bytes, more than the 199 allowed (max_bytes)" in refusal(source, max_bytes=199)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert "more than the 100 allowed (max_bytes)" in refusal(uri, max_bytes=100)


WRITTEN = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "BMP", "DIB", "TIFF", "GIF", "PPM", "PCX", "SGI", "TGA")
"""Those of FORMATS that Pillow can make."""


@pytest.mark.parametrize("file_format", WRITTEN)
def test_every_format_that_pillow_decodes_by_itself_is_read_and_refused_by_name_when_cut_off(tmp_path, file_format):
    codec = {"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(file_format)
    if codec and not features.check(codec):
        pytest.skip(f"this Pillow was built without {file_format}")
    image = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    path = tmp_path / f"a.{file_format.lower()}"
    path.write_bytes(file_of(image, file_format))
    difference = np.asarray(open_image(path)).astype(int) - np.asarray(image)
    assert np.abs(difference).max() <= 8  # of lossy ones; an image that was misread is off by over 100
    whole = file_of(Image.fromarray(random_pixels(60, 90)), file_format)
    path.write_bytes(whole[: len(whole) // 2])
    message = refusal(path)
    assert message.startswith(str(path))
    assert re.search("damaged|not an image", message)


def test_the_endings_of_a_folder_are_those_that_pillow_has_for_the_formats():
    Image.init()
    of_pillow = {ending for ending, name in Image.EXTENSION.items() if name in (*FORMATS, "MPO")}
    assert of_pillow <= set(IMAGE_ENDINGS)
    assert set(FORMATS) <= set(Image.OPEN)
    for refused in ("EPS", "WMF", "FITS", "ICO", "ICNS", "QOI", "XPM", "DDS", "PDF", "HDF5", "GRIB", "MPEG"):
        assert refused not in FORMATS
    documented = (
        (Path(__file__).parent.parent / "data/README.md").read_text(encoding="utf-8").split("an image may be")[1]
    )
    assert f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}" in documented.replace("\n", " ")


@pytest.mark.filterwarnings("ignore")  # PIL's, about tags and sizes that were made up here
def test_damaged_images_open_or_are_refused_and_nothing_else():
    chance = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(random_pixels(20, 30))
    files = [file_of(image, name, exif=exif) for name in ("PNG", "JPEG", "WEBP", "TIFF")]
    files += [file_of(image, name) for name in WRITTEN if features.check("jpg_2000") or name != "JPEG2000"]
    outcomes = []
    for _ in range(1000):
        data = bytearray(chance.choice(files))
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(min(len(data), 300))] = chance.randrange(256)
        try:
            outcomes.append(open_image(bytes(data)).mode)
        except ValueError as error:
            outcomes.append(str(error)[:10])
    assert set(outcomes) == {"RGB", "the image "}


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"just some text\n", "is not an image that can be read; formats are PNG, JPEG"),
        (b"%PDF-1.7\n%\xe2\xe3", "is a PDF; render its pages to PNG first"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is PostScript; render it to PNG first"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing"),
        (b"  <!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer; fetch the image itself"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "is HEIC, which is not read here; save it as JPEG or PNG"),
        (b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00", "is an AVIF that is damaged"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00", "is a film"),
        (b"\xff\x0a\x00\x00", "is JPEG XL"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_image_is_told_as_what_it_is(tmp_path, content, advice):
    path = tmp_path / "scan.png"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path} {advice}")


def test_places_that_hold_no_image_are_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(tmp_path / "missing.png", FileNotFoundError).startswith(f"{tmp_path / 'missing.png'}: no such")
    assert refusal(tmp_path / "folder.png") == f"{tmp_path / 'folder.png'} is a folder, not an image"
    assert refusal(tmp_path / "pipe.png") == f"{tmp_path / 'pipe.png'} is not a regular file"
    if os.path.exists("/proc/version"):  # of the files that call themselves empty; of kmsg, reading would wait for ever
        assert refusal("/proc/version") == "/proc/version is empty"
    assert refusal(os.devnull) == f"{os.devnull} is not a regular file"
    assert refusal("a\0b.png").endswith("is not a path: it holds a NUL character")
    assert "cannot be read: File name too long" in refusal("x" * 5000)
    assert "cannot be read: Not a directory" in refusal(f"{__file__}/a.png")


@pytest.mark.parametrize(
    "address", ["http://example.org/a.png", "HTTPS://example.org/a.png", "file:///etc/passwd", "ftp://a/b", "s3://b/c"]
)
def test_addresses_are_never_fetched(address, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    assert refusal(address) == f"{address} is an address, and images are not fetched; download it first"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:text/plain;base64,aGVsbG8=", "only data:image/…;base64,… is accepted"),
        ("data:image/png,hello", "only data:image/…;base64,… is accepted"),
        ("data:image/png;base64,aGVs bG8=", "is not strict base64"),
        ("data:image/png;base64,aGVsbG8", "is not strict base64"),
        ("data:image/png;base64,aGVsbG8=", "is not an image that can be read"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "is an SVG drawing"),
    ],
)
def test_data_uris_are_strict(uri, message):
    assert message in refusal(uri)
    assert refusal(uri, name="image 2 of text 1").startswith("image 2 of text 1 ")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((6, 5, 2), np.uint8), "shape [6, 5, 2]"),
        (np.zeros((2, 3, 4, 5), np.uint8), "shape [2, 3, 4, 5]"),
        (np.zeros(7, np.uint8), "shape [7]"),
        (np.zeros((0, 5, 3), np.uint8), "shape [0, 5, 3]"),
        (np.full((4, 5), 255.0), "float64 values from 255 to 255; they must lie in [0, 1]"),
        (np.full((4, 5), np.nan), "float64 values from nan to nan"),
        (np.full((4, 5), -1), "int64 values from -1 to -1; they must lie in [0, 255]"),
        (np.full((4, 5), "a"), "values of the type <U1"),
        (torch.zeros(3, 4, 5) + 2, "float32 values from 2 to 2"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message):
    assert message in refusal(array)


def test_other_objects_are_refused_by_their_type():
    for thing in (None, 5, ["a.png"], {"url": "a.png"}):
        message = refusal(thing, TypeError, name="image 1 of text 3")
        assert message.startswith(f"image 1 of text 3 is a {type(thing).__name__}, and an image is")


def test_pixels_are_the_published_ones():
    figures = load_file(GOLDEN / "cases.safetensors")
    pixels = MonkeyImageProcessor.from_pretrained(CHECKPOINT)(GOLDEN / "images" / "receipt.png")["pixel_values"]
    assert pixels.shape == (1, 3, 896, 896)
    assert pixels.dtype == torch.float32
    # Both sides do the same three operations in fp32; 1e-6 leaves room for their order.
    for name, window in (("0_0", pixels[:, :, :448, :448]), ("1_1", pixels[:, :, 448:, 448:])):
        assert torch.allclose(window[..., ::16, ::16], figures[f"vision.window_{name}"], rtol=0, atol=1e-6)


def test_the_canvas_is_filled_and_the_aspect_ratio_not_kept():
    processor = MonkeyImageProcessor(size={"height": 28, "width": 84}, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    white = processor([Image.new("RGB", (10, 70), "white"), Image.new("L", (1, 1), 255)], return_tensors="np")
    assert white["pixel_values"].shape == (2, 3, 28, 84)
    assert (white["pixel_values"] == 1).all()


def test_both_switches_reach_the_pixels_and_settings_are_saved(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = file_of(Image.fromarray(random_pixels()), exif=exif)
    size = {"height": 28, "width": 28}
    turned = MonkeyImageProcessor(size=size)(data)["pixel_values"]
    as_stored = MonkeyImageProcessor(size=size, apply_exif=False)(data)["pixel_values"]
    assert torch.equal(turned, as_stored.flip(-1, -2))
    clear = Image.new("RGBA", (5, 5), (0, 0, 0, 0))
    assert MonkeyImageProcessor(size=size).canvas(clear).min() == 255
    published = MonkeyImageProcessor(size=size, published_pixels=True)
    assert published.canvas(clear).max() == 0
    published.save_pretrained(tmp_path)
    opened = AutoImageProcessor.from_pretrained(tmp_path, apply_exif=False)
    assert opened.to_dict() == {**published.to_dict(), "apply_exif": False}


def test_wrong_settings_and_a_folder_without_any_are_refused(tmp_path):
    shape = "is not {'height': pixels, 'width': pixels}"
    for settings, message in (
        ({"aply_exif": False}, "no setting 'aply_exif'; it has size, image_mean"),
        ({"size": 448}, f"size=448 {shape}"),
        ({"size": {"height": 448}}, shape),
        ({"size": {"height": 448, "width": 0}}, shape),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            MonkeyImageProcessor(**settings)
    with pytest.raises(FileNotFoundError, match=r"no config.json in the folder, and it is needed for the size"):
        MonkeyImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the list of images is empty"):
        MonkeyImageProcessor()([])
