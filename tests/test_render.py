"""The rendered sets: the same from the same seed, splits without a shared text, all or nothing on disk."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from monkey.data.records import read_questions, read_records
from monkey.data.render import __main__ as program
from monkey.data.render import generate, write
from monkey.data.render.bars import draw_bars
from monkey.data.render.difficulty import COLOURS, LEVELS, LIMITS, Difficulty, changed
from monkey.data.render.fonts import installed_fonts
from monkey.data.render.settings import Settings
from monkey.data.render.sheet import Scene, Sheet
from monkey.data.render.tasks import TASKS, select
from monkey.data.render.vocabulary import SPLITS, WORDS, split_numbers, split_vocabulary
from monkey.data.render.write import write_set
from monkey.prompts import IMAGE_PLACE, VQA_AS_TRAINED

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
ALL_KINDS = {name: task.kinds + task.harder for name, task in TASKS.items()}


def settings(**changes) -> Settings:
    base = Settings(seed=3, train=20, heldout=10, image_size=64, selection=select([]), difficulty=LEVELS["easy"])
    return replace(base, **changes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    """A set with every kind of question, large enough for shares."""
    folder = tmp_path_factory.mktemp("rendered") / "set"
    write_set(folder, settings(train=300, heldout=300, selection=ALL_KINDS), workers=1)
    return folder


def test_same_seed_same_bytes_whatever_the_processes(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        write_set(tmp_path / name, settings(train=40, heldout=10), workers)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    write_set(tmp_path / "other", settings(train=40, heldout=10, seed=4), workers=1)
    assert files_of(tmp_path / "other")["train.json"] != files_of(tmp_path / "one")["train.json"]


@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_drawn_text(tmp_path, level):
    wanted = settings(train=150, heldout=150, selection=ALL_KINDS, difficulty=LEVELS[level])
    samples = generate.draw_all(wanted, tmp_path, workers=1)
    drawn = {split: {text.casefold() for s in samples[split] for text in s.texts} for split in SPLITS}
    assert len(drawn["train"]) > 50
    assert len(drawn["heldout"]) > 20
    assert not drawn["train"] & drawn["heldout"]
    assert not {s.sha256 for s in samples["train"]} & {s.sha256 for s in samples["heldout"]}


def test_vocabularies_are_disjoint_over_all_uses():
    words = [{word.casefold() for use in WORDS.values() for word in use[place]} for place in range(2)]
    assert not words[0] & words[1]
    for digits in (2, 3):
        numbers = split_numbers(digits)
        assert not set(numbers["train"]) & set(numbers["heldout"])
        for split, place in itertools.product(SPLITS, range(digits)):
            seen = {str(number)[place] for number in numbers[split]}
            assert seen == set("123456789" if place == 0 else "0123456789")


def test_sheet_refuses_text_of_the_other_split():
    scene = Scene(64, split_vocabulary("train", 2), LEVELS["easy"])
    sheet = Sheet(scene, random.Random(0))
    sheet.text((0, 0, 100, 100), "10")
    for text in ("14", "PHARMACY", "unknown"):
        with pytest.raises(AssertionError, match="may not draw"):
            sheet.text((0, 0, 100, 100), text)


def test_shared_text_stops_the_generator(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "shared_texts", lambda train, heldout: {"47"})
    with pytest.raises(AssertionError, match="drawn in both splits"):
        write_set(tmp_path / "set", settings(), workers=1)
    assert not (tmp_path / "set").exists()
    assert leftovers(tmp_path) == []


def test_heldout_picture_equal_to_a_train_picture_is_drawn_again(tmp_path):
    wanted = settings()
    samples = generate.draw_all(wanted, tmp_path, workers=1)
    repeated = samples["heldout"][2]
    train = [*samples["train"], replace(samples["train"][0], sha256=repeated.sha256)]
    again = generate.redraw_repeated(wanted, tmp_path, train, samples["heldout"])
    assert again[2].sha256 != repeated.sha256
    assert again[2].file == repeated.file
    assert [s.sha256 for s in again if s is not again[2]] == [s.sha256 for s in samples["heldout"] if s is not repeated]


def test_files_are_what_the_readers_expect(rendered):
    for split in SPLITS:
        records = read_records(rendered / f"{split}.json")
        assert all(len(record.images) == 1 for record in records)
    questions = read_questions(rendered / "heldout_all.jsonl")
    by_task = [read_questions(rendered / "heldout" / f"{task}.jsonl", image_root=rendered) for task in TASKS]
    assert sorted(q.question_id for q in questions) == sorted(q.question_id for task in by_task for q in task)
    # A picture's conversation asks and answers what the evaluation rows do, in their order, the picture only at first.
    turns = {record.images[0]: [turn.text for turn in record.conversation.messages] for record in records}
    expected: dict[Path, list[str]] = {}
    for question in questions:
        prompt = VQA_AS_TRAINED.format(question=question.question)
        if question.image in expected:
            prompt = prompt.removeprefix(IMAGE_PLACE)
        expected.setdefault(question.image, []).extend([prompt, *question.answers])
    assert turns == expected
    with Image.open(questions[0].image) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_guessing_without_looking_scores_under_035(tmp_path):
    """With the default questions, 100 held-out pictures a task. The mean is the one that the manifest reports."""
    for level in LEVELS:
        wanted = settings(train=0, heldout=500, image_size=32, difficulty=LEVELS[level])
        manifest, _ = write_set(tmp_path / level, wanted, workers=2)
        guessed = manifest["majority_answer"]
        assert guessed["mean"] < 0.35, level
        assert guessed["mean"] == pytest.approx(sum(guessed[task] for task in TASKS) / len(TASKS), abs=1e-4)


def test_receipt_adds_up_and_answers_match_what_was_drawn(rendered):
    for split in SPLITS:
        scene = settings().scene(split)
        for number in range(60):
            receipt = TASKS["receipts"].draw(random.Random(number), scene)
            numbers = [int(text) for text in receipt.texts if text.isdigit()]
            answers = {question.kind: question.answer for question in receipt.questions}
            assert sum(numbers[:-1]) == numbers[-1] == int(answers["total"])
            assert int(answers["items"]) == len(numbers) - 1
            table = TASKS["tables"].draw(random.Random(number), scene)
            cells = [question.answer for question in table.questions if question.kind == "cell"]
            assert cells == [text for text in table.texts if text.isdigit()]


def test_tallest_bar_covers_the_most_pixels_of_its_colour():
    """All bars of a chart are equally wide, so the area in a bar's colour orders them by height."""
    scene = Scene(200, split_vocabulary("heldout", 2), LEVELS["standard"])
    for number in range(20):
        chart = draw_bars(random.Random(number), scene)
        pixels = {colour: count for count, colour in chart.image.getcolors(maxcolors=1 << 20)}
        area = {name: pixels.get(colour, 0) for name, colour in COLOURS.items()}
        answers = {question.kind: question.answer for question in chart.questions}
        assert max(area, key=area.get) == answers["tallest"]
        assert sum(count > 20 for name, count in area.items() if name != "black") == int(answers["count"])


