"""Logs that lmms-eval and VLMEvalKit wrote are runs: their figures, compared, shown, and refused in a sentence.

tests/peer_logs/ holds what lmms-eval 0.7.3 wrote of the small model: 32 questions about drawn documents, the same with
answers of two tokens, and four questions whose options were weighed; and VLMEvalKit of August 2026, of 16 of them.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from eval import compare, report
from eval.compare import compare_runs
from eval.peer_logs import open_any_run
from eval.score import score_table
from tests.stored_run import write_task

LOGS = Path(__file__).parent / "peer_logs"
(WHOLE,) = (LOGS / "whole").glob("*.jsonl")
(SHORT,) = (LOGS / "short").glob("*.jsonl")
SHEET = "index\tquestion\tanswer\tprediction\n"


def refusal(capsys, program, *words) -> str:
    assert program.main(list(map(str, words))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def logged(path: Path = WHOLE) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_sample_log_has_the_score_that_lmms_eval_gave_and_ours_beside_it():
    run = open_any_run(WHOLE)
    (task,) = run.tasks.values()
    samples = logged()
    assert task.name == "made_vqa"
    own = 100 * sum(sample["anls"] for sample in samples) / len(samples)
    assert task.headline["value"] == pytest.approx(own)
    assert f"anls {own:.2f}" in task.results["note"]
    assert {"strict", "exact"} < set(task.results["scores"])
    assert task.headline["clusters"] == len({sample["input_media"][0] for sample in samples}) < task.headline["n"]
    assert task.headline["ceiling"] == 100.0
    low, high = task.headline["interval"]
    assert low < own < high
    line = task.lines[3]
    assert (line["answer"], line["references"]) == (samples[3]["filtered_resps"], ["DL5922"])


def test_a_folder_of_logs_is_a_run_and_a_second_log_of_a_task_is_refused(tmp_path):
    for place in ("model", "."):
        (tmp_path / place).mkdir(exist_ok=True)
        shutil.copy(WHOLE, tmp_path / place / "1_samples_docs.jsonl")
        shutil.copy(SHORT, tmp_path / place / "1_samples_other.jsonl")
        if place == "model":
            assert list(open_any_run(tmp_path).tasks) == ["docs", "other"]
    with pytest.raises(ValueError, match=r"both of task docs; name one"):
        open_any_run(tmp_path)


def test_options_that_were_weighed_are_answered_by_the_number_of_the_likeliest():
    (task,) = open_any_run(LOGS / "options", "accuracy").tasks.values()
    assert [line["answer"] for line in task.lines] == [line["references"][0] for line in task.lines]
    assert task.headline["value"] == 100.0


def test_two_logs_are_compared_question_by_question(capsys):
    assert compare.main([str(WHOLE), str(SHORT), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["tasks"]
    better, worse = logged(), logged(SHORT)
    differences = [two["anls"] - one["anls"] for one, two in zip(better, worse, strict=True)]
    assert row["difference"] == pytest.approx(100 * sum(differences) / len(differences))
    assert (row["wins"], row["losses"]) == (sum(one > 0 for one in differences), sum(one < 0 for one in differences))
    assert row["clusters"] == 6


def test_a_log_is_compared_with_a_run_of_ours_by_rows_and_references(tmp_path):
    answers = [(sample["filtered_resps"], [sample["target"][2:-2]]) for sample in logged()]
    answers[0] = ("no", answers[0][1])
    ours = write_task(tmp_path / "ours", "receipts", answers, "anls")
    comparison = compare_runs(open_any_run(ours), open_any_run(WHOLE))
    (one,) = comparison.tasks
    assert (one.name, one.difference.wins, one.difference.losses) == ("receipts", 1, 0)
    assert comparison.only_first == comparison.only_second == ()
    other = write_task(tmp_path / "other", "receipts", [(answer, ["x"]) for answer, _ in answers], "anls")
    with pytest.raises(ValueError, match="references differs in 32 of 32 rows"):
        compare_runs(open_any_run(other), open_any_run(WHOLE))


def test_a_report_of_logs_stands_beside_them(tmp_path, capsys):
    for name, log in (("one", WHOLE), ("two", SHORT)):
        shutil.copy(log, tmp_path / f"{name}_samples_docs.jsonl")
    paths = [tmp_path / f"{name}_samples_docs.jsonl" for name in ("one", "two")]
    (tmp_path / "images" / "heldout").mkdir(parents=True)
    for number in range(6):  # as many as the log names
        Image.new("RGB", (40, 30), (40 * number, 0, 0)).save(tmp_path / "images" / "heldout" / f"{number:06d}.jpg")
    assert report.main([str(paths[0]), "--images", str(tmp_path)]) == 0
    assert report.main([*map(str, paths)]) == 0
    page = (tmp_path / "one_samples_docs-report.html").read_text(encoding="utf-8")
    assert "DL5922" in page
    assert "Read from the log of lmms-eval" in page
    assert page.count("data:image/jpeg") == 6
    assert "docs" in (tmp_path / "two_samples_docs-report-vs-one_samples_docs.jsonl.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert report.main([str(paths[0]), "--format", "text"]) == 0
    assert "94.67" in capsys.readouterr().out


def sheet(path: Path, *rows: str, columns: str = SHEET) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(columns + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_a_sheet_of_vlmevalkit_is_read_with_lists_of_references_and_texts_that_look_like_numbers(tmp_path):
    path = sheet(
        tmp_path / "some_model" / "T2026" / "some_model_DocVQA_VAL.tsv",
        "7\tHow many?\t['3', 'three']\t3",
        "9\tWhat stands there?\t['NA']\tNA",
        "12\tWhat is left?\t['nothing']\t",
    )
    sheet(path.with_name("some_model_DocVQA_VAL_results.tsv"), "1\t2\t3\t4")
    (path.parent.parent / path.name).symlink_to(path)
    for place in (path, path.parent, path.parent.parent):
        (task,) = open_any_run(place).tasks.values()
        assert (task.name, task.results["metric"]) == ("DocVQA_VAL", "anls")
        assert [line["answer"] for line in task.lines] == ["3", "NA", ""]
        assert [line["question_id"] for line in task.lines] == ["7", "9", "12"]
        assert task.lines[0]["references"] == ["3", "three"]
        assert task.headline["value"] == pytest.approx(200 / 3)
        assert task.headline["clusters"] == 3
        assert "names no images" in task.results["note"]


def test_an_option_is_right_by_its_letter_or_its_text_and_the_nearest_is_known(tmp_path):
    path = sheet(
        tmp_path / "m_MMBench_DEV_EN.tsv",
        "0\tWhich?\tB\tB\tmoon\tsun",
        "1\tWhich?\tA\tmoon\tmoon\tsun",
        "2\tWhich?\tA\tthe sunn\tmoon\tsun",
        columns="index\tquestion\tanswer\tprediction\tA\tB\n",
    )
    (task,) = open_any_run(path).tasks.values()
    assert task.name == "MMBench_DEV_EN"
    assert [line["scores"]["official"] for line in task.lines] == [1.0, 1.0, 0.0]
    assert task.lines[0]["question"] == "Which?\nA. moon\nB. sun"
    assert task.results["scores"] == score_table("choice_accuracy", task.lines)
    assert "nearest_option" in task.results["scores"]


def test_what_vlmevalkit_wrote_is_compared_with_what_lmms_eval_wrote(tmp_path):
    (task,) = open_any_run(LOGS / "monkey-small", "choice_accuracy").tasks.values()
    assert (task.name, task.results["n"]) == ("made_mcq", 16)
    first = task.lines[0]
    assert first["references"] == ["A", "3"]
    assert first["question"].endswith("\nA. 3\nB. A form titled Poem list.\nC. yes")
    pytest.importorskip("openpyxl", reason="pip install '.[peers]' reads .xlsx")
    theirs = tmp_path / "1_samples_docs.jsonl"
    theirs.write_text("".join(f"{json.dumps(sample)}\n" for sample in logged()[:16]))
    (one,) = compare_runs(open_any_run(LOGS / "monkey-small4", "anls"), open_any_run(theirs)).tasks
    assert (one.name, one.value_first, one.difference.ties) == ("made_docs", one.value_second, 16)


def test_a_workbook_is_read_as_the_sheet_is(tmp_path):
    pytest.importorskip("openpyxl", reason="pip install '.[peers]' reads .xlsx")
    import pandas

    rows = [("7", "How many?", "['3']", "3"), ("9", "What stands there?", "['NA']", "NA"), ("10", "What?", "['a']", "")]
    path = tmp_path / "m_DocVQA_VAL.xlsx"
    pandas.DataFrame(rows, columns=SHEET.split()).to_excel(path, index=False)
    (task,) = open_any_run(path).tasks.values()
    assert [line["answer"] for line in task.lines] == ["3", "NA", ""]
    assert task.headline["value"] == pytest.approx(200 / 3)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match="is no sheet that can be read"):
        open_any_run(path)


def test_a_workbook_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with zipfile.ZipFile(tmp_path / "m_DocVQA_VAL.xlsx", "w") as workbook:
        workbook.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(ValueError, match=r"openpyxl.*PRED_FORMAT=tsv"):
        open_any_run(tmp_path / "m_DocVQA_VAL.xlsx")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"doc_id": 0, "target": "x", "filtered_resps": "x"}\n', ":1 has no 'input' as sample logs of lmms-eval 0.6"),
        ('{"doc_id": 0, "target": ["x"], "filtered_resps": "x", "input": "?"}\n', ":1 has no 'target'"),
        ('{"doc_id": 0, "target": "x", "filtered_resps": [1, 2], "input": "?"}\n', "neither an answer nor"),
        ('{"doc_id": 0, "target": "x", "filtered_resps": [], "input": "?"}\n', "neither an answer nor"),
        ('{"doc_id": 0, "target": "0", "filtered_resps": [[NaN, false]], "input": "?"}\n', "neither an answer nor"),
        ('{"doc_id": 0, "target": "", "filtered_resps": "x", "input": "?"}\n', "no row has a reference"),
        ('{"doc_id": 0, "target": "x", "filtered_resps": "x", "input": "?"}\n' * 2, ":2: document 0 was there before"),
        ('{"doc_id": 0, "tar', ":1 is not JSON"),
        ("[]\n", ":1 has no 'doc_id'"),
        ("", "is empty"),
    ],
)
def test_a_log_of_another_version_or_one_cut_short_is_one_sentence(tmp_path, capsys, content, sentence):
    path = tmp_path / "1_samples_docvqa_val.jsonl"
    path.write_text(content, encoding="utf-8")
    assert sentence in refusal(capsys, report, path)


@pytest.mark.parametrize(("task", "value"), [("seedbench", 50.0), ("mmbench_en_dev", 75.0)])
def test_options_of_a_suite_stand_in_what_lmms_eval_asked(tmp_path, task, value):
    asked = "Which?\nA. moon\nB. sun\nAnswer with the option's letter from the given choices directly."
    path = tmp_path / f"1_samples_{task}.jsonl"
    path.write_text(
        "".join(
            json.dumps({"doc_id": row, "target": "B", "filtered_resps": answer, "input": asked}) + "\n"
            for row, answer in enumerate(("B", "B. sun", "(B)", "A"))
        )
    )
    assert open_any_run(path).tasks[task].headline["value"] == value


@pytest.mark.parametrize("metric", ["pope", "mme", "hallusionbench", "mmbench", "mathvista_choice", "seedbench"])
def test_a_metric_that_reads_what_a_log_does_not_hold_is_refused(capsys, metric):
    said = refusal(capsys, report, WHOLE, "--metric", metric)
    assert f"row 0: {metric} cannot score it: " in said


@pytest.mark.parametrize("answer", ["", "AB", "D", "Z"])
def test_an_answer_that_is_no_option_is_no_letter_of_one(tmp_path, capsys, answer):
    columns = "index\tquestion\tanswer\tprediction\tA\tB\n"
    path = sheet(tmp_path / "m_AI2D_TEST.tsv", f"0\tWhich?\t{answer}\tA\tmoon\tsun", columns=columns)
    if not answer:
        assert "no row has a reference; only a split with answers" in refusal(capsys, report, path)
        return
    (task,) = open_any_run(path).tasks.values()
    assert task.lines[0]["references"] == [answer]


def test_other_mistakes_are_one_sentence(tmp_path, capsys):
    unknown = shutil.copy(LOGS / "options" / next((LOGS / "options").iterdir()).name, tmp_path / "1_samples_a.jsonl")
    assert "no metric is known for task a; name one with --metric" in refusal(capsys, report, unknown)
    assert "--metric anl is no metric; nearest: anls" in refusal(capsys, report, unknown, "--metric", "anl")
    assert "needs 2" not in refusal(capsys, report, tmp_path / "none")
    few = shutil.copy(unknown, tmp_path / "1_samples_textvqa_val.jsonl")
    assert "row 0 has 1 reference, and vqa_score needs" in refusal(capsys, report, few)
    ours = write_task(tmp_path / "ours", "t", [("a", ["a"])])
    assert "evaluators; " in (said := refusal(capsys, compare, ours, ours, "--metric", "anls"))
    assert "ours is scored by accuracy" in said
    assert compare.main([str(ours), str(ours), "--metric", "accuracy"]) == 0
    capsys.readouterr()
    unasked = sheet(tmp_path / "m_DocVQA_VAL.tsv", "0\tWho?\tx\tx", "1\tWho?\tx\tFailed to obtain answer via API.")
    assert "1 of 2 answers are none, first in row 1" in refusal(capsys, report, unasked)
    other = tmp_path / "some.json"
    other.write_text("{}")
    assert "is no log that is known" in refusal(capsys, report, other)
    for name, columns in (("a_b.tsv", "index\tquestion\tanswer\n"), ("c_d.tsv", "")):
        assert refusal(capsys, report, sheet(tmp_path / name, columns=columns), "--metric", "anls")
    assert "has no column 'prediction'" in refusal(capsys, report, tmp_path / "a_b.tsv", "--metric", "anls")
    assert "has no row" in refusal(capsys, report, sheet(tmp_path / "e_f.tsv"), "--metric", "anls")
