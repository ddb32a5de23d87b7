"""Who else can answer: a file of predictions, or a server that speaks OpenAI's protocol."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from eval.backends import EchoBackend, OpenAIBackend, ReplayBackend, Request, message_content
from eval.questions import load_question_set
from eval.run import run
from eval.run_folder import incompleteness
from eval.tasks import PromptForm, select_tasks
from evaluate_vqa import device_of_process
from monkey.completions_client import ServerGone
from tests.test_evaluation import lines_of, own_task, program, refusal, row, run_one, settings, write_set

FORM = PromptForm("file", "<img></img> {question}")


@pytest.fixture
def sums(tmp_path) -> Path:
    return write_set(tmp_path / "data", [row(number) for number in range(6)])


def requests_of(path: Path) -> list[Request]:
    task = own_task(path)
    return [Request(task, question, FORM) for question in load_question_set(task).questions]


class TestReplay:
    def score(self, sums: Path, folder: Path, entries: list | str, name: str = "answers.json", **changes) -> dict:
        path = sums.parent / name
        text = entries if isinstance(entries, str) else json.dumps(entries)
        path.write_text(text, encoding="utf-8")
        return run_one(sums, folder, lambda: ReplayBackend(path, ["sums"]), **changes)

    def test_our_own_predictions_score_as_they_did(self, sums, tmp_path):
        more = write_set(tmp_path / "more", [row(number) for number in range(2)], "more.jsonl")
        tasks = select_tasks(f"{sums},{more}", "accuracy")
        first = run(tasks, settings(tmp_path / "run"), EchoBackend)
        again = run(tasks, settings(tmp_path / "again"), lambda: ReplayBackend(tmp_path / "run", ["sums", "more"]))
        assert all(one["complete"] for one in again)
        assert [one["scores"] for one in again] == [one["scores"] for one in first]
        one, other = (tmp_path / name / "sums" / "predictions.jsonl" for name in ("run", "again"))
        assert one.read_bytes() == other.read_bytes()

    @pytest.mark.parametrize("id_key", ["questionId", "image"])
    def test_ids_go_by_the_names_that_scripts_give_them(self, sums, tmp_path, id_key):
        entries = [{id_key: 100 + number, "answer": 2 * number} for number in reversed(range(6))]
        results = self.score(sums, tmp_path / "run", entries)
        assert results["complete"]
        assert results["scores"]["official"]["value"] == 100.0

    def test_answers_without_ids_are_taken_in_order_and_checked_by_their_references(self, sums, tmp_path):
        entries = [{"answer": "x", "annotation": [str(2 * number), f"it is {2 * number}"]} for number in range(6)]
        assert self.score(sums, tmp_path / "part", entries, limit=2)["complete"]
        results = self.score(sums, tmp_path / "run", [*entries, {"answer": "y"}])
        assert results["foreign"] == [f"{sums.parent / 'answers.json'}[6]"]
        with pytest.raises(ValueError, match=r"answers\.json\[0\]: its references are .* must be in the order of the"):
            self.score(sums, tmp_path / "other", entries[::-1])

    def test_dropped_doubled_and_foreign_answers_are_counted_and_named(self, sums, tmp_path):
        entries = [{"question_id": number, "answer": "x"} for number in (100, 101, 103, 103, 104, 999)]
        entries[1:1] = [{"question_id": 101, "answer": "y"}]
        results = self.score(sums, tmp_path / "run", entries)
        assert not results["complete"]
        assert (results["missing"], results["duplicate"], results["foreign"]) == ([102, 105], [101], ["999"])
        assert len(incompleteness(results)) == 3

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([{"question_id": 100}], r"answers.json[0]: there is no answer; it is called one of raw, answer"),
            (
                [{"question_id": 100, "answer": 3.5}],
                r"answers.json[0]: 'answer' must be a text, found float (3.5); write",
            ),
            ([{"question_id": 1, "answer": "x"}, {"answer": "x"}], r"answers.json[1]: some rows have an id and some"),
            (["x"], r"answers.json[0]: expected an object with an id and an answer, found str"),
            ("[{]", "answers.json"),
            (None, "answers.json: no such file or folder"),
        ],
    )
    def test_what_is_no_prediction_is_one_sentence_with_its_place(self, sums, tmp_path, capsys, entries, message):
        path = tmp_path / "answers.json"
        if entries is not None:
            path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        assert message in refusal(capsys, tmp_path / "result", sums, "--predictions", str(path), backend="replay")

    def test_a_file_is_for_one_task_and_a_folder_has_one_for_each(self, sums, tmp_path, capsys):
        assert "needs --predictions" in refusal(capsys, tmp_path / "result", sums, backend="replay")
        flags = ("--predictions", str(tmp_path))
        assert "has none of" in refusal(capsys, tmp_path / "result", sums, *flags, backend="replay")
        with pytest.raises(ValueError, match="is one file for 2 tasks; give a folder"):
            ReplayBackend(sums, ["a", "b"])


class Server:
    """A stub of a chat-completion server. `plan` lists what it does with each request; after its end it answers.

    A plan's entry is a status, or (status, headers, body), or 'slow'.
    """

    def __init__(self, plan=(), models=("tiny",), answer="a tree", finish="stop"):
        self.plan, self.models, self.answer, self.finish = list(plan), models, answer, finish
        self.seen: list[dict] = []
        self.headers: list[dict] = []
        self.busy = self.most_at_once = 0
        self.pause = 0.0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"data": [{"id": name} for name in outer.models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.seen.append(body)
                    outer.headers.append(self.headers)
                    step = outer.plan.pop(0) if outer.plan else 200
                    outer.busy += 1
                    outer.most_at_once = max(outer.most_at_once, outer.busy)
                time.sleep(3.0 if step == "slow" else outer.pause)
                with outer._lock:
                    outer.busy -= 1
                if step in (200, "slow"):
                    message = {"role": "assistant", "content": outer.answer}
                    choice = {"message": message, "finish_reason": outer.finish}
                    self.reply(200, {"choices": [choice], "usage": {"completion_tokens": 7}})
                else:
                    status, headers, content = step if isinstance(step, tuple) else (step, {}, {})
                    self.reply(status, content, headers)

            def reply(self, status, content, headers=None):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    for name, value in (headers or {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    # The client has gone, as it does after its timeout.
                    return

            def log_message(self, *_):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(*arguments, **settings) -> Server:
        servers.append(Server(*arguments, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def opened(server: Server, **settings) -> OpenAIBackend:
    return OpenAIBackend(server.url, **{"attempts": 3, **settings})


class TestServer:
    def test_it_is_sent_the_prompt_the_picture_and_the_limit(self, sums, tmp_path, serve):
        server = serve()
        results = run_one(sums, tmp_path / "run", lambda: opened(server), limit=1)
        assert results["complete"]
        (body,) = server.seen
        picture, text = body["messages"][0]["content"]
        assert text == {"type": "text", "text": " What is 0 plus 0? Answer: "}
        kind, _, content = picture["image_url"]["url"].partition(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(content) == (sums.parent / "images" / "0.png").read_bytes()
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 100, 0)
        (line,) = lines_of(tmp_path / "run" / "sums" / "predictions.jsonl")
        assert (line["raw"], line["tokens"], line["stop"]) == ("a tree", 7, "end")
        assert "Authorization" not in server.headers[0]
        server.finish = "length"
        assert run_one(sums, tmp_path / "run", lambda: opened(server))["cut_off_at_max_new_tokens"] == 5

    def test_formats_that_servers_do_not_read_are_sent_as_png(self, sums):
        path = sums.parent / "images" / "0.png"
        Image.new("RGB", (3, 2), "red").save(path, "TIFF")
        url = message_content(requests_of(sums)[0].turns.messages[0])[0]["image_url"]["url"]
        assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).format == "PNG"

    def test_several_requests_are_on_their_way_at_once_and_no_more(self, sums, tmp_path, serve):
        server = serve()
        server.pause = 0.05
        assert run_one(sums, tmp_path / "run", lambda: opened(server, concurrency=3), batch_size=1)["complete"]
        assert server.most_at_once == 3

    def test_a_busy_server_is_asked_again(self, sums, tmp_path, serve):
        server = serve(plan=[503, (429, {"Retry-After": "0"}, {}), 500])
        assert run_one(sums, tmp_path / "run", lambda: opened(server, attempts=4))["complete"]
        assert len(server.seen) == 9

    @pytest.mark.parametrize(
        ("plan", "requests", "reason"),
        [
            ([503] * 2, 7, "answers 503"),
            (
                [(503, {"X-Should-Retry": "false"}, {"error": {"message": "out of memory"}})],
                6,
                "answers 503: out of mem",
            ),
            (
                [(400, {}, {"error": {"message": "the picture\nis too large"}})],
                6,
                "answers 400: the picture is too large",
            ),
            ([(200, {}, b"<html>")], 6, "is not a chat completion"),
            (["slow"] * 2, 7, "no answer within 1 seconds, 2 times"),
        ],
        ids=["busy", "final", "unreadable", "html", "slow"],
    )
    def test_one_that_is_not_answered_fails_by_itself_with_the_reason(
        self, sums, tmp_path, serve, plan, requests, reason
    ):
        server = serve(plan=plan)
        backend = opened(server, concurrency=1, attempts=2, timeout=1.0)
        results = run_one(sums, tmp_path / "run", lambda: backend)
        assert (results["n"], len(results["failed"]), len(server.seen)) == (5, 1, requests)
        assert reason in results["failed"][0]["reason"]

    def test_a_picture_that_does_not_open_is_not_sent(self, sums, tmp_path, serve):
        (sums.parent / "images" / "1.png").write_text("no picture")
        server = serve()
        results = run_one(sums, tmp_path / "run", lambda: opened(server))
        assert (results["missing"], len(server.seen)) == ([101, 104], 4)
        assert "sums.jsonl:2: cannot identify image file" in incompleteness(results)[0]

    def test_a_refused_key_stops_the_run_and_appears_nowhere(self, sums, tmp_path, serve, monkeypatch, capsys):
        monkeypatch.setenv("MY_KEY", "sk-secret-words")
        said = {"error": {"message": "wrong key sk-secret-words"}}
        server = serve(plan=[200, (401, {}, said)] + [(401, {}, said)] * 9)
        flags = ("--base-url", server.url, "--api-key-variable", "MY_KEY", "--concurrency", "1", "--batch-size", "1")
        assert program(sums, tmp_path / "result", *flags, backend="openai") == 2
        error = capsys.readouterr().err
        assert "refuses with 401: wrong key …" in error
        assert server.headers[0]["Authorization"] == "Bearer sk-secret-words"
        kept = [path.read_text() for path in (tmp_path / "result").rglob("*") if path.is_file()]
        assert len(kept) == 1
        assert not any("sk-secret" in text for text in (*kept, error))

    def test_a_key_follows_no_redirection(self, sums, tmp_path, serve):
        other = serve()
        server = serve(plan=[(302, {"Location": f"{other.url}/chat/completions"}, {})] * 9)
        with pytest.raises(ServerGone, match="refuses with 302"):
            run_one(sums, tmp_path / "run", lambda: opened(server, api_key="secret"))
        assert other.seen == []

    def test_a_server_that_goes_away_stops_the_run_which_goes_on_later(self, sums, tmp_path, serve):
        server = serve()
        backend = opened(server, concurrency=1)

        class Leaving(OpenAIBackend):
            def __init__(self):
                self.__dict__ = dict(vars(backend))

            def generate_answers(self, batch):
                answers = super().generate_answers(batch)
                server.close()
                return answers

        with pytest.raises(ServerGone, match="nothing answers there"):
            run_one(sums, tmp_path / "run", Leaving, batch_size=2)
        kept = len(lines_of(tmp_path / "run" / "sums" / "journal.jsonl"))
        assert 2 <= kept < 6

    def test_an_address_without_its_end_is_told_so(self, sums, tmp_path, serve):
        server = serve(models=(), plan=[(404, {}, {"error": {"message": "no such path"}})])
        server.url = server.url.removesuffix("/v1")
        with pytest.raises(ValueError, match=r"lists no model; .*--served-model; most servers want --base-url to end"):
            opened(server)
        with pytest.raises(
            ServerGone, match=r"refuses with 404: no such path; most servers want --base-url to end in /v1"
        ):
            run_one(sums, tmp_path / "run", lambda: opened(server, model="tiny"))

    def test_the_model_is_the_only_one_listed_or_must_be_named(self, serve):
        assert opened(serve()).model == "tiny"
        server = serve(models=("one", "two"))
        with pytest.raises(ValueError, match=r"lists 2 models \(one, two\); name one as --served-model"):
            opened(server)
        assert opened(server, model="two").model == "two"

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ([], "--backend openai needs --base-url"),
            (["--base-url", "file:///etc/passwd"], "is not an http:// or https:// address"),
            (["--base-url", "http://me:secret@localhost/v1"], "--base-url must hold no name or password"),
            (["--base-url", "http://127.0.0.1:9/v1"], "--base-url http://127.0.0.1:9/v1: nothing answers there"),
            (
                ["--base-url", "http://127.0.0.1:9/v1", "--api-key-variable", "NOT_SET_HERE"],
                "--api-key-variable NOT_SET_HERE: there is no such environment variable",
            ),
        ],
    )
    def test_a_wrong_address_is_one_sentence_and_nothing_is_written(self, sums, tmp_path, capsys, flags, message):
        error = refusal(capsys, tmp_path / "result", sums, *flags, backend="openai")
        assert message in error
        assert "secret" not in error


def test_each_process_of_a_machine_gets_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert device_of_process("cuda", {"LOCAL_RANK": "6"}) == "cuda:2"
    assert device_of_process("cuda:1", {"LOCAL_RANK": "6"}) == "cuda:1"
    assert device_of_process("cpu", {"LOCAL_RANK": "6"}) == "cpu"
    assert device_of_process("cuda", {}) == "cuda"


def test_a_missing_client_names_the_extra_to_install(sums, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    assert program(sums, tmp_path / "result", "--base-url", "http://localhost:8000/v1", backend="openai") == 2
    assert "package openai, which is not installed: pip install 'monkey[client]'" in capsys.readouterr().err
