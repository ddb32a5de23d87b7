"""A run answers every question exactly once, survives being interrupted, and refuses bad input before it writes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import evaluate_vqa
from eval.backends import Answer, EchoBackend, OracleBackend
from eval.metrics import METRICS
from eval.run import RunSettings, run
from eval.run_folder import incompleteness
from eval.tables import notes, table_row, text_table
from eval.tasks import GROUPS, TASKS, Task, select_tasks

ROOT = Path(__file__).resolve().parent.parent


def row(number: int, **changes) -> dict:
    return {
        "image": f"images/{number % 3}.png",
        "question": f"What is {number} plus {number}?",
        "answer": [str(2 * number), f"it is {2 * number}"],
        "question_id": 100 + number,
        **changes,
    }


def write_set(folder: Path, rows: list, name: str = "sums.jsonl") -> Path:
    """A question file and the three images that `row` names."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / "images" / f"{number}.png")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def sums(tmp_path) -> Path:
    return write_set(tmp_path / "data", [row(number) for number in range(10)])


BY_IMAGE = [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]
"""The ten rows of `sums` in the order they are asked: neighbours share their image."""


def own_task(path: Path, metric: str = "accuracy") -> Task:
    (task,) = select_tasks(str(path), metric)
    return task


def settings(folder: Path, **changes) -> RunSettings:
    return RunSettings(folder=folder, show_progress=False, **changes)


def run_one(path: Path, folder: Path, backend=None, **changes) -> dict:
    (results,) = run([own_task(path)], settings(folder, **changes), backend or OracleBackend)
    return results


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def program(path: Path | str, output: Path, *flags: str, backend: str = "oracle") -> int:
    own_file = ("--metric", "accuracy") if str(path).endswith(".jsonl") else ()
    command = ["--dataset", str(path), *own_file, "--save_name", "run", "--output-dir", str(output)]
    return evaluate_vqa.main([*command, "--backend", backend, *flags])


def refusal(capsys, output: Path, path: Path | str, *flags: str, backend: str = "oracle") -> str:
    """The one sentence that a command ends with; nothing was written."""
    assert program(path, output, *flags, backend=backend) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not output.exists()
    return error


class CountingBackend(EchoBackend):
    """Echo that notes what it was asked and can break at its n-th batch."""

    name = "counting"

    def __init__(self, breaks_at: int | None = None, fingerprint: str = "one", **generation):
        self.settings = generation
        self.fingerprint = fingerprint
        self.breaks_at = breaks_at
        self.asked: list[int] = []

    def generate_answers(self, batch):
        if self.breaks_at is not None and len(self.asked) // 4 == self.breaks_at:
            raise KeyboardInterrupt
        self.asked += [request.row for request in batch]
        return super().generate_answers(batch)


