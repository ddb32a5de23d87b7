"""Chromium and TeX: sheets become images, with the boxes of their words and marks.

A box that an engine gives is that of a line of type; it is drawn in to the ink that the image has there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.wild.sheet import Sheet

Box = tuple[float, float, float, float]

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
"""So that Chromium calls nobody, and runs for root."""
LEAST_CONTRAST = 40
"""Of 255: what differs from the paper by more is ink."""
PIXELS_PER_INCH = 96
"""Of TeX's pages, whose lengths templates give in `bp` of three quarters of a pixel each."""


@dataclass(frozen=True)
class Mark:
    """A text as it was drawn: its box, and the height of its capitals, in pixels."""

    text: str
    box: Box
    height: float


@dataclass(frozen=True)
class Drawn:
    """An image with its words in the order of the source, and its marks by name."""

    image: Image.Image
    words: tuple[Mark, ...]
    marks: dict[str, Mark]


_FIND_WORDS = """() => {
  const context = document.createElement('canvas').getContext('2d');
  const capitals = (element) => {
    context.font = getComputedStyle(element).font;
    return context.measureText('H').actualBoundingBoxAscent;
  };
  const words = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (['STYLE', 'SCRIPT'].includes(node.parentElement.tagName)) continue;
    const marked = node.parentElement.closest('[data-m]');
    for (const match of node.textContent.matchAll(/\\S+/g)) {
      const range = document.createRange();
      range.setStart(node, match.index);
      range.setEnd(node, match.index + match[0].length);
      const box = range.getBoundingClientRect();
      words.push({text: match[0], box: [box.left, box.top, box.right, box.bottom],
                  height: capitals(node.parentElement), mark: marked ? marked.dataset.m : null});
    }
  }
  return words;
}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser.

    Raises:
        FileNotFoundError: there is no Chromium on the PATH.
    """
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise FileNotFoundError("there is no chromium on the PATH: apt-get install --no-install-recommends chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=QUIET)
        yield browser
        browser.close()


def draw_by_chromium(browser: Any, sheet: Sheet) -> Drawn:
    """Draw a sheet of HTML.

    Raises:
        ValueError: something sticks out of the sheet.
    """
    width, height = sheet.size
    page = browser.new_page(viewport={"width": width, "height": height or 200})
    page.set_content(sheet.source)
    page.wait_for_function("document.fonts.status === 'loaded' && !window.unfinished")
    found = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    if found[0] > width or (height and found[1] > height):
        raise ValueError(f"{sheet.document}: the content is {found[0]}×{found[1]}, the sheet {width}×{height}")
    image = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
    found = page.evaluate(_FIND_WORDS)
    page.close()
    words = tuple(Mark(row["text"], _ink(image, row["box"]), row["height"]) for row in found)
    by_mark: dict[str, list[Mark]] = {}
    for row, word in zip(found, words, strict=True):
        if row["mark"] is not None:
            by_mark.setdefault(row["mark"], []).append(word)
    marks = {name: _joined([word.text for word in own], own) for name, own in by_mark.items()}
    return Drawn(image, words, marks)


def _joined(texts: Sequence[str], words: Sequence[Mark]) -> Mark:
    lefts, tops, rights, bottoms = zip(*(word.box for word in words), strict=True)
    box = (min(lefts), min(tops), max(rights), max(bottoms))
    return Mark(" ".join(texts), box, min(word.height for word in words))


_PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\usepackage{textcomp}\usepackage{cmap}
\usepackage[paperwidth=%(width)sbp,paperheight=%(height)sbp,margin=%(margin)sbp]{geometry}
\usepackage{xcolor}\usepackage{array,booktabs,tabularx,colortbl,multicol}
\usepackage{tikz}\usepackage{pgfplots}\pgfplotsset{compat=1.17}
\input{glyphtounicode}\pdfgentounicode=1
\pagestyle{empty}\setlength{\parindent}{0pt}\pdfsuppressptexinfo=-1\pdfpxdimen=0.75bp
\newwrite\marks\immediate\openout\marks=\jobname.marks
\newcommand{\M}[2]{\leavevmode\begingroup\setbox0\hbox{#2}\pdfsavepos
  \edef\x{\noexpand\write\marks{#1|\noexpand\the\pdflastxpos|\noexpand\the\pdflastypos|\number\wd0|\number\ht0|%%
    \number\dp0|\number\fontcharht\font`H}}\x\box0\endgroup}
%(preamble)s
\begin{document}
%(body)s
\end{document}
"""
_SCALED_POINTS = 65536 * 72.27 / PIXELS_PER_INCH
"""In a pixel."""
_WORD = re.compile(r'<word xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)">(.*?)</word>')


def bp(pixels: float) -> float:
    """Return a length of a sheet in TeX's big points."""
    return round(pixels * 72 / PIXELS_PER_INCH, 3)


def tex_page(body: str, size: tuple[int, int], margin: float, preamble: str) -> str:
    """Return the source of a page; sizes in pixels."""
    width, height = map(bp, size)
    return _PREAMBLE % {
        "body": body, "width": width, "height": height, "margin": bp(margin), "preamble": preamble,
    }  # fmt: skip


def draw_by_tex(sheet: Sheet, folder: Path) -> Drawn:
    """Draw a sheet of TeX in a folder of its own.

    Raises:
        FileNotFoundError: pdflatex or poppler is not installed.
        ValueError: TeX complains, also of an overfull line, or the sheet has a second page.
    """
    for program, package in (("pdflatex", "texlive-latex-recommended texlive-pictures"), ("pdftoppm", "poppler-utils")):
        if shutil.which(program) is None:
            raise FileNotFoundError(f"there is no {program}: apt-get install --no-install-recommends {package}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page.tex").write_text(sheet.source, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    log = done.stdout
    overfull = re.search(r"^Overfull .hbox \((\d+)[\d.]*pt too wide\).*", log, re.MULTILINE)
    if done.returncode or (overfull and int(overfull[1]) > 2):
        fault = overfull[0] if overfull else "\n".join(line for line in log.splitlines() if line.startswith("!"))
        raise ValueError(f"{sheet.document}: {fault or log[-1500:]} in {folder}/page.log")
    if "(1 page" not in log:
        raise ValueError(f"{sheet.document}: more than one page, or none, in {folder}")
    subprocess.run(
        ["pdftoppm", "-r", str(PIXELS_PER_INCH), "-png", "-singlefile", "page.pdf", "page"], cwd=folder, check=True
    )
    subprocess.run(["pdftotext", "-bbox", "page.pdf", "page.html"], cwd=folder, check=True)
    image = Image.open(folder / "page.png").convert("RGB")
    words = []
    for *sides, text in _WORD.findall((folder / "page.html").read_text(encoding="utf-8")):
        left, top, right, bottom = (float(side) * PIXELS_PER_INCH / 72 for side in sides)
        text = unicodedata.normalize("NFKC", unescape(text))
        if text == "•":
            continue
        words.append(Mark(text, _ink(image, (left, top, right, bottom)), 0))
    marks = {}
    for line in (folder / "page.marks").read_text(encoding="utf-8", errors="replace").splitlines():
        name, *numbers = line.split("|")
        x, y, width, above, below, capital = (int(number) / _SCALED_POINTS for number in numbers)
        base = image.height - y
        box = _ink(image, (x - 1, base - above - 1, x + width + 1, base + below + 1))
        inside = [word.text for word in words if _is_inside(word.box, box)]
        marks[name] = Mark(" ".join(inside), box, capital)
    return Drawn(image, tuple(words), marks)


def _is_inside(word: Box, box: Box) -> bool:
    x, y = (word[0] + word[2]) / 2, (word[1] + word[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _ink(image: Image.Image, box: Sequence[float]) -> Box:
    """Return the box of what is drawn within a box: what differs from its most frequent colour."""
    left, top = max(0, int(box[0])), max(0, int(box[1]))
    right, bottom = min(image.width, int(np.ceil(box[2]))), min(image.height, int(np.ceil(box[3])))
    if right <= left or bottom <= top:
        raise ValueError(f"a text lies outside of the image: {tuple(box)} of {image.size}")
    part = image.crop((left, top, right, bottom))
    _, paper = max(part.getcolors(part.width * part.height))
    ink = np.abs(np.asarray(part).astype(int) - paper).max(2) > LEAST_CONTRAST
    if not ink.any():
        raise ValueError(f"nothing is drawn at {tuple(box)}")
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
