"""Which sheets there are, in the order of their images: a template and which of its styles."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from scripts.wild import html_office, html_screens, html_shops, tex_pages
from scripts.wild.sheet import Sheet

Template = Callable[[random.Random, int], Sheet]

STYLES: dict[Template, int] = {
    html_shops.thermal_receipt: 3,
    html_shops.cafe_receipt: 3,
    html_shops.price_card: 3,
    html_shops.menu: 3,
    html_shops.parcel_label: 2,
    html_shops.ticket: 3,
    html_office.invoice: 4,
    html_office.letter: 2,
    html_office.form: 3,
    html_office.wide_table: 4,
    html_office.timetable: 2,
    html_office.slide: 2,
    html_office.two_columns: 1,
    html_screens.business_card: 3,
    html_screens.bars: 3,
    html_screens.line_chart: 1,
    html_screens.pie_chart: 2,
    html_screens.settings_screen: 2,
    html_screens.payments_screen: 2,
    html_screens.without_text: 9,
    tex_pages.letter: 2,
    tex_pages.invoice: 2,
    tex_pages.table: 3,
    tex_pages.bar_chart: 2,
    tex_pages.line_chart: 2,
    tex_pages.pie_chart: 1,
    tex_pages.slide: 2,
    tex_pages.menu: 2,
    tex_pages.timetable: 1,
    tex_pages.card: 2,
    tex_pages.ticket: 1,
    tex_pages.label: 2,
    tex_pages.two_columns: 1,
    tex_pages.receipt: 1,
    tex_pages.form: 1,
}
"""Template to how many styles of it are drawn, each once."""


def sheets(seed: int) -> Iterator[tuple[str, Sheet]]:
    """Yield every sheet with its name; its random numbers depend on seed and name alone."""
    for template, styles in STYLES.items():
        module = template.__module__.rpartition(".")[2].partition("_")[0]
        for style in range(styles):
            name = f"{module}_{template.__name__}_{style}"
            yield name, template(random.Random(f"{seed}/{name}"), style)
