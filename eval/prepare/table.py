"""The table of the tasks whose files can be made, one row a task, from releases.toml."""

from __future__ import annotations

import pkgutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.metrics import nearest
from eval.prepare.release import PreparedRow, Release


@dataclass(frozen=True)
class Preparer:
    """How the files of one task are made; releases.toml says what the fields are."""

    reader: str
    needs: str
    source: str
    terms: str
    version: int = 1
    statements: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def read(self, release: Release) -> Iterable[PreparedRow]:
        """Yield the questions of a release, and leave in it what is to be told of them."""
        return pkgutil.resolve_name(f"eval.prepare.{self.reader}")(release, **self.options)


with Path(__file__).with_name("releases.toml").open("rb") as _stream:
    PREPARERS: Mapping[str, Preparer] = {name: Preparer(**fields) for name, fields in tomllib.load(_stream).items()}


def preparer_named(name: str) -> Preparer:
    """Return the preparer of a task; ValueError offering the nearest names."""
    if name not in PREPARERS:
        raise ValueError(f"no preparer for {name!r}; {nearest(name, PREPARERS)}")
    return PREPARERS[name]
