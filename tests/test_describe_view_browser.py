"""The page of a run of descriptions as a person uses it, in headless Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest

from monkey.describe.__main__ import main
from monkey.describe.findings import Summary
from tests.described_run import results_of, write_run
from tests.opened_page import HOSTILE, IN_CHROMIUM, OpenedPage, chromium

pytestmark = IN_CHROMIUM

PICTURES, FLAGGED, FAILED = 23, 3, 4


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page_file(tmp_path) -> Path:
    rows = [results_of(number) for number in range(PICTURES)]
    rows[0] = results_of(0, dict.fromkeys(("region", "line", "segment", "caption", "summary"), HOSTILE))
    rows[FLAGGED]["summary"] = Summary("It has 3 digits.", ("it has digits",), 2)
    rows[FAILED].pop("summary")
    run = write_run(tmp_path, rows, unreadable=["bad<b>.png"])
    assert main(["view", str(run)]) == 0
    return run / "view.html"


def drawn(opened: OpenedPage, what: str) -> int:
    """How many marks of the first picture are drawn."""
    marks = opened.page.locator("article").first.locator(what)
    return sum(marks.nth(place).is_visible() for place in range(marks.count()))


def test_boxes_and_masks_are_drawn_by_source(browser, page_file):
    opened = OpenedPage(browser, page_file)
    page = opened.page
    page.locator("article").first.locator("path.outline").first.wait_for(state="attached")
    assert page.locator("article img").first.evaluate("image => image.naturalWidth") == 120
    assert [drawn(opened, f"rect.box.{source}") for source in ("region", "text", "segment")] == [1, 1, 1]
    assert drawn(opened, "path.outline") == 1
    page.uncheck("#masks")
    assert (drawn(opened, "path.outline"), drawn(opened, "rect.box.segment")) == (0, 1)
    page.uncheck("input[data-source=text]")
    assert drawn(opened, "rect.box.text") == 0
    page.check("#filtered")
    assert [drawn(opened, f"rect.box.{source}") for source in ("region", "text", "segment")] == [3, 0, 2]
    opened.finish()


def test_the_outline_runs_where_the_mask_ends(browser, page_file):
    opened = OpenedPage(browser, page_file)
    path = opened.page.locator("article").first.locator("path.outline").first
    path.wait_for(state="attached")
    # A disc and its hole over the whole picture of 120 × 80: 0.4 of each side from the middle.
    box = path.evaluate("path => { const b = path.getBBox(); return [b.x, b.y, b.width, b.height]; }")
    assert box == pytest.approx([12, 8, 96, 64], abs=1)
    opened.finish()


def test_a_row_lights_its_box_and_keeps_it(browser, page_file):
    opened = OpenedPage(browser, page_file)
    first = opened.page.locator("article").first
    row = first.locator("tr", has_text="a blue pole")
    assert "filtered: its score is 0.3, not above 0.4" in row.inner_text()
    assert drawn(opened, "rect.box.region.dropped") == 0
    row.hover()
    assert drawn(opened, "rect.box.region.dropped") == 1
    row.locator("button").click()
    opened.page.hover("h1")
    assert drawn(opened, "rect.box.region.dropped") == 1
    row.locator("button").click()
    opened.page.hover("h1")
    assert drawn(opened, "rect.box.region.dropped") == 0
    opened.finish()


def test_a_person_filters_searches_and_turns_pages(browser, page_file):
    opened = OpenedPage(browser, page_file)
    page = opened.page
    assert opened.count == PICTURES
    assert page.locator("article").count() == 10
    page.click("#next")
    assert opened.identities()[0].startswith("signs/000010.png")
    opened.choose(state="flagged")
    assert [name.split(" ")[0] for name in opened.identities()] == [f"signs/{FLAGGED:06d}.png"]
    assert "it has digits" in page.inner_text("article .chip.warning")
    assert "2 attempts" in page.inner_text("article")
    opened.choose(state="failed")
    assert "summary: the expert gave up" in page.inner_text("article .chip.warning")
    assert "no description" in page.inner_text("article")
    opened.choose(state="", dropped="duplicate")
    assert opened.count == PICTURES
    page.fill("#text", "signs/000017")
    assert opened.count == 1
    page.fill("#text", "nowhere to be found")
    assert opened.count == 0
    assert page.is_visible("#nothing")
    assert "bad<b>.png" in page.inner_text("#problems")
    opened.finish()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (380, "dark"), (380, "light")])
def test_nothing_sticks_out_and_letters_can_be_read(browser, page_file, width, scheme):
    opened = OpenedPage(browser, page_file, width, scheme)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.overflow() == []
    for selector in (
        ".description",
        ".caption",
        ".why",
        ".said-there > span",
        "td.region button",
        ".chip",
        ".identity",
    ):
        assert opened.contrast(selector) >= 4.5, selector
    opened.finish()
