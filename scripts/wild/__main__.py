"""Draw the held-out images of data/wild with Chromium and TeX, and write what is asked about them.

    python -m scripts.wild --output outputs/wild

The set in data/wild was drawn once, before anything was trained for it, and stays as it is; another version of an engine
or a typeface draws other pixels. Needs playwright, Chromium, pdflatex, poppler and the typefaces that the manifest names:

    apt-get install --no-install-recommends chromium texlive-latex-recommended texlive-pictures \
        texlive-fonts-recommended tex-gyre poppler-utils fonts-liberation fonts-open-sans fonts-inconsolata \
        fonts-cantarell fonts-courier-prime fonts-ebgaramond fonts-cabin fonts-quicksand fonts-vollkorn \
        fonts-comic-neue fonts-go fonts-b612 fonts-yanone-kaffeesatz fonts-play
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from monkey.cli import EXIT_USAGE, ArgumentParser
from scripts.wild.writing import SEED, write_set


def main(words: list[str] | None = None) -> int:
    """Runs the command; 2 on what the user can mend."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--seed", type=int, default=SEED, help="of contents and scans (%(default)s)")
    parser.add_argument("--only", default="", help="draw only sheets whose name holds this, to look at them")
    options = parser.parse_args(words)
    try:
        print(write_set(options.output, options.seed, options.only))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main())
