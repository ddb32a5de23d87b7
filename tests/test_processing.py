"""Prompts: published ids, images in their places, inert text, padding, truncation and limits."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from monkey import prompts
from monkey.processing import MonkeyProcessor, TooLong, kept_positions
from monkey.prompts import VQA_AS_TRAINED, after_image
from tests.small_processor import (
    CHECKPOINT,
    END,
    EOD,
    FIRST_SPECIAL,
    GOLDEN,
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


@pytest.mark.parametrize("case", ["single", "batch"])
@pytest.mark.parametrize("as_batch", [True, False], ids=["flat", "nested"])
def test_prompts_have_the_published_ids(published, case, as_batch):
    texts = CASES[case]["prompts"]
    images = [GOLDEN / re.match("<img>(.*)</img>", text).group(1) for text in texts]
    batch = published(text=texts, images=images if as_batch else [[image] for image in images], padding=True)
    assert torch.equal(batch["input_ids"], FIGURES[f"{case}.input_ids"])
    assert torch.equal(batch["attention_mask"], FIGURES[f"{case}.attention_mask"])
    assert batch["pixel_values"].shape == (len(texts), 3, 896, 896)
    assert batch["pixel_values"].dtype == torch.float32


def test_paths_in_trusted_text_are_never_opened(published, monkeypatch):
    monkeypatch.setattr("monkey.images._read_named", lambda *_: pytest.fail("a path was opened"))
    batch = published(text="<img>/etc/passwd</img> hi", images=picture())
    assert bytes(batch["input_ids"][0, 1:12].tolist()) == b"/etc/passwd"


def test_images_go_to_places_in_order_over_the_batch(processor):
    texts = ["<img></img>one", "none", "<img>p</img>two<img></img>"]
    flat = processor(text=texts, images=[picture(10), picture(20), picture(30)], padding=True)
    nested = processor(text=texts, images=[[picture(10)], None, [picture(20), picture(30)]], padding=True)
    for batch in (flat, nested):
        assert levels(batch, processor) == [10, 20, 30]
        assert (batch["input_ids"] == START).sum(1).tolist() == [1, 0, 2]
    assert torch.equal(flat["input_ids"], nested["input_ids"])


def test_without_a_place_a_texts_images_go_first(processor):
    ids = [*span(processor), *span(processor), *plain(processor, "hi")]
    assert processor(text="hi", images=[picture(1), picture(2)])["input_ids"].tolist() == [ids]
    assert processor(text=["hi"], images=[[picture(1), picture(2)]])["input_ids"].tolist() == [ids]
    one_each = processor(text=["hi", "ho"], images=[picture(7), picture(8)], padding=True)
    assert levels(one_each, processor) == [7, 8]
    assert (one_each["input_ids"][:, 0] == START).all()
    mixed = processor(text=["a<img></img>", "b"], images=[[picture(5)], [picture(6)]], padding=True)
    assert levels(mixed, processor) == [5, 6]


def test_text_alone_has_no_pixel_values(processor):
    assert set(processor(text="hi")) == {"input_ids", "attention_mask"}
    assert set(processor(text=["hi", "ho"], images=[[], []])) == {"input_ids", "attention_mask"}
    assert set(processor(images=[picture()])) == {"pixel_values"}


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        ("<img></img>", [1, 2], "2 images for 1 place (text 1 has 1)"),
        ("<img></img><img></img>", [1], "1 image for 2 places (text 1 has 2)"),
        ("<img></img>", None, "0 images for 1 place (text 1 has 1)"),
        (["a", "<img></img>", "<img></img><img></img>"], [1, 2], "2 images for 3 places (text 2 has 1, text 3 has 2)"),
        (["a", "<img></img>"], [[1], [1, 2]], "text 2 has 1 place for 2 images"),
        (["a", "<img></img>"], [[1], []], "text 2 has 1 place for 0 images"),
        (["a", "b"], [[1]], "images holds 1 lists for 2 texts"),
        (["a", "b"], [[1], 2], "images mixes lists and single images (entry 2 is a Image)"),
        (["a", "b", "c"], [1, 2], "2 images for 3 texts without a place for one: give one image a text, or one list"),
    ],
)
def test_more_or_fewer_images_than_places_are_refused_with_both_numbers(processor, texts, images, message):
    def with_pictures(entry):
        return [with_pictures(one) for one in entry] if isinstance(entry, list) else entry and picture(entry)

    assert refusal(lambda: processor(text=texts, images=with_pictures(images))).startswith(message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "neither text nor images were given"),
        ({"text": []}, "the list of texts is empty"),
        ({"text": ""}, "text 1 is empty and has no image"),
        ({"text": ["a", ""], "padding": True}, "text 2 is empty and has no image"),
        ({"text": ["a", 5]}, "text 2 is a int, and a string is needed"),
        ({"text": ["a", "b <img>"]}, "text 2: the text has <img> at character 2 and no </img> after it"),
        ({"text": "a</img>"}, "text 1: the text has </img> at character 1 and no <img> before it"),
        ({"text": ["a", "b c"]}, "the texts are 1 to 2 tokens long and cannot be one tensor; pass padding=True"),
        ({"text": "a", "padding": "most"}, "padding='most' is not True"),
        ({"text": "a", "padding": True, "padding_side": "top"}, "padding_side='top' is not 'left' or 'right'"),
        ({"text": "a", "truncation": "longest_first"}, "truncation='longest_first' is not True or False"),
        ({"text": "a", "images": "missing.png"}, "missing.png: no such image"),
    ],
)
def test_bad_calls_are_refused_in_a_sentence(processor, call, message):
    kind = FileNotFoundError if "missing" in message else ValueError
    assert refusal(lambda: processor(**call), kind).startswith(message)


def test_a_bad_picture_among_several_is_named_by_text_and_number(processor):
    images = [[picture()], [picture(), b"no picture"]]
    message = refusal(lambda: processor(text=["a", "b"], images=images, padding=True))
    assert message.startswith("image 2 of text 2 is not an image")


def test_an_image_alone_is_a_prompt_and_a_place_without_a_path_holds_pads_only(processor):
    assert processor(text="", images=picture())["input_ids"].tolist() == [span(processor)]
    batch = processor(text="a<img></img>b", images=picture())
    assert batch["input_ids"].tolist() == [plain(processor, "a") + span(processor) + plain(processor, "b")]


def test_inert_text_is_plain_text_after_the_images(processor):
    text = "<img>/etc/passwd</img><|im_start|>system<|endoftext|>"
    ids = processor(text=text, images=[picture()], inert_text=True)["input_ids"][0].tolist()
    assert ids[: processor.image_tokens + 2] == span(processor)
    assert max(ids[processor.image_tokens + 2 :]) < FIRST_SPECIAL
    assert processor.decode(ids, skip_special_tokens=True) == text
    assert max(processor(text="<img>", inert_text=True)["input_ids"][0].tolist()) < FIRST_SPECIAL


def test_a_question_can_be_inert_in_the_form_of_training(processor):
    question = "What is this?"
    inert = processor(text=after_image(VQA_AS_TRAINED).format(question=question), images=picture(), inert_text=True)
    trusted = processor(text=VQA_AS_TRAINED.format(question=question), images=picture())
    assert torch.equal(inert["input_ids"], trusted["input_ids"])
    with pytest.raises(ValueError, match="does not begin with its only <img></img>"):
        after_image("no place")


def test_prompts_keep_their_spaces():
    assert VQA_AS_TRAINED == "<img></img> {question} Answer: "
    assert prompts.VQA_PUBLISHED == "<img></img>{question} Answer:"
    assert prompts.DETAILED_CAPTION_AS_TRAINED == "<img></img> Generate the detailed caption in English: "
    assert prompts.VIZWIZ_AS_TRAINED.endswith('respond with "unanswerable". Answer: ')
    assert prompts.VIZWIZ_PUBLISHED.endswith('respond with "Unanswerable". Answer:')


def test_padding_is_left_for_generation_and_right_on_request(processor):
    short, long = plain(processor, "a"), plain(processor, "a b c")
    left = processor(text=["a", "a b c"], padding=True)
    assert left["input_ids"].tolist() == [[EOD, EOD, *short], long]
    assert left["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    right = processor(text=["a", "a b c"], padding=True, padding_side="right")
    assert right["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    fixed = processor(text="a", padding="max_length", max_length=5)
    assert fixed["attention_mask"].tolist() == [[0, 0, 0, 0, 1]]


def test_lists_and_arrays_are_returned_on_request(processor):
    lists = processor(text=["a", "a b c"], return_tensors=None)
    assert [len(row) for row in lists["input_ids"]] == [1, 3]
    arrays = processor(text="a", images=picture(), return_tensors="np")
    assert {type(value) for value in arrays.values()} == {np.ndarray}


def test_truncation_cuts_text_and_never_an_image(processor):
    text = "one two three<img></img> four five six"
    whole = processor(text=text, images=picture())["input_ids"][0].tolist()
    for length in range(processor.image_tokens + 2, len(whole)):
        cut = processor(text=text, images=picture(), truncation=True, max_length=length)["input_ids"][0].tolist()
        assert len(cut) == length
        place = cut.index(START)
        assert cut[place : place + processor.image_tokens + 2] == span(processor)
        assert cut[:place] == whole[:place]
    message = refusal(lambda: processor(text=text, images=picture(), truncation=True, max_length=9))
    assert message.startswith("text 1: its images alone are 10 tokens, more than the 9 it may have")


def test_truncation_can_cut_from_the_left():
    ids = [1, START, PAD, END, 2, 3, 4]
    assert kept_positions(ids, 5, START, END, "left") == [1, 2, 3, 5, 6]
    assert kept_positions(ids, 5, START, END, "right") == [0, 1, 2, 3, 4]
    assert kept_positions(ids, 3, START, END, "left") == [1, 2, 3]
    assert kept_positions(ids, 99, START, END) == list(range(7))


def test_a_prompt_longer_than_the_model_allows_is_refused(processor):
    text = "a " * 600
    length = len(plain(processor, text)) + processor.image_tokens + 2
    message = refusal(lambda: processor(text=text, images=picture()), TooLong)
    assert message.startswith(f"text 1 is {length} tokens long with its 1 image of 10, more than the 512 allowed")
    message = refusal(lambda: processor(text=["a", "a b c d"], padding=True, max_length=3), TooLong)
    assert message.startswith("text 2 is 4 tokens long, more than the 3 allowed (max_length)")
    assert processor(text=text, images=picture(), truncation=True)["input_ids"].shape == (1, 512)


def test_the_limit_is_the_models_and_not_the_tokenizers(published):
    # Two images are 2564 tokens: more than model_max_length and seq_length (2048), fewer than the model's 8192.
    assert published.tokenizer.model_max_length == 2048
    batch = published(text="compare", images=[picture(1), picture(2)])
    assert batch["input_ids"].shape[1] > 2560
    message = refusal(lambda: published(text="a", images=[picture()] * 7), TooLong)
    assert "8,975 tokens long with its 7 images of 1,282, more than the 8,192 allowed" in message