def test_shape_has_the_colour_of_its_answer():
    scene = Scene(200, split_vocabulary("train", 2), LEVELS["hard"])
    for number in range(20):
        card = TASKS["shapes"].draw(random.Random(number), scene)
        there = {colour for count, colour in card.image.getcolors(maxcolors=1 << 20) if count > 100}
        answers = {question.answer for question in card.questions if question.kind == "colour"}
        assert answers == {name for name, colour in COLOURS.items() if colour in there}


@pytest.mark.parametrize("end", [0, 1], ids=["least", "most"])
def test_every_task_can_be_drawn_at_the_limits(end):
    difficulty = Difficulty(**{name: limits[end] for name, limits in LIMITS.items()})
    for split, (name, task) in itertools.product(SPLITS, TASKS.items()):
        picture = task.draw(random.Random(name), Scene(48, split_vocabulary(split, difficulty.digits), difficulty))
        assert picture.image.size == (48, 48)
        assert {question.kind for question in picture.questions} == set(task.kinds + task.harder)


def test_chart_with_the_most_bars_and_the_widest_gap_is_found_among_the_fewest_numbers():
    difficulty = replace(LEVELS["easy"], colours=8, most_bars=6, bar_gap=14.0)
    scene = Scene(32, split_vocabulary("heldout", 2), difficulty)
    assert {len(draw_bars(random.Random(n), scene).questions) for n in range(30)} == {3 + bars for bars in range(2, 7)}


def test_manifest_tells_what_is_there(rendered):
    manifest = json.loads((rendered / "manifest.json").read_text())
    assert manifest["settings"]["seed"] == 3
    assert manifest["settings"]["fonts"][0]["source"] == "built into Pillow"
    counts = manifest["counts"]["heldout"]
    assert counts["pictures"] == 300
    assert counts["questions"] == len((rendered / "heldout_all.jsonl").read_text().splitlines())
    assert counts["questions"] == sum(counts[task]["questions"] for task in TASKS)
    assert set(manifest["sha256"]) == {
        "images",
        "train.json",
        "heldout.json",
        "heldout_all.jsonl",
        *(f"heldout/{task}.jsonl" for task in TASKS),
    }


