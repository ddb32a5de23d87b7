"""The report is one file that loads nothing, says what it leaves out, and treats every text of a run as hostile."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from eval import report
from eval.compare import compare_runs
from eval.metrics import METRICS
from eval.report import report_html
from eval.report_rows import Limits, chosen_rows, thumbnail, thumbnails
from eval.run_folder import open_run
from tests.stored_run import answers, write_pictures, write_task

HOSTILE = "</script><script>window.harmed=1</script><!-- \u2028\u2029 \" ' & &amp; <img src=x onerror=window.harmed=1>"
ROWS = [row % 3 == 0 for row in range(12)]


class Reader(HTMLParser):
    """Elements and the text of each script of a page, as a browser's parser takes them apart."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside is None:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def images(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture
def run(tmp_path) -> Path:
    write_pictures(tmp_path, 6)
    folder = write_task(
        tmp_path / "run",
        "sums",
        answers(ROWS),
        changes={1: {"stop": "length"}, 2: {"question": HOSTILE, "answer": HOSTILE, "prompt": HOSTILE}},
        note="a note <b>&",
        cut_off_at_max_new_tokens=1,
    )
    return write_task(folder, "words", [("abcd", ["abce"]), ("x", ["x"])], "anls", "strict")


@pytest.fixture
def other(tmp_path) -> Path:
    changed = {2: {"question": HOSTILE, "answer": "thing 2", "prompt": HOSTILE}}
    return write_task(tmp_path / "other", "sums", answers([not good for good in ROWS]), changes=changed)


def page_of(*folders: Path, **options) -> Reader:
    return Reader(report_html(*map(open_run, folders), **options))


def test_the_table_shows_score_interval_ceiling_and_published_scores(run):
    opened = open_run(run)
    text = page_of(run).text
    low, high = opened.tasks["sums"].headline["interval"]
    assert f"sums 12 accuracy 33.33 {low:.2f} – {high:.2f} 100.00" in text
    assert "65.1 60.2" in text
    assert "words 2 anls (strict)" in text
    for variant in (*opened.tasks["sums"].results["scores"], "strict", "stripped"):
        assert variant in text
    assert "a note <b>&" in text
    assert "1 answers were cut off at 10 tokens." in text
    assert '"<img></img> {question} Answer: "' in text


def test_every_row_is_in_the_page_with_all_that_belongs_to_it(run):
    data = page_of(run).data
    (sums, words) = data["tasks"]
    assert [row["row"] for row in sums["rows"]] == list(range(12))
    row = sums["rows"][1]
    assert (row["id"], row["question"], row["references"]) == (101, "What is number 1?", ["thing 1", "x"])
    assert row["answers"] == [{"text": "no idea", "scores": [0.0, 0.0, 0.0, 0.0], "cut_off": True}]
    assert sums["variants"][sums["headline"]] == "official"
    assert words["variants"][words["headline"]] == "strict"
    by_variant = dict(zip(words["variants"], words["rows"][0]["answers"][0]["scores"], strict=True))
    assert by_variant == {**dict.fromkeys(METRICS["anls"].variants, 0.75), "exact": 0.0}
    assert data["runs"] == ["run"]


def test_hostile_text_stays_text(run, other):
    for html in (report_html(open_run(run)), report_html(open_run(run), open_run(other))):
        page = Reader(html)
        assert html.count("<script") == html.count("</script>") == 2
        assert "\u2028" not in html
        assert [row["question"] for row in page.data["tasks"][0]["rows"]][2] == HOSTILE
        assert page.data["tasks"][0]["rows"][2]["answers"][0]["text"] == HOSTILE
        assert all(image.startswith("data:image/svg+xml;base64,") for image in page.images)
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_names_of_a_run_are_hostile_too(tmp_path):
    evil = "<img src=x onerror=harm()>'\""
    folder = write_task(
        tmp_path / evil, evil, answers([True, False]), checkpoint={"path": evil}, note=evil, prompt={"text": evil},
        published={"monkey": 1.0, "qwen_vl": 2.0, "source": evil},
    )  # fmt: skip
    page = Reader(report_html(open_run(folder)))
    assert all(image.startswith("data:image/svg+xml;base64,") for image in page.images)
    assert page.text.count("onerror") >= 5


