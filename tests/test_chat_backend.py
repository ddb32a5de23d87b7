"""A model of another family, opened by transformers and asked through its chat template, answers like ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import evaluate_vqa
from eval.chat_backend import ChatBackend, folder_fingerprint, is_ours
from tests.test_evaluation import lines_of, row, run_one, write_set


@pytest.fixture
def sums(tmp_path) -> Path:
    return write_set(tmp_path / "data", [row(number) for number in range(6)])


def refused(command: list[str], capsys) -> str:
    """The one sentence that a command ends with."""
    assert evaluate_vqa.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    """A tiny model of another family, with its processor and chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ("<pad>", "</s>", "<image>", "<unk>", "user:", "assistant:", "What", "is", "plus", "Answer:")
    words += tuple(f"{number}{mark}" for number in range(6) for mark in ("", "?"))
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %} <image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %} assistant: {% endif %}"
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
            additional_special_tokens=["<image>"],
        ),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=2, image_size=28, patch_size=14, projection_dim=16, **small),
        text_config=LlamaConfig(
            vocab_size=len(words), num_hidden_layers=1, num_key_value_heads=2, eos_token_id=1, pad_token_id=0,
            bos_token_id=1, **small,
        ),
        image_token_index=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_()
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class TestAnotherModel:
    def test_it_answers_through_the_program_and_alike_in_any_batch(self, sums, tmp_path, llava):
        for name, size in (("one", "1"), ("three", "3")):
            flags = ["--checkpoint", str(llava), "--device", "cpu", "--num-workers", "0", "--save_name", name]
            command = ["--dataset", str(sums), "--metric", "accuracy", "--max-new-tokens", "5", "--batch-size", size]
            assert evaluate_vqa.main([*command, *flags, "--output-dir", str(tmp_path)]) == 0
        one, three = (tmp_path / name / "sums" / "predictions.jsonl" for name in ("one", "three"))
        assert one.read_bytes() == three.read_bytes()
        assert len({line["raw"] for line in lines_of(one)}) > 1
        results = json.loads((tmp_path / "one" / "sums" / "results.json").read_text())
        assert results["checkpoint"]["fingerprint"] == folder_fingerprint(str(llava))

    def test_an_image_that_does_not_open_leaves_the_others_alone(self, sums, tmp_path, llava):
        (sums.parent / "images" / "1.png").write_text("no picture")
        backend = ChatBackend(str(llava), "cpu", num_workers=0)
        results = run_one(sums, tmp_path / "run", lambda: backend)
        assert results["missing"] == [101, 104]

    def test_its_fingerprint_follows_its_files(self, llava, tmp_path):
        copy = Path(shutil.copytree(llava, tmp_path / "copy"))
        before = folder_fingerprint(str(copy))
        (copy / "README.md").write_text("notes")
        assert folder_fingerprint(str(copy)) == before == folder_fingerprint(str(llava))
        (copy / "chat_template.jinja").write_text("{{ messages }}")
        assert folder_fingerprint(str(copy)) != before

    def test_ours_and_others_are_told_apart_and_the_rest_refused(self, golden, llava, tmp_path, sums, capsys):
        assert is_ours(str(golden.checkpoint))
        assert not is_ours(str(llava))
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        common = ["--dataset", str(sums), "--metric", "accuracy", "--save_name", "run", "--output-dir", str(tmp_path)]
        error = refused([*common, "--checkpoint", str(tmp_path)], capsys)
        assert "config.json: model_type 'bert' is neither Monkey's nor that of another model" in error
        error = refused([*common, "--checkpoint", str(llava), "--grid", "1,2"], capsys)
        assert "--grid is of Monkey's windows" in error
