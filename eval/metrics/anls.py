"""ANLS, average normalised Levenshtein similarity: one minus the edit distance over the longer length, best over
the references.

Definition: Biten et al., "Scene Text Visual Question Answering" (ICCV 2019). The scripts in use differ in three
things: whether inner white space is collapsed, whose length is taken (stripped or not), and whether a similarity of
exactly one half counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import permutations

from rapidfuzz.distance import Levenshtein

THRESHOLD = 0.5
LIST_SEPARATOR, MOST_PARTS = ", ", 5
_HAN = re.compile("[\u2e80-\u9fff\uf900-\ufaff]")


Change = Callable[[str], str]


def _similarity(prediction: str, references: Sequence[str], compared: Change, measured: Change) -> float:
    """One minus the edit distance of the `compared` texts over the longer of the `measured`, of the best reference."""

    def distance(reference: str) -> float:
        edits = Levenshtein.distance(compared(reference), compared(prediction))
        longest = max(len(measured(reference)), len(measured(prediction)))
        return float(edits) / float(longest) if longest else 0.0

    return 1 - min(map(distance, references))


def _keep_half(similarity: float) -> float:
    return 0.0 if similarity < THRESHOLD else similarity


def original(prediction: str, references: Sequence[str]) -> float:
    """The published evaluator's ANLS; exactly one half is kept.

    Odd: white space inside is not collapsed ('12\\nMain St' for '12 Main St' gives 0.9), and the length is that of
    the *unstripped* reference beside the stripped prediction. A reference given as a bare string was read letter by
    letter; here it is one reference.
    """
    return _keep_half(_similarity(prediction.strip(), references, _strip_lower, str))


def official(prediction: str, references: Sequence[str]) -> float:
    """The script of the Robust Reading Competition (DocVQA, InfographicVQA); exactly one half is kept.

    White space is collapsed before comparing. Odd: the lengths are those of the strings as given, blanks at the
    ends included, in upper case, where 'ß' has length two.
    """
    return _keep_half(_similarity(prediction, references, _collapse_blanks, str.upper))


def any_order(prediction: str, references: Sequence[str]) -> float:
    """`official`, where a reference that is a list, its parts between ', ', may be given in any order.

    InfographicVQA's server does not mind the order of an answer's spans, and the annotation files hold one order only.
    Every order of up to five parts counts as a reference; longer lists keep theirs.
    """
    orders = list(references)
    for reference in references:
        parts = reference.split(LIST_SEPARATOR)
        if 1 < len(parts) <= MOST_PARTS:
            orders += map(LIST_SEPARATOR.join, permutations(parts))
    return official(prediction, list(dict.fromkeys(orders)))


def strict(prediction: str, references: Sequence[str]) -> float:
    """ANLS as the ST-VQA paper defines it, and DUE and EST-VQA score it: a similarity of exactly one half counts
    nothing.

    Strings are compared in lower case and otherwise as they are. EST-VQA also folds traditional to simplified
    Chinese; the set named estvqa_test is its English part, so that is not done here.
    """
    similarity = _similarity(prediction, references, str.lower, str.lower)
    return similarity if similarity > THRESHOLD else 0.0


def simplified(prediction: str, references: Sequence[str]) -> float:
    """`strict` with traditional Chinese characters read as simplified ones, as EST-VQA's own script does.

    Raises:
        ValueError: Chinese text, and the package zhconv, which has the characters, is not installed.
    """
    return strict(_simplified(prediction), list(map(_simplified, references)))


def _simplified(text: str) -> str:
    if _HAN.search(text) is None:
        return text
    try:
        from zhconv import convert
    except ImportError as error:
        raise ValueError(
            f"anls_simplified needs the package zhconv for {text!r}: pip install '.[metrics]', or take the metric anls"
        ) from error
    return convert(text, "zh-cn")


def stripped(prediction: str, references: Sequence[str]) -> float:
    """ANLS as the M4C evaluator scores ST-VQA: distance and length both of the stripped strings; exactly one half
    is kept.

    That script divides by zero when prediction and reference are both empty; here that is 1, as in the others.
    """
    return _keep_half(_similarity(prediction, references, _strip_lower, _strip_lower))


def _strip_lower(text: str) -> str:
    return text.lower().strip()


def _collapse_blanks(text: str) -> str:
    return " ".join(text.lower().split())
