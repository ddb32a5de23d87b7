"""Descriptions by a server that speaks OpenAI's chat completions: a stub on loopback that misbehaves in every way."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from monkey.describe.endpoint import Endpoint, EndpointSettings
from monkey.describe.expert import Failure, Item
from monkey.describe.records import Caption, Filtered, FinishedRun, Summary
from tests.drawn import SAMPLES
from tests.test_describe_run import describe, lines, outputs_of, scripted

GOOD = "A red sign hangs from a rail. It is large."
KEY = "sk-secret-key"


def completion(text: str | None = GOOD, **usage: int) -> dict:
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": usage or {"prompt_tokens": 100, "completion_tokens": 10},
    }


class Server:
    """Does with each request what the next entry of `plan` says, then answers well.

    An entry is a completion or other JSON content, bytes, a status with headers, "slow", or "hang up".
    """

    def __init__(self, *plan):
        self.plan = list(plan)
        self.seen: list[dict] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.busy = self.most_at_once = 0
        self.pause = 0.0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.seen.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    outer.times.append(time.monotonic())
                    step = outer.plan.pop(0) if outer.plan else completion()
                    outer.busy += 1
                    outer.most_at_once = max(outer.most_at_once, outer.busy)
                time.sleep(1.0 if step == "slow" else outer.pause)
                with outer._lock:
                    outer.busy -= 1
                if step == "hang up":
                    self.connection.close()
                    return
                status, headers, content = step if isinstance(step, tuple) else (200, {}, step)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
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
def serve(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers = []

    def start(*plan) -> Server:
        servers.append(Server(*plan))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def settings(server: Server, **changes) -> EndpointSettings:
    return EndpointSettings(base_url=server.url, model="tiny", **{"attempts": 3, "concurrency": 1, **changes})


def items(count: int = 1) -> list[Item]:
    results = {"caption": Caption("a shop sign"), "filters": Filtered(())}
    return [Item(f"{number:064x}", Path("x"), f"{number}.png", (), results) for number in range(count)]


class TestAnswers:
    def test_the_question_goes_with_model_key_and_limits(self, serve):
        server = serve()
        (found,) = Endpoint(settings(server, temperature=0.5, max_tokens=77))(items())
        assert found == Summary(GOOD, (), 1)
        (body,) = server.seen
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0.5, 77)
        (message,) = body["messages"]
        assert message["role"] == "user"
        assert '"a shop sign"' in message["content"]
        assert server.keys == [f"Bearer {KEY}"]

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_busy_server_is_asked_again(self, serve, status):
        server = serve((status, {}, {}), (status, {}, {}))
        assert Endpoint(settings(server))(items()) == [Summary(GOOD, (), 1)]
        assert len(server.seen) == 3

    def test_a_server_that_says_how_long_is_believed(self, serve):
        server = serve((429, {"Retry-After": "0.3"}, {}))
        Endpoint(settings(server))(items())
        assert 0.3 <= server.times[1] - server.times[0] < 20

    def test_a_server_that_stays_busy_fails_the_picture_alone(self, serve):
        server = serve(*[(503, {}, {"error": {"message": "too busy"}})] * 3)
        bad, good = Endpoint(settings(server))(items(2))
        assert bad == Failure(f"{server.url} answers 503: too busy")
        assert good == Summary(GOOD, (), 1)

    @pytest.mark.parametrize(
        "malformed",
        [
            b"<html>",
            b"",
            [],
            {"error": 1},
            {"choices": []},
            {"choices": [{"message": {}}]},
            completion(None),
            completion("  "),
        ],
        ids=str,
    )
    def test_an_answer_that_is_none_is_asked_for_again(self, serve, malformed):
        server = serve(malformed)
        assert Endpoint(settings(server))(items()) == [Summary(GOOD, (), 1)]
        assert len(server.seen) == 2

    def test_answers_that_stay_malformed_fail_the_picture_alone(self, serve):
        server = serve(b"<", b"<", b"<")
        bad, good = Endpoint(settings(server))(items(2))
        assert "3 answers were no chat completions" in bad.problem
        assert not bad.stops
        assert good == Summary(GOOD, (), 1)

    def test_a_late_answer_is_asked_for_again_and_then_given_up(self, serve):
        server = serve("slow")
        assert Endpoint(settings(server, timeout=0.3))(items()) == [Summary(GOOD, (), 1)]
        server = serve("slow", "slow", "slow")
        (bad,) = Endpoint(settings(server, timeout=0.3))(items())
        assert bad == Failure("no answer within 0.3 seconds, 3 times")

    def test_a_connection_that_breaks_is_made_again(self, serve):
        server = serve("hang up")
        assert Endpoint(settings(server))(items()) == [Summary(GOOD, (), 1)]

    def test_requests_run_side_by_side_up_to_the_limit(self, serve):
        server = serve()
        server.pause = 0.05
        Endpoint(settings(server, concurrency=4))(items(12))
        assert 1 < server.most_at_once <= 4

    def test_a_request_that_the_server_refuses_fails_alone(self, serve):
        server = serve((400, {}, {"error": {"message": "context too long"}}))
        bad, good = Endpoint(settings(server))(items(2))
        assert bad.problem.endswith("answers 400: context too long")
        assert good == Summary(GOOD, (), 1)


class TestChecks:
    def test_a_description_that_breaks_a_rule_is_asked_for_once_more_with_the_reason(self, serve):
        server = serve(completion("There are 3 signs."))
        assert Endpoint(settings(server))(items()) == [Summary(GOOD, (), 2)]
        first, second = server.seen
        assert second["messages"][:1] == first["messages"]
        assert second["messages"][1] == {"role": "assistant", "content": "There are 3 signs."}
        assert "it has digits" in second["messages"][2]["content"]

    def test_one_that_breaks_it_again_is_flagged(self, serve):
        server = serve(*[completion("There are 3 signs. Plan B.")] * 2)
        (found,) = Endpoint(settings(server))(items())
        assert found == Summary("There are 3 signs. Plan B.", ("it has digits", "it has the single letter 'B'"), 2)
        assert len(server.seen) == 2

    def test_the_better_of_two_flagged_ones_is_kept(self, serve):
        server = serve(completion("There are 3 signs."), completion("Plan B has 3 signs."))
        (found,) = Endpoint(settings(server))(items())
        assert found == Summary("There are 3 signs.", ("it has digits",), 2)

    def test_a_second_attempt_that_fails_leaves_the_first(self, serve):
        server = serve(completion("There are 3 signs."), b"<", b"<", b"<")
        (found,) = Endpoint(settings(server))(items())
        assert (found.text, found.problems) == ("There are 3 signs.", ("it has digits",))

    def test_only_what_broke_a_rule_is_asked_again(self, serve):
        server = serve(completion(), completion("No. 5."), completion())
        found = Endpoint(settings(server))(items(3))
        assert [one.attempts for one in found] == [1, 2, 1]
        assert len(server.seen) == 4


class TestCost:
    def test_tokens_of_every_answer_count_those_of_malformed_ones_too(self, serve):
        empty = completion(None, prompt_tokens=100, completion_tokens=1)
        server = serve(empty, completion("I see 2.", prompt_tokens=100, completion_tokens=5))
        expert = Endpoint(settings(server))
        expert(items())
        assert vars(expert.spent) == {"requests": 3, "prompt_tokens": 300, "completion_tokens": 16}

    def test_prices_make_costs_and_none_make_none(self, serve):
        server = serve()
        expert = Endpoint(settings(server, prompt_price=0.5, completion_price=2.0))
        expert(items(2))
        assert expert.spent.cost(expert.settings) == pytest.approx((200 * 0.5 + 20 * 2.0) / 1e6)
        assert expert.spent.cost(settings(server)) is None

    def test_a_server_that_counts_no_tokens_is_no_error(self, serve):
        server = serve({"choices": completion()["choices"]})
        expert = Endpoint(settings(server))
        assert expert(items()) == [Summary(GOOD, (), 1)]
        assert expert.spent.prompt_tokens == 0


class TestRun:
    def config(self, server: Server, **changes) -> dict:
        content = scripted()
        content["stages"]["summary"] = {
            "expert": "openai", "base_url": server.url, "model": "tiny", "attempts": 2,
            "concurrency": 1, "batch_size": 2, "prompt_price": 1.0, "completion_price": 1.0, **changes,
        }  # fmt: skip
        return content

    def test_a_whole_run_accounts_for_its_tokens_and_costs(self, serve, tmp_path, capsys):
        server = serve(completion("A sign from 1999."))
        assert describe(SAMPLES / "images", tmp_path / "run", self.config(server)) == 0
        entry = FinishedRun(tmp_path / "run").manifest["stages"]["summary"]
        assert (entry["requests"], entry["prompt_tokens"], entry["completion_tokens"]) == (6, 600, 60)
        assert entry["cost"] == pytest.approx(660e-6)
        assert "summary: 6 requests, 600 + 60 tokens, cost 0.0007" in capsys.readouterr().out
        assert [row["attempts"] for row in lines(tmp_path / "run", "summary")].count(2) == 1

    def test_a_key_that_is_refused_on_the_way_stops_in_one_sentence_and_the_work_is_kept(self, serve, tmp_path, capsys):
        refusal = (401, {}, {"error": {"message": f"bad key {KEY}"}})
        server = serve(completion(), completion(), completion(), refusal)
        config = self.config(server)
        assert describe(SAMPLES / "images", tmp_path / "run", config) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "stages.summary: " in error
        assert "refuses with 401: bad key …" in error
        assert "what was finished is kept" in error
        # The third picture shared its batch with the one that was refused.
        assert describe(SAMPLES / "images", tmp_path / "run", config) == 0
        assert len(server.seen) == 4 + 2
        questions = [body["messages"][0]["content"] for body in server.seen]
        assert len(set(questions)) == 5
        for path in (tmp_path / "run").rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes()

    def test_no_key_left_waiting_requests_are_not_sent(self, serve):
        server = serve(*[(403, {}, {})] * 50)
        found = Endpoint(settings(server))(items(20))
        assert all(isinstance(one, Failure) and one.stops for one in found)
        assert len(server.seen) < 5

    def test_nothing_that_answers_is_one_sentence(self, serve, tmp_path, capsys):
        server = serve()
        server.close()
        assert describe(SAMPLES / "images", tmp_path / "run", self.config(server)) == 2
        error = capsys.readouterr().err
        assert "nothing answers there" in error
        assert error.count("\n") == 1

    def test_a_picture_that_failed_is_listed_and_the_next_run_asks_for_it_alone(self, serve, tmp_path):
        server = serve(b"<", b"<")
        config = self.config(server)
        assert describe(SAMPLES / "images", tmp_path / "run", config) == 1
        (problem,) = FinishedRun(tmp_path / "run").problems()
        assert (problem["stage"], problem["file"]) == ("summary", "heldout/000000.jpg")
        asked = len(server.seen)
        assert describe(SAMPLES / "images", tmp_path / "run", config) == 0
        assert len(server.seen) == asked + 1
        first = outputs_of(tmp_path / "run")
        assert describe(SAMPLES / "images", tmp_path / "straight", config) == 0
        assert outputs_of(tmp_path / "straight") == first

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"base_url": "localhost:8000"}, "base_url 'localhost:8000' is not an http:// or https:// address"),
            ({"base_url": "http://me:pw@localhost/v1"}, "base_url must hold no name or password"),
            ({"model": ""}, "stages.summary.model is missing"),
            ({"concurrency": 0}, "stages.summary.concurrency is 0"),
        ],
    )
    def test_settings_that_cannot_be_followed(self, serve, tmp_path, capsys, changes, message):
        assert describe(SAMPLES / "images", tmp_path / "run", self.config(serve(), **changes)) == 2
        assert message in capsys.readouterr().err
