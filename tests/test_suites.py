"""POPE, MME, MMBench, HallusionBench, SEED-Bench and MathVista: scored as their scripts do, read from both their forms.

suite_cases.json holds made answers and what the scripts say of them, recorded by running those.
"""

from __future__ import annotations

import base64
import csv
import json
import string
from dataclasses import replace
from pathlib import Path

import pytest

import evaluate_vqa
from eval.metrics import METRICS, corpus
from eval.metrics.choice import options_of_item
from eval.metrics.corpus import Item
from eval.metrics.suite_choices import infer_option
from eval.metrics.yes_no import SUBTASKS, read_either, read_mme, read_pope
from eval.prepare import prepare
from eval.questions import load_question_set
from eval.score import part_of
from eval.suites import SUITES
from eval.tasks import GROUPS, TASKS
from tests.made_shards import png, write_table
from tests.official_releases import RELEASES, lines
from tests.test_stored_questions import SUITE_ROWS

CASES = json.loads((Path(__file__).parent / "suite_cases.json").read_text(encoding="utf-8"))


def scored(metric: str, variant: str, items: list[Item]) -> float:
    return corpus.score(METRICS[metric].corpus[variant], items)


# As the scripts score


@pytest.mark.parametrize(("read", "name"), [(read_pope, "pope"), (read_mme, "mme"), (read_either, "either")])
def test_yes_and_no_are_read_as_each_script_reads_them(read, name):
    for case in CASES["readings"]:
        expected = case[name] if case[name] in ("yes", "no") else None
        assert read(case["answer"]) == expected, case["answer"]


@pytest.mark.parametrize("variant", CASES["pope"]["scores"])
def test_pope_scores_as_its_script(variant):
    items = [Item(answer, (label,), f"{row % 7}") for row, (answer, label) in enumerate(CASES["pope"]["rows"])]
    assert scored("pope", variant, items) == pytest.approx(CASES["pope"]["scores"][variant], abs=1e-12)


def mme_items() -> list[Item]:
    return [
        Item(answer, (gold,), f"{subtask}/{image}", more={"category": subtask, "pair": image})
        for subtask, image, gold, answer in CASES["mme"]["rows"]
    ]


def test_mme_adds_accuracy_and_accuracy_by_image_over_the_subtasks():
    items, found = mme_items(), {}
    for ability in ("perception", "cognition"):
        own = [item for item in items if part_of("mme", "ability", item) == ability]
        found[ability] = 100.0 * scored("mme", "official", own)
        assert found[ability] == pytest.approx(CASES["mme"][ability])
    assert 100.0 * scored("mme", "official", items) == pytest.approx(sum(found.values()))
    right = [replace(item, prediction=item.references[0]) for item in items]
    assert 100.0 * scored("mme", "official", right) == pytest.approx(200.0 * len(SUBTASKS))
    # One wrong answer takes half of its image's accuracy, and all of its accuracy+.
    one_wrong = [replace(right[0], prediction="No"), *right[1:]]
    lost = scored("mme", "official", right) - scored("mme", "official", one_wrong)
    assert lost == pytest.approx(1 / 6 + 1 / 3)
    # Without a name of the pair its image is what the two share.
    unnamed = [replace(item, more={"category": item.more["category"]}) for item in items]
    assert scored("mme", "official", unnamed) == scored("mme", "official", items)


def test_hallusionbench_scores_questions_figures_and_pairs_as_its_script():
    rows = CASES["hallusionbench"]["rows"]
    asked = [SUITES["hallusionbench"].ask(row, "row") for row in rows]
    items = [
        Item(row["prediction"], (one.answer,), one.more["document"], one.question, one.more)
        for row, one in zip(rows, asked, strict=True)
    ]
    for variant in ("official", "fAcc"):
        assert scored("hallusionbench", variant, items) == pytest.approx(CASES["hallusionbench"][variant])
    of_vd = [item for item in items if item.more["category"] == "VD"]
    assert scored("hallusionbench", "qAcc", of_vd) == pytest.approx(CASES["hallusionbench"]["qAcc_of_VD"])


def mmbench_items() -> list[Item]:
    return [
        Item(row["prediction"], (row["answer"],), f"{row['group']}.png", "Which?", row)
        for row in CASES["mmbench"]["rows"]
    ]


