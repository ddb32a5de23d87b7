"""The demo as a person uses it, in headless Chromium."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[demo]'")

from playwright.sync_api import TimeoutError

from monkey.checkpoint_card import UNKNOWN_TERMS, CheckpointCard, Sampling
from monkey.serving.demo_page import examples
from monkey.serving.demo_texts import CHINESE, ENGLISH
from tests.opened_page import IN_CHROMIUM, chromium
from tests.scripted_demo import LIMITS, ScriptedAnswerer, models_of, scripted_demo

HOSTILE = "<script>window.harmed = 1</script> <img src=x onerror='window.harmed = 1'> <b>b</b> **b** $$x$$ &amp; AT&T"

PHOTO = "On 400×300"

PATIENCE = 120
"""Seconds after which something that must happen is taken not to: other work may have the processor."""

pytestmark = IN_CHROMIUM


@pytest.fixture(scope="module")
def browser():
    with chromium("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as browser:
        yield browser


@pytest.fixture
def answerer() -> ScriptedAnswerer:
    return ScriptedAnswerer()


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((400, 300)).save(path)
    return path


@contextlib.contextmanager
def _opened(browser, *answerers, people=(), **context):
    """The page of a demo of its own, ready; it may ask nobody else for anything."""
    with scripted_demo(*answerers, people=people) as address:
        page = browser.new_context(**{"locale": "en-US", **context}).new_page()
        page.set_default_timeout(1000 * PATIENCE)
        outside: list[str] = []
        page.on("request", lambda request: outside.append(request.url))
        page.goto(address)
        if not people:
            page.wait_for_selector("#ask")
        yield page
        page.close()
        assert all(url.startswith((address, "data:", "blob:")) for url in outside)


def _upload(page, *paths: Path) -> None:
    """Add images; they have come back from the server, which gives them names, when this returns."""
    count = page.locator("#tray .thumbnail-item").count()
    page.set_input_files("#tray input[type=file]", [str(path) for path in paths])
    _wait_for_images(page, count + len(paths))


def _wait_for_images(page, count: int) -> None:
    page.wait_for_function(
        '(count) => document.querySelectorAll(\'#tray .thumbnail-item img[src*="/images/"], '
        '#tray .thumbnail-item img[alt$=".png"]\').length === count',
        arg=count,
    )


def _ask(page, question: str) -> None:
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")


def _set(page, selector: str, value: str) -> None:
    """Type a setting until it stays: a drawer that is still being laid out gives its fields their first values."""
    for _ in range(20):
        page.fill(selector, value)
        page.press(selector, "Tab")
        page.wait_for_timeout(500)
        if page.input_value(selector) == value:
            return
    pytest.fail(f"{selector} does not keep {value!r}")


def _wait_for_text(page, selector: str, text: str) -> None:
    """Wait until the element holds exactly these characters somewhere in its text."""
    page.wait_for_function(
        "([selector, text]) => (document.querySelector(selector)?.innerText ?? '').includes(text)",
        arg=[selector, text],
    )


def _wait_for_inside(page, count: int) -> None:
    page.wait_for_function("(count) => document.querySelectorAll('#inside img').length === count", arg=count)


def _stored() -> set[Path]:
    return {path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()}


def test_a_person_uploads_asks_stops_goes_on_retries_edits_and_clears(browser, answerer, photo, tmp_path):
    with _opened(browser, answerer, viewport={"width": 1280, "height": 900}) as page:
        before = _stored()
        _ask(page, "What?")
        _wait_for_text(page, "#notice", ENGLISH["no_image"])
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"hello")
        page.set_input_files("#tray input[type=file]", str(bad))
        _wait_for_text(page, "#notice", "bad.png is not an image")
        _wait_for_images(page, 0)
        _upload(page, photo)
        page.wait_for_selector("#notice", state="hidden")
        _wait_for_inside(page, 1)
        _wait_for_text(page, "#counts", "4 windows of 28×28 pixels")

        answerer.pause = 0.1
        _ask(page, f"First line: {HOSTILE}")
        _wait_for_text(page, "#chat-0", f"{PHOTO}: First")
        assert f"{PHOTO}: First line: {HOSTILE}" not in page.inner_text("#chat-0")
        _wait_for_text(page, "#chat-0", f"{PHOTO}: First line: {HOSTILE}")
        assert page.locator("#chat-0").inner_text().count(HOSTILE) == 2
        assert page.evaluate("window.harmed") is None
        assert page.locator("#chat-0 .md").locator("b, img, script, strong").count() == 0
        assert page.input_value("#question textarea") == ""
        _wait_for_images(page, 0)
        # It would send the image to gradio's makers.
        assert not any(button.is_visible() for button in page.locator("[aria-label='Share']").all())

        answerer.script = "word " * 300
        page.click("#describe")
        _wait_for_text(page, "#chat-0", "word word word")
        page.click("#stop")
        _wait_for_text(page, "#chat-0", ENGLISH["stopped"])
        assert answerer.cut_short.wait(PATIENCE)

        answerer.script = ["first try", "second try"]
        _ask(page, "And nwo?")
        _wait_for_text(page, "#chat-0", "first try")
        page.click("#retry")
        _wait_for_text(page, "#chat-0", "second try")
        assert "first try" not in page.inner_text("#chat-0")
        page.click("#edit")
        page.wait_for_function("document.querySelector('#question textarea').value === 'And nwo?'")
        answerer.script = None
        _ask(page, "And now?")
        _wait_for_text(page, "#chat-0", f"{PHOTO} after 2: And now?")
        assert "nwo" not in page.inner_text("#chat-0")

        page.click("#clear")
        _wait_for_text(page, "#chat-0", ENGLISH["conversation_hint"])
        _wait_for_inside(page, 0)
        assert _stored() == before


def test_several_images_are_dropped_removed_and_refused(browser, answerer, photo, tmp_path):
    with _opened(browser, answerer) as page:
        page.evaluate(
            """(base64) => {
                const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
                const dataTransfer = new DataTransfer();
                for (const name of ["a.png", "b.png"])
                    dataTransfer.items.add(new File([bytes], name, {type: "image/png"}));
                document.querySelector("#tray .upload-container").dispatchEvent(
                    new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
            }""",
            base64.b64encode(photo.read_bytes()).decode(),
        )
        _wait_for_images(page, 2)
        assert [image.get_attribute("alt") for image in page.locator("#tray img").all()] == ["a.png", "b.png"]
        small = tmp_path / "small.png"
        Image.new("RGB", (7, 7), "blue").save(small)
        _upload(page, small)
        page.locator("#tray .delete-button").nth(1).click(force=True)
        _wait_for_images(page, 2)
        _ask(page, "Which?")
        _wait_for_text(page, "#chat-0", "On 400×300 and 7×7: Which?")
        _wait_for_images(page, 0)
        large = tmp_path / "large.png"
        large.write_bytes(b"x" * (LIMITS.max_bytes + 1))
        page.set_input_files("#tray input[type=file]", str(large))
        _wait_for_text(page, "body", "exceed the maximum allowed size")


def test_the_camera_takes_an_image_and_the_clipboard_gives_one(browser, answerer, photo):
    with _opened(browser, answerer, permissions=["camera", "clipboard-read", "clipboard-write"]) as page:
        page.click("#tray [aria-label='Capture from camera']")
        page.get_by_text("Click to Access Webcam").click()
        page.wait_for_function("document.querySelector('#tray video')?.videoWidth > 0")
        page.click("#tray [aria-label='capture photo']")
        page.wait_for_selector("#tray .thumbnail-item img")
        _ask(page, "What?")
        _wait_for_text(page, "#chat-0", ": What?")
        page.wait_for_selector("#tray .thumbnail-item img", state="detached")

        page.bring_to_front()  # only a page that has the focus may read the clipboard
        page.evaluate(
            """async (base64) => {
                const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
                const item = new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})});
                await navigator.clipboard.write([item]);
            }""",
            base64.b64encode(photo.read_bytes()).decode(),
        )
        for _ in range(4):
            # A page that loses the focus in between reads nothing, and says nothing.
            page.bring_to_front()
            page.click("#tray [aria-label='Paste from clipboard']")
            with contextlib.suppress(TimeoutError):
                page.wait_for_selector("#tray .thumbnail-item img", timeout=250 * PATIENCE)
                break
        _ask(page, "And this?")
        _wait_for_text(page, "#chat-0", "400×300 after 1: And this?")


def test_the_card_gives_prompts_sampling_terms_and_questions_and_settings_are_heard(browser, answerer, photo):
    card = CheckpointCard(
        description_prompts=("Tell <b>all</b>.", "Say little."),
        descriptions=Sampling(99, 0.5, seed=None),
        terms={"en": "For <b>me</b> alone."},
        languages={"en": "Klingon", "zh": "克林贡语"},
        abilities={"en": "It reads ${1+1} {{runes}}."},
        questions=("What is <ref>Qo'noS</ref>?",),
    )
    with _opened(browser, models_of(answerer, card=card)) as page:
        _wait_for_text(page, "#abilities", "It reads ${1+1} {{runes}}. Languages: Klingon.")
        _wait_for_text(page, "#terms", "For <b>me</b> alone.")
        _upload(page, photo)
        page.click("#to-try button")
        page.wait_for_function("document.querySelector('#question textarea').value === \"What is <ref>Qo'noS</ref>?\"")
        page.click("#describe")
        _wait_for_text(page, "#chat-0", f"{PHOTO}: Tell <b>all</b>.")
        decoding = answerer.decodings[-1]
        assert (decoding.max_new_tokens, decoding.temperature, decoding.seed) == (99, 0.5, None)
        page.click("#settings button >> nth=0")
        page.click("#prompt input")
        page.get_by_role("option", name="Say little.").click()
        _set(page, "#descriptions-longest input[type=number]", "33")
        _set(page, "#seed input", "7")
        page.click("#describe")
        _wait_for_text(page, "#chat-0", f"{PHOTO} after 1: Say little.")
        decoding = answerer.decodings[-1]
        assert (decoding.max_new_tokens, decoding.temperature, decoding.seed) == (33, 0.5, 7)
        _set(page, "#prompt input", "My own.")
        page.click("#describe")
        _wait_for_text(page, "#chat-0", f"{PHOTO} after 2: My own.")


def test_boxes_and_heat_are_drawn_and_the_conversation_is_downloaded(browser, answerer, photo):
    answerer.script = "<ref>A dog</ref><box>(100,100),(600,900)</box> sleeps."
    with _opened(browser, answerer, color_scheme="dark") as page:
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
        _upload(page, photo)
        _ask(page, "Where?")
        _wait_for_text(page, "#chat-0", "A dog sleeps.")
        page.wait_for_function("document.querySelectorAll('#chat-0 img').length === 2")
        page.click("#show-heat")
        _wait_for_inside(page, 3)
        _wait_for_text(page, "#counts", "confidence 0.50")
        assert "25% of its attention" in page.inner_text("#inside")
        without = page.evaluate("[...document.images].filter((each) => !each.alt).map((each) => each.outerHTML)")
        assert without == []
        for button, name in (("#download-markdown", "conversation.md"), ("#download-json", "conversation.json")):
            with page.expect_download() as download:
                page.click(button)
            assert download.value.suggested_filename == name
            content = Path(download.value.path()).read_text(encoding="utf-8")
            assert "> Where?" in content or json.loads(content)["exchanges"][0]["answers"][0]["boxes"]
        page.click("#describe")  # where an earlier answer looked goes
        _wait_for_inside(page, 1)


def test_the_page_fits_a_phone_and_speaks_the_browsers_language(browser, answerer, photo):
    phone = {"viewport": {"width": 390, "height": 844}, "locale": "zh-CN", "has_touch": True}
    with _opened(browser, answerer, **phone) as page:
        _wait_for_text(page, "#ask", CHINESE["ask"])
        _wait_for_text(page, "#terms", UNKNOWN_TERMS["zh"])
        page.tap("#ask")
        _wait_for_text(page, "#notice", CHINESE["no_question"])
        box = page.locator("#question").bounding_box()
        assert box["y"] + box["height"] < 844  # on the first screen
        page.tap("#examples .thumbnail-item >> nth=2")
        page.wait_for_selector("#tray .thumbnail-item img")
        example, question = examples()[2]
        with Image.open(example) as image:
            size = "×".join(map(str, image.size))
        page.wait_for_function("(text) => document.querySelector('#question textarea').value === text", arg=question)
        in_sight = """(id) => {
            const box = document.getElementById(id).getBoundingClientRect();
            return box.top >= -1 && box.bottom <= innerHeight + 1;
        }"""
        page.wait_for_function(in_sight, arg="ask")
        page.fill("#question textarea", question + "长" * 60)
        page.tap("#ask")
        _wait_for_text(page, "#chat-0", f"On {size}: {question}")
        page.wait_for_function(in_sight, arg="chats")
        page.tap("#show-heat")
        _wait_for_inside(page, 3)
        page.tap("#settings button >> nth=0")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        # What a finger has to hit, once it is laid out; the row of the examples scrolls.
        small = """[...document.querySelectorAll("button, a, textarea, input:not([type=radio])")]
            .map((each) => [each.getBoundingClientRect(), each])
            .filter(([box]) => box.width && box.height && Math.min(box.width, box.height) < 44)
            .map(([box, each]) => `${each.outerHTML.slice(0, 90)} ${box.width}×${box.height}`)"""
        with contextlib.suppress(TimeoutError):
            page.wait_for_function(f"{small}.length === 0")
        assert page.evaluate(small) == []


def test_two_models_stand_side_by_side(browser, photo):
    first, second = ScriptedAnswerer("A"), ScriptedAnswerer("B", grid=(2, 3))
    first.script, second.script = "It says STOP.", "It says GO."
    with _opened(browser, first, second, viewport={"width": 1280, "height": 900}) as page:
        _upload(page, photo)
        _ask(page, "What does it say?")
        _wait_for_text(page, "#chat-0", "It says STOP.")
        _wait_for_text(page, "#chat-1", "It says GO.")
        left, right = page.locator("#chat-0").bounding_box(), page.locator("#chat-1").bounding_box()
        assert left["x"] + left["width"] <= right["x"]
        assert abs(left["y"] - right["y"]) < 2


def test_the_page_is_there_before_the_model_and_closing_it_stops_the_model_and_deletes_images(browser, answerer, photo):
    opened = threading.Event()
    answerer.pause, answerer.script = 0.05, "word " * (40 * PATIENCE)
    with _opened(browser, models_of(answerer, opened=opened)) as page:
        before = _stored()
        _wait_for_text(page, "#model", "(model 1 of 1)")
        _upload(page, photo)
        _ask(page, "Early?")
        _wait_for_text(page, "#notice", "Questions wait for it")
        opened.set()
        _wait_for_text(page, "#chat-0", "word word word")
        _wait_for_text(page, "#model", "reads 56×56 pixels in 2×2 windows as 20 tokens")
        page.wait_for_selector("#notice", state="hidden")
        assert any(path.suffix == ".original" for path in _stored())
        page.close()
        assert answerer.cut_short.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while _stored() != before:
            assert time.monotonic() < deadline, "the images are still there"
            time.sleep(0.05)


def test_a_password_opens_the_page(browser, answerer):
    with _opened(browser, answerer, people=[("ada", "secret")]) as page:
        for password, selector in (("wrong", "text=Incorrect Credentials"), ("secret", "#ask")):
            page.locator("input").first.fill("ada")
            assert page.locator("#ask").count() == 0
            page.locator("input[type=password]").fill(password)
            page.get_by_role("button", name="Login").click()
            page.wait_for_selector(selector)
