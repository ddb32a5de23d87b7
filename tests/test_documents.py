"""Drawn documents: nothing held out is ever drawn in training, the same from the same seed, resumable, readable."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import PIL
import pytest
from PIL import Image

from monkey.boxes import GRID
from monkey.data import drawn_sets
from monkey.data.documents import __main__ as program
from monkey.data.documents import sets
from monkey.data.documents.faces import FAMILIES, HELD_OUT_FAMILIES, MORE_FAMILIES, capital_height, font
from monkey.data.documents.forms import FIELDS
from monkey.data.documents.layout import HELD_OUT_SLOTS, SLOTS, Line, Page
from monkey.data.documents.sets import DOCUMENTS, QUESTION_KINDS, UNSEEN_LAYOUT, Settings, draw, rows_of, write_set
from monkey.data.documents.words import ADJECTIVES, NOUNS, SHARED, Words, is_held_out
from monkey.data.mixture import open_records
from monkey.data.records import read_questions

COMMITTED = Path(__file__).parents[1] / "data" / "documents"
HELD_OUT_SPLITS = ("heldout", "known", "layout_heldout")


def settings(**changes) -> Settings:
    base = Settings(seed=5, side=112, counts={"train": 30, "heldout": 20}, weights=dict.fromkeys(DOCUMENTS, 1))
    return replace(base, **changes)


def files_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list]:
    """Pages of each split, at two sizes."""
    return {
        split: [draw(settings(side=side, damage=0.0), split, number) for side in (112, 224) for number in range(30)]
        for split in ("train", "layout", *HELD_OUT_SPLITS)
    }


def test_held_out_images_spell_nothing_that_train_images_spell(drawn):
    # What both write: labels of fields and totals, words for kinds of form, street endings, units, months of a date.
    labels = {part for field in FIELDS.values() for label in field.labels for part in label.split()}
    others = "Total Sum To pay form report order list St Rd Av g Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"
    fixed = {word.casefold() for word in labels | set(others.split())} | SHARED
    spelt = {
        split: {word.strip(".:-").casefold() for page, *_ in pages for line in page.lines for word in line.text.split()}
        for split, pages in drawn.items()
    }
    for split in HELD_OUT_SPLITS:
        for word in (spelt["train"] | spelt["layout"]) & spelt[split] - fixed:
            # Years and days are part of a date, which is held out as a whole.
            assert len(word) <= 2 or re.fullmatch(r"\d{4}", word), f"{word!r} is in train and in {split}"


def test_typefaces_layouts_and_one_kind_of_document_are_held_out(drawn):
    families = {split: {page.family for page, *_ in pages} for split, pages in drawn.items()}
    assert families["train"] | families["layout"] <= {*FAMILIES, *MORE_FAMILIES}
    assert families["known"] <= set(FAMILIES)
    assert families["heldout"] | families["layout_heldout"] == set(HELD_OUT_FAMILIES)
    slots = {
        held_out: {int(Page(random.Random(seed), 112, FAMILIES[0], held_out).vary(0, SLOTS)) for seed in range(400)}
        for held_out in (False, True)
    }
    assert (slots[True], slots[False]) == (set(HELD_OUT_SLOTS), set(range(SLOTS)) - set(HELD_OUT_SLOTS))
    kinds = {split: {kind for _, _, kind, _ in pages} for split, pages in drawn.items()}
    assert kinds["layout"] == kinds["layout_heldout"] == set(UNSEEN_LAYOUT)
    assert kinds["train"] == kinds["heldout"] == set(DOCUMENTS)


def test_answers_are_on_the_page_and_belong_to_its_split(drawn):
    assert {question.kind for *_, questions in drawn["train"] for question in questions} == set(QUESTION_KINDS)
    for split, pages in drawn.items():
        for page, image, _, questions in pages:
            assert image.size == (page.side, page.side)
            assert all(page.fits(line) for line in page.lines)
            texts = {line.text for line in page.lines}
            for question in questions:
                assert question.answer
                assert question.text
                if question.kind == "field" or (question.kind == "cell" and question.answer.isdigit()):
                    assert question.answer in texts
                    assert question.height > 0
                if question.kind == "cell":
                    assert is_held_out(question.answer) is (split in HELD_OUT_SPLITS)
                if question.kind == "box":
                    numbers = [int(number) for number in re.findall(r"\d+", question.answer)]
                    assert len(numbers) == 4
                    assert all(0 <= number <= GRID for number in numbers)


def test_a_box_encloses_the_ink_of_its_text_and_turns_with_the_page():
    turned = 0
    for seed in range(60):
        page = Page(random.Random(seed), 224, FAMILIES[1], False)
        before = page.write(120, 60, "HELLO", 20)
        assert before.height == capital_height(FAMILIES[1], 20)
        ink = Image.eval(page.image.convert("L"), lambda value: 255 - value).getbbox()
        assert ink == pytest.approx(before.box, abs=2.5)
        ink = Image.eval(page.finish(0.4).convert("L"), lambda value: 255 * (value < 120)).getbbox()
        assert ink == pytest.approx(page.lines[0].box, abs=4)
        turned += page.lines[0].box != before.box
    assert turned > 5


def test_texts_on_one_height_are_read_from_left_to_right():
    lines = [Line("3.20", (80, 10, 100, 18), 8), Line("Tea", (5, 10, 30, 18), 8), Line("Sum", (5, 30, 30, 38), 8)]
    assert rows_of(lines) == ["Tea 3.20", "Sum"]


def test_words_of_the_two_splits_are_different_and_training_knows_no_list_by_heart():
    training, held_out = Words(random.Random(1), False), Words(random.Random(1), True)
    for maker in ("name", "price", "code", "time", "phone"):
        assert not any(is_held_out(getattr(training, maker)()) for _ in range(30))
        assert all(is_held_out(getattr(held_out, maker)()) for _ in range(30))
    assert sum(training.name().lower() in NOUNS for _ in range(400)) < 160
    assert sum(training.of(ADJECTIVES) not in ADJECTIVES for _ in range(400)) > 100
    assert all(held_out.of(ADJECTIVES) in ADJECTIVES for _ in range(50))


def test_every_typeface_draws_all_characters_and_a_missing_one_is_named_with_what_to_install():
    for family in (*FAMILIES, *MORE_FAMILIES, *HELD_OUT_FAMILIES):
        for bold in (False, True):
            letters = font(family, 20, bold)
            shapes = [bytes(letters.getmask(character)) for character in "ABCWXYZabcxyz0123456789.:-,/\uffff"]
            assert len(set(shapes)) == len(shapes), family.name
    with pytest.raises(ValueError, match="pip install font-nowhere"):
        font(replace(FAMILIES[-1], package="font_nowhere"), 12)


def test_the_committed_documents_are_made_by_the_documented_command(tmp_path):
    command = ["--output", str(tmp_path / "set"), "--seed", "11", "--heldout", "27", "--workers", "1"]
    assert program.main(command) == 0
    made, committed = files_of(tmp_path / "set"), files_of(COMMITTED)
    assert set(made) == set(committed)
    # Pixels, and the manifest, belong to one version of Pillow and Python, the questions do not.
    same_pillow = json.loads(committed["manifest.json"])["versions"]["pillow"] == PIL.__version__
    for name in made:
        if name.endswith(".jsonl") or (same_pillow and name.endswith(".jpg")):
            assert made[name] == committed[name], name


def test_same_seed_same_bytes_whatever_the_processes_and_the_interruptions(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn_sets, "SHARD", 20)
    wanted = settings(counts={"train": 40, "heldout": 3})
    write_set(tmp_path / "straight", wanted, workers=2)
    original, calls = sets.draw, []

    def failing(settings_, split, number):
        calls.append((split, number))
        if len(calls) == 23:
            raise KeyboardInterrupt
        return original(settings_, split, number)

    monkeypatch.setattr(sets, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path / "cut", wanted, workers=1)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(ValueError, match="holds a begun set of other settings"):
        write_set(tmp_path / "cut", replace(wanted, seed=6), workers=1)
    write_set(tmp_path / "cut", wanted, workers=1)
    assert calls.count(("train", 0)) == 1
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "straight")


def test_what_is_written_is_what_training_and_the_evaluator_read(tmp_path):
    counts = {"train": 12, "layout": 6} | dict.fromkeys(HELD_OUT_SPLITS, 8)
    folder = tmp_path / "set"
    manifest, reused = write_set(folder, settings(counts=counts), workers=1)
    assert not reused
    records = json.loads((folder / "train.json").read_text())
    assert len(open_records([str(folder / "train.json")])) == len(records)
    for record in records:
        # Reading is a record of its own: nobody who answers a question sees the text spelt out.
        users = [turn["value"] for turn in record["conversations"] if turn["from"] == "user"]
        reads = [text for text in users if " Read " in text]
        assert len(reads) == (len(users) if record["id"].endswith("-read") else 0)
        assert users[0].startswith("<img>images/train/")
        assert all("<img>" not in text for text in users[1:])
    ids = []
    for split in HELD_OUT_SPLITS:
        found = Counter()
        for name in (split, f"{split}_read", f"{split}_box"):
            ids += [question.question_id for question in read_questions(folder / f"{name}.jsonl", folder)]
            found.update(json.loads(line)["kind"] for line in (folder / f"{name}.jsonl").read_text().splitlines())
        assert found == manifest["counts"][split]["questions"]
    assert len(ids) == len(set(ids))
    assert write_set(folder, settings(counts=counts), workers=1) == (manifest, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--side", "20", "--train", "1"], "--side must lie between"),
        ([], "nothing to draw"),
        (["--train", "-1"], "--train must not be negative"),
        (["--train", "1", "--documents", "letter"], "unknown kind 'letter'"),
        (["--train", "1", "--documents", "sign=0"], "--documents sign=0"),
        (["--train", "1", "--questions", "0"], "--questions must be"),
        (["--train", "1", "--damage", "2"], "--damage must lie"),
        (["--train", "1", "--workers", "0"], "--workers must be"),
    ],
)
def test_wrong_flags_are_one_sentence(tmp_path, capsys, flags, message):
    assert program.main(["--output", str(tmp_path / "set"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_with_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert program.main(["--output", str(tmp_path), "--train", "1"]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"
