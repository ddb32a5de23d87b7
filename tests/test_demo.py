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

from monkey.serving.demo import LONGEST_LINE, MAX_BODY_BYTES, running_demo
from monkey.serving.demo_answers import Choice, Models
from monkey.serving.demo_page import examples
from monkey.serving.demo_texts import CHINESE, ENGLISH
from tests.scripted_demo import LIMITS, ScriptedAnswerer, free_port, models_of, scripted_demo

PROJECT = Path(__file__).resolve().parent.parent

PUBLISHED = (0, 1, 512, 0.7, 1, 250, 0)
"""Settings as the page opens."""

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(1)> <b>b</b> **b** `c` $$x$$ &amp; AT&T {{7*7}} ${1+1}"


@pytest.fixture(scope="module")
def running():
    """A scripted demo of one model, and its address."""
    answerer = ScriptedAnswerer()
    with scripted_demo(answerer) as address:
        yield answerer, address


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
    return uploaded(tmp_path / "photo.png", 40, 30)


def uploaded(path: Path, width: int = 0, height: int = 0) -> dict:
    """An image as the tray holds it, drawn where a size is given."""
    if width:
        Image.linear_gradient("L").resize((width, height)).save(path)
    return {"image": handle_file(str(path)), "caption": None}


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    return file.getvalue()


def _texts(messages: list[dict]) -> list[str]:
    """What a conversation shows in words, in the order of its messages."""
    parts = [part for message in messages for part in message["content"]]
    return [html.unescape(part["text"]) for part in parts if part["type"] == "text"]


def _images(messages: list[dict]) -> list[str]:
    """Files of the images that a conversation shows."""
    parts = [part for message in messages for part in message["content"]]
    return [part["file"] for part in parts if part["type"] == "file"]


def _sentence(notice: dict) -> str:
    """What the notice says, or "" when it is hidden."""
    assert notice["visible"] == bool(notice["value"])
    return html.unescape(re.sub(r"</?p[^>]*>", "", notice["value"]))


def _post(address: str, *headers: tuple[str, str], endpoint: str = "ask", text: str = "What?", **image):
    """Name an image without uploading it."""
    tray = [{"image": {"meta": {"_type": "gradio.FileData"}, **image}, "caption": None}]
    content = json.dumps({"data": [tray, text, "en", *PUBLISHED]})
    headers = headers or (("content-type", "application/json"),)
    return httpx.post(f"{address}gradio_api/call/{endpoint}", content=content, headers=headers, timeout=60)


def _upload(address: str, *contents: bytes) -> list[str]:
    files = [("files", (f"{number}.png", content)) for number, content in enumerate(contents)]
    return httpx.post(f"{address}gradio_api/upload", files=files).json()


def _events(address: str, started: httpx.Response, endpoint: str = "ask") -> str:
    """All events of a call, after its end."""
    return httpx.get(f"{address}gradio_api/call/{endpoint}/{started.json()['event_id']}", timeout=60).text


