"""Asking from the command line: one question, a folder, a file of questions that survives any interruption."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import monkey
from monkey import ask, cli
from monkey.engine import Engine
from monkey.serving import session
from monkey.serving.answer_file import AnswerFile
from monkey.serving.session import Answerer
from tests.conftest import random_model
from tests.small_processor import small_config, small_processor

PROJECT = Path(ask.__file__).parent.parent


def saved(folder: Path, seed: int = 0, **text) -> Path:
    random_model(small_config(**text), seed).save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.linear_gradient("L").rotate(90 * number).resize((40, 30)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """Lengths of the prompts that reach the model."""
    lengths: list[int] = []
    submit = Answerer._submit

    def counted(self, ids, *rest, **options):
        reply = submit(self, ids, *rest, **options)
        lengths.append(len(ids))
        return reply

    monkeypatch.setattr(Answerer, "_submit", counted)
    return lengths


def run(checkpoint: Path, *words: object) -> int:
    return ask.main(["--checkpoint", str(checkpoint), "--device", "cpu", *map(str, words)])


def expected(checkpoint: Path, images, question: str, limit: int = 8) -> str:
    with monkey.load(checkpoint, "cpu") as model:
        return model.ask(images, question, monkey.Decoding(max_new_tokens=limit)).text


def refused(capsys, *words: object) -> str:
    """The one sentence that a command ends with."""
    assert ask.main([str(word) for word in words]) == cli.EXIT_USAGE
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error.removeprefix("error: ")


class TestOneQuestion:
    def test_the_answer_is_what_python_gives(self, checkpoint, pictures, capsys):
        assert run(checkpoint, "--image", pictures[0], "--max-new-tokens", 8, "What is it?") == 0
        assert capsys.readouterr().out == expected(checkpoint, pictures[0], "What is it?") + "\n"

    def test_several_pictures_are_asked_about_together_and_the_question_may_be_piped(
        self, checkpoint, pictures, capsys, monkeypatch
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Which is older?\n"))
        two = ["--image", pictures[0], "--image", pictures[1]]
        assert run(checkpoint, *two, "--max-new-tokens", 8, "--stream") == 0
        assert capsys.readouterr().out == expected(checkpoint, pictures[:2], "Which is older?") + "\n"

    def test_a_stream_is_shown_while_it_is_written(self, checkpoint, pictures, monkeypatch):
        shown = threading.Event()
        choose = Engine._choose

        class Watched(io.StringIO):
            def write(self, text: str) -> int:
                if text.strip():
                    shown.set()
                return super().write(text)

        def held(self, last, rows):
            # Two letters are certain after three tokens at the latest; without them on the screen there is no fourth.
            assert rows[0].new_tokens < 3 or shown.wait(60)
            tokens, log_probabilities = choose(self, last, rows)
            return [65 + rows[0].new_tokens] * len(tokens), log_probabilities

        monkeypatch.setattr(Engine, "_choose", held)
        monkeypatch.setattr(sys, "stdout", Watched())
        assert run(checkpoint, "--image", pictures[0], "--max-new-tokens", 6, "--stream", "What?") == 0
        tokenizer = small_processor().tokenizer
        assert sys.stdout.getvalue().strip() == tokenizer.decode([65, 66, 67, 68, 69, 70]).strip()

    def test_json_tells_how_the_answer_came_about(self, checkpoint, pictures, capsys):
        words = ["--image", pictures[1], "--max-new-tokens", 8, "--json", "--confidence", "What?"]
        assert run(checkpoint, *words) == 0
        told = json.loads(capsys.readouterr().out)
        assert 0 < told.pop("confidence") < 1
        answer = expected(checkpoint, pictures[1], "What?")
        length = len(small_processor()(images=[pictures[1]], text=" What? Answer: ")["input_ids"][0])
        assert told == {
            "images": [str(pictures[1])],
            "question": "What?",
            "answer": answer,
            "finish_reason": "length",
            "prompt_tokens": length,
            "new_tokens": 8,
            "boxes": [],
        }

    def test_sampling_repeats_with_its_seed_and_a_description_has_one(self, checkpoint, pictures, capsys):
        def said(*words: object) -> str:
            assert run(checkpoint, "--image", pictures[0], "--max-new-tokens", 8, *words) == 0
            return capsys.readouterr().out

        assert said("--temperature", 1, "--seed", 1, "What?") == said("--temperature", 1, "--seed", 1, "What?")
        assert said("--temperature", 1, "--seed", 1, "What?") != said("--temperature", 1, "--seed", 2, "What?")
        assert said("--describe") == said("--describe", "--seed", 0)
        assert said("--describe", "--top-p", 1e-6) == said("--describe", "--temperature", 0)

    def test_each_picture_of_a_folder_is_asked_about_and_a_broken_one_costs_no_other(
        self, checkpoint, pictures, capsys
    ):
        (pictures[0].parent / "notes.txt").write_text("no picture")
        (pictures[0].parent / "1a.jpg").write_bytes(b"%PDF-1.7")
        (pictures[0].parent / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        words = ["--image", pictures[0].parent, "--max-new-tokens", 8, "--batch-size", 1, "What?"]
        assert run(checkpoint, *words) == cli.EXIT_PARTIAL
        said = capsys.readouterr()
        lines = [f"{picture}: {expected(checkpoint, picture, 'What?')}" for picture in pictures]
        assert said.out.split("\n")[:-1] == "\n".join(lines).split("\n")
        assert f"error: {pictures[0].parent / '1a.jpg'} is a PDF" in said.err
        assert f"error: {pictures[0].parent / 'IMG_1.HEIC'} is HEIC" in said.err
        assert "left out, as no pictures by their endings: 1 other file (1 .txt)" in said.err

    def test_a_name_that_is_not_utf_8_is_spelled_out(self, checkpoint, pictures, capsys):
        odd = os.fsencode(pictures[0].parent) + b"/\xff.png"
        with open(odd, "wb") as file:
            file.write(pictures[0].read_bytes())
        words = ["--image", pictures[0].parent, "--max-new-tokens", 4, "What?"]
        assert run(checkpoint, *words) == 0
        assert "\\udcff.png: " in capsys.readouterr().out
        assert run(checkpoint, *words, "--json") == 0
        named = [json.loads(line)["images"][0] for line in capsys.readouterr().out.splitlines()]
        assert os.fsencode(named[-1]) == odd

    def test_without_a_checkpoint_the_default_model_is_opened(self, checkpoint, pictures, capsys, monkeypatch):
        monkeypatch.setattr(session, "DEFAULT_CHECKPOINT", str(checkpoint))
        assert ask.main(["--device", "cpu", "--image", str(pictures[0]), "--max-new-tokens", "8", "What?"]) == 0
        said = capsys.readouterr()
        assert said.out == expected(checkpoint, pictures[0], "What?") + "\n"
        assert said.err.startswith(f"opening {checkpoint}\n")

    @pytest.mark.parametrize("device", ["mps", "meta", "tpu", "cuda:x", "cpu:3"])
    def test_a_device_that_is_not_served_is_refused(self, checkpoint, pictures, device, capsys):
        words = ["-c", checkpoint, "--device", device, "--image", pictures[0], "What?"]
        assert refused(capsys, *words) == f"device is {device!r}, and it is auto, cpu, cuda or cuda:N"

    def test_compiling_on_a_cpu_is_said_to_do_nothing(self, checkpoint, pictures, capsys):
        assert run(checkpoint, "--image", pictures[0], "--max-new-tokens", 8, "--compile", "What?") == 0
        said = capsys.readouterr()
        assert said.out == expected(checkpoint, pictures[0], "What?") + "\n"
        assert said.err.splitlines()[-1].startswith("warning: compile=True does nothing on cpu")

    def test_what_does_not_go_together_is_refused_in_a_sentence(self, pictures, tmp_path, capsys, monkeypatch):
        picture, folder = pictures[0], pictures[0].parent
        (tmp_path / "empty").mkdir()
        monkeypatch.setattr(session, "DEFAULT_CHECKPOINT", str(tmp_path / "empty"))
        assert "go together" in refused(capsys, "--input", "rows.jsonl")
        assert "--image does not go with --input" in refused(capsys, "--input", "a", "--output", "b", "--image", "c")
        assert "choose one" in refused(capsys, "--stream", "--json", "--image", picture, "What?")
        assert "--describe needs --image" in refused(capsys, "--describe")
        assert "no such picture or folder" in refused(capsys, "--image", "nowhere.png", "What?")
        assert "stands alone" in refused(capsys, "--image", folder, "--image", picture, "What?")
        assert "holds no picture" in refused(capsys, "--image", tmp_path / "empty", "What?")
        for temperature in ("-1.0", "nan", "inf", "1e+308", "1e-320"):
            message = refused(capsys, f"--temperature={temperature}", "--image", picture, "What?")
            assert message.startswith(
                f"temperature is {temperature}, and 0, which is greedy, or a number from 0.001 to"
            )
        assert "--batch-size is 0" in refused(capsys, "--batch-size", 0, "--image", picture, "What?")
        assert "--image-root goes with --input" in refused(capsys, "--image-root", folder, "What?")
        assert "pictures are not fetched" in refused(capsys, "--image", "https://example.com/sign.png", "What?")
        assert "the question is empty" in refused(capsys, "--image", picture, " ")
        monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
        assert "standard input is empty" in refused(capsys, "--image", picture)
        with pytest.raises(SystemExit) as ended:
            ask.main(["--devise", "cpu", "What?"])
        assert ended.value.code == cli.EXIT_USAGE
        assert "--devise" in capsys.readouterr().err


@pytest.fixture
def pointing(monkeypatch) -> str:
    """What every answer is: a box with a name."""
    answer = "<ref>the sign</ref><box>(100,200),(500,1000)</box>"
    tokenizer = small_processor().tokenizer
    ids = [*tokenizer.encode_text(answer), tokenizer.eod_id]

    def scripted(self, last, rows):
        return [ids[row.new_tokens] for row in rows], [0.0] * len(rows)

    monkeypatch.setattr(Engine, "_choose", scripted)
    return answer


class TestBoxes:
    @pytest.fixture
    def photo(self, tmp_path) -> Path:
        """200 pixels wide and 100 high as people see it, and stored on its side."""
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (100, 200), "white").save(tmp_path / "photo.jpg", exif=exif)
        return tmp_path / "photo.jpg"

    def test_json_has_them_in_pixels_of_each_picture_as_people_see_it(
        self, checkpoint, photo, pictures, pointing, capsys
    ):
        assert run(checkpoint, "--image", photo, "--image", pictures[0], "--json", "Where?") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["answer"] == pointing
        assert told["boxes"] == [
            {"label": "the sign", "box": [100, 200, 500, 1000], "pixels": [[20, 20, 100, 100], [4, 6, 20, 30]]}
        ]

    @pytest.mark.parametrize("shown", [(), ("--stream",), ("--json",)])
    def test_draw_saves_the_upright_picture_with_them(self, checkpoint, photo, pointing, tmp_path, shown, capsys):
        found = tmp_path / "found.png"
        assert run(checkpoint, "--image", photo, "--draw", found, *shown, "Where?") == 0
        assert pointing in capsys.readouterr().out
        with Image.open(found) as image:
            assert image.size == (200, 100)
            changed = (np.asarray(image).astype(int) < 200).any(axis=2)
        assert changed[21:99, 20].all()
        assert not changed[:, 110:].any()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["found.png", "photo.jpg"]

    def test_an_answer_without_a_box_is_a_mistake_and_leaves_no_file(self, checkpoint, photo, tmp_path, capsys):
        found = tmp_path / "found.png"
        words = ["-c", checkpoint, "--device", "cpu", "--image", photo, "--draw", found, "--max-new-tokens", 2, "What?"]
        message = refused(capsys, *words)
        assert message.startswith(f"the answer holds no box, so {found} was not written; <ref> asks for one")
        assert not found.exists()

    def test_rows_have_them_in_pixels(self, checkpoint, photo, pointing, tmp_path):
        _write(tmp_path / "rows.jsonl", [{"image": "photo.jpg", "question": "Where?"}])
        words = ["--input", tmp_path / "rows.jsonl", "--output", tmp_path / "out.jsonl"]
        for _ in range(2):  # the second time from the file
            assert run(checkpoint, *words) == 0
            (row,) = _read(tmp_path / "out.jsonl")
            assert row["boxes"][0]["pixels"] == [[20, 20, 100, 100]]

    def test_where_there_is_nothing_to_draw_on_or_to_write_is_refused(self, photo, pictures, tmp_path, capsys):
        draw = ["--draw", tmp_path / "found.png"]
        assert "on one picture" in refused(capsys, *draw, "What?")
        assert "on one picture" in refused(capsys, *draw, "--image", photo, "--image", pictures[0], "What?")
        assert "on one picture" in refused(capsys, *draw, "--image", pictures[0].parent, "What?")
        assert "does not go with --input" in refused(capsys, *draw, "--input", "a.jsonl", "--output", "b.jsonl")
        assert "must end in .png" in refused(capsys, "--draw", "found.jpg", "--image", photo, "What?")
        assert "does not exist" in refused(capsys, "--draw", tmp_path / "no" / "f.png", "--image", photo, "What?")


@pytest.fixture
def rows(tmp_path, pictures) -> Path:
    """Six rows: of one picture each, of two, and of none."""
    path = tmp_path / "rows.jsonl"
    images = ["pictures/0.png", "pictures/1.png", ["pictures/0.png", "pictures/2.png"], [], "pictures/2.png"]
    lines = [
        {"question_id": number, "image": image, "question": f"What is number {number}?", "answer": "the true one"}
        for number, image in enumerate(images)
    ]
    _write(path, [*lines, lines[0]])
    return path


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestFiles:
    def words(self, rows: Path) -> list[object]:
        return ["--input", rows, "--output", rows.with_name("answers.jsonl"), "--max-new-tokens", 8, "--batch-size", 3]

    def answers(self, rows: Path) -> list[dict]:
        return _read(rows.with_name("answers.jsonl"))

    def test_every_row_is_answered_in_order_with_its_own_fields(self, checkpoint, rows, pictures, capsys):
        assert run(checkpoint, *self.words(rows)) == 0
        answers = self.answers(rows)
        assert [answer["question_id"] for answer in answers] == [0, 1, 2, 3, 4, 0]
        images = ([pictures[0]], [pictures[1]], [pictures[0], pictures[2]], [], [pictures[2]], [pictures[0]])
        for row, answer, own in zip(_read(rows), answers, images, strict=True):
            assert answer["answer"] == expected(checkpoint, own, row["question"])
            assert (answer["image"], answer["finish_reason"]) == (row["image"], "length")
        said = capsys.readouterr().err
        assert "%|" not in said  # no bars where standard error is no terminal
        assert "6 rows, 6 of them asked now" in said
        assert run(checkpoint, *self.words(rows), "--confidence") == 0
        assert all(0 < answer["confidence"] <= 1 for answer in self.answers(rows))
        assert sorted(path.name for path in rows.parent.iterdir()) == ["answers.jsonl", "pictures", "rows.jsonl"]

    def test_what_changed_is_asked_again_and_nothing_else(self, checkpoint, rows, pictures, asked, tmp_path, capsys):
        run(checkpoint, *self.words(rows))
        first = self.answers(rows)
        asked.clear()
        assert run(checkpoint, *self.words(rows)) == 0
        assert asked == []
        assert "opening" not in capsys.readouterr().err.splitlines()[-1]
        assert self.answers(rows) == first

        changed = _read(rows)
        changed[1]["question"] = "What else?"
        _write(rows, [changed[4], *changed])
        Image.new("RGB", (5, 5), "red").save(pictures[2])
        run(checkpoint, *self.words(rows))
        # Row 1, and the rows of picture 2: 2, 4, and 4 once more.
        assert len(asked) == 4
        assert [answer["answer"] for answer in self.answers(rows)][1::3] == [first[0]["answer"], first[3]["answer"]]

        asked.clear()
        other = saved(tmp_path / "other", seed=1)
        run(other, *self.words(rows))
        assert len(asked) == 7
        run(other, *self.words(rows), "--temperature", 0.5, "--seed", 1)
        assert len(asked) == 14

    @pytest.mark.parametrize("torn", [b"", b'{"answer": "half a li'])
    def test_a_run_that_is_killed_goes_on_where_it_was(self, checkpoint, rows, torn, asked, monkeypatch):
        code = (
            "import os, signal, sys\n"
            "from monkey import ask\n"
            "from monkey.serving.answer_file import AnswerFile\n"
            "add = AnswerFile.add\n"
            "def killed(self, key, answer):\n"
            "    if len(self.answers) == 3:\n"
            f"        self._journal._stream.write({torn!r})\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    add(self, key, answer)\n"
            "AnswerFile.add = killed\n"
            "ask.main(sys.argv[1:])\n"
        )
        words = ["--checkpoint", checkpoint, "--device", "cpu", *self.words(rows)]
        done = subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=PROJECT, capture_output=True)
        assert done.returncode == -9
        assert not rows.with_name("answers.jsonl").exists()
        part = rows.with_name("answers.jsonl.part")
        assert part.read_bytes().endswith(torn or b"\n")
        assert run(checkpoint, *self.words(rows)) == 0
        assert len(asked) == 3
        assert not part.exists()
        rows.with_name("answers.jsonl").rename(rows.with_name("killed.jsonl"))
        run(checkpoint, *self.words(rows))
        assert self.answers(rows) == _read(rows.with_name("killed.jsonl"))

    def test_a_row_that_cannot_be_answered_is_named_and_asked_again_next_time(
        self, checkpoint, rows, pictures, asked, capsys
    ):
        content = pictures[1].read_bytes()
        pictures[1].write_bytes(b"%PDF-1.7")
        moved = pictures[2].rename(pictures[2].with_name("moved.png"))
        assert run(checkpoint, *self.words(rows)) == cli.EXIT_PARTIAL
        said = capsys.readouterr().err
        assert f"{rows}:2: {pictures[1]} is a PDF; render its pages to PNG first" in said
        assert f"{rows}:3: no picture pictures/2.png" in said
        assert "3 of 6 rows have no answer" in said
        answers = self.answers(rows)
        assert ["error" in answer for answer in answers] == [False, True, True, False, True, False]
        assert not any("answer" in answer and "error" in answer for answer in answers)
        pictures[1].write_bytes(content)
        moved.rename(pictures[2])
        asked.clear()
        assert run(checkpoint, *self.words(rows)) == 0
        assert len(asked) == 3
        assert all("answer" in answer for answer in self.answers(rows))

    def test_a_path_that_no_row_may_have_is_refused_before_the_model_is_opened(
        self, checkpoint, rows, pictures, capsys, monkeypatch
    ):
        monkeypatch.setattr(ask, "opened", lambda *_: pytest.fail("the model was opened"))
        _write(rows, [*_read(rows), {"image": str(pictures[0]), "question": "What?"}])
        message = refused(capsys, "--checkpoint", checkpoint, *self.words(rows))
        assert message.startswith(f"{rows}:7: {pictures[0]} is absolute; make it relative, or give")
        assert message.endswith("as --image-root")
        assert not rows.with_name("answers.jsonl").exists()

    def test_missing_pictures_are_told_before_the_model_is_opened(self, checkpoint, rows, pictures, capsys):
        pictures[1].unlink()
        assert run(checkpoint, *self.words(rows)) == cli.EXIT_PARTIAL
        said = capsys.readouterr().err
        fault = f"error: {rows}:2: no picture pictures/1.png"
        assert said.index(fault) < said.index("opening ")
        assert said.count(fault) == 1

    def test_half_a_surrogate_in_a_row_leaves_a_file_of_utf_8(self, checkpoint, rows):
        _write(rows, [{"question": "What?", "note": "\ud800"}])
        assert run(checkpoint, *self.words(rows)) == 0
        (answer,) = self.answers(rows)
        assert answer["note"] == "\ud800"

    def test_rows_may_be_descriptions_and_pictures_lie_elsewhere(self, checkpoint, pictures, tmp_path, capsys):
        rows = tmp_path / "elsewhere.json"
        rows.write_text(json.dumps([{"image": "0.png"}, {"images": ["1.png"], "question": "Generate the caption:"}]))
        words = ["--input", rows, "--output", tmp_path / "out.jsonl", "--describe", "--max-new-tokens", 6]
        assert run(checkpoint, *words, "--image-root", pictures[0].parent) == 0
        with monkey.load(checkpoint, "cpu") as model:
            decoding = monkey.Decoding(6, temperature=0.7, seed=0)
            texts = [
                model.describe(pictures[0], decoding=decoding).text,
                model.describe(pictures[1], "Generate the caption:", decoding).text,
            ]
        assert [answer["answer"] for answer in _read(tmp_path / "out.jsonl")] == texts

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ('{"image": "pictures/0.png"}', "has no question"),
            ('{"image": "pictures/0.png", "question": " "}', "its question is ' '"),
            ('{"image": 5, "question": "What?"}', "its image is 5"),
            ('{"image": "a", "images": ["b"], "question": "What?"}', "has both image and images"),
            ("[1]", "holds a list"),
            ("{", "malformed JSON"),
        ],
    )
    def test_a_row_of_another_form_is_refused_by_its_line(self, checkpoint, rows, row, reason, capsys):
        with rows.open("a") as file:
            file.write(row + "\n")
        message = refused(capsys, "--checkpoint", checkpoint, *self.words(rows))
        assert message.startswith(f"{rows}:7: ")
        assert reason in message
        assert not rows.with_name("answers.jsonl.part").exists()

    def test_another_file_is_never_written_over(self, checkpoint, rows, capsys):
        output = rows.with_name("answers.jsonl")
        output.write_text('{"my": "notes"}\n')
        message = refused(capsys, "--checkpoint", checkpoint, *self.words(rows))
        assert message.startswith(f"{output}:1 is no answer of an earlier run")
        assert output.read_text() == '{"my": "notes"}\n'

    def test_two_runs_do_not_write_one_file(self, checkpoint, rows, capsys):
        with AnswerFile(rows.with_name("answers.jsonl")):
            message = refused(capsys, "--checkpoint", checkpoint, *self.words(rows))
        assert "is being written by another run" in message

    def test_a_full_disk_is_said_in_a_sentence_and_the_answers_so_far_stay(
        self, checkpoint, rows, asked, monkeypatch, capsys
    ):
        fsync, calls = os.fsync, []

        def full(descriptor):
            calls.append(descriptor)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            message = refused(capsys, "--checkpoint", checkpoint, "--device", "cpu", *self.words(rows))
        assert message.startswith(f"{rows.with_name('answers.jsonl.part')} cannot be written (No space left on device)")
        asked.clear()
        assert run(checkpoint, *self.words(rows)) == 0
        assert len(asked) <= 4

    def test_an_interruption_says_where_the_answers_are(self, checkpoint, rows, monkeypatch, capsys):
        def interrupted(self, key, answer):
            raise KeyboardInterrupt

        monkeypatch.setattr(AnswerFile, "add", interrupted)
        assert run(checkpoint, *self.words(rows)) == cli.EXIT_INTERRUPTED
        assert "the same command goes on" in capsys.readouterr().err
