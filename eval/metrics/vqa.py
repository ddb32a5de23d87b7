"""VQA accuracy: agreement with ten people, averaged over leaving each of them out.

An answer is worth min(matching people / 3, 1); it is averaged over the ten subsets of nine. So 3 of 10 agreeing
gives 0.9, not 1, and a reference that stands alone can never reach more than 0.3 for the person who gave it.
Definition: visualqa.org/evaluation.html. What differs between the versions of the script in use is only which side
is normalised, and when.

Answers are normalised before they are compared, in two families, both kept with their oddities because published
numbers contain them:

- the VQA script (visualqa.org): punctuation, number words, articles, contractions;
- EvalAI's processor for TextVQA and VizWiz: the same, after dropping ',' and '?' and cutting off "'s".

Oddities of both, reproduced: the pattern that strips a full stop was meant to look behind for a digit but a typing
error turned the look-behind into a look-ahead that is always true, so '5.' becomes '5'; `re.UNICODE` was passed
where the count belongs, so only the first 32 full stops go; one comma between two digits anywhere makes *every*
punctuation mark vanish instead of becoming a blank; 'none' counts as the number 0; "somebody'd" *loses* its
apostrophe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import snowballstemmer

MATCHES_FOR_FULL_SCORE = 3
MINIMUM_REFERENCES = MATCHES_FOR_FULL_SCORE + 1  # with one left out, three must remain for a score of 1 to exist

_PORTER = snowballstemmer.stemmer("porter")

PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
ARTICLES = frozenset(("a", "an", "the"))
NUMBER_WORDS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBER_WORDS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS_REMOVED = 32  # the value of re.UNICODE, which the scripts pass as `count`
_CACHED_ANSWERS = 1 << 16

# Written without their apostrophe, these get it back.
_ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# With two apostrophes: repaired when exactly one of them is missing.
_TWO_APOSTROPHES = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've you'd've y'all'll
"""
# Three apostrophes, or contrary to the rule. Entries with capitals (I'd've, I'm, I've) are left out: words arrive
# in lower case.
_IRREGULAR = {
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
    for word in _TWO_APOSTROPHES.split():
        first, second, third = word.split("'")
        table[f"{first}{second}'{third}"] = word
        table[f"{first}'{second}{third}"] = word
    return table | _IRREGULAR


CONTRACTIONS = _contractions()


def blank_line_breaks(text: str) -> str:
    """Line breaks and tabs become blanks; blanks at the ends go."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """The VQA script's punctuation step.

    A mark that touches a blank somewhere in the text disappears, otherwise it becomes a blank ("on/c" -> "on c");
    with a comma between digits all marks disappear. The colon and the apostrophe are no marks; a full stop before a
    digit stays.
    """
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        touches_blank = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if touches_blank or in_number else " ")
    return _FULL_STOP.sub("", result, count=_FULL_STOPS_REMOVED)


def unify_words(text: str) -> str:
    """The VQA script's word step: lower case, digits for number words, no articles, apostrophes put back."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=_CACHED_ANSWERS)
def normalise_vqa(text: str) -> str:
    """An answer as the VQA script compares it."""
    return unify_words(strip_punctuation(blank_line_breaks(text)))


@lru_cache(maxsize=_CACHED_ANSWERS)
def normalise_evalai(text: str) -> str:
    """An answer as the EvalAI servers of TextVQA and VizWiz compare it.

    Commas and question marks go before anything else and "'s" becomes a word of its own ("joe's" -> "joe 's").
    """
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_vqa(words)


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


def stem(word: str) -> str:
    """Porter's stem of a word of letters; what holds a figure or an apostrophe stays, as do words of two letters."""
    return _PORTER.stemWord(word) if len(word) > 2 and word.isalpha() else word


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
