"""A run of corpus metrics: scores of rows in the lines, units for the intervals, the whole set under a limit."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from eval.backends import OracleBackend
from eval.compare import compare_runs
from eval.run import RunSettings, run
from eval.run_folder import open_run
from eval.score import main as score_again
from eval.tasks import select_tasks

CAPTIONS = ["a man rides a red bike", "two dogs run on the beach", "a sign that says stop", "a plate of green food"]


def captions(folder):
    rows = []
    for number, caption in enumerate(CAPTIONS):
        Image.new("RGB", (8, 8), (60 * number, 90, 120)).save(folder / f"{number}.png")
        references = [caption, caption.replace("a ", "the ", 1), f"here is {caption}"]
        rows.append({"image": f"{number}.png", "question": "Caption?", "answer": references, "question_id": number})
    return written(folder, rows, "cider")


def forms(folder):
    rows = []
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 90, 120)).save(folder / f"{number}.png")
        for key, value in (("advertiser", f"Acme {number}"), ("gross_amount", "None" if number % 2 else "$5.00")):
            more = {"document": f"form {number}", "key": key, "values": [] if value == "None" else [[value]]}
            question = f"What is the value for the {key}?"
            row = {"image": f"{number}.png", "question": question, "answer": [value], "question_id": len(rows), **more}
            rows.append(row)
    return written(folder, rows, "due_f1")


def written(folder, rows, metric):
    (folder / f"{metric}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,) = select_tasks(str(folder / f"{metric}.jsonl"), metric)
    return task


def answered(task, folder, backend=OracleBackend, **settings):
    (results,) = run([task], RunSettings(folder, show_progress=False, **settings), backend)
    return results


class Wrong(OracleBackend):
    """Answers with the question."""

    def _answer(self, request):
        return super()._answer(request).__class__(request.row, request.question.question, 1, "end")


@pytest.mark.parametrize("data", [captions, forms])
def test_the_oracle_reaches_the_ceiling_of_every_variant_it_answers_for(data, tmp_path):
    scores = answered(data(tmp_path), tmp_path / "run")["scores"]
    assert scores["official"]["value"] == pytest.approx(scores["official"]["ceiling"])
    assert scores["official"]["clusters"] == 4


def test_f1_of_a_run_has_documents_for_units_and_reaches_100(tmp_path):
    scores = answered(forms(tmp_path), tmp_path / "run")["scores"]
    assert (scores["official"]["value"], scores["official"]["n"]) == (100.0, 4)
    assert scores["exact"]["n"] == 8
    # '$5.00' loses its dot, so the published script cannot find it.
    assert scores["original"]["value"] == 75.0


def test_a_limited_run_weighs_words_as_the_whole_set_does(tmp_path):
    task = captions(tmp_path)
    answered(task, tmp_path / "whole")
    answered(task, tmp_path / "part", limit=1)
    whole, part = (open_run(tmp_path / name).tasks["cider"] for name in ("whole", "part"))
    assert part.lines[0]["scores"] == whole.lines[0]["scores"]
    assert len(part.population) == len(CAPTIONS)


@pytest.mark.parametrize("data", [captions, forms])
def test_scoring_again_gives_the_same_bytes(data, tmp_path, capsys):
    task = data(tmp_path)
    answered(task, tmp_path / "run", limit=3)
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    assert score_again([str(tmp_path / "run"), "--check"]) == 0, capsys.readouterr().out
    assert score_again([str(tmp_path / "run")]) == 0
    for path in (tmp_path / "before").rglob("*.json*"):
        assert path.read_bytes() == (tmp_path / "run" / path.relative_to(tmp_path / "before")).read_bytes()


@pytest.mark.parametrize("data", [captions, forms])
def test_runs_compare_by_their_official_score(data, tmp_path):
    task = data(tmp_path)
    answered(task, tmp_path / "wrong", Wrong)
    answered(task, tmp_path / "right")
    (compared,) = compare_runs(open_run(tmp_path / "wrong"), open_run(tmp_path / "right")).tasks
    assert compared.difference.value > 0.5
    assert (compared.difference.wins, compared.difference.losses) == (4, 0)