def _wait_for(happened, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _stored() -> set[Path]:
    """Files of the running demo."""
    return {path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()}


def test_a_question_is_answered_piece_by_piece_and_put_into_the_conversation(client, answerer, photo):
    answerer.pause = 0.08
    job = client.submit([photo], "What does the sign say?", api_name="/ask")
    shown = [(_texts(messages)[-1], question, tray) for messages, _, question, tray in job]
    assert shown[0] == ("…", "", [])
    texts = [text for text, _, _ in shown[1:]]
    assert texts[-1] == "On 40×30: What does the sign say?"
    assert len(set(texts)) > 2
    assert all(texts[-1].startswith(text) for text in texts if text != "…")

    messages, notice, *_ = client.predict([], "  And the price?\n", api_name="/ask")
    assert _texts(messages)[2:] == ["And the price?", "On 40×30 after 1: And the price?"]
    assert _sentence(notice) == ""
    assert len(_images(messages)) == 1


def test_an_unfinished_box_is_not_shown_while_it_is_written(client, answerer, photo):
    answerer.script = "See <ref>the dog</ref><box>(100,100),(900, 900)</box> and < that <box> (1,2 </box> ends."
    answerer.pause = 0.06
    shown = [_texts(messages)[-1] for messages, *_ in client.submit([photo], "Where?", api_name="/ask")]
    # The last `<box>` is none, and so it is text in the end.
    assert shown[-1] == "See the dog and < that <box> (1,2 </box> ends."
    assert all(text == "…" or shown[-1].startswith(text.strip()) for text in shown)
    assert not any("<ref" in text or "(100" in text for text in shown)


def test_several_images_go_with_one_question_and_more_with_the_next(client, photo, tmp_path):
    second = uploaded(tmp_path / "second.png", 20, 10)
    messages, *_ = client.predict([photo, second], "Which is larger?", api_name="/ask")
    assert _texts(messages)[-1] == "On 40×30 and 20×10: Which is larger?"
    messages, *_ = client.predict([uploaded(tmp_path / "third.png", 5, 5)], "And this?", api_name="/ask")
    assert _texts(messages)[-1] == "On 40×30 and 20×10 and 5×5 after 1: And this?"
    nine = [uploaded(tmp_path / f"{number}.png", 5 + number, 5) for number in range(9)]
    _, notice, *_ = client.predict(nine, "All?", api_name="/ask")
    assert _sentence(notice) == "There are 9 images, and up to 8 can go with one question. Remove some."


def test_retry_asks_the_same_once_more_with_the_settings_of_now(client, answerer, photo):
    assert _sentence(client.predict(api_name="/retry")[1]) == ENGLISH["nothing_to_repeat"]
    answerer.script = ["one", "two"]
    client.predict([photo], "What?", api_name="/ask")
    messages, *_ = client.predict("en", 0.5, 0.9, 7, *PUBLISHED[3:], api_name="/retry")
    assert _texts(messages) == ["What?", "two"]
    assert len(_images(messages)) == 1
    first, again = answerer.decodings
    assert (first.temperature, first.top_p, first.max_new_tokens) == (0, 1, 512)
    assert (again.temperature, again.top_p, again.max_new_tokens, again.seed) == (0.5, 0.9, 7, 0)


def test_a_description_is_asked_as_trained_and_sampled_as_set(client, answerer, photo):
    messages, *_ = client.predict([photo], api_name="/describe")
    assert _texts(messages)[0] == "Generate the detailed caption in English:"
    # With the spaces of training; what is no prompt by itself is put into the prompt of questions by the model's side.
    assert answerer.asked == [" Generate the detailed caption in English: "]
    sampled = answerer.decodings[-1]
    assert (sampled.temperature, sampled.max_new_tokens, sampled.seed) == (0.7, 250, 0)
    client.predict([], "Describe.", "en", *PUBLISHED[:6], None, api_name="/describe")
    assert answerer.asked[-1] == "Describe."
    assert answerer.decodings[-1].seed is None
    for place, value, sentence in (
        (6, -1, "Seed must be a whole number from 0 to 4,294,967,295."),
        (6, 1.7, "Seed must be a whole number from 0 to 4,294,967,295."),
        (3, 3, "Temperature must be a number from 0 to 2."),
    ):
        settings = [*PUBLISHED[:place], value, *PUBLISHED[place + 1 :]]
        assert _sentence(client.predict([], "Describe.", "en", *settings, api_name="/describe")[1]) == sentence


def test_what_users_and_model_write_is_shown_to_the_letter(client, answerer, address, photo):
    answerer.script = HOSTILE
    messages, *_ = client.predict([photo], HOSTILE, api_name="/ask")
    raw = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    assert not any(character in text for text in raw for character in "<>")
    assert _texts(messages) == [HOSTILE, HOSTILE]
    assert answerer.asked == [HOSTILE]
    (path,) = _upload(address, b"no picture")
    *_, result = re.findall(
        "^data: (.*)$", _events(address, _post(address, path=path, orig_name=HOSTILE)), re.MULTILINE
    )
    _, _, notice, *_ = json.loads(result)
    inside = re.sub(r"</?p[^>]*>", "", notice["value"])
    assert not any(character in inside for character in "<>{}$")
    assert _sentence(notice).startswith(f"This image cannot be used: {HOSTILE} is not an image")


def test_half_a_character_is_a_sentence_and_a_question_mark_in_a_name(address, answerer):
    (path,) = _upload(address, _png())
    for endpoint in ("ask", "describe"):
        started = _post(address, endpoint=endpoint, text="a\ud800b", path=path)
        assert "half of a character" in _events(address, started, endpoint)
    assert answerer.asked == []
    assert "event: complete" in _events(address, _post(address, path=path, orig_name="a\ud800.png"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"hello", "is not an image that can be read"),
        (b"%PDF-1.7", "is a PDF"),
        (b"", "is empty."),
        ((3001, 1000), "has 3,001,000 pixels (3001 × 1000), more than the 3,000,"),
    ],
)
def test_a_bad_image_is_a_sentence_in_the_page(client, answerer, tmp_path, content, sentence):
    path = tmp_path / "upload.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.new("1", content).save(path)
    messages, notice, *_ = client.predict([uploaded(path)], "What?", api_name="/ask")
    assert _sentence(notice).startswith(f"This image cannot be used: upload.png {sentence}")
    assert messages == answerer.asked == []


