"""Runs with packed rows, parts at their own rates, whole runs with their scores, and runs that fail loudly."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from finetune_multitask import main
from monkey.data.dataset import Tolerant
from monkey.language import LowRankAdapter
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import UNSUPERVISED, MonkeyProcessor
from monkey.training.arguments import parse_flags
from monkey.training.finetune import batch_plan, finetune, open_model, training_samples
from monkey.training.recipes import part_of
from monkey.training.trainer import MonkeyTrainer, checkpoints
from tests.conftest import random_model
from tests.drawn import draw_pages
from tests.small_processor import small_config
from tests.training_start import (
    NO_DROPOUT,
    PACKED,
    SAVE,
    conversation,
    dataset_of,
    log,
    losses,
    same_weights,
    train,
    with_records,
    words_of,
)


def _about_one_picture(start) -> list[dict]:
    questions = ("What colour?", "What is shown here?", "How many?", "Is it large?")
    same = [conversation(f"<img>0.png</img> {question} Answer: ", "red") for question in questions]
    return [*same, *start.records[1:4]]


class TestPackedRuns:
    def test_a_packed_step_equals_a_padded_one_over_the_same_samples(self, start, tmp_path):
        once = ("--num_train_epochs", "1", "--max_steps", "-1", *NO_DROPOUT)
        padded = train(start, tmp_path / "padded", "--per_device_train_batch_size", "12", *once)
        packed = train(start, tmp_path / "packed", *PACKED, "--pack_tokens", "1000", *once)
        # fp32 rounding of sums in another order; the norm is that of the gradients.
        assert losses(packed) == pytest.approx(losses(padded), rel=1e-5)
        assert log(packed)[0]["grad_norm"] == pytest.approx(log(padded)[0]["grad_norm"], rel=1e-4)
        record = json.loads((packed / "run.json").read_text())
        assert record["data"]["rows_an_epoch"] == 1
        assert record["data"]["fill_rate"] < 1

    @pytest.mark.parametrize("sharing", ["apart", "branches"])
    def test_rows_that_accumulate_weigh_every_supervised_token_alike(self, start, tmp_path, sharing):
        moved = with_records(start, tmp_path, *_about_one_picture(start))
        whole = train(moved, tmp_path / "whole", "--per_device_train_batch_size", "7", "--max_steps", "1", *NO_DROPOUT)
        more = ("--share_images", sharing, "--pack_tokens", "150", "--num_train_epochs", "1", "--max_steps", "-1")
        rows = train(moved, tmp_path / "rows", *PACKED, *more, "--gradient_accumulation_steps", "99", *NO_DROPOUT)
        assert losses(rows) == pytest.approx(losses(whole), rel=1e-5)
        entry = log(rows)[0]
        assert entry["step"] == 1
        assert entry["supervised_tokens"] == log(whole)[0]["supervised_tokens"]
        # Four different pictures, or one for each of the seven records.
        images = 4 if sharing == "branches" else 7
        assert entry["images_per_second"] / entry["samples_per_second"] == pytest.approx(images / 7)

    def test_records_about_one_picture_as_turns_of_one_conversation(self, start, tmp_path):
        moved = with_records(start, tmp_path, *_about_one_picture(start))
        once = ("--model_max_length", "200", "--num_train_epochs", "1", "--max_steps", "-1", *NO_DROPOUT)
        once = (*once, "--gradient_accumulation_steps", "99")
        turns = train(moved, tmp_path / "turns", *PACKED, "--share_images", "turns", *once)
        apart = train(moved, tmp_path / "apart", *PACKED, "--share_images", "apart", *once)
        # The same tokens are supervised, but a later question sees the earlier answers.
        assert log(turns)[0]["supervised_tokens"] == log(apart)[0]["supervised_tokens"]
        assert losses(turns) != pytest.approx(losses(apart), rel=1e-4)

    @pytest.mark.parametrize("more", [(), ("--recipe", "lora-llm")], ids=["full-llm", "lora-llm"])
    def test_packed_resumed_equals_uninterrupted_bit_for_bit(self, start, tmp_path, more):
        more = (*PACKED, "--gradient_accumulation_steps", "2", "--save_strategy", "steps", "--save_steps", "3", *more)
        straight = train(start, tmp_path / "straight", "--max_steps", "6", *more)
        resumed = tmp_path / "resumed"
        train(start, resumed, "--max_steps", "3", *more)
        train(start, resumed, "--max_steps", "6", "--resume_from_checkpoint", "True", *more)
        assert losses(resumed) == losses(straight)
        assert same_weights(resumed, straight)

    def test_several_files_make_a_mixture_by_weight(self, start, tmp_path):
        other = start.folder / "more.json"
        other.write_text(json.dumps(start.records[:4]))
        more = ("--data_path", str(start.data), str(other), "--data_weights", "1", "2", "--max_steps", "1")
        folder = train(start, tmp_path / "out", *more, "--per_device_train_batch_size", "20")
        files = json.loads((folder / "run.json").read_text())["data"]["files"]
        assert [(file["records"], file["weight"]) for file in files] == [(12, 1.0), (4, 2.0)]

    def test_records_without_images_are_told_in_the_log_and_on_the_card(self, start, tmp_path, capsys):
        texts = with_records(start, tmp_path, *start.records[-2:])
        folder = train(texts, tmp_path / "out", "--max_steps", "1")
        printed = capsys.readouterr().out
        assert f"note: no record of {texts.data} has an image, so the model learns from text alone" in printed
        assert "No record that it was trained on has an image." in (folder / "README.md").read_text(encoding="utf-8")
        train(start, tmp_path / "other", "--max_steps", "1")
        assert "has an image" not in capsys.readouterr().out + (tmp_path / "other" / "README.md").read_text()


def _cut(picture: Path) -> None:
    """Leave half of a picture: its header is sound, its pixels are not."""
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])


class TestBadRecords:
    SKIP = ("--skip_bad_rows", "True", "--max_steps", "3", "--report_to", "none")

    @pytest.mark.parametrize("more", [(), PACKED], ids=["padded", "packed"])
    def test_what_the_check_would_name_is_left_out_before_the_first_step(self, start, tmp_path, capsys, more):
        good = start.records[:10]
        bad = [
            conversation("<img>10.png</img> What colour? Answer: ", "red"),
            conversation("<img>11.png</img> What colour? Answer: ", "red"),
            conversation("Say yes. Answer: ", "yes " * 3000),
            {"conversations": [{"from": "user", "value": "And now?"}]},
        ]
        moved = with_records(start, tmp_path, *bad[:2], *good, *bad[2:])
        (moved.folder / "11.png").write_bytes(b"")
        folder = train(moved, tmp_path / "out", *self.SKIP, *more)
        record = json.loads((folder / "run.json").read_text())
        assert (record["data"]["samples"]["train"], record["data"]["left_out"]) == (10, 4)
        said = capsys.readouterr().out
        for number, why in ((0, "no image 10.png"), (1, "11.png"), (12, "tokens long"), (13, "the last turn")):
            (sentence,) = [line for line in record["left_out"] if f"train.json[{number}]" in line]
            assert why in sentence
            assert f"left out: {sentence}" in said
        moved.data.write_text(json.dumps(good))
        assert losses(folder) == losses(train(moved, tmp_path / "good", *self.SKIP, *more))

    def test_the_self_test_and_the_size_of_the_cache_pass_over_them_too(self, start, tmp_path, capsys):
        bad = conversation("<img>10.png</img> What colour? Answer: ", "red")
        moved = with_records(start, tmp_path, bad, *start.records[:2], bad, start.records[2])
        processor = MonkeyProcessor.from_pretrained(start.base)
        skip = ("--skip_bad_rows", "True", "--cache_images", "True")
        for more, count, left in ((("--overfit", "2"), 2, [0]), ((), 3, [0, 3])):
            chosen = training_samples(parse_flags(words_of(moved, tmp_path / "out", *skip, *more)), processor)
            assert len(chosen) == count
            assert all(f"train.json[{number}]" in one for number, one in zip(left, chosen.left_out, strict=True))
            assert f"left out: {chosen.left_out[0]}" in capsys.readouterr().out
        with pytest.raises(FileNotFoundError, match=r"10\.png"):
            training_samples(parse_flags(words_of(moved, tmp_path / "out", "--overfit", "2")), processor)

    @pytest.mark.parametrize("more", [(), (*PACKED, "--dataloader_num_workers", "2")], ids=["padded", "packed"])
    def test_what_is_met_on_the_way_is_left_out_and_the_rest_of_its_batch_trains(self, start, tmp_path, more):
        moved = with_records(start, tmp_path, *start.records)
        _cut(moved.folder / "3.png")
        more = (*self.SKIP, "--max_steps", "-1", "--save_strategy", "epoch", "--eval_data_path", str(moved.data), *more)
        folder = train(moved, tmp_path / "out", *more, "--num_train_epochs", "1")
        seen = sum(entry["supervised_tokens"] for entry in log(folder) if "loss" in entry)
        dataset = dataset_of(start)
        others = [label for number in range(12) if number != 3 for label in dataset[number]["labels"]]
        assert seen == sum(label != UNSUPERVISED for label in others)
        record = json.loads((folder / "run.json").read_text())
        assert record["data"]["left_out"] == len(record["left_out"]) == 1
        assert "train.json[3]" in record["left_out"][0]
        assert record["data"]["samples"] == {"train": 12, "eval": 12}
        # A run that goes on after it remembers what it had left out.
        train(moved, folder, *more, "--num_train_epochs", "2", "--resume_from_checkpoint", "True")
        assert json.loads((folder / "run.json").read_text())["left_out"] == record["left_out"]

    @pytest.mark.parametrize("more", [(), PACKED], ids=["padded", "packed"])
    def test_without_the_flag_the_run_stops_with_its_state_and_goes_on_when_mended(self, start, tmp_path, more):
        moved = with_records(start, tmp_path, *start.records)
        more = ("--max_steps", "3", "--report_to", "none", *more)
        straight = train(moved, tmp_path / "straight", *more)
        flags = parse_flags(words_of(moved, tmp_path / "out", *more))
        rows = batch_plan(flags, training_samples(flags, MonkeyProcessor.from_pretrained(moved.base))).epoch(0)
        flat = [{number for unit in row for number in (unit if isinstance(unit, tuple) else (unit,))} for row in rows]
        number = min(flat[2] & set(range(10)))  # of the third step, with a picture
        sound = (moved.folder / f"{number}.png").read_bytes()
        _cut(moved.folder / f"{number}.png")
        with pytest.raises(ValueError, match=rf"train\.json\[{number}\].*checkpoint-2; mend it .*--skip_bad_rows True"):
            train(moved, tmp_path / "out", *more)
        (moved.folder / f"{number}.png").write_bytes(sound)
        train(moved, tmp_path / "out", *more, "--resume_from_checkpoint", "True")
        assert losses(tmp_path / "out") == losses(straight)
        assert same_weights(tmp_path / "out", straight)

    def test_a_run_whose_pictures_are_gone_stops(self, start, tmp_path):
        moved = with_records(start, tmp_path, *start.records[:10])
        for picture in moved.folder.glob("*.png"):
            _cut(picture)
        more = (*self.SKIP, "--max_steps", "20", "--per_device_train_batch_size", "1")
        with pytest.raises(ValueError, match=r"no record of the last 8 steps could be read.*checkpoint-7"):
            train(moved, tmp_path / "out", *more)

    def test_all_bad_is_a_sentence(self, start, tmp_path):
        moved = with_records(start, tmp_path, *start.records[:2])
        for number in range(2):
            (moved.folder / f"{number}.png").write_bytes(b"")
        with pytest.raises(ValueError, match=r"all 2 records are bad; the first: .*train\.json\[0\]"):
            train(moved, tmp_path / "out", *self.SKIP)

    @pytest.mark.parametrize(("bad", "left"), [(0, (1, 2)), (2, (0, 1))])
    def test_a_bad_record_costs_its_unit_only_itself(self, start, tmp_path, bad, left):
        answers = ["yes" if number != bad else "yes " * 99 for number in range(3)]
        same = [conversation("<img>0.png</img> What? Answer: ", answer) for answer in answers]
        dataset = dataset_of(with_records(start, tmp_path, *same), sharing="branches", max_length=99)
        *samples, fault = Tolerant(dataset)[(0, 1, 2)]
        assert [sample["source"] for sample in samples] == [dataset.source(number) for number in left]
        assert ["pixel_values" in sample for sample in samples] == [True, False]
        assert fault.sentence.startswith(dataset.source(bad))

    def test_a_file_that_changes_meanwhile_is_no_bad_record(self, start, tmp_path, monkeypatch):
        moved = with_records(start, tmp_path, *start.records)
        monkeypatch.setattr(
            "monkey.training.finetune.open_model",
            lambda flags: (moved.data.write_text(json.dumps(start.records[:4])), open_model(flags))[1],
        )
        with pytest.raises(ValueError, match=r"train\.json: has .* bytes now and had .*; mend it$"):
            train(moved, tmp_path / "out", *self.SKIP)


class TestParts:
    def _moved(self, start, folder: Path) -> set[str]:
        before = MonkeyForConditionalGeneration.from_pretrained(start.base).state_dict()
        after = MonkeyForConditionalGeneration.from_pretrained(folder).state_dict()
        return {part_of(name) for name in before if not torch.equal(before[name], after[name])}

    @pytest.mark.parametrize(
        ("more", "parts"),
        [
            (("--recipe", "adapters-only"), {"window adapters"}),
            (("--published", "True"), {"window adapters", "resampler", "decoder", "position table"}),
            (("--resampler_learning_rate", "0"), {"window adapters", "decoder"}),
            (("--vision_adapter_learning_rate", "0", "--decoder_learning_rate", "0"), {"resampler"}),
        ],
        ids=["adapters-only", "published", "resampler at rest", "resampler alone"],
    )
    def test_exactly_the_parts_asked_for_move(self, start, tmp_path, more, parts):
        assert self._moved(start, train(start, tmp_path / "out", *more)) == parts

    def test_weight_decay_is_that_of_the_part(self, start, tmp_path):
        rest = ("--learning_rate", "0", "--resampler_learning_rate", "0.1", "--max_steps", "1", "--weight_decay", "0")
        none = train(start, tmp_path / "none", *rest)
        some = train(start, tmp_path / "some", *rest, "--resampler_weight_decay", "0.5")
        name = "transformer.visual.attn_pool.kv_proj.weight"
        bias = "transformer.visual.attn_pool.attn.in_proj_bias"
        tensors = [load_file(folder / "model.safetensors") for folder in (start.base, none, some)]
        name = name if name in tensors[0] else "transformer.visual.attn_pool.attn.in_proj_weight"
        before, without, decayed = (each[name] for each in tensors)
        # AdamW shrinks by rate times decay, apart from the step itself.
        torch.testing.assert_close(decayed, without - 0.1 * 0.5 * before)
        assert torch.equal(tensors[1][bias], tensors[2][bias])

    def test_dropout_of_a_part_is_set_and_kept_in_the_config(self, start, tmp_path):
        more = ("--vision_adapter_dropout", "0.25", "--resampler_dropout", "0.5", "--decoder_dropout", "0.125")
        config = MonkeyForConditionalGeneration.from_pretrained(train(start, tmp_path / "out", *more)).config
        assert (config.vision_config.adapter_dropout, config.vision_config.resampler_dropout) == (0.25, 0.5)
        assert config.text_config.attention_dropout == 0.125

    @pytest.mark.parametrize("part", ["vision", "decoder"])
    def test_checkpointing_of_one_part_alone_changes_no_loss(self, start, tmp_path, part, monkeypatch):
        from torch.utils import checkpoint as library

        calls = []
        monkeypatch.setattr(
            "monkey.training.finetune.checkpoint",
            lambda call, *args, **kwargs: (calls.append(call), library.checkpoint(call, *args, **kwargs))[1],
        )
        plain = train(start, tmp_path / "plain", *NO_DROPOUT)
        assert not calls
        saving = train(start, tmp_path / "saving", *NO_DROPOUT, f"--{part}_checkpointing", "True")
        kinds = {type(call.args[0]).__name__ for call in calls}
        assert kinds == {"MonkeyVisionLayer" if part == "vision" else "MonkeyDecoderLayer"}
        assert losses(saving) == losses(plain)

    def test_with_bf16_what_is_frozen_is_narrow_and_what_trains_is_not(self, start, tmp_path, monkeypatch):
        seen = {}

        def look(self, *args, **kwargs):
            for parameter in self.model.get_base_model().parameters():
                seen.setdefault(parameter.requires_grad, set()).add(parameter.dtype)
            return original(self, *args, **kwargs)

        original = MonkeyTrainer.train
        monkeypatch.setattr(MonkeyTrainer, "train", look)
        train(start, tmp_path / "out", "--recipe", "lora-llm", "--bf16", "True")
        assert seen == {True: {torch.float32}, False: {torch.bfloat16}}


class TestLoud:
    def test_a_loss_that_is_not_finite_saves_the_state_before_it(self, start, tmp_path, monkeypatch):
        original = MonkeyForConditionalGeneration.forward
        calls = []

        def broken_at_third(self, *args, **kwargs):
            output = original(self, *args, **kwargs)
            calls.append(1)
            if len(calls) == 3:
                output["loss"] = output["loss"] * torch.nan
            return output

        monkeypatch.setattr(MonkeyForConditionalGeneration, "forward", broken_at_third)
        with pytest.raises(ValueError, match=r"step 3: the loss is nan.*train\.json\[\d+\].*checkpoint-2$"):
            train(start, tmp_path / "out", "--max_steps", "4")
        monkeypatch.setattr(MonkeyForConditionalGeneration, "forward", original)
        train(start, tmp_path / "out", "--max_steps", "4", "--resume_from_checkpoint", "True")

    def test_a_gradient_norm_that_is_not_finite_stops_before_the_weights_move(self, start, tmp_path):
        output = tmp_path / "out"
        words = words_of(start, output, "--max_steps", "3", *SAVE)
        original = MonkeyTrainer.compute_loss

        def infinite_gradient(self, *args, **kwargs):
            loss = original(self, *args, **kwargs)
            if self.state.global_step == 1:  # the loss is finite, its gradient is not
                loss.register_hook(lambda gradient: gradient * torch.inf)
            return loss

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MonkeyTrainer, "compute_loss", infinite_gradient)
            with pytest.raises(ValueError, match=r"step 2: the gradient norm is (nan|inf).*checkpoint-1$"):
                finetune(parse_flags(words))
        weights = load_file(output / "checkpoint-1" / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())

    def test_a_frozen_parameter_that_moves_is_never_saved(self, start, tmp_path):
        original = MonkeyTrainer.training_step

        def meddling(self, *args, **kwargs):
            with torch.no_grad():
                self.model.model.visual.projection[0, 0] += 1e-3
            return original(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MonkeyTrainer, "training_step", meddling)
            with pytest.raises(ValueError, match=r"step 1: 1 frozen parameters moved, for instance .*projection"):
                train(start, tmp_path / "out", *SAVE)
        assert not checkpoints(tmp_path / "out")

    def test_the_held_out_loss_is_a_mean_over_tokens_whatever_the_batches(self, start, tmp_path):
        held = ("--eval_data_path", str(start.data), "--max_steps", "1", *NO_DROPOUT)
        found = []
        for size in ("1", "5", "12"):
            folder = train(start, tmp_path / size, *held, "--per_device_eval_batch_size", size)
            found += [entry["eval_loss"] for entry in log(folder) if "eval_loss" in entry]
        assert found == pytest.approx([found[0]] * 3, rel=1e-5)

    def test_the_log_tells_what_was_done_a_second(self, start, tmp_path):
        folder = train(start, tmp_path / "out", "--peak_tflops", "0.1", "--report_to", "tensorboard")
        entry = log(folder)[0]
        for name in ("samples_per_second", "tokens_per_second", "supervised_tokens", "fill_rate", "mfu", "grad_norm"):
            assert entry[name] > 0, name
        assert entry["fill_rate"] <= 1
        assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))


class TestWholeRuns:
    def test_a_run_on_a_decoder_in_4_bits_merges_into_a_checkpoint_that_answers_alike(self, start, tmp_path):
        pytest.importorskip("bitsandbytes", reason="4-bit needs bitsandbytes: pip install .[quantization]")
        config = small_config(grid=(2, 2), hidden_size=64, intermediate_size=128)
        random_model(config).save_pretrained(tmp_path / "base")
        MonkeyProcessor.from_pretrained(start.base).save_pretrained(tmp_path / "base")
        wide = SimpleNamespace(base=tmp_path / "base", data=start.data)
        folder = train(wide, tmp_path / "out", "--recipe", "qlora-llm", "--bf16", "True", *PACKED, *NO_DROPOUT)
        assert losses(folder)[1] < losses(folder)[0]
        merged = MonkeyForConditionalGeneration.from_pretrained(folder)
        assert not hasattr(merged, "hf_quantizer") or merged.hf_quantizer is None
        assert (folder / "adapter" / "adapter_config.json").is_file()
        card = (folder / "README.md").read_text()
        assert "qlora-llm" in card

    def test_built_in_adapters_of_the_24_gb_variant_train_and_keep_their_layout(self, start, tmp_path):
        config = small_config(grid=(2, 2), adapter_rank=4)
        random_model(config).save_pretrained(tmp_path / "base")
        MonkeyProcessor.from_pretrained(start.base).save_pretrained(tmp_path / "base")
        variant = SimpleNamespace(base=tmp_path / "base", data=start.data)
        folder = train(variant, tmp_path / "out", "--recipe", "lora-llm")
        before, after = (load_file(path / "model.safetensors") for path in (variant.base, folder))
        assert before.keys() == after.keys()
        assert not (folder / "adapter").exists()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert any("c_attn_lora" in name for name in moved)
        assert not [name for name in moved if name.startswith("transformer.h.") and "_lora." not in name]

    def test_dropout_of_built_in_adapters_is_set_and_another_size_is_refused(self, start, tmp_path):
        config = small_config(grid=(2, 2), adapter_rank=4)
        random_model(config).save_pretrained(tmp_path / "base")
        words = words_of(SimpleNamespace(base=tmp_path / "base", data=start.data), tmp_path / "out")
        for recipe in ("lora-llm", "full-llm"):
            flags = parse_flags([*words, "--recipe", recipe, "--lora_dropout", "0.25"])
            model, _ = open_model(flags)
            adapters = [module for module in model.modules() if isinstance(module, LowRankAdapter)]
            assert adapters
            assert {adapter.dropout for adapter in adapters} == {0.25}
            assert model.config.text_config.adapter_dropout == 0.25
        open_model(parse_flags([*words, "--recipe", "lora-llm", "--lora_r", "4", "--lora_alpha", "4"]))
        for name in ("lora_r", "lora_alpha"):
            with pytest.raises(ValueError, match=rf"--{name} 8 would have no effect: .* built in, of rank 4"):
                open_model(parse_flags([*words, "--recipe", "lora-llm", f"--{name}", "8"]))
        with pytest.raises(ValueError, match=r"--lora_dropout 0\.2 would have no effect: neither the recipe full-llm"):
            open_model(parse_flags(words_of(start, tmp_path / "out", "--lora_dropout", "0.2")))

    def test_a_grid_too_large_for_a_sample_is_a_sentence(self, start, tmp_path):
        with pytest.raises(ValueError, match=r"--grid 30,30 makes .* tokens of an image, .* holds fewer"):
            train(start, tmp_path / "out", "--grid", "30,30", "--model_max_length", "64")
        with pytest.raises(ValueError, match=r"grid=\(1000000, 1000000\) has more than 1,024 windows"):
            train(start, tmp_path / "out", "--grid", "1000000,1000000")
        assert not (tmp_path / "out").exists()

    def test_overfit_passes_when_the_records_come_back_and_fails_in_one_sentence(self, start, tmp_path, capsys):
        words = ("--overfit", "2", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2")
        train(start, tmp_path / "out", *words, "--max_steps", "60", "--report_to", "none")
        assert "overfit: 2 of 2 records reproduced" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"--overfit 2: only \d of 2 records were reproduced"):
            train(start, tmp_path / "short", *words, "--max_steps", "1", "--report_to", "none")

    def test_what_cannot_fit_the_gpu_stops_the_run_before_it_starts(self, start, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("monkey.training.finetune.gpu_gib", lambda device: 1e-3)
        with pytest.raises(ValueError, match=r"--recipe full-llm as set needs about .* GiB.*--ignore_memory_plan True"):
            train(start, tmp_path / "out", "--max_steps", "1")
        assert not (tmp_path / "out").exists()
        with pytest.warns(UserWarning, match="the run starts, and may run out of memory"):
            train(start, tmp_path / "out", "--max_steps", "1", "--ignore_memory_plan", "True")
        assert "ZeRO-2" in capsys.readouterr().out


class TestEvaluationInTheLoop:
    @pytest.fixture(scope="class")
    def drawn(self, tmp_path_factory) -> Path:
        return draw_pages(tmp_path_factory.mktemp("drawn") / "data", heldout=6)

    def test_scores_are_logged_and_the_best_weights_kept(self, start, tmp_path, drawn):
        output = tmp_path / "out"
        words = words_of(
            start, output, "--eval_strategy", "steps", "--eval_steps", "2", "--max_steps", "4", "--eval_tasks",
            "pages_heldout", "--eval_data_root", str(drawn), "--eval_limit", "3", "--report_to", "none",
        )  # fmt: skip
        assert main(words) == 0
        scored = {entry["step"]: entry["eval_score"] for entry in log(output) if "eval_score" in entry}
        assert set(scored) == {2, 4}
        assert all(
            (output / "scores" / f"step-{step}" / "pages_heldout" / "predictions.jsonl").is_file() for step in scored
        )
        best = json.loads((output / "best" / "best.json").read_text())
        assert (best["step"], best["value"]) == (2, scored[2])  # the first of equals
        MonkeyForConditionalGeneration.from_pretrained(output / "best")
        MonkeyProcessor.from_pretrained(output / "best")
        assert "pages_heldout" in (output / "README.md").read_text()

    def test_wrong_tasks_stop_the_run_before_it_starts(self, start, tmp_path, drawn, capsys):
        words = words_of(start, tmp_path / "out", "--eval_tasks", "pages_heldot", "--eval_data_root", str(drawn))
        assert main(words) == 2
        assert "pages_heldot" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "package"), [(["--optim", "lomo"], "lomo"), (["--use_liger_kernel", "True"], "liger-kernel")]
)
def test_a_flag_whose_package_is_missing_says_so_and_leaves_nothing(start, tmp_path, flags, package):
    with pytest.raises(ValueError, match=f"a flag needs a package that is not installed here: .*{package}"):
        train(start, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()
