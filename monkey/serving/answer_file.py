"""A file of questions to a file of answers, over any number of interruptions.

Answers are appended to `<output>.part` as they come, each forced to the disk; when all are there the output is written
whole, in the order of the questions, and the part goes. An answer is worth something only under its key, which covers
everything that it depends on: question, bytes of the pictures, checkpoint, and how tokens are chosen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monkey.data.rows import ImagePaths, IndexedRows
from monkey.serving.checkpoints import file_digest

try:
    import fcntl
except ImportError:  # Windows has no locks of this kind; two runs into one file are then not noticed.
    fcntl = None

OWN_FIELDS = ("answer", "finish_reason", "prompt_tokens", "new_tokens", "confidence", "boxes", "error", "key")
"""What answers are written under; fields of these names in a question's row are left out."""

_HALVES = "backslashreplace"
"""Halves of surrogate pairs, which UTF-8 has no bytes for, become the escapes that JSON has for them."""


@dataclass(frozen=True)
class RowQuestion:
    """One row of a file of questions; `fault` says which of its pictures is missing."""

    source: str
    row: Mapping[str, Any]
    question: str | None
    pictures: tuple[Path, ...]
    key: str = ""
    fault: str | None = None


def read_questions(
    path: Path, image_root: Path | None, is_question_needed: bool, settings: Mapping[str, Any]
) -> list[RowQuestion]:
    """The rows of a `.jsonl` or `.json` file with their keys.

    A row holds `question`, and `image` or `images`: a path or a list of paths.

    Args:
        image_root: folder of the pictures; without it that of the rows, then the current one.
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
        question, named = _parts(source, row, is_question_needed)
        try:
            pictures = tuple(paths.find(name, source) for name in named)
            for picture in pictures:
                if picture not in digests:
                    digests[picture] = file_digest(picture)
        except FileNotFoundError as error:
            questions.append(RowQuestion(source, row, question, (), fault=str(error)))
            continue
        key = _key(question=question, pictures=[digests[picture] for picture in pictures], **settings)
        # The same question twice is answered twice, in whatever order its rows stand.
        seen[key] += 1
        key = key if seen[key] == 1 else _key(key=key, number=seen[key])
        questions.append(RowQuestion(source, row, question, pictures, key))
    return questions


def _parts(source: str, row: Any, is_question_needed: bool) -> tuple[str | None, list[str]]:
    """Question and paths of a row."""
    if not isinstance(row, dict):
        raise ValueError(f"{source}: holds a {type(row).__name__}, and an object with question and image is needed")
    question = row.get("question")
    if question is None and is_question_needed:
        raise ValueError(f"{source}: has no question; --describe describes pictures without one")
    if question is not None and (not isinstance(question, str) or not question.strip()):
        raise ValueError(f"{source}: its question is {question!r}, and a text that is not empty is needed")
    if "image" in row and "images" in row:
        raise ValueError(f"{source}: has both image and images; leave one out")
    named = row.get("images", row.get("image", []))
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"{source}: its image is {named!r}, and a path or a list of paths is needed")
    if not is_question_needed and len(named) != 1:
        raise ValueError(f"{source}: has {len(named)} images, and --describe needs one a row")
    return question, named


def _key(**parts: Any) -> str:
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerFile:
    """The answers of one output file, those of an earlier run included; one run at a time holds it.

    Raises:
        ValueError: another run holds it, or a file of this name holds something else.
    """

    def __init__(self, output: Path):
        self.output = output
        self.part = output.with_name(f"{output.name}.part")
        if output.is_dir() or not output.parent.is_dir():
            raise ValueError(f"--output {output}: is a folder, or its folder does not exist; name a file to write")
        self.answers: dict[str, dict[str, Any]] = {}
        if output.exists():
            self.answers.update(_entries(output.read_bytes(), output))
        self._stream = self._held()
        self._stream.seek(0)
        content = self._stream.readall()
        whole = content.rfind(b"\n") + 1
        # A line that a crash has torn is cut off before the next is written.
        self._stream.truncate(whole)
        self.answers.update(_entries(content[:whole], self.part))

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def _held(self):
        """The part, locked; a run that ended just now may have taken it away between opening and locking."""
        while True:
            stream = self.part.open("a+b", buffering=0)
            if fcntl is None:
                return stream
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.close()
                raise ValueError(f"{self.part} is being written by another run; give another --output") from None
            if self.part.exists() and os.path.samestat(os.fstat(stream.fileno()), os.stat(self.part)):
                return stream
            stream.close()

    def add(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer so that it outlasts a crash from here on; OSError naming the file where it cannot be."""
        entry = {**answer, "key": key}
        line = f"{json.dumps(entry, ensure_ascii=False)}\n".encode("utf-8", _HALVES)
        try:
            while line:
                line = line[self._stream.write(line) :]
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise OSError(
                f"{self.part} cannot be written ({error.strerror}); make room and give the same command again, those "
                "written are kept"
            ) from error
        self.answers[key] = entry

    def finish(self, questions: Sequence[RowQuestion], faults: Mapping[str, str]) -> None:
        """Write the output whole, a line a question in their order, and let the part go.

        Args:
            faults: what went wrong, by the rows' sources.
        """
        lines = []
        for question in questions:
            fields = {name: value for name, value in question.row.items() if name not in OWN_FIELDS}
            fault = faults.get(question.source)
            fields |= {"error": fault} if fault is not None else self.answers[question.key]
            lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
        unfinished = self.output.with_name(f".{self.output.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                file.write("".join(lines).encode("utf-8", _HALVES))
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self.output)
        finally:
            unfinished.unlink(missing_ok=True)
        self.part.unlink()


def _entries(content: bytes, path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Key and fields of each answer in lines of an earlier run."""
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            entry = json.loads(line)
            is_answer = isinstance(entry, dict) and ("key" in entry or "error" in entry)
        except (json.JSONDecodeError, UnicodeDecodeError):
            is_answer = False
        if not is_answer:
            raise ValueError(f"{path}:{number} is no answer of an earlier run; name another --output, or remove it")
        if "key" in entry:
            yield entry["key"], {name: entry[name] for name in OWN_FIELDS if name in entry}