def test_a_missing_image_or_question_is_a_sentence_in_either_language(client, answerer, photo):
    for tray, question, language, texts, key in (
        ([], "What?", "en", ENGLISH, "no_image"),
        ([photo], " \n", "en-GB", ENGLISH, "no_question"),
        ([], "What?", "zh-CN", CHINESE, "no_image"),
    ):
        assert _sentence(client.predict(tray, question, language, api_name="/ask")[1]) == texts[key]
    assert _sentence(client.predict([], " ", api_name="/describe")[1]) == ENGLISH["no_prompt"]
    long = _sentence(client.predict([photo], "x" * 4001, api_name="/ask")[1])
    assert long == "The question has 4,001 characters, more than the 4,000 allowed. Shorten it."
    assert answerer.asked == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("the prompt is too long"), "The model cannot take this: the prompt is too long."),
        (TimeoutError("nothing for 600 seconds"), "The model took too long and was stopped: nothing for 600 seconds."),
        (MemoryError("20 GiB"), ENGLISH["out_of_memory"]),
    ],
)
def test_what_the_model_cannot_do_is_a_sentence_and_the_demo_lives_on(client, answerer, photo, error, sentence):
    answerer.script = error
    messages, notice, *_ = client.predict([photo], "What?", api_name="/ask")
    assert _sentence(notice) == sentence
    assert _texts(messages) == ["What?", "Well,"]
    answerer.script = None
    assert _texts(client.predict([], "Again?", api_name="/ask")[0])[2:] == ["Again?", "On 40×30 after 1: Again?"]


def test_a_question_that_came_to_nothing_goes_back_into_the_box_with_its_images(client, answerer, photo, monkeypatch):
    def refuse(*_):
        raise ValueError("the prompt is 9,000 tokens long")

    monkeypatch.setattr(answerer, "chat", refuse)
    messages, notice, question, tray = client.predict([photo], "What?", api_name="/ask")
    assert (messages, question, len(tray)) == ([], "What?", 1)
    assert "9,000 tokens" in _sentence(notice)


def test_a_retry_that_comes_to_nothing_leaves_the_answer_there(client, answerer, photo, monkeypatch):
    before, *_ = client.predict([photo], "What?", api_name="/ask")
    with monkeypatch.context() as patched:
        patched.setattr(answerer, "chat", lambda *_: (_ for _ in ()).throw(ValueError("too long")))
        messages, notice, *_ = client.predict("en", *PUBLISHED, api_name="/retry")
    assert (_texts(messages), _sentence(notice)) == (_texts(before), "The model cannot take this: too long.")
    assert _texts(client.predict([], "And?", api_name="/ask")[0])[:2] == _texts(before)


def test_too_little_memory_for_a_conversation_asks_the_last_question_alone(client, answerer, photo):
    client.predict([photo], "What?", api_name="/ask")
    answerer.script = [MemoryError("20 GiB"), "A short one."]
    messages, notice, *_ = client.predict([], "And?", "en", 0, 1, 512, api_name="/ask")
    assert _texts(messages)[2:] == ["And?", "A short one."]
    assert _sentence(notice) == ENGLISH["reduced"].format(limit=128)
    assert (answerer.told, answerer.decodings[-1].max_new_tokens) == ([], 128)


def test_boxes_of_an_answer_are_drawn_on_the_image_and_not_read_out(client, answerer, photo):
    answerer.script = "Here: <ref>the dog</ref><box>(100,100),(900,900)</box>."
    messages, *_ = client.predict([photo], "Where is the dog?", api_name="/ask")
    assert _texts(messages)[-1] == "Here: the dog."
    asked, drawn = _images(messages)
    with Image.open(asked) as before, Image.open(drawn) as after:
        assert before.size == after.size == (40, 30)
        assert before.convert("RGB").tobytes() != after.convert("RGB").tobytes()


