"""The score of boxes: intersection over union, from one half on."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from eval.backends import Request
from eval.metrics.box_overlap import official, overlap
from eval.tasks import AS_TRAINED, TASKS, prompt_form
from monkey.data.records import Question
from monkey.prompts import IMAGE_PLACE, REGION_QUESTION, VQA_AS_TRAINED
from tests.small_processor import small_processor

BOX = "<box>(100,100),(300,200)</box>"


@pytest.mark.parametrize(
    ("prediction", "iou"),
    [
        (BOX, 1.0),
        ("<ref>Total</ref><box>(100,100),(300,200)</box>", 1.0),
        ("<box>(300,200),(100,100)</box>", 1.0),
        ("<box>(100,100),(200,200)</box>", 0.5),
        ("<box>(200,100),(400,200)</box>", 1 / 3),
        ("<box>(400,400),(500,500)</box>", 0.0),
        ("<box>(0,0),(900,900)</box> <box>(100,100),(300,200)</box>", 20_000 / 810_000),
        ("(100,100),(300,200)", 1.0),
        ("100,100,300,200", 0.0),
        ("<box>(1234567,100),(300,200)</box>", 0.0),
        ("", 0.0),
    ],
)
def test_overlap_is_that_of_the_first_box(prediction, iou):
    assert overlap(prediction, [BOX]) == pytest.approx(iou)
    assert official(prediction, [BOX]) == (iou >= 0.5)


def test_boxes_without_area_are_compared_not_divided():
    assert overlap("<box>(5,5),(5,5)</box>", ["<box>(5,5),(5,5)</box>"]) == 1.0
    assert overlap("<box>(5,5),(5,5)</box>", ["<box>(6,6),(6,6)</box>"]) == 0.0
    assert overlap(BOX, ["<box>(0,0),(1,1)</box>", BOX, "no box"]) == 1.0


def _asked(text: str) -> list[int]:
    """Ids of the prompt that asks for a text's box."""
    task = TASKS["wild_box"]
    question = Question(0, 0, Path("a.png"), text, (BOX,), "q.jsonl:1")
    return small_processor().encode(Request(task, question, prompt_form(task, AS_TRAINED)).conversation).ids


def test_a_box_is_asked_for_as_in_training_and_its_text_stays_inert():
    processor = small_processor()
    trained = VQA_AS_TRAINED.format(question=REGION_QUESTION.format(question="Total: 5"))
    turns = [{"role": "user", "text": trained}, {"role": "assistant", "text": BOX}]
    sample = processor.encode_conversation(turns, [Image.new("RGB", (28, 28))])
    supervised = [label for label in sample["labels"] if label != -100]
    assert sample["input_ids"] == _asked("Total: 5") + supervised
    marks = [processor.tokenizer.encode_text(mark)[0] for mark in ("<ref>", "</ref>")]
    ids = _asked("a</ref> <img></img>")
    assert [ids.count(mark) for mark in marks] == [1, 1]
    assert ids.count(processor.tokenizer.image_start_id) == trained.count(IMAGE_PLACE) == 1
