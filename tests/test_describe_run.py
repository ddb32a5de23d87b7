"""A run of descriptions: from images to training records, in stages that go on after anything, in any processes."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image

from monkey import journal
from monkey.data.mixture import open_records
from monkey.describe.__main__ import main
from monkey.describe.findings import RESULTS
from monkey.describe.output import FinishedRun, read_published
from monkey.describe.pipeline import Shard, configuration_of, hold_shard, read_configuration, shard_of
from monkey.describe.prompt import problems_of
from monkey.prompts import DETAILED_CAPTION_AS_TRAINED
from tests.drawn import SAMPLES
from tests.scripted_experts import CONFIG, NOT_KNOWN, Scripted

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGES = SAMPLES / "images"
OUTPUTS = ("problems.jsonl", "train.json", "detailed_captions.json", *(f"stages/{stage}.jsonl" for stage in RESULTS))


def scripted(**changes) -> dict:
    """The configuration of scripted experts with some stages changed."""
    content = copy.deepcopy(CONFIG)
    for stage, settings in changes.items():
        content["stages"][stage] = {**content["stages"].get(stage, {}), **settings}
    return content


SMALL_BATCHES = scripted(**{stage: {"batch_size": 2} for stage in RESULTS})


def describe(images: Path, output: Path, config: Path | dict | list = CONFIG, *more: str) -> int:
    if not isinstance(config, Path):
        path = output.parent / f"{output.name}.yaml"
        path.write_text(yaml.safe_dump(config))
        config = path
    return main(["run", "--config", str(config), "--images", str(images), "--output", str(output), "--quiet", *more])


def outputs_of(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in OUTPUTS}


def lines(run: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (run / "stages" / f"{stage}.jsonl").read_text().splitlines()]


def refusal(capsys, status: int) -> str:
    """The one sentence of a command that ended with status 2."""
    error = capsys.readouterr().err
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith("error: ")
    return error


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of drawn pages that a test may change."""
    return shutil.copytree(SAMPLES, tmp_path / "set") / "images"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run over the sample images that nothing disturbed. Read-only."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert describe(IMAGES, run, SMALL_BATCHES) == 0
    return run


@pytest.fixture
def asked(monkeypatch) -> set[tuple[str, str]]:
    """Which scripted expert was asked about which image."""
    seen, told = set(), Scripted.__call__

    def noted(expert, items):
        seen.update((type(expert).__name__, item.file) for item in items)
        return told(expert, items)

    monkeypatch.setattr(Scripted, "__call__", noted)
    return seen


def test_descriptions_say_what_the_experts_saw_and_train_with_the_prompt_as_trained(whole):
    published = list(read_published(whole / "detailed_captions.json"))
    records = open_records(whole / "train.json", IMAGES)
    assert len(published) == len(records) == 5
    for (_, text), record in zip(published, records, strict=True):
        question, answer = record.conversation.messages
        assert (question.text, answer.text) == (DETAILED_CAPTION_AS_TRAINED, text)
        seen = "A heading at the top, a table in the middle and a line at the bottom can be seen."
        assert text.startswith(f"The picture shows a drawn document. {seen} The heading is above the line. The words “")
        assert problems_of(text) == ()
        assert record.images[0].is_file()


def test_a_run_is_read_back_image_by_image_with_its_manifest(whole):
    run = FinishedRun(whole)
    found = list(run.images())
    assert len(run) == len(found) == 5
    assert all(list(image.results) == list(RESULTS) for image in found)
    assert [one.dropped for one in found[0]["filters"].candidates] == [None, None, None, None, "duplicate", None]
    assert {(stage["done"], stage["failed"]) for stage in run.manifest["stages"].values()} == {(5, 0)}
    assert set(run.manifest["sha256"]) == set(OUTPUTS)
    assert run.manifest["versions"]["torch"]
    saved = read_configuration(whole / "config.yaml")
    assert saved.text() == (whole / "config.yaml").read_text()


