"""What the server takes on and from whom: keys, sizes, a queue, seconds, and an end that cuts no answer off."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import openai
import pytest

from monkey.serving import access
from monkey.serving import server as program
from monkey.serving.fetching import Fetcher
from monkey.serving.protocol import parse_request
from monkey.serving.server import Limits
from monkey.serving.session import Answerer
from tests.running_server import asking, connected, held, image_part, received, running, sent, talkative_model, until
from tests.small_processor import small_processor

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


@pytest.fixture(scope="module")
def model():
    return talkative_model()


@pytest.fixture
def serving(model):
    """Opens a server with settings of its own; max_rows is the answerer's."""
    with ExitStack() as stack:

        def start(*settings, max_rows: int = 8, name: str = "tiny", **more):
            answerer = stack.enter_context(Answerer(model, small_processor(), name=name, max_rows=max_rows))
            return stack.enter_context(running(answerer, *settings, **more))

        yield start


def get(server, path: str, **headers) -> tuple[int, dict]:
    with server.client() as client:
        reply = client._client.get(server.url.replace("/v1", path), headers=headers)
    return reply.status_code, reply.json() if "json" in reply.headers["content-type"] else {}


def error_of(said: bytes) -> dict:
    return json.loads(said)["error"]


class TestCallers:
    def test_each_key_opens_another_opens_nothing_and_without_one_only_health_answers(self, serving, monkeypatch):
        server = serving(keys=("first", "second-key"))
        for key in ("third", "firs", "first2", "first,second-key", "FIRST"):
            with server.client(key) as client, pytest.raises(openai.AuthenticationError) as caught:
                client.chat.completions.create(**HELLO)
            assert caught.value.code == "invalid_api_key"
        assert server.engine.stats.requests == 0
        wanted = {"/health": 200, "//health": 200, "/metrics": 401, "/v1/models": 401, "/nothing": 401}
        assert {path: get(server, path, Authorization="")[0] for path in wanted} == wanted
        assert get(server, "/metrics", Authorization="Basic first")[0] == 401
        assert get(server, "/metrics", Authorization="bearer first")[0] == 200
        with server.client("second-key") as client:
            assert client.chat.completions.create(**HELLO).choices[0].message.content
        # Every key is compared, and none by equality of texts.
        compared, original = [], access.hmac.compare_digest
        monkeypatch.setattr(access.hmac, "compare_digest", lambda *pair: compared.append(pair) or original(*pair))
        with server.client("first") as client:
            client.models.list()
        assert [len(one) for pair in compared for one in pair] == [32] * 4

    def test_a_page_whose_name_points_here_is_refused_unless_bound_wider_or_with_a_key(self, serving):
        server = serving()
        for host in ("evil.example", "127.0.0.1.evil.example:80", "[::2]:80", "0.0.0.0"):
            status, told = get(server, "/v1/models", Host=host)
            assert (status, "127.0.0.1 or localhost" in told["error"]["message"]) == (403, True)
        for host in ("127.0.0.1", "LOCALHOST:8000", "[::1]:8000"):
            assert get(server, "/v1/models", Host=host)[0] == 200
        assert get(serving(is_loopback=False), "/v1/models", Host="models.example")[0] == 200
        with_key = serving(keys=("none",))
        assert get(with_key, "/v1/models", Host="models.example", Authorization="Bearer none")[0] == 200

    def test_what_a_page_can_send_unasked_is_refused(self, serving):
        server = serving()
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            status, _, said = received(sent(server, HELLO, head=f"Content-Type: {kind}\r\n"))
            assert (status, "application/json" in error_of(said)["message"]) == (415, True)
        assert server.engine.stats.requests == 0


class TestPages:
    """Scripts of web pages of other origins."""

    ORIGIN = "http://localhost:3000"

    def asked(self, server, method: str, origin: str, **more):
        headers = {"Origin": origin, "Authorization": "Bearer none", **more}
        with server.client() as client:
            return client._client.request(method, f"{server.url}/chat/completions", json=HELLO, headers=headers)

    @pytest.mark.parametrize("keys", [(), ("none",)], ids=["open", "with a key"])
    def test_a_page_that_was_named_may_ask_and_no_other(self, serving, keys):
        server = serving(keys=keys, origins=[self.ORIGIN])
        wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-other"}
        leave = self.asked(server, "OPTIONS", self.ORIGIN, Authorization="", **wanted)
        assert leave.status_code == 200
        assert leave.headers["access-control-allow-origin"] == self.ORIGIN
        assert {"authorization", "x-other"} <= set(leave.headers["access-control-allow-headers"].lower().split(","))
        told = self.asked(server, "POST", self.ORIGIN)
        assert (told.status_code, told.headers["access-control-allow-origin"]) == (200, self.ORIGIN)
        for origin in ("http://localhost:3001", "https://localhost:3000", "null"):
            refused = self.asked(server, "OPTIONS", origin, **wanted)
            assert (refused.status_code, error_of(refused.content)["code"]) == (400, "cors")
            said = error_of(refused.content)["message"]
            assert f"scripts of '{origin}' may not send 'POST' here; those of pages that --cors-origins names" in said
            assert "access-control-allow-origin" not in refused.headers
            assert "access-control-allow-origin" not in self.asked(server, "POST", origin).headers

    def test_a_refusal_is_shown_to_the_page_that_may_ask_and_none_may_unless_named(self, serving):
        told = self.asked(serving(keys=("other",), origins=[self.ORIGIN]), "POST", self.ORIGIN)
        assert (told.status_code, told.headers["access-control-allow-origin"]) == (401, self.ORIGIN)
        told = self.asked(serving(), "OPTIONS", self.ORIGIN, **{"Access-Control-Request-Method": "POST"})
        assert (told.status_code, "--cors-origins" in told.json()["error"]["message"]) == (405, True)
        assert "access-control-allow-origin" not in told.headers


