"""Records as other projects publish them become ours; what is nearly of such a form is refused with what to change."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import operator
from base64 import b64encode
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from monkey.data.check import check_data
from monkey.data.mixture import holds_images, open_records
from monkey.data.records import examine_record
from monkey.data.rows import ImagePaths
from monkey.prompts import DETAILED_CAPTION_AS_TRAINED
from scripts.check_data import main


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Pictures a and b of 200×100 pixels, and one that EXIF turns."""
    monkeypatch.chdir(tmp_path)
    image = Image.new("RGB", (200, 100))
    for name in ("a.png", "b.png"):
        image.save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "half.png").write_bytes(b"\x89PNG")
    return tmp_path


def read(folder: Path, *rows):
    path = folder / "train.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return list(open_records(path))


def said(record) -> list[str]:
    return [message.text for message in record.conversation.messages]


def turns(*texts: str, names=("human", "gpt")) -> list[dict]:
    return [{"from": names[number % 2], "value": text} for number, text in enumerate(texts)]


def messages(*texts, system: str | None = None) -> list[dict]:
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def asked(text: str, *more: str, names=("human", "gpt"), **row) -> dict:
    """A record of turns: a question, its answer "this", and what follows."""
    return {"conversations": turns(text, "this", *more, names=names), **row}


def chat(*contents, system: str | None = None, **row) -> dict:
    """A record of messages: a question, its answer where none is given, and what follows."""
    return {"messages": messages(*(contents if len(contents) > 1 else (*contents, "this")), system=system), **row}


PART = {"type": "text", "text": "What?"}
ASKED, TWO = "<img></img>\nWhat?", "<img></img><img></img>What?"
LLAVA = asked("<image>\nWhat?")
BRIEF = {"from": "system", "value": "Be brief."}
BOTH = ["a.png", "b.png"]
PLACES = {"<image_00>": "b.png", "<image_01>": "a.png"}
TRL = {
    "prompt": messages([{"type": "image"}, {"type": "image"}, PART]),
    "completion": [{"role": "assistant", "content": [{"type": "text", "text": "this"}]}],
}

# Form -> (row, its texts as they are trained on, its images, what its form is called).
FORMS = {
    "LLaVA": ({**LLAVA, "id": "1", "image": "a.png"}, ASKED, "a", "LLaVA's"),
    "LLaVA, image behind": (asked("What?\n<image>", image="a.png"), "What?\n<img></img>", "a", "LLaVA's"),
    "LLaVA, several": (asked("<image><image>What?", image=["b.png", "a.png"]), TWO, "ba", "LLaVA's"),
    "LLaVA, text alone": (asked("What?", id=7, image=None), "What?", "", ""),
    "Qwen3-VL": (asked("<image><image>What?", images=BOTH), TWO, "ab", "ShareGPT's"),
    "InternVL": (asked("1: <image>\n2: <image>", image=BOTH), "1: <img></img>\n2: <img></img>", "ab", "LLaVA's"),
    "numbered": (asked("<image2> by <image1>", images=BOTH), "<img></img> by <img></img>", "ba", "ShareGPT's"),
    "numbered from 0": (asked("<image_01><image_00>What?", images=BOTH), TWO, "ba", "ShareGPT's"),
    "ShareGPT with system": (
        {**LLAVA, "images": ["a.png"], "system": "Be brief."}, f"Be brief.\n{ASKED}", "a", "ShareGPT's",
    ),
    "system turn": (
        {"conversations": [BRIEF, *turns("<img>a.png</img>\nWhat?", "this")]}, f"Be brief.\n{ASKED}", "a", "",
    ),
    "Qwen-VL": (asked("1: <img>a.png</img>\nWhat?", names=("user", "assistant")), f"1: {ASKED}", "a", ""),
    "other names of roles": (asked("<image>\nWhat?", names=("Human", "GPT"), image="a.png"), ASKED, "a", "LLaVA's"),
    "MiniCPM-V": ({"image": "a.png", "conversations": messages("<image>\nWhat?", "this")}, ASKED, "a", "LLaVA's"),
    "MiniCPM-V, several": (
        {"image": PLACES, "conversations": messages("<image_00><image_01>What?", "this")}, TWO, "ba", "LLaVA's",
    ),
    "ours, with a key that says the same": (asked("<img>a.png</img>\nWhat?", image="a.png"), ASKED, "a", ""),
    "LLaMA-Factory": (chat("<image>\nWhat?", images=["a.png"]), ASKED, "a", "LLaMA-F"),
    "objects with a path": (
        chat("<image>\nWhat?", images=[{"bytes": None, "path": "a.png"}]), ASKED, "a", "LLaMA-F",
    ),
    "messages with a system": (
        chat("<image>\nWhat?", system="Be brief.", images=["a.png"]), f"Be brief.\n{ASKED}", "a", "LLaMA-F",
    ),
    "alpaca": (
        {"instruction": "<image>", "input": "What?", "output": "this", "images": ["a.png"]}, ASKED, "a", "Alpaca's",
    ),
    "ms-swift, query": ({"query": "<image>\nWhat?", "response": "this", "images": "a.png"}, ASKED, "a", "ms-swift's"),
    "ms-swift, pairs": (
        {"system": "Be brief.", "conversation": [{"human": "What?", "assistant": "this"}]},
        "Be brief.\nWhat?", "", "ms-swift's",
    ),
    "FineVision": (
        {"images": ["a.png"], "texts": [{"user": "<image>\nWhat?", "assistant": "this"}]}, ASKED, "a", "FineVision's",
    ),
    "OpenAI": (
        chat([{"type": "image_url", "image_url": {"url": "a.png"}}, PART]), "<img></img>What?", "a", "OpenAI's",
    ),
    "Qwen2-VL's parts": (
        chat([{"type": "image", "image": "a.png"}, PART], [{"type": "text", "text": "this"}]),
        "<img></img>What?", "a", "OpenAI's",
    ),
    "TRL": ({**TRL, "images": BOTH}, TWO, "ab", "TRL's"),
    "TRL, texts": ({"prompt": "What?", "completion": "this"}, "What?", "", "TRL's"),
    "no place for the image": (asked("What?", image="a.png"), ASKED, "a", "LLaVA's"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "asked", "pictures", "form"), FORMS.values(), ids=FORMS)