class SpoiledBackend(OracleBackend):
    """Oracle whose answers pass through a function before they are handed back."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def generate_answers(self, batch):
        return self.spoil(super().generate_answers(batch))


def test_a_run_reaches_the_ceiling_and_says_what_its_scores_are_scores_of(sums, tmp_path):
    def with_blanks(answers):
        return [Answer(answer.row, f" {answer.raw}\n", answer.tokens, answer.stop) for answer in answers]

    results = run_one(sums, tmp_path / "run", lambda: SpoiledBackend(with_blanks), seed=7, checkpoint="somewhere")
    assert results == json.loads((tmp_path / "run" / "sums" / "results.json").read_text(encoding="utf-8"))
    assert (results["complete"], results["n"], results["n_expected"], results["n_answered"]) == (True, 10, 10, 10)
    assert results["scores"]["official"]["value"] == results["scores"]["official"]["ceiling"] == 100.0
    assert results["prompt"]["text"] == "<img></img> {question} Answer: "
    assert len(results["prompt"]["sha256"]) == len(results["dataset"]["sha256"]) == 64
    assert results["settings"] == {
        "prompt": "as-trained", "limit": None, "batch_size": 4, "seed": 7, "device": None, "dtype": None, "grid": None,
        "max_new_tokens": 100,
    }  # fmt: skip
    assert results["versions"]["torch"] == torch.__version__
    assert results["checkpoint"] == {"path": "somewhere", "fingerprint": "oracle"}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary == {"complete": True, "tasks": [table_row(results)]}

    lines = lines_of(tmp_path / "run" / "sums" / "predictions.jsonl")
    assert [line["question_id"] for line in lines] == [100 + number for number in range(10)]
    assert all(set(line["scores"]) == set(METRICS["accuracy"].variants) for line in lines)
    assert lines[3]["prompt"] == "<img></img> What is 3 plus 3? Answer: "
    assert (lines[3]["raw"], lines[3]["answer"], lines[3]["references"]) == (" 6\n", "6", ["6", "it is 6"])
    assert all(line["image_sha256"] == hashlib.sha256(Path(line["image"]).read_bytes()).hexdigest() for line in lines)


@pytest.mark.parametrize("batches_before", [0, 2])
def test_interrupted_run_goes_on_and_ends_as_an_uninterrupted_one(sums, tmp_path, batches_before):
    whole = CountingBackend()
    run_one(sums, tmp_path / "whole", lambda: whole)
    assert whole.asked == BY_IMAGE
    with pytest.raises(KeyboardInterrupt):
        run_one(sums, tmp_path / "run", lambda: CountingBackend(breaks_at=batches_before))
    folder = tmp_path / "run" / "sums"
    assert sorted(path.name for path in folder.iterdir()) == ["journal.jsonl"]

    rest = CountingBackend()
    assert run_one(sums, tmp_path / "run", lambda: rest, batch_size=3)["complete"]
    assert rest.asked == BY_IMAGE[4 * batches_before :]
    assert lines_of(tmp_path / "run" / "timing.jsonl")[-1]["tasks"]["sums"]["resumed"] == 4 * batches_before
    expected = (tmp_path / "whole" / "sums" / "predictions.jsonl").read_bytes()
    assert (folder / "predictions.jsonl").read_bytes() == expected


@pytest.mark.parametrize("damage", [b"{", b'{"key": "x", "row": 1}', b"\xff\xfe"])
def test_damage_in_the_journal_is_named_and_repair_asks_again_what_was_there(sums, tmp_path, damage):
    run_one(sums, tmp_path / "run", CountingBackend)
    journal = tmp_path / "run" / "sums" / "journal.jsonl"
    expected = (tmp_path / "run" / "sums" / "predictions.jsonl").read_bytes()
    lines = journal.read_bytes().splitlines(keepends=True)
    # A line that stands twice is one answer.
    journal.write_bytes(b"".join([*lines[:3], damage + b"\n", *lines[4:], lines[2]]))
    with pytest.raises(ValueError, match=r"journal\.jsonl:4 is damaged; --repair keeps all other answers.*--fresh"):
        run_one(sums, tmp_path / "run", CountingBackend)
    again = CountingBackend()
    assert run_one(sums, tmp_path / "run", lambda: again, repair=True)["complete"]
    assert again.asked == [BY_IMAGE[3]]
    assert (tmp_path / "run" / "sums" / "predictions.jsonl").read_bytes() == expected


@pytest.mark.parametrize("change", ["nothing", "prompt", "model", "generation", "image", "question", "fresh"])
def test_only_answers_that_still_hold_are_kept(sums, tmp_path, change):
    run_one(sums, tmp_path / "run", CountingBackend)
    options = {"prompt": "published"} if change == "prompt" else {"fresh": True} if change == "fresh" else {}
    generation = {"dtype": "bfloat16"} if change == "generation" else {}
    backend = CountingBackend(fingerprint="two" if change == "model" else "one", **generation)
    expected = [] if change == "nothing" else BY_IMAGE
    if change == "image":
        Image.new("RGB", (40, 30), "black").save(sums.parent / "images" / "0.png")
        expected = [0, 3, 6, 9]
    if change == "question":
        write_set(sums.parent, [row(0, question="And now?"), *(row(number) for number in range(1, 10))])
        expected = [0]
    assert run_one(sums, tmp_path / "run", lambda: backend, **options)["complete"]
    assert backend.asked == expected


@pytest.mark.parametrize(
    ("spoil", "kind", "rows", "sentence"),
    [
        (lambda answers: [a for a in answers if a.row != 5], "missing", [105], "1 of 10 questions not answered: 105"),
        (
            lambda answers: answers + [replace(a, raw="other") for a in answers if a.row == 5],
            "duplicate",
            [105],
            "1 of 10 questions answered twice and differently (--repair asks them again and keeps the others): 105",
        ),
        (
            lambda answers: [*answers, Answer(77, "x", 1, "end")] if answers[0].row == 0 else answers,
            "foreign",
            [77],
            "answered without being asked (row numbers or ids): 77",
        ),
    ],
    ids=["dropped", "doubled", "foreign"],
)
def test_a_row_not_answered_exactly_once_makes_the_run_incomplete(sums, tmp_path, spoil, kind, rows, sentence):
    results = run_one(sums, tmp_path / "run", lambda: SpoiledBackend(spoil))
    assert not results["complete"]
    assert results[kind] == rows
    assert any(sentence in line for line in incompleteness(results))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["complete"] is False
    # Asked again with a backend that is in order: a dropped row is made good, a doubled one stays on record.
    assert run_one(sums, tmp_path / "run")["complete"] is (kind != "duplicate")
    again = CountingBackend()
    again.name, again.fingerprint = OracleBackend.name, OracleBackend.fingerprint
    assert run_one(sums, tmp_path / "run", lambda: again, repair=True)["complete"]
    assert again.asked == ([5] if kind == "duplicate" else [])


def test_program_exits_with_one_and_names_what_is_missing(sums, tmp_path, monkeypatch, capsys):
    spoiled = lambda *_: lambda: SpoiledBackend(lambda answers: answers[1:])  # noqa: E731
    monkeypatch.setattr(evaluate_vqa, "backend_opener", spoiled)
    assert program(sums, tmp_path / "result") == 1
    captured = capsys.readouterr()
    assert "7 of 10" in captured.out
    assert "incomplete: sums: 3 of 10 questions not answered: 100, 101, 105" in captured.err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0), "{broken", row(2)], "sums.jsonl:2"),
        ([row(0), row(1, answer=["a", None])], "sums.jsonl:2"),
        ([row(0), row(1, image="images/none.png")], "none.png"),
        ([row(0), row(1), row(2, question_id=100)], "sums.jsonl:3: question_id 100 was given before, at "),
        ([], "sums.jsonl: is empty"),
        ([row(0, image="/a.png")], "is absolute; make it relative, or give the images' folder as --data-root"),
    ],
    ids=["malformed", "null", "no-image", "id-twice", "empty", "absolute"],
)
def test_bad_questions_are_one_sentence_and_nothing_is_written(tmp_path, capsys, rows, message):
    assert message in refusal(capsys, tmp_path / "result", write_set(tmp_path / "data", rows))


@pytest.mark.parametrize(
    ("dataset", "flags", "message"),
    [
        ("textvqa", (), "unknown task 'textvqa'; nearest: textvqa_val"),
        ("textvqa_val", ("--data-root", "nowhere"), "nowhere/data/textvqa/textvqa_val.jsonl is missing; --data-root"),
        ("missing.jsonl", (), "missing.jsonl is missing"),
        ("chartqa", ("--few-shot", "2"), "--few-shot K and --train FILE go together"),
        ("chartqa", ("--train", "t.jsonl"), "--few-shot K and --train FILE go together"),
        ("chartqa,WTQ", ("--ids", "ids.txt"), "--ids goes with one task, and --dataset names 2"),
        ("chartqa", ("--ids", "ids.txt"), "--ids ids.txt: no such file"),
        ("chartqa", ("--limit", "1", "--sample", "1"), "--limit and --sample both choose questions"),
        ("chartqa", ("--sample", "2"), "chartqa.jsonl has 1 questions"),
        ("chartqa", ("--device", "cpu"), "--device goes with --backend hf, not with oracle"),
        ("chartqa", ("--predictions", "p.json"), "--predictions goes with --backend replay, not with oracle"),
        ("chartqa", ("--save_name", "a/b"), "--save_name 'a/b' must be one folder's name"),
        ("chartqa", ("--prompt", "none.txt"), "neither 'as-trained' nor 'published' nor a text file"),
        ("chartqa", ("--backend", "hf"), "--checkpoint is needed"),
        ("chartqa", ("--backend", "hf", "--checkpoint", "./nowhere"), "no such checkpoint folder"),
        ("chartqa", ("--backend", "hf", "--checkpoint", "empty"), "config.json"),
        ("chartqa", ("--backend", "hf", "--checkpoint", "weightless"), "holds no weights"),
    ],
)
def test_a_wrong_command_is_one_sentence(tmp_path, capsys, monkeypatch, golden, dataset, flags, message):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, [row(0)], TASKS["chartqa"].file)
    Path("empty").mkdir()
    Path("weightless").mkdir()
    shutil.copy(golden.checkpoint / "config.json", "weightless")
    assert message in refusal(capsys, tmp_path / "result", dataset, *flags)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "sees no CUDA device; leave --device out to run on the CPU"), ("meta", "cannot compute on it here")],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_a_device_that_cannot_compute_here_is_one_sentence(sums, tmp_path, capsys, golden, device, message):
    flags = ("--checkpoint", str(golden.checkpoint), "--device", device)
    assert message in refusal(capsys, tmp_path / "result", sums, *flags, backend="hf")


@pytest.mark.parametrize("flags", ["--grid 0,2", "--grid 2", "--batch-size 0", "--nope"])
def test_a_flag_that_is_none_is_one_sentence(capsys, flags):
    with pytest.raises(SystemExit) as exit:
        evaluate_vqa.main(flags.split())
    assert exit.value.code == 2
    assert re.fullmatch(f"error: .*{flags.split()[0]}.*\n", capsys.readouterr().err)


def test_tables_show_scores_ceilings_and_what_was_published(tmp_path):
    rows = [row(number, answer=("leaf", "2.5 mm", "U.S.", "root")[number]) for number in range(4)]
    write_set(tmp_path, rows, TASKS["ai2diagram_test"].file)
    chosen = [TASKS["ai2diagram_test"]]
    (results,) = run(chosen, settings(tmp_path / "run", data_root=tmp_path), OracleBackend)
    heads, _, line = (re.split("  +", text) for text in text_table([table_row(results)]).splitlines())
    shown = dict(zip(heads, line, strict=True))
    assert (shown["task"], shown["n"], shown["metric"]) == ("ai2diagram_test", "4", "choice_accuracy")
    assert (shown["score"], shown["ceiling"]) == ("100.00", "100.00")
    assert (shown["original"], shown["its ceiling"]) == ("50.00", "50.00")
    assert shown["Monkey"] == str(chosen[0].published.monkey)
    assert any("has 4 questions and the published set 3088" in remark for remark in notes(results))
    (written,) = csv.DictReader((tmp_path / "run" / "summary.csv").read_text().splitlines())
    assert float(written["original_ceiling"]) == 50.0


def test_list_and_show_need_no_run(capsys):
    assert evaluate_vqa.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*TASKS, *GROUPS))
    assert evaluate_vqa.main(["--show", "vizwiz_val,caption"]) == 0
    sheets = capsys.readouterr().out
    assert "n=4319" in sheets
    assert "Monkey 61.2, Qwen-VL 35.2" in sheets
    assert all(f"{name}: n=" in sheets for name in GROUPS["caption"])
    assert evaluate_vqa.main(["--show", "vizwiz"]) == 2


def test_eval_sh_works_from_any_folder_with_blanks_in_names(tmp_path):
    write_set(tmp_path / "my data", [row(number) for number in range(3)])
    command = ["bash", str(ROOT / "eval" / "eval.sh"), "no checkpoint", "my run", "my data/sums.jsonl", "--"]
    flags = ["--metric", "accuracy", "--backend", "oracle", "--output-dir", "my results"]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "my results" / "my run" / "sums" / "results.json").is_file()
    refused = subprocess.run([*command[:2], "one"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "usage: bash eval/eval.sh CKPT NAME" in refused.stderr
