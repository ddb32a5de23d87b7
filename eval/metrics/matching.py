"""Text matching: the prediction is a reference, contains one, or says yes or no as it does.

OCRBench's rule, with another one for handwritten formulas, is that of the script of Liu et al., "OCRBench: On the
Hidden Mystery of OCR in Large Multimodal Models" (2023). Its 1,000 questions are of ten kinds; the total is the number
answered rightly, which is ten times the percentage.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from eval.metrics.corpus import Item, Population

FORMULA_SET, FORMULA_MARK = "HME100k", "latex"
"""The set of the formulas, where a row names its 'dataset_name'. Else what their questions ask for and the others do
not; that is recalled, not read in the data."""


def _occurs(prediction: str, references: Sequence[str], change: Callable[[str], str]) -> float:
    answer = change(prediction)
    return float(any(change(reference) in answer for reference in references))


def contained(prediction: str, references: Sequence[str]) -> float:
    """OCRBench's accuracy: 1 when a reference occurs anywhere in the prediction, case aside.

    It is TextMonkey's, too, where the answer has no places beside it (see `contained_without_places`).
    Odd: 'woman' is right for 'man', 'snow' for 'no', '25%' for '5%', and anything for an empty reference.
    """
    return _occurs(prediction, references, _strip_lower)


_PLACES = (re.compile(r"<point>.*?</point>"), re.compile(r"<box>.*?</box>"))


def contained_without_places(prediction: str, references: Sequence[str]) -> float:
    """TextMonkey's accuracy: `contained`, once the places that it writes beside an answer are deleted."""
    for pattern in _PLACES:
        for place in pattern.findall(prediction):
            prediction = prediction.replace(place, "")
    return contained(prediction, references)


def contained_without_dots(prediction: str, references: Sequence[str]) -> float:
    """The published script's accuracy: `contained`, after every '.' is deleted from the prediction.

    Odd: the references keep their dots, so '2.5', '$1,250.00' or 'U.S.' can never be answered rightly; and '5' is
    contained in '50'.
    """
    answer = _strip_lower(prediction).replace(".", "")
    return float(any(_strip_lower(reference) in answer for reference in references))


def exact(prediction: str, references: Sequence[str]) -> float:
    """1 when the prediction is one of the references, case and outer blanks aside (Qwen-VL's accuracy)."""
    return float(_strip_lower(prediction) in map(_strip_lower, references))


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_without_punctuation(prediction: str, references: Sequence[str]) -> float:
    """`exact` without ASCII punctuation on either side (lmms-eval's exact_match); odd: '2.5' and '25' are the same."""
    bare_prediction, *bare_references = (
        text.strip().lower().translate(_NO_PUNCTUATION) for text in (prediction, *references)
    )
    return float(bare_prediction in bare_references)


# Cut in this order; text before the first marker is dropped, text between the first and the second kept.
_GQA_CUTS = ("is ", "are ", "a ", "an ", "the ")


def cut_gqa_answer(prediction: str) -> str:
    """The published script's attempt to find the noun of a sentence before GQA answers are compared.

    Odd: the markers also match inside words, so 'tennis ball' becomes 'ball' and 'panda bear' 'bear', and of 'it is
    red and is big' only the middle is left.
    """
    answer = prediction.strip()
    for mark in ".,!":
        answer = answer.split(mark)[0]
    answer = answer.lower()
    for marker in _GQA_CUTS:
        if marker in answer:
            answer = answer.split(marker)[1]
    return answer.split(" of")[0].strip()


def gqa_original(prediction: str, references: Sequence[str]) -> float:
    """The published script's GQA accuracy: `contained_without_dots` of what `cut_gqa_answer` leaves."""
    return contained_without_dots(cut_gqa_answer(prediction), references)


def gqa_official(prediction: str, references: Sequence[str]) -> float:
    """GQA's string equality, after the usual preparation of model output: lower case and no full stops at the end."""
    return float(prediction.rstrip(".").lower() in references)


def identical(prediction: str, references: Sequence[str]) -> float:
    """1 when the prediction is one of the references, character for character (GQA's own eval.py)."""
    return float(prediction in references)


_VERDICTS = {"yes": True, "true": True, "1": True, "entailed": True, "supported": True, "correct": True}
_VERDICTS |= {"no": False, "false": False, "0": False, "refuted": False, "incorrect": False, "wrong": False}


def verdict(prediction: str, references: Sequence[str]) -> float:
    """TabFact: the first word of the answer says yes or no as the reference does ('yes', 'true', 'entailed' and '1').

    An answer that begins with no such word is right only when it is the reference, case aside.
    """

    def said(text: str) -> bool | str:
        word = text.lower().split()[:1]
        plain = word[0].strip(string.punctuation) if word else ""
        return _VERDICTS.get(plain, text.strip().lower())

    return float(any(said(prediction) == said(reference) for reference in references))


def in_a_line(prediction: str, references: Sequence[str]) -> float:
    """A reference occurs in the prediction, case aside, line breaks being blanks."""
    return _occurs(prediction, references, lambda text: _strip_lower(text).replace("\n", " "))


def formula(prediction: str, references: Sequence[str]) -> float:
    """A reference occurs in the prediction; case counts, blanks and line breaks do not."""
    return _occurs(prediction, references, lambda text: text.strip().replace("\n", " ").replace(" ", ""))


def ocrbench_scores(items: Sequence[Item], population: Population) -> list[float]:
    """`formula` for the rows that are handwritten formulas, `in_a_line` for the others."""
    return [(formula if _is_formula(item) else in_a_line)(item.prediction, item.references) for item in items]


def _is_formula(item: Item) -> bool:
    if "dataset_name" in item.more:
        return item.more["dataset_name"] == FORMULA_SET
    return FORMULA_MARK in item.question.lower()


def _strip_lower(text: str) -> str:
    return text.strip().lower()
