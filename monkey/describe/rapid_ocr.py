"""Lines of text with boxes by RapidOCR: PP-OCR's models, which come with the package, on onnxruntime. Needs no network.

The paper reads with PaddleOCR; these are its models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from monkey.describe.boxes import as_shares
from monkey.describe.checks import one_line
from monkey.describe.expert import Expert, ExpertSettings, Failure, Item, how
from monkey.describe.records import Line, Lines, Result


@dataclass(frozen=True)
class ReaderSettings(ExpertSettings):
    """`threads` of onnxruntime; 0 leaves the number to it."""

    threads: int = how(0)

    def check(self) -> None:
        super().check()
        if self.threads < 0:
            raise ValueError(f"threads is {self.threads}, and 0 or more is needed")


class RapidReader(Expert):
    """Lines of text, in reading order."""

    Settings = ReaderSettings

    def __init__(self, settings: ReaderSettings):
        super().__init__(settings)
        from rapidocr import RapidOCR

        threads = settings.threads or -1
        self._read = RapidOCR(
            params={
                "Global.log_level": "error",
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": threads,
            }
        )

    @classmethod
    def identity(cls, settings: ReaderSettings) -> Mapping[str, Any]:
        try:
            return {package: metadata.version(package) for package in ("rapidocr", "onnxruntime")}
        except metadata.PackageNotFoundError as error:
            raise ValueError(
                f"reading text with rapidocr needs the package {error.name}: pip install 'monkey[describe]', or choose "
                "another expert"
            ) from error

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [self._lines(item) for item in items]

    def _lines(self, item: Item) -> Lines:
        width, height = item.picture.size
        # Colours in OpenCV's order, as the models were trained.
        found = self._read(np.ascontiguousarray(np.asarray(item.picture)[:, :, ::-1]))
        if found.boxes is None:
            return Lines(())
        lines = []
        for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
            (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
            lines.append(Line(as_shares((left, top, right, bottom), width, height), one_line(text), round(score, 4)))
        return Lines(tuple(lines))
