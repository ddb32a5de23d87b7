"""The page of a run of descriptions is one bounded file that loads nothing and treats every text as hostile."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
from PIL import Image

from monkey.describe.__main__ import main
from monkey.describe.findings import Summary, unpack_mask
from tests.described_run import results_of, ring, write_run
from tests.test_describe_run import refusal

HOSTILE = "</script><script>window.harmed=1</script><!-- \u2028\u2029 \" ' & &amp; <img src=x onerror=window.harmed=1>"
KINDS = ("region", "line", "segment", "caption", "summary")


@pytest.fixture
def run(tmp_path):
    rows = [results_of(number) for number in range(6)]
    rows[1] = results_of(1, dict.fromkeys(KINDS, HOSTILE))
    rows[2]["summary"] = Summary("It has 3 digits.", ("it has digits",), 2)
    for stage in ("segment_captions", "matching", "filters", "summary"):
        rows[3].pop(stage)
    return write_run(tmp_path, rows, unreadable=["<b>bad</b>.png"])


def viewed(run, *flags) -> tuple[str, dict]:
    """The page and its data."""
    assert main(["view", str(run), *map(str, flags)]) == 0
    html = (run / "view.html").read_text(encoding="utf-8")
    return html, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html).group(1))


def refused(capsys, *words) -> str:
    return refusal(capsys, main([str(word) for word in words]))


def files(data) -> list[int]:
    return [int(entry["file"].removeprefix("signs/").removesuffix(".png")) for entry in data["entries"]]


def test_no_text_of_a_run_becomes_markup_and_nothing_is_loaded(run):
    html, data = viewed(run)
    assert html.count("<script") == 2
    places = [html.index(f'<section id="{section}"') for section in ("pictures", "problems", "stages")]
    assert places == sorted(places)
    assert "<img" not in html.split('id="data"')[0]
    assert "&lt;b&gt;bad&lt;/b&gt;.png" in html
    assert data["entries"][1]["description"]["text"] == HOSTILE
    assert "default-src 'none'" in html
    # The one address in it is SVG's name, which nobody asks for.
    assert set(re.findall(r"https?://[^\s\"'`]+", html)) == {"http://www.w3.org/2000/svg"}


def test_an_entry_has_all_that_is_known_of_a_picture(run):
    _, data = viewed(run)
    entry = data["entries"][0]
    assert (entry["file"], entry["size"], entry["state"]) == ("signs/000000.png", [120, 80], "good")
    fates = [(one["source"], one["dropped"]) for one in entry["candidates"]]
    assert fates == [
        ("region", None), ("region", "duplicate"), ("region", "score"), ("text", None), ("text", "score"),
        ("text", "empty"), ("segment", None), ("segment", "score"),
    ]  # fmt: skip
    assert entry["candidates"][2]["because"] == "its score is 0.3, not above 0.4"
    assert (unpack_mask(entry["candidates"][6]["mask"]) == ring(120, 80)).all()
    assert '"a red ring" [0.100, 0.100, 0.900, 0.900]' in entry["prompt"]
    assert "a blue pole" not in entry["prompt"]
    with Image.open(io.BytesIO(base64.b64decode(entry["picture"].split(",")[1]))) as small:
        assert small.size == (120, 80)


def test_a_picture_that_failed_shows_how_far_it_came(run):
    _, data = viewed(run, "--only", "failed")
    (entry,) = data["entries"]
    assert entry["failure"] == "segment_captions: the expert gave up"
    assert [one["source"] for one in entry["candidates"]] == ["region"] * 3 + ["text"] * 3 + ["segment"] * 2
    assert entry["prompt"] is entry["description"] is None


def test_pictures_are_chosen_by_state_name_and_hash(run):
    assert files(viewed(run, "--only", "flagged")[1]) == [2]
    _, everything = viewed(run)
    image = everything["entries"][4]["image"]
    assert files(viewed(run, "--ids", "signs/000005.png", image[:10].upper())[1]) == [4, 5]


def test_a_page_is_bounded_and_says_how_to_go_on(run, capsys):
    assert files(viewed(run, "--limit", 2)[1]) == [0, 1]
    assert "1 to 2 of 6; --start 2 goes on" in capsys.readouterr().out
    assert files(viewed(run, "--start", 4)[1]) == [4, 5]
    html, data = viewed(run, "--megabytes", 0.012)
    assert 1 <= len(data["entries"]) < 6
    assert "goes on" in html
    assert sum(len(json.dumps(entry)) for entry in data["entries"]) <= 12_000


def test_small_pictures_are_no_larger_than_asked(run):
    _, data = viewed(run, "--side", 30)
    with Image.open(io.BytesIO(base64.b64decode(data["entries"][0]["picture"].split(",")[1]))) as small:
        assert small.size == (30, 20)


def test_boxes_are_never_drawn_on_another_picture(run, tmp_path, capsys):
    (tmp_path / "pictures" / "signs" / "000000.png").unlink()
    Image.new("RGB", (120, 80), "white").save(tmp_path / "pictures" / "signs" / "000001.png")
    _, data = viewed(run)
    assert [entry["no_picture"] for entry in data["entries"][:3]] == [
        "it is not there", "its file has changed since the run", "",
    ]  # fmt: skip
    assert "2 images are not in" in capsys.readouterr().out


def test_a_record_leads_to_no_file_outside_the_folder(run, tmp_path):
    (tmp_path / "pictures" / "signs" / "000000.png").rename(tmp_path / "outside.png")
    path = run / "stages" / "images.jsonl"
    path.write_text(path.read_text().replace("signs/000000.png", "../outside.png"))
    assert main(["view", str(run), "--ids", "../outside.png"]) == 0
    assert "it is not there" in (run / "view.html").read_text()


def test_pictures_may_have_moved(run, tmp_path):
    (tmp_path / "pictures").rename(tmp_path / "moved")
    _, data = viewed(run, "--images", tmp_path / "moved")
    assert all(entry["picture"] for entry in data["entries"])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--ids", "signs/000009.png"], "has no image 'signs/000009.png'"),
        (["--ids", "signs/000001.png", "--only", "flagged"], "has no flagged image to show"),
        (["--start", "6"], "--start 6 leaves none of the 6 images"),
        (["--limit", "0"], "--limit 0 is too small: 1 or more is needed"),
        (["--megabytes", "0"], "--megabytes 0 must be above 0"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--output", "nowhere/view.html"], "the folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(run, capsys, flags, sentence):
    assert sentence in refused(capsys, "view", run, *flags)
    assert not (run / "view.html").exists()


@pytest.mark.parametrize("command", ["view", "stats", "sweep"])
def test_what_is_no_complete_run_is_said_in_a_sentence(run, tmp_path, capsys, command):
    assert "no such folder" in refused(capsys, command, tmp_path / "nowhere")
    assert "it is no run" in refused(capsys, command, tmp_path / "pictures")
    (run / "stages" / "text.jsonl").rename(run / "elsewhere")
    assert "lacks stages/text.jsonl; the run's command writes them anew" in refused(capsys, command, run)
    (run / "elsewhere").rename(run / "stages" / "text.jsonl")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "format": "another"}))
    assert "has the format 'another'" in refused(capsys, command, run)
    (run / "manifest.json").unlink()
    error = refused(capsys, command, run)
    assert f"go on with `python -m monkey.describe run --config {run / 'config.yaml'} --images FOLDER" in error


def test_a_damaged_mask_is_named(run, capsys):
    path = run / "stages" / "segments.jsonl"
    path.write_text(re.sub(r'"mask": "120x80:[^"]{8}', '"mask": "120x80:!!!!!!!!', path.read_text(), count=1))
    assert "is no mask" in refused(capsys, "view", run)
