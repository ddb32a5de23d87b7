"""Metrics: pure functions of (prediction, references) to a score between 0 and 1, each in several variants.

`original` is what the published script computes, to the bit; `official` is the data set's own rule; the others are
named where two scripts in use differ. What is odd about a variant stands in its docstring. `score(metric, variant,
prediction, references)` finds them by name; `METRICS` is the table. Where a metric comes from other projects'
scripts, `tests/metric_cases.json` holds figures recorded by running those scripts.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eval import anls, denotation, vqa_score

RELATIVE_TOLERANCE = 0.05
FIRST_YEAR, LAST_YEAR = 1900, 2100

Scorer = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class Variant:
    """One way to compute a metric, and its rule in a sentence."""

    score: Scorer
    meaning: str


@dataclass(frozen=True)
class Metric:
    """A metric by its published name: a sentence on what it measures, and its variants by name.

    `best_answers(references)` lists the predictions among which the best possible one is looked for when the
    ceiling is computed. With fewer than `minimum_references` references no prediction can reach 1, so such data are
    refused.
    """

    meaning: str
    variants: Mapping[str, Variant]
    minimum_references: int = 1
    best_answers: Callable[[Sequence[str]], Sequence[str]] = tuple


def contained(prediction: str, references: Sequence[str]) -> float:
    """OCRBench's and TextMonkey's accuracy: 1 when a reference occurs anywhere in the prediction, case aside.

    Odd: 'woman' is right for 'man', 'snow' for 'no', '25%' for '5%', and anything for an empty reference.
    """
    answer = prediction.strip().lower()
    return 1.0 if any(reference.strip().lower() in answer for reference in references) else 0.0


def contained_without_dots(prediction: str, references: Sequence[str]) -> float:
    """The published script's accuracy: `contained`, after every '.' is deleted from the prediction.

    Odd: the references keep their dots, so '2.5', '$1,250.00' or 'U.S.' can never be answered rightly; and '5' is
    contained in '50'.
    """
    answer = prediction.strip().lower().replace(".", "")
    return 1.0 if any(reference.strip().lower() in answer for reference in references) else 0.0


def exact(prediction: str, references: Sequence[str]) -> float:
    """1 when the prediction is one of the references, case and outer blanks aside (Qwen-VL's accuracy)."""
    answer = prediction.strip().lower()
    return 1.0 if any(reference.strip().lower() == answer for reference in references) else 0.0


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_without_punctuation(prediction: str, references: Sequence[str]) -> float:
    """`exact` without ASCII punctuation on either side (lmms-eval's exact_match); odd: '2.5' and '25' are the same."""
    bare_prediction, *bare_references = (
        text.strip().lower().translate(_NO_PUNCTUATION) for text in (prediction, *references)
    )
    return float(bare_prediction in bare_references)


def _read_float(text: str) -> float | None:
    """Python's number syntax, or that followed by '%', which divides by 100. '1,200' and '$5' are no numbers here."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _within_tolerance(value: str, base: str) -> bool:
    """Numbers: at most 5 % of `base` apart. Anything else, and a base of zero: equal strings, case aside."""
    number, base_number = _read_float(value), _read_float(base)
    if number is not None and base_number:
        return abs(number - base_number) / abs(base_number) <= RELATIVE_TOLERANCE
    return value.lower() == base.lower()


def relaxed_original(prediction: str, references: Sequence[str]) -> float:
    """The published script's relaxed accuracy.

    Odd: its arguments are swapped, so the tolerance is 5 % of the *prediction*: for 100 it accepts 105.2 and
    rejects 95.
    """
    answer = prediction.strip()
    return float(any(_within_tolerance(reference, answer) for reference in references))


def relaxed_official(prediction: str, references: Sequence[str]) -> float:
    """ChartQA's relaxed accuracy as pix2struct's function, the de-facto reference, computes it: within 5 % of the
    reference.

    Odd: years are numbers, so 2008 is right for 2010; '0.0' is wrong for '0', '45' for '45%' and '1,200' for
    '1200'; blanks at the ends of a reference count.
    """
    return float(any(_within_tolerance(prediction, reference) for reference in references))


def relaxed_lenient(prediction: str, references: Sequence[str]) -> float:
    """`relaxed_official` that overlooks how a number is written.

    Thousands commas, '$' and punctuation at the end go on both sides; when either side has a '%', 45 and 0.45 are
    both 45 %; zero in any form is zero. Blanks at the ends of a reference count, as everywhere.
    """

    def readings(text: str) -> tuple[str, list[float]]:
        kept = text.replace(",", "").replace("$", "").rstrip(string.punctuation.replace("%", "")).lower()
        number = _read_float(kept)
        if number is None:
            return kept, []
        return kept, [number, number * 100.0] if kept.endswith("%") else [number]

    def close(value: float, base: float) -> bool:
        return abs(value - base) <= RELATIVE_TOLERANCE * abs(base)

    def right(reference: str) -> bool:
        text, values = readings(prediction)
        wanted_text, wanted = readings(reference)
        if values and wanted:
            return any(close(value, base) for value in values for base in wanted)
        return text == wanted_text

    return float(any(map(right, references)))


def relaxed_exact_years(prediction: str, references: Sequence[str]) -> float:
    """`relaxed_official`, but a reference that is a whole number from 1900 to 2100 is a year and must be met."""

    def right(reference: str) -> bool:
        number = _read_float(reference)
        if number is not None and number.is_integer() and FIRST_YEAR <= number <= LAST_YEAR:
            return _read_float(prediction) == number
        return _within_tolerance(prediction, reference)

    return float(any(map(right, references)))


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


def chosen(prediction: str, references: Sequence[str]) -> float:
    """AI2D: the right option was chosen, which the references name by its text, its letter, or both.

    Case, blanks and a final full stop do not matter; '(b)', 'B.' and 'b' are one letter. 'B. moon' names the option
    twice: the text must be a reference and, where a reference is a letter, that letter must be too. The options
    themselves are not known here, so an answer that is merely nearer to the right option than to the others is
    wrong.
    """
    wanted = {_plain_choice(reference) for reference in references}
    answer = _plain_choice(prediction)
    if answer in wanted:
        return 1.0
    letter, _, text = answer.partition(" ")
    letter = letter.strip(_CHOICE_DECORATION)
    if len(letter) != 1:
        return 0.0
    letters = {reference for reference in wanted if len(reference) == 1}
    return float(_plain_choice(text) in wanted and (not letters or letter in letters))


_CHOICE_DECORATION = " ().:"


def _plain_choice(text: str) -> str:
    collapsed = " ".join(text.lower().split()).rstrip(". ")
    bare = collapsed.strip(_CHOICE_DECORATION)
    return bare if len(bare) == 1 else collapsed


_CONTAINED_WITHOUT_DOTS = Variant(
    contained_without_dots, "a reference occurs in the prediction after all its dots are deleted"
)
_EXACT = Variant(exact, "the prediction is a reference, case and outer blanks aside")

METRICS: Mapping[str, Metric] = {
    "anls": Metric(
        "One minus the normalised edit distance to the nearest reference, zero when less than half is alike.",
        {
            "official": Variant(anls.official, "white space collapsed, one half kept (Robust Reading Competition)"),
            "original": Variant(anls.original, "white space as it is, one half kept (published script)"),
            "strict": Variant(anls.strict, "one half counts nothing (ST-VQA paper, DUE, EST-VQA)"),
            "stripped": Variant(anls.stripped, "stripped strings, one half kept (M4C evaluator)"),
        },
    ),
    "relaxed_accuracy": Metric(
        "Numbers may be 5 % off, everything else must be equal, case aside.",
        {
            "official": Variant(relaxed_official, "5 % of the reference (pix2struct)"),
            "original": Variant(relaxed_original, "5 % of the prediction: the published script swaps its arguments"),
            "lenient": Variant(relaxed_lenient, "5 % of the reference, however the number is written"),
            "years_exact": Variant(relaxed_exact_years, "5 % of the reference, but years must be equal"),
        },
    ),
    "accuracy": Metric(
        "The prediction is one of the references.",
        {
            "official": _EXACT,
            "original": _CONTAINED_WITHOUT_DOTS,
            "contained": Variant(contained, "a reference occurs in the prediction (OCRBench, TextMonkey)"),
            "without_punctuation": Variant(exact_without_punctuation, "equal without case and punctuation (lmms-eval)"),
        },
    ),
    "gqa_accuracy": Metric(
        "The prediction is the one-or-two-word reference.",
        {
            "official": Variant(gqa_official, "equal in lower case without final full stops"),
            "original": Variant(gqa_original, "cut at 'is ', 'a ', 'the '…, then a reference occurs in it"),
            "identical": Variant(identical, "equal, character for character (GQA's eval.py)"),
        },
    ),
    "vqa_score": Metric(
        "Agreement with ten people: min(matches / 3, 1), averaged over leaving each of them out.",
        {
            "official": Variant(vqa_score.official, "both sides normalised, always (visualqa.org)"),
            "original": Variant(vqa_score.original, "the script of before 2021: only the prediction fully normalised"),
            "original_without_answer_id": Variant(
                vqa_score.original_without_answer_id,
                "the same on annotations without answer_id: people of one answer vanish together",
            ),
            "script_2021": Variant(
                vqa_score.script_2021, "both sides normalised unless all people agree (official repository since 2021)"
            ),
            "evalai": Variant(vqa_score.evalai, "EvalAI's processor on both sides (TextVQA, VizWiz)"),
        },
        minimum_references=vqa_score.MINIMUM_REFERENCES,
    ),
    "denotation_accuracy": Metric(
        "The prediction denotes the same values as the reference's items, all of them and no other.",
        {
            "official": Variant(denotation.official, "same set of strings, numbers and dates (WikiTableQuestions)"),
            "original": _CONTAINED_WITHOUT_DOTS,
            "exact": _EXACT,
        },
        best_answers=lambda references: (*references, denotation.joined(references)),
    ),
    "choice_accuracy": Metric(
        "The right option was chosen, by its text or its letter.",
        {
            "official": Variant(chosen, "the option's text or letter, however decorated"),
            "original": _CONTAINED_WITHOUT_DOTS,
            "exact": _EXACT,
        },
    ),
}
ALIASES = {"paper": "original"}


def metric_named(name: str) -> Metric:
    """The row of METRICS, or ValueError with the nearest names."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; {nearest(name, METRICS)}")
    return METRICS[name]


