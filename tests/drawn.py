"""Five documents that `monkey.data.documents` draws, for tests that want real images in a folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

from monkey.data.documents.sets import DOCUMENTS, Settings, write_set

COUNT = 5
_KEPT = tempfile.TemporaryDirectory(prefix="drawn-documents-")


def draw_documents(folder: Path, **changes) -> Path:
    """Draw documents into `folder` and return it; `heldout=5` and such are counts, the rest are settings."""
    counts = {split: changes.pop(split, 0) for split in ("train", "heldout", "known")}
    settings = {"seed": 0, "side": 224, "weights": dict.fromkeys(DOCUMENTS, 1), **changes}
    write_set(folder, Settings(counts=counts, **settings), workers=1)
    return folder


SAMPLES = draw_documents(Path(_KEPT.name) / "set", heldout=COUNT)
"""Read-only: tests that change it copy it. The images are `images/heldout/000000.jpg` to `000004.jpg`."""