def test_mmbench_reads_options_as_vlmevalkit_does():
    for row, item in zip(CASES["mmbench"]["rows"], mmbench_items(), strict=True):
        expected = None if row["read"] == "Z" else row["read"]
        assert infer_option(row["prediction"], options_of_item(item)) == expected, row


def test_mmbench_is_right_where_every_order_of_the_options_is():
    items = mmbench_items()
    assert scored("mmbench", "official", items) == pytest.approx(CASES["mmbench"]["official"])
    first = [item for item in items if item.more["rotation"] == 0]
    assert scored("mmbench", "vanilla", items) == scored("mmbench", "each_order", first)
    right = [replace(item, prediction=item.references[0]) for item in items]
    groups = len({item.more["group"] for item in items})
    last = [*right[:-1], replace(right[-1], prediction="none")]
    assert scored("mmbench", "official", last) == pytest.approx(1 - 1 / groups)
    assert scored("mmbench", "vanilla", last) == 1.0


def test_mathvista_takes_the_option_that_its_script_takes():
    variant = METRICS["mathvista_choice"].corpus["as_written"]
    for case in CASES["mathvista"]:
        for letter, text in zip(string.ascii_uppercase, case["choices"], strict=False):
            item = Item(case["prediction"], (letter,), "x", "?", {"options": case["choices"]})
            assert corpus.score(variant, [item]) == float(text == case["chosen"]), (case, letter)


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        *(("(B) 140°", 1), ("B", 1), ("140°", 1), ("140", 1), ("The answer is B.", 1), ('The answer is "140°".', 1)),
        *(("So the angle is 140°, as they are alike.", 1), ("A", 0), ("Thus, the answer is A (135°).", 0), ("", 0)),
        ("No, it is 135° as drawn.", 0),
    ],
)
def test_mathvista_takes_the_answer_out_by_rule(prediction, right):
    item = Item(prediction, ("B",), "x", "?", {"options": ["135°", "140°"]})
    assert scored("mathvista_choice", "official", [item]) == right


def test_options_of_one_text_are_one_option():
    item = Item("C", ("A",), "x", "?", {"options": ["5", "6", "5"]})
    assert scored("mathvista_choice", "official", [item]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "official", "identical"),
    [("B", 1, 1), ("b", 1, 0), ("B. a cat", 1, 0), ("Both", 1, 0), ("A", 0, 0), ("The answer is B.", 0, 0), ("", 0, 0)],
)
def test_seedbench_looks_at_the_first_character(prediction, official, identical):
    item = Item(prediction, ("B",), "x", "?", {"options": ["a dog", "a cat"]})
    assert scored("seedbench", "official", [item]) == official
    assert METRICS["seedbench"].variants["identical"].score(prediction, ("B",)) == identical


