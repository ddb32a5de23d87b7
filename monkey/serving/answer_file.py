"""A file of questions to a file of answers, over any number of interruptions.

Answers are appended to `<output>.part` as they come, each forced to the disk; when all are there the output is written
whole, in the order of the questions, and the part goes. An answer is worth something only under its key, which covers
everything that it depends on: question, bytes of the images, checkpoint, and how tokens are chosen.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monkey.data.rows import ImagePaths, IndexedRows
from monkey.journal import Journal, atomic_file, json_line
from monkey.provenance import file_digest

OWN_FIELDS = ("answer", "finish_reason", "prompt_tokens", "new_tokens", "confidence", "boxes", "error", "key")
"""What answers are written under; fields of these names in a question's row are left out."""


@dataclass(frozen=True)
class Asked:
    """One question, or a row of a file of them; `fault` says which of its images is missing."""

    source: str
    """What messages call it."""
    question: str | None
    """None asks for a description in the usual words."""
    images: tuple[Path, ...]
    row: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    fault: str | None = None


def read_questions(
    path: Path, image_root: Path | None, is_question_needed: bool, settings: Mapping[str, Any]
) -> list[Asked]:
    """Return the rows of a `.jsonl` or `.json` file with their keys.

    A row holds `question`, and `image` or `images`: a path or a list of paths.

    Args:
        image_root: folder of the images; without it that of the rows, then the current one.
        is_question_needed: refuse a row without a question.
        settings: what answers depend on besides the rows.

    Raises:
        FileNotFoundError, ValueError: a file or row that cannot be read or is not of this form, with its line; a path
            that no row may have, such as an absolute one, is refused here and not row by row.
    """
    paths = ImagePaths(path, image_root, "--image-root")
    digests: dict[Path, str] = {}
    seen: Counter[str] = Counter()
    questions = []
    for source, row in IndexedRows(path):
        question, named = _read_row(source, row, is_question_needed)
        try:
            images = tuple(paths.find(name, source) for name in named)
        except FileNotFoundError as error:
            questions.append(Asked(source, question, (), row, fault=str(error)))
            continue
        digests |= {image: file_digest(image) for image in images if image not in digests}
        key = _key(question=question, pictures=[digests[image] for image in images], **settings)
        # The same question twice is answered twice, in whatever order its rows stand.
        seen[key] += 1
        key = key if seen[key] == 1 else _key(key=key, number=seen[key])
        questions.append(Asked(source, question, images, row, key))
    return questions


def _read_row(source: str, row: Any, is_question_needed: bool) -> tuple[str | None, list[str]]:
    """Return the question of a row and the paths of its images."""
    if not isinstance(row, dict):
        raise ValueError(f"{source}: holds a {type(row).__name__}, and an object with question and image is needed")
    question = row.get("question")
    if question is None and is_question_needed:
        raise ValueError(f"{source}: has no question; --describe describes images without one")
    if question is not None and (not isinstance(question, str) or not question.strip()):
        raise ValueError(f"{source}: its question is {question!r}, and a text that is not empty is needed")
    if "image" in row and "images" in row:
        raise ValueError(f"{source}: has both image and images; leave one out")
    named = row.get("images", row.get("image", []))
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"{source}: its image is {named!r}, and a path or a list of paths is needed")
    if not is_question_needed and len(named) != 1:
        raise ValueError(f"{source}: has {len(named)} images, and --describe needs one per row")
    return question, named


def _key(**parts: Any) -> str:
    """As the keys of the answers that users have; `journal.digest` writes its separators without spaces."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerFile(Journal):
    """The journal beside one output file; `answers` has those of an earlier output too.

    Raises:
        ValueError: another run holds it, or a file of this name holds something else.
    """

    def __init__(self, output: Path):
        if output.is_dir() or not output.parent.is_dir():
            raise ValueError(f"--output {output}: is a folder, or its folder does not exist; name a file to write")
        self.output = output
        self.answers = dict(_read_output(output)) if output.exists() else {}
        super().__init__(
            output.with_name(f"{output.name}.part"),
            way_out="name another --output, or remove that line, and its row is asked again",
            busy="give another --output",
        )
        self.answers |= {key: _own_fields(self[key]) for key in self}

    def add(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer so that it outlasts a crash from here on; OSError naming the file where it cannot be."""
        entry = {**answer, "key": key}
        self.append([entry])
        self.answers[key] = entry

    def finish(self, questions: Sequence[Asked], faults: Mapping[str, str]) -> None:
        """Write the output whole, a line per question in their order, and let the part go.

        Args:
            faults: what went wrong, by the rows' sources.
        """
        with atomic_file(self.output) as stream:
            for question in questions:
                fields = {name: value for name, value in question.row.items() if name not in OWN_FIELDS}
                fault = faults.get(question.source)
                fields |= self.answers[question.key] if fault is None else {"error": fault}
                stream.write(json_line(fields))
        self.path.unlink()


def _read_output(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield key and fields of each answer of a finished run; its rows without an answer are left out."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not {"key", "error"} & set(entry):
            raise ValueError(f"{path}:{number} is no answer of an earlier run; name another --output, or remove it")
        if "key" in entry:
            yield entry["key"], _own_fields(entry)


def _own_fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in OWN_FIELDS if name in entry}