def test_what_the_model_sees_is_drawn_and_counted(client, answerer, photo):
    shown, counts = client.predict([photo], api_name="/views")
    assert re.findall("<figcaption>(.*?)</figcaption>", shown) == ["photo.png, 40×30 pixels"]
    assert "4 windows of 28×28 pixels; 5 views in all become 20 tokens" in counts
    shown, counts = client.predict(api_name="/heat")
    assert (shown, html.unescape(counts)) == ("", f"<p>{ENGLISH['no_heat']}</p>")
    client.predict([photo], "What?", api_name="/ask")
    shown, counts = client.predict(api_name="/heat")
    assert shown.count("<figure>") == 3
    assert "25% of its attention" in shown
    assert "a prompt of 17 tokens, an answer of 3, confidence 0.50" in counts
    image = httpx.get(client.src + re.search(r'src="([^"]+)"', shown)[1])
    assert Image.open(io.BytesIO(image.content)).size == (40, 30)


def test_people_at_once_are_answered_together_and_do_not_mix(answerer, address, tmp_path):
    answerer.held = threading.Event()
    conversations: dict[int, list[str]] = {}

    def person(number: int) -> None:
        client = Client(address, verbose=False)
        own = uploaded(tmp_path / f"{number}.png", 10 + number, 20)
        for turn in range(2):
            messages, *_ = client.predict([] if turn else [own], f"question {turn} of {number}", api_name="/ask")
        conversations[number] = _texts(messages)[1::2]

    people = [threading.Thread(target=person, args=(number,)) for number in range(4)]
    for thread in people:
        thread.start()
    _wait_for(lambda: answerer.running == 4)
    answerer.held.set()
    for thread in people:
        thread.join(120)
    assert conversations == {
        number: [f"On {10 + number}×20: question 0 of {number}", f"On {10 + number}×20 after 1: question 1 of {number}"]
        for number in range(4)
    }


def test_an_asker_who_goes_away_stops_the_model(client, answerer, photo):
    answerer.pause = 0.05
    answerer.script = "word " * 2000
    job = client.submit([photo], "What?", api_name="/ask")
    _wait_for(lambda: len(job.outputs()) > 2)
    job.cancel()
    assert answerer.cut_short.wait(60)  # the answer would go on for longer
    assert answerer.running == 0


@pytest.mark.slow
def test_the_line_is_bounded():
    answerer = ScriptedAnswerer()
    answerer.held = threading.Event()
    with scripted_demo(answerer, answers_at_once=1) as address:
        first, *paths = _upload(address, *[_png() + bytes(number) for number in range(LONGEST_LINE + 2)])
        started = [_post(address, path=first)]
        _wait_for(lambda: answerer.running == 1)
        others = [_post(address, path=path) for path in paths]
        assert [answer.status_code for answer in others] == [200] * LONGEST_LINE + [503]
        assert "full" in others[-1].text.lower()
        answerer.held.set()
        assert all("event: complete" in _events(address, call) for call in [*started, *others[:-1]])
    assert len(answerer.asked) == 1 + LONGEST_LINE
    assert answerer.most_running == 1


def test_the_demo_of_this_machine_answers_to_no_other_name_and_tells_no_path(address):
    for name, status in (("127.0.0.1", 200), ("localhost:8000", 200), ("evil.example", 403)):
        assert httpx.get(address, headers={"Host": name}).status_code == status, name
    config = httpx.get(f"{address}config").text
    assert str(PROJECT) not in config
    assert examples()[0][1] in config


def test_nobody_can_name_a_file_of_the_server_or_of_somebody_else(client, answerer, address, photo):
    secret = PROJECT / "tests/golden/images/receipt.png"
    assert "event: error" in _events(address, _post(address, path=str(secret)))
    assert httpx.get(f"{address}gradio_api/file={secret}").status_code in (403, 404)
    messages, *_ = client.predict([photo], "Mine?", api_name="/ask")
    name = _images(messages)[0].rsplit("/", 1)[-1]
    assert re.fullmatch(r"[0-9a-f]{24}-\d+\.png", name)  # 96 random bits
    guessed = Path(os.environ["GRADIO_TEMP_DIR"]) / "images" / "0-2.png"
    assert "is no longer on the server" in _events(address, _post(address, path=str(guessed)))
    assert answerer.asked == ["Mine?"]


