"""Every program's flags with their defaults, as argparse is told them; run as a program, it prints them as JSON.

Each program runs with `--help` in this one process, and every parser that it asks anything of is noted. So nothing of
the project is named here but its programs.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import io
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

HELP = ("--help",)
TRAINING = ("--model_name_or_path", "models/small", "--data_path", "data/README.md", "--output_dir", "outputs/none")
"""The trainer answers --help before it has a parser, so it is started and left at its parser instead."""

PROGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "finetune_multitask.py": ("finetune_multitask.py", TRAINING),
    "evaluate_vqa.py": ("evaluate_vqa.py", HELP),
    "demo.py": ("demo.py", HELP),
    "python -m monkey.ask": ("monkey.ask", HELP),
    "python -m monkey.serve": ("monkey.serve", HELP),
    **{
        f"python -m monkey.describe {command}": ("monkey.describe", (command, *HELP))
        for command in ("run", "convert", "view", "stats", "sweep")
    },
    **{f"python -m eval.{name}": (f"eval.{name}", HELP) for name in ("report", "compare", "score", "prepare")},
    "python -m monkey.data.vocabulary": ("monkey.data.vocabulary", HELP),
    **{
        f"scripts/{name}.py": (f"scripts/{name}.py", HELP)
        for name in (
            "average_checkpoints", "check_data", "convert_checkpoint", "fixed_subset", "learn_letters",
            "merge_adapters", "new_model", "plan_memory", "quickstart", "resolution_study", "set_grid", "show_views",
            "train_small_model",
        )
    },
    **{
        f"python -m benchmarks.{name}": (f"benchmarks.{name}", HELP)
        for name in (
            "describe", "evaluation", "full_size", "full_size_generation", "generate", "serving", "training", "vision",
        )
    },
}  # fmt: skip
"""What a program is called in the record -> its file or module now, and the words that it is started with."""


def plain(value: Any) -> Any:
    """A default as JSON has it; what JSON has no form for becomes its text."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


@contextlib.contextmanager
def noted_parsers(stop: bool) -> Iterator[dict[str, Any]]:
    """The flags of all parsers that parse inside the block: each spelling, or a positional's name, with its default.

    Args:
        stop: leave the program at the first parser that knows `--output_dir`.
    """
    flags: dict[str, Any] = {}
    parse = argparse.ArgumentParser.parse_known_args

    def noting(parser: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        for action in parser._actions:
            for name in action.option_strings or [action.dest]:
                flags[name] = plain(action.default)
        if stop and "--output_dir" in flags:
            raise SystemExit(0)
        return parse(parser, *given, **named)

    argparse.ArgumentParser.parse_known_args = noting
    try:
        yield flags
    finally:
        argparse.ArgumentParser.parse_known_args = parse


def flags_of(target: str, words: tuple[str, ...]) -> dict[str, Any]:
    """The flags of one program; RuntimeError where it was gone, or asked no parser."""
    sys.argv = [target, *words]
    said = io.StringIO()
    with noted_parsers(stop=words == TRAINING) as flags, contextlib.redirect_stdout(said):
        try:
            if target.endswith(".py"):
                runpy.run_path(str(ROOT / target), run_name="__main__")
            else:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
        except SystemExit:
            pass
        except (ImportError, OSError) as error:
            raise RuntimeError(f"{target}: {error}") from error
    for name in ("-h", "--help"):
        flags.pop(name, None)
    if not flags:
        raise RuntimeError(f"{target} asked no parser: {said.getvalue()[-300:]}")
    return dict(sorted(flags.items()))


def main() -> int:
    """Print all programs' flags; a program that could not be asked has a text in the place of its flags."""
    sys.path.insert(0, str(ROOT))
    found: dict[str, Any] = {}
    for name, (target, words) in PROGRAMS.items():
        try:
            found[name] = flags_of(target, words)
        except RuntimeError as error:
            found[name] = str(error)
    print(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
