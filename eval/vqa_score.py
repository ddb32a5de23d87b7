"""VQA accuracy: agreement with ten people, averaged over leaving each of them out.

An answer is worth min(matching people / 3, 1); it is averaged over the ten subsets of nine. So 3 of 10 agreeing
gives 0.9, not 1, and a reference that stands alone can never reach more than 0.3 for the person who gave it.
Definition: visualqa.org/evaluation.html. What differs between the versions of the script in use is only which side
is normalised, and when.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.answers import blank_line_breaks, normalise_evalai, normalise_vqa, strip_punctuation
from eval.porter import stem

MATCHES_FOR_FULL_SCORE = 3
MINIMUM_REFERENCES = MATCHES_FOR_FULL_SCORE + 1  # with one left out, three must remain for a score of 1 to exist


def _leave_one_out(prediction: str, references: Sequence[str]) -> float:
    matches = sum(reference == prediction for reference in references)
    # Summed one person at a time, as the scripts do: the last bit of the mean depends on the order.
    shares = [min(1, float(matches - (reference == prediction)) / MATCHES_FOR_FULL_SCORE) for reference in references]
    return float(sum(shares)) / len(shares)


def original(prediction: str, references: Sequence[str]) -> float:
    """The script of before 2021 that the published evaluator carries.

    Odd: number words and articles are unified in the prediction only, and punctuation in the references only when
    the people disagree. So 'two' is wrong for people who wrote 'two', and ten times 'coca-cola' makes 'coca-cola'
    worth nothing.
    """
    return _leave_one_out(normalise_vqa(prediction), _references_of_the_original(references))


def original_without_answer_id(prediction: str, references: Sequence[str]) -> float:
    """`original` on annotation files that have no `answer_id`, as VizWiz publishes them.

    Odd: the script leaves out every record *equal* to the one it holds, so without ids all people with the same
    answer vanish together: ten times 'unanswerable' makes 'unanswerable' worth nothing.
    """
    answer = normalise_vqa(prediction)
    people = _references_of_the_original(references)
    shares = []
    for left_out in people:
        matches = sum(other == answer for other in people if other != left_out)
        shares.append(min(1, float(matches) / MATCHES_FOR_FULL_SCORE))
    return float(sum(shares)) / len(shares)


def official(prediction: str, references: Sequence[str]) -> float:
    """The rule as visualqa.org states it: both sides are normalised, always, and one person is left out at a time."""
    return _leave_one_out(normalise_vqa(prediction), [normalise_vqa(reference) for reference in references])


def stemmed(prediction: str, references: Sequence[str]) -> float:
    """`official` on the stems of the words (Porter): 'riding' agrees with people who wrote 'ride'.

    The answers that OK-VQA released are stemmed, so predictions must be too. That the stemmer was Porter's is assumed.
    """
    return _leave_one_out(_stemmed(prediction), [_stemmed(reference) for reference in references])


def _stemmed(text: str) -> str:
    return " ".join(map(stem, normalise_vqa(text).split()))


def script_2021(prediction: str, references: Sequence[str]) -> float:
    """The official repository's script since 2021.

    Odd: when all people agree nothing at all is normalised, the prediction included: 'Yes' is worth nothing for ten
    times 'yes'.
    """
    answer = blank_line_breaks(prediction)
    people = [blank_line_breaks(reference) for reference in references]
    if len(set(people)) > 1:
        answer = normalise_vqa(answer)
        people = [normalise_vqa(person) for person in people]
    return _leave_one_out(answer, people)


def evalai(prediction: str, references: Sequence[str]) -> float:
    """The EvalAI servers of TextVQA and VizWiz: their processor on both sides, one person left out at a time."""
    return _leave_one_out(normalise_evalai(prediction), [normalise_evalai(reference) for reference in references])


def _references_of_the_original(references: Sequence[str]) -> list[str]:
    if len(set(references)) > 1:
        return [strip_punctuation(reference) for reference in references]
    return list(references)
