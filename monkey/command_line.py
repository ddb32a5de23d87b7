"""What command lines share."""

from __future__ import annotations

import argparse
from typing import NoReturn

MISTAKE, SOME_FAILED, INTERRUPTED = 2, 1, 130
"""Exit statuses: what the user can mend, a part that failed, and Ctrl-C."""


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one sentence, where argparse prints every flag before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"error: {message.removeprefix('argument ')}; every flag: --help\n")
