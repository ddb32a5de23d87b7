"""Many requests at once: each gets what it gets alone, nothing is read twice, and one that fails harms no other."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from monkey import engine as engine_module
from monkey import kv_cache
from monkey.conversation import Conversation
from monkey.kv_cache import KVCache
from monkey.reply import Detokenizer, Reply
from monkey.serving.session import Answerer, Decoding
from tests.conftest import random_model
from tests.small_processor import small_config, small_processor

QUESTIONS = (
    ((0,), "What?"),
    ((1,), "What is the total of this receipt, and who paid it?"),
    ((0, 2), "Which is older?"),
    ((), "Hello there"),
    ((0,), "And the price of everything that is on sale today in this shop"),
    ((3,), "Why?"),
    ((2, 1, 0), "Compare these"),
    ((1,), "Who?"),
)
"""Numbers of the images of each question, and its text."""


def image(number: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(90 * number).resize((40 + number, 30)).convert("RGB")


def model_of(**text):
    return random_model(small_config(**text))


def opened(model, **options) -> Answerer:
    return Answerer(model, small_processor(), **options)


def alone(model, numbers, question: str, max_new_tokens: int) -> str:
    """The answer that the library's own loop gives for the whole prompt."""
    processor = small_processor()
    images = [image(number) for number in numbers] or None
    inputs = processor(images=images, text=f" {question} Answer: ", inert_text=True)
    generated = model.generate(**inputs, max_new_tokens=max_new_tokens, min_new_tokens=1, do_sample=False)
    (ids,) = generated[:, inputs["input_ids"].shape[1] :].tolist()
    detokenizer = Detokenizer(processor.tokenizer)
    return "".join(detokenizer.push(token) for token in ids) + detokenizer.finish()


def asked(answerer: Answerer, case: int, **options) -> Reply:
    numbers, question = QUESTIONS[case]
    return answerer.ask([image(number) for number in numbers], question, Decoding(**options))


@pytest.fixture
def end_never(monkeypatch):
    """Answers go on to their limit; a step takes 5 ms."""
    choose = engine_module.Engine._choose

    def slow(self, last, rows):
        time.sleep(0.005)
        tokens, log_probabilities = choose(self, last, rows)
        return [token if token not in row.request.end_ids else 65 for token, row in zip(tokens, rows, strict=True)], (
            log_probabilities
        )

    monkeypatch.setattr(engine_module.Engine, "_choose", slow)


@pytest.mark.parametrize(
    ("text", "chunk", "shared"),
    [
        ({"num_hidden_layers": 3}, 512, 4),
        ({}, 3, 99),
        ({"seq_length": 16}, 5, 4),
        ({"seq_length": 24, "use_dynamic_ntk": False, "adapter_rank": 4}, 7, 99),
    ],
    ids=str,
)
def test_answers_of_many_threads_are_those_of_each_alone(text, chunk, shared, monkeypatch):
    # 24 and 16 tokens are fewer than most of the prompts have: rows of different rotary growth stand side by side.
    # An image has ten tokens: rows refer to them where blocks from 4 on are shared, and copy them otherwise.
    monkeypatch.setattr(kv_cache, "SHARED_TOKENS", shared)
    monkeypatch.setattr(kv_cache, "SHORTEST_REUSE", 2)
    monkeypatch.setattr(engine_module, "CHUNK", chunk)
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 4 * chunk)
    monkeypatch.setattr(engine_module, "LONGEST_REST", 2 * chunk)
    model = model_of(**text)
    limits = [14 - case for case in range(len(QUESTIONS))]
    expected = [alone(model, *QUESTIONS[case], limits[case]) for case in range(len(QUESTIONS))]
    assert len(set(expected)) > 5

    def text_of(number: int) -> str:
        case = number % len(QUESTIONS)
        return asked(answerer, case, max_new_tokens=limits[case]).text

    with opened(model, max_rows=5) as answerer, ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(text_of, range(3 * len(QUESTIONS))))
        assert answers == expected * 3
        assert answerer.engine.stats.requests == len(answers)
        assert answerer.engine.stats.images == 4