class TestBodies:
    def test_a_body_over_the_limit_is_refused_and_its_sender_told(self, serving):
        server = serving(Limits(body_bytes=2000))
        assert server.text("Hello")
        with pytest.raises(openai.APIStatusError, match="2,000 bytes allowed") as caught:
            server.ask(asking("x" * 3000))
        assert caught.value.status_code == 413
        status, _, said = received(sent(server, b"x" * 100_000, length=10**9))
        assert (status, error_of(said)["code"]) == (413, "body_too_large")

    def test_a_body_that_does_not_arrive_is_given_up(self, serving):
        server = serving(Limits(body_seconds=0.2))
        status, _, said = received(sent(server, b"{", length=100))
        assert (status, "did not arrive within 0.2 seconds" in error_of(said)["message"]) == (408, True)
        sent(server, b"{", length=100).close()
        until(lambda: server.api.admission.in_flight == 0)

    @pytest.mark.parametrize(
        ("status", "settings", "head"),
        [(401, {"keys": ("k",)}, ""), (415, {}, "Content-Type: text/plain\r\n"), (413, {}, ""), (429, {}, "")],
        ids=str,
    )
    def test_a_refusal_is_read_by_whoever_is_still_sending(self, serving, monkeypatch, status, settings, head):
        """A connection that is closed while bytes of its request are unread is reset."""
        server = serving(Limits(body_bytes=2_000_000), **settings)
        monkeypatch.setattr(server.api.admission, "capacity", 0 if status == 429 else 1)
        assert received(sent(server, b" " * 4_000_000, head=head))[0] == status

    def test_a_refused_body_that_is_not_sent_is_not_waited_for(self, serving):
        server = serving(Limits(body_seconds=0.2), keys=("k",))
        assert received(sent(server, b"", head="Expect: 100-continue\r\n", length=10**6))[0] == 401
        assert received(sent(server, b"{", length=100))[0] == 401


class TestLingering:
    """No caller holds a place or a connection past its time, whatever it reads or sends."""

    NAME = "n" * 60_000
    """Stands in every event, so that a few of them fill what the system keeps for a reader."""

    def stuck(self, server):
        body = {**HELLO, "model": self.NAME, "max_tokens": 480, "stream": True}
        return sent(server, body, room=1024)

    @pytest.mark.parametrize("limits", [Limits(seconds=3.0), Limits(send_seconds=0.3)], ids=["in all", "for a piece"])
    def test_a_place_is_free_after_its_time_when_nobody_reads_the_stream(self, serving, monkeypatch, limits):
        monkeypatch.setattr(program, "KEEP_ALIVE", 0.3)
        server = serving(limits, name=self.NAME)
        with self.stuck(server):
            until(lambda: server.engine.stats.requests == 1 and server.api.admission.in_flight == 0)
            until(lambda: server.connections() == 0)
        assert b'monkey_requests_total{outcome="left"} 1.0' in server.api.metrics.text()

    def test_the_server_ends_though_a_stream_is_not_read_and_a_body_not_sent(self, serving, monkeypatch):
        monkeypatch.setattr(program, "GRACE", 0.3)
        server = serving(name=self.NAME)
        with self.stuck(server), sent(server, b"{", length=100):
            until(lambda: server.engine.stats.new_tokens > 400 and server.api.admission.in_flight == 2)
            server.interrupt()
            server.interrupt()
            until(lambda: server.connections() == 0)

    def test_a_connection_without_a_request_is_closed_after_its_time(self, serving, monkeypatch):
        assert program.KEEP_ALIVE > 60  # what clients and proxies keep theirs for
        monkeypatch.setattr(program, "KEEP_ALIVE", 1)
        server, health = serving(), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        told = (b"", half, health, health + b"GET /hea", health * 3)
        with ExitStack() as stack:
            connections = [stack.enter_context(connected(server)) for _ in told]
            for connection, words in zip(connections, told, strict=True):
                connection.sendall(words)
            said = [b"".join(iter(lambda one=one: one.recv(65536), b"")) for one in connections]
        assert [answer.count(b'"status":"ok"') for answer in said] == [0, 0, 1, 1, 3]

    def test_a_head_that_trickles_in_is_not_waited_for(self, serving, monkeypatch):
        monkeypatch.setattr(program, "KEEP_ALIVE", 0.5)
        server = serving()
        with connected(server) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
            until(lambda: server.connections() == 1)

            def is_closed() -> bool:
                with suppress(ConnectionError):
                    connection.sendall(b"x")
                return server.connections() == 0

            until(is_closed)


