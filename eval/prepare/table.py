"""The preparers, one a task: what reads the release, what the user has to have, and under whose terms.

What the user must know before stands in releases.toml; a new data set is one more table there and a function here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.metrics import nearest
from eval.prepare import diagrams, document_pages, photographs, scene_text
from eval.prepare.release import PreparedRow, Release
from eval.tasks import TASKS, Task

Reader = Callable[[Release], Iterable[PreparedRow]]
"""Yields the questions of a release, and leaves in it what is to be told of them."""


@dataclass(frozen=True)
class Preparer:
    """How the files of one task are made; the fields beside `read` are described in releases.toml."""

    read: Reader
    needs: str
    source: str
    terms: str
    version: int = 1
    statements: tuple[str, ...] = ()


_READERS: Mapping[str, Reader] = {
    "estvqa_test": scene_text.estvqa,
    "estvqa_official": scene_text.estvqa_official,
    "docvqa_test": document_pages.docvqa,
    "chartqa": diagrams.chartqa,
    "infovqa_test": document_pages.infovqa,
    "vizwiz_val": photographs.vizwiz,
    "deepform": document_pages.deepform,
    "KLC": document_pages.kleister_charity,
    "WTQ": diagrams.wtq,
    "gqa_testdev": photographs.gqa,
    "okvqa_val": photographs.okvqa,
    "textvqa_val": photographs.textvqa,
    "stvqa_test": scene_text.stvqa,
    "ai2diagram_test": diagrams.ai2d,
    "vqav2_val": photographs.vqav2,
    "flickr30k": photographs.flickr30k,
    "textcaps_val": photographs.textcaps,
    "scienceqa_img": diagrams.scienceqa,
    "tabfact": diagrams.tabfact,
    "visualmrc": document_pages.visualmrc,
    "ocrvqa": scene_text.ocrvqa,
    "ocrbench": scene_text.ocrbench,
}

with Path(__file__).with_name("releases.toml").open("rb") as _stream:
    PREPARERS: Mapping[str, Preparer] = {
        name: Preparer(_READERS[name], **fields) for name, fields in tomllib.load(_stream).items()
    }


def preparer_named(name: str) -> Preparer:
    """Return the preparer of a task; ValueError offering the nearest names."""
    if name not in PREPARERS:
        raise ValueError(f"no preparer for {name!r}; {nearest(name, PREPARERS)}")
    return PREPARERS[name]


def target_of(name: str) -> Task:
    """Return the task whose files a preparer makes."""
    preparer_named(name)
    return TASKS[name]
