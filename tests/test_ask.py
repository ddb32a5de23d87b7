"""Asking from the command line: one question, a folder, a file of questions that survives any interruption."""

from __future__ import annotations

import io
import json
import os
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


def saved(folder: Path, seed: int = 0) -> Path:
    random_model(small_config(), seed).save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def expected(checkpoint):
    """What Python gives for images and a question."""
    with monkey.load(checkpoint, "cpu") as model:
        yield lambda images, question: model.ask(images, question, monkey.Decoding(max_new_tokens=8)).text


@pytest.fixture
def images(tmp_path) -> list[Path]:
    folder = tmp_path / "images"
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


def refused(capsys, *words: object) -> str:
    """The one sentence that a command ends with."""
    assert ask.main([str(word) for word in words]) == cli.EXIT_USAGE
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error.removeprefix("error: ")


class TestImages:
    def test_several_are_asked_about_together_by_a_question_that_may_be_piped(
        self, checkpoint, expected, images, capsys, monkeypatch
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Which is older?\n"))
        assert run(checkpoint, "--image", images[0], "--image", images[1], "--max-new-tokens", 8) == 0
        assert capsys.readouterr().out == expected(images[:2], "Which is older?") + "\n"

    def test_a_stream_is_shown_while_it_is_written(self, checkpoint, images, monkeypatch):
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
        assert run(checkpoint, "--image", images[0], "--max-new-tokens", 6, "--stream", "What?") == 0
        tokenizer = small_processor().tokenizer
        assert sys.stdout.getvalue().strip() == tokenizer.decode([65, 66, 67, 68, 69, 70]).strip()

    def test_json_tells_how_the_answer_came_about(self, checkpoint, expected, images, capsys):
        assert run(checkpoint, "--image", images[1], "--max-new-tokens", 8, "--json", "--confidence", "What?") == 0
        told = json.loads(capsys.readouterr().out)
        assert 0 < told.pop("confidence") < 1
        length = len(small_processor()(images=[images[1]], text=" What? Answer: ")["input_ids"][0])
        assert told == {
            "images": [str(images[1])],
            "question": "What?",
            "answer": expected(images[1], "What?"),
            "finish_reason": "length",
            "prompt_tokens": length,
            "new_tokens": 8,
            "boxes": [],
        }

    def test_sampling_repeats_with_its_seed_and_a_description_has_one(self, checkpoint, images, capsys):
        def said(*words: object) -> str:
            assert run(checkpoint, "--image", images[0], "--max-new-tokens", 8, *words) == 0
            return capsys.readouterr().out

        first = said("--temperature", 1, "--seed", 1, "What?")
        assert first == said("--temperature", 1, "--seed", 1, "What?")
        assert first != said("--temperature", 1, "--seed", 2, "What?")
        assert said("--describe") == said("--describe", "--seed", 0)

    def test_each_of_a_folder_is_asked_about_and_a_broken_one_costs_no_other(
        self, checkpoint, expected, images, capsys
    ):
        folder = images[0].parent
        (folder / "notes.txt").write_text("no image")
        (folder / "1a.jpg").write_bytes(b"%PDF-1.7")
        (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        words = ["--image", folder, "--max-new-tokens", 8, "--batch-size", 1, "What?"]
        assert run(checkpoint, *words) == cli.EXIT_PARTIAL
        said = capsys.readouterr()
        lines = [f"{image}: {expected(image, 'What?')}" for image in images]
        assert said.out.split("\n")[:-1] == "\n".join(lines).split("\n")
        assert f"error: {folder / '1a.jpg'} is a PDF" in said.err
        assert f"error: {folder / 'IMG_1.HEIC'} is HEIC" in said.err
        assert "left out, as no images by their endings: 1 other file (1 .txt)" in said.err

    def test_what_is_wrong_with_an_image_is_told_in_its_place(self, checkpoint, images, monkeypatch):
        images[0].write_bytes(b"%PDF-1.7")
        said = io.StringIO()  # as on a screen, which shows both
        monkeypatch.setattr(sys, "stdout", said)
        monkeypatch.setattr(sys, "stderr", said)
        words = [word for image in (images[0], images[1], images[0]) for word in ("--image", image)]
        assert run(checkpoint, *words, "--describe", "--max-new-tokens", 4) == cli.EXIT_PARTIAL
        lines = [line for line in said.getvalue().splitlines() if str(images[0].parent) in line]
        assert [line.startswith(f"error: {images[0]} is a PDF") for line in lines] == [True, False, True]

    def test_a_name_that_is_not_utf_8_is_spelled_out(self, checkpoint, images, capsys):
        odd = os.fsencode(images[0].parent) + b"/\xff.png"
        os.rename(images[2], odd)
        words = ["--image", images[0].parent, "--max-new-tokens", 4, "What?"]
        assert run(checkpoint, *words) == 0
        assert "\\udcff.png: " in capsys.readouterr().out
        assert run(checkpoint, *words, "--json") == 0
        named = [json.loads(line)["images"][0] for line in capsys.readouterr().out.splitlines()]
        assert os.fsencode(named[-1]) == odd

    def test_the_default_model_is_opened_and_compiling_on_a_cpu_is_said_to_do_nothing(
        self, checkpoint, expected, images, capsys, monkeypatch
    ):
        monkeypatch.setattr(session, "DEFAULT_CHECKPOINT", str(checkpoint))
        words = ["--device", "cpu", "--image", str(images[0]), "--max-new-tokens", "8", "--compile", "What?"]
        assert ask.main(words) == 0
        said = capsys.readouterr()
        assert said.out == expected(images[0], "What?") + "\n"
        assert said.err.startswith(f"opening {checkpoint}\nwarning: compile=True does nothing on cpu")


IMAGE = ("--image", "{image}", "What?")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--input", "rows.jsonl"), "go together"),
        (("--input", "a", "--output", "b", "--image", "c"), "--image does not go with --input"),
        (("--input", "a", "--output", "b", "What?"), "a question does not go with --input"),
        (("--input", "a", "--output", "b", "--stream"), "--stream does not go with --input"),
        (("--input", "a", "--output", "b", "--draw", "c.png"), "--draw does not go with --input"),
        (("--input", "a", "--output", "b"), "a: no such file"),
        (("--describe",), "--describe needs --image"),
        (("--image", "nowhere.png", "What?"), "no such image or folder"),
        (("--image", "{folder}", *IMAGE), "stands alone"),
        (("--image", "{empty}", "What?"), "holds no image"),
        (("--image", "https://example.com/sign.png", "What?"), "images are not fetched"),
        (("--batch-size", "0", *IMAGE), "--batch-size is 0"),
        (("--image-root", "{folder}", "What?"), "--image-root goes with --input"),
        (("--image", "{image}", " "), "the question is empty"),
        (("--image", "{image}"), "standard input is empty"),
        (("--temperature=nan", *IMAGE), "temperature is nan, and 0, which is greedy, or a number from 0.001 to"),
        (("--draw", "{empty}/f.png", "What?"), "on one image"),
        (("--draw", "{empty}/f.png", "--image", "{image}", *IMAGE), "on one image"),
        (("--draw", "{empty}/f.png", "--image", "{folder}", "What?"), "on one image"),
        (("--draw", "found.jpg", *IMAGE), "must end in .png"),
        (("--stream", "--json", *IMAGE), "--json when it is whole; choose one"),
        (("--draw", "{empty}/no/f.png", *IMAGE), "does not exist"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_in_a_sentence(words, message, images, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(session, "DEFAULT_CHECKPOINT", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    places = {"image": images[0], "folder": images[0].parent, "empty": tmp_path / "empty"}
    assert message in refused(capsys, *(word.format(**places) for word in words))


def test_a_wrong_flag_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        ask.main(["--devise", "cpu", "What?"])
    assert ended.value.code == cli.EXIT_USAGE
    assert "--devise" in capsys.readouterr().err


def test_an_interruption_is_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert cli.run_program(interrupted, "interrupted") == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


class TestBoxes:
    @pytest.fixture
    def pointing(self, monkeypatch) -> str:
        """What every answer is: a box with a name."""
        answer = "<ref>the sign</ref><box>(100,200),(500,1000)</box>"
        tokenizer = small_processor().tokenizer
        ids = [*tokenizer.encode_text(answer), tokenizer.eod_id]

        def scripted(self, last, rows):
            return [ids[row.new_tokens] for row in rows], [0.0] * len(rows)

        monkeypatch.setattr(Engine, "_choose", scripted)
        return answer

    @pytest.fixture
    def photo(self, tmp_path) -> Path:
        """200 pixels wide and 100 high as people see it, and stored on its side."""
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (100, 200), "white").save(tmp_path / "photo.jpg", exif=exif)
        return tmp_path / "photo.jpg"

    def test_json_has_them_in_pixels_of_each_image_as_people_see_it(self, checkpoint, photo, images, pointing, capsys):
        assert run(checkpoint, "--image", photo, "--image", images[0], "--json", "Where?") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["answer"] == pointing
        assert told["boxes"] == [
            {"label": "the sign", "box": [100, 200, 500, 1000], "pixels": [[20, 20, 100, 100], [4, 6, 20, 30]]}
        ]

    @pytest.mark.parametrize("shown", [(), ("--stream",), ("--json",)], ids=str)
    def test_draw_saves_the_upright_image_with_them(self, checkpoint, photo, pointing, tmp_path, shown, capsys):
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


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestFiles:
    @pytest.fixture
    def rows(self, tmp_path, images) -> Path:
        """Six rows: of one image each, of two, of none, and the first once more."""
        path = tmp_path / "rows.jsonl"
        named = ["images/0.png", "images/1.png", ["images/0.png", "images/2.png"], [], "images/2.png"]
        lines = [
            {"question_id": number, "image": image, "question": f"What is number {number}?", "answer": "the true one"}
            for number, image in enumerate(named)
        ]
        _write(path, [*lines, lines[0]])
        return path

    def words(self, rows: Path) -> list[object]:
        return ["--input", rows, "--output", rows.with_name("answers.jsonl"), "--max-new-tokens", 8, "--batch-size", 3]

    def answers(self, rows: Path) -> list[dict]:
        return _read(rows.with_name("answers.jsonl"))

    def test_every_row_is_answered_in_order_with_its_own_fields(self, checkpoint, expected, rows, images, capsys):
        assert run(checkpoint, *self.words(rows), "--confidence") == 0
        answers = self.answers(rows)
        assert [answer["question_id"] for answer in answers] == [0, 1, 2, 3, 4, 0]
        asked = ([images[0]], [images[1]], [images[0], images[2]], [], [images[2]], [images[0]])
        for row, answer, own in zip(_read(rows), answers, asked, strict=True):
            assert answer["answer"] == expected(own, row["question"])
            assert (answer["image"], answer["finish_reason"]) == (row["image"], "length")
            assert 0 < answer["confidence"] <= 1
        said = capsys.readouterr().err
        assert "%|" not in said  # no bars where standard error is no terminal
        assert "6 rows, 6 of them asked now" in said
        assert sorted(path.name for path in rows.parent.iterdir()) == ["answers.jsonl", "images", "rows.jsonl"]

    def test_what_changed_is_asked_again_and_nothing_else(self, checkpoint, rows, images, asked, tmp_path, capsys):
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
        Image.new("RGB", (5, 5), "red").save(images[2])
        run(checkpoint, *self.words(rows))
        # Row 1, and the rows of image 2: 2, 4, and 4 once more.
        assert len(asked) == 4
        assert [answer["answer"] for answer in self.answers(rows)][1::3] == [first[0]["answer"], first[3]["answer"]]

        asked.clear()
        other = saved(tmp_path / "other", seed=1)
        run(other, *self.words(rows))
        run(other, *self.words(rows), "--temperature", 0.5, "--seed", 1)
        assert len(asked) == 14

    def test_a_run_that_is_cut_short_goes_on_where_it_was(self, checkpoint, rows, asked, monkeypatch, capsys):
        add = AnswerFile.add

        def interrupted(self, key, answer):
            if len(self.answers) == 3:
                raise KeyboardInterrupt
            add(self, key, answer)

        with monkeypatch.context() as patch:
            patch.setattr(AnswerFile, "add", interrupted)
            assert run(checkpoint, *self.words(rows)) == cli.EXIT_INTERRUPTED
        assert "the same command goes on" in capsys.readouterr().err
        assert not rows.with_name("answers.jsonl").exists()
        part = rows.with_name("answers.jsonl.part")
        with part.open("ab") as file:
            file.write(b'{"answer": "half a li')  # as a process leaves it that is killed amid a line
        asked.clear()
        assert run(checkpoint, *self.words(rows)) == 0
        assert len(asked) == 3
        assert not part.exists()
        cut = self.answers(rows)
        rows.with_name("answers.jsonl").unlink()
        run(checkpoint, *self.words(rows))
        assert self.answers(rows) == cut

    def test_a_row_that_cannot_be_answered_is_named_and_asked_again_next_time(
        self, checkpoint, rows, images, asked, capsys
    ):
        content = images[1].read_bytes()
        images[1].write_bytes(b"%PDF-1.7")
        moved = images[2].rename(images[2].with_name("moved.png"))
        assert run(checkpoint, *self.words(rows)) == cli.EXIT_PARTIAL
        said = capsys.readouterr().err
        missing = f"error: {rows}:3: no image images/2.png"
        assert said.index(missing) < said.index("opening ") < said.index(f"{rows}:2: {images[1]} is a PDF")
        assert said.count(missing) == 1
        assert "3 of 6 rows have no answer" in said
        answers = self.answers(rows)
        assert ["error" in answer for answer in answers] == [False, True, True, False, True, False]
        assert not any("answer" in answer and "error" in answer for answer in answers)
        images[1].write_bytes(content)
        moved.rename(images[2])
        asked.clear()
        assert run(checkpoint, *self.words(rows)) == 0
        assert len(asked) == 3
        assert all("answer" in answer for answer in self.answers(rows))

    def test_half_a_surrogate_in_a_row_leaves_a_file_of_utf_8(self, checkpoint, rows):
        _write(rows, [{"question": "What?", "note": "\ud800"}])
        assert run(checkpoint, *self.words(rows)) == 0
        (answer,) = self.answers(rows)
        assert answer["note"] == "\ud800"

    def test_rows_may_be_descriptions_and_images_lie_elsewhere(self, checkpoint, images, tmp_path):
        rows = tmp_path / "elsewhere.json"
        rows.write_text(json.dumps([{"image": "0.png"}, {"images": ["1.png"], "question": "Generate the caption:"}]))
        words = ["--input", rows, "--output", tmp_path / "out.jsonl", "--describe", "--max-new-tokens", 6]
        assert run(checkpoint, *words, "--image-root", images[0].parent) == 0
        with monkey.load(checkpoint, "cpu") as model:
            decoding = monkey.Decoding(6, temperature=0.7, seed=0)
            texts = [
                model.describe(images[0], decoding=decoding).text,
                model.describe(images[1], "Generate the caption:", decoding).text,
            ]
        assert [answer["answer"] for answer in _read(tmp_path / "out.jsonl")] == texts

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ('{"image": "images/0.png"}', "has no question"),
            ('{"image": "images/0.png", "question": " "}', "its question is ' '"),
            ('{"image": 5, "question": "What?"}', "its image is 5"),
            ('{"image": "a", "images": ["b"], "question": "What?"}', "has both image and images"),
            ('{"image": "/a.png", "question": "What?"}', "/a.png is absolute; make it relative, or give"),
            ("[1]", "holds a list"),
            ("{", "malformed JSON"),
        ],
    )
    def test_a_row_of_another_form_is_refused_by_its_line_before_the_model_is_opened(
        self, checkpoint, rows, row, reason, capsys, monkeypatch
    ):
        monkeypatch.setattr(ask, "open_checkpoint", lambda *_: pytest.fail("the model was opened"))
        with rows.open("a") as file:
            file.write(row + "\n")
        message = refused(capsys, "--checkpoint", checkpoint, *self.words(rows))
        assert message.startswith(f"{rows}:7: ")
        assert reason in message
        assert sorted(path.name for path in rows.parent.iterdir()) == ["images", "rows.jsonl"]

    def test_another_file_is_never_written_over_nor_one_that_another_run_writes(self, checkpoint, rows, capsys):
        output = rows.with_name("answers.jsonl")
        with AnswerFile(output):
            message = refused(capsys, "--checkpoint", checkpoint, *self.words(rows))
        assert "is being written by another run" in message
        output.write_text('{"my": "notes"}\n')
        message = refused(capsys, "--checkpoint", checkpoint, *self.words(rows))
        assert message.startswith(f"{output}:1 is no answer of an earlier run")
        assert output.read_text() == '{"my": "notes"}\n'
