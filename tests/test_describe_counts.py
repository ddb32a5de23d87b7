"""Statistics of a run and sweeps over its thresholds count what its records hold, each image once."""

from __future__ import annotations

import csv
import itertools
import json

import pytest

from monkey.describe.__main__ import main
from monkey.describe.counts import MAX_BINS, distribution, draw_sample, statistics_of, values_of
from monkey.describe.filters import Thresholds
from monkey.describe.findings import Summary
from monkey.describe.output import FinishedRun
from tests.described_run import results_of, write_run
from tests.test_describe_run import refusal

TEXTS = ["A red ring is on it.", "The sign is red. It says “HARVEST”. It's old.", "One. Two. Three. Four. Five. Six 6."]


@pytest.fixture
def run(tmp_path):
    """Five images: three with a description, one without, and one that was not filtered."""
    rows = [results_of(number, {"summary": text}) for number, text in enumerate([*TEXTS, "", ""])]
    rows[2]["summary"] = Summary(TEXTS[2], ("it has 6 sentences, more than 5", "it has digits"), 2)
    for row, stages in ((3, ("summary",)), (4, ("matching", "filters", "summary"))):
        rows[row] = {stage: result for stage, result in rows[row].items() if stage not in stages}
    return write_run(tmp_path, rows)


def test_statistics_are_those_of_the_records(run):
    found = statistics_of(FinishedRun(run))
    assert (found["pictures"], found["described"]) == (5, 3)
    # 6, 9 and 7 words; 1, 3 and 6 sentences.
    assert found["words"]["mean"] == pytest.approx(22 / 3, abs=1e-4)
    assert [found["words"][name] for name in ("median", "least", "most", "sd")] == [7, 6, 9, 1.5275]
    assert (found["sentences"]["median"], found["sentences"]["most"]) == (3, 6)
    # Four images were filtered, each with what `results_of` states.
    region, text, segment = (found["filters"][source] for source in ("region", "text", "segment"))
    assert (region["candidates"], region["kept"]) == (text["candidates"], text["kept"]) == (12, 4)
    assert region["dropped"] == {"score": 4, "duplicate": 4, "empty": 0}
    assert text["dropped"] == {"score": 4, "duplicate": 0, "empty": 4}
    assert segment["dropped_shares"] == {"score": 0.5, "duplicate": 0.0, "empty": 0.0}
    assert found["kept_together"]["histogram"] == [[3, 3, 4]]
    rules = {"it has … sentences, more than …": 1, "it has digits": 1}
    assert found["flagged"] == {"count": 1, "share": 0.3333, "rules": rules, "asked_again": 1}
    assert found["vocabulary"]["words"] == 22
    assert found["vocabulary"]["most_common"][:3] == [["red", 2], ["is", 2], ["it", 2]]


@pytest.mark.parametrize("values", [[5], [0, 1, 2, 2], [*range(0, 1000, 7)], [3, 3, 400]])
def test_a_histogram_leaves_no_value_out_and_has_few_bins(values):
    bins = distribution(values)["histogram"]
    assert len(bins) <= MAX_BINS
    assert [count for *_, count in bins] == [sum(low <= value <= high for value in values) for low, high, _ in bins]
    assert sum(count for *_, count in bins) == len(values)
    assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(bins))


def test_stats_prints_a_table_and_writes_json_and_a_chart(run, tmp_path, capsys):
    assert main(["stats", str(run)]) == 0
    out = capsys.readouterr().out
    assert "run: 3 descriptions of 5 images" in out
    assert "flagged: 1" in out
    assert json.loads((run / "statistics.json").read_text())["words"]["most"] == 9
    assert "<svg" in (run / "statistics.svg").read_text()
    assert "nowhere: no such folder" in refusal(
        capsys, main(["stats", str(run), "--output", str(tmp_path / "nowhere")])
    )


def test_a_run_without_a_description_has_statistics_too(tmp_path):
    row = {stage: result for stage, result in results_of(0).items() if stage in ("images", "caption")}
    run = write_run(tmp_path, [row])
    assert main(["stats", str(run)]) == 0
    found = json.loads((run / "statistics.json").read_text())
    assert (found["flagged"]["share"], found["words"]) == (None, {"n": 0})