def test_whom_there_is_no_room_for_is_told_when_to_come_again_and_gets_its_answer_then(serving):
    server = serving(Limits(queue=1), max_rows=1)
    with ThreadPoolExecutor(2) as threads, held(server.engine) as gate, server.client() as client:
        answers = [threads.submit(server.text, "Hello") for _ in range(2)]
        until(lambda: server.engine.running + server.engine.waiting == 2)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**HELLO)
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        gate.open()
        again = client.with_options(max_retries=5).chat.completions.create(**HELLO)
        assert {answer.result() for answer in answers} == {again.choices[0].message.content}


class TestTime:
    def test_an_answer_that_takes_too_long_is_stopped(self, serving):
        server = serving(Limits(seconds=0.3))
        with held(server.engine):
            with pytest.raises(openai.InternalServerError, match=r"longer than the 0\.3 seconds allowed") as caught:
                server.ask("Hello")
            assert caught.value.status_code == 504
            assert caught.value.response.headers["x-should-retry"] == "false"
        until(lambda: server.engine.running == 0)

    def test_a_stream_that_takes_too_long_ends_with_the_error(self, serving):
        server = serving(Limits(seconds=1.0))
        with held(server.engine) as gate:
            first = gate.wait
            gate.open()

            def slow() -> None:
                first()
                until(lambda: len(gate.rows) < 3 or not server.api.admission.in_flight)

            gate.wait = slow
            status, _, said = received(sent(server, {**HELLO, "max_tokens": 400, "stream": True}))
        assert status == 200
        *chunks, last = [json.loads(line[6:]) for line in said.decode().splitlines() if line.startswith("data: {")]
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert last["error"]["code"] == "timeout"
        assert b"[DONE]" not in said
        until(lambda: server.engine.running == 0)
        assert b'monkey_requests_total{outcome="504"} 1.0' in server.api.metrics.text()


class TestEnding:
    def test_running_answers_finish_and_new_ones_are_refused(self, serving):
        server = serving()
        with ThreadPoolExecutor(2) as threads, held(server.engine) as gate:
            whole = threads.submit(server.text, "Hello")
            stream = threads.submit(server.ask, "Hello", stream=True)
            until(lambda: server.engine.running + server.engine.waiting == 2)
            server.interrupt()
            with pytest.raises(openai.InternalServerError) as caught:
                server.ask("Hello")
            assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
            assert int(caught.value.response.headers["retry-after"]) > 0
            assert get(server, "/health") == (503, {"status": "ending"})
            gate.open()
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream.result()]
            assert "".join(pieces) == whole.result() != ""

    def test_stopping_tells_everyone_who_still_waits(self, serving):
        server = serving()
        with ThreadPoolExecutor(2) as threads, held(server.engine):
            answers = [threads.submit(server.ask, "Hello", stream=stream) for stream in (False, True)]
            until(lambda: server.engine.running + server.engine.waiting == 2)
            server.interrupt()
            server.interrupt()
            for answer in answers:
                with pytest.raises(openai.InternalServerError, match="the server ended before the answer did"):
                    answer.result()

    def test_stopping_waits_for_no_body_no_fetch_and_no_opening(self, serving, monkeypatch):
        open_now, asked = threading.Event(), []

        def opened_late(body, *limits):
            asked.append(body)
            return parse_request(body, *limits) if b"image_url" in body or open_now.wait(60) else None

        async def found_late(host, port):
            asked.append(host)
            await asyncio.sleep(60)

        monkeypatch.setattr(program, "parse_request", opened_late)
        server = serving(fetcher=Fetcher(["a.example"], 10**6, resolve=found_late), keys=("k",))
        key, image = "Authorization: Bearer k\r\n", image_part("http://a.example/a.png")
        waiting = [
            sent(server, b"{", head=key, length=100),
            sent(server, b"{", length=10**6),  # is refused, and read on for a second
            sent(server, {**HELLO, "messages": [{"role": "user", "content": [image]}]}, head=key),
            sent(server, HELLO, head=key),
        ]
        until(lambda: server.api.admission.in_flight == 3 and len(asked) == 3)
        begun = time.monotonic()
        server.interrupt()
        server.interrupt()
        answers = [received(connection) for connection in waiting]
        assert time.monotonic() - begun < program.GRACE / 2
        open_now.set()
        assert [status for status, *_ in answers] == [503, 401, 503, 503]
        assert all(b"shutting_down" in said for status, _, said in answers if status == 503)

    def test_answers_that_are_cut_off_are_not_taken_for_whole(self, serving):
        server = serving()
        with ThreadPoolExecutor(2) as threads, held(server.engine) as gate:
            answer = threads.submit(server.text, "Hello", max_tokens=400)
            until(lambda: server.engine.running == 1)
            closing = threads.submit(server.api.answerer.close)
            until(lambda: server.engine._is_closing)
            gate.open()
            closing.result()
            with pytest.raises(openai.InternalServerError) as caught:
                answer.result()
        assert caught.value.code == "shutting_down"
