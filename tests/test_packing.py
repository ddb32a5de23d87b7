"""Packed rows are exact, the plan of rows keeps its promises, and no work is done that the loss does not need."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monkey import language
from monkey.attention import Runs, checked_runs
from monkey.data.packing import (
    RowPlan,
    RowSettings,
    SampleSizes,
    fill_rate,
    packed_batch,
    rows_of,
    shared_tokens,
    units_of,
)
from tests.conftest import prompt_ids, random_model, tiny_config

CONFIG = tiny_config(grid=(1, 2), vision_adapter_dropout=0.0, text_seq_length=128, text_max_position_embeddings=256)
INPUTS = ("input_ids", "position_ids", "segments", "loss_positions", "loss_targets", "pixel_values")


@pytest.fixture
def model():
    return random_model(CONFIG).train()


def _sample(name: str, image: torch.Tensor | None, question: list[int], answer: list[int]) -> dict:
    """A conversation of one turn; text ids are below 290."""
    prompt = prompt_ids(CONFIG, 1, question) if image is not None else question
    sample = {"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + answer, "source": name}
    return sample if image is None else {**sample, "pixel_values": image}


def _image(seed: int) -> torch.Tensor:
    return torch.randn(1, 3, *CONFIG.canvas_size, generator=torch.Generator().manual_seed(seed))


def _samples() -> list[dict]:
    return [
        _sample("a", _image(1), [5, 6, 7], [8, 9]),
        _sample("b", None, [10, 11], [12, 13, 14, 15]),
        _sample("c", _image(2), [16], [17]),
        _sample("d", None, [18], [19, 20]),
    ]


def _questions(image: torch.Tensor) -> list[dict]:
    """Three questions about one picture; the last has no text before its answer."""
    return [
        _sample("q", image, [5, 6, 7], [8, 9]),
        _sample("r", image, [21, 22], [23, 24, 25]),
        _sample("s", image, [], [26, 27]),
    ]


def _run(model, batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed loss and gradients."""
    model.zero_grad()
    loss = model(**{key: batch[key] for key in INPUTS if key in batch}, num_items_in_batch=1, use_cache=False).loss
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _apart(model, samples) -> tuple[float, dict[str, torch.Tensor]]:
    """The same from one ordinary call a sample, with ordinary labels and logits at every position."""
    model.zero_grad()
    total = 0.0
    for sample in samples:
        inputs = {"input_ids": torch.tensor([sample["input_ids"]]), "labels": torch.tensor([sample["labels"]])}
        if "pixel_values" in sample:
            inputs["pixel_values"] = sample["pixel_values"]
        loss = model(**inputs, num_items_in_batch=1, use_cache=False).loss
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _assert_same(one, other) -> None:
    """Equal up to fp32 rounding: sums of a few hundred products in another order."""
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        scale = max(float(other[1][name].abs().max()), 1e-3)
        assert float((gradient - other[1][name]).abs().max()) / scale < 2e-4, name


