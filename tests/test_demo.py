"""The demo as its users meet it: over its own address on this machine, through gradio's client and as a program."""

from __future__ import annotations

import html
import io
import json
import os
import re
import signal
import socket
import string
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[demo]'")

import httpx
from gradio_client import Client, handle_file

import demo
from monkey.serving import demo_server, session
from monkey.serving.demo_server import check_address, running_demo
from monkey.serving.uploads import MAX_BODY_BYTES
from monkey.serving.wording import CHINESE, ENGLISH, Wording, preferred_language, wording_of
from tests.conftest import random_model
from tests.scripted_demo import ScriptedAnswerer, free_port
from tests.small_processor import small_config, small_processor

PROJECT = Path(demo.__file__).parent


@pytest.fixture(scope="module")
def running():
    """A scripted demo and its address; `answerer.script` and `pause` are reset before each test."""
    answerer, port = ScriptedAnswerer(), free_port()
    with running_demo(answerer, "127.0.0.1", port) as app:
        yield answerer, app.local_url


@pytest.fixture
def answerer(running) -> ScriptedAnswerer:
    answerer, _ = running
    answerer.__init__()
    return answerer


@pytest.fixture
def address(running) -> str:
    return running[1]


@pytest.fixture
def client(answerer, address) -> Client:
    return Client(address, verbose=False)


@pytest.fixture
def photo(tmp_path) -> dict:
    return handle_file(_picture(tmp_path / "photo.png", 40, 30))


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    return file.getvalue()


def _picture(path: Path, width: int, height: int) -> str:
    Image.linear_gradient("L").resize((width, height)).save(path)
    return str(path)


def _texts(messages: list[dict]) -> list[str]:
    """What a conversation shows, in the order of its messages."""
    return [html.unescape(part["text"]) for message in messages for part in message["content"]]


def _sentence(notice: dict) -> str:
    """What the notice says, or "" when it is hidden."""
    assert notice["visible"] == bool(notice["value"])
    return html.unescape(re.sub(r"</?p[^>]*>", "", notice["value"]))


def _post_picture(address: str, *headers: tuple[str, str], **picture) -> httpx.Response:
    """Name a picture without uploading it."""
    data = [{"meta": {"_type": "gradio.FileData"}, **picture}, "What?", "en"]
    return httpx.post(f"{address}gradio_api/call/ask", json={"data": data}, headers=headers, timeout=30)


def _events(address: str, started: httpx.Response) -> str:
    """All events of a call, after its end."""
    return httpx.get(f"{address}gradio_api/call/ask/{started.json()['event_id']}", timeout=30).text


def test_a_question_is_answered_piece_by_piece_and_put_into_the_conversation(client, answerer, photo):
    answerer.pause = 0.05
    job = client.submit(photo, "What does the sign say?", api_name="/ask")
    shown = [_texts(messages)[-1] for messages, *_ in job]
    assert shown[-1] == "On 40×30: What does the sign say?"
    assert shown[0] == "…"
    assert len(set(shown)) > 3
    assert all(shown[-1].startswith(text) for text in shown[1:])

    messages, notice, question = client.predict(photo, "  And the price?\n", api_name="/ask")
    assert _texts(messages) == [
        "What does the sign say?", "On 40×30: What does the sign say?", "And the price?", "On 40×30: And the price?"
    ]  # fmt: skip
    assert _sentence(notice) == ""
    assert question == ""


def test_a_description_takes_the_seed_that_the_page_has(client, answerer, photo):
    messages, _ = client.predict(photo, 7, api_name="/describe")
    assert _texts(messages) == ["Generate description (Seed 7)", "A picture of 40×30, seed 7."]
    messages, _ = client.predict(photo, None, api_name="/describe")
    assert _texts(messages)[2:] == ["Generate description", "A picture of 40×30, seed None."]
    _, notice = client.predict(photo, -1, api_name="/describe")
    assert _sentence(notice) == "The seed must be a whole number from 0 to 4,294,967,295, or empty."


HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(1)> <b>b</b> **b** `c` $$x$$ &amp; AT&T {{7*7}} ${1+1}"


def test_what_users_and_model_write_is_escaped(client, answerer, photo):
    answerer.script = HOSTILE
    messages, *_ = client.predict(photo, HOSTILE, api_name="/ask")
    raw = [part["text"] for message in messages for part in message["content"]]
    assert not any(character in text for text in raw for character in "<>")
    assert _texts(messages) == [HOSTILE, HOSTILE]
    assert answerer.asked == [HOSTILE]


def test_a_file_name_is_escaped_in_a_notice(answerer, address):
    (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", b"no picture")}).json()
    name = "<img src=x onerror=alert(1)> {{7*7}} ${1+1} & b.png"
    started = _post_picture(address, path=path, orig_name=name)
    *_, result = re.findall("^data: (.*)$", _events(address, started), flags=re.MULTILINE)
    _, _, notice, _ = json.loads(result)
    inside = re.sub(r"</?p[^>]*>", "", notice["value"])
    assert not any(character in inside for character in "<>{}$")
    assert _sentence(notice).startswith(f"This picture cannot be used: {name} is not a picture")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"hello", "This picture cannot be used: upload.png is not a picture that can be read"),
        (b"%PDF-1.7", "This picture cannot be used: upload.png is a PDF"),
        (b"", "This picture cannot be used: upload.png is empty."),
        (
            (1001, 1000),
            "This picture cannot be used: upload.png has 1,001,000 pixels (1001 × 1000), more than the 1,000,",
        ),
    ],
)
def test_a_bad_picture_is_a_sentence_in_the_page(client, answerer, tmp_path, content, sentence):
    path = tmp_path / "upload.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.new("1", content).save(path)
    messages, notice, _ = client.predict(handle_file(str(path)), "What?", api_name="/ask")
    assert _sentence(notice).startswith(sentence)
    assert messages == []
    messages, notice = client.predict(handle_file(str(path)), 0, api_name="/describe")
    assert _sentence(notice).startswith(sentence)
    assert answerer.asked == []


def test_a_missing_picture_or_question_is_a_sentence_in_either_language(client, answerer, photo):
    assert _sentence(client.predict(None, "What?", api_name="/ask")[1]) == ENGLISH.no_picture
    assert _sentence(client.predict(photo, " \n", api_name="/ask")[1]) == ENGLISH.no_question
    assert _sentence(client.predict(None, "What?", "zh", api_name="/ask")[1]) == CHINESE.no_picture
    assert _sentence(client.predict(None, 0, "zh", api_name="/describe")[1]) == CHINESE.no_picture
    long = _sentence(client.predict(photo, "x" * 4001, api_name="/ask")[1])
    assert long == "The question has 4,001 characters, more than the 4,000 allowed. Shorten it."
    assert answerer.asked == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("the prompt is too long"), "The model cannot take this: the prompt is too long."),
        (TimeoutError("nothing for 600 seconds"), "The model took too long and was stopped: nothing for 600 seconds."),
        (MemoryError("20 GiB"), ENGLISH.out_of_memory),
    ],
)
def test_what_the_model_cannot_do_is_a_sentence_and_the_demo_lives_on(client, answerer, photo, error, sentence):
    answerer.script = error
    messages, notice, _ = client.predict(photo, "What?", api_name="/ask")
    assert _sentence(notice) == sentence
    assert _texts(messages) == ["What?", "Well,"]
    answerer.script = None
    assert _texts(client.predict(photo, "Again?", api_name="/ask")[0])[2:] == ["Again?", "On 40×30: Again?"]


