"""Draws one document or a whole set: which kinds there are, which questions are asked, and what is written to disk.

An image's random numbers start from (seed, split, number) alone, so the number of processes changes nothing.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from PIL import Image

from monkey.boxes import GRID
from monkey.data.documents import faces
from monkey.data.documents.figures import draw_bars, draw_lines, draw_paragraph, draw_scene, draw_sign, draw_table
from monkey.data.documents.forms import draw_form, draw_label, draw_receipt, draw_ticket
from monkey.data.documents.layout import INKS, PAPERS, Line, Page, Question
from monkey.data.documents.words import Words
from monkey.data.drawn_sets import Plan, write_drawn_set
from monkey.prompts import IMAGE_PLACE, REGION_QUESTION, VQA_AS_TRAINED

Draw = Callable[[Page, Words], None]
"""Draws a document and leaves the questions that can be asked on its page; none where it did not come out."""

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
    "box": "where a text is, as a box",
    "read": "all text, or the lines behind a given one",
}
"""Kind of question to what it asks; each is a task of the evaluator."""

MOST_OF_A_KIND = {"field": 4, "cell": 4, "sign": 2, "line": 2, "compare": 2}
"""Questions of one kind per image; of the others one."""
LONGEST_READING = 8
"""Rows of text of an image that are read in one answer."""
FILES_OF_THEIR_OWN = ("read", "box")
"""Kinds of question that are scored apart from the others: long answers, and places."""

SPLITS = {
    "train": "to train on",
    "heldout": "texts, values, layouts and typefaces that train has not",
    "known": "the same, but train's typefaces",
    "layout": "a kind of document that train has not, to fine-tune on",
    "layout_heldout": "that kind, with texts, values, layouts and typefaces that layout has not",
}
"""Splits and what they hold. `layout` draws as `train` does, the others as held out."""
TO_TRAIN_ON = ("train", "layout")

FORMAT = "monkey rendered documents, 3"
SHORTEST = 96
"""Pixels of the shorter side of an image."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a pixel or a word of a set.

    Attributes:
        side: pixels of the square images, and the root of the area of those that are not square.
        counts: images of each split.
        weights: how often each kind of document is drawn.
        questions: most questions per image, reading all of its text aside.
        damage: how often an image is turned, noisy, compressed.
        ratios: width over height of the images by turns, as `3:1`; none where all are square.
    """

    seed: int
    side: int
    counts: dict[str, int]
    weights: dict[str, int]
    questions: int = 6
    damage: float = 0.25
    ratios: tuple[str, ...] = ()

    def ratio_of(self, number: int) -> float:
        """Return width over height of an image."""
        if not self.ratios:
            return 1.0
        width, height = self.ratios[number % len(self.ratios)].split(":")
        return int(width) / int(height)

    def described(self) -> dict[str, Any]:
        """Return the settings as a set's manifest has them; a set of squares is described as it always was."""
        settings = json.loads(json.dumps(asdict(self)))
        if not self.ratios:
            del settings["ratios"]
        return settings

    def check(self) -> None:
        """Raises ValueError naming the flag that cannot be followed."""
        if not SHORTEST <= self.side <= 1024:
            raise ValueError(f"--side must lie between {SHORTEST} and 1024 pixels, not at {self.side}")
        for text in self.ratios:
            if not re.fullmatch("[1-9][0-9]?:[1-9][0-9]?", text):
                raise ValueError(f"--ratios {text} is not width:height, two whole numbers up to 99 such as 3:1")
            width, height = map(int, text.split(":"))
            shorter = round(self.side * (min(width, height) / max(width, height)) ** 0.5)
            if shorter < SHORTEST:
                raise ValueError(
                    f"--ratios {text} makes images of --side {self.side} only {shorter} pixels wide or high, and at "
                    f"least {SHORTEST} are needed: give a larger --side"
                )
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, not {self.seed}")
        for split, count in self.counts.items():
            if count < 0:
                raise ValueError(f"--{split.replace('_', '-')} must not be negative, not {count}")
        if not sum(self.counts.values()):
            raise ValueError("nothing to draw: give --train, --heldout, --known or --layout")
        if not 0 <= self.damage <= 1:
            raise ValueError(f"--damage must lie between 0 and 1, not at {self.damage}")
        if self.questions < 1:
            raise ValueError(f"--questions must be 1 or more, not {self.questions}")


def draw(settings: Settings, split: str, number: int) -> tuple[Page, Any, str, list[Question]]:
    """Draw one document; return page, image, kind of document, and questions (reading first where it has text)."""
    held_out = split not in TO_TRAIN_ON
    kinds = UNSEEN_LAYOUT if split.startswith("layout") else {name: DOCUMENTS[name] for name in settings.weights}
    attempt = 0
    while True:
        # A text as seed is hashed by SHA-512, the same on every machine and Python.
        rng = random.Random(f"{settings.seed}/{split}/{number}/{attempt}")
        if kinds is UNSEEN_LAYOUT:
            kind = rng.choice(list(kinds))
        else:
            kind = rng.choices(list(kinds), list(settings.weights.values()))[0]
        family = faces.pick(rng, held_out and split != "known", held_out)
        ratio = settings.ratio_of(number)
        page = Page(rng, settings.side, family, held_out, rng.choice(PAPERS), rng.choice(INKS), ratio=ratio)
        kinds[kind](page, Words(rng, held_out))
        if len(page.questions) >= 2 and all(page.fits(line) for line in page.lines):
            break
        attempt += 1
    image = page.finish(settings.damage)
    reading = ask_to_read(rng, page.lines)
    return page, image, kind, [*([reading] if reading else []), *choose_questions(page, settings.questions)]


