"""The demo as its users meet it: over its own address on this machine, through gradio's client."""

from __future__ import annotations

import html
import io
import json
import os
import re
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[demo]'")

import httpx
from gradio_client import Client, handle_file

from monkey.serving.demo.chinese import CHINESE
from monkey.serving.demo.english import ENGLISH
from monkey.serving.demo.examples import examples
from monkey.serving.demo.uploads import MAX_BODY_BYTES
from tests.scripted_demo import LIMITS, ScriptedAnswerer, models_of, scripted_demo

PROJECT = Path(__file__).resolve().parent.parent

PUBLISHED = (0, 1, 512, 0.7, 1, 250, 0)
"""Settings as the page opens."""


@pytest.fixture(scope="module")
def running():
    """A scripted demo of one model, and its address."""
    answerer = ScriptedAnswerer()
    models = models_of(answerer)
    with scripted_demo(models) as app, models:
        yield answerer, app.local_url


@pytest.fixture
def answerer(running) -> ScriptedAnswerer:
    answerer, _ = running
    answerer.forget()
    return answerer


@pytest.fixture
def address(running) -> str:
    return running[1]


@pytest.fixture
def client(answerer, address) -> Client:
    return Client(address, verbose=False)


@pytest.fixture
def photo(tmp_path) -> dict:
    return uploaded(_picture(tmp_path / "photo.png", 40, 30))


def uploaded(path: str | Path) -> dict:
    """A picture as the tray holds it."""
    return {"image": handle_file(str(path)), "caption": None}


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    return file.getvalue()


def _picture(path: Path, width: int, height: int) -> str:
    Image.linear_gradient("L").resize((width, height)).save(path)
    return str(path)


def _texts(messages: list[dict]) -> list[str]:
    """What a conversation shows in words, in the order of its messages."""
    parts = [part for message in messages for part in message["content"]]
    return [html.unescape(part["text"]) for part in parts if part["type"] == "text"]


def _pictures(messages: list[dict]) -> list[str]:
    """Files of the pictures that a conversation shows."""
    parts = [part for message in messages for part in message["content"]]
    return [_path_of(part["file"]) for part in parts if part["type"] == "file"]


def _path_of(file: dict | str) -> str:
    return file if isinstance(file, str) else file["path"]


def _sentence(notice: dict) -> str:
    """What the notice says, or "" when it is hidden."""
    assert notice["visible"] == bool(notice["value"])
    return html.unescape(re.sub(r"</?p[^>]*>", "", notice["value"]))


def _post_picture(address: str, *headers: tuple[str, str], **picture) -> httpx.Response:
    """Name a picture without uploading it."""
    tray = [{"image": {"meta": {"_type": "gradio.FileData"}, **picture}, "caption": None}]
    data = [tray, "What?", "en", *PUBLISHED]
    return httpx.post(f"{address}gradio_api/call/ask", json={"data": data}, headers=headers, timeout=30)


def test_an_unfinished_box_is_not_shown_while_it_is_written(client, answerer, photo):
    answerer.script = "See <ref>the dog</ref><box>(100,100),(900, 900)</box> and < that <box> (1,2 </box> ends."
    shown = [_texts(messages)[-1] for messages, *_ in client.submit([photo], "Where?", api_name="/ask")]
    # The last `<box>` is none, and so it is text in the end.
    assert shown[-1] == "See the dog and < that <box> (1,2 </box> ends."
    assert all(text == "…" or shown[-1].startswith(text.strip()) for text in shown)
    assert not any("<ref" in text or "(100" in text for text in shown)


