"""The evaluation commands of README and docs run to their end, with the oracle for a model and tiny files for data."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import evaluate_vqa
from eval import compare, report, score
from eval.prepare.__main__ import main as prepare
from eval.tasks import TASKS, Task
from monkey.data.shards import is_on_hub
from tests.official_releases import RELEASES
from tests.test_house import READMES, REPOSITORY
from tests.test_peer_logs import WHOLE


def readme_commands() -> list[list[str]]:
    """Words of each `python` and `bash` command in the shell blocks of the READMEs and docs, comments removed."""
    pages = (*READMES, *(REPOSITORY / "docs").glob("*.md"))
    blocks = [block for page in pages for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.split() for line in dict.fromkeys(lines) if line.startswith(("python ", "bash "))]


STARTS = (["python", "evaluate_vqa.py"], ["bash", "eval/eval.sh"])
COMMANDS = [words for words in readme_commands() if words[:2] in STARTS]
AFTER_THE_RUN = {"eval.score": score.main, "eval.compare": compare.main, "eval.report": report.main}
AFTERWARDS = [words for words in readme_commands() if words[1] == "-m" and words[2] in AFTER_THE_RUN]
PREPARING = [words for words in readme_commands() if words[1:3] == ["-m", "eval.prepare"]]


def write_rows(path: Path, image: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"image": image, "question": "What is the value for the charity_name?", "answer": "5", "question_id": 1}
    path.write_text(json.dumps(row) + "\n")


def write_task(task: Task, root: Path) -> None:
    """One question at the published place of a task, with ten people's answers where the task has them apart."""
    image = root / "data" / "images" / f"{task.name}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(image)
    write_rows(root / task.file, f"data/images/{task.name}.png")
    if task.annotations is not None:
        people = [{"answer": "5", "answer_id": number, "answer_confidence": "yes"} for number in range(1, 11)]
        annotation = {"question_id": 1, "answers": people, "question_type": "what", "answer_type": "number"}
        (root / task.annotations).write_text(json.dumps({"annotations": [annotation]}))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    for task in TASKS.values():
        if not is_on_hub(task.file):
            write_task(task, folder)
    for name in ("my", "receipts", "train"):
        write_rows(folder / f"{name}.jsonl", f"data/images/{next(iter(TASKS))}.png")
    (folder / "receipts.toml").write_text('file = "receipts.jsonl"\nmetric = "anls"\nmax_new_tokens = 20\n')
    return folder


def without(words: list[str], *flags: str) -> list[str]:
    """The words without these flags and their values."""
    kept = list(words)
    for flag in flags:
        if flag in kept:
            place = kept.index(flag)
            del kept[place : place + 2]
    return kept


def test_there_are_commands_to_run():
    assert len(COMMANDS) >= 10
    assert {words[2] for words in AFTERWARDS} == set(AFTER_THE_RUN)
    assert {words[3] for words in PREPARING} >= {"--list", "estvqa_test"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_command_runs_with_the_oracle(words, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(root)
    words = without(words, "--backend", "--predictions", "--base-url", "--data-root")
    of_file = any(word.endswith((".jsonl", ".toml")) for word in words)
    more = ["--backend", "oracle", "--output-dir", str(tmp_path)]
    more += [] if of_file else ["--data-root", str(root)]
    if words[0] == "bash":
        command = ["bash", str(REPOSITORY / "eval" / "eval.sh"), *words[2:], *more]
        environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-2000:]}"
        name = words[3]
    elif "--check-data" in words:
        assert evaluate_vqa.main([*words[2:], "--data-root", str(root)]) == 1
        said = capsys.readouterr().out
        assert "1 rows, and the published set has 5,000" in said
        assert ("image also trained on" in said) is ("--train" in words)
        return
    elif "--list" in words or "--show" in words:
        assert evaluate_vqa.main(words[2:]) == 0
        return
    else:
        assert evaluate_vqa.main([*without(words[2:], "--checkpoint"), *more]) == 0
        name = words[words.index("--save_name") + 1]
    results = [json.loads(path.read_text()) for path in (tmp_path / name).glob("*/results.json")]
    assert results
    for result in results:
        assert result["complete"]
        assert result["scores"][result["headline"]]["value"] == result["scores"][result["headline"]]["ceiling"]


@pytest.mark.parametrize("words", AFTERWARDS, ids=" ".join)
def test_what_follows_a_run_follows_it(words, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in (Path(word) for word in words[3:] if word.startswith("result/")):
        flags = f"--dataset {root / 'my.jsonl'} --metric accuracy --data-root {root} --backend oracle"
        where = f"--save_name {folder.name} --output-dir {folder.parent}"
        assert evaluate_vqa.main(f"{flags} {where}".split()) == 0
    for log in (Path(word) for word in words[3:] if word.startswith(("logs", "outputs"))):
        path = log if log.suffix else log / "1_samples_docvqa_val.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(WHOLE, path)
    assert AFTER_THE_RUN[words[2]](words[3:]) == 0
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("words", PREPARING, ids=" ".join)
def test_an_official_release_becomes_scores(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "--list" in words:
        assert prepare(words[3:]) == 0
        return
    task, source = words[3], Path(words[words.index("--src") + 1])
    source.mkdir(parents=True)
    RELEASES[task](source)
    assert prepare([*without(words[3:], "--out"), "--allow-count"]) == 0
    assert evaluate_vqa.main(f"--dataset {task} --data-root . --save_name mine --backend oracle".split()) == 0
    (row,) = json.loads(Path("result/mine/summary.json").read_text())["tasks"]
    assert row["complete"]
    assert row["value"] == row["ceiling"] == 100.0
