"""Which device and which type: cards without bfloat16, which are faked here, float16 training, and Apple's GPUs."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eval.model_backend import ModelBackend
from monkey.decoding import Decoding
from monkey.devices import choose_device, choose_dtype, choose_place, half_precision, widest_float
from monkey.engine import Canvas, Engine, Request
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.serving import session
from monkey.training.arguments import parse_flags
from monkey.training.finetune import finetune, open_model
from monkey.training.meter import device_peak
from monkey.training.trainer import MonkeyTrainer
from tests.conftest import random_model
from tests.running_server import photo
from tests.small_processor import small_config, small_processor
from tests.training_start import NO_DROPOUT, log, losses, train, words_of

CARDS = {"Tesla V100-SXM2-16GB": (7, 0), "Tesla T4": (7, 5), "NVIDIA A100-SXM4-80GB": (8, 0), "NVIDIA H200": (9, 0)}


@pytest.fixture
def cards(monkeypatch):
    """Makes torch tell of CUDA devices that are not there."""

    def fake(*names: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda card: names[card])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: CARDS[names[card]])
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: bool(names))
        found = torch.device("cuda") if names else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)

    return fake


@pytest.fixture
def mac(monkeypatch):
    """Makes torch tell of an Apple GPU under a version of macOS."""

    def fake(version: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: version >= major)

    return fake


@pytest.mark.parametrize(
    ("names", "place", "half"),
    [
        (["Tesla T4"], "cuda", "float16"),
        (["Tesla V100-SXM2-16GB"], "cuda", "float16"),
        (["NVIDIA A100-SXM4-80GB"], "cuda", "bfloat16"),
        (["NVIDIA H200", "Tesla T4"], "sequential", "float16"),
        (["NVIDIA H200", "NVIDIA H200"], "sequential", "bfloat16"),
        ([], "cpu", "bfloat16"),
    ],
    ids=str,
)
def test_a_card_without_bfloat16_computes_in_float16(cards, names, place, half):
    cards(*names)
    assert choose_place("auto") == place
    assert half_precision(place) == getattr(torch, half)
    assert choose_dtype(None, place) == (half if names else "float32")
    assert choose_device(None) == ("cuda" if names else "cpu")
    assert choose_dtype("float32", place) == "float32"


def test_each_card_is_asked_where_it_is_named(cards):
    cards("NVIDIA H200", "Tesla T4")
    assert [choose_dtype(None, place) for place in ("cuda", "cuda:0", "cuda:1")] == ["bfloat16", "bfloat16", "float16"]
    with pytest.raises(ValueError, match="device cuda:2: there are only 2 CUDA devices"):
        choose_place("cuda:2")


SENTENCE = r"Tesla T4 \(compute capability 7.5, below 8.0\) does not compute in bfloat16: "


def test_bfloat16_that_a_card_lacks_is_one_sentence_wherever_it_is_asked_for(cards, golden, tmp_path):
    cards("Tesla T4")
    for dtype in ("bfloat16", torch.bfloat16):
        with pytest.raises(ValueError, match=f"dtype bfloat16: {SENTENCE}take float16 or float32"):
            session.load(golden.checkpoint, dtype=dtype)
    with pytest.raises(ValueError, match=f"dtype bfloat16: {SENTENCE}take float16 or float32"):
        ModelBackend(str(golden.checkpoint), "cuda", "bfloat16")
    words = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=f"--bf16 True: {SENTENCE}give --bf16 False --fp16 True"):
        parse_flags([*words, "--bf16", "True"])
    assert parse_flags([*words, "--bf16", "True", "--use_cpu", "True"]).training.bf16


def test_a_checkpoint_in_bfloat16_is_opened_in_float16_on_such_a_card(cards, monkeypatch, tmp_path):
    random_model(small_config()).bfloat16().save_pretrained(tmp_path)
    small_processor().save_pretrained(tmp_path)
    cards("Tesla T4")
    original = MonkeyForConditionalGeneration.from_pretrained

    def on_the_cpu(name, device_map, **settings):
        assert device_map == "cuda"
        return original(name, **settings)

    monkeypatch.setattr(MonkeyForConditionalGeneration, "from_pretrained", on_the_cpu)
    layout = {"grid": None, "grids": None, "fit": None}
    model = session._open_model(tmp_path, "cuda", "auto", None, layout)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    monkeypatch.undo()
    with session.load(tmp_path, "cpu") as wide:
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.float(), wide.model.get_parameter(name).float(), rtol=0, atol=6e-8)


@pytest.fixture
def scaled(monkeypatch):
    """Makes training on the CPU what it is on a GPU with `--fp16`: autocast in float16 and PyTorch's own scaler."""
    original = Accelerator.__init__

    def start_with(scale: float) -> list[torch.amp.GradScaler]:
        made = []

        def with_scaler(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)
            made.append(self.scaler)

        monkeypatch.setattr(Accelerator, "__init__", with_scaler)
        monkeypatch.setattr(AcceleratorState, "mixed_precision", property(lambda self: "fp16"))
        return made

    return start_with


