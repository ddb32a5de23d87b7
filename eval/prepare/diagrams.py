"""Charts, tables and schoolbook diagrams: ChartQA, WikiTableQuestions, TabFact, AI2D, ScienceQA.

ChartQA: test_human.json and test_augmented.json = [{"imgname", "query", "label"}, …], and png/<imgname>.
WikiTableQuestions and TabFact hold tables as text; images of them are in the DUE package (or rendered by the user), as
<name>.png for one of the names in `_table_names`. WikiTableQuestions: data/pristine-unseen-tables.tsv with columns id,
utterance, context, targetValue, in which '|' separates items and a backslash escapes, and
tagged/data/pristine-unseen-tables.tagged, which has the same and targetCanon, what each item denotes. TabFact:
tokenized_data/test_examples.json = {table id: [[statements], [labels 0 or 1], caption]}.
AI2D: questions/<image>.json = {"imageName", "questions": {question: {"questionId", "answerTexts", "correctAnswer",
"abcLabel", …}}}, annotations/<image>.json with the places of the labels, images/, and ai2d_test_ids.csv, a number a
line. Where "abcLabel" is true the options are letters, which must stand in the image in the labels' place.
ScienceQA: problems.json = {number: {"question", "choices", "answer" (an index), "hint", "image", "split", …}}, and
test/<number>/<image>.
"""

from __future__ import annotations

import csv
import functools
import io
import re
import string
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageDraw, ImageFont

from eval.metrics.denotation import CANONICAL
from eval.prepare.document_pages import DUE_DOCUMENTS, PageImages, due_questions
from eval.prepare.release import Entry, PreparedRow, Release, SourceImage, below
from monkey.images import open_image

_ESCAPES = {r"\n": "\n", r"\p": "|", r"\\": "\\"}
_TABFACT_LABELS = {0: "No", 1: "Yes"}
_SMALLEST_FONT, _LARGEST_FONT = 6, 100

Label = tuple[tuple[float, ...], str]
"""Corners (left, upper, right, lower) in pixels, and a letter."""


def chartqa(release: Release) -> Iterator[PreparedRow]:
    """Read the test split: questions of people, then augmented ones, numbered from 0."""
    folders = ("test", "ChartQA Dataset/test", ".")
    for part in ("human", "augmented"):
        for row in release.rows(release.file(*below(folders, f"test_{part}.json"))):
            name = row.text("imgname")
            image = release.image(f"data/chartqa/test/{name}", below(folders, f"png/{name}"), row.where)
            question, label = row.text("query"), row.text_or_texts("label")
            yield PreparedRow(row.where, image, question, label, more={"part": part})


def wtq(release: Release) -> Iterator[PreparedRow]:
    """Read the test questions on unseen tables; the answer is the list of items that belong to it together."""
    name, tagged = "pristine-unseen-tables.tsv", "pristine-unseen-tables.tagged"
    with_canon = release.find(tagged, *below(("tagged/data", "WikiTableQuestions/tagged/data"), tagged))
    path = with_canon or release.find(*below(("", "data", "WikiTableQuestions/data"), name))
    folder = "data/WikiTableQuestions/images"
    if path is None and release.find(*DUE_DOCUMENTS) is not None:
        release.statements.append(f"questions and answers of the DUE package: the release has no {name}")
        yield from due_questions(release, folder, list_of_items=True)
        return
    path = path or release.file(name, f"data/{name}", DUE_DOCUMENTS[0])
    pages = PageImages(release)
    columns = ("id", "utterance", "context", "targetValue", *([CANONICAL] if with_canon else []))
    for row in release.table(path, columns, "\t", csv.QUOTE_NONE):
        image = pages.first_page(folder, _table_names(row.value["context"]), row.where)
        items = _items(row.value["targetValue"])
        more = {CANONICAL: _items(row.value[CANONICAL])} if with_canon else {}
        if with_canon and len(more[CANONICAL]) != len(items):
            raise ValueError(
                f"{row.where}: {len(items)} items in targetValue and {len(more[CANONICAL])} in {CANONICAL}"
            )
        yield PreparedRow(row.where, image, _unescape(row.value["utterance"]), items, row.value["id"], more)
    release.statements += (
        "the answer lists the items of one answer, which belong to it together",
        f"'{CANONICAL}' stands in each line, so that '100000' is right for '100,000' as in the official evaluator"
        if with_canon
        else f"the release has no tagged/data/{tagged}: without its {CANONICAL} '100000' is wrong for '100,000', and "
        "the official evaluator counts it right",
    )


def tabfact(release: Release) -> Iterator[PreparedRow]:
    """Read the test statements, asked as yes or no; 'part' is simple or complex where the release lists both."""
    parts: dict[str, str] = {}
    for part in ("simple", "complex"):
        listed = release.find(*below(("data", ""), f"{part}_test_id.json"))
        if listed is not None:
            parts |= {row.value: part for row in release.rows(listed)}
    pages = PageImages(release)
    for table, entry in release.entries(release.file(*below(("tokenized_data", ""), "test_examples.json"))):
        image = pages.first_page("data/tabfact/images", _table_names(table), entry.where)
        more = {"part": parts[table]} if table in parts else {}
        for statement, label in _labelled_statements(entry):
            yield PreparedRow(entry.where, image, f"{statement}, Yes or No?", label, more=more)
    if not parts:
        release.statements.append(
            "simple and complex statements are not told apart: the release has no simple_test_id.json"
        )


