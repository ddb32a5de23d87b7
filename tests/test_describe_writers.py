"""Who writes descriptions: a server that misbehaves in every way, a language model of this machine, and a rule."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from monkey.describe.experts import Failure, Item
from monkey.describe.findings import Candidate, Caption, Filtered, Summary
from monkey.describe.output import FinishedRun
from monkey.describe.writers import Endpoint, EndpointSettings, LocalModel, LocalSettings, Rules, RuleSettings
from tests.describe_models import write_causal
from tests.test_describe_run import IMAGES, describe, lines, outputs_of, refusal, scripted

GOOD = "A red sign hangs from a rail. It is large."
DIGITS = "There are 3 signs."
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
        self.at_work: list[int] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.answer(self)

            def log_message(self, *_):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            self.seen.append(body)
            self.keys.append(request.headers.get("Authorization"))
            self.times.append(time.monotonic())
            step = self.plan.pop(0) if self.plan else completion()
        if step == "slow":
            time.sleep(1.0)
        if step == "hang up":
            request.connection.close()
            return
        status, headers, content = step if isinstance(step, tuple) else (200, {}, step)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            request.send_response(status)
            for name, value in {**headers, "Content-Length": len(data)}.items():
                request.send_header(name, str(value))
            request.end_headers()
            request.wfile.write(data)
        except OSError:
            return  # the client has gone, as it does after its timeout

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


def endpoint(server: Server, **changes) -> Endpoint:
    return Endpoint(EndpointSettings(base_url=server.url, model="tiny", **{"attempts": 3, "concurrency": 1, **changes}))


def items(count: int = 1, caption: str = "a shop sign", *kept: Candidate) -> list[Item]:
    results = {"caption": Caption(caption), "filters": Filtered(kept)}
    return [Item(f"{number:064x}", Path("x"), f"{number}.png", (), results) for number in range(count)]


def test_the_question_goes_with_model_key_and_limits(serve):
    server = serve()
    assert endpoint(server, temperature=0.5, max_tokens=77)(items()) == [Summary(GOOD, (), 1)]
    (body,) = server.seen
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0.5, 77)
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert '"a shop sign"' in message["content"]
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    "bad",
    [(429, {}, {}), (503, {}, {}), "slow", "hang up", b"<html>", b"", [], {"error": 1}, {"choices": []},
     {"choices": [{"message": {}}]}, completion(None), completion("  ")],
    ids=str,
)  # fmt: skip
def test_what_is_no_answer_is_asked_for_again(serve, bad):
    server = serve(bad)
    assert endpoint(server, timeout=0.5 if bad == "slow" else 60.0)(items()) == [Summary(GOOD, (), 1)]
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        ([(503, {}, {"error": {"message": "too busy"}})] * 3, "answers 503: too busy"),
        ([b"<"] * 3, "3 answers were no chat completions (JSONDecodeError"),
        (["slow"] * 3, "no answer within 0.5 seconds, 3 times"),
        ([(400, {}, {"error": {"message": "context too long"}})], "answers 400: context too long"),
    ],
    ids=["busy", "malformed", "late", "refused"],
)
def test_a_question_that_stays_without_an_answer_fails_alone(serve, plan, problem):
    bad, good = endpoint(serve(*plan), timeout=0.5 if "slow" in plan else 60.0)(items(2))
    assert problem in bad.problem
    assert not bad.stops
    assert good == Summary(GOOD, (), 1)


def test_how_long_to_wait_is_said_by_the_server_and_by_first_wait(serve):
    server = serve((429, {"Retry-After": "0.3"}, {}), b"<", b"<")
    assert endpoint(server, first_wait=0.2)(items()) == [Summary(GOOD, (), 1)]
    waits = [later - sooner for sooner, later in zip(server.times, server.times[1:], strict=False)]
    assert all(wait >= least for wait, least in zip(waits, (0.3, 0.2, 0.4), strict=True))


def test_no_key_left_waiting_requests_are_not_sent(serve):
    server = serve(*[(403, {}, {})] * 50)
    assert all(isinstance(one, Failure) and one.stops for one in endpoint(server)(items(20)))
    assert len(server.seen) < 5


def test_all_of_a_batch_are_answered_in_their_order_side_by_side(serve):
    server = serve("slow")
    assert endpoint(server, concurrency=4)(items(9)) == [Summary(GOOD, (), 1)] * 9


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([DIGITS], Summary(GOOD, (), 2)),
        ([DIGITS, "Plan B has 3 signs."], Summary(DIGITS, ("it has digits",), 2)),
        (["Plan B has 3 signs.", DIGITS], Summary(DIGITS, ("it has digits",), 2)),
        ([DIGITS, None, None, None], Summary(DIGITS, ("it has digits",), 1)),
    ],
    ids=["good", "the first is better", "the second is better", "the second fails"],
)
def test_a_description_that_breaks_a_rule_is_asked_for_once_more_with_the_reason(serve, answers, expected):
    server = serve(*map(completion, answers))
    assert endpoint(server)(items()) == [expected]
    first, second = server.seen[:2]
    assert second["messages"][:1] == first["messages"]
    assert second["messages"][1] == {"role": "assistant", "content": answers[0]}
    assert "it has digits" in second["messages"][2]["content"]


def test_tokens_of_every_answer_count_and_prices_make_costs(serve):
    empty = completion(None, prompt_tokens=100, completion_tokens=1)
    uncounted = {"choices": completion()["choices"]}
    server = serve(empty, completion(DIGITS, prompt_tokens=100, completion_tokens=5), completion(), uncounted)
    expert = endpoint(server, prompt_price=0.5, completion_price=2.0)
    expert(items(2))
    assert vars(expert.spent) == {"requests": 4, "prompt_tokens": 300, "completion_tokens": 16}
    assert expert.spent.cost(expert.settings) == pytest.approx((300 * 0.5 + 16 * 2.0) / 1e6)
    assert expert.spent.cost(EndpointSettings()) is None


def config_of(server: Server, **changes) -> dict:
    content = scripted()
    content["stages"]["summary"] = {
        "expert": "openai", "base_url": server.url, "model": "tiny", "attempts": 2, "concurrency": 1, "batch_size": 2,
        "prompt_price": 1.0, "completion_price": 1.0, **changes,
    }  # fmt: skip
    return content


def test_a_whole_run_accounts_for_its_tokens_and_costs(serve, tmp_path, capsys):
    assert describe(IMAGES, tmp_path / "run", config_of(serve(completion("A sign from 1999.")))) == 0
    entry = FinishedRun(tmp_path / "run").manifest["stages"]["summary"]
    assert (entry["requests"], entry["prompt_tokens"], entry["completion_tokens"]) == (6, 600, 60)
    assert entry["cost"] == pytest.approx(660e-6)
    assert "summary: 6 requests, 600 + 60 tokens, cost 0.0007" in capsys.readouterr().out
    assert [row["attempts"] for row in lines(tmp_path / "run", "summary")].count(2) == 1


def test_a_key_that_is_refused_on_the_way_stops_in_one_sentence_and_the_work_is_kept(serve, tmp_path, capsys):
    refused = (401, {}, {"error": {"message": f"bad key {KEY}"}})
    server = serve(completion(), completion(), completion(), refused)
    config, run = config_of(server), tmp_path / "run"
    error = refusal(capsys, describe(IMAGES, run, config))
    assert "stages.summary: " in error
    assert "refuses with 401: bad key …; what was finished is kept" in error
    # The third image shared its batch with the one that was refused.
    assert describe(IMAGES, run, config) == 0
    assert len(server.seen) == 4 + 2
    asked = {body["messages"][0]["content"] for body in server.seen}
    assert describe(IMAGES, tmp_path / "straight", config) == 0
    assert {body["messages"][0]["content"] for body in server.seen[6:]} == asked
    assert not [path for path in run.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_an_image_that_failed_is_listed_and_the_next_run_asks_for_it_alone(serve, tmp_path):
    server = serve(b"<", b"<")
    config = config_of(server)
    assert describe(IMAGES, tmp_path / "run", config) == 1
    (problem,) = FinishedRun(tmp_path / "run").problems()
    assert (problem["stage"], problem["file"]) == ("summary", "heldout/000000.jpg")
    count = len(server.seen)
    assert describe(IMAGES, tmp_path / "run", config) == 0
    assert len(server.seen) == count + 1
    assert describe(IMAGES, tmp_path / "straight", config) == 0
    assert outputs_of(tmp_path / "straight") == outputs_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url 'localhost:8000' is not an http:// or https:// address"),
        ({"base_url": "http://me:pw@localhost/v1"}, "base_url must hold no name or password"),
        ({"model": ""}, "stages.summary.model is missing"),
        ({"concurrency": 0}, "stages.summary.concurrency is 0, and 1 or more is needed"),
        ({}, "nothing answers there"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_sentence(serve, tmp_path, capsys, changes, message):
    server = serve()
    server.server.server_close()
    assert message in refusal(capsys, describe(IMAGES, tmp_path / "run", config_of(server, **changes)))


class TestLocalModel:
    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory) -> str:
        return str(write_causal(tmp_path_factory.mktemp("causal")))

    def opened(self, model: str, **settings) -> LocalModel:
        return LocalModel(LocalSettings(model=model, **{"max_new_tokens": 6, "retries": 0, **settings}))

    def test_answers_are_those_of_each_question_alone_and_tokens_are_counted(self, model):
        expert = self.opened(model)
        given = [*items(1), *items(1, "a red sign and a blue circle " * 5)]
        together = expert(given)
        assert expert.spent.requests == 2
        assert expert.spent.prompt_tokens > 200
        assert 0 < expert.spent.completion_tokens <= 12
        assert together == [expert([item])[0] for item in given]

    def test_an_image_cannot_write_control_tokens(self, model):
        prompt = self.opened(model).write([{"role": "user", "content": "a <|im_end|> <|endoftext|> b"}])
        assert prompt.startswith("<|im_start|> user a")
        assert prompt.count("<|im_end|>") == 1
        assert "<|endoftext|>" not in prompt

    def test_a_model_without_a_template_goes_on_from_a_heading(self, tmp_path):
        expert = self.opened(str(write_causal(tmp_path / "plain", template=False)))
        assert expert.write([{"role": "user", "content": "x"}]) == "x\n\nDescription:"
        assert len(expert(items())) == 1

    def test_only_the_question_that_is_too_long_fails(self, model):
        expert = self.opened(model)
        expert.model.config.max_position_embeddings = 700
        notes = [Candidate("region", number, (0, 0, 1, 1), f"a sign {number}", 0.9) for number in range(60)]
        good, bad = expert([*items(1), *items(1, "sign " * 60, *notes)])
        assert isinstance(good, Summary)
        assert "more than the model's 700" in bad.problem


def described(*notes: tuple, caption: str = "a shop", **settings: int) -> str:
    """What the rule writes of notes: their source, box in tenths, and text."""
    kept = [
        Candidate(source, number, tuple(side / 10 for side in box), text, 0.9)
        for number, (source, box, text) in enumerate(notes)
    ]
    ghost = Candidate("region", 0, (0, 0, 1, 1), "a ghost", 0.1, "score", "too low")
    (found,) = Rules(RuleSettings(**settings))(items(1, caption, *kept, ghost))
    assert (found.problems, found.attempts) == ((), 1)
    return found.text


def test_the_rule_tells_places_a_relation_and_what_is_written():
    notes = [
        ("region", (6, 7, 9, 9), "a door"), ("segment", (6, 7, 9, 9), "a gate"), ("region", (0, 0, 3, 2), "A red sign"),
        ("region", (4, 4, 6, 6), "2 poles"), ("text", (0, 0, 2, 1), "BAKERY"), ("text", (0, 1, 2, 2), "x"),
        ("text", (0, 1, 2, 2), "1999"), ("text", (0, 2, 2, 3), "BAKERY"), ("text", (0, 2, 2, 3), "OPEN"),
    ]  # fmt: skip
    assert described(*notes, caption="A shop.") == (
        "The picture shows a shop. A red sign at the upper left and a door at the lower right can be seen. "
        "The red sign is to the left of the door. The words “BAKERY” and “OPEN” can be read. A number is written there."
    )
    assert described(*notes, ("text", (0, 2, 2, 3), "7"), most_objects=1, most_words=1) == (
        "The picture shows a shop. A door at the lower right can be seen. The word “BAKERY” can be read. "
        "Several numbers are written there."
    )
    assert described() == "The picture shows a shop."


@pytest.mark.parametrize(
    ("first", "last", "places", "relation"),
    [
        ((4, 0, 6, 2), (4, 7, 6, 9), ("at the top", "at the bottom"), " The sign is above the pole."),
        ((0, 0, 9, 9), (4, 4, 5, 5), ("that fills most of it", "in the middle"), " The pole lies inside the sign."),
        ((0, 4, 4, 6), (3, 4, 9, 7), ("at the left", "in the middle"), ""),
    ],
)
def test_the_rule_relates_the_first_object_to_the_last_where_that_is_plain(first, last, places, relation):
    text = described(("region", last, "a pole"), ("region", first, "a sign"))
    seen = f"A sign {places[0]} and a pole {places[1]} can be seen."
    assert text == f"The picture shows a shop. {seen}{relation}"
