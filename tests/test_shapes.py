"""Images of any shape: which grid an image lies on, and that a ragged batch is each of its images alone."""

from __future__ import annotations

import io
import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFile

from monkey.checkpoint_files import BASE_FILE, check_base, read_base_record, record_base
from monkey.configuration import MonkeyConfig
from monkey.conversation import Conversation, Message, Text
from monkey.conversation import Image as ImagePart
from monkey.data.dataset import Collator, ConversationDataset, PackedCollator
from monkey.data.mixture import open_records
from monkey.decoding import Decoding
from monkey.engine import Canvas, Engine, Request
from monkey.flat_config import published_config
from monkey.grids import choose_grid
from monkey.image_processing import MonkeyImageProcessor
from monkey.images import image_size, open_image
from monkey.modeling import MonkeyForConditionalGeneration, image_slots
from monkey.processing import MonkeyProcessor, TooLong, span_lengths
from monkey.tokenization import QwenTokenizer
from monkey.training.trainer import MonkeyTrainer
from tests.conftest import left_padded, random_model, tiny_config
from tests.small_processor import CHECKPOINT, END, PAD, START, small_config, small_processor
from tests.training_start import PACKED, log, train

SIDE = 448


def up_to(count: int) -> tuple[tuple[int, int], ...]:
    return MonkeyConfig(grids=f"up-to-{count}").allowed_grids


# Configuration


def test_a_set_of_grids_is_written_out_and_counted():
    config = MonkeyConfig(grids="up-to-4")
    assert config.allowed_grids == ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1))
    assert (config.is_ragged, config.grid, config.image_tokens) == (True, (2, 2), config.tokens_of((2, 2)))
    assert config.tokens_of((1, 3)) == 4 * config.vision_config.num_queries
    assert MonkeyConfig(grids=[[2, 1], [1, 1], [2, 1]], global_view=False).allowed_grids == ((1, 1), (2, 1))
    assert MonkeyConfig(grids=[[2, 1], [1, 1], [2, 1]]).grids == MonkeyConfig(grids=((1, 1), (2, 1))).grids
    fixed = MonkeyConfig(grid=(2, 3))
    assert (fixed.is_ragged, fixed.allowed_grids) == (False, ((2, 3),))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grids": []}, "grids=[] is empty; give 'up-to-6' for all of at most six windows"),
        ({"grids": "upto6"}, "grids='upto6' is no set of grids; give 'up-to-6'"),
        ({"grids": "up-to-0"}, "grids='up-to-0' is no set of grids"),
        ({"grids": "up-to-2000"}, "grids='up-to-2000' has grids of more than 1,024 windows"),
        ({"grids": [[1, 2], [0, 1]]}, "grids[1]=[0, 1] is not (rows, columns)"),
        ({"grids": [[40, 40]]}, "grids[0]=[40, 40] has more than 1,024 windows"),
        ({"fit": "crop"}, "fit='crop' is not one of 'stretch', 'pad'"),
        ({"grid_set": "up-to-6"}, "no field 'grid_set'"),
    ],
)
def test_mistakes_about_grids_are_named(fields, message):
    with pytest.raises(ValueError) as caught:
        MonkeyConfig(**fields)
    assert message in str(caught.value)


def test_configs_with_grids_are_read_back_and_the_published_one_has_no_new_field(tmp_path):
    for fields in ({"grids": "up-to-6", "fit": "pad"}, {"grids": [[1, 2], [2, 1]]}, {"fit": "pad"}, {}):
        config = tiny_config(**fields)
        config.save_pretrained(tmp_path)
        for again in (MonkeyConfig.from_pretrained(tmp_path), MonkeyConfig.from_dict(published_config(config))):
            assert again.allowed_grids == config.allowed_grids
            assert (again.fit, again.is_ragged) == (config.fit, config.is_ragged)
        written = (tmp_path / "config.json").read_text()
        assert ('"grids"' in written, '"fit"' in written) == ("grids" in fields, "fit" in fields)
    moved = MonkeyConfig.from_pretrained(tmp_path, grids="up-to-2", fit="pad")
    assert (moved.allowed_grids, moved.fit) == (((1, 1), (1, 2), (2, 1)), "pad")


# The choice of a grid


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((448, 448), 6, (1, 1)),
        ((896, 896), 6, (2, 2)),
        ((500, 2000), 6, (1, 4)),  # wide
        ((2000, 500), 6, (4, 1)),  # tall
        ((448, 2688), 6, (1, 6)),
        ((1754, 1240), 4, (2, 2)),  # a page on 2×2, though 2×1 is as near
        ((1754, 1240), 6, (3, 2)),
        ((1240, 1754), 6, (2, 3)),
        ((900, 2000), 6, (2, 3)),  # nearer to 1×2, which shows a fifth of its pixels
        ((4000, 2000), 6, (3, 2)),
        ((2000, 2000), 6, (2, 2)),  # 2×3 would show as much, stretched
        ((20, 20), 6, (1, 1)),  # tiny
        ((40, 400), 6, (1, 6)),  # tiny, but of a shape
        ((300, 450), 6, (2, 3)),
        ((633, 633), 6, (1, 1)),  # has half of the pixels of 2×2, less a few
        ((634, 634), 6, (2, 2)),
        ((500, 500), 2, (1, 1)),
        ((1, 30000), 6, (1, 6)),
    ],
)
def test_the_grid_that_distorts_and_loses_least(size, most, grid):
    assert choose_grid(size, up_to(most), SIDE) == grid


