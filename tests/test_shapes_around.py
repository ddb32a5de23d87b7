"""Images of any shape, around the model: their boxes, maps, flags, plans and drawn documents."""

from __future__ import annotations

import json
import math
import random

import pytest
from PIL import Image

from monkey.boxes import WHOLE, BoxStream, located, to_canvas, to_image
from monkey.conversation import Conversation, Message, Text
from monkey.conversation import Image as ImagePart
from monkey.data.documents.sets import Settings, draw, write_set
from monkey.reply import Detokenizer
from tests.small_processor import small_processor

HALF_WIDTH, QUARTER_HEIGHT = (0.5, 1.0), (1.0, 0.25)


def asked(text: str, images: int = 1) -> Conversation:
    """A question as people write it, behind its images."""
    return Conversation.from_question([f"{number}.png" for number in range(images)], text)


def texts(conversation: Conversation) -> list[str]:
    return [message.text for message in conversation.messages]


class TestBoxesOnTheCanvas:
    def test_only_the_numbers_of_complete_boxes_change(self):
        question = (
            "At <box>(520,40),( 790,211)</box>, (500,500) or <box>(1,2)</box>? <quad>(9,2),(3,4),(5,6),(7,1)</quad>"
        )
        moved = texts(to_canvas(asked(question), [HALF_WIDTH]))[0].removeprefix("<img></img>")
        kept = "At <box>(260,40),( 395,211)</box>, (500,500) or <box>(1,2)</box>? <quad>(4,2),(2,4),(2,6),(4,1)</quad>"
        assert moved == kept

    def test_a_box_is_of_the_image_that_stands_last_before_it(self):
        parts = [
            Text("<box>(100,100),(200,200)</box>", True),
            ImagePart("b"),
            Text("<box>(100,100),(200,200)</box>", True),
        ]
        turns = (Message("user", (ImagePart("a"), *parts)), Message("assistant", (parts[0],)))
        question, answer = texts(to_canvas(Conversation(turns), [HALF_WIDTH, QUARTER_HEIGHT]))
        assert question == "<img></img><box>(50,100),(100,200)</box><img></img><box>(100,25),(200,50)</box>"
        assert answer == "<box>(100,25),(200,50)</box>"

    def test_a_box_may_begin_in_a_question_and_end_in_the_answer(self):
        turns = [
            {"role": "user", "text": "<img></img> Where is <ref>it</ref>? <box>"},
            {"role": "assistant", "text": "(100,100),(200,2000)</box>"},
        ]
        moved = to_canvas(Conversation.from_turns(turns, ["a.png"]), [(0.5, 0.25)])
        assert texts(moved)[1] == "(50,25),(100,500)</box>"

    def test_characters_that_are_no_markers_to_the_model_move_nothing(self):
        inert = Conversation.from_turns([{"role": "user", "text": "<box>(1,2),(3,4)</box>"}], ["a.png"], trusted=False)
        assert texts(to_canvas(inert, [HALF_WIDTH])) == texts(inert)

    def test_a_stretched_image_changes_nothing(self):
        conversation = asked("<box>(-5,4),(1200,999999)</box>")
        assert to_canvas(conversation, [WHOLE]) is conversation
        assert to_image("<box>(-5,4),(1200,999999)</box>", WHOLE) == "<box>(-5,4),(1200,999999)</box>"

    @pytest.mark.parametrize("share", [(0.3, 1.0), (1.0, 0.013), (0.77, 0.5)])
    def test_what_the_model_wrote_comes_back_to_it_as_it_was(self, share):
        chance = random.Random(0)
        for _ in range(300):
            inside = [chance.randint(0, math.floor(1000 * share[number % 2])) for number in range(4)]
            written = "<ref>a</ref><box>({},{}),({},{})</box>.".format(*inside)
            read = to_image(written, share)
            assert all(0 <= value <= 1000 for box in located(read) for value in box.box)
            assert texts(to_canvas(asked(read), [share])) == [f"<img></img>{written}"]

    def test_what_lies_in_the_padding_is_moved_to_the_edge(self):
        assert to_image("<box>(100,100),(900,700)</box>", HALF_WIDTH) == "<box>(200,100),(1000,700)</box>"

    def test_a_stream_gives_the_same_text_however_it_is_cut(self):
        answer = (
            "a < b <ref>x</ref><box>(10,20),(30,40)</box><box>(1,2)<quad>(1,2),(3,4),(5,6),(7,8)</quad> <bo <box>(5"
        )
        chance = random.Random(0)
        for _ in range(200):
            stream, given, place = BoxStream(HALF_WIDTH), "", 0
            while place < len(answer):
                count = chance.randint(1, 7)
                given += stream.push(answer[place : place + count])
                place += count
            assert given + stream.finish() == to_image(answer, HALF_WIDTH)

    def test_a_stream_holds_no_more_back_than_what_may_become_a_box(self):
        stream = BoxStream(HALF_WIDTH)
        assert [stream.push(piece) for piece in ("It is <", "ref>", " <box>", "(10,", "20),(30,40)", "</box>!")] == [
            "It is ", "<ref>", " ", "", "", "<box>(20,20),(60,40)</box>!",
        ]  # fmt: skip
        assert stream.push("<box>" + "1" * 500) == "<box>" + "1" * 500

    @pytest.mark.parametrize(
        ("keep_markers", "text"),
        [(True, "at <ref>it</ref><box>(20,20),(60,40)</box>"), (False, "at it(20,20),(60,40)")],
    )
    def test_an_answer_is_told_with_boxes_of_the_image(self, keep_markers, text):
        tokenizer = small_processor().tokenizer
        ids = tokenizer.encode_text("at <ref>it</ref><box>(10,20),(30,40)</box>")
        detokenizer = Detokenizer(tokenizer, keep_markers=keep_markers, share=HALF_WIDTH)
        assert "".join([*map(detokenizer.push, ids), detokenizer.finish()]) == text


