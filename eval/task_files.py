"""A task of the user's own, as a small TOML or YAML file:

    name = "receipts"                # default: the file's name
    file = "receipts.jsonl"          # beside this file, or an absolute path
    metric = "anls"
    headline = "strict"              # the metric's variant that tables show first; default "official"
    max_new_tokens = 20              # default 100
    prompt = "<img></img> {question} Answer: "
    parts = ["shop"]                 # keys of the rows by whose values scores are given separately, too

More fields: `n_expected` (another number of questions is remarked upon), `annotations` (a VQA annotation file with ten
answers a question), `split` and `note` (text for the reader). `prompt` is a whole prompt, or the name of a form that
the tasks of the evaluator use. Pictures are looked up as for a bare .jsonl file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.metrics import METRICS, nearest
from eval.prompting import FORMS
from eval.tasks import LONG_ANSWER, TASKS, Task
from monkey.settings_files import read_settings_file

_FIELDS: Mapping[str, type] = {
    "name": str,
    "file": str,
    "metric": str,
    "headline": str,
    "max_new_tokens": int,
    "n_expected": int,
    "annotations": str,
    "prompt": str,
    "split": str,
    "note": str,
    "parts": list,
}
_REQUIRED = ("file", "metric")
_KINDS = {str: "a text", int: "a whole number of at least 1", list: "a list of texts"}


def read_task(path: str | Path) -> Task:
    """The task that a .toml, .yaml or .yml file describes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML or YAML, an unknown or missing field, a value of the wrong kind, an unknown metric or
            variant, or the name of a task of the evaluator; file and field are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--dataset {path}: there is no such task file")
    fields = read_settings_file(path)
    for name, value in fields.items():
        if name not in _FIELDS:
            raise ValueError(f"{path}: unknown field {name!r}; {nearest(str(name), _FIELDS)}")
        kind = _FIELDS[name]
        if type(value) is not kind or not _is_meant(value):
            raise ValueError(f"{path}: {name} must be {_KINDS[kind]}, not {value!r}")
    for name in _REQUIRED:
        if name not in fields:
            raise ValueError(f"{path}: the field {name} is missing; a task needs {' and '.join(_REQUIRED)}")
    return _task(path, fields)


def _is_meant(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, str) and one.strip() for one in value)
    return value >= 1 if isinstance(value, int) else bool(value.strip())


def _task(path: Path, fields: Mapping[str, Any]) -> Task:
    name = fields.get("name", path.stem)
    if re.fullmatch(r"[\w.-]*\w[\w.-]*", name) is None:
        raise ValueError(f"{path}: name {name!r} must be letters, digits, '_', '-' and '.'; a folder is named after it")
    if name in TASKS:
        raise ValueError(f"{path}: name {name!r} is a task of the evaluator; give yours another")
    metric = fields["metric"]
    if metric not in METRICS:
        raise ValueError(f"{path}: unknown metric {metric!r}; {nearest(metric, METRICS)}")
    headline = fields.get("headline", "official")
    variants = METRICS[metric].all_variants
    if headline not in variants:
        raise ValueError(f"{path}: headline {headline!r} is no variant of {metric}; it has {', '.join(variants)}")
    task = Task(
        name,
        str(path.parent / fields["file"]),
        metric,
        fields.get("max_new_tokens", LONG_ANSWER),
        headline=headline,
        n_expected=fields.get("n_expected"),
        split=fields.get("split", ""),
        note=fields.get("note", ""),
        parts=tuple(fields.get("parts", ())),
        own_file=True,
    )
    if "annotations" in fields:
        # Absolute, since the rows' annotation files start from the data root.
        task = replace(task, annotations=str((path.parent / fields["annotations"]).resolve()))
    prompt = fields.get("prompt", task.prompt)
    return replace(task, prompt=prompt) if prompt in FORMS else replace(task, prompt_text=prompt)
