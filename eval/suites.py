"""Rows of suites whose questions need more than a question and an answer to be scored, as questions.

POPE, MME, MMBench, HallusionBench, SEED-Bench's images and MathVista's multiple choice. A row is one of the original
release or of the hub's form, whose keys are the same but for a few; `find_suite` tells by them which suite a row is of.
What is kept beside a question is what its metric (`eval.metrics.yes_no`, `eval.metrics.suite_choices`) and the parts of
its task read.

Faults are one sentence: ValueError.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.metrics.yes_no import SUBTASKS
from monkey.data.rows import fail, field_of, text_of

SEED_IMAGE_TYPES = {
    "1": "Scene Understanding",
    "2": "Instance Identity",
    "3": "Instance Attributes",
    "4": "Instance Location",
    "5": "Instances Counting",
    "6": "Spatial Relation",
    "7": "Instance Interaction",
    "8": "Visual Reasoning",
    "9": "Text Understanding",
}
"""SEED-Bench's kinds of question about images, by number."""

_ROTATION = 1_000_000
"""MMBench's index of a question with its options turned is that many more for each turn."""
_MATHVISTA_HINT = "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
_MATHVISTA_PARTS = ("source", "task", "category", "context", "grade", "language")


@dataclass(frozen=True)
class Asked:
    """What is asked and how it is known; without a `question_id` by its number, `more` as in a file of questions."""

    question: str
    answer: str | int | list[Any]
    question_id: int | str | None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """How the rows of a suite are told from others, and `ask`, which returns one as a question.

    `ask(row, where)` returns None for a row that is not asked: one without an image, about a video, or whose answer is
    not chosen.
    """

    tells: Callable[[Mapping[str, Any]], bool]
    ask: Callable[[Mapping[str, Any], str], Asked | None]


def list_options(options: Sequence[str], style: str = "{}. {}") -> str:
    """Return the options with their letters, one a line."""
    return "\n".join(style.format(*pair) for pair in zip(string.ascii_uppercase, options, strict=False))


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    """Return a text, or a whole number as text: the hub's form has as numbers what the releases write in quotes."""
    return str(field_of(row, key, (str, int), where))


def _ask_pope(row: Mapping[str, Any], where: str) -> Asked:
    # The release calls question and answer otherwise than the hub does, and has the category in its file's name.
    question, answer = ("question", "answer") if "question" in row else ("text", "label")
    category, number = text_of(row, "category", where), _text(row, "question_id", where)
    asked = text_of(row, question, where)
    return Asked(asked, text_of(row, answer, where), f"{category}-{number}", {"category": category})


def _ask_mme(row: Mapping[str, Any], where: str) -> Asked:
    # The two questions of an image have one id.
    more = {"category": text_of(row, "category", where), "pair": text_of(row, "question_id", where)}
    return Asked(text_of(row, "question", where), text_of(row, "answer", where), None, more)


def _ask_mmbench(row: Mapping[str, Any], where: str) -> Asked:
    if not _is_given(row.get("answer")):
        fail(where, "there is no 'answer'; MMBench keeps those of its test split, and the dev split has them")
    index = _text(row, "index", where)
    if not index.isdecimal():
        fail(where, f"'index' must be a whole number, found {index!r}")
    rotation, group = divmod(int(index), _ROTATION)
    letters = [letter for letter in string.ascii_uppercase if _is_given(row.get(letter))]
    options = [str(row[letter]) for letter in letters]
    if letters != list(string.ascii_uppercase[: len(options)]):
        fail(where, f"the options {', '.join(letters)} do not follow each other from A on")
    hint = f"Hint: {row['hint']}\n" if _is_given(row.get("hint")) else ""
    asked = (
        f"{hint}Question: {text_of(row, 'question', where)}\nOptions:\n{list_options(options)}\n"
        "Please select the correct answer from the options above."
    )
    more = {"options": options, "group": group, "rotation": rotation, "category": text_of(row, "category", where)}
    if ability := row.get("L2-category", row.get("l2-category")):
        more["l2-category"] = ability
    return Asked(asked, _letter(row, options, where), int(index), more)