def test_half_a_character_is_a_sentence(address, answerer):
    (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", _png())}).json()

    def shown(endpoint: str, text: str) -> str:
        picture = {"path": path, "orig_name": f"{text}.png", "meta": {"_type": "gradio.FileData"}}
        data = json.dumps({"data": [[{"image": picture, "caption": None}], text, "en", *PUBLISHED]})
        headers = {"Content-Type": "application/json"}
        started = httpx.post(f"{address}gradio_api/call/{endpoint}", content=data, headers=headers, timeout=60)
        return httpx.get(f"{address}gradio_api/call/{endpoint}/{started.json()['event_id']}", timeout=60).text

    assert ENGLISH.half_character in shown("ask", "a\ud800b")
    assert ENGLISH.half_character in shown("describe", "\udfff")
    assert answerer.asked == []
    assert "event: complete" in shown("ask", "\U0001f412")


def test_the_demo_of_this_machine_answers_to_no_other_name_and_tells_no_path(address):
    for name, status in (("127.0.0.1", 200), ("localhost:8000", 200), ("evil.example", 403)):
        assert httpx.get(address, headers={"Host": name}).status_code == status, name
    assert httpx.post(f"{address}gradio_api/call/ask", json={"data": []}, headers={"Host": "a.b"}).status_code == 403
    config = httpx.get(f"{address}config").text
    assert str(PROJECT) not in config
    assert "/pictures/" not in config
    assert examples()[0].question in config


def _events(address: str, started: httpx.Response) -> str:
    """All events of a call, after its end."""
    return httpx.get(f"{address}gradio_api/call/ask/{started.json()['event_id']}", timeout=30).text


def _wait_for(happened, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _stored() -> list[Path]:
    """Files of the running demo."""
    return [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]


def test_a_question_is_answered_piece_by_piece_and_put_into_the_conversation(client, answerer, photo):
    answerer.pause = 0.08
    job = client.submit([photo], "What does the sign say?", api_name="/ask")
    shown = [_texts(messages)[-1] for messages, *_ in job]
    assert shown[-1] == "On 40×30: What does the sign say?"
    assert shown[0] == "…"
    assert len(set(shown)) > 3
    assert all(shown[-1].startswith(text) for text in shown if text != "…")

    messages, notice, question, tray, *_ = client.predict([], "  And the price?\n", api_name="/ask")
    assert _texts(messages) == [
        "What does the sign say?", "On 40×30: What does the sign say?",
        "And the price?", "On 40×30 after 1: And the price?",
    ]  # fmt: skip
    assert _sentence(notice) == ""
    assert question == ""
    assert tray == []
    assert len(_pictures(messages)) == 1


def test_several_pictures_go_with_one_question_and_more_with_the_next(client, photo, tmp_path):
    second = uploaded(_picture(tmp_path / "second.png", 20, 10))
    messages, *_ = client.predict([photo, second], "Which is larger?", api_name="/ask")
    assert _texts(messages)[-1] == "On 40×30 and 20×10: Which is larger?"
    third = uploaded(_picture(tmp_path / "third.png", 5, 5))
    messages, *_ = client.predict([third], "And this?", api_name="/ask")
    assert _texts(messages)[-1] == "On 40×30 and 20×10 and 5×5 after 1: And this?"
    nine = [uploaded(_picture(tmp_path / f"{number}.png", 5 + number, 5)) for number in range(9)]
    _, notice, *_ = client.predict(nine, "All?", api_name="/ask")
    assert _sentence(notice) == "There are 9 pictures, and up to 8 can go with one question. Remove some."


def test_retry_asks_the_same_once_more_with_the_settings_of_now(client, answerer, photo):
    answerer.script = ["one", "two"]
    client.predict([photo], "What?", api_name="/ask")
    messages, *_ = client.predict("en", 0.5, 0.9, 7, *PUBLISHED[3:], api_name="/retry")
    assert _texts(messages) == ["What?", "two"]
    assert len(_pictures(messages)) == 1
    assert answerer.asked == ["What?", "What?"]
    again = answerer.decodings[-1]
    assert (again.temperature, again.top_p, again.max_new_tokens, again.seed) == (0.5, 0.9, 7, 0)
    first = answerer.decodings[0]
    assert (first.temperature, first.top_p, first.max_new_tokens) == (0, 1, 512)


def test_nothing_to_retry_is_a_sentence(client):
    assert _sentence(client.predict(api_name="/retry")[1]) == ENGLISH.nothing_to_repeat


def test_a_description_is_asked_as_trained_and_as_the_readme_has_it(client, answerer, photo):
    messages, *_ = client.predict([photo], api_name="/describe")
    assert _texts(messages)[0] == "Generate the detailed caption in English:"
    # With the spaces of training; what is no prompt by itself is put into the prompt of questions by the model's side.
    assert answerer.asked == [" Generate the detailed caption in English: "]
    drawn = answerer.decodings[-1]
    assert (drawn.temperature, drawn.max_new_tokens, drawn.seed) == (0.7, 250, 0)
    client.predict([], "Analyze the image in a comprehensive and detailed manner.", api_name="/describe")
    assert answerer.asked[-1] == "Analyze the image in a comprehensive and detailed manner."
    _, notice, *_ = client.predict([], " ", api_name="/describe")
    assert _sentence(notice) == ENGLISH.no_prompt
    _, notice, *_ = client.predict([], "Describe.", "en", *PUBLISHED[:6], -1, api_name="/describe")
    assert _sentence(notice) == "The seed must be a whole number from 0 to 4,294,967,295, or empty."
    _, notice, *_ = client.predict([], "Describe.", "en", *PUBLISHED[:3], 3, *PUBLISHED[4:], api_name="/describe")
    assert _sentence(notice) == "Temperature must be a number from 0 to 2."
    client.predict([], "Describe.", "en", *PUBLISHED[:6], None, api_name="/describe")
    assert answerer.decodings[-1].seed is None


HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(1)> <b>b</b> **b** `c` $$x$$ &amp; AT&T {{7*7}} ${1+1}"


def test_what_users_and_model_write_is_escaped(client, answerer, photo):
    answerer.script = HOSTILE
    messages, *_ = client.predict([photo], HOSTILE, api_name="/ask")
    raw = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    assert not any(character in text for text in raw for character in "<>")
    assert _texts(messages) == [HOSTILE, HOSTILE]
    assert answerer.asked == [HOSTILE]


def test_an_image_place_in_a_question_stays_text(client, answerer, photo):
    messages, *_ = client.predict([photo], "What is <img>/etc/passwd</img>?", api_name="/ask")
    assert _texts(messages)[-1] == "On 40×30: What is <img>/etc/passwd</img>?"


def test_a_file_name_is_escaped_in_a_notice(answerer, address):
    (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", b"no picture")}).json()
    name = "<img src=x onerror=alert(1)> {{7*7}} ${1+1} & b.png"
    started = _post_picture(address, path=path, orig_name=name)
    *_, result = re.findall("^data: (.*)$", _events(address, started), flags=re.MULTILINE)
    notice = json.loads(result)[2]
    inside = re.sub(r"</?p[^>]*>", "", notice["value"])
    assert not any(character in inside for character in "<>{}$")
    assert _sentence(notice).startswith(f"This picture cannot be used: {name} is not an image")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"hello", "This picture cannot be used: upload.png is not an image that can be read"),
        (b"%PDF-1.7", "This picture cannot be used: upload.png is a PDF"),
        (b"", "This picture cannot be used: upload.png is empty."),
        (
            (3001, 1000),
            "This picture cannot be used: upload.png has 3,001,000 pixels (3001 × 1000), more than the 3,000,",
        ),
    ],
)
def test_a_bad_picture_is_a_sentence_in_the_page(client, answerer, tmp_path, content, sentence):
    path = tmp_path / "upload.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.new("1", content).save(path)
    messages, notice, *_ = client.predict([uploaded(path)], "What?", api_name="/ask")
    assert _sentence(notice).startswith(sentence)
    assert messages == []
    _, notice, *_ = client.predict([uploaded(path)], api_name="/describe")
    assert _sentence(notice).startswith(sentence)
    assert answerer.asked == []