def test_a_form_of_others_is_read(folder, row, asked, pictures, form):
    (found,) = read(folder, row)
    assert said(found) == [asked, "this"]
    assert [message.role for message in found.conversation.messages] == ["user", "assistant"]
    assert found.images == [folder / f"{name}.png" for name in pictures]
    assert found.form.startswith(form)
    assert bool(found.form) == bool(form)


def test_a_mixed_file_is_read_row_by_row(folder):
    found = read(folder, *(row for row, *_ in FORMS.values()))
    assert [said(record)[0] for record in found] == [asked for _, asked, *_ in FORMS.values()]


def test_earlier_turns_come_before_the_question(folder):
    row = {"history": [["One?", "1"], ["Two?", "2"]], "system": "Count."}
    for last in ({"query": "<image>Three?", "response": "3"}, {"instruction": "<image>Three?", "output": "3"}):
        (found,) = read(folder, {**row, **last, "images": ["a.png"]})
        assert said(found) == ["Count.\nOne?", "1", "Two?", "2", "<img></img>Three?", "3"]


def test_images_of_later_turns_keep_their_order(folder):
    row = {"images": ["b.png", "a.png"], "conversations": turns("<image>One?", "1", "And <image>?", "2")}
    (found,) = read(folder, row)
    assert said(found) == ["<img></img>One?", "1", "And <img></img>?", "2"]
    assert found.images == [folder / "b.png", folder / "a.png"]


def grounding(answer="<bbox>", question="<image>Find <ref-object>", images=("a.png",), **objects) -> dict:
    objects = {"ref": ["it"], "bbox": [[20, 10, 100, 50]], **objects}
    return {"messages": messages(question, answer), "images": list(images), "objects": objects}


