"""The scripts of the small model: a base goes on a grid unchanged, stages are done once, the study's sums are right."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from monkey import MonkeyConfig, MonkeyForConditionalGeneration, MonkeyProcessor
from monkey.training.arguments import parse_flags
from scripts import resolution_study, stages, train_small_model
from scripts.average_checkpoints import main as average_main
from scripts.new_model import new_model
from scripts.resolution_study import ALL, ARMS, PARTS, SHAPES, SIZES, Answer, scores_of, summary, table
from scripts.set_grid import main as set_grid_main
from scripts.set_grid import set_grid
from scripts.train_small_model import export, stage_settings

REPOSITORY = Path(__file__).resolve().parent.parent
READER = REPOSITORY / "configs" / "model" / "reader"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return new_model(READER, tmp_path_factory.mktemp("reader") / "base", seed=1)


@pytest.mark.parametrize("stage", ["first", "base", "monkey"])
def test_what_a_gpu_changes_are_flags_of_the_stages(stage):
    changed = stage_settings("cuda", processes=3)[stage] | {"use_cpu": True}
    words = [word for name, value in changed.items() for word in (f"--{name}", str(value))]
    config = str(REPOSITORY / f"configs/training/reader-{stage.replace('first', 'base')}.yaml")
    needed = ["--model_name_or_path", "m", "--data_path", "d.json", "--output_dir", "o"]
    values = parse_flags(["--config", config, *needed, *words]).resolved()
    assert {name: values[name] for name in changed} == changed
    assert not stage_settings("cpu", processes=2)[stage]


def open_model(folder: Path) -> MonkeyForConditionalGeneration:
    return MonkeyForConditionalGeneration.from_pretrained(folder).eval()


def test_the_reader_is_as_small_as_it_must_be_to_ship(base, tmp_path):
    grown = set_grid(base, tmp_path / "monkey", (2, 2))
    model = open_model(grown)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 12_000_000
    shipped = export(grown, tmp_path / "shipped")
    assert sum(path.stat().st_size for path in shipped.iterdir()) <= 25 * 2**20
    assert open_model(shipped).dtype == torch.bfloat16


def test_windows_of_a_new_monkey_are_encoded_as_the_base_encodes_its_one(base, tmp_path):
    grown = open_model(set_grid(base, tmp_path / "monkey", (2, 2), seed=3))
    alone = open_model(base)
    window = grown.config.window_size
    pixels = torch.randn(1, 3, 2 * window, 2 * window, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = grown.model.visual(pixels).unflatten(1, (5, -1))
        for number, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            cut = pixels[:, :, row * window : (row + 1) * window, column * window : (column + 1) * window]
            torch.testing.assert_close(together[:, number], alone.model.visual(cut), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_of_the_study_opens_on_its_grid(base, tmp_path, arm):
    grid = tuple(int(number) for number in arm.grid.split(","))
    window = 112 * arm.window
    folder = set_grid(base, tmp_path / "arm", grid, arm.adapters, arm.global_view, window)
    model, processor = open_model(folder), MonkeyProcessor.from_pretrained(folder)
    config = model.config
    assert (config.grid, config.window_adapters, config.global_view) == (grid, arm.adapters, arm.global_view)
    assert config.canvas_size == (grid[0] * window, grid[1] * window)
    pixels = torch.zeros(1, 3, *config.canvas_size)
    with torch.no_grad():
        assert model.model.visual(pixels).shape[1] == config.image_tokens
    assert processor.tokenizer("Answer").input_ids


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid", "2000,2"], "grid=(2000, 2) has more than 1,024 windows"),
        (["--grid", "1,1", "--window", "100"], "--window 100 is not a multiple of the patches' 8"),
    ],
)
def test_a_grid_that_cannot_be_is_one_sentence(base, tmp_path, capsys, flags, message):
    assert set_grid_main([str(base), str(tmp_path / "new"), *flags]) == 2
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if line.startswith("error: ")] == error[-1:]
    assert message in error[-1]
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_is_not_written_over(base, tmp_path):
    (tmp_path / "kept.txt").touch()
    with pytest.raises(ValueError, match="exists already"):
        set_grid(base, tmp_path, (2, 2))
    with pytest.raises(ValueError, match="exists already"):
        export(base, tmp_path)


def test_training_is_started_once_and_taken_up_where_it_stopped(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(stages, "run", lambda title, *words: commands.append([str(word) for word in words]))
    output = tmp_path / "run"
    stages.train("t", "c.yaml", tmp_path, tmp_path, output)
    (output / "checkpoint-5").mkdir(parents=True)
    (output / "checkpoint-5" / "trainer_state.json").write_text("{}")
    stages.train("t", "c.yaml", tmp_path, tmp_path, output)
    (output / "model.safetensors").touch()
    stages.train("t", "c.yaml", tmp_path, tmp_path, output)
    assert ["--overwrite_output_dir" in words for words in commands] == [True, False]
    assert ["--resume_from_checkpoint" in words for words in commands] == [False, True]


def study_run(*scores: float) -> dict[str, Answer]:
    heights, ratios = (6, 6, 8, 10, 20, 0), (1.0, 1.0, 2.5, 2.5, 1.5, 1.5)
    return {
        str(number): Answer(score, height, f"{number // 2}.jpg", ratio)
        for number, (score, height, ratio) in enumerate(zip(scores, heights, ratios, strict=True))
    }


def test_the_study_tells_scores_apart_by_height_of_letters_and_shape():
    runs = [study_run(1, 0, 1, 1, 1, 0), study_run(0, 0, 1, 1, 0, 1)]
    rows = {row["part"]: row for row in summary(runs)}
    assert rows["below 7"]["value"] == pytest.approx(25)
    assert rows["below 7"]["seeds"] == [50, 0]
    assert rows["7 to 9"]["value"] == rows["2:1 and more"]["value"] == 100
    assert rows["12 and up"]["value"] == 50
    assert (rows["below 1.3:1"]["value"], rows["1.3:1 to 2:1"]["value"]) == (25, 50)
    # The question whose answer is no text of the image has no height and is in no row.
    assert rows["all text"]["questions"] == 5
    assert rows["all text"]["value"] == pytest.approx(60)


def study_files(folder: Path, asked: int) -> tuple[Path, Path]:
    Image.new("RGB", (448, 100)).save(folder / "a.png")
    line = {"question_id": 1, "scores": {"official": 0.5}}
    (folder / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    row = {"question_id": asked, "text_height": 14, "image": "a.png"}
    (folder / "heldout.jsonl").write_text(json.dumps(row) + "\n")
    return folder / "predictions.jsonl", folder / "heldout.jsonl"


def test_heights_are_those_of_the_page_in_two_by_two_windows(tmp_path):
    assert scores_of(*study_files(tmp_path, 1), window=112) == {"1": Answer(0.5, 7.0, "a.png", 4.48)}


def test_answers_to_other_questions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not to the 1 of"):
        scores_of(*study_files(tmp_path, 2), window=112)


class TestRunsOfAnotherMachine:
    """What a study measured goes on elsewhere."""

    @pytest.fixture
    def study(self, tmp_path, monkeypatch):
        """Returns what a call printed and which arms and seeds it ran; all that takes long is left out."""
        ran: list[tuple[str, int]] = []

        def measure(arm, base, window, data, output, extent, seed, *_) -> Path:
            ran.append((arm.name, seed))
            return Path(f"{arm.name}-{seed}")

        def score(predictions: Path, *_) -> dict[str, Answer]:
            return study_run(*(len(predictions.name) % 2 for _ in range(6)))

        def call(folder: str, *words: str, images: str = "") -> tuple[int, list[tuple[str, int]]]:
            (tmp_path / folder / "data").mkdir(parents=True, exist_ok=True)
            rows = ({"question_id": number, "image": f"{images}{number // 2}.jpg"} for number in range(6))
            lines = "".join(f"{json.dumps(row)}\n" for row in rows)
            (tmp_path / folder / "data" / "heldout.jsonl").write_text(lines)
            ran.clear()
            arms = "--arms", "one-view", "stretched"
            return resolution_study.main(["--output", str(tmp_path / folder), "--quick", *arms, *words]), list(ran)

        for name in ("draw", "train_base", "write_conversations"):
            monkeypatch.setattr(resolution_study, name, lambda *_: None)
        monkeypatch.setattr(resolution_study, "measure", measure)
        monkeypatch.setattr(resolution_study, "scores_of", score)
        return call

    def test_its_seeds_are_not_run_again(self, study, tmp_path):
        assert study("there", "--seeds", "2") == (0, [(arm, s) for s in (0, 1) for arm in ("one-view", "stretched")])
        measured = "--measured", str(tmp_path / "there" / "answers.json")
        assert study("here", *measured, "--seeds", "3") == (0, [("one-view", 2), ("stretched", 2)])
        assert study("all", "--seeds", "3")[0] == 0
        for name in ("table.md", "table.csv", "differences.md", "answers.json"):
            assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()

    def test_other_settings_or_questions_are_refused(self, study, tmp_path, capsys):
        study("there")
        measured = "--measured", str(tmp_path / "there" / "answers.json")
        assert study("longer", *measured, "--steps", "130") == (2, [])
        assert "answers.json was measured with steps 120, not 130" in capsys.readouterr().err
        assert study("others", *measured, images="new") == (2, [])
        assert "tells of 6 questions that are not the 6 of" in capsys.readouterr().err
        assert study("wrong", "--measured", str(tmp_path / "there" / "results.json")) == (2, [])
        assert "results.json is no answers.json of this study" in capsys.readouterr().err
        assert study("there", *measured) == (2, [])
        assert "is what this study writes anew; name a copy of it" in capsys.readouterr().err


def test_a_pages_questions_are_turns_of_one_record(tmp_path):
    def record(page: int, *turns: tuple[str, str]) -> dict:
        return {"id": f"{page}", "conversations": [{"from": who, "value": text} for who, text in turns]}

    long = "x" * resolution_study.LONGEST
    records = [
        record(0, ("user", "<img>0.jpg</img> A?"), ("assistant", "a")),
        record(0, ("user", "<img>0.jpg</img> B?"), ("assistant", "b"), ("user", "And C?"), ("assistant", "c")),
        record(0, ("user", "<img>0.jpg</img> D?"), ("assistant", long)),
        record(1, ("user", "<img>1.jpg</img> E?"), ("assistant", long)),
    ]
    (tmp_path / "train.json").write_text(json.dumps(records))
    first, second = json.loads(resolution_study.write_conversations(tmp_path).read_text())
    said = [turn["value"] for turn in first["conversations"]]
    assert said == ["<img>0.jpg</img> A?", "a", " B?", "b", "And C?", "c"]
    assert second == records[3]


def test_table_and_plot_have_every_arm(tmp_path):
    runs = {arm.name: [study_run(1, 0, 1, 1, 1, 0)] * 3 for arm in ARMS}
    measured = {name: summary(of_arm) for name, of_arm in runs.items()}
    resolution_study.write(tmp_path, runs, {"steps": 1})
    text = (tmp_path / "table.md").read_text()
    assert text == f"{table(measured, (ALL, *SIZES))}\n\n{table(measured, SHAPES)}\n"
    assert all(arm.title in text for arm in ARMS)
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + len(ARMS) * len(PARTS)
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    found = ["answers.json", "differences.md", "results.json", "scores.png", "table.csv", "table.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == found


def test_docs_have_the_scores_of_the_recorded_answers():
    content = json.loads((REPOSITORY / "docs" / "resolution.json").read_text())
    is_text = [height > 0 for _, height, _ in content["questions"].values()]
    complete = min(map(len, content["scores"].values()))
    docs = (REPOSITORY / "docs" / "small_model.md").read_text()
    for arm in ARMS:
        seeds = content["scores"][arm.name][:complete]
        means = [sum(score for score, text in zip(scores, is_text, strict=True) if text) for scores in seeds]
        value = 100 * sum(means) / complete / sum(is_text)
        assert f"\n| {arm.title} | {value:.1f} [" in docs


def test_arms_are_compared_over_the_same_questions():
    runs = {
        "own-adapters": [study_run(1, 1, 1, 1, 0, 0), study_run(1, 1, 0, 1, 0, 1)],
        "one-view": [study_run(0, 0, 0, 1, 1, 0), study_run(0, 0, 0, 1, 1, 0)],
        "six-windows": [study_run(1, 1, 1, 1, 0, 0), study_run(1, 1, 0, 1, 0, 1)],
    }
    rows = {row["title"]: row for row in resolution_study.differences(runs)}
    assert list(rows) == ["2×2 windows, an adapter each, against one view", "2×3 windows, against 2×2"]
    # Of five questions about text three were gained and one lost, then two gained and one lost.
    resolution, more_windows = rows.values()
    assert resolution["seeds"] == pytest.approx([40, 20])
    assert resolution["value"] == pytest.approx(30)
    assert resolution["interval"][0] < 30 < resolution["interval"][1]
    assert (more_windows["value"], more_windows["p_value"]) == (0, 1)
    text = resolution_study.differences_table(rows.values())
    assert "| all text | +30.0 [" in text
    assert "(+20.0 to +40.0) |" in text


def test_a_study_of_other_settings_is_not_mixed_in(tmp_path):
    stages.keep_settings(tmp_path, {"steps": 10, "seeds": 1}, free=("seeds",))
    stages.keep_settings(tmp_path, {"steps": 10, "seeds": 3}, free=("seeds",))
    with pytest.raises(ValueError, match="was begun with steps 10, not 11; name another --output"):
        stages.keep_settings(tmp_path, {"steps": 11, "seeds": 3}, free=("seeds",))


def test_stages_from_another_start_are_not_mixed_in(base, tmp_path, capsys):
    stages.keep_settings(tmp_path, {"start": None})
    assert train_small_model.main(["--start", str(base), "--output", str(tmp_path), "--device", "cpu"]) == 2
    assert f"{tmp_path} was begun with start None, not {base}" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--seeds", "--steps", "--heldout"])
def test_a_study_of_nothing_is_refused(capsys, flag):
    with pytest.raises(SystemExit):
        resolution_study.main([flag, "0"])
    assert f"{flag}: 0 is not a whole number of at least 1" in capsys.readouterr().err


def test_the_middle_of_two_checkpoints(base, tmp_path, capsys):
    other = new_model(READER, tmp_path / "other", seed=2)
    assert average_main([str(base), str(other), str(tmp_path / "middle")]) == 0
    begun, ended, found = (open_model(folder).state_dict() for folder in (base, other, tmp_path / "middle"))
    for name, weights in found.items():
        assert weights.dtype == torch.bfloat16
        torch.testing.assert_close(weights.float(), (begun[name] + ended[name]) / 2, rtol=2**-8, atol=1e-8)
    grown = set_grid(base, tmp_path / "grown", (2, 2))
    for words, sentence in (
        ([str(base), str(other), str(tmp_path / "middle")], "exists already"),
        ([str(base), str(other), str(tmp_path / "new"), "--part", "2"], "must lie between 0 and 1"),
        ([str(base), str(grown), str(tmp_path / "new")], "they must be equal"),
    ):
        assert average_main(words) == 2
        assert sentence in capsys.readouterr().err


def test_a_base_that_is_a_monkey_already_is_refused(base, tmp_path, capsys):
    grown = set_grid(base, tmp_path / "monkey", (2, 2))
    assert resolution_study.main([str(grown), "--output", str(tmp_path / "study")]) == 2
    assert "is no base: it has 4 windows, 4 adapter sets" in capsys.readouterr().err


def in_process(words: list[str], **_settings) -> SimpleNamespace:
    """A step of `scripts.stages` without the seconds that an interpreter of its own takes to import the libraries."""
    _, program, *words = words
    module = f"{words.pop(0)}.__main__" if program == "-m" else program.removesuffix(".py").replace("/", ".")
    return SimpleNamespace(returncode=importlib.import_module(module).main(words))


def test_a_start_that_is_not_there_is_one_sentence(tmp_path, capsys):
    assert train_small_model.main(["--start", str(tmp_path / "none"), "--output", str(tmp_path / "small")]) == 2
    assert capsys.readouterr().err == f"error: --start {tmp_path / 'none'} is no folder of a checkpoint\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_stages_and_study_run_from_nothing_and_again(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(run=in_process))
    monkeypatch.setattr("scripts.learn_letters.HELD_OUT", 8)
    # One of the ten sets of questions, whose answers are what takes the time.
    monkeypatch.setattr(train_small_model, "EVALUATED", {"pages": "pages_heldout_box"})
    monkeypatch.setattr(train_small_model, "FIRST_KINDS", ("sign", "scene"))
    small = ["--pictures", "8", "--heldout", "2", "--bf16", "False", "--processes", "1"]
    chain = ["--output", str(tmp_path / "small"), "--device", "cpu"]
    chain += [word for stage in ("letter", "first", "base", "monkey") for word in (f"--{stage}-steps", "1")]
    study = [str(tmp_path / "small" / "base"), "--output", str(tmp_path / "study"), "--seeds", "1"]
    study += ["--steps", "1", "--base-steps", "1"]
    for _ in range(2):
        assert train_small_model.main([*chain, *small]) == 0
        assert resolution_study.main([*study, "--arms", "one-view", "own-adapters", *small]) == 0
    said = capfd.readouterr().out
    for stage in ("a first base", "the base", "Monkey"):
        assert said.count(f"== train {stage}: done before") == 1
    config = MonkeyConfig.from_pretrained(tmp_path / "small" / "model")
    assert (config.num_adapters, config.window_size, len(config.allowed_grids)) == (4, 224, 14)
    assert "2×2 windows, an adapter each" in (tmp_path / "study" / "table.md").read_text()