def test_a_missing_picture_or_question_is_a_sentence_in_either_language(client, answerer, photo):
    assert _sentence(client.predict([], "What?", api_name="/ask")[1]) == ENGLISH.no_picture
    assert _sentence(client.predict([photo], " \n", api_name="/ask")[1]) == ENGLISH.no_question
    assert _sentence(client.predict([], "What?", "zh", api_name="/ask")[1]) == CHINESE.no_picture
    assert _sentence(client.predict([], language="zh", api_name="/describe")[1]) == CHINESE.no_picture
    long = _sentence(client.predict([photo], "x" * 4001, api_name="/ask")[1])
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
    messages, notice, *_ = client.predict([photo], "What?", api_name="/ask")
    assert _sentence(notice) == sentence
    assert _texts(messages) == ["What?", "Well,"]
    answerer.script = None
    assert _texts(client.predict([], "Again?", api_name="/ask")[0])[2:] == ["Again?", "On 40×30 after 1: Again?"]


def test_a_question_that_came_to_nothing_goes_back_into_the_box_with_its_pictures(client, answerer, photo, monkeypatch):
    def refuse(*_):
        raise ValueError("the prompt is 9,000 tokens long")

    monkeypatch.setattr(answerer, "chat", refuse)
    messages, notice, question, tray, *_ = client.predict([photo], "What?", api_name="/ask")
    assert messages == []
    assert "9,000 tokens" in _sentence(notice)
    assert question == "What?"
    assert len(tray) == 1
    monkeypatch.undo()
    assert _texts(client.predict([], "What?", api_name="/ask")[0]) == []  # the tray is the page's to send again


