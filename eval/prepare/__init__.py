"""From the official release of a data set to the files that its task reads: `python -m eval.prepare TASK --src DIR`.

`prepare` does the work, `PREPARERS` is the table of what is known, one row a task, and a module of this package reads
the releases of one family. Nothing is downloaded.
"""

from __future__ import annotations

from eval.prepare.manifest import prepare
from eval.prepare.table import PREPARERS, preparer_named

__all__ = ["PREPARERS", "prepare", "preparer_named"]
