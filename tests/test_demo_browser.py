"""The demo as a person uses it, in headless Chromium."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[demo]'")
pytest.importorskip("playwright", reason="driving a browser needs playwright: pip install playwright")

from playwright.sync_api import TimeoutError, sync_playwright

from monkey.checkpoint_card import UNKNOWN_TERMS, CheckpointCard, Sampling
from monkey.serving.demo.chinese import CHINESE
from monkey.serving.demo.english import ENGLISH
from monkey.serving.demo.examples import examples
from tests.scripted_demo import LIMITS, ScriptedAnswerer, models_of, scripted_demo

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip
"""So that Chromium itself calls nobody, runs for root, and has a camera that shows a test picture."""

HOSTILE = "<script>window.harmed = 1</script> <img src=x onerror='window.harmed = 1'> <b>b</b> **b** $$x$$ &amp; AT&T"

PHOTO = "On 400×300"

PATIENCE = 120
"""Seconds after which something that must happen is taken not to: other work may have the processor."""

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
    models = models_of(answerer)
    with scripted_demo(models) as app, models:
        yield app.local_url


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((400, 300)).save(path)
    return path


def _opened(browser, address: str, outside: list[str], **context):
    """The page, ready; requests to anywhere else are put into `outside`."""
    page = browser.new_context(**{"locale": "en-US", **context}).new_page()
    page.set_default_timeout(1000 * PATIENCE)

    def note(request) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            outside.append(request.url)

    page.on("request", note)
    page.goto(address)
    page.wait_for_selector("#ask")
    return page


def _upload(page, path: Path) -> None:
    """Through the drop zone; it is there again, and the picture in the tray, when this returns."""
    count = page.locator("#tray img").count()
    page.set_input_files("#intake input[type=file]", str(path))
    page.locator("#tray img").nth(count).wait_for()


def _set(page, selector: str, value: str) -> None:
    """Type a setting until it stays: a drawer that is still being laid out gives its fields their first values."""
    for _ in range(20):
        page.fill(selector, value)
        page.press(selector, "Tab")
        page.wait_for_timeout(500)
        if page.input_value(selector) == value:
            return
    pytest.fail(f"{selector} does not keep {value!r}")


def _ask(page, question: str) -> None:
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")


def _wait_for_text(page, selector: str, text: str) -> None:
    """Wait until the element holds exactly these characters somewhere in its text."""
    page.wait_for_function(
        "([selector, text]) => (document.querySelector(selector)?.innerText ?? '').includes(text)",
        arg=[selector, text],
    )


def test_a_person_uploads_asks_follows_up_describes_stops_and_clears(browser, answerer, address, photo, tmp_path):
    outside: list[str] = []
    page = _opened(browser, address, outside, viewport={"width": 1280, "height": 900})

    page.click("#ask")
    _wait_for_text(page, "#notice", ENGLISH.no_question)
    _ask(page, "What?")
    _wait_for_text(page, "#notice", ENGLISH.no_picture)
    for name, content, sentence in (
        ("bad.png", b"hello", "bad.png is not an image"),
        ("paper.png", b"%PDF-1.7", "paper.png is a PDF; render its pages to PNG first"),
    ):
        bad = tmp_path / name
        bad.write_bytes(content)
        page.set_input_files("#intake input[type=file]", str(bad))
        _wait_for_text(page, "#notice", sentence)
    assert page.locator("#tray img").count() == 0

    _upload(page, photo)
    page.wait_for_selector("#notice", state="hidden")
    page.wait_for_selector("#inside img")
    assert "4 windows of 28×28 pixels" in page.inner_text("#counts")

    answerer.pause = 0.1
    _ask(page, f"First line: {HOSTILE}")
    _wait_for_text(page, "#chat-0", f"{PHOTO}: First")
    assert f"{PHOTO}: First line: {HOSTILE}" not in page.inner_text("#chat-0")
    _wait_for_text(page, "#chat-0", f"{PHOTO}: First line: {HOSTILE}")
    assert page.locator("#chat-0").inner_text().count(HOSTILE) == 2
    assert page.evaluate("window.harmed") is None
    assert page.locator("#chat-0 .md").locator("b, img, script, strong").count() == 0
    assert page.input_value("#question textarea") == ""
    assert page.locator("#tray img").count() == 0
    assert page.locator("#chat-0 img").count() == 1
    # It would send the picture to gradio's makers.
    assert not any(button.is_visible() for button in page.locator("[aria-label='Share']").all())

    answerer.script = "word " * 300
    page.click("#describe")
    _wait_for_text(page, "#chat-0", "word word word")
    page.click("#stop")
    _wait_for_text(page, "#chat-0", ENGLISH.stopped)
    assert answerer.cut_short.wait(PATIENCE)

    answerer.script = None
    _ask(page, "And now?")
    _wait_for_text(page, "#chat-0", f"{PHOTO} after 2: And now?")
    assert "First line" in page.inner_text("#chat-0")

    page.click("#clear")
    _wait_for_text(page, "#chat-0", ENGLISH.conversation_hint)
    assert page.locator("#chat-0 img").count() == 0
    assert page.locator("#inside img").count() == 0
    _ask(page, "Still there?")
    _wait_for_text(page, "#notice", ENGLISH.no_picture)
    assert outside == []


def test_a_person_retries_and_edits_the_last_question(browser, answerer, address, photo):
    answerer.script = ["first try", "second try", "third try"]
    page = _opened(browser, address, [])
    page.click("#retry")
    _wait_for_text(page, "#notice", ENGLISH.nothing_to_repeat)
    _upload(page, photo)
    _ask(page, "Waht?")
    _wait_for_text(page, "#chat-0", "first try")
    page.click("#retry")
    _wait_for_text(page, "#chat-0", "second try")
    assert "first try" not in page.inner_text("#chat-0")
    page.click("#edit")
    _wait_for_text(page, "#chat-0", ENGLISH.conversation_hint)
    assert page.input_value("#question textarea") == "Waht?"
    page.wait_for_selector("#tray img")
    _ask(page, "What?")
    _wait_for_text(page, "#chat-0", "third try")
    assert "Waht?" not in page.inner_text("#chat-0")
    assert answerer.asked == ["Waht?", "Waht?", "What?"]


def test_several_pictures_are_collected_and_removed_before_they_are_sent(browser, answerer, address, photo, tmp_path):
    page = _opened(browser, address, [])
    _upload(page, photo)
    other = tmp_path / "other.png"
    Image.new("RGB", (20, 10), "red").save(other)
    _upload(page, other)
    third = tmp_path / "third.png"
    Image.new("RGB", (7, 7), "blue").save(third)
    page.set_input_files("#tray input[type=file]", str(third))
    # Three, and checked by the server, which answers with names of its own.
    page.wait_for_function("document.querySelectorAll('#tray img[src*=\"/pictures/\"]').length === 3")
    page.locator("#tray .delete-button").nth(1).click(force=True)
    page.wait_for_function("document.querySelectorAll('#tray img').length === 2")
    _ask(page, "Which?")
    _wait_for_text(page, "#chat-0", "On 400×300 and 7×7: Which?")


def test_a_file_that_is_too_large_is_refused_in_words(browser, answerer, address, tmp_path):
    page = _opened(browser, address, [])
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * (LIMITS.max_bytes + 1))
    page.set_input_files("#intake input[type=file]", str(large))
    _wait_for_text(page, "body", "exceed the maximum allowed size")
    tall = tmp_path / "tall.png"
    Image.new("1", (3001, 1000)).save(tall)
    page.set_input_files("#intake input[type=file]", str(tall))
    _wait_for_text(page, "#notice", "tall.png has 3,001,000 pixels (3001 × 1000), more than the 3,000,000 allowed")


def test_a_password_opens_the_page(browser, photo):
    models = models_of(ScriptedAnswerer())
    with scripted_demo(models, people=[("ada", "secret")]) as app, models:
        outside: list[str] = []
        page = browser.new_context(locale="en-US").new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda request: outside.append(request.url))
        page.goto(app.local_url)
        for password, selector in (("wrong", "text=Incorrect Credentials"), ("secret", "#ask")):
            assert page.locator("#ask").count() == 0
            page.locator("input").first.fill("ada")
            page.locator("input[type=password]").fill(password)
            page.get_by_role("button", name="Login").click()
            page.wait_for_selector(selector)
        _upload(page, photo)
        _ask(page, "What?")
        _wait_for_text(page, "#chat-0", f"{PHOTO}: What?")
        assert all(url.startswith((app.local_url, "data:", "blob:")) for url in outside)


def test_an_example_brings_its_question(browser, answerer, address):
    page = _opened(browser, address, [])
    wanted = examples()[2].question
    page.locator("#examples button").nth(2).click()
    page.wait_for_selector("#tray img")
    assert page.input_value("#question textarea") == wanted
    page.click("#ask")
    _wait_for_text(page, "#chat-0", f"On 224×224: {wanted}")


def test_on_a_phone_the_question_is_on_the_first_screen_and_an_example_leads_to_it(browser, answerer, address):
    page = _opened(browser, address, [], viewport={"width": 390, "height": 844}, has_touch=True)
    box = page.locator("#question").bounding_box()
    assert box["y"] + box["height"] < 844
    page.tap("#examples button >> nth=0")
    page.wait_for_selector("#tray img")
    page.wait_for_function("document.querySelector('#question textarea').value !== ''")
    in_sight = """(id) => {
        const box = document.getElementById(id).getBoundingClientRect();
        return box.top >= -1 && box.bottom <= innerHeight + 1;
    }"""
    page.wait_for_function(in_sight, arg="ask")
    page.tap("#ask")
    _wait_for_text(page, "#chat-0", "On 224×224")
    page.wait_for_function(in_sight, arg="chats")


def test_two_files_that_are_dropped_together_are_both_taken(browser, answerer, address, photo):
    page = _opened(browser, address, [])
    page.evaluate(
        """(base64) => {
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            for (const name of ["a.png", "b.png"]) dataTransfer.items.add(new File([bytes], name, {type: "image/png"}));
            document.querySelector("#intake button").dispatchEvent(
                new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
        }""",
        base64.b64encode(photo.read_bytes()).decode(),
    )
    page.wait_for_function("document.querySelectorAll('#tray img').length === 2")
    assert [image.get_attribute("alt") for image in page.locator("#tray img").all()] == ["a.png", "b.png"]
    _ask(page, "Which?")
    _wait_for_text(page, "#chat-0", "On 400×300 and 400×300: Which?")


def test_the_card_gives_prompts_sampling_terms_abilities_and_questions(browser, answerer, photo):
    card = CheckpointCard(
        description_prompts=("Tell <b>all</b>.",),
        descriptions=Sampling(99, 0.5, seed=None),
        terms={"en": "For <b>me</b> alone."},
        languages={"en": "Klingon", "zh": "克林贡语"},
        abilities={"en": "It reads ${1+1} {{runes}}."},
        questions=("What is <ref>Qo'noS</ref>?",),
    )
    models = models_of(answerer, card=card)
    with scripted_demo(models) as app, models:
        page = _opened(browser, app.local_url, [])
        _wait_for_text(page, "#abilities", "It reads ${1+1} {{runes}}. Languages: Klingon.")
        _wait_for_text(page, "#terms", "For <b>me</b> alone.")
        _upload(page, photo)
        page.click("#to-try button")
        page.wait_for_function("document.querySelector('#question textarea').value === \"What is <ref>Qo'noS</ref>?\"")
        page.click("#describe")
        _wait_for_text(page, "#chat-0", f"{PHOTO}: Tell <b>all</b>.")
        decoding = answerer.decodings[-1]
        assert (decoding.max_new_tokens, decoding.temperature, decoding.seed) == (99, 0.5, None)
        page.click("#language label:has-text('中文')")
        _wait_for_text(page, "#abilities", "语言：克林贡语。")


def test_where_the_last_answer_looked_goes_with_it_and_every_picture_has_a_text(browser, answerer, address, photo):
    page = _opened(browser, address, [], color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    _upload(page, photo)
    for action in ("#describe", "#edit"):
        _ask(page, "What?")
        _wait_for_text(page, "#chat-0", f"{PHOTO}: What?")
        page.click("#show-heat")
        page.wait_for_function("document.querySelectorAll('#inside img').length === 3")
        without = page.evaluate("[...document.images].filter((each) => !each.alt).map((each) => each.outerHTML)")
        assert without == []
        page.click(action)
        page.wait_for_function("document.querySelectorAll('#inside img').length === 1")
        if action == "#describe":
            _wait_for_text(page, "#chat-0", "Generate the detailed caption in English:")
            page.click("#clear")
            _wait_for_text(page, "#chat-0", ENGLISH.conversation_hint)
            _upload(page, photo)


def test_the_camera_takes_a_picture(browser, answerer, address):
    page = _opened(browser, address, [], permissions=["camera"])
    page.click("#intake [aria-label='Capture from camera']")
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#intake video')?.videoWidth > 0")
    page.click("#intake [aria-label='capture photo']")
    page.wait_for_selector("#tray img")
    _ask(page, "What?")
    _wait_for_text(page, "#chat-0", ": What?")


def test_a_picture_is_pasted(browser, answerer, address, photo):
    page = _opened(browser, address, [], permissions=["clipboard-read", "clipboard-write"])
    page.bring_to_front()  # only a page that has the focus may read the clipboard
    page.evaluate(
        """async (base64) => {
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            const item = new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})});
            await navigator.clipboard.write([item]);
        }""",
        base64.b64encode(photo.read_bytes()).decode(),
    )
    # Chromium writes the system's clipboard after it has said so.
    page.wait_for_function(
        "async () => (await navigator.clipboard.read()).some((item) => item.types.includes('image/png'))"
    )
    for _ in range(4):
        # A page that loses the focus in between reads nothing, and says nothing.
        page.bring_to_front()
        page.click("#intake [aria-label='Paste from clipboard']")
        with contextlib.suppress(TimeoutError):
            page.wait_for_selector("#tray img", timeout=250 * PATIENCE)
            break
    page.wait_for_selector("#tray img")
    _ask(page, "What?")
    _wait_for_text(page, "#chat-0", f"{PHOTO}: What?")


def test_the_conversation_can_be_copied_and_downloaded(browser, answerer, address, photo):
    page = _opened(browser, address, [], permissions=["clipboard-read", "clipboard-write"])
    _upload(page, photo)
    _ask(page, "What?")
    _wait_for_text(page, "#chat-0", f"{PHOTO}: What?")
    page.click("#copy")
    _wait_for_text(page, "#notice", ENGLISH.copied)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "> What?" in copied
    with page.expect_download() as download:
        page.click("#download-markdown")
    assert download.value.suggested_filename == "conversation.md"
    assert Path(download.value.path()).read_text(encoding="utf-8").splitlines() == copied.splitlines()
    with page.expect_download() as download:
        page.click("#download-json")
    assert download.value.suggested_filename == "conversation.json"
    content = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert content["exchanges"][0]["answers"][0]["text"] == f"{PHOTO}: What?"
    assert content["models"][0]["grid"] == [2, 2]


def test_the_prompt_of_a_description_is_chosen_and_edited_and_settings_are_heard(browser, answerer, address, photo):
    page = _opened(browser, address, [])
    _upload(page, photo)
    page.click("#prompts button >> nth=0")
    page.click("#prompt-choice input")
    page.locator("#prompt-choice [role=option], ul[role=listbox] li").nth(2).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('Explain the visual')")
    page.fill("#prompt textarea", "Explain the picture.")
    page.click("#settings button >> nth=0")
    _set(page, "#descriptions-longest input[type=number]", "33")
    _set(page, "#seed input", "")
    page.click("#describe")
    _wait_for_text(page, "#chat-0", f"{PHOTO}: Explain the picture.")
    decoding = answerer.decodings[-1]
    assert (decoding.max_new_tokens, decoding.seed, decoding.temperature) == (33, None, 0.7)


def test_boxes_and_attention_are_drawn(browser, answerer, address, photo):
    answerer.script = "<ref>A dog</ref><box>(100,100),(600,900)</box> sleeps."
    page = _opened(browser, address, [])
    _upload(page, photo)
    _ask(page, "Where?")
    _wait_for_text(page, "#chat-0", "A dog sleeps.")
    page.wait_for_function("document.querySelectorAll('#chat-0 img').length === 2")
    page.click("#show-heat")
    page.wait_for_function("document.querySelectorAll('#inside img').length === 3")
    page.wait_for_function("[...document.querySelectorAll('#inside img')].every((image) => image.naturalWidth > 0)")
    _wait_for_text(page, "#counts", "confidence 0.50")
    assert "25% of its attention" in page.inner_text("#inside")


def test_the_page_fits_a_phone_and_speaks_the_browsers_language(browser, answerer, address, photo):
    outside: list[str] = []
    page = _opened(browser, address, outside, viewport={"width": 390, "height": 844}, locale="zh-CN", has_touch=True)
    _wait_for_text(page, "#ask", CHINESE.ask)
    _wait_for_text(page, "#terms", UNKNOWN_TERMS["zh"])
    page.wait_for_function("document.documentElement.lang === 'zh-CN'")
    _upload(page, photo)
    page.fill("#question textarea", "价格是多少？" + "长" * 60)
    page.tap("#ask")
    _wait_for_text(page, "#chat-0", f"{PHOTO}: 价格是多少？")
    page.tap("#show-heat")
    page.wait_for_function("document.querySelectorAll('#inside img').length === 3")
    page.tap("#settings button >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # What a finger has to hit; a radio button stands in a label that is large enough.
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll("button, a, textarea, label:has(> input), input:not([type=radio])")]
                .map((each) => [each.getBoundingClientRect(), each])
                .filter(([box]) => box.width && box.height && Math.min(box.width, box.height) < 44)
                .map(([box, each]) => `${each.outerHTML.slice(0, 90)} ${box.width}×${box.height}`)"""
        )
        == []
    )
    page.click("#language label:has-text('English')")
    _wait_for_text(page, "#ask", ENGLISH.ask)
    _wait_for_text(page, "#terms", UNKNOWN_TERMS["en"])
    assert page.evaluate("document.documentElement.lang") == "en"
    assert "价格是多少" in page.inner_text("#chat-0")
    assert outside == []