def test_where_memory_does_not_suffice_the_last_question_is_asked_by_itself_and_shorter(client, answerer, photo):
    client.predict([photo], "First?", api_name="/ask")
    answerer.script = [MemoryError("20 GiB"), "small answer"]
    messages, notice, *_ = client.predict([], "Second?", api_name="/ask")
    assert _texts(messages)[2:] == ["Second?", "small answer"]
    assert _sentence(notice) == ENGLISH.reduced.format(limit=128)
    assert [decoding.max_new_tokens for decoding in answerer.decodings] == [512, 512, 128]
    answerer.script = None
    assert _texts(client.predict([], "Third?", api_name="/ask")[0])[-1] == "On 40×30 after 2: Third?"


def test_boxes_of_an_answer_are_drawn_on_the_picture_and_not_read_out(client, answerer, photo):
    answerer.script = "Here: <ref>the dog</ref><box>(100,100),(900,900)</box>."
    messages, *_ = client.predict([photo], "Where is the dog?", api_name="/ask")
    assert _texts(messages)[-1] == "Here: the dog."
    asked, drawn = _pictures(messages)
    with Image.open(asked) as before, Image.open(drawn) as after:
        assert before.size == after.size == (40, 30)
        assert before.convert("RGB").tobytes() != after.convert("RGB").tobytes()


def test_what_the_model_sees_is_drawn_and_counted(client, answerer, photo):
    shown, counts = client.predict([photo], api_name="/views")
    assert shown.count("<figure>") == 1
    assert "4 windows of 28×28 pixels; 5 views in all become 20 tokens" in counts
    shown, counts = client.predict(api_name="/heat")
    assert "<figure>" not in shown
    assert ENGLISH.no_heat in html.unescape(counts)
    client.predict([photo], "What?", api_name="/ask")
    shown, counts = client.predict(api_name="/heat")
    assert shown.count("<figure>") == 3
    assert "25% of its attention" in shown
    assert "a prompt of 17 tokens, an answer of 3, confidence 0.50" in counts
    address = re.search(r'src="([^"]+)"', shown).group(1)
    picture = httpx.get(f"{client.src}{address}")
    assert Image.open(io.BytesIO(picture.content)).size == (40, 30)


