"""Images that are seen as their global view alone: fewer tokens, the same features, and others are not concerned."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from monkey.configuration import MonkeyConfig
from monkey.conversation import Conversation
from monkey.decoding import Decoding
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.serving.session import Answerer
from monkey.tokenization import QwenTokenizer
from tests.conftest import random_model
from tests.running_server import photo
from tests.small_processor import CHECKPOINT, EOD, plain, small_config, span

TOKENS = 4
"""Of a view of the tiny model."""


def config_of(**changes) -> MonkeyConfig:
    return MonkeyConfig.from_dict({**small_config(grid=(2, 2)).to_dict(), **changes})


def opened(config: MonkeyConfig) -> Answerer:
    processor = MonkeyProcessor.from_config(config, QwenTokenizer(CHECKPOINT / "qwen.tiktoken"))
    model = random_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                parameter.mul_(5)  # so that other images get other answers
    return Answerer(model, processor, cache_bytes=0)


def image_part(number: int, detail: str | None = None) -> dict:
    return {"type": "image", "image": photo(number), **({"detail": detail} if detail else {})}


def question(*parts: dict) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


@torch.no_grad()
def greedily(model: MonkeyForConditionalGeneration, ids: list[int], features: torch.Tensor, count: int) -> list[int]:
    """New tokens of a prompt whose image slots hold `features` [1, tokens, D], by the library's own loop."""
    embeddings = model.get_input_embeddings()(torch.tensor([ids]))
    slots = torch.tensor(ids) == span_pad(model)
    embeddings[0, slots] = features[0]
    generated = model.generate(inputs_embeds=embeddings, max_new_tokens=count, do_sample=False, suppress_tokens=[EOD])
    return generated[0].tolist()


def span_pad(model: MonkeyForConditionalGeneration) -> int:
    return model.config.image_pad_id


@pytest.mark.parametrize(
    "changes", [{}, {"grids": "up-to-6"}, {"grids": "up-to-6", "fit": "pad"}], ids=["one grid", "grids", "padded"]
)
def test_it_is_the_last_view_of_the_whole_image_and_costs_its_tokens(changes):
    config = config_of(**changes)
    with opened(config) as answerer:
        model, pixels = answerer.model, answerer.processor.image_processor
        canvas = pixels.canvas(photo(1))
        inputs = pixels(photo(1))
        whole = model.get_image_features(inputs["pixel_values"], inputs.get("image_grids")).flatten(end_dim=-2)
        alone = model.get_global_features([pixels.normalised(torch.from_numpy(canvas))])
        assert alone.shape == (1, TOKENS, config.text_config.hidden_size)
        # The same products, with fewer views beside it in one matrix.
        torch.testing.assert_close(alone[0], whole[-TOKENS:], rtol=0, atol=1e-5)

        reply = answerer.chat(question(image_part(1, "low")), Decoding(12), form="plain")
        processor = answerer.processor
        start, *_, end = span(processor)
        ids = [start, *[config.image_pad_id] * TOKENS, end, *plain(processor, "What?")]
        assert reply.prompt_tokens == len(ids)
        expected = greedily(model, ids, alone, 12)
        assert reply.text is not None
        written = reply.token_ids
        assert written == expected[: len(written)]
        assert len(written) > 3


def test_images_of_one_conversation_are_seen_each_in_its_own_way_and_asked_together():
    cases = [
        (image_part(0),),
        (image_part(0, "low"),),
        (image_part(0, "high"), image_part(1, "low")),
        (image_part(0, "low"), image_part(1, "auto")),
        (image_part(1, "low"), image_part(2, "low"), image_part(0, "low")),
    ]
    with opened(config_of()) as answerer:
        alone = [answerer.chat(question(*parts), Decoding(10)) for parts in cases]
        texts = [reply.text for reply in alone]
        full, low = answerer.processor.image_tokens, TOKENS
        lengths = [reply.prompt_tokens for reply in alone]
        assert lengths[0] - lengths[1] == full - low
        assert lengths[2] == lengths[3] == lengths[1] + full + 2
        assert lengths[4] == lengths[1] + 2 * (low + 2)
        assert len(set(texts)) == len(texts)
        with ThreadPoolExecutor(10) as threads:
            together = threads.map(lambda parts: answerer.chat(question(*parts), Decoding(10)).text, cases * 3)
            assert list(together) == texts * 3


@torch.no_grad()
def test_an_answer_is_weighed_behind_it_as_a_forward_pass_of_the_whole_weighs_it():
    with opened(config_of()) as answerer:
        model, processor = answerer.model, answerer.processor
        messages, answer = question(image_part(1, "low")), "a tree"
        reply = answerer.weigh(messages, answer)
        assert reply.text == answer
        whole = Conversation.from_messages([*messages, {"role": "assistant", "content": answer}])
        ids, labels, _ = processor.encode(whole, answerer.form, labels=True, global_tokens=TOKENS)
        assert ids.count(model.config.image_pad_id) == TOKENS
        canvas = torch.from_numpy(processor.image_processor.canvas(photo(1)))
        embeddings = model.get_input_embeddings()(torch.tensor([ids]))
        slots = torch.tensor(ids) == model.config.image_pad_id
        embeddings[0, slots] = model.get_global_features([processor.image_processor.normalised(canvas)])[0]
        likely = model(inputs_embeds=embeddings).logits[0, :-1].log_softmax(dim=-1)
        own = [likely[place, label] for place, label in enumerate(labels[1:]) if label >= 0]
        assert reply.log_probability == pytest.approx(float(sum(own)), rel=1e-4)
        seen_whole = answerer.weigh(question(image_part(1)), answer)
        assert seen_whole.text == answer
        assert reply.log_probability != pytest.approx(seen_whole.log_probability, rel=1e-3)


def test_what_has_no_global_view_or_needs_all_views_refuses_it():
    with opened(config_of(global_view=False)) as answerer:
        with pytest.raises(ValueError, match="no global view to be seen"):
            answerer.chat(question(image_part(0, "low")), Decoding(4))
        with pytest.raises(ValueError, match="no global view to be seen"):
            answerer.weigh(question(image_part(0, "low")), "a tree")
    with opened(config_of()) as answerer:
        with pytest.raises(ValueError, match="a map is of all its views"):
            answerer.attention_maps(question(image_part(0, "low")), "a tree")
        with pytest.raises(ValueError, match="part 1 of message 1 has the detail '8k', and 'low', 'high' or 'auto'"):
            answerer.chat(question(image_part(0, "8k")), Decoding(4))


def test_its_boxes_are_of_the_image_on_a_padded_canvas(monkeypatch):
    config = config_of(grids=[[2, 2]], fit="pad")
    wide = Image.linear_gradient("L").resize((80, 20)).convert("RGB")
    with opened(config) as answerer:
        ids = answerer.processor.tokenizer.encode_text("<box>(0,0),(500,125)</box>")
        monkeypatch.setattr(answerer.engine, "_choose", lambda _, rows: ([[*ids, EOD][rows[0].new_tokens]], [0.0]))
        replies = [
            answerer.chat(question({"type": "image", "image": wide, "detail": detail}), Decoding(40)).text
            for detail in ("low", "high")
        ]
    # The image covers the upper quarter of its canvas.
    assert replies == ["<box>(0,0),(500,500)</box>"] * 2
