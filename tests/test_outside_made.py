"""What the code made before its rooms were rebuilt opens, and what it left half done goes on: `made/` of the outside.

An answer of a half-done run was marked with "kept", so one that is asked again shows by losing that.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.golden.outside import observed
from tests.golden.outside.observed import KEPT, recorded
from tests.test_outside_training import RECORDED as LOSSES
from tests.test_outside_training import assert_same_losses

RECORDED = recorded("goes_on.json")


@pytest.fixture
def copied(tmp_path):
    """Copies what was made, so that going on changes the copy."""
    return lambda made: Path(shutil.copytree(made, tmp_path / made.name))


def test_a_checkpoint_answers_as_it_did():
    assert observed.answers_of_tiny(observed.CHECKPOINT) == RECORDED["checkpoint"]


def test_an_adapter_answers_as_it_did_on_its_base_and_merged_into_it(tmp_path):
    assert RECORDED["adapter"] != RECORDED["checkpoint"]
    assert observed.answers_of_tiny(observed.ADAPTER) == RECORDED["adapter"]
    merged = observed.merged(observed.ADAPTER, tmp_path / "merged")
    assert observed.answers_of_tiny(merged) == RECORDED["merged"] == RECORDED["adapter"]


def test_a_killed_training_run_goes_on_as_if_it_had_not_been(copied):
    """It was killed in its sixth step, two after its last checkpoint but one."""
    assert_same_losses(observed.resumed(copied(observed.HALF_TRAINED)), RECORDED["resumed"])
    assert_same_losses(RECORDED["resumed"], LOSSES["full-llm"])


def test_a_killed_evaluation_asks_what_was_not_answered(copied):
    found = observed.evaluated_on(copied(observed.HALF_EVALUATED))
    assert found == RECORDED["evaluated"]
    assert sum(raw.startswith(KEPT) for _, raw in found) == 12


def test_a_killed_ask_asks_what_was_not_answered(copied):
    output = copied(observed.HALF_ASKED) / "answers.jsonl"
    found = observed.asked_on(output)
    assert found == RECORDED["asked"]
    assert sum(answer.startswith(KEPT) for answer in found) == 16
    assert not output.with_name("answers.jsonl.part").exists()
