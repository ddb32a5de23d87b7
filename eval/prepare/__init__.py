"""From the official release of a data set to the files that its task reads: `python -m eval.prepare TASK --src DIR`.

`prepare` does the work, `PREPARERS` is the table of what is known, one row a task; `photographs`, `scene_text`,
`document_pages`, `diagrams` and `suite_releases` read the releases. Nothing is downloaded.
"""

from __future__ import annotations

from eval.prepare.table import PREPARERS, preparer_named
from eval.prepare.write import prepare

__all__ = ["PREPARERS", "prepare", "preparer_named"]