class TestBoxes:
    def test_pixels_become_thousandths(self, folder):
        (found,) = read(folder, grounding())
        assert said(found) == [
            "<img></img>Find <ref>it</ref>",
            "<box>(100,100),(500,500)</box>",
        ]
        assert found.form.startswith("ms-swift's")

    def test_shares_and_the_image_that_is_meant(self, folder):
        Image.new("RGB", (100, 50)).save(folder / "b.png")
        shares = grounding(bbox=[[0.1, 0.2, 0.3, 1.0]], bbox_type="norm1")
        second = grounding(question="<image><image>Find <ref-object>", images=("a.png", "b.png"), image_id=[1])
        first, other = read(folder, shares, second)
        assert said(first)[1] == "<box>(100,200),(300,1000)</box>"
        assert said(other)[1] == "<box>(200,200),(1000,1000)</box>"

    def test_those_of_internvl(self, folder):
        value = "<ref>it</ref><box>[[10, 20, 30, 40], [50,60,70,80]]</box>"
        (found,) = read(folder, {"image": "a.png", "conversations": turns("<image>Find it.", value)})
        assert said(found)[1] == "<ref>it</ref><box>(10,20),(30,40)</box><box>(50,60),(70,80)</box>"

    def test_a_question_may_open_what_the_answer_closes(self, folder):
        (found,) = read(folder, {"conversations": turns("<img>a.png</img><ref>it</ref><box>", "(1,2),(3,4)</box>")})
        assert said(found)[0].endswith("<box>")

    BAD: ClassVar = {
        "outside": ("<box>(1,2),(3,1001)</box>", "holds 1001; coordinates are thousandths"),
        "negative": ("<box>(-5,2),(3,10)</box>", "holds -5"),
        "swapped": ("<box>(10,2),(3,4)</box>", r"the corners of <box>\(10,2\),\(3,4\)</box> are swapped"),
        "fractions": ("<box>(0.1,0.2),(0.3,0.4)</box>", "is no box; write <box>"),
        "not closed": ("it <box>(1,2),(3,4)", "is no box"),
        "not opened": ("(1,2),(3,4)</box>", "'</box>' is no box"),
        "three numbers": ("<box>[[1,2,3]]</box>", "is no box"),
        "InternVL's, outside": ("<box>[[1,2,3,4000]]</box>", "holds 4000"),
        "quad outside": ("<quad>(1,2),(3,4),(5,6),(7,8000)</quad>", "holds 8000"),
        "Qwen2-VL's tokens": (
            "<|box_start|>(10,20),(30,40)<|box_end|>",
            r"turn 1: <\|box_start\|> is a model's sign for a place in an image; write <ref>",
        ),
    }

    @pytest.mark.parametrize(("answer", "message"), BAD.values(), ids=BAD)
    def test_a_box_that_is_none_of_ours_is_refused(self, folder, answer, message):
        with pytest.raises(ValueError, match=message) as caught:
            read(folder, {"conversations": turns("<img>a.png</img>Where?", answer)})
        assert str(caught.value).startswith(f"{folder / 'train.json'}[0]")

    BAD_OBJECTS: ClassVar = {
        "too few": (grounding("<bbox><bbox>"), "2 <bbox> in the texts and 1 in 'objects'"),
        "too many names": (grounding(ref=["it", "that"]), "1 <ref-object> in the texts and 2 in 'objects'"),
        "none": ({**grounding(), "objects": None}, "1 <ref-object> in the texts and 0 in 'objects'"),
        "outside": (grounding(bbox=[[0, 0, 201, 50]]), r"\[0, 0, 201, 50\] .* is no .* inside of its 200×100"),
        "swapped": (grounding(bbox=[[100, 0, 20, 50]]), "is no .left, top, right, bottom. inside of its 200×100"),
        "not a number": (grounding(bbox=[[0, 0, float("nan"), 50]]), "inside of its 200×100"),
        "point": (grounding(bbox=[[10, 20]]), "points are not read"),
        "unknown type": (grounding(bbox_type="norm1000"), "'bbox_type' is 'norm1000'"),
        "no such image": (grounding(image_id=[3]), "is of image 3, and there are 1"),
        "turned": (grounding(images=("turned.png",)), "EXIF turns turned.png .orientation 6."),
        "no picture": (grounding(images=("half.png",)), r"train.json\[0\]: .*half.png is "),
        "markup in a name": (grounding(ref=["<img>/etc/passwd</img>"]), "must hold names without markup"),
    }

    @pytest.mark.parametrize(("row", "message"), BAD_OBJECTS.values(), ids=BAD_OBJECTS)
    def test_objects_that_do_not_fit_are_refused(self, folder, row, message):
        with pytest.raises(ValueError, match=message):
            read(folder, row)


def parts_of(value, path=()):
    """Paths to every value inside of a row, itself left out."""
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(one, (dict, list)):
            yield from parts_of(one, (*path, key))