def test_many_people_at_once_do_not_mix_and_the_model_runs_once_at_a_time(answerer, address, tmp_path):
    answerer.pause = 0.01
    conversations: dict[int, list[str]] = {}

    def person(number: int) -> None:
        client = Client(address, verbose=False)
        own = handle_file(_picture(tmp_path / f"{number}.png", 10 + number, 20))
        for turn in range(3):
            messages, *_ = client.predict(own, f"question {turn} of {number}", api_name="/ask")
        conversations[number] = _texts(messages)

    people = [threading.Thread(target=person, args=(number,)) for number in range(4)]
    for thread in people:
        thread.start()
    for thread in people:
        thread.join(120)
    assert conversations == {
        number: [
            text
            for turn in range(3)
            for text in (f"question {turn} of {number}", f"On {10 + number}×20: question {turn} of {number}")
        ]
        for number in range(4)
    }
    assert answerer.most_running == 1


def test_an_asker_who_goes_away_stops_the_model(client, answerer, photo):
    answerer.pause = 0.05
    answerer.script = "word " * 600
    job = client.submit(photo, "What?", api_name="/ask")
    _wait_for(lambda: len(job.outputs()) > 2)
    job.cancel()
    # The answer would go on for half a minute; a step and gradio's own polling take less than a second.
    assert answerer.cut_short.wait(10)
    assert answerer.running == 0


