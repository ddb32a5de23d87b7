"""Greedy answers about the held-out documents, whoever asks and however many at once: `answers.json` of the outside.

`models/small` runs in full precision here, so that an answer is the same alone and among others.
"""

from __future__ import annotations

import pytest

from tests.golden.outside import observed
from tests.golden.outside.observed import recorded
from tests.outside_doors import (
    OUTSIDE,
    float32_copy,
    free_port,
    program_at_work,
    succeeded,
    wait_until_open,
)

pytestmark = pytest.mark.slow

RECORDED = recorded("answers.json")
EXPECTED = RECORDED["monkey.load"]
CONVERSATIONS = recorded("conversations.json")
GIVEN = observed.asked()
ALONE = [0, 7, 18, 20, 26, 29, 30]
"""Rows that are asked one after the other: a count, a word, a sentence, a number, a date, a whole text, a box."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return float32_copy(tmp_path_factory.mktemp("checkpoint") / "small")


def test_monkey_load_one_at_a_time_and_many_at_once(checkpoint):
    import monkey

    with monkey.load(checkpoint, "cpu") as model:
        assert observed.answers_of_python(model, GIVEN, together=True) == EXPECTED
    with monkey.load(checkpoint, "cpu") as model:
        alone = observed.answers_of_python(model, [GIVEN[row] for row in ALONE], together=False)
    assert alone == [EXPECTED[row] for row in ALONE]


def test_conversations_and_descriptions_in_python(checkpoint):
    import monkey

    with monkey.load(checkpoint, "cpu") as model:
        assert observed.conversations_of_python(model) == CONVERSATIONS["model.chat"]
        assert observed.descriptions_of_python(model) == CONVERSATIONS["model.describe"]


def test_generate_alone_and_in_batches(checkpoint):
    from monkey import MonkeyForConditionalGeneration, MonkeyProcessor

    model = MonkeyForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = MonkeyProcessor.from_pretrained(checkpoint)
    tokens = RECORDED["generate"]
    assert observed.tokens_of_generate(model, processor, GIVEN, 8) == tokens
    alone = observed.tokens_of_generate(model, processor, [GIVEN[row] for row in ALONE], 1)
    assert alone == [tokens[row] for row in ALONE]
    assert processor.decode_answers(tokens, 0) == RECORDED["generate as text"]


def test_ask_from_a_file(checkpoint, tmp_path):
    assert observed.answers_of_ask(checkpoint, tmp_path) == RECORDED["monkey.ask --input"]


def test_ask_from_the_command_line_as_the_readme_does():
    image = "data/pages/images/heldout/000001.jpg"
    ended = succeeded("-m", "monkey.ask", "--image", image, "What is the name of the shop?", fresh=True)
    assert ended.stdout == "Ceedreem Shop\n"


def test_the_server_by_the_official_client(checkpoint, tmp_path):
    openai = pytest.importorskip("openai")
    port, log = free_port(), tmp_path / "log"
    words = ("-m", "monkey.serve", "-c", checkpoint, "--device", "cpu", "--port", str(port))
    with program_at_work(*words, log=log) as program:
        wait_until_open(f"http://127.0.0.1:{port}/health", program, log)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
            together = observed.at_once(lambda one: observed.answer_of_server(client, *one), GIVEN)
            assert together == RECORDED["monkey.serve"]
            assert observed.conversations_of_server(client) == CONVERSATIONS["model.chat"]
            for stream in (False, True):
                alone = [observed.answer_of_server(client, *GIVEN[row], stream=stream) for row in ALONE]
                assert alone == [RECORDED["monkey.serve"][row] for row in ALONE]


def test_the_demo_by_gradios_client(checkpoint, tmp_path):
    pytest.importorskip("gradio_client")
    port, log = free_port(), tmp_path / "log"
    words = ("demo.py", "-c", checkpoint, "--cpu-only", "--server-port", str(port))
    with program_at_work(*words, log=log) as program:
        address = f"http://127.0.0.1:{port}/"
        wait_until_open(address, program, log)
        alone = observed.answers_of_demo(address, [GIVEN[row] for row in (18, 29, 30)], 1)
        assert alone == [RECORDED["demo.py"][row] for row in (18, 29, 30)]
        assert observed.answers_of_demo(address, GIVEN[:27], 4) == RECORDED["demo.py"][:27]


def test_the_record_is_of_27_documents():
    assert len({image for image, _ in GIVEN}) == 27
    assert len(GIVEN) == len(EXPECTED)
    assert (OUTSIDE / "README.md").is_file()
