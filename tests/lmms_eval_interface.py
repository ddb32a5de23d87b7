"""The part of lmms-eval 0.7.3 that a model meets, as it is there: names, signatures, and what is made of results.

Stands in for the package where it is not installed; `tests/test_lmms_eval.py` compares the two where it is.
"""

from __future__ import annotations

import abc
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


def unwrap_generation_output(output: Any) -> tuple[Any, TokenCounts | None]:
    if isinstance(output, GenerationResult):
        return output.text, output.token_counts
    if isinstance(output, str):
        return output, None
    # A pair of a number and a truth value is made a text.
    return str(output), None


@dataclass
class Instance:
    request_type: str
    arguments: tuple
    idx: int
    metadata: dict = field(default_factory=dict)
    resps: list = field(default_factory=list)
    filtered_resps: dict = field(default_factory=dict)
    raw_filtered_resps: dict = field(default_factory=dict)
    token_counts: list = field(default_factory=list)
    task_name: str = None
    doc_id: str = None
    repeats: str = None
    doc: dict = None

    def __post_init__(self) -> None:
        self.task_name, self.doc_id = self.metadata["task"], self.metadata["doc_id"]
        self.repeats = self.metadata["repeats"]

    @property
    def args(self) -> tuple:
        return self.arguments if isinstance(self.arguments, tuple) else (self.arguments,)


class lmms(abc.ABC):
    is_simple: bool = True

    def __init__(self) -> None:
        self._rank = 0
        self._world_size = 1
        self.cache_hook = None
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None):
        """Build from `name=value,name=value`; here without lmms-eval's quotes, lists and numbers with a point."""
        words = dict(part.split("=", 1) for part in arg_string.split(",") if part)
        read = {name: int(value) if value.isnumeric() else value for name, value in words.items()}
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**read, **more)

    @property
    def rank(self):
        return self._rank

    @property
    def world_size(self):
        return self._world_size

    def clean(self):
        self.accelerator.free_memory()


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


STAND_INS = {
    "lmms_eval.api.instance": (Instance, GenerationResult, TokenCounts, unwrap_generation_output),
    "lmms_eval.api.model": (lmms,),
    "lmms_eval.models.registry_v2": (ModelManifest,),
}
"""What stands where."""


def stand_in(patch: Any) -> None:
    """Make the modules importable, as long as a patch of pytest's lasts."""
    for name, content in STAND_INS.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            package = ".".join(parts[:end])
            if package not in sys.modules:
                patch.setitem(sys.modules, package, ModuleType(package))
        for one in content:
            setattr(sys.modules[name], one.__name__, one)
