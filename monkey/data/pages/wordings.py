"""The wordings of wordings.toml: which of them may be asked, and how one is chosen and filled.

Whatever is in a list whose name begins with `heldout` is never asked in the split `train`. A question counts as one in
a held-out wording where its sentence or the name that it gives a thing is held out; its ending may be, too.
"""

from __future__ import annotations

import difflib
import random
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from monkey.files import read_settings_file

FILE = Path(__file__).with_name("wordings.toml")

TRAINED, HELD_OUT = "trained", "heldout"
"""Values of a question's `wording`."""

OWN, FIRST = 0.4, 0.4
"""How often a thing's own questions are asked; and of the others, how often a form's first, the published one."""
HELD_OUT_SENTENCE = 0.65
"""How often the sentence, and not the name alone, of a question in held-out wording is held out."""
ENDED = 0.25
"""How often an ending follows a question that may have one."""
TYPED = 0.08
"""How often a question is typed without capital and mark, as people do."""

SENTENCE_ENDS = (".", "?", "!", ":")
PAGE_SLOTS = ("{row", "{label", "{value", "{line", "{text", "{word", "{first", "{box")
"""How sentences begin that begin with what the page prints, whose capitals stay as they are."""


@dataclass(frozen=True)
class Choices:
    """Wordings by their `wording`: those of training and those held out."""

    trained: tuple[str, ...] = ()
    heldout: tuple[str, ...] = ()

    def that(self, fits: Callable[[str], bool]) -> Choices:
        """Return those that fit."""
        return Choices(tuple(filter(fits, self.trained)), tuple(filter(fits, self.heldout)))

    def without(self, taken: Collection[str]) -> Choices:
        """Return those that are not among `taken`."""
        return self.that(lambda text: text not in taken)


NOTHING = Choices()


@dataclass(frozen=True)
class Form:
    """A form of question: the kind that it is scored as, its sentences, and the names of the endings that fit it."""

    kind: str
    sentences: Choices
    endings: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """A thing that a page states, or a column of a table.

    Attributes:
        names: what a question calls it.
        own: questions of its own, by the form that they stand in for: "asked", "most", "sum" …
        near: keys whose presence answers the question after it, or nearly.
    """

    names: Choices
    own: Mapping[str, Choices]
    near: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Book:
    """All that wordings.toml holds."""

    forms: Mapping[str, Form]
    things: Mapping[str, Named]
    columns: Mapping[str, Named]
    rows: Mapping[str, tuple[str, str]]
    endings: Mapping[str, Choices]
    documents: Mapping[str, str]
    drawn: Mapping[str, str]


