"""Which images a model was trained on, for the check that none of them is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monkey.data.check import holds_questions
from monkey.data.check_reading import OpenedFile, RowTask
from monkey.data.check_report import Finding
from monkey.data.mixture import record_sets
from monkey.data.rows import IndexedRows

_ROWS_A_STRETCH = 256


@dataclass
class TrainedImages:
    """`first_row` of each image's path, and the `faults` of rows, which may hide an image."""

    first_row: dict[str, str] = field(default_factory=dict)
    faults: list[Finding] = field(default_factory=list)


def trained_images(train: Sequence[str | Path], image_root: str | Path | None = None) -> TrainedImages:
    """The images of training files and mixtures: of conversations, or of questions such as few-shot examples.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: one that cannot be opened, or files that name no image, where comparing would find nothing.
    """
    found = TrainedImages()
    for one in record_sets([Path(path) for path in train], image_root):
        rows = IndexedRows(one.path)
        file = OpenedFile(rows, one.image_root, one.weight, False, holds_questions(rows), first=0)
        task = RowTask([file], None)
        for start in range(0, len(rows), _ROWS_A_STRETCH):
            result = task((0, start, min(start + _ROWS_A_STRETCH, len(rows))))
            found.faults += result.findings
            for row, _, paths in result.rows:
                for path in paths:
                    found.first_row.setdefault(path, rows.source(row))
    if not found.first_row:
        names = ", ".join(map(str, train))
        first = f" ({found.faults[0].sentence})" if found.faults else ""
        raise ValueError(f"--train {names}: no row names an image that is there, so there is none to compare{first}")
    return found
