"""`python -m monkey.serve` as people run it: it says where it is, ends well, and tells mistakes in one sentence."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from monkey import serve
from monkey.cli import EXIT_USAGE
from monkey.configuration import MonkeyConfig
from monkey.processing import MonkeyProcessor
from monkey.serving import server, session
from monkey.serving.access import bind
from monkey.serving.server import Api
from monkey.serving.session import Answerer, Decoding
from tests import forked
from tests.conftest import random_model
from tests.running_server import PATIENCE, talkative_model, until
from tests.small_processor import small_config, small_processor

PROJECT = Path(serve.__file__).parent.parent

SLOW = """
import sys, time
from monkey import engine
choose = engine.Engine._choose
def slow(self, last, rows):
    time.sleep(0.05)
    return choose(self, last, rows)
engine.Engine._choose = slow
from monkey.serve import main
sys.exit(main(sys.argv[1:]))
"""
"""The program with steps that take 50 ms."""

QUICK = "import monkey.serving.server; monkey.serving.server.GRACE = 1"
"""What is waited for at the end is not waited for long."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    talkative_model().save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder


@contextmanager
def started(checkpoint: Path, folder: Path, *words: str, code: str, **variables: str) -> Iterator[tuple]:
    """The program of the code once it serves, its base URL, and the file of its errors; killed if it still runs."""
    said, errors = folder / "said", folder / "errors"
    errors.touch()
    command = ["-c", code, "-c", str(checkpoint), "--device", "cpu", "--port", "0", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    process = forked.start(forked.run_words, command, cwd=PROJECT, env=environment, stdout=said, stderr=errors)
    try:
        process.wait_for(lambda: said.is_file() and said.read_text().endswith("\n"), errors)
        found = re.fullmatch(r"serving (\S+) at (http://\S+/v1) \(Ctrl-C ends it\)\n", said.read_text())
        assert found, said.read_text()
        yield process, found[2], errors
        assert said.read_text() == found[0]  # it says nothing more
    finally:
        process.kill()


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE)


def refused(capsys, *words: str) -> str:
    """The one sentence that the command ends with."""
    assert serve.main(list(words)) == EXIT_USAGE
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = (line for line in said.err.splitlines() if line.startswith("error: "))
    return line.removeprefix("error: ")


def asked(text: str, limit: int) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": limit}


@pytest.mark.slow
def test_it_serves_until_a_signal_which_lets_running_answers_finish_and_refuses_new_ones(checkpoint, tmp_path):
    words, keys = ("--api-key", "flag"), {"MONKEY_API_KEY": "one,two"}
    with started(checkpoint, tmp_path, *words, code=SLOW, **keys) as (process, url, errors):
        assert url.startswith("http://127.0.0.1:")
        first, *others = (client_of(url, key) for key in ("one", "two", "flag"))
        assert len({client.chat.completions.create(**asked("Hello", 2)).usage.total_tokens for client in others}) == 1
        with pytest.raises(openai.AuthenticationError):
            client_of(url, "one,two").models.list()
        stream = iter(first.chat.completions.create(**asked("Hello", 60), stream=True))
        pieces = [next(stream).choices[0].delta.content]
        process.send_signal(signal.SIGINT)
        process.wait_for(lambda: "finishing 1 requests" in errors.read_text(), errors)
        with pytest.raises(openai.InternalServerError) as caught:
            first.chat.completions.create(**asked("Hello", 2))
        assert caught.value.code == "shutting_down"
        pieces += [chunk.choices[0].delta.content or "" for chunk in stream]
        process.wait(PATIENCE)
    with Answerer(talkative_model(), small_processor()) as answerer:
        assert "".join(pieces) == answerer.chat(asked("Hello", 60)["messages"], Decoding(60)).text
    assert process.returncode == 0
    assert errors.read_text().splitlines()[-1] == "the server has ended"
    assert "Traceback" not in errors.read_text()


