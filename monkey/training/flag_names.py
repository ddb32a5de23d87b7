"""The flags of `finetune_multitask.py` as their sources declare them, which are read here and not imported.

Importing them imports torch and transformers, which takes seconds. A flag that there is not, a file that is missing
and `--help` need not wait for that.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import importlib.util
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from monkey.data.mixture import record_sets
from monkey.location import refuse_missing
from monkey.settings_files import read_settings_file
from monkey.training.part_arguments import PartArguments

# Flags of the published script that this one does not have -> what to do instead.
_FORMER_FLAGS = {
    "cache_dir": "set the environment variable HF_HUB_CACHE to that folder, or give the checkpoint's own folder as "
    "--model_name_or_path",
    "lora_target_modules": "leave it out, --use_lora always adapts the published linears (q, k, v, o, gate and up "
    "projections); others go to LORA_LINEARS in monkey/training/recipes.py",
    "lora_weight_path": "continue an adapter's run with --resume_from_checkpoint CHECKPOINT, or start from the merged "
    "checkpoint of its run as --model_name_or_path",
    "lora_bias": "leave it out, the decoder's biases stay frozen beside adapters (the published default, none)",
}

MISSING = {
    "model_name_or_path": "--model_name_or_path is missing: give it on the command line or in --config FILE.yaml",
    "data_path": "--data_path is missing: give it on the command line or in --config FILE.yaml",
    "output_dir": "--output_dir is missing: name the folder that the trained checkpoint goes to",
}
"""Flags that a run cannot do without, and what is said."""

CONFIG_HELP = "Flags in a file; the command line overrides them."


@dataclasses.dataclass(frozen=True)
class Declared:
    """A flag as its class declares it; `default` is Python source, empty where it is computed."""

    help: str
    default: str


def declared_flags() -> dict[str, dict[str, Declared]]:
    """What a group of flags says → its flags by name, in the order of `--help`."""
    library = Path(importlib.util.find_spec("transformers").origin).with_name("training_args.py")
    inherited = dict(_fields(_classes(library)["TrainingArguments"]))
    groups = {}
    for name, declaration in _classes(Path(__file__).with_name("arguments.py")).items():
        if name.endswith("Arguments"):
            fields = dict(_fields(declaration))
            title = ast.get_docstring(declaration)
            groups[title] = inherited | fields if name == "TrainingArguments" else fields
    parts = dataclasses.fields(PartArguments)
    groups[PartArguments.__doc__] = {one.name: Declared(one.metadata["help"], repr(one.default)) for one in parts}
    return groups


def _classes(file: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _fields(declaration: ast.ClassDef) -> Iterator[tuple[str, Declared]]:
    """The fields of a dataclass that are flags: by `flag(default, help)` or `field(default=…, metadata=…)`."""
    for node in declaration.body:
        if not isinstance(node, ast.AnnAssign):
            continue
        call = node.value if isinstance(node.value, ast.Call) else None
        named = {} if call is None else {keyword.arg: keyword.value for keyword in call.keywords}
        if "init" in named:
            continue
        default, text = call.args if call is not None and call.args else (named.get("default"), None)
        if "metadata" in named:
            pairs = zip(named["metadata"].keys, named["metadata"].values, strict=True)
            text = next((value for key, value in pairs if ast.literal_eval(key) == "help"), None)
        constant = isinstance(default, (ast.Constant, ast.UnaryOp, ast.List))
        yield (
            node.target.id,
            Declared(ast.literal_eval(text) if text else "", ast.unparse(default) if constant else ""),
        )


def known_options() -> frozenset[str]:
    """Every spelling of every flag."""
    names = {"config", "help"}
    for flags in declared_flags().values():
        for name, declared in flags.items():
            names |= {name, f"no_{name}"} if declared.default == "True" else {name}
    return frozenset(f"--{spelling}" for name in names for spelling in (name, name.replace("_", "-")))


def print_help(description: str) -> None:
    parser = argparse.ArgumentParser(
        usage="finetune_multitask.py [--FLAG VALUE ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help=CONFIG_HELP)
    for title, flags in declared_flags().items():
        group = parser.add_argument_group(title.rstrip("."))
        for name, declared in flags.items():
            default = "" if declared.default in ("", "None") else f" (default: {ast.literal_eval(declared.default)})"
            group.add_argument(f"--{name}", metavar=name.upper(), help=declared.help + default)
    parser.print_help()


def refuse_unknown(name: str, options: Collection[str], place: str) -> None:
    """ValueError for a name that is no flag, with the nearest ones."""
    if f"--{name}" in options:
        return
    instead = _FORMER_FLAGS.get(name.replace("-", "_"))
    if instead is not None:
        raise ValueError(f"{place}: the published script's --{name} is not taken: {instead}")
    near = difflib.get_close_matches(f"--{name}", sorted(options), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "see --help"
    raise ValueError(f"{place}: there is no flag --{name}; {hint}")


def read_config(path: str, options: Collection[str]) -> dict[str, Any]:
    """The entries of a `--config` file, all of them flags."""
    entries = read_settings_file(path, f"--config {path}")
    for name in entries:
        refuse_unknown(str(name), options, f"--config {path}")
    return entries


def config_of(words: Sequence[str]) -> str | None:
    """The file of `--config` among command-line words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    return parser.parse_known_args(words)[0].config


def look_over(words: Sequence[str]) -> None:
    """Raise what the run would say of names and paths among its flags.

    ValueError or FileNotFoundError, in one sentence, for a name that is no flag, on the command line or in a config, a
    flag that is missing, and a config, a file of records or a checkpoint's folder that is not there.
    """
    options = known_options()
    config = config_of(words)
    entries = {} if config is None else read_config(config, options)
    given = {str(name): value if isinstance(value, list) else [value] for name, value in entries.items()}
    values: list[Any] = []
    for word in words:
        if word.startswith("--") and " " not in word:
            name, _, value = word[2:].partition("=")
            refuse_unknown(name, options, "command line")
            given[name.replace("-", "_")] = values = [value] if value else []
        else:
            values.append(word)
    for name, sentence in MISSING.items():
        if not any(given.get(name, ())):
            raise ValueError(sentence)
    refuse_missing(str(given["model_name_or_path"][0]))
    for path in (*given["data_path"], *given.get("eval_data_path", ())):
        for member in record_sets(str(path)):
            if not member.path.exists():
                raise FileNotFoundError(f"{member.path}: no such file")
