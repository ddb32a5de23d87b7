"""The model card of a trained checkpoint: a README.md made from the run's own record, and from nothing else.

What was not recorded is left out, and a checkpoint without scores says so. File names, flags and names of data sets
come from users: everything of theirs stands in code spans or in YAML that a library wrote, where it cannot be markup.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from monkey.checkpoint_card import CARD_FILE as CHECKPOINT_CARD
from monkey.checkpoint_card import read_card

CARD_FILE = "README.md"

_MOST_ROWS = 60
"""Rows of a table before it refers to `run.json` for the rest."""

# Flags that say how a run learnt, in the order of the card; a name stands for itself and for `name_…` of a part.
_HYPERPARAMETERS = (
    "learning_rate",
    "lr",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "dropout",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "model_max_length",
    "packing",
    "pack",
    "grid",
    "lora",
    "q_lora",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "deepspeed",
)
_FILES = ("data_path", "eval_data_path", "mixture")

_USE = """In the environment of this project's code, with a picture `page.png`:

```python
from PIL import Image
from monkey import MonkeyForConditionalGeneration, MonkeyProcessor

name = "."  # the folder that this card lies in
processor = MonkeyProcessor.from_pretrained(name)
model = MonkeyForConditionalGeneration.from_pretrained(name)

inputs = processor(images=[Image.open("page.png")], text="<img></img> What is the total? Answer: ").to(model.device)
output = model.generate(**inputs, max_new_tokens=100)
print(processor.decode_answers(output, inputs["input_ids"].shape[1]))
```"""

_LICENCES = """Check before use: a model inherits the terms of its starting weights, and its data have theirs.

- Monkey (`echo840/Monkey`, `echo840/Monkey-Chat`): the published repository says three things. Its LICENSE file is MIT,
  its badge says Apache-2.0, and its README asks for non-commercial use only.