def test_ties_go_to_fewer_windows_and_fewer_rows():
    assert choose_grid((300, 300), ((2, 1), (1, 2)), SIDE) == (1, 2)
    assert choose_grid((300, 300), ((3, 3), (2, 2)), SIDE) == (2, 2)
    assert choose_grid((440, 300), ((1, 2), (2, 1)), SIDE) == (2, 1)


def test_small_images_get_the_nearest_ratio_as_internvl_chooses():
    generator, grids = np.random.default_rng(0), up_to(9)
    for height, width in generator.integers(1, SIDE // 2, (100, 2)).tolist():
        grid = choose_grid((height, width), grids, SIDE)
        distances = {g: abs(math.log(height * g[1] / width / g[0])) for g in grids}
        assert distances[grid] == pytest.approx(min(distances.values()), abs=1e-12)


def test_turning_an_image_turns_its_grid():
    generator, grids = np.random.default_rng(1), up_to(8)
    for height, width in generator.integers(1, 3000, (100, 2)).tolist():
        one, other = (choose_grid(size, grids, SIDE) for size in ((height, width), (width, height)))
        assert one == other[::-1] or height == width


# Images on their canvases


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_pixels_of_one_grid_are_as_published_and_saved_without_a_new_setting():
    processor = MonkeyImageProcessor.from_config(MonkeyConfig())
    image = picture(300, 500)
    expected = np.asarray(image.resize((896, 896), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (processor.canvas(image) == expected).all()
    assert set(processor([image])) == {"pixel_values"}
    assert processor.place((300, 500)) == (None, (896, 896), (896, 896))
    assert set(processor.to_dict()) == {
        *("size", "image_mean", "image_std", "apply_exif", "published_pixels", "max_bytes", "max_pixels"),
        "image_processor_type",
    }


def test_windows_of_a_batch_lie_one_image_after_the_other_row_by_row():
    config = tiny_config(grids="up-to-6")
    processor = MonkeyImageProcessor.from_config(config)
    images = [picture(30, 90), picture(80, 40), picture(10, 10)]
    inputs = processor(images, return_tensors="pt")
    assert inputs["image_grids"].tolist() == [[1, 3], [2, 1], [1, 1]]
    assert inputs["pixel_values"].shape == (6, 3, 28, 28)
    wide, tall, small = (torch.from_numpy(processor.pixels(image)) for image in images)
    expected = [wide[:, :, :28], wide[:, :, 28:56], wide[:, :, 56:], tall[:, :28], tall[:, 28:], small]
    assert torch.equal(inputs["pixel_values"], torch.stack(expected))
    cut = processor.cut([processor.canvas(image) for image in images])
    assert torch.equal(processor.normalised(torch.from_numpy(cut["pixel_values"])), inputs["pixel_values"])


@pytest.mark.parametrize("size", [(50, 20), (20, 50), (33, 33), (1, 400), (400, 1), (7, 3)])
@pytest.mark.parametrize("grids", [None, "up-to-4"])
def test_a_padded_image_keeps_its_ratio_at_the_top_left(size, grids):
    processor = MonkeyImageProcessor.from_config(tiny_config(grids=grids, fit="pad"))
    image = picture(*size)
    grid, canvas, inner = processor.place(size)
    assert (grid is None) == (grids is None)
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    assert all(abs(inner[axis] - max(1, size[axis] * scale)) <= 0.5 for axis in (0, 1))
    assert inner[0] == canvas[0] or inner[1] == canvas[1]
    pixels = processor.canvas(image)
    expected = np.asarray(image.resize(inner[::-1], Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert pixels.shape == (3, *canvas)
    assert (pixels[:, : inner[0], : inner[1]] == expected).all()
    mean = np.round(255 * np.array(processor.image_mean))[:, None, None]
    around = np.ones(canvas, bool)
    around[: inner[0], : inner[1]] = False
    assert (np.where(around, pixels, mean) == mean).all()
    assert abs(processor.pixels(image)[:, around]).max(initial=0) < 0.01


def test_max_windows_leaves_out_larger_grids():
    processor = MonkeyImageProcessor.from_config(tiny_config(grids="up-to-6"))
    small = processor.limit_windows(2)
    assert (processor.place((90, 150)).grid, small.place((90, 150)).grid) == ((2, 3), (1, 2))
    assert small.limit_windows(None).to_dict() == processor.to_dict()
    with pytest.raises(ValueError, match=r"max_windows=0 |max_windows is 0"):
        processor.limit_windows(0)
    with pytest.raises(ValueError, match=r"max_windows=3, and the smallest grid of grids=\[\[2, 2\]\] has 4"):
        MonkeyImageProcessor.from_config(tiny_config(grids=[[2, 2]])).limit_windows(3)
    with pytest.raises(ValueError, match=r"max_windows=3: all images lie on one grid"):
        MonkeyImageProcessor.from_config(tiny_config()).limit_windows(3)


def test_settings_are_saved_and_opened(tmp_path):
    processor = MonkeyImageProcessor.from_config(tiny_config(grids=[[1, 2], [2, 1]], fit="pad"), max_windows=2)
    processor.save_pretrained(tmp_path)
    again = MonkeyImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert (again.canvas(picture(30, 50)) == processor.canvas(picture(30, 50))).all()
    (tmp_path / "preprocessor_config.json").unlink()
    tiny_config(grids="up-to-4", fit="pad").save_pretrained(tmp_path)
    from_model = MonkeyImageProcessor.from_pretrained(tmp_path)
    assert from_model.to_dict() == MonkeyImageProcessor.from_config(tiny_config(grids="up-to-4", fit="pad")).to_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grids": "up-to-2"}, "window_size is None"),
        ({"grids": [], "window_size": 28}, "grids=[] is empty"),
        ({"grids": "up-to-1000", "window_size": 448}, "more than the 100,000,000"),
        ({"fit": "crop"}, "fit='crop' is not one of"),
        ({"published_pixels": "no"}, "published_pixels is 'no'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        MonkeyImageProcessor(**settings)
    assert message in str(caught.value)


# The size of an image, from its header


def saved(image: Image.Image, kind: str, orientation: int, where: str = "before") -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    content = file.getvalue()
    if where == "behind":
        start = content.index(b"eXIf") - 4
        length = struct.unpack(">I", content[start : start + 4])[0] + 12
        chunk, rest = content[start : start + length], content[:start] + content[start + length :]
        content = rest[:-12] + chunk + rest[-12:]
    return content


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("apply_exif", [True, False])
def test_the_size_in_the_header_is_that_of_the_opened_image(kind, orientation, apply_exif, tmp_path):
    content = saved(picture(20, 30), kind, orientation)
    (tmp_path / "image").write_bytes(content)
    opened = open_image(content, apply_exif=apply_exif)
    sources = (content, tmp_path / "image", io.BytesIO(content), Image.open(io.BytesIO(content)), opened)
    for source in sources:
        assert image_size(source, apply_exif=apply_exif) == (opened.height, opened.width), source


def test_exif_behind_the_pixels_of_a_png_is_seen_and_no_other_png_is_decoded(monkeypatch, tmp_path):
    plain, turned = picture(20, 30), saved(picture(20, 30), "PNG", 6, "behind")
    assert image_size(turned) == (open_image(turned).height, open_image(turned).width) == (30, 20)
    plain.save(tmp_path / "plain.png")
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self) or load(self))
    assert image_size(tmp_path / "plain.png") == (20, 30)
    assert not decoded
    assert image_size(turned) == (30, 20)
    assert decoded


def test_arrays_have_sizes_and_what_cannot_be_read_is_refused_in_the_words_of_opening(tmp_path):
    assert image_size(np.zeros((3, 5, 7), np.uint8)) == (5, 7)
    (tmp_path / "no.png").write_text("text")
    for source in (tmp_path / "no.png", tmp_path / "gone.png", tmp_path, b"", "https://example.org/a.png", 7):
        with pytest.raises((ValueError, FileNotFoundError, TypeError)) as opening:
            open_image(source)
        with pytest.raises(type(opening.value)) as measuring:
            image_size(source)
        assert str(measuring.value) == str(opening.value)


# Processor


def ragged_processor(**fields) -> MonkeyProcessor:
    """One window of 28 pixels and the global view on the base grid; four tokens a view."""
    config = small_config()
    config.grids, config.fit = fields.pop("grids", "up-to-4"), fields.pop("fit", "stretch")
    return MonkeyProcessor.from_config(config, QwenTokenizer(CHECKPOINT / "qwen.tiktoken"), **fields)


def spans(ids) -> list[int]:
    """Slots of each image among ids."""
    return [length - 2 for length in span_lengths(list(ids), START, END)]


def test_an_image_has_as_many_slots_as_its_grid_makes(tmp_path):
    processor = ragged_processor()
    picture(30, 90).save(tmp_path / "wide.png")
    wide, square = tmp_path / "wide.png", picture(28, 28)
    batch = processor(text=["<img></img> a <img></img>", "<img>b.png</img>"], images=[wide, square, wide], padding=True)
    assert [spans(row) for row in batch["input_ids"].tolist()] == [[16, 8], [16]]
    assert batch["image_grids"].tolist() == [[1, 3], [1, 1], [1, 3]]
    assert batch["pixel_values"].shape == (7, 3, 28, 28)
    message = {"role": "user", "content": [{"type": "image", "image": square}, {"type": "image", "image": wide}]}
    chat = processor.apply_chat_template([message], tokenize=True, return_dict=True, add_generation_prompt=True)
    assert spans(chat["input_ids"][0].tolist()) == [8, 16]
    assert chat["image_grids"].tolist() == [[1, 1], [1, 3]]
    assert processor.model_input_names == ["input_ids", "attention_mask", "pixel_values", "image_grids"]
    turns = [{"role": "user", "text": "<img></img> What?"}, {"role": "assistant", "text": "that"}]
    samples = [processor.encode_conversation(turns, image) for image in (wide, square)]
    collated = processor.collate(samples)
    assert [spans(row) for row in collated["input_ids"].tolist()] == [[16], [8]]
    assert (collated["image_grids"].tolist(), len(collated["pixel_values"])) == ([[1, 3], [1, 1]], 4)


def test_images_are_measured_by_their_headers_alone_and_on_one_grid_not_at_all(monkeypatch, tmp_path):
    picture(30, 90).save(tmp_path / "wide.jpg")
    conversation = Conversation.from_question([tmp_path / "wide.jpg"], "What?")
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert spans(ragged_processor().encode(conversation).ids) == [16]
    monkeypatch.setattr(Image, "open", None)
    assert spans(small_processor().encode(conversation).ids) == [8]


def test_a_limit_on_windows_is_one_of_slots_and_pixels():
    processor, image = ragged_processor(), picture(30, 90)
    limited = processor.limit_windows(2)
    inputs = limited(text="<img></img> a", images=image)
    assert (spans(inputs["input_ids"][0].tolist()), inputs["image_grids"].tolist()) == ([12], [[1, 2]])
    assert spans(processor(text="<img></img> a", images=image)["input_ids"][0].tolist()) == [16]


def test_images_that_are_not_given_or_not_readable_are_named():
    processor = ragged_processor()
    with pytest.raises(ValueError, match="image 1 of the question is not given, and how many tokens it has depends"):
        processor.encode(Conversation.from_prompt("<img></img> a"), name="the question")
    with pytest.raises(ValueError, match="image 2 of text 1 is not an image that can be read"):
        processor(text="a", images=[picture(5, 5), b"no image"])
    with pytest.raises(ValueError, match=r"has 2 placeholders in its text for 1 images"):
        processor.encode(
            Conversation((Message("user", (ImagePart(picture(5, 5)), Text("<img></img>", trusted=True))),))
        )
    with pytest.raises(TooLong, match=r"the prompt is 31 tokens long with its 2 images of 10 to 18, more than the 20"):
        processor.encode(Conversation.from_question([picture(30, 90), picture(5, 5)], "What"), max_length=20)


def test_a_processor_with_grids_is_saved_and_opened_and_moved(tmp_path):
    config = small_config()
    config.grids, config.fit = "up-to-4", "pad"
    config.save_pretrained(tmp_path)
    processor = MonkeyProcessor.from_config(config, QwenTokenizer(CHECKPOINT / "qwen.tiktoken"))
    processor.save_pretrained(tmp_path)
    again = MonkeyProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert [again.tokens_of(grid) for grid in ((1, 1), (2, 2))] == [config.tokens_of((1, 1)), config.tokens_of((2, 2))]
    moved = MonkeyProcessor.from_pretrained(tmp_path, grids="up-to-2", fit="stretch")
    assert (moved.image_processor.allowed_grids[-1], moved.image_processor.fit) == ((2, 1), "stretch")
    small_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"processor_config.json has grids=.*, and config.json makes it None"):
        MonkeyProcessor.from_pretrained(tmp_path)
    fixed = small_processor()
    fixed.save_pretrained(tmp_path)
    assert not {"window_tokens", "grids", "fit"} & set((tmp_path / "processor_config.json").read_text().split('"'))


# Vision

GRIDS = [(1, 3), (2, 2), (1, 1), (3, 1), (2, 2), (1, 2)]
WINDOWS = [rows * columns for rows, columns in GRIDS]


@pytest.fixture(scope="module")
def ragged_model():
    # Past `seq_length`, a batch's rotary growth is that of its longest row.
    return random_model(tiny_config(grids="up-to-4", text_seq_length=512))


def random_windows(grids=GRIDS, seed: int = 0) -> torch.Tensor:
    total = sum(rows * columns for rows, columns in grids)
    return torch.randn(total, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def canvas_of(windows: torch.Tensor, grid) -> torch.Tensor:
    lines = windows.unflatten(0, grid).unbind(0)
    return torch.cat([torch.cat(list(line.unbind(0)), dim=-1) for line in lines], dim=-2)[None]


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"window_adapters": "shared"}, {"window_adapters": "none"}, {"grid": (1, 3)}])
@pytest.mark.parametrize("global_view", [True, False])
def test_images_on_the_base_grid_have_the_features_of_the_fixed_path(fields, global_view):
    model = random_model(tiny_config(global_view=global_view, **fields))
    grid, count = model.config.grid, 3
    windows = random_windows([grid] * count)
    canvases = torch.cat([canvas_of(own, grid) for own in windows.split(math.prod(grid))])
    fixed = model.get_image_features(canvases)
    ragged = model.get_image_features(windows, torch.tensor([grid] * count))
    torch.testing.assert_close(ragged, fixed.flatten(0, 1), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_features_of_a_ragged_batch_are_those_of_each_image_alone(ragged_model):
    windows, config = random_windows(), ragged_model.config
    together = ragged_model.get_image_features(windows, GRIDS).split([config.tokens_of(grid) for grid in GRIDS])
    for grid, own, features in zip(GRIDS, windows.split(WINDOWS), together, strict=True):
        torch.testing.assert_close(features, ragged_model.get_image_features(own, [grid]), rtol=1e-5, atol=1e-5)
        # And of the image as a model on that grid has it, whose adapters come from the same cells.
        moved = random_model(tiny_config(grid=grid))
        for name, parameter in moved.named_parameters():
            source = ragged_model.get_parameter(name)
            parameter.copy_(source[config.adapter_sets(grid)] if "_adapter." in name else source)
        expected = moved.get_image_features(canvas_of(own, grid))[0]
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_window_passes_through_the_adapter_of_the_base_cell_under_its_centre(ragged_model):
    model, windows = random_model(tiny_config(grids="up-to-4")), random_windows()
    before = model.get_image_features(windows, GRIDS)
    cells = [cell for grid in GRIDS for cell in [*model.config.adapter_sets(grid), None]]
    assert model.config.adapter_sets((1, 3)) == [2, 3, 3]
    for cell in range(4):
        for layer in model.model.visual.layers:
            layer.mlp_adapter.scale[cell] += 1
        after = model.get_image_features(windows, GRIDS)
        moved = (after - before).unflatten(0, (len(cells), -1)).abs().amax(dim=(1, 2)) > 0
        assert moved.tolist() == [own == cell for own in cells]
        before = after


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_of_a_ragged_batch_are_the_sum_of_those_alone(frozen, checkpointing):
    model = random_model(tiny_config(grids="up-to-4", vision_adapter_dropout=0.0)).train()
    if frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "_adapter." in name or "resampler" in name
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    windows = random_windows()

    def gradients(runs) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for own, grids in runs:
            model.get_image_features(own, grids).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.model.visual.named_parameters() if p.grad is not None}

    together = gradients([(windows, GRIDS)])
    alone = gradients([(own, [grid]) for own, grid in zip(windows.split(WINDOWS), GRIDS, strict=True)])
    assert together.keys() == alone.keys()
    assert any("_adapter." in name for name in together)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-4 * float(alone[name].abs().max()))


