"""Where the model looks: the weights are those of the modules themselves, and lie where they belong on the image."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import monkey
from monkey.configuration import MonkeyConfig
from monkey.processing import MonkeyProcessor
from monkey.serving import attention_maps
from monkey.serving.attention_maps import (
    LONGEST_SIDE,
    answer_weights,
    draw_heat,
    draw_views,
    read_image,
    watched_layers,
)
from monkey.serving.session import Answerer
from monkey.tokenization import QwenTokenizer
from scripts import show_views
from tests.conftest import prompt_ids, random_model, tiny_config
from tests.small_processor import CHECKPOINT, EOD, START, small_config, small_processor

ANSWER = [11, 12, 13, 14, 15]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def message(image, question: str = "What?", *more) -> list[dict]:
    images = [{"type": "image", "image": one} for one in (image, *more)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


def canvases(config: MonkeyConfig, count: int) -> torch.Tensor:
    return torch.randn(count, 3, *config.canvas_size, generator=torch.Generator().manual_seed(0))


class TestResampler:
    @pytest.mark.parametrize("heads", [1, 3])
    def test_the_weights_are_those_of_the_module(self, heads):
        model = random_model(tiny_config(vision_resampler_heads=heads, grid=(2, 1)))
        given = []
        attention = model.model.visual.resampler.attention
        hook = attention.register_forward_hook(lambda _, inputs, output: given.append((*inputs, output)))
        features, weights = read_image(model, canvases(model.config, 1))
        hook.remove()
        (query, key, value, output) = given[0]
        assert torch.equal(features, model.get_image_features(canvases(model.config, 1)))
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:2]))
        _, expected = F.multi_head_attention_forward(
            query[:, None].expand(-1, key.shape[0], -1),
            key.transpose(0, 1),
            value.transpose(0, 1),
            query.shape[1],
            heads,
            attention.in_proj_weight,
            attention.in_proj_bias,
            None,
            None,
            False,
            0.0,
            attention.out_proj.weight,
            attention.out_proj.bias,
        )
        torch.testing.assert_close(weights, expected)
        if heads == 1:
            projected = F.linear(value, attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2])
            torch.testing.assert_close(attention.out_proj(weights @ projected), output)


class TestDecoder:
    @pytest.mark.parametrize(
        ("text", "layers", "rows_at_once"),
        [
            ({}, None, 64),
            # Prompts are longer than 24 tokens: the base grows, and queries are scaled.
            ({"text_seq_length": 24}, [2, 0], 2),
            ({"text_adapter_rank": 4}, [0], 64),
        ],
    )
    def test_the_weights_are_those_of_eager_attention(self, text, layers, rows_at_once, monkeypatch):
        monkeypatch.setattr(attention_maps, "ROWS_AT_ONCE", rows_at_once)
        model = random_model(tiny_config(grid=(1, 1), text_num_hidden_layers=3, **text))
        prompt = prompt_ids(model.config, [7, 8], 1, [9], 1, [3, 2])
        features = model.get_image_features(canvases(model.config, 2))
        weights = answer_weights(model, prompt, ANSWER, features, layers)
        model.set_attn_implementation({"text_config": "eager"})
        ids = torch.tensor([[*prompt, *ANSWER[:-1]]])
        whole = model(input_ids=ids, image_features=features, output_attentions=True).attentions
        chosen = watched_layers(3) if layers is None else layers
        expected = torch.stack([whole[layer][0, :, len(prompt) - 1 :].mean(dim=0) for layer in chosen]).mean(dim=0)
        slots = attention_maps.image_slots(ids, model.config, 2)[0]
        assert weights.shape == (len(ANSWER), 2 * model.config.image_tokens)
        torch.testing.assert_close(weights, expected[:, slots])
        torch.testing.assert_close(weights.sum(dim=1) + expected[:, ~slots].sum(dim=1), torch.ones(len(ANSWER)))

    def test_weights_of_other_tokens_than_the_answers_never_exist(self):
        model = random_model(tiny_config(grid=(1, 1), text_seq_length=2048))
        prompt = prompt_ids(model.config, [5] * 1000, 1)
        features = model.get_image_features(canvases(model.config, 1))

        class Largest(TorchDispatchMode):
            numel = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                output = function(*args, **(kwargs or {}))
                for x in output if isinstance(output, (list, tuple)) else [output]:
                    self.numel = max(self.numel, x.numel() if isinstance(x, torch.Tensor) else 0)
                return output

        with Largest() as seen:
            answer_weights(model, prompt, ANSWER, features)
        config = model.config.text_config
        assert seen.numel <= (len(prompt) + len(ANSWER)) * max(config.intermediate_size, 3 * config.hidden_size)


ROWS, COLUMNS, SIDE = 2, 3, 4


@pytest.fixture(scope="module")
def seeker():
    """A model whose queries look for what is bright: patches are their brightness, and queries ask for it."""
    config = small_config(grid=(ROWS, COLUMNS))
    config = MonkeyConfig.from_dict(
        config.to_dict() | {"vision_config": config.vision_config.to_dict() | {"window_size": 14 * SIDE}}
    )
    model = random_model(config)
    visual, width = model.model.visual, config.text_config.hidden_size
    direction = torch.zeros(width)
    direction[0], direction[1] = 1, -1
    with torch.no_grad():
        for parameter in (*visual.layers.parameters(), visual.position_embedding, visual.resampler.pos_embed):
            parameter.zero_()
        for norm in (visual.pre_layernorm, visual.resampler.ln_q, visual.resampler.ln_kv):
            norm.weight.fill_(1)
            norm.bias.zero_()
        visual.patch_embedding.weight.copy_(
            direction[:, None, None, None].expand_as(visual.patch_embedding.weight) / (3 * 14**2)
        )
        visual.resampler.query.copy_(direction.expand_as(visual.resampler.query))
        attention = visual.resampler.attention
        attention.in_proj_weight[: 2 * width] = torch.eye(width).repeat(2, 1)
        attention.in_proj_bias.zero_()
    processor = MonkeyProcessor.from_config(config, QwenTokenizer(CHECKPOINT / "qwen.tiktoken"))
    with Answerer(model, processor) as answerer:
        yield answerer


@pytest.mark.parametrize("place", [(0, 0), (2, 1)])
def test_a_bright_region_is_found_where_it_is(place, seeker):
    # One patch of the global view, which is two rows and three columns of the windows' patches, of one window or two.
    row, column = place[0] * ROWS, place[1] * COLUMNS
    bright = np.zeros((ROWS * SIDE, COLUMNS * SIDE), bool)
    bright[row : row + ROWS, column : column + COLUMNS] = True
    # Twice as wide and three times as high as the canvas, which keeps no aspect ratio.
    pixels = np.kron(bright, np.full((3 * 14, 2 * 14), 255, np.uint8))
    (seen,) = seeker.attention_maps(message(Image.fromarray(pixels)), "seven")
    for windows in (seen.queries_on_windows, seen.answer_on_windows):
        assert windows.shape == bright.shape
        assert windows[bright].min() > 2 * windows[~bright].max()
        assert windows.sum() == pytest.approx(1, abs=1e-5)
    for whole in (seen.queries_on_global_view, seen.answer_on_global_view):
        assert np.unravel_index(whole.argmax(), whole.shape) == place
        assert whole.max() > 0.9
    heat = draw_heat(Image.new("RGB", pixels.shape[::-1]), seen.answer_on_windows)
    level = np.asarray(heat).astype(int).sum(axis=2)
    assert pixels.flat[level.argmax()]
    assert level[pixels > 0].mean() > 2 * level[pixels == 0].mean()


@pytest.fixture
def photo() -> Image.Image:
    return Image.linear_gradient("L").resize((40, 30)).convert("RGB")


@pytest.fixture
def answerer():
    with Answerer(random_model(small_config(num_hidden_layers=2)), small_processor(), max_rows=3) as answerer:
        yield answerer


def numbers(maps) -> list:
    return [(one.share, one.queries.tolist(), one.answer.tolist()) for one in maps]


class TestAnswerer:
    def test_each_image_of_a_conversation_has_its_maps(self, answerer, photo):
        turns = [
            *message(photo, "What?", photo.rotate(90)),
            {"role": "assistant", "content": "a sign"},
            *message(photo.rotate(180), "And here?"),
        ]
        maps = answerer.attention_maps(turns, "another")
        assert len(maps) == 3
        assert all(0 < one.share < 1 for one in maps)
        assert sum(one.share for one in maps) < 1
        assert all(one.answer.sum() == pytest.approx(one.share) for one in maps)

    def test_the_prompt_is_that_of_ask_and_the_answer_is_read_as_it_was_written(self, answerer, photo, monkeypatch):
        read, submitted, submit = [], [], answerer.engine.submit
        monkeypatch.setattr(
            attention_maps, "answer_weights", lambda *given: read.append(given) or answer_weights(*given)
        )
        monkeypatch.setattr(answerer.engine, "submit", lambda request: submitted.append(request.ids) or submit(request))
        answerer.ask(photo, "What?", monkey.Decoding(max_new_tokens=2)).close()
        answerer.attention_maps(message(photo), "<ref>a</ref><img></img><|endoftext|>", form="questions")
        (_, prompt, answer, *_) = read[0]
        assert prompt == submitted[0]
        assert answer[0] == answerer.processor.tokenizer.convert_tokens_to_ids("<ref>")
        assert not {START, EOD} & set(answer)

    def test_they_are_made_between_the_steps_of_answers_in_the_computing_thread(self, answerer, photo, monkeypatch):
        expected = numbers(answerer.attention_maps(message(photo), "seven"))
        limit = monkey.Decoding(max_new_tokens=200)
        alone = answerer.ask(photo, "How many?", limit).text
        threads: set[str] = set()

        def read(*given):
            threads.add(threading.current_thread().name)
            return read_image(*given)

        monkeypatch.setattr(attention_maps, "read_image", read)
        with ThreadPoolExecutor(4) as pool:
            replies = [answerer.ask(photo, question, limit) for question in ("How many?", "Why?")]
            maps = list(pool.map(lambda _: answerer.attention_maps(message(photo), "seven"), range(4)))
            assert [numbers(one) for one in maps] == [expected] * 4
            assert replies[0].text == alone
        assert all(name.startswith("engine") for name in threads)

    def test_what_cannot_be_looked_at_is_refused_in_a_sentence(self, answerer, photo):
        with pytest.raises(ValueError, match="no image"):
            answerer.attention_maps([{"role": "user", "content": "What?"}], "seven")
        with pytest.raises(ValueError, match="the answer is empty"):
            answerer.attention_maps(message(photo), " ")
        with pytest.raises(ValueError, match="more than the 512 allowed"):
            answerer.attention_maps(message(photo, "a" * 2000), "seven")
        for layers in ([], [2], [-1]):
            with pytest.raises(ValueError, match="decoder's 2 are counted from 0"):
                answerer.attention_maps(message(photo), "seven", layers=layers)

    def test_nobody_waits_for_ever(self, answerer, photo, monkeypatch):
        release = threading.Event()
        monkeypatch.setattr(attention_maps, "read_image", lambda *_: release.wait(30))
        answerer.patience = 0.2
        with pytest.raises(TimeoutError, match=r"within 0\.2 seconds"):
            answerer.attention_maps(message(photo), "seven")
        release.set()
        answerer.close()
        with pytest.raises(RuntimeError, match="was closed"):
            answerer.attention_maps(message(photo), "seven")


class TestDrawings:
    def test_heat_lies_over_an_image_of_any_size(self):
        for size in ((1, 1), (20_000, 10), (300, 200)):
            sheet = draw_heat(Image.new("L", size), np.eye(8, dtype=np.float32))
            assert sheet.size == (size if max(size) <= LONGEST_SIDE else (LONGEST_SIDE, 1))
        grey = Image.new("RGB", (64, 64), (90, 90, 90))
        assert draw_heat(grey, np.zeros((8, 8), np.float32)).getextrema() == ((90, 90),) * 3
        # On the scale of a larger weight, the same attention is cooler.
        hot, cool = (np.asarray(draw_heat(grey, np.eye(8, dtype=np.float32), highest)) for highest in (None, 10))
        assert np.abs(hot - 90.0).max() > np.abs(cool - 90.0).max() > 0

    def test_views_are_drawn_with_the_heat_of_each(self):
        config = small_config(grid=(1, 2))
        plain = draw_views(Image.new("RGB", (60, 30)), config)
        attention = np.zeros((3, 2, 2), np.float32)
        attention[1, 0, 0] = 1
        hot = draw_views(Image.new("RGB", (60, 30)), config, attention)
        assert hot.size == plain.size
        _, columns = (np.asarray(hot) != np.asarray(plain)).any(axis=2).nonzero()
        cell = plain.width // 3
        assert columns.min() > cell
        assert columns.max() < 2 * cell

    def test_the_script_shows_views_and_where_an_answer_looked(self, tmp_path, photo, capsys):
        photo.save(tmp_path / "photo.png")
        random_model(small_config()).save_pretrained(tmp_path / "tiny")
        small_processor().save_pretrained(tmp_path / "tiny")
        words = [str(tmp_path / "photo.png"), str(tmp_path / "views.png")]
        capsys.readouterr()
        assert show_views.main([*words, "--ask", "What?"]) == 2
        assert capsys.readouterr().err == "error: --ask needs --checkpoint, the model that answers\n"
        assert show_views.main([*words, "--checkpoint", str(tmp_path / "tiny")]) == 0
        plain = np.asarray(Image.open(tmp_path / "views.png"))
        assert show_views.main([*words, "--checkpoint", str(tmp_path / "tiny"), "--ask", "What?"]) == 0
        assert "of the answer's attention went to the image" in capsys.readouterr().out
        assert not np.array_equal(np.asarray(Image.open(tmp_path / "views.png")), plain)