class TestExactness:
    def test_packed_loss_and_gradients_equal_those_of_the_samples_alone(self, model):
        samples = _samples()
        batch = packed_batch([[sample] for sample in samples], room=200, filler_id=0)
        assert batch["input_ids"].shape == (1, sum(len(sample["input_ids"]) for sample in samples))
        _assert_same(_run(model, batch), _apart(model, samples))

    def test_questions_behind_one_picture_equal_separate_samples_and_encode_it_once(self, model):
        image = _image(3)
        questions = _questions(image)
        shared = CONFIG.image_tokens + 2
        unit = [{**question, "shared": shared} for question in questions]
        for question in unit[1:]:
            del question["pixel_values"]
        batch = packed_batch([unit, [_samples()[1]]], room=200, filler_id=0)
        assert batch["pixel_values"].shape[0] == 1
        assert batch["contents"].tokens == shared + 5 + 5 + 2 + 6
        _assert_same(_run(model, batch), _apart(model, [*questions, _samples()[1]]))

    def test_questions_behind_one_picture_do_not_see_each_other(self, model):
        def losses(other_answer: int) -> float:
            unit = [{**sample, "shared": CONFIG.image_tokens + 2} for sample in _questions(_image(3))]
            unit[0]["input_ids"][-1] = other_answer  # seen, but not supervised
            unit[0]["labels"][-2:] = [-100, -100]
            del unit[1]["pixel_values"], unit[2]["pixel_values"]
            return _run(model, packed_batch([unit], room=200, filler_id=0))[0]

        assert losses(9) == losses(200)

    def test_samples_that_should_share_and_do_not_are_refused(self):
        one, other, _ = _questions(_image(3))
        other["input_ids"][0] = 7
        with pytest.raises(ValueError, match="r and q should share their first 14 tokens and do not"):
            packed_batch([[{**one, "shared": 14}, {**other, "shared": 14}]], room=99, filler_id=0)

    def test_an_empty_row_is_one_unsupervised_token(self, model):
        batch = packed_batch([], room=99, filler_id=20)
        assert batch["contents"].tokens == 0
        loss, _ = _run(model, batch)
        assert loss == 0

    def test_evaluation_is_exact_too_and_refuses_what_ntk_would_change(self, model):
        model.eval()
        samples = _samples()
        with torch.no_grad():
            batch = packed_batch([[sample] for sample in samples], room=200, filler_id=0)
            packed = model.model(**{key: batch[key] for key in INPUTS[:3]}, pixel_values=batch["pixel_values"])
            alone = model.model(input_ids=torch.tensor([samples[1]["input_ids"]]))
            start = len(samples[0]["input_ids"])
            torch.testing.assert_close(
                packed.last_hidden_state[:, start : start + 6], alone.last_hidden_state, rtol=0, atol=1e-5
            )
            long = packed_batch([[_sample("e", None, [1] * 127, [2, 3])]], room=200, filler_id=0)
            with pytest.raises(ValueError, match=r"a sample of 129 tokens.*seq_length=128"):
                model.model(**{key: long[key] for key in INPUTS[:3]})


class TestSegments:
    @pytest.mark.parametrize(
        ("rows", "sentence"),
        [
            ([[0, 3, 0, 0], [4, 6, 0, 0]], "run 1 is tokens 4 to 6, but token 3 comes next"),
            ([[0, 3, 0, 0]], "segments cover 3 tokens of a row of 6"),
            ([[0, 3, 0, 0], [3, 6, 0, 2]], "the prefix of run 1, tokens 0 to 2, is not an earlier run"),
            ([[0, 2, 0, 0], [2, 4, 0, 2], [4, 6, 2, 4]], "the prefix of run 2, tokens 2 to 4, is not an earlier run"),
        ],
    )
    def test_runs_that_do_not_tile_the_row_are_refused(self, rows, sentence):
        with pytest.raises(ValueError, match=sentence):
            checked_runs(torch.tensor(rows), 6)

    @pytest.mark.parametrize(
        "runs",
        [
            pytest.param([(0, 3, 0, 0), (3, 9, 0, 0)], id="samples alone"),
            pytest.param([(0, 6, 0, 0), (6, 8, 0, 6), (8, 9, 0, 6), (9, 12, 0, 0), (12, 13, 9, 12)], id="branches"),
        ],
    )
    def test_places_of_keys_and_ends_of_runs_are_those_counted_run_by_run(self, runs):
        places, queries, keys, longest_query, longest = Runs(runs, torch.device("cpu"))._kernel_lengths()
        expected, query_ends, key_ends = [], [0], [0]
        for start, end, prefix_start, prefix_end in runs:
            expected += [*range(prefix_start, prefix_end), *range(start, end)]
            query_ends.append(end)
            key_ends.append(len(expected))
        assert queries.tolist() == query_ends
        assert keys.tolist() == key_ends
        assert {queries.dtype, keys.dtype} == {torch.int32}
        assert (longest_query, longest) == (6, 6 if places is None else 8)
        assert places is None if len(runs) == 2 else places.tolist() == expected

    def test_a_padded_batch_cannot_be_packed(self, model):
        ids = torch.tensor([[1, 2], [3, 4]])
        with pytest.raises(ValueError, match=r"segments pack one row.* the batch has 2 rows"):
            model(input_ids=ids, segments=torch.tensor([[0, 2, 0, 0]]), use_cache=False)

    def test_what_is_supervised_before_the_last_picture_is_not_shared(self):
        ids = prompt_ids(CONFIG, 1, [5, 6], 1, [7, 8])
        nothing = [-100] * len(ids)
        assert shared_tokens(ids, nothing, CONFIG.image_end_id) == len(ids) - 2
        supervised = [*nothing]
        supervised[CONFIG.image_tokens + 3] = 6
        assert shared_tokens(ids, supervised, CONFIG.image_end_id) == 0
        assert shared_tokens([5, 6], [-100, 6], CONFIG.image_end_id) == 0


