"""Prompts that share an image answer, together and in any mixture, what each answers alone by plain generation."""

from __future__ import annotations

import pytest
import torch

from monkey import prefix_attention
from monkey.prefix_generation import GenerationStats, PrefixedImage, greedy_answers
from tests.conftest import prompt_ids, random_model, tiny_config

END = 7
NEW_TOKENS = 24

MIXED = (
    ((0,), 1),
    ((1,), 7),
    ((0,), 3),
    ((), 5),
    ((0,), 9),
    ((2,), 2),
    ((), 1),
    ((1,), 40),
    ((2,), 0),
    ((0,), 60),
    ((0, 1), 4),
    ((2, 0, 1), 3),
)
"""Numbers of the images that prompts begin with, and tokens of text after them."""


def asked(model, cases=MIXED):
    """Prompts, the features of three images, and each prompt's numbers among them."""
    config = model.config
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(8, 290, (length,), generator=generator).tolist() for _, length in cases]
    prompts = [prompt_ids(config, *[1] * len(own), text) for (own, _), text in zip(cases, texts, strict=True)]
    pixels = torch.randn(3, 3, *config.canvas_size, generator=generator)
    with torch.no_grad():
        return prompts, model.get_image_features(pixels), [list(own) for own, _ in cases]


def alone(model, prompts, features, numbers, limits, end_id=END):
    """New tokens of each prompt by the library's loop, one prompt at a time."""
    answers = []
    for prompt, own, limit in zip(prompts, numbers, limits, strict=True):
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            image_features=features[own] if own else None,
            do_sample=False,
            min_new_tokens=1,
            max_new_tokens=limit,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def together(model, prompts, features, numbers, limits, end_id=END, **options):
    images = [PrefixedImage(one) for one in features]
    shared = [[images[number] for number in own] for own in numbers]
    return greedy_answers(model, prompts, shared, limits, end_id, **options)


@pytest.mark.parametrize(
    "config",
    [
        {"text_seq_length": 4096},
        {"text_seq_length": 64},
        {"text_seq_length": 24},
        {"text_seq_length": 16},
        {"text_seq_length": 24, "text_use_dynamic_ntk": False},
        {"text_seq_length": 24, "text_use_logn_attn": False},
        {"text_adapter_rank": 4},
        {"window_adapters": "none", "grid": (1, 2)},
    ],
    ids=str,
)
def test_answers_are_those_of_each_prompt_alone(config):
    # 24 and 16 tokens are fewer than an image with a long and a short question: NTK and log-n are at work.
    model = random_model(tiny_config(**config))
    case = asked(model)
    limits = [NEW_TOKENS - number for number in range(len(MIXED))]
    expected = alone(model, *case, limits)
    assert together(model, *case, limits) == expected
    assert len({tuple(answer) for answer in expected}) == len(expected)


def test_answers_end_where_they_end_alone_and_leave_the_batch():
    model = random_model(tiny_config())
    case = asked(model)
    limits = [NEW_TOKENS] * len(MIXED)
    free = alone(model, *case, limits)
    # A token that comes early in one answer, later in others and in some never.
    end_id = max(range(model.config.text_config.vocab_size), key=lambda token: sum(token in row for row in free))
    expected = alone(model, *case, limits, end_id)
    assert len({len(answer) for answer in expected}) > 2
    widths = []
    # The last norm is applied where a token is chosen, to one position of each row that is still there.
    hook = model.model.language_model.norm.register_forward_hook(
        lambda _, inputs, __: widths.append(inputs[0].shape[0])
    )
    try:
        assert together(model, *case, limits, end_id) == expected
    finally:
        hook.remove()
    assert sum(widths) == sum(map(len, expected))


def test_the_first_token_is_never_the_end():
    model = random_model(tiny_config())
    case = asked(model, MIXED[:1])
    end_id = alone(model, *case, [1])[0][0]
    (answer,) = together(model, *case, [4], end_id)
    assert answer == alone(model, *case, [4], end_id)[0]
    assert answer[0] != end_id
    assert together(model, *case, [4], end_id, min_new_tokens=0) == [[end_id]]


def test_a_question_longer_than_one_product_is_the_same(monkeypatch):
    model = random_model(tiny_config())
    case = asked(model)
    limits = [4] * len(MIXED)
    expected = together(model, *case, limits)
    monkeypatch.setattr(prefix_attention, "QUERY_TOKENS", 3)
    assert together(model, *case, limits) == expected


def test_a_prefix_is_computed_once_for_all_questions_and_later_batches():
    model = random_model(tiny_config(text_seq_length=4096))
    cases = (((0,), 3), ((1,), 5), ((0,), 8))
    prompts, features, numbers = asked(model, cases)
    images = [PrefixedImage(one) for one in features]
    shared = [[images[number] for number in own] for own in numbers]
    stats = GenerationStats()
    prefix = model.config.image_tokens + 1
    first = greedy_answers(model, prompts, shared, [6] * 3, END, stats=stats)
    # Each rest is `</img>` and the text, the shorter ones padded to the longest.
    assert (stats.prefill_tokens, stats.padding_tokens) == (2 * prefix + 3 * 9, 5 + 3)
    assert stats.prompt_tokens == 3 * (prefix + 1) + 3 + 5 + 8
    assert (stats.prompts, stats.new_tokens) == (3, sum(map(len, first)))
    assert stats.prefill_seconds > 0
    assert stats.decode_seconds > 0
    again = GenerationStats()
    assert greedy_answers(model, prompts, shared, [6] * 3, END, stats=again) == first
    assert again.prefill_tokens == 3 * 9


def test_an_image_kept_alone_answers_the_same_and_holds_no_other_memory():
    model = random_model(tiny_config(text_seq_length=4096))
    prompts, features, numbers = asked(model, (((0,), 3), ((1,), 5)))
    images = [PrefixedImage(one) for one in features]
    expected = greedy_answers(model, prompts, [[images[own[0]]] for own in numbers], [6] * 2, END)
    kept = images[1].alone()
    stats = GenerationStats()
    assert greedy_answers(model, prompts[1:], [[kept]], [6], END, stats=stats) == expected[1:]
    assert stats.prefill_tokens == 6
    (prefixes, _), *_ = kept.prefixes.values()
    for tensor in (kept.features, *prefixes.keys, *prefixes.values):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


WRONG = {
    "nothing": ([], 0, "prompt 1 is empty and has no image"),
    "an image without a place": ([5, 6], 1, "the prompts hold 0 image places, but 1 images were given"),
    "a place without an image": (None, 0, "the prompts hold 1 image places, but 0 images were given"),
    "a span cut short": ([300, 5, 301, 6], 1, "prompt 1: the image span at token 0 has 1 slots"),
}


@pytest.mark.parametrize("name", WRONG)
def test_prompts_that_do_not_fit_are_refused(name):
    model = random_model(tiny_config())
    prompt, num_images, message = WRONG[name]
    prompts, features, _ = asked(model, MIXED[:1])
    prompts.append(prompts[0] if prompt is None else prompt)
    with pytest.raises(ValueError) as caught:
        together(model, prompts, features, [[0], [0] * num_images], [4, 4])
    assert message in str(caught.value)