def test_a_step_writes_a_token_of_every_answer_in_progress_and_of_no_more_than_allowed(end_never):
    model = model_of()
    widths = []
    with opened(model, max_rows=3) as answerer:
        hook = model.model.language_model.norm.register_forward_hook(
            lambda _, inputs, __: widths.append(inputs[0].shape[0])
        )
        replies = [asked(answerer, case, max_new_tokens=20) for case in (0, 1, 3, 4, 5, 7)]
        for reply in replies:
            assert reply.text is not None
            assert (reply.finish_reason, reply.new_tokens) == ("length", 20)
        hook.remove()
        assert max(widths) == 3
        # One at a time, six answers would take 6 · 19 steps after their first tokens.
        assert answerer.engine.stats.steps < 3 * 19


def test_a_second_question_about_an_image_reads_its_words_only():
    model = model_of()
    with opened(model) as answerer:
        asked(answerer, 0, max_new_tokens=4).text  # noqa: B018
        before = answerer.engine.stats.read_tokens
        reply = asked(answerer, 4, max_new_tokens=9)
        assert reply.text == alone(model, *QUESTIONS[4], 9)
        stats = answerer.engine.stats
        assert stats.images == 1
        slots = 1 + answerer.processor.image_tokens
        assert stats.read_tokens - before == reply.prompt_tokens - slots
        assert stats.reused_tokens == slots


@pytest.mark.parametrize(("form", "seq_length"), [("chatml", 2048), ("questions", 32), ("plain", 2048)])
def test_a_follow_up_reads_what_is_new_and_answers_as_if_all_was_read(form, seq_length):
    model = model_of(seq_length=seq_length)
    parts = [{"type": "image", "image": image(0)}, {"type": "image", "image": image(1)}]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "Which is older?"}]}]
    short = Decoding(max_new_tokens=6)
    with opened(model) as answerer, opened(model, cache_bytes=0) as forgetful:
        for question in ("Why?", "And the other one?", "Thanks"):
            first = answerer.chat(messages, short, form=form)
            assert first.text == forgetful.chat(messages, short, form=form).text
            messages.append({"role": "assistant", "content": first.text})
            messages.append({"role": "user", "content": question})
        assert answerer.engine.stats.images == 2
        before = answerer.engine.stats.read_tokens
        last = answerer.chat(messages, short, form=form)
        assert last.text == forgetful.chat(messages, short, form=form).text
        assert answerer.engine.stats.images == 2
        # At most an answer whose text is read as other tokens than were written, and the new question.
        if seq_length == 2048:
            assert answerer.engine.stats.read_tokens - before < 40 < last.prompt_tokens
        assert forgetful.engine.stats.reused_tokens == 0


def test_a_cancelled_request_leaves_at_once_wherever_it_is(end_never):
    model = model_of()
    with opened(model, max_rows=2) as answerer:
        kept, running = (asked(answerer, case, max_new_tokens=200) for case in (0, 1))
        waiting = asked(answerer, 3, max_new_tokens=200)
        next(running)
        steps = answerer.engine.stats.steps
        running.close()
        waiting.close()
        assert (running.finish_reason, waiting.finish_reason) == ("cancelled", "cancelled")
        asked(answerer, 4, max_new_tokens=200)  # a reply that nobody holds is cancelled
        with pytest.raises(StopIteration):
            next(running)
        asked(answerer, 5, max_new_tokens=2).text  # noqa: B018
        assert answerer.engine.stats.steps - steps < 50
        assert answerer.engine.running == 1
        kept.close()
        _until(lambda: answerer.engine.running == 0)
        assert answerer.engine.waiting == 0


def _until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_images_that_wait_go_through_the_vision_side_together(monkeypatch):
    model = model_of()
    held, encode = threading.Event(), model.get_image_features
    widths: list[int] = []

    def counted(pixels):
        widths.append(len(pixels))
        return held.wait(10) and encode(pixels)

    monkeypatch.setattr(model, "get_image_features", counted)
    with opened(model) as answerer:
        replies = [asked(answerer, 0, max_new_tokens=5)]
        _until(lambda: answerer.engine.running == 1)
        replies += [asked(answerer, case, max_new_tokens=5) for case in (1, 5, 6, 0)]
        held.set()
        assert [reply.text for reply in replies] == [alone(model, *QUESTIONS[case], 5) for case in (0, 1, 5, 6, 0)]
        assert widths == [1, 3]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("20 GiB"), RuntimeError("can't allocate memory: 20 GiB")])