@pytest.mark.slow
def test_a_second_signal_ends_the_process_though_a_thread_does_not(checkpoint, tmp_path):
    stuck = SLOW.replace("0.05", "600").replace("from monkey.serve ", f"{QUICK}\nfrom monkey.serve ")
    with started(checkpoint, tmp_path, code=stuck) as (process, url, errors), ThreadPoolExecutor(1) as threads:
        client = client_of(url)
        answer = threads.submit(client.chat.completions.create, **asked("Hello", 8))
        until(lambda: b"monkey_running_rows 1.0" in client._client.get(url.replace("/v1", "/metrics")).content)
        process.send_signal(signal.SIGTERM)
        process.wait_for(lambda: "finishing" in errors.read_text(), errors)
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        assert process.returncode == 128 + signal.SIGTERM
        with pytest.raises(openai.APIError, match="the server ended before the answer did"):
            answer.result()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM], ids=lambda sign: sign.name)
def test_a_signal_after_the_end_of_serving_ends_the_process(monkeypatch, sign):
    """The model's thread may still be at work then, and is not waited for."""
    monkeypatch.setattr(server.Server, "run", lambda self, sockets: None)
    before = signal.getsignal(signal.SIGINT)
    with Answerer(talkative_model(), small_processor()) as answerer, bind("127.0.0.1", 0) as listening:
        try:
            server.serve(Api(answerer), listening)
            assert signal.getsignal(sign) == signal.SIG_DFL
        finally:
            signal.signal(signal.SIGINT, before)


