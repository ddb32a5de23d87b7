"""`locked` and `unlock` of monkey/file_locks.py, loaded by themselves.

Importing the package they lie in imports torch, which scoring, comparing and reporting do without.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

_PACKAGE = Path(importlib.util.find_spec("monkey").origin).parent
_SPECIFICATION = importlib.util.spec_from_file_location("eval.file_locks_of_monkey", _PACKAGE / "file_locks.py")
_MODULE = importlib.util.module_from_spec(_SPECIFICATION)
_SPECIFICATION.loader.exec_module(_MODULE)

locked, unlock = _MODULE.locked, _MODULE.unlock