def replaced(row: dict, path: tuple, value) -> dict:
    changed = copy.deepcopy(row)
    *outer, last = path
    target = functools.reduce(operator.getitem, outer, changed)
    target[last] = value
    return changed


ODD = (None, 7, -1.5, float("nan"), True, "", "x", "<image>", "\ud800", [], [[]], [None], {}, {"path": 3}, 10**400)


@pytest.mark.parametrize("name", [*FORMS, "boxes"])
def test_whatever_stands_in_a_row_is_read_or_refused_in_a_sentence(folder, name):
    row = FORMS[name][0] if name in FORMS else grounding()
    pictures = ImagePaths(folder / "train.json", None)
    for path, value in itertools.product(list(parts_of(row)), ODD):
        found, faults = examine_record(replaced(row, path, value), "train.json[0]", pictures)
        assert all(isinstance(fault, (ValueError, FileNotFoundError)) for fault in faults)
        assert all(str(fault).startswith("train.json[0]") for fault in faults)
        assert faults or found.conversation.messages


TOOL_CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
NOT_LEARNT = {"role": "assistant", "content": "x", "weight": 0}
SYSTEM = {"from": "system", "value": "B"}
BAD = {
    "place without image": (LLAVA, "1 <image> in the users' turns and no image for it; name them in 'images', or"),
    "image under another key": ({**LLAVA, "image_path": "a.png"}, "no image for it; rename 'image_path' to 'images'"),
    "another key, no place": (asked("What?", img="a.png"), "'img' seems to name an image and is not read"),
    "more places": (asked("<image><image>What?", image="a.png"), "2 <image> in the users' turns and 1 images"),
    "more images": (asked("<image>What?", images=BOTH), "1 <image> in the users' turns and 2 images"),
    "a number twice": (asked("<image1><image1>?", images=BOTH), "do not name each of the 2 images once"),
    "a number too high": (asked("<image2><image3>?", images=BOTH), "number them from 1"),
    "both keys": (asked("<image>?", image="a.png", images=["b.png"]), "both 'image' and 'images' name images"),
    "both ways": (asked("<img>b.png</img><image>?", image="a.png"), "<img> stands in a text beside images"),
    "in parts and in a key": (
        chat([{"type": "image", "image": "a.png"}, PART], images=["b.png"]),
        "both in parts of messages and under a key",
    ),
    "in the answer": (chat("Draw it.", "<image>", images=["a.png"]), "an answer holds <image>; images stand in the"),
    "bytes": (asked("<image>?", image={"bytes": "AA", "path": "a.png"}), "holds an image itself, not its path"),
    "number for a path": (asked("<image>?", image=7), "'image' must hold the paths of images, found a whole number"),
    "tag in a path": (asked("<image>?", image="a.png</img><img>b.png"), "holds <img> or </img>; rename the file"),
    "URL": (asked("<image>?", image="https://host/a.png"), "is a URL; download the image and name the file"),
    "data URI": (chat([{"type": "image_url", "image_url": "data:image/png;base64,AA"}]), "turn 0: the data-URI is"),
    "data URI of a text": (asked("<image>?", image="data:text/plain,x"), "only data:image/…;base64,… is accepted"),
    "question and answer": (
        {"image": "a.png", "question": "?", "answer": "x"},
        "a question and its answer are read from 'query' and 'response': rename 'question' to 'query' and 'answer' to",
    ),
    "query and answer": ({"query": "?", "answer": "x"}, "'query' and 'response': rename 'answer' to 'response'"),
    "outside of the root": (asked("<image>?", image="../a.png"), "leads out of"),
    "by file://": (chat([{"type": "image", "image": "file:///etc/hostname"}]), "/etc/hostname is absolute"),
    "image in a turn": (
        {"conversations": [{"from": "user", "value": "What?", "image": "a.png"}, *turns("x", "this")[1:]]},
        "turn 0: the turn has a key 'image', which is not read",
    ),
    "HTML": (asked("<img src='a.png'>What?"), "is a model's sign for an image; write <image> for one of 'images', or"),
    "video": (asked("<video>\nWhat?", video="a.mp4"), "'video' names a video, and only images are trained on"),
    "video without key": (asked("<video>\nWhat?"), "<video> is a model's sign for a video"),
    "video part": (chat([{"type": "video", "video": "a.mp4"}]), "the type 'video' is not read"),
    "audios": (asked("What?", audios=["a.wav"]), "'audios' names recordings"),
    "ChatML": (asked("<|im_start|>user\nWhat?<|im_end|>"), "sign for a turn or its end; give each side's text alone"),
    "end of text": ({"conversations": turns("What?", "this<|endoftext|>")}, "turn 1: <|endoftext|> is a model's"),
    "image tokens": (asked("<|vision_start|><|image_pad|><|vision_end|>What?"), "sign for an image"),
    "system twice": ({"system": "A", "conversations": [SYSTEM, *turns("?", "x")]}, "turn 0: turns are out of order"),
    "image in the key": (asked("What?", system="<img>a.png</img>"), "'system': the system's text holds <img>"),
    "place in the key": (asked("What?", system="<image>"), "'system': <image> is a model's sign for an image"),
    "system of a number": (asked("What?", system=7), "'system': 'value' must be a text"),
    "system later on": (
        {"conversations": [*turns("What?", "this"), SYSTEM, *turns("What?", "this")]},
        "turn 2: turns are out of order: expected one of the user, found one of the system",
    ),
    "image in the system": (
        {"conversations": [{**SYSTEM, "value": "<img>a.png</img>"}, *turns("What?", "this")]},
        "the system's text holds <img>",
    ),
    "answer first": (asked("What?", names=("gpt", "human")), "turn 0: turns are out of order"),
    "tool": ({"messages": [*messages("What?"), {"role": "tool", "content": "7"}]}, "unknown role 'tool'"),
    "tools": (chat("What?", tools='[{"type": "function"}]'), "'tools' holds tools"),
    "call of a tool": ({"messages": [*messages("?"), TOOL_CALL]}, "turn 1: 'tool_calls' holds calls of tools"),
    "content null": (chat("What?", None), "turn 1: 'content' must be a text, found null"),
    "not to be learnt": ({"messages": [*messages("What?"), NOT_LEARNT]}, "the answer asks not to be learnt"),
    "preferences": (asked("What?", chosen="x", rejected="y"), "'chosen' holds preferences between answers"),
    "a bad answer": (chat("What?", label=False), "marks its answer as a bad one"),
    "a bad completion": ({"prompt": "What?", "completion": "x", "label": False}, "marks its answer as a bad one"),
    "two lists": (asked("a", messages=messages("a", "b")), "both 'conversations' and 'messages'"),
    "text alone": ({"text": "x"}, "the key 'conversations' is missing; there are 'text'; forms that are read: data/"),
    "packed": ([LLAVA, LLAVA], "the row is a list; give each record a row of its own"),
    "history": ({"query": "a", "response": "b", "history": ["x"]}, "'history' must be a list of [question, answer]"),
    "no answer": ({"instruction": "a", "output": ""}, "turn 1: the answer is empty"),
}


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_nearly_such_a_form_is_refused_with_what_to_change(folder, row, message):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(folder, row)
    assert str(caught.value).startswith(f"{folder / 'train.json'}[0]")
    assert message in str(caught.value)