- Qwen-VL (`Qwen/Qwen-VL`), which Monkey was trained from: the Tongyi Qianwen licence.
- The data: the terms of the files named above."""


def model_card(
    run_record: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]] | None,
    base: str,
    log_history: Sequence[Mapping[str, Any]],
    terms: str = "",
) -> str:
    """The card's text: YAML front matter, then Markdown.

    Args:
        run_record: as `monkey.training.record.run_record` gives it; what it lacks is left out.
        scores: one row a task, as the evaluator's `summary.json` has them; None or empty when nothing was evaluated.
        base: name or folder of the starting weights.
        log_history: the trainer's log.
        terms: of the starting weights.
    """
    recipe = _mapping(run_record.get("recipe"))
    flags = _mapping(run_record.get("flags"))
    sections = [
        ("How it was trained", _training(recipe, base, run_record)),
        ("Data", _data(flags, _mapping(run_record.get("data")))),
        ("Hyperparameters", _hyperparameters(flags)),
        ("Scores", _scores(scores)),
        ("Losses", _losses(log_history)),
        ("How to use it", _USE),
        ("To repeat it", _provenance(run_record)),
        ("Licences", f"Of the starting weights: {_code(terms)}\n\n{_LICENCES}" if terms else _LICENCES),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections if text)
    title = f"# Monkey, trained as {_code(recipe['name'])}" if recipe.get("name") else "# Monkey, trained further"
    return f"---\n{_front_matter(base)}---\n\n{title}\n\n{body}\n"


def write_model_card(
    folder: str | os.PathLike,
    run_record: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]] | None,
    base: str,
    log_history: Sequence[Mapping[str, Any]],
) -> Path:
    """Write `model_card(…)` as README.md into `folder`, whole or not at all; return its path.

    The terms are those of the checkpoint's card in `folder`.
    """
    path = Path(folder) / CARD_FILE
    unfinished = path.with_name(f".{CARD_FILE}.unfinished")
    try:
        terms = read_card(beside).terms["en"] if (beside := path.with_name(CHECKPOINT_CARD)).is_file() else ""
        unfinished.write_text(model_card(run_record, scores, base, log_history, terms), encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _front_matter(base: str) -> str:
    fields = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": _clean(str(base)),
        "license": "other",
        "license_name": "see-the-licences-of-the-base",
        "tags": ["monkey"],
    }
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)


def _training(recipe: Mapping[str, Any], base: str, run_record: Mapping[str, Any]) -> str:
    lines = [f"Starting weights: {_code(base)}."]
    if recipe.get("name"):
        lines.append(f"Recipe: {_code(recipe['name'])}.")
    merge = _mapping(run_record.get("merge"))
    if merge:
        change = merge.get("largest_change")
        lines.append(
            f"Its {_code(merge.get('kind', ''))} adapters are merged into {_code(merge.get('linears', ''))} decoder "
            f"linears (base precision: {_code(merge.get('base_precision', ''))}); on a probe the logits changed by at "
            f"most {_number(change) if _is_number(change) else _code(change)}."
        )
    parts = [part for part in _sequence(recipe.get("parts")) if isinstance(part, Mapping)]
    if not parts:
        return " ".join(lines)
    rows = [
        (part.get("part", ""), "trained" if part.get("trains") else "frozen", part.get("parameters", ""))
        for part in parts
    ]
    trained = sum(part["parameters"] for part in parts if part.get("trains") and _is_number(part.get("parameters")))
    total = sum(part["parameters"] for part in parts if _is_number(part.get("parameters")))
    lines.append(f"{trained:,} of {total:,} parameters were trained.")
    return f"{' '.join(lines)}\n\n{_table(('part', 'state', 'parameters'), rows)}"


def _data(flags: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    named = {name: flags[name] for name in _FILES if flags.get(name)}
    rows = [*_flat(named), *_flat(data)]
    blind = "No record that it was trained on has an image.\n\n" if data.get("has_images") is False else ""
    return blind + _table(("what", "value"), rows) if rows else "Not recorded."


def _hyperparameters(flags: Mapping[str, Any]) -> str:
    def place(name: str) -> int | None:
        found = [i for i, stem in enumerate(_HYPERPARAMETERS) if name == stem or name.startswith(f"{stem}_")]
        exact = [i for i in found if _HYPERPARAMETERS[i] == name]
        return (exact or found or [None])[0]

    chosen = [name for name, value in flags.items() if place(name) is not None and value is not None]
    ordered = sorted(chosen, key=lambda name: (place(name), name))
    # As they are given again, not as counts are read.
    rows = [(name, _text(value)) for name, value in _flat({name: flags[name] for name in ordered})]
    return f"{_table(('flag', 'value'), rows)}\n\nEvery flag is in `run.json`." if rows else "Not recorded."


def _scores(scores: Sequence[Mapping[str, Any]] | None) -> str:
    rows = [row for row in scores or () if row]
    if not rows:
        return "Not evaluated."
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return _table(map(_cell, columns), [[row.get(column, "") for column in columns] for row in rows])


def _losses(history: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for key, label in (("loss", "training"), ("eval_loss", "held-out")):
        entries = [entry for entry in history if _is_number(entry.get(key))]
        if entries:
            rows.append((label, entries[0][key], entries[-1][key], entries[-1].get("step", "")))
    return _table(("loss", "first logged", "last logged", "at step"), rows) if rows else "Not recorded."


def _provenance(run_record: Mapping[str, Any]) -> str:
    given = {key: run_record[key] for key in ("seed", "git_revision") if run_record.get(key) is not None}
    rows = [(name, _text(value)) for name, value in _flat({**given, **_mapping(run_record.get("versions"))})]
    return _table(("what", "value"), rows) if rows else ""


def _table(heads: Iterable[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; every cell below its heads is a number or code."""
    heads = list(heads)
    lines = [heads, *([_cell(value) for value in row] for row in rows[:_MOST_ROWS])]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + " --- |" * len(heads))
    if len(rows) > _MOST_ROWS:
        text.append(f"\n{len(rows) - _MOST_ROWS} more rows are in `run.json`.")
    return "\n".join(text)


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Rows of a nested mapping: keys joined by a dot, and values."""
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        items = dict(enumerate(value)) if isinstance(value, list | tuple) and _is_nested(value) else value
        if isinstance(items, Mapping) and items:
            rows += _flat(items, f"{name}.")
        elif value is not None:
            rows.append((name, value))
    return rows


def _is_nested(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Mapping | list | tuple) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> str:
    """Counts with their thousands set apart, measures to five digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _text(value: Any) -> str:
    """A value on one line; other characters than printable ones become spaces."""
    return _clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text).strip()


def _code(value: Any) -> str:
    """A code span that shows `value` and nothing else: no markup, and no end before its own."""
    text = _text(value)
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _cell(value: Any) -> str:
    """A number, or `value` as code; a table ends its cell at a bar even within a code span."""
    if _is_number(value):
        return _number(value)
    text = _text(value)
    if "|" not in text:
        return _code(text)
    shown = "".join(letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text)
    return f"<code>{shown}</code>"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
