"""Where a processor opens from and saves to: published, own and hub folders, other grids."""

from __future__ import annotations

import copy
import pickle
import shutil

import huggingface_hub
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from monkey.configuration import MonkeyConfig
from monkey.processing import MonkeyProcessor
from monkey.tokenization import QwenTokenizer
from tests.small_processor import CHECKPOINT, PAD, picture, refusal, small_config, small_processor


@pytest.fixture(scope="module")
def processor():
    return small_processor()


@pytest.mark.parametrize("open_processor", [MonkeyProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_published_folder_opens_without_a_preprocessor_file_and_on_another_grid(open_processor):
    processor = open_processor(CHECKPOINT)
    assert type(processor) is MonkeyProcessor
    assert processor.image_processor.size == {"height": 896, "width": 896}
    assert processor.image_tokens == processor.tokenizer.image_tokens == 1280
    assert processor.max_positions == 8192
    batch = open_processor(CHECKPOINT, grid=(2, 3))(text="hi", images=picture())
    assert batch["pixel_values"].shape == (1, 3, 896, 1344)
    assert (batch["input_ids"] == PAD).sum() == 1792


def test_processor_is_saved_and_opened(tmp_path, processor):
    processor = copy.deepcopy(processor)
    processor.image_processor.apply_exif = False
    processor.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"processor_config.json", "tokenizer_config.json", "qwen.tiktoken"}
    for opened in (MonkeyProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(opened) is MonkeyProcessor
        assert opened.to_dict() == processor.to_dict()
        again = opened(text="<img></img> hi", images=picture(5))
        before = processor(text="<img></img> hi", images=picture(5))
        assert torch.equal(again["input_ids"], before["input_ids"])
        assert torch.equal(again["pixel_values"], before["pixel_values"])


def test_own_folder_moves_to_another_grid_and_keeps_its_settings(tmp_path, processor):
    processor = copy.deepcopy(processor)
    processor.image_processor.apply_exif = False
    processor.save_pretrained(tmp_path)
    small_config().save_pretrained(tmp_path)
    moved = MonkeyProcessor.from_pretrained(tmp_path, grid=(2, 3), max_pixels=99, padding_side="left")
    assert moved.image_processor.size == {"height": 56, "width": 84}
    assert moved.image_tokens == 7 * 4
    assert moved.image_processor.apply_exif is False
    assert moved.image_processor.max_pixels == 99
    assert moved.tokenizer.padding_side == "left"


def test_two_grids_can_share_a_tokenizer_and_a_processor_travels_to_worker_processes(processor):
    wide = MonkeyProcessor.from_config(small_config(grid=(1, 3)), processor.tokenizer)
    for one, count in ((processor, 8), (wide, 16)):
        ids = one(text="a", images=picture())["input_ids"]
        assert (ids == PAD).sum() == count
        assert torch.equal(pickle.loads(pickle.dumps(one))(text="a", images=picture())["input_ids"], ids)


def test_folders_that_lack_something_are_refused_in_a_sentence(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    missing = FileNotFoundError
    message = refusal(lambda: MonkeyProcessor.from_pretrained(tmp_path, grid=(2, 3)), missing)
    assert message == (
        f"{tmp_path}: no config.json in the folder, and it is needed for the canvas and the image tokens of a grid"
    )
    assert "no such checkpoint folder" in refusal(lambda: MonkeyProcessor.from_pretrained(tmp_path / "no"), missing)
    assert "is a file" in refusal(lambda: MonkeyProcessor.from_pretrained(tmp_path / "qwen.tiktoken"))
    assert "no argument 'gird'" in refusal(lambda: MonkeyProcessor.from_pretrained(tmp_path, gird=(2, 3)))
    (tmp_path / "processor_config.json").write_text('{"image_tokens": 8,\n oops')
    assert f"{tmp_path / 'processor_config.json'}:2: malformed JSON" in refusal(
        lambda: MonkeyProcessor.from_pretrained(tmp_path)
    )
    (tmp_path / "processor_config.json").unlink()
    assert "no config.json in the folder" in refusal(lambda: MonkeyProcessor.from_pretrained(tmp_path), missing)


def test_a_tokenizer_of_another_checkpoint_is_refused():
    tokenizer = QwenTokenizer(CHECKPOINT / "qwen.tiktoken")
    message = refusal(lambda: MonkeyProcessor.from_config(MonkeyConfig(), tokenizer))
    assert message.startswith("the tokenizer's <img> has the id 982 and the config's image_start_id is 151857")


def test_hub_names_open_from_the_offline_cache(tmp_path, monkeypatch):
    """The hub's own cache layout; as with HF_HUB_OFFLINE=1 set before the start, nothing is asked of the network."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--echo840--Monkey"
    shutil.copytree(CHECKPOINT, repository / "snapshots" / revision, ignore=shutil.ignore_patterns("*.bin"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    for grid, tokens in ((None, 1280), ((1, 2), 768)):
        opened = MonkeyProcessor.from_pretrained("echo840/Monkey", grid=grid, cache_dir=tmp_path)
        assert opened.image_tokens == opened.tokenizer.image_tokens == tokens
    assert type(AutoProcessor.from_pretrained("echo840/Monkey", cache_dir=tmp_path)) is MonkeyProcessor
    assert AutoTokenizer.from_pretrained("echo840/Monkey", cache_dir=tmp_path).image_tokens == 1280
    message = refusal(lambda: MonkeyProcessor.from_pretrained("echo840/Absent", cache_dir=tmp_path), FileNotFoundError)
    assert message == (
        "echo840/Absent: no qwen.tiktoken in the hub's offline cache, and it is needed for the tokenizer"
    )
