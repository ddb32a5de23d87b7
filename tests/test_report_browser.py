"""The report as a person uses it, in headless Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.report import report_html
from eval.run_folder import open_run
from tests.opened_page import HOSTILE, IN_CHROMIUM, OpenedPage, chromium
from tests.stored_run import answers, write_pictures, write_task

RIGHT = [row % 3 == 0 for row in range(50)]
ALL = 50 + 4

pytestmark = IN_CHROMIUM


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    write_pictures(tmp_path, 25)
    hostile = {4: {"question": HOSTILE, "answer": HOSTILE, "references": [HOSTILE], "prompt": HOSTILE}}
    first = write_task(
        tmp_path / "base", "sums", answers(RIGHT), changes={**hostile, 7: {"stop": "length"}}, note=HOSTILE
    )
    words = [("abcd", ["abce"]), ("x", ["x"]), ("it is x", ["x"]), ("", ["x"])]
    write_task(first, "words", words, "anls", "strict")
    changed = [good or row % 5 == 1 for row, good in enumerate(RIGHT)]
    changed[0] = False
    second = write_task(tmp_path / "tuned", "sums", answers(changed), changes=hostile)
    write_task(second, "words", words, "anls", "strict")
    return [first, second]


class Opened(OpenedPage):
    """A report in a page."""

    def __init__(self, browser, tmp_path: Path, folders: list[Path], width: int = 1200, scheme: str = "light"):
        path = tmp_path / "report.html"
        path.write_text(report_html(*map(open_run, folders), image_root=tmp_path), encoding="utf-8")
        super().__init__(browser, path, width, scheme)


def test_a_person_filters_searches_sorts_and_turns_pages(browser, runs, tmp_path):
    opened = Opened(browser, tmp_path, runs[:1])
    page = opened.page
    assert opened.count == ALL
    assert page.is_hidden("#kind")
    opened.choose(sort="row")
    assert page.locator("article").count() == 20
    assert page.locator("article img").first.evaluate("image => image.naturalWidth") == 320
    page.click("#next")
    assert opened.identities()[0].startswith("sums · row 20 ·")
    page.click("#next")
    assert page.is_disabled("#next")
    assert page.locator("article").count() == ALL - 40
    page.click("#back")

    opened.choose(score="zero")
    assert opened.count == RIGHT.count(False) - 1 + 2
    opened.choose(score="full")
    assert opened.count == RIGHT.count(True) + 1 + 1
    opened.choose(score="partial")
    assert opened.count == 1
    assert "abcd" in page.inner_text("article")
    assert "strict 75.0" in page.inner_text("article .chip.head")
    opened.choose(score="any")

    page.check("#cut-off")
    assert [text.split(" · ")[1] for text in opened.identities()] == ["row 7"]
    assert page.locator("article .chip.warning").inner_text() == "cut off"
    page.uncheck("#cut-off")

    page.check("#disagree")
    assert [text.split(" · ")[:2] for text in opened.identities()] == [["sums", "row 4"], ["words", "row 0"]]
    page.uncheck("#disagree")

    page.fill("#text", "THING 33")
    assert [text.split(" · ")[1] for text in opened.identities()] == ["row 33"]
    page.fill("#text", "nowhere to be found")
    assert opened.count == 0
    assert page.is_visible("#nothing")
    page.fill("#text", "")

    page.click("#scores button[data-task=words]")
    assert opened.count == 4
    opened.choose(sort="high")
    assert opened.identities()[0].startswith("words · row 1 ·")
    assert "(empty)" in page.inner_text("#list")
    opened.finish()


def test_worst_pictures_come_first_with_their_questions_together_and_kinds_can_be_chosen(browser, tmp_path):
    write_pictures(tmp_path, 3)
    right = [True, True, True, False, False, False]
    changes = {
        row: {"more": {"kind": ("form", "receipt")[row % 2]}, "image": f"images/{row % 3}.png"} for row in range(6)
    }
    folder = write_task(tmp_path / "run", "sums", answers(right), changes=changes, parts={"kind": {}})
    write_task(folder, "words", [("x", ["x"])])
    opened = Opened(browser, tmp_path, [folder])
    page = opened.page
    rows = lambda: [text.split(" · ")[1] for text in opened.identities()]  # noqa: E731
    assert rows() == [f"row {row}" for row in (0, 3, 1, 4, 2, 5, 0)]
    assert page.locator("article img").count() == 4
    assert page.locator("article img").first.get_attribute("alt") == "Picture asked about: images/0.png"
    opened.choose(sort="low")
    assert rows()[:3] == ["row 3", "row 4", "row 5"]
    opened.choose(kind="kind: receipt")
    assert sorted(rows()) == ["row 1", "row 3", "row 5"]
    opened.choose(task="words")
    assert page.is_hidden("#kind")
    assert opened.count == 1
    opened.finish()


def test_a_phone_has_room_for_a_finger(browser, runs, tmp_path):
    opened = Opened(browser, tmp_path, runs[:1], 380)
    small = opened.page.evaluate(
        """() => [...document.querySelectorAll("button, select, summary, label, input[type=search]")]
          .filter((each) => each.offsetParent !== null && each.getBoundingClientRect().height < 44)
          .map((each) => each.outerHTML.slice(0, 90))"""
    )
    assert small == []
    opened.finish()


def test_two_runs_show_what_changed_losses_first(browser, runs, tmp_path):
    opened = Opened(browser, tmp_path, runs)
    page = opened.page
    first = page.locator("article").first
    assert first.locator(".said").all_inner_texts() == ["thing 0", "no idea"]
    gained = [row for row in range(50) if row % 5 == 1 and not RIGHT[row]]
    assert opened.count == len(gained) + 1
    opened.choose(change="gained")
    assert opened.count == len(gained)
    opened.choose(change="lost")
    assert opened.count == 1
    opened.choose(change="any", sort="gain")
    assert opened.count == ALL
    assert page.locator("article").first.locator(".said").all_inner_texts() == ["no idea", f"thing {gained[0]}"]
    for chart in ("#changes", "#chart"):
        assert page.locator(f"{chart} img:visible").count() == 1
        assert page.locator(f"{chart} img:visible").evaluate("image => image.naturalWidth") > 100
    opened.finish()


@pytest.mark.parametrize(("number", "width", "scheme"), [(1, 380, "light"), (2, 600, "dark"), (2, 1200, "light")])
def test_nothing_sticks_out_and_letters_can_be_read(browser, runs, tmp_path, number, width, scheme):
    opened = Opened(browser, tmp_path, runs[:number], width, scheme)
    page = opened.page
    if number == 2:
        opened.choose(change="any")
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.overflow() == []
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    for selector in ("body", ".soft", "td.main", ".chip.full", ".chip.nothing", ".references", ".badge", "footer"):
        assert opened.contrast(selector) >= 4.5, selector
    opened.finish()
