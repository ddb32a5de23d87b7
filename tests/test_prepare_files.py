"""Preparing writes all files of a task or none, replaces nothing unasked, and names what is wrong with a release."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from eval.prepare import PREPARERS, prepare, write
from eval.prepare.__main__ import main
from eval.prepare.table import target_of
from tests import official_releases
from tests.official_releases import RELEASES, files_below, lines, picture, question_file, rotations, write_json


@pytest.fixture
def release(tmp_path) -> Path:
    (tmp_path / "release").mkdir()
    return tmp_path / "release"


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "root"


def test_second_run_changes_nothing(release, root):
    official_releases.chartqa(release)
    prepare("chartqa", release, root, allow_count=True)
    before = files_below(root)
    times = {path: (root / path).stat().st_mtime_ns for path in before}
    prepare("chartqa", release, root, allow_count=True)
    assert files_below(root) == before
    assert {path: (root / path).stat().st_mtime_ns for path in before} == times


def test_same_release_gives_the_same_bytes_anywhere(release, tmp_path):
    for name, write_release in RELEASES.items():
        write_release(release / name)
        roots = [tmp_path / name / part for part in "ab"]
        for root in roots:
            prepare(name, release / name, root, allow_count=True)
        assert files_below(roots[0]) == files_below(roots[1])


@pytest.mark.parametrize("what", ["picture", "questions", "manifest"])
def test_other_files_are_not_overwritten_unasked(what, release, root):
    official_releases.chartqa(release)
    place = {
        "picture": root / "data/chartqa/test/human.png",
        "questions": question_file(root, "chartqa"),
        "manifest": root / "data/chartqa/chartqa.manifest.json",
    }[what]
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    with pytest.raises(FileExistsError, match=f"{place.name} is there with other content; --overwrite replaces it"):
        prepare("chartqa", release, root, allow_count=True)
    assert [path for path in root.rglob("*") if path.is_file()] == [place]
    assert place.read_text() == "mine"
    prepare("chartqa", release, root, allow_count=True, overwrite=True)
    assert len(lines(root, "chartqa")) == 3
    assert place.read_bytes() != b"mine"


@pytest.mark.parametrize("seed", range(6))
def test_failure_while_moving_puts_everything_back(seed, release, root, monkeypatch):
    official_releases.chartqa(release)
    prepare("chartqa", release, root, allow_count=True)
    before = files_below(root)
    picture(release / "ChartQA Dataset/test/png/human.png", 99)
    rows = [{"imgname": "human.png", "query": "Another?", "label": "1"}]
    write_json(release / "ChartQA Dataset/test/test_human.json", rows)

    replace, calls, fails_at = os.replace, [], random.Random(seed).randint(1, 6)

    def failing(source, place):
        calls.append(place)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        replace(source, place)

    monkeypatch.setattr(write.os, "replace", failing)
    with pytest.raises(OSError, match="No space left"):
        prepare("chartqa", release, root, allow_count=True, overwrite=True)
    assert files_below(root) == before
    assert not list(root.glob(".preparing-*"))


def test_stop_while_writing_leaves_nothing(release, root, monkeypatch, capsys):
    official_releases.chartqa(release)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(write.shutil, "copyfile", stopped)
    assert main(["chartqa", "--src", str(release), "--out", str(root), "--allow-count"]) == 130
    assert list(root.iterdir()) == []
    assert "nothing was written" in capsys.readouterr().err


def test_release_that_lies_in_the_root_is_left_as_it_is(root):
    official_releases.textvqa(root / "data/textvqa")
    before = files_below(root)
    prepare("textvqa_val", root / "data/textvqa", root, allow_count=True)
    assert files_below(root).items() >= before.items()

    rotations(root / "data/textvqa", _003a8ae2ef43b901="90")
    before = files_below(root)
    with pytest.raises(ValueError, match=r"is the release's own .*turned.*give another --out"):
        prepare("textvqa_val", root / "data/textvqa", root, allow_count=True, overwrite=True)
    assert files_below(root) == before


def test_two_tasks_share_pictures(release, root):
    official_releases.textvqa(release)
    official_releases.textcaps(release)
    prepare("textvqa_val", release, root, allow_count=True)
    prepare("textcaps_val", release, root, allow_count=True)
    assert (root / "data/textvqa/train_images/0aa1.jpg").is_file()
    # With the list of rotations only one of them would turn what both show.
    rotations(release, _0aa1="180")
    with pytest.raises(FileExistsError, match=r"0aa1\.jpg is there with other content"):
        prepare("textcaps_val", release, root, allow_count=True)


def test_links_share_the_bytes_and_copies_do_not(release, tmp_path):
    official_releases.chartqa(release)
    source = release / "ChartQA Dataset/test/png/human.png"
    for name, links in (("copied", 1), ("linked", 2)):
        root = tmp_path / name
        prepare("chartqa", release, root, link=name == "linked", allow_count=True)
        place = root / "data/chartqa/test/human.png"
        assert place.stat().st_nlink == links
        assert place.samefile(source) is (name == "linked")
        assert not place.is_symlink()


def test_link_across_file_systems_is_one_sentence(release, root, monkeypatch):
    official_releases.chartqa(release)

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(write.os, "link", refuse)
    with pytest.raises(ValueError, match=r"cannot be linked.*Invalid cross-device link.*use --copy"):
        prepare("chartqa", release, root, link=True, allow_count=True)


def test_folder_of_the_root_that_leads_elsewhere_is_refused(release, root, tmp_path):
    official_releases.chartqa(release)
    (tmp_path / "elsewhere").mkdir()
    (root / "data").mkdir(parents=True)
    (root / "data/chartqa").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out of"):
        prepare("chartqa", release, root, allow_count=True)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# What a release can have wrong.


def human(release: Path, *rows: dict) -> None:
    official_releases.chartqa(release)
    write_json(release / "ChartQA Dataset/test/test_human.json", list(rows))


ROW = {"imgname": "human.png", "query": "How much?", "label": "1"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"imgname": 7.5, "label": None}, r"test_human\.json\[1\]: 'label' must be .* found null"),
        ({"query": ""}, r"test_human\.json\[1\]: the question is empty"),
        ({"query": "<img>x</img>"}, r"test_human\.json\[1\]: the question holds <img>"),
        ({"label": []}, r"test_human\.json\[1\]: 'label' is an empty list"),
        ({"label": ["a", {}]}, r"test_human\.json\[1\]: 'label\[1\]' must be a text .* found an object"),
        ({"imgname": "../../../x.png"}, r"test_human\.json\[1\]: .*leads out of"),
        ({"imgname": "http://example.org/x.png"}, r"test_human\.json\[1\]: .*leads out of|no picture"),
    ],
)
def test_bad_row_is_named_by_file_and_index(changes, sentence, release, root):
    (release.parent / "x.png").write_bytes(b"")
    human(release, ROW, ROW | changes)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as caught:
        prepare("chartqa", release, root, allow_count=True)
    assert "\n" not in str(caught.value)
    assert not root.exists()


def test_missing_key_is_named(release, root):
    human(release, {"imgname": "human.png", "query": "?"})
    with pytest.raises(ValueError, match=r"\[0\]: the key 'label' is missing; there are 'imgname', 'query'"):
        prepare("chartqa", release, root, allow_count=True)


def test_symbolic_link_out_of_the_release_is_not_followed(release, root, tmp_path):
    human(release, ROW)
    outside = picture(tmp_path / "outside.png")
    link = release / "ChartQA Dataset/test/png/human.png"
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of"):
        prepare("chartqa", release, root, allow_count=True)


def test_missing_and_broken_pictures_are_counted_and_can_be_left_out(release, root, capsys):
    human(release, ROW, ROW | {"imgname": "gone.png"}, ROW | {"imgname": "page.png"}, ROW | {"imgname": "gone.png"})
    (release / "ChartQA Dataset/test/png/page.png").write_text("<html>not found</html>")
    with pytest.raises(FileNotFoundError, match=r"\[1\]: no picture .*gone\.png.*; 2 pictures .*--allow-missing"):
        prepare("chartqa", release, root, allow_count=True)
    command = ["chartqa", "--src", str(release), "--out", str(root), "--allow-count", "--allow-missing"]
    assert main(command) == 0
    assert "2 pictures are missing or cannot be opened, and 3 questions were left out" in capsys.readouterr().out
    manifest = json.loads((root / "data/chartqa/chartqa.manifest.json").read_text())
    assert manifest["questions_without_picture"] == 3
    assert manifest["pictures_missing"] == 2
    assert len(manifest["pictures_missing_first"]) == 2
    assert len(lines(root, "chartqa")) == 2


def test_ids_that_occur_twice_are_refused(release, root):
    official_releases.textvqa(release)
    path = release / "TextVQA_0.5.1_val.json"
    data = json.loads(path.read_text())
    data["data"][1]["question_id"] = str(data["data"][0]["question_id"])
    write_json(path, data)
    with pytest.raises(ValueError, match=r"\[1\]: question_id '34602' was given before, at .*\[0\]; ids must differ"):
        prepare("textvqa_val", release, root, allow_count=True)


def test_malformed_json_is_named_by_line_and_column(release, root):
    official_releases.chartqa(release)
    path = release / "ChartQA Dataset/test/test_human.json"
    path.write_text('[\n{"imgname": }]')
    with pytest.raises(ValueError, match=r"test_human\.json is no JSON: .*line 2 column 13"):
        prepare("chartqa", release, root, allow_count=True)


def test_annotations_that_lack_a_question_are_refused(release, root):
    official_releases.okvqa(release)
    path = release / "mscoco_val2014_annotations.json"
    write_json(path, {"annotations": json.loads(path.read_text())["annotations"][:2]})
    with pytest.raises(ValueError, match=r"question_id 42000 has no answers in .*mscoco_val2014_annotations\.json"):
        prepare("okvqa_val", release, root, allow_count=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["chartqaa", "--src", "."], "no preparer for 'chartqaa'"),
        (["chartqa"], "--src is needed: the folder of the release, with test/test_human.json"),
        ([], "give the name of a task"),
        (["chartqa", "--src", "nowhere"], "--src nowhere: no such folder"),
        (["chartqa", "--src", "{empty}"], "holds no test/test_human.json and no ChartQA Dataset/test/test_human.json"),
    ],
)
def test_mistake_is_one_sentence_and_two(words, sentence, release, capsys):
    assert main([word.format(empty=release) for word in words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_list_names_needs_source_terms_and_files_of_every_task(capsys):
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    for name, preparer in PREPARERS.items():
        for text in (name, preparer.needs, preparer.source, preparer.terms, target_of(name).file):
            assert text in said
    assert said.count("as remembered, not verified") == len(PREPARERS)


def test_command_says_what_was_made_and_under_which_terms(release, root, capsys):
    official_releases.vizwiz(release)
    assert main(["vizwiz_val", "--src", str(release), "--out", str(root), "--allow-count"]) == 0
    said = capsys.readouterr().out
    for text in (
        "2 questions of 4,319, 2 pictures",
        "answer_id",
        "CC BY 4.0 (as remembered",
        "vizwiz.org",
        "manifest:",
    ):
        assert text in said
