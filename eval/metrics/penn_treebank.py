"""Penn Treebank tokens of a caption, as the caption metrics count them, without Java.

The published figures of CIDEr and BLEU were computed on the output of Stanford's PTBTokenizer 3.4.1, lower-cased and
with punctuation tokens dropped (coco-caption). This is that tokenizer's behaviour written anew, for English captions:
at every place the longest of the patterns below wins, and of equals the first, as in a generated lexer.
`tests/test_cider.py` compares the two where Java and pycocoevalcap are installed.

What is odd about it is kept, since published figures contain it: brackets become `-lrb-` and *stay*, because the list
of dropped punctuation spells them in capitals while the text is in lower case; '!!!' stays while '!' goes; 'foo.bar'
and 'and/or' are one token each; '£' is '#'. Long addresses, source code and emoji beyond a handful are not copied with
care, nor are a backslash before '*' or '/', 'cm²' and its like, and the brackets of Chinese and Japanese. Each caption
is read by itself; coco-caption reads all as one text, a line each, so that there the full stop after a single capital
at the end of a caption ('… plan B.') is a mark or part of the word by how the *next* caption begins.
"""

from __future__ import annotations

import re
from functools import lru_cache

DROPPED = frozenset(("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--"))
DROPPED |= frozenset(("...", ";"))
"""Tokens that coco-caption drops, as it spells them."""

_CACHED_CAPTIONS = 1 << 17

_L = r"[^\W\d_]"
_W = r"[^\W_]"
_APOSTROPHE = "['\u2019\u0092]"
_CUT = rf"[nN](?:{_APOSTROPHE}|`)[tT](?!{_W})"


def _any(words: str) -> str:
    """One of the words; the longest first, since the first that fits is taken."""
    return "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True))


_ABBREVIATIONS = _any(
    """mr mrs ms dr drs prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt
    st ste ave pres lieut hon brig comdr cmdr pfc spc supt supts det mt ft adj adv asst assoc ens insp mlle mme msgr
    sfc vs alex wm jos cie cf a.k.a treas ph ph.d ed.d jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues
    wed thu thurs fri ala ariz calif colo conn ct dak fla ga ind kans kan ky md mich minn mo mont neb nev okla penn tenn
    va vt wis wyo inc cos co corp pty ltd plc rt bancorp bhd assn univ intl sys invt elec natl m.f.g dept jr sr bros
    blvd rd esq etc al seq ext tel bldg sq est"""
)
"""The full stop belongs to the word. (At the end of a sentence it is a token once more, and is dropped.)"""

_CAPITAL_ABBREVIATIONS = _any("Az Ark Del Ill La Mass Miss Ore Pa Tex Wash AZ ARK DEL ILL LA MASS MISS ORE PA TEX WASH")
"""The same, but in lower case they are words."""

_NUMBER_ABBREVIATIONS = _any("pp no nos art fig figs ca prop")
"""The same before a number."""

_SENTENCE_STARTS = _any(
    """A An The This That These You He She It We They If In At Some Many One There Here What When Her Their Our But So
    As After While"""
)
"""Before these a letter's full stop ends a sentence: 'plan B. The' but 'B. Smith'."""

_TWO_TOKENS = {
    "cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3, "'tis": 2, "'twas": 2, "more'n": 4,
    "rock'n": 4,
}  # fmt: skip
"""Words that are two tokens, and the length of the first."""

