"""A task of the user's own is a small file, and what is wrong with it is said by file and field."""

from __future__ import annotations

import pytest

from eval.prompting import prompt_form
from eval.tasks import select_tasks, task_sheet

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
        ('file = "a.jsonl"', "mine.toml: the field metric is missing"),
        ('file = "a.jsonl"\nmetric = "anlz"', "mine.toml: unknown metric 'anlz'; nearest: anls"),
        ('file = "a"\nmetric = "anls"\nheadline = "lax"', "mine.toml: headline 'lax' is no variant of anls; it has"),
        ('file = "a"\nmetric = "anls"\nmax_new_tokens = "9"', "max_new_tokens must be a whole number of at least 1"),
        ('file = "a"\nmetric = "anls"\nmax_new_tokens = true', "max_new_tokens must be a whole number"),
        ('file = "a"\nmetric = "anls"\nn_expected = 0', "n_expected must be a whole number of at least 1, not 0"),
        ('file = 3\nmetric = "anls"', "mine.toml: file must be a text, not 3"),
        ('file = "a"\nmetric = "anls"\nname = "a/b"', "mine.toml: name 'a/b' must be letters"),
        ('file = "a"\nmetric = "anls"\nname = "chartqa"', "mine.toml: name 'chartqa' is a task of the evaluator"),
        ('file = "a"\nmetric = "anls"\nparts = "shop"', r"parts must be a list of texts, not 'shop'"),
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


def test_a_task_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--dataset .*gone.toml: there is no such task file"):
        select_tasks(str(tmp_path / "gone.toml"))


def test_a_prompt_without_its_places_is_refused_when_it_is_asked_with(tmp_path):
    (task,) = select_tasks(str(write(tmp_path, 'file = "a"\nmetric = "anls"\nprompt = "<img></img> What?"')))
    with pytest.raises(ValueError, match=r"task mine: its prompt must hold \{question\} once; it holds it 0 times"):
        prompt_form(task, "as-trained")