class TestNoWastedWork:
    def test_logits_exist_for_a_chunk_of_supervised_positions_at_a_time_and_are_not_kept(self, model, monkeypatch):
        chunk = 256
        monkeypatch.setattr(language, "LOSS_LOGITS", chunk * CONFIG.text_config.vocab_size)
        answer = [int(x) for x in np.random.default_rng(0).integers(1, 290, size=chunk + 40)]
        samples = [_sample(str(part), None, [5], answer[part::3]) for part in range(3)]
        batch = packed_batch([[sample] for sample in samples], room=999, filler_id=0)
        assert batch["contents"].supervised == chunk + 40
        apart = _apart(model, samples)
        rows = []
        ordinary = torch.nn.functional.cross_entropy

        def counted(logits, *args, **kwargs):
            rows.append(logits.shape[0])
            return ordinary(logits, *args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "cross_entropy", counted)
        _assert_same(_run(model, batch), apart)
        # Once forward, once more for the gradients.
        assert sorted(rows) == [40, 40, chunk, chunk]

    def test_the_global_view_is_outside_the_graph_below_a_frozen_transformer(self, model):
        visual = model.model.visual
        for name, parameter in visual.named_parameters():
            parameter.requires_grad_("_adapter." in name)
        views = []
        hook = visual.layers[0].register_forward_hook(lambda _m, _a, output: views.append(output))
        visual(_image(4)).sum().backward()
        hook.remove()
        assert [(len(view), view.requires_grad) for view in views] == [(2, True), (1, False)]
        outside = {n: p.grad.clone() for n, p in visual.named_parameters() if p.grad is not None}

        visual.zero_grad()
        visual.position_embedding.requires_grad_(True)  # now the global view needs its graph
        visual(_image(4)).sum().backward()
        inside = {n: p.grad for n, p in visual.named_parameters() if p.grad is not None}
        assert set(inside) - set(outside) == {"position_embedding"}
        for name, gradient in outside.items():
            torch.testing.assert_close(gradient, inside[name], rtol=1e-4, atol=1e-4, msg=name)

    def test_with_nothing_to_train_in_it_the_transformer_has_no_graph(self, model):
        visual = model.model.visual
        for name, parameter in visual.named_parameters():
            parameter.requires_grad_(name.startswith("resampler.") and "pos_embed" not in name)
        outputs = []
        hook = visual.layers[-1].register_forward_hook(lambda _m, _a, output: outputs.append(output))
        visual(_image(4)).sum().backward()
        hook.remove()
        assert not any(output.requires_grad for output in outputs)

    def test_a_blank_picture_joins_the_graph_and_changes_nothing(self, model):
        text = packed_batch([[_samples()[1]]], room=99, filler_id=0)
        inputs = {key: text[key] for key in INPUTS if key in text}
        plain = model(**inputs, use_cache=False).loss
        model.zero_grad()
        joined = model(**inputs, blank_pixel_values=torch.zeros(1, 3, *CONFIG.canvas_size), use_cache=False).loss
        joined.backward()
        assert torch.equal(plain, joined)
        gradients = [p.grad for n, p in model.model.visual.named_parameters() if "pos_embed" not in n]
        assert all(gradient is not None and not gradient.any() for gradient in gradients)