def test_global_views_of_a_ragged_batch_stay_outside_the_graph():
    model = random_model(tiny_config(grids="up-to-4"))
    visual = model.model.visual
    for name, parameter in visual.named_parameters():
        parameter.requires_grad = "_adapter." in name
    seen = []
    for layer in visual.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append((len(output), output.requires_grad)))
    model.get_image_features(random_windows(), GRIDS)
    assert seen == [(sum(WINDOWS), True), (len(GRIDS), False)] * len(visual.layers)


@pytest.mark.parametrize(
    ("windows", "grids", "message"),
    [
        (random_windows(), GRIDS[:-1], "pixel_values has shape [17, 3, 28, 28], but image_grids=[[1, 3], [2, 2]"),
        (torch.zeros(2, 3, 28, 29), [(1, 2)], "of 28-pixel windows need [2, 3, 28, 28]; take both from one processor"),
        (torch.zeros(2, 3, 28, 28), [(0, 2)], "image_grids[0]=(0, 2) is not (rows, columns)"),
        (
            torch.zeros(2, 3, 28, 28),
            None,
            "needs [images, 3, 56, 56]; windows of images on other grids need image_grids",
        ),
    ],
)
def test_windows_that_do_not_fit_their_grids_are_refused(ragged_model, windows, grids, message):
    with pytest.raises(ValueError) as caught:
        ragged_model.get_image_features(windows, grids)
    assert message in str(caught.value)


