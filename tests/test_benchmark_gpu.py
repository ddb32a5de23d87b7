"""The one command for a GPU: every stage runs at a tiny size, what is done stays, and what fails is named."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
from pathlib import Path

import pytest

from benchmarks import gpu, measure, vision
from monkey.journal import Journal

RESULT = {"figures": {"tokens_per_second": {"1": 250.0}}}
PRINTS = ("-c", f"print('working'); print({json.dumps(RESULT)!r})")


def stage(name: str, words=PRINTS, seconds: int = 60, needs: str | None = None) -> gpu.Stage:
    return gpu.Stage(name, words, words, seconds, needs)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@functools.cache
def result_of(program: str, *words: str) -> dict:
    """What a program prints last. Stages that differ on a GPU alone have one tiny command, which runs once."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert importlib.import_module(program).main(list(words)) == 0
    return json.loads(printed.getvalue().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "one",
    [
        pytest.param(
            one,
            id=one.name,
            marks=pytest.mark.skipif(one.name == "decode-int8", reason="needs torchao, which is not required"),
        )
        for one in gpu.STAGES
        if one.kind not in ("tests", "server")
    ],
)
def test_every_stage_runs_at_a_tiny_size_and_has_the_figures_of_its_lines(one, monkeypatch):
    """In this process: its start takes longer than the stage. That of the server is in `test_benchmark_serving.py`."""
    # A machine's rate is that of products of 2048×2048, seconds of a stage that is tiny otherwise.
    monkeypatch.setattr(vision, "matmul_rate", functools.partial(measure.matmul_rate, size=64))
    result = result_of(*one.tiny[1:])
    lines = [figure for figure in gpu.FIGURES if figure.stage == one.name]
    assert lines
    # A CPU has no MFU and no peak, and fewer requests are made at once.
    sure = [line for line in lines if line.path[-1] in ("1", "samples_per_second") or line.path[-1].endswith("_1")]
    for line in sure:
        assert gpu.show_value({"result": result}, line) != "–", f"{one.name} has no {line.path}"


@pytest.mark.parametrize("one", gpu.STAGES, ids=lambda one: one.name)
def test_the_words_of_every_stage_are_flags_of_its_program(one, capsys):
    if one.kind == "tests":
        pytest.skip("pytest is no program of this project")
    with pytest.raises(SystemExit):
        importlib.import_module(one.words[1]).main(["--help"])
    known = capsys.readouterr().out
    missing = [word for word in one.words[2:] if word.startswith("--") and word not in known]
    assert not missing


def test_every_line_of_the_page_is_of_a_stage():
    assert {figure.stage for figure in gpu.FIGURES} <= {one.name for one in gpu.STAGES}


def test_what_is_done_stays_and_what_failed_is_tried_again(tmp_path, monkeypatch, capsys):
    broken = ("-c", "import sys; print('out of cards'); sys.exit(3)")
    monkeypatch.setattr(gpu, "STAGES", (stage("decode-bf16"), stage("training-a", broken), stage("decode-4bit")))
    words = ["--dry-run", "--output", str(tmp_path)]
    assert gpu.main(words) == 1
    assert "training-a: failed (3): out of cards" in capsys.readouterr().err
    assert [record["stage"] for record in records(tmp_path)] == ["decode-bf16", "decode-4bit"]
    assert "no figure here means anything" in (tmp_path / "gpu.md").read_text()
    monkeypatch.setattr(gpu, "STAGES", (stage("decode-bf16"), stage("training-a"), stage("decode-4bit")))
    assert gpu.main(words) == 0
    assert [record["stage"] for record in records(tmp_path)] == ["decode-bf16", "decode-4bit", "training-a"]
    assert set(records(tmp_path)[0]) >= {"result", "seconds", "date", "card", "versions", "revision"}


def test_a_stage_ends_with_its_time(tmp_path):
    with pytest.raises(ValueError, match=r"decode-x: ended after 1 s, its limit; .*decode-x.log has its output"):
        gpu.run(stage("decode-x"), ("-c", "import time; time.sleep(600)"), 1.0, tmp_path)


def test_no_stage_begins_without_time_or_without_its_package(tmp_path):
    stages = (stage("decode-a"), stage("decode-b", needs="a_package_that_is_nowhere"))
    with Journal(tmp_path / "records.jsonl") as journal:
        late = gpu.take(stages[:1], journal, tmp_path, deadline=0.0, is_dry=True)
        bare = gpu.take(stages[1:], journal, tmp_path, deadline=float("inf"), is_dry=True)
    assert late == ["decode-a: not reached; run the command again, or give more --minutes"]
    assert bare == ["decode-b: needs the package a_package_that_is_nowhere; pip install a_package_that_is_nowhere"]


def test_the_page_has_what_was_measured_beside_what_is_wanted():
    record = {"date": "2026-02-03", "card": {"name": "NVIDIA H200", "clocks.sm": 1980.0}, "versions": {"torch": "2.13"}}
    page = gpu.write_page([{**record, "stage": "decode-compiled", "seconds": 41.0, "result": RESULT}])
    assert "on one NVIDIA H200, 2026-02-03, torch 2.13" in page
    assert "| tokens/s, one request, compiled | 250 | ≥ 220 |" in page
    assert "| tokens/s, one request, eager | – |" in page
    assert "| decode-compiled | 41.0 | 1980.0 | – | – |" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nothing"], "--only nothing: the stages are tests, decode-compiled"),
        ([], "nvidia-smi names no card here"),
    ],
)
def test_mistakes_are_one_sentence(words, message, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "find_card", lambda: None)
    try:
        status = gpu.main(words)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert message in capsys.readouterr().err
