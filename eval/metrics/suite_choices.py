"""Multiple choice as MMBench, SEED-Bench and MathVista score it, without the language models that judge there.

References are the right option's letter; the options stand in the row ('options') or in its question.

MMBench (Liu et al., "MMBench: Is Your Multi-modal Model an All-around Player?", 2023): a question is asked as often as
it has options, which are turned from one time to the next, and it is right when each of them is (circular). The option
is read by the rules of VLMEvalKit, where the authors keep the script; answers that these cannot read it gives to
ChatGPT, and here they are wrong, as in VLMEvalKit's own mode "exact_matching". MathVista (Lu et al., "MathVista:
Evaluating Mathematical Reasoning of Foundation Models in Visual Contexts", 2023): its script has GPT-4 take the answer
out of what a model wrote, and takes the option whose text that is nearest to; here rules take it out. SEED-Bench (Li et
al., "SEED-Bench: Benchmarking Multimodal LLMs with Generative Comprehension", 2023) ranks options by likelihood; where
models write a letter, those who evaluate them look at the first character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rapidfuzz.distance import Levenshtein

from eval.metrics.choice import AROUND_WORDS, options_of_item, read_letter
from eval.metrics.corpus import CorpusVariant, Item, Population, Sums, by_unit, group_variant, mean_variant, ratio

_STATED = re.compile(r"answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_QUOTED = re.compile(r'The answer is "(.*)"\.')
_IN_BRACKETS = re.compile(r"\(([a-zA-Z])\)")
_LAST_WORDS = 4
_REFUSES = "Z"
"""A letter by which a judge says that no option was chosen."""


def find_choice_fault(item: Item) -> str | None:
    """A sentence on a row without options, or whose reference is the letter of none; None for another."""
    options = options_of_item(item)
    if not options:
        return "there are no 'options', and the question lists none as 'A. …' on lines of their own"
    if item.references[0] not in options:
        return f"the answer must be the letter of an option ({', '.join(options)}), and it is {item.references[0]!r}"
    return None


# MMBench


def infer_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names; None where MMBench would ask a language model.

    First the one option letter that is a word, among the last four of the answer; then "answer is B"; then the one
    option whose text is in the answer, case aside, unless the answer is longer than twice all of them.

    Odd: 'A' as an article is an option, and 'D' of 'vitamin D' too.
    """
    words = answer.translate(AROUND_WORDS).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
        return named[0]
    if not named and _REFUSES in words:
        return None
    if (stated := _STATED.search(answer)) and stated.group(1).upper() in options:
        return stated.group(1).upper()
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    contained = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return contained[0] if len(contained) == 1 else None


def infers_right(items: Sequence[Item], population: Population) -> list[float]:
    return [float(infer_option(item.prediction, options_of_item(item)) in item.references) for item in items]


def find_mmbench_fault(item: Item) -> str | None:
    """A sentence on a row that is no choice or does not say which question it asks; None for another."""
    for key in ("group", "rotation"):
        if not isinstance(item.more.get(key), int):
            return (
                f"{key!r} must be a whole number, and it is {item.more.get(key)!r}: 'group' is the question, which is "
                "asked with its options turned by 'rotation' from 0"
            )
    return find_choice_fault(item)


def _vanilla_sums(items: Sequence[Item], population: Population) -> Sums:
    """(right, rows) of each unit over the rows whose options stand as they were written."""
    sums = {}
    for unit, places in by_unit(items).items():
        own = [items[place] for place in places if items[place].more["rotation"] == 0]
        sums[unit] = (sum(infers_right(own, population)), float(len(own)))
    return sums


_RULE = "read by rule; MMBench asks ChatGPT where the rules read nothing"

MMBENCH = {
    "official": group_variant(
        f"circular: a question is right when it is with its options in each order that was asked, {_RULE}",
        infers_right,
        lambda item: item.more["group"],
    ),
    "vanilla": CorpusVariant(
        f"share of the questions right with the options in their first order, {_RULE}",
        ("right", "rows"),
        _vanilla_sums,
        ratio,
    ),
    "each_order": mean_variant(f"share of all rows right, one for each order of the options, {_RULE}", infers_right),
}


# SEED-Bench


def _first_characters(items: Sequence[Item], population: Population) -> list[float]:
    """1 where the answer's first character is the letter, case aside; odd: 'Both' is B."""
    return [
        float(item.prediction.strip()[:1].lower() in [reference.lower() for reference in item.references])
        for item in items
    ]


SEEDBENCH = {
    "official": mean_variant(
        "the answer's first character is the letter (lmms-eval, InternVL); SEED-Bench's own script ranks the options "
        "by likelihood",
        _first_characters,
    )
}


# MathVista


def _normalise(extracted: str, texts: Sequence[str]) -> str:
    """The text of the option that an extracted answer stands for, as calculate_score.py finds it.

    A letter in brackets, or one that is all of the answer; else the option of the least edit distance, of equals the
    first. Odd: an empty answer is the shortest option.
    """
    extracted = extracted.strip()
    if bracketed := _IN_BRACKETS.search(extracted):
        extracted = bracketed.group(1).upper()
    place = ord(extracted) - ord("A") if len(extracted) == 1 else -1
    if 0 <= place < len(texts):
        return texts[place]
    return min(texts, key=lambda text: Levenshtein.distance(extracted, text))


def _extract(prediction: str, options: Mapping[str, str]) -> str:
    """What of an answer names the option: a text in quotes behind "The answer is", a letter, or all of it.

    The letter is that of `read_letter`, else of the one option whose text stands in the answer as words, else that of
    `infer_option`. An answer that is an option's text is taken as it is.
    """
    if prediction in options.values():
        return prediction
    if quoted := _QUOTED.search(prediction):
        return quoted.group(1)
    return (
        read_letter(prediction, options)
        or _find_words(prediction, options)
        or infer_option(prediction, options)
        or prediction
    )


def _find_words(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the one option whose text stands in the answer, case aside, not within a longer word."""
    found = [
        letter
        for letter, text in options.items()
        if re.search(rf"(?<!\w){re.escape(text.lower())}(?!\w)", answer.lower())
    ]
    return found[0] if len(found) == 1 else None


def _is_text_right(item: Item, text: str) -> float:
    """Options of one text are one: some of MathVista's questions list a text twice."""
    options = options_of_item(item)
    return float(text in [options[letter] for letter in item.references if letter in options])


def _by_rule(items: Sequence[Item], population: Population) -> list[float]:
    found = []
    for item in items:
        options = options_of_item(item)
        texts = list(options.values())
        is_empty = not item.prediction.strip()
        found.append(0.0 if is_empty else _is_text_right(item, _normalise(_extract(item.prediction, options), texts)))
    return found


def _as_written(items: Sequence[Item], population: Population) -> list[float]:
    return [_is_text_right(item, _normalise(item.prediction, list(options_of_item(item).values()))) for item in items]


MATHVISTA = {
    "official": mean_variant(
        "the option that rules take out of the answer, else the one of the nearest text; MathVista's own script has "
        "GPT-4 take it out",
        _by_rule,
    ),
    "as_written": mean_variant(
        "the answer as it is in the place of what GPT-4 would take out of it, by MathVista's own calculate_score.py",
        _as_written,
    ),
    "inferred": mean_variant("by MMBench's rules, wrong where they read nothing (VLMEvalKit)", infers_right),
}
