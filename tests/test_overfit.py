"""The self-test: what was trained on comes back word for word, and what was not is told in one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from monkey.adapters import add_decoder_lora
from monkey.conversation import Conversation
from monkey.data.records import Record
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.training.finetune import overfit_report, supervised_spans, without_dropout
from tests.conftest import random_model
from tests.small_processor import EOD, refusal, small_config, small_processor

STEPS = 100


def _record(source: str, images: list[Path], *texts: str) -> Record:
    turns = [{"role": "assistant" if number % 2 else "user", "text": text} for number, text in enumerate(texts)]
    return Record(Conversation.from_turns(turns, images), source)


def _texts(record: Record) -> list[str]:
    return [message.text for message in record.conversation.messages]


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[Record]:
    """Two turns about one picture, the same question about another, two pictures in two turns, and none."""
    folder = tmp_path_factory.mktemp("pictures")
    red, blue = folder / "red.png", folder / "blue.png"
    Image.new("RGB", (40, 30), "red").save(red)
    Image.new("RGB", (40, 30), "blue").save(blue)
    return [
        _record("a.json[0]", [red], "<img></img> What colour? Answer: ", "red", " And again? Answer: ", "still red"),
        _record("a.json[1]", [blue], "<img></img> What colour? Answer: ", "blue"),
        _record("a.json[2]", [blue, red], "<img></img> One? ", "first", "<img></img> Two? ", "second"),
        _record("a.json[3]", [], "Say yes. ", "yes"),
    ]


def _trained(records: list[Record], steps: int) -> MonkeyForConditionalGeneration:
    processor = small_processor()
    model = random_model(small_config())
    without_dropout(model)
    samples = [
        processor.encode_conversation(
            [{"role": turn.role, "text": turn.text} for turn in record.conversation.messages], record.images
        )
        for record in records
    ]
    batch = processor.collate(samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def trained(records) -> MonkeyForConditionalGeneration:
    return _trained(records, STEPS)


def test_records_that_were_learnt_by_heart_are_reproduced(records, trained):
    report = overfit_report(trained, small_processor(), records)
    assert (report.reproduced, report.total, report.misses) == (4, 4, ())
    report.check()
    assert str(report) == "overfit: 4 of 4 records reproduced"
    assert trained.training


def test_every_turn_is_asked_after_the_true_history_and_its_pictures(records, trained):
    """Swapped pictures change the answers that depend on them, and no others."""
    one, other = records[0].images[0], records[1].images[0]
    swapped = [_record(r.source, [other if path == one else one for path in r.images], *_texts(r)) for r in records]
    report = overfit_report(trained, small_processor(), swapped)
    assert {(miss.source, miss.turn, miss.generated) for miss in report.misses} >= {
        ("a.json[0]", 1, "blue"), ("a.json[1]", 1, "red")
    }  # fmt: skip
    assert "a.json[3]" not in {miss.source for miss in report.misses}


def test_an_untrained_model_fails_with_the_counts_and_the_first_miss(records):
    report = overfit_report(random_model(small_config()), small_processor(), records)
    assert report.reproduced == 0
    assert {(miss.source, miss.turn) for miss in report.misses} == {
        ("a.json[0]", 1), ("a.json[0]", 3), ("a.json[1]", 1), ("a.json[2]", 1), ("a.json[2]", 3), ("a.json[3]", 1)
    }  # fmt: skip
    message = refusal(report.check)
    assert message.startswith("--overfit 4: only 0 of 4 records were reproduced after training on them alone")
    assert "a.json[0], turn 1: expected 'red', got " in message
    assert str(report).count("\n") == 6


def test_an_answer_that_goes_on_past_the_reference_is_a_miss(records, trained):
    begun = _record("b.json[1]", [], "Say yes. ", "y")
    (miss,) = overfit_report(trained, small_processor(), [begun]).misses
    assert not miss.ended
    assert str(miss).endswith("without an end")


def test_supervised_spans_are_the_answers_with_their_end(records):
    processor = small_processor()
    turns = [{"role": turn.role, "text": turn.text} for turn in records[2].conversation.messages]
    sample = processor.encode_conversation(turns, list(records[2].images))
    spans = supervised_spans(sample["labels"])
    answers = [sample["input_ids"][start:stop] for start, stop in spans]
    assert answers == [[*processor.tokenizer.encode_text(text), EOD] for text in ("first", "second")]
    assert supervised_spans([1, 1, -100, 2]) == [(0, 2), (3, 4)]
    assert supervised_spans([-100]) == []


def test_without_dropout_a_training_step_is_a_function_of_its_batch(records):
    config = small_config(adapter_rank=4, adapter_dropout=0.3, attention_dropout=0.3)
    config.vision_config.resampler_dropout = 0.3
    model = add_decoder_lora(random_model(config), SimpleNamespace(lora_r=4, lora_alpha=4, lora_dropout=0.3))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    processor = small_processor()
    turns = [{"role": turn.role, "text": turn.text} for turn in records[0].conversation.messages]
    batch = processor.collate([processor.encode_conversation(turns, list(records[0].images))])
    model.train()
    with torch.no_grad():
        losses = {model(**batch, use_cache=False).loss.item() for _ in range(2)}
        assert len(losses) == 2
        without_dropout(model)
        assert len({model(**batch, use_cache=False).loss.item() for _ in range(2)}) == 1
    assert model.config.text_config.attention_dropout == 0.3
