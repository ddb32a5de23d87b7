"""Questions that lie with their images in tables or on the hub, as lmms-lab keeps its sets, made a file of ours.

    python evaluate_vqa.py --checkpoint CKPT --save_name NAME --dataset hub:lmms-lab/DocVQA:validation --metric anls

`stored_question_file` writes them once into the cache folder, `questions.jsonl` with `images/` beside it, under a
digest of the shards; all that follows reads that as any other file of questions. Columns are told by their names:
`image`; `question` or `query`; `answers` (texts, or objects with an `answer`), `answer`, `label` or captions; `options`
or `choices` with the right one's number; `question_id` and the like. Other columns of plain values stay beside them.
Rows of a suite are read as `eval.suites` says.
"""

from __future__ import annotations

import json
import os
import re
import string
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from eval.suites import Asked, find_suite, list_options
from monkey.data.converting import write_stored
from monkey.data.rows import StoredRow, fail, field_of, text_of
from monkey.data.shards import SHARD_ENDINGS, find_shards, is_on_hub, read_shard
from monkey.files import cache_folder
from monkey.images import StoredImage
from monkey.journal import atomic_folder, digest
from monkey.prompts import CAPTION_AS_TRAINED, after_image

VERSION = 2
"""Of what is written for the same shards."""

_QUESTIONS = ("question", "query")
_CAPTIONS = ("caption_str", "reference_strs", "captions", "caption")
_IDS = ("question_id", "questionId", "id", "pid", "index")
_OPTIONS = ("options", "choices")


def holds_stored_questions(name: str) -> bool:
    """Return whether `--dataset` names a table, a tar or a set on the hub."""
    return is_on_hub(name) or name.endswith(SHARD_ENDINGS)


def task_name(name: str) -> str:
    """Return what a task of such questions is called: `DocVQA_validation`, `mine`."""
    named = name.removeprefix("hub:").partition("/")[2] if is_on_hub(name) else Path(name).stem
    return re.sub(r"[^\w.-]+", "_", named).strip("_")


def stored_question_file(name: str) -> Path:
    """Return the file of the questions, which is made where it is not there yet.

    Raises:
        FileNotFoundError, ValueError: as of `find_shards`; a row that is no question, with its shard and number; a set
            without any.
    """
    shards = find_shards(name)
    marks = [(shard, (stat := os.stat(shard)).st_size, stat.st_mtime_ns) for shard in shards]
    folder = cache_folder() / "questions" / digest(shards=marks, version=VERSION)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # the processes of a run all ask for it
        if not folder.is_dir():
            with atomic_folder(folder) as partial:
                (partial / "images").mkdir()
                _write(shards, partial, name)
    return folder / "questions.jsonl"


def _write(shards: list[str], folder: Path, name: str) -> None:
    count = without = 0
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as stream:
        for shard in shards:
            for _, source, row in tqdm(read_shard(shard), desc=name, unit="question", leave=False, disable=None):
                if isinstance(row, ValueError):
                    raise row
                question = _read(row, source, count, folder / "images")
                without += question is None
                if question is not None:
                    stream.write(json.dumps(question, ensure_ascii=False) + "\n")
                    count += 1
    if not count:
        raise ValueError(f"{name}: none of its {without:,} rows has an image and a question that is asked here")
    if without:
        rows = f"{without:,} of {count + without:,} rows"
        tqdm.write(f"note: {name}: {rows} have no image, or are not asked, and are left out", file=sys.stderr)


def _read(row: Any, source: str, number: int, images: Path) -> dict[str, Any] | None:
    """Return a row as a question of ours, whose image is written; None for one that has no image or is not asked."""
    if not isinstance(row, StoredRow):
        return None
    suite = find_suite(row)
    asked = None if suite is None else suite.ask(row, source)
    if suite is not None and asked is None:
        return None
    if (image := find_image(row, source)) is None:
        return None
    asked = asked or _ask(row, source)
    return {
        "image": f"images/{write_stored(image, images, source)}",
        "question": asked.question,
        "answer": asked.answer,
        "question_id": number if asked.question_id is None else asked.question_id,
        **asked.more,
    }


def find_image(row: StoredRow, source: str) -> StoredImage | None:
    """Return the image of a row; None where it has none.

    Raises ValueError where it has several, or a name in the place of one. MathVista has the name beside the image.
    """
    named = next((row[key] for key in ("decoded_image", "image", "images") if row.get(key)), None)
    if named is None:
        return None
    names = named if isinstance(named, list) else [named]
    if len(names) > 1:
        fail(source, f"there are {len(names)} images, and a question has one")
    image = row.images.get(names[0])
    if image is None:
        fail(source, f"{str(names[0])[:80]!r} stands in the place of an image and no bytes; give a set that has them")
    return image


def _ask(row: Mapping[str, Any], source: str) -> Asked:
    """Return a row of no suite as what is asked, with its other columns of plain values."""
    question, answer = _asked(row, source)
    key = next((key for key in _IDS if isinstance(row.get(key), (int, str))), None)
    known = {"image", "images", "question", "query", "answer", "answers", "label", "question_id", key}
    # As the files of the sets' own releases call them.
    renamed = {"choices": "options", "dataset": "dataset_name"}
    more = {renamed.get(name, name): value for name, value in row.items() if name not in known and _is_plain(value)}
    return Asked(question, answer, None if key is None else row[key], more)


def _asked(row: Mapping[str, Any], source: str) -> tuple[str, Any]:
    """Return question and answer of a row, by the columns that it has."""
    captions = next((key for key in _CAPTIONS if isinstance(row.get(key), list)), None)
    asked = next((key for key in _QUESTIONS if key in row), None)
    if captions is not None and not ({"answer", "answers"} & row.keys()):
        return after_image(CAPTION_AS_TRAINED).strip(), row[captions]
    if asked is None:
        fail(source, f"there is no column 'question'; there are {', '.join(map(repr, row))}")
    question = text_of(row, asked, source)
    options = next((row[key] for key in _OPTIONS if row.get(key)), None)
    if isinstance(options, list) and (right := _number(row.get("answer"))) is not None:
        if not 0 <= right < len(options) <= len(string.ascii_uppercase):
            fail(source, f"'answer' is {right}, and there are {len(options)} options")
        if "hint" not in row:
            return "\n".join((question, *options)), options[right]
        context = row["hint"].strip() or "N/A"
        return f"Context: {context}\nQuestion: {question}\nOptions: {list_options(options)}", [
            string.ascii_uppercase[right],
            options[right],
        ]
    for key in ("answers", "answer", "label"):
        if key in row:
            value = field_of(row, key, (str, int, list), source)
            people = value if isinstance(value, list) else [value]
            return question, [one["answer"] if isinstance(one, Mapping) else one for one in people]
    fail(source, "there is no column 'answers' or 'answer'; a split without answers cannot be scored")


def _number(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if type(value) is int else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, (str, int, float)) for one in value)
    return isinstance(value, (str, int, float))
