"""The model card: only what was recorded, and nothing that a user typed can become markup."""

from __future__ import annotations

import html
import json
import re

import pytest
import yaml
from PIL import Image

from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.tokenization import QwenTokenizer
from monkey.training.model_card import model_card, write_model_card
from tests.conftest import random_model
from tests.small_processor import CHECKPOINT, small_config

PARTS = [
    {"part": "window adapters", "trains": True, "parameters": 1200},
    {"part": "decoder", "trains": False, "parameters": 3400},
]
RECORD = {
    "flags": {"learning_rate": 1e-5, "weight_decay": 0.1, "data_path": "train.json", "output_dir": "out", "seed": 5},
    "recipe": {"name": "lora-llm", "parts": PARTS},
    "data": {"samples": {"train": 12, "eval": 3}, "mixture": [{"file": "a.jsonl", "weight": 0.25, "records": 1000}]},
    "seed": 5,
    "versions": {"python": "3.11.2", "torch": "2.13.0"},
    "git_revision": "0123abc-dirty",
}
LOG = [
    {"loss": 2.5, "step": 1},
    {"loss": 1.25, "step": 40},
    {"eval_loss": 1.5, "step": 40},
    {"train_runtime": 3.0, "step": 40},
]
HOSTILE = [
    "a|b.json",
    "a\\|b.json",
    "`code`",
    "``",
    "```\n# heading\n",
    "<script>alert(1)</script>",
    "---\nlicense: mit",
    "line\nbreak\r\u2028end",
    "![x](http://example.com/x.png)",
    "key: [value",
    "'\"{}&amp;",
    "\u202eright to left",
    "\ud800 alone",
]


def front_matter(card: str) -> dict:
    opening, content, _ = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(content)


def section(card: str, title: str) -> str:
    return re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", card, flags=re.MULTILINE | re.DOTALL)[1]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables of a section, as a reader sees them."""
    found = []
    for line in text.splitlines():
        if line.startswith("| ") and not re.fullmatch(r"\|( --- \|)+", line):
            cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
            found.append([shown_cell(cell) for cell in cells])
    return found


def shown_cell(cell: str) -> str:
    if cell.startswith("<code>"):
        return html.unescape(cell.removeprefix("<code>").removesuffix("</code>"))
    span = re.fullmatch(r"(`+) ?(.*?) ?\1", cell)
    return span[2] if span else cell


def card_of(**changes) -> str:
    given = {"run_record": RECORD, "scores": None, "base": "echo840/Monkey", "log_history": LOG, **changes}
    return model_card(**given)


def test_it_tells_what_was_recorded():
    merge = {"kind": "PEFT", "linears": 12, "base_precision": "4bit", "largest_change": 1.25e-6}
    card = card_of(run_record={**RECORD, "merge": merge, "data": {**RECORD["data"], "has_images": False}})
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": "echo840/Monkey",
        "license": "other",
        "license_name": "see-the-licences-of-the-base",
        "tags": ["monkey"],
    }
    trained = section(card, "How it was trained")
    assert "1,200 of 4,600 parameters" in trained
    assert "`PEFT` adapters are merged into `12` decoder linears (base precision: `4bit`)" in trained
    assert "at most 1.25e-06." in trained
    assert section(card, "Data").startswith("No record that it was trained on has an image.\n\n| what")
    assert "No record" not in card_of()
    for words in ("Check before use", "MIT", "Apache-2.0", "non-commercial", "Tongyi Qianwen"):
        assert words in section(card, "Licences")
    assert ["window adapters", "trained", "1,200"] in rows(trained)
    assert ["decoder", "frozen", "3,400"] in rows(trained)
    data = rows(section(card, "Data"))
    assert ["data_path", "train.json"] in data
    assert ["samples.train", "12"] in data
    assert ["mixture.0.records", "1,000"] in data
    assert rows(section(card, "Hyperparameters"))[1:] == [["learning_rate", "1e-05"], ["weight_decay", "0.1"]]
    assert rows(section(card, "Losses"))[1:] == [["training", "2.5", "1.25", "40"], ["held-out", "1.5", "1.5", "40"]]
    repeat = rows(section(card, "To repeat it"))
    assert repeat[1:] == [["seed", "5"], ["git_revision", "0123abc-dirty"], ["python", "3.11.2"], ["torch", "2.13.0"]]


def test_scores_are_the_given_ones_or_none():
    assert section(card_of(), "Scores").strip() == "Not evaluated."
    assert section(card_of(scores=[]), "Scores").strip() == "Not evaluated."
    scores = [{"task": "docvqa_test", "n": 5188, "value": 66.5}, {"task": "x|y", "n": 3, "ceiling": 98.123456}]
    table = rows(section(card_of(scores=scores), "Scores"))
    assert table == [
        ["task", "n", "value", "ceiling"],
        ["docvqa_test", "5,188", "66.5", ""],
        ["x|y", "3", "", "98.123"],
    ]


@pytest.mark.parametrize("record", [{}, {"recipe": None, "flags": [], "data": 3}, {"recipe": {"parts": [None, {}]}}])
def test_what_is_missing_is_left_out(record):
    card = model_card(record, None, "", [{}])
    assert section(card, "Data").strip() == "Not recorded."
    assert section(card, "Losses").strip() == "Not recorded."
    assert "None" not in card


@pytest.mark.parametrize("text", HOSTILE)
def test_what_users_typed_cannot_become_markup(text):
    shown = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    record = {
        **RECORD,
        "flags": {"data_path": text, "learning_rate": text},
        "recipe": {"name": text, "parts": [{"part": text, "trains": True, "parameters": 1}]},
        "data": {text or "x": text},
        "git_revision": text,
    }
    card = card_of(run_record=record, base=text, scores=[{"task": text, text: 1.0}])
    card.encode("utf-8")
    assert front_matter(card)["base_model"] == shown
    assert front_matter(card)["license"] == "other"
    plain = card_of()
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        line for line in plain.splitlines() if line.startswith("## ")
    ]
    assert ["data_path", shown] in rows(section(card, "Data"))
    assert rows(section(card, "Scores"))[1] == [shown, "1"]
    # Outside of code nothing of the text is left.
    prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)|<code>.*?</code>", "", card.split("---\n", 2)[2].split("```python")[0])
    assert "script" not in prose
    assert "example.com" not in prose
    assert "heading" not in prose


def test_long_tables_refer_to_the_record():
    card = card_of(run_record={"data": {f"file{index}": index for index in range(100)}})
    assert "40 more rows are in `run.json`." in section(card, "Data")


def test_the_snippet_runs_in_the_folder_of_the_card(tmp_path, monkeypatch, capsys):
    config = small_config()
    random_model(config).save_pretrained(tmp_path)
    MonkeyProcessor.from_config(config, QwenTokenizer(CHECKPOINT / "qwen.tiktoken")).save_pretrained(tmp_path)
    path = write_model_card(tmp_path, RECORD, None, "echo840/Monkey", LOG)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "page.png")
    (snippet,) = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "card", "exec"), {})
    assert capsys.readouterr().out.startswith("[")
    assert MonkeyForConditionalGeneration.from_pretrained(tmp_path).config.grid == config.grid


def test_it_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_model_card(tmp_path, RECORD, None, "base", LOG)
    before = path.read_text(encoding="utf-8")
    assert before == model_card(RECORD, None, "base", LOG)
    monkeypatch.setattr("monkey.journal.os.replace", _full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_model_card(tmp_path, {}, None, json.dumps(1), [])
    assert path.read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def _full_disk(*_args):
    raise OSError(28, "No space left on device")
