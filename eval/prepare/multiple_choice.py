"""AI2D and ScienceQA: questions with options.

AI2D: questions/<picture>.json = {"imageName", "questions": {question: {"questionId", "answerTexts", "correctAnswer",
"abcLabel", …}}}, annotations/<picture>.json with the places of the labels, images/, and ai2d_test_ids.csv, a number a
line. Where "abcLabel" is true the options are letters, which must stand in the picture in the labels' place.
ScienceQA: problems.json = {number: {"question", "choices", "answer" (an index), "hint", "image", "split", …}}, and
test/<number>/<image>.
"""

from __future__ import annotations

import functools
import io
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont

from eval.prepare.release import Picture, Prepared, PreparedRow, Release, take, take_text, take_texts
from monkey.images import open_image

_SMALLEST_FONT, _LARGEST_FONT = 6, 100


def ai2d(release: Release) -> Prepared:
    """The test split: options on lines of their own after the question, answered by the option's text."""
    numbers = release.lines(release.file("ai2d_test_ids.csv", "ai2d/ai2d_test_ids.csv"))
    rows = []
    for number in sorted(numbers, key=lambda text: (len(text), text)):
        path = release.find(*(f"{folder}questions/{number}.png.json" for folder in ("", "ai2d/")))
        if path is None:
            raise FileNotFoundError(
                f"{release.folder}: ai2d_test_ids.csv lists {number}, and there is no questions/{number}.png.json"
            )
        content = release.content(path)
        name = take_text(content, "imageName", str(path))
        for question, entry in take(content, "questions", (dict,), str(path)).items():
            where = f"{path}[{question!r}]"
            options = take_texts(entry, "answerTexts", where)
            right = take(entry, "correctAnswer", (int,), where)
            if not 0 <= right < len(options):
                raise ValueError(f"{where}: 'correctAnswer' is {right}, and there are {len(options)} options")
            picture = _ai2d_picture(release, name, bool(entry.get("abcLabel", False)), where)
            question_id = take_text(entry, "questionId", where)
            more = {"options": options}
            rows.append(PreparedRow(picture, "\n".join((question, *options)), options[right], question_id, where, more))
    statements = [
        "options stand on lines of their own below the question, without letters, and the answer is the option's text: "
        "the published file's wording is not known here",
        "questions whose options are letters are asked about the picture with letters in place of its labels, from "
        "abc_images/ of the release, or else drawn over images/ by its annotations",
    ]
    return Prepared(rows, statements)


def _ai2d_picture(release: Release, name: str, with_letters: bool, where: str) -> Picture:
    folders = ("", "ai2d/")
    if not with_letters:
        return release.picture(f"data/ai2d/images/{name}", *(f"{one}images/{name}" for one in folders), where=where)
    target = f"data/ai2d/abc_images/{name}"
    drawn = [f"{one}abc_images/{name}" for one in folders]
    if release.find(*drawn, where=where) is not None:
        return release.picture(target, *drawn, where=where)
    path = release.file(*(f"{one}annotations/{name}.json" for one in folders))
    labels = _labels(release, path)
    return release.picture(
        target,
        *(f"{one}images/{name}" for one in folders),
        where=where,
        change=functools.partial(_with_letters, labels=labels),
        changed=f"letters drawn in place of {len(labels)} labels, by {path}",
    )


def _labels(release: Release, path: Path) -> list[tuple[tuple[float, ...], str]]:
    """Corners (left, upper, right, lower) in pixels and letter of each label."""
    labels = []
    for key, entry in take(release.content(path), "text", (dict,), str(path)).items():
        where = f"{path}['text'][{key!r}]"
        corners = take(entry, "rectangle", (list,), where)
        numbers = [number for corner in corners if isinstance(corner, list) for number in corner]
        if len(numbers) != 4 or not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError(f"{where}: 'rectangle' must be two corners of two numbers, found {corners}")
        left, right = sorted((numbers[0], numbers[2]))
        upper, lower = sorted((numbers[1], numbers[3]))
        labels.append(((left, upper, right, lower), take_text(entry, "replacementText", where)))
    return labels


def _with_letters(path: Path, labels: list[tuple[tuple[float, ...], str]]) -> bytes:
    """The picture as PNG, each label's box white with its letter in black, as large as fits."""
    image = open_image(path)
    draw = ImageDraw.Draw(image)
    for box, letter in labels:
        left, upper, right, lower = box
        draw.rectangle(box, fill="white")
        size = max(_SMALLEST_FONT, min(_LARGEST_FONT, int(min(lower - upper, (right - left) * 1.5))))
        middle = ((left + right) / 2, (upper + lower) / 2)
        draw.text(middle, letter, fill="black", font=ImageFont.load_default(size), anchor="mm")
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def scienceqa(release: Release) -> Prepared:
    """The test questions that have a picture: hint, question and lettered options, answered by the letter."""
    path = release.file("problems.json", "data/scienceqa/problems.json", "scienceqa/problems.json")
    rows = []
    for number, (where, entry) in release.entries(path):
        if take_text(entry, "split", where) != "test" or not entry.get("image"):
            continue
        name = f"{number}/{take_text(entry, 'image', where)}"
        folders = ("test", "images/test", "data/scienceqa/images/test", "scienceqa/images/test")
        picture = release.picture(
            f"data/scienceqa/images/test/{name}", *(f"{folder}/{name}" for folder in folders), where=where
        )
        options = take_texts(entry, "choices", where)
        right = take(entry, "answer", (int,), where)
        if not 0 <= right < len(options) <= len(string.ascii_uppercase):
            raise ValueError(f"{where}: 'answer' is {right}, and there are {len(options)} choices")
        letter = string.ascii_uppercase[right]
        kept = {key: entry[key] for key in ("subject", "grade", "topic") if key in entry}
        more = {"options": options, **kept}
        rows.append(PreparedRow(picture, _asked(entry, options, where), [letter, options[right]], number, where, more))
    statements = [
        "only test questions with a picture are kept",
        "asked as Qwen-VL does: 'Context: …', 'Question: …', 'Options: A. …'; the references are the letter and the "
        "option's text",
    ]
    return Prepared(rows, statements)


def _asked(entry: Mapping[str, Any], options: list[str], where: str) -> str:
    hint = take_text(entry, "hint", where).strip() or "N/A"
    lettered = "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))
    return f"Context: {hint}\nQuestion: {take_text(entry, 'question', where)}\nOptions: {lettered}"