@pytest.mark.parametrize(
    ("metric", "row", "sentence"),
    [
        ("pope", {"answer": "maybe"}, "the answer must be Yes or No, and it is 'maybe'"),
        ("mme", {"answer": "Yes", "category": "smell"}, "'category' must be a subtask of MME (existence, count"),
        ("mmbench", {"answer": "A", "options": ["a", "b"]}, "'group' must be a whole number, and it is None"),
        ("hallusionbench", {"answer": "Yes", "category": "VD"}, "'subcategory' is missing"),
        ("mathvista_choice", {"answer": "A"}, "there are no 'options'"),
        ("seedbench", {"answer": "E", "options": ["a", "b"]}, "must be the letter of an option (A, B), and it is 'E'"),
    ],
)
def test_a_set_that_its_metric_cannot_score_is_refused_before_it_is_asked(metric, row, sentence, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png(1))
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"image": "a.png", "question": "Is it?", "question_id": 1, **row}) + "\n")
    words = ["--dataset", str(file), "--metric", metric, "--backend", "oracle", "--save_name", "x"]
    assert evaluate_vqa.main([*words, "--output-dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"own.jsonl:1: {metric} cannot score this row: " in said
    assert sentence in said
    assert not (tmp_path / "out").exists()
    assert evaluate_vqa.main(["--check-data", *words[:4]]) == 1
    assert "lacks what its metric reads" in capsys.readouterr().out


# Both forms of each


def test_every_suite_has_a_task_of_its_release_and_one_of_the_hub():
    releases = [TASKS[name] for name in GROUPS["suites"]]
    hub = [TASKS[name] for name in GROUPS["hub"] if TASKS[name].metric in {task.metric for task in releases}]
    shared = ("metric", "headline", "n_expected", "parts", "max_new_tokens", "note")
    assert [[getattr(task, key) for key in shared] for task in hub] == [
        [getattr(task, key) for key in shared] for task in releases
    ]


TABLES = {"mmbench_dev_en": "dev", "hallusionbench": "image", "mathvista_choice": "testmini"}
"""The split of the hub form that is asked, where it is not test."""


@pytest.mark.parametrize("name", GROUPS["suites"])
def test_a_release_in_the_hub_form_gives_the_questions_of_that_form(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MONKEY_CACHE", str(tmp_path / "cache"))
    rows = SUITE_ROWS[TASKS[name].metric]
    (tmp_path / "release/data").mkdir(parents=True)
    table = tmp_path / f"release/data/{TABLES.get(name, 'test')}-00000-of-00001.parquet"
    if name == "mmbench_dev_en":
        # The same split in another language lies beside it.
        (tmp_path / "release/cn").mkdir()
        write_table(tmp_path / "release/cn" / table.name, rows)
        (tmp_path / "release/data").rename(tmp_path / "release/en")
        table = tmp_path / "release/en" / table.name
    write_table(table, rows)
    prepare(name, tmp_path / "release", tmp_path / "root", allow_count=True)
    prepared = load_question_set(TASKS[name], tmp_path / "root").questions
    stored = load_question_set(replace(TASKS[name], file=str(table), own_file=True)).questions
    assert [row.image.read_bytes() for row in prepared] == [row.image.read_bytes() for row in stored]
    for one, other in zip(prepared, stored, strict=True):
        assert (one.question, one.answers, one.question_id) == (other.question, other.answers, other.question_id)
        assert one.more == other.more


def test_the_two_forms_ask_alike(tmp_path):
    for name in GROUPS["suites"]:
        RELEASES[name](tmp_path / name)
        prepare(name, tmp_path / name, tmp_path / "root", allow_count=True)
        found = lines(tmp_path / "root", name)[0]
        stored = SUITES[{"mathvista_choice": "mathvista"}.get(name) or TASKS[name].metric]
        asked = stored.ask(SUITE_ROWS[TASKS[name].metric][0], "row")
        assert set(found) == {"image", "question", "answer", "question_id", *asked.more}
        assert found["question"].splitlines()[-1] == asked.question.splitlines()[-1]


# What of a release cannot be read


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ({"image": "77"}, "'image' is '77', and no row has that index"),
        ({"image": "!" * 80}, "'image' is no base64"),
        ({"image": base64.b64encode(b"x" * 80).decode()}, "is not an image that can be read"),
        ({"answer": "D"}, "'answer' is 'D', and there are 2 options, A, B"),
        ({"answer": ""}, "there is no 'answer'; MMBench keeps those of its test split"),
        ({"A": ""}, "the options B do not follow each other from A on"),
        ({"index": "1"}, "question_id 1 was given before"),
        ({"index": "x"}, "'index' must be a whole number, found 'x'"),
    ],
)
def test_a_row_of_mmbench_that_is_none_is_one_sentence(cells, sentence, tmp_path):
    RELEASES["mmbench_dev_en"](tmp_path / "release")
    path = tmp_path / "release/MMBench_DEV_EN.tsv"
    with path.open(newline="") as file:
        heads, *rows = csv.reader(file, delimiter="\t")
    rows[-1] = [cells.get(head, cell) for head, cell in zip(heads, rows[-1], strict=True)]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([heads, *rows])
    with pytest.raises(ValueError, match=rf"MMBench_DEV_EN\.tsv:{len(rows) + 1}") as caught:
        prepare("mmbench_dev_en", tmp_path / "release", tmp_path / "root", allow_count=True)
    assert sentence in str(caught.value)
    assert not (tmp_path / "root").exists()


def test_a_text_of_mme_has_two_questions(tmp_path):
    RELEASES["mme"](tmp_path / "release")
    (path,) = (tmp_path / "release").rglob("count/*.txt")
    path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(ValueError, match=r"count/0001\.txt: expected two lines of a question, a tab and an answer"):
        prepare("mme", tmp_path / "release", tmp_path / "root", allow_count=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no count and no MME_Benchmark_release_version/count"):
        prepare("mme", tmp_path / "release", tmp_path / "root", allow_count=True)
