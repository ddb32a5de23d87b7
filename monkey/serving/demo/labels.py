"""Components whose words change with the language."""

from __future__ import annotations

from typing import Any, TypeVar

import gradio as gr

from monkey.serving.demo.english import ENGLISH
from monkey.serving.demo.wording import Wording

Kind = TypeVar("Kind")


class Labels:
    """Makes components in English, and knows how to say the same in another language."""

    def __init__(self) -> None:
        self._fields: dict[Any, dict[str, str]] = {}

    def make(self, kind: type[Kind], fields: dict[str, str], **settings: Any) -> Kind:
        """A component.

        Args:
            fields: of its arguments that are words, the field of `Wording` that says them.
            settings: its other arguments.
        """
        component = kind(**{name: getattr(ENGLISH, field) for name, field in fields.items()}, **settings)
        self._fields[component] = fields
        return component

    @property
    def components(self) -> list[Any]:
        return list(self._fields)

    def updates(self, words: Wording) -> list[dict]:
        """Values of `components` in another language."""
        return [
            gr.update(**{name: getattr(words, field) for name, field in fields.items()})
            for fields in self._fields.values()
        ]
