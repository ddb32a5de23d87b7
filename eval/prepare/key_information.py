"""Forms, receipts and nutrition labels, asked one question per key: FUNSD, SROIE, POIE.

Published figures (TextMonkey's, OCRBench's) come from question files, which are taken where there is one:
FUNSD_test.jsonl, SROIE_test.jsonl and POIE_test.jsonl of TextMonkey, in this evaluator's own form; FullTest.json of the
OCRBench authors, [{"dataset_name", "image_path", "question", "answers", …}, …] of all their sets, which leaves out
questions whose answer has less than four characters; and FUNSD.json, SROIE.json and POIE.json of their earlier
prediction files (see `scene_text`). Without any, the sets' own releases give the questions of the prediction files, by
the rules of the authors' datasets/kie_dataset.py:

FUNSD: testing_data/annotations/<page>.json = {"form": [{"id", "text", "label", "linking": [[id, id], …], "box", …},
…]} and testing_data/images/. An entity "question" is a key, the entities "answer" that it links to are its answer.
SROIE, task 3: <receipt>.txt or .json = {"company", "date", "address", "total"} and the images, or metadata.jsonl with
"file_name" and "entities". The published rows are of the training set; sroie_official is the test.
POIE: test.txt, a line a label: {"file_name", "entity_dict": {"CE-PS": "98 kcal (412 kJ)", …}, …}, and image_files/.
What stands in parentheses is another right answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from eval.prepare.release import Entry, PreparedRow, Release, SourceImage, below
from eval.prepare.scene_text import find_predictions, read_predictions

FUNSD_QUESTION = 'what is "{key}" information in the image?'
SROIE_QUESTIONS = {
    "company": "what is the name of the company that issued this invoice?",
    "date": "when was this invoice issued?",
    "address": "where was this invoice issued?",
    "total": "what is the total amount of this invoice?",
}
POIE_QUESTION = "what is {key} in the image?"
POIE_KEYS = {
    "SS": "Serving size",
    "CE-PS": "Calories/Energy of per serving",
    "CE-P1": "Calories/Energy of per 100g/ml",
    "CE-D": "Calories/Energy of daily value",
    "CE-PP": "Calories/Energy of per 100g/ml percentage",
    "TF-PS": "Total fat of per serving",
    "TF-P1": "Total Fat of per 100g/ml",
    "TF-D": "Total fat of daily value",
    "TF-PP": "Total fat of per 100g/ml percentage",
    "CAR-PS": "Total carbohydrate of per serving",
    "CAR-P1": "Total carbohydrate of per 100g/ml",
    "CAR-D": "Total carbohydrate of daily value",
    "CAR-PP": "Total carbohydrate of per 100g/ml percentage",
    "PRO-PS": "Protein of per serving",
    "PRO-P1": "Protein of per 100g/ml",
    "PRO-D": "Protein of daily value",
    "PRO-PP": "Protein of per 100g/ml percentage",
    "SO-PS": "Sodium of per serving",
    "SO-P1": "Sodium of per 100g/ml",
    "SO-D": "Sodium of daily value",
    "SO-PP": "Sodium of per 100g/ml percentage",
}
"""What the authors call POIE's keys, in their spelling."""

_WHAT_IS = re.compile(
    r"""what is (?:the value for )?(["']?)(?P<key>.*?)\1(?: information)?(?: in the image)?\?(?: Answer this .*)?"""
)
_PARENTHESES = re.compile(r"\((.*?)\)")
_PICTURE_ENDINGS = (".jpg", ".jpeg", ".png")

FindImage = Callable[[Release, str, str], SourceImage]
"""The image of a name, with the place that names it."""


def funsd(release: Release) -> Iterator[PreparedRow]:
    """Read the test pages: a question for each key whose answer has a text."""
    given = _given(release, "FUNSD", _funsd_image, _named_key)
    if given is not None:
        yield from given
        return
    folders = [f"{base}testing_data/annotations" for base in ("", "dataset/", "FUNSD/", "FUNSD/dataset/")]
    folder = next((folder for folder in folders if release.names(folder)), None)
    if folder is None:
        raise FileNotFoundError(f"{release.folder} holds no {folders[0]}; --src is the unpacked release")
    unanswered = 0
    for name in release.names(folder):
        page = release.content(release.file(f"{folder}/{name}"))
        image = _funsd_image(release, f"{PurePosixPath(name).stem}.png", page.where)
        entities = page.entries("form")
        answers = {one.identifier("id"): one.take("text", str) for one in entities if one.value["label"] == "answer"}
        for key in (one for one in entities if one.take("label", str) == "question"):
            linked = (pair[1] for pair in key.take("linking", list))
            answer = " ".join(answers[place] for place in linked if place in answers)
            unanswered += not answer.strip()
            if answer.strip():
                text = key.take("text", str)
                yield PreparedRow(key.where, image, FUNSD_QUESTION.format(key=text), answer, more={"key": text})
    release.statements.append(f"{unanswered:,} keys without the text of an answer are not asked for")


def sroie(release: Release, target_folder: str, split: str, published: bool) -> Iterator[PreparedRow]:
    """Read the receipts of a split, 'train' or 'test': a question for each of the four keys that a receipt has.

    `published`: rows that were made of the set already come first.
    """
    # Of a release with both splits, a receipt's picture is the one of its own.
    inside = (split, f"SROIE2019/{split}", f"data/{split}", f"SROIE/{split}", "data", "SROIE", "")
    kinds = ("img/", "image/", "images/", "")

    def find_image(release: Release, name: str, where: str) -> SourceImage:
        base = PurePosixPath(name).name
        names = [f"{kind}{stem}" for kind in kinds for stem in _picture_names(base)]
        image = release.image(f"{target_folder}/{base}", below(inside, *names), where)
        if image.source is None:
            return image
        return release.image(f"{target_folder}/{image.source.name}", below(inside, *names), where)

    given = _given(release, "SROIE", find_image, _sroie_key) if published else None
    if given is not None:
        yield from given
        return
    for where, name, keys in _receipts(release, inside):
        image = find_image(release, name, where)
        for key, question in SROIE_QUESTIONS.items():
            if key in keys.value:
                yield PreparedRow(where, image, question, keys.text(key), more={"key": key})
    if published:
        release.statements.append("receipts of the training set in the order of their names, as the published rows")


