"""Metrics: pure functions of (prediction, references) to a score between 0 and 1, each in several variants.

`original` is what the published script computes, to the bit; `official` is the data set's own rule; the others are
named where two scripts in use differ. What is odd about a variant stands in its docstring. `score(metric, variant,
prediction, references)` finds them by name; `METRICS` is the table. Where a metric comes from other projects'
scripts, `tests/metric_cases.json` holds figures recorded by running those scripts.
"""

from __future__ import annotations

import difflib
import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from eval import anls, box_overlap, choice, cider, denotation, due_f1, ocrbench, relaxed_accuracy, vqa_score
from eval.corpus_metrics import CorpusVariant, Item, Population, mean_variant
from eval.corpus_metrics import score as corpus_score

Scorer = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class Variant:
    """One way to compute a metric, and its rule in a sentence."""

    score: Scorer
    meaning: str


@dataclass(frozen=True)
class Metric:
    """A metric by its published name: a sentence on what it measures, and its variants by name.

    `variants` score a row by itself; `corpus` (see `eval.corpus_metrics`) score all rows together. No name is in both.
    `best_answers(references)` lists the predictions among which the best possible one is looked for when the ceiling
    is computed; for a corpus variant it is the first of them. With fewer than `minimum_references` references no
    prediction can reach 1, so such data are refused.
    """

    meaning: str
    variants: Mapping[str, Variant]
    corpus: Mapping[str, CorpusVariant] = field(default_factory=dict)
    minimum_references: int = 1
    best_answers: Callable[[Sequence[str]], Sequence[str]] = tuple

    @property
    def all_variants(self) -> dict[str, Variant | CorpusVariant]:
        return {**self.corpus, **self.variants}


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


_CONTAINED_WITHOUT_DOTS = Variant(
    contained_without_dots, "a reference occurs in the prediction after all its dots are deleted"
)
_CONTAINED = Variant(contained, "a reference occurs in the prediction (OCRBench, TextMonkey)")
_EXACT = Variant(exact, "the prediction is a reference, case and outer blanks aside")

