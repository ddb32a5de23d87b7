"""Token ids, labels and losses of every kind of record, and the ids of prompts: tests/golden/outside/records.jsonl."""

from __future__ import annotations

import json

import pytest

from tests.golden.outside.observed import RECORDS, prompts, recorded, records, rows_of
from tests.outside_doors import IMAGE_ROOT, SMALL, encode_records, in_runs

RECORDED = recorded("records_as_encoded.json")


@pytest.fixture(scope="module")
def now():
    return records()


@pytest.mark.parametrize("name", RECORDED)
def test_a_record_becomes_the_tokens_labels_and_loss_that_it_became(now, name):
    found, expected = now[name], RECORDED[name]
    assert {**found, "loss": None} == {**expected, "loss": None}
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_every_record_of_the_file_is_in_the_record():
    assert [row["id"] for row in rows_of(RECORDS)] == list(RECORDED)


def test_a_list_is_read_as_its_rows_one_a_line_are(tmp_path):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(rows_of(RECORDS), ensure_ascii=False, indent=1), encoding="utf-8")
    found = [(in_runs(one["ids"]), in_runs(one["labels"])) for one in encode_records(path, IMAGE_ROOT, SMALL)]
    assert found == [(one["ids"], one["labels"]) for one in RECORDED.values()]


@pytest.mark.parametrize("kind", ["processor", "chat template", "chat as text"])
def test_prompts_become_the_tokens_that_they_became(kind):
    assert prompts()[kind] == recorded("prompts.json")[kind]
