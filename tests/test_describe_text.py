"""RapidOCR reads rendered pictures: its own models, no network. Accuracy is per character, against what was drawn."""

from __future__ import annotations

import socket
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from PIL import Image

from monkey.data.render.__main__ import main as render
from monkey.describe.boxes import overlap
from monkey.describe.expert import Item
from monkey.describe.rapid_ocr import RapidReader, ReaderSettings
from monkey.describe.records import FinishedRun, Lines
from monkey.describe.rules import RuleText
from tests.test_describe_run import CONFIGS, SAMPLES, describe

pytest.importorskip("rapidocr", reason="rapidocr is not installed (pip install 'monkey[describe]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'monkey[describe]')")


@pytest.fixture(scope="module")
def reader() -> RapidReader:
    return RapidReader(ReaderSettings(threads=1))


def item(path: Path) -> Item:
    return Item("0" * 64, path, path.name, (), {}, Image.open(path).convert("RGB"))


def characters(found: Lines, drawn: Lines) -> tuple[int, int]:
    """Characters of what was drawn that were read at its place, in order; and all that were drawn."""
    right = 0
    for true in drawn.lines:
        read = max((line for line in found.lines), key=lambda line: overlap(line.box, true.box), default=None)
        if read is not None and overlap(read.box, true.box) > 0.1:
            right += sum(match.size for match in SequenceMatcher(None, read.text, true.text).get_matching_blocks())
    return right, sum(len(line.text) for line in drawn.lines)


def test_what_is_drawn_is_read_where_it_stands(reader, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("the reader asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    for path in sorted(SAMPLES.glob("images/heldout/*/*.png")):
        (found,), (drawn,) = reader([item(path)]), RuleText(RuleText.Settings())([item(path)])
        right, total = characters(found, drawn)
        assert right == total, (path, found)
        assert all(0.85 < line.score <= 1 for line in found.lines)


def test_a_picture_without_text_has_no_lines(reader):
    assert reader([item(SAMPLES / "images/heldout/shapes/000000.png")]) == [Lines(())]


@pytest.mark.slow
def test_character_accuracy_on_hard_pages(reader, tmp_path, capsys):
    words = f"--output {tmp_path / 'set'} --train 0 --heldout 20 --level hard --image-size 448 --workers 1 --seed 5"
    assert render([*words.split(), "--tasks", "signs", "receipts", "tables", "bars"]) == 0
    right = total = 0
    for path in sorted((tmp_path / "set").glob("images/heldout/*/*.png")):
        (found,), (drawn,) = reader([item(path)]), RuleText(RuleText.Settings())([item(path)])
        counted = characters(found, drawn)
        right, total = right + counted[0], total + counted[1]
    with capsys.disabled():
        share = f"{right} of {total} characters ({right / total:.1%})"
        print(f"\nRapidOCR reads {share} on 20 hard pages of 448 pixels")
    assert total > 300
    assert right / total > 0.95


def test_the_offline_configuration_reads_for_real(tmp_path):
    assert describe(SAMPLES / "images", tmp_path / "run", CONFIGS / "offline.yaml") == 0
    run = FinishedRun(tmp_path / "run")
    texts = {picture["images"].file.split("/")[1]: picture["summary"].text for picture in run.pictures()}
    assert "“OPTICIAN”" in texts["signs"]
    assert "“TAILOR”" in texts["receipts"]
    assert run.manifest["versions"]["rapidocr"]
    assert run.manifest["counts"]["described"] == 5
