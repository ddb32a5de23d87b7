"""RapidOCR reads drawn pages: its own models, no network. Accuracy is per character, against what was drawn."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from PIL import Image

from monkey.data.documents.faces import FAMILIES
from monkey.data.documents.page import Page
from monkey.data.documents.sets import DOCUMENTS, Settings, draw
from monkey.describe.boxes import overlap
from monkey.describe.expert import Item
from monkey.describe.rapid_ocr import RapidReader, ReaderSettings
from monkey.describe.records import Line, Lines

pytest.importorskip("rapidocr", reason="rapidocr is not installed (pip install 'monkey[describe]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'monkey[describe]')")


@pytest.fixture(scope="module")
def reader() -> RapidReader:
    return RapidReader(ReaderSettings(threads=1))


def item(image: Image.Image) -> Item:
    return Item("0" * 64, Path("page.png"), "page.png", (), {}, image)


def drawn_lines(page: Page) -> list[Line]:
    return [Line(tuple(edge / page.side for edge in line.box), line.text, 1.0) for line in page.lines]


def characters(found: Lines, drawn: Sequence[Line]) -> tuple[int, int]:
    """Characters of what was drawn that were read at its place, in order; and all that were drawn."""
    right = 0
    for true in drawn:
        for read in found.lines:
            if overlap(read.box, true.box) > 0.1:
                right += sum(match.size for match in SequenceMatcher(None, read.text, true.text).get_matching_blocks())
                break
    return right, sum(len(line.text) for line in drawn)


def test_what_is_drawn_is_read_where_it_stands(reader, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("the reader asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    for family in FAMILIES[:4]:
        page = Page(random.Random(0), 224, family, False)
        for y, text in ((20, "HARVEST"), (80, "3.20"), (140, "Garden")):
            page.write(20, y, text, 30)
        (found,) = reader([item(page.image)])
        right, total = characters(found, drawn_lines(page))
        assert right == total, (family, found)
        assert all(0.85 < line.score <= 1 for line in found.lines)


def test_an_image_without_text_has_no_lines(reader):
    page = Page(random.Random(0), 224, FAMILIES[0], False)
    page.draw.ellipse((40, 40, 160, 160), fill=(200, 30, 30))
    assert reader([item(page.image)]) == [Lines(())]


@pytest.mark.slow
def test_character_accuracy_on_documents(reader, capsys):
    settings = Settings(5, 448, {"heldout": 20}, dict.fromkeys(DOCUMENTS, 1), damage=0.0)
    right = total = 0
    for number in range(20):
        page, image, *_ = draw(settings, "heldout", number)
        (found,) = reader([item(image)])
        counted = characters(found, drawn_lines(page))
        right, total = right + counted[0], total + counted[1]
    with capsys.disabled():
        print(f"\nRapidOCR reads {right} of {total} characters ({right / total:.1%}) on 20 documents of 448 pixels")
    assert total > 600
    assert right / total > 0.8
