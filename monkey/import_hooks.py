"""What `import monkey` leaves for later, so that it need not import transformers and torch itself.

transformers' Auto factories find our classes at the first look-up, whichever of the two packages was imported first.

torchvision as PyPI has it cannot be imported beside a torch without CUDA, and where it is installed, transformers'
trainer and processors, all of PEFT and timm import it. It is then imported without its compiled operators, which
nothing here calls; whoever imports them before this package has the library's own error. One that works is left alone.
"""

from __future__ import annotations

import importlib
import sys
from collections import UserDict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

AUTO_MAPPINGS = {
    "transformers.models.auto.configuration_auto": "CONFIG_MAPPING",
    "transformers.models.auto.image_processing_auto": "IMAGE_PROCESSOR_MAPPING",
    "transformers.models.auto.modeling_auto": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "transformers.models.auto.processing_auto": "PROCESSOR_MAPPING",
    "transformers.models.auto.tokenization_auto": "TOKENIZER_MAPPING",
}
"""Modules of transformers, and the mapping in each that `monkey.registration` adds to."""

MODEL_TYPES = ("monkey", "qwen")
"""Of `config.json`, as our configurations name them."""

_declared: list[Any] = []
"""torch forgets the operators of a library that nobody holds."""


class _Registrations(UserDict):
    """The classes registered with one of transformers' mappings; whoever looks for ours, or at all, finds ours."""

    def __init__(self, registered: dict):
        self._registered = registered

    @property
    def data(self) -> dict:
        importlib.import_module("monkey.registration")
        return self._registered

    # The library looks its own keys up while it is imported, and ours could not be imported in its midst.
    def __contains__(self, key: Any) -> bool:
        return key in (self.data if _is_ours(key) else self._registered)

    def __getitem__(self, key: Any) -> Any:
        return (self.data if _is_ours(key) else self._registered)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._registered[key] = value


def _is_ours(key: Any) -> bool:
    """Whether a key, a model type or a class of configurations, is of this package."""
    return key in MODEL_TYPES or getattr(key, "__module__", "").startswith("monkey.")


def _add_ours(module: ModuleType) -> None:
    mapping = getattr(module, AUTO_MAPPINGS[module.__name__])
    mapping._extra_content = _Registrations(mapping._extra_content)


def _import_auto(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    _add_ours(module)


def _import_torchvision(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]  # left by an import that failed before `import monkey`
    try:
        execute(module)
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        execute(module)


class _Hooks(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            around = _import_torchvision
        elif fullname in AUTO_MAPPINGS:
            around = _import_auto
        else:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(around, spec.loader.exec_module)
        return spec


def install() -> None:
    """Do the above at the first import of each; at once for what is imported already."""
    sys.meta_path.insert(0, _Hooks())
    for name in AUTO_MAPPINGS:
        if name in sys.modules:
            _add_ours(sys.modules[name])
