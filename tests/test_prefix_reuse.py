"""Prompts that share an image answer, together and in any mixture, what each answers alone by plain generation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from monkey import kv_cache
from monkey.decoding import Decoding
from monkey.engine import Canvas, Engine, Request
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


def opened(model, features, **options) -> Engine:
    """An engine whose images are numbers of rows of `features`."""
    model.get_image_features = lambda rows: features[rows.flatten().long()]
    image_processor = SimpleNamespace(normalised=lambda rows: rows)
    return Engine(model, SimpleNamespace(tokenizer=_Ids(), image_processor=image_processor), **options)


class _Ids:
    """A tokenizer whose tokens have no text."""

    def convert_ids_to_tokens(self, token):
        return b""


def together(model, prompts, features, numbers, limits, end_id=END, engine=None, **options):
    """The same by the engine, all at once."""
    engine = engine or opened(model, features, max_rows=len(prompts))
    images = [[Canvas(bytes([number]), np.full(1, number)) for number in own] for own in numbers]
    requests = [
        Request(prompt, own, Decoding(limit), limit, frozenset([end_id]), **options)
        for prompt, own, limit in zip(prompts, images, limits, strict=True)
    ]
    replies = engine.run(requests)
    assert [reply.error for reply in replies] == [None] * len(replies)
    return [reply.token_ids + [end_id] * (reply.finish_reason == "stop") for reply in replies]


@pytest.fixture(autouse=True)
def images_are_shared(monkeypatch):
    """An image of these models has 21 tokens."""
    monkeypatch.setattr(kv_cache, "SHARED_TOKENS", 16)


@pytest.mark.parametrize(
    "config",
    [
        {"text_seq_length": 4096},
        {"text_seq_length": 24, "text_use_dynamic_ntk": False},
        {"text_seq_length": 24, "text_use_logn_attn": False},
        {"text_seq_length": 16, "text_adapter_rank": 4, "window_adapters": "none", "grid": (1, 2)},
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


def test_a_prefix_is_computed_once_for_all_questions_and_later_ones():
    model = random_model(tiny_config(text_seq_length=4096))
    prompts, features, numbers = asked(model, (((0,), 3), ((1,), 5), ((0,), 8)))
    engine = opened(model, features)
    prefix = model.config.image_tokens + 1
    first = together(model, prompts, features, numbers, [6] * 3, engine=engine)
    # Each rest is `</img>` and the text.
    rests = 4 + 6 + 9
    assert (engine.stats.read_tokens, engine.stats.reused_tokens) == (2 * prefix + rests, prefix)
    assert min(engine.stats.prefill_seconds, engine.stats.decode_seconds) > 0
    assert together(model, prompts, features, numbers, [6] * 3, engine=engine) == first
    assert engine.stats.read_tokens == 2 * prefix + 2 * rests


WRONG = {
    "an image without a place": ([5, 6], 1, "the prompts hold 0 image places, but 1 images were given"),
    "a place without an image": (None, 0, "the prompts hold 1 image places, but 0 images were given"),
    "a span cut short": ([300, 5, 301, 6], 1, "the image span at token 0 has 1 slots"),
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
