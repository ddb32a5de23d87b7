"""The languages that the demo speaks."""

from __future__ import annotations

from monkey.serving.demo.chinese import CHINESE
from monkey.serving.demo.english import ENGLISH
from monkey.serving.demo.wording import Wording

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}
NAMES = (("English", "en"), ("中文", "zh"))
"""Languages as the page offers them, and their keys."""


def wording_of(language: object) -> Wording:
    """The wording of a key, English for anything else."""
    return LANGUAGES.get(language, ENGLISH) if isinstance(language, str) else ENGLISH


def preferred_language(accepted: str | None) -> str:
    """Key of the language that a browser's `Accept-Language` header puts first, English if we do not have it."""
    first = (accepted or "").split(",")[0].strip().lower()
    return "zh" if first.startswith("zh") else "en"
