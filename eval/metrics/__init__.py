"""Metrics: pure functions of (prediction, references) to a score between 0 and 1, each in several variants.

`original` is what the published script computes, to the bit; `official` is the data set's own rule; the others are
named where two scripts in use differ. What is odd about a variant stands in its docstring. `score(metric, variant,
prediction, references)` finds them by name; `METRICS` is the table. Where a metric comes from other projects'
scripts, `tests/metric_cases.json` holds figures recorded by running those scripts.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from eval.metrics import (
    anls,
    box_overlap,
    captions,
    choice,
    denotation,
    due_f1,
    matching,
    relaxed_accuracy,
    short_answers,
    suite_choices,
    vqa,
    yes_no,
)
from eval.metrics.corpus import CorpusVariant, Item, Population, mean_variant
from eval.metrics.corpus import score as corpus_score

Scorer = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class Variant:
    """One way to compute a metric, and its rule in a sentence."""

    score: Scorer
    meaning: str


@dataclass(frozen=True)
class Metric:
    """A metric by its published name: a sentence on what it measures, and its variants by name.

    `variants` score a row by itself; `corpus` (see `eval.metrics.corpus`) score all rows together. No name is in both.
    `best_answers(references)` lists the predictions among which the best possible one is looked for when the ceiling
    is computed; for a corpus variant it is the first of them. With fewer than `minimum_references` references no
    prediction can reach 1, so such data are refused. `find_fault` returns a sentence on a row that the metric cannot
    score, by its references and what else it has, and None for one that it can; the prediction is not looked at.
    """

    meaning: str
    variants: Mapping[str, Variant]
    corpus: Mapping[str, CorpusVariant] = field(default_factory=dict)
    minimum_references: int = 1
    best_answers: Callable[[Sequence[str]], Sequence[str]] = tuple
    find_fault: Callable[[Item], str | None] = lambda item: None

    @property
    def all_variants(self) -> dict[str, Variant | CorpusVariant]:
        return {**self.corpus, **self.variants}


_CONTAINED_WITHOUT_DOTS = Variant(
    matching.contained_without_dots, "a reference occurs in the prediction after all its dots are deleted"
)
_CONTAINED = Variant(
    matching.contained, "a reference occurs in the prediction (OCRBench; TextMonkey, of an answer without places)"
)
_EXACT = Variant(matching.exact, "the prediction is a reference, case and outer blanks aside")

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
            "without_punctuation": Variant(
                matching.exact_without_punctuation, "equal without case and punctuation (lmms-eval)"
            ),
        },
    ),
    "gqa_accuracy": Metric(
        "The prediction is the one-or-two-word reference.",
        {
            "official": Variant(matching.gqa_official, "equal in lower case without final full stops"),
            "original": Variant(matching.gqa_original, "cut at 'is ', 'a ', 'the '…, then a reference occurs in it"),
            "identical": Variant(matching.identical, "equal, character for character (GQA's eval.py)"),
        },
    ),
    "vqa_score": Metric(
        "Agreement with ten people: min(matches / 3, 1), averaged over leaving each of them out.",
        {
            "official": Variant(vqa.official, "both sides normalised, always (visualqa.org)"),
            "original": Variant(vqa.original, "the script of before 2021: only the prediction fully normalised"),
            "original_without_answer_id": Variant(
                vqa.original_without_answer_id,
                "the same on annotations without answer_id: people of one answer vanish together",
            ),
            "script_2021": Variant(
                vqa.script_2021, "both sides normalised unless all people agree (official repository since 2021)"
            ),
            "evalai": Variant(vqa.evalai, "EvalAI's processor on both sides (TextVQA, VizWiz)"),
            "stemmed": Variant(vqa.stemmed, "as official, on the stems of the words (OK-VQA)"),
        },
        minimum_references=vqa.MINIMUM_REFERENCES,
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
            "official": Variant(matching.verdict, "the first word means yes or no as the reference does (TabFact)"),
            "exact": _EXACT,
        },
    ),
    "pope": Metric(
        "Objects that the image has or has not, asked for by yes or no.",
        {"exact": Variant(matching.exact, "the answer is the word yes or no alone, case aside (lmms-eval's accuracy)")},
        yes_no.POPE,
        find_fault=yes_no.find_verdict_fault,
    ),
    "mme": Metric(
        "Two questions an image by yes or no, in fourteen subtasks; at most 2800, not 100.",
        {"accuracy": Variant(yes_no.agrees_in_mme, "yes or no in the first four characters is right (MME)")},
        yes_no.MME,
        find_fault=yes_no.find_mme_fault,
    ),
    "hallusionbench": Metric(
        "Questions by yes or no about figures and about what was changed in them.",
        {"exact": _EXACT},
        yes_no.HALLUSION,
        find_fault=yes_no.find_hallusion_fault,
    ),
    "mmbench": Metric(
        "The right option was chosen in every order of the options.",
        {"exact": _EXACT},
        suite_choices.MMBENCH,
        find_fault=suite_choices.find_mmbench_fault,
    ),
    "seedbench": Metric(
        "The right option was chosen, by its letter.",
        {
            "identical": Variant(matching.identical, "the answer is the letter and nothing else (LLaVA)"),
            "chosen": Variant(choice.chosen, "the letter, however decorated"),
        },
        suite_choices.SEEDBENCH,
        find_fault=suite_choices.find_choice_fault,
    ),
    "mathvista_choice": Metric(
        "The right option was chosen in a question of MathVista.",
        {"exact": _EXACT},
        suite_choices.MATHVISTA,
        find_fault=suite_choices.find_choice_fault,
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
            "in_a_line": Variant(matching.in_a_line, "the same, line breaks as blanks (OCRBench but for its formulas)"),
            "formula": Variant(matching.formula, "case counts, blanks do not (OCRBench's formulas)"),
            "exact": _EXACT,
            "anls": Variant(anls.official, "ANLS of the Robust Reading Competition"),
        },
        {
            "official": mean_variant(
                "by kind: formula where LaTeX is asked for, else in_a_line", matching.ocrbench_scores
            )
        },
    ),
    "ocrbench_v2": Metric(
        "A short reference occurs in the prediction, a long one is like it (OCRBench v2, its short answers).",
        {
            "in_a_line": Variant(matching.in_a_line, "the reference occurs in the prediction, in a line (OCRBench)"),
            "exact": _EXACT,
            "anls": Variant(anls.official, "ANLS of the Robust Reading Competition"),
        },
        {
            "official": mean_variant(
                "by type: contained, alike from five words on, a choice's letter, near a count (OCRBench v2)",
                short_answers.scores,
            )
        },
    ),
    "due_f1": Metric(
        "The pairs of key and value found in each document, against those of its reference.",
        {"original": _CONTAINED_WITHOUT_DOTS, "contained": _CONTAINED, "exact": _EXACT},
        due_f1.VARIANTS,
    ),
    "key_information": Metric(
        "The value of one key of a page, asked as a question: ANLS beside SROIE's F1 over all keys of a page.",
        {
            "anls": Variant(anls.official, "ANLS of the Robust Reading Competition"),
            "original": Variant(
                matching.contained_without_places,
                "a reference occurs in the prediction without its places (TextMonkey)",
            ),
            "in_a_line": Variant(matching.in_a_line, "a reference occurs in the prediction, in a line (OCRBench)"),
            "exact": _EXACT,
        },
        {"official": due_f1.ENTITY_F1},
    ),
    "cider": Metric(
        "Agreement of a caption with people's captions, words weighted by how rare they are; at most 1000, not 100.",
        {"rouge_l": Variant(captions.rouge_l, "longest common subsequence of words (coco-caption)")},
        {"official": captions.CIDER_D, "bleu_4": captions.BLEU_4},
        best_answers=lambda references: (captions.most_agreed(references),),
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
        raise ValueError(f"{metric} {variant} scores all answers of a set together; eval.metrics.corpus.score does")
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
