"""WikiTableQuestions and TabFact, whose tables are asked about as pictures.

The official releases hold tables as text; pictures of them are in the DUE package (or rendered by the user), as
<name>.png for one of the names in `_table_names`. WikiTableQuestions: data/pristine-unseen-tables.tsv with columns id,
utterance, context, targetValue, in which '|' separates items and a backslash escapes, and
tagged/data/pristine-unseen-tables.tagged, which has the same and targetCanon, what each item denotes. TabFact:
tokenized_data/test_examples.json = {table id: [[statements], [labels 0 or 1], caption]}.
"""

from __future__ import annotations

import csv
import re

from eval.metrics.denotation import CANONICAL
from eval.prepare.due import DOCUMENTS, PagePictures, question_rows
from eval.prepare.release import Prepared, PreparedRow, Release, take, take_texts

_ESCAPES = {r"\n": "\n", r"\p": "|", r"\\": "\\"}
LABELS = {0: "No", 1: "Yes"}


def wtq(release: Release) -> Prepared:
    """The test questions on unseen tables; the answer is the list of items that belong to it together."""
    name, tagged = "pristine-unseen-tables.tsv", "pristine-unseen-tables.tagged"
    with_canon = release.find(tagged, f"tagged/data/{tagged}", f"WikiTableQuestions/tagged/data/{tagged}")
    path = with_canon or release.find(name, f"data/{name}", f"WikiTableQuestions/data/{name}")
    folder = "data/WikiTableQuestions/images"
    if path is None and release.find(*DOCUMENTS) is not None:
        statement = f"questions and answers of the DUE package: the release has no {name}"
        return question_rows(release, folder, statement, list_of_items=True)
    path = path or release.file(name, f"data/{name}", DOCUMENTS[0])
    pictures = PagePictures(release)
    columns = ("id", "utterance", "context", "targetValue", *([CANONICAL] if with_canon else []))
    rows = []
    for where, row in release.table(path, columns, "\t", csv.QUOTE_NONE):
        picture = pictures.picture(folder, _table_names(row["context"]), where)
        items = _items(row["targetValue"])
        more = {CANONICAL: _items(row[CANONICAL])} if with_canon else {}
        if with_canon and len(more[CANONICAL]) != len(items):
            raise ValueError(f"{where}: {len(items)} items in targetValue and {len(more[CANONICAL])} in {CANONICAL}")
        rows.append(PreparedRow(picture, _unescaped(row["utterance"]), items, row["id"], where, more))
    statement = "the answer lists the items of one answer, which belong to it together"
    canon = (
        f"'{CANONICAL}' stands in each line, so that '100000' is right for '100,000' as in the official evaluator"
        if with_canon
        else f"the release has no tagged/data/{tagged}: without its {CANONICAL} '100000' is wrong for '100,000', and "
        "the official evaluator counts it right"
    )
    return Prepared(rows, [statement, canon])


def tabfact(release: Release) -> Prepared:
    """The test statements, asked as yes or no; 'part' is simple or complex where the release has the lists of both."""
    name = "test_examples.json"
    path = release.file(f"tokenized_data/{name}", name)
    parts: dict[str, str] = {}
    for part in ("simple", "complex"):
        listed = release.find(f"data/{part}_test_id.json", f"{part}_test_id.json")
        if listed is not None:
            parts |= {table_id: part for _, table_id in release.rows(listed)}
    pictures = PagePictures(release)
    rows: list[PreparedRow] = []
    for table_id, (where, entry) in release.entries(path):
        if not isinstance(entry, list) or len(entry) < 2:
            raise ValueError(f"{where}: expected [[statements], [labels], caption]")
        statements = take_texts({"statements": entry[0]}, "statements", where)
        labels = take({"labels": entry[1]}, "labels", (list,), where)
        if len(labels) != len(statements) or any(label not in LABELS for label in labels):
            raise ValueError(f"{where}: {len(statements)} statements need as many labels of 0 or 1, found {labels}")
        picture = pictures.picture("data/tabfact/images", _table_names(table_id), where)
        more = {"part": parts[table_id]} if table_id in parts else {}
        for statement, label in zip(statements, labels, strict=True):
            rows.append(PreparedRow(picture, f"{statement}, Yes or No?", LABELS[label], len(rows), where, more))
    statements = [
        "a statement is asked as '…, Yes or No?' and answered Yes (supported) or No (refuted): UReader's form, from "
        "memory",
        "statements are those of the release, tokenized and in lower case",
    ]
    if not parts:
        statements.append("simple and complex statements are not told apart: the release has no simple_test_id.json")
    return Prepared(rows, statements)


def _table_names(table: str) -> tuple[str, ...]:
    """Names that pictures of a table go by: of csv/203-csv/733.csv 203-csv/733, 203-csv_733, 203_733 and so on."""
    stem = re.sub(r"(\.html)?(\.csv|\.tsv|\.table)?$", "", table.removeprefix("csv/"))
    folder, slash, number = stem.rpartition("/")
    names = [f"{folder}{joint}{number}" for joint in "_-"] if slash else [stem]
    if slash:
        names += [f"{folder.removesuffix('-csv')}{joint}{number}" for joint in "_-"]
    return (*names, table.rpartition("/")[2] if not slash else table.replace("/", "_"))


def _items(field: str) -> list[str]:
    return [_unescaped(item) for item in field.split("|")]


def _unescaped(text: str) -> str:
    r"""`\n`, `\p` and `\\` of the release as line break, '|' and backslash."""
    return re.sub(r"\\[np\\]", lambda found: _ESCAPES[found.group()], text)
