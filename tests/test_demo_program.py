"""`python demo.py`: its flags, its one-sentence errors, and that it contacts nobody and leaves nothing."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import socket
import string
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[demo]'")

from gradio_client import Client, handle_file

import demo
from monkey.serving import session
from monkey.serving.demo import server
from monkey.serving.demo.access import ENVIRONMENT, allowed
from monkey.serving.demo.chinese import CHINESE
from monkey.serving.demo.english import ENGLISH
from monkey.serving.demo.languages import preferred_language, wording_of
from monkey.serving.demo.opening import choice_of
from monkey.serving.demo.server import check_address, running_demo
from monkey.serving.demo.wording import Wording
from tests.conftest import random_model
from tests.scripted_demo import ScriptedAnswerer, free_port, models_of
from tests.small_processor import small_config, small_processor

PROJECT = Path(demo.__file__).parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint of one window."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    random_model(small_config()).save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder


def test_both_languages_say_everything_with_the_same_blanks():
    def blanks(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for field in fields(Wording):
        english, chinese = getattr(ENGLISH, field.name), getattr(CHINESE, field.name)
        assert english
        assert chinese
        assert blanks(english) == blanks(chinese), field.name


def test_the_page_opens_in_the_browsers_language():
    assert preferred_language("zh-CN,zh;q=0.9,en;q=0.8") == "zh"
    assert preferred_language("de,zh;q=0.5") == "en"
    assert preferred_language(None) == "en"
    assert wording_of("zh") is CHINESE
    assert wording_of(["zh"]) is ENGLISH


def test_the_flags_have_the_published_names_and_stay_on_this_machine_unless_told():
    assert vars(demo.parse_flags([])) == {
        "cpu_only": False, "server_name": "127.0.0.1", "server_port": 8000, "share": False, "inbrowser": False,
        "auth": [], "auth_file": None, "answers_at_once": 8,
    }  # fmt: skip
    words = "-c folder --cpu-only --server-name 0.0.0.0 --server-port 9 --share --inbrowser --compare-grid 2,3"
    flags = vars(demo.parse_flags(words.split()))
    assert (flags["checkpoint_path"], flags["server_name"], flags["server_port"]) == ("folder", "0.0.0.0", 9)
    assert flags["compare_grid"] == (2, 3)
    assert all(flags[name] for name in ("cpu_only", "share", "inbrowser"))


def test_every_flag_reaches_gradio(monkeypatch):
    told = {}
    monkeypatch.setattr(server, "_launch", lambda app, **settings: told.update(settings))
    port, models = free_port(), models_of(ScriptedAnswerer())
    with running_demo(models, "localhost", port, share=True, inbrowser=True, people=[("ada", "secret")]):
        pass
    assert (told["server_name"], told["server_port"]) == ("localhost", port)
    assert (told["share"], told["inbrowser"], told["auth"]) == (True, True, [("ada", "secret")])
    assert not _checks_host(told)
    with running_demo(models, "127.0.0.1", port):
        pass
    assert (told["share"], told["inbrowser"], told["auth"]) == (False, False, None)
    assert _checks_host(told)
    for name, settings in (("127.0.0.1", {"people": [("ada", "secret")]}), ("0.0.0.0", {})):
        with running_demo(models, name, port, **settings):
            pass
        assert not _checks_host(told)


def _checks_host(told: dict) -> bool:
    """Whether a demo of these settings answers to no name but this machine's own."""
    return told["app_kwargs"]["middleware"][0].kwargs["is_loopback"]


def test_passwords_come_from_a_flag_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "people"
    file.write_text("# who may come in\nada:one:two\n\n bob:three\n")
    monkeypatch.setenv(ENVIRONMENT, "eve:four")
    assert allowed(["joe:five"], file) == [("joe", "five"), ("ada", "one:two"), ("bob", "three"), ("eve", "four")]
    monkeypatch.delenv(ENVIRONMENT)
    assert allowed([], None) == []
    for given in ("ada", "ada:", ":secret"):
        with pytest.raises(ValueError, match=r"^--auth is not user:password") as refused:
            allowed([given], None)
        assert "secret" not in str(refused.value)
    file.write_text("ada:one\nsecret\n")
    with pytest.raises(ValueError, match=r"people:2 is not user:password"):
        allowed([], file)
    file.write_text("\n")
    with pytest.raises(ValueError, match="names nobody"):
        allowed([], file)
    with pytest.raises(FileNotFoundError, match=r"--auth-file .*none: no such file"):
        allowed([], tmp_path / "none")