def test_too_little_memory_for_one_image_leaves_the_others_alone(error, monkeypatch, end_never):
    model = model_of()
    encode = model.get_image_features
    (level,) = small_processor().image_processor([Image.new("RGB", (4, 3), "white")])["pixel_values"][:, 0, 0, 0]

    def limited(pixels):
        if bool((pixels[:, 0] == level).all(dim=2).all(dim=1).any()):
            raise error
        return encode(pixels)

    monkeypatch.setattr(model, "get_image_features", limited)
    with opened(model) as answerer:
        first = asked(answerer, 0, max_new_tokens=30)
        next(first)
        white = answerer.ask(Image.new("RGB", (4, 3), "white"), "What?", Decoding(max_new_tokens=5))
        other = asked(answerer, 1, max_new_tokens=5)
        with pytest.raises(MemoryError, match="memory of cpu does not suffice"):
            white.text  # noqa: B018
        assert [first.text, other.text] != ["", ""]
        assert (first.new_tokens, other.new_tokens) == (30, 5)
        assert asked(answerer, 5, max_new_tokens=5).new_tokens is not None


def test_too_little_memory_for_a_step_costs_one_request_and_no_other(monkeypatch):
    model = model_of()
    with opened(model) as answerer:
        decode = answerer.engine._decode

        def limited(rows):
            if len(rows) > 2:
                raise torch.OutOfMemoryError("20 GiB")
            return decode(rows)

        monkeypatch.setattr(answerer.engine, "_decode", limited)
        replies = [asked(answerer, case, max_new_tokens=12) for case in (0, 1, 4)]
        outcomes = []
        for case, reply in zip((0, 1, 4), replies, strict=True):
            try:
                outcomes.append(reply.text == alone(model, *QUESTIONS[case], 12))
            except MemoryError:
                outcomes.append(None)
        assert outcomes.count(True) >= 2
        assert False not in outcomes
        assert asked(answerer, 5, max_new_tokens=12).text == alone(model, *QUESTIONS[5], 12)


def test_who_shares_an_image_with_a_pass_that_fails_is_answered_by_the_next(monkeypatch):
    model = model_of()
    with opened(model) as answerer:
        engine = answerer.engine
        read, errors = engine._run_prefill, [MemoryError("20 GiB")]

        def fails_once(pieces):
            if len({row for row, _, _ in pieces}) == 2 and errors:
                raise errors.pop()
            return read(pieces)

        monkeypatch.setattr(engine, "_run_prefill", fails_once)
        held = threading.Event()
        engine.run_exclusive(held.wait)
        replies = [asked(answerer, case, max_new_tokens=8) for case in (0, 4)]
        held.set()
        assert [reply.text for reply in replies] == [alone(model, *QUESTIONS[case], 8) for case in (0, 4)]
        assert not errors
        assert engine.stats.reused_tokens == 1 + answerer.processor.image_tokens


def test_an_error_of_one_prompt_reaches_its_asker_alone(monkeypatch):
    model = model_of()
    with opened(model) as answerer:
        read = answerer.engine._run_prefill

        def broken(pieces):
            if any(len(row.request.images) == 3 for row, _, _ in pieces):
                raise RuntimeError("the kernel is broken")
            return read(pieces)

        monkeypatch.setattr(answerer.engine, "_run_prefill", broken)
        replies = [asked(answerer, case, max_new_tokens=8) for case in (0, 6, 1)]
        with pytest.raises(RuntimeError, match="the kernel is broken"):
            replies[1].text  # noqa: B018
        assert [replies[0].text, replies[2].text] == [alone(model, *QUESTIONS[case], 8) for case in (0, 1)]


