"""A run of descriptions: from pictures to training records, in stages that go on after anything."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from monkey.data.mixture import open_records
from monkey.describe.__main__ import main
from monkey.describe.checks import Rules, problems_of
from monkey.describe.configuration import configuration_of, read_configuration
from monkey.describe.published import read_detailed_captions
from monkey.describe.records import RESULTS, FinishedRun
from monkey.prompts import DETAILED_CAPTION_AS_TRAINED
from tests.drawn import SAMPLES
from tests.scripted_experts import CONFIG, NOT_KNOWN, Scripted

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs" / "describe"

OUTPUTS = ("problems.jsonl", "train.json", "detailed_captions.json", *(f"stages/{stage}.jsonl" for stage in RESULTS))


def scripted(**changes) -> dict:
    """The configuration of scripted experts with some stages changed."""
    content = copy.deepcopy(CONFIG)
    for stage, settings in changes.items():
        content["stages"][stage] = {**content["stages"].get(stage, {}), **settings}
    return content


def describe(images: Path, output: Path, config: Path | dict | list = CONFIG, *more: str) -> int:
    if not isinstance(config, Path):
        path = output.parent / f"{output.name}.yaml"
        path.write_text(yaml.safe_dump(config))
        config = path
    return main(["run", "--config", str(config), "--images", str(images), "--output", str(output), "--quiet", *more])


def outputs_of(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in OUTPUTS}


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of drawn documents that a test may change."""
    shutil.copytree(SAMPLES, tmp_path / "set")
    return tmp_path / "set" / "images"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run over the sample pictures. Read-only."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert describe(SAMPLES / "images", run) == 0
    return run


class Calls:
    """Which pictures which expert was asked about."""

    def __init__(self, monkeypatch):
        self.seen: list[tuple[str, str]] = []
        told = Scripted.__call__

        def counted(expert, items):
            self.seen += [(type(expert).__name__, item.file) for item in items]
            return told(expert, items)

        monkeypatch.setattr(Scripted, "__call__", counted)

    def of(self, name: str) -> int:
        return sum(1 for expert, _ in self.seen if expert == name)


class TestWhole:
    def test_every_picture_has_a_description_that_keeps_the_rules(self, whole):
        found = list(read_detailed_captions(whole / "detailed_captions.json"))
        assert len(found) == 5
        assert all(not problems_of(caption.text, Rules()) for caption in found)

    def test_descriptions_say_what_the_experts_saw(self, whole):
        for caption in read_detailed_captions(whole / "detailed_captions.json"):
            assert caption.text.startswith("The picture shows a drawn document. A heading")
            assert "a table" in caption.text
            assert "The words “" in caption.text

    def test_training_records_ask_with_the_prompt_as_trained(self, whole):
        records = open_records(whole / "train.json", SAMPLES / "images")
        assert len(records) == 5
        for record in records:
            question, answer = record.conversation.messages
            assert question.text == DETAILED_CAPTION_AS_TRAINED
            assert answer.text.startswith("The picture shows ")
            assert record.images[0].is_file()

    def test_both_outputs_hold_the_same_descriptions(self, whole):
        trained = [row["conversations"][1]["value"] for row in json.loads((whole / "train.json").read_text())]
        published = json.loads((whole / "detailed_captions.json").read_text())
        assert [row["detailed_caption"] for row in published] == trained
        assert [list(row) for row in published] == [["img_id", "detailed_caption"]] * 5

    def test_every_stage_is_read_back_picture_by_picture(self, whole):
        run = FinishedRun(whole)
        found = list(run.pictures())
        assert len(run) == len(found) == 5
        assert all(list(picture.results) == list(RESULTS) for picture in found)
        kept = found[0]["filters"].kept
        assert tuple(one.text for one in kept if one.source == "text") == tuple(
            line.text for line in found[0]["text"].lines
        )
        # The table is seen as a region and as a segment.
        assert {one.dropped for one in found[0]["filters"].candidates} == {None, "duplicate"}

    def test_the_manifest_accounts_for_the_run(self, whole):
        manifest = FinishedRun(whole).manifest
        assert manifest["counts"] == {
            "files": 5, "pictures": 5, "repeated_files": 0, "bad_pictures": 0, "described": 5, "flagged": 0,
        }  # fmt: skip
        for stage in RESULTS:
            entry = manifest["stages"][stage]
            assert (entry["done"], entry["failed"]) == (5, 0)
            assert entry["pictures_per_second"] is None or entry["pictures_per_second"] > 0
        assert set(manifest["sha256"]) == set(OUTPUTS)
        assert manifest["versions"]["torch"]
        assert "no numbers" in manifest["prompts"]["rules"]

    def test_the_configuration_is_saved_with_every_value_and_opens_again(self, whole):
        saved = read_configuration(whole / "config.yaml")
        assert saved.text() == (whole / "config.yaml").read_text()
        assert saved.experts["filters"].settings.text_score == 0.85

    def test_running_again_asks_nobody_and_changes_no_byte(self, tmp_path, pictures, monkeypatch):
        describe(pictures, tmp_path / "run")
        before = outputs_of(tmp_path / "run")
        calls = Calls(monkeypatch)
        assert describe(pictures, tmp_path / "run") == 0
        assert calls.seen == []
        assert outputs_of(tmp_path / "run") == before