class TestChanges:
    def test_running_again_or_with_another_batch_size_asks_nobody_and_changes_no_byte(self, tmp_path, images, asked):
        describe(images, tmp_path / "run")
        before = outputs_of(tmp_path / "run")
        asked.clear()
        assert describe(images, tmp_path / "run") == 0
        assert describe(images, tmp_path / "run", SMALL_BATCHES) == 0
        assert asked == set()
        assert outputs_of(tmp_path / "run") == before

    def test_a_threshold_redoes_no_expert_and_only_the_descriptions_that_change(self, tmp_path, images, asked):
        (images / "heldout" / "000004.jpg").rename(images / "heldout" / "no-text.jpg")
        run = tmp_path / "run"
        describe(images, run)
        keys = {row["image"]: row["key"] for row in lines(run, "summary")}
        asked.clear()
        # Every text has the score 1; nothing above it is kept.
        assert describe(images, run, scripted(filters={"text_score": 1.0})) == 0
        assert asked == set()
        now = {row["image"]: row["key"] for row in lines(run, "summary")}
        without = next(row["image"] for row in lines(run, "images") if "no-text" in row["file"])
        assert [image for image in keys if keys[image] == now[image]] == [without]
        assert "can be read" not in (run / "train.json").read_text()

    def test_another_expert_redoes_what_depends_on_it_and_going_back_costs_nothing(self, tmp_path, asked):
        run = tmp_path / "run"
        describe(IMAGES, run)
        first = outputs_of(run)
        asked.clear()
        describe(IMAGES, run, scripted(regions={"expert": "none"}))
        assert {name for name, _ in asked} == {"ScriptedMatching"}
        assert outputs_of(run)["stages/summary.jsonl"] != first["stages/summary.jsonl"]
        asked.clear()
        describe(IMAGES, run)
        assert (asked, outputs_of(run)) == (set(), first)

    def test_a_new_image_is_done_alone_and_one_that_went_is_gone(self, tmp_path, images, asked):
        moved = images / "heldout" / "000001.jpg"
        kept = moved.read_bytes()
        moved.unlink()
        describe(images, tmp_path / "run")
        moved.write_bytes(kept)
        (images / "heldout" / "000003.jpg").unlink()
        asked.clear()
        describe(images, tmp_path / "run")
        assert {file for _, file in asked} == {"heldout/000001.jpg"}
        found = [row["file"] for row in lines(tmp_path / "run", "images")]
        assert found == [f"heldout/00000{number}.jpg" for number in (0, 1, 2, 4)]

    def test_descriptions_that_break_a_rule_are_used_where_the_configuration_says_so(self, tmp_path, capsys):
        run, config = tmp_path / "run", scripted(summary={"most_sentences": 2})
        assert describe(IMAGES, run, config) == 0
        assert "5 break a rule and are left out of the outputs" in capsys.readouterr().out
        assert json.loads((run / "train.json").read_text()) == []
        describe(IMAGES, run, {**config, "output": {"flagged": True}})
        assert len(json.loads((run / "train.json").read_text())) == 5


