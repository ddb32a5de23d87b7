"""The experts by stage and name. To add one, write its class and add a row."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from monkey.describe.expert import Expert

EXPERTS: Mapping[str, Mapping[str, str]] = {
    "images": {"opening": "housework:Opening"},
    "caption": {"blip2": "blip2:PictureCaptions", "monkey": "monkey_model:Descriptions"},
    "regions": {"florence2": "florence2:DenseCaptions", "none": "nothing:NoRegions"},
    "text": {"rapidocr": "rapid_ocr:RapidReader", "none": "nothing:NoText"},
    "segments": {"sam": "sam:AutomaticMasks", "none": "nothing:NoSegments"},
    "segment_captions": {
        "blip2": "blip2:SegmentCrops",
        "none": "nothing:NoSegmentCaptions",
    },
    "matching": {"blip2": "blip2:Matching", "none": "nothing:NoMatching"},
    "filters": {"thresholds": "housework:Thresholds"},
    "summary": {
        "openai": "endpoint:Endpoint",
        "transformers": "local_llm:LocalModel",
        "rules": "rule_summary:RuleSummary",
    },
}
"""Module in this package and class of each; a module is imported when one of its experts is chosen."""


def expert_class(stage: str, name: str) -> type[Expert]:
    """Raises ValueError naming the experts that the stage has."""
    known = EXPERTS[stage]
    if name not in known:
        raise ValueError(f"stages.{stage}.expert is {name!r}; there is {', '.join(known)}")
    module, _, found = known[name].partition(":")
    return getattr(importlib.import_module(f"monkey.describe.{module}"), found)
