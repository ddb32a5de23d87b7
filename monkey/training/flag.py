"""How a flag is declared."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def flag(default: Any, description: str) -> Any:
    """A dataclass field whose description `--help` prints; a list is copied for each use."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": description})
    return field(default=default, metadata={"help": description})