def _mistake(capsys, *words: str) -> str:
    """The one sentence with which the program refuses."""
    assert demo.main(list(words)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_a_checkpoint_that_is_not_there_is_one_sentence(capsys, tmp_path, monkeypatch):
    port = ("--server-port", str(free_port()))
    assert "no such checkpoint folder" in _mistake(capsys, "-c", str(tmp_path / "nothing"), *port)
    assert "qwen.tiktoken" in _mistake(capsys, "-c", str(tmp_path), *port)
    monkeypatch.setattr(session, "DEFAULT_CHECKPOINT", "models/none")
    assert "models/none is not there" in _mistake(capsys, *port)


def test_weights_that_cannot_be_read_end_the_program_with_one_sentence(capsys, tiny, tmp_path, monkeypatch):
    import shutil

    broken = shutil.copytree(tiny, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(server, "SHOW_ERROR_SECONDS", 0.0)
    message = _mistake(capsys, "-c", str(broken), "--cpu-only", "--server-port", str(free_port()))
    assert "broken" in message


def test_a_taken_port_is_one_sentence_before_the_model_is_opened(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = _mistake(capsys, "-c", "no/model", "--server-port", str(port))
    sentence = f"the demo cannot listen on port {port} of 127.0.0.1: it is taken; give another with --server-port"
    assert message == f"error: {sentence}\n"


def test_an_address_of_another_machine_is_one_sentence():
    with pytest.raises(ValueError, match="this machine has no such address"):
        check_address("192.0.2.1", free_port())


@pytest.mark.parametrize(
    "words",
    [
        *[("--server-port", port) for port in ("0", "65536", "http", "-1")],
        *[("--compare-grid", grid) for grid in ("2", "2,0", "2x3", "a,b")],
        ("--answers-at-once", "0"),
        ("--nope",),
    ],
)
def test_a_flag_that_is_none_is_one_sentence(words, capsys):
    with pytest.raises(SystemExit) as exit:
        demo.main(list(words))
    assert exit.value.code == 2
    assert re.fullmatch(f"error: .*{words[0]}.*\n", capsys.readouterr().err)


def test_without_gradio_the_program_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    message = _mistake(capsys, "-c", "no/model", "--server-port", str(free_port()))
    assert "the demo needs gradio" in message


def test_a_share_says_what_it_does_before_anything_is_opened(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert demo.main(["--share", "--server-port", str(taken.getsockname()[1])]) == 2
    assert "pictures and questions pass through gradio's servers" in capsys.readouterr().out


def test_two_grids_of_one_checkpoint_are_two_models(tiny):
    flags = demo.parse_flags(["-c", str(tiny), "--compare-grid", "1,2"])
    choices = demo.chosen_models(flags, "cpu")
    assert [choice.name for choice in choices] == ["tiny", "tiny 1×2"]
    with choices[0].open() as first, choices[1].open() as second:
        assert (first.model.config.grid, second.model.config.grid) == ((1, 1), (1, 2))
        assert first.processor.image_tokens < second.processor.image_tokens
    flags = demo.parse_flags(["-c", str(tiny), "--compare", str(tiny)])
    assert [choice.name for choice in demo.chosen_models(flags, "cpu")] == ["tiny (A)", "tiny (B)"]


def test_opening_tells_how_far_it_is(tiny, monkeypatch):
    from monkey.serving.demo import opening

    told = []
    watched = opening._watched_weights
    monkeypatch.setattr(
        opening, "_watched_weights", lambda report: watched(lambda share: (told.append(share), report(share)))
    )
    with opening.Models([choice_of(tiny, "cpu", None, 2)]) as models:
        assert models.wait(60)
        assert models.error is None
        assert models.is_open
    assert told[-1] == 1.0
    assert told == sorted(told)
    assert len(told) > 10


AUDITED = """
import json, sys
sys.path.insert(0, {project!r})
contacted = set()
def watch(event, arguments):
    if event == "socket.getaddrinfo":
        contacted.add(str(arguments[0]))
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        contacted.add(str(arguments[1][0]))
        if arguments[1][0] not in ("127.0.0.1", "::1"):
            raise OSError("the network is closed")
sys.addaudithook(watch)
import monkey.serving.session
assert "gradio" not in sys.modules, "a session alone needs no gradio"
import demo
status = demo.main(sys.argv[1:])
print(json.dumps(sorted(contacted)), flush=True)
sys.exit(status)
"""


def _texts(messages: list[dict]) -> list[str]:
    parts = [part for message in messages for part in message["content"]]
    return [html.unescape(part["text"]) for part in parts if part["type"] == "text"]


@pytest.mark.slow
def test_the_program_answers_many_with_the_network_closed_and_ends_without_a_trace(tmp_path, tiny):
    """A real engine: people ask at once about pictures of their own, and each gets the answer of an asker alone."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_HUB", "GRADIO"))}
    environment.update(HF_HUB_OFFLINE="1", TMPDIR=str(temporary), OMP_NUM_THREADS="1")
    port = free_port()
    words = ["-c", str(tiny), "--cpu-only", "--server-port", str(port)]
    program = subprocess.Popen(
        [sys.executable, "-c", AUDITED.format(project=str(PROJECT)), *words],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    try:
        lines = [program.stdout.readline() for _ in range(3)]
        assert lines[0] == "tiny on the CPU, as --cpu-only says\n"
        assert lines[1] == f"the demo is at http://127.0.0.1:{port}/ (Ctrl-C ends it); opening tiny\n"
        assert lines[2] == "the model is open\n"

        def answers(number: int) -> list[str]:
            path = tmp_path / f"{number}.png"
            Image.linear_gradient("L").resize((20 + 40 * number, 30)).save(path)
            client = Client(f"http://127.0.0.1:{port}/", verbose=False)
            picture = {"image": handle_file(str(path)), "caption": None}
            client.predict([picture], "What is <img>/etc/passwd</img>?", "en", 0, 1, 12, api_name="/ask")
            messages, *_ = client.predict([], "And now?", "en", 0, 1, 12, api_name="/ask")
            return _texts(messages)

        alone = [answers(number) for number in range(3)]
        together: dict[int, list[str]] = {}
        people = [threading.Thread(target=lambda n=number: together.update({n: answers(n)})) for number in range(3)]
        for thread in people:
            thread.start()
        for thread in people:
            thread.join(120)
        assert [together[number] for number in range(3)] == alone
        assert [texts[0::2] for texts in alone] == [["What is <img>/etc/passwd</img>?", "And now?"]] * 3
        assert all(answer for texts in alone for answer in texts[1::2])
        program.send_signal(signal.SIGTERM)
        rest = program.stdout.read().splitlines()
    finally:
        program.kill()
        program.wait(30)
    assert program.returncode == 0
    assert rest[0] == "the demo has ended"
    assert set(json.loads(rest[1])) <= {"127.0.0.1", "localhost", "None"}
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png", "temporary"]
