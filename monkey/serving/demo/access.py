"""Who may open the demo: names and passwords from a flag, a file, or the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENT = "MONKEY_DEMO_AUTH"
"""Variable that holds `user:password`, several of them on lines of their own."""

Pair = tuple[str, str]


def allowed(given: Sequence[str], file: Path | None) -> list[Pair]:
    """Names and passwords from all three places together; none when everybody may come in.

    A flag can be read by everybody on the machine, in its list of processes; a file or the environment cannot.

    Args:
        given: of --auth, each `user:password`.
        file: of --auth-file, one `user:password` a line; empty lines and lines that begin with # are left out.

    Raises:
        ValueError: something that is not `user:password`, named by its place and never by its text.
        FileNotFoundError: no such file.
    """
    pairs = [_pair(text, "--auth") for text in given]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--auth-file {file}: no such file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--auth-file {file} cannot be read as text") from error
        found = _pairs(lines, f"{file}")
        if not found:
            raise ValueError(f"--auth-file {file} names nobody; write user:password on a line")
        pairs += found
    return [*pairs, *_pairs(os.environ.get(ENVIRONMENT, "").splitlines(), ENVIRONMENT)]


def _pairs(lines: Sequence[str], place: str) -> list[Pair]:
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    return [_pair(line, f"{place}:{number}") for number, line in numbered if line and not line.startswith("#")]


def _pair(text: str, place: str) -> Pair:
    user, separator, password = text.partition(":")
    if not (user and separator and password):
        raise ValueError(f"{place} is not user:password, two words with a colon between")
    return user, password