NOTED = {
    "image put first": (asked("What?", image="a.png"), "no <image> in the users' turns, so its image is put first"),
    "boxes as fractions": (
        {"image": "a.png", "conversations": turns("<image>Where?", "[0.1, 0.2, 0.3, 0.4]")},
        "turn 1: [0.1, 0.2, 0.3, 0.4] may be a model's sign for a place in an image, and is learnt as its characters",
    ),
    "boxes as JSON": (
        {"image": "a.png", "conversations": turns("<image>Where?", '{"bbox_2d": [1, 2, 3, 4]}')},
        '"bbox_2d"',
    ),
    "Llama's turns": (asked("<img>a.png</img>[INST] What? [/INST]"), "sign for a turn or its end"),
    "a place in an answer as text": (
        {"image": "a.png", "conversations": turns("<image>Which tag?", "<image>")},
        "turn 1: <image> may be",
    ),
    "HTML in an answer": ({"conversations": turns("Write HTML.", "<img src='x.png'>")}, "sign for an image"),
    "boxes beside the texts": (asked("<img>a.png</img>What?", bbox=[[1, 2, 3, 4]]), "'bbox' is not read"),
    "a file name": (asked("What?", source="page.png"), "'source' names 'page.png', which may be an image"),
}


@pytest.mark.parametrize(("row", "message"), NOTED.values(), ids=NOTED)
def test_what_may_be_meant_so_is_a_note(folder, row, message, capsys):
    (found,) = read(folder, row)
    assert any(message in note for note in found.notes)
    assert main([str(folder / "train.json")]) == 0
    assert message in capsys.readouterr().out


