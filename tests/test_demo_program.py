"""`python demo.py`: its flags, its one-sentence errors, and that it contacts nobody and leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import string
import threading
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[demo]'")

from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file

import demo
from monkey.boxes import without_markup
from monkey.checkpoint_card import CheckpointCard
from monkey.configuration import MonkeyConfig
from monkey.conversation import Conversation, write
from monkey.decoding import FOR_ANSWERS
from monkey.images import open_image
from monkey.processing import MonkeyProcessor
from monkey.prompts import DESCRIPTION_PROMPTS
from monkey.serving import demo as serving
from monkey.serving import session
from monkey.serving.attention_maps import draw_views
from monkey.serving.demo_answers import (
    Answer,
    Exchange,
    FileSet,
    ImageStore,
    KeptImage,
    as_json,
    as_markdown,
    messages_for,
)
from monkey.serving.demo_page import EXAMPLES, HELD_OUT, examples
from monkey.serving.demo_texts import CHINESE, ENGLISH
from tests import forked
from tests.conftest import random_model
from tests.scripted_demo import ScriptedAnswerer, free_port, models_of
from tests.small_processor import small_config, small_processor
from tests.test_demo import _texts

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

    assert ENGLISH.keys() == CHINESE.keys()
    assert all(ENGLISH.values())
    assert all(blanks(ENGLISH[key]) == blanks(text) for key, text in CHINESE.items())


def test_the_flags_stay_on_this_machine_unless_told():
    assert vars(demo.parse_flags([])) == {
        "cpu_only": False, "server_name": "127.0.0.1", "server_port": 8000, "share": False, "inbrowser": False,
        "auth": [], "auth_file": None, "answers_at_once": 8,
    }  # fmt: skip
    flags = demo.parse_flags(["-c", "folder", "--server-port", "9", "--compare-grid", "2,3"])
    assert (flags.checkpoint_path, flags.server_port) == ("folder", 9)
    assert flags.compare_grid == (2, 3)


@pytest.mark.parametrize(
    ("name", "settings", "checks_host"),
    [
        ("127.0.0.1", {}, True),
        ("127.0.0.1", {"people": [("ada", "secret")]}, False),
        ("localhost", {"share": True, "inbrowser": True}, False),
        ("0.0.0.0", {}, False),
    ],
)
def test_every_flag_reaches_gradio(monkeypatch, name, settings, checks_host):
    told = {}
    monkeypatch.setattr(serving.gr.Blocks, "launch", lambda app, **settings: told.update(settings))
    port = free_port()
    with serving.running_demo(models_of(ScriptedAnswerer()), name, port, **settings):
        pass
    assert (told["server_name"], told["server_port"]) == (name, port)
    assert (told.get("share", False), told.get("inbrowser", False)) == (name == "localhost",) * 2
    assert told["auth"] == settings.get("people")
    assert told["app_kwargs"]["middleware"][0].kwargs["is_loopback"] == checks_host


def test_passwords_come_from_a_flag_a_file_and_the_environment(tmp_path):
    file = tmp_path / "people"
    file.write_text("# who may come in\nada:one:two\n\n bob:three\n")
    people = serving.read_people(["joe:five"], file, "eve:four")
    assert people == [("joe", "five"), ("ada", "one:two"), ("bob", "three"), ("eve", "four")]
    assert serving.read_people([], None, "") == []
    for given in ("ada", "ada:", ":secret", ""):
        with pytest.raises(ValueError, match=r"^--auth is not user:password") as refused:
            serving.read_people([given], None, "")
        assert "secret" not in str(refused.value)
    for content, sentence in (("ada:one\nsecret\n", r"people:2 is not user:password"), ("\n", "names nobody")):
        file.write_text(content)
        with pytest.raises(ValueError, match=sentence):
            serving.read_people([], file, "")
    with pytest.raises(FileNotFoundError, match=r"--auth-file .*none: no such file"):
        serving.read_people([], tmp_path / "none", "")
    file.write_bytes("ada:größe\n".encode("latin-1"))
    for path in (file, tmp_path):
        with pytest.raises(ValueError, match=rf"^--auth-file {path} cannot be read as text in UTF-8$"):
            serving.read_people([], path, "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names here")
def test_passwords_come_through_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"  # as of --auth-file <(…)
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=("ada:one\n",), daemon=True).start()
    assert serving.read_people([], pipe, "") == [("ada", "one")]


def _mistake(capsys, *words: str) -> str:
    """The one sentence with which the program refuses."""
    assert demo.main(list(words)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_a_checkpoint_that_cannot_be_opened_is_one_sentence(capsys, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(serving, "SHOW_ERROR_SECONDS", 0.0)
    port = ("--server-port", str(free_port()))
    assert "no such checkpoint folder" in _mistake(capsys, "-c", str(tmp_path / "nothing"), *port)
    assert "qwen.tiktoken" in _mistake(capsys, "-c", str(tmp_path), *port)
    broken = shutil.copytree(tiny, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    assert "broken" in _mistake(capsys, "-c", str(broken), "--cpu-only", *port)
    monkeypatch.setattr(session, "DEFAULT_CHECKPOINT", "models/none")
    assert "models/none is not there" in _mistake(capsys, *port)


def test_a_taken_port_is_one_sentence_before_the_model_is_opened_and_a_share_says_what_it_does(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = _mistake(capsys, "-c", "no/model", "--server-port", str(port))
        sentence = f"the demo cannot listen on port {port} of 127.0.0.1: it is taken; give another with --server-port"
        assert message == f"error: {sentence}\n"
        assert demo.main(["--share", "--server-port", str(port)]) == 2
    assert "images and questions pass through gradio's servers" in capsys.readouterr().out
    with pytest.raises(ValueError, match="this machine has no such address; --server-name takes"):
        serving.check_address("192.0.2.1", free_port())


@pytest.mark.parametrize(
    "words",
    [
        *[("--server-port", port) for port in ("0", "65536", "http")],
        *[("--compare-grid", grid) for grid in ("2", "2,0", "a,b")],
        *[(flag, "0") for flag in ("--answers-at-once", "--max-windows")],
        ("--nope",),
    ],
)
def test_a_flag_that_is_none_is_one_sentence(words, capsys):
    with pytest.raises(SystemExit) as exit:
        demo.main(list(words))
    assert exit.value.code == 2
    assert re.fullmatch(f"error: .*{words[0]}.*\n", capsys.readouterr().err)


def test_without_gradio_the_program_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "the demo needs gradio" in _mistake(capsys, "-c", "no/model")


def test_two_grids_of_one_checkpoint_are_two_models(tiny):
    models = serving.choose_models(tiny, None, None, (1, 2), "cpu", 2)
    assert models.names == ("tiny", "tiny 1×2")
    models.open()
    assert [answerer.model.config.grid for answerer in models.answerers] == [(1, 1), (1, 2)]
    models.close()
    assert serving.choose_models(tiny, None, tiny, None, "cpu", 2).names == ("tiny (A)", "tiny (B)")


def test_the_limit_of_windows_holds_for_both_models_and_for_the_views_shown(tmp_path):
    image = Image.new("RGB", (120, 30))
    image.save(tmp_path / "wide.png")
    folder, wide = tmp_path / "shaped", KeptImage("wide.png", tmp_path / "wide.png", tmp_path / "wide.png", image.size)
    config = MonkeyConfig.from_dict({**small_config().to_dict(), "grids": "up-to-4"})
    random_model(config).save_pretrained(folder)
    MonkeyProcessor.from_config(config, small_processor().tokenizer).save_pretrained(folder)
    models = serving.choose_models(folder, None, folder, None, "cpu", 2, 2)
    shown = serving.Demo(models, ImageStore(tmp_path))
    models.open()
    for answerer in models.answerers:
        ((sheet, caption),), _ = shown._views(answerer, [wide], "en")
        assert "1×2" in caption
        assert sheet.size == draw_views(image, config, max_windows=2).size
        with pytest.raises(ValueError, match="max_windows is 3, and this model was opened with at most 2 windows"):
            answerer.ask(image, "What?", max_windows=3)
    models.close()


def test_a_limit_where_there_is_nothing_to_choose_is_one_sentence_before_the_model_is_opened(capsys, tiny):
    port = ("--server-port", str(free_port()))
    message = _mistake(capsys, "-c", str(tiny), "--max-windows", "2", *port)
    assert "max_windows=2: all images lie on one grid" in message


DOG = KeptImage("dog.png", Path("a.original"), Path("a.png"), (400, 200))
BOX = "<ref>dog</ref><box>(0,0),(500,1000)</box>"
CONVERSATION = [
    Exchange("What?", (DOG,), FOR_ANSWERS, False, [Answer("a dog", True), Answer(BOX, True, new_tokens=2)]),
    Exchange("# And\n<b>now</b>?", (), FOR_ANSWERS, False, [Answer("a cat", True), Answer("", True, is_stopped=True)]),
]


def test_a_conversation_is_taken_along_as_json_and_markdown():
    models = models_of(ScriptedAnswerer("A"), ScriptedAnswerer("B", grid=(1, 2)))
    models.open()
    content = json.loads(as_json(CONVERSATION, models.facts()))
    sizes = {"canvas": [28, 56], "image_tokens": 12, "device": "cpu"}
    assert content["models"][1] == {"name": "B", "grid": [1, 2], **sizes}
    first, second = content["exchanges"]
    assert first["pictures"] == [{"name": "dog.png", "width": 400, "height": 200}]
    assert first["decoding"] == {"max_new_tokens": 512, "temperature": 0.0, "top_p": 1.0, "seed": None}
    assert [answer["text"] for answer in first["answers"]] == ["a dog", BOX]
    assert first["answers"][1]["boxes"] == [{"label": "dog", "pixels": [0, 0, 200, 200]}]
    assert second["question"] == "# And\n<b>now</b>?"
    text = as_markdown(CONVERSATION, ["A", "B"], "en")
    assert "*Image: dog.png, 400×200*" in text
    assert "> # And\n> <b>now</b>?" in text
    assert f"**Answer (B)**\n\n> {without_markup(BOX)}" in text
    assert "**问题**" in as_markdown(CONVERSATION, ["A", "B"], "zh")


PROMPTS = CheckpointCard().description_prompts


@pytest.mark.parametrize(("prompt", "written"), zip(PROMPTS, ("{}", *["{}Answer: "] * 5), strict=True))
def test_published_prompts_reach_the_model_to_the_byte(prompt, written):
    messages = messages_for([Exchange(prompt, (DOG,), FOR_ANSWERS, True, [Answer()])], 0, "questions")
    (segments,) = write(Conversation.from_messages(messages), "questions")
    assert "".join(segment.text for segment in segments) == "<img></img>" + written.format(f" {prompt} ")
    assert PROMPTS[1:] == DESCRIPTION_PROMPTS


def test_examples_are_the_projects_own_images_each_of_another_kind(tmp_path):
    assert len(examples()) == len(EXAMPLES)
    rows = [json.loads(line) for line in (HELD_OUT.parents[1] / "heldout.jsonl").read_text().splitlines()]
    kinds = {Path(row["image"]).name: row["document"] for row in rows}
    assert len({kinds[name] for name in EXAMPLES}) == len(EXAMPLES)
    assert examples(tmp_path) == []


def _open(content: bytes, name: str) -> Image.Image:
    return open_image(content, name=name)


def test_an_image_is_shown_upright_and_small_and_kept_as_it_came_for_its_owner_alone(tmp_path):
    store, upload = ImageStore(tmp_path), tmp_path / "scan.tiff"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3000, 1000), "red").save(upload, exif=exif)
    kept = store.take("ada", upload, "scan.tiff", _open)
    assert (kept.size, kept.file.read_bytes()) == ((1000, 3000), upload.read_bytes())
    with Image.open(kept.shown) as shown:
        assert (shown.format, shown.size) == ("JPEG", (400, 1200))
    assert store.find("ada", f"/wherever/{kept.shown.name}") is kept
    assert store.find("bob", str(kept.shown)) is store.find("ada", str(kept.file)) is None
    store.forget("ada")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    with pytest.raises(FileNotFoundError):  # of an answer that goes on after somebody cleared
        store.draw("ada", Image.new("RGB", (4, 3)))


def test_what_people_have_goes_with_them_and_nothing_of_the_others(tmp_path):
    store, upload, copy = ImageStore(tmp_path), tmp_path / "a.png", tmp_path / "again.png"
    for path in (upload, copy):
        Image.new("L", (4, 3)).save(path)
    own = store.take("ada", upload, "a.png", _open)
    copied = shutil.copy(own.shown, tmp_path / own.shown.name)  # as gradio may
    os.utime(copy, (1, 1))
    copy.replace(upload)  # as gradio does with an equal upload of somebody else
    store.forget("ada")
    assert not any(path.exists() for path in (own.file, own.shown, copied))
    other = store.take("bob", upload, "a.png", _open)
    store.forget("ada")
    assert other.file.exists()
    store.forget("bob")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_old_files_are_deleted_while_others_come(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    store, upload = ImageStore(tmp_path), tmp_path / "a.png"
    Image.new("L", (4, 3)).save(upload)
    app = serving.Demo(models_of(ScriptedAnswerer()), store).app
    store.take("ada", upload, "a.png", _open)
    grown = [
        [files.add(f"{number}-{len(files)}") for _ in files] for number, files in enumerate(app.temp_file_sets) if files
    ]
    assert grown  # gradio walks each in a thread of its own
    assert {type(files) for files in app.temp_file_sets} == {FileSet}
    assert any(files is app.upload_file_set for files in app.temp_file_sets)
    delete_files_created_by_app(app, age=0)
    assert not any(path.exists() for path in (tmp_path / "images").iterdir())
    store.add("ada", upload.read_bytes(), "a.png", _open)
    store.forget("ada")
    assert not any(str(tmp_path) in name for name in store.files)


def test_callers_without_a_session_share_nothing_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    models, upload = models_of(ScriptedAnswerer()), tmp_path / "a.png"
    models.open()
    program, owners = serving.Demo(models, ImageStore(tmp_path)), []
    for _ in range(2):
        Image.new("L", (4, 3)).save(upload)
        request, tray = serving.gr.Request(), [{"image": {"path": str(upload)}}]
        events = program.ask(request, tray, "What?", [], "en", 0, 1, 512, 0.7, 1, 250, 0)
        (message, *_) = next(events)[program.page.chats[0]]
        owners.append(Path(message["content"][0]["path"]).name.partition("-")[0])
        *_, last = events
        assert last[program.page.conversation][0].answers[0].text == "On 4×3: What?"
        assert not any((tmp_path / "images").iterdir())
    assert len(set(owners)) == 2


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


@pytest.mark.slow
def test_the_program_answers_many_with_the_network_closed_and_ends_without_a_trace(tmp_path, tmp_path_factory, tiny):
    """A real engine: people ask at once about images of their own, and each gets the answer of an asker alone."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_HUB", "GRADIO"))}
    environment.update(HF_HUB_OFFLINE="1", TMPDIR=str(temporary), OMP_NUM_THREADS="1")
    port = free_port()
    words = ["-c", str(tiny), "--cpu-only", "--server-port", str(port)]
    said = tmp_path_factory.mktemp("said") / "said"
    said.touch()
    command = ["-c", AUDITED.format(project=str(PROJECT)), *words]
    nowhere = Path(os.devnull)
    program = forked.start(forked.run_words, command, cwd=tmp_path, env=environment, stdout=said, stderr=nowhere)
    try:
        program.wait_for(lambda: said.read_text().count("\n") == 3, said)
        lines = said.read_text().splitlines(keepends=True)
        assert lines[0] == "tiny on the CPU, as --cpu-only says\n"
        assert lines[1] == f"the demo is at http://127.0.0.1:{port}/ (Ctrl-C ends it); opening tiny\n"
        assert lines[2] == "the model is open\n"

        def answers(number: int) -> list[str]:
            path = tmp_path / f"{number}.png"
            Image.linear_gradient("L").resize((20 + 40 * number, 30)).save(path)
            client = Client(f"http://127.0.0.1:{port}/", verbose=False)
            image = {"image": handle_file(str(path)), "caption": None}
            client.predict([image], "What is <img>/etc/passwd</img>?", "en", 0, 1, 12, api_name="/ask")
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
        assert program.wait(60) == 0
    finally:
        program.kill()
    rest = said.read_text().splitlines()[3:]
    assert rest[0] == "the demo has ended"
    assert set(json.loads(rest[1])) <= {"127.0.0.1", "localhost", "None"}
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png", "temporary"]
