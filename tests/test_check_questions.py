"""The check of evaluation questions names every fault by file and line, and lets published oddities pass as notes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eval.check_questions import KINDS, check_questions, main
from eval.tasks import TASKS, Task, select_tasks
from tests.official_releases import picture, write_json, write_lines

TASK = Task("own", "data/own/own.jsonl", "anls", 10)
VQA = Task("people", "data/own/own.jsonl", "vqa_score", 10, annotations="data/own/annotations.json")


@pytest.fixture
def root(tmp_path) -> Path:
    """Pictures a and b of different pixels, a again without loss as BMP, and half of a PNG."""
    for seed, name in enumerate("ab"):
        picture(tmp_path / f"images/{name}.png", seed)
    Image.open(tmp_path / "images/a.png").save(tmp_path / "images/a_again.bmp")
    whole = picture(tmp_path / "images/half.png", 9, (200, 200)).read_bytes()
    (tmp_path / "images/half.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def row(number: int = 0, **changes) -> dict:
    return {"image": "images/a.png", "question": f"What is {number}?", "answer": "it", "question_id": number} | changes


def write(root: Path, *rows, annotations: list | None = None) -> Path:
    if annotations is not None:
        write_json(root / "data/own/annotations.json", {"annotations": annotations})
    path = root / "data/own/own.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows)
    path.write_text(text, encoding="utf-8")
    return path


def people(number: int, *answers: str) -> dict:
    return {"question_id": number, "answers": [{"answer": answer} for answer in answers or ["it"] * 10]}


# Fault -> (row, kind, what the sentence says).
FAULTS = {
    "malformed": ('{"image": }', "unreadable row", "own.jsonl:2"),
    "blank": ("", "unreadable row", "the line is blank"),
    "no answer": ({"image": "images/a.png", "question": "?", "question_id": 5}, "not of the schema", "'answer'"),
    "number": (row(5, answer=2.5), "not of the schema", "'answer' holds the number 2.5; write it in quotes"),
    "empty question": (row(5, question=" "), "not of the schema", "the question is empty"),
    "base64": (row(5, image="/9j/4AAQ" + 5000 * "a"), "refused image path", "as base64; write it to a file"),
    "outside": (row(5, image="../a.png"), "refused image path", "leads out of"),
    "missing": (row(5, image="images/gone.png"), "missing image", "no image images/gone.png"),
    "half": (row(5, image="images/half.png"), "broken image", "half.png"),
    "twice": (row("0"), "question id twice", "was given before, at"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_a_problem_that_names_its_line(fault, root):
    bad, kind, words = FAULTS[fault]
    path = write(root, row(0), bad, row(1))
    report = check_questions([TASK], root)
    problems = [finding for finding in report.findings if finding.kind in KINDS]
    assert [finding.kind for finding in problems] == [kind]
    assert problems[0].source == f"{path}:2"
    assert words in problems[0].sentence
    assert str(path) in problems[0].sentence
    assert not report.is_clean
    assert report.checks[0].rows == 3


@pytest.mark.parametrize("answer", ["", " ", [], ["", " "]])
def test_row_without_reference_is_a_note_and_its_other_fields_are_checked(answer, root):
    path = write(root, row(0), row(1, answer=answer, image="images/half.png"), row(0, answer=answer))
    report = check_questions([TASK], root)
    notes = [finding for finding in report.findings if finding.kind == "no reference with text"]
    assert [finding.source for finding in notes] == [f"{path}:2", f"{path}:3"]
    assert {finding.kind for finding in report.findings} >= {"broken image", "question id twice"}
    write(root, row(0), row(1, answer="  "))
    report = check_questions([TASK], root)
    assert report.is_clean
    assert report.checks[0].notes == 1


def test_what_an_empty_answer_to_an_empty_reference_scores_is_said_by_the_metric(root):
    write(root, row(0, answer=[""] * 10))
    (finding,) = check_questions([TASK], root).findings
    assert finding.sentence.endswith("are all empty; by anls (official) an empty answer scores 100")


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("<image>\nWhat?", "holds '<image>', which is read as characters; the image stands in 'image'"),
        ("Where is <ref>the cat</ref>?", "holds '<ref>', which is read as characters; to ask for a box, make the bare"),
        ("<|im_start|>user What?", "holds '<|im_start|>', which is read as characters; leave it out"),
        ("What is in <|box_start|>(1,2),(3,4)<|box_end|>?", "holds '<|box_start|>', which is read as characters"),
    ],
)
def test_signs_that_stay_characters_are_noted(question, words, root):
    path = write(root, row(0), row(1, question=question))
    report = check_questions([TASK], root)
    (finding,) = report.findings
    assert (finding.kind, finding.source, report.is_clean) == ("sign without effect", f"{path}:2", True)
    assert words in finding.sentence


def test_a_set_of_boxes_whose_prompt_asks_for_none_is_noted(root):
    write(root, row(0, answer="<box>(1,2),(3,4)</box>"))
    (finding,) = check_questions([replace(TASK, metric="box_overlap")], root).findings
    assert "its prompt has no <ref>; to ask for a box, make the bare phrase the question and give" in finding.sentence
    assert check_questions([replace(TASK, metric="box_overlap", prompt="region")], root).findings == []


def test_question_asked_twice_of_one_picture_is_a_note(root):
    write(root, row(0), row(1, question="What is 0?"), row(2, question="What is 0?", image="images/b.png"))
    report = check_questions([TASK], root)
    assert [finding.kind for finding in report.findings] == ["question asked twice"]
    assert report.is_clean


def test_tasks_are_told_apart_and_counted_and_leakage_is_not_checked_without_a_training_file(root):
    write(root, row(0), row(1, image="images/b.png", answer=["it", ""]))
    report = check_questions([TASKS["chartqa"], TASK, replace(TASK, n_expected=5000)], root)
    assert [(check.rows, check.problems, check.notes) for check in report.checks] == [(0, 1, 0), (2, 0, 0), (2, 1, 0)]
    assert [finding.kind for finding in report.findings] == ["missing file", "wrong row count"]
    assert "2 rows, and the published set has 5,000" in report.findings[1].sentence
    assert report.images == 2
    assert "leakage" in report.not_checked


def test_annotations_replace_answers_and_their_faults_are_problems(root):
    write(root, row(0), row(1), row(2), annotations=[people(0), people(0), people(1, "only one"), people(9)])
    report = check_questions([VQA], root)
    said = {finding.kind: finding.sentence for finding in report.findings}
    assert set(said) == {"annotation file", "too few references", "annotated and not asked"}
    sentences = [finding.sentence for finding in report.findings if finding.kind == "annotation file"]
    assert any("question_id 0 is annotated 2 times" in sentence for sentence in sentences)
    assert any(":3: question_id 2 has no answers" in sentence for sentence in sentences)
    assert "the first 9" in said["annotated and not asked"]

    write(root, row(0), row(1), annotations=[people(0), people(1)])
    assert check_questions([VQA], root).findings == []


@pytest.mark.parametrize("text", ["{", "[]", '{"annotations": [{"question_id": 0}]}', '{"annotations": 3}'])
def test_file_that_is_no_annotation_file_is_a_problem(text, root):
    write(root, row(0, answer=["it"] * 10))
    (root / "data/own/annotations.json").write_text(text)
    report = check_questions([VQA], root)
    assert [finding.kind for finding in report.findings] == ["annotation file"]


def test_missing_annotations_are_a_note_where_the_rows_have_enough_answers(root):
    write(root, row(0, answer=["it"] * 10))
    report = check_questions([VQA], root)
    assert [finding.kind for finding in report.findings] == ["no annotation file"]
    assert report.is_clean
    write(root, row(0))
    assert not check_questions([VQA], root).is_clean


def conversation(image: str) -> dict:
    turns = [{"from": "user", "value": f"<img>{image}</img> What? Answer: "}, {"from": "assistant", "value": "it"}]
    return {"id": "x", "conversations": turns}


@pytest.mark.parametrize(
    ("trained", "words"), [("images/copy.png", "has the bytes of"), ("images/a_again.bmp", "shows the pixels of")]
)
def test_picture_that_is_trained_on_is_found_under_another_name(trained, words, root):
    (root / "images/copy.png").write_bytes((root / "images/a.png").read_bytes())
    questions = write(root, row(0, image="images/b.png"), row(1))
    train = write_lines(root / "train.jsonl", [conversation("images/half.png"), conversation(trained)])
    report = check_questions([TASK], root, train=[train])
    assert [finding.kind for finding in report.findings] == ["image also trained on"]
    assert report.findings[0].source == f"{questions}:2"
    assert f"{words} {root / trained}, trained on in {train}:2" in report.findings[0].sentence
    assert report.train_images == 2
    assert "leakage" not in report.not_checked


def test_training_files_of_questions_are_compared_too(root):
    questions = write(root, row(0, image="images/b.png"), row(1))
    train = write_lines(root / "train.jsonl", [row(0, image="images/a_again.bmp"), row(1, image="images/gone.png")])
    report = check_questions([TASK], root, train=[train])
    assert [(finding.kind, finding.source) for finding in report.findings] == [
        ("image also trained on", f"{questions}:2")
    ]
    assert report.train_images == 1
    assert "no image images/gone.png" in report.not_checked["leakage from 1 training rows"]
    train = write_lines(root / "train.jsonl", [row(0, image="images/gone.png"), {"text": "no conversation"}])
    with pytest.raises(ValueError, match=r"--train .*train.jsonl: no row names an image that is there.*gone.png"):
        check_questions([TASK], root, train=[train])


def test_command_prints_a_table_and_writes_the_report(root, capsys):
    write(root, row(0), row(1, answer=""), row(1))
    out = root / "report.json"
    own = root / "data/own/own.jsonl"
    command = [str(own), "--metric", "anls", "--data-root", str(root), "--json", str(out)]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "question id twice" in said
    assert "note: no reference with text" in said
    assert "not checked: leakage" in said
    found = json.loads(out.read_text())
    assert found["clean"] is False
    assert [one["kind"] for one in found["tasks"][0]["findings"]] == [
        "question id twice",
        "no reference with text",
        "question asked twice",
    ]
    write(root, row(0), row(1, answer=""))
    assert main(command) == 0


def test_published_selection_is_the_default(root, capsys):
    assert main(["--data-root", str(root), "--show", "1"]) == 1
    said = capsys.readouterr().out
    names = [task.name for task in select_tasks("published")]
    assert all(name in said for name in names)
    assert f"missing file: and {len(names) - 1} more" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["chartqaa"], "unknown task 'chartqaa'"),
        (["own.jsonl"], "own.jsonl needs a metric"),
        (["chartqa", "--train", "nowhere.json"], "nowhere.json: no such file"),
        (["chartqa", "--json", "nowhere/out.json"], "give a file in a folder that exists"),
        (["chartqa", "--train-image-root"], "expected one argument"),
    ],
)
def test_mistake_is_one_sentence_and_two(words, sentence, root, capsys):
    try:
        status = main([*words, "--data-root", str(root)])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err
    assert status == 2
    assert sentence in said
    assert said.count("\n") == 1
