"""Pages of documents: DocVQA, InfographicVQA, DeepForm, Kleister Charity, VisualMRC.

The Robust Reading Competition: {"data": [{"questionId", "question", "image" or "image_local_name", "answers", …}, …]},
whose test answers are hidden. The DUE benchmark publishes those. Without either the validation split is taken.
The DUE benchmark: test/document.jsonl: {"name", "annotations": [{"id", "key", "values": [{"value", "value_variants":
[…]}, …], "metadata": {…}}, …], "split"}; images of the pages in png/<name>/, or as files that begin with the name. In
DeepForm and Kleister Charity a key is a field of a form, in the others it is the question. documents_content.jsonl,
the text that OCR found, is not read.
VisualMRC: test.jsonl (or test.json), a page a row: {"id", "image_filename", "screenshot_filename", "qa_data":
[{"question": {"text"}, "answer": {"text", "relevant"}}, …], "bounding_boxes", …}, and the images, which the publisher
hands out on request. Others have put both on the hub, as parquet files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eval.metrics.due_f1 import DEEPFORM_KEYS, KLEISTER_CHARITY_KEYS
from eval.prepare.release import Entry, PreparedRow, Release, SourceImage, below

DUE_DOCUMENTS = ("test/document.jsonl", "document.jsonl")
NOTHING = "None"
"""The answer where a document has no value for a key, as UReader's question-answer form has it."""

_PAGE_FOLDERS = ("png", "pngs", "images", "imgs", "test/png", "test/pngs")
_PAGE_ENDINGS = (".png", ".jpg", ".jpeg")
_PAGE = re.compile(r"(?P<stem>.+?)[-_.](?:page[-_]?)?(?P<number>\d+)$", re.IGNORECASE)


def competition(
    release: Release,
    target_folder: str,
    image_key: str,
    image_folders: Sequence[str],
    test_files: Sequence[str],
    val_files: Sequence[str],
    val_size: int,
) -> Iterator[PreparedRow]:
    """Read the test split of DocVQA or InfographicVQA, by the best source of answers in the release."""

    def of_competition(entries: list[Entry], split: str) -> Iterator[PreparedRow]:
        for row in entries:
            name = row.text(image_key)
            base = Path(name).name
            names = below([folder.format(split=split) for folder in image_folders], name, base)
            image = release.image(f"{target_folder}/{base}", names, row.where)
            question, answers = row.text("question"), row.texts("answers")
            yield PreparedRow(row.where, image, question, answers, row.identifier("questionId"))

    test = release.find(*test_files)
    entries = release.rows(test, "data") if test is not None else []
    if entries and all(isinstance(entry.value, dict) and entry.value.get("answers") for entry in entries):
        release.statements.append(f"the test split with the answers that {test.name} has")
        return of_competition(entries, "test")
    if release.find(*DUE_DOCUMENTS) is not None:
        release.statements.append(
            "the test split with the answers of the DUE package, which the competition's own files hide"
        )
        return due_questions(release, target_folder)
    val = release.find(*val_files)
    if val is None:
        hidden = f"{test} has no answers, and " if test is not None else ""
        raise FileNotFoundError(
            f"{hidden}{release.folder} holds neither {DUE_DOCUMENTS[0]} of the DUE package, which has test answers, "
            f"nor {val_files[0]} to fall back on"
        )
    release.statements.append(
        f"this is the VALIDATION split ({val_size:,} questions in the published one): the release has no answers "
        "to the test questions; do not compare with scores on test"
    )
    return of_competition(release.rows(val, "data"), "val")


class PageImages:
    """Images by the name of their document, wherever and however the release keeps its pages."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self._pages: dict[str, list[str]] = {}
        self._with_several: set[str] = set()
        numbered: dict[str, list[tuple[int, str]]] = {}
        for folder in _PAGE_FOLDERS:
            for name in release.names(folder):
                path, (stem, ending) = f"{folder}/{name}", _split(name)
                pages = [path] if ending else self._pages_in(path)
                if pages:
                    self._pages.setdefault(stem.removesuffix(".pdf"), pages)
                if ending and (page := _PAGE.match(stem)):
                    numbered.setdefault(page["stem"].removesuffix(".pdf"), []).append((int(page["number"]), path))
        for stem, pages in numbered.items():
            self._pages.setdefault(stem, [path for _, path in sorted(pages)])

    def first_page(self, target_folder: str, stems: Sequence[str], where: str) -> SourceImage:
        """Return the first page under the first of the stems that has an image."""
        for stem in stems:
            if pages := self._pages.get(stem):
                if len(pages) > 1:
                    self._with_several.add(stem)
                target = f"{target_folder}/{stem}{_split(pages[0])[1]}"
                return self._release.image(target, pages[:1], where)
        names = [f"{_PAGE_FOLDERS[0]}/{stem}{_PAGE_ENDINGS[0]}" for stem in stems]
        return self._release.image(f"{target_folder}/{stems[0]}{_PAGE_ENDINGS[0]}", names, where)

    @property
    def statement(self) -> str:
        count = len(self._with_several)
        return (
            f"{count:,} documents have several pages; the first page stands for each" if count else "a page a document"
        )

    def _pages_in(self, folder: str) -> list[str]:
        names = [name for name in self._release.names(folder) if _split(name)[1]]
        return [f"{folder}/{name}" for name in sorted(names, key=_last_number)]


def _split(name: str) -> tuple[str, str]:
    """Return stem and ending of an image's name; no ending where it is none."""
    for ending in _PAGE_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return name, ""


