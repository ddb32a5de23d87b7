"""Corpus metrics: F1 by hand, the nearest option, OCRBench by kind, and sums that a bootstrap can resample."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from eval.metrics import METRICS, ceiling, corpus, due_f1
from eval.metrics.corpus import Item
from eval.metrics.yes_no import SUBTASKS

CORPUS_VARIANTS = [(metric, variant) for metric, row in METRICS.items() for variant in row.corpus]


def asked(document: str, key: str, prediction: str, *references: str) -> Item:
    return Item(prediction, references, document, f"What is the value for the {key}?")


def score(metric: str, variant: str, items, population=None) -> float:
    return corpus.score(METRICS[metric].corpus[variant], items, population)


class TestF1OverPairs:
    # Two documents. First: one value right, one invented where there is none, one abstention where there is a value.
    # Second: one right in another case and spelling, one wrong.
    ITEMS = (
        asked("one", "gross_amount", "$1,250.00", "$1,250.00"),
        asked("one", "contract_num", "4711", "None"),
        asked("one", "advertiser", "None", "Acme"),
        asked("two", "advertiser", "acme inc.", "Acme", "ACME Inc."),
        asked("two", "flight_from", "01/02/20", "02/02/20"),
    )

    def test_it_is_what_the_definition_gives_by_hand(self):
        # Pairs predicted: $1,250.00; 4711; acme inc.; 01/02/20 = 4, of which 2 right: precision 2/4.
        # Pairs of the reference: $1,250.00; Acme; Acme Inc.; 02/02/20 = 4, of which 2 found: recall 2/4.
        assert score("due_f1", "precision", self.ITEMS) == 0.5
        assert score("due_f1", "recall", self.ITEMS) == 0.5
        assert score("due_f1", "official", self.ITEMS) == pytest.approx(0.5)
        # One answer "None" more drops a wrong pair: precision 2/3, recall 2/4, F1 2·(2/3)(1/2)/(2/3+1/2) = 4/7.
        abstained = [replace(item, prediction="none") if item.prediction == "4711" else item for item in self.ITEMS]
        assert score("due_f1", "official", abstained) == pytest.approx(4 / 7)

    def test_a_value_counts_only_under_its_key_and_in_its_document(self):
        swapped = [asked("one", "flight_from", "B", "A"), asked("one", "flight_to", "A", "B")]
        assert score("due_f1", "official", swapped) == 0.0
        elsewhere = [asked("one", "advertiser", "B", "A"), asked("two", "advertiser", "A", "B")]
        assert score("due_f1", "official", elsewhere) == 0.0

    def test_a_row_may_name_its_key_and_several_values(self):
        more = {"key": "charity_name", "values": [["Hope", "HOPE Ltd"], ["Faith"]]}
        items = [Item("hope ltd", ("Hope", "HOPE Ltd", "Faith"), "one", "Who is it?", more)]
        assert score("due_f1", "precision", items) == 1.0
        assert score("due_f1", "recall", items) == 0.5
        assert ceiling("due_f1", "official", items) == pytest.approx(2 / 3)
        assert score("due_f1", "official", [replace(items[0], prediction="Faith", more={**more, "values": []})]) == 0.0

    @pytest.mark.parametrize(
        ("question", "key"),
        [
            ("What is the value for the gross_amount?", "gross_amount"),
            ("What is the Gross Amount?", "gross_amount"),
            ("Who paid?", "who paid"),
            ("Is the advertiser the charity name?", "is the advertiser the charity name"),
        ],
    )
    def test_the_key_is_read_from_the_question(self, question, key):
        assert due_f1.key_of(question) == key


class TestNearestOption:
    QUESTION = "Question: Which is round?\nOptions:\nA. half moon\nB. full moon\nC. a square"

    @pytest.mark.parametrize(
        ("prediction", "expected"),
        [
            *(("B", 1.0), ("full moon", 1.0), ("the full moon", 1.0), ("A", 0.0), ("half moon", 0.0), ("square", 0.0)),
            *(("fool moon", 1.0), ("", 0.0), ("(b)", 1.0), ("A. full moon", 0.0), ("b. fool moon", 1.0)),
        ],
    )
    def test_an_answer_is_taken_for_the_option_it_is_nearest_to(self, prediction, expected):
        item = Item(prediction, ("B", "full moon"), "image", self.QUESTION)
        assert score("choice_accuracy", "nearest_option", [item]) == expected

    def test_options_may_stand_in_the_row(self):
        item = Item("fool moon", ("full moon",), "image", "Which?", {"options": ["half moon", "full moon"]})
        assert score("choice_accuracy", "nearest_option", [item]) == 1.0
        assert score("choice_accuracy", "nearest_option", [replace(item, more={})]) == 0.0


def test_formulas_are_scored_by_their_own_rule():
    latex = "Please write out the expression of the formula in the image using LaTeX format."
    formula = Item("x = A + 1", ("x=A+1",), "image", latex)
    text = Item("It says STOP\nhere", ("stop here",), "image", "What is written?")
    assert score("ocrbench", "official", [formula, text]) == 1.0
    assert score("ocrbench", "official", [replace(formula, prediction="x = a + 1")]) == 0.0
    assert score("ocrbench", "official", [replace(formula, question="What?")]) == 0.0
    named = replace(formula, question="What?", more={"dataset_name": "HME100k"})
    assert score("ocrbench", "official", [named]) == 1.0


WORDS = ["a", "man", "rides", "the", "red", "bike", "dog's", "None", "B", "2.5", "", "near", "(x)"]


OPTIONS = ["a man", "red bike", "the bike"]


def random_items(metric: str = "due_f1", count: int = 24, seed: int = 5) -> list[Item]:
    """Rows that the metric can score, answered by chance."""
    generator = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(generator.choices(WORDS, k=length))

    if metric in OF_SUITES:
        return [
            suite_item(metric, number % 7, generator.choice(["Yes", "no", "A", "B.", "the bike", ""]), generator)
            for number in range(count)
        ]
    return [
        Item(
            text(generator.randint(0, 6)),
            tuple(text(generator.randint(1, 6)) for _ in range(generator.randint(1, 4))),
            f"image {generator.randint(0, 6)}",
            generator.choice(["What is the advertiser?", "What is the gross amount?", "Options:\nA. man\nB. red bike"]),
        )
        for _ in range(count)
    ]


OF_SUITES = ("pope", "mme", "hallusionbench", "mmbench", "seedbench", "mathvista_choice")
"""Metrics that read more of a row than any row has."""


def suite_item(metric: str, unit: int, prediction: str, generator: random.Random) -> Item:
    keys = {"category": generator.choice(SUBTASKS), "subcategory": "x", "set_id": "0", "rotation": 0}
    keys |= {"figure_id": str(generator.randint(0, 1)), "question_number": str(generator.randint(0, 2)), "group": unit}
    by_word = metric in ("pope", "mme", "hallusionbench")
    reference = generator.choice(("Yes", "No")) if by_word else generator.choice("ABC")
    return Item(prediction, (reference,), f"image {unit}", "Which?", {**keys, "options": OPTIONS})


@pytest.mark.parametrize(("metric", "variant"), CORPUS_VARIANTS)
class TestEveryCorpusVariant:
    def test_scores_stay_in_range_and_inputs_as_they_were(self, metric, variant):
        row = METRICS[metric].corpus[variant]
        for seed in range(5):
            items = random_items(metric, seed=seed)
            before = list(items)
            value = corpus.score(row, items)
            assert 0.0 <= value <= row.highest
            assert items == before
            if row.item_scores is not None:
                scores = row.item_scores(items, [item.references for item in items])
                assert sum(scores) / len(items) == pytest.approx(value, abs=1e-12)
            turned = [replace(item, references=item.references[::-1]) for item in items[::-1]]
            assert corpus.score(row, turned) == pytest.approx(value, abs=1e-12)

    def test_no_rows_and_no_answers_score_nothing(self, metric, variant):
        items = [Item("", ("a red bike",), "image", "What is the advertiser?")]
        if metric in OF_SUITES:
            # POPE takes an empty answer for a yes; MathVista's script, as written, for the shortest option.
            nothing = {"pope": "No", "mme": "Yes", "hallusionbench": "Yes"}.get(metric, "B")
            items = [replace(suite_item(metric, 0, "", random.Random(0)), references=(nothing,))]
        if variant == "yes_ratio":
            items = [replace(items[0], prediction="no")]
        assert score(metric, variant, []) == score(metric, variant, items) == 0.0

    def test_the_ceiling_is_what_the_echo_scores_whatever_was_predicted(self, metric, variant):
        items = [Item("x", ("a red bike by the sea", "red bike by the sea"), f"{n}", f"Question {n}") for n in range(3)]
        items.append(Item("", ("two dogs run on wet sand",), "3", "Question 3"))
        if metric in OF_SUITES:
            items = [suite_item(metric, number, "", random.Random(number)) for number in range(9)]
        if variant == "yes_ratio":
            items = [replace(item, references=("Yes",)) for item in items]
        highest = ceiling(metric, variant, items)
        assert highest == ceiling(metric, variant, [replace(item, prediction="other") for item in items])
        assert highest > 0.0
        if (metric, variant) == ("mme", "official"):
            assert highest == 2.0 * len({item.more["category"] for item in items})
        elif metric != "cider":
            assert highest == 1.0
        assert ceiling(metric, variant, []) is None

    def test_resampling_units_is_scoring_the_rows_drawn(self, metric, variant):
        row, items = METRICS[metric].corpus[variant], random_items(metric)
        population = [item.references for item in items]
        sums = corpus.unit_sums(row, items, population)
        assert {len(numbers) for numbers in sums.values()} == {len(row.sum_names)}
        units = list(sums)
        table = np.array([sums[unit] for unit in units])
        counts = np.random.default_rng(0).multinomial(len(units), [1 / len(units)] * len(units), size=20)
        values = corpus.combine_columns(row)(counts @ table)
        assert values.shape == (20,)
        assert corpus.combine_columns(row) is corpus.combine_columns(row)
        for draw, value in zip(counts, values, strict=True):
            copies = [
                # Each copy of a unit is a unit of its own.
                replace(item, unit=f"{item.unit} copy {copy}")
                for unit, count in zip(units, draw, strict=True)
                for copy in range(count)
                for item in items
                if item.unit == unit
            ]
            # Whatever was drawn, words weigh as in the whole set.
            drawn = row.unit_sums(copies, population)
            expected = row.combine(*corpus.total(row, drawn.values()))
            assert value == pytest.approx(expected, abs=1e-12)


def test_a_part_of_a_set_is_weighed_by_the_whole_set():
    items = [Item("a red bike", ("a red bike",), "1"), Item("a dog", ("a dog",), "2"), Item("a cat", ("a cat",), "3")]
    whole = [item.references for item in items]
    alone, in_the_set = score("cider", "official", items[:1]), score("cider", "official", items[:1], whole)
    assert alone == 0.0  # every word is in every image's references
    assert in_the_set > 5.0
    (first, *_) = METRICS["cider"].corpus["official"].item_scores(items, whole)
    assert in_the_set == pytest.approx(first)


def test_a_population_smaller_than_its_answers_is_refused():
    with pytest.raises(ValueError, match="3 answers cannot come from a set of 1 rows"):
        score("cider", "official", random_items(count=3), [("a",)])
