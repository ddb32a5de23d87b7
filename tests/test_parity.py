"""The model computes what the published implementation computed: recorded figures, and an independent rewrite of it
for the cases that were not recorded."""

from __future__ import annotations

import pytest
import torch

from benchmarks.published import PublishedMonkey
from monkey.checkpoint import published_names
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.vision import views
from tests.conftest import left_padded, prompt_ids, random_model, tiny_config


def published(model: MonkeyForConditionalGeneration) -> PublishedMonkey:
    return PublishedMonkey(published_names(model, dict(model.state_dict())), model.config)


def test_views_equal_the_recorded_windows_and_global_view(golden, golden_model):
    cut = views(golden.pixels("receipt.png"), golden_model.config)[:, :, :, ::16, ::16]
    for index, name in ((0, "window_0_0"), (3, "window_1_1"), (4, "global_448")):
        # Same Pillow resize and same torch interpolation: only the last bit may differ.
        torch.testing.assert_close(cut[index], golden.tensors[f"vision.{name}"], rtol=0, atol=1e-6)


@torch.no_grad()
def test_image_features_equal_the_recorded_ones(golden, golden_model):
    features = golden_model.get_image_features(golden.pixels("receipt.png"))
    assert features.shape == (1, golden_model.config.image_tokens, 128)
    torch.testing.assert_close(features[:, ::8], golden.tensors["vision.features"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "images"), [("single", ["receipt.png"]), ("batch", ["receipt.png", "sign.jpg", "gray.png"])]
)
@torch.no_grad()
def test_logits_and_greedy_tokens_equal_the_recorded_ones(golden, golden_model, case, images):
    inputs = {key: golden.tensors[f"{case}.{key}"] for key in ("input_ids", "attention_mask")}
    inputs["pixel_values"] = golden.pixels(*images)
    logits = golden_model(**inputs, logits_to_keep=8).logits
    torch.testing.assert_close(logits, golden.tensors[f"{case}.logits_last8"], rtol=0, atol=1e-4)
    generated = golden_model.generate(**inputs, max_new_tokens=16, min_new_tokens=1, do_sample=False)
    assert torch.equal(generated[:, inputs["input_ids"].shape[1] :], golden.tensors[f"{case}.generated"])


def test_loss_and_gradient_norms_equal_the_recorded_ones(golden):
    model = MonkeyForConditionalGeneration.from_pretrained(golden.checkpoint).train()
    _switch_dropout_off(model)
    loss = model(
        input_ids=golden.tensors["train.input_ids"],
        labels=golden.tensors["train.labels"],
        pixel_values=golden.pixels("receipt.png"),
    ).loss
    torch.testing.assert_close(loss[None], golden.tensors["train.loss"], rtol=0, atol=1e-5)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = published_names(model, gradients)
    measured = torch.stack([norms[name].norm() for name in golden.cases["train"]["grad_norm_of"]])
    torch.testing.assert_close(measured, golden.tensors["train.grad_norms"], rtol=1e-3, atol=0)


def _switch_dropout_off(model):
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


