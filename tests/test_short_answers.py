"""Answers to single keys and OCRBench v2's short answers, beside figures recorded from the published scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.metrics import METRICS, ceiling, due_f1, score, short_answers
from eval.metrics.corpus import Item
from eval.metrics.corpus import score as corpus_score

RECORDED = json.loads((Path(__file__).parent / "short_answer_cases.json").read_text(encoding="utf-8"))
CASES = [(rule, case) for rule, cases in RECORDED.items() for case in cases]


@pytest.mark.parametrize(("rule", "case"), CASES)
def test_a_score_is_that_of_the_published_script(rule, case):
    given = case["prediction"], tuple(case["references"])
    ours = (
        score("key_information", "original", *given) if rule == "textmonkey" else getattr(short_answers, rule)(*given)
    )
    assert ours == pytest.approx(case["score"], abs=1e-6)


def item(prediction: str, *references: str, **more: str) -> Item:
    return Item(prediction, references, "image", "q", more)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (item("A.", "A", type="science QA en", eval="multiple choice"), 1.0),
        (item("It is A", "A", type="science QA en", eval="multiple choice"), 0.0),
        (item("Bus", "bus", type="text recognition en", eval="case sensitive"), 0.0),
        (item("Bus", "bus", type="text recognition en"), 1.0),
        (item("佳 霓", "佳霓", type="reasoning VQA cn"), 1.0),
        (item("佳 霓", "佳霓", type="cognition VQA en"), 0.0),
        (item("A、B", "AB", type="handwritten answer extraction cn"), 1.0),
        (item("A-B", "AB", type="handwritten answer extraction cn"), 0.0),
        (item("11", "12", type="text counting en", eval="regression"), 11 / 12),
        (item("112", "12", type="text counting en", eval="exact match"), 1.0),
        (item("X ^ 2", "x^2", type="formula recognition en"), 0.0),
        (item("a Bus", "bus"), 1.0),
    ],
)
def test_ocrbench_v2_is_scored_by_the_type_of_its_row(given, expected):
    assert short_answers.scores([given], []) == [pytest.approx(expected)]
    assert corpus_score(METRICS["ocrbench_v2"].corpus["official"], [given]) == pytest.approx(expected)


def test_entities_of_receipts_count_as_written_where_those_of_due_do_not_mind_case():
    rows = [("OJC", "OJC", "company"), ("ojc", "OJC", "company"), ("none", "9.00", "total"), ("1/2", "1/2 ", "date")]
    items = [
        Item(answer, (right,), f"receipt {number}", "q", {"key": key})
        for number, (answer, right, key) in enumerate(rows)
    ]
    # Three answers, two of them right, of four: 'none' is no answer.
    assert corpus_score(due_f1.ENTITY_F1, items) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert corpus_score(due_f1.VARIANTS["official"], items[:2]) == 1.0
    assert ceiling("key_information", "official", items) == 1.0
