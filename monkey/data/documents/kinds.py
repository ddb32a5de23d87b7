"""The kinds of document and of question, and which questions are put about a picture."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from monkey.boxes import GRID
from monkey.data.documents.charts import draw_bars, draw_lines
from monkey.data.documents.fields import draw_form, draw_label, draw_receipt, draw_ticket
from monkey.data.documents.page import Line, Page, Question
from monkey.data.documents.scenes import draw_paragraph, draw_scene, draw_sign
from monkey.data.documents.tables import draw_table
from monkey.data.documents.words import Words
from monkey.prompts import REGION_QUESTION

Draw = Callable[[Page, Words], list[Question]]

DOCUMENTS: Mapping[str, Draw] = {
    "receipt": draw_receipt,
    "label": draw_label,
    "form": draw_form,
    "table": draw_table,
    "bars": draw_bars,
    "lines": draw_lines,
    "sign": draw_sign,
    "paragraph": draw_paragraph,
    "scene": draw_scene,
}
"""What the train split and the held-out splits draw, each as often as the others unless weights are given."""

UNSEEN_LAYOUT: Mapping[str, Draw] = {"ticket": draw_ticket}
"""A kind of document for fine-tuning, in no other split."""

QUESTION_KINDS: Mapping[str, str] = {
    "field": "the value of a labelled field",
    "sign": "a title, a product's name, a sign",
    "cell": "a number of a table, a receipt or a chart",
    "line": "a line of a paragraph, the word after another",
    "compare": "the highest, the lowest, the higher of two",
    "count": "how many",
    "yesno": "yes or no",
    "colour": "a colour",
    "caption": "a short description",
    "unanswerable": "asked of what is not there",
    "box": "where a text stands, as a box",
    "read": "all text, or the lines behind a given one",
}
"""Kind of question to what it asks; each is a task of the evaluator."""

MOST_OF_A_KIND = {"field": 4, "cell": 4, "sign": 2, "line": 2, "compare": 2}
"""Questions of one kind and picture; of the others one."""

LONGEST_READING = 8
"""Rows of text of a picture that are read in one answer."""


def rows_of(lines: Sequence[Line]) -> list[str]:
    """Texts from top to bottom, those on one height joined from left to right."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.box[3]):
        last = rows[-1][-1] if rows else None
        if last and line.box[3] - last.box[3] < 0.45 * min(line.height, last.height):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [" ".join(line.text for line in sorted(row, key=lambda line: line.box[0])) for row in rows]


def reading(rng: random.Random, lines: Sequence[Line]) -> Question | None:
    """All text of a picture, or, where there is much, some rows of it."""
    rows = rows_of(lines)
    if not rows:
        return None
    height = min(line.height for line in lines)
    if len(rows) <= LONGEST_READING:
        return Question("read", "Read all the text.", "\n".join(rows), height)
    start = rng.randint(0, len(rows) - LONGEST_READING)
    if rows.count(rows[start - 1]) > 1:
        start = 0
    chosen = "\n".join(rows[start : start + LONGEST_READING])
    if start == 0:
        return Question("read", f"Read the first {LONGEST_READING} lines.", chosen, height)
    return Question("read", f"Read {LONGEST_READING} lines after: {rows[start - 1]}", chosen, height)


def box_question(rng: random.Random, page: Page) -> Question | None:
    """Where a text stands that occurs once and lies on the page."""
    texts = [line.text for line in page.lines]
    possible = [line for line in page.lines if texts.count(line.text) == 1 and page.fits(line) and "<" not in line.text]
    if not possible:
        return None
    line = rng.choice(possible)
    left, top, right, bottom = (round(GRID * value / page.side) for value in line.box)
    answer = f"<box>({left},{top}),({right},{bottom})</box>"
    return Question("box", REGION_QUESTION.format(question=line.text), answer, line.height)


def asked(rng: random.Random, page: Page, questions: Sequence[Question], most: int) -> list[Question]:
    """Up to `most` of the possible questions, kinds mixed, in random order; boxes are those that `page.finish` left."""
    shuffled = list(questions)
    rng.shuffle(shuffled)
    counts: dict[str, int] = {}
    texts: set[str] = set()
    kept = []
    box = box_question(rng, page) if rng.random() < 0.35 else None
    for question in [*([box] if box else []), *shuffled]:
        if counts.get(question.kind, 0) >= MOST_OF_A_KIND.get(question.kind, 1) or question.text in texts:
            continue
        counts[question.kind] = counts.get(question.kind, 0) + 1
        texts.add(question.text)
        kept.append(question)
    kept = kept[:most]
    rng.shuffle(kept)
    return kept
