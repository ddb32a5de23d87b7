"""Training conversations: published ids and labels, what is supervised, batches."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from monkey.processing import UNSUPERVISED, MonkeyProcessor, TooLong
from tests.small_processor import (
    CHECKPOINT,
    END,
    EOD,
    FIRST_SPECIAL,
    GOLDEN,
    IM_START,
    PAD,
    START,
    levels,
    picture,
    plain,
    refusal,
    small_processor,
    span,
)

CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
FIGURES = load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module")
def published():
    return MonkeyProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def processor():
    return small_processor()


def test_conversation_has_the_published_ids_and_labels(published):
    turns = [{"role": turn["from"], "text": turn["value"]} for turn in CASES["train"]["conversation"]]
    sample = published.encode_conversation(turns, [GOLDEN / "images" / "receipt.png"])
    assert sample["input_ids"] == FIGURES["train.input_ids"][0].tolist()
    assert sample["labels"] == FIGURES["train.labels"][0].tolist()
    assert sample["pixel_values"].shape == (1, 3, 896, 896)


def test_supervised_are_exactly_the_answers_and_one_end_of_text_each(processor):
    turns = [
        {"role": "user", "text": "a<img></img> b"},
        {"role": "assistant", "text": " one two"},
        {"role": "user", "text": "c"},
        {"role": "assistant", "text": "three"},
    ]
    sample = processor.encode_conversation(turns, [picture()])
    supervised = [label for label in sample["labels"] if label != UNSUPERVISED]
    assert supervised == [*plain(processor, " one two"), EOD, *plain(processor, "three"), EOD]
    for token_id, label in zip(sample["input_ids"], sample["labels"], strict=True):
        assert label in (UNSUPERVISED, token_id)
    prompt = [*plain(processor, "a"), *span(processor), *plain(processor, " b")]
    assert sample["input_ids"][: len(prompt)] == prompt


def test_training_and_prompting_agree_on_the_ids(processor):
    text, answer = "<img></img> What? Answer: ", "yes"
    sample = processor.encode_conversation(
        [{"role": "user", "text": text}, {"role": "assistant", "text": answer}], picture()
    )
    prompt = processor(text=text, images=picture())
    assert sample["input_ids"] == [*prompt["input_ids"][0].tolist(), *plain(processor, answer), EOD]
    assert torch.equal(sample["pixel_values"], prompt["pixel_values"])


def test_conversation_without_place_has_its_images_first_and_without_image_no_pixels(processor):
    turns = [{"role": "user", "text": "a"}, {"role": "assistant", "text": "b"}]
    with_image = processor.encode_conversation(turns, [picture()])
    assert with_image["input_ids"][: processor.image_tokens + 2] == span(processor)
    assert with_image["labels"][: processor.image_tokens + 3] == [UNSUPERVISED] * (processor.image_tokens + 3)
    assert set(processor.encode_conversation(turns)) == {"input_ids", "labels"}


def test_inert_conversation_has_no_special_id_but_its_ends(processor):
    turns = [{"role": "user", "text": "<img>x</img><|im_end|>"}, {"role": "assistant", "text": "<|endoftext|></img>"}]
    ids = processor.encode_conversation(turns, [picture()], inert_text=True)["input_ids"]
    assert [token_id for token_id in ids if token_id >= FIRST_SPECIAL and token_id != PAD] == [START, END, EOD]


USER, ANSWER = {"role": "user", "text": "a"}, {"role": "assistant", "text": "b"}


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        ([], None, "the conversation has no turn"),
        ([USER], None, "the conversation ends with the user's turn 1; an answer must follow"),
        ([USER, ANSWER, USER], None, "the conversation ends with the user's turn 3"),
        ([ANSWER], None, "turn 1 is the assistant's where the user's follows"),
        ([USER, USER], None, "turn 2 is the user's where the assistant's follows"),
        ([{"role": "system", "text": "x"}, ANSWER], None, "turn 1 is the system's where the user's follows"),
        ([USER, {"role": "assistant", "text": ""}], None, "turn 2, the assistant's, is empty"),
        ([USER, {"role": "assistant", "text": " \n"}], None, "turn 2, the assistant's, is empty"),
        ([USER, {"role": "assistant", "text": None}], None, "turn 2 is not of the form"),
        ([{"from": "user", "value": "x"}, ANSWER], None, "turn 1 is not of the form"),
        ([{"role": "user", "text": "a<img>"}, ANSWER], None, "turn 1: the text has <img> at character 1 and no </img>"),
        (
            [USER, {"role": "assistant", "text": "<img></img>"}],
            [picture()],
            "turn 2 is the assistant's and has a place",
        ),
        ([{"role": "user", "text": "<img></img>"}, ANSWER], None, "0 images for 1 place"),
        ([{"role": "user", "text": "<img></img>"}, ANSWER], [picture()] * 2, "2 images for 1 place"),
    ],
)
def test_bad_conversations_are_refused_in_a_sentence(processor, turns, images, message):
    assert refusal(lambda: processor.encode_conversation(turns, images)).startswith(message)


def test_long_conversations_are_refused_or_cut_at_the_end(processor):
    turns = [USER, {"role": "assistant", "text": "one two three four five six seven"}]
    whole = processor.encode_conversation(turns, [picture()])
    length = len(whole["input_ids"])
    message = refusal(lambda: processor.encode_conversation(turns, [picture()], max_length=length - 1), TooLong)
    assert message.startswith(f"the conversation is {length} tokens long with its 1 image of 10, more than")
    cut = processor.encode_conversation(turns, [picture()], max_length=length - 3, truncation=True)
    assert cut["input_ids"] == whole["input_ids"][:-3]
    assert cut["labels"] == whole["labels"][:-3]
    message = refusal(lambda: processor.encode_conversation(turns, [picture()], max_length=11, truncation=True))
    assert message == "no token of an answer is left when the conversation is cut to 11 tokens"


@pytest.mark.parametrize("side", ["right", "left"])
def test_collate_pads_to_the_longest_and_attends_the_supervised_end_of_text(processor, side):
    short = processor.encode_conversation([USER, ANSWER])
    long = processor.encode_conversation(
        [{"role": "user", "text": "<img></img><img></img>x"}, ANSWER], [picture(1), picture(2)]
    )
    batch = processor.collate([short, long, short], padding_side=side)
    length = len(long["input_ids"])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert {name: tuple(value.shape) for name, value in batch.items() if name != "pixel_values"} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), (3, length)
    )
    assert levels(batch, processor) == [1, 2]
    assert batch["attention_mask"].sum(1).tolist() == [3, length, 3]
    own = batch["attention_mask"][0].bool()
    assert batch["input_ids"][0, own].tolist() == short["input_ids"]
    assert batch["labels"][0, own].tolist() == short["labels"]
    assert batch["labels"][0, own].tolist()[-1] == EOD
    assert (batch["labels"][0, ~own] == UNSUPERVISED).all()
    assert (batch["input_ids"][0, ~own] == EOD).all()


def test_collate_without_images_or_labels(processor):
    batch = processor.collate([{"input_ids": [1, 2]}, {"input_ids": [3]}])
    assert set(batch) == {"input_ids", "attention_mask"}
    assert refusal(lambda: processor.collate([])) == "the batch is empty"


def test_answers_are_what_follows_the_prompt_without_specials(processor):
    answer = plain(processor, " 42.50 €\n")
    generated = torch.tensor([[1, 2, *answer, EOD, EOD], [1, 2, IM_START, *answer, EOD]])
    assert processor.decode_answers(generated, prompt_length=2) == ["42.50 €", "42.50 €"]
