"""Records and questions on disk become text and paths; every fault names its file and place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from monkey.data.mixture import open_records
from monkey.data.records import read_questions


def record(user="<img>a.png</img> What? Answer: ", answer="this", **changes) -> dict:
    turns = [{"from": "user", "value": user}, {"from": "assistant", "value": answer}]
    return {"id": "1", "conversations": turns, **changes}


def question(number=0, **changes) -> dict:
    return {"image": "a.png", "question": "What?", "answer": "this", "question_id": number, **changes}


def turns(record) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in record.conversation.messages]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A data folder with two 'images', and a current folder elsewhere. They are no images: none is opened."""
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("data/a.png", "data/b.png", "outside.png"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path / "data"


def read_records(path: Path, **settings) -> list:
    return list(open_records(path, **settings))


def write_list(folder: Path, *rows) -> Path:
    path = folder / "train.json"
    path.write_text(json.dumps(list(rows)), encoding="utf-8")
    return path


def write_lines(folder: Path, *rows) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_paths_leave_the_text_and_keep_their_order_in_a_list_and_in_lines(folder):
    rows = [record("one <img>a.png</img> two <img>b.png</img> three"), record(" \u2028 <ref>é</ref> Answer: ")]
    for path, sources in (
        (write_list(folder, *rows), ("train.json[0]", "train.json[1]")),
        (write_lines(folder, *rows), ("rows.jsonl:1", "rows.jsonl:2")),
    ):
        first, second = read_records(path)
        assert (first.source, second.source) == tuple(str(folder / source) for source in sources)
        assert turns(first) == [("user", "one <img></img> two <img></img> three"), ("assistant", "this")]
        assert first.images == [folder / "a.png", folder / "b.png"]
        assert turns(second)[0][1] == " \u2028 <ref>é</ref> Answer: "
        assert second.images == []


def readme_records() -> list[str]:
    """The blocks of data/README.md that are training records, a list or a record a line."""
    text = (Path(__file__).resolve().parent.parent / "data" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```jsonl?\n(.*?)```", text, flags=re.DOTALL)
    return [block for block in blocks if '"conversations"' in block]


@pytest.mark.parametrize("block", readme_records())
def test_every_example_of_the_readme_is_read(folder, block):
    is_list = block.lstrip().startswith("[")
    rows = json.loads(block) if is_list else [json.loads(line) for line in block.splitlines()]
    for path in re.findall("<img>(.*?)</img>", block):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    path = folder / ("readme.json" if is_list else "readme.jsonl")
    path.write_text(block, encoding="utf-8")
    records = read_records(path)
    assert len(records) == len(rows) > 0
    for record, row in zip(records, rows, strict=True):
        written = [turn["value"] for turn in row["conversations"]]
        texts = [text for _, text in turns(record)]
        assert [re.sub("<img>.*?</img>", "<img></img>", text) for text in written] == texts
        assert len(record.images) == "".join(written).count("<img>")


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n \n"])
def test_blank_end_of_file_is_fine(folder, end):
    path = folder / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(record()).encode() + end.encode())
    assert len(read_records(path)) == 1


BAD_RECORDS = {
    "no conversations": ({"id": "1"}, "the key 'conversations' is missing"),
    "not an object": (5, "expected an object with a key 'conversations', found a whole number"),
    "conversations no list": (record(conversations="x"), "'conversations' must be a list, found a text"),
    "no turns": (record(conversations=[]), "'conversations' is empty"),
    "turn no object": (record(conversations=[3]), "turn 0: expected an object with a key 'from', found a whole number"),
    "no role": (record(conversations=[{"value": "x"}]), "turn 0: the key 'from' is missing"),
    "value no text": (record(user=7), "turn 0: 'value' must be a text, found a whole number"),
    "unknown role": (record(conversations=[{"from": "tool", "value": "x"}]), "unknown role 'tool'"),
    "empty answer": (record(answer=" \n"), "turn 1: the answer is empty"),
    "empty user text": (record(user=""), "turn 0: the user's text is empty"),
    "answer first": (record(conversations=[{"from": "gpt", "value": "x"}]), "turn 0: turns are out of order"),
    "twice the user": (record(conversations=[{"from": "user", "value": "x"}] * 2), "turn 1: turns are out of order"),
    "no answer": (record(conversations=[{"from": "user", "value": "x"}]), "the last turn is the user's"),
    "unclosed": (record("see <img>a.png"), "<img> at character 4 is not closed"),
    "surplus": (record("<img>a.png</img> x </img>"), "</img> at character 19 closes no <img>"),
    "image in the answer": (record(answer="<img>a.png</img>"), "an answer holds <img>"),
    "parent folder": (record("<img>../outside.png</img>"), "leads out of"),
    "half a surrogate": (record("\ud800"), "'value' holds half of a surrogate pair at character 0"),
}


@pytest.mark.parametrize(("row", "message"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_bad_record_is_named_by_file_and_place(folder, row, message):
    for write, place in ((write_list, "train.json[1]"), (write_lines, "rows.jsonl:2")):
        with pytest.raises(ValueError) as caught:
            read_records(write(folder, record(), row))
        assert str(caught.value).startswith(str(folder / place))
        assert message in str(caught.value)


def test_root_folder_decides_where_images_lie(folder):
    path = write_list(folder, record("<img>data/a.png</img>"))
    with pytest.raises(FileNotFoundError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{folder / 'train.json'}[0], turn 0: no image data/a.png in {folder}")
    assert read_records(path, image_root=folder.parent)[0].images == [folder / "a.png"]
    with pytest.raises(FileNotFoundError, match="the folder of the images does not exist"):
        read_records(path, image_root=folder / "none")


def test_absolute_path_only_inside_a_given_root(folder):
    path = write_list(folder, record(f"<img>{folder / 'a.png'}</img>"))
    assert read_records(path, image_root=folder)[0].images == [folder / "a.png"]
    with pytest.raises(ValueError, match=r"is absolute; .* as image_root$"):
        read_records(path)
    with pytest.raises(ValueError, match="leads out of"):
        read_records(path, image_root=folder.parent / "elsewhere")


def test_current_folder_comes_after_the_files_own(folder):
    (Path("c.png")).write_bytes(b"")
    path = write_list(folder, record("<img>c.png</img>"))
    assert read_records(path)[0].images == [Path("c.png")]
    (folder / "c.png").write_bytes(b"")
    assert read_records(path)[0].images == [folder / "c.png"]


def test_questions_keep_their_references(folder):
    rows = [question(), question("b", answer=["this", "", "that"])]
    first, second = read_questions(write_lines(folder, *rows))
    assert (first.row, first.question_id, first.answers) == (0, 0, ("this",))
    assert (second.row, second.question_id, second.answers) == (1, "b", ("this", "", "that"))
    assert second.image == folder / "a.png"
    assert second.source.endswith("rows.jsonl:2")


BAD_QUESTIONS = {
    "no image": ({"question": "x", "answer": "y", "question_id": 1}, "the key 'image' is missing"),
    "no id": ({"image": "a.png", "question": "x", "answer": "y"}, "the key 'question_id' is missing"),
    "id true": (question(True), "'question_id' must be a whole number or a text, found true or false"),
    "id fraction": (question(1.5), "'question_id' must be a whole number or a text, found a number"),
    "answer number": (question(1, answer=3.5), "'answer' holds the number 3.5; write it in quotes"),
    "answer list of numbers": (question(1, answer=["x", 3.5]), "write it in quotes"),
    "empty answer": (question(1, answer=" "), "the answer is empty"),
    "no references": (question(1, answer=[]), "the answer is empty"),
    "blank references": (question(1, answer=["", " "]), "the answer is empty"),
    "empty question": (question(1, question=""), "the question is empty"),
    "image in the question": (question(1, question="<img>a.png</img>"), "the question holds <img>"),
    "same id": (question(0), "question_id 0 was given before, at"),
    "same id as text": (question("0"), "question_id '0' was given before, at"),
    "image outside": (question(1, image="../outside.png"), "a folder that holds it as --data-root"),
}


@pytest.mark.parametrize(("row", "message"), BAD_QUESTIONS.values(), ids=BAD_QUESTIONS)
def test_bad_question_is_named_by_file_and_line(folder, row, message):
    with pytest.raises(ValueError) as caught:
        read_questions(write_lines(folder, question(), row), root_name="--data-root")
    assert str(caught.value).startswith(f"{folder / 'rows.jsonl'}:2")
    assert message in str(caught.value)