class TestImages:
    def test_equal_files_are_one_image(self, tmp_path, images):
        shutil.copy(images / "heldout/000000.jpg", images / "zzz.jpg")
        assert describe(images, tmp_path / "run") == 0
        (first,) = [row for row in lines(tmp_path / "run", "images") if row["also"]]
        assert (first["file"], first["also"]) == ("heldout/000000.jpg", ["zzz.jpg"])
        assert FinishedRun(tmp_path / "run").manifest["counts"]["repeated_files"] == 1

    def test_bad_images_are_listed_and_the_others_described(self, tmp_path, images, capsys):
        whole = (images / "heldout/000000.jpg").read_bytes()
        bad = {"broken.png": b"no image", "cut.png": whole[:2000], "empty.jpg": b"", "a<img>b.png": whole}
        for name, content in {**bad, "notes.txt": b"-", "IMG_1.HEIC": b"\0\0\0\x18ftypheic"}.items():
            (images / name).write_bytes(content)
        (tmp_path / "outside.png").write_bytes(whole)
        (images / "link.png").symlink_to(tmp_path / "outside.png")
        os.mkfifo(images / "pipe.png")
        Path(os.fsdecode(os.fsencode(images) + b"/\xff.png")).write_bytes(whole)
        assert describe(images, tmp_path / "run") == 0
        said = capsys.readouterr().out
        assert "5 descriptions of 13 files (0 repeated, 8 unreadable)" in said
        assert "left out, as no images by their endings: 1 other file (1 .txt)" in said
        problems = {row["file"]: row["problem"] for row in FinishedRun(tmp_path / "run").problems()}
        assert set(problems) == {*bad, "link.png", "IMG_1.HEIC", "pipe.png", r"\udcff.png"}
        assert "is HEIC" in problems["IMG_1.HEIC"]
        assert "is not a regular file" in problems["pipe.png"]
        assert "damaged or cut off" in problems["cut.png"]
        assert "leads out of the folder" in problems["link.png"]

    def test_an_image_that_an_expert_fails_on_is_listed_and_tried_again(self, tmp_path, images, capsys):
        Image.new("RGB", NOT_KNOWN).save(images / "heldout" / "000009.png")
        assert describe(images, tmp_path / "run") == 1
        assert "failed (caption 1, regions 1, text 1, segments 1)" in capsys.readouterr().out
        run = FinishedRun(tmp_path / "run")
        (found, *_) = run.problems()
        assert (found["file"], found["stage"]) == ("heldout/000009.png", "caption")
        assert "has nothing on this image" in found["problem"]
        assert [list(image.results) for image in run.images()][-1] == ["images"]
        (images / "heldout" / "000009.png").unlink()
        assert describe(images, tmp_path / "run") == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stages": {"colour": {}}}, "stages has the unknown stage 'colour'; there is images, caption, regions"),
        ({"steps": {}}, "the file has the unknown key 'steps'; there is stages, output"),
        ([], "holds a list, and an object of keys with values is needed"),
        ({"stages": {"caption": "blip2"}}, "stages.caption holds 'blip2', and keys with values are needed, like {exp"),
        ({"stages": {}}, "stages.caption is missing; choose an expert: blip2, monkey, scripted"),
        (scripted(caption={"expert": "gpt"}), "stages.caption.expert is 'gpt'; there is blip2, monkey, scripted"),
        (scripted(caption={"beams": 3}), "stages.caption has no setting 'beams'; there is batch_size"),
        (scripted(caption={"batch_size": "8"}), "stages.caption.batch_size is '8', and a whole number is needed"),
        (scripted(caption={"batch_size": 0}), "stages.caption.batch_size is 0, and 1 or more is needed"),
        (scripted(caption={"batch_size": True}), "stages.caption.batch_size is True, and a whole number is needed"),
        (scripted(filters={"overlap": 2}), "stages.filters.overlap is 2.0, and a number from 0 to 1 is needed"),
        (scripted(caption={"expert": "blip2", "model": ""}), "stages.caption.model is missing"),
        (scripted(caption={"expert": "blip2", "dtype": "int4"}), "dtype is 'int4', and one of auto, float32"),
        (scripted(matching={"expert": "none"}), "stages.matching is left out, and what regions and segments find"),
        ({**scripted(), "output": {"flagged": "yes"}}, "output.flagged is 'yes', and true or false is needed"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(tmp_path, capsys, content, message):
    assert message in refusal(capsys, describe(IMAGES, tmp_path / "run", content))
    assert not (tmp_path / "run").exists()


def test_places_that_are_none_and_what_a_command_does_not_know_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    for images, output, message in (
        (tmp_path / "empty", tmp_path / "run", "holds no image"),
        (tmp_path / "no", tmp_path / "run", "no such folder"),
        (IMAGES, tmp_path / "other", "holds something else"),
        (IMAGES, tmp_path / "other" / "thesis.tex", "is a file"),
    ):
        assert message in refusal(capsys, describe(images, output, CONFIG))
    for shard in ("1", "2/2", "-1/2", "a/b"):
        assert "is no i/n" in refusal(capsys, describe(IMAGES, tmp_path / "run", CONFIG, f"--shard={shard}"))
    assert "unknown command 'paint'; there is run" in refusal(capsys, main(["paint"]))
    with pytest.raises(SystemExit):
        main(["run", "--images", "x", "--output", "y", "--confg", "z"])


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "describe").glob("*.yaml")), ids=lambda one: one.name)
def test_every_configuration_is_accepted_and_saves_as_itself(path):
    configuration = read_configuration(path)
    assert configuration_of(yaml.safe_load(configuration.text())) == configuration


