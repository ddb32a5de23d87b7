"""The demo as a person uses it, in headless Chromium."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[demo]'")
pytest.importorskip("playwright", reason="driving a browser needs playwright: pip install playwright")

from playwright.sync_api import sync_playwright

from monkey.serving.demo_server import running_demo
from monkey.serving.wording import CHINESE, ENGLISH
from tests.scripted_demo import ScriptedAnswerer, free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""So that Chromium itself calls nobody, and runs for root."""

HOSTILE = "<script>window.harmed = 1</script> <img src=x onerror='window.harmed = 1'> <b>b</b> **b** $$x$$ &amp; AT&T"

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
def answerer() -> ScriptedAnswerer:
    return ScriptedAnswerer()


@pytest.fixture
def address(answerer) -> str:
    with running_demo(answerer, "127.0.0.1", free_port()) as app:
        yield app.local_url


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((400, 300)).save(path)
    return path


def _opened(browser, address: str, outside: list[str], **context):
    """The page, ready; requests to anywhere else are put into `outside`."""
    page = browser.new_context(**context).new_page()

    def note(request) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            outside.append(request.url)

    page.on("request", note)
    page.goto(address)
    page.wait_for_selector("#ask")
    page.set_default_timeout(15_000)
    return page


def _upload(page, path: Path) -> None:
    page.set_input_files("#picture input[type=file]", str(path))


def _wait_for_text(page, selector: str, text: str) -> None:
    """Wait until the element holds exactly these characters somewhere in its text."""
    page.wait_for_function(
        "([selector, text]) => (document.querySelector(selector)?.innerText ?? '').includes(text)",
        arg=[selector, text],
    )


def test_a_person_uploads_asks_reads_describes_stops_and_clears(browser, answerer, address, photo, tmp_path):
    outside: list[str] = []
    page = _opened(browser, address, outside, viewport={"width": 1280, "height": 900}, locale="en-US")

    def look(name: str) -> None:
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)

    page.click("#ask")
    _wait_for_text(page, "#notice", ENGLISH.no_picture)
    bad = tmp_path / "bad.png"
    bad.write_text("hello")
    _upload(page, bad)
    _wait_for_text(page, "#notice", "bad.png is not a picture")
    assert page.locator("#picture img").count() == 0
    look("bad")

    _upload(page, photo)
    page.wait_for_selector("#picture img")
    page.wait_for_selector("#notice", state="hidden")
    page.click("#ask")
    _wait_for_text(page, "#notice", ENGLISH.no_question)

    answerer.pause = 0.1
    page.fill("#question textarea", f"First line: {HOSTILE}")
    page.press("#question textarea", "Enter")
    _wait_for_text(page, "#conversation", "On 400×300: First")
    look("streaming")
    assert f"On 400×300: First line: {HOSTILE}" not in page.inner_text("#conversation")
    _wait_for_text(page, "#conversation", f"On 400×300: First line: {HOSTILE}")
    assert page.locator("#conversation").inner_text().count(HOSTILE) == 2
    assert page.evaluate("window.harmed") is None
    assert page.locator("#conversation .md").locator("b, img, script, strong").count() == 0
    assert page.input_value("#question textarea") == ""
    look("answered")

    answerer.script = "word " * 300
    page.click("#describe")
    _wait_for_text(page, "#conversation", "word word word")
    page.click("#stop")
    _wait_for_text(page, "#conversation", ENGLISH.stopped)
    assert answerer.cut_short.wait(10)
    look("stopped")

    answerer.script = None
    page.fill("#question textarea", "And now?")
    page.click("#ask")
    _wait_for_text(page, "#conversation", "On 400×300: And now?")
    assert "First line" in page.inner_text("#conversation")

    page.click("#clear")
    _wait_for_text(page, "#conversation", ENGLISH.conversation_hint)
    assert page.locator("#picture img").count() == 0
    look("cleared")
    assert outside == []


def test_the_page_fits_a_phone_and_speaks_the_browsers_language(browser, answerer, address, photo, tmp_path):
    outside: list[str] = []
    page = _opened(browser, address, outside, viewport={"width": 390, "height": 844}, locale="zh-CN")
    _wait_for_text(page, "#ask", CHINESE.ask)
    _upload(page, photo)
    page.wait_for_selector("#picture img")
    page.fill("#question textarea", "价格是多少？" + "长" * 60)
    page.click("#ask")
    _wait_for_text(page, "#conversation", "On 400×300: 价格是多少？")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    page.click("#language label:has-text('English')")
    _wait_for_text(page, "#ask", ENGLISH.ask)
    _wait_for_text(page, "#terms", "for research only")
    assert "价格是多少" in page.inner_text("#conversation")
    assert outside == []


def test_a_new_picture_begins_a_new_conversation(browser, answerer, address, photo, tmp_path):
    page = _opened(browser, address, [], locale="en-US")
    _upload(page, photo)
    page.wait_for_selector("#picture img")
    page.fill("#question textarea", "What?")
    page.click("#ask")
    _wait_for_text(page, "#conversation", "On 400×300: What?")
    other = tmp_path / "other.png"
    Image.new("RGB", (20, 10), "red").save(other)
    _upload(page, other)
    _wait_for_text(page, "#conversation", ENGLISH.conversation_hint)
    page.fill("#question textarea", "And this?")
    page.click("#ask")
    _wait_for_text(page, "#conversation", "On 20×10: And this?")
    assert "400×300" not in page.inner_text("#conversation")

    page.click("#conversation button[aria-label='Clear']")
    page.fill("#question textarea", "Forgotten?")
    page.click("#ask")
    _wait_for_text(page, "#conversation", "On 20×10: Forgotten?")
    assert "And this?" not in page.inner_text("#conversation")
    page.click("#picture button[aria-label='Remove Image']")
    _wait_for_text(page, "#conversation", ENGLISH.conversation_hint)
    page.click("#ask")
    _wait_for_text(page, "#notice", ENGLISH.no_picture)


def test_closing_the_page_stops_the_model(browser, answerer, address, photo):
    answerer.pause = 0.05
    answerer.script = "word " * 1200
    page = _opened(browser, address, [], locale="en-US")
    _upload(page, photo)
    page.wait_for_selector("#picture img")
    page.fill("#question textarea", "What?")
    page.click("#ask")
    _wait_for_text(page, "#conversation", "word word word")
    page.close()
    # The answer would go on for a minute.
    assert answerer.cut_short.wait(20)
