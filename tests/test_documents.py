"""Rendered documents: nothing held out is ever drawn in training, the same from the same seed, resumable, readable."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from monkey.boxes import GRID
from monkey.data.documents import __main__ as program
from monkey.data.documents import sets
from monkey.data.documents.faces import FAMILIES, HELD_OUT_FAMILIES, MORE_FAMILIES, capital_height, file_of, font
from monkey.data.documents.fields import FIELDS
from monkey.data.documents.kinds import DOCUMENTS, QUESTION_KINDS, UNSEEN_LAYOUT, rows_of
from monkey.data.documents.page import HELD_OUT_SLOTS, SLOTS, Line, Page
from monkey.data.documents.sets import SHARD, Settings, draw, write_set
from monkey.data.documents.words import ADJECTIVES, FIRST_NAMES, NOUNS, SHARED, Words, is_held_out
from monkey.data.records import open_records, read_questions

SIDES = (112, 224)
EVERY_KIND = dict.fromkeys(DOCUMENTS, 1)


def settings(**changes) -> Settings:
    base = Settings(seed=5, side=112, counts={"train": 30, "heldout": 20}, weights=EVERY_KIND)
    return replace(base, **changes)


def files_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list]:
    """Pages of each split, at both sides."""
    return {
        split: [draw(settings(side=side, damage=0.0), split, number) for side in SIDES for number in range(60)]
        for split in ("train", "heldout", "known", "layout", "layout_heldout")
    }


def fixed_words() -> set[str]:
    """What both splits write: labels of fields and totals, words for kinds of form, street endings, units."""
    labels = {part for field in FIELDS.values() for label in field.labels for part in label.split()}
    others = {"Total", "Sum", "To", "pay", "form", "report", "order", "list", "St", "Rd", "Av", "g"}
    return {word.casefold() for word in labels | others} | SHARED


def test_held_out_pictures_spell_nothing_that_train_pictures_spell(drawn):
    spelt = {
        split: {
            word.strip(".:-").casefold()
            for page, *_ in drawn[split]
            for line in page.lines
            for word in line.text.split()
            if len(word.strip(".:-")) > 2
        }
        - fixed_words()
        for split in drawn
    }
    # Days and months of a date are no words of their own: the date as a whole is held out.
    months = {"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}
    for split in ("heldout", "known", "layout_heldout"):
        for word in (spelt["train"] | spelt["layout"]) & spelt[split] - months:
            assert re.fullmatch(r"\d{4}", word), f"{word!r} is in train and in {split}"


def test_every_answer_that_is_text_belongs_to_its_split(drawn):
    for split, pictures in drawn.items():
        wanted = split in ("heldout", "known", "layout_heldout")
        for *_, questions in pictures:
            for question in questions:
                if question.kind == "cell":
                    assert is_held_out(question.answer) is wanted, (split, question)


def test_some_typefaces_are_never_in_training(drawn):
    families = {split: {page.family for page, *_ in pictures} for split, pictures in drawn.items()}
    assert families["known"] <= set(FAMILIES)
    assert families["train"] | families["layout"] <= {*FAMILIES, *MORE_FAMILIES}
    assert families["train"] & set(MORE_FAMILIES)
    assert families["heldout"] | families["layout_heldout"] == set(HELD_OUT_FAMILIES)


def test_layout_numbers_of_held_out_pages_are_not_those_of_train_pages():
    slots = {
        held_out: {int(Page(random.Random(seed), 112, FAMILIES[0], held_out).vary(0, SLOTS)) for seed in range(400)}
        for held_out in (False, True)
    }
    assert slots[True] == set(HELD_OUT_SLOTS)
    assert slots[False] == set(range(SLOTS)) - set(HELD_OUT_SLOTS)


def test_the_unseen_layout_is_in_no_other_split(drawn):
    kinds = {split: {kind for _, _, kind, _ in pictures} for split, pictures in drawn.items()}
    assert kinds["layout"] == kinds["layout_heldout"] == set(UNSEEN_LAYOUT)
    assert kinds["train"] == kinds["heldout"] == set(DOCUMENTS)


def test_every_kind_of_question_is_asked_and_answered(drawn):
    found = Counter(question.kind for *_, questions in drawn["train"] for question in questions)
    assert set(found) == set(QUESTION_KINDS)
    assert all(question.answer and question.text for *_, questions in drawn["train"] for question in questions)


def test_text_lies_on_the_page_and_answers_stand_in_it(drawn):
    for pictures in drawn.values():
        for page, image, _, questions in pictures:
            assert image.size == (page.side, page.side)
            assert all(page.fits(line) for line in page.lines)
            texts = {line.text for line in page.lines}
            for question in questions:
                if question.kind == "field" or (question.kind == "cell" and question.answer.isdigit()):
                    assert question.answer in texts
                    assert question.height > 0


def test_a_box_encloses_the_ink_of_its_text():
    page = Page(random.Random(0), 224, FAMILIES[1], False)
    line = page.write(40, 100, "HELLO", 20)
    left, top, right, bottom = Image.eval(page.image.convert("L"), lambda value: 255 - value).getbbox()
    assert (left, top, right, bottom) == pytest.approx(line.box, abs=2.5)
    assert line.height == capital_height(FAMILIES[1], 20) == pytest.approx(bottom - top, abs=1)


def test_a_box_turns_with_the_page():
    for seed in range(200):
        page = Page(random.Random(seed), 224, FAMILIES[1], False)
        before = page.write(150, 30, "HELLO", 16).box
        image = page.finish(0.4)
        if page.lines[0].box == before:
            continue
        ink = Image.eval(image.convert("L"), lambda value: 255 * (value < 120)).getbbox()
        if ink is not None:
            assert ink == pytest.approx(page.lines[0].box, abs=4)
            return
    pytest.fail("no page was turned")


def test_boxes_of_questions_are_thousandths_of_the_picture(drawn):
    boxes = [q for *_, questions in drawn["train"] for q in questions if q.kind == "box"]
    assert boxes
    for question in boxes:
        numbers = [int(number) for number in re.findall(r"\d+", question.answer)]
        assert len(numbers) == 4
        assert all(0 <= number <= GRID for number in numbers)


def test_texts_on_one_height_are_read_from_left_to_right():
    lines = [Line("3.20", (80, 10, 100, 18), 8), Line("Tea", (5, 10, 30, 18), 8), Line("Sum", (5, 30, 30, 38), 8)]
    assert rows_of(lines) == ["Tea 3.20", "Sum"]


def test_words_of_the_two_splits_are_different():
    makers = ("name", "price", "code", "time", "phone")
    for maker in makers:
        for held_out in (False, True):
            words = Words(random.Random(1), held_out)
            for _ in range(30):
                assert is_held_out(getattr(words, maker)()) is held_out


def test_training_knows_no_list_of_words_by_heart():
    training, held_out = Words(random.Random(1), False), Words(random.Random(1), True)
    names = [training.name().lower() for _ in range(400)]
    assert sum(name in NOUNS for name in names) < 160
    assert sum(word not in ADJECTIVES for word in (training.of(ADJECTIVES) for _ in range(400))) > 100
    assert all(held_out.of(ADJECTIVES) in ADJECTIVES for _ in range(50))
    assert training.of(FIRST_NAMES)[0].isupper()
    decimals = sum("." in training.value(10, 99) for _ in range(400))
    assert 140 < decimals < 260
    assert not any("." in held_out.value(10, 99) for _ in range(50))


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES, *HELD_OUT_FAMILIES], ids=lambda family: family.name)
@pytest.mark.parametrize("bold", [False, True])
def test_every_typeface_draws_all_characters(family, bold):
    letters = font(family, 20, bold)
    missing = bytes(letters.getmask("\uffff"))
    drawn = {character: bytes(letters.getmask(character)) for character in "ABCWXYZabcxyz0123456789.:-,/"}
    assert len(set(drawn.values())) == len(drawn)
    assert missing not in drawn.values()
    assert file_of(family, bold) is None or family.package


def test_a_missing_typeface_is_named_with_what_to_install():
    with pytest.raises(ValueError, match="pip install font-nowhere"):
        font(replace(FAMILIES[-1], package="font_nowhere"), 12)


def test_same_seed_same_bytes_whatever_the_processes(tmp_path):
    wanted = settings(counts={"train": SHARD + 5, "heldout": 3})
    write_set(tmp_path / "one", wanted, workers=1)
    write_set(tmp_path / "two", wanted, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_set_cut_short_goes_on_where_it_stopped(tmp_path, monkeypatch):
    wanted = settings(counts={"train": 2 * SHARD})
    write_set(tmp_path / "straight", wanted, workers=1)
    original, calls = sets.draw, []

    def failing(settings_, split, number):
        calls.append(number)
        if len(calls) == SHARD + 3:
            raise KeyboardInterrupt
        return original(settings_, split, number)

    monkeypatch.setattr(sets, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path / "cut", wanted, workers=1)
    assert not (tmp_path / "cut").exists()
    write_set(tmp_path / "cut", wanted, workers=1)
    assert calls.count(0) == 1
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "straight")


def test_what_is_written_is_what_training_and_the_evaluator_read(tmp_path):
    counts = {"train": 12, "heldout": 12, "known": 6, "layout": 6, "layout_heldout": 6}
    manifest, reused = write_set(tmp_path / "set", settings(counts=counts), workers=1)
    assert not reused
    folder = tmp_path / "set"
    records = open_records([str(folder / "train.json")])
    assert len(records) == sum(1 for _ in json.loads((folder / "train.json").read_text()))
    ids = []
    for split in ("heldout", "known", "layout_heldout"):
        found = Counter()
        for name in (split, f"{split}_read", f"{split}_box"):
            questions = list(read_questions(folder / f"{name}.jsonl", folder))
            rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
            found.update(row["kind"] for row in rows)
            ids += [question.question_id for question in questions]
        assert found == manifest["counts"][split]["questions"]
    assert len(ids) == len(set(ids))
    assert write_set(folder, settings(counts=counts), workers=1) == (manifest, True)


def test_reading_is_a_record_of_its_own(tmp_path):
    write_set(tmp_path / "set", settings(), workers=1)
    for record in json.loads((tmp_path / "set" / "train.json").read_text()):
        users = [turn["value"] for turn in record["conversations"] if turn["from"] == "user"]
        reads = [text for text in users if " Read " in text]
        assert len(reads) == (len(users) if record["id"].endswith("-read") else 0)
        assert users[0].startswith("<img>images/train/")
        assert all("<img>" not in text for text in users[1:])


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
