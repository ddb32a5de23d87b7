"""The evaluator through our own server: the same answers as from the model in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eval.backends import OpenAIBackend
from eval.model_backend import ModelBackend
from eval.questions import FewShot
from eval.run import run
from monkey.processing import MonkeyProcessor
from monkey.serving.session import load
from tests.conftest import random_model
from tests.running_server import asking, running, talkative_model
from tests.small_processor import picture, small_processor
from tests.small_tokenizers import config_of, smollm
from tests.test_evaluation import lines_of, own_task, row, settings, write_set

PROMPTS = (
    "<img></img> {question} Answer: ",
    "<img></img>{question} Answer:",
    "<img></img> {question} ",
    "<img></img>Say of <|endoftext|>: {question}\n",
)
"""As trained, as published, and two that a server might be tempted to wrap or to read."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of Qwen's chat, whose own form is not the evaluator's."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    model = talkative_model()
    model.generation_config.chat_format = "chatml"
    model.save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def sums(tmp_path) -> Path:
    rows = [row(number) for number in range(8)]
    rows[3]["question"] = "What does <|im_start|> say, in 中文?"
    return write_set(tmp_path / "data", rows)


def told(folder: Path) -> list[tuple]:
    """Id, text, length and end of each answer of a run."""
    lines = lines_of(folder / "sums" / "predictions.jsonl")
    return [(line["question_id"], line["raw"], line["tokens"], line["stop"]) for line in lines]


def test_every_prompt_is_answered_as_by_the_model_itself(checkpoint, sums, tmp_path):
    with load(checkpoint, "cpu", max_rows=4) as answerer, running(answerer) as server:
        for number, prompt in enumerate(PROMPTS):
            path = tmp_path / f"prompt{number}.txt"
            path.write_bytes(prompt.encode())
            own, through = tmp_path / f"hf{number}", tmp_path / f"openai{number}"
            for folder, backend in (
                (own, lambda: ModelBackend(str(checkpoint), "cpu", num_workers=0)),
                (through, lambda: OpenAIBackend(server.url)),
            ):
                (results,) = run([own_task(sums)], settings(folder, prompt=str(path)), backend)
                assert results["complete"]
            assert told(own) == told(through)
            assert len({text for _, text, *_ in told(own)}) > 4
        assert server.engine.stats.requests == len(PROMPTS) * 8


def test_markers_of_boxes_are_in_answers_but_not_in_what_is_scored(sums, tmp_path):
    model = talkative_model()
    tokenizer = small_processor().tokenizer
    box, usual = tokenizer.convert_tokens_to_ids("<box>"), range(0, 94, 2)
    with torch.no_grad():
        # Where it would write one of every other character, it opens a box.
        model.lm_head.weight[box] = model.lm_head.weight[list(usual)].mean(0) * 30
    folder = tmp_path / "tiny"
    model.save_pretrained(folder)
    small_processor().save_pretrained(folder)
    with load(folder, "cpu") as answerer, running(answerer) as server:
        (own,) = run(
            [own_task(sums)], settings(tmp_path / "hf"), lambda: ModelBackend(str(folder), "cpu", num_workers=0)
        )
        (through,) = run([own_task(sums)], settings(tmp_path / "openai"), lambda: OpenAIBackend(server.url))
        assert own["complete"]
        assert through["complete"]
        assert "<box>" in server.text(asking("What?", 0), max_tokens=20)
        assert "<box>" not in server.text(asking("What?", 0), max_tokens=20, extra_body={"skip_special_tokens": True})
    assert told(tmp_path / "hf") == told(tmp_path / "openai")


def test_a_server_of_others_is_asked_without_our_setting(checkpoint, monkeypatch):
    with load(checkpoint, "cpu") as answerer, running(answerer) as server:
        assert OpenAIBackend(server.url).settings == {"temperature": 0, "form": "plain", "skip_special_tokens": True}
        monkeypatch.setattr("monkey.serving.server.TEMPLATES", ())
        assert OpenAIBackend(server.url).settings == {"temperature": 0}


@pytest.mark.parametrize("examples", [0, 2])
def test_in_a_decoders_chat_template_too(sums, tmp_path, examples):
    train = write_set(tmp_path / "train", [row(number, image=f"images/t{number}.png") for number in range(50, 54)])
    for number in range(50, 54):
        picture(number).save(train.parent / "images" / f"t{number}.png")
    few_shot = FewShot(examples, train, 1) if examples else None
    config, tokenizer = config_of(smollm())
    folder = tmp_path / "tiny"
    random_model(config).save_pretrained(folder)
    MonkeyProcessor.from_config(config, tokenizer).save_pretrained(folder)
    with load(folder, "cpu") as answerer, running(answerer) as server:
        assert server.api.describe_model()["forms"] == ["chatml", "questions", "plain", "decoder"]
        for name, backend in (
            ("hf", lambda: ModelBackend(str(folder), "cpu", num_workers=0)),
            ("openai", lambda: OpenAIBackend(server.url)),
        ):
            (results,) = run([own_task(sums)], settings(tmp_path / name, few_shot=few_shot), backend)
            assert results["generation"]["form"] == "decoder"
            assert results["complete"]
    own, through = told(tmp_path / "hf"), told(tmp_path / "openai")
    # What the server tells has no white space around it.
    assert [(one[0], one[1].strip(), *one[2:]) for one in own] == through
    assert any(text for _, text, *_ in through)
