"""Pages that are full of text, for a vision transformer that learns what letters look like.

Texts run over every edge, sizes and typefaces change within a page, some lines are on a band of colour: a page holds
several times the letters of a document, and each is one thing to learn.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from monkey.data.documents import faces
from monkey.data.documents.page import COLOURS, INKS, PAPERS, Page, contrasting
from monkey.data.documents.words import Words

SIZES = 10, 20
"""Type sizes in pixels, as `Page.size` draws them."""


def filled_page(rng: random.Random, side: int, held_out: bool, held_out_face: bool) -> Page:
    """A page of `side` pixels that texts fill from edge to edge, not yet finished."""
    page = Page(rng, side, faces.pick(rng, held_out_face, held_out), held_out, rng.choice(PAPERS), rng.choice(INKS))
    makers = _makers(Words(rng, held_out))
    alike = rng.random() < 0.5
    size = page.size(*SIZES)
    y = rng.uniform(-4, 6)
    while y < side:
        if not alike:
            size = page.size(*SIZES)
            if rng.random() < 0.3:
                page.family = faces.pick(rng, held_out_face, held_out)
        bold = rng.random() < 0.25
        height = faces.capital_height(page.family, size, bold)
        fill = None
        if rng.random() < 0.15:
            colour = rng.choice(list(COLOURS.values()))
            border = rng.uniform(2, 4)
            page.draw.rectangle((0, y - border, side, y + height + border), fill=colour)
            fill = contrasting(colour)
        x = rng.uniform(-6, 20)
        while x < side:
            text = rng.choice(makers)()
            if rng.random() < 0.15:
                text += rng.choice(":,.-")
            x = page.write(x, y, text, size, fill=fill, bold=bold).box[2] + size * rng.uniform(0.25, 1.2)
        y += max(height + 2.5, size * rng.uniform(1.05, 1.7)) + (4 if fill else 0)
    return page


def _makers(words: Words) -> list[Callable[[], str]]:
    return [
        *(words.name, words.name, words.person, words.price, words.price, words.date, words.time, words.code),
        *(words.phone, words.street, words.sentence),
        lambda: words.digits(1, 999),
        lambda: words.name().upper(),
        lambda: words.name().lower(),
    ]
