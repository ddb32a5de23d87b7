"""The check of training data names every fault by file and line, and says nothing of sound data."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from monkey.data.check import KINDS, DataFile, check_data, hash_bytes, read_images, read_rows
from monkey.data.dataset import run_in_order
from monkey.data.mixture import open_records, record_sets
from monkey.data.preview import Piece, pieces_of
from monkey.processing import MonkeyProcessor
from monkey.tokenization import QwenTokenizer
from scripts.check_data import main
from tests.small_processor import CHECKPOINT, small_config

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Processor files alone: eight tokens an image, 512 positions."""
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = MonkeyProcessor.from_config(small_config(), QwenTokenizer(CHECKPOINT / "qwen.tiktoken"))
    processor.save_pretrained(folder)
    return folder


def noise(path: Path, seed: int, size=(20, 16)) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images a, b, c and d of different pixels; b again as a BMP; half of a PNG; a text that calls itself PNG."""
    for seed, name in enumerate("abcd"):
        noise(tmp_path / f"{name}.png", seed)
    Image.open(tmp_path / "b.png").save(tmp_path / "b_again.bmp")
    whole = noise(tmp_path / "half.png", 9, (200, 200)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.png").write_text("<html>not found</html>")
    return tmp_path


def row(user="<img>a.png</img> What? Answer: ", answer="this", *more: str) -> dict:
    texts = [user, answer, *more]
    turns = [{"from": "assistant" if n % 2 else "user", "value": text} for n, text in enumerate(texts)]
    return {"conversations": turns}


def write(path: Path, rows: list) -> Path:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    is_list = path.suffix == ".json"
    path.write_text(f"[{','.join(lines)}]" if is_list else "\n".join(lines) + "\n", encoding="utf-8")
    return path


def question(image: str, number=0, **changes) -> dict:
    return {"image": image, "question": "What?", "answer": "this", "question_id": number, **changes}


SWAPPED = {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]}
LONG = "word " * 300

# Fault -> (row, kind, what the sentence says).
BROKEN = {
    "malformed": ('{"conversations": [}', "unreadable row", "malformed JSON at column 20"),
    "blank": ("", "unreadable row", "the line is blank"),
    "no object": ("7", "not of the schema", "expected an object with a key 'conversations', found a whole number"),
    "no value": (
        {"conversations": [{"from": "user"}, {"from": "gpt", "value": "x"}]},
        "not of the schema",
        "turn 0: the key 'value' is missing",
    ),
    "unclosed": (row("<img>a.png What?"), "not of the schema", "<img> at character 0 is not closed"),
    "image in the answer": (row("x", "<img>a.png</img>"), "not of the schema", "an answer holds <img>"),
    "surrogate": (row("\ud800"), "not of the schema", "half of a surrogate pair"),
    "order": (SWAPPED, "turns out of order", "turn 0: turns are out of order: expected one of the user"),
    "no answer": (row("x", "y", "z"), "turns out of order", "the last turn is the user's"),
    "empty answer": (row("What?", " "), "empty answer", "turn 1: the answer is empty"),
    "url": (row("<img>http://host/a.png</img> What?"), "refused image path", "http://host/a.png is a URL"),
    "outside": (row("<img>../a.png</img> What?"), "refused image path", "../a.png leads out of"),
    "missing": (row("<img>none.png</img> What?"), "missing image", "no image none.png"),
    "cut off": (row("<img>half.png</img> What?"), "broken image", "half.png is damaged or cut off"),
    "web page": (row("<img>page.png</img> What?"), "broken image", "page.png is a web page"),
    "long": (row(f"<img>a.png</img> {LONG}Answer: "), "too long", "over the 512 allowed (the model's max_positions)"),
    "blanks": (row(" " * 100_001 + "x"), "cannot be encoded", "100,001 whitespace characters in a row"),
    "duplicate": (row("<img>b_again.bmp</img> B? Answer: ", "b"), "duplicate", "has the same turns and images as"),
    "leak": (row("<img>d.png</img> D? Answer: ", "d"), "image also in evaluation", "d.png has the bytes of"),
}
SOUND = [
    row(),
    row("<img>b.png</img> B? Answer: ", "b"),
    row("<img>a.png</img> <img>c.png</img> Same?", "no", " Why?", "so"),
]


@pytest.fixture
def broken(folder) -> Path:
    """Three sound rows, then one of each fault: fault number n stands in line n + 4."""
    write(folder / "heldout.jsonl", [question("d.png")])
    return write(folder / "train.jsonl", SOUND + [fault for fault, _, _ in BROKEN.values()])


def check(path: Path, checkpoint: Path, **settings):
    heldout = path.parent / "heldout.jsonl"
    return check_data(path, checkpoint=str(checkpoint), evaluation=[heldout] if heldout.exists() else [], **settings)


def test_every_broken_sample_is_named_once_by_file_and_line(broken, checkpoint):
    report = check(broken, checkpoint)
    problems = [finding for finding in report.findings if finding.kind in KINDS]
    named = {finding.source: finding for finding in problems}
    assert len(problems) == len(named) == len(BROKEN)
    for line, (_, kind, message) in enumerate(BROKEN.values(), start=4):
        finding = named[f"{broken}:{line}"]
        assert finding.kind == kind
        assert finding.sentence.startswith(f"{broken}:{line}")
        assert message in finding.sentence
    assert not report.is_clean
    assert report.rows == len(SOUND) + len(BROKEN) + 1


def test_processes_report_the_same_as_one(broken, checkpoint):
    assert check(broken, checkpoint, workers=2, preview=2) == check(broken, checkpoint, workers=0, preview=2)


def test_a_process_that_dies_is_an_error_and_not_a_wait():
    with pytest.raises(ChildProcessError, match="run again with fewer --workers"):
        list(run_in_order(os._exit, [3], workers=1))


def test_sound_data_is_clean(folder, checkpoint):
    write(folder / "heldout.jsonl", [question("d.png")])
    for name in ("train.json", "train.jsonl"):
        report = check(write(folder / name, SOUND), checkpoint)
        assert report.is_clean
        assert report.findings == []
        assert report.skipped == {}
        assert (report.rows, report.images) == (4, 4)


def test_all_faults_of_a_row_are_told_at_once(folder):
    bad = row("<img>none.png</img> <img>half.png</img> What?", " ", " <img>nothing.png</img> And?", "yes")
    *faults, broken_image = check_data(write(folder / "train.json", [bad])).findings
    found = [(finding.kind, finding.sentence.split(", ")[1].split(":")[0]) for finding in faults]
    assert sorted(found) == [("empty answer", "turn 1"), ("missing image", "turn 0"), ("missing image", "turn 2")]
    assert broken_image.kind == "broken image"


def test_a_broken_image_is_named_by_every_row_that_shows_it(folder):
    path = write(folder / "train.json", [row(f"<img>half.png</img> {n}? Answer: ") for n in range(3)])
    report = check_data(path)
    assert [finding.source for finding in report.of_kind("broken image")] == [f"{path}[{n}]" for n in range(3)]
    assert report.summary() == [{"kind": "broken image", "problem": True, "rows": 3, "first": f"{path}[0]"}]


def test_a_list_that_is_no_json_is_one_problem_and_other_files_are_read(folder):
    (folder / "bad.json").write_text('[\n{"a": 1},\n{"b" 2}\n]')
    other = write(folder / "other.json", [row("", "x")])
    report = check_data([folder / "bad.json", other])
    assert [(finding.kind, finding.source) for finding in report.findings] == [
        ("unreadable row", f"{folder / 'bad.json'}:3"),
        ("not of the schema", f"{other}[0]"),
    ]


def test_a_row_keeps_its_number_and_the_file_is_kept_once(broken):
    (one,) = record_sets(broken)
    rows = list(read_rows(DataFile.open(one), workers=0))
    assert len({id(row.rows) for row in rows}) == 1
    assert [row.source for row in rows] == [rows[0].rows.source(index) for index in range(len(rows))]
    assert not any(str(broken) in part for row in rows for part in row if isinstance(part, str))


def test_a_file_is_digested_without_being_read_whole(folder, monkeypatch):
    path = str(folder / "a.png")
    expected = hash_bytes(Path(path).read_bytes())
    monkeypatch.setattr(Path, "read_bytes", lambda self: 1 / 0)
    read = read_images([path], {"max_bytes": 10}, workers=0)[path]
    assert read.file == expected
    assert read.fault is not None


class TestLengths:
    def test_what_a_cut_would_take_is_told_turn_by_turn(self, folder, checkpoint):
        path = write(folder / "train.json", [row("<img>a.png</img> What?", "abc", " And?", "xyz")])
        tokenizer = MonkeyProcessor.from_pretrained(checkpoint).tokenizer
        lengths = [10 + len(tokenizer.encode_text(" What?"))]
        lengths += [len(tokenizer.encode_text(text)) + end for text, end in (("abc", 1), (" And?", 0), ("xyz", 1))]
        total = sum(lengths)
        report = check_data(path, checkpoint=str(checkpoint), max_length=total)
        assert (report.findings, report.longest) == ([], (total, f"{path}[0]"))
        limit = total - lengths[3] - 1
        (finding,) = check_data(path, checkpoint=str(checkpoint), max_length=limit).findings
        assert finding.sentence == (
            f"{path}[0]: {total} tokens, {total - limit} over the {limit} allowed (--max-length); a cut would lose "
            f"1 of {lengths[2]} tokens of the user's turn 2, '?'; {lengths[3]} of {lengths[3]} tokens of the answer in "
            "turn 3, 'xyz<|endoftext|>'"
        )

    def test_image_tokens_are_never_what_is_cut(self, folder, checkpoint):
        path = write(folder / "train.json", [row("a b c d e f g h <img>a.png</img>", "x")])
        (finding,) = check_data(path, checkpoint=str(checkpoint), max_length=11).findings
        assert "<img>" not in finding.sentence
        assert "of the answer in turn 1, 'x<|endoftext|>'" in finding.sentence
        (finding,) = check_data(path, checkpoint=str(checkpoint), max_length=9).findings
        assert "its images alone are 10 tokens, more than the 9 it may have" in finding.sentence

    def test_without_a_checkpoint_it_is_said_that_they_were_not_checked(self, folder, capsys):
        assert main([str(write(folder / "train.json", [row(LONG)]))]) == 0
        printed = capsys.readouterr().out
        assert "not checked: lengths (no checkpoint was given, whose tokenizer would count)" in printed
        assert "not checked: leakage (no evaluation file was given)" in printed


class TestTwice:
    def test_the_earliest_is_the_original_across_files(self, folder):
        first = write(folder / "first.json", [row(), row("other"), row()])
        second = write(folder / "second.jsonl", [row(), row("<img>a.png</img> What? Answer: ", "that")])
        found = check_data([first, second]).of_kind("duplicate")
        assert [finding.sentence for finding in found] == [
            f"{source}: has the same turns and images as {first}[0]" for source in (f"{first}[2]", f"{second}:1")
        ]

    def test_images_count_by_what_they_show_and_in_their_order(self, folder):
        shutil.copy(folder / "a.png", folder / "copy.png")
        two = "<img>{}</img> <img>{}</img> Same?"
        names = (("a.png", "b.png"), ("b.png", "a.png"), ("a.png", "c.png"), ("copy.png", "b_again.bmp"))
        report = check_data(write(folder / "train.json", [row(two.format(*pair)) for pair in names]))
        assert [finding.source[-3:] for finding in report.of_kind("duplicate")] == ["[3]"]
        assert {finding.sentence for finding in report.of_kind("image under several names")} == {
            f"{folder / 'copy.png'}: shows the same pixels as {folder / 'a.png'}",
            f"{folder / 'b_again.bmp'}: shows the same pixels as {folder / 'b.png'}",
        }

    def test_two_ways_to_write_a_path_are_one_name(self, folder):
        report = check_data(write(folder / "train.json", [row("<img>b.png</img> B?"), row("<img>./b.png</img> C?")]))
        assert report.findings == []


class TestLeakage:
    @pytest.mark.parametrize("form", ["questions", "conversations"])
    @pytest.mark.parametrize(
        ("trained", "held_out", "likeness"),
        [("b.png", "b_again.bmp", "shows the pixels of"), ("half.png", "half.png", "has the bytes of")],
    )
    def test_the_same_pixels_or_bytes_in_another_file_are_found(self, folder, form, trained, held_out, likeness):
        """`b_again.bmp` has the pixels of `b.png` and no byte of its compressed data; `half.png` has no pixels."""
        rows = [question(held_out)] if form == "questions" else [row(f"<img>{held_out}</img> Held out?")]
        train = write(folder / "train.json", [row(), row(f"<img>{trained}</img> B?")])
        heldout = write(folder / "heldout.jsonl", rows)
        (finding,) = check_data(train, evaluation=[heldout]).of_kind("image also in evaluation")
        assert finding.sentence == (f"{train}[1]: {folder / trained} {likeness} {folder / held_out} in {heldout}:1")

    def test_pictures_turned_by_exif_are_compared_as_the_model_sees_them(self, folder):
        image = Image.open(folder / "a.png")
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(folder / "turned.png", exif=exif)
        image.transpose(Image.Transpose.ROTATE_270).save(folder / "upright.png")
        train = write(folder / "train.json", [row("<img>turned.png</img> B?")])
        heldout = write(folder / "heldout.jsonl", [question("upright.png")])
        assert len(check_data(train, evaluation=[heldout]).of_kind("image also in evaluation")) == 1

    def test_faults_of_the_evaluation_file_are_told_too(self, folder):
        train = write(folder / "train.json", [row()])
        rows = [question("b.png", 1), question("none.png", 2), question("c.png", "1"), question("b.png", 3, answer="")]
        heldout = write(folder / "heldout.jsonl", rows)
        found = check_data(train, evaluation=[heldout]).findings
        assert {(finding.kind, finding.source) for finding in found} == {
            ("missing image", f"{heldout}:2"),
            ("question id twice", f"{heldout}:3"),
            ("empty answer", f"{heldout}:4"),
        }


class TestSkipping:
    def test_a_check_that_is_left_out_finds_nothing(self, broken, checkpoint):
        kinds = {
            "images": {"broken image", "image also in evaluation", "duplicate"},  # a duplicate by pixels needs them
            "lengths": {"too long", "cannot be encoded"},
            "duplicates": {"duplicate"},
            "leakage": {"image also in evaluation"},
        }
        every = {finding.kind for finding in check(broken, checkpoint).findings}
        for name, without in kinds.items():
            report = check(broken, checkpoint, skip=[name])
            found = {finding.kind for finding in report.findings}
            assert every - found - {"image under several names"} == without
            assert name in report.skipped


class TestProgram:
    def test_a_report_for_people_and_one_for_programs(self, broken, checkpoint, tmp_path, capsys):
        output = tmp_path / "report.json"
        words = [str(broken), "--checkpoint", str(checkpoint), "--eval", str(broken.parent / "heldout.jsonl")]
        assert main([*words, "--json", str(output), "--show", "1"]) == 1
        printed = capsys.readouterr().out
        assert re.search(rf"^turns out of order +2  {re.escape(str(broken))}:11$", printed, flags=re.MULTILINE)
        assert "\nbroken image: and 1 more\n" in printed
        content = json.loads(output.read_text(encoding="utf-8"))
        assert content["clean"] is False
        assert len(content["problems"]) == len(BROKEN)
        assert content["problems"][0].keys() == {"kind", "source", "sentence"}
        rows = len(SOUND) + len(BROKEN)
        assert content["files"][0] == {"path": str(broken), "role": "train", "rows": rows, "weight": 1}
        assert list(tmp_path.glob(".*partial")) == []

    def test_ctrl_c_leaves_nothing_behind(self, folder, monkeypatch, capsys):
        def interrupted(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr("monkey.data.check.read_images", interrupted)
        path = write(folder / "train.json", [row()])
        before = sorted(os.listdir(folder))
        assert main([str(path), "--json", str(folder / "report.json")]) == 130
        assert capsys.readouterr().err.strip() == "stopped; nothing was written"
        assert sorted(os.listdir(folder)) == before

    def test_a_mixture_is_checked_as_its_files(self, folder, capsys):
        write(folder / "train.json", [row()])
        path = folder / "mixture.yaml"
        path.write_text("sets:\n  - {name: a, path: train.json, weight: 2, count: 3}\n")
        assert main([str(path)]) == 1
        printed = capsys.readouterr().out
        assert "wrong row count: " in printed
        assert "1 rows, and the mixture says that 3 were measured for a" in printed
        assert "1 rows, train, weight 2" in printed

    WRONG: ClassVar = {
        "no file": ["none.json"],
        "another ending": ["a.png"],
        "no root": ["train.json", "--image-root", "nowhere"],
        "no evaluation file": ["train.json", "--eval", "none.jsonl"],
        "no checkpoint": ["train.json", "--checkpoint", "./nowhere"],
        "no folder for the report": ["train.json", "--json", "nowhere/report.json"],
        "twice": ["train.json", "train.json"],
        "mixture without files": [str(REPOSITORY / "configs" / "data" / "paper_mixture.yaml")],
    }

    @pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
    def test_what_cannot_be_checked_is_one_sentence_and_status_2(self, folder, monkeypatch, capsys, words):
        monkeypatch.chdir(folder)
        write(folder / "train.json", [row()])
        before = sorted(os.listdir(folder))
        assert main(words) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        assert sorted(os.listdir(folder)) == before

    @pytest.mark.parametrize(
        "words", [[], ["--max-length", "0"], ["--workers", "-1"], ["--skip", "nothing"], ["--preview", "x"], ["--what"]]
    )
    def test_wrong_flags_are_one_line_and_status_2(self, capsys, words):
        with pytest.raises(SystemExit) as caught:
            main([*words[1:1], *(["train.json"] if words else []), *words])
        assert caught.value.code == 2
        assert re.fullmatch(r"error: .*; every flag: --help\n", capsys.readouterr().err)


class TestPreview:
    def test_supervised_is_exactly_each_answer_and_its_end(self, folder, checkpoint):
        (record,) = open_records(write(folder / "train.json", [SOUND[2]]))
        expected = [
            Piece("<img>×8", "image"),
            Piece(" ", "prompt"),
            Piece("<img>×8", "image"),
            Piece(" Same?", "prompt"),
            Piece("no<|endoftext|>", "answer"),
            Piece(" Why?", "prompt"),
            Piece("so<|endoftext|>", "answer"),
        ]
        assert pieces_of(record, MonkeyProcessor.from_pretrained(checkpoint)) == expected
        # Without a tokenizer the number of image tokens is not known; all else is the same.
        assert pieces_of(record, None) == [piece._replace(text=piece.text.replace("×8", "")) for piece in expected]

    def test_colour_on_a_terminal_and_marks_elsewhere(self, folder, capsys):
        path = write(folder / "train.json", [row("<img>a.png</img> What?\nAnswer: ", "a\x1b[2Jb")])
        assert main([str(path), "--preview", "1"]) == 0
        plain = capsys.readouterr().out
        assert f"{path}[0]\n  <img> What?↵\n  Answer: «a\\x1b[2Jb<|endoftext|>»\n" in plain
        assert "\x1b" not in plain
        assert main([str(path), "--preview", "1", "--color", "always"]) == 0
        assert "\x1b[1;32ma\\x1b[2Jb<|endoftext|>\x1b[0m" in capsys.readouterr().out

    def test_previews_are_spread_over_the_sound_rows(self, folder):
        rows = [row(f"{n}?", " " if n in (0, 5) else "x") for n in range(10)]
        report = check_data(write(folder / "train.json", rows), preview=4)
        assert [source[-3:] for source, _ in report.previews] == ["[1]", "[3]", "[6]", "[8]"]
        assert len(check_data(folder / "train.json", preview=100).previews) == 8
