"""What command lines share: exit statuses, mistakes as one sentence, and what stands on the screen."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from monkey.grids import FITS

EXIT_PARTIAL, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
"""Exit statuses: a part failed, a mistake that the user can mend, Ctrl-C."""


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one sentence, where argparse prints every flag before it.

    A description keeps its lines, and no flag is taken for another that it begins.
    """

    def __init__(
        self, *arguments, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
    ):
        super().__init__(*arguments, formatter_class=formatter_class, allow_abbrev=allow_abbrev, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"error: {message.removeprefix('argument ')}; every flag: --help\n")


def whole_number(least: int) -> Callable[[str], int]:
    """Return the type of a flag that takes whole numbers of at least `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {least}")
        return int(text)

    return read


def one_grid(text: str) -> tuple[int, int]:
    """Return the rows and columns of windows that a flag names, such as `2,3`."""
    match = re.fullmatch(r"\s*([1-9]\d*)\s*[,x]\s*([1-9]\d*)\s*", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is not rows,columns: two positive whole numbers such as 2,2 or 2,3")
    return int(match[1]), int(match[2])


def grid_set(text: str) -> str | list[list[int]]:
    """Return the grids that a flag names: `up-to-6` as it is, `1x2,2x1,2x2` as lists of rows and columns."""
    text = text.strip()
    if re.fullmatch(r"up-to-[1-9]\d*", text):
        return text
    if re.fullmatch(r"[1-9]\d*x[1-9]\d*(?:\s*,\s*[1-9]\d*x[1-9]\d*)*", text):
        return [list(map(int, grid.split("x"))) for grid in text.split(",")]
    raise argparse.ArgumentTypeError(
        f"{text} is no set of grids; write up-to-6 for all of at most six windows, or a list such as 1x2,2x1,2x2"
    )


def add_shape_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags that say which shapes of images a model is opened for."""
    parser.add_argument(
        "--grids",
        type=grid_set,
        metavar="SET",
        help="of which each image takes the best: up-to-6, or 1x2,2x1,2x2 (the checkpoint's own, if it has any)",
    )
    parser.add_argument("--fit", choices=FITS, help="of an image on its grid (the checkpoint's own)")


def run_program(program: Callable[[], int | None], stopped: str = "stopped") -> int:
    """Run a program and return its exit status; mistakes of the user become one sentence on standard error.

    Args:
        stopped: what to say after Ctrl-C.
    """
    print_any_name()
    try:
        return program() or 0
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED


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
