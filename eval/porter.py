"""Porter's stemmer: English words without their endings, so that 'riding', 'rides' and 'ride' are one.

M. F. Porter, "An algorithm for suffix stripping" (Program 14, 1980), as published. OK-VQA's released answers
are stemmed; that it was with this stemmer is assumed.
`m` counts the vowel-consonant groups of what stands before an ending.
"""

from __future__ import annotations

import re
from functools import lru_cache

_STEP_2 = """ational:ate tional:tion enci:ence anci:ance izer:ize abli:able alli:al entli:ent eli:e ousli:ous
ization:ize ation:ate ator:ate alism:al iveness:ive fulness:ful ousness:ous aliti:al iviti:ive biliti:ble"""
_STEP_3 = "icate:ic ative: alize:al iciti:ic ical:ic ful: ness:"
_STEP_4 = "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize"
_CACHED_WORDS = 1 << 16


def _replacements(text: str) -> tuple[tuple[str, str], ...]:
    pairs = (entry.partition(":")[::2] for entry in text.split())
    return tuple(sorted(pairs, key=lambda pair: -len(pair[0])))


_LONG_ENDINGS = (_replacements(_STEP_2), _replacements(_STEP_3))
_LAST_ENDINGS = tuple(sorted(_STEP_4.split(), key=len, reverse=True))


def _shape(stem: str) -> str:
    """The word as 'c' and 'v'; y is a vowel after a consonant."""
    shape = ""
    for letter in stem:
        vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if vowel else "c"
    return shape


def _measure(stem: str) -> int:
    return len(re.findall("v+c+", _shape(stem)))


def _has_vowel(stem: str) -> bool:
    return "v" in _shape(stem)


def _doubled(stem: str) -> bool:
    return len(stem) > 1 and stem[-1] == stem[-2] and _shape(stem)[-1] == "c"


def _short_end(stem: str) -> bool:
    """Consonant, vowel, consonant other than w, x and y: an e was lost here ('hop' of 'hoping')."""
    return _shape(stem).endswith("cvc") and stem[-1] not in "wxy"


@lru_cache(maxsize=_CACHED_WORDS)
def stem(word: str) -> str:
    """The stem of a word in lower case; words of one or two letters are theirs."""
    if len(word) <= 2 or not word.isalpha():
        return word
    word = _without_past(_without_plural(word))
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    for table in _LONG_ENDINGS:
        ending, new = next(((ending, new) for ending, new in table if word.endswith(ending)), ("", ""))
        if ending and _measure(word[: -len(ending)]) > 0:
            word = word[: -len(ending)] + new
    ending = next((ending for ending in _LAST_ENDINGS if word.endswith(ending)), "")
    rest = word[: len(word) - len(ending)]
    if ending and _measure(rest) > 1 and (ending != "ion" or rest.endswith(("s", "t"))):
        word = rest
    if word.endswith("e"):
        rest = word[:-1]
        if _measure(rest) > 1 or (_measure(rest) == 1 and not _short_end(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _without_plural(word: str) -> str:
    for ending, new in (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")):
        if word.endswith(ending):
            return word[: -len(ending)] + new
    return word


def _without_past(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        rest = word[: -len(ending)]
        if word.endswith(ending) and _has_vowel(rest):
            if rest.endswith(("at", "bl", "iz")):
                return rest + "e"
            if _doubled(rest) and rest[-1] not in "lsz":
                return rest[:-1]
            return rest + "e" if _measure(rest) == 1 and _short_end(rest) else rest
    return word