CASES = {
    "two rows by three columns": ({"grid": (2, 3)}, [[1, 5, 6]]),
    "one window": ({"grid": (1, 1)}, [[1, 5, 6]]),
    "three rows by two columns": ({"grid": (3, 2)}, [[1, 7]]),
    "no global view": ({"global_view": False}, [[1, 7, 8]]),
    "plain Qwen-VL": ({"grid": (1, 1), "global_view": False, "window_adapters": "none"}, [[1, 7, 8]]),
    "two images in a prompt": ({}, [[9, 1, 7, 1, 5]]),
    "batch of no image, one and two": ({}, [[5, 6, 7, 8], [1, 9], [1, 4, 1, 3, 2]]),
    "decoder adapters of the 24 GB variant": ({"text_adapter_rank": 3}, [[1, 5, 6, 7]]),
    "past seq_length": ({"text_seq_length": 16}, [[1, *range(2, 40)]]),
    "far past seq_length": ({"text_seq_length": 8}, [[1, *range(2, 60)]]),
    "left-padded batch past seq_length": ({"text_seq_length": 16}, [[1, *range(2, 40)], [5, 6], [1, 3]]),
    "NTK without log-n": ({"text_seq_length": 16, "text_use_logn_attn": False}, [[1, *range(2, 40)]]),
    "log-n without NTK": ({"text_seq_length": 16, "text_use_dynamic_ntk": False}, [[1, *range(2, 40)]]),
    "neither": (
        {"text_seq_length": 16, "text_use_logn_attn": False, "text_use_dynamic_ntk": False},
        [[1, *range(2, 40)]],
    ),
    "crossing seq_length while generating": ({"text_seq_length": 30}, [[1, 3, 4]]),
    "vision as wide as the decoder": ({"vision_hidden_size": 48}, [[1, 5]]),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_outputs_equal_the_rewritten_published_computation(name):
    changes, prompts = CASES[name]
    config = tiny_config(**changes)
    model = random_model(config)
    rows = [prompt_ids(config, *[part if part == 1 else [part] for part in prompt]) for prompt in prompts]
    inputs = left_padded(rows, config.eod_id)
    num_images = sum(prompt.count(1) for prompt in prompts)
    if num_images:
        inputs["pixel_values"] = torch.randn(num_images, 3, *config.canvas_size)
    reference = published(model)

    features = reference.image_features(inputs["pixel_values"]) if num_images else None
    if num_images:
        torch.testing.assert_close(model.get_image_features(inputs["pixel_values"]), features, rtol=0, atol=1e-5)
    expected = reference.logits(inputs["input_ids"], inputs["attention_mask"], features)
    logits = model(**inputs).logits
    attended = inputs["attention_mask"].bool()
    # Rounding of different operation orders in fp32, over logits of order 1.
    torch.testing.assert_close(logits[attended], expected[attended], rtol=0, atol=1e-4)
    generated = model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=319)
    steps = reference.generate(
        inputs["input_ids"], inputs["attention_mask"], inputs.get("pixel_values"), max_new_tokens=12
    )
    assert generated.tolist() == steps.tolist()


def test_training_ignores_ntk_and_logn_as_published():
    config = tiny_config(text_seq_length=16, vision_adapter_dropout=0.0)
    model = random_model(config).train()
    ids = torch.tensor([prompt_ids(config, 1, list(range(2, 40)))])
    labels = ids.clone()
    labels[:, :30] = -100
    pixels = torch.randn(1, 3, *config.canvas_size)
    loss = model(input_ids=ids, labels=labels, pixel_values=pixels).loss
    expected = published(model).loss(ids, torch.ones_like(ids), labels, pixels)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    assert abs(model.eval()(input_ids=ids, labels=labels, pixel_values=pixels).loss - loss) > 1e-3


@torch.no_grad()
def test_bf16_error_is_no_larger_than_plain_bf16_arithmetic(golden, golden_model):
    """Against the fp32 figures, next to the published order of operations run in bf16."""
    inputs = {key: golden.tensors[f"single.{key}"] for key in ("input_ids", "attention_mask")}
    pixels = golden.pixels("receipt.png")
    half = MonkeyForConditionalGeneration.from_pretrained(golden.checkpoint, dtype=torch.bfloat16)
    reference = published(half)
    plain_features = reference.image_features(pixels)
    plain = reference.logits(**inputs, features=plain_features)[:, -8:].float()
    ours = half(**inputs, pixel_values=pixels, logits_to_keep=8).logits.float()
    features = half.get_image_features(pixels)[:, ::8].float()

    def error(a, b):
        return (a - b).pow(2).mean().sqrt()

    exact = golden.tensors["single.logits_last8"]
    # A tenth of slack: both errors are rounding noise of one draw.
    assert error(ours, exact) <= 1.1 * error(plain, exact)
    exact = golden.tensors["vision.features"]
    assert error(features, exact) <= 1.1 * error(plain_features[:, ::8].float(), exact)
