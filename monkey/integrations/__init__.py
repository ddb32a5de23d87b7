"""Monkey inside programs of others, which import these modules; nothing of the project does.

`lmms_eval`: a model of lmms-eval, found by the entry point `lmms_eval.models`.
"""

from __future__ import annotations

from typing import Any


def lmms_eval_manifest() -> Any:
    """Return the `ModelManifest` by which lmms-eval, 0.7 or later, knows `--model monkey`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = "monkey.integrations.lmms_eval"
    return ModelManifest("monkey", simple_class_path=f"{module}.MonkeySimple", chat_class_path=f"{module}.MonkeyChat")
