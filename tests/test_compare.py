"""Two runs are compared only over the same rows, row by row, and every figure of the table is there."""

from __future__ import annotations

import json
import re

import pytest

from eval import compare
from eval.compare import compare_runs, comparison_row
from eval.run_folder import open_run
from eval.statistics import difference, mean_units
from tests.stored_run import answers, write_task

WORSE = [row % 3 == 0 for row in range(40)]
BETTER = [row % 3 == 0 or row % 5 == 1 for row in range(40)]


@pytest.fixture
def runs(tmp_path):
    """Two runs with one task each in common and one of their own."""
    first = write_task(tmp_path / "first", "sums", answers(WORSE))
    write_task(first, "words", [("abcd", ["abce"]), ("x", ["x"]), ("y", ["z"])] * 4, "anls", "strict")
    write_task(first, "old", answers(WORSE))
    second = write_task(tmp_path / "second", "sums", answers(BETTER))
    write_task(second, "words", [("abce", ["abce"]), ("x", ["x"]), ("y", ["z"])] * 4, "anls", "strict")
    return first, second


def refusal(first, second, *flags: str, capsys) -> str:
    assert compare.main([str(first), str(second), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_rows_are_paired_and_images_are_what_is_drawn(runs):
    compared = compare_runs(*map(open_run, runs))
    assert [one.name for one in compared.tasks] == ["sums", "words"]
    sums = compared.tasks[0]
    images = [row // 2 for row in range(40)]
    assert sums.difference == difference(
        mean_units([*map(float, WORSE)], images), mean_units([*map(float, BETTER)], images)
    )
    assert (sums.difference.wins, sums.difference.losses, sums.difference.ties) == (5, 0, 35)
    assert sums.difference.clusters == 20
    assert sums.difference.mcnemar == pytest.approx(2 / 32)
    assert compared.tasks[1].variant == "strict"
    assert compared.tasks[1].difference.mcnemar is None
    assert compared.only_first == ("old",)


def test_p_values_are_corrected_over_the_tasks_compared_and_lines_may_stand_in_any_order(runs):
    both = compare_runs(*map(open_run, runs))
    p_values = [one.difference.p_value for one in both.tasks]
    assert min(one.p_holm for one in both.tasks) == pytest.approx(2 * min(p_values))
    path = runs[1] / "sums" / "predictions.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    (alone,) = compare_runs(*map(open_run, runs), names=["sums"]).tasks
    assert alone.difference == both.tasks[0].difference
    assert alone.p_holm == alone.difference.p_value == p_values[0]


def test_the_table_shows_every_figure(runs, capsys):
    assert compare.main([*map(str, runs)]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    heads = next(line for line in lines if line.startswith("task"))
    assert re.split(r"  +", heads) == list(compare.HEADS)
    sums = re.split(r"  +", next(line for line in lines if line.startswith("sums")))
    assert sums[:5] == ["sums", "40", "35.00", "47.50", "+12.50"]
    assert "5/0/35" in sums
    assert "0.0625" in sums
    assert any(line.startswith("words (strict)") for line in lines)
    assert "only in A, not compared: old" in printed
    assert str(runs[0]) in printed


def test_json_has_the_same_figures_in_full(runs, capsys):
    assert compare.main([*map(str, runs), "--json", "--tasks", "sums"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["tasks"]
    (expected,) = compare_runs(*map(open_run, runs), names=["sums"]).tasks
    assert row == comparison_row(expected)
    assert (row["a"], row["b"], row["difference"]) == (35.0, 47.5, 12.5)
    assert row["interval"][0] < row["difference"] < row["interval"][1]
    assert row["detectable"] == pytest.approx(2.801585 * row["standard_error"], rel=1e-6)
    assert row["p_method"] == "sign-flip permutation by image, exact"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"question": "Else?"},
            "question differs in 2 of 6 rows, first in row 3 (question_id 103): 'What is number 3?'",
        ),
        (
            {"references": ["other"]},
            "references differs in 2 of 6 rows, first in row 3 (question_id 103): ['thing 3', 'x']",
        ),
        ({"question_id": "b"}, "question_id differs in 2 of 6 rows, first in row 3 (question_id 103): 103 in "),
        ({"image": "images/none.png"}, "image differs in 2 of 6 rows, first in row 3 (question_id 103): '1.png' in "),
        (
            {"image_sha256": "f" * 64},
            f"image_sha256 differs in 2 of 6 rows, first in row 3 (question_id 103): '{1:064x}' in ",
        ),
        ({"prompt": "Now!"}, "prompt differs in 2 of 6 rows, first in row 3 (question_id 103): '<img></img> What is"),
    ],
)
def test_runs_that_were_asked_otherwise_are_refused(tmp_path, capsys, change, message):
    first = write_task(tmp_path / "first", "sums", answers([True] * 6))
    second = write_task(tmp_path / "second", "sums", answers([True] * 6), changes={3: change, 5: change})
    assert f"sums: {message}" in refusal(first, second, capsys=capsys)
    if "prompt" in change:
        assert compare.main([str(first), str(second), "--any-prompt"]) == 0


@pytest.mark.parametrize("change", [{"image_sha256": None}, {"image": "/mnt/images/1.png"}])
def test_a_run_without_hashes_of_its_images_or_from_another_folder_compares(tmp_path, change):
    first = write_task(tmp_path / "first", "sums", answers([True] * 6))
    second = write_task(tmp_path / "second", "sums", answers([True] * 6), changes={3: change})
    assert compare.main([str(first), str(second)]) == 0


def test_missing_rows_are_counted_and_the_first_is_named(tmp_path, capsys):
    first = write_task(tmp_path / "first", "sums", answers([True] * 6))
    second = write_task(tmp_path / "second", "sums", answers([True] * 4))
    message = r"sums: 2 of 6 rows are not in .*second.sums, first row 4 \(question_id 104\)"
    assert re.search(message, refusal(first, second, capsys=capsys))
    assert re.search(message, refusal(second, first, capsys=capsys))


def test_other_refusals_are_one_sentence(runs, tmp_path, capsys):
    (row,) = compare_runs(*map(open_run, runs), names=["words"], variant="original").tasks
    assert row.variant == "original"
    assert "has no variant 'best'; it has official, original" in refusal(*runs, "--variant", "best", capsys=capsys)
    other = write_task(tmp_path / "other", "sums", answers(WORSE), "anls")
    assert "sums: scored by accuracy in " in refusal(runs[0], other, capsys=capsys)
    lone = write_task(tmp_path / "lone", "colours", answers(WORSE))
    assert "no task in common" in refusal(runs[0], lone, capsys=capsys)
    assert "has no task old; it has sums, words" in refusal(*runs, "--tasks", "old", capsys=capsys)
    headline = write_task(tmp_path / "headline", "words", [("abcd", ["abce"]), ("x", ["x"]), ("y", ["z"])] * 4, "anls")
    assert "the headline is strict in " in refusal(runs[0], headline, "--tasks", "words", capsys=capsys)
    empty = [write_task(tmp_path / name, "sums", []) for name in ("empty", "void")]
    assert "has an answer to compare" in refusal(*empty, capsys=capsys)
