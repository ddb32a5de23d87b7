"""The demo's conversation: what models are told of it, and what people take along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[demo]'")

from monkey.checkpoint_card import CheckpointCard
from monkey.conversation import Conversation, write
from monkey.data.documents.sets import DOCUMENTS
from monkey.decoding import FOR_ANSWERS
from monkey.prompts import DESCRIPTION_PROMPTS
from monkey.serving.demo.chinese import CHINESE
from monkey.serving.demo.conversation import Answer, begun, last_alone, last_pictures, messages_for, settled, stopped
from monkey.serving.demo.english import ENGLISH
from monkey.serving.demo.examples import examples
from monkey.serving.demo.pictures import KeptPicture
from monkey.serving.demo.transcript import as_json, as_markdown

PROMPTS = CheckpointCard().description_prompts
DOG = KeptPicture("dog.png", Path("a.original"), Path("a.png"), (400, 200))
CAT = KeptPicture("cat.png", Path("b.original"), Path("b.png"), (10, 10))


def _answered(conversation, *texts: str):
    *rest, last = conversation
    for place, text in enumerate(texts):
        last = last.with_answer(place, Answer(text, is_finished=True, prompt_tokens=30, new_tokens=2))
    return (*rest, last)


@pytest.fixture
def conversation():
    """Two models, two exchanges."""
    first = _answered(begun((), "What?", [DOG], FOR_ANSWERS, 2), "a dog", "<ref>dog</ref><box>(0,0),(500,1000)</box>")
    return _answered(begun(first, "# And\n<b>now</b>?", [CAT], FOR_ANSWERS, 2), "a cat", "")


def test_each_model_is_told_its_own_answers(conversation):
    asked = begun(conversation, "Last?", [], FOR_ANSWERS, 2)
    first, second = (messages_for(asked, place, "questions") for place in (0, 1))
    assert [message["role"] for message in first] == ["user", "assistant"] * 2 + ["user"]
    assert [message["content"] for message in first[1::2]] == ["a dog", "a cat"]
    assert [message["content"] for message in second[1::2]] == ["<ref>dog</ref><box>(0,0),(500,1000)</box>", ""]
    assert first[0]["content"] == [{"type": "image", "image": DOG.file}, {"type": "text", "text": "What?"}]
    assert first[4]["content"] == [{"type": "text", "text": "Last?"}]


@pytest.mark.parametrize(("prompt", "written"), zip(PROMPTS, ("{}", *["{}Answer: "] * 5), strict=True))
def test_published_prompts_reach_the_model_to_the_byte(prompt, written):
    messages = messages_for(begun((), prompt, [DOG], FOR_ANSWERS, 1, is_description=True), 0, "questions")
    (segments,) = write(Conversation.from_messages(messages), "questions")
    assert "".join(segment.text for segment in segments) == "<img></img>" + written.format(f" {prompt} ")
    assert PROMPTS[1:] == DESCRIPTION_PROMPTS


def test_the_last_question_alone_is_about_the_pictures_that_were_shown_last(conversation):
    asked = begun(conversation, "Last?", [], FOR_ANSWERS, 2)
    assert last_pictures(asked) == (CAT,)
    (alone,) = last_alone(asked)
    assert (alone.asked, alone.pictures) == ("Last?", (CAT,))
    assert last_pictures(()) == ()


def test_what_came_to_nothing_is_dropped_and_what_was_stopped_is_marked(conversation):
    asked = begun(conversation, "Last?", [], FOR_ANSWERS, 2)
    assert settled(asked) == conversation
    begun_answer = (*conversation, asked[-1].with_answer(0, Answer("half an")))
    assert [answer.text for answer in settled(begun_answer)[-1].answers] == ["half an", ""]
    assert all(answer.is_finished for answer in settled(begun_answer)[-1].answers)
    assert [answer.is_stopped for answer in stopped(begun_answer)[-1].answers] == [True, True]
    assert not any(answer.is_stopped for exchange in stopped(conversation) for answer in exchange.answers)


def test_json_has_everything_and_boxes_in_pixels(conversation):
    models = [{"name": "A", "grid": [2, 2]}, {"name": "B", "grid": [1, 1]}]
    content = json.loads(as_json(conversation, models))
    assert content["models"] == models
    first, second = content["exchanges"]
    assert first["pictures"] == [{"name": "dog.png", "width": 400, "height": 200}]
    assert first["decoding"] == {"max_new_tokens": 512, "temperature": 0.0, "top_p": 1.0, "seed": None}
    assert [answer["text"] for answer in first["answers"]] == ["a dog", "<ref>dog</ref><box>(0,0),(500,1000)</box>"]
    assert first["answers"][1]["boxes"] == [{"label": "dog", "pixels": [0, 0, 200, 200]}]
    assert (first["answers"][0]["prompt_tokens"], first["answers"][0]["new_tokens"]) == (30, 2)
    assert second["question"] == "# And\n<b>now</b>?"


def test_markdown_quotes_what_people_and_models_wrote(conversation):
    text = as_markdown(conversation, ["A", "B"], ENGLISH)
    assert "*Picture: dog.png, 400×200*" in text
    assert "> # And\n> <b>now</b>?" in text
    assert "**Answer (B)**\n\n> dog" in text
    assert text.count("\n# ") == 0
    assert "**问题**" in as_markdown(conversation, ["A", "B"], CHINESE)


def test_examples_are_the_projects_own_pictures_with_a_question_each(tmp_path):
    found = examples()
    assert {example.name for example in found} == set(DOCUMENTS)
    assert all(example.picture.is_file() and example.question.endswith("?") for example in found)
    assert all("heldout" in example.picture.parts for example in found)
    assert examples(tmp_path) == ()
