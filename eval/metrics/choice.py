"""Multiple choice: which option an answer names, by its letter, its text, or the text it is nearest to.

How an answer states its letter is read as the scripts in use read it: ScienceQA's looks for "The answer is B." and
MMBench's for the one option letter among the words of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from string import ascii_uppercase

from rapidfuzz.distance import Levenshtein

from eval.metrics.corpus import Item, Population

_DECORATION = " ().:[]{}\"'"
_MARKDOWN = "*_` "
_LETTERED = re.compile(r"\s*\(?([A-Za-z])[.):]")
_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
_LEAD_IN = re.compile(
    r"[\s*_`]*(?:the\s+)?(?:(?:final|correct|right|best)\s+)?(?:answer|option|choice)[\s*_`]*(?:\s+is\b|:)[\s*_`:]*",
    re.IGNORECASE,
)
_LETTER = r"[\s*_`(\[\"']*([A-Z])(?:[.):;,*_`\]\"'\n]|\s*$|\s+(?:because|since|as)\b)"
_STATED = re.compile(rf"(?i:\b(?:answer|option|choice)[*_`]*(?:\s+is\b:?|:)){_LETTER}")
_LEADING = re.compile(_LETTER)
_LETTERS = "ABCDEFGH"
"""Options have letters from the start of the alphabet, and 'I' is a word."""
AROUND_WORDS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_SHORT = 3
"""An answer of more words than these that has an 'A' is not read by its words: there it is an article."""


def chosen(prediction: str, references: Sequence[str]) -> float:
    """The right option was chosen, which the references name by its text, its letter, or both.

    Case, blanks, Markdown, a final full stop and words such as "The answer is" before the option do not matter; '(b)',
    'B.' and 'b' are one letter. 'B. moon' names the option twice: where the text is a reference and a reference is a
    letter, that letter must be it. Else `read_letter` decides, where a reference is a letter. The options themselves
    are not known here, so an answer that is merely nearer to the right option than to the others is wrong;
    `nearest_option` knows them.
    """
    wanted = {_plain(reference) for reference in references}
    letters = {reference for reference in wanted if len(reference) == 1}
    answer = _plain(prediction)
    if answer in wanted or _plain(_LEAD_IN.sub("", prediction, count=1)) in wanted:
        return 1.0
    letter, _, text = answer.partition(" ")
    letter = letter.strip(_DECORATION + _MARKDOWN)
    if len(letter) == 1 and _plain(text) in wanted:
        return float(not letters or letter in letters)
    stated = read_letter(prediction, _LETTERS + "".join(letters).upper()) if letters else None
    return float(stated is not None and stated.lower() in letters)


def read_letter(prediction: str, options: Iterable[str] = _LETTERS) -> str | None:
    """The capital letter by which an answer names one of the options; None where it names none, or several.

    First what follows "answer is" or "Answer:" ("The answer is B. BECAUSE: …"), then a letter that opens the answer
    ('B because …', '**B**: …'), then the one option letter among its words, as MMBench's script reads them; there 'A'
    counts in short answers only, since it is an article too.
    """
    options = set(options)
    leading = _LEADING.match(prediction)
    words = prediction.translate(AROUND_WORDS).split()
    if "A" in words and len(words) > _SHORT:
        words = []
    for letters in (_STATED.findall(prediction), leading.groups() if leading else (), words):
        if named := options.intersection(letters):
            return named.pop() if len(named) == 1 else None
    return None


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


def options_of_item(item: Item) -> dict[str, str]:
    """Text by letter of the options in the row, else in its question; none where neither has them."""
    return dict(zip(ascii_uppercase, item.more.get("options", ()), strict=False)) or options_of(item.question)


def nearest_option(item: Item) -> float:
    """The answer is taken for the option whose letter it begins with, whose letter or text it is, or else whose text is
    nearest.

    Nearness is the edit distance over the longer length; of equals the first. Without options in the row or its
    question, and for an empty answer, it is `chosen`.
    """
    options = options_of_item(item)
    answer = _plain(item.prediction)
    if not options or not answer or chosen(item.prediction, item.references):
        return chosen(item.prediction, item.references)
    texts = {letter: _plain(text) for letter, text in options.items()}
    named = [letter for letter in options if answer in (letter.lower(), texts[letter])]

    def distance(letter: str) -> float:
        return Levenshtein.distance(answer, texts[letter]) / max(len(answer), len(texts[letter]))

    lettered = _LETTERED.match(item.prediction)
    if lettered and lettered.group(1).upper() in options:
        named = [lettered.group(1).upper()]
    elif not named and (stated := read_letter(item.prediction, options)):
        named = [stated]
    choice = named[0] if named else min(options, key=distance)
    return max(chosen(choice, item.references), chosen(options[choice], item.references))


def nearest_option_scores(items: Sequence[Item], population: Population) -> list[float]:
    return [nearest_option(item) for item in items]


def _plain(text: str) -> str:
    collapsed = " ".join(text.lower().split()).strip(_MARKDOWN).rstrip(". ").strip(_MARKDOWN)
    bare = collapsed.strip(_DECORATION)
    return bare if len(bare) == 1 else collapsed