def rows_of(lines: Sequence[Line]) -> list[str]:
    """Return texts from top to bottom, those on one height joined from left to right."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.box[3]):
        last = rows[-1][-1] if rows else None
        if last and line.box[3] - last.box[3] < 0.45 * min(line.height, last.height):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [" ".join(line.text for line in sorted(row, key=lambda line: line.box[0])) for row in rows]


def ask_to_read(rng: random.Random, lines: Sequence[Line]) -> Question | None:
    """Ask for all text of an image, or, where there is much, for some rows of it."""
    rows = rows_of(lines)
    if not rows:
        return None
    height = min(line.height for line in lines)
    if len(rows) <= LONGEST_READING:
        return Question("read", "Read all the text.", "\n".join(rows), height)
    start = rng.randint(0, len(rows) - LONGEST_READING)
    if rows.count(rows[start - 1]) > 1:
        start = 0
    question = f"Read {LONGEST_READING} lines after: {rows[start - 1]}"
    if start == 0:
        question = f"Read the first {LONGEST_READING} lines."
    return Question("read", question, "\n".join(rows[start : start + LONGEST_READING]), height)


def ask_for_box(page: Page) -> Question | None:
    """Ask where a text is that occurs once and lies on the page."""
    texts = [line.text for line in page.lines]
    possible = [line for line in page.lines if texts.count(line.text) == 1 and page.fits(line) and "<" not in line.text]
    if not possible:
        return None
    line = page.rng.choice(possible)
    sides = cycle((page.across, page.down))
    left, top, right, bottom = (round(GRID * value / side) for value, side in zip(line.box, sides, strict=False))
    answer = f"<box>({left},{top}),({right},{bottom})</box>"
    return Question("box", REGION_QUESTION.format(question=line.text), answer, line.height)


def choose_questions(page: Page, most: int) -> list[Question]:
    """Choose up to `most` of the possible questions, kinds mixed, in random order; boxes are those `finish` left."""
    shuffled = list(page.questions)
    page.rng.shuffle(shuffled)
    box = ask_for_box(page) if page.rng.random() < 0.35 else None
    counts: Counter[str] = Counter()
    chosen: dict[str, Question] = {}
    for question in [*([box] if box else []), *shuffled]:
        if counts[question.kind] < MOST_OF_A_KIND.get(question.kind, 1) and question.text not in chosen:
            counts[question.kind] += 1
            chosen[question.text] = question
    kept = list(chosen.values())[:most]
    page.rng.shuffle(kept)
    return kept


def write_set(output: Path, settings: Settings, workers: int = 2) -> tuple[dict[str, Any], bool]:
    """Make the set in `output`, or find it there, as `write_drawn_set` does; return its manifest and whether it was."""
    settings.check()
    draw_row = partial(_draw_row, settings)
    plan = Plan(FORMAT, settings.described(), settings.counts, draw_row, _records, _questions, TO_TRAIN_ON)
    return write_drawn_set(output, plan, workers)


def _draw_row(settings: Settings, split: str, number: int) -> tuple[Image.Image, dict[str, Any]]:
    """Draw an image; return it with its row for the journal."""
    _, image, kind, questions = draw(settings, split, number)
    return image, {"kind": kind, "questions": [asdict(question) for question in questions]}


def _questions(split: str, drawn: Sequence[dict[str, Any]], first_id: int) -> dict[str, list[dict[str, Any]]]:
    """Make the evaluator's rows of a split, by the name of their file."""
    files: dict[str, list[dict[str, Any]]] = {}
    asked = [(image, question) for image in drawn for question in image["questions"]]
    # The task's own prompt has the rest of a question for a box, with its control tokens.
    before, after = REGION_QUESTION.split("{question}")
    for question_id, (image, question) in enumerate(asked, first_id):
        kind, text = question["kind"], question["text"]
        row = {
            "image": image["key"],
            "question": text.removeprefix(before).removesuffix(after) if kind == "box" else text,
            "answer": question["answer"],
            "question_id": question_id,
            "kind": kind,
            "document": image["kind"],
            "text_height": question["height"],
        }
        files.setdefault(f"{split}_{kind}" if kind in FILES_OF_THEIR_OWN else split, []).append(row)
    return files


def _records(drawn: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Make two records per image: reading its text, and the other questions as turns that never see that answer."""
    for image in drawn:
        read = [question for question in image["questions"] if question["kind"] == "read"]
        others = [question for question in image["questions"] if question["kind"] != "read"]
        for label, questions in (("read", read), ("asked", others)):
            turns = []
            for question in questions:
                tag = "" if turns else f"<img>{image['key']}</img>"
                prompt = VQA_AS_TRAINED.replace(IMAGE_PLACE, tag).format(question=question["text"])
                turns += [{"from": "user", "value": prompt}, {"from": "assistant", "value": question["answer"]}]
            if turns:
                yield {"id": f"{image['kind']}-{image['number']:06d}-{label}", "conversations": turns}