def score(metric: str, variant: str, prediction: str, references: str | Sequence[str]) -> float:
    """The score in [0, 1] of one prediction; a bare string is one reference.

    ValueError for an unknown metric or variant, for no reference, and for one that is not a string.
    """
    row = metric_named(metric)
    variant = ALIASES.get(variant, variant)
    if variant not in row.variants:
        raise ValueError(f"metric {metric} has no variant {variant!r}; it has {', '.join(row.variants)}")
    return row.variants[variant].score(prediction, _checked(references))


def score_all(metric: str, prediction: str, references: str | Sequence[str]) -> dict[str, float]:
    """The score of every variant of a metric, by name."""
    checked = _checked(references)
    return {name: variant.score(prediction, checked) for name, variant in metric_named(metric).variants.items()}


def best_answer(metric: str, variant: str, references: str | Sequence[str]) -> tuple[str, float]:
    """The reference that scores best as the prediction, and its score: where this is under 1, no model can reach 1."""
    row, checked = metric_named(metric), _checked(references)
    scorer = row.variants[variant].score
    answers = dict.fromkeys(answer.strip() for answer in row.best_answers(checked))
    return max(((answer, scorer(answer, checked)) for answer in answers), key=lambda pair: pair[1])


def nearest(name: str, names: Mapping[str, object] | Sequence[str]) -> str:
    """'nearest: a, b' for an error on an unknown name, or all names when none is near."""
    folded = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(folded[key] for key in close)}"
    return f"known: {', '.join(sorted(folded.values()))}"


def _checked(references: str | Sequence[str]) -> Sequence[str]:
    if isinstance(references, str):
        return (references,)
    if not references:
        raise ValueError("a prediction cannot be scored without a reference")
    for reference in references:
        if not isinstance(reference, str):
            raise ValueError(f"references must be strings, not {type(reference).__name__} ({reference!r})")
    return references
