"""Multiple choice: which option an answer names, by its letter, its text, or the text it is nearest to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from eval.anls import edit_distance
from eval.corpus_metrics import Item, Population

_DECORATION = " ().:"
_LETTERED = re.compile(r"\s*\(?([A-Za-z])[.):]")
_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*?)\s*$", re.MULTILINE)


def chosen(prediction: str, references: Sequence[str]) -> float:
    """The right option was chosen, which the references name by its text, its letter, or both.

    Case, blanks and a final full stop do not matter; '(b)', 'B.' and 'b' are one letter. 'B. moon' names the option
    twice: the text must be a reference and, where a reference is a letter, that letter must be too. The options
    themselves are not known here, so an answer that is merely nearer to the right option than to the others is
    wrong; `nearest_option` knows them.
    """
    wanted = {_plain(reference) for reference in references}
    answer = _plain(prediction)
    if answer in wanted:
        return 1.0
    letter, _, text = answer.partition(" ")
    letter = letter.strip(_DECORATION)
    if len(letter) != 1:
        return 0.0
    letters = {reference for reference in wanted if len(reference) == 1}
    return float(_plain(text) in wanted and (not letters or letter in letters))


def first_letter(prediction: str, references: Sequence[str]) -> float:
    """The letter that stands alone at the start of the answer is a reference: 'B', '(b)', 'B. moon' and 'B: it is'.

    For sets whose references are letters; text after the letter does not matter.
    """
    found = re.match(r"\s*\(?([A-Za-z])(?![\w'])", prediction)
    letters = {_plain(reference) for reference in references}
    return float(found is not None and found.group(1).lower() in letters)


def options_of(question: str) -> dict[str, str]:
    """The options that a question lists, one a line as 'A. moon', '(A) moon' or 'A: moon': text by letter.

    Letters must go A, B, C…; a question without such a list has none.
    """
    options: dict[str, str] = {}
    for letter, text in _OPTION.findall(question):
        if ord(letter) - ord("A") == len(options):
            options[letter] = text
    return options if len(options) > 1 else {}


def nearest_option(item: Item) -> float:
    """The answer is taken for the option whose letter it begins with, whose letter or text it is, or else whose text is
    nearest.

    Nearness is the edit distance over the longer length; of equals the first. Without options in the row or its
    question, and for an empty answer, it is `chosen`.
    """
    options = dict(zip(ascii_uppercase, item.more.get("options", ()), strict=False)) or options_of(item.question)
    answer = _plain(item.prediction)
    if not options or not answer or chosen(item.prediction, item.references):
        return chosen(item.prediction, item.references)
    texts = {letter: _plain(text) for letter, text in options.items()}
    named = [letter for letter in options if answer in (letter.lower(), texts[letter])]

    def distance(letter: str) -> float:
        return edit_distance(answer, texts[letter]) / max(len(answer), len(texts[letter]))

    lettered = _LETTERED.match(item.prediction)
    if lettered and lettered.group(1).upper() in options:
        named = [lettered.group(1).upper()]
    choice = named[0] if named else min(options, key=distance)
    return max(chosen(choice, item.references), chosen(options[choice], item.references))


def nearest_option_scores(items: Sequence[Item], population: Population) -> list[float]:
    return [nearest_option(item) for item in items]


def _plain(text: str) -> str:
    collapsed = " ".join(text.lower().split()).rstrip(". ")
    bare = collapsed.strip(_DECORATION)
    return bare if len(bare) == 1 else collapsed
