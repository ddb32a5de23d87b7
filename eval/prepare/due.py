"""The DUE benchmark's layout: DeepForm, Kleister Charity, and test answers of other sets.

test/document.jsonl: {"name", "annotations": [{"id", "key", "values": [{"value", "value_variants": […]}, …],
"metadata": {…}}, …], "split"}; pictures of the pages in png/<name>/, or as files that begin with the name. In DeepForm
and Kleister Charity a key is a field of a form, in the others it is the question. documents_content.jsonl, the text
that OCR found, is not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from eval.metrics.due_f1 import DEEPFORM_KEYS, KLEISTER_CHARITY_KEYS
from eval.prepare.release import Located, Picture, Prepared, PreparedRow, Release, take, take_text, take_texts

DOCUMENTS = ("test/document.jsonl", "document.jsonl")
PICTURE_FOLDERS = ("png", "pngs", "images", "imgs", "test/png", "test/pngs")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")
NOTHING = "None"
"""The answer where a document has no value for a key, as UReader's question-answer form has it."""

_PAGE = re.compile(r"(?P<stem>.+?)[-_.](?:page[-_]?)?(?P<page>\d+)$", re.IGNORECASE)


class PagePictures:
    """Pictures by the name of their document, wherever and however the release keeps its pages."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self._whole: dict[str, str] = {}
        self._pages: dict[str, list[tuple[int, str]]] = {}
        self.of_several_pages: set[str] = set()
        for folder in PICTURE_FOLDERS:
            for name in release.names(folder):
                self._add(f"{folder}/{name}")

    def _add(self, path: str) -> None:
        name = path.rpartition("/")[2]
        stem, ending = _split(name)
        if not ending:
            self._whole.setdefault(name.removesuffix(".pdf"), path)  # a folder of pages
            return
        self._whole.setdefault(stem.removesuffix(".pdf"), path)
        page = _PAGE.match(stem)
        if page is not None:
            pages = self._pages.setdefault(page["stem"].removesuffix(".pdf"), [])
            pages.append((int(page["page"]), path))

    def picture(self, target_folder: str, stems: Sequence[str], where: str) -> Picture:
        """The first page under the first of the stems that has a picture."""
        for stem in stems:
            pages = self._paths(stem)
            if len(pages) > 1:
                self.of_several_pages.add(stem)
            if pages:
                ending = _split(pages[0])[1]
                return self._release.picture(f"{target_folder}/{stem}{ending}", pages[0], where=where)
        names = [f"{PICTURE_FOLDERS[0]}/{stem}{PICTURE_ENDINGS[0]}" for stem in stems]
        return self._release.picture(f"{target_folder}/{stems[0]}{PICTURE_ENDINGS[0]}", *names, where=where)

    def _paths(self, stem: str) -> list[str]:
        path = self._whole.get(stem, "")
        if _split(path)[1]:
            return [path]
        inside = [name for name in self._release.names(path) if _split(name)[1]] if path else []
        if inside:
            return [f"{path}/{name}" for name in sorted(inside, key=_page_number)]
        return [name for _, name in sorted(self._pages.get(stem, []))]


def deepform(release: Release) -> Prepared:
    """DeepForm test: five keys a document."""
    return _key_rows(release, "data/DeepForm/images", DEEPFORM_KEYS)


def kleister_charity(release: Release) -> Prepared:
    """Kleister Charity test: eight keys a document."""
    return _key_rows(release, "data/KleisterCharity/images", KLEISTER_CHARITY_KEYS)


def _key_rows(release: Release, target_folder: str, keys: Sequence[str]) -> Prepared:
    """One question a document and key, keys in the order given, those without a value answered by `NOTHING`."""
    pictures = PagePictures(release)
    rows: list[PreparedRow] = []
    nothing = 0
    others: Counter[str] = Counter()
    for where, document in release.rows(release.file(*DOCUMENTS)):
        name = take_text(document, "name", where).removesuffix(".pdf")
        values: dict[str, list[list[str]]] = {}
        for place, annotation in _annotations(document, where):
            key = take_text(annotation, "key", place)
            if key in keys:
                values.setdefault(key, []).extend(_values(annotation, place))
            else:
                others[key] += 1
        picture = pictures.picture(target_folder, (name,), where)
        for key in keys:
            found = values.get(key, [])
            nothing += not found
            answer = [variant for variants in found for variant in variants] or [NOTHING]
            more = {"document": name, "key": key, "values": found}
            rows.append(PreparedRow(picture, f"What is the value for the {key}?", answer, len(rows), where, more))
    statements = [
        f"every document is asked for every key; {nothing:,} of {len(rows):,} have no value, and {NOTHING!r} as answer",
        "the question 'What is the value for the KEY?' and the answer 'None' are UReader's, from memory: check them "
        "where a score is to be compared with another model's",
        "'document', 'key' and 'values' (variants of each value) stand in each line, for F1 over a document's pairs",
        _pages_statement(pictures),
    ]
    if others:
        named = ", ".join(f"{key} ({count:,})" for key, count in sorted(others.items()))
        statements.append(f"values of keys that are not asked for were left out: {named}")
    return Prepared(rows, statements)


def question_rows(release: Release, target_folder: str, statement: str, list_of_items: bool = False) -> Prepared:
    """A set whose keys are questions. `list_of_items`: the answer is the values together, not one of variants."""
    pictures = PagePictures(release)
    rows: list[PreparedRow] = []
    for where, document in release.rows(release.file(*DOCUMENTS)):
        name = take_text(document, "name", where).removesuffix(".pdf")
        picture = pictures.picture(target_folder, (name,), where)
        for place, annotation in _annotations(document, where):
            values = _values(annotation, place)
            answer = [variant for variants in values for variant in (variants[:1] if list_of_items else variants)]
            if not answer:
                raise ValueError(f"{place}: no value")
            metadata = annotation.get("metadata")
            known = metadata.get("question_id") if isinstance(metadata, Mapping) else None
            question_id = known if isinstance(known, (int, str)) else len(rows)
            rows.append(PreparedRow(picture, take_text(annotation, "key", place), answer, question_id, place))
    return Prepared(rows, [statement, _pages_statement(pictures)])


def _pages_statement(pictures: PagePictures) -> str:
    count = len(pictures.of_several_pages)
    return f"{count:,} documents have several pages; the first page stands for each" if count else "a page a document"


def _annotations(document: Any, where: str) -> list[Located]:
    found = take(document, "annotations", (list,), where)
    return [Located(f"{where}, annotation {number}", one) for number, one in enumerate(found)]


def _values(annotation: Any, where: str) -> list[list[str]]:
    """The variants of each value, the value itself first."""
    values = []
    for one in take(annotation, "values", (list,), where):
        value = take_text(one, "value", where)
        variants = take_texts(one, "value_variants", where) if one.get("value_variants") else []
        values.append([value, *(variant for variant in variants if variant != value)])
    return values


def _split(name: str) -> tuple[str, str]:
    """Stem and ending of a picture's name; no ending where it is none."""
    for ending in PICTURE_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return name, ""


def _page_number(name: str) -> tuple[int, str]:
    """Sorts pages by the last number in their name."""
    numbers = re.findall(r"\d+", _split(name)[0])
    return (int(numbers[-1]) if numbers else 0, name)