# Each pattern's first group is the token; the rest, whose length counts too, only decides that it is one.
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # Marks of markup, addresses, names of accounts.
        r"(</?[a-z][\w:.-]*(?:\s+[a-z][\w:.-]*(?:\s*=\s*(?:'[^']*'|\"[^\"]*\"|[\w:.-]+))?)*\s*/?>)",
        r"(<!--.*?-->|<[^\s<>|()\[\]{}:/@]+@[^\s<>|()@]+>)",
        r"(https?://[^\s\"<>|()\[\]{}]+[^\s\"<>|.!?(){}\[\],-])",
        r"((?:www\.(?:[^\s\"`'<>|.!?,]+\.)+[a-z]{2,4}"
        r"|(?:[^\s\"`'<>|.!?,\-()\[\]{}:/]+\.)+(?:com|net|org|edu))(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?)",
        r"([a-z0-9][^\s\"<>|()\[\]{}:/]*@(?:[^\s\"<>|().,]+\.)*[^\s\"<>|().!,;:?]+)",
        r"(@[a-z_][a-z0-9_]*|#[a-z]+)",
        # Contractions.
        rf"({_L}+?){_CUT}",
        rf"({_CUT})",
        rf"({_APOSTROPHE}(?:[msd]|re|ve|ll))(?!{_W})",
        rf"({_L}(?:{_W})*?)(?:{_APOSTROPHE}(?:[msd]|re|ve|ll))(?!{_W})",
        # Numbers.
        r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
        r"([-+]?\d*(?:[.,:]\d+)+)",
        r"([-+]?\d+)",
        rf"({_W}+(?:\.\d{_W}*)+(?:-{_W}+)+)",
        r"((?:\d{1,4}-)?\d{1,4}[/\u2044]\d{1,4})",
        rf"({_APOSTROPHE}(?:[2-9]0s|\d\d(?!{_W})))",
        r"((?-i:[A-Z])*\$|#+)",
        # Words.
        rf"({_L}{_W}*(?:[.!?]{_L}{_W}*)*)",
        rf"((?:[dol]{_APOSTROPHE}{_L})?{_W}+(?:[-_\u2010\u2011](?:[dol]{_APOSTROPHE}{_L})?{_W}+)*)",
        r"([a-z0-9]+(?:-[a-z]+){0,2}(?:/[a-z0-9]+(?:-[a-z]+){0,2}){1,2})",
        r"((?-i:[A-Z]+(?:[+&][A-Z]+)+))",
        r"([cf](?:\+\+|#))",
        # Full stops that belong to a word.
        r"([a-z](?:\.[a-z])+\.?)",
        rf"([a-z])\.(?=\s+(?-i:{_SENTENCE_STARTS})\b)",
        r"([a-z]\.)",
        rf"((?:{_ABBREVIATIONS})\.)",
        rf"((?-i:{_CAPITAL_ABBREVIATIONS})\.)",
        rf"((?:{_NUMBER_ABBREVIATIONS})\.)\s*\d",
        # Words with an apostrophe.
        rf"({_APOSTROPHE}n{_APOSTROPHE}?|ol{_APOSTROPHE}|dunkin{_APOSTROPHE}|somethin{_APOSTROPHE}"
        rf"|{_APOSTROPHE}em|{_APOSTROPHE}till?|{_APOSTROPHE}cause)(?!{_W})",
        rf"(y{_APOSTROPHE})(?={_L})",
        rf"([ldj]{_APOSTROPHE}{_L}*|[a-hj-xz]{_APOSTROPHE}{_L}{{2,}}|{_L}+[aeiouy]{_APOSTROPHE}[aeiou]{_L}*)",
        rf"(cont{_APOSTROPHE}d|nor{_APOSTROPHE}easter|c{_APOSTROPHE}mon|o{_APOSTROPHE}o)",
        # Marks.
        r"([!?]+|-+|\*+|_+|@+|<<|>>|''|``)",
        r"([<>]?[:;=][-o*']?(?:[()@|\[\]]|[dp](?!\w)))",
        r"([-^x=~<>']_[-^x=~<>'])",
        r"([^\s\u20a5-\u20ab\u20ad-\u20cf\ufe0e\ufe0f\U00010000-\U0010ffff])",
    )
)

_FORMS = {"\u2026": "...", "\u201c": "``", "\u201d": "''", '"': "''", "\u00ab": "``", "\u00bb": "''"}
_FORMS |= dict.fromkeys(("\u2013", "\u2014", "\u2015", "\u0096", "\u0097", "---", "----"), "--")
_FORMS |= {"\u2018": "`", "\u201b": "`", "\u2019": "'", "\u00b4": "'"}
_FORMS |= {"\u00a3": "#", "\u20ac": "$", "\u00a4": "$", "\u20a0": "$", "\u00a2": "cents"}
_FORMS |= {"\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_FORMS |= {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_BLANKS = re.compile("[\\s\u200b\ufeff]*")
_PLAIN_WORD = re.compile(r"[A-Za-z]+(?=\s|$)")
_SPLIT_WORD = re.compile(rf"({_any(' '.join(_TWO_TOKENS))})(?!{_W})", re.IGNORECASE)
_CURLED = re.compile("n[\u2019\u0092]t|[\u2019\u0092](?:[msd]|re|ve|ll)")


@lru_cache(maxsize=_CACHED_CAPTIONS)
def caption_tokens(caption: str) -> tuple[str, ...]:
    """The tokens of a caption in lower case, punctuation dropped."""
    return tuple(token for token in _all_tokens(caption) if token not in DROPPED)


def _all_tokens(caption: str) -> list[str]:
    text = caption.replace("\u00ad", "")
    tokens: list[str] = []
    place = _BLANKS.match(text).end()
    while place < len(text):
        end, known = _token_end(text, place)
        if known:
            token = text[place:end].lower()
            if _CURLED.fullmatch(token):
                token = token.replace("\u2019", "'").replace("\u0092", "'")
            token = _FORMS.get(token, token).replace("(", "-lrb-").replace(")", "-rrb-")
            # A few tokens hold a blank; whoever counts words splits them.
            tokens += token.split()
        place = _BLANKS.match(text, end).end()
    return tokens


def _token_end(text: str, place: int) -> tuple[int, bool]:
    """Where the token that begins at `place` ends, and False for a character that the tokenizer leaves out."""
    split = _SPLIT_WORD.match(text, place)
    if split:
        return place + _TWO_TOKENS[split.group().lower().replace("\u2019", "'")], True
    plain = _PLAIN_WORD.match(text, place)
    if plain:
        return plain.end(), True
    longest, end = place, place + 1
    for pattern in _PATTERNS:
        found = pattern.match(text, place)
        if found and found.end() > longest:
            longest, end = found.end(), found.end(1)
    return end, longest > place