# Spans


def ragged_ids(config: MonkeyConfig, *parts) -> list[int]:
    """Token ids of a prompt: lists are text, a grid is an image's span."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, tuple):
            part = [config.image_start_id, *[config.image_pad_id] * config.tokens_of(part), config.image_end_id]
        ids += part
    return ids


@pytest.mark.parametrize(
    ("parts", "grids", "message"),
    [
        (
            [[1], (1, 2)],
            [(1, 3)],
            "prompt 0: the image span at token 1 has 12 slots, but image 0 on grid=(1, 3) makes 16",
        ),
        ([(1, 2), (1, 3)], [(1, 3), (1, 2)], "prompt 0: the image span at token 0 has 12 slots, but image 0"),
        ([(1, 2), [4]], [(1, 2), (1, 1)], "the prompts hold 1 image places, but 2 images were given"),
        ([(1, 2), (1, 1)], [(1, 2)], "the prompts hold 2 image places, but 1 images were given"),
    ],
)
def test_spans_that_are_not_those_of_the_grids_are_refused(parts, grids, message):
    config = tiny_config(grids="up-to-4")
    ids = torch.tensor([ragged_ids(config, *parts)])
    with pytest.raises(ValueError) as caught:
        image_slots(ids, config, len(grids), torch.tensor(grids))
    assert message in str(caught.value)


def test_spans_of_a_fixed_grid_are_each_as_long_as_its_images():
    config = tiny_config()
    one, other = ([config.image_start_id, *[7] * count, config.image_end_id] for count in (19, 21))
    with pytest.raises(ValueError, match="the image span at token 0 has 19 slots, but grid=\\(2, 2\\) makes 20 tokens"):
        image_slots(torch.tensor([one + other]), config, 2)


@torch.no_grad()
def test_a_batch_of_ragged_prompts_says_what_each_says_alone(ragged_model):
    config, windows = ragged_model.config, random_windows()
    prompts = [[[5], (1, 3), [6, 7], (2, 2), [8]], [(1, 1), [9]], [[3, 4, 5]], [(3, 1), (2, 2), (1, 2), [10]]]
    rows = [ragged_ids(config, *parts) for parts in prompts]
    batch = left_padded(rows, 0)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    images = {"pixel_values": windows, "image_grids": torch.tensor(GRIDS)}
    together = ragged_model.generate(**batch, **images, **settings)[:, batch["input_ids"].shape[1] :]
    features = ragged_model.get_image_features(windows, torch.tensor(GRIDS))
    reused = ragged_model.generate(**batch, image_features=features, image_grids=images["image_grids"], **settings)
    assert torch.equal(reused[:, batch["input_ids"].shape[1] :], together)
    # Beams see each prompt's own images, several times over.
    beams = ragged_model.generate(**batch, **images, **settings, num_beams=2, num_return_sequences=2)
    own, grids = list(windows.split(WINDOWS)), list(GRIDS)
    for number, (row, parts) in enumerate(zip(rows, prompts, strict=True)):
        count = sum(isinstance(part, tuple) for part in parts)
        alone = {"input_ids": torch.tensor([row])}
        if count:
            alone |= {"pixel_values": torch.cat(own[:count]), "image_grids": torch.tensor(grids[:count])}
        del own[:count], grids[:count]
        assert ragged_model.generate(**alone, **settings)[0, len(row) :].tolist() == together[number].tolist()
        searched = ragged_model.generate(**alone, **settings, num_beams=2, num_return_sequences=2)[:, len(row) :]
        assert torch.equal(searched, beams[2 * number : 2 * number + 2, batch["input_ids"].shape[1] :])


def test_the_loss_of_a_ragged_batch_is_that_of_its_rows(ragged_model):
    config, windows = ragged_model.config, random_windows()
    rows = [ragged_ids(config, (1, 3), [5, 6], (2, 2), [7, 8, 9]), ragged_ids(config, *GRIDS[2:], [4, 5])]
    labels = [[-100] * (len(row) - 3) + row[-3:] for row in rows]
    length = max(map(len, rows))
    batch = {
        "input_ids": torch.tensor([row + [0] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (length - len(row)) for row in labels]),
    }
    with torch.no_grad():
        together = ragged_model(**batch, pixel_values=windows, image_grids=GRIDS).loss
        parts = (
            ragged_model(
                input_ids=torch.tensor([row]), labels=torch.tensor([label]), pixel_values=own, image_grids=grids
            ).loss
            for row, label, own, grids in zip(rows, labels, windows.split([7, 10]), (GRIDS[:2], GRIDS[2:]), strict=True)
        )
        assert float(together) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)


def test_features_without_their_grids_and_grids_of_other_features_are_refused(ragged_model):
    ids = torch.tensor([ragged_ids(ragged_model.config, (1, 2), [4])])
    with pytest.raises(ValueError, match=r"image_features has shape \[12, 48\], which needs image_grids"):
        ragged_model(input_ids=ids, image_features=torch.zeros(12, 48))
    with pytest.raises(ValueError, match=r"image_features has shape \[8, 48\], but image_grids=.* make 12 tokens"):
        ragged_model(input_ids=ids, image_features=torch.zeros(8, 48), image_grids=[(1, 2)])


def test_a_blank_image_weighs_nothing_and_gives_every_vision_parameter_a_gradient():
    model = random_model(tiny_config(grids="up-to-4"))
    ids = {"input_ids": torch.tensor([[4, 5, 6]]), "labels": torch.tensor([[4, 5, 6]])}
    loss = model(**ids, blank_pixel_values=torch.zeros(1, 3, 28, 28)).loss
    assert torch.equal(loss, model(**ids).loss)
    loss.backward()
    gradients = {name: p.grad for name, p in model.model.visual.named_parameters() if p.requires_grad}
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())


# Data and batches


def written_records(folder: Path, orient: int = 1) -> Path:
    """Records about a wide, a tall and a square image, of two of them and of none; the tall one is turned by EXIF."""
    picture(30, 90).save(folder / "wide.png")
    (folder / "tall.jpg").write_bytes(saved(picture(40, 80), "JPEG", orient))
    picture(20, 20).save(folder / "small.png")
    rows = [
        ("<img>wide.png</img> What is it? Answer: ", "a wide one"),
        ("<img>wide.png</img> How wide is it? Answer: ", "very"),
        ("<img>tall.jpg</img><img>small.png</img> Which is tall? Answer: ", "the first"),
        ("Say yes. Answer: ", "yes"),
        ("<img>small.png</img> And this? Answer: ", "small"),
        ("<img>wide.png</img> Is it? Answer: ", "yes"),
    ]
    said = [[{"from": "user", "value": q}, {"from": "assistant", "value": a}] for q, a in rows]
    (folder / "train.json").write_text(json.dumps([{"conversations": turns} for turns in said]))
    return folder / "train.json"


def open_dataset(path: Path, processor: MonkeyProcessor, **settings) -> ConversationDataset:
    return ConversationDataset(open_records(path), processor, 256, **settings)


def test_kept_tokens_are_those_of_the_encoder_and_know_the_slots_of_each_image(tmp_path, monkeypatch):
    monkeypatch.setenv("MONKEY_CACHE", str(tmp_path / "cache"))
    path, processor = written_records(tmp_path, orient=6), ragged_processor()
    plain, first, second = (open_dataset(path, processor, sharing="branches") for _ in range(3))
    first.prepare(check_images=False)
    second.prepare(check_images=True)
    assert first.tokens.folder == second.tokens.folder
    assert second.tokens.slots.tolist() == [16, 16, 12, 8, 8, 16]
    assert second.tokens.sizes.tokens.tolist() == [len(sample["input_ids"]) for sample in plain]
    assert second.tokens.sizes.slots.tolist() == [16, 16, 20, 0, 8, 16]
    for dataset in (first, second):
        for sample, expected in zip(dataset, plain, strict=True):
            assert sample.keys() == expected.keys()
            assert (sample["input_ids"], sample["labels"]) == (expected["input_ids"], expected["labels"])
            for name in ("pixel_values", "image_grids"):
                assert name not in sample or torch.equal(sample[name], expected[name])
    assert plain[2]["image_grids"].tolist() == [[2, 1], [1, 1]]
    (unit,) = [[sample.get("image_grids") for sample in second[0, 1, 5]]]
    assert (unit[0].tolist(), unit[1:]) == ([[1, 3]], [None, None])
    assert second.cache_bytes() == 3 * 28 * 28 * (3 + 2 + 1)
    other = open_dataset(path, ragged_processor(grids="up-to-2"), sharing="branches")
    other.prepare(check_images=False)
    assert (other.tokens.folder != first.tokens.folder, other.tokens.slots.tolist()) == (True, [12, 12, 12, 8, 8, 12])


def test_tokens_on_one_grid_are_kept_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv("MONKEY_CACHE", str(tmp_path / "cache"))
    path = written_records(tmp_path)
    dataset = open_dataset(path, small_processor())
    dataset.prepare(check_images=False)
    names = {file.name for file in dataset.tokens.folder.iterdir()}
    assert names == {f"{name}.npy" for name in ("ids", "supervised", "ends", "shared", "prefix", "images")}
    again = open_dataset(path, small_processor())
    again.prepare(check_images=False)
    assert [again.tokens.sample(number)["input_ids"].count(PAD) for number in range(6)] == [8, 8, 16, 0, 8, 8]


def test_an_image_that_was_exchanged_for_one_of_another_shape_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MONKEY_CACHE", str(tmp_path / "cache"))
    dataset = open_dataset(written_records(tmp_path), ragged_processor())
    dataset.prepare(check_images=False)
    picture(90, 30).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"train\.json\[4\]: .*small\.png has another size than when its tokens were"):
        dataset[4]


def test_packed_rows_with_shared_prefixes_have_the_loss_and_gradients_of_each_sample_alone(tmp_path):
    processor = ragged_processor()
    config = small_config()
    config.grids = "up-to-4"
    model = random_model(config).train()
    dataset = open_dataset(written_records(tmp_path), processor, sharing="branches")
    dataset.prepare(check_images=False)

    def gradients(batches) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            inputs = {name: tensor for name, tensor in batch.items() if name != "contents"}
            inputs["pixel_values"] = processor.image_processor.normalised(batch["pixel_values"])
            loss = model(**inputs, num_items_in_batch=1).loss
            loss.backward()
            total += loss.item()
        return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    units = [dataset[0, 1, 5], dataset[(2,)], dataset[(4,)]]
    packed = PackedCollator(processor, 256)(units)
    assert (packed["contents"].images, packed["contents"].windows) == (4, 3 + 2 + 1 + 1)
    assert packed["image_grids"].tolist() == [[1, 3], [1, 2], [1, 1], [1, 1]]
    padded = Collator(processor)([dataset[number] for number in (0, 2, 4)])
    assert (padded["contents"].images, padded["contents"].windows) == (4, 7)
    together, own = gradients([packed])
    alone, each = gradients([Collator(processor)([dataset[number]]) for number in (0, 1, 5, 2, 4)])
    assert together == pytest.approx(alone, rel=1e-5)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, each[name], rtol=1e-3, atol=1e-4 * float(each[name].abs().max()))


# Engine


def request_of(processor: MonkeyProcessor, images, text: str, limit: int = 6) -> Request:
    ids = processor.encode(Conversation.from_question(images, text)).ids
    canvases = [Canvas.of(processor.image_processor.canvas(image)) for image in images]
    return Request(ids, canvases, Decoding(limit), limit, frozenset([processor.tokenizer.eod_id]))


@torch.no_grad()
@pytest.mark.parametrize("in_step", [False, True])
def test_the_engine_answers_about_images_of_any_shape_as_generate_does(in_step, monkeypatch):
    processor, config = ragged_processor(), small_config()
    config.grids = "up-to-4"
    model = random_model(config)
    wide, tall, small = picture(30, 90, 1), picture(80, 40, 2), picture(10, 10, 3)
    asked = [([wide], " What? "), ([tall, wide], " Which? "), ([], " Hello "), ([wide], " Who? "), ([small], " And? ")]
    requests = [request_of(processor, images, text) for images, text in asked]
    limited = processor.limit_windows(2)
    requests.append(request_of(limited, [wide], " What? "))
    if in_step:
        monkeypatch.setattr("monkey.engine.is_sharded", lambda model: True)
    engine = Engine(model, processor, max_rows=4)
    answers = engine.run_greedily(requests)
    for number, ((images, text), answer) in enumerate(zip([*asked, ([wide], " What? ")], answers, strict=True)):
        own = limited if number == len(asked) else processor
        inputs = own(images=images or None, text=text, inert_text=True)
        assert inputs["input_ids"][0].tolist() == requests[number].ids
        expected = model.generate(**inputs, max_new_tokens=6, do_sample=False, min_new_tokens=1)
        assert answer == expected[0, inputs["input_ids"].shape[1] :].tolist(), number
    if not in_step:
        # The wide image is encoded once on its own grid and once on fewer windows, and read once where it comes first.
        assert (engine.stats.images, engine.stats.reused_tokens) == (4, 1 + processor.tokens_of((1, 3)))
    assert len({tuple(answers[0]), tuple(answers[-1])}) == 2


def test_a_canvas_of_other_windows_than_its_span_is_refused():
    processor, config = ragged_processor(), small_config()
    config.grids = "up-to-4"
    engine = Engine(random_model(config), processor)
    request = request_of(processor, [picture(30, 90)], "What?")
    request.images = [Canvas.of(processor.image_processor.canvas(picture(10, 10)))]
    with pytest.raises(ValueError, match=r"has 16 slots, but image 0 on grid=\(1, 1\) makes 8 tokens"):
        engine.submit(request)


def test_canvases_of_one_colour_and_other_shapes_are_told_apart():
    one, other = (Canvas.of(np.zeros((3, *size), np.uint8)) for size in ((28, 56), (56, 28)))
    assert one.digest != other.digest


# Runs and folders


@pytest.fixture(scope="module")
def ragged_base(tmp_path_factory) -> SimpleNamespace:
    """A tiny 2×2 checkpoint on any grid of four windows, padded, and records."""
    folder = tmp_path_factory.mktemp("ragged")
    config = small_config(grid=(2, 2))
    random_model(config).save_pretrained(folder / "fixed")
    MonkeyProcessor.from_config(config, QwenTokenizer(CHECKPOINT / "qwen.tiktoken")).save_pretrained(folder / "fixed")
    layout = {"grids": "up-to-4", "fit": "pad"}
    MonkeyForConditionalGeneration.from_pretrained(folder / "fixed", **layout).save_pretrained(folder / "base")
    MonkeyProcessor.from_pretrained(folder / "fixed", **layout).save_pretrained(folder / "base")
    return SimpleNamespace(folder=folder, base=folder / "base", data=written_records(folder))


@pytest.mark.parametrize("rows", [PACKED, ("--packing", "False")], ids=["packed", "padded"])
def test_a_run_trains_on_images_of_any_shape_and_its_checkpoint_opens(ragged_base, tmp_path, rows):
    train(ragged_base, tmp_path / "run", "--recipe", "full-llm", *rows)
    logged = [entry for entry in log(tmp_path / "run") if "loss" in entry]
    assert all(math.isfinite(entry["loss"]) and entry["windows_per_second"] > 0 for entry in logged)
    model = MonkeyForConditionalGeneration.from_pretrained(tmp_path / "run").eval()
    processor = MonkeyProcessor.from_pretrained(tmp_path / "run")
    assert (model.config.grids, model.config.fit, processor.image_processor.fit) == ("up-to-4", "pad", "pad")
    inputs = processor(text=" What? ", images=ragged_base.folder / "wide.png", inert_text=True)
    assert inputs["image_grids"].tolist() == [[1, 3]]
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_a_process_without_an_image_encodes_a_blank_window(ragged_base):
    processor = MonkeyProcessor.from_pretrained(ragged_base.base)
    trainer = MonkeyTrainer.__new__(MonkeyTrainer)
    trainer.processing_class = processor
    trainer.args = SimpleNamespace(world_size=2, device=torch.device("cpu"), past_index=-1)
    trainer.is_deepspeed_enabled = False
    inputs = trainer._prepare_inputs({"input_ids": torch.tensor([[1, 2]])})
    assert inputs["blank_pixel_values"].shape == (1, 3, 28, 28)
    model = MonkeyForConditionalGeneration.from_pretrained(ragged_base.base).train()
    assert torch.isfinite(model(**inputs).logits).all()


def test_an_adapter_remembers_the_grids_that_it_was_trained_on(ragged_base, tmp_path):
    config = MonkeyConfig.from_pretrained(ragged_base.base)
    record = record_base(ragged_base.base, config)
    (tmp_path / BASE_FILE).write_text(json.dumps(record.content))
    assert read_base_record(tmp_path) == record
    assert record.layout["grids"] == "up-to-4"
    fixed = record_base(ragged_base.folder / "fixed", MonkeyConfig.from_pretrained(ragged_base.folder / "fixed"))
    assert not {"grids", "fit"} & set(fixed.content)
    listed, reordered = replace(record, grids=[[1, 2], [2, 1], [1, 2]]), replace(record, grids=[[2, 1], [1, 2]])
    check_base(tmp_path, listed, reordered)
    with pytest.raises(ValueError, match=r"is an adapter for .*grids='up-to-4', fit='pad', and .* was opened with"):
        check_base(tmp_path, record, fixed)
