"""Words of the sheets, made up or of everyday life; none is taken from the lists that training pages draw from."""

from __future__ import annotations

import random
from collections.abc import Sequence

PEOPLE = (
    "Ingrid Halvorsen", "Tomasz Bielak", "Aoife Brennan", "Rafael Quintero", "Mei Tanabe", "Lukas Oberholzer",
    "Priya Raman", "Gwendolyn Ashby", "Matteo Ferraris", "Saskia de Wit", "Oluwaseun Bello", "Jérôme Lacaze",
    "Katrin Möller", "Duncan Abernathy", "Helena Vasquez", "Yusuf Demir", "Nadia Kowalczyk", "Piers Wolstenholme",
    "Beatriz Almeida", "Anselm Krüger", "Fiona Tulloch", "Emre Yildiz", "Clémence Aubry", "Viktor Szabo",
    "Harriet Longstaff", "Jonas Engström", "Paloma Iglesias", "Wendell Crutchfield", "Zofia Marek", "Callum Drury",
)  # fmt: skip
FIRMS = (
    "Harrow & Pike", "Lindqvist Optik", "Tamarisk Supplies", "Corvid Press", "Northgate Tiles", "Peregrine Cycles",
    "Blue Anvil Tools", "Sable Row Textiles", "Ostler Brothers", "Juniper Glassworks", "Kestrel Freight",
    "Mirador Lighting", "Fenwick Pumps", "Quayside Marine", "Thistle Bakery", "Umber Paints", "Vantage Joinery",
    "Wren & Hollis", "Zephyr Sails", "Ironbark Timber", "Dovecote Linens", "Gilded Fern", "Saltmarsh Foods",
)  # fmt: skip
STREETS = (
    "14 Tannery Lane", "207 Copper Street", "9 Old Mill Road", "88 Harbour View", "31 Larkspur Avenue",
    "5 Cobbler's Yard", "416 Juniper Way", "62 Bellfounder Close", "173 Station Parade", "20 Windlass Quay",
)  # fmt: skip
TOWNS = (
    "Marlowe", "Eastvale", "Port Hadley", "Kilbrannan", "Thornbury", "Ashcombe", "Wexley", "Dunmore", "Skelby",
    "Great Orton", "Fairlight", "Mossgate", "Penhollow", "Castle Rigg",
)  # fmt: skip


def names(rng: random.Random, pool: Sequence[str], count: int) -> list[str]:
    return rng.sample(list(pool), count)


def code(rng: random.Random, form: str) -> str:
    """Return a form with each # as a digit and each @ as a capital."""
    letters = {"#": "0123456789", "@": "ABCDEFGHJKLMNPRSTUVWXYZ"}
    return "".join(rng.choice(letters[sign]) if sign in letters else sign for sign in form)
