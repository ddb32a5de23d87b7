"""Statistics of a run count what its records hold, each picture once."""

from __future__ import annotations

import itertools
import json

import pytest
from PIL import Image

from monkey.describe.__main__ import main
from monkey.describe.finished import open_finished
from monkey.describe.records import Summary
from monkey.describe.statistics import MOST_BINS, count, distribution, histogram, statistics_of, words
from tests.described_run import results_of, write_run

TEXTS = ["A red ring is on it.", "The sign is red. It says “HARVEST”. It's old.", "One. Two. Three. Four. Five. Six 6."]


@pytest.fixture
def run(tmp_path):
    rows = [results_of(number, {"summary": text}) for number, text in enumerate(TEXTS)]
    broken = ("it has 6 sentences, more than 5", "it has digits")
    rows[2]["summary"] = Summary(TEXTS[2], broken, 2)
    rows.append(results_of(3))
    rows[3].pop("summary")
    rows.append(results_of(4))
    for stage in ("matching", "filters", "summary"):
        rows[4].pop(stage)
    return write_run(tmp_path, rows)


@pytest.fixture
def found(run):
    opened = open_finished(run)
    return statistics_of(opened, count(opened))


def test_words_and_sentences_are_those_of_the_descriptions(found):
    assert (found["pictures"], found["described"]) == (5, 3)
    # 6, 9 and 7 words; 1, 3 and 6 sentences.
    assert found["words"]["mean"] == pytest.approx(22 / 3, abs=1e-4)
    assert (found["words"]["median"], found["words"]["least"], found["words"]["most"]) == (7, 6, 9)
    assert found["words"]["sd"] == pytest.approx(1.5275, abs=1e-4)
    assert (found["sentences"]["median"], found["sentences"]["most"]) == (3, 6)


def test_filter_rates_are_by_source_and_reason_of_the_pictures_that_were_filtered(found):
    # Four pictures, each with what `results_of` states.
    region, text, segment = (found["filters"][source] for source in ("region", "text", "segment"))
    assert (region["candidates"], region["kept"], region["dropped"]) == (
        12,
        4,
        {"score": 4, "duplicate": 4, "empty": 0},
    )
    assert (text["candidates"], text["kept"], text["dropped"]) == (12, 4, {"score": 4, "duplicate": 0, "empty": 4})
    assert (segment["candidates"], segment["kept"]) == (8, 4)
    assert segment["dropped_shares"] == {"score": 0.5, "duplicate": 0.0, "empty": 0.0}
    assert found["kept_together"]["histogram"] == [[3, 3, 4]]


def test_flags_are_counted_by_rule_whatever_the_figure(found):
    assert found["flagged"] == {
        "count": 1,
        "share": 0.3333,
        "rules": {"it has … sentences, more than …": 1, "it has digits": 1},
        "asked_again": 1,
    }


def test_vocabulary_tells_words_apart_without_their_marks(found):
    vocabulary = found["vocabulary"]
    assert vocabulary["words"] == 22
    assert vocabulary["most_common"][:3] == [["red", 2], ["is", 2], ["it", 2]]
    assert words("It's a T-shirt, “HARVEST” – 3 çà 停车.") == ["it's", "a", "t-shirt", "harvest", "3", "çà", "停车"]


@pytest.mark.parametrize("values", [[5], [0, 1, 2, 2], [*range(0, 1000, 7)], [3, 3, 400]])
def test_a_histogram_leaves_no_value_out_and_has_few_bins(values):
    bins = histogram(values)
    assert len(bins) <= MOST_BINS
    assert sum(number for _, _, number in bins) == len(values)
    for low, high, number in bins:
        assert sum(low <= value <= high for value in values) == number
    assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(bins))


def test_nothing_to_count_has_no_mean():
    assert distribution([]) == {"n": 0}


def test_the_command_prints_a_table_and_writes_json_and_a_chart(run, tmp_path, capsys):
    assert main(["stats", str(run)]) == 0
    out = capsys.readouterr().out
    assert "run: 3 descriptions of 5 pictures" in out
    assert "flagged: 1 (33.3%); asked again: 1" in out
    assert json.loads((run / "statistics.json").read_text())["words"]["most"] == 9
    with Image.open(run / "statistics.png") as chart:
        assert chart.format == "PNG"
    assert main(["stats", str(run), "--output", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: --output {tmp_path / 'nowhere'}: no such folder\n"


def test_a_run_without_a_description_has_statistics_too(tmp_path):
    row = results_of(0)
    for stage in ("regions", "text", "segments", "segment_captions", "matching", "filters", "summary"):
        row.pop(stage)
    run = write_run(tmp_path, [row])
    assert main(["stats", str(run)]) == 0
    assert json.loads((run / "statistics.json").read_text())["flagged"]["share"] is None
