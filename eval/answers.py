"""Answer normalisers: what a scoring script does to a string before it compares two of them.

Two families, both kept with their oddities because published numbers contain them:

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
from functools import lru_cache

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


def collapse_blanks(text: str) -> str:
    """Every run of white space becomes one blank, none at the ends."""
    return " ".join(text.split())


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
