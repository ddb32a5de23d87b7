"""Sets of pages: the same from the same seed, taken up where they stopped, read by training and by the evaluator."""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("typst", reason="pages are set by typst (requirements.txt)")
pytest.importorskip("faker", reason="words of pages are Faker's (requirements.txt)")

from eval.tasks import GROUPS, TASKS, asks_for_boxes_in_vain, find_inert_sign, prompt_form
from monkey.boxes import find_box_fault, located
from monkey.data import drawn_sets
from monkey.data.mixture import open_records
from monkey.data.pages import __main__ as program
from monkey.data.pages import charts, page_sets, spelling
from monkey.data.pages.contents import Room
from monkey.data.pages.drafts import Sheet
from monkey.data.pages.drawing import KINDS, SPLITS, TYPESET, templates_of
from monkey.data.pages.facts import Page
from monkey.data.pages.page_sets import Settings, draw, write_set
from monkey.data.pages.questioning import QUESTION_KINDS, Question
from monkey.data.pages.spelling import Writer
from monkey.data.pages.stated import FACTS
from monkey.data.pages.typefaces import FAMILIES
from monkey.data.pages.wordings import read_own_words, read_wordings
from monkey.data.records import read_questions
from monkey.tokenization import QwenTokenizer
from tests.test_page_questions import is_on

GERMAN = Path(__file__).resolve().parent.parent / "configs" / "data" / "tickets-german.yaml"
COMMITTED = Path(__file__).resolve().parent.parent / "data" / "pages"
COUNTS = {"train": 9, "heldout": 6, "known": 3}


def settings(**changes) -> Settings:
    return replace(Settings(seed=5, counts=COUNTS, weights=dict.fromkeys(KINDS, 1), questions=6), **changes)


def files_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "set"
    write_set(folder, settings(), workers=1)
    return folder


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Page, str, list[Question]]]:
    """Two pages of every kind."""
    found = []
    for kind in KINDS:
        for split in ("train", "heldout"):
            found.append((*draw(settings(weights={kind: 1}, questions=8), split, 0), split))
    return [(page, split, questions) for page, questions, split in found]


def test_same_seed_same_bytes_whatever_the_processes_and_the_interruptions(written, tmp_path, monkeypatch):
    monkeypatch.setattr(drawn_sets, "SHARD", 4)
    write_set(tmp_path / "parallel", settings(), workers=2)
    original, calls = page_sets.draw, []

    def failing(settings_, split, number):
        calls.append((split, number))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return original(settings_, split, number)

    monkeypatch.setattr(page_sets, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path / "cut", settings(), workers=1)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(ValueError, match="holds a begun set of other settings"):
        write_set(tmp_path / "cut", settings(seed=6), workers=1)
    write_set(tmp_path / "cut", settings(), workers=1)
    assert calls.count(("train", 0)) == 1
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "parallel") == files_of(written)


def test_what_is_written_is_what_training_and_the_evaluator_read(written):
    manifest = json.loads((written / "manifest.json").read_text())
    assert {"python", "pillow", "typst", "faker", "matplotlib"} == set(manifest["versions"])
    assert open_records([str(written / "train.json")])
    records = json.loads((written / "train.json").read_text())
    for record in records:
        users = [turn["value"] for turn in record["conversations"] if turn["from"] == "user"]
        assert users[0].startswith("<img>images/train/")
        assert all("<img>" not in text for text in users[1:])
    asked = sum(manifest["counts"]["train"]["questions"].values())
    assert sum(len(record["conversations"]) for record in records) == 2 * asked
    ids = []
    for split in ("heldout", "known"):
        kinds = Counter()
        for ending in ("", "_read", "_box"):
            rows = [json.loads(line) for line in (written / f"{split}{ending}.jsonl").read_text().splitlines()]
            ids += [question.question_id for question in read_questions(written / f"{split}{ending}.jsonl", written)]
            kinds.update(row["kind"] for row in rows)
            for row in rows:
                assert row["document"] in KINDS
                assert row["wording"] == "trained" or split == "heldout"
                assert (row["kind"] == "box") is (ending == "_box") is bool(located(row["answer"]))
        assert set(kinds) <= {*QUESTION_KINDS, "unanswerable"}
        turns = written / f"{split}_turns.jsonl"
        if turns.exists():
            assert all(len(record.conversation.messages) > 2 for record in open_records([str(turns)]))
    assert len(ids) == len(set(ids))
    assert write_set(written, settings(), workers=1) == (manifest, True)


