"""A sweep says what other thresholds would keep, as the filters themselves do it, without experts."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from monkey.describe.__main__ import main
from monkey.describe.filters import FilterSettings
from monkey.describe.finished import open_finished
from monkey.describe.sweep import own_settings, sample, swept, values_of
from tests.described_run import results_of, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path, [results_of(number) for number in range(8)])


def rows_of(run, **ranges) -> dict:
    opened = open_finished(run)
    own = own_settings(opened)
    return {row.value: row for row in swept(sample(opened, 100, 0), own, ranges)}


def test_a_region_threshold_moves_regions_alone(run):
    # Scores of the regions are 0.9, 0.8 (a duplicate of the first) and 0.3.
    rows = rows_of(run, region_score=[0.2, 0.8, 0.9])
    assert {value: row.kept["region"] for value, row in rows.items()} == {0.2: 16, 0.4: 8, 0.8: 8, 0.9: 0}
    assert {value: row.duplicates["region"] for value, row in rows.items()} == {0.2: 8, 0.4: 8, 0.8: 0, 0.9: 0}
    assert {row.kept["text"] for row in rows.values()} == {row.kept["segment"] for row in rows.values()} == {8}
    assert [value for value, row in rows.items() if row.own] == [0.4]
    assert rows[0.2].duplicate_rate("region") == pytest.approx(1 / 3)
    assert rows[0.9].duplicate_rate("region") == 0


def test_boxes_that_overlap_less_than_asked_are_two(run):
    # The two boxes of "a red sign" share 0.975 of their union.
    rows = rows_of(run, overlap=[0.97, 0.98])
    assert (rows[0.97].kept["region"], rows[0.98].kept["region"]) == (8, 16)


def test_a_sample_depends_on_its_seed_and_grows_by_adding(run):
    opened = open_finished(run)

    def drawn(size, seed):
        return [picture.image for picture in sample(opened, size, seed)]

    assert drawn(5, 0) == drawn(5, 0)
    assert drawn(8, 0)[:3] == drawn(3, 0)
    assert set(drawn(8, 0)) == set(drawn(99, 1))
    assert drawn(8, 0) != drawn(8, 1)


def test_pictures_that_were_not_filtered_are_left_out(tmp_path):
    rows = [results_of(number) for number in range(3)]
    for stage in ("filters", "summary"):
        rows[1].pop(stage)
    opened = open_finished(write_run(tmp_path, rows))
    assert len(sample(opened, 10, 0)) == 2


def test_the_command_writes_one_table_in_three_forms(run, capsys):
    words = ["--sample", "4", "--region-score", "0.2,0.3", "--segment-score", "0:1:0.5", "--text-score", "0.5"]
    assert main(["sweep", str(run), *words, "--overlap", "0.6"]) == 0
    assert "0.4   *" in capsys.readouterr().out
    with (run / "sweep.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    # The run's own value is among each threshold's.
    assert [(row["threshold"], float(row["value"]), row["own"]) for row in table] == [
        ("region_score", 0.2, "0"), ("region_score", 0.3, "0"), ("region_score", 0.4, "1"),
        ("segment_score", 0.0, "0"), ("segment_score", 0.5, "1"), ("segment_score", 1.0, "0"),
        ("text_score", 0.5, "0"), ("text_score", 0.85, "1"), ("overlap", 0.6, "1"),
    ]  # fmt: skip
    content = json.loads((run / "sweep.json").read_text())
    assert content["pictures"] == 4
    assert content["own"]["region_score"] == 0.4
    assert [str(row["regions_kept"]) for row in content["rows"]] == [row["regions_kept"] for row in table]
    with Image.open(run / "sweep.png") as chart:
        assert chart.format == "PNG"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5", [0.5]),
        ("0.7,0.5,0.5", [0.5, 0.7]),
        ("0.3:0.6:0.1", [0.3, 0.4, 0.5, 0.6]),
        ("0.3:0.65:0.1", [0.3, 0.4, 0.5, 0.6]),
        ("0:1:1", [0.0, 1.0]),
        ("0.4:0.4:0.1", [0.4]),
    ],
)
def test_ranges_hold_both_ends(text, values):
    assert values_of(text, "--overlap") == values


@pytest.mark.parametrize(
    "text", ["", "high", "0.2:0.4", "0.4:0.2:0.1", "0:1:0", "0:1:0.0001", "-0.1,0.2", "nan", "0:2:1"]
)
def test_what_is_no_range_is_refused_with_its_flag(run, capsys, text):
    assert main(["sweep", str(run), f"--overlap={text}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --overlap")
    assert error.count("\n") == 1


def test_records_that_its_own_thresholds_do_not_give_are_refused(tmp_path, capsys):
    row = results_of(0, settings=FilterSettings(region_score=0.1))
    run = write_run(tmp_path, [row])
    assert main(["sweep", str(run)]) == 2
    assert "signs/000000.png comes out otherwise than in its records" in capsys.readouterr().err


def test_a_run_without_thresholds_or_filtered_pictures_is_refused(tmp_path, capsys):
    row = results_of(0)
    row.pop("filters"), row.pop("summary")
    run = write_run(tmp_path, [row])
    assert main(["sweep", str(run)]) == 2
    assert "has no picture that was filtered" in capsys.readouterr().err
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["stages"]["filters"]["settings"]["overlap"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert main(["sweep", str(run)]) == 2
    assert "does not say the run's thresholds ('overlap')" in capsys.readouterr().err
    assert main(["sweep", str(run), "--sample", "0"]) == 2
    assert "--sample 0 is too small" in capsys.readouterr().err
