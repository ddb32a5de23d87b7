"""Fine-tuning: what trains, what a run leaves behind, that it resumes exactly, and that it fails loudly and early."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from finetune_multitask import main
from monkey.adapters import add_decoder_lora
from monkey.configuration import MonkeyConfig
from monkey.data.dataset import Collator, ConversationDataset, errors_as_raised
from monkey.data.mixture import open_records
from monkey.data.rows import MissingImage
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import Encoded, MonkeyProcessor
from monkey.quantised import open_four_bit
from monkey.training.recipes import RECIPES, apply_recipe, part_of
from tests.conftest import random_model
from tests.small_processor import small_config
from tests.training_start import dataset_of, losses, same_weights, train, with_records, words_of


class TestWhatTrains:
    VIT = ("model.visual.patch_embedding.", "model.visual.position_embedding", "model.visual.pre_layernorm.")
    PROJECTION = ("model.visual.post_layernorm.", "model.visual.projection")

    def _expected(self, name: str, recipe: str) -> bool:
        """What docs/training.md promises of each recipe, written apart from the table that does it."""
        if name == "model.visual.resampler.pos_embed":
            return recipe.endswith(", published")
        recipe = recipe.removesuffix(", published")
        if ".visual." in name and "_adapter." in name:
            return True
        if name.startswith("model.visual.resampler."):
            return recipe != "adapters-only"
        if name.startswith("model.visual."):
            assert name.startswith((*self.VIT, *self.PROJECTION, "model.visual.layers."))
            return recipe in ("everything", "lora-llm-vision")
        if ".lora_" in name:
            return True
        return recipe in ("full-llm", "everything")

    @pytest.mark.parametrize("name", [*RECIPES, "full-llm, published"])
    def test_gradients_are_non_zero_on_exactly_the_recipes_set(self, start, tmp_path, name):
        published, recipe = name.endswith("published"), RECIPES[name.removesuffix(", published")]
        recipe = recipe.as_published() if published else recipe
        dataset = dataset_of(start)
        if recipe.four_bit:
            pytest.importorskip("bitsandbytes", reason="4-bit needs bitsandbytes: pip install .[quantization]")
            # bitsandbytes packs rows of whole blocks of 64 on a CPU.
            random_model(small_config(grid=(2, 2), hidden_size=64, intermediate_size=128)).save_pretrained(tmp_path)
            model = open_four_bit(str(tmp_path), dtype=torch.float32, device_map="cpu")
        else:
            model = MonkeyForConditionalGeneration.from_pretrained(start.base)
        if recipe.decoder_lora:
            model = add_decoder_lora(model, SimpleNamespace(lora_r=4, lora_alpha=4, lora_dropout=0.0))
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:  # zero at the start, which leaves lora_A without a gradient
                    torch.nn.init.normal_(parameter)
        apply_recipe(model, recipe)
        batch = Collator(dataset.processor)([dataset[index] for index in range(len(dataset))])
        batch["pixel_values"] = dataset.processor.image_processor.normalised(batch["pixel_values"])
        del batch["contents"]
        model(**batch, use_cache=False).loss.backward()

        base = model.get_base_model() if recipe.decoder_lora else model
        moving = {n for n, p in base.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        promised = {n for n, _ in base.named_parameters() if self._expected(n, name)}
        # The key bias moves no softmax, so its gradient is zero but for rounding, which may be exactly zero.
        assert {parameter for parameter in moving ^ promised if not parameter.endswith("k_proj.bias")} == set()

    def test_parts_count_the_published_size(self):
        with torch.device("meta"):
            model = MonkeyForConditionalGeneration(MonkeyConfig())
        millions = {count.part: count.parameters / 1e6 for count in apply_recipe(model, RECIPES["full-llm"])}
        assert millions["vision transformer"] == pytest.approx(1842.8, abs=0.05)
        assert millions["window adapters"] == pytest.approx(51.1, abs=0.05)
        assert millions["decoder"] == pytest.approx(7721.3, abs=0.05)
        projected = millions["resampler"] + millions["position table"] + millions["vision projection"]
        assert projected == pytest.approx(92.8, abs=0.05)
        assert sum(millions.values()) == pytest.approx(9708.1, abs=0.05)

    def test_a_module_outside_every_part_is_refused(self):
        with pytest.raises(ValueError, match=r"new_head\.weight lies in no part"):
            part_of("new_head.weight")

    def test_decoder_lora_stands_on_the_published_linears_only(self, start):
        model = MonkeyForConditionalGeneration.from_pretrained(start.base)
        add_decoder_lora(model, SimpleNamespace(lora_r=4, lora_alpha=4, lora_dropout=0.0))
        adapted = {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}
        attention = {f"model.language_model.layers.0.self_attn.{letter}_proj" for letter in "qkvo"}
        assert adapted == attention | {f"model.language_model.layers.0.mlp.{name}_proj" for name in ("gate", "up")}


class TestSamples:
    def test_a_batch_is_padded_to_its_longest_and_names_its_records(self, start):
        dataset = dataset_of(start)
        samples = [dataset[index] for index in (0, 1, 11)]
        batch = Collator(dataset.processor)(samples)
        assert batch["input_ids"].shape == (3, max(len(sample["input_ids"]) for sample in samples))
        assert batch["pixel_values"].shape[0] == 2
        contents = batch["contents"]
        assert contents.sources == tuple(dataset.records[index].source for index in (0, 1, 11))
        supervised = [label for sample in samples for label in sample["labels"] if label != -100]
        assert batch["loss_targets"].tolist() == supervised
        assert contents.supervised == len(supervised)
        assert contents.tokens == sum(own for own, _ in contents.runs) < contents.slots == batch["input_ids"].numel()

    def test_a_sample_over_the_length_is_refused_with_both_numbers(self, start):
        length = len(dataset_of(start)[0]["input_ids"])
        with pytest.raises(ValueError, match=rf"train\.json\[0\]: .* {length} tokens .* {length - 1} allowed"):
            dataset_of(start, max_length=length - 1)[0]
        assert len(dataset_of(start, max_length=length)[0]["input_ids"]) == length

    def test_a_kept_picture_gives_the_same_pixels_and_is_opened_once(self, start, tmp_path):
        moved = with_records(start, tmp_path, *start.records)
        plain, kept = dataset_of(moved), dataset_of(moved, cache_images=True)
        pixels = plain[0]["pixel_values"]
        assert torch.equal(kept[0]["pixel_values"], pixels)
        (moved.folder / "0.png").unlink()
        assert torch.equal(kept[0]["pixel_values"], pixels)
        assert kept.cache_bytes() == 10 * pixels.nbytes

    def test_kept_tokens_give_the_same_samples(self, start):
        plain = dataset_of(start, sharing="branches")
        kept = dataset_of(start, sharing="branches")
        for workers in (0, 1):
            kept.prepare(check_images=True, workers=workers)
            assert kept.tokens.sizes.tokens.tolist() == [
                len(plain[number]["input_ids"]) for number in range(len(plain))
            ]
            for number in range(len(plain)):
                # Twice the same record is a unit that shares its picture; the second goes without pixels.
                for found, expected in zip(kept[number, number], plain[number, number], strict=True):
                    assert found.keys() == expected.keys()
                    assert all(found[key] == expected[key] for key in ("input_ids", "labels", "source"))
                    if "pixel_values" in expected:
                        assert torch.equal(found["pixel_values"], expected["pixel_values"])

    def test_the_check_makes_no_pixels(self, start, monkeypatch):
        dataset = dataset_of(start)

        def refuse(*_):
            raise AssertionError("the check decoded a picture")

        monkeypatch.setattr(Image.Image, "load", refuse)
        dataset.prepare(check_images=True)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_error_in_a_loading_process_is_the_same_one_sentence(self, start, tmp_path, workers):
        moved = with_records(start, tmp_path, *start.records)
        (moved.folder / "3.png").write_text("not a picture")
        dataset = dataset_of(moved)
        loader = DataLoader(dataset, batch_size=4, collate_fn=Collator(dataset.processor), num_workers=workers)
        with pytest.raises(ValueError, match=r"3\.png") as caught, errors_as_raised():
            list(loader)
        assert str(caught.value).startswith(f"{moved.data}[3]: ")
        assert "\n" not in str(caught.value)

    def test_an_error_of_our_own_kind_keeps_its_sentence_too(self, start, tmp_path):
        moved = with_records(start, tmp_path, *start.records)
        (moved.folder / "3.png").unlink()
        processor = MonkeyProcessor.from_pretrained(moved.base)
        dataset = ConversationDataset(open_records(moved.data), processor, max_length=2048)
        loader = DataLoader(dataset, batch_size=4, collate_fn=Collator(processor), num_workers=1)
        with pytest.raises(MissingImage) as caught, errors_as_raised():
            list(loader)
        assert str(caught.value).startswith(f"{moved.data}[3]")
        assert "\n" not in str(caught.value)


class TestRuns:
    @pytest.mark.parametrize(
        ("more", "logged"),
        [([], 6), (["--use_lora", "True", "--bf16", "True"], 6), (["--bf16", "True", "--logging_steps", "2"], 3)],
        ids=["full-llm", "lora-llm in bf16", "bf16, a logged loss of before and after"],
    )
    def test_resumed_equals_uninterrupted_bit_for_bit(self, start, tmp_path, more, logged):
        save = ["--save_strategy", "steps", "--save_steps", "3"]
        straight = train(start, tmp_path / "straight", "--max_steps", "6", *save, *more)
        resumed = tmp_path / "resumed"
        train(start, resumed, "--max_steps", "3", *save, *more)
        train(start, resumed, "--max_steps", "6", "--resume_from_checkpoint", "True", *save, *more)
        assert losses(resumed) == losses(straight)
        assert len(losses(straight)) == logged
        assert same_weights(resumed, straight)

    def test_the_result_opens_with_its_processor_and_tells_how_it_was_made(self, start, tmp_path):
        save = ("--save_strategy", "steps", "--save_steps", "2")
        folder = train(start, tmp_path / "out", "--eval_data_path", str(start.data), "--seed", "7", *save)
        for checkpoint in (folder, folder / "checkpoint-2"):
            MonkeyProcessor.from_pretrained(checkpoint)
            model = MonkeyForConditionalGeneration.from_pretrained(checkpoint)
            assert model.config.text_config.use_cache
            assert model.generation_config.use_cache is not False
        record = json.loads((folder / "run.json").read_text())
        assert record["recipe"]["name"] == "full-llm"
        assert record["seed"] == 7
        assert record["flags"]["learning_rate"] == 1e-3
        assert record["data"]["samples"] == {"train": 12, "eval": 12}
        assert {"torch", "transformers", "python"} <= set(record["versions"])
        log = json.loads((folder / "training_log.json").read_text())
        assert [entry["step"] for entry in log if "eval_loss" in entry] == [2]
        with Image.open(folder / "loss_curve.png") as curve:
            assert curve.format == "PNG"
        assert not [path for path in folder.iterdir() if path.name.endswith(".partial")]
        assert not list(folder.rglob("training_args.bin"))  # a pickle, which nobody should have to trust

    def test_a_lora_run_gives_an_adapter_and_a_merged_checkpoint_that_answer_alike(self, start, tmp_path):
        from peft import PeftModel

        folder = train(start, tmp_path / "out", "--use_lora", "True")
        base = MonkeyForConditionalGeneration.from_pretrained(start.base).eval()
        models = {
            "merged": MonkeyForConditionalGeneration.from_pretrained(folder),
            "adapter by transformers": MonkeyForConditionalGeneration.from_pretrained(folder / "adapter"),
            "adapter by PEFT": PeftModel.from_pretrained(
                MonkeyForConditionalGeneration.from_pretrained(start.base), folder / "adapter"
            ),
        }
        inputs = MonkeyProcessor.from_pretrained(folder)(text="<img></img> Say", images=start.folder / "1.png")
        with torch.no_grad():
            logits = {name: model.eval()(**inputs).logits for name, model in models.items()}
            moved = (base(**inputs).logits - logits["merged"]).abs().max()
        assert moved > 1e-2
        for name, other in logits.items():
            # Merging adds B·A to the weights before instead of after the product: fp32 rounding.
            torch.testing.assert_close(other, logits["merged"], atol=1e-5, rtol=0, msg=name)

    def test_bf16_checkpointing_and_another_grid_train_on_a_cpu(self, start, tmp_path):
        exact = train(start, tmp_path / "exact", "--grid", "1,3")
        more = ("--bf16", "True", "--gradient_checkpointing", "True")
        narrow = train(start, tmp_path / "narrow", "--grid", "1,3", *more)
        assert tuple(MonkeyForConditionalGeneration.from_pretrained(narrow).config.grid) == (1, 3)
        size = MonkeyProcessor.from_pretrained(narrow).image_processor.size
        assert (size["height"], size["width"]) == (28, 84)
        # bf16 keeps 8 bits of each number: a relative error below one percent in the loss.
        assert losses(narrow) == pytest.approx(losses(exact), rel=1e-2)

    def test_window_adapters_below_a_frozen_vit_train_with_checkpointing(self, start, tmp_path):
        more = ("--gradient_checkpointing", "True", "--gradient_checkpointing_kwargs", '{"determinism_check": "none"}')
        folder = train(start, tmp_path / "out", *more)
        before = MonkeyForConditionalGeneration.from_pretrained(start.base).state_dict()
        after = MonkeyForConditionalGeneration.from_pretrained(folder).state_dict()
        moved = {part_of(name) for name in before if not torch.equal(before[name], after[name])}
        assert moved == {"window adapters", "resampler", "decoder"}


class TestFailures:
    def test_records_are_checked_before_anything_is_written(self, start, tmp_path):
        moved = with_records(start, tmp_path, *start.records)
        (moved.folder / "9.png").write_text("not a picture")
        with pytest.raises(ValueError, match=r"train\.json\[9\]: .*9\.png"):
            train(moved, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_lazily_met_records_fail_with_their_name_and_leave_nothing(self, start, tmp_path):
        moved = with_records(start, tmp_path, *start.records)
        (moved.folder / "0.png").write_text("not a picture")
        with pytest.raises(ValueError, match=r"train\.json\[0\]: .*0\.png"):
            train(moved, tmp_path / "out", "--lazy_preprocess", "True", "--per_device_train_batch_size", "12")
        assert not (tmp_path / "out").exists()

    def test_a_step_without_supervised_token_stops_the_run_and_names_the_records(self, start, tmp_path, monkeypatch):
        monkeypatch.setattr(MonkeyProcessor, "encode", _nothing_supervised)
        with pytest.raises(ValueError, match=r"step 1 has no supervised token: the batch holds .*train\.json\[\d+\]"):
            train(start, tmp_path / "out")

    STEP = ("--save_strategy", "steps", "--save_steps", "1")

    @pytest.mark.parametrize(
        ("writer", "error", "save"),
        [
            ("safetensors.torch.serialize_file", SafetensorError("I/O error: No space left on device"), ()),
            ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), STEP),
        ],
    )
    def test_a_full_disk_is_one_sentence_and_leaves_nothing(self, start, tmp_path, monkeypatch, writer, error, save):
        def full(*_, **__):
            raise error

        monkeypatch.setattr(writer, full)
        with pytest.raises(OSError, match=r"out.* not be written \(.*(No space|no further).*make room") as caught:
            train(start, tmp_path / "out", "--report_to", "none", *save)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_an_earlier_run_is_not_written_over_unasked(self, start, tmp_path):
        folder = train(start, tmp_path / "out", "--save_strategy", "steps", "--save_steps", "1", "--max_steps", "1")
        before = (folder / "model.safetensors").read_bytes()
        with pytest.raises(ValueError, match=r"holds an earlier run.*--resume_from_checkpoint.*--overwrite_output_dir"):
            train(start, folder)
        assert (folder / "model.safetensors").read_bytes() == before
        train(start, folder, "--overwrite_output_dir", "True")
        assert not (folder / "checkpoint-1").exists()
        assert (folder / "model.safetensors").read_bytes() != before

    def test_what_is_no_runs_file_stays(self, start, tmp_path):
        output = tmp_path / "out"
        names = [
            "mine.safetensors", "model-best.safetensors", "pytorch_model_old.bin", "notes.txt",
            "checkpoint-best/model.safetensors", "checkpoint-7/notes.txt", "checkpoint-7-kept/trainer_state.json",
            "adapter/mine.safetensors",
        ]  # fmt: skip
        for name in names:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_text(name)
        train(start, output, "--use_lora", "True", "--max_steps", "1", "--overwrite_output_dir", "True")
        assert [(output / name).read_text() for name in names] == names
        assert (output / "adapter/adapter_config.json").is_file()
        MonkeyForConditionalGeneration.from_pretrained(output)

    def test_only_so_many_checkpoints_are_kept_and_no_other_folder_goes(self, start, tmp_path):
        output = tmp_path / "out"
        for name in ("checkpoint-best", "checkpoint-1-kept"):
            (output / name).mkdir(parents=True)
            (output / name / "trainer_state.json").write_text("{}")
        save = ("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "1")
        train(start, output, "--max_steps", "2", *save)
        left = {path.name for path in output.glob("checkpoint-*")}
        assert left == {"checkpoint-2", "checkpoint-best", "checkpoint-1-kept"}

    def test_a_folder_in_the_place_of_a_checkpoint_is_refused_before_the_run(self, start, tmp_path):
        kept = tmp_path / "out/checkpoint-2/notes.txt"
        kept.parent.mkdir(parents=True)
        kept.write_text("mine")
        more = ("--save_strategy", "steps", "--save_steps", "2", "--overwrite_output_dir", "True")
        with pytest.raises(ValueError, match="checkpoint-2 in it is no folder of a run"):
            train(start, tmp_path / "out", *more)
        assert kept.read_text() == "mine"

    @pytest.mark.parametrize("name", ["pytorch_model-00001-of-00002.bin", "run.json"])
    def test_a_file_that_a_run_would_replace_stops_it_unless_told(self, start, tmp_path, name):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text("mine")
        with pytest.raises(ValueError, match=r"holds an earlier run.*--overwrite_output_dir"):
            train(start, tmp_path / "out")
        assert (tmp_path / "out" / name).read_text() == "mine"

    def test_a_run_without_a_single_step_is_no_trained_checkpoint(self, start, tmp_path):
        more = ("--dataloader_drop_last", "True", "--per_device_train_batch_size", "13")
        with pytest.raises(ValueError, match=r"no step was made, for its 12 records do not fill one batch .* 13"):
            train(start, tmp_path / "out", *more)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("wanted", ["True", "nowhere/checkpoint-5"])
    def test_resuming_from_nothing_is_refused(self, start, tmp_path, wanted):
        with pytest.raises(FileNotFoundError, match="--resume_from_checkpoint"):
            train(start, tmp_path / "out", "--resume_from_checkpoint", wanted)

    def test_an_adapter_folder_is_no_start(self, start, tmp_path):
        folder = train(start, tmp_path / "out", "--use_lora", "True", "--max_steps", "1")
        other = SimpleNamespace(base=folder / "adapter", data=start.data)
        with pytest.raises(ValueError, match="is a PEFT adapter: continue its run with --resume_from_checkpoint"):
            train(other, tmp_path / "next")
        assert not (tmp_path / "next").exists()

    def test_an_output_that_is_or_lies_in_a_file_is_refused(self, start, tmp_path):
        (tmp_path / "out").write_text("")
        for below in ("", "sub/deeper"):
            with pytest.raises(ValueError, match=r"--output_dir .*out is a file, not a folder"):
                train(start, tmp_path / "out" / below)

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("--data_path", "nowhere.json"),
            ("--eval_data_path", "nowhere.json"),
            ("--model_name_or_path", "nowhere/at-all"),
            ("--config", "nowhere.yaml"),
            ("--deepspeed", "nowhere.json"),
        ],
    )
    def test_a_missing_file_is_one_sentence_and_nothing_is_made(self, start, tmp_path, capsys, flag, value):
        words = [*words_of(start, tmp_path / "out"), flag, value]
        assert main(words) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "nowhere" in line
        assert not (tmp_path / "out").exists()


def _nothing_supervised(*_, **__):
    return Encoded([1, 2, 3], [-100, -100, -100], [])
