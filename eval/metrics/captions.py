"""CIDEr-D and BLEU-4 over a set of captions, and ROUGE-L of one, on Penn Treebank tokens.

CIDEr-D: Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015), in the form
that coco-caption computes. For n = 1 to 4, an n-gram g of a caption weighs

    count(g) · (log N − log max(1, d(g)))      N rows, of which d(g) have g in a reference

and the score of a caption is 10 times the mean over n and over references of

    Σ_g min(w_caption(g), w_reference(g)) · w_reference(g) / (‖w_caption‖ ‖w_reference‖) · exp(−δ² / 2σ²)

with δ the difference of lengths and σ = 6. A score lies between 0 and 10, and published figures are 100 times it. N and
d count the rows of the *whole* set: the same caption scores 456, 469 and 0 among 3, 2 and 1 images, so a part of the
set is scored with the whole set's counts (`population`), and stays comparable.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rapidfuzz.distance import LCSseq

from eval.metrics.corpus import CorpusVariant, Item, Population, Sums, by_unit, mean_variant, ratio
from eval.metrics.penn_treebank import caption_tokens

LONGEST = 4
"""n-grams of one to this many words."""
LENGTH_DEVIATION = 6.0
FULL_SCORE = 10.0
RECALL_WEIGHT = 1.2
"""ROUGE-L's beta, as coco-caption sets it."""

# What coco-caption adds so that nothing divides by zero; it shows in the last digits of BLEU.
_TINY, _SMALL = 1e-15, 1e-9

Ngrams = Counter[tuple[str, ...]]


def ngram_counts(tokens: Sequence[str]) -> Ngrams:
    """How often each run of one to four words occurs."""
    return Counter(
        tuple(tokens[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(tokens) - length + 1)
    )


def document_frequencies(population: Population) -> Ngrams:
    """For each n-gram, how many rows have it in one of their references."""
    frequencies: Ngrams = Counter()
    for references in population:
        frequencies.update({ngram for reference in references for ngram in ngram_counts(caption_tokens(reference))})
    return frequencies


def cider_scores(items: Sequence[Item], population: Population) -> list[float]:
    """CIDEr-D of each item, between 0 and 10, with the document frequencies of the population."""
    frequencies, rows = document_frequencies(population), math.log(len(population)) if population else 0.0
    return [_cider(item, frequencies, rows) for item in items]


def _cider(item: Item, frequencies: Mapping[tuple[str, ...], int], log_rows: float) -> float:
    def weigh(caption: str) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        """The weights of each n, their norms, and the length in bigrams, which is what coco-caption compares."""
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
        tokens = caption_tokens(caption)
        for ngram, count in ngram_counts(tokens).items():
            weights[len(ngram) - 1][ngram] = count * (log_rows - math.log(max(1, frequencies.get(ngram, 0))))
        norms = [math.sqrt(math.fsum(weight * weight for weight in row.values())) for row in weights]
        return weights, norms, max(0, len(tokens) - 1)

    weights, norms, length = weigh(item.prediction)
    similarity = 0.0
    for reference in item.references:
        other_weights, other_norms, other_length = weigh(reference)
        penalty = math.exp(-((length - other_length) ** 2) / (2 * LENGTH_DEVIATION**2))
        for row, other, norm, other_norm in zip(weights, other_weights, norms, other_norms, strict=True):
            if norm and other_norm:
                products = (min(weight, other.get(ngram, 0.0)) * other.get(ngram, 0.0) for ngram, weight in row.items())
                similarity += penalty * math.fsum(products) / (norm * other_norm)
    return FULL_SCORE * similarity / (LONGEST * len(item.references))


def bleu_sums(items: Sequence[Item], population: Population) -> Sums:
    """Right and offered n-grams for n = 1 to 4, words offered, and words of the references nearest in length."""
    sums = {}
    for unit, places in by_unit(items).items():
        rows = [_bleu_counts(items[place]) for place in places]
        sums[unit] = tuple(float(sum(column)) for column in zip(*rows, strict=True))
    return sums


def _bleu_counts(item: Item) -> list[int]:
    tokens = caption_tokens(item.prediction)
    references = [caption_tokens(reference) for reference in item.references]
    most: Ngrams = Counter()
    for reference in references:
        most |= ngram_counts(reference)
    right = [0] * LONGEST
    for ngram, count in ngram_counts(tokens).items():
        right[len(ngram) - 1] += min(count, most[ngram])
    offered = [max(0, len(tokens) - length) for length in range(LONGEST)]
    _, nearest_length = min((abs(len(reference) - len(tokens)), len(reference)) for reference in references)
    return [*right, *offered, len(tokens), nearest_length]


def bleu(*sums: Any) -> Any:
    """BLEU-4 from totals: the geometric mean of the four shares of right n-grams, less for being short."""
    right, offered, (length, nearest_length) = sums[:LONGEST], sums[LONGEST : 2 * LONGEST], sums[2 * LONGEST :]
    product = 1.0
    for count, possible in zip(right, offered, strict=True):
        product = product * ((count + _TINY) / (possible + _SMALL))
    shortness = 1 - (nearest_length + _SMALL) / (length + _TINY)
    # The smaller of shortness and zero, written so that arrays pass too; nothing said is worth nothing.
    exponent = (shortness - abs(shortness)) / 2
    return product ** (1 / LONGEST) * math.e**exponent * (length > 0)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L of one caption: the longest common subsequence of words, as coco-caption weighs it.

    Odd: precision and recall are each taken from the reference where they are best. Two texts without words score 0
    here; coco-caption takes each for one empty word and gives 1.
    """
    tokens = caption_tokens(prediction)
    others = [caption_tokens(reference) for reference in references]
    common = [LCSseq.similarity(tokens, other) for other in others]
    precision = max(ratio(length, len(tokens)) for length in common)
    recall = max(ratio(length, len(other)) for length, other in zip(common, others, strict=True))
    return float(ratio((1 + RECALL_WEIGHT**2) * precision * recall, recall + RECALL_WEIGHT**2 * precision))


def most_agreed(references: Sequence[str]) -> str:
    """The reference that agrees best with the others (mean ROUGE-L); of equals the first."""
    if len(references) == 1:
        return references[0]
    places = range(len(references))
    agreement = [
        math.fsum(rouge_l(references[place], [references[other]]) for other in places if other != place)
        for place in places
    ]
    return references[max(places, key=lambda place: (round(agreement[place], 9), -place))]


CIDER_D = mean_variant(
    "CIDEr-D on Penn Treebank tokens, document frequencies of the whole set", cider_scores, FULL_SCORE, whole_set=True
)
BLEU_4 = CorpusVariant(
    "BLEU-4 on Penn Treebank tokens, all captions together",
    (*(f"right_{n}" for n in range(1, 5)), *(f"offered_{n}" for n in range(1, 5)), "words", "reference_words"),
    bleu_sums,
    bleu,
)
