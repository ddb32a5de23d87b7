"""The table of tasks keeps what was published, prompts are asked to the byte, and a user's own task is a small file."""

from __future__ import annotations

import json

import pytest

from eval.metrics import METRICS
from eval.tasks import GROUPS, TASKS, prompt_form, select_tasks, task_sheet

PUBLISHED_TASKS = ["estvqa_test", "docvqa_test", "chartqa", "infovqa_test", "vizwiz_val", "deepform", "KLC", "WTQ"]
PUBLISHED_TASKS += ["gqa_testdev", "okvqa_val", "textvqa_val", "stvqa_test", "ai2diagram_test", "vqav2_val"]


def test_the_fourteen_published_tasks_keep_names_places_and_limits():
    assert list(TASKS)[: len(PUBLISHED_TASKS)] == PUBLISHED_TASKS
    assert GROUPS["published"] == tuple(PUBLISHED_TASKS)
    assert all(TASKS[name].published.monkey is not None for name in PUBLISHED_TASKS)
    by_kind = [name for kind in ("general", "text", "document", "caption", "extraction") for name in GROUPS[kind]]
    assert len(by_kind) == len(set(by_kind)) == 27
    ours = ("pages", "wild_all", "hub", "suites")
    assert {*by_kind, *(name for group in ours for name in GROUPS[group])} == set(TASKS)
    assert TASKS["estvqa_test"].file == "data/estvqa/estvqa.jsonl"
    assert TASKS["gqa_testdev"].file == "data/gqa/gqa_testdev_new.jsonl"
    assert TASKS["KLC"].file == "data/test_KleisterCharity.jsonl"
    short = {name for name in PUBLISHED_TASKS if TASKS[name].max_new_tokens == 10}
    assert short == {"vizwiz_val", "gqa_testdev", "okvqa_val", "textvqa_val", "ai2diagram_test", "vqav2_val"}
    assert {TASKS[name].max_new_tokens for name in set(PUBLISHED_TASKS) - short} == {100}
    assert sum(TASKS[name].n_expected for name in ("textvqa_val", "docvqa_test", "chartqa")) == 12_688


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_its_prompts_and_a_sheet(name):
    task = TASKS[name]
    for choice in ("as-trained", "published"):
        assert prompt_form(task, choice).text.startswith("<img></img>")
    sheet = task_sheet(task)
    assert json.dumps(prompt_form(task, "as-trained").text, ensure_ascii=False) in sheet
    assert METRICS[task.metric].meaning in sheet
    assert sheet.count("(headline)") == 1
    assert (f"n={task.n_expected}" in sheet) is (task.n_expected is not None)
    assert ("nothing of Monkey or Qwen-VL is known" in sheet) is (task.published is None)
    if task.published is not None:
        assert task.published.source in sheet
        assert ("unknown" in sheet) is (None in (task.published.monkey, task.published.qwen_vl) or not task.n_expected)


def test_a_caption_is_asked_for_without_a_question(tmp_path):
    assert prompt_form(TASKS["flickr30k"], "as-trained").ask("x") == "<img></img> Generate the caption in English: "
    assert prompt_form(TASKS["flickr30k"], "published").ask("x") == "<img></img>Describe the image in English:"
    path = tmp_path / "prompt.txt"
    path.write_text("<img></img> Caption: ")
    assert prompt_form(TASKS["textcaps_val"], str(path)).text == "<img></img> Caption: "
    path.write_text("<img></img> {question}")
    with pytest.raises(ValueError, match=r"holds \{question\}, and textcaps_val asks for a caption"):
        prompt_form(TASKS["textcaps_val"], str(path))


def test_prompts_are_asked_to_the_byte(tmp_path):
    textvqa, vizwiz = TASKS["textvqa_val"], TASKS["vizwiz_val"]
    assert prompt_form(textvqa, "as-trained").ask("Who?") == "<img></img> Who? Answer: "
    assert prompt_form(textvqa, "published").ask("Who?") == "<img></img>Who? Answer:"
    assert prompt_form(textvqa, "as-trained").ask("{question} {0}") == "<img></img> {question} {0} Answer: "
    assert prompt_form(vizwiz, "published").text.endswith(' respond with "Unanswerable". Answer:')
    assert prompt_form(vizwiz, "as-trained").text.endswith(' respond with "unanswerable". Answer: ')
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"<img></img> Frage: {question} \n")  # the line break is the editor's
    assert prompt_form(textvqa, str(path)).text == "<img></img> Frage: {question} "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{question}", "must begin with the image's place, <img></img>"),
        ("<img></img> {question} <img></img>", "hold it only there"),
        ("<img></img> What?", r"must hold \{question\} once; it holds it 0 times"),
    ],
)
def test_prompt_file_without_its_places_is_refused(tmp_path, text, message):
    path = tmp_path / "prompt.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        prompt_form(TASKS["textvqa_val"], str(path))


def test_tasks_are_chosen_by_name_group_pattern_and_file():
    assert [task.name for task in select_tasks("textvqa_val,chartqa,textvqa_val")] == ["textvqa_val", "chartqa"]
    for group in GROUPS:
        assert [task.name for task in select_tasks(group)] == list(GROUPS[group])
    assert [task.name for task in select_tasks("*vqa_test")] == [
        "estvqa_test", "docvqa_test", "infovqa_test", "stvqa_test"
    ]  # fmt: skip
    (task,) = select_tasks("folder/mine.jsonl", "anls", 20)
    assert (task.name, task.metric, task.max_new_tokens, task.file) == ("mine", "anls", 20, "folder/mine.jsonl")
    (task,) = select_tasks("folder/mine.json", "anls")
    assert (task.name, task.own_file) == ("mine", True)


