"""What an expert is: a class that is opened with its settings, looks at a batch of pictures, and says what it sees."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from monkey.describe.records import Result


def how(default: Any) -> Any:
    """A setting of how the work is done, which changes no result: others do, and results are made anew with them."""
    return field(default=default, metadata={"changes_result": False})


@dataclass(frozen=True)
class ExpertSettings:
    """`batch_size` is what a model sees at a time: pictures, or crops of them."""

    batch_size: int = how(8)

    def check(self) -> None:
        """Raises ValueError, a clause that begins with the setting's name, for a value that cannot be followed."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, and 1 or more is needed")

    def that_change_results(self) -> dict[str, Any]:
        return {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            if entry.metadata.get("changes_result", True)
        }


@dataclass(frozen=True)
class Item:
    """One picture as an expert is given it: `results` are those of the stages that its own needs.

    `picture` is None where the expert does not look at pictures (`Expert.looks`).
    """

    image: str
    path: Path
    file: str
    also: tuple[str, ...]
    results: Mapping[str, Any]
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Failure:
    """No result for a picture, and why, as a sentence. `stops`: nor would there be one for any other picture."""

    problem: str
    stops: bool = False


@dataclass
class Spent:
    """What was asked of a language model."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, requests: int, prompt_tokens: int, completion_tokens: int) -> None:
        self.requests += requests
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def cost(self, settings: Any) -> float | None:
        """In the currency of the settings' prices for a million tokens; None without prices."""
        prices = getattr(settings, "prompt_price", None), getattr(settings, "completion_price", None)
        if None in prices:
            return None
        return round((self.prompt_tokens * prices[0] + self.completion_tokens * prices[1]) / 1_000_000, 6)


class Expert:
    """Opening one loads its weights, forgetting it frees them.

    `version` goes up when the code of an expert makes other results than before. `looks` says whether it is given
    opened pictures.
    """

    Settings: ClassVar[type[ExpertSettings]] = ExpertSettings
    version: ClassVar[int] = 1
    looks: ClassVar[bool] = True

    def __init__(self, settings: Any):
        self.settings = settings
        self.spent = Spent()

    @classmethod
    def identity(cls, settings: Any) -> Mapping[str, Any]:
        """What results depend on beside version and settings: weights, for one. Loads nothing.

        Raises ValueError or FileNotFoundError for a model that is missing or of another kind.
        """
        return {}

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        """A result or a failure for each picture, in their order."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop what the expert has started. Nothing, for most."""


def read_settings(kind: type[ExpertSettings], given: Mapping[str, Any], where: str) -> ExpertSettings:
    """Settings from a configuration's values. Raises ValueError naming the place, the key and what is allowed."""
    hints = typing.get_type_hints(kind)
    names = [entry.name for entry in dataclasses.fields(kind)]
    for name, value in given.items():
        if name not in names:
            raise ValueError(f"{where} has no setting {name!r}; there is {', '.join(names) or 'none'}")
        if not _is_of(value, hints[name]):
            raise ValueError(f"{where}.{name} is {value!r}, and {_named(hints[name])} is needed")
    values = {name: float(value) if hints[name] is float else value for name, value in given.items()}
    needed = [entry.name for entry in dataclasses.fields(kind) if entry.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{where} needs {' and '.join(missing)}")
    settings = kind(**values)
    try:
        settings.check()
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
    return settings


def _is_of(value: Any, kind: Any) -> bool:
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (float in kinds and isinstance(value, int))


def _named(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return " or ".join(words[one] for one in kinds)
