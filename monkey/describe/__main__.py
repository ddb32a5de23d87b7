"""Detailed descriptions of pictures by several experts.

python -m monkey.describe run --config configs/describe/offline.yaml --images data/documents/images --output RUN
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from monkey.cli import EXIT_INTERRUPTED, EXIT_USAGE, ArgumentParser, print_any_name

SUBCOMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("monkey.describe.run", "describe the pictures of a folder"),
    "convert": ("monkey.describe.convert", "make training records of published descriptions"),
    "view": ("monkey.describe.view", "write a page that shows a run"),
    "stats": ("monkey.describe.statistics", "count words, sentences and regions of a run"),
    "sweep": ("monkey.describe.sweep", "try other thresholds on a run, without its experts"),
}
"""Name to module and a line of help. A module has `add_arguments(parser)` and `main(flags) -> exit status`; it is
imported when its command is given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; 2 on what the user can mend."""
    print_any_name()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in SUBCOMMANDS:
        return _overview(words)
    parser, module = _opened(words[0])
    flags = parser.parse_args(words[1:])
    try:
        return module.main(flags)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, and the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED


def _opened(name: str) -> tuple[argparse.ArgumentParser, Any]:
    """Parser and module of a command."""
    module = importlib.import_module(SUBCOMMANDS[name][0])
    parser = ArgumentParser(
        prog=f"python -m monkey.describe {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser, module


def _overview(words: Sequence[str]) -> int:
    """What commands there are and their flags: as help where it was asked for, else as a mistake."""
    if words and words[0] in ("-h", "--help"):
        print(f"{__doc__}\ncommands, each with --help:\n")
        for name, (_, line) in SUBCOMMANDS.items():
            print(f"{name}: {line}\n  {_opened(name)[0].format_usage()}")
        return 0
    given = f"unknown command {words[0]!r}" if words else "a command is missing"
    print(f"error: {given}; there is {', '.join(SUBCOMMANDS)}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