def test_the_offline_configuration_describes_pages_by_the_small_model_and_their_text(tmp_path, monkeypatch):
    pytest.importorskip("rapidocr")
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "images").mkdir()
    shutil.copy("data/pages/images/heldout/000003.jpg", tmp_path / "images")
    assert describe(tmp_path / "images", tmp_path / "run", REPOSITORY / "configs/describe/offline.yaml") == 0
    (image,) = FinishedRun(tmp_path / "run").images()
    assert len(image["caption"].text.split()) > 3
    assert any("kcal" in line.text.casefold() for line in image["text"].lines)
    assert image["caption"].text.startswith("A ")
    assert image["summary"].text.startswith(f"The picture shows a {image['caption'].text[2:].rstrip('.')}.")


# Ends on the way


def times_done(run: Path) -> Counter:
    """How often each image stands in the journals of each stage."""
    done = Counter()
    for stage in RESULTS:
        for path in (run / "journals").glob(f"{stage}.*.jsonl"):
            content = path.read_bytes().splitlines(keepends=True)
            done.update((stage, json.loads(line)["image"]) for line in content if line.endswith(b"\n"))
    return done


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_crash_at_any_write_changes_nothing_in_the_end(tmp_path, whole, monkeypatch):
    """Every few writes one is the last of its process, and leaves half of what it was to write."""
    append, writes, crashes = journal.append_forced, 0, 0

    def torn(stream, content, path):
        nonlocal writes
        writes += 1
        # A process that dies before its first record gets nowhere: two writes are of the account.
        if writes == 4 + crashes % 3:
            stream.write(content[: len(content) // 2])
            raise Killed
        append(stream, content, path)

    monkeypatch.setattr(journal, "append_forced", torn)
    while crashes < 100:
        try:
            assert describe(IMAGES, tmp_path / "run", SMALL_BATCHES) == 0
            break
        except Killed:
            crashes, writes = crashes + 1, 0
    assert 10 < crashes < 100
    assert outputs_of(tmp_path / "run") == outputs_of(whole)
    assert set(times_done(tmp_path / "run").values()) == {1}


def test_a_crash_while_outputs_are_written_leaves_no_run_that_looks_complete(tmp_path, whole, monkeypatch):
    run, replace = tmp_path / "run", os.replace
    assert describe(IMAGES, run, SMALL_BATCHES) == 0

    def crash(source, target):
        if str(target).endswith("train.json"):
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(Killed):
        describe(IMAGES, run, SMALL_BATCHES)
    with pytest.raises(ValueError, match="is not complete"):
        FinishedRun(run)
    monkeypatch.undo()
    assert describe(IMAGES, run, SMALL_BATCHES) == 0
    assert outputs_of(run) == outputs_of(whole)
    assert not [path for path in run.rglob("*") if path.name.endswith(journal.PARTIAL)]


def test_a_full_disk_and_a_damaged_record_are_one_sentence_and_the_work_is_kept(tmp_path, monkeypatch, capsys):
    class Full:
        def write(self, content):
            raise OSError(28, "No space left on device")

    run, append, writes = tmp_path / "run", journal.append_forced, iter(range(10**6))
    monkeypatch.setattr(
        journal, "append_forced", lambda stream, *rest: append(Full() if next(writes) > 12 else stream, *rest)
    )
    assert "(No space left on device); make room" in refusal(capsys, describe(IMAGES, run, SMALL_BATCHES))
    monkeypatch.undo()
    assert times_done(run)
    assert describe(IMAGES, run, SMALL_BATCHES) == 0
    assert set(times_done(run).values()) == {1}
    capsys.readouterr()
    path = run / "journals" / "regions.0-of-1.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, b"{\n", *rest]))
    assert "regions.0-of-1.jsonl:2 is damaged" in refusal(capsys, describe(IMAGES, run, SMALL_BATCHES))


# Several processes


def test_several_processes_make_the_bytes_of_one_and_any_other_number_goes_on(whole, tmp_path, capsys):
    run = tmp_path / "run"
    for index in range(3):
        assert not (run / "manifest.json").exists()
        assert describe(IMAGES, run, SMALL_BATCHES, f"--shard={index}/3") == 0
        assert ("is done; the last of" in capsys.readouterr().out) == (index < 2)
    assert outputs_of(run) == outputs_of(whole)
    # Had the last two ended at once, both would have written the outputs.
    assert describe(IMAGES, run, SMALL_BATCHES, "--shard=1/3") == 0
    assert describe(IMAGES, run, SMALL_BATCHES) == 0
    assert outputs_of(run) == outputs_of(whole)
    assert set(times_done(run).values()) == {1}


def test_shards_that_would_disturb_one_at_work_are_refused(tmp_path):
    folder = tmp_path / "run" / "journals"
    with hold_shard(folder, Shard(0, 2), "settings"):
        for shard, settings, message in (
            (Shard(0, 2), "settings", rf"process {os.getpid()} on .*; wait for shard 0-of-2 to end"),
            (Shard(0, 3), "settings", "another number of shards"),
            (Shard(1, 2), "other settings", "another configuration"),
        ):
            with pytest.raises(ValueError, match=message), hold_shard(folder, shard, settings):
                pass
        with hold_shard(folder, Shard(1, 2), "settings"):
            pass
    with hold_shard(folder, Shard(0, 3), "other settings"):
        pass


def test_shards_come_from_the_flag_or_from_torchrun():
    assert shard_of("2/5", {"RANK": "0", "WORLD_SIZE": "2"}) == Shard(2, 5)
    assert shard_of(None, {"RANK": "1", "WORLD_SIZE": "2"}) == Shard(1, 2)
    assert shard_of(None, {}) == Shard(0, 1)


def test_a_folder_that_changed_meanwhile_is_not_taken_for_done(images, tmp_path):
    run = tmp_path / "run"
    assert describe(images, run, CONFIG, "--shard=0/2") == 0
    for image in sorted(images.rglob("*.jpg"))[:2]:
        image.unlink()
    assert describe(images, run, CONFIG, "--shard=1/2") == 0
    assert not (run / "manifest.json").exists()
    assert describe(images, run, CONFIG, "--shard=0/2") == 0
    assert FinishedRun(run).manifest["counts"]["described"] == 3


def start(run: Path, config: Path, *more: str) -> subprocess.Popen:
    words = ["run", "--config", str(config), "--images", str(IMAGES), "--output", str(run), "--quiet", *more]
    command = [sys.executable, "-m", "tests.scripted_experts", *words]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_kill_9_and_two_at_once_change_no_byte_and_do_no_image_twice(whole, tmp_path):
    run, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(SMALL_BATCHES))

    def written() -> int:
        return sum(path.stat().st_size for path in (run / "journals").glob("*.jsonl"))

    chance = random.Random(7)
    for _ in range(2):
        process, limit = start(run, config), written() + chance.randint(1, 4000)
        while process.poll() is None and written() < limit:
            time.sleep(0.001)
        process.kill()
        assert process.communicate()[0] == b""
        assert process.returncode == -9
    both = [start(run, config, f"--shard={index}/2") for index in range(2)]
    for process in both:
        output = process.communicate()[0].decode()
        assert process.returncode == 0, output
    assert outputs_of(run) == outputs_of(whole)
    assert set(times_done(run).values()) == {1}


# Published descriptions


def convert(folder: Path, rows: list) -> int:
    (folder / "published.json").write_text(json.dumps(rows, indent=4))
    flags = {"input": folder / "published.json", "images": IMAGES / "heldout", "output": folder / "train.json"}
    return main(["convert", *(word for name, path in flags.items() for word in (f"--{name}", str(path)))])


def test_published_descriptions_become_training_records(tmp_path, capsys):
    rows = [
        {"img_id": "000000.jpg", "detailed_caption": "A sign.\nIt is red."},
        {"img_id": "gone.jpg", "detailed_caption": "A ghost."},
    ]
    assert convert(tmp_path, rows) == 0
    (record,) = open_records(tmp_path / "train.json", IMAGES / "heldout")
    assert record.conversation.messages[1].text == "A sign.\nIt is red."
    assert "1 images are not in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"img_id": "000000.jpg"}, "published.json[0]: the key 'detailed_caption' is missing"),
        ({"img_id": 7, "detailed_caption": "x"}, "published.json[0]: 'img_id' must be a text"),
        ({"img_id": "000000.jpg", "detailed_caption": " "}, "'detailed_caption' is empty"),
        ({"img_id": "../../x.png", "detailed_caption": "x"}, "leads out of"),
        ({"img_id": "gone.jpg", "detailed_caption": "x"}, "none of the 1 images"),
    ],
)
def test_what_is_no_description_is_one_sentence_and_nothing_is_written(tmp_path, capsys, row, message):
    assert message in refusal(capsys, convert(tmp_path, [row]))
    assert not (tmp_path / "train.json").exists()