@pytest.mark.slow
def test_many_people_at_once_do_not_mix(answerer, address, tmp_path):
    answerer.pause = 0.01
    conversations: dict[int, list[str]] = {}

    def person(number: int) -> None:
        client = Client(address, verbose=False)
        own = uploaded(_picture(tmp_path / f"{number}.png", 10 + number, 20))
        for turn in range(3):
            messages, *_ = client.predict([own] if turn == 0 else [], f"question {turn} of {number}", api_name="/ask")
        conversations[number] = _texts(messages)

    people = [threading.Thread(target=person, args=(number,)) for number in range(6)]
    for thread in people:
        thread.start()
    for thread in people:
        thread.join(120)
    assert conversations == {
        number: [
            text
            for turn in range(3)
            for text in (
                f"question {turn} of {number}",
                f"On {10 + number}×20{f' after {turn}' if turn else ''}: question {turn} of {number}",
            )
        ]
        for number in range(6)
    }


def test_questions_of_several_people_are_answered_at_the_same_time(answerer, address):
    answerer.held = threading.Event()
    paths = httpx.post(
        f"{address}gradio_api/upload", files=[("files", (f"{n}.png", _png() + bytes(n))) for n in range(3)]
    ).json()
    started = [_post_picture(address, path=path) for path in paths]
    _wait_for(lambda: answerer.running == 3)
    answerer.held.set()
    assert all("event: complete" in _events(address, call) for call in started)
    assert answerer.most_running == 3


def test_an_asker_who_goes_away_stops_the_model(client, answerer, photo):
    answerer.pause = 0.05
    answerer.script = "word " * 600
    job = client.submit([photo], "What?", api_name="/ask")
    _wait_for(lambda: len(job.outputs()) > 2)
    job.cancel()
    # The answer would go on for half a minute; a step and gradio's own polling take less than a second.
    assert answerer.cut_short.wait(10)
    assert answerer.running == 0


@pytest.mark.slow
def test_the_line_is_bounded():
    from monkey.serving.demo.app import LONGEST_LINE

    answerer = ScriptedAnswerer()
    answerer.held = threading.Event()
    models = models_of(answerer)
    with scripted_demo(models, answers_at_once=1) as app, models:
        address = app.local_url
        files = [("files", (f"{number}.png", _png() + bytes(number))) for number in range(LONGEST_LINE + 2)]
        paths = httpx.post(f"{address}gradio_api/upload", files=files).json()
        first = _post_picture(address, path=paths[0])
        _wait_for(lambda: answerer.running == 1)
        others = [_post_picture(address, path=path) for path in paths[1:]]
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


def test_nobody_can_guess_the_name_of_somebody_elses_picture(client, answerer, address, photo):
    """Names of kept files hold 96 random bits; one that is none is a picture that is gone."""
    messages, *_ = client.predict([photo], "Mine?", api_name="/ask")
    name = _pictures(messages)[0].rsplit("/", 1)[-1]
    assert re.fullmatch(r"[0-9a-f]{24}-\d+\.png", name)
    folder = Path(os.environ["GRADIO_TEMP_DIR"]) / "pictures"
    assert not (folder / "0-2.png").exists()
    events = _events(address, _post_picture(address, path=str(folder / "0-2.png")))
    assert "is no longer on the server" in events
    assert answerer.asked == ["Mine?"]


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/a.png", "https://example.com/a.png", " FILE:///etc/passwd"])
def test_nobody_can_make_the_server_fetch_an_address(answerer, address, path):
    # The server reads a body by the first of two kinds; a form after JSON must not pass for an upload.
    for kinds in ((), ("application/json", "multipart/form-data; boundary=x"), ("multipart/form-data",)):
        refused = _post_picture(address, *[("content-type", kind) for kind in kinds], path=path)
        assert refused.status_code == 400
        assert refused.json() == {"detail": "pictures are uploaded here, not fetched from an address"}
    assert answerer.asked == []