@pytest.mark.parametrize(
    ("selection", "metric", "message"),
    [
        ("textvqa", None, "unknown task 'textvqa'; nearest: textvqa_val"),
        ("klc", None, "unknown task 'klc'; nearest: KLC"),
        ("*nothing*", None, r"no task fits the pattern '\*nothing\*'; --list"),
        (",", None, "names no task; --list shows them"),
        ("a/mine.tsv", "anls", r"--dataset a/mine.tsv: questions of your own are read from .jsonl, a line a question"),
        ("mine.csv", None, r"--dataset mine.csv: questions of your own are read from .jsonl"),
        ("mine.jsonl", None, "mine.jsonl needs a metric: give --metric"),
        ("mine.jsonl", "exact", "unknown metric 'exact'; known: accuracy, anls"),
        ("chartqa", "anls", "--metric goes with a .jsonl file of your own"),
        ("a/mine.jsonl,b/mine.jsonl", "anls", "a/mine.jsonl and b/mine.jsonl would both be written as mine"),
    ],
)
def test_a_selection_that_cannot_be_meant_is_refused(selection, metric, message):
    with pytest.raises(ValueError, match=message):
        select_tasks(selection, metric)


# Tasks of the user's own

TOML = """
name = "receipts"
file = "data/receipts.jsonl"
metric = "anls"
headline = "strict"
max_new_tokens = 20
n_expected = 7
annotations = "people.json"
prompt = "<img></img> Frage: {question} "
note = "Ours."
parts = ["shop"]
"""
YAML = """
file: captions.jsonl
metric: cider
prompt: caption
"""


def write(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_field_of_a_toml_file_arrives(tmp_path):
    (task,) = select_tasks(str(write(tmp_path, TOML)))
    assert (task.name, task.metric, task.headline, task.max_new_tokens) == ("receipts", "anls", "strict", 20)
    assert task.file == str(tmp_path / "data" / "receipts.jsonl")
    assert task.annotations == str(tmp_path / "people.json")
    assert (task.n_expected, task.note, task.own_file, task.parts) == (7, "Ours.", True, ("shop",))
    for choice in ("as-trained", "published"):
        assert prompt_form(task, choice).ask("Wer?") == "<img></img> Frage: Wer? "
    assert '"<img></img> Frage: {question} "' in task_sheet(task)


def test_a_yaml_file_may_leave_out_what_has_a_default_and_name_a_form(tmp_path):
    (task,) = select_tasks(str(write(tmp_path, YAML, "ours.yaml")))
    assert (task.name, task.max_new_tokens, task.headline) == ("ours", 100, "official")
    assert prompt_form(task, "as-trained").text == "<img></img> Generate the caption in English: "


def test_a_task_file_stands_beside_named_tasks(tmp_path):
    path = write(tmp_path, YAML, "ours.yml")
    assert [task.name for task in select_tasks(f"chartqa,{path}")] == ["chartqa", "ours"]
    with pytest.raises(ValueError, match=r"--metric goes with a \.jsonl file of your own"):
        select_tasks(str(path), "anls")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('file = "a.jsonl"\nmetrik = "anls"', "mine.toml: unknown field 'metrik'; nearest: metric"),
        ('metric = "anls"', "mine.toml: the field file is missing; a task needs file and metric"),
        ('file = "a.jsonl"\nmetric = "anlz"', "mine.toml: unknown metric 'anlz'; nearest: anls"),
        (
            'file = "a"\nmetric = "anls"\nheadline = "lax"',
            "mine.toml: task mine: metric anls has no variant 'lax'; it has",
        ),
        ('file = "a"\nmetric = "anls"\nmax_new_tokens = "9"', "max_new_tokens must be a whole number of at least 1"),
        ('file = "a"\nmetric = "anls"\nn_expected = 0', "n_expected must be a whole number of at least 1, not 0"),
        ('file = "a"\nmetric = "anls"\nname = "a/b"', "mine.toml: name 'a/b' must be letters"),
        ('file = "a"\nmetric = "anls"\nname = "chartqa"', "mine.toml: name 'chartqa' is a task of the evaluator"),
        ('file = "a"\nmetric = "anls"\nparts = ["shop", 3]', r"parts must be a list of texts, not \['shop', 3\]"),
        ("file = ", "mine.toml: malformed TOML: "),
    ],
)
def test_a_task_file_that_cannot_be_meant_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        select_tasks(str(write(tmp_path, text)))


def test_yaml_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mine.yaml holds a list, and an object of keys with values is needed"):
        select_tasks(str(write(tmp_path, "- anls", "mine.yaml")))
    with pytest.raises(ValueError, match=r"mine.yaml:1: malformed YAML: "):
        select_tasks(str(write(tmp_path, "file: [", "mine.yaml")))
    with pytest.raises(FileNotFoundError, match=r"--dataset .*gone.toml: there is no such task file"):
        select_tasks(str(tmp_path / "gone.toml"))
