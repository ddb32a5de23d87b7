"""Merged checkpoints answer as the adapters did, open like any other, and are written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from monkey.adapters import save_adapter
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.quantised import keep_trained_in_float32, open_four_bit
from monkey.tokenization import QwenTokenizer
from monkey.training.merging import merge_adapters
from scripts.convert_checkpoint import convert
from scripts.merge_adapters import main
from tests.conftest import random_model
from tests.small_processor import CHECKPOINT, small_config
from tests.test_lora import adapted, four_bit, logits, opened

# Merging adds the adapters' product to the weights before instead of after the linear's product: fp32 rounding.
MERGED = {"atol": 2e-5, "rtol": 0}


def save_base(folder: Path, dtype: torch.dtype = torch.float32, **text) -> Path:
    config = small_config(grid=(2, 2), hidden_size=64, intermediate_size=128, num_hidden_layers=2, **text)
    random_model(config).to(dtype).save_pretrained(folder)
    MonkeyProcessor.from_config(config, QwenTokenizer(CHECKPOINT / "qwen.tiktoken")).save_pretrained(folder)
    return folder


def trained(model, folder: Path):
    """`model` with adapters that matter, saved as a run leaves them; the wrapped model."""
    wrapped = adapted(model)
    save_adapter(wrapped, folder)
    record = {"recipe": {"name": "lora-llm", "parts": []}, "seed": 3, "flags": {"learning_rate": 1e-3}}
    (folder / "run.json").write_text(json.dumps(record))
    return wrapped


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> SimpleNamespace:
    """A base, its adapter, and the logits that the adapter gives on it."""
    folder = tmp_path_factory.mktemp("start")
    base = save_base(folder / "base")
    wrapped = trained(opened(base), folder / "adapter")
    return SimpleNamespace(folder=folder, base=base, adapter=folder / "adapter", logits=logits(wrapped))


@pytest.fixture(scope="module")
def built_in(tmp_path_factory) -> Path:
    """A checkpoint with adapters built into its decoder, as the published 24 GB variant."""
    return save_base(tmp_path_factory.mktemp("built-in") / "base", adapter_rank=4)


class TestEqualOutputs:
    def test_from_a_full_precision_base(self, start, tmp_path):
        merge = merge_adapters(str(start.adapter), tmp_path / "out")
        assert merge.linears == 2 * 6
        assert merge.largest_change < MERGED["atol"] < 1e-2 * merge.largest_logit
        assert (logits(opened(start.base)) - start.logits).abs().max() > 1e-2
        torch.testing.assert_close(logits(opened(tmp_path / "out")), start.logits, **MERGED)

    @four_bit
    def test_from_a_four_bit_base_as_in_training(self, start, tmp_path):
        wrapped = trained(open_four_bit(str(start.base), dtype=torch.float32), tmp_path / "adapter")
        merge = merge_adapters(str(tmp_path / "adapter"), tmp_path / "out")
        assert (merge.base_precision, merge.linears) == ("4bit", 2 * 6)
        merged = opened(tmp_path / "out")
        torch.testing.assert_close(logits(merged), logits(wrapped), **MERGED)
        assert {type(m) for m in merged.model.language_model.layers.modules() if hasattr(m, "in_features")} == {
            torch.nn.Linear
        }
        # Merged into the base as it was before packing, the same adapter answers otherwise.
        merge_adapters(str(tmp_path / "adapter"), tmp_path / "full", base_precision="full")
        assert (logits(opened(tmp_path / "full")) - logits(wrapped)).abs().max() > 1e-2

    @four_bit
    def test_from_a_four_bit_base_in_bfloat16(self, start, tmp_path):
        wrapped = trained(open_four_bit(str(start.base)), tmp_path / "adapter")
        merge = merge_adapters(str(tmp_path / "adapter"), tmp_path / "out")
        assert merge.dtype == "bfloat16"
        ids = {"input_ids": torch.arange(20)[None], "use_cache": False}
        with torch.no_grad():
            one, other = (m.eval()(**ids).logits.float() for m in (wrapped, opened(tmp_path / "out")))
        # Eight bits of each weight are kept: a relative error around one in a hundred.
        assert float((one - other).norm() / one.norm()) < 0.02

    def test_from_adapters_that_were_built_in(self, built_in, tmp_path):
        model = opened(built_in)
        before = logits(model)
        merge = merge_adapters(str(built_in), tmp_path / "out", builtin=True)
        assert (merge.kind, merge.linears) == ("built-in", 2 * 6)
        merged = opened(tmp_path / "out")
        assert json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]["adapter_rank"] == 0
        torch.testing.assert_close(logits(merged), before, **MERGED)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "language_model" in name and name.endswith("_adapter.scale"):
                    parameter.zero_()
        assert (logits(model) - before).abs().max() > 1e-2

    def test_window_adapters_and_resampler_are_the_trained_ones(self, start, tmp_path):
        merge = merge_adapters(str(start.adapter), tmp_path / "out")
        state = opened(tmp_path / "out").state_dict()
        base = opened(start.base).state_dict()
        tensors = load_file(start.adapter / "adapter_model.safetensors")
        kept = {
            name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items() if "lora_" not in name
        }
        assert sum(merge.kept.values()) == len(kept)
        assert set(merge.kept) == {"window adapters", "resampler"}
        for name, tensor in kept.items():
            assert torch.equal(state[name], tensor), name
            assert not torch.equal(state[name], base[name]), name
        untouched = set(state) - set(kept) - {name for name in state if name.endswith(("_proj.weight",))}
        assert all(torch.equal(state[name], base[name]) for name in untouched)

    @four_bit
    def test_what_was_trained_in_float32_on_a_narrow_base_is_kept_in_it(self, start, tmp_path):
        wrapped = adapted(open_four_bit(str(start.base)), moved=False)
        keep_trained_in_float32(wrapped)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=1e-4)
        save_adapter(wrapped, tmp_path / "adapter")
        merge_adapters(str(tmp_path / "adapter"), tmp_path / "out", dtype="float32")
        merged = dict(opened(tmp_path / "out").named_parameters())
        for name, parameter in wrapped.get_base_model().named_parameters():
            if parameter.requires_grad and ".lora_" not in name:
                assert torch.equal(merged[name], parameter), name

    def test_an_adapter_of_another_grid_than_its_base_merges_on_its_own(self, start, tmp_path):
        wrapped = trained(opened(start.base, grid=(1, 3)), tmp_path / "adapter")
        merge_adapters(str(tmp_path / "adapter"), tmp_path / "out")
        merged = opened(tmp_path / "out")
        assert tuple(merged.config.grid) == (1, 3)
        torch.testing.assert_close(logits(merged), logits(wrapped), **MERGED)
        size = MonkeyProcessor.from_pretrained(tmp_path / "out").image_processor.size
        assert (size["height"], size["width"]) == (28, 84)

    def test_a_base_that_moved_is_named_by_hand(self, start, tmp_path):
        base = save_base(tmp_path / "base")
        trained(opened(base), tmp_path / "adapter")
        base.rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError, match=r"the base of .*adapter was .*base, .* with --base"):
            merge_adapters(str(tmp_path / "adapter"), tmp_path / "out")
        merge_adapters(str(tmp_path / "adapter"), tmp_path / "out", base=str(tmp_path / "moved"))
        assert logits(opened(tmp_path / "out")).isfinite().all()


class TestTheFolder:
    @pytest.mark.parametrize("layout", ["ours", "published"])
    def test_it_opens_by_the_auto_classes_and_the_processor(self, start, tmp_path, layout):
        merge_adapters(str(start.adapter), tmp_path / "out", layout=layout)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
        assert type(model) is MonkeyForConditionalGeneration
        torch.testing.assert_close(logits(model), start.logits, **MERGED)
        processor = MonkeyProcessor.from_pretrained(tmp_path / "out")
        assert processor.image_tokens == model.config.image_tokens
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert ("visual" in config) is (layout == "published")

    @pytest.mark.parametrize("kind", ["peft", "built-in"])
    def test_the_published_layout_and_back_is_the_same_bit_for_bit(self, start, built_in, tmp_path, kind):
        source = str(start.adapter if kind == "peft" else built_in)
        merge_adapters(source, tmp_path / "ours", dtype="bfloat16")
        merge_adapters(source, tmp_path / "published", dtype="bfloat16", layout="published")
        convert(str(tmp_path / "ours"), tmp_path / "bin", "bin", config="published")
        config = json.loads((tmp_path / "published" / "config.json").read_text())
        assert config["bf16"] is True
        assert not [
            key for key in load_file(tmp_path / "published" / "model.safetensors") if ".h." in key and "lora" in key
        ]
        expected = opened(tmp_path / "ours", dtype="auto").state_dict()
        assert {tensor.dtype for tensor in expected.values()} == {torch.bfloat16}
        for folder in ("published", "bin"):
            model = opened(tmp_path / folder, dtype="auto")
            assert model.config.text_config.adapter_rank == 0
            model.save_pretrained(tmp_path / f"{folder}-again")
            again = load_file(tmp_path / f"{folder}-again" / "model.safetensors")
            ours = load_file(tmp_path / "ours" / "model.safetensors")
            assert again.keys() == ours.keys()
            assert all(torch.equal(again[name], ours[name]) for name in ours)

    def test_the_type_of_the_base_is_kept_unless_told(self, tmp_path):
        base = save_base(tmp_path / "base", dtype=torch.bfloat16)
        trained(opened(base), tmp_path / "adapter")
        for dtype, expected in ((None, "bfloat16"), ("float32", "float32")):
            merge_adapters(str(tmp_path / "adapter"), tmp_path / str(dtype), dtype=dtype)
            assert json.loads((tmp_path / str(dtype) / "config.json").read_text())["dtype"] == expected

    def test_it_tells_how_it_was_made(self, start, tmp_path, capsys):
        assert main([str(start.adapter), str(tmp_path / "out"), "--dtype", "float32"]) == 0
        printed = capsys.readouterr().out
        assert "into 12 decoder linears" in printed
        assert "of the window adapters" in printed
        assert "the logits changed by at most" in printed
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert list(record) == sorted(record)
        assert (record["seed"], record["merge"]["linears"]) == (3, 12)
        card = (tmp_path / "out" / "README.md").read_text()
        assert "`lora-llm`" in card
        assert str(start.base) in card


class TestRefusals:
    def test_another_base_leaves_nothing_behind(self, start, tmp_path):
        other = tmp_path / "other"
        random_model(small_config(hidden_size=64, intermediate_size=192, num_hidden_layers=2)).save_pretrained(other)
        with pytest.raises(ValueError, match=rf"adapter of {start.base}, and {other} has a decoder of another size"):
            merge_adapters(str(start.adapter), tmp_path / "out", base=str(other))
        assert [path.name for path in tmp_path.iterdir()] == ["other"]

    def test_what_is_not_ours_is_never_replaced(self, start, tmp_path):
        output = tmp_path / "out"
        merge_adapters(str(start.adapter), output)
        with pytest.raises(ValueError, match=r"out is not empty: .*--overwrite"):
            merge_adapters(str(start.adapter), output)
        (output / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match=r"also holds notes\.txt: move that away"):
            merge_adapters(str(start.adapter), output, overwrite=True)
        (output / "notes.txt").unlink()
        (output / "config.json").write_text("{}")
        merge_adapters(str(start.adapter), output, overwrite=True)
        opened(output)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_source_is_never_the_output(self, built_in, start):
        for adapter, output in ((built_in, built_in), (start.adapter, start.base), (start.adapter, start.adapter)):
            with pytest.raises(ValueError, match="is what is being merged: name another folder"):
                merge_adapters(str(adapter), output, overwrite=True)

    def test_a_full_disk_leaves_the_earlier_merge(self, start, tmp_path, monkeypatch):
        output = tmp_path / "out"
        merge_adapters(str(start.adapter), output)
        before = (output / "model.safetensors").read_bytes()

        def full_disk(*_args, **_kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(MonkeyProcessor, "save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            merge_adapters(str(start.adapter), output, overwrite=True)
        assert (output / "model.safetensors").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_flags_and_folders_that_do_not_belong_are_refused(self, start, built_in, tmp_path):
        adapter, whole, base = str(start.adapter), str(built_in), str(start.base)
        for source, flags, message in (
            (base, {}, "has nothing to merge: it is neither a PEFT adapter folder"),
            (adapter, {"builtin": True}, "--builtin: .* is a PEFT adapter folder"),
            (whole, {"base": base}, "leave out --base and --base-precision"),
        ):
            with pytest.raises(ValueError, match=message):
                merge_adapters(source, tmp_path / "out", **flags)
        shutil.copytree(start.adapter, tmp_path / "adapter")
        (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors in the folder"):
            merge_adapters(str(tmp_path / "adapter"), tmp_path / "out")

    def test_a_wrong_path_is_one_line_and_code_2(self, tmp_path, capsys):
        assert main(["nowhere/at-all", str(tmp_path / "out")]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "nowhere" in line
        assert not (tmp_path / "out").exists()