def test_two_models_stand_side_by_side(browser, photo):
    first, second = ScriptedAnswerer("A"), ScriptedAnswerer("B", grid=(2, 3))
    first.script, second.script = "It says STOP.", "It says GO."
    models = models_of(first, second)
    with scripted_demo(models) as app, models:
        page = _opened(browser, app.local_url, [], viewport={"width": 1280, "height": 900})
        _upload(page, photo)
        _ask(page, "What does it say?")
        _wait_for_text(page, "#chat-0", "It says STOP.")
        _wait_for_text(page, "#chat-1", "It says GO.")
        left, right = page.locator("#chat-0").bounding_box(), page.locator("#chat-1").bounding_box()
        assert left["x"] + left["width"] <= right["x"]
        assert abs(left["y"] - right["y"]) < 2


def test_the_page_is_there_before_the_model_and_says_how_far_it_is(browser, answerer, photo):
    opened = threading.Event()
    models = models_of(answerer, opened=opened)
    with scripted_demo(models) as app, models:
        page = _opened(browser, app.local_url, [])
        _wait_for_text(page, "#model", "0% of its weights are read")
        _upload(page, photo)
        _ask(page, "Early?")
        _wait_for_text(page, "#notice", "Questions wait for it")
        opened.set()
        _wait_for_text(page, "#chat-0", f"{PHOTO}: Early?")
        _wait_for_text(page, "#model", "reads 56×56 pixels in 2×2 windows as 20 tokens")
        page.wait_for_selector("#notice", state="hidden")


def test_closing_the_page_stops_the_model_and_deletes_the_pictures(browser, answerer, address, photo):
    answerer.pause = 0.05
    answerer.script = "word " * (40 * PATIENCE)
    page = _opened(browser, address, [])
    _upload(page, photo)
    _ask(page, "What?")
    _wait_for_text(page, "#chat-0", "word word word")
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    assert list(folder.rglob("*.original"))
    page.close()
    assert answerer.cut_short.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while any(path.is_file() for path in folder.rglob("*")):
        assert time.monotonic() < deadline, "the pictures are still there"
        time.sleep(0.05)


def test_clearing_deletes_the_pictures(browser, answerer, address, photo):
    page = _opened(browser, address, [])
    _upload(page, photo)
    _ask(page, "What?")
    _wait_for_text(page, "#chat-0", f"{PHOTO}: What?")
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    assert list(folder.rglob("*.original"))
    page.click("#clear")
    _wait_for_text(page, "#chat-0", ENGLISH.conversation_hint)
    assert not any(path.is_file() for path in folder.rglob("*"))
