"""What command lines share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

MISTAKE, SOME_FAILED, INTERRUPTED = 2, 1, 130
"""Exit statuses: what the user can mend, a part that failed, and Ctrl-C."""


def print_any_name() -> None:
    """Let standard output spell out the bytes of a file's name that is not UTF-8, where it would raise an error."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def library_bars(are_shown: bool) -> Iterator[None]:
    """Show transformers' own progress bars, of weights being loaded, or keep them back."""
    from transformers.utils import logging

    were_shown = logging.is_progress_bar_enabled()
    if were_shown and not are_shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one sentence, where argparse prints every flag before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"error: {message.removeprefix('argument ')}; every flag: --help\n")