class TestChanges:
    def test_a_threshold_redoes_no_expert_and_only_the_descriptions_that_change(self, tmp_path, pictures, monkeypatch):
        (pictures / "heldout" / "000004.jpg").rename(pictures / "heldout" / "no-text.jpg")
        describe(pictures, tmp_path / "run")
        keys = {row["image"]: row["key"] for row in lines(tmp_path / "run", "summary")}
        calls = Calls(monkeypatch)
        assert describe(pictures, tmp_path / "run", scripted(filters={"overlap": 0.0})) == 0
        assert calls.seen == []
        # Every text has the score 1; nothing above it is kept.
        describe(pictures, tmp_path / "run", scripted(filters={"text_score": 1.0}))
        now = {row["image"]: row["key"] for row in lines(tmp_path / "run", "summary")}
        without = next(row["image"] for row in lines(tmp_path / "run", "images") if "no-text" in row["file"])
        assert [image for image in keys if keys[image] == now[image]] == [without]
        assert "can be read" not in (tmp_path / "run" / "train.json").read_text()

    def test_another_expert_redoes_what_depends_on_it_and_going_back_costs_nothing(
        self, tmp_path, pictures, monkeypatch
    ):
        describe(pictures, tmp_path / "run")
        first = outputs_of(tmp_path / "run")
        calls = Calls(monkeypatch)
        describe(pictures, tmp_path / "run", scripted(regions={"expert": "none"}))
        assert {name for name, _ in calls.seen} == {"ScriptedMatching"}
        assert outputs_of(tmp_path / "run")["stages/summary.jsonl"] != first["stages/summary.jsonl"]
        calls.seen.clear()
        describe(pictures, tmp_path / "run")
        assert calls.seen == []
        assert outputs_of(tmp_path / "run") == first

    def test_a_batch_size_redoes_nothing(self, tmp_path, pictures, monkeypatch):
        describe(pictures, tmp_path / "run")
        first = outputs_of(tmp_path / "run")
        calls = Calls(monkeypatch)
        describe(pictures, tmp_path / "run", scripted(regions={"batch_size": 2}, summary={"batch_size": 1}))
        assert calls.seen == []
        assert outputs_of(tmp_path / "run") == first

    def test_a_new_picture_is_done_alone_and_one_that_went_is_gone(self, tmp_path, pictures, monkeypatch):
        moved = pictures / "heldout" / "000001.jpg"
        kept = moved.read_bytes()
        moved.unlink()
        describe(pictures, tmp_path / "run")
        moved.write_bytes(kept)
        (pictures / "heldout" / "000003.jpg").unlink()
        calls = Calls(monkeypatch)
        describe(pictures, tmp_path / "run")
        assert {file for _, file in calls.seen} == {"heldout/000001.jpg"}
        assert [row["file"] for row in lines(tmp_path / "run", "images")] == [
            f"heldout/00000{number}.jpg" for number in (0, 1, 2, 4)
        ]

    def test_descriptions_that_break_a_rule_are_used_where_the_configuration_says_so(self, tmp_path, pictures, capsys):
        run = tmp_path / "run"
        assert describe(pictures, run, scripted(summary={"most_sentences": 2})) == 0
        assert "5 break a rule and are left out of the outputs" in capsys.readouterr().out
        assert json.loads((run / "train.json").read_text()) == []
        assert all("sentences, more than 2" in row["problems"][0] for row in lines(run, "summary"))
        describe(pictures, run, {**scripted(summary={"most_sentences": 2}), "output": {"flagged": True}})
        assert len(json.loads((run / "train.json").read_text())) == 5


def lines(run: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (run / "stages" / f"{stage}.jsonl").read_text().splitlines()]


