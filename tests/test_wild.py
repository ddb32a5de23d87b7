"""The held-out images of data/wild are those that were committed, ask what they promise, and say what stands there."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from eval.metrics import score_all
from eval.questions import load_question_set
from eval.tasks import AS_TRAINED, GROUPS, TASKS, prompt_form, select_tasks
from monkey.provenance import file_digest
from scripts.wild.catalog import STYLES, sheets
from scripts.wild.engines import Drawn, Mark, chromium, draw_by_chromium
from scripts.wild.scan import scan
from scripts.wild.sheet import COPIED, UNANSWERABLE, Sheet
from scripts.wild.writing import SEED, read_rows

REPOSITORY = Path(__file__).resolve().parent.parent
WILD = REPOSITORY / "data" / "wild"
MANIFEST = json.loads((WILD / "manifest.json").read_text(encoding="utf-8"))


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (WILD / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


ROWS = {name: rows_of(name) for name in GROUPS["wild_all"]}
PAGES = {page["image"]: page for page in rows_of("pages")}


def answers_of(row: dict) -> list[str]:
    return row["answer"] if isinstance(row["answer"], list) else [row["answer"]]


def words_on(image: str) -> str:
    return " ".join(word[0] for word in PAGES[image]["words"])


def test_the_set_is_the_one_that_was_committed():
    found = {str(path.relative_to(WILD)) for path in WILD.rglob("*.*")} - {"manifest.json", "README.md", "images"}
    assert found == set(MANIFEST["sha256"])
    assert {name: file_digest(WILD / name) for name in found} == MANIFEST["sha256"]
    assert sum(path.stat().st_size for path in WILD.rglob("*.*")) <= 3_000_000


def test_the_set_is_as_large_and_as_mixed_as_it_promises():
    kinds = Counter(row["kind"] for rows in ROWS.values() for row in rows)
    assert kinds == MANIFEST["kinds"]
    assert len(ROWS["wild"]) >= 420
    assert min(kinds["comparison"], kinds["box"], kinds[UNANSWERABLE]) >= 40
    assert 0.07 <= kinds[UNANSWERABLE] / kinds.total() <= 0.13
    assert len(PAGES) >= 64
    assert sum(not page["words"] for page in PAGES.values()) >= 8
    engines = Counter(page["engine"] for page in PAGES.values())
    assert engines["tex"] / len(PAGES) > 0.25
    ids = [row["question_id"] for rows in ROWS.values() for row in rows]
    assert len(ids) == len(set(ids))


def test_no_typeface_is_one_that_training_draws_with():
    """Training has the `font-*` packages of requirements.txt, and what comes with matplotlib and typst."""
    requirements = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    trained = {name.replace("-", " ") for name in re.findall(r"^font-([a-z-]+)==", requirements, re.MULTILINE)}
    assert len(trained) >= 7
    trained |= {"dejavu sans", "dejavu serif", "dejavu sans mono", "stix", "libertinus serif"}
    fonts = {font.lower() for font in MANIFEST["fonts"]}
    assert len(fonts) >= 20
    assert not fonts & trained
    assert not [font for font in fonts if "computer modern" in font or "latin modern" in font]


def test_what_is_copied_stands_in_the_image():
    for row in ROWS["wild"]:
        if row["kind"] in COPIED:
            assert answers_of(row)[0] in words_on(row["image"]), row
    for row in ROWS["wild_read"]:
        assert Counter("".join(row["answer"].split())) == Counter("".join(words_on(row["image"]).split())), row


def test_one_fact_has_one_answer_in_both_wordings():
    facts = defaultdict(list)
    for row in ROWS["wild"]:
        facts[row["image"], row["fact"]].append(row)
    pairs = [rows for rows in facts.values() if len(rows) > 1]
    assert len(pairs) >= 150
    for rows in pairs:
        assert sorted(row["wording"] for row in rows) == ["natural", "trained"]
        assert rows[0]["answer"] == rows[1]["answer"]


def test_nothing_is_asked_twice_with_two_answers():
    asked = {}
    for rows in ROWS.values():
        for row in rows:
            key = row["image"], row["question"]
            assert asked.setdefault(key, row["answer"]) == row["answer"], row


def corners(text: str) -> list[int]:
    return [
        int(number)
        for number in text.removeprefix("<box>").removesuffix("</box>").strip("()").replace("),(", ",").split(",")
    ]


@pytest.mark.parametrize(
    ("name", "text", "box"), [("wild_box", "question", "answer"), ("wild_box_text", "answer", "question")]
)
def test_boxes_are_where_the_words_are(name, text, box):
    """The words that the engine found within a box are those of its text, and they fill it."""
    for row in ROWS[name]:
        page = PAGES[row["image"]]
        x1, y1, x2, y2 = corners(row[box])
        assert 0 <= x1 < x2 <= 1000
        assert 0 <= y1 < y2 <= 1000
        width, height = page["size"]
        left, top, right, bottom = x1 * width / 1000, y1 * height / 1000, x2 * width / 1000, y2 * height / 1000
        inside = [w for w in page["words"] if left <= (w[1] + w[3]) / 2 <= right and top <= (w[2] + w[4]) / 2 <= bottom]
        assert sorted("".join(word[0] for word in inside)) == sorted(row[text].replace(" ", "")), row
        # Slanted words leave corners empty, and each box has a margin.
        assert min(word[1] for word in inside) - left <= 4
        assert right - max(word[3] for word in inside) <= 4
        assert words_on(row["image"]).count(row[text]) == 1 or name != "wild_box"


def test_the_drawing_script_asks_what_was_committed():
    committed = defaultdict(list)
    for row in ROWS["wild"]:
        committed[Path(row["image"]).stem].append((row["question"], row["kind"], set(answers_of(row))))
    drawn = {name: [(one.text, one.kind, set(one.answers)) for one in sheet.questions] for name, sheet in sheets(SEED)}
    assert drawn == committed
    assert len(drawn) == sum(STYLES.values()) == MANIFEST["images"]


@pytest.mark.parametrize("name", GROUPS["wild_all"])
def test_tasks_are_asked_without_a_flag_more(name):
    (task,) = select_tasks(name)
    asked = load_question_set(task, REPOSITORY).questions
    assert len(asked) == len(ROWS[name]) == MANIFEST["questions"][name]
    for question in asked:
        best = max(score_all(task.metric, answer, question.answers)["official"] for answer in question.answers)
        assert best == 1
        assert {"kind", "document", "engine", "wording"} <= question.more.keys()
    assert task.parts == ("kind", "wording", "document", "engine")


def test_a_box_is_asked_about_with_control_tokens():
    form = prompt_form(TASKS["wild_box_text"], AS_TRAINED)
    assert form.ask("(1,2),(3,4)") == "<img></img> What is written in <box>(1,2),(3,4)</box>? Answer: "
    assert [part.text for part in form.parts("(1,2),(3,4)") if part.trusted] == ["<box>", "</box>"]


def test_boxes_turn_with_a_scan():
    image = Image.new("RGB", (300, 200), "white")
    box = (200, 30, 260, 50)
    ImageDraw.Draw(image).rectangle((200, 30, 259, 49), fill="black")
    mark = Mark("word", box, 10)
    for angle in (-3.0, 2.5):
        turned = scan(Drawn(image, (mark,), {"m": mark}), {"angle": angle}, next(sheets(SEED))[1].rng)
        ink = turned.image.convert("L").point(lambda value: 255 * (value < 128)).getbbox()
        assert turned.marks["m"].box == turned.words[0].box == pytest.approx(ink, abs=1.5)


def test_lines_are_read_from_the_top_and_from_the_left():
    words = [("b", (50, 10, 60, 22)), ("low,", (0, 40, 9, 50)), ("a", (0, 14, 9, 22)), ("Big", (12, 4, 40, 24))]
    assert read_rows([Mark(text, box, 8) for text, box in words]) == ["a Big b", "low,"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on the PATH")
def test_chromium_draws_the_same_words_again():
    pytest.importorskip("playwright", reason="driving a browser needs playwright")
    wanted = "html_price_card_0"
    sheet: Sheet = next(sheet for name, sheet in sheets(SEED) if name == wanted)
    with chromium() as browser:
        drawn = draw_by_chromium(browser, sheet)
    (page,) = [page for image, page in PAGES.items() if Path(image).stem == wanted]
    assert [word.text for word in drawn.words] == [word[0] for word in page["words"]]