def _wait_for(happened, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_the_line_is_bounded(answerer, address):
    from monkey.serving.demo_app import LONGEST_LINE

    answerer.held = threading.Event()
    (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", _png())}).json()
    first = _post_picture(address, path=path)
    _wait_for(lambda: answerer.running == 1)
    others = [_post_picture(address, path=path) for _ in range(LONGEST_LINE + 1)]
    assert [answer.status_code for answer in others] == [200] * LONGEST_LINE + [503]
    assert "full" in others[-1].text.lower()
    answerer.held.set()
    for started in (first, *others[:-1]):
        assert "event: complete" in _events(address, started)
    assert len(answerer.asked) == 1 + LONGEST_LINE
    assert answerer.most_running == 1


def test_nobody_can_name_a_file_of_the_server_in_a_pictures_place(answerer, address):
    secret = PROJECT / "tests/golden/images/receipt.png"
    started = _post_picture(address, path=str(secret))
    assert "event: error" in _events(address, started)
    assert httpx.get(f"{address}gradio_api/file={secret}").status_code in (403, 404)
    assert answerer.asked == []


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/a.png", "https://example.com/a.png", " FILE:///etc/passwd"])
def test_nobody_can_make_the_server_fetch_an_address(answerer, address, path):
    # The server reads a body by the first of two kinds; a form after JSON must not pass for an upload.
    for kinds in ((), ("application/json", "multipart/form-data; boundary=x"), ("multipart/form-data",)):
        refused = _post_picture(address, *[("content-type", kind) for kind in kinds], path=path)
        assert refused.status_code == 400
        assert refused.json() == {"detail": "pictures are uploaded here, not fetched from an address"}
    assert answerer.asked == []


def test_uploads_lie_in_a_private_folder_that_ends_with_the_demo(tmp_path, photo):
    before = os.environ.get("GRADIO_TEMP_DIR")
    answerer = ScriptedAnswerer()
    with running_demo(answerer, "127.0.0.1", free_port()) as app:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o077 == 0
        Client(app.local_url, verbose=False).predict(photo, "What?", api_name="/ask")
        assert [path.name for path in folder.rglob("*.png")] == ["photo.png"]
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


def test_what_is_over_a_limit_is_not_taken(answerer, address):
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    stored = len(list(folder.rglob("*")))
    large = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.png", b"x" * (answerer.max_bytes + 1))})
    assert large.status_code == 413
    assert len(list(folder.rglob("*"))) == stored
    # Nor is a body that only names pictures ever held in memory beyond its own limit.
    assert _post_picture(address, path="x" * MAX_BODY_BYTES).status_code == 413


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
    flags = vars(demo.parse_flags([]))
    assert flags == {
        "cpu_only": False, "server_name": "127.0.0.1", "server_port": 8000, "share": False, "inbrowser": False
    }  # fmt: skip
    words = ["-c", "there", "--cpu-only", "--server-name", "0.0.0.0", "--server-port", "7", "--share", "--inbrowser"]
    assert vars(demo.parse_flags(words)) == {
        "checkpoint_path": "there", "cpu_only": True, "server_name": "0.0.0.0", "server_port": 7, "share": True,
        "inbrowser": True,
    }  # fmt: skip


def test_launch_is_told_what_the_flags_say(monkeypatch):
    from gradio import Blocks

    told = {}
    monkeypatch.setattr(Blocks, "launch", lambda self, **settings: told.update(settings))
    port = free_port()
    with running_demo(ScriptedAnswerer(), "localhost", port, share=True, inbrowser=True):
        pass
    assert (told["server_name"], told["server_port"]) == ("localhost", port)
    assert (told["share"], told["inbrowser"], told["quiet"]) == (True, True, True)
    with running_demo(ScriptedAnswerer(), "127.0.0.1", port):
        pass
    assert (told["share"], told["inbrowser"]) == (False, False)


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
    monkeypatch.setattr(session, "DEFAULT_CHECKPOINTS", ("models/none",))
    assert "run `bash scripts/quickstart.sh`" in _mistake(capsys, *port)


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


@pytest.mark.parametrize("words", [("--server-port", port) for port in ("0", "65536", "http", "-1")] + [("--nope",)])
def test_a_flag_that_is_none_is_one_sentence(words, capsys):
    with pytest.raises(SystemExit) as exit:
        demo.main(list(words))
    assert exit.value.code == 2
    assert re.fullmatch(f"error: .*{words[0]}.*\n", capsys.readouterr().err)


def test_without_gradio_the_program_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(demo_server.importlib.util, "find_spec", lambda name: None)
    message = _mistake(capsys, "-c", "no/model", "--server-port", str(free_port()))
    assert "the demo needs gradio" in message


AUDITED = """
import json, sys
sys.path.insert(0, {project!r})
contacted = set()
def watch(event, arguments):
    if event == "socket.getaddrinfo":
        contacted.add(str(arguments[0]))
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        contacted.add(str(arguments[1][0]))
sys.addaudithook(watch)
import monkey.serving.session
assert "gradio" not in sys.modules, "a session alone needs no gradio"
import demo
status = demo.main(sys.argv[1:])
print(json.dumps(sorted(contacted)), flush=True)
sys.exit(status)
"""


@pytest.mark.slow
def test_the_program_opens_a_model_contacts_nobody_and_ends_without_a_trace(tmp_path, photo):
    checkpoint, temporary = tmp_path / "tiny", tmp_path / "temporary"
    temporary.mkdir()
    random_model(small_config()).save_pretrained(checkpoint)
    small_processor().save_pretrained(checkpoint)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_HUB", "GRADIO"))}
    environment.update(HF_HUB_OFFLINE="1", TMPDIR=str(temporary), OMP_NUM_THREADS="1")
    port = free_port()
    words = ["-c", str(checkpoint), "--cpu-only", "--server-port", str(port)]
    program = subprocess.Popen(
        [sys.executable, "-c", AUDITED.format(project=str(PROJECT)), *words],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    try:
        lines = [program.stdout.readline() for _ in range(2)]
        assert lines[0] == f"opening {checkpoint} on the CPU, as --cpu-only says\n"
        assert lines[1] == f"the demo is at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        client = Client(f"http://127.0.0.1:{port}/", verbose=False)
        messages, *_ = client.predict(photo, "What is <img>/etc/passwd</img>?", api_name="/ask")
        asked, answer = _texts(messages)
        assert asked == "What is <img>/etc/passwd</img>?"
        assert answer
        program.send_signal(signal.SIGTERM)
        rest = program.stdout.read().splitlines()
    finally:
        program.kill()
        program.wait(30)
    assert program.returncode == 0
    assert rest[0] == "the demo has ended"
    assert set(json.loads(rest[1])) <= {"127.0.0.1", "localhost", "None"}
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "temporary", "tiny"]
