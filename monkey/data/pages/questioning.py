"""Questions about a page, as people ask them: which of the drafts are asked, in which words, and in which turns.

`ask` is a pure function of a page and its random numbers. Wordings stand in wordings.toml, right answers come from
`drafts`. A question in training is put into one of several prompts, of which the published one is the most frequent;
the evaluator has prompts of its own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from monkey.data.pages.drafts import (
    Draft,
    Sheet,
    draft_fields,
    draft_image,
    draft_pairs,
    draft_places,
    draft_tables,
    draft_text,
    draft_unanswerable,
)
from monkey.data.pages.drawing import SPLITS
from monkey.data.pages.facts import Page
from monkey.data.pages.spelling import Writer
from monkey.data.pages.wordings import HELD_OUT, TRAINED, can_word, read_wordings, word
from monkey.prompts import (
    CAPTION_AS_TRAINED,
    CAPTION_QWEN_VL,
    QUESTION_ALONE,
    SCIENCEQA_QWEN_VL,
    VQA_AS_TRAINED,
    VQA_PUBLISHED,
)

QUESTION_KINDS: Mapping[str, tuple[float, int]] = {
    "field": (4.0, 3),
    "cell": (5.0, 3),
    "date": (1.5, 1),
    "lookup": (1.5, 1),
    "compare": (5.0, 2),
    "sum": (2.0, 1),
    "difference": (1.5, 1),
    "count": (1.5, 1),
    "yesno": (1.4, 1),
    "line": (1.3, 2),
    "read": (1.2, 1),
    "pairs": (0.7, 1),
    "box": (2.0, 1),
    "box_text": (1.0, 1),
    "describe": (0.8, 1),
    "document": (0.4, 1),
    "colour": (1.0, 2),
    "shape": (1.0, 1),
}
"""Kinds of question: how often each is asked where all can be, and the most of it per page. "unanswerable" is added."""

HELD_OUT_WORDINGS = 0.5
"""How many questions have a held-out wording in a split that has such."""

UNANSWERABLE_PART = 0.07
"""How many questions about a page with text it does not answer."""
UNANSWERABLE_WITHOUT_TEXT = 0.35
"""The same of an image without text."""

FOLLOWED, FOLLOWED_AGAIN = 0.25, 0.4
"""How often a question is followed by one about the same in a second turn, and that one by a third."""

PROMPTS: Mapping[str, float] = {
    VQA_AS_TRAINED: 0.7,
    VQA_PUBLISHED: 0.1,
    SCIENCEQA_QWEN_VL: 0.05,
    QUESTION_ALONE: 0.15,
}
"""Prompts of training and how often each is taken."""
CAPTION_PROMPTS = (CAPTION_AS_TRAINED, CAPTION_QWEN_VL)
CAPTIONED = 0.4
"""How often a description is asked for in a published prompt for captions."""


@dataclass(frozen=True)
class Question:
    """A question about a page and its answer.

    Attributes:
        kind: a key of `QUESTION_KINDS`, or "unanswerable".
        text: as it is asked, without a prompt around it.
        answer: as the page prints it; a box as `monkey.boxes` writes it.
        height: pixels of the capitals that have to be read for the answer; 0 where none are.
        wording: "trained", or "heldout" where something of it is never asked in training.
        prompt: what training puts it into, with `{question}` or alone.
        follows: whether it is a next turn behind the question before it.
        key: of the thing or the column that it asks for.
    """

    kind: str
    text: str
    answer: str
    height: float
    wording: str
    prompt: str = VQA_AS_TRAINED
    follows: bool = False
    key: str = ""


def ask(page: Page, rng: random.Random, split: str, most: int) -> list[Question]:
    """Ask up to `most` questions about a page, those of a next turn right behind the one that they follow.

    Args:
        split: of the page, one of `drawing.SPLITS`.
    """
    sheet = Sheet(page, Writer(random.Random(rng.getrandbits(64)), SPLITS[split].texts))
    drafts = draft_questions(sheet, rng)
    part = UNANSWERABLE_PART if page.words else UNANSWERABLE_WITHOUT_TEXT
    impossible = [draft for draft in draft_unanswerable(sheet, rng) if _can_put(draft)]
    missing = min(len(impossible), int(most * part + rng.random()))
    roots = [*_choose(drafts, rng, most - missing), *rng.sample(impossible, missing)]
    rng.shuffle(roots)
    asked: list[Question] = []
    for root in roots:
        for draft in _with_followers(root, rng):
            question = _put(draft, rng, split, draft is not root)
            # What is asked by its name is not asked by its label, nor anything in the words of another kind.
            if len(asked) == most or any(_is_alike(question, other) for other in asked):
                break
            asked.append(question)
    return asked


def ask_in_own_words(
    page: Page, rng: random.Random, sentences: Mapping[str, Sequence[str]], most: int
) -> list[Question]:
    """Ask up to `most` questions after what the page states once, each in one of the sentences given for its key."""
    times = Counter(own.key for own in page.fields)
    fields = [own for own in page.fields if own.key in sentences and times[own.key] == 1 and own.value]
    return [
        Question(
            "date" if own.date else "field", rng.choice(sentences[own.key]), own.value, own.height, TRAINED, key=own.key
        )
        for own in rng.sample(fields, min(most, len(fields)))
    ]


def _is_alike(question: Question, other: Question) -> bool:
    """Whether two questions ask for one thing, or both first turns in the same words."""
    if question.text == other.text and not question.follows and not other.follows:
        return True
    return bool(question.key) and (question.key, question.answer) == (other.key, other.answer)


def draft_questions(sheet: Sheet, rng: random.Random) -> list[Draft]:
    """Return what can be asked about a page and has an answer there."""
    makers = (draft_fields, draft_pairs, draft_tables, draft_text, draft_places, draft_image)
    return [draft for make in makers for draft in make(sheet, rng) if _can_put(draft)]


def _can_put(draft: Draft) -> bool:
    return can_word(read_wordings().forms[draft.form], draft.own, draft.names, draft.name_slot)


def _choose(drafts: Sequence[Draft], rng: random.Random, most: int) -> list[Draft]:
    """Choose drafts by the weights of their kinds; within a kind each form is as likely as another, and yes as no."""
    kinds: dict[str, dict[tuple[str, str], list[Draft]]] = {}
    for draft in drafts:
        form = draft.form, draft.answer if _kind(draft) == "yesno" else ""
        kinds.setdefault(_kind(draft), {}).setdefault(form, []).append(draft)
    chosen: list[Draft] = []
    counts: Counter[str] = Counter()
    while kinds and len(chosen) < most:
        kind = rng.choices(list(kinds), [QUESTION_KINDS[kind][0] for kind in kinds])[0]
        answer = rng.choice(sorted({answer for _, answer in kinds[kind]}))
        form = rng.choice([form for form in kinds[kind] if form[1] == answer])
        draft = kinds[kind][form].pop(rng.randrange(len(kinds[kind][form])))
        chosen.append(draft)
        counts[kind] += 1
        if not kinds[kind][form]:
            del kinds[kind][form]
        if counts[kind] == QUESTION_KINDS[kind][1] or not kinds[kind]:
            del kinds[kind]
    return chosen


def _kind(draft: Draft) -> str:
    return draft.kind or read_wordings().forms[draft.form].kind


def _with_followers(root: Draft, rng: random.Random) -> list[Draft]:
    """Return a draft and those that follow it: the third turn asks as the second does, so that "it" is the same."""
    turns = [root]
    behind = [one for one in root.behind if _can_put(one)]
    if behind and rng.random() < FOLLOWED:
        turns.append(rng.choice(behind))
        alike = [one for one in behind if one.form == turns[1].form and one is not turns[1]]
        if alike and turns[1].form != "and_where" and rng.random() < FOLLOWED_AGAIN:
            turns.append(rng.choice(alike))
    return turns


def _put(draft: Draft, rng: random.Random, split: str, follows: bool) -> Question:
    """Put a draft into words and, for training, into a prompt."""
    wording = HELD_OUT if SPLITS[split].wordings and rng.random() < HELD_OUT_WORDINGS else TRAINED
    form = read_wordings().forms[draft.form]
    asked = word(rng, form, draft.slots, wording, draft.own, draft.names, draft.name_slot)
    prompt = VQA_AS_TRAINED
    if split == "train":
        prompt = rng.choices(list(PROMPTS), list(PROMPTS.values()))[0]
        if draft.form == "describe" and rng.random() < CAPTIONED:
            prompt = rng.choice(CAPTION_PROMPTS)
    return Question(_kind(draft), asked.text, draft.answer, draft.height, asked.wording, prompt, follows, draft.key)
