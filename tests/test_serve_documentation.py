"""What docs/serving.md tells people to type works as it stands there."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from monkey.serve import parser
from monkey.serving.protocol import ROLES, ChatRequest
from monkey.serving.responses import ResponseRequest
from monkey.serving.session import Answerer
from tests.running_server import running, talkative_model
from tests.small_processor import small_processor

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str, word: str) -> list[str]:
    return [block for block in re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL) if word in block]


@pytest.fixture(scope="module")
def server():
    with Answerer(talkative_model(), small_processor(), name="small") as answerer, running(answerer) as server:
        yield server


def done(command: list[str]) -> str:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_gets_an_answer_and_what_else_there_is_to_see(server):
    (block,) = blocks("bash", "curl")
    said = done(
        ["bash", "-ec", block.replace("http://127.0.0.1:8000/v1", server.url).replace("8000", str(server.port))]
    )
    decoder = json.JSONDecoder()
    answer, end = decoder.raw_decode(said)
    models, length = decoder.raw_decode(said[end:])
    health, last = decoder.raw_decode(said[end + length :])
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] == 50
    assert models["data"][0]["id"] == health["model"] == "small"
    assert "monkey_requests_total" in said[end + length + last :]


def test_the_python_example_streams_an_answer(server):
    (block,) = blocks("python", "OpenAI(")
    said = done([sys.executable, "-c", block.replace("http://127.0.0.1:8000/v1", server.url)])
    *answer, tokens = said.splitlines()
    assert tokens == "50 tokens"
    assert len("".join(answer)) > 40


@pytest.mark.skipif(importlib.util.find_spec("llguidance") is None, reason="answers of a form need llguidance")
def test_the_python_example_of_a_form_gets_it(server):
    client, form = blocks("python", "OpenAI(")[0], blocks("python", "class Receipt")[0]
    said = done([sys.executable, "-c", (client + form).replace("http://127.0.0.1:8000/v1", server.url)])
    assert re.search(r"total='\d{1,3}[.,]\d\d' paid='(cash|card)'$", said.strip())


def test_every_field_flag_and_code_is_told_of():
    serving = REPOSITORY / "monkey" / "serving"
    sources = [serving / f"{name}.py" for name in ("access", "fetching", "protocol", "responses", "server")]
    codes = {code for path in sources for code in re.findall(r'code="(\w+)"', path.read_text(encoding="utf-8"))}
    names = {*ChatRequest.model_fields, *ResponseRequest.model_fields, *ROLES, *codes}
    assert len(codes) > 15
    assert [name for name in sorted(names) if f"`{name}`" not in TEXT] == []
    flags = {option for action in parser()._actions for option in action.option_strings if option.startswith("--")}
    own = {"--queue", "--time-limit", "--cors-origins", "--no-picture-labels", "--form", "--allow-hosts", "--api-key"}
    assert own <= flags
    assert all(flag in TEXT for flag in own)
