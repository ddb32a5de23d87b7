"""Sets of pages with questions, for training and for evaluation: what decides them, and what is written of each page.

A page's random numbers start from (seed, split, number) alone, so the number of processes changes nothing. How sets are
written, taken up and found again is in `monkey.data.drawn_sets`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from monkey.data.drawn_sets import Plan, write_drawn_set
from monkey.data.pages.drawing import Limits, draw_page
from monkey.data.pages.facts import Page
from monkey.data.pages.questioning import Question, ask, ask_in_own_words
from monkey.prompts import IMAGE_PLACE

FORMAT = "monkey pages, 1"
PACKAGES = ("faker", "matplotlib", "typst")
"""Packages on whose versions pixels and words depend."""

LONG_ANSWERS = ("read", "pairs", "describe")
"""Kinds of question that are scored apart, in the file `_read`; boxes are in `_box`."""

TRAIN = "train"

USUAL = 4
RARE: Mapping[str, int] = {"scene": 3, "gradient": 1, "noise": 1, "texture": 1}
"""How often kinds of page are drawn where nothing else is said: images without text less than pages."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a pixel or a word of a set.

    Attributes:
        counts: pages of each split.
        weights: how often each kind of page is drawn.
        questions: most questions per page.
        limits: what the model that will see the pages can see.
        own_words: by the key of a field, sentences that ask for it in the place of the project's questions; none for
            these.
    """

    seed: int
    counts: dict[str, int]
    weights: dict[str, int]
    questions: int = 8
    limits: Limits = field(default_factory=Limits)
    own_words: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """Return the settings as a set's manifest has them; without words of its own, as they always were."""
        settings = json.loads(json.dumps(asdict(self)))
        if not self.own_words:
            del settings["own_words"]
        return settings


def draw(settings: Settings, split: str, number: int) -> tuple[Page, list[Question]]:
    """Draw one page of a set and ask about it."""
    # A text as seed is hashed by SHA-512, the same on every machine and Python.
    rng = random.Random(f"{settings.seed}/{split}/{number}")
    kind = rng.choices(list(settings.weights), list(settings.weights.values()))[0]
    page = draw_page(kind, random.Random(rng.getrandbits(64)), split, settings.limits)
    rng = random.Random(rng.getrandbits(64))
    if settings.own_words:
        return page, ask_in_own_words(page, rng, settings.own_words, settings.questions)
    return page, ask(page, rng, split, settings.questions)


def write_set(output: Path, settings: Settings, workers: int = 2) -> tuple[dict[str, Any], bool]:
    """Make the set in `output`, or find it there, as `write_drawn_set` does; return its manifest and whether it was."""
    draw_row = partial(_draw_row, settings)
    plan = Plan(FORMAT, settings.described(), settings.counts, draw_row, _records, _questions, (TRAIN,), PACKAGES)
    return write_drawn_set(output, plan, workers)


def _draw_row(settings: Settings, split: str, number: int) -> tuple[Image.Image, dict[str, Any]]:
    """Draw a page; return its image with its row for the journal."""
    page, questions = draw(settings, split, number)
    return page.image, {"kind": page.kind, "questions": [asdict(question) for question in questions]}


def _records(drawn: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Make a record of each question with those that follow it, so that no answer is seen by another question.

    Packed rows hold a page's image once for all of its records (`--share_images branches`).
    """
    for image in drawn:
        for number, questions in enumerate(_conversations(image["questions"])):
            turns = []
            for question in questions:
                tag = "" if turns else f"<img>{image['key']}</img>"
                prompt = question["prompt"].replace(IMAGE_PLACE, tag)
                prompt = prompt.replace("{question}", question["text"])
                turns += [{"from": "user", "value": prompt}, {"from": "assistant", "value": question["answer"]}]
            yield {"id": f"{image['kind']}-{image['number']:06d}-{number}", "conversations": turns}


def _conversations(questions: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return questions in conversations: each that follows nothing, with those behind it."""
    conversations: list[list[dict[str, Any]]] = []
    for question in questions:
        if question["follows"]:
            conversations[-1].append(question)
        else:
            conversations.append([question])
    return conversations


def _questions(split: str, drawn: Sequence[dict[str, Any]], first_id: int) -> dict[str, list[dict[str, Any]]]:
    """Make the evaluator's rows of a split, by the name of their file.

    What follows another question is in the conversations of `_turns`, which are records as training has them: the
    evaluator asks single questions.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    for image in drawn:
        for question in image["questions"]:
            if question["follows"]:
                continue
            kind = question["kind"]
            row = {
                "image": image["key"],
                "question": question["text"],
                "answer": question["answer"],
                "question_id": first_id,
                "kind": kind,
                "document": image["kind"],
                "wording": question["wording"],
                "text_height": round(question["height"], 1),
            }
            first_id += 1
            ending = "_read" if kind in LONG_ANSWERS else "_box" if kind == "box" else ""
            files.setdefault(f"{split}{ending}", []).append(row)
    files[f"{split}_turns"] = [record for record in _records(drawn) if len(record["conversations"]) > 2]
    return {name: rows for name, rows in files.items() if rows}
