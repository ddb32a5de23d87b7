"""Rows of large files are found by their bytes, in little memory; the files that they name are found or refused."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import tracemalloc
from pathlib import Path

import pytest

from monkey.data import rows as rows_module
from monkey.data.rows import ImagePaths, IndexedRows, MalformedRows

ROWS = [
    {"text": 'quotes " and \\ and ] } , [ {', "more": [1, [2, {"a": []}]]},
    "é € 😀 \u2028 \u0085 and a bare ]",
    -12.5e10,
    123456,
    [],
    {},
    None,
    True,
    float("inf"),
    {"line\nbreak": "\x7f \\u0041"},
]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_both(folder: Path, rows: list, **options) -> tuple[Path, Path]:
    return (
        write(folder, "rows.json", json.dumps(rows, **options)),
        write(folder, "rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)),
    )


@pytest.mark.parametrize("size", [1, 19, 2**22])
@pytest.mark.parametrize(
    "options", [{}, {"indent": 1}, {"ensure_ascii": False, "separators": (" ,\r\n", ":")}], ids=str
)
def test_rows_are_the_same_wherever_a_window_ends(tmp_path, monkeypatch, size, options):
    for name in ("LINES_BLOCK", "VALUE_WINDOW"):
        monkeypatch.setattr(rows_module, name, size)
    for path in write_both(tmp_path, ROWS, **options):
        assert [row for _, row in IndexedRows(path)] == ROWS


def test_any_row_by_its_number_with_its_source(tmp_path):
    for path, first, last in zip(write_both(tmp_path, ROWS), ("[0]", ":1"), ("[9]", ":10"), strict=True):
        rows = IndexedRows(path)
        assert len(rows) == len(ROWS)
        assert rows[0] == (f"{path}{first}", ROWS[0])
        assert rows[-1] == rows[9] == (f"{path}{last}", ROWS[9])
        assert rows.source(-1) == f"{path}{last}"
        assert list(pickle.loads(pickle.dumps(rows))) == list(rows)
        for index in (10, -11):
            with pytest.raises(IndexError, match=f"no row {index}; there are 10"):
                rows[index]


def test_a_place_in_one_long_line_is_counted_without_holding_the_line(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "LINES_BLOCK", 2**16)
    path = write(tmp_path, "rows.json", "[" + '"é",' + " " * 2**22 + "x]")
    tracemalloc.start()
    with pytest.raises(MalformedRows, match=rf":1: malformed JSON at column {2**22 + 6}: "):
        IndexedRows(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path):
    for path in write_both(tmp_path, ROWS):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert [row for _, row in IndexedRows(path)] == ROWS


def _outcome(path: Path, text: str):
    """Rows, or the line of the first fault, of the whole text at once and of the reader."""
    try:
        whole = json.loads(text)
        whole = whole if isinstance(whole, list) and whole else "refused"
    except json.JSONDecodeError as error:
        whole = f"{path}:{error.lineno}: malformed JSON at column {error.colno}: {error.msg}"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        indexed = [row for _, row in IndexedRows(path)]
    except MalformedRows as error:
        indexed = str(error)
    return whole, indexed


def test_a_list_is_refused_exactly_where_the_json_module_refuses_it(tmp_path, monkeypatch):
    """One character of a list changed or removed, 300 times."""
    monkeypatch.setattr(rows_module, "VALUE_WINDOW", 5)
    draw = random.Random(5)
    valid = json.dumps(ROWS, indent=1, ensure_ascii=False)
    refused = 0
    for _ in range(300):
        position = draw.randrange(1, len(valid))
        replacement = draw.choice(["", *'{}[],:"\\ \n0e-é', "\x01"])
        whole, indexed = _outcome(tmp_path / "rows.json", valid[:position] + replacement + valid[position + 1 :])
        if isinstance(whole, str):
            refused += 1
            assert isinstance(indexed, str)
            if "malformed" in whole and "malformed" in indexed:
                # Outside of a value the words may differ ("Expecting value", "Expecting ',' delimiter"), not the line.
                assert indexed.split(": ")[0] == whole.split(": ")[0]
        else:
            assert indexed == whole
    assert refused > 100


FAULTS = {
    "nothing": ("", ": is empty"),
    "no rows": ("[]", ": holds no records"),
    "inside a row": ('[\n{"a": 1},\n{"é" 2}\n]', ":3: malformed JSON at column 6: Expecting ':' delimiter"),
    "no comma": ("[1,\n 2 3]", ":2: malformed JSON at column 4: Expecting ',' delimiter"),
    "comma at the end": ("[1,\n]", ":2: malformed JSON at column 1: Expecting value"),
    "cut off": ('[{"a": 1},\n{"a": ', ":2: malformed JSON at column 7: Expecting value"),
    "cut off after a row": ('[{"a": 1}', ":1: malformed JSON at column 10: Expecting ',' delimiter"),
    "cut off in a text": ('[\n"abc', ":2: malformed JSON at column 1: Unterminated string"),
    "more after the list": ("[1]\n[2]", ":2: malformed JSON at column 1: Extra data"),
    "one a line": (
        '{"a": 1}\n{"a": 2}\n',
        ": must hold a list of records; for one record a line use the ending .jsonl",
    ),
    "utf-16": ("[1]".encode("utf-16"), ":1: not UTF-8 text (byte 0xff)"),
    "endless number": ("[1,\n" + "1" * 5000 + "]", ":2: malformed JSON at column 1: Exceeds the limit"),
    "nested too deep": (
        "[\n" + "[" * 100_000 + "]" * 100_000 + "]",
        ":2: malformed JSON at column 1: ",
    ),
}


@pytest.mark.parametrize(("content", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_a_list_is_named_when_it_is_opened(tmp_path, content, message):
    # Another encoding than UTF-8 has a mark of its own.
    for mark in (b"", b"\xef\xbb\xbf")[: 2 if isinstance(content, str) else 1]:
        path = write(tmp_path, "rows.json", mark + (content.encode() if isinstance(content, str) else content))
        with pytest.raises(MalformedRows) as caught:
            IndexedRows(path)
        assert str(caught.value).startswith(f"{path}{message}")


def test_what_is_no_file_of_rows_is_refused(tmp_path):
    (tmp_path / "folder.json").mkdir()
    write(tmp_path, "blank.jsonl", "\n \n")
    write(tmp_path, "train.txt", "[]")
    for name, error, message in (
        ("none.json", FileNotFoundError, "no such file"),
        ("folder.json", ValueError, "is a folder"),
        ("blank.jsonl", MalformedRows, "is empty"),
        ("train.txt", ValueError, "expected a file that ends in .json"),
    ):
        with pytest.raises(error, match=message):
            IndexedRows(tmp_path / name)


def test_a_bad_line_leaves_the_others_readable(tmp_path):
    path = write(tmp_path, "rows.jsonl", b'{"a": 1}\n\n{"b" 2}\n"caf\xe9"\n{"c": 3}\n\n')
    rows = IndexedRows(path)
    assert len(rows) == 5
    assert (rows[0][1], rows[4][1]) == ({"a": 1}, {"c": 3})
    for index, message in (
        (1, ":2: the line is blank; remove it"),
        (2, ":3: malformed JSON at column 6: Expecting ':' delimiter"),
        (3, ":4: not UTF-8 text (byte 0xe9); save the file as UTF-8"),
    ):
        with pytest.raises(MalformedRows) as caught:
            rows[index]
        assert str(caught.value) == f"{path}{message}"


def test_bytes_that_are_no_utf8_are_named_by_their_line_in_a_list(tmp_path):
    rows = IndexedRows(write(tmp_path, "rows.json", b'[\n"fine",\n{"a":\n"caf\xe9"}]'))
    assert rows[0][1] == "fine"
    with pytest.raises(MalformedRows, match=r"rows\.json:4: not UTF-8 text \(byte 0xe9\)"):
        rows[1]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_the_text_is_never_in_memory(tmp_path, monkeypatch, name):
    """4 MB of rows of 2 KiB, read in blocks of 64 KiB: neither scanning nor reading holds 1 MiB."""
    monkeypatch.setattr(rows_module, "LINES_BLOCK", 2**16)
    rows = [{"number": number, "text": "é" * 1000} for number in range(2048)]
    path = write_both(tmp_path, rows, ensure_ascii=False)[name == "rows.jsonl"]
    assert path.stat().st_size > 4_000_000
    del rows
    tracemalloc.start()
    try:
        opened = IndexedRows(path)
        kept, peak = tracemalloc.get_traced_memory()
        assert peak < 2**20
        assert kept < 16 * len(opened) + 16 * 2**10  # two offsets a row, and the rest that does not grow
        tracemalloc.reset_peak()
        assert sum(row["number"] for _, row in opened) == sum(range(2048))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_row_without_an_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "VALUE_WINDOW", 2**10)
    monkeypatch.setattr(rows_module, "LONGEST_ROW", 2**14)
    text = "x" * 2**18
    for name, content in (("rows.json", f'[1,\n"{text}'), ("rows.jsonl", f'1\n"{text}"')):
        with pytest.raises(MalformedRows, match=rf"{name}:2: the row that begins here is longer than"):
            IndexedRows(write(tmp_path, name, content))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_processes_do_not_move_each_others_place(tmp_path):
    rows = IndexedRows(write_both(tmp_path, [{"number": number} for number in range(500)])[0])
    rows[0]  # the file is open, and shared, from here on
    children = []
    for seed in range(3):
        child = os.fork()
        if child == 0:
            draw = random.Random(seed)
            wrong = sum(rows[index][1] != {"number": index} for index in draw.choices(range(500), k=2000))
            os._exit(min(wrong, 255))
        children.append(child)
    assert all(rows[index][1] == {"number": index} for index in random.Random(9).choices(range(500), k=2000))
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


def test_a_file_that_changed_is_not_read_at_old_places(tmp_path):
    for path in write_both(tmp_path, ROWS):
        rows = IndexedRows(path)
        size = path.stat().st_size
        with open(path, "ab") as file:
            file.write(b"\n")
        with pytest.raises(ValueError, match=f"{size + 1:,} bytes now and had {size:,} when it was opened"):
            rows[0]


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """`set/images` with a few pictures, a link to a folder outside, and a pipe."""
    images = tmp_path / "set" / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("a.png", "caf\u00e9.png", "a b#c %20\u4e2d.png", "Screenshot 9.41\u202fAM.png"):
        (images / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "set" / "pics").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(images / "pipe.png")
    return tmp_path / "set"


def find(folder: Path, path: str, root: Path | None = None) -> Path:
    return ImagePaths(folder / "rows.jsonl", root, "--data-root").find(path, "rows.jsonl:7")


def test_names_as_other_systems_give_them_are_found(image_folder):
    for name in ("a.png", "a b#c %20\u4e2d.png", "Screenshot 9.41\u202fAM.png"):
        assert find(image_folder, f"images/{name}") == image_folder / "images" / name
    assert find(image_folder, "images\\a.png") == image_folder / "images" / "a.png"
    elsewhere = image_folder.parent / "elsewhere"
    assert find(image_folder, "a.png", elsewhere) == elsewhere / "a.png"
    (image_folder / "images\\a.png").touch()
    assert find(image_folder, "images\\a.png") == image_folder / "images\\a.png"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Images/A.PNG", r"no image Images/A.PNG in .*; there is images/a.png \(letter case and accents count\)$"),
        ("images\\A.png", r"; there is images/a.png \("),
        ("images/cafe\u0301.png", "; there is images/caf\u00e9.png \\("),
        ("images/none.png", r"no image images/none.png in \S+ and \S+$"),
        ("images/sub", "what has this name is a folder, a pipe or a device"),
        ("images/pipe.png", "what has this name is a folder, a pipe or a device"),
        ("pics/a.png", r"leads out of .*/set through a symbolic link, to .*elsewhere/a.png; copy .* as --data-root"),
        ("..\\elsewhere\\a.png", "leads out of .*; give a folder that holds it as --data-root"),
        ("C:\\scans\\a.png", "is absolute; make it relative, or give the images' folder as --data-root"),
        ("images/a\tb.png", r"'images/a\\tb.png' holds characters that no path in a record can have; rename the file"),
        ("images/\udcff.png", "holds characters that no path in a record can have"),
        (" ", "the path of an image is empty"),
        ("/etc/hostname", "/etc/hostname is absolute; make it relative"),
        ("http://host/a.png", "http://host/a.png is a URL; download the image and name the file"),
        ("data:image/png;base64,AAAA", "holds the image itself, as base64"),
    ],
)
def test_each_refusal_says_what_is_there_or_the_way_out(image_folder, path, message):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        find(image_folder, path)
    assert str(caught.value).startswith("rows.jsonl:7: ")
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_folder_is_listed_once_however_many_pictures_are_missing(image_folder, monkeypatch):
    listed = []
    listing = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listing(path))
    paths = ImagePaths(image_folder / "rows.jsonl", image_folder, "--data-root")
    for number in range(20):
        with pytest.raises(FileNotFoundError):
            paths.find(f"images/{number}.png", "rows.jsonl:7")
    assert len(listed) == 2