class TestMistakes:
    def test_a_port_that_is_taken_is_told_before_a_model_is_opened(self, checkpoint, capsys, monkeypatch):
        monkeypatch.setattr(session, "load", None)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            said = refused(capsys, "-c", str(checkpoint), "--port", port)
        assert said == f"the server cannot listen on port {port} of 127.0.0.1: it is taken; give another with --port"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--host", "no.such.host.invalid"], "--host no.such.host.invalid is no address of this machine"),
            (["--host", "192.0.2.1"], "this machine has no such address; --host takes one of its own"),
            (["--port", "70000"], "--port is 70000, and a number from 0 to 65535 is needed"),
            (["--port", "-1"], "--port is -1"),
            (["--allow-hosts", "http://a.example"], "--allow-hosts 'http://a.example' is not the name of a host"),
            (["--allow-hosts", ""], "--allow-hosts ''"),
            (["--cors-origins", "*"], "--cors-origins '*' is not the origin of a page"),
            (["--cors-origins", "http://localhost:3000/"], "--cors-origins 'http://localhost:3000/'"),
            (["--cors-origins", "a.example"], "--cors-origins 'a.example'"),
            (["--api-key", ""], "a key of --api-key or MONKEY_API_KEY is empty"),
            (["--api-key", "a b"], "holds a blank"),
            (["--max-rows", "0"], "--max-rows is 0, and at least 1 is needed"),
            (["--queue", "-1"], "--queue is -1"),
            (["--time-limit", "0"], "--time-limit is 0.0"),
            (["--time-limit", "nan"], "--time-limit is nan"),
            (["--max-pixels", "0"], "--max-pixels is 0"),
            (["--max-body-mib", "-3"], "--max-body-mib is -3.0"),
        ],
        ids=str,
    )
    def test_a_wrong_setting_is_told_before_a_model_is_opened(self, checkpoint, capsys, monkeypatch, words, message):
        monkeypatch.setattr(session, "load", None)
        monkeypatch.setattr(socket, "getaddrinfo", _without_network)
        assert message in refused(capsys, "-c", str(checkpoint), "--port", "0", *words)

    def test_a_model_that_is_not_there_is_told(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(session, "DEFAULT_CHECKPOINT", "models/none")
        assert "models/none is not there" in refused(capsys, "--port", "0")
        assert tmp_path.name in refused(capsys, "-c", str(tmp_path), "--port", "0", "--device", "cpu")

    def test_missing_packages_are_named(self, checkpoint, capsys, monkeypatch):
        monkeypatch.setattr(serve, "PACKAGES", ("uvicorn", "no_such_package"))
        assert "needs no_such_package, not installed here; `pip install" in refused(capsys, "-c", str(checkpoint))

    def test_a_wrong_flag_is_one_line(self, capsys):
        with pytest.raises(SystemExit) as caught:
            serve.main(["--prot", "8000"])
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


_getaddrinfo = socket.getaddrinfo


def _without_network(host, *rest, **options):
    """Numbers are read, and no name is looked up."""
    if re.fullmatch(r"[0-9.]+", host):
        return _getaddrinfo(host, *rest, **options)
    raise socket.gaierror(-2, "Name or service not known")


class Served:
    """Stands in for the server: notes with what it would run."""

    def __init__(self, monkeypatch):
        def serve_once(api, listening, announcement):
            self.api, self.address = api, listening.getsockname()
            api.close()

        monkeypatch.setattr("monkey.serving.server.serve", serve_once)


class TestSettings:
    def run(self, checkpoint, monkeypatch, *words) -> Served:
        served = Served(monkeypatch)
        assert serve.main(["-c", str(checkpoint), "--device", "cpu", "--port", "0", *words]) == 0
        return served

    def test_the_flags_reach_the_server(self, checkpoint, monkeypatch, capsys):
        origins = "http://localhost:3000, HTTPS://a.example"
        flags = {"name": "other", "form": "plain", "allow-hosts": "a.example,b.example:8080", "cors-origins": origins}
        numbers = {"max-rows": 3, "queue": 5, "time-limit": 7, "max-pictures": 2, "max-body-mib": 1, "max-pixels": 1000}
        words = [word for name, value in {**flags, **numbers}.items() for word in (f"--{name}", str(value))]
        api = self.run(checkpoint, monkeypatch, *words, "--no-picture-labels").api
        assert (api.answerer.name, api.form, api.answerer.engine.max_rows) == ("other", "plain", 3)
        assert (api.limits.queue, api.limits.seconds, api.limits.images) == (5, 7.0, 2)
        assert api.answerer.patience == 7.0
        assert (
            api.limits.body_bytes == api.fetcher.max_bytes == api.answerer.processor.image_processor.max_bytes == 2**20
        )
        assert api.answerer.processor.image_processor.max_pixels == 1000
        assert api.fetcher.hosts == {"a.example", "b.example:8080"}
        assert api.origins == ["http://localhost:3000", "https://a.example"]
        assert not api.picture_labels
        assert "warning" not in capsys.readouterr().err

    def test_a_limit_of_windows_is_the_models_and_needs_grids(self, checkpoint, tmp_path, monkeypatch, capsys):
        config = MonkeyConfig.from_dict({**small_config().to_dict(), "grids": "up-to-4"})
        random_model(config).save_pretrained(tmp_path)
        MonkeyProcessor.from_config(config, small_processor().tokenizer).save_pretrained(tmp_path)
        api = self.run(tmp_path, monkeypatch, "--max-windows", "2").api
        assert api.answerer.processor.image_processor.max_windows == 2
        assert serve.main(["-c", str(checkpoint), "--device", "cpu", "--port", "0", "--max-windows", "2"]) == 2
        assert "error: max_windows=2: all images lie on one grid" in capsys.readouterr().err

    def test_the_small_model_is_served_to_its_own_machine_and_nothing_fetched_unless_told(
        self, checkpoint, monkeypatch
    ):
        monkeypatch.setattr(session, "DEFAULT_CHECKPOINT", str(checkpoint))
        served = Served(monkeypatch)
        assert serve.main(["--device", "cpu", "--port", "0"]) == 0
        assert served.address[0] == "127.0.0.1"
        api = served.api
        assert (api.answerer.name, api.fetcher, api.form, api.picture_labels) == ("tiny", None, None, True)

    def test_a_wider_address_without_a_key_is_warned_of_in_one_sentence(self, checkpoint, monkeypatch, capsys):
        self.run(checkpoint, monkeypatch, "--host", "0.0.0.0")
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
        assert line == "warning: everyone who reaches 0.0.0.0 can ask, since no key is set; set MONKEY_API_KEY"
        self.run(checkpoint, monkeypatch, "--host", "0.0.0.0", "--api-key", "k")
        assert "warning" not in capsys.readouterr().err