def test_same_set_is_reused_and_another_refused(tmp_path):
    output = tmp_path / "set"
    first, reused = write_set(output, settings(), workers=1)
    assert not reused
    before = (output / "train.json").stat().st_mtime_ns
    assert write_set(output, settings(), workers=1) == (first, True)
    with pytest.raises(ValueError, match=r"holds a set with seed 3 \(wanted 4\); give --overwrite"):
        write_set(output, settings(seed=4), workers=1)
    assert (output / "train.json").stat().st_mtime_ns == before
    manifest, reused = write_set(output, settings(seed=4), workers=1, overwrite=True)
    assert (manifest["settings"]["seed"], reused) == (4, False)
    assert leftovers(tmp_path) == []


def test_changed_set_is_not_reused(tmp_path):
    output = tmp_path / "set"
    write_set(output, settings(), workers=1)
    next((output / "images").rglob("*.png")).unlink()
    with pytest.raises(ValueError, match="was changed since it was made"):
        write_set(output, settings(), workers=1)


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"manifest.json": "{}"}, {"manifest.json": "{"}])
def test_folder_with_other_things_is_never_replaced(tmp_path, content):
    output = tmp_path / "set"
    output.mkdir()
    for name, text in content.items():
        (output / name).write_text(text)
    with pytest.raises(ValueError, match="give another --output"):
        write_set(output, settings(), workers=1, overwrite=True)
    assert {name: (output / name).read_text() for name in content} == content


def test_failure_leaves_neither_a_set_nor_half_a_one(tmp_path, monkeypatch):
    output = tmp_path / "set"
    write_set(output, settings(), workers=1)
    before = files_of(output)

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(write, "_write_lines", fail)
    for folder in (output, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            write_set(folder, settings(seed=9), workers=1, overwrite=True)
    assert files_of(output) == before
    assert not (tmp_path / "new").exists()
    assert leftovers(tmp_path) == []


def test_selection_by_name():
    assert select([]) == {name: task.kinds for name, task in TASKS.items()}
    assert select(["signs:number,name", "shapes"]) == {"signs": ("number", "name"), "shapes": TASKS["shapes"].kinds}


BAD_FLAGS = {
    "unknown task": (["--tasks", "sings"], "unknown task 'sings'; there is signs"),
    "unknown kind": (["--tasks", "signs:numbr"], "unknown kind of question for signs 'numbr'; there is number"),
    "task twice": (["--tasks", "signs", "signs"], "--tasks names signs twice"),
    "unknown field": (["--difficulty", "jiter=1"], "--difficulty has no field 'jiter'"),
    "no value": (["--difficulty", "jitter"], "--difficulty wants FIELD=VALUE"),
    "no number": (["--difficulty", "colours=two"], "--difficulty colours wants a number"),
    "out of range": (["--difficulty", "colours=99"], "--difficulty colours must lie between 2 and 8, not at 99"),
    "negative seed": (["--seed", "-1"], "--seed must not be negative"),
    "too few": (["--heldout", "3"], "--heldout 3 leaves some of the 5 tasks without a picture"),
    "too small": (["--image-size", "8"], "--image-size must lie between"),
    "no workers": (["--workers", "0"], "--workers must be 1 or more"),
    "no font": (["--fonts", "none.ttf"], "--fonts none.ttf cannot be opened as a font"),
}


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flag_is_one_sentence_and_writes_nothing(tmp_path, capsys, flags, message):
    assert program.main(["--output", str(tmp_path / "set"), "--train", "0", "--heldout", "5", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_command_writes_a_set_and_says_so(tmp_path, capsys):
    command = ["--output", str(tmp_path / "set"), "--train", "0", "--heldout", "5", "--image-size", "32"]
    assert program.main([*command, "--difficulty", "jitter=1"]) == 0
    assert "wrote" in capsys.readouterr().out
    assert not (tmp_path / "set" / "train.json").exists()


@pytest.mark.skipif(not installed_fonts(), reason="none of the well-known fonts is installed here")
def test_installed_fonts_draw_and_are_recorded(tmp_path):
    manifest, _ = write_set(tmp_path / "set", settings(train=0, fonts=(None, *installed_fonts())), workers=1)
    recorded = manifest["settings"]["fonts"]
    assert len(recorded) == 1 + len(installed_fonts())
    assert all(len(font["sha256"]) == 64 for font in recorded[1:])


def test_unknown_level_field_is_refused():
    with pytest.raises(ValueError, match="has no field"):
        changed("easy", {"nothing": "1"})


def test_shipped_samples_are_small_and_made_by_the_documented_command(tmp_path):
    assert sum(len(content) for content in files_of(SAMPLES).values()) < 100_000
    questions = read_questions(SAMPLES / "heldout_all.jsonl")
    assert {question.image.parent.name for question in questions} == set(TASKS)
    command = ["--output", str(tmp_path / "set"), "--train", "0", "--heldout", "5"]
    assert program.main(command) == 0
    # Pixels belong to one version of Pillow, the questions do not.
    name = "heldout_all.jsonl"
    assert (tmp_path / "set" / name).read_bytes() == (SAMPLES / name).read_bytes()