def _last_number(name: str) -> tuple[int, str]:
    numbers = re.findall(r"\d+", _split(name)[0])
    return (int(numbers[-1]) if numbers else 0, name)


def due_questions(release: Release, target_folder: str, list_of_items: bool = False) -> Iterator[PreparedRow]:
    """Read a set whose keys are questions. `list_of_items`: the answer is the values together, not one of variants."""
    pages = PageImages(release)
    for document in release.rows(release.file(*DUE_DOCUMENTS)):
        image = pages.first_page(target_folder, (_document_name(document),), document.where)
        for annotation in document.entries("annotations"):
            values = _values(annotation)
            answer = [variant for variants in values for variant in (variants[:1] if list_of_items else variants)]
            if not answer:
                raise ValueError(f"{annotation.where}: no value")
            metadata = annotation.value.get("metadata")
            known = metadata.get("question_id") if isinstance(metadata, Mapping) else None
            question_id = known if isinstance(known, (int, str)) else None
            yield PreparedRow(annotation.where, image, annotation.text("key"), answer, question_id)
    release.statements.append(pages.statement)


def deepform(release: Release) -> Iterator[PreparedRow]:
    """Read DeepForm test: five keys per document."""
    return _forms(release, "data/DeepForm/images", DEEPFORM_KEYS)


def kleister_charity(release: Release) -> Iterator[PreparedRow]:
    """Read Kleister Charity test: eight keys per document."""
    return _forms(release, "data/KleisterCharity/images", KLEISTER_CHARITY_KEYS)


def _forms(release: Release, target_folder: str, keys: Sequence[str]) -> Iterator[PreparedRow]:
    """Ask every document for every key, in the order given; those without a value are answered by `NOTHING`."""
    pages = PageImages(release)
    asked = unanswered = 0
    others: Counter[str] = Counter()
    for document in release.rows(release.file(*DUE_DOCUMENTS)):
        name = _document_name(document)
        image = pages.first_page(target_folder, (name,), document.where)
        values: dict[str, list[list[str]]] = {key: [] for key in keys}
        for annotation in document.entries("annotations"):
            key = annotation.text("key")
            if key in values:
                values[key] += _values(annotation)
            else:
                others[key] += 1
        for key, found in values.items():
            answer = [variant for variants in found for variant in variants] or [NOTHING]
            more = {"document": name, "key": key, "values": found}
            question = f"What is the value for the {key}?"
            asked, unanswered = asked + 1, unanswered + (not found)
            yield PreparedRow(document.where, image, question, answer, more=more)
    release.statements += (
        f"every document is asked for every key; {unanswered:,} of {asked:,} have no value, and {NOTHING!r} as answer",
        "the question 'What is the value for the KEY?' and the answer 'None' are UReader's, from memory: check them "
        "where a score is to be compared with another model's",
        "'document', 'key' and 'values' (variants of each value) stand in each line, for F1 over a document's pairs",
        pages.statement,
    )
    if others:
        named = ", ".join(f"{key} ({count:,})" for key, count in sorted(others.items()))
        release.statements.append(f"values of keys that are not asked for were left out: {named}")


def _document_name(document: Entry) -> str:
    return document.text("name").removesuffix(".pdf")


def _values(annotation: Entry) -> list[list[str]]:
    """Return the variants of each value, the value itself first."""
    values = []
    for one in annotation.entries("values"):
        value = one.text("value")
        variants = one.texts("value_variants") if one.value.get("value_variants") else []
        values.append([value, *(variant for variant in variants if variant != value)])
    return values


def visualmrc(release: Release) -> Iterator[PreparedRow]:
    """Read the test questions, in the file's order."""
    for page in release.rows(release.file("test.jsonl", "test.json", "data/test.jsonl", "data/test.json")):
        name = page.text("image_filename")
        base = name.rpartition("/")[2]
        names = (f"images/{base}", name, f"images/{name}", f"test/{base}", base)
        image = release.image(f"data/visualmrc/images/{base}", names, page.where)
        for pair in page.entries("qa_data"):
            question, answer = (Entry(pair.where, pair.take(key, dict)).text("text") for key in ("question", "answer"))
            yield PreparedRow(pair.where, image, question, answer)