def test_the_committed_pages_are_made_by_the_documented_command(tmp_path):
    text = (COMMITTED.parent / "README.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"python -m monkey\.data\.pages --output data/pages (.+)", text)
    assert program.main(["--output", str(tmp_path / "set"), *words.split(), "--workers", "1"]) == 0
    made, committed = files_of(tmp_path / "set"), files_of(COMMITTED)
    assert set(made) == set(committed)
    versions = [json.loads(files["manifest.json"])["versions"] for files in (made, committed)]
    # Words come from Faker and places from typst, so only their versions make the same files.
    if versions[0] == versions[1]:
        assert made == committed
    assert sum(map(len, committed.values())) < 2_000_000


def test_the_evaluator_has_a_task_for_each_file():
    assert GROUPS["pages"] == tuple(
        f"pages_{split}{ending}" for split in ("heldout", "known") for ending in ("", "_read", "_box")
    )
    for name in GROUPS["pages"]:
        task = TASKS[name]
        assert task.file == f"{name.removeprefix('pages_')}.jsonl"
        assert task.parts == ("kind", "document", "wording")
        assert task.metric == ("box_overlap" if name.endswith("_box") else "anls")
        assert asks_for_boxes_in_vain(task) is None


def test_boxes_in_questions_are_control_tokens_for_the_evaluator_as_in_training():
    question = "What is written in <box>(1,2),(3,4)</box>?"
    form = prompt_form(TASKS["pages_heldout"], "as-trained")
    assert [part.text for part in form.parts(question) if part.trusted] == ["<box>", "</box>"]
    assert "".join(part.text for part in form.parts(question)) == f" {question} Answer: "
    elsewhere = prompt_form(TASKS["docvqa_test"], "as-trained")
    assert not any(part.trusted for part in elsewhere.parts(question))
    assert find_inert_sign(question) is not None
    assert find_inert_sign(question, holds_marks=True) is None


def test_everything_that_pages_state_has_wordings(drawn):
    book = read_wordings()
    assert set(KINDS) <= set(book.documents) | {"scene", "gradient", "noise", "texture"}
    for page, _, questions in drawn:
        assert {field.key for field in page.fields} | set(page.absent) <= set(book.things)
        assert {key for table in page.tables for key in table.column_keys} - {""} <= set(book.columns)
        assert {table.key for table in page.tables} <= set(book.rows)
        assert questions


def test_there_are_wordings_for_nothing_but_what_pages_state():
    """Of a thing that no page states, `--wordings` would take sentences that are never asked."""
    keys, columns, rows = set(), set(), {"row", "line"}

    def note(content):
        keys.update(content.possible, content.fields)
        for grid in content.tables:
            columns.update(grid.column_keys)
            rows.add(grid.key)

    for number in range(60):
        rng = random.Random(number)
        room = Room(rng.uniform(12, 46), rng.randint(6, 60))
        for kind in TYPESET.values():
            note(kind.write(Writer(random.Random(number), held_out=False), room))
    family = next(family for family in FAMILIES if not family.is_typst)
    for kind in charts.TEMPLATES:
        for template in (*templates_of(kind, False), *templates_of(kind, True)):
            for number in range(3):
                writer, rng = Writer(random.Random(number), held_out=False), random.Random(number)
                note(charts.draw_chart(kind, template, writer, rng, family, (36, 24), 10.0)[2])
    book = read_wordings()
    assert set(book.things) <= keys | columns
    assert set(book.columns) <= columns | {"named"}  # of columns that only their heads name
    assert set(book.rows) <= rows
    assert set(FACTS) <= keys | columns | {"balance"}  # the amounts of a screen's accounts


def test_answers_are_on_the_page_and_what_is_unanswerable_is_not(drawn):
    tokenizer = QwenTokenizer.from_pretrained("models/small")
    for page, split, questions in drawn:
        sheet = Sheet(page, Writer(random.Random(0), held_out=split != "train"))
        text = " ".join(word.text for word in page.words)
        for question in questions:
            assert question.answer
            assert tokenizer.decode(tokenizer(question.answer).input_ids) == question.answer
            if question.kind in ("box", "box_text"):
                assert find_box_fault(question.text + question.answer) is None
            if question.kind in ("line", "field", "date", "box_text"):
                assert " ".join(question.answer.split()) in text or question.kind == "date", question
                assert question.height > 0
            if question.kind == "read":
                assert question.answer in "\n".join(line.text for line in sheet.lines)
            if question.kind == "unanswerable" and page.words and question.key in read_wordings().things:
                assert question.answer == "unanswerable"
                assert not is_on(page, question.key) or question.key in read_wordings().columns
        assert len({(one.text, one.follows) for one in questions if not one.follows}) == sum(
            not one.follows for one in questions
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "set"], "nothing to draw: give --train, --heldout, --known"),
        (["--train", "1"], "--output is missing"),
        (["--train", "-1", "--output", "set"], "--train: -1 is not a whole number"),
        (["--train", "1", "--output", "set", "--kinds", "novel"], "unknown kind 'novel'"),
        (["--train", "1", "--output", "set", "--kinds", "sign=0"], "--kinds sign=0"),
        (["--train", "1", "--output", "set", "--questions", "0"], "--questions: 0 is not a whole number"),
        (["--train", "1", "--output", "set", "--wordings", "none.yaml"], "none.yaml: no such file"),
        (["--preview", "1", "--sheet", "sheet.png"], "--sheet: not allowed with argument --preview"),
        (["--sheet", "sheet.png", "--train", "2"], "--preview and --sheet draw no set; leave them out, or --train"),
    ],
)
def test_wrong_flags_are_one_sentence(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    try:
        status = program.main(flags)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["typst", "faker"])