class TestDrawnDocuments:
    def test_images_have_the_ratios_by_turns_and_the_area_of_a_square(self):
        settings = Settings(0, 224, {"heldout": 4}, {"table": 1, "sign": 1}, ratios=("4:1", "1:3"))
        sizes = [draw(settings, "heldout", number)[1].size for number in range(4)]
        assert sizes == [(448, 112), (129, 388)] * 2

    def test_texts_lie_inside_and_their_boxes_are_thousandths_of_both_sides(self):
        weights = dict.fromkeys(("receipt", "label", "form", "table", "bars", "lines", "paragraph", "scene"), 1)
        settings = Settings(1, 224, {"train": 24}, weights, ratios=("3:1", "1:3"), damage=0)
        boxes = 0
        for number in range(24):
            page, image, _, questions = draw(settings, "train", number)
            assert image.size == (page.across, page.down)
            for line in page.lines:
                left, top, right, bottom = line.box
                assert min(left, top) >= 0
                assert right <= image.width
                assert bottom <= image.height
            for question in questions:
                for box in located(question.answer):
                    boxes += 1
                    text = question.text.split("<ref>")[1].split("</ref>")[0]
                    (line,) = [line for line in page.lines if line.text == text]
                    for drawn, read in zip(line.box, box.in_pixels(image.size), strict=True):
                        assert abs(drawn - read) <= max(image.size) / 1000
        assert boxes > 3

    def test_a_set_of_squares_is_described_as_before_and_one_of_other_shapes_by_them(self, tmp_path):
        squares = Settings(0, 96, {"heldout": 1}, {"scene": 1})
        assert "ratios" not in squares.described()
        oblong = Settings(0, 224, {"heldout": 2}, {"scene": 1}, ratios=("1:2",))
        manifest, _ = write_set(tmp_path / "set", oblong, workers=1)
        assert manifest["settings"]["ratios"] == ["1:2"]
        row = json.loads((tmp_path / "set" / "heldout.jsonl").read_text().splitlines()[0])
        assert Image.open(tmp_path / "set" / row["image"]).size == (158, 317)

    @pytest.mark.parametrize(
        ("ratio", "sentence"), [("3", "not width:height"), ("99:1", "only 23 pixels wide or high, and at least 96")]
    )
    def test_a_ratio_that_cannot_be_drawn_is_refused(self, ratio, sentence):
        with pytest.raises(ValueError, match=sentence):
            Settings(0, 224, {"heldout": 1}, {"scene": 1}, ratios=(ratio,)).check()