def _sizes(tokens: list[int], shared: list[int] | None = None, prefix: list[int] | None = None) -> SampleSizes:
    shared = [0] * len(tokens) if shared is None else shared
    prefix = list(range(len(tokens))) if prefix is None else prefix
    one = np.ones(len(tokens), dtype=int)
    return SampleSizes(np.array(tokens), np.array(shared), np.array(prefix), one, one)


def _drawn(count: int):
    return lambda number: np.random.default_rng(number).permutation(count)


class TestPlan:
    SIZES = _sizes([int(x) for x in np.random.default_rng(1).integers(20, 200, size=500)])
    SETTINGS = RowSettings(budget=400, look_ahead=32, share=False)

    def _plan(self, passes=1, processes=1, settings=SETTINGS, sizes=SIZES):
        return RowPlan(sizes, settings, _drawn(len(sizes.tokens)), passes, processes)

    @pytest.mark.parametrize("processes", [1, 2, 3, 7])
    @pytest.mark.parametrize("passes", [1, 3])
    def test_every_sample_is_in_exactly_one_row_of_each_pass_whatever_the_processes(self, passes, processes):
        plan = self._plan(passes, processes)
        seen = []
        for epoch in range(passes):
            rows = [plan.epoch(epoch, process) for process in range(processes)]
            assert {len(own) for own in rows} == {plan.rows_an_epoch}
            seen += [index for own in rows for row in own for unit in row for index in unit]
        assert sorted(seen) == sorted(list(range(500)) * passes)

    def test_no_row_is_over_the_budget_and_rows_are_full(self):
        rows = self._plan().epoch(0)
        assert max(sum(self.SIZES.unit_tokens(unit) for unit in row) for row in rows) <= 400
        assert fill_rate(rows, self.SIZES, 400) > 0.95
        alone = list(rows_of(((i,) for i in range(500)), self.SIZES, RowSettings(budget=400, look_ahead=1)))
        assert fill_rate(alone, self.SIZES, 400) < 0.5  # without looking ahead, a row a sample

    def test_the_plan_is_the_same_each_time_and_each_pass_is_drawn_anew(self):
        one, other = self._plan(2), self._plan(2)
        assert one.epoch(0) == other.epoch(0)
        assert other.epoch(1) == one.epoch(1) != one.epoch(0)

    def test_an_endless_plan_continues_where_a_resumed_run_needs_it(self):
        straight, resumed = self._plan(passes=None), self._plan(passes=None)
        epochs = [straight.epoch(number) for number in range(4)]
        assert resumed.epoch(3) == epochs[3]
        assert resumed.epoch(1) == epochs[1]

    def test_fewer_samples_than_processes_leave_some_with_an_empty_row(self):
        plan = RowPlan(_sizes([10, 10]), RowSettings(budget=100, share=False), _drawn(2), 1, processes=4)
        rows = [plan.epoch(0, process) for process in range(4)]
        assert sorted(len(row) for own in rows for row in own) == [0, 0, 1, 1]

    def test_samples_about_one_picture_share_a_row_up_to_the_limits(self):
        sizes = _sizes([50] * 6 + [30], shared=[40] * 6 + [0], prefix=[1, 2, 1, 1, 2, 1, 3])
        settings = RowSettings(budget=100, most_shared=3)
        assert list(units_of(range(7), sizes, settings)) == [(0, 2, 3), (1, 4), (5,), (6,)]
        assert sizes.unit_tokens((0, 2, 3)) == 70
        tight = RowSettings(budget=60)
        assert list(units_of(range(7), sizes, tight)) == [(0, 2), (1, 4), (3, 5), (6,)]

    def test_a_sample_over_the_budget_is_refused_with_both_numbers(self):
        with pytest.raises(ValueError, match="sample 1 is 500 tokens long, and a row holds 400"):
            self._plan(sizes=_sizes([20, 500]))
        with pytest.raises(ValueError, match="look_ahead=0"):
            RowSettings(budget=100, look_ahead=0)