def test_what_draws_pages_is_named_where_it_is_not_installed(tmp_path, capsys, monkeypatch, package):
    def find(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", find)
    monkeypatch.setitem(sys.modules, package, None)
    spelling._faker.cache_clear()
    assert program.main(["--train", "1", "--kinds", "sign", "--output", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert f"the package {package}, which is not installed: pip install 'monkey[documents]'" in error
    assert error.count("\n") == 1


def test_questions_may_be_in_words_of_ones_own(tmp_path):
    """The quickstart's German ones, which have all that tickets state; the set of the project's own is as it was."""
    german = read_own_words(GERMAN)
    plain = settings(weights={"ticket": 1}, counts={"train": 2, "heldout": 2, "known": 0}, questions=40)
    write_set(tmp_path / "set", replace(plain, own_words=german), workers=1)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["settings"]["own_words"] == {key: list(sentences) for key, sentences in german.items()}
    assert "own_words" not in plain.described()
    rows = [json.loads(line) for line in (tmp_path / "set" / "heldout.jsonl").read_text().splitlines()]
    assert {row["question"] for row in rows} <= {sentence for sentences in german.values() for sentence in sentences}
    for number in range(2):
        page, questions = draw(replace(plain, own_words=german), "heldout", number)
        fields = {field.key: field.value for field in page.fields}
        assert set(fields) - {question.key for question in questions} <= {"title", "barcode"}
        for question in questions:
            assert question.text in german[question.key]
            assert question.answer == fields[question.key]
    records = json.loads((tmp_path / "set" / "train.json").read_text())
    assert len(records) == sum(manifest["counts"]["train"]["questions"].values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("totl: [Wie viel]", "no page states 'totl'; did you mean total?"),
        ("total: Wie viel", "total is not a list of sentences that ask for it"),
        ("total: []", "total is not a list of sentences that ask for it"),
    ],
)
def test_words_that_ask_for_nothing_are_refused(tmp_path, content, message):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_own_words(tmp_path / "own.yaml")


def test_a_preview_shows_each_question_with_its_answer_and_keeps_the_image(tmp_path, capsys):
    assert program.main(["--preview", "1", "--kinds", "receipt", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for split in SPLITS:
        page, questions = draw(Settings(0, dict.fromkeys(SPLITS, 0), {"receipt": 1}), split, 0)
        assert f"{split}-000: receipt ({page.template})" in shown
        assert all(repr(question.text) in shown and repr(question.answer) in shown for question in questions)
        assert (tmp_path / f"{split}-000.png").is_file()