def test_the_page_can_load_nothing(run, other):
    html = report_html(open_run(run), open_run(other))
    page = Reader(html)
    policy = next(each["content"] for tag, each in page.tags if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    links = [each[name] for _, each in page.tags for name in ("src", "href", "action") if name in each]
    assert all(link.startswith("data:") for link in links)
    outside_of_data = html.replace(page.scripts[0], "")
    assert not re.findall(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", outside_of_data)
    assert "innerHTML" not in html


def test_two_runs_show_both_answers_and_what_changed(run, other):
    page = page_of(run, other)
    assert page.data["runs"] == ["run", "other"]
    (sums,) = page.data["tasks"]
    assert [answer["text"] for answer in sums["rows"][2]["answers"]] == [HOSTILE, "thing 2"]
    (compared,) = compare_runs(open_run(run), open_run(other)).tasks
    assert f"{100 * compared.difference.value:+.2f}" in page.text
    assert "Only in run, not compared: words." in page.text
    assert "another answer" in page.text
    first, second = (100 * value for value in (compared.value_first, compared.value_second))
    assert f"sums {first:.2f} → {second:.2f}" in page.text


def test_scores_stored_without_intervals_get_them(run):
    path = run / "sums" / "results.json"
    content = json.loads(path.read_text())
    expected = content["scores"]["official"]["interval"]
    for figures in content["scores"].values():
        del figures["interval"], figures["standard_error"], figures["interval_method"], figures["clusters"]
    path.write_text(json.dumps(content))
    assert f"{expected[0]:.2f} – {expected[1]:.2f}" in page_of(run).text


class TestLimits:
    def test_notable_rows_come_first_and_the_page_says_how_many(self, tmp_path):
        marked = {row: {"stop": "length"} for row in (7, 50)}
        folder = write_task(tmp_path / "run", "sums", answers([True] * 100), changes=marked)
        shown = chosen_rows([open_run(folder).tasks["sums"]], 10)
        rows = [row[0]["row"] for row in shown.rows]
        assert len(rows) == 10
        assert rows == sorted(rows)
        assert {7, 50} <= set(rows)
        assert chosen_rows([open_run(folder).tasks["sums"]], 10).rows == shown.rows
        # Not only notable rows are shown, and those on which two runs differ are notable.
        assert chosen_rows([open_run(folder).tasks["sums"]], 2).notable == 1
        other = write_task(tmp_path / "other", "sums", answers([row != 31 for row in range(100)]))
        both = chosen_rows([open_run(one).tasks["sums"] for one in (folder, other)], 6)
        assert {7, 31, 50} <= {row[0]["row"] for row in both.rows}
        text = page_of(folder, limits=Limits(questions=10)).text
        assert "sums: 10 of 100, of which 2 were chosen because an answer is cut off" in text
        assert "and 8 at random" in text

    def test_charts_count_what_the_browser_does_not_show(self, tmp_path):
        folder = write_task(tmp_path / "run", "sums", answers([row % 4 > 0 for row in range(40)]))
        html = report_html(open_run(folder), limits=Limits(questions=4))
        assert "score 0: 10, between: 0, score 1: 30" in html
        assert len(Reader(html).data["tasks"][0]["rows"]) == 4

    def test_pictures_are_few_small_and_shared(self, run, tmp_path):
        opened = [open_run(run).tasks["sums"]]
        shown = [chosen_rows(opened, 100)]
        pictures = thumbnails(shown, Limits(pictures=4), tmp_path)
        assert (len(pictures.uris), pictures.missing, pictures.left_out) == (4, 0, 2)
        head, content = pictures.uris[0].split(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as small:
            assert small.size == (320, 213)
        assert len(thumbnails(shown, Limits(picture_bytes=1), tmp_path).uris) == 1
        text = page_of(run, limits=Limits(pictures=4), image_root=tmp_path).text
        assert "2 images were left out: this page holds at most 4 of them and stops at 12 MB." in text

    def test_images_that_cannot_be_opened_are_counted(self, run, tmp_path):
        assert "6 images could not be opened here." in page_of(run).text
        (tmp_path / "images" / "0.png").write_text("no picture")
        content = (tmp_path / "images" / "1.png").read_bytes()
        (tmp_path / "images" / "1.png").write_bytes(content[: len(content) // 2])
        page = page_of(run, image_root=tmp_path)
        assert "2 images could not be opened here." in page.text
        assert page.data["tasks"][0]["rows"][0]["picture"] is None
        assert page.data["tasks"][0]["rows"][4]["picture"] is not None

    @pytest.mark.parametrize("mode", ["LA", "CMYK"])
    def test_any_kind_of_picture_becomes_a_jpeg(self, tmp_path, mode):
        Image.new(mode, (50, 2000)).save(tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
        (path,) = tmp_path.glob("x.*")
        with Image.open(io.BytesIO(thumbnail(str(path), 100))) as small:
            assert (small.format, small.mode, small.height) == ("JPEG", "RGB", 100)

    def test_a_very_long_answer_is_clipped_and_says_so(self, tmp_path):
        folder = write_task(tmp_path / "run", "sums", [("x" * 50_000, ["y"] * 40)])
        row = page_of(folder).data["tasks"][0]["rows"][0]
        assert row["answers"][0]["text"].endswith("… (46000 more characters)")
        assert len(row["references"]) == 31
        assert row["references"][-1] == "… and 10 more"


def test_the_page_goes_where_it_is_told(run, other, tmp_path, capsys):
    assert report.main([str(run)]) == 0
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert report.main([str(run), str(other)]) == 0
    assert (other / "report-vs-run.html").is_file()
    assert report.main([str(run), "--output", str(tmp_path / "page.html"), "--tasks", "words", "--questions", "1"]) == 0
    assert len(Reader((tmp_path / "page.html").read_text(encoding="utf-8")).data["tasks"]) == 1
    capsys.readouterr()
    short = write_task(tmp_path / "short", "sums", answers(ROWS[:5]))
    assert report.main([str(run), str(short)]) == 2
    assert "rows are not in" in capsys.readouterr().err
    assert not list(short.glob("*.html"))
    assert report.main([str(run), "--output", str(tmp_path / "no" / "page.html")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert report.main([str(run), "--questions", "-1"]) == 2
    assert "--questions -1 must not be negative" in capsys.readouterr().err
    assert report.main([str(run), str(other), "--format", "md"]) == 2
    assert "python -m eval.compare prints two" in capsys.readouterr().err
    assert report.main([str(run), "--format", "tex"]) == 0
    assert capsys.readouterr().out.startswith("\\begin{tabular}")
