"""A run is scored again from its stored answers, without a model, and its tables are written whole."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval import score
from eval.metrics import METRICS, Metric, Variant
from eval.run_folder import LOCK, open_run, read_predictions, write_published_files, write_whole
from eval.score import rescored_run
from eval.tables import FORMATS, csv_table, latex_table, markdown_summary, markdown_table, table_row
from monkey.journal import hold
from tests.stored_run import answers, write_task

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(tmp_path) -> Path:
    folder = write_task(tmp_path / "run", "sums", answers([True, False, True, True]))
    return write_task(folder, "zebra", [("2.5", ["2.5"]), ("$1", ["$1"])], n_expected=3, complete=False)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def spoil(path: Path, find: str, put: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert find in text
    path.write_text(text.replace(find, put), encoding="utf-8")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(command: list[str], capsys) -> str:
    assert score.main(command) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_programs_run_without_torch(run):
    commands = [["eval.score", str(run)], ["eval.compare", str(run), str(run), "--tasks", "sums"]]
    program = (
        "import importlib, sys; sys.modules.update(torch=None, transformers=None); "
        f"[importlib.import_module(module).main(words) == 0 or sys.exit(1) for module, *words in {commands!r}]; "
        f"from eval import report; sys.exit(report.main([{str(run)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scoring_again_is_scoring_and_changes_nothing_else(run):
    before = {name: read(run / name / "results.json") for name in ("sums", "zebra")}
    lines = read_predictions(run / "sums" / "predictions.jsonl")
    spoil(run / "sums" / "predictions.jsonl", '"official": 1.0', '"official": 0.0')
    spoil(run / "sums" / "results.json", '"value": 75.0', '"value": 1.0')
    assert score.main([str(run), "--check"]) == 1
    assert score.main([str(run)]) == 0
    assert {name: read(run / name / "results.json") for name in before} == before
    assert read_predictions(run / "sums" / "predictions.jsonl") == lines
    after = files(run)
    assert score.main([str(run)]) == 0
    assert files(run) == after
    assert score.main([str(run), "--check"]) == 0


def test_check_says_what_differs_and_writes_nothing(run, capsys):
    spoil(run / "sums" / "predictions.jsonl", '"official": 1.0', '"official": 0.0')
    before = files(run)
    assert score.main([str(run), "--check"]) == 1
    printed = capsys.readouterr().out
    assert printed == (
        "sums: 3 of 4 rows score differently by official, first row 0 (question_id 100): 0.0 as stored, 1.0 now\n"
    )
    assert files(run) == before
    assert score.main([str(run), "--check", "--tasks", "zebra"]) == 0


def test_a_metric_that_changed_is_seen_and_applied(run, monkeypatch, capsys):
    variants = dict(METRICS["accuracy"].variants)
    del variants["contained"]
    variants["length"] = Variant(lambda prediction, references: 0.25, "a quarter")
    monkeypatch.setitem(METRICS, "accuracy", Metric("another", variants))
    assert score.main([str(run), "--check", "--tasks", "sums"]) == 1
    printed = capsys.readouterr().out
    assert "sums: variant length is not stored" in printed
    assert "sums: variant contained is stored and is no more" in printed
    assert score.main([str(run), "--tasks", "sums"]) == 0
    assert read(run / "sums" / "results.json")["scores"]["length"]["value"] == 25.0
    # The task that was not named keeps its scores and its line in the summary.
    assert "contained" in read(run / "zebra" / "results.json")["scores"]
    assert [row["task"] for row in read(run / "summary.json")["tasks"]] == ["sums", "zebra"]
    del variants["official"]
    monkeypatch.setitem(METRICS, "accuracy", Metric("another", variants))
    assert "metric accuracy has no variant 'official' any more; it has original" in error_of([str(run)], capsys)


@pytest.mark.parametrize(
    ("find", "put", "message"),
    [
        ('"row": 1,', '"row": 0,', "predictions.jsonl:2: row 0 was given before, in line 1"),
        ('"answer": "no idea"', '"said": "no idea"', "predictions.jsonl:2 has no 'answer'"),
        ('"references": ["thing 1", "x"]', '"references": []', "predictions.jsonl:2: 'references' must be a list"),
        ('"official": 0.0', '"official": NaN', "predictions.jsonl:2: the score of variant 'official' is nan"),
        ('{"row": 3', '{"row" 3', "predictions.jsonl:4 is not JSON"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_written(run, capsys, find, put, message):
    spoil(run / "sums" / "predictions.jsonl", find, put)
    before = files(run)
    assert message in error_of([str(run)], capsys)
    assert files(run) == before


def test_a_damaged_run_is_one_sentence(run, tmp_path, capsys):
    assert "nowhere is not a folder; give the folder of a run" in error_of([str(tmp_path / "nowhere")], capsys)
    assert "has no task suns; it has sums, zebra" in error_of([str(run), "--tasks", "suns"], capsys)
    (tmp_path / "started" / "sums").mkdir(parents=True)
    assert "started holds no */results.json" in error_of([str(tmp_path / "started")], capsys)
    (tmp_path / "started" / "sums" / "journal.jsonl").touch()
    assert "started holds only unfinished tasks (sums)" in error_of([str(tmp_path / "started")], capsys)
    path = run / "zebra" / "predictions.jsonl"
    kept = path.read_text()
    path.write_text(kept.splitlines()[0] + "\n")
    assert "predictions.jsonl has 1 lines and " in error_of([str(run)], capsys)
    path.unlink()
    assert "predictions.jsonl is missing" in error_of([str(run)], capsys)
    path.write_text(kept)
    spoil(run / "zebra" / "results.json", '"headline": "official"', '"headline": "best"')
    assert "its headline 'best' is not among its scores" in error_of([str(run)], capsys)


def test_tasks_stand_in_the_order_of_the_run_and_a_run_that_is_being_written_is_left_alone(run, capsys):
    write_whole(run / "summary.json", json.dumps({"tasks": [{"task": "zebra"}, {"task": "sums"}]}))
    (run / "later").mkdir()
    (run / "later" / "journal-1.jsonl").touch()
    opened = open_run(run)
    assert (list(opened.tasks), opened.unfinished) == (["zebra", "sums"], ("later",))
    before = files(run)
    with hold(run / LOCK, "wait"):
        assert "is being written by process" in error_of([str(run)], capsys)
        assert score.main([str(run), "--check"]) == 0
    assert files(run) == before


def test_summaries_carry_the_same_figures(run, capsys):
    assert score.main([str(run), "--format", "md"]) == 0
    printed = capsys.readouterr().out
    summary = read(run / "summary.json")
    assert summary["complete"] is False
    assert [row["value"] for row in summary["tasks"]] == [75.0, 100.0]
    assert (run / "summary.md").read_text(encoding="utf-8").startswith(printed)
    assert "| sums | 4 | accuracy | 75.00 |" in printed
    assert "| zebra | 2 of 3 | accuracy | 100.00 |" in printed
    assert "- zebra: Incomplete: 2 of 3 rows" in (run / "summary.md").read_text(encoding="utf-8")
    with (run / "summary.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row, expected in zip(rows, summary["tasks"], strict=True):
        assert float(row["value"]) == expected["value"]
        assert [float(row["interval_low"]), float(row["interval_high"])] == expected["interval"]
        assert float(row["standard_error"] or 0.0) == (expected["standard_error"] or 0.0)
    latex = (run / "summary.tex").read_text(encoding="utf-8")
    assert r"sums & 4 & accuracy & 75.00 & " in latex
    assert "95 \\% interval" in latex
    assert latex.count("\\\\\n") == 3


def test_tables_survive_hostile_names_and_missing_figures():
    results = {
        "task": "a|b_<c>\\", "n": 0, "n_expected": 0, "complete": True, "metric": "anls", "headline": "strict",
        "scores": {"strict": {"value": None, "ceiling": None}}, "note": "| * `x`",
    }  # fmt: skip
    row = table_row(results)
    assert r"a\|b\_\<c\>\\" in markdown_table([row])
    assert r"\| \* \`x\`" in markdown_summary([results])
    assert r"a|b\_<c>\textbackslash{} & 0 & anls (strict) & - & - & - & - & - & - & - \\" in latex_table([row])
    for table in FORMATS.values():
        assert table([row]).endswith("\n")
        assert table([]).endswith("\n")
    assert csv_table([]) == csv_table([row]).splitlines(keepends=True)[0]


@pytest.mark.parametrize(
    ("task", "metric", "entry", "figure"),
    [
        ("textvqa_val", "vqa_score", {"question_id": 100, "answer": "no"}, "33.33"),
        ("docvqa_test", "anls", {"questionId": 100, "answer": "no", "annotation": ["yes"] * 10}, "0.3333333333333333"),
        ("chartqa", "relaxed_accuracy", {"answer": "no", "annotation": ["yes"] * 10}, "0.3333333333333333"),
        ("WTQ", "accuracy", {"image": 100, "answer": "no", "annotation": ["yes"] * 10}, "0.3333333333333333"),
    ],
)
def test_the_published_scripts_files_keep_their_names_and_form(tmp_path, task, metric, entry, figure):
    wrong, right = ("no", ["yes"] * 10), ("yes", ["yes"] * 10)
    folder = write_task(tmp_path / "a json run", task, [wrong, wrong, right], metric)
    (one,) = rescored_run(open_run(folder))
    write_published_files(folder, one.results, one.lines)
    listed = read(folder / f"{task}.json")
    assert len(listed) == 3
    assert listed[0] == {"image_path": "images/0.png", **entry}
    assert (folder / f"{task}.txt").read_text() == f"{task}\n{figure}\n"
