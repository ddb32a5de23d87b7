"""A page of a run as a person uses it, in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="driving a browser needs playwright: pip install playwright")

from playwright.sync_api import Browser, sync_playwright

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

IN_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on the PATH: apt-get install --no-install-recommends chromium"
    ),
]


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *flags])
        yield browser
        browser.close()


class OpenedPage:
    """A page with the requests and errors it makes."""

    def __init__(self, browser, path: Path, width: int = 1200, scheme: str = "light"):
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
        self.page.set_default_timeout(120_000)
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

    def contrast(self, selector: str) -> float:
        """Contrast of an element's letters with what is behind them, as WCAG 2 defines it."""
        colours = self.page.evaluate(
            """(selector) => {
              const element = document.querySelector(selector);
              let behind = element;
              const colour = (each) => getComputedStyle(each).backgroundColor;
              const clear = (each) => ["rgba(0, 0, 0, 0)", "transparent"].includes(colour(each));
              while (clear(behind)) behind = behind.parentElement;
              return [getComputedStyle(element).color, colour(behind)]
                .map((text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number));
            }""",
            selector,
        )
        dark, light = sorted(map(_luminance, colours))
        return (light + 0.05) / (dark + 0.05)

    def finish(self) -> None:
        """Nothing was loaded, nothing went wrong, no text of the run became markup."""
        assert self.outside == []
        assert self.errors == []
        assert self.page.evaluate("window.harmed") is None
        assert self.page.locator("#list b b, #list script, #list img[src='x']").count() == 0


def _luminance(colour: list[float]) -> float:
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (part / 255 for part in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
