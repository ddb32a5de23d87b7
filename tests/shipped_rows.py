"""Questions about pages that the small model which ships answers rightly, for tests of what asks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parent.parent / "data" / "pages"

RIGHT = "Grehum", "045 5749807", "Month", "Yiyex", "Gourt", "Inbox", "20:31", "08:57", "Messages", "Break"


def shipped_rows() -> list[dict[str, Any]]:
    """Ten rows of the held-out pages, each of another answer."""
    rows = [json.loads(line) for line in (PAGES / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    return [next(row for row in rows if row["answer"] == answer) for answer in RIGHT]
