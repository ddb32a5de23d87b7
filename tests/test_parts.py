"""Where a set tells its questions apart, each part has its own scores, whatever the rows say it by."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from eval.backends import Answer, EchoBackend, OracleBackend
from eval.metrics.corpus import Item
from eval.prepare import prepare
from eval.report import report_html
from eval.run import run
from eval.run_folder import open_run
from eval.score import MOST_PARTS, part_of
from eval.score import main as score_again
from eval.tasks import TASKS, select_tasks
from tests.official_releases import RELEASES
from tests.test_evaluation import row, settings, write_set


class RightOnTheFirst(OracleBackend):
    """Knows the first two rows of a file and says 'no' to the others."""

    def _answer(self, request):
        return super()._answer(request) if request.row < 2 else Answer(request.row, "no", 1, "end")


@pytest.fixture
def charts(tmp_path):
    """Two questions of people, about one chart, and three augmented ones."""
    parts = ("human", "human", "augmented", "augmented", "augmented")
    rows = [row(number, answer=["x", "1.5"][number % 2], part=part) for number, part in enumerate(parts)]
    rows = [{**one, "image": f"images/{one['part'] == 'human':d}.png"} for one in rows]
    write_set(tmp_path, rows, TASKS["chartqa"].file)
    return tmp_path


def asked(task, root, folder, backend=RightOnTheFirst) -> dict:
    (results,) = run([task], settings(folder, data_root=root), backend)
    return results


def test_each_part_has_every_variant_with_interval_and_ceiling(charts):
    results = asked(TASKS["chartqa"], charts, charts / "run")
    assert results["scores"]["official"]["value"] == 40.0
    human, augmented = results["parts"]["part"]["human"], results["parts"]["part"]["augmented"]
    assert (human["rows"], augmented["rows"]) == (2, 3)
    assert set(human["scores"]) == set(results["scores"])
    assert (human["scores"]["official"]["value"], augmented["scores"]["official"]["value"]) == (100.0, 0.0)
    assert augmented["scores"]["official"]["ceiling"] == 100.0
    assert augmented["scores"]["official"]["interval"][1] < 100.0
    assert human["scores"]["official"]["clusters"] == 1


def test_the_summary_and_the_page_show_parts(charts):
    asked(TASKS["chartqa"], charts, charts / "run")
    summary = (charts / "run" / "summary.md").read_text()
    assert re.search(r"\| chartqa, part \| augmented \| 3 \| 0\.00 \|", summary)
    assert re.search(r"\| chartqa, part \| human \| 2 \| 100\.00 \|", summary)
    page = report_html(open_run(charts / "run"))
    assert re.search(r"<td[^>]*>human</td>\s*<td[^>]*>2</td>\s*<td[^>]*>100\.00</td>", page)


def test_rows_without_parts_leave_no_trace(tmp_path):
    write_set(tmp_path, [row(number) for number in range(3)], TASKS["chartqa"].file)
    results = asked(TASKS["chartqa"], tmp_path, tmp_path / "run", EchoBackend)
    assert "parts" not in results
    assert "told apart" not in (tmp_path / "run" / "summary.md").read_text()


def test_scoring_again_keeps_the_parts_to_the_byte(charts):
    asked(TASKS["chartqa"], charts, charts / "run")
    shutil.copytree(charts / "run", charts / "before")
    assert score_again([str(charts / "run")]) == 0
    for path in (path for path in (charts / "before").rglob("*") if path.is_file()):
        assert path.read_bytes() == (charts / "run" / path.relative_to(charts / "before")).read_bytes()


def test_what_the_annotation_file_says_of_a_question_tells_it_apart(tmp_path):
    task = TASKS["vqav2_val"]
    write_set(tmp_path, [row(number) for number in range(3)], task.file)
    entries = [
        {
            "question_id": 100 + number,
            "answer_type": kind,
            "question_type": "what is",
            "answers": [{"answer": "x", "answer_id": person} for person in range(10)],
        }
        for number, kind in enumerate(("yes/no", "number", "number"))
    ]
    (tmp_path / task.annotations).write_text(json.dumps({"annotations": entries}))
    parts = asked(task, tmp_path, tmp_path / "run")["parts"]
    assert {name: one["rows"] for name, one in parts["answer_type"].items()} == {"number": 2, "yes/no": 1}
    assert parts["answer_type"]["number"]["scores"]["official"]["value"] == 50.0
    assert list(parts["question_type"]) == ["what is"]


def test_f1_of_each_key_is_over_its_pairs(tmp_path):
    rows = [
        row(0, question="What is the value for the advertiser?", answer="Acme", image="images/0.png"),
        row(1, question="What is the value for the gross_amount?", answer="$5", image="images/0.png"),
        row(2, question="What is the value for the advertiser?", answer="Bolt", image="images/1.png"),
    ]
    write_set(tmp_path, rows, TASKS["deepform"].file)
    parts = asked(TASKS["deepform"], tmp_path, tmp_path / "run")["parts"]["key"]
    assert {key: one["scores"]["official"]["value"] for key, one in parts.items()} == {
        "advertiser": 50.0,
        "gross_amount": 100.0,
    }
    assert parts["advertiser"]["scores"]["official"]["n"] == 2


@pytest.mark.parametrize(
    ("types", "expected"),
    [({"structural": "query"}, "open"), ({"structural": "verify"}, "binary"), ({}, None), (None, None)],
)
def test_gqa_questions_are_open_where_they_query(types, expected):
    item = Item("", ("x",), "image", "?", {"types": types})
    assert part_of("gqa_accuracy", "binary_or_open", item) == expected


def test_a_key_that_every_row_has_another_value_of_is_refused_before_anything_is_asked(tmp_path):
    path = write_set(tmp_path, [row(number, shop=f"shop {number}") for number in range(MOST_PARTS + 1)])
    (tmp_path / "own.toml").write_text(f'file = "{path.name}"\nmetric = "accuracy"\nparts = ["shop"]\n')
    (task,) = select_tasks(str(tmp_path / "own.toml"))
    with pytest.raises(ValueError, match=r"sums\.jsonl: the rows have 201 values of 'shop', and a set has at most 200"):
        asked(task, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name in RELEASES if TASKS[name].parts])
def test_what_is_prepared_says_the_parts_of_its_task(name, tmp_path):
    (tmp_path / "release").mkdir()
    RELEASES[name](tmp_path / "release")
    prepare(name, tmp_path / "release", tmp_path / "root", allow_count=True)
    parts = asked(TASKS[name], tmp_path / "root", tmp_path / "run")["parts"]
    assert list(parts) == list(TASKS[name].parts)