def _is_given(value: Any) -> bool:
    """Whether a cell holds something: tables write 'nan' where there is nothing."""
    return value is not None and str(value).strip() not in ("", "nan")


def _letter(row: Mapping[str, Any], options: Sequence[str], where: str) -> str:
    answer = text_of(row, "answer", where)
    letters = string.ascii_uppercase[: len(options)]
    if len(answer) != 1 or answer not in letters:
        fail(where, f"'answer' is {answer!r}, and there are {len(options)} options, {', '.join(letters) or 'none'}")
    return answer


def _ask_hallusionbench(row: Mapping[str, Any], where: str) -> Asked | None:
    visual_input = _text(row, "visual_input", where)
    if visual_input == "0":
        return None
    answer = _text(row, "gt_answer", where)
    if answer not in ("0", "1"):
        fail(where, f"'gt_answer' must be 0 or 1, found {answer!r}")
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
    category, subcategory, set_id, figure, number = (_text(row, key, where) for key in keys)
    more = {
        "category": category,
        "subcategory": subcategory,
        "set_id": set_id,
        "figure_id": figure,
        "question_number": number,
        "visual_input": visual_input,
        # One set's figures are drawn together: a question is asked of all of them.
        "document": f"{category}_{subcategory}_{set_id}",
    }
    question_id = f"{more['document']}_{figure}_{number}"
    return Asked(text_of(row, "question", where), "Yes" if answer == "1" else "No", question_id, more)


def _ask_seedbench(row: Mapping[str, Any], where: str) -> Asked | None:
    if text_of(row, "data_type", where) != "image":
        return None
    options = [text_of(row, f"choice_{letter}", where) for letter in "abcd"]
    number = _text(row, "question_type_id", where)
    if number not in SEED_IMAGE_TYPES:
        fail(where, f"'question_type_id' is {number}, and the kinds of question about images are 1 to 9")
    asked = (
        f"{text_of(row, 'question', where)}\n{list_options(options)}\n"
        "Answer with the option's letter from the given choices directly."
    )
    more = {"options": options, "question_type": SEED_IMAGE_TYPES[number]}
    return Asked(asked, _letter(row, options, where), field_of(row, "question_id", (int, str), where), more)


def _ask_mathvista(row: Mapping[str, Any], where: str) -> Asked | None:
    if text_of(row, "question_type", where) != "multi_choice":
        return None
    options = [str(option) for option in field_of(row, "choices", (list,), where)]
    answer = text_of(row, "answer", where)
    if answer not in options:
        fail(where, f"'answer' is {answer!r}, and none of the choices is; those of the split test are not released")
    asked = (
        row.get("query")
        or (
            f"Hint: {_MATHVISTA_HINT}\nQuestion: {text_of(row, 'question', where)}\n"
            f"Choices:\n{list_options(options, '({}) {}')}"
        ).strip()
    )
    about = row.get("metadata") or {}
    more = {"options": options, **{key: about[key] for key in _MATHVISTA_PARTS if key in about}}
    return Asked(asked, string.ascii_uppercase[options.index(answer)], text_of(row, "pid", where), more)


def _has(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: set(keys) <= row.keys()


SUITES: Mapping[str, Suite] = {
    "pope": Suite(_has("question", "answer", "question_id", "category", "image_source"), _ask_pope),
    "mme": Suite(
        lambda row: {"question_id", "question", "answer"} <= row.keys() and row.get("category") in SUBTASKS, _ask_mme
    ),
    "mmbench": Suite(_has("index", "question", "A", "B", "category"), _ask_mmbench),
    "hallusionbench": Suite(_has("gt_answer", "visual_input", "set_id", "figure_id"), _ask_hallusionbench),
    "seedbench": Suite(_has("choice_a", "choice_d", "data_type", "question_type_id"), _ask_seedbench),
    "mathvista": Suite(_has("question_type", "answer_type", "pid", "question"), _ask_mathvista),
}
"""By the name of its metric, but for MathVista's, of which those questions are asked whose answer is chosen."""


def find_suite(row: Mapping[str, Any]) -> Suite | None:
    """Return the suite that a row of the hub's form is of; None for another row."""
    return next((suite for suite in SUITES.values() if suite.tells(row)), None)