def train_in_float16(start, output, *more: str) -> None:
    flags = parse_flags(words_of(start, output, *more, "--report_to", "none"))
    flags.training.fp16 = True
    finetune(flags)


def test_steps_whose_scaled_loss_overflows_are_left_out_and_the_run_goes_on(start, tmp_path, scaled):
    (made, output) = scaled(2.0**19), tmp_path / "out"
    steps = ("--max_steps", "12", "--learning_rate", "3e-3", *NO_DROPOUT)
    train_in_float16(start, output, *steps)
    norms = [entry["grad_norm"] for entry in log(output) if "grad_norm" in entry]
    skipped = sum(not math.isfinite(norm) for norm in norms)
    assert 0 < skipped < 8
    assert all(map(math.isfinite, norms[skipped:]))
    assert made[0].get_scale() == 2.0 ** (19 - skipped)
    assert losses(output)[-1] < losses(output)[0] - 0.2


def test_gradients_that_overflow_unscaled_stop_the_run(start, tmp_path, scaled, monkeypatch):
    scaled(2.0)
    original = MonkeyTrainer.compute_loss

    def infinite_gradient(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss

    monkeypatch.setattr(MonkeyTrainer, "compute_loss", infinite_gradient)
    # Scales of 2 and 1 are left out, and 0.5 is none that could be too large.
    with pytest.raises(ValueError, match=r"^step 3: the gradient norm is (inf|nan), .*train\.json"):
        train_in_float16(start, tmp_path / "out", "--max_steps", "8")


def test_what_is_frozen_is_held_in_float16_and_what_trains_is_not(start, tmp_path):
    flags = parse_flags(words_of(start, tmp_path / "out", "--recipe", "lora-llm"))
    flags.training.fp16 = True
    model, _ = open_model(flags)
    dtypes = {(parameter.requires_grad, parameter.dtype) for parameter in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.float16)}


def test_deepspeed_without_fp16_in_its_settings_is_refused(tmp_path, cards, monkeypatch):
    cards("Tesla T4")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    settings = tmp_path / "own.json"
    settings.write_text('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}')
    words = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=r'--fp16 True would have no effect: .*own.json .*add "fp16"'):
        parse_flags([*words, "--fp16", "True", "--deepspeed", str(settings)])


class NoFloat64(TorchDispatchMode):
    """An Apple GPU in this respect: whatever makes a tensor of float64 is an error."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        wide = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64]
        assert not wide, f"{function} makes float64"
        return result


class TestApple:
    def test_it_is_taken_where_it_is_named_and_never_unasked(self, mac):
        mac(14)
        assert (choose_device(None), choose_place("auto")) == ("cpu", "cpu")
        assert (choose_device("mps"), choose_place("mps")) == ("mps", "mps")
        assert choose_dtype(None, "mps") == "float32"
        assert half_precision("mps") == torch.bfloat16
        with pytest.raises(ValueError, match=r"device cuda: torch .* sees no CUDA device"):
            choose_place("cuda")

    def test_bfloat16_begins_with_macos_14(self, mac):
        mac(13)
        assert half_precision("mps") == torch.float16
        with pytest.raises(ValueError, match="dtype bfloat16: a Mac before macOS 14 does not compute in bfloat16"):
            choose_dtype("bfloat16", "mps")

    def test_it_is_refused_where_there_is_none(self, cards, golden):
        cards()
        with pytest.raises(ValueError, match=r"device mps: torch .* cannot compute on it here; leave device out"):
            session.load(golden.checkpoint, "mps")

    def test_its_peak_is_not_known_and_not_that_of_the_cpu(self):
        assert device_peak(torch.device("mps"), torch.float32) is None
        assert device_peak(torch.device("cpu"), torch.float32) > 0
        assert (widest_float(torch.device("mps")), widest_float(torch.device("cpu"))) == (torch.float32, torch.float64)

    def test_no_answer_needs_float64(self, monkeypatch):
        monkeypatch.setattr("monkey.language.widest_float", lambda device: torch.float32)
        config = small_config(use_logn_attn=True, seq_length=8)
        model, processor = random_model(config), small_processor()
        tokens = processor.tokenizer.encode_text("<img></img> What is in it?", image_tokens=processor.image_tokens)
        canvas = Canvas.read(photo(0), processor.image_processor)
        request = Request(tokens, [canvas], Decoding(8), 8, frozenset())
        with NoFloat64():
            (answer,) = Engine(model, processor).run_greedily([request])
        assert len(answer) == 8

    def test_no_step_of_training_needs_float64(self, start, tmp_path, monkeypatch):
        for module in ("monkey.language", "monkey.training.meter", "monkey.training.trainer"):
            monkeypatch.setattr(f"{module}.widest_float", lambda device: torch.float32)
        held_out = ("--eval_data_path", str(start.data), "--eval_strategy", "steps", "--eval_steps", "1")
        with NoFloat64():
            output = train(start, tmp_path / "out", "--max_steps", "2", "--report_to", "none", *held_out)
        assert len(losses(output)) == 2
