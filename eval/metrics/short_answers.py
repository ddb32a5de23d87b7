"""OCRBench v2's questions with short answers, scored by their type.

Definition: vqa_metric.py and eval.py of Fu et al., "OCRBench v2: An Improved Benchmark for Evaluating Large Multimodal
Models on Visual Text Localization and Reasoning" (2024). Left out are the types whose answers are tables, documents,
boxes, whole pages, translations and lists of keys, which have metrics of their own there; so the set's totals by
ability are not computed.

A row names its 'type', and in 'eval' how it is compared where its type leaves a choice. A row without a type is read by
the rule of English questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

from eval.metrics.anls import THRESHOLD
from eval.metrics.corpus import Item, Population
from eval.metrics.matching import formula

ENGLISH = (
    *("APP agent en", "ASCII art classification en", "cognition VQA en", "diagram QA en"),
    *("document classification en", "math QA en", "reasoning VQA en", "science QA en", "text recognition en"),
)
CHINESE = ("cognition VQA cn", "reasoning VQA cn")
FORMULA, FORMULA_CN = "formula recognition en", "formula recognition cn"
COUNTING, HANDWRITTEN = "text counting en", "handwritten answer extraction cn"
TYPES = (*ENGLISH, *CHINESE, FORMULA, FORMULA_CN, COUNTING, HANDWRITTEN)

WRITTEN_OUT = "简答"
"""In a question of `HANDWRITTEN`, says that the answer is sentences, which are scored otherwise."""

_LONG_WORDS, _LONG_PARTS = 5, 4
"""Words of an English reference, and parts between commas of a Chinese one, from which on it is long."""

_JOINTS = ("", ".", ". ", ",", ", ", "、", ";", "; ", " ", "和")
_LATEX_TEXT = re.compile(r"\\text\{([^{}]*)\}")


def _in_a_line(text: str) -> str:
    return text.strip().replace("\n", " ")


def _in_a_lower_line(text: str) -> str:
    return _in_a_line(text.lower())


def _without_blanks(text: str) -> str:
    return _in_a_lower_line(text).replace(" ", "")


def _contained_or_near(
    prediction: str, references: Sequence[str], change: Callable[[str], str], is_long: Callable[[str], bool]
) -> float:
    """1 when a short reference occurs in the prediction; of a long one the similarity, zero below one half."""
    answer = change(prediction)

    def score(reference: str) -> float:
        if not is_long(reference):
            return float(reference in answer)
        similarity = Levenshtein.normalized_similarity(answer, reference)
        return similarity if similarity >= THRESHOLD else 0.0

    return max(score(change(reference)) for reference in references)


def _is_long(reference: str) -> bool:
    return len(reference.split()) >= _LONG_WORDS


def english(prediction: str, references: Sequence[str]) -> float:
    """A reference of less than five words occurs in the prediction, a longer one is alike; case aside."""
    return _contained_or_near(prediction, references, _in_a_lower_line, _is_long)


def english_with_case(prediction: str, references: Sequence[str]) -> float:
    """`english`, and case counts."""
    return _contained_or_near(prediction, references, _in_a_line, _is_long)


def chinese(prediction: str, references: Sequence[str]) -> float:
    """As `english` without blanks; long is a reference with three commas or more."""
    return _contained_or_near(
        prediction, references, _without_blanks, lambda reference: len(reference.split(",")) >= _LONG_PARTS
    )


def choice(prediction: str, references: Sequence[str]) -> float:
    """The letters of the prediction are the reference's letter; odd: 'The answer is A' is wrong."""
    return float("".join(filter(str.isalpha, prediction)) == references[0])


def count(prediction: str, references: Sequence[str]) -> float:
    """The first number of the prediction, one minus its relative error where this is under one half."""
    found = re.search(r"\d+", prediction)
    number = int(found.group()) if found else 0

    def score(right: int) -> float:
        nearness = 1 - abs(number - right) / right if right else 0.0
        return nearness if number > 0 and nearness > THRESHOLD else 0.0

    return max(score(int(reference)) for reference in references)


def count_contained(prediction: str, references: Sequence[str]) -> float:
    """A reference, in lower case, occurs in the prediction as it is."""
    return float(any(_in_a_lower_line(reference) in prediction for reference in references))


def letters(prediction: str, references: Sequence[str]) -> float:
    """The reference's letters occur in the prediction, together or with one of the usual signs between them."""
    return float(any(joint.join(references[0]) in prediction for joint in _JOINTS))


def formula_with_text(prediction: str, references: Sequence[str]) -> float:
    r"""`formula`, where `\text{…}` is what stands in it."""
    return formula(_LATEX_TEXT.sub(r"\1", prediction), [_LATEX_TEXT.sub(r"\1", one) for one in references])


_BY_EVAL = {"multiple choice": choice, "case sensitive": english_with_case}
_BY_TYPE = {FORMULA: formula, FORMULA_CN: formula_with_text, HANDWRITTEN: letters}


def scores(items: Sequence[Item], population: Population) -> list[float]:
    """Score of each item by the rule of its row's 'type' and 'eval'."""
    return [_rule(item)(item.prediction, item.references) for item in items]


def _rule(item: Item) -> Callable[[str, Sequence[str]], float]:
    kind, how = item.more.get("type", ""), item.more.get("eval", "")
    if kind == COUNTING:
        return count_contained if how == "exact match" else count
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    return _BY_EVAL.get(how, chinese if kind in CHINESE else english)