def _labelled_statements(entry: Entry) -> list[tuple[str, str]]:
    """Return the statements about a table, each with Yes or No."""
    if not isinstance(entry.value, list) or len(entry.value) < 2:
        raise ValueError(f"{entry.where}: expected [[statements], [labels], caption]")
    named = Entry(entry.where, {"statements": entry.value[0], "labels": entry.value[1]})
    statements, labels = named.texts("statements"), named.take("labels", list)
    if len(labels) != len(statements) or any(label not in _TABFACT_LABELS for label in labels):
        raise ValueError(f"{entry.where}: {len(statements)} statements need as many labels of 0 or 1, found {labels}")
    return [(statement, _TABFACT_LABELS[label]) for statement, label in zip(statements, labels, strict=True)]


def _table_names(table: str) -> tuple[str, ...]:
    """Return names that images of a table go by: of csv/203-csv/733.csv 203-csv_733, 203_733 and so on."""
    stem = re.sub(r"(\.html)?(\.csv|\.tsv|\.table)?$", "", table.removeprefix("csv/"))
    folder, slash, number = stem.rpartition("/")
    if not slash:
        return (stem, table.rpartition("/")[2])
    folders = (folder, folder.removesuffix("-csv"))
    return (*(f"{one}{joint}{number}" for one in folders for joint in "_-"), table.replace("/", "_"))


def _items(field: str) -> list[str]:
    return [_unescape(item) for item in field.split("|")]


def _unescape(text: str) -> str:
    r"""Write `\n`, `\p` and `\\` of the release as line break, '|' and backslash."""
    return re.sub(r"\\[np\\]", lambda found: _ESCAPES[found.group()], text)


def ai2d(release: Release) -> Iterator[PreparedRow]:
    """Read the test split: options on lines of their own after the question, answered by the option's text."""
    numbers = release.words(release.file(*below(("", "ai2d"), "ai2d_test_ids.csv")))
    for number in sorted(numbers, key=lambda text: (len(text), text)):
        path = release.find(*below(("", "ai2d"), f"questions/{number}.png.json"))
        if path is None:
            raise FileNotFoundError(
                f"{release.folder}: ai2d_test_ids.csv lists {number}, and there is no questions/{number}.png.json"
            )
        content = release.content(path)
        name = content.text("imageName")
        for question, value in content.take("questions", dict).items():
            entry = Entry(f"{path}[{question!r}]", value)
            options = entry.texts("answerTexts")
            right = entry.take("correctAnswer", int)
            if not 0 <= right < len(options):
                raise ValueError(f"{entry.where}: 'correctAnswer' is {right}, and there are {len(options)} options")
            image = _ai2d_image(release, name, bool(value.get("abcLabel", False)), entry.where)
            asked, known = "\n".join((question, *options)), entry.text("questionId")
            yield PreparedRow(entry.where, image, asked, options[right], known, {"options": options})


def _ai2d_image(release: Release, name: str, with_letters: bool, where: str) -> SourceImage:
    plain, lettered = (below(("", "ai2d"), f"{folder}/{name}") for folder in ("images", "abc_images"))
    if not with_letters:
        return release.image(f"data/ai2d/images/{name}", plain, where)
    target = f"data/ai2d/abc_images/{name}"
    if release.find(*lettered, where=where) is not None:
        return release.image(target, lettered, where)
    path = release.file(*below(("", "ai2d"), f"annotations/{name}.json"))
    labels = _read_labels(release.content(path))
    changed = f"letters drawn in place of {len(labels)} labels, by {path}"
    return release.image(target, plain, where, functools.partial(_draw_letters, labels=labels), changed)


def _read_labels(annotations: Entry) -> list[Label]:
    labels = []
    for key, value in annotations.take("text", dict).items():
        entry = Entry(f"{annotations.where}['text'][{key!r}]", value)
        corners = entry.take("rectangle", list)
        numbers = [number for corner in corners if isinstance(corner, list) for number in corner]
        if len(numbers) != 4 or not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError(f"{entry.where}: 'rectangle' must be two corners of two numbers, found {corners}")
        left, right = sorted((numbers[0], numbers[2]))
        upper, lower = sorted((numbers[1], numbers[3]))
        labels.append(((left, upper, right, lower), entry.text("replacementText")))
    return labels


def _draw_letters(path: Path, labels: list[Label]) -> bytes:
    """Return the image as PNG, each label's box white with its letter in black, as large as fits."""
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


def scienceqa(release: Release) -> Iterator[PreparedRow]:
    """Read the test questions that have an image: hint, question and lettered options, answered by the letter."""
    folders = ("", "data/scienceqa", "scienceqa")
    for number, entry in release.entries(release.file(*below(folders, "problems.json"))):
        if entry.text("split") != "test" or not entry.value.get("image"):
            continue
        name = f"{number}/{entry.text('image')}"
        names = below(("test", "images/test", "data/scienceqa/images/test", "scienceqa/images/test"), name)
        image = release.image(f"data/scienceqa/images/test/{name}", names, entry.where)
        options = entry.texts("choices")
        right = entry.take("answer", int)
        if not 0 <= right < len(options) <= len(string.ascii_uppercase):
            raise ValueError(f"{entry.where}: 'answer' is {right}, and there are {len(options)} choices")
        answers = [string.ascii_uppercase[right], options[right]]
        more = {"options": options, **entry.keep("subject", "grade", "topic")}
        yield PreparedRow(entry.where, image, _asked(entry, options), answers, number, more)


def _asked(entry: Entry, options: list[str]) -> str:
    hint = entry.text("hint").strip() or "N/A"
    lettered = "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))
    return f"Context: {hint}\nQuestion: {entry.text('question')}\nOptions: {lettered}"
