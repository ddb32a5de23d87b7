"""Whatever a checkpoint is, from Python and from the command line: hub name, published folder, our own, an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from PIL import Image

import monkey
from monkey import ask, cli
from monkey.adapters import add_decoder_lora, save_adapter
from tests.conftest import GOLDEN, random_model
from tests.small_processor import small_config, small_processor

PROJECT = Path(ask.__file__).parent.parent
PICTURE = GOLDEN / "images" / "sign.jpg"
NEW_TOKENS = 4
HUB_NAME = "echo840/Monkey"
SAME_WEIGHTS = ("a hub name", "the published folder", "our own folder")
ADAPTERS = ("an adapter on a folder", "an adapter on a hub name")


class Checkpoints:
    """The recorded checkpoint in every form, and what is to be answered."""

    def __init__(self, folder: Path):
        self.cache = folder / "hub"
        repository = self.cache / "models--echo840--Monkey"
        shutil.copytree(GOLDEN / "checkpoint", repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        model = monkey.MonkeyForConditionalGeneration.from_pretrained(GOLDEN / "checkpoint").eval()
        processor = monkey.MonkeyProcessor.from_pretrained(GOLDEN / "checkpoint")
        model.save_pretrained(folder / "own")
        processor.save_pretrained(folder / "own")
        inputs = processor(images=[PICTURE], text=" What is the total? Answer: ", inert_text=True)

        def answer_of(model) -> str:
            generated = model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=1, do_sample=False)
            return processor.decode_answers(generated, inputs["input_ids"].shape[1])[0]

        self.answers = dict.fromkeys(SAME_WEIGHTS, answer_of(model))
        torch.manual_seed(0)
        wrapped = add_decoder_lora(model, SimpleNamespace(lora_r=4, lora_alpha=8, lora_dropout=0.0))
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        save_adapter(wrapped, folder / "adapter")
        shutil.copytree(folder / "adapter", folder / "adapter-of-hub")
        settings = folder / "adapter-of-hub" / "adapter_config.json"
        text = settings.read_text(encoding="utf-8")
        assert str(GOLDEN / "checkpoint") in text
        settings.write_text(text.replace(str(GOLDEN / "checkpoint"), HUB_NAME), encoding="utf-8")
        self.answers |= dict.fromkeys(ADAPTERS, answer_of(wrapped.eval()))
        own = GOLDEN / "checkpoint", folder / "own", folder / "adapter", folder / "adapter-of-hub"
        self.names = dict(zip((*SAME_WEIGHTS, *ADAPTERS), (HUB_NAME, *map(str, own)), strict=True))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def offline(checkpoints, monkeypatch) -> None:
    """The hub's cache is ours, and the network is closed."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    for module in ("transformers.utils.hub", "huggingface_hub.constants", "huggingface_hub.file_download"):
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
            monkeypatch.setattr(f"{module}.{name}", str(checkpoints.cache), raising=False)


def words(name: str) -> list[str]:
    return ["-c", name, "--device", "cpu", "--image", str(PICTURE), "--max-new-tokens", str(NEW_TOKENS)]


@pytest.mark.parametrize("kind", [*SAME_WEIGHTS, *ADAPTERS])
@pytest.mark.usefixtures("offline")
def test_it_opens_and_answers_as_generate_does(kind, checkpoints, capsys):
    answer = checkpoints.answers[kind]
    with monkey.load(checkpoints.names[kind], "cpu") as model:
        assert model.ask(PICTURE, "What is the total?", monkey.Decoding(NEW_TOKENS)).text == answer
    assert ask.main([*words(checkpoints.names[kind]), "What is the total?"]) == 0
    assert capsys.readouterr().out == answer + "\n"


def test_an_adapter_answers_otherwise_than_its_base(checkpoints):
    assert checkpoints.answers[ADAPTERS[0]] != checkpoints.answers[SAME_WEIGHTS[0]]


@pytest.mark.usefixtures("offline")
def test_a_name_that_is_not_in_the_cache_is_said_in_a_sentence(checkpoints, capsys):
    assert ask.main([*words("echo840/Monkey-Chat"), "What?"]) == cli.EXIT_USAGE
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: echo840/Monkey-Chat: no ")
    assert "in the hub's offline cache" in message


def saved(folder: Path, seed: int = 0, **text) -> Path:
    random_model(small_config(**text), seed).save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder


class TestFourBits:
    PICTURE = Image.linear_gradient("L").resize((40, 30))
    SHORT = monkey.Decoding(max_new_tokens=8)

    @pytest.fixture(autouse=True)
    def packer(self):
        pytest.importorskip("bitsandbytes", reason="4-bit needs bitsandbytes: pip install .[quantization]")

    @pytest.fixture
    def base(self, tmp_path) -> Path:
        return saved(tmp_path / "wide", hidden_size=64, intermediate_size=128)

    def answer(self, checkpoint: Path) -> str:
        with monkey.load(checkpoint, "cpu", "float32", "4bit") as model:
            assert model.model.is_loaded_in_4bit
            return model.ask(self.PICTURE, "What?", self.SHORT).text

    def test_they_are_asked_for_by_a_flag(self, base, tmp_path, capsys):
        self.PICTURE.save(tmp_path / "picture.png")
        given = ["-c", str(base), "--device", "cpu", "--image", str(tmp_path / "picture.png"), "--max-new-tokens", "8"]
        assert ask.main([*given, "--quantization", "4bit", "--dtype", "float32", "What?"]) == 0
        assert capsys.readouterr().out == self.answer(base) + "\n"

    def test_an_adapter_opens_on_a_packed_base(self, base, tmp_path):
        model = monkey.MonkeyForConditionalGeneration.from_pretrained(base)
        wrapped = add_decoder_lora(model, SimpleNamespace(lora_r=4, lora_alpha=8, lora_dropout=0.0))
        torch.manual_seed(0)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        save_adapter(wrapped, tmp_path / "adapter")
        assert self.answer(tmp_path / "adapter") != self.answer(base)
