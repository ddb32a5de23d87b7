"""Adapter folders know their base, 4-bit bases train what they should and nothing else."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from monkey import quantised
from monkey.adapters import (
    add_decoder_lora,
    base_record,
    load_adapter,
    save_adapter,
    with_adapter,
)
from monkey.checkpoint import published_names
from monkey.checkpoint_files import digest_samples, read_base_record
from monkey.configuration import MonkeyConfig
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.quantised import (
    dequantised_state,
    keep_trained_in_float32,
    open_four_bit,
    packed_linears,
)
from monkey.training.recipes import base_model, part_of
from scripts.convert_checkpoint import convert
from tests.conftest import random_model, tiny_config

TRAINED = {"window adapters", "resampler", "decoder adapters"}
four_bit = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="4-bit needs bitsandbytes: pip install .[quantization]"
)


def wide_config(**changes) -> MonkeyConfig:
    """Decoder linears of whole blocks of 64, which is what bitsandbytes unpacks on a CPU."""
    return tiny_config(text_hidden_size=64, text_intermediate_size=128, **changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    random_model(wide_config()).save_pretrained(folder)
    return folder


def adapted(model, rank: int = 4, moved: bool = True):
    """`model` with adapters, its trained parts requiring gradients; `moved` makes every adapter matter."""
    wrapped = add_decoder_lora(model, SimpleNamespace(lora_r=rank, lora_alpha=2 * rank, lora_dropout=0.0))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in base_model(wrapped).named_parameters():
        trains = part_of(name) in TRAINED
        parameter.requires_grad_(trains)
        if trains and moved:
            with torch.no_grad():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return wrapped


def batch(config: MonkeyConfig) -> dict[str, torch.Tensor]:
    """One picture and a supervised answer."""
    generator = torch.Generator().manual_seed(0)
    slots = [config.image_pad_id] * config.image_tokens
    ids = [5, config.image_start_id, *slots, config.image_end_id, 7, 8, 9, 10]
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([[-100] * (len(ids) - 3) + ids[-3:]]),
        "pixel_values": torch.randn(1, 3, *config.canvas_size, generator=generator),
    }


def logits(model) -> torch.Tensor:
    inputs = batch(model.config)
    inputs.pop("labels")
    with torch.no_grad():
        return model.eval()(**inputs).logits.float()


def opened(folder: Path, **kwargs) -> MonkeyForConditionalGeneration:
    return MonkeyForConditionalGeneration.from_pretrained(folder, **kwargs)


class TestBaseRecord:
    def test_an_adapter_folder_says_which_base_and_grid_it_is_for(self, base, tmp_path):
        model = adapted(opened(base, grid=(1, 3)))
        save_adapter(model, tmp_path)
        record = json.loads((tmp_path / "base.json").read_text())
        assert (record["name"], record["grid"], record["quantisation"]) == (str(base), [1, 3], None)
        assert read_base_record(tmp_path) == model.base_record == base_record(opened(base, grid=(1, 3)))

    @pytest.mark.parametrize(
        ("form", "is_told"),
        [("moved", False), ("bfloat16", True), ("bin", True), ("sharded", True), ("quantised", False)],
    )
    def test_another_form_of_the_base_opens_and_other_files_are_told_of(self, base, tmp_path, caplog, form, is_told):
        copy, adapter = tmp_path / "copy", tmp_path / "adapter"
        save_adapter(adapted(opened(base)), adapter)
        if form == "quantised" and importlib.util.find_spec("bitsandbytes") is None:
            pytest.skip("4-bit needs bitsandbytes: pip install .[quantization]")
        if form == "bin":
            convert(str(base), copy, "bin", config="published")
        elif form == "bfloat16":
            opened(base, dtype=torch.bfloat16).save_pretrained(copy)
        elif form == "sharded":
            opened(base).save_pretrained(copy, max_shard_size="100KB")
        else:
            shutil.copytree(base, copy)
        with_adapter(open_four_bit(str(copy)) if form == "quantised" else opened(copy), adapter)
        said = f"{adapter} is an adapter of {base}, and the weight files of {copy} are others"
        assert (said in caplog.text) == is_told

    def test_weights_that_are_others_between_the_ends_of_a_file_are_others(self, tmp_path):
        content = bytearray(5 * 2**20)
        (tmp_path / "base").write_bytes(content)
        content[2 * 2**20 : 3 * 2**20] = b"1" * 2**20
        (tmp_path / "merged").write_bytes(content)
        base, merged, again = (digest_samples([str(tmp_path / name)]) for name in ("base", "merged", "base"))
        assert base == again != merged

    def test_a_record_of_an_earlier_release_opens(self, base, tmp_path):
        trained = adapted(opened(base))
        save_adapter(trained, tmp_path)
        record = json.loads((tmp_path / "base.json").read_text())
        del record["weights_digest"]
        record |= {"decoder_values": {"lm_head.weight": [0.5, 1.0]}, "narrow_range": False}
        (tmp_path / "base.json").write_text(json.dumps(record))
        assert torch.equal(logits(opened(tmp_path)), logits(trained))

    def test_a_base_of_another_size_is_refused_naming_both(self, base, tmp_path):
        save_adapter(adapted(opened(base)), tmp_path / "adapter")
        random_model(wide_config(text_num_hidden_layers=1)).save_pretrained(tmp_path / "other")
        with pytest.raises(ValueError, match=rf"adapter of {base}, and .*other has a decoder of another size"):
            with_adapter(opened(tmp_path / "other"), tmp_path / "adapter")

    def test_another_grid_is_refused_naming_both(self, base, tmp_path):
        save_adapter(adapted(opened(base, grid=(1, 3))), tmp_path / "adapter")
        with pytest.raises(
            ValueError, match=r"for grid=\(1, 3\).*opened with grid=\(2, 2\).*open it with grid=\(1, 3\)"
        ):
            with_adapter(opened(base), tmp_path / "adapter")
        with pytest.raises(ValueError, match=r"for grid=\(1, 3\)"):
            load_adapter(adapted(opened(base)), tmp_path / "adapter")
        with_adapter(opened(base, grid=(1, 3)), tmp_path / "adapter")

    def test_opening_an_adapter_folder_takes_its_grid(self, base, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(base, copy)
        trained = adapted(opened(copy, grid=(1, 3)))
        save_adapter(trained, tmp_path / "adapter")
        for model in (opened(tmp_path / "adapter"), AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter")):
            torch.testing.assert_close(logits(model), logits(trained), atol=1e-6, rtol=0)
        with pytest.raises(ValueError, match=r"for grid=\(1, 3\).*was opened with grid=\(2, 2\)"):
            opened(tmp_path / "adapter", grid=(2, 2))

    def test_a_folder_without_a_record_is_still_held_to_its_shapes(self, base, tmp_path):
        save_adapter(adapted(opened(base, grid=(1, 3))), tmp_path)
        (tmp_path / "base.json").unlink()
        with pytest.raises(ValueError, match=r"does not fit the model: .* has shape \[3, .*there and \[4, .*here"):
            with_adapter(opened(base), tmp_path)
        with_adapter(opened(base, grid=(1, 3)), tmp_path)

    def test_another_rank_is_refused_in_one_sentence(self, base, tmp_path):
        save_adapter(adapted(opened(base), rank=4), tmp_path)
        with pytest.raises(
            ValueError, match=r"lora_A.* has shape \[4, 64\] there and \[8, 64\] here.*--lora_r"
        ) as caught:
            load_adapter(adapted(opened(base), rank=8), tmp_path)
        assert "\n" not in str(caught.value)

    def test_a_damaged_record_is_refused_by_name(self, base, tmp_path):
        save_adapter(adapted(opened(base)), tmp_path)
        (tmp_path / "base.json").write_text('{"name": "x"}')
        with pytest.raises(ValueError, match=r"base\.json is not the record of a base"):
            with_adapter(opened(base), tmp_path)

    def test_the_base_may_go_while_the_run_lasts(self, base, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(base, copy)
        model = adapted(opened(copy))
        shutil.rmtree(copy)
        save_adapter(model, tmp_path / "adapter")
        assert read_base_record(tmp_path / "adapter").name == str(copy)

    def test_a_model_made_in_memory_has_no_record_and_saves(self, tmp_path):
        save_adapter(adapted(random_model(wide_config())), tmp_path)
        assert not (tmp_path / "base.json").exists()

    def test_saved_and_loaded_is_the_same_model(self, base, tmp_path):
        trained = adapted(opened(base))
        save_adapter(trained, tmp_path)
        again = adapted(opened(base), moved=False)
        load_adapter(again, tmp_path)
        assert torch.equal(logits(again), logits(trained))


@four_bit
class TestFourBits:
    def test_only_the_decoders_layers_are_packed_and_the_rest_keeps_its_type(self, base):
        model = adapted(open_four_bit(str(base), grid=(1, 3)))
        assert tuple(model.config.grid) == (1, 3)
        linears = {name.split(".layers.")[-1] for name in packed_linears(base_model(model))}
        assert len(linears) == 2 * 7
        assert all(".language_model.layers." in name for name in packed_linears(model))
        floating = {name: p.dtype for name, p in base_model(model).named_parameters() if p.is_floating_point()}
        assert set(floating.values()) == {torch.bfloat16}
        assert {"model.visual.layers.0.mlp.fc1.weight", "lm_head.weight"} <= set(floating)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_gradients_reach_exactly_the_recipes_set(self, base, dtype):
        model = adapted(open_four_bit(str(base), dtype=dtype)).train()
        inputs = batch(model.config)
        model(**{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}).loss.backward()
        parameters = dict(base_model(model).named_parameters())
        moving = {name for name, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}
        assert moving == {name for name in parameters if part_of(name) in TRAINED}

    def test_the_loss_falls_and_what_is_frozen_stays(self, base):
        torch.manual_seed(0)
        model = adapted(open_four_bit(str(base)), moved=False).train()
        assert keep_trained_in_float32(model) > 0
        types = {(part_of(n), p.dtype) for n, p in base_model(model).named_parameters() if p.requires_grad}
        assert types == {(part, torch.float32) for part in TRAINED}
        frozen = {n: p.detach().clone() for n, p in base_model(model).named_parameters() if not p.requires_grad}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        inputs, losses = batch(model.config), []
        for _ in range(6):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.8 * losses[0]
        after = dict(base_model(model).named_parameters())
        assert all(
            torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in frozen.items()
        )

    def test_an_evaluation_changes_neither_weights_nor_gradients(self, base):
        model = adapted(open_four_bit(str(base), dtype=torch.float32))
        before = dequantised_state(model)
        logits(model)
        model.train()
        embedded = torch.randn(1, 3, 64, requires_grad=True)
        base_model(model).model.language_model(inputs_embeds=embedded).last_hidden_state.sum().backward()
        assert embedded.grad.abs().max() > 0
        after = dequantised_state(model)
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_the_adapters_of_a_packed_base_round_trip(self, base, tmp_path):
        trained = adapted(open_four_bit(str(base)))
        keep_trained_in_float32(trained)
        save_adapter(trained, tmp_path)
        assert read_base_record(tmp_path).quantisation == {
            "bits": 4, "type": "nf4", "double": True, "dtype": "bfloat16",
        }  # fmt: skip
        again = adapted(open_four_bit(str(base)), moved=False)
        keep_trained_in_float32(again)
        load_adapter(again, tmp_path)
        one, other = (dict(model.named_parameters()) for model in (trained, again))
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert not [name for name in load_file(tmp_path / "adapter_model.safetensors") if "absmax" in name]

    def test_unpacked_weights_have_published_names_and_are_what_the_model_computes_with(self, base):
        model = open_four_bit(str(base), dtype=torch.float32)
        plain = opened(base)
        exact = plain.state_dict()
        state = dequantised_state(adapted(open_four_bit(str(base), dtype=torch.float32), moved=False))
        assert state.keys() == exact.keys()
        changed = {name for name in exact if not torch.equal(state[name], exact[name])}
        assert changed == {f"{name}.weight" for name in packed_linears(model)}
        for name in changed:
            error = float((state[name] - exact[name]).norm() / exact[name].norm())
            # What NF4 in blocks of 64 does to normal numbers; 0.25 where rows are unpacked with others' scales.
            assert 0.08 < error < 0.11
        plain.load_state_dict(state)
        # The same products in another order of sums.
        torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=0)
        assert "transformer.h.0.attn.c_attn.weight" in published_names(plain, state)

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"text_hidden_size": 48}, "hidden_size 48"),
            ({"text_hidden_size": 64, "text_intermediate_size": 96}, "intermediate_size 96"),
        ],
    )
    def test_widths_that_a_cpu_unpacks_wrongly_are_refused_by_number(self, tmp_path, changes, field):
        random_model(tiny_config(**changes)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=rf"{field}, .*multiples of 64.*--use_lora alone"):
            open_four_bit(str(tmp_path))

    def test_zero_3_is_refused(self, base, monkeypatch):
        monkeypatch.setattr("transformers.integrations.is_deepspeed_zero3_enabled", lambda: True)
        with pytest.raises(ValueError, match=r"--q_lora does not work with ZeRO-3.*zero2\.json"):
            open_four_bit(str(base))


def test_without_bitsandbytes_one_sentence_says_what_to_install(base, monkeypatch):
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^--q_lora .* needs the bitsandbytes package: pip install bitsandbytes$"):
        open_four_bit(str(base))