class TestPictures:
    def test_equal_files_are_one_picture(self, tmp_path, pictures, monkeypatch):
        shutil.copy(pictures / "heldout/000000.jpg", pictures / "zzz.jpg")
        calls = Calls(monkeypatch)
        assert describe(pictures, tmp_path / "run") == 0
        assert calls.of("ScriptedCaptions") == 5
        (first,) = [row for row in lines(tmp_path / "run", "images") if row["also"]]
        assert (first["file"], first["also"]) == ("heldout/000000.jpg", ["zzz.jpg"])
        assert FinishedRun(tmp_path / "run").manifest["counts"]["repeated_files"] == 1

    def test_bad_pictures_are_listed_and_the_others_described(self, tmp_path, pictures, capsys):
        (pictures / "broken.png").write_bytes(b"no picture")
        whole = (pictures / "heldout/000000.jpg").read_bytes()
        (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
        (pictures / "empty.jpg").write_bytes(b"")
        (tmp_path / "outside.png").write_bytes(whole)
        (pictures / "link.png").symlink_to(tmp_path / "outside.png")
        (pictures / "a<img>b.png").write_bytes(whole)
        (pictures / "notes.txt").write_text("left alone")
        (pictures / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        os.mkfifo(pictures / "pipe.png")
        with open(os.fsencode(pictures) + b"/\xff.png", "wb") as file:
            file.write(whole)
        assert describe(pictures, tmp_path / "run") == 0
        said = capsys.readouterr().out
        assert "5 descriptions of 13 files (0 repeated, 8 unreadable)" in said
        assert "left out, as no pictures by their endings: 1 other file (1 .txt)" in said
        problems = {row["file"]: row for row in FinishedRun(tmp_path / "run").problems()}
        names = {"a<img>b.png", "broken.png", "cut.png", "empty.jpg", "link.png", "IMG_1.HEIC", "pipe.png"}
        assert set(problems) == {*names, r"\udcff.png"}
        assert "is HEIC" in problems["IMG_1.HEIC"]["problem"]
        assert problems["pipe.png"]["problem"] == "pipe.png is not a regular file"
        assert all(row["stage"] == "images" for row in problems.values())
        assert "damaged or cut off" in problems["cut.png"]["problem"]
        assert "leads out of the folder" in problems["link.png"]["problem"]
        assert "<img>" not in (tmp_path / "run" / "train.json").read_text().replace("<img>heldout", "")

    def test_a_picture_that_an_expert_fails_on_is_listed_and_tried_again(self, tmp_path, pictures, capsys):
        Image.new("RGB", NOT_KNOWN).save(pictures / "heldout" / "000009.png")
        assert describe(pictures, tmp_path / "run") == 1
        assert "failed (caption 1, regions 1, text 1, segments 1)" in capsys.readouterr().out
        (found, *_) = FinishedRun(tmp_path / "run").problems()
        assert (found["file"], found["stage"]) == ("heldout/000009.png", "caption")
        assert "has nothing on this image" in found["problem"]
        assert len(list(FinishedRun(tmp_path / "run").pictures())) == 6
        (pictures / "heldout" / "000009.png").unlink()
        assert describe(pictures, tmp_path / "run") == 0


class TestMistakes:
    def refused(self, capsys, images: Path, output: Path, config, *more: str) -> str:
        assert describe(images, output, config, *more) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"stages": {"colour": {}}}, "stages has the unknown stage 'colour'; there is images, caption, regions"),
            ({"steps": {}}, "the file has the unknown key 'steps'; there is stages, output"),
            ([], "holds a list, and an object of keys with values is needed"),
            ({"stages": {}}, "stages.caption is missing; choose an expert: blip2, monkey, scripted"),
            (scripted(caption={"expert": "gpt"}), "stages.caption.expert is 'gpt'; there is blip2, monkey, scripted"),
            (scripted(caption={"beams": 3}), "stages.caption has no setting 'beams'; there is batch_size"),
            (scripted(caption={"batch_size": "8"}), "stages.caption.batch_size is '8', and a whole number is needed"),
            (scripted(caption={"batch_size": 0}), "stages.caption.batch_size is 0, and 1 or more is needed"),
            (scripted(caption={"batch_size": True}), "stages.caption.batch_size is True, and a whole number is needed"),
            (scripted(filters={"overlap": 2}), "stages.filters.overlap is 2.0, and a number from 0 to 1 is needed"),
            (scripted(caption={"expert": "blip2", "model": ""}), "stages.caption.model is missing"),
            (scripted(caption={"expert": "blip2", "dtype": "int4"}), "dtype is 'int4', and one of auto, float32"),
            ({**scripted(), "output": {"flagged": "yes"}}, "output.flagged is 'yes', and true or false is needed"),
            (scripted(summary={"expert": "openai"}), "stages.summary has no setting"),
        ],
    )  # fmt: skip
    def test_a_configuration_that_cannot_be_followed_is_refused(self, tmp_path, capsys, content, message):
        if message == "stages.summary has no setting":
            content["stages"]["summary"]["most_objects"] = 1
        assert message in self.refused(capsys, SAMPLES / "images", tmp_path / "run", content)
        assert not (tmp_path / "run").exists()

    def test_a_configuration_that_is_no_yaml_or_not_there(self, tmp_path, capsys):
        (tmp_path / "bad.yaml").write_text("stages: {")
        assert "bad.yaml:1: malformed YAML: " in self.refused(capsys, SAMPLES, tmp_path / "run", tmp_path / "bad.yaml")
        assert "no such file" in self.refused(capsys, SAMPLES, tmp_path / "run", tmp_path / "no.yaml")

    def test_an_empty_folder_a_missing_one_and_an_output_that_holds_something_else(self, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        config = CONFIG
        assert "holds no picture" in self.refused(capsys, tmp_path / "empty", tmp_path / "run", config)
        assert "no such folder" in self.refused(capsys, tmp_path / "no", tmp_path / "run", config)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("x")
        assert "holds something else" in self.refused(capsys, SAMPLES / "images", tmp_path / "other", config)
        assert "is a file" in self.refused(capsys, SAMPLES / "images", tmp_path / "other" / "thesis.tex", config)

    @pytest.mark.parametrize("shard", ["1", "2/2", "-1/2", "a/b"])
    def test_a_shard_that_is_none(self, tmp_path, capsys, shard):
        message = self.refused(capsys, SAMPLES / "images", tmp_path / "run", CONFIG, f"--shard={shard}")
        assert "is no i/n" in message

    def test_an_unknown_command_and_an_unknown_flag(self, capsys):
        assert main(["paint"]) == 2
        assert "unknown command 'paint'; there is run" in capsys.readouterr().err
        with pytest.raises(SystemExit) as caught:
            main(["run", "--images", "x", "--output", "y", "--confg", "z"])
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_damaged_record_is_named_with_its_line(self, tmp_path, pictures, capsys):
        describe(pictures, tmp_path / "run")
        capsys.readouterr()
        journal = tmp_path / "run" / "journals" / "regions.0-of-1.jsonl"
        content = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(content[0] + b"{\n" + b"".join(content[1:]))
        message = self.refused(capsys, pictures, tmp_path / "run", CONFIG)
        assert "regions.0-of-1.jsonl:2 is damaged" in message
        journal.write_bytes(b"".join(content))
        assert describe(pictures, tmp_path / "run") == 0

    def test_an_unfinished_run_is_no_finished_one(self, tmp_path, pictures):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            FinishedRun(tmp_path / "run")
        describe(pictures, tmp_path / "run", CONFIG, "--shard=0/2")
        with pytest.raises(FileNotFoundError, match="is not complete yet"):
            FinishedRun(tmp_path / "run")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_is_accepted_and_saves_as_itself(path):
    configuration = read_configuration(path)
    again = configuration_of(yaml.safe_load(configuration.text()))
    assert again == configuration


class TestConvert:
    def published(self, tmp_path: Path, rows: list) -> Path:
        path = tmp_path / "detailed_caption.json"
        path.write_text(json.dumps(rows, indent=4))
        return path

    def convert(self, path: Path, output: Path, images: Path = SAMPLES / "images/heldout") -> int:
        return main(["convert", "--input", str(path), "--images", str(images), "--output", str(output)])

    def test_published_descriptions_become_training_records(self, tmp_path, capsys):
        rows = [
            {"img_id": "000000.jpg", "detailed_caption": "A sign.\nIt is red."},
            {"img_id": "gone.jpg", "detailed_caption": "A ghost."},
        ]
        assert self.convert(self.published(tmp_path, rows), tmp_path / "train.json") == 0
        (record,) = open_records(tmp_path / "train.json", SAMPLES / "images/heldout")
        assert record.conversation.messages[1].text == "A sign.\nIt is red."
        assert "1 pictures are not in" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"img_id": "000000.jpg"}], "detailed_caption.json[0]: the key 'detailed_caption' is missing"),
            ([{"img_id": 7, "detailed_caption": "x"}], "detailed_caption.json[0]: 'img_id' must be a text"),
            ([{"img_id": "000000.jpg", "detailed_caption": " "}], "'detailed_caption' is empty"),
            ([{"img_id": "../../x.png", "detailed_caption": "x"}], "leads out of"),
            ([{"img_id": "gone.jpg", "detailed_caption": "x"}], "none of the 1 pictures"),
        ],
    )
    def test_what_is_no_description_is_one_sentence_and_nothing_is_written(self, tmp_path, capsys, rows, message):
        assert self.convert(self.published(tmp_path, rows), tmp_path / "train.json") == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["detailed_caption.json"]