def test_an_image_within_a_data_uri_is_read_as_the_file_of_its_bytes(folder):
    content = (folder / "a.png").read_bytes()

    def asked_of(url: str):
        part = {"type": "image_url", "image_url": {"url": url}}
        (record,) = read(folder, chat([part, {"type": "text", "text": "And now?"}, part]))
        return record

    by_name, within = asked_of("a.png"), asked_of(f"data:image/png;base64,{b64encode(content).decode()}")
    assert said(within) == said(by_name)
    assert within.images == [content, content]
    assert len(set(map(str, within.images))) == 2
    assert main([str(folder / "train.json"), "--convert", str(folder / "ours.jsonl")]) == 0
    (ours,) = open_records(folder / "ours.jsonl")
    assert [image.read_bytes() for image in ours.images] == within.images


def test_other_keys_of_ours_are_left_alone(folder):
    row = asked("<img>a.png</img>What?", image_id=7, file_name="a.png", img_path="a.png", video="a.mp4", label=False)
    (found,) = read(folder, row)
    assert (found.notes, found.form) == ((), "")


class TestTelling:
    def test_the_check_counts_forms_and_images(self, folder, capsys):
        read(folder, FORMS["LLaVA"][0], FORMS["LLaVA, several"][0], FORMS["OpenAI"][0], FORMS["Qwen-VL"][0])
        report = check_data(folder / "train.json")
        assert (report.is_clean, report.images) == (True, 2)
        assert list(report.files[0]["forms"].values()) == [2, 1]
        assert main([str(folder / "train.json")]) == 0
        assert "train.json: 2 records in LLaVA's form ('image' and <image>), read as ours" in capsys.readouterr().out

    def test_a_sequence_tells_the_form_of_its_first_row(self, folder):
        read(folder, *[FORMS["LLaVA"][0]] * 3)
        assert open_records(folder / "train.json").notices == (
            f"{folder / 'train.json'}: 3 records, the first in LLaVA's form ('image' and <image>), read as ours",
        )
        (folder / "train.json").write_text(json.dumps([LLAVA, FORMS["Qwen-VL"][0]]))
        assert open_records(folder / "train.json").notices == ()

    def test_held_out_conversations_of_others_are_no_questions(self, folder):
        read(folder, FORMS["Qwen-VL"][0])
        (folder / "heldout.json").write_text(json.dumps([FORMS["OpenAI"][0]]))
        report = check_data(folder / "train.json", evaluation=[folder / "heldout.json"])
        assert {finding.kind for finding in report.findings} == {"image also in evaluation"}

    def test_records_without_an_image_are_told_as_such(self, folder, capsys):
        rows = [asked(f"{number}?") for number in range(3)]
        assert not holds_images(read(folder, *rows))
        assert main([str(folder / "train.json")]) == 0
        assert "no record has an image, so a model learns from text alone" in capsys.readouterr().out
        assert holds_images(read(folder, *rows, FORMS["LLaVA"][0]))
        assert check_data(folder / "train.json").of_kind("no record has an image") == []

    def test_a_bad_row_does_not_hide_an_image(self, folder):
        (folder / "train.json").write_text(json.dumps([LLAVA, FORMS["LLaVA"][0]]))
        assert holds_images(open_records(folder / "train.json"))


def test_the_published_detailed_captions_train_with_the_question_they_were_trained_with(folder):
    rows = [{"img_id": f"{name}.png", "detailed_caption": f" A {name}.\nIt is grey. "} for name in "ab"]
    records = read(folder, *rows)
    assert [said(record) for record in records] == [
        [DETAILED_CAPTION_AS_TRAINED, row["detailed_caption"]] for row in rows
    ]
    assert [record.images[0].name for record in records] == ["a.png", "b.png"]
    assert main([str(folder / "train.json"), "--workers", "0"]) == 0
    for bad, message in (
        ({**rows[0], "detailed_caption": " "}, "empty"),
        ({**rows[0], "img_id": ""}, "'img_id' is empty"),
        ({**rows[0], "img_id": "c.png"}, "c.png"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read(folder, bad)
