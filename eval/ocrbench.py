"""OCRBench: a reference occurs in the answer, with another rule for handwritten formulas.

Definition: the script of Liu et al., "OCRBench: On the Hidden Mystery of OCR in Large Multimodal Models" (2023). Its
1,000 questions are of ten kinds; the total is the number answered rightly, which is ten times the percentage.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.corpus_metrics import Item, Population

FORMULA_SET, FORMULA_MARK = "HME100k", "latex"
"""The set of the formulas, where a row names its 'dataset_name'. Else what their questions ask for and the others do
not; that is recalled, not read in the data."""


def in_a_line(prediction: str, references: Sequence[str]) -> float:
    """A reference occurs in the prediction, case aside, line breaks being blanks."""
    answer = prediction.lower().strip().replace("\n", " ")
    return float(any(reference.lower().strip().replace("\n", " ") in answer for reference in references))


def formula(prediction: str, references: Sequence[str]) -> float:
    """A reference occurs in the prediction; case counts, blanks and line breaks do not."""
    answer = _bare(prediction)
    return float(any(_bare(reference) in answer for reference in references))


def scores(items: Sequence[Item], population: Population) -> list[float]:
    """`formula` for the rows that are handwritten formulas, `in_a_line` for the others."""
    return [(formula if _is_formula(item) else in_a_line)(item.prediction, item.references) for item in items]


def _is_formula(item: Item) -> bool:
    if "dataset_name" in item.more:
        return item.more["dataset_name"] == FORMULA_SET
    return FORMULA_MARK in item.question.lower()


def _bare(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