def test_a_seed_gives_the_same_text_in_any_company_and_leaves_other_random_numbers_alone():
    model = model_of()
    sampled = {"max_new_tokens": 10, "temperature": 0.9}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with opened(model) as answerer:
        expected = asked(answerer, 0, seed=3, **sampled).text
        crowd = [asked(answerer, case, seed=seed, **sampled) for case, seed in ((0, 4), (1, 3), (0, 3), (4, None))]
        texts = [reply.text for reply in crowd]
        assert texts[2] == expected
        assert texts[0] != expected
        assert asked(answerer, 0, seed=3, top_p=1e-6, **sampled).text == alone(model, *QUESTIONS[0], 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_confidence_is_the_length_normalised_probability_of_the_answer():
    model = model_of()
    processor = small_processor()
    with opened(model) as answerer:
        reply = asked(answerer, 1, max_new_tokens=7, confidence=True)
        silent = asked(answerer, 1, max_new_tokens=7)
        assert reply.text == silent.text
        assert silent.confidence is None
    inputs = processor(images=[image(1)], text=f" {QUESTIONS[1][1]} Answer: ", inert_text=True)
    length = inputs["input_ids"].shape[1]
    generated = model.generate(**inputs, max_new_tokens=7, min_new_tokens=1, do_sample=False)
    with torch.no_grad():
        logits = model(input_ids=generated, pixel_values=inputs["pixel_values"]).logits[0, length - 1 : -1]
    chosen = logits.log_softmax(-1).gather(1, generated[0, length:, None])
    # The same numbers in another order of summation.
    assert reply.confidence == pytest.approx(float(chosen.mean().exp()), rel=1e-4)


def test_the_compiled_step_is_one_graph_and_writes_the_same_answers():
    model = model_of()
    with opened(model) as answerer:
        engine = answerer.engine
        engine._cache = KVCache(1, is_fixed=True)
        layers = engine._decoder.run_layers
        engine._decode_layers = torch.compile(layers, backend="eager", fullgraph=True, dynamic=False)
        replies = [asked(answerer, case, max_new_tokens=8) for case in (0, 1, 2, 3, 4)]
        assert [reply.text for reply in replies] == [alone(model, *QUESTIONS[case], 8) for case in range(5)]


def test_what_is_kept_is_bounded_and_the_oldest_goes_first():
    model = model_of()
    slots = 1 + small_processor().image_tokens
    of_an_image = 2 * slots * model.config.text_config.hidden_size * 4
    with opened(model, cache_bytes=2 * of_an_image + 1) as answerer:
        images = []
        for number in (0, 1, 2, 1, 0):
            answerer.ask(image(number), "What?", Decoding(max_new_tokens=2)).text  # noqa: B018
            assert answerer.engine._store.num_bytes <= 2 * of_an_image
            images.append(answerer.engine.stats.images)
        # Features are kept apart, within an eighth of it: for none of these images.
        assert images == [1, 2, 3, 3, 4]


@pytest.mark.parametrize("form", ["questions", "chatml"])
def test_a_given_answer_is_weighed_as_a_forward_pass_of_the_whole_weighs_it(form):
    model = model_of()
    processor = small_processor()
    with opened(model) as answerer:
        written = asked(answerer, 4, max_new_tokens=6).text
        cases = [(case, answer) for case in range(len(QUESTIONS)) for answer in ("yes", "three of them", "yes, it is")]
        cases.append((4, written))
        weighed = []
        for case, answer in cases:
            numbers, question = QUESTIONS[case]
            parts = [{"type": "image", "image": image(number)} for number in numbers]
            message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
            weighed.append((message, answerer.weigh([message], answer, form=form)))
        for (message, reply), (_, answer) in zip(weighed, cases, strict=True):
            assert reply.text == answer.strip()
            whole = Conversation.from_messages([message, {"role": "assistant", "content": answer}])
            ids, labels, images = processor.encode(whole, form, labels=True)
            pixels = {"pixel_values": processor.image_processor(images)["pixel_values"]} if images else {}
            targets = torch.tensor([labels[1:]])
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), **pixels).logits[:, :-1].log_softmax(dim=-1)
            supervised = targets >= 0
            own = logits.gather(2, targets.clamp(min=0)[..., None])[..., 0][supervised]
            assert reply.log_probability == pytest.approx(float(own.sum()), rel=1e-4)
            assert reply.is_greedy == bool((logits.argmax(dim=-1) == targets)[supervised].all())
        assert answerer.engine.stats.images == 4
