"""Examples before a question: which, how they look in the prompt, and that none comes from the test file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from eval.backends import EchoBackend, Request
from eval.chat_backend import prepare_chats
from eval.model_backend import ModelBackend, prepare
from eval.questions import Examples, FewShot, load_examples, load_question_set
from eval.run import run
from eval.tasks import PromptForm
from monkey.processing import MonkeyProcessor
from monkey.prompts import VQA_AS_TRAINED
from tests.conftest import random_model
from tests.small_processor import small_config, small_processor
from tests.small_tokenizers import config_of, llama3, smollm
from tests.test_evaluation import lines_of, own_task, program, row, run_one, settings, write_set

FORM = PromptForm("as-trained", VQA_AS_TRAINED)


@pytest.fixture
def sums(tmp_path) -> Path:
    return write_set(tmp_path / "data", [row(number) for number in range(6)])


@pytest.fixture
def train(tmp_path) -> Path:
    """Eight examples on pictures of their own."""
    folder = tmp_path / "train"
    rows = [row(number, image=f"images/t{number}.png", question=f"Twice {number}?") for number in range(50, 58)]
    path = write_set(folder, rows, "train.jsonl")
    for number in range(50, 58):
        Image.new("RGB", (8, 8), (number, number, number)).save(folder / "images" / f"t{number}.png")
    return path


def examples_of(sums: Path, train: Path, number: int = 2, seed: int = 1) -> Examples:
    return load_examples(FewShot(number, train, seed), load_question_set(own_task(sums)), None)


def asked(sums: Path, train: Path, folder: Path, **changes) -> list[dict]:
    few_shot = FewShot(changes.pop("number", 2), train, changes.pop("shot_seed", 1))
    run_one(sums, folder, EchoBackend, few_shot=few_shot, **changes)
    return lines_of(folder / "sums" / "predictions.jsonl")


class TestPrompt:
    def test_examples_stand_before_the_question_with_their_images_and_answers(self, sums, train, tmp_path):
        line = asked(sums, train, tmp_path / "run")[3]
        first, second, question = line["prompt"].split("<img></img>")[1:]
        assert question == " What is 3 plus 3? Answer: "
        for example in (first, second):
            number = int(example.split("?")[0].split()[-1])
            assert example == f" Twice {number}? Answer: {2 * number}"
        assert first != second
        # The answer that most people gave is shown.
        path = write_set(tmp_path / "people", [row(50, answer=["", "b", "a", " b "])], "train.jsonl")
        (shot,) = examples_of(sums, path, number=1).shots([0])
        assert shot.answer == "b"
        for form, end in ((FORM, " What is 50 plus 50? Answer: b"), (PromptForm("x", "<img></img>{question}"), " b")):
            request = Request(own_task(sums), load_question_set(own_task(sums)).questions[0], form, (shot,))
            assert request.prompt.split("<img></img>")[1].endswith(end)

    @pytest.mark.parametrize("kind", [llama3, smollm])
    def test_in_a_chat_template_each_example_is_a_turn_of_the_users_and_one_of_the_assistants(self, sums, train, kind):
        config, tokenizer = config_of(kind())
        processor = MonkeyProcessor.from_config(config, tokenizer)
        question = load_question_set(own_task(sums)).questions[3]
        shots = examples_of(sums, train).shots([4, 1])
        batch = prepare(processor, processor.end_ids(), [Request(own_task(sums), question, FORM, shots)])

        def asked(image: Path, text: str) -> dict:
            content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
            return {"role": "user", "content": content}

        chat = [
            *(asked(shots[0].image, "Twice 54?"), {"role": "assistant", "content": "108"}),
            *(asked(shots[1].image, "Twice 51?"), {"role": "assistant", "content": "102"}),
            asked(question.image, "What is 3 plus 3?"),
        ]
        (own,) = batch.inputs
        assert own.ids == processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_tensors=None
        )
        assert len(own.images) == 3

    def test_another_family_has_them_as_turns_too(self, sums, train):
        chats = []
        processor = SimpleNamespace(apply_chat_template=lambda own, **_: chats.extend(own) or {})
        question = load_question_set(own_task(sums)).questions[3]
        prepare_chats(processor, [Request(own_task(sums), question, FORM, examples_of(sums, train).shots([4, 1]))])
        (chat,) = chats
        assert [message["role"] for message in chat] == ["user", "assistant"] * 2 + ["user"]
        assert chat[1]["content"] == [{"type": "text", "text": "108"}]
        assert [part["type"] for part in chat[2]["content"]] == ["image", "text"]
        assert chat[2]["content"][1]["text"] == " Twice 51? Answer: "

    def test_answers_to_turns_are_none_to_one_prompt(self, sums, train, tmp_path):
        class Chatting(EchoBackend):
            asks_in_turns = True

        def resumed() -> int:
            (task,) = lines_of(tmp_path / "run" / "timing.jsonl")[-1]["tasks"].values()
            return task["resumed"]

        for number, kept in ((2, 0), (0, 6)):  # without an example the two are one and the same
            few_shot = FewShot(number, train, 1) if number else None
            for backend, expected in ((EchoBackend, 0), (Chatting, kept), (Chatting, 6)):
                run_one(sums, tmp_path / "run", backend, few_shot=few_shot)
                assert resumed() == expected


class TestChoice:
    def test_it_is_the_same_for_a_question_whatever_else_is_asked(self, sums, train, tmp_path):
        whole = asked(sums, train, tmp_path / "whole")
        (tmp_path / "ids.txt").write_text("104\n")
        (alone,) = asked(sums, train, tmp_path / "alone", ids=tmp_path / "ids.txt")
        assert alone["prompt"] == whole[4]["prompt"]
        assert len({line["prompt"].rpartition("<img>")[0] for line in whole}) > 1

    def test_another_seed_draws_others_and_reuses_no_answer(self, sums, train, tmp_path):
        first = asked(sums, train, tmp_path / "run")
        second = asked(sums, train, tmp_path / "run", shot_seed=2)
        assert [line["prompt"] for line in first] != [line["prompt"] for line in second]
        changed = sum(one["prompt"] != two["prompt"] for one, two in zip(first, second, strict=True))
        (task,) = lines_of(tmp_path / "run" / "timing.jsonl")[-1]["tasks"].values()
        assert task["resumed"] == len(first) - changed

    def test_none_is_shown_twice_nor_with_the_questions_own_image(self, sums, train):
        shutil.copy(sums.parent / "images" / "0.png", train.parent / "images" / "t53.png")
        question_set = load_question_set(own_task(sums))
        examples = examples_of(sums, train, number=7)
        question = question_set.questions[0]
        chosen = examples.choose(question, question_set.image_digests[question.image])
        assert sorted(chosen) == [0, 1, 2, 4, 5, 6, 7]


class TestRefusals:
    def test_the_test_file_under_another_name_is_no_training_file(self, sums):
        copy = shutil.copy(sums, sums.with_name("other.jsonl"))
        with pytest.raises(ValueError, match=r"--train .*other\.jsonl has the same content as .*sums\.jsonl, whose"):
            examples_of(sums, Path(copy))

    def test_a_question_of_the_test_file_among_the_examples_is_named(self, sums, train):
        with train.open("a") as stream:
            stream.write(json.dumps(row(2, question_id=7)) + "\n")
        with pytest.raises(
            ValueError, match=r"--train: .*train\.jsonl:9 is the question of .*sums\.jsonl:3 on the same"
        ):
            examples_of(sums, train)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--few-shot", "9"], "--few-shot 9: "),
            (["--few-shot", "1", "--train", "none.jsonl"], "--train none.jsonl: no such file"),
        ],
    )
    def test_too_few_examples_or_no_file_is_one_sentence(self, sums, train, tmp_path, capsys, flags, message):
        flags = flags if "--train" in flags else [*flags, "--train", str(train)]
        assert program(sums, tmp_path / "result", *flags) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1
        assert not (tmp_path / "result").exists()


def test_the_model_reads_the_examples_and_their_images(sums, train, tmp_path):
    processor, model = small_processor(), random_model(small_config())
    backend = ModelBackend.around(model, processor, "small", num_workers=0)

    def answers(name: str) -> list[str]:
        plain = settings(tmp_path / name, few_shot=FewShot(2, train, 1), fresh=True)
        run([own_task(sums)], plain, lambda: backend)
        return [line["raw"] for line in lines_of(tmp_path / name / "sums" / "predictions.jsonl")]

    before = answers("run")
    for number in range(50, 58):
        Image.new("RGB", (8, 8), (255, 5 * (number - 50), 0)).save(train.parent / "images" / f"t{number}.png")
    assert answers("run") != before
