"""A run of descriptions, whole and gone on with after it was killed: `described.json` of the outside.

The captions of the killed run were marked as kept, so that asking for them again shows.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.golden.outside.observed import HALF_DESCRIBED, KEPT, description_run, recorded

pytestmark = pytest.mark.slow

RECORDED = recorded("described.json")


def flattened(value: Any, place: str = "") -> dict[str, Any]:
    """The values at the ends of JSON content by where they stand."""
    if isinstance(value, (dict, list)) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: one for key, part in pairs for name, one in flattened(part, f"{place}/{key}").items()}
    return {place: value}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Texts and counts are equal, scores and places nearly."""
    one, other = flattened(found), flattened(expected)
    assert one.keys() == other.keys()
    different = {
        place: (one[place], other[place])
        for place in one
        if one[place] != (pytest.approx(other[place], abs=2e-4) if isinstance(other[place], float) else other[place])
    }
    assert not different


def test_a_run_sees_drops_and_writes_what_it_did(tmp_path):
    pytest.importorskip("rapidocr")
    assert_same(description_run(tmp_path), RECORDED["whole"])


def test_a_killed_run_goes_on_without_asking_again(tmp_path):
    pytest.importorskip("rapidocr")
    found = description_run(tmp_path, HALF_DESCRIBED)
    assert all(row["text"].startswith(KEPT) for row in found["caption"])
    assert_same(found, RECORDED["goes on"])
