"""Questions answered by yes or no: POPE, MME and HallusionBench, each as its own script reads an answer.

POPE (Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", 2023), evaluate.py: whatever does
not say no in its first sentence is a yes. MME (Fu et al., "MME: A Comprehensive Evaluation Benchmark for Multimodal
Large Language Models", 2023), calculation.py: yes or no within the first four characters; two questions an image, and a
subtask's score is accuracy plus the share of images with both right. HallusionBench (Guan et al., "HallusionBench: An
Advanced Diagnostic Suite", 2024): its own script asks GPT-4 whether an answer is right; here the one of the words yes
and no that an answer holds is its answer, as VLMEvalKit reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from eval.metrics.corpus import CorpusVariant, Item, Population, Sums, by_unit, group_variant, mean_variant, ratio

YES, NO = "yes", "no"

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork"),
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = (*PERCEPTION, *COGNITION)
"""MME's, as its folders are named."""

_PREFIX = 4
_WORDS = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def read_pope(answer: str) -> str:
    """No where 'No', 'no' or 'not' is a word before the first full stop, else yes.

    Odd: an empty answer, 'NO' and 'none' are a yes; words are told apart by blanks alone, so 'no;' is one, too.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return NO if {"No", "not", "no"}.intersection(words) else YES


def read_mme(answer: str) -> str | None:
    """Yes or no, the first of them that is within the first four characters, case aside; None without either.

    Odd: 'not sure' and 'noon' are a no.
    """
    start = answer.lower()[:_PREFIX]
    return YES if YES in start else NO if NO in start else None


def read_either(answer: str) -> str | None:
    """The one of the words yes and no that the answer holds, case aside; None where it holds none or both."""
    held = {YES, NO}.intersection(_WORDS.findall(answer.lower()))
    return held.pop() if len(held) == 1 else None


def _agrees(read: Callable[[str], str | None]) -> Callable[[str, Sequence[str]], float]:
    def score(prediction: str, references: Sequence[str]) -> float:
        said = read(prediction)
        return float(said is not None and said in map(read, references))

    return score


agrees_in_mme = _agrees(read_mme)
_agrees_in_pope, _agrees_in_either = _agrees(read_pope), _agrees(read_either)


def _of_rows(score: Callable[[str, Sequence[str]], float]) -> Callable[[Sequence[Item], Population], list[float]]:
    return lambda items, population: [score(item.prediction, item.references) for item in items]


def find_verdict_fault(item: Item) -> str | None:
    """A sentence on a row whose reference is neither yes nor no; None where it is."""
    if item.references[0].strip().lower() in (YES, NO):
        return None
    return f"the answer must be Yes or No, and it is {item.references[0]!r}"


# POPE


def _count_verdicts(items: Sequence[Item], population: Population) -> Sums:
    """(yes for yes, yes for no, no for yes, rows) of each unit."""
    sums = {}
    for unit, places in by_unit(items).items():
        pairs = [(read_pope(items[place].prediction), read_pope(items[place].references[0])) for place in places]
        counts = (pairs.count(pair) for pair in ((YES, YES), (YES, NO), (NO, YES)))
        sums[unit] = (*map(float, counts), float(len(pairs)))
    return sums


def _precision(hits: Any, false_alarms: Any, misses: Any, rows: Any) -> Any:
    return ratio(hits, hits + false_alarms)


def _recall(hits: Any, false_alarms: Any, misses: Any, rows: Any) -> Any:
    return ratio(hits, hits + misses)


def _f1(hits: Any, false_alarms: Any, misses: Any, rows: Any) -> Any:
    return ratio(2 * hits, 2 * hits + false_alarms + misses)


def _yes_ratio(hits: Any, false_alarms: Any, misses: Any, rows: Any) -> Any:
    return ratio(hits + false_alarms, rows)


def _pope_variant(meaning: str, combine: Callable[..., Any]) -> CorpusVariant:
    return CorpusVariant(meaning, ("hits", "false_alarms", "misses", "rows"), _count_verdicts, combine)


POPE = {
    "official": _pope_variant("F1 of yes: no 'no' before the first full stop is a yes (POPE)", _f1),
    "accuracy": mean_variant("share of the questions answered rightly (POPE)", _of_rows(_agrees_in_pope)),
    "precision": _pope_variant("share of the answers yes that are right (POPE)", _precision),
    "recall": _pope_variant("share of the questions to be answered yes that were (POPE)", _recall),
    "yes_ratio": _pope_variant("share of the answers that are yes, right or wrong (POPE)", _yes_ratio),
}


# MME


def find_mme_fault(item: Item) -> str | None:
    """A sentence on a row without a subtask of MME or an answer of yes or no; None for one that has them."""
    category = item.more.get("category")
    if category not in SUBTASKS:
        return f"'category' must be a subtask of MME ({', '.join(SUBTASKS)}), and it is {category!r}"
    return find_verdict_fault(item)


def _image_of(item: Item) -> Any:
    """What the two questions of an image share: the name that its row gives, else the image."""
    return item.more.get("pair", item.unit)


def _subtask_sums(items: Sequence[Item], population: Population) -> Sums:
    """Of each unit, for every subtask in turn: (right rows, rows, images with all rows right, images)."""
    sums = {}
    for unit, places in by_unit(items).items():
        row: list[float] = []
        for subtask in SUBTASKS:
            own = [items[place] for place in places if items[place].more["category"] == subtask]
            right = [agrees_in_mme(item.prediction, item.references) for item in own]
            images: dict[Any, float] = {}
            for item, value in zip(own, right, strict=True):
                images[_image_of(item)] = min(images.get(_image_of(item), 1.0), value)
            row += (sum(right), float(len(own)), sum(images.values()), float(len(images)))
        sums[unit] = tuple(row)
    return sums


def _add_subtasks(*totals: Any) -> Any:
    return sum(
        ratio(totals[start], totals[start + 1]) + ratio(totals[start + 2], totals[start + 3])
        for start in range(0, len(totals), 4)
    )


_KINDS_OF_SUM = ("right", "rows", "whole_images", "images")

MME = {
    "official": CorpusVariant(
        "sum over the subtasks of accuracy and accuracy+ (images with both questions right), at most 200 each (MME)",
        tuple(f"{subtask}_{kind}" for subtask in SUBTASKS for kind in _KINDS_OF_SUM),
        _subtask_sums,
        _add_subtasks,
        highest=2.0 * len(SUBTASKS),
    ),
    "accuracy_plus": group_variant(
        "share of the images whose questions are all answered rightly",
        _of_rows(agrees_in_mme),
        lambda item: (item.more["category"], _image_of(item)),
    ),
}


def ability_of(item: Item) -> str | None:
    """MME's two halves: the subtask's row is perception or cognition."""
    category = item.more.get("category")
    return "perception" if category in PERCEPTION else "cognition" if category in COGNITION else None


# HallusionBench

SET_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_number")
"""What tells HallusionBench's questions apart: a figure of a set, and a question that is asked of its figures."""


def find_hallusion_fault(item: Item) -> str | None:
    """A sentence on a row that lacks one of `SET_KEYS` or an answer of yes or no; None for one that has them."""
    missing = next((key for key in SET_KEYS if key not in item.more), None)
    return find_verdict_fault(item) if missing is None else f"{missing!r} is missing, which HallusionBench's rows have"


def _keys_of(*names: str) -> Callable[[Item], tuple[Any, ...]]:
    return lambda item: tuple(item.more[name] for name in names)


_RULE = "read by rule, the one of yes and no that the answer holds; the set's own script asks GPT-4"

HALLUSION = {
    "official": mean_variant(f"aAcc: share of the questions answered rightly, {_RULE}", _of_rows(_agrees_in_either)),
    "fAcc": group_variant(
        f"share of the figures whose questions are all answered rightly, {_RULE}",
        _of_rows(_agrees_in_either),
        _keys_of("category", "subcategory", "set_id", "figure_id"),
    ),
    "qAcc": group_variant(
        f"share of the questions that are answered rightly of all their figures, {_RULE}",
        _of_rows(_agrees_in_either),
        _keys_of("category", "subcategory", "set_id", "question_number"),
    ),
}