def test_uploads_lie_in_a_private_folder_that_ends_with_the_demo(photo):
    before = os.environ.get("GRADIO_TEMP_DIR")
    models = models_of(ScriptedAnswerer())
    with scripted_demo(models) as app, models:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o077 == 0
        Client(app.local_url, verbose=False).predict([photo], "What?", api_name="/ask")
        assert sorted(path.suffix for path in _stored()) == [".original", ".png", ".png"]
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


def test_what_is_over_a_limit_is_not_taken(answerer, address):
    stored = set(_stored())
    large = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.png", b"x" * (LIMITS.max_bytes + 1))})
    assert large.status_code == 413
    assert set(_stored()) <= stored  # pictures of earlier tests may go meanwhile
    # Nor is a body that only names pictures ever held in memory beyond its own limit.
    assert _post_picture(address, path="x" * MAX_BODY_BYTES).status_code == 413


def test_two_models_answer_side_by_side_each_with_its_own_conversation(photo):
    first, second = ScriptedAnswerer("A"), ScriptedAnswerer("B", grid=(1, 2))
    first.script, second.script = ["left", "left again"], ["right", "right again"]
    models = models_of(first, second)
    with scripted_demo(models) as app, models:
        client = Client(app.local_url, verbose=False)
        left, right, *_ = client.predict([photo], "What?", api_name="/ask")
        assert (_texts(left), _texts(right)) == (["What?", "left"], ["What?", "right"])
        left, right, *_ = client.predict([], "More?", api_name="/ask")
        assert (_texts(left)[-1], _texts(right)[-1]) == ("left again", "right again")
        shown, counts = client.predict(api_name="/views")
        assert shown.count("<figure>") == 2
        assert "4 windows" in counts
        assert "2 windows" in counts
        first.script, second.script = "left still", [ValueError("too long for B"), "never"]
        left, right, notice, *_ = client.predict([], "Last?", api_name="/ask")
        assert _texts(left)[-1] == "left still"
        assert _sentence(notice) == "B: The model cannot take this: too long for B."


def test_a_question_waits_for_a_model_that_is_being_opened(photo):
    opened = threading.Event()
    models = models_of(ScriptedAnswerer("slow"), opened=opened)
    with scripted_demo(models) as app, models:
        client = Client(app.local_url, verbose=False)
        shown, counts = client.predict([photo], api_name="/views")
        assert shown == ""
        assert "Opening slow (model 1 of 1): 0% of its weights" in counts
        job = client.submit([photo], "What?", api_name="/ask")
        _wait_for(lambda: any("Opening slow" in str(output[1]) for output in job.outputs()))
        opened.set()
        messages, notice, *_ = job.result(30)
        assert _texts(messages)[-1] == "On 40×30: What?"
        assert _sentence(notice) == ""


def test_a_model_that_cannot_be_opened_is_a_sentence(photo):
    def fail():
        raise ValueError("its weights are cut off")

    from monkey.serving.demo.opening import Choice, Models

    models = Models([Choice("broken", LIMITS, fail)])
    with scripted_demo(models) as app, models:
        client = Client(app.local_url, verbose=False)
        messages, notice, question, *_ = client.predict([photo], "What?", api_name="/ask")
        assert _sentence(notice) == "The model could not be opened: its weights are cut off."
        assert messages == []
        assert question == "What?"


def test_only_those_with_a_password_come_in(photo):
    models = models_of(ScriptedAnswerer())
    with scripted_demo(models, people=[("ada", "secret")]) as app, models:
        with pytest.raises(Exception, match=r"(?i)auth|credentials|401|login"):
            Client(app.local_url, verbose=False)
        assert httpx.post(f"{app.local_url}gradio_api/upload", files={"files": ("a.png", _png())}).status_code == 401
        client = Client(app.local_url, verbose=False, auth=("ada", "secret"))
        messages, *_ = client.predict([photo], "What?", api_name="/ask")
        assert _texts(messages)[-1] == "On 40×30: What?"