@pytest.mark.parametrize("path", ["https://example.com/a.png", " FILE:///etc/passwd"])
def test_nobody_can_make_the_server_fetch_an_address(answerer, address, path):
    # The server reads a body by the first of two kinds; a form after JSON must not pass for an upload.
    for kinds in ((), ("application/json", "multipart/form-data; boundary=x"), ("multipart/form-data",)):
        refused = _post(address, *[("content-type", kind) for kind in kinds], path=path)
        assert refused.status_code == 400
        assert refused.json() == {"detail": "images are uploaded here, not fetched from an address"}
    assert answerer.asked == []


def test_what_is_over_a_limit_is_not_taken(answerer, address):
    stored = _stored()
    large = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.png", b"x" * (LIMITS.max_bytes + 1))})
    assert large.status_code == 413
    assert _stored() <= stored  # images of earlier tests may go meanwhile
    # Nor is a body that only names images ever held in memory beyond its own limit.
    assert _post(address, path="x" * MAX_BODY_BYTES).status_code == 413


def test_uploads_lie_in_a_private_folder_grow_no_older_than_an_hour_and_end_with_the_demo(photo):
    from gradio.route_utils import delete_files_created_by_app

    before, models = os.environ.get("GRADIO_TEMP_DIR"), models_of(ScriptedAnswerer())
    with running_demo(models, "127.0.0.1", free_port()) as app:
        models.open()
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o077 == 0
        of_the_page = _stored()
        client = Client(app.local_url, verbose=False, download_files=False)
        client.predict([photo], "What?", api_name="/ask")
        assert sorted(path.suffix for path in _stored() - of_the_page) == [".original", ".png", ".png"]
        assert app.delete_cache == (60, 3600)
        delete_files_created_by_app(app, age=0)  # what gradio does every minute, with an hour
        assert _stored() == of_the_page
        notice = client.predict([], "Still there?", api_name="/ask")[1]
        assert _sentence(notice) == ENGLISH["gone_image"]
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


def test_two_models_answer_side_by_side_each_with_its_own_conversation(photo):
    first, second = ScriptedAnswerer("A"), ScriptedAnswerer("B", grid=(1, 2))
    first.script, second.script = ["left", "left again"], ["right", "right again"]
    with scripted_demo(first, second) as address:
        client = Client(address, verbose=False)
        left, right, *_ = client.predict([photo], "What?", api_name="/ask")
        assert (_texts(left), _texts(right)) == (["What?", "left"], ["What?", "right"])
        left, right, *_ = client.predict([], "More?", api_name="/ask")
        assert (_texts(left)[-1], _texts(right)[-1]) == ("left again", "right again")
        assert (first.told, second.told) == (["left"], ["right"])
        shown, counts = client.predict(api_name="/views")
        assert shown.count("<figure>") == 2
        assert "A: Each image" in counts
        assert "2 windows" in counts
        first.script, second.script = "left still", [ValueError("too long for B"), "never"]
        left, right, notice, *_ = client.predict([], "Last?", api_name="/ask")
        assert _texts(left)[-1] == "left still"
        assert _sentence(notice) == "B: The model cannot take this: too long for B."


def test_a_question_waits_for_a_model_that_is_being_opened(photo):
    opened = threading.Event()
    with scripted_demo(models_of(ScriptedAnswerer("slow"), opened=opened)) as address:
        client = Client(address, verbose=False)
        assert "Opening slow (model 1 of 1)" in client.predict([photo], api_name="/views")[1]
        job = client.submit([photo], "What?", api_name="/ask")
        _wait_for(lambda: any("Opening slow" in str(output[1]) for output in job.outputs()))
        opened.set()
        messages, notice, *_ = job.result(60)
        assert _texts(messages)[-1] == "On 40×30: What?"
        assert _sentence(notice) == ""


def test_a_model_that_cannot_be_opened_is_a_sentence(photo):
    def fail():
        raise ValueError("its weights are cut off")

    with scripted_demo(Models([Choice("broken", LIMITS, fail)])) as address:
        messages, notice, question, _ = Client(address, verbose=False).predict([photo], "What?", api_name="/ask")
        assert _sentence(notice) == "The model could not be opened: its weights are cut off."
        assert (messages, question) == ([], "What?")


def test_only_those_with_a_password_come_in(photo):
    with scripted_demo(ScriptedAnswerer(), people=[("ada", "secret")]) as address:
        with pytest.raises(Exception, match=r"(?i)auth|credentials|401|login"):
            Client(address, verbose=False)
        assert httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", _png())}).status_code == 401
        client = Client(address, verbose=False, auth=("ada", "secret"))
        assert _texts(client.predict([photo], "What?", api_name="/ask")[0])[-1] == "On 40×30: What?"
