"""Runs with packed rows, parts at their own rates, whole runs with their scores, and runs that fail loudly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from finetune_multitask import main
from monkey.data.render.__main__ import main as render
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.training.arguments import parse_flags
from monkey.training.finetune import finetune
from monkey.training.places import checkpoints
from monkey.training.recipes import part_of
from monkey.training.trainer import MonkeyTrainer
from tests.conftest import random_model
from tests.small_processor import small_config
from tests.training_start import (
    NO_DROPOUT,
    PACKED,
    SAVE,
    conversation,
    losses,
    same_weights,
    train,
    with_records,
    words_of,
)


def _log(folder: Path) -> list[dict]:
    return json.loads((folder / "training_log.json").read_text())


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
        assert _log(packed)[0]["grad_norm"] == pytest.approx(_log(padded)[0]["grad_norm"], rel=1e-4)
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
        entry = _log(rows)[0]
        assert entry["step"] == 1
        assert entry["supervised_tokens"] == _log(whole)[0]["supervised_tokens"]
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
        assert _log(turns)[0]["supervised_tokens"] == _log(apart)[0]["supervised_tokens"]
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

    def test_packed_rows_are_read_by_processes_of_their_own(self, start, tmp_path):
        more = (*PACKED, "--max_steps", "2", *NO_DROPOUT)
        alone = train(start, tmp_path / "alone", *more)
        helped = train(start, tmp_path / "helped", *more, "--dataloader_num_workers", "2")
        assert losses(helped) == losses(alone)

    def test_a_bad_row_is_left_out_when_asked_and_said(self, start, tmp_path, capsys):
        bad = {"conversations": [{"from": "user", "value": "<img>0.png</img> What?"}]}
        moved = with_records(start, tmp_path, *start.records, bad)
        folder = train(moved, tmp_path / "out", "--skip_bad_rows", "True", "--max_steps", "1")
        assert "left out:" in capsys.readouterr().out
        data = json.loads((folder / "run.json").read_text())["data"]
        assert (data["samples"]["train"], data["left_out"]) == (12, 1)

    def test_several_files_make_a_mixture_by_weight(self, start, tmp_path):
        other = start.folder / "more.json"
        other.write_text(json.dumps(start.records[:4]))
        more = ("--data_path", str(start.data), str(other), "--data_weights", "1", "2", "--max_steps", "1")
        folder = train(start, tmp_path / "out", *more, "--per_device_train_batch_size", "20")
        files = json.loads((folder / "run.json").read_text())["data"]["files"]
        assert [(file["records"], file["weight"]) for file in files] == [(12, 1.0), (4, 2.0)]

    def test_llava_records_train_as_ours_do_and_the_log_says_so(self, start, tmp_path, capsys):
        theirs = []
        for record in start.records[:4]:
            question, answer = (turn["value"] for turn in record["conversations"])
            image, question = re.fullmatch(r"<img>(.*)</img>(.*)", question).groups()
            turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
            theirs.append({"image": image, "conversations": turns})
        ours = train(with_records(start, tmp_path / "ours", *start.records[:4]), tmp_path / "a", *NO_DROPOUT)
        assert "read as ours" not in capsys.readouterr().out
        folder = train(with_records(start, tmp_path / "theirs", *theirs), tmp_path / "b", *NO_DROPOUT)
        assert "4 records, the first in LLaVA's form ('image' and <image>), read as ours" in capsys.readouterr().out
        assert losses(folder) == losses(ours)
        assert same_weights(folder, ours)

    def test_records_without_images_are_told_in_the_log_and_on_the_card(self, start, tmp_path, capsys):
        texts = with_records(start, tmp_path, *start.records[-2:])
        folder = train(texts, tmp_path / "out", "--max_steps", "1")
        printed = capsys.readouterr().out
        assert f"note: no record of {texts.data} has an image, so the model learns from text alone" in printed
        assert "No record that it was trained on has an image." in (folder / "README.md").read_text(encoding="utf-8")
        train(start, tmp_path / "other", "--max_steps", "1")
        assert "has an image" not in capsys.readouterr().out + (tmp_path / "other" / "README.md").read_text()

    def test_a_sample_over_the_rows_room_is_named(self, start, tmp_path):
        with pytest.raises(ValueError, match=r"train\.json\[\d+\]: .* tokens long .* 8 allowed"):
            train(start, tmp_path / "out", *PACKED, "--model_max_length", "8")
        assert not (tmp_path / "out").exists()


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
            (
                ("--recipe", "everything"),
                {"window adapters", "resampler", "decoder", "vision transformer", "vision projection"},
            ),
            (("--resampler_learning_rate", "0"), {"window adapters", "decoder"}),
            (("--vision_adapter_learning_rate", "0", "--decoder_learning_rate", "0"), {"resampler"}),
        ],
        ids=["adapters-only", "published", "everything", "resampler at rest", "resampler alone"],
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
            "monkey.training.opening.checkpoint",
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
            found += [entry["eval_loss"] for entry in _log(folder) if "eval_loss" in entry]
        assert found == pytest.approx([found[0]] * 3, rel=1e-5)

    def test_the_log_tells_what_was_done_a_second(self, start, tmp_path):
        folder = train(start, tmp_path / "out", "--peak_tflops", "0.1", "--report_to", "tensorboard")
        entry = _log(folder)[0]
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

    def test_overfit_passes_when_the_records_come_back_and_fails_in_one_sentence(self, start, tmp_path, capsys):
        words = ("--overfit", "2", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2")
        train(start, tmp_path / "out", *words, "--max_steps", "60", "--report_to", "none")
        assert "overfit: 2 of 2 records reproduced" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"--overfit 2: only \d of 2 records were reproduced"):
            train(start, tmp_path / "short", *words, "--max_steps", "1", "--report_to", "none")

    def test_a_plan_that_cannot_fit_the_gpu_stops_the_run_before_it_starts(self, start, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("monkey.training.finetune._room", lambda flags: 1e-3)
        with pytest.raises(ValueError, match=r"--recipe full-llm as set needs about .* GiB.*--ignore_memory_plan True"):
            train(start, tmp_path / "out", "--max_steps", "1")
        assert not (tmp_path / "out").exists()
        train(start, tmp_path / "out", "--max_steps", "1", "--ignore_memory_plan", "True")
        assert "ZeRO-2" in capsys.readouterr().out


class TestEvaluationInTheLoop:
    @pytest.fixture(scope="class")
    def drawn(self, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("drawn") / "data"
        assert (
            render(["--output", str(folder), "--seed", "0", "--train", "6", "--heldout", "6", "--tasks", "signs"]) == 0
        )
        return folder

    def test_scores_are_logged_and_the_best_weights_kept(self, start, tmp_path, drawn):
        output = tmp_path / "out"
        words = words_of(
            start, output, "--eval_strategy", "steps", "--eval_steps", "2", "--max_steps", "4", "--eval_tasks",
            "sample_signs", "--eval_data_root", str(drawn), "--eval_limit", "3", "--report_to", "none",
        )  # fmt: skip
        assert main(words) == 0
        scored = {entry["step"]: entry["eval_score"] for entry in _log(output) if "eval_score" in entry}
        assert set(scored) == {2, 4}
        assert all(
            (output / "scores" / f"step-{step}" / "sample_signs" / "predictions.jsonl").is_file() for step in scored
        )
        best = json.loads((output / "best" / "best.json").read_text())
        assert (best["step"], best["value"]) == (2, scored[2])  # the first of equals
        MonkeyForConditionalGeneration.from_pretrained(output / "best")
        MonkeyProcessor.from_pretrained(output / "best")
        assert "sample_signs" in (output / "README.md").read_text()

    def test_wrong_tasks_stop_the_run_before_it_starts(self, start, tmp_path, drawn, capsys):
        words = words_of(start, tmp_path / "out", "--eval_tasks", "sample_sings", "--eval_data_root", str(drawn))
        assert main(words) == 2
        assert "sample_sings" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "package"), [(["--optim", "lomo"], "lomo"), (["--use_liger_kernel", "True"], "liger-kernel")]
)
def test_a_flag_whose_package_is_missing_says_so_and_leaves_nothing(start, tmp_path, flags, package):
    with pytest.raises(ValueError, match=f"a flag needs a package that is not installed here: .*{package}"):
        train(start, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()
