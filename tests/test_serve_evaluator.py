"""The evaluator through our own server: the same answers as from the model in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.model_backend import ModelBackend
from eval.openai_backend import OpenAIBackend
from eval.runner import run
from monkey.serving.session import load
from tests.running_server import running, talkative_model
from tests.small_processor import small_processor
from tests.test_evaluation import lines_of, own_task, row, settings, write_set

PROMPTS = (
    "<img></img> {question} Answer: ",
    "<img></img>{question} Answer:",
    "<img></img> {question} ",
    "<img></img>Say of <|endoftext|>: {question}\n",
)
"""As trained, as published, and two that a server might be tempted to wrap or to read."""


@pytest.fixture(scope="module", params=[None, "chatml"], ids=["base", "chat"])
def checkpoint(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    model = talkative_model()
    if request.param:
        model.generation_config.chat_format = request.param
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


def test_a_server_of_others_is_asked_without_our_setting(checkpoint, monkeypatch):
    with load(checkpoint, "cpu") as answerer, running(answerer) as server:
        assert OpenAIBackend(server.url).settings == {"temperature": 0, "form": "plain"}
        monkeypatch.setattr("monkey.serving.api_app.FORMS", ())
        assert OpenAIBackend(server.url).settings == {"temperature": 0}
