"""What the model promises beyond parity: batching, caches, adapters, spans, generation."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import TextIteratorStreamer
from transformers.cache_utils import DynamicLayer

from monkey.configuration import MonkeyConfig
from monkey.kv_cache import CACHE_STEP, GrowingLayer
from monkey.modeling import MonkeyForConditionalGeneration, image_slots
from monkey.vision import WindowAdapter, views
from tests.conftest import left_padded, prompt_ids, random_model, tiny_config


@pytest.fixture(scope="module")
def model():
    return random_model(tiny_config())


def canvases(config, count, seed=0):
    return torch.randn(count, 3, *config.canvas_size, generator=torch.Generator().manual_seed(seed))


def mixed_batch(config):
    """Three prompts of different lengths with no image, one and two, and their canvases."""
    rows = [prompt_ids(config, [5, 6, 7, 8]), prompt_ids(config, 1, [9]), prompt_ids(config, 1, [4], 1, [3, 2])]
    return rows, left_padded(rows, config.eod_id) | {"pixel_values": canvases(config, 3)}


def generate(model, inputs, **options):
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False} | options
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def test_many_images_at_once_equal_one_at_a_time(model):
    pixels = canvases(model.config, 3)
    together = model.get_image_features(pixels)
    alone = torch.cat([model.get_image_features(pixels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_mixed_batch_answers_as_each_prompt_alone(model):
    rows, inputs = mixed_batch(model.config)
    pixels, expected, used = inputs["pixel_values"], [], 0
    for row in rows:
        count = row.count(model.config.image_start_id)
        alone = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
        if count:
            alone["pixel_values"] = pixels[used : used + count]
        used += count
        expected += generate(model, alone)
    assert generate(model, inputs) == expected


@pytest.mark.parametrize("seq_length", [64, 4096])
def test_cache_answers_as_no_cache(seq_length):
    # With NTK off: its base is fixed at prefill with a cache and follows the length without, as published.
    config = tiny_config(text_seq_length=seq_length, text_use_dynamic_ntk=False)
    model = random_model(config)
    _, inputs = mixed_batch(config)
    assert generate(model, inputs, use_cache=True) == generate(model, inputs, use_cache=False)


def test_static_cache_answers_as_the_dynamic_one():
    config = tiny_config(text_seq_length=16)
    model = random_model(config)
    _, inputs = mixed_batch(config)
    assert generate(model, inputs, cache_implementation="static") == generate(model, inputs)


def test_cache_grows_without_copying_what_it_holds(model):
    config = model.config
    ids = torch.tensor([prompt_ids(config, 1, [5, 6])])
    with torch.no_grad():
        cache = model(input_ids=ids, pixel_values=canvases(config, 1), use_cache=True).past_key_values
        held = cache.layers[0].keys.data_ptr()
        for token in range(2, 12):
            model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
    assert cache.layers[0].keys.data_ptr() == held
    assert cache.get_seq_length() == ids.shape[1] + 10


@pytest.mark.parametrize("change", ["crop", "reorder_cache", "batch_select_indices", "batch_repeat_interleave"])
def test_cache_that_was_changed_continues_as_the_library_one(change):
    arguments = {
        "crop": -3,
        "reorder_cache": torch.tensor([1, 1]),
        "batch_select_indices": torch.tensor([1]),
        "batch_repeat_interleave": 2,
    }[change]
    layers = DynamicLayer(), GrowingLayer()
    states = torch.randn(2, 3, 7, 4)
    for layer in layers:
        layer.update(states, states + 1)
        layer.update(states[:, :, :1], states[:, :, :1])
        getattr(layer, change)(arguments)
        more = torch.full((layer.keys.shape[0], 3, CACHE_STEP + 5, 4), 2.0)
        layer.update(more[:, :, :2], more[:, :, :2])
        layer.update(more, more)
    torch.testing.assert_close(layers[1].keys, layers[0].keys, rtol=0, atol=0)
    torch.testing.assert_close(layers[1].values, layers[0].values, rtol=0, atol=0)


def test_cache_under_gradients_keeps_them():
    config = tiny_config()
    model = random_model(config)
    first, second = torch.tensor([[5, 6, 7]]), torch.tensor([[8]])
    cache = model(input_ids=first, use_cache=True).past_key_values
    model(input_ids=second, past_key_values=cache, use_cache=True).logits.sum().backward()
    in_steps = model.model.language_model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    model(input_ids=torch.cat([first, second], dim=1)).logits[:, -1].sum().backward()
    # Attention over one query and over four rounds differently in fp32.
    torch.testing.assert_close(in_steps, model.model.language_model.embed_tokens.weight.grad, rtol=1e-3, atol=1e-4)


def test_two_generations_in_two_threads_do_not_share_rotary_growth():
    config = tiny_config(text_seq_length=16)
    model = random_model(config)
    long = {"input_ids": torch.tensor([prompt_ids(config, 1, list(range(2, 60)))]), "pixel_values": canvases(config, 1)}
    short = {"input_ids": torch.tensor([[5, 6, 7]])}
    expected = [generate(model, long, max_new_tokens=24), generate(model, short, max_new_tokens=24)]
    results = [[], []]

    def run(index, inputs):
        for _ in range(3):
            results[index].append(generate(model, inputs, max_new_tokens=24))

    threads = [threading.Thread(target=run, args=(i, inputs)) for i, inputs in enumerate((long, short))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[expected[0]] * 3, [expected[1]] * 3]


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 3}],
)
def test_beams_and_samples_encode_each_image_once(model, monkeypatch, options):
    encoded = []
    original = type(model.model.visual).forward

    def counting(self, pixel_values):
        encoded.append(pixel_values.shape[0])
        return original(self, pixel_values)

    monkeypatch.setattr(type(model.model.visual), "forward", counting)
    _, inputs = mixed_batch(model.config)
    answers = generate(model, inputs, **options)
    assert len(answers) == 3 * options.get("num_return_sequences", 1)
    assert encoded == [3]


def test_beams_of_a_batch_equal_beams_alone(model):
    rows, inputs = mixed_batch(model.config)
    together = generate(model, inputs, num_beams=3)
    alone = {"input_ids": torch.tensor([rows[2]]), "pixel_values": inputs["pixel_values"][1:]}
    assert generate(model, alone, num_beams=3)[0] == together[2]


def test_sampling_repeats_with_its_seed(model):
    _, inputs = mixed_batch(model.config)
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append(generate(model, inputs, do_sample=True, temperature=5.0))
    assert answers[0] == answers[1] != answers[2]


def test_features_given_once_answer_as_pixels(model):
    _, inputs = mixed_batch(model.config)
    expected = generate(model, inputs)
    with torch.no_grad():
        features = model.get_image_features(inputs.pop("pixel_values"))
    assert generate(model, inputs | {"image_features": features}) == expected


def test_follow_up_on_the_cache_needs_no_vision(model, monkeypatch):
    config = model.config
    first = prompt_ids(config, 1, [5, 6])
    pixels = canvases(config, 1)
    out = model.generate(
        input_ids=torch.tensor([first]), pixel_values=pixels, max_new_tokens=4, min_new_tokens=4, do_sample=False,
        return_dict_in_generate=True,
    )  # fmt: skip
    follow_up = torch.cat([out.sequences, torch.tensor([[7, 8, 9]])], dim=1)
    expected = generate(model, {"input_ids": follow_up, "pixel_values": pixels})

    def refuse(*_):
        raise AssertionError("the image was encoded again")

    monkeypatch.setattr(type(model.model.visual), "forward", refuse)
    assert generate(model, {"input_ids": follow_up, "past_key_values": out.past_key_values}) == expected


class _Ids:
    """The least of a tokenizer that a streamer needs: ids as words."""

    def decode(self, ids, **_):
        return "".join(f"{int(i)} " for i in ids)


def test_streamed_tokens_are_the_generated_ones(model):
    _, inputs = mixed_batch(model.config)
    inputs = {"input_ids": inputs["input_ids"][:1, -4:]}
    streamer = TextIteratorStreamer(_Ids(), skip_prompt=True, timeout=60)
    thread = threading.Thread(target=generate, args=(model, inputs), kwargs={"streamer": streamer})
    thread.start()
    streamed = "".join(streamer).split()
    thread.join()
    assert [int(word) for word in streamed] == generate(model, inputs)[0]


@pytest.mark.parametrize("window", [0, 3])
@torch.no_grad()
def test_adapter_touches_only_its_own_window(model, window):
    pixels = canvases(model.config, 2)
    before = model.get_image_features(pixels)
    changed = random_model(model.config)
    for module in changed.modules():
        if isinstance(module, WindowAdapter):
            module.up[window] += 0.5
    after = changed.get_image_features(pixels)
    queries = model.config.vision_config.num_queries
    moved = (before != after).view(2, model.config.num_views, queries, -1).any(dim=(0, 2, 3))
    assert moved.tolist() == [view == window for view in range(model.config.num_views)]


@torch.no_grad()
def test_new_adapters_change_nothing():
    config = tiny_config()
    torch.manual_seed(0)
    model = MonkeyForConditionalGeneration(config).eval()
    pixels = canvases(config, 2)
    with_adapters = model.get_image_features(pixels)
    bare = MonkeyForConditionalGeneration(tiny_config(window_adapters="none")).eval()
    bare.load_state_dict({name: t for name, t in model.state_dict().items() if "adapter" not in name})
    torch.testing.assert_close(bare.get_image_features(pixels), with_adapters, rtol=0, atol=0)


@torch.no_grad()
def test_shared_adapters_equal_the_same_set_in_every_window():
    shared = random_model(tiny_config(window_adapters="shared"))
    each = random_model(tiny_config())
    state = shared.state_dict()
    for name, tensor in each.state_dict().items():
        if "_adapter." in name and name.startswith("model.visual"):
            state[name] = state[name].expand_as(tensor)
    each.load_state_dict(state)
    pixels = canvases(shared.config, 2)
    torch.testing.assert_close(shared.get_image_features(pixels), each.get_image_features(pixels), rtol=0, atol=1e-6)


def test_views_go_row_by_row_then_global():
    config = tiny_config(grid=(2, 3))
    canvas = torch.arange(6.0).view(2, 3).repeat_interleave(28, 0).repeat_interleave(28, 1).expand(1, 3, -1, -1)
    cut = views(canvas, config)
    assert cut.shape == (7, 1, 3, 28, 28)
    assert [float(view.mean()) for view in cut[:6]] == [0, 1, 2, 3, 4, 5]
    assert float(cut[6].mean()) == pytest.approx(2.5)


@pytest.mark.parametrize("which", ["visual", "language_model", "both"])
def test_gradient_checkpointing_gives_the_same_gradients(which):
    config = tiny_config(vision_adapter_dropout=0.0)
    model = random_model(config).train()
    ids = torch.tensor([prompt_ids(config, 1, [5, 6, 7])])
    inputs = {"input_ids": ids, "labels": ids, "pixel_values": canvases(config, 1)}
    model(**inputs).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    part = model if which == "both" else getattr(model.model, which)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing") and module not in set(part.modules()):
            module.gradient_checkpointing = False
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected.pop(name), rtol=0, atol=1e-6)
    assert not expected


def test_fixed_position_table_gets_no_gradient():
    config = tiny_config()
    model = random_model(config).train()
    ids = torch.tensor([prompt_ids(config, 1, [5, 6, 7])])
    model(input_ids=ids, labels=ids, pixel_values=canvases(config, 1)).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["model.visual.resampler.pos_embed"]


def test_eager_attention_equals_the_fused_one(model):
    _, inputs = mixed_batch(model.config)
    with torch.no_grad():
        fused = model(**inputs).logits[inputs["attention_mask"].bool()]
        model.set_attn_implementation({"text_config": "eager"})
        eager = model(**inputs).logits[inputs["attention_mask"].bool()]
        model.set_attn_implementation({"text_config": "sdpa"})
    torch.testing.assert_close(eager, fused, rtol=0, atol=1e-5)


BROKEN_PROMPTS = {
    "no image for the place": (lambda c: prompt_ids(c, 1, [5]), 0, "1 image places, but 0 images"),
    "image without a place": (lambda c: [5, 6, 7], 1, "0 image places, but 1 images"),
    "two places, one image": (lambda c: prompt_ids(c, 1, 1), 1, "2 image places, but 1 images"),
    "span cut short": (lambda c: [c.image_start_id, 5, c.image_end_id], 1, "1 slots, but grid=(2, 2) makes 20 tokens"),
    "span never closed": (lambda c: prompt_ids(c, 1, [5])[:10], 1, "<img> at token 0 is never closed"),
    "span opened twice": (
        lambda c: [c.image_start_id, *prompt_ids(c, 1)],
        1,
        "token 1 opens inside the one at token 0",
    ),
    "span closed twice": (lambda c: [*prompt_ids(c, 1), c.image_end_id], 1, "</img> at token 22 closes nothing"),
}


@pytest.mark.parametrize("name", BROKEN_PROMPTS)
def test_spans_that_do_not_fit_are_refused_with_both_numbers(model, name):
    build, num_images, message = BROKEN_PROMPTS[name]
    inputs = {"input_ids": torch.tensor([build(model.config)])}
    if num_images:
        inputs["pixel_values"] = canvases(model.config, num_images)
    with pytest.raises(ValueError) as caught:
        model(**inputs)
    assert message in str(caught.value)


def test_canvas_of_another_grid_is_refused(model):
    with pytest.raises(ValueError, match=r"needs \[images, 3, 56, 56\]"):
        model.get_image_features(torch.zeros(1, 3, 56, 84))


def test_slots_are_what_stands_between_the_tags_whatever_fills_them(model):
    config = model.config
    ids = [config.image_start_id, *range(config.image_tokens), config.image_end_id, 4]
    slots = image_slots(torch.tensor([ids]), config, num_images=1)
    assert slots[0].tolist() == [False, *[True] * config.image_tokens, False, False]


def test_full_size_has_the_published_parameter_counts():
    with torch.device("meta"):
        model = MonkeyForConditionalGeneration(MonkeyConfig())
    counts = dict.fromkeys(("vit", "resampler", "decoder", "adapters"), 0)
    for name, parameter in model.named_parameters():
        if not name.startswith("model.visual"):
            part = "decoder"
        elif "_adapter." in name:
            part = "adapters"
        elif any(key in name for key in ("resampler", "post_layernorm", "projection")):
            part = "resampler"
        else:
            part = "vit"
        counts[part] += parameter.numel()
    millions = {part: round(count / 1e6, 1) for part, count in counts.items()}
    assert millions == {"vit": 1842.8, "resampler": 92.8, "decoder": 7721.3, "adapters": 51.1}
    assert round(sum(counts.values()) / 1e6, 1) == 9708.1
