"""Modules of the package `monkey` that need nothing of it, loaded by themselves.

Importing the package imports torch, which scoring, comparing and reporting do without.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(importlib.util.find_spec("monkey").origin).parent


def _loaded(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"eval.without_torch.{name}", _PACKAGE / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


command_line = _loaded("command_line")
file_locks = _loaded("file_locks")
html_page = _loaded("html_page")
