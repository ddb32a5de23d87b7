"""The report as a person uses it, in headless Chromium."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="driving a browser needs playwright: pip install playwright")

from playwright.sync_api import sync_playwright

from eval.report import report_html
from eval.run_folder import open_run
from tests.stored_run import answers, write_pictures, write_task

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""So that Chromium itself calls nobody, and runs for root."""

HOSTILE = (
    "</script><script>window.harmed=1</script> \u2028 <img src=x onerror='window.harmed=1'> <b>bold</b> &amp; "
    + "W" * 300
)
RIGHT = [row % 3 == 0 for row in range(50)]
ALL = 50 + 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on the PATH: apt-get install --no-install-recommends chromium"
    ),
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


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


class Opened:
    """A report in a page, with the requests and errors it makes."""

    def __init__(self, browser, tmp_path: Path, folders: list[Path], width: int = 1200, scheme: str = "light"):
        path = tmp_path / "report.html"
        path.write_text(report_html(*map(open_run, folders), image_root=tmp_path), encoding="utf-8")
        self.page = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, locale="en-US"
        ).new_page()
        self.outside: list[str] = []
        self.errors: list[str] = []
        own = path.as_uri()
        self.page.on(
            "request",
            lambda request: None if request.url.startswith((own, "data:")) else self.outside.append(request.url),
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.set_default_timeout(15_000)
        self.page.goto(own)

    def choose(self, **values: str) -> None:
        for control, value in values.items():
            self.page.select_option(f"#{control}", value)

    @property
    def count(self) -> int:
        return int(self.page.inner_text("#pages").split()[0])

    def identities(self) -> list[str]:
        return self.page.locator(".identity").all_inner_texts()

    def overflow(self) -> list[str]:
        """Elements that stick out of the page, but for those in a box of their own that scrolls."""
        return self.page.evaluate(
            """() => {
              const edge = document.documentElement.clientWidth + 1;
              return [...document.querySelectorAll("main *, header *, footer *")]
                .filter((each) => each.getBoundingClientRect().right > edge && !each.closest(".wide, svg"))
                .map((each) => each.outerHTML.slice(0, 90));
            }"""
        )

    def finish(self) -> None:
        """Nothing was loaded, nothing went wrong, no text of the run became markup."""
        assert self.outside == []
        assert self.errors == []
        assert self.page.evaluate("window.harmed") is None
        assert self.page.locator("#list b b, #list script, #list img[src='x']").count() == 0


def test_a_person_filters_searches_sorts_and_turns_pages(browser, runs, tmp_path):
    opened = Opened(browser, tmp_path, runs[:1])
    page = opened.page
    assert opened.count == ALL
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


def test_rows_on_which_variants_disagree_are_found(browser, tmp_path):
    folder = write_task(tmp_path / "run", "sums", [("2.5", ["2.5"]), ("x", ["x"]), ("a woman", ["man"]), ("y", ["z"])])
    opened = Opened(browser, tmp_path, [folder])
    opened.page.check("#disagree")
    assert [text.split(" · ")[1] for text in opened.identities()] == ["row 0", "row 2"]
    assert "original 0" in opened.page.locator("article").first.inner_text()
    assert "no picture in this page" in opened.page.locator("article").first.inner_text()
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
    assert page.locator("#changes circle").count() == 2
    assert page.locator("#chart circle").count() >= 4
    opened.finish()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 600, 380])
@pytest.mark.parametrize("number", [1, 2])
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
        assert _contrast(page, selector) >= 4.5, selector
    opened.finish()


def test_light_and_dark_can_be_changed(browser, runs, tmp_path):
    opened = Opened(browser, tmp_path, runs[:1])
    colour = "getComputedStyle(document.body).backgroundColor"
    light = opened.page.evaluate(colour)
    opened.page.click("#theme")
    dark = opened.page.evaluate(colour)
    opened.page.click("#theme")
    assert opened.page.evaluate(colour) == light != dark
    opened.finish()


def _contrast(page, selector: str) -> float:
    """Contrast of an element's letters with what is behind them, as WCAG 2 defines it."""
    colours = page.evaluate(
        """(selector) => {
          const element = document.querySelector(selector);
          let behind = element;
          const clear = (each) => ["rgba(0, 0, 0, 0)", "transparent"].includes(getComputedStyle(each).backgroundColor);
          while (clear(behind)) behind = behind.parentElement;
          return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
            .map((text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number));
        }""",
        selector,
    )

    def luminance(colour: list[float]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (part / 255 for part in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)
