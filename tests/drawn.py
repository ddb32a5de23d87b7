"""Five pages that `monkey.data.pages` draws, for tests that want real images in a folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("typst", reason="pages are set by typst (requirements.txt)")
pytest.importorskip("faker", reason="words of pages are Faker's (requirements.txt)")

from monkey.data.pages.drawing import Limits
from monkey.data.pages.page_sets import Settings, write_set

COUNT = 5
KINDS = ("receipt", "table", "label", "menu", "card")
_KEPT = tempfile.TemporaryDirectory(prefix="drawn-pages-")


def draw_pages(folder: Path, **counts: int) -> Path:
    """Draw small pages into `folder` and return it; `heldout=5` and such are how many."""
    counts = dict.fromkeys(("train", "heldout", "known"), 0) | counts
    write_set(folder, Settings(0, counts, dict.fromkeys(KINDS, 1), 6, Limits(112, 4)), workers=1)
    return folder


SAMPLES = draw_pages(Path(_KEPT.name) / "set", heldout=COUNT)
"""Read-only: tests that change it copy it. The images are `images/heldout/000000.jpg` to `000004.jpg`."""