METRICS: Mapping[str, Metric] = {
    "anls": Metric(
        "One minus the normalised edit distance to the nearest reference, zero when less than half is alike.",
        {
            "official": Variant(anls.official, "white space collapsed, one half kept (Robust Reading Competition)"),
            "original": Variant(anls.original, "white space as it is, one half kept (published script)"),
            "strict": Variant(anls.strict, "one half counts nothing (ST-VQA paper, DUE, EST-VQA)"),
            "stripped": Variant(anls.stripped, "stripped strings, one half kept (M4C evaluator)"),
            "any_order": Variant(anls.any_order, "as official, the parts of a list in any order (InfographicVQA)"),
            "exact": _EXACT,
        },
    ),
    "anls_simplified": Metric(
        "ANLS of texts with Chinese, whose traditional and simplified characters are one; needs zhconv.",
        {
            "official": Variant(anls.simplified, "simplified, one half counts nothing (EST-VQA)"),
            "original": Variant(anls.original, "white space as it is, one half kept (published script)"),
            "strict": Variant(anls.strict, "characters as they are, one half counts nothing"),
            "exact": _EXACT,
        },
    ),
    "relaxed_accuracy": Metric(
        "Numbers may be 5 % off, everything else must be equal, case aside.",
        {
            "official": Variant(relaxed_accuracy.official, "5 % of the reference (pix2struct)"),
            "original": Variant(
                relaxed_accuracy.original, "5 % of the prediction: the published script swaps its arguments"
            ),
            "lenient": Variant(relaxed_accuracy.lenient, "5 % of the reference, however the number is written"),
            "years_exact": Variant(relaxed_accuracy.exact_years, "5 % of the reference, but years must be equal"),
        },
    ),
    "accuracy": Metric(
        "The prediction is one of the references.",
        {
            "official": _EXACT,
            "original": _CONTAINED_WITHOUT_DOTS,
            "contained": _CONTAINED,
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
            "stemmed": Variant(vqa_score.stemmed, "as official, on the stems of the words (OK-VQA)"),
        },
        minimum_references=vqa_score.MINIMUM_REFERENCES,
    ),
    "denotation_accuracy": Metric(
        "The prediction denotes the same values as the reference's items, all of them and no other.",
        {
            "untagged": Variant(denotation.untagged, "as official, on the references as written, without targetCanon"),
            "original": _CONTAINED_WITHOUT_DOTS,
            "exact": _EXACT,
        },
        {
            "official": mean_variant(
                "same set of strings, numbers and dates, by targetCanon where the rows have it (WikiTableQuestions)",
                denotation.scores,
            )
        },
        best_answers=lambda references: (denotation.joined(references), *references, ", ".join(references)),
    ),
    "choice_accuracy": Metric(
        "The right option was chosen, by its text or its letter.",
        {
            "official": Variant(choice.chosen, "the option's text or letter, however decorated"),
            "original": _CONTAINED_WITHOUT_DOTS,
            "letter": Variant(choice.first_letter, "the letter at the start of the answer, whatever follows"),
            "exact": _EXACT,
        },
        {
            "nearest_option": mean_variant(
                "as official, else the option of the nearest text, where the question lists them",
                choice.nearest_option_scores,
            ),
        },
    ),
    "verdict_accuracy": Metric(
        "The statement was called true or false as the reference does.",
        {
            "official": Variant(verdict, "the first word means yes or no as the reference does (TabFact)"),
            "exact": _EXACT,
        },
    ),
    "box_overlap": Metric(
        "The first box of the prediction covers the one of the reference.",
        {
            "official": Variant(box_overlap.official, "intersection over union of at least one half (Qwen-VL)"),
            "mean": Variant(box_overlap.overlap, "intersection over union"),
        },
    ),
    "ocrbench": Metric(
        "The reference occurs in the prediction.",
        {
            "original": _CONTAINED,
            "in_a_line": Variant(ocrbench.in_a_line, "the same, line breaks as blanks (OCRBench but for its formulas)"),
            "formula": Variant(ocrbench.formula, "case counts, blanks do not (OCRBench's formulas)"),
            "exact": _EXACT,
            "anls": Variant(anls.official, "ANLS of the Robust Reading Competition"),
        },
        {"official": mean_variant("by kind: formula where LaTeX is asked for, else in_a_line", ocrbench.scores)},
    ),
    "due_f1": Metric(
        "The pairs of key and value found in each document, against those of its reference.",
        {"original": _CONTAINED_WITHOUT_DOTS, "contained": _CONTAINED, "exact": _EXACT},
        due_f1.VARIANTS,
    ),
    "cider": Metric(
        "Agreement of a caption with people's captions, words weighted by how rare they are; at most 1000, not 100.",
        {"rouge_l": Variant(cider.rouge_l, "longest common subsequence of words (coco-caption)")},
        {"official": cider.CIDER_D, "bleu_4": cider.BLEU_4},
        best_answers=lambda references: (cider.most_agreed(references),),
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

    ValueError for an unknown metric or variant, a variant of the whole corpus, no reference, and a reference that is
    not a string.
    """
    row = metric_named(metric)
    variant = ALIASES.get(variant, variant)
    if variant in row.corpus:
        raise ValueError(f"{metric} {variant} scores all answers of a set together; eval.corpus_metrics.score does")
    if variant not in row.variants:
        raise ValueError(f"metric {metric} has no variant {variant!r}; it has {', '.join(row.all_variants)}")
    return row.variants[variant].score(prediction, _checked(references))


def score_all(metric: str, prediction: str, references: str | Sequence[str]) -> dict[str, float]:
    """The score of every variant of a metric that scores a row by itself, by name."""
    checked = _checked(references)
    return {name: variant.score(prediction, checked) for name, variant in metric_named(metric).variants.items()}


def best_answer(metric: str, variant: str, references: str | Sequence[str]) -> tuple[str, float | None]:
    """The reference that scores best as the prediction, and its score: where this is under 1, no model can reach 1.

    A corpus variant gives a row no score: None stands for it.
    """
    row, checked = metric_named(metric), _checked(references)
    answers = dict.fromkeys(answer.strip() for answer in row.best_answers(checked))
    if variant in row.corpus:
        return next(iter(answers)), None
    scorer = row.variants[variant].score
    return max(((answer, scorer(answer, checked)) for answer in answers), key=lambda pair: pair[1])


def ceiling(metric: str, variant: str, items: Sequence[Item], population: Population | None = None) -> float | None:
    """The score of answering every row with its `best_answer`; None of no rows. Predictions are not looked at."""
    if not items:
        return None
    answers = [best_answer(metric, variant, item.references) for item in items]
    corpus = metric_named(metric).corpus
    if variant not in corpus:
        return math.fsum(value for _, value in answers) / len(answers)
    echoed = [replace(item, prediction=answer) for item, (answer, _) in zip(items, answers, strict=True)]
    return corpus_score(corpus[variant], echoed, population)


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
