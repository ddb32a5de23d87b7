"""The benchmark of the evaluator: it reports its ratios, and no ratio where the two sides answer differently."""

from __future__ import annotations

import json

import pytest

from benchmarks import evaluation

SMALL = [
    *("--device", "cpu", "--quick", "--images", "2", "--new-tokens", "2", "--num-workers", "0"),
    *("--width", "64", "--layers", "2", "--heads", "2", "--vocabulary", "512"),
    *("--vision-width", "16", "--vision-layers", "1", "--vision-heads", "1"),
]


def test_both_sides_answer_the_same_and_the_last_line_holds_the_ratios(capsys, monkeypatch):
    answers = []
    original = evaluation.our_answers
    monkeypatch.setattr(evaluation, "our_answers", lambda *args: (answers.append(original(*args)), answers[-1])[1])
    assert evaluation.main(SMALL) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sorted(result["ratios"]) == ["questions_speedup_1", "questions_speedup_5"]
    assert min(result["ratios"].values()) > 0
    assert [len(each) for each in answers] == [2, 2, 10, 10]
    # Were all answers one, their being equal would say little.
    assert len(set(answers[-1].values())) > 1


def test_answers_that_differ_end_the_benchmark(monkeypatch):
    original = evaluation.our_answers
    monkeypatch.setattr(evaluation, "our_answers", lambda *args: original(*args) | {1: "something else"})
    with pytest.raises(SystemExit, match="1 of 2 answers differ, that to row 1 first"):
        evaluation.main(SMALL)