@cache
def read_wordings() -> Book:
    """Return the wordings of the project."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return Book(
        forms={
            name: Form(form["kind"], _choices(form), tuple(form["endings"])) for name, form in content["forms"].items()
        },
        things={key: _named(fields) for key, fields in content["things"].items()},
        columns={key: _named(fields) for key, fields in content["columns"].items()},
        rows={key: (one, many) for key, (one, many) in content["rows"].items()},
        endings={name: _choices(texts) for name, texts in content["endings"].items()},
        documents=content["documents"],
        drawn=content["drawn"],
    )


def read_own_words(file: Path) -> dict[str, tuple[str, ...]]:
    """Return the sentences of a file of one's own, by the key of the thing that they ask for, as `things` has them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key that no page states, or no list of sentences.
    """
    found, things = read_settings_file(file), read_wordings().things
    for key, sentences in found.items():
        if key not in things:
            close = difflib.get_close_matches(str(key), things, n=1)
            hint = f"did you mean {close[0]}?" if close else "keys are those of `things` in wordings.toml"
            raise ValueError(f"{file}: no page states {key!r}; {hint}")
        if not (isinstance(sentences, list) and sentences and all(isinstance(one, str) and one for one in sentences)):
            raise ValueError(f"{file}: {key} is not a list of sentences that ask for it")
    return {key: tuple(sentences) for key, sentences in found.items()}


def _choices(fields: Mapping[str, Any]) -> Choices:
    return Choices(tuple(fields["trained"]), tuple(fields["heldout"]))


def _named(fields: Mapping[str, Any]) -> Named:
    lists = {name: tuple(texts) for name, texts in fields.items() if name != "near"}
    own = {
        name: Choices(texts, lists[f"heldout_{name}"])
        for name, texts in lists.items()
        if name != "names" and not name.startswith("heldout_")
    }
    return Named(Choices(lists["names"], lists["heldout_names"]), own, frozenset(fields.get("near", ())))


@dataclass(frozen=True)
class Asked:
    """A question in words, and whether any of them are held out (`trained` or `heldout`)."""

    text: str
    wording: str


def word(
    rng: random.Random,
    form: Form,
    slots: Mapping[str, str],
    wording: str,
    own: Choices = NOTHING,
    names: Choices = NOTHING,
    name_slot: str = "name",
) -> Asked:
    """Choose a wording and fill it.

    Args:
        slots: what else than a name the sentences have slots for, from the page or as the project calls it.
        wording: `trained`, or `heldout` for a question of which something is held out.
        own: questions that the thing has of its own, in the place of the form's.
        names: what the thing may be called; one of them goes into `name_slot`.
    """
    sentence, name, is_held_out = _choose(rng, form, own, names, name_slot, wording == HELD_OUT)
    text = fill(sentence, {**slots, name_slot: name.format_map(slots)})
    is_typed = rng.random() < TYPED
    if sentence.startswith("{"):
        if not sentence.startswith(PAGE_SLOTS) and rng.random() < 0.5:
            text = text[0].upper() + text[1:]
    elif is_typed and text[1:2].islower():
        text = text[0].lower() + text[1:].removesuffix("?")
    if form.endings and text.endswith(SENTENCE_ENDS) and rng.random() < ENDED:
        endings = read_wordings().endings[rng.choice(form.endings)]
        text += " " + rng.choice(endings.heldout if is_held_out and rng.random() < 0.5 else endings.trained)
    return Asked(text, HELD_OUT if is_held_out else TRAINED)


def fill(sentence: str, slots: Mapping[str, str]) -> str:
    """Return a sentence with its slots filled; an article before one is "an" where what comes sounds so."""

    def article(match: re.Match[str]) -> str:
        return f"{match[1]}n {match[2]}" if slots[match[2][1:-1]].lstrip('"')[:1].lower() in "aeio" else match[0]

    return re.sub(r"\b([Aa]) (\{\w+\})", article, sentence).format_map(slots)


def can_word(form: Form, own: Choices, names: Choices, name_slot: str = "name") -> bool:
    """Whether there is a wording of training for a thing; other things of its page may have taken its names."""
    return bool(own.trained or _sayable(form, names, name_slot).trained)


def _sayable(form: Form, names: Choices, name_slot: str) -> Choices:
    """Return the sentences of a form that can be filled: without names, those that need none."""
    return form.sentences.that(lambda sentence: bool(names.trained) or "{" + name_slot + "}" not in sentence)


def _choose(
    rng: random.Random, form: Form, own: Choices, names: Choices, name_slot: str, held_out: bool
) -> tuple[str, str, bool]:
    """Choose a sentence and a name, of which at least one is held out where that is wanted and can be."""
    general = _sayable(form, names, name_slot)
    name = rng.choice(names.trained) if names.trained else ""
    naming = [sentence for sentence in form.sentences.trained if "{" + name_slot + "}" in sentence]
    if held_out and names.heldout and naming and rng.random() > HELD_OUT_SENTENCE:
        return rng.choice(naming), rng.choice(names.heldout), True
    if held_out and (own.heldout or general.heldout):
        is_own = own.heldout and (rng.random() < 0.5 or not general.heldout)
        return rng.choice(own.heldout if is_own else general.heldout), name, True
    if own.trained and (rng.random() < OWN or not general.trained):
        return rng.choice(own.trained), name, False
    return general.trained[0] if rng.random() < FIRST else rng.choice(general.trained), name, False