def test_a_sweep_moves_one_threshold_and_says_what_is_kept_in_three_forms(run, capsys):
    words = ["--region-score", "0.2,0.8,0.9", "--segment-score", "0:1:0.5", "--text-score", "0.5"]
    assert main(["sweep", str(run), *words, "--overlap", "0.97,0.98"]) == 0
    assert "region_score 0.4 *" in capsys.readouterr().out
    with (run / "sweep.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    kept = {(row["threshold"], float(row["value"])): row for row in table}
    assert {name for name, row in kept.items() if row["own"] == "1"} == {
        ("region_score", 0.4), ("segment_score", 0.5), ("text_score", 0.85), ("overlap", 0.6),
    }  # fmt: skip
    # Scores of the regions are 0.9, 0.8 (a duplicate of the first) and 0.3; their boxes share 0.975 of their union.
    regions = {value: kept["region_score", value] for value in (0.2, 0.4, 0.8, 0.9)}
    assert [row["regions_kept"] for row in regions.values()] == ["8", "4", "4", "0"]
    assert [row["regions_duplicate"] for row in regions.values()] == ["4", "4", "0", "0"]
    assert (
        {row["texts_kept"] for row in regions.values()} == {row["segments_kept"] for row in regions.values()} == {"4"}
    )
    assert [kept["overlap", value]["regions_kept"] for value in (0.97, 0.98)] == ["4", "8"]
    content = json.loads((run / "sweep.json").read_text())
    assert (content["pictures"], content["own"]["region_score"]) == (4, 0.4)
    assert [str(row["regions_kept"]) for row in content["rows"]] == [row["regions_kept"] for row in table]
    assert "<svg" in (run / "sweep.svg").read_text()


def test_a_sample_depends_on_its_seed_and_grows_by_adding(tmp_path):
    run = FinishedRun(write_run(tmp_path, [results_of(number) for number in range(8)]))

    def drawn(size, seed):
        return [image.digest for image in draw_sample(run, size, seed)]

    assert drawn(8, 0)[:3] == drawn(3, 0)
    assert set(drawn(8, 0)) == set(drawn(99, 1))
    assert drawn(8, 0) != drawn(8, 1)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.7,0.5,0.5", [0.5, 0.7]),
        ("0.3:0.6:0.1", [0.3, 0.4, 0.5, 0.6]),
        ("0.3:0.65:0.1", [0.3, 0.4, 0.5, 0.6]),
        ("0:1:1", [0.0, 1.0]),
        ("0.4:0.4:0.1", [0.4]),
    ],
)
def test_ranges_hold_both_ends(text, values):
    assert values_of(text, "--overlap") == values


def test_what_cannot_be_swept_is_refused_with_its_flag(run, tmp_path, capsys):
    for text in ("", "high", "0.2:0.4", "0.4:0.2:0.1", "0:1:0", "0:1:0.0001", "-0.1,0.2", "nan", "0:2:1"):
        assert "error: --overlap" in refusal(capsys, main(["sweep", str(run), f"--overlap={text}"]))
    assert "--sample 0 is too small" in refusal(capsys, main(["sweep", str(run), "--sample", "0"]))
    row = {stage: result for stage, result in results_of(0).items() if stage not in ("filters", "summary")}
    (tmp_path / "changed").mkdir()
    changed = write_run(tmp_path / "changed", [results_of(0, settings=Thresholds(region_score=0.2))])
    message = "filtered again with its own thresholds, signs/000000.png comes out otherwise than in its records"
    assert message in refusal(capsys, main(["sweep", str(changed)]))
    (tmp_path / "other").mkdir()
    other = write_run(tmp_path / "other", [row])
    assert "has no image that was filtered" in refusal(capsys, main(["sweep", str(other)]))
    manifest = json.loads((other / "manifest.json").read_text())
    del manifest["stages"]["filters"]["settings"]["overlap"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert "does not say the run's thresholds ('overlap')" in refusal(capsys, main(["sweep", str(other)]))