def _receipts(release: Release, inside: Sequence[str]) -> list[tuple[str, str, Entry]]:
    """Return place, image and keys of every receipt, by name, of the first of the folders that has any."""
    folders = [f"{base}/{kind}".strip("/") for base in inside for kind in ("entities", "key", "task3", "ann", "")]
    for folder in folders:
        listed = release.find(*below([folder], "metadata.jsonl"))
        if listed is not None:
            rows = [(row.text("file_name"), row) for row in release.rows(listed)]
            return [
                (row.where, name, Entry(row.where, row.take("entities", dict)))
                for name, row in sorted(rows, key=lambda row: row[0])
            ]
        here = release.names(folder)
        # The release repeats some receipts as "name(1)".
        names = [name for name in here if name.endswith((".json", ".txt")) and "(" not in name]
        if folder in inside:  # beside what else lies there
            names = [name for name in names if f"{PurePosixPath(name).stem}.jpg" in here]
        contents = [release.content(release.file(*below([folder], name))) for name in names]
        if contents and all(isinstance(one.value, dict) and SROIE_QUESTIONS.keys() & one.value for one in contents):
            return [(one.where, f"{PurePosixPath(one.where).stem}.jpg", one) for one in contents]
    raise FileNotFoundError(
        f"{release.folder} holds no {folders[0]} and no {folders[1]} with the keys of receipts, and no metadata.jsonl; "
        "--src is the unpacked release"
    )


def poie(release: Release) -> Iterator[PreparedRow]:
    """Read the test labels: a question for each key that a label has."""
    given = _given(release, "POIE", _poie_image, _named_key)
    if given is not None:
        yield from given
        return
    for row in release.lines(release.file(*below(("", "POIE"), "test.txt"))):
        image = _poie_image(release, row.text("file_name"), row.where)
        entities = Entry(f"{row.where}['entity_dict']", row.take("entity_dict", dict))
        for code in entities.value:
            if code not in POIE_KEYS:
                raise ValueError(f"{entities.where}: {code!r} is no key of POIE; it has {', '.join(POIE_KEYS)}")
            key, text = POIE_KEYS[code], entities.text(code)
            answers = [*map(str.strip, _PARENTHESES.findall(text)), _PARENTHESES.sub("", text).strip()]
            yield PreparedRow(row.where, image, POIE_QUESTION.format(key=key), answers, more={"key": key})


def _given(
    release: Release, name: str, find_image: FindImage, key_of: Callable[[str], str | None]
) -> Iterator[PreparedRow] | None:
    """Return the rows of a question file that was made of the set, with the keys that they ask for; None without."""

    def with_key(row: PreparedRow) -> PreparedRow:
        key = key_of(row.question)
        return row if key is None else replace(row, more={"key": key})

    def named(row: Entry, image: str, answer: str) -> PreparedRow:
        found = find_image(release, row.text(image), row.where)
        question_id = row.identifier("question_id") if "question_id" in row.value else None
        return PreparedRow(row.where, found, row.text("question"), row.text_or_texts(answer), question_id)

    own = release.find(*below(("", name, f"data/{name}"), f"{name}_test.jsonl"))
    if own is not None:
        release.statements.append(f"questions and answers of {own.name}, TextMonkey's form")
        return (with_key(named(row, "image", "answer")) for row in release.rows(own))
    full = release.find(*below(("", "OCRBench", "OCRBench/OCRBench", "json_files"), "FullTest.json"))
    if full is not None:
        release.statements.append(
            f"rows of {name} in the OCRBench authors' {full.name}, without answers of less than four characters"
        )
        rows = [row for row in release.rows(full) if row.text("dataset_name") == name]
        return (with_key(named(row, "image_path", "answers")) for row in rows)
    predictions = find_predictions(release, f"{name}.json")
    if predictions is not None:
        return map(with_key, read_predictions(release, predictions, find_image, "/"))
    return None


def _named_key(question: str) -> str | None:
    found = _WHAT_IS.fullmatch(question)
    return found["key"] if found else None


def _sroie_key(question: str) -> str | None:
    """Return the key of a question in the wording of the prediction files ('invoice') or a later one ('receipt')."""
    return next((key for key, asked in SROIE_QUESTIONS.items() if question.startswith(asked.split("this")[0])), None)


def _funsd_image(release: Release, name: str, where: str) -> SourceImage:
    base = PurePosixPath(name).name
    inside = "testing_data/images"
    folders = (
        inside,
        f"dataset/{inside}",
        f"FUNSD/{inside}",
        f"FUNSD/dataset/{inside}",
        "images",
        "data/FUNSD/images",
        "",
    )
    return release.image(f"data/FUNSD/images/{base}", below(folders, base), where)


def _poie_image(release: Release, name: str, where: str) -> SourceImage:
    base = PurePosixPath(name).name
    folders = ("image_files", "POIE/image_files", "images", "data/POIE/images", "")
    return release.image(f"data/POIE/images/{base}", below(folders, base), where)


def _picture_names(base: str) -> list[str]:
    stem = base.rpartition(".")[0] or base
    return [base, *(f"{stem}{ending}" for ending in _PICTURE_ENDINGS if f"{stem}{ending}" != base)]
