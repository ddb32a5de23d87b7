"""The model that ships: as small as promised, with its card, and its weights give the score that is stated for them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import monkey
from monkey import MonkeyConfig
from monkey.checkpoint_card import CARD_FILE
from monkey.serving.demo_page import HELD_OUT, examples
from scripts.fixed_subset import STATED, TASKS, fixed_subset_score
from scripts.fixed_subset import main as fixed_subset_main
from tests.test_small_model import base  # noqa: F401

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = REPOSITORY / "models" / "small"
shipped = pytest.mark.skipif(not SHIPPED.is_dir(), reason="no small model is shipped in models/small")


@shipped
def test_what_ships_is_small_and_has_a_card():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 25 * 2**20
    assert {"README.md", "config.json", CARD_FILE, "model.safetensors", "qwen.tiktoken", STATED} <= {
        path.name for path in SHIPPED.iterdir()
    }


@shipped
def test_the_base_that_ships_is_one_and_small():
    folder = SHIPPED.with_name("small-base")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25 * 2**20
    config, grown = MonkeyConfig.from_pretrained(folder), MonkeyConfig.from_pretrained(SHIPPED)
    assert (config.num_windows, config.num_adapters, config.global_view) == (1, 0, False)
    assert config.window_size == grown.window_size
    # The shared vision transformer is frozen while Monkey trains.
    weights = [load_file(path / "model.safetensors") for path in (folder, SHIPPED)]
    shared = [name for name in weights[0] if "visual.transformer." in name]
    assert shared
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in shared)


READ_RIGHTLY = {
    ("data/pages/images/heldout/000001.jpg", "What is the name of the shop?"): "Ceedreem Shop",
    ("data/pages/images/heldout/000012.jpg", "What is the title?"): "Inbox",
}
"""What the documentation shows the model reading."""

ON_EXAMPLES = (
    *("Ceedreem Shop", "08:22", "045 5749807", "purple", "Back draw clodrot clear", "Gourt", "2024", "2012"),
    *("Month", "Break", "pie chart", "Grehum"),
)


@pytest.fixture(scope="module")
def answerer():
    with monkey.load(SHIPPED, "cpu") as answerer:
        yield answerer


@shipped
@pytest.mark.parametrize("page", ["README.md", "README_cn.md", "models/small/README.md"])
def test_the_first_question_of_a_page_is_answered_rightly(answerer, page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    picture, question = re.search(r'monkey\.ask .*?--image (\S+) "(.+?)"', text).groups()
    assert answerer.ask(REPOSITORY / picture, question).text == READ_RIGHTLY[picture, question]


@shipped
@pytest.mark.parametrize("page", ["README.md", "README_cn.md"])
def test_the_lines_that_open_a_page_print_what_stands_beside_them(monkeypatch, capsys, page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    monkeypatch.chdir(REPOSITORY)
    exec(lines, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"  # (.+)", lines)


@shipped
def test_what_the_server_is_asked_in_its_documentation_is_answered_rightly(answerer):
    text = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
    pictures = re.findall(r"data/pages/images/heldout/\d+\.jpg", text)
    questions = re.findall(r'"text", "text": "(.+?)"', text)
    assert len(pictures) == len(questions) == 2
    assert all(asked in READ_RIGHTLY for asked in zip(pictures, questions, strict=True))


@shipped
def test_the_examples_of_the_demo_are_answered_rightly_and_described(answerer):
    told = [answerer.ask(image, question).text for image, question in examples()]
    assert tuple(told) == ON_EXAMPLES
    assert answerer.describe(HELD_OUT / "000004.jpg").text == "A sign that says Grehum."


@shipped
@pytest.mark.slow
def test_shipped_weights_give_the_stated_score(tmp_path):
    stated = json.loads((SHIPPED / STATED).read_text(encoding="utf-8"))
    scores = fixed_subset_score(SHIPPED, tmp_path)
    assert set(scores) == set(stated) == set(TASKS)
    for task, figures in scores.items():
        low, high = stated[task]["interval"]
        assert low <= figures["value"] <= high
        assert figures["questions"] == stated[task]["questions"]


def test_the_fixed_subset_is_the_same_each_time_and_its_score_is_kept(base, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr("scripts.fixed_subset.PICTURES", 2)
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert fixed_subset_main([str(folder), "--write"]) == 0
    stated = json.loads((folder / STATED).read_text())
    assert fixed_subset_score(folder, tmp_path / "again") == stated
    assert "stated" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path, capsys):
    assert fixed_subset_main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("error: ") == 1
