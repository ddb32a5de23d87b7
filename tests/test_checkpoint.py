"""Checkpoints open unmodified, save under the published names, and say in one sentence what does not fit."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from monkey.checkpoint import placed_windows, published_names
from monkey.checkpoint_files import load_bin
from monkey.configuration import MonkeyConfig
from monkey.flat_config import published_config
from monkey.modeling import MonkeyForConditionalGeneration
from scripts.convert_checkpoint import convert, main
from tests import malformed
from tests.conftest import prompt_ids, random_model, tiny_config

SHARDS = [f"pytorch_model-0000{number}-of-00003.bin" for number in (1, 2, 3)]


def published_checkpoint(folder: Path, model: MonkeyForConditionalGeneration) -> Path:
    """Write a model as the published code does: flat config, one `.bin` of published names."""
    folder.mkdir(parents=True)
    flat = published_config(model.config, "float32")
    (folder / "config.json").write_text(json.dumps(flat), encoding="utf-8")
    torch.save(published_names(model, dict(model.state_dict())), folder / "pytorch_model.bin")
    return folder


def outputs(model: MonkeyForConditionalGeneration) -> torch.Tensor:
    config = model.config
    ids = torch.tensor([prompt_ids(config, 1, [5, 6, 7])])
    pixels = torch.randn(1, 3, *config.canvas_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits


def all_shards(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("pytorch_model*.bin")):
        tensors.update(load_bin(path))
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def test_published_names_survive_opening_and_saving_bit_for_bit(golden, golden_model, tmp_path):
    golden_model.save_pretrained(tmp_path)
    assert_same_tensors(all_shards(tmp_path), all_shards(golden.checkpoint))
    assert not list(tmp_path.glob("*.bin"))


def test_own_save_opens_to_equal_weights_and_config(golden_model, tmp_path):
    golden_model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    opened = MonkeyForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_tensors(dict(opened.state_dict()), dict(golden_model.state_dict()))
    assert opened.config.to_dict() | {"_name_or_path": ""} == golden_model.config.to_dict() | {"_name_or_path": ""}


def test_model_made_from_a_config_saves_and_opens(tmp_path):
    model = random_model(tiny_config())
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "transformer.visual.transformer.resblocks.0.mlp_lora.3.lora_scale" in names
    torch.testing.assert_close(outputs(MonkeyForConditionalGeneration.from_pretrained(tmp_path)), outputs(model))


def test_auto_classes_open_the_published_folder_without_remote_code(golden):
    assert isinstance(AutoConfig.from_pretrained(golden.checkpoint), MonkeyConfig)
    model = AutoModelForImageTextToText.from_pretrained(golden.checkpoint, grid=(1, 2))
    assert isinstance(model, MonkeyForConditionalGeneration)
    assert model.config.grid == (1, 2)
    assert not any(name.startswith("transformers_modules") for name in sys.modules)


def test_variant_with_decoder_adapters_is_told_by_its_names(tmp_path):
    model = random_model(tiny_config(text_adapter_rank=3))
    folder = published_checkpoint(tmp_path / "lora", model)
    assert "adapter" not in (folder / "config.json").read_text().replace("adapter_rank", "")
    opened = MonkeyForConditionalGeneration.from_pretrained(folder)
    assert opened.config.text_config.adapter_rank == 3
    torch.testing.assert_close(outputs(opened), outputs(model))
    opened.save_pretrained(tmp_path / "again")
    assert_same_tensors(all_shards(tmp_path / "again"), all_shards(folder))


def qwen_vl(tmp_path) -> tuple[Path, MonkeyForConditionalGeneration]:
    config = tiny_config(grid=(1, 1), global_view=False, window_adapters="none")
    model = random_model(config)
    folder = published_checkpoint(tmp_path / "qwen-vl", model)
    flat = json.loads((folder / "config.json").read_text())
    assert flat["model_type"] == "qwen"
    assert "lora_repeat_num" not in flat["visual"]
    return folder, model


def test_plain_qwen_vl_opens_with_one_view_and_saves_as_it_was(tmp_path):
    folder, model = qwen_vl(tmp_path)
    opened = AutoModelForImageTextToText.from_pretrained(folder)
    assert (opened.config.model_type, opened.config.image_tokens) == ("monkey", 4)
    torch.testing.assert_close(outputs(opened), outputs(model))
    opened.save_pretrained(tmp_path / "again")
    assert_same_tensors(all_shards(tmp_path / "again"), all_shards(folder))


@torch.no_grad()
def test_qwen_vl_on_a_grid_is_a_monkey_whose_adapters_do_nothing(tmp_path, caplog):
    folder, model = qwen_vl(tmp_path)
    with caplog.at_level(logging.WARNING):
        opened = MonkeyForConditionalGeneration.from_pretrained(folder, grid=(2, 2))
    assert "has no window adapters: 4 new sets start at zero effect" in caplog.text
    assert opened.config.global_view
    pixels = torch.randn(1, 3, 56, 56)
    features = opened.get_image_features(pixels)
    alone = [model.get_image_features(pixels[:, :, r : r + 28, c : c + 28]) for r in (0, 28) for c in (0, 28)]
    torch.testing.assert_close(features[:, :16], torch.cat(alone, dim=1))
    # Saving writes the new adapters too, though the opened checkpoint had none.
    opened.save_pretrained(tmp_path / "monkey")
    again = MonkeyForConditionalGeneration.from_pretrained(tmp_path / "monkey")
    assert_same_tensors(dict(again.state_dict()), dict(opened.state_dict()))


@pytest.mark.parametrize(
    ("old", "new", "placed"),
    [
        ((2, 2), (2, 3), [0, 1, 1, 2, 3, 3]),
        ((2, 2), (1, 1), [3]),
        ((2, 2), (3, 2), [0, 1, 2, 3, 2, 3]),
        ((2, 2), (4, 4), [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]),
        ((2, 3), (2, 3), [0, 1, 2, 3, 4, 5]),
        ((1, 1), (2, 2), [0, 0, 0, 0]),
    ],
)
def test_new_windows_start_from_the_old_window_at_their_centre(old, new, placed):
    assert placed_windows(old, new) == placed


@pytest.mark.parametrize("grid", [(1, 1), (2, 3)])
def test_another_grid_places_the_adapters_and_says_so(tmp_path, grid, caplog):
    model = random_model(tiny_config())
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        opened = MonkeyForConditionalGeneration.from_pretrained(tmp_path, grid=grid)
    assert f"made for grid=(2, 2); on grid={grid}" in caplog.text
    placed = placed_windows((2, 2), grid)
    for name, tensor in opened.state_dict().items():
        source = model.state_dict()[name]
        expected = source[placed] if "_adapter." in name else source
        assert torch.equal(tensor, expected), name
    assert outputs(opened).shape[1] == opened.config.image_tokens + 5


def test_dtype_and_device_map_go_through(golden):
    model = MonkeyForConditionalGeneration.from_pretrained(golden.checkpoint, dtype=torch.bfloat16, device_map="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.device.type == "cpu"


def test_quantised_opening_leaves_the_vision_side_alone(tmp_path):
    pytest.importorskip("bitsandbytes", reason="4-bit needs bitsandbytes: pip install .[quantization]")
    from transformers import BitsAndBytesConfig

    # On a CPU bitsandbytes wants linears of at least 64 inputs.
    model = random_model(tiny_config(text_hidden_size=128, text_intermediate_size=256))
    model.save_pretrained(tmp_path)
    opened = MonkeyForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    decoder = [module for _, module in opened.model.language_model.named_modules() if hasattr(module, "in_features")]
    assert {type(module).__name__ for module in decoder} == {"Linear4bit"}
    assert type(opened.model.visual.layers[0].attention.in_proj) is torch.nn.Linear
    error = (outputs(opened) - outputs(model)).norm() / outputs(model).norm()
    assert 0 < error < 0.5
    with pytest.raises(ValueError, match="a quantised model is not saved"):
        opened.save_pretrained(tmp_path / "again")


@pytest.fixture
def broken(golden, tmp_path) -> Path:
    """A copy of the published folder, to break."""
    return Path(shutil.copytree(golden.checkpoint, tmp_path / "broken"))


def refused(folder, kind=ValueError, **options) -> str:
    with pytest.raises(kind) as caught:
        MonkeyForConditionalGeneration.from_pretrained(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def lose_weights(folder: Path) -> None:
    for path in folder.glob("pytorch_model*"):
        path.unlink()


def name_a_shard_elsewhere(folder: Path) -> None:
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace(SHARDS[1], "../elsewhere.bin"))


def cut_a_shard(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:100_000])


def cut_safetensors(folder: Path) -> None:
    safe = convert(str(folder), folder.parent / "safe", "safetensors")
    shutil.rmtree(folder)
    safe.rename(folder)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:100_000])


def rewrite_shards(change: Callable[[dict[str, torch.Tensor]], dict], *shards: str) -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        for shard in shards:
            tensors = {name: tensor.clone() for name, tensor in load_bin(folder / shard).items()}
            torch.save(change(tensors), folder / shard)

    return fault


def without(part: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lose_weights, "holds no weights: neither model.safetensors nor pytorch_model.bin"),
        (lambda at: (at / SHARDS[1]).unlink(), f"{SHARDS[1]}, which pytorch_model.bin.index.json names, is missing"),
        (name_a_shard_elsewhere, "names the shard '../elsewhere.bin', which is not a file beside it"),
        (cut_a_shard, f"{SHARDS[1]} is not a whole weight file"),
        (cut_safetensors, "model-00002-of-00003.safetensors is not a whole safetensors file"),
        (
            rewrite_shards(lambda _: {"transformer.ln_f.weight": torch.ones(3), "code": print}, SHARDS[0]),
            f"{SHARDS[0]} holds something else than tensors and is refused: unpickling it could run code",
        ),
        (
            rewrite_shards(lambda tensors: tensors | {"transformer.ln_f.weight": torch.ones(64)}, SHARDS[1]),
            "transformer.ln_f.weight has shape [64], but config.json makes it [128]",
        ),
        (
            rewrite_shards(partial(without, "transformer.visual.proj"), SHARDS[1]),
            "1 of 133 tensors are missing: transformer.visual.proj",
        ),
        # One window less is not taken for another grid.
        (rewrite_shards(partial(without, "mlp_lora.3."), *SHARDS), "mlp_lora.3.lora_a.weight"),
        (
            rewrite_shards(lambda tensors: {f"model.{len(tensors)}.weight": torch.ones(2)}, *SHARDS),
            "is not a Monkey or Qwen-VL checkpoint: none of its ",
        ),
    ],
)
def test_weights_that_are_not_the_checkpoints_are_named(broken, fault, message):
    fault(broken)
    assert message in refused(broken, (ValueError, FileNotFoundError))


def test_tensors_that_nothing_uses_are_reported(broken, caplog):
    tensors = {name: t.clone() for name, t in load_bin(broken / SHARDS[0]).items()}
    torch.save(
        tensors | {"extra.weight": torch.ones(2), "transformer.h.0.attn.masked_bias": torch.ones(1)}, broken / SHARDS[0]
    )
    with caplog.at_level(logging.WARNING):
        MonkeyForConditionalGeneration.from_pretrained(broken)
    assert "1 tensors are not used: extra.weight" in caplog.text


@pytest.mark.parametrize("model_type", ["qwen2_vl", "llava", "qwen"])
def test_other_models_are_refused_in_one_sentence(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "hidden_size": 8}))
    save_file({"model.layers.0.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert f"is a {model_type!r} model, not Monkey or Qwen-VL" in refused(tmp_path)


def test_what_is_no_checkpoint_is_refused(golden, tmp_path):
    assert "nobody/nothing: no config.json in the hub's offline cache" in refused("nobody/nothing", FileNotFoundError)
    message = "no config.json in the folder, and it is needed for the model's sizes"
    assert message in refused(tmp_path, FileNotFoundError)
    assert "grid=(0, 3) is not (rows, columns)" in refused(golden.checkpoint, grid=(0, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device_map", ["cuda", {"": 0}, {"": "cuda:1"}])
def test_cuda_without_cuda_is_refused(golden, device_map):
    assert "asks for CUDA, but torch sees no CUDA device here" in refused(golden.checkpoint, device_map=device_map)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    return malformed.base_folders(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("number", [0, 1, 2], ids=["own", "published", "adapter"])
def test_a_folder_with_one_thing_wrong_answers_or_is_refused_in_a_sentence(folders, tmp_path, number):
    assert malformed.opened_or_refused(folders[number]) == "answered"
    ends = {}
    # The stride meets every file and kind of value; `python -m tests.malformed` tries them all.
    for what, fault in list(malformed.faults(folders[number]))[number::67]:
        try:
            ends[what] = malformed.try_fault(folders[number], tmp_path, fault)
        except Exception as error:
            raise AssertionError(what) from error
    assert len(ends) > 10
    assert sum(end != "answered" for end in ends.values()) > len(ends) // 3


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors.index.json", '{"weight_map": [1]}', "is not an index of shards"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}', "is not an index of shards"),
        ("model.safetensors.index.json", '{"weight_map": null}', "is not an index of shards"),
        ("config.json", "[]", "config.json holds a list, and an object of keys with values is needed"),
        ("config.json", "[" * 100_000, "config.json nests objects and lists in each other more than 64 deep"),
        ("config.json", '{"model_type": "monkey", "text_config": 3}', "`text_config` must be a `dict`"),
        ("config.json", '{"vision_config": {"patch_size": "x"}}', "patch_size is 'x', and a whole number"),
        ("config.json", '{"quantization_config": 3}', "config.json is not of the form"),
        ("generation_config.json", "[]", "generation_config.json holds a list"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id is 'x', and a whole number from 0"),
        ("generation_config.json", '{"eos_token_id": [5, 9999]}', "eos_token_id is 9999, and the vocabulary has 1,024"),
        ("processor_config.json", '{"image_processor": {"size": {"height": 10000000, "width": 10000000}}}', "a canvas"),
        ("processor_config.json", '{"image_processor": 3, "image_tokens": 8}', "processor_config.json is not of the"),
        ("processor_config.json", '{"image_tokens": 12}', "image_tokens=12, and config.json makes it 8"),
        ("tokenizer_config.json", "3", "tokenizer_config.json holds a int"),
        ("qwen.tiktoken", "hello", "qwen.tiktoken:1: b'hello' is not 'base64-token rank'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(folders, tmp_path, file, content, message):
    assert message in malformed.try_fault(folders[0], tmp_path, write(file, content))


def changed(folder: Path, tmp_path: Path, file: str, *keys: str, value) -> str:
    def fault(target: Path) -> None:
        content = json.loads((target / file).read_text())
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (target / file).write_text(json.dumps(content))

    return malformed.try_fault(folder, tmp_path, fault)


def test_sizes_that_would_fill_the_memory_are_refused_before_anything_is_made(folders, tmp_path):
    own, published, adapter = folders
    assert "config.json has 10,000,000 decoder layers, and the weights have 1" in changed(
        own, tmp_path, "config.json", "text_config", "num_hidden_layers", value=10**7
    )
    assert "config.json has 10,000,000 vision layers, and the weights have 1" in changed(
        published, tmp_path, "config.json", "visual", "layers", value=10**7
    )
    assert "more than 1,024 windows" in changed(own, tmp_path, "config.json", "grid", value=[10**7, 10**7])
    assert "r is 10000000, and " in changed(adapter, tmp_path, "adapter_config.json", "r", value=10**7)


def write(file: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


def change(kind: str) -> Callable[[Path], None]:
    return lambda folder: malformed.change_weights(folder / "pytorch_model.bin", malformed.WEIGHTS[kind])


POINTER = malformed.WHOLE["git-lfs pointer"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (change("int32"), "are not of floating point"),
        (change("bool"), "is bool"),
        (change("NaN"), "weights hold NaN or infinity"),
        (write("pytorch_model.bin", "hello"), "pytorch_model.bin is not a whole weight file"),
        (write("pytorch_model.bin", "\n"), "pytorch_model.bin holds something else than tensors"),
        *(
            (write(file, POINTER), f"{file} is a git-lfs pointer, and not the file itself: run `git lfs pull` in")
            for file in ("pytorch_model.bin", "qwen.tiktoken", "config.json")
        ),
    ],
)
def test_files_that_are_none_are_refused(folders, tmp_path, fault, message):
    assert message in malformed.try_fault(folders[1], tmp_path, fault)


@pytest.mark.parametrize("path", ["hub/models/echo840/Monkey", "hub/echo840___Monkey"])
def test_folders_as_modelscope_and_wisemodel_lay_them_out_open(folders, tmp_path, path, monkeypatch):
    # Each has a configuration.json beside config.json; ModelScope's records of what it fetched are binary.
    folder = tmp_path / path
    shutil.copytree(folders[1], folder)
    (folder / "configuration.json").write_text('{"framework": "pytorch", "task": "image-text-to-text"}')
    for name in (".msc", ".mv", ".mdl"):
        (folder / name).write_bytes(b"\x80\x04]\x94.")
    (folder / "modeling_monkey.py").write_text("raise RuntimeError('never run')\n")
    (folder / ".git").mkdir()
    monkeypatch.chdir(folder.parent)
    assert malformed.opened_or_refused(Path(folder.name)) == "answered"


def test_a_snapshot_of_the_hubs_cache_opens_as_a_folder(folders, tmp_path):
    snapshot = tmp_path / "models--echo840--Monkey" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--echo840--Monkey" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folders[1].iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert malformed.opened_or_refused(snapshot) == "answered"


def test_too_little_memory_is_said_with_both_numbers_before_loading(folders, monkeypatch):
    few = SimpleNamespace(available=2**16, free=0)
    monkeypatch.setattr("psutil.virtual_memory", lambda: few)
    monkeypatch.setattr("psutil.swap_memory", lambda: few)
    sentence = malformed.opened_or_refused(folders[0])
    assert "0.0 GiB for its weights, and 0.0 GiB of memory are available" in sentence
    assert "4 bits" in sentence


def test_memory_that_ends_while_weights_are_mapped_is_a_sentence(folders, monkeypatch):
    def out_of_memory(*_, **__):
        raise RuntimeError("unable to mmap 19416230 bytes from file <pytorch_model.bin>: Cannot allocate memory (12)")

    monkeypatch.setattr("torch.load", out_of_memory)
    assert "pytorch_model.bin: the memory does not suffice to open it (unable to mmap 19416230 bytes" in (
        malformed.opened_or_refused(folders[1])
    )


def test_bin_to_safetensors_and_back_is_bit_for_bit(golden, tmp_path):
    safe = convert(str(golden.checkpoint), tmp_path / "safe", "safetensors")
    assert len(list(safe.glob("*.safetensors"))) == 3
    assert not list(safe.glob("*.bin"))
    back = convert(str(safe), tmp_path / "back", "bin", "published")
    assert_same_tensors(all_shards(back), all_shards(golden.checkpoint))
    ours = json.loads((golden.checkpoint / "pytorch_model.bin.index.json").read_text())
    theirs = json.loads((back / "pytorch_model.bin.index.json").read_text())
    assert theirs == ours
    for name in ("qwen.tiktoken", "tokenizer_config.json"):
        assert (back / name).read_bytes() == (golden.checkpoint / name).read_bytes()
    MonkeyForConditionalGeneration.from_pretrained(back)


def test_what_we_train_exports_to_the_published_config(tmp_path):
    model = random_model(tiny_config(grid=(2, 3)))
    model.save_pretrained(tmp_path / "ours")
    folder = convert(str(tmp_path / "ours"), tmp_path / "published", "bin", "published")
    flat = json.loads((folder / "config.json").read_text())
    assert flat["visual"]["image_size"] == [56, 84]
    assert flat["visual"]["lora_repeat_num"] == 6
    assert flat["fp32"] is True
    torch.testing.assert_close(outputs(MonkeyForConditionalGeneration.from_pretrained(folder)), outputs(model))


def test_code_that_the_published_config_names_is_said(golden, tmp_path, capsys):
    assert main([str(golden.checkpoint), str(tmp_path / "out"), "--config", "published"]) == 0
    named = "copy configuration_qwen.py, modeling_monkey.py, tokenization_qwen.py and the files that they import"
    assert named in capsys.readouterr().err
    own = random_model(tiny_config())
    own.save_pretrained(tmp_path / "ours")
    assert main([str(tmp_path / "ours"), str(tmp_path / "again")]) == 0
    assert "names code" not in capsys.readouterr().err


def test_failed_conversion_leaves_nothing(broken, capsys):
    (broken / SHARDS[2]).write_bytes(b"not a shard")
    target = broken.parent / "out" / "converted"
    assert main([str(broken), str(target), "--format", "safetensors"]) == 2
    error = capsys.readouterr().err
    assert "\nerror: " in error
    assert SHARDS[2] in error
    assert not list(target.parent.iterdir())


def test_conversion_never_overwrites(golden, tmp_path, capsys):
    (tmp_path / "here.txt").write_text("mine")
    assert main([str(golden.checkpoint), str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
